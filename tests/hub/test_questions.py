"""Questions between shards: one suite for all hubs, and what only Redis can show."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from spread.hub import questions, roster
from spread.hub.api import HubCounters, ShardInfo
from spread.hub.asking import MAX_ANSWER_BYTES, MAX_OPEN, MAX_QUESTION_BYTES
from spread.hub.errors import HubRefused, HubUnavailable, LinkLost, MessageTooLarge, ShardUnknown
from spread.hub.link import CommandProtocol, Link
from spread.hub.questions import KIND_ANSWER, KIND_QUESTION, Questions, UnknownVersion, pack, unpack
from tests.fakes import identity
from tests.hub.backends import Backend, OnFakeredis, OnMemory, OnValkey
from tests.hub.proxy import Proxied, Proxy
from tests.hub.scripted import FakeEndpoint, Outcome, Wire, answer, captured, handshake, message, noperm
from tests.hub.servers import Valkey
from tests.hub.shards import LOAD, Recorder, Shard, eventually, pause, reactor, redis_shard


class QuestionsConformance(Backend):
    """What every hub must do."""

    async def shards(self, count: int, **settings: Any) -> list[Shard]:
        """Started shards; each answers with its place and the question."""
        shards = [await self.shard(**settings) for _ in range(count)]
        for place, shard in enumerate(shards):
            shard.receiver.answer = lambda question, place=place: succeed(b"%d:%b" % (place, question))
        return shards

    def incarnation(self, shard: Shard) -> str:
        return shard.identity.incarnation

    async def test_all_answer(self) -> None:
        shards = await self.shards(3)
        for shard in shards:
            self.assertEqual(sorted(await shard.hub.ask(b"who?")), [b"0:who?", b"1:who?", b"2:who?"])
            self.assertEqual(shard.hub.counters.questions, 1)
            self.assertEqual(shard.hub.counters.unanswered, 0)
        self.assertEqual([shard.receiver.questions for shard in shards], [[b"who?"] * 3] * 3)

    async def test_a_shard_alone_asks_itself(self) -> None:
        (shard,) = await self.shards(1)
        self.assertEqual(await shard.hub.ask(b"x"), [b"0:x"])

    async def test_one_is_asked(self) -> None:
        one, two, three = await self.shards(3)
        self.assertEqual(await one.hub.ask(b"x", self.incarnation(two)), [b"1:x"])
        self.assertEqual(await one.hub.ask(b"y", self.incarnation(one)), [b"0:y"])
        self.assertEqual([shard.receiver.questions for shard in (one, two, three)], [[b"y"], [b"x"], []])

    async def test_nobody_is_asked_before_a_turn_has_passed(self) -> None:
        (shard,) = await self.shards(1)
        asked = shard.hub.ask(b"x")
        self.assertEqual(shard.receiver.questions, [])
        await asked

    async def test_a_shard_that_does_not_live(self) -> None:
        one, two = await self.shards(2)
        await two.hub.stop()
        await self.gone(two)
        alive = self.incarnation(one)
        for unknown in ("00" * 8, self.incarnation(two), "x", "..", "\ud800", "房间", f"{alive}\n"):
            error = await self.assertFailure(one.hub.ask(b"x", unknown), ShardUnknown)
            self.assertEqual(error.incarnation, unknown)
        self.assertEqual(one.hub.counters.unanswered, 0)
        self.assertEqual(one.receiver.questions, [])

    async def test_questions_of_one_shard_arrive_in_order(self) -> None:
        one, two = await self.shards(2)
        results = []
        for number in range(300):
            results.append(one.hub.ask(b"%d" % number, self.incarnation(two) if number % 3 else ""))
            if number % 50 == 0:
                await pause(0)
        await gatherResults(results)
        self.assertEqual(two.receiver.questions, [b"%d" % number for number in range(300)])
        self.assertEqual(one.receiver.questions, [b"%d" % number for number in range(0, 300, 3)])

    async def test_answers_go_to_their_questions(self) -> None:
        one, two = await self.shards(2)
        later: list[tuple[bytes, Deferred[bytes]]] = []

        def answer(question: bytes) -> Deferred[bytes]:
            later.append((question, Deferred()))
            return later[-1][1]

        two.receiver.answer = answer
        results = [one.hub.ask(b"%d" % number, self.incarnation(two)) for number in range(5)]
        results += [two.hub.ask(b"own", self.incarnation(two))]
        await eventually(lambda: len(later) == 6)
        for question, result in reversed(later):
            result.callback(b"to " + question)
        answers = await gatherResults(results)
        self.assertEqual(answers, [[b"to %d" % number] for number in range(5)] + [[b"to own"]])

    async def test_payloads_pass_unchanged(self) -> None:
        one, two = await self.shards(2)
        two.receiver.answer = succeed
        for payload in (b"", b"\x00\xff\r\n", bytes(range(256)) * 4096):
            self.assertEqual(await one.hub.ask(payload, self.incarnation(two)), [payload])

    async def test_a_failure_is_logged_and_answered_with_nothing(self) -> None:
        one, two = await self.shards(2)

        def answer(question: bytes) -> Deferred[bytes]:
            if question == b"raise":
                raise ZeroDivisionError
            return fail(ZeroDivisionError())

        two.receiver.answer = answer
        for question in (b"raise", b"fail"):
            self.assertEqual(sorted(await one.hub.ask(question)), [b"", b"0:" + question])
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_too_much(self) -> None:
        one, two = await self.shards(2)
        error = await self.assertFailure(one.hub.ask(bytes(MAX_QUESTION_BYTES + 1)), MessageTooLarge)
        self.assertEqual(error.maximum, MAX_QUESTION_BYTES)
        two.receiver.answer = lambda question: succeed(bytes(MAX_ANSWER_BYTES + 1))
        self.assertEqual(await one.hub.ask(b"x", self.incarnation(two)), [b""])
        self.assertEqual(len(self.flushLoggedErrors(MessageTooLarge)), 1)

    async def test_who_does_not_answer_in_time(self) -> None:
        one, two = await self.shards(2, ask_seconds=0.2)
        late: Deferred[bytes] = Deferred()
        two.receiver.answer = lambda question: late
        error = await self.assertFailure(one.hub.ask(b"x"), HubUnavailable)
        self.assertIn("1 of 2 shards did not answer within 0.2 s", str(error))
        self.assertEqual((one.hub.counters.questions, one.hub.counters.unanswered), (1, 1))
        # An answer that took too long is given up where it is made, too.
        await eventually(lambda: late.called)
        self.assertEqual(len(self.flushLoggedErrors()), 1)
        two.receiver.answer = succeed
        self.assertEqual(await one.hub.ask(b"y", self.incarnation(two)), [b"y"])

    async def test_too_many_questions(self) -> None:
        (shard,) = await self.shards(1)
        shard.receiver.answer = lambda question: Deferred()
        results = [shard.hub.ask(b"x") for _ in range(MAX_OPEN)]
        error = await self.assertFailure(shard.hub.ask(b"x"), HubUnavailable)
        self.assertIn(f"{MAX_OPEN} questions", str(error))
        # One that is given up makes room.
        results[0].cancel()
        results.append(shard.hub.ask(b"x"))
        self.assertFalse(results[-1].called)
        for result in results:
            result.addErrback(lambda failure: None)

    assertFalse: Any

    async def test_stop_fails_what_waits_and_answers_who_waits_for_it(self) -> None:
        one, two = await self.shards(2)
        two.receiver.answer = lambda question: Deferred()
        asked_by_one = one.hub.ask(b"x")
        asked_by_two = two.hub.ask(b"y")
        await eventually(lambda: sorted(two.receiver.questions) == [b"x", b"y"])
        stopped = two.hub.stop()
        error = await self.assertFailure(asked_by_two, HubUnavailable)
        self.assertIn("stopping", str(error))
        self.assertEqual(sorted(await asked_by_one), [b"", b"0:x"])
        await stopped
        await self.gone(two)
        error = await self.assertFailure(two.hub.ask(b"z"), HubUnavailable)
        self.assertIn("stopping", str(error))
        self.assertEqual(await one.hub.ask(b"z"), [b"0:z"])

    async def test_before_the_start(self) -> None:
        shard = self.make_shard()
        await self.assertFailure(shard.hub.ask(b"x"), HubUnavailable)
        await shard.hub.stop()


class QuestionsAway(QuestionsConformance):
    """The hub is taken away."""

    async def test_while_it_is_away(self) -> None:
        one, two = await self.shards(2)
        two.receiver.answer = lambda question: Deferred()
        waiting = one.hub.ask(b"x")
        await eventually(lambda: two.receiver.questions)
        failed = self.assertFailure(waiting, HubUnavailable)
        await self.take_away(one, two)
        await failed
        self.assertEqual(one.hub.counters.unanswered, 1)
        await self.assertFailure(one.hub.ask(b"y"), HubUnavailable)
        await self.assertFailure(one.hub.ask(b"y", self.incarnation(two)), HubUnavailable)
        two.receiver.answer = succeed
        self.give_back()
        await eventually(lambda: one.hub.is_live and two.hub.is_live)
        self.assertEqual(sorted(await one.hub.ask(b"z")), [b"0:z", b"z"])


class OfMemory(OnMemory, QuestionsAway, TestCase):
    timeout = 30

    async def test_what_is_on_its_way_when_it_is_cut_is_lost(self) -> None:
        one, two = await self.shards(2)
        asked = self.assertFailure(one.hub.ask(b"x"), HubUnavailable)
        self.exchange.cut()
        await asked
        await pause(0.01)
        self.assertEqual(two.receiver.questions, [])
        self.exchange.restore()

    async def test_it_stops_while_a_question_is_on_its_way(self) -> None:
        one, two = await self.shards(2)
        asked = one.hub.ask(b"x")
        await two.hub.stop()
        self.assertEqual(sorted(await asked), [b"", b"0:x"])


class OfFakeredis(OnFakeredis, QuestionsConformance, TestCase):
    timeout = 60


class OfValkey(OnValkey, QuestionsAway, TestCase):
    timeout = 60

    async def test_it_hears_from_the_moment_it_is_live(self) -> None:
        one = await self.shard()
        self.assertEqual(self.server.receivers("spread:control"), 1)
        self.assertEqual(self.server.receivers(f"spread:control:{self.incarnation(one)}"), 1)

    async def test_one_link_is_lost_while_it_waits(self) -> None:
        one, two = await self.shards(2)
        two.receiver.answer = lambda question: Deferred()
        waiting = one.hub.ask(b"x", self.incarnation(two))
        await eventually(lambda: two.receiver.questions)
        failed = self.assertFailure(waiting, HubUnavailable)
        self.server.command("CLIENT", "KILL", "TYPE", "PUBSUB")
        await failed
        two.receiver.answer = succeed
        await eventually(lambda: one.hub.is_live and two.hub.is_live)
        self.assertEqual(sorted(await one.hub.ask(b"y")), [b"0:y", b"y"])

    async def test_a_shard_whose_link_is_deaf_does_not_answer(self) -> None:
        one = (await self.shards(1, ask_seconds=0.3))[0]
        proxy = Proxy(reactor, self.server.port)
        self.addCleanup(proxy.stop)
        deaf = redis_shard(f"redis://127.0.0.1:{proxy.port}")
        self.addCleanup(deaf.hub.stop)
        await deaf.hub.start(deaf.receiver)
        proxy.each(Proxied.swallow)
        error = await self.assertFailure(one.hub.ask(b"x"), HubUnavailable)
        self.assertIn("1 of 2 shards", str(error))

    async def test_a_shard_whose_machine_is_gone_is_not_waited_for(self) -> None:
        self.patch(roster, "HEARTBEAT_SECONDS", 0.1)
        self.patch(roster, "DEAD_AFTER_SECONDS", 0.5)
        (one,) = await self.shards(1)
        proxy = Proxy(reactor, self.server.port)
        self.addCleanup(proxy.stop)
        gone = redis_shard(f"redis://127.0.0.1:{proxy.port}")
        self.addCleanup(gone.hub.stop)
        await gone.hub.start(gone.receiver)
        for shard in (one, gone):
            await shard.hub.claim(None, shard.identity)
            shard.hub.enter(lambda: LOAD, lambda incumbent: None)
        while len(await one.hub.roster()) < 2:
            await pause(0.01)
        proxy.each(Proxied.swallow)
        self.assertEqual(await one.hub.ask(b"x"), [b"0:x"])
        self.assertEqual(self.server.receivers("spread:control"), 2, "it is counted still")
        await self.assertFailure(one.hub.ask(b"y", self.incarnation(gone)), ShardUnknown)

    async def test_what_is_none_of_ours_hurts_nobody(self) -> None:
        (shard,) = await self.shards(1)
        own = f"spread:control:{self.incarnation(shard)}"
        for odd in (b"", b"\x01", b"\x02" + bytes(30), bytes(5), pack(9, bytes(8), 1, b""), b"x" * 70_000):
            for channel in ("spread:control", own):
                self.server.command("PUBLISH", channel, odd)
        self.assertEqual(await shard.hub.ask(b"x"), [b"0:x"])
        counters = shard.hub.counters
        self.assertEqual((counters.unknown_versions, counters.malformed), (6, 6))
        self.assertEqual(shard.receiver.questions, [b"x"])

    async def test_a_forbidden_control_channel_hurts_nothing_else(self) -> None:
        allowed = "&spread:ch:* &spread:probe:* &spread:hearing"
        with Valkey(users=[f"spread on >x ~spread:* {allowed} +@all"]) as server:
            shard = redis_shard(f"redis://spread:x@127.0.0.1:{server.port}")
            self.addCleanup(shard.hub.stop)
            await shard.hub.start(shard.receiver)
            error = await self.assertFailure(shard.hub.ask(b"x"), HubRefused)
            self.assertIn("spread:control", str(error))
            await shard.hub.subscribe("a")
            await shard.publish("a", b"x")
            await shard.hears("a", [b"x"])
            await shard.hub.stop()


# -- the messages --------------------------------------------------------------------------------------


def test_a_message_is_its_header_and_its_body() -> None:
    packed = pack(KIND_ANSWER, b"ABCDEFGH", 2**64 - 1, b"body")
    assert packed == b"\x01\x02\x14\x00ABCDEFGH" + b"\xff" * 8 + b"body"
    assert unpack(packed) == (KIND_ANSWER, b"ABCDEFGH", 2**64 - 1, b"body")


def test_what_a_later_release_appends_to_the_header_is_skipped() -> None:
    packed = pack(KIND_QUESTION, bytes(8), 7, b"")
    longer = packed[:2] + bytes([len(packed) + 3]) + packed[3:] + b"newbody"
    assert unpack(longer) == (KIND_QUESTION, bytes(8), 7, b"body")


@pytest.mark.parametrize(
    "odd", [b"", b"\x01", bytes(19), b"\x01\x01\x13" + bytes(17), b"\x01\x01\x15" + bytes(17)]
)
def test_what_no_release_wrote(odd: bytes) -> None:
    with pytest.raises(ValueError):
        unpack(odd)


def test_another_version() -> None:
    with pytest.raises(UnknownVersion, match="version 2"):
        unpack(b"\x02")


# -- with a server that the test plays -----------------------------------------------------------------

OURS, THEIRS = b"\xaa" * 8, b"\xbb" * 8
ALL, OWN = b"spread:control", b"spread:control:" + b"aa" * 8


class Stage:
    """Questions whose command link is up, and which hear."""

    def __init__(self, forbidden: bytes | None = None) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000.0)
        self.endpoint = FakeEndpoint(self.clock)
        self.link = Link(
            self.clock,
            self.endpoint,
            name="there",
            build=lambda: CommandProtocol(self.clock, handshake(reply_seconds=60.0)),
            up=lambda protocol: None,
            down=lambda reason: None,
        )
        self.counters = HubCounters()
        self.looks: list[Deferred[list[ShardInfo]]] = []
        """The roster was asked for."""
        self.questions = Questions(
            self.clock, self.link, "spread", OURS, 10.0, self.counters, roster=self.look
        )
        self.receiver = Recorder()
        self.receiver.answer = succeed
        self.questions.start(self.receiver)
        self.link.start()
        self.wire = self.endpoint.accept()
        self.wire.introduces()
        self.hears(forbidden)

    def hears(self, forbidden: bytes | None = None) -> None:
        """The subscriber link comes up."""
        connection = questions.SubscriberProtocol(self.clock, handshake(), b"own", self.questions.channels)
        connection.message = self.questions.heard
        opened: list[Any] = []
        connection.opened = opened.append
        self.subscriber = Wire(self.clock, connection)
        up = Outcome(Deferred.fromCoroutine(connection.introduce()))
        while not up.fired:
            name, *arguments = self.subscriber.command()
            if name == b"SUBSCRIBE" and arguments[0] == forbidden:
                self.subscriber.says(answer(noperm()))
            elif name == b"SUBSCRIBE":
                self.subscriber.says(answer([b"subscribe", arguments[0], 1]))
            else:
                self.subscriber.says(b"+OK\r\n")
        assert up.value is None
        self.questions.link_up(connection)

    def look(self) -> Deferred[list[ShardInfo]]:
        self.looks.append(Deferred())
        return self.looks[-1]

    def alive(self, *shards: bytes) -> None:
        """What the roster says that was asked for."""
        (look,) = self.looks
        self.looks.clear()
        rows = [
            ShardInfo(shard=number, identity=identity(shard.hex(), 1), load=LOAD, age_seconds=0.0)
            for number, shard in enumerate(shards)
        ]
        look.callback(rows)

    def says(self, channel: bytes, payload: bytes) -> None:
        self.subscriber.says(message(channel, payload))
        self.clock.advance(0)

    @property
    def deadlines(self) -> int:
        """How many questions wait."""
        return sum(call.func.__name__ == "_late" for call in self.clock.getDelayedCalls())

    def asks(self, shard: str = "") -> tuple[Outcome, int]:
        """A question that is on the wire, and its number."""
        asked = Outcome(self.questions.ask(b"?", shard))
        name, _, packed = self.wire.command()
        assert name == b"PUBLISH"
        return asked, unpack(packed)[2]


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_answers_may_come_before_it_is_known_how_many(stage: Stage) -> None:
    asked, number = stage.asks()
    stage.says(OWN, pack(KIND_ANSWER, THEIRS, number, b"1"))
    stage.says(OWN, pack(KIND_ANSWER, THEIRS, number, b"twice"))
    stage.wire.says(answer(2))
    assert asked.fired == []
    stage.says(OWN, pack(KIND_ANSWER, OURS, number, b"2"))
    assert asked.value == [b"1", b"2"]
    stage.says(OWN, pack(KIND_ANSWER, b"C" * 8, number, b"too late"))
    assert stage.deadlines == 0


def test_one_that_is_asked_alone_is_waited_for_once_however_many_connections_it_has(stage: Stage) -> None:
    asked, number = stage.asks(THEIRS.hex())
    stage.wire.says(answer(2))
    stage.says(OWN, pack(KIND_ANSWER, THEIRS, number, b"1"))
    assert asked.value == [b"1"]


def test_nobody_not_even_oneself_hears(stage: Stage) -> None:
    asked, _ = stage.asks()
    stage.wire.says(answer(0))
    assert type(asked.value) is HubUnavailable


@pytest.mark.parametrize(
    ("reply", "kind"),
    [("BUSY a script", HubUnavailable), (noperm(), HubRefused), ("ERR odd", HubUnavailable)],
)
def test_a_question_that_redis_does_not_take(stage: Stage, reply: str, kind: type) -> None:
    asked, _ = stage.asks()
    stage.wire.says(answer(reply))
    assert type(asked.value) is kind
    assert stage.deadlines == 0


def test_a_question_whose_link_breaks(stage: Stage) -> None:
    asked, _ = stage.asks()
    stage.wire.lose()
    assert type(asked.value) is LinkLost
    error = Outcome(stage.questions.ask(b"?", "")).value
    assert type(error) is HubUnavailable
    assert "not connected" in str(error)


def test_a_question_that_is_never_taken(stage: Stage) -> None:
    asked, _ = stage.asks()
    stage.clock.advance(10.0)
    assert "did not take a question within 10 s" in str(asked.value)
    assert stage.counters.unanswered == 1


def test_answers_that_cannot_be_heard(stage: Stage) -> None:
    asked, _ = stage.asks()
    stage.questions.link_down("it fell")
    assert "it fell" in str(asked.value)
    assert "cannot be heard" in str(Outcome(stage.questions.ask(b"?", "")).value)
    stage.hears()
    stage.asks()


def test_shards_that_are_dead_but_counted_are_not_waited_for(stage: Stage) -> None:
    asked, number = stage.asks()
    stage.wire.says(answer(3))
    alone, _ = stage.asks(THEIRS.hex())
    stage.wire.says(answer(1))
    stage.says(OWN, pack(KIND_ANSWER, OURS, number, b"ours"))
    stage.clock.advance(questions.LOOK_SECONDS)
    stage.alive(OURS, THEIRS)
    assert asked.fired == [] and alone.fired == []
    stage.clock.advance(questions.LOOK_SECONDS)
    stage.alive(OURS)
    assert asked.value == [b"ours"]
    assert type(alone.value) is ShardUnknown
    assert stage.counters.unanswered == 0
    stage.clock.advance(questions.LOOK_SECONDS)
    assert stage.looks == [] and stage.deadlines == 0


def test_a_question_that_was_just_asked_is_not_judged(stage: Stage) -> None:
    first, _ = stage.asks(THEIRS.hex())
    stage.wire.says(answer(1))
    stage.clock.advance(questions.LOOK_SECONDS / 2)
    second, _ = stage.asks(THEIRS.hex())
    stage.wire.says(answer(1))
    third, _ = stage.asks(THEIRS.hex())  # not known to have been taken
    stage.clock.advance(questions.LOOK_SECONDS / 2)
    stage.alive(OURS)
    assert type(first.value) is ShardUnknown
    assert second.fired == third.fired == []
    stage.clock.advance(questions.LOOK_SECONDS)
    stage.alive(OURS)
    assert type(second.value) is ShardUnknown
    assert third.fired == []


def test_a_roster_without_this_shard_says_nothing(stage: Stage) -> None:
    asked, _ = stage.asks(THEIRS.hex())
    stage.wire.says(answer(1))
    stage.clock.advance(questions.LOOK_SECONDS)
    stage.alive()
    stage.clock.advance(questions.LOOK_SECONDS)
    stage.looks.pop().errback(HubUnavailable("there", "away"))
    assert asked.fired == []
    stage.clock.advance(questions.LOOK_SECONDS)
    with captured() as lines:
        stage.looks.pop().errback(ZeroDivisionError())
    assert len(lines) == 1 and asked.fired == []


def test_nobody_looks_while_questions_are_answered_and_after_the_stop(stage: Stage) -> None:
    _, number = stage.asks(THEIRS.hex())
    stage.wire.says(answer(1))
    stage.clock.advance(questions.LOOK_SECONDS - 0.1)
    stage.says(OWN, pack(KIND_ANSWER, THEIRS, number, b"x"))
    stage.asks()
    stage.clock.advance(0.1)
    assert stage.looks == []
    assert Outcome(stage.questions.stop()).value is None
    stage.clock.advance(5.0)
    assert stage.looks == []


@pytest.mark.parametrize("forbidden", [ALL, OWN])
def test_a_channel_that_an_acl_forbids(forbidden: bytes) -> None:
    with captured() as lines:
        stage = Stage(forbidden)
    assert len(lines) == 1 and forbidden.decode() in lines[0]
    error = Outcome(stage.questions.ask(b"?", "")).value
    assert type(error) is HubRefused and forbidden.decode() in str(error)
    assert stage.wire.commands() == []


def test_it_answers_to_the_channel_of_who_asked(stage: Stage) -> None:
    stage.says(ALL, pack(KIND_QUESTION, THEIRS, 7, b"x"))
    reply = pack(KIND_ANSWER, OURS, 7, b"x")
    assert stage.wire.command() == [b"PUBLISH", b"spread:control:" + b"bb" * 8, reply]


def test_a_question_that_was_overtaken_is_dropped(stage: Stage) -> None:
    for number in (7, 7, 6, 8, 1):
        stage.says(ALL, pack(KIND_QUESTION, THEIRS, number, b"%d" % number))
    stage.says(OWN, pack(KIND_QUESTION, OURS, 1, b"of another"))
    assert stage.receiver.questions == [b"7", b"8", b"of another"]


def test_who_asked_longest_ago_is_forgotten(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "MAX_ORIGINS", 4)
    for number in range(6):
        stage.says(ALL, pack(KIND_QUESTION, bytes([number]) * 8, 5, b""))
    assert len(stage.questions._last_asked) == 4
    stage.says(ALL, pack(KIND_QUESTION, bytes([5]) * 8, 5, b""))
    assert len(stage.receiver.questions) == 6


def test_an_answer_that_cannot_be_sent_harms_nobody(stage: Stage) -> None:
    stage.says(ALL, pack(KIND_QUESTION, THEIRS, 1, b""))
    with captured() as lines:
        stage.wire.says(answer(noperm()))
    assert len(lines) == 1
    stage.says(ALL, pack(KIND_QUESTION, THEIRS, 2, b""))
    with captured() as lines:
        stage.wire.lose()
        stage.says(ALL, pack(KIND_QUESTION, THEIRS, 3, b""))
    assert lines == []
    assert stage.receiver.questions == [b""] * 3


def test_answers_belong_on_ones_own_channel_and_have_a_size(stage: Stage) -> None:
    asked, number = stage.asks(THEIRS.hex())
    stage.wire.says(answer(1))
    stage.says(ALL, pack(KIND_ANSWER, THEIRS, number, b"1"))
    stage.says(OWN, pack(KIND_ANSWER, THEIRS, number, bytes(MAX_ANSWER_BYTES + 1)))
    assert asked.fired == [] and stage.counters.malformed == 2
    stage.says(OWN, pack(KIND_ANSWER, THEIRS, number, b"2"))
    assert asked.value == [b"2"]


def test_what_is_odd_is_logged_once_a_minute(stage: Stage) -> None:
    with captured() as lines:
        for _, odd in itertools.product(range(3), (b"\x02", b"")):
            stage.says(ALL, odd)
    assert len(lines) == 1
    with captured() as lines:
        stage.clock.advance(60.0)
        stage.says(ALL, b"")
    assert len(lines) == 1


def test_other_channels_are_left_alone(stage: Stage) -> None:
    stage.says(b"spread:probe:aa", b"x")
    assert stage.counters.malformed == 0


def test_a_question_that_comes_with_the_end_of_the_handshake_is_heard(stage: Stage) -> None:
    stage.hears()
    connection = stage.subscriber.protocol
    assert connection.message == stage.questions.heard
    # The message is in the read that confirms the last channel.
    stage.says(ALL, pack(KIND_QUESTION, THEIRS, 1, b"early"))
    assert stage.receiver.questions == [b"early"]
