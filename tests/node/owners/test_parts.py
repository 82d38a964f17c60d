"""Where channels belong, who lives, and who is told who is where."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from spread.hub.errors import HubUnavailable
from spread.node.owners.gate import Gate
from spread.node.owners.live import LIFE_SECONDS, PULSE_SECONDS, Live
from spread.node.owners.places import NOWHERE, Places
from spread.node.owners.reports import AGAIN_SECONDS, Reports
from spread.node.owners.wire import Hello, Offer, Report, Reported, Row, encoded, question

MATCHES = Offer(frozenset({"match:*"}), frozenset({"chat:*"}))


class FakePulses:
    def __init__(self) -> None:
        self.shards: frozenset[str] = frozenset({"a"})
        self.is_away = False

    def pulse(self, seconds: float) -> Deferred[frozenset[str]]:
        return fail(HubUnavailable("fake", "away")) if self.is_away else succeed(self.shards)

    def end_pulse(self) -> Deferred[None]:
        return succeed(None)


def test_a_shard_is_sure_until_its_pulse_may_have_run_out() -> None:
    clock, hub, changes = Clock(), FakePulses(), list[frozenset[str]]()
    live = Live(clock, clock.seconds, hub, "a", lambda: changes.append(live.shards))
    assert not live.is_sure
    hub.shards = frozenset({"a", "b"})
    live.start()
    assert live.is_sure and changes == [{"a", "b"}]
    hub.is_away = True
    clock.pump([PULSE_SECONDS / 5] * 14)
    assert clock.seconds() < LIFE_SECONDS and not live.is_sure
    # When the hub is back, those known before are held for alive for a while.
    hub.is_away, hub.shards = False, frozenset({"a"})
    clock.advance(PULSE_SECONDS)
    assert live.is_sure and live.gaps == 1 and live.shards == {"a", "b"}
    clock.pump([PULSE_SECONDS / 5] * 20)
    assert live.is_sure and live.gaps == 1 and live.shards == {"a"}
    live.stop()
    assert not live.is_sure and not clock.getDelayedCalls()


def test_all_agree_on_a_place_and_only_those_that_own_have_it() -> None:
    one, other = Places(), Places()
    offers = {"a": MATCHES, "b": MATCHES, "c": MATCHES, "d": Offer(watch=frozenset({"match:*"}))}
    assert one.set(offers) and other.set(dict(reversed(offers.items()))) and not one.set(dict(offers))
    for number in range(200):
        channel = f"match:{number}"
        place = one.of(channel)
        assert place == other.of(channel) and place.is_owned
        assert len(set(place.ranked)) == 2 and "d" not in place.ranked
    assert not one.of("chat:1").is_owned and one.of("news") == NOWHERE
    # What a client asks for may be as long as its frame, and is not kept.
    assert one.of("match:" + "x" * 250).is_owned and not one.of("chat:" + "x" * 251).is_owned
    assert max(map(len, one._places)) == 9
    # The deputy goes on when the first has died.
    before = {f"match:{number}": one.of(f"match:{number}") for number in range(200)}
    one.set({shard: offer for shard, offer in offers.items() if shard != "a"})
    for channel, place in before.items():
        assert one.of(channel).first == (place.ranked[1] if place.first == "a" else place.first)


def test_a_failed_report_is_made_up_for() -> None:
    clock, places = Clock(), Places()
    places.set({"a": MATCHES})
    told: list[Report] = []
    answers: list[Deferred[Reported]] = [fail(HubUnavailable("fake", "away"))]

    def tell(shard: str, report: Report) -> Deferred[Reported]:
        told.append(report)
        return answers.pop() if answers else succeed(Reported([]))

    reports = Reports(clock, places, tell)
    reports.joined("match:1", Row("x", "ann"))
    reports.joined("news", Row("x", "ann"))
    clock.advance(0)
    clock.advance(AGAIN_SECONDS)
    clock.advance(0)
    assert [
        (each.is_full, [row.id for row in each.joined]) for report in told for each in report.channels
    ] == [(True, ["x"])] * 2
    reports.joined("match:1", Row("y", "bob"))
    reports.left("match:1", "x")
    clock.advance(0)
    (change,) = told[-1].channels
    assert (change.is_full, [row.id for row in change.joined], change.left) == (False, ["y"], ["x"])
    reports.left("match:1", "y")
    clock.advance(0)
    assert told[-1].channels[0].left == ["y"] and not clock.getDelayedCalls()
    reports.stop()


def test_another_version_is_no_question() -> None:
    hello = Hello(MATCHES, True)
    assert question(encoded(hello)) == hello
    with pytest.raises(ValueError, match="version 02"):
        question(b"\x02" + encoded(hello)[1:])


def test_a_report_is_void_when_its_shard_forgets_it_meanwhile() -> None:
    clock, places = Clock(), Places()
    places.set({"a": MATCHES})
    told: list[tuple[Report, Deferred[Reported]]] = []

    def tell(shard: str, report: Report) -> Deferred[Reported]:
        told.append((report, Deferred()))
        return told[-1][1]

    reports = Reports(clock, places, tell)
    reports.joined("match:1", Row("x", "ann"))
    clock.advance(0)
    reports.forget("a")
    told[0][1].callback(Reported([]))
    clock.advance(0)
    assert len(told) == 2 and told[1][0] == told[0][0]
    told[1][1].callback(Reported([]))
    assert reports.knows("a", "match:1", "x") and not clock.getDelayedCalls()


def test_a_shard_without_room_is_asked_less_and_less() -> None:
    clock, places, told = Clock(), Places(), list[Report]()
    places.set({"a": MATCHES})

    def tell(shard: str, report: Report) -> Deferred[Reported]:
        told.append(report)
        return succeed(Reported([each.channel for each in report.channels]))

    reports = Reports(clock, places, tell)
    reports.joined("match:1", Row("x", "ann"))
    clock.pump([0.05] * 1200)
    assert 25 < len(told) < 50, "a minute"
    # Whoever is responsible next is told at once.
    before = len(told)
    places.set({"b": MATCHES})
    reports.review()
    clock.pump([0, 0.1, 0, 0.1, 0])
    assert len(told) >= before + 2
    reports.stop()


def test_a_shard_stops_though_the_hub_hangs() -> None:
    clock, hub = Clock(), FakePulses()
    live = Live(clock, clock.seconds, hub, "a", lambda: None)
    live.start()
    hub.end_pulse = Deferred  # type: ignore[assignment,method-assign]
    stopped = live.stop()
    clock.advance(LIFE_SECONDS)
    assert stopped.called and not clock.getDelayedCalls()


def test_hundreds_that_fail_at_once_are_let_through_in_turn() -> None:
    gate, asked, failed = Gate(2), list[int](), list[int]()
    first: list[Deferred[None]] = []

    async def ask(number: int) -> None:
        def answer() -> Deferred[None]:
            asked.append(number)
            if number < 2:
                first.append(Deferred())
                return first[-1]
            return fail(HubUnavailable("fake", "away"))

        try:
            await gate.run(answer)
        except HubUnavailable:
            failed.append(number)

    done = [Deferred.fromCoroutine(ask(number)) for number in range(3000)]
    assert asked == [0, 1]
    first[0].errback(HubUnavailable("fake", "away"))
    assert asked == list(range(3000))
    assert sorted(failed) == [0, *range(2, 3000)]
    first[1].callback(None)
    assert all(each.called for each in done)
