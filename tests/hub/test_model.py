"""Publish, subscribe, read, cut, trim, forget, stop, kill, restart, interleaved, on the hub in memory and on
Redis: no hole, no double, in order, or told.

Hypothesis draws lists of actions, ``model_driver`` does them, ``model`` judges. What has gone wrong once is
pinned as a list, and done each time. A test that cannot fail proves nothing: so hubs with a planted bug are
driven too, and must be found out.

By default the same few lists are drawn each time. For a long look,

    SPREAD_MODEL_EXAMPLES=2000 SPREAD_MODEL_SEED=7 pytest tests/hub/test_model.py -k search --timeout=0

draws so many, others for each seed; one takes 0.01 s in memory, and 0.7 s on Redis. One that fails is shown
with its actions, as they are written here, and with what happened.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from spread.hub import repair
from spread.hub.api import Broken, Position
from spread.hub.memory import Exchange, MemoryHub
from spread.hub.memory_inbox import MemoryInbox
from spread.hub.memory_streams import Streams
from tests.hub.model_driver import (
    Action,
    Away,
    Back,
    Cut,
    Delay,
    Deliver,
    Drop,
    Elsewhere,
    FlushScripts,
    Forget,
    Hold,
    Kill,
    KillClients,
    Lose,
    MemoryDriver,
    Pass,
    Publish,
    Quiet,
    Read,
    RedisDriver,
    Remove,
    Renew,
    Resume,
    Subscribe,
    Trim,
    Turns,
    Unsubscribe,
)
from tests.hub.servers import Valkey
from tests.live.faults import planted

# Not all alike, so that more often something happens to what something has happened to.
SHARD = st.sampled_from([0, 0, 0, 1, 1, 2])
CHANNEL = st.sampled_from(["long", "long", "short"])
LINK = st.sampled_from(["commands", "hearing"])

OFTEN = [
    st.builds(Publish, SHARD, CHANNEL, st.integers(1, 5)),
    st.builds(Publish, SHARD, CHANNEL, st.integers(1, 5), st.booleans()),
    st.builds(Publish, SHARD, CHANNEL, st.integers(1, 2), st.booleans(), st.sampled_from("xyz")),
    st.builds(Publish, SHARD, CHANNEL, version=st.integers(1, 4)),
    st.builds(Subscribe, SHARD, CHANNEL),
    st.builds(Subscribe, SHARD, CHANNEL, st.booleans()),
    st.builds(Turns, st.sampled_from([1, 2, 5, 30])),
    st.builds(Turns, st.sampled_from([1, 2, 5, 30])),
]

SELDOM = [
    st.builds(Publish, SHARD, CHANNEL, st.sampled_from([20, 130]), st.booleans()),
    st.builds(Unsubscribe, SHARD, CHANNEL),
    st.builds(
        Read,
        SHARD,
        CHANNEL,
        st.none() | st.integers(0, 12),
        st.sampled_from([-1, 0, 1, 2, 5]),
        st.booleans(),
    ),
    st.builds(Remove, SHARD, CHANNEL),
    st.builds(Trim, CHANNEL, st.integers(0, 4)),
    st.builds(Forget, CHANNEL, st.booleans(), st.booleans()),
    st.builds(Drop, SHARD, CHANNEL, st.integers(1, 4)),
    st.builds(Renew, SHARD),
    st.builds(Hold, SHARD),
    st.builds(Resume, SHARD),
    st.builds(Away),
    st.builds(Back),
    st.builds(Quiet),
]

MEMORY_ONLY = [
    st.builds(Pass, st.sampled_from([0.1, 4.0, 21.0, 61.0, 301.0, 601.0])),
    st.builds(Elsewhere, CHANNEL, st.booleans()),
]

REDIS_ONLY = [
    st.builds(Turns, st.just(100)),
    st.builds(Turns, st.just(100)),
    st.builds(Cut, SHARD, LINK),
    st.builds(Cut, SHARD, LINK, st.booleans()),
    st.builds(Delay, SHARD, LINK),
    st.builds(Delay, SHARD, LINK),
    st.builds(Deliver, SHARD, LINK),
    st.builds(Deliver, SHARD, LINK),
    st.builds(Lose, SHARD, LINK, st.sampled_from(["in", "out"]), st.sampled_from([0, 100, 1000, 10_000])),
    st.builds(Kill, st.booleans()),
    st.builds(KillClients, st.sampled_from(["normal", "pubsub"])),
    st.builds(FlushScripts),
]


def lists_of(seldom: list[st.SearchStrategy[Any]], most: int) -> st.SearchStrategy[list[Action]]:
    subscribe = st.builds(Subscribe, SHARD, CHANNEL, st.sampled_from([True, True, False]))
    beginnings = st.lists(subscribe, min_size=1, max_size=5).map(lambda actions: [*actions, Quiet()])
    # Long lists are drawn only where short ones are not allowed; to shrink one an action becomes nothing.
    action = st.one_of(st.none(), *OFTEN * 3, *seldom)
    lists = st.lists(action, min_size=most // 3, max_size=most)
    return st.builds(lambda one, other: [*one, *filter(None, other)], beginnings, lists)


def on_memory(most: int = 60) -> st.SearchStrategy[list[Action]]:
    """Actions for a ``MemoryDriver``."""
    return lists_of([*SELDOM, *MEMORY_ONLY], most)


def on_redis(most: int = 60) -> st.SearchStrategy[list[Action]]:
    """Actions for a ``RedisDriver``."""
    return lists_of([*SELDOM, *REDIS_ONLY], most)


# -- searching -----------------------------------------------------------------------------------------

EXAMPLES = int(os.environ.get("SPREAD_MODEL_EXAMPLES", "0"))
SEED = os.environ.get("SPREAD_MODEL_SEED", "")


def drawn(actions: st.SearchStrategy[list[Action]], examples: int, **how: Any) -> Callable[[Any], Any]:
    """A test of lists of actions: so many, unless the environment wants more."""

    def decorated(test: Any) -> Any:
        chosen = settings(
            max_examples=max(EXAMPLES, examples),
            derandomize=not SEED,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            **how,
        )
        test = chosen(given(actions)(test))
        return seed(int(SEED))(test) if SEED else test

    return decorated


class _Driven(TestCase):
    timeout = 60

    def execute_example(self, example: Callable[[], Any]) -> None:
        """Hypothesis calls this for each example, and wants it done when it returns."""
        outcomes: list[Any] = []
        done = Deferred.fromCoroutine(example())
        done.addBoth(outcomes.append)
        self._wait(done)  # as trial does for a test, which is not at it yet: until here nothing had to wait
        for failure in (*outcomes, *self.flushLoggedErrors()):
            if isinstance(failure, Failure):
                failure.raiseException()


# -- in memory -----------------------------------------------------------------------------------------


class InMemory(_Driven):
    """The memory hub, by a clock of its own."""

    @drawn(on_memory(), 200)
    async def test_search(self, actions: list[Action]) -> None:
        await MemoryDriver().run(actions)

    async def test_a_loss_while_it_is_held(self) -> None:
        # The window began when the exchange was cut: too late for what had not been handed over by then.
        await MemoryDriver().run(
            [Hold(0), Subscribe(0, "long"), Publish(1, "long", is_kept=False), Pass(0.1), Away()]
        )

    async def test_a_plain_one_between_kept_ones_of_a_new_epoch(self) -> None:
        # All that was kept was handed over, before what was on its way and stood between.
        await MemoryDriver().run(
            [
                Subscribe(0, "long"),
                Forget("long"),
                Publish(1, "long"),
                Publish(1, "long", is_kept=False),
                Publish(1, "long"),
            ]
        )

    async def test_following_again_while_it_is_held(self) -> None:
        # The Broken that the first subscription had still to be told came to the second.
        await MemoryDriver().run(
            [
                Subscribe(1, "long"),
                Quiet(),
                Away(),
                Hold(1),
                Unsubscribe(1, "long"),
                Forget("long"),
                Back(),
                Publish(0, "long", 3),
                Pass(4.0),
                Subscribe(1, "long"),
                Publish(0, "long", 3),
                Resume(1),
            ]
        )

    async def test_an_outage_with_everything_in_it(self) -> None:
        await MemoryDriver().run(
            [
                *(Subscribe(shard, channel) for shard in range(3) for channel in ("long", "short")),
                Publish(0, "short", 2),
                Turns(),
                Away(),
                Elsewhere("short"),
                Elsewhere("long", is_kept=False),
                Elsewhere("long"),
                Publish(1, "long", key="x"),
                Publish(2, "long", key="x"),
                Publish(1, "short", 5),
                Publish(1, "long", version=2),
                Publish(1, "long", version=1),
                Pass(4.0),
                Back(),
                Drop(0, "long"),
                Publish(0, "long", 2),
                Remove(2, "short"),
                Trim("long", down_to=1),
                Read(1, "long", limit=2, reverse=True),
                Renew(2),
            ]
        )


def _no_gap_check(self: Any, receiver: Any, channel: str, event: Any, place: Any, history: Any) -> None:
    self._hand_over(receiver, channel, event)


def _twice(spread: Any) -> Any:
    def spreads(self: Any, channel: str, event: Any) -> None:
        spread(self, channel, event)
        spread(self, channel, event)

    return spreads


def _no_broken(since: Any) -> Any:
    return lambda *which: [event for event in since(*which) if not isinstance(event, Broken)]


def _untold(hears_again: Any) -> Any:
    def hears(self: Any, seconds: float) -> None:
        receiver, self._receiver = self._receiver, None
        hears_again(self, seconds)
        self._receiver = receiver

    return hears


def _backwards(speaks_again: Any) -> Any:
    def speaks(self: Any) -> None:
        self._waiting.reverse()
        speaks_again(self)

    return speaks


def _without(**options: Any) -> Any:
    def planted(publish: Any) -> Any:
        return lambda self, channel, publication, given: publish(
            self, channel, publication, msgspec.structs.replace(given, **options)
        )

    return planted


def _off_by_one(publish: Any) -> Any:
    def publishes(*which: Any) -> Any:
        made, position = publish(*which)
        return made, position and Position(position.epoch, position.offset + 1)

    return publishes


def _lacking(read: Any) -> Any:
    def reads(*which: Any) -> Any:
        stream = read(*which)
        return msgspec.structs.replace(stream, publications=stream.publications[1:])

    return reads


def _lossy(arrive: Any) -> Any:
    def arrives(self: Any, channel: str, event: Any) -> None:
        self.arrived = getattr(self, "arrived", 0) + 1
        if self.arrived % 7:
            arrive(self, channel, event)

    return arrives


def _new_epoch(self: Any, channel: str) -> None:
    self._kept.pop(channel, None)
    self._due = [(until, name) for until, name in self._due if name != channel]


class PlantedInMemory(_Driven):
    """A few lists of actions are enough to find a hub that is wrong."""

    def found(self, owner: type, name: str, plant: Callable[[Any], Any], *what: str) -> None:
        """Wrong is one of these."""
        self.patch(owner, name, plant(getattr(owner, name)))

        @drawn(on_memory(), 200, phases=[Phase.generate], report_multiple_bugs=False)
        async def search(case: Any, actions: list[Action]) -> None:
            await MemoryDriver().run(actions)

        error = self.assertRaises(AssertionError, search.__get__(self))
        self.assertTrue(any(each in str(error) for each in what), error)

    def test_no_gap_check(self) -> None:
        self.found(MemoryInbox, "_hand_over_in_order", lambda _: _no_gap_check, "and gets")

    def test_doubles(self) -> None:
        self.found(Exchange, "spread", _twice, "twice", "again")

    def test_silent_trimming(self) -> None:
        self.found(Streams, "since", _no_broken, "and gets", "is left at")

    def test_silent_loss(self) -> None:
        self.found(MemoryInbox, "arrive", _lossy, "has lost")

    def test_silent_outages(self) -> None:
        self.found(MemoryHub, "hears_again", _untold, "was never told")

    def test_disorder(self) -> None:
        self.found(MemoryHub, "speaks_again", _backwards, "comes after later ones", "made later")

    def test_no_keys(self) -> None:
        self.found(Streams, "publish", _without(idempotency_key=""), "key ")

    def test_no_versions(self) -> None:
        self.found(Streams, "publish", _without(version=0), "old version")

    def test_wrong_positions(self) -> None:
        self.found(Streams, "publish", _off_by_one, "told", "above the top", "acknowledged before")

    def test_reads_that_lack_something(self) -> None:
        self.found(Streams, "read", _lacking, "read of")

    def test_removing_too_much(self) -> None:
        self.found(Streams, "remove", lambda _: _new_epoch, "was not forgotten")


# -- on Redis ------------------------------------------------------------------------------------------


class _OnRedis(_Driven):
    server: ClassVar[Valkey]

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Valkey(extra=RedisDriver.CONFIGURATION).start()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.close()

    async def run_actions(self, *actions: Action, **how: Any) -> None:
        await RedisDriver(self.server, **how).run(actions)


class OnRedis(_OnRedis):
    """The Redis hub on a Valkey, in real time."""

    def setUp(self) -> None:
        # So that a stream has several parts.
        self.patch(repair, "PART", 7)
        self.patch(repair, "READS", 1)

    @drawn(on_redis(), 20)
    async def test_search(self, actions: list[Action]) -> None:
        await self.run_actions(*actions)

    async def test_answers_that_are_lost(self) -> None:
        await self.run_actions(
            Subscribe(1, "long"),
            Subscribe(2, "long", is_followed=False),
            Quiet(),
            Lose(0, "commands", "in"),
            Publish(0, "long", 3),
            Publish(0, "long", 2, is_kept=False),
            Publish(0, "long", key="x"),
            Publish(0, "long", is_kept=False, key="y"),
            Publish(0, "long", version=3),
            Turns(10),
            Cut(0, "commands"),
            Publish(1, "long", key="x"),
            Publish(0, "long", 3),
        )

    async def test_commands_that_are_lost_in_the_middle(self) -> None:
        await self.run_actions(
            Subscribe(1, "long"),
            Quiet(),
            Publish(0, "long"),
            Quiet(),
            Lose(0, "commands", "out", 1000),
            Publish(0, "long", 20),
            Turns(10),
            KillClients("normal"),
            Publish(0, "long", 3),
        )

    async def test_given_up_while_publishing(self) -> None:
        # What is published before the loss of the connection is told comes back first.
        await self.run_actions(
            Subscribe(1, "long"),
            Quiet(),
            Publish(0, "long", 2),
            Cut(0, "commands", is_own=True),
            Publish(0, "long", 2),
            Publish(0, "long", is_kept=False),
            Turns(),
            Publish(0, "long"),
        )

    async def test_what_is_held_keeps_its_place(self) -> None:
        # The hole cannot be filled before commands can be given again.
        await self.run_actions(
            Subscribe(0, "long"),
            Quiet(),
            Cut(0, "commands"),
            Drop(0, "long"),
            *(Publish(1, "long", is_kept=bool(number % 3)) for number in range(1, 12)),
            Turns(20),
            Quiet(),
            Publish(1, "long", 2),
        )

    async def test_following_while_something_is_on_its_way(self) -> None:
        await self.run_actions(
            Subscribe(0, "long", is_followed=False),
            Quiet(),
            Publish(1, "long"),
            Quiet(),
            Delay(0, "hearing"),
            Publish(1, "long", 3),
            Publish(1, "long", is_kept=False),
            Publish(1, "long"),
            Turns(20),
            Subscribe(0, "long"),
            Turns(20),
            Deliver(0, "hearing"),
            Publish(1, "long"),
        )

    async def test_killed_in_a_flood(self) -> None:
        flood = [Publish(shard, channel, 5) for shard in range(3) for channel in ("long", "short")]
        await self.run_actions(
            *(Subscribe(shard, "long") for shard in range(3)),
            *(Subscribe(shard, "short", is_followed=bool(shard)) for shard in range(3)),
            Quiet(),
            *flood,
            Turns(2),
            *flood,
            Kill(is_away=True),
            *flood,
            Turns(30),
            *flood,
            Back(),
            Quiet(),
            *flood,
            Kill(),
            *flood,
        )

    async def test_gaps(self) -> None:
        await self.run_actions(
            *(Subscribe(shard, channel) for shard in range(2) for channel in ("long", "short")),
            Quiet(),
            Drop(0, "long"),
            Drop(1, "long", 3),
            Publish(2, "long", 4),
            Drop(0, "short", 4),
            Publish(2, "short", 5),
            Quiet(),
            Drop(0, "long"),
            Publish(2, "long"),
            Drop(1, "short", 2),
            Publish(2, "short", 2),
            Remove(2, "short"),
        )

    async def test_trimmed_and_forgotten_while_it_is_deaf(self) -> None:
        await self.run_actions(
            *(Subscribe(shard, channel) for shard in range(2) for channel in ("long", "short")),
            Publish(2, "long", 5),
            Quiet(),
            Cut(0, "hearing"),
            Lose(1, "hearing", "in"),
            Publish(2, "long", 5),
            Publish(2, "short", 2),
            Turns(10),
            Trim("long", down_to=2),
            Forget("short", with_stream=True),
            Publish(2, "long", 2),
            Publish(2, "short", 2),
            Quiet(),
            Forget("long", with_keys=True),
            Publish(0, "long", 2),
        )

    async def test_scripts_that_are_forgotten(self) -> None:
        await self.run_actions(
            Subscribe(0, "long"),
            Publish(1, "long"),
            Quiet(),
            Publish(1, "long", 3),
            FlushScripts(),
            Publish(1, "long", 3),
            Publish(1, "long", 2, is_kept=False, key="x"),
            Turns(5),
            FlushScripts(),
            Publish(2, "long", 3),
            Read(0, "long", since=2, limit=3),
        )

    async def test_a_script_that_is_back_too_soon(self) -> None:
        # The first is sent back for want of the script; before it is told so, the second would be taken.
        await self.run_actions(
            Subscribe(1, "long"),
            Publish(0, "long"),
            Quiet(),
            FlushScripts(),
            Delay(0, "commands"),
            Publish(0, "long"),
            Turns(10),
            Publish(2, "long"),
            Turns(10),
            Publish(0, "long"),
            Turns(10),
            Deliver(0, "commands"),
        )

    async def test_shards_that_come_and_go(self) -> None:
        await self.run_actions(
            Subscribe(0, "long"),
            Subscribe(1, "long", is_followed=False),
            Quiet(),
            Publish(1, "long", 20),
            Renew(1),
            Subscribe(1, "long"),
            Publish(0, "long", 20),
            Unsubscribe(0, "long"),
            Hold(1),
            Turns(30),
            Subscribe(0, "long"),
            KillClients("pubsub"),
            Publish(2, "long", 20),
            Turns(100),
            Resume(1),
            Renew(2),
        )


class Known(_OnRedis):
    """What a Redis hub does not keep; the searches excuse it."""

    @pytest.mark.xfail(
        strict=True, reason="the stream is read on the one link, the rest is heard on the other"
    )
    async def test_what_is_read_overtakes_what_is_not_kept(self) -> None:
        # A silent channel is compared with its stream just when both are on their way.
        await self.run_actions(
            Subscribe(0, "long"),
            Quiet(),
            Delay(0, "hearing"),
            Publish(1, "long", is_kept=False),
            Publish(1, "long"),
            Turns(450),
            Deliver(0, "hearing"),
            excuses_reads=False,
            probe_seconds=5.0,
        )

    @pytest.mark.xfail(strict=True, reason="a second try finds the first among the last 64 only")
    async def test_the_position_of_what_is_tried_again_behind_many(self) -> None:
        await self.run_actions(
            Lose(0, "commands", "in"),
            Publish(0, "long", 70),
            Quiet(),
            Read(1, "long"),
            searched=1 << 60,
        )


class PlantedOnRedis(_OnRedis):
    """Hubs with one safety switched off, as in the fault harness."""

    async def found(self, plant: str, what: str, *actions: Action) -> None:
        self.patch(planted, "patch", self.patch)
        planted.PLANTS[plant]()
        error = await self.assertFailure(
            Deferred.fromCoroutine(self.run_actions(*actions, settle_seconds=3.0)), AssertionError
        )
        self.assertIn(what, str(error))

    async def test_no_gap_check(self) -> None:
        await self.found(
            "no-gap-check",
            "and gets",
            *(Subscribe(0, "long"), Quiet(), Drop(0, "long"), Publish(1, "long", 2), Quiet()),
        )

    async def test_second_tries_are_new(self) -> None:
        await self.found(
            "no-idempotency",
            "is at",
            *(Subscribe(1, "long"), Quiet(), Lose(0, "commands", "in"), Publish(0, "long"), Quiet()),
        )

    async def test_plain_second_tries_are_new(self) -> None:
        await self.found(
            "no-idempotency",
            "twice",
            *(Subscribe(1, "long"), Quiet(), Lose(0, "commands", "in")),
            *(Publish(0, "long", is_kept=False), Quiet()),
        )

    async def test_keys_count_for_nothing(self) -> None:
        await self.found(
            "no-idempotency", "key x", Publish(0, "long", key="x"), Quiet(), Publish(1, "long", key="x")
        )

    async def test_deaf_and_not_noticed(self) -> None:
        await self.found(
            "no-probe",
            "has lost",
            *(Subscribe(0, "long", is_followed=False), Quiet(), Lose(0, "hearing", "in")),
            *(Publish(1, "long", is_kept=False), Quiet()),
        )
