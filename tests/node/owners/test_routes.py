"""Commands on their way: in which order, and which are asked again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from spread.hub.errors import HubUnavailable, ShardUnknown
from spread.node import codes
from spread.node.owners.counters import OwnersCounters
from spread.node.owners.places import Places
from spread.node.owners.routes import AGAIN_SECONDS, DOUBT_AFTER, PARAMS_MAX_BYTES, Routes
from spread.node.owners.surroundings import Limits
from spread.node.owners.wire import Batch, Call, Offer, Outcome, Outcomes, Result, Row
from spread.node.session.shared import Refused

ANN, BOB = Row("a", "ann"), Row("b", "bob")


class Road:
    """One shard, ``other``, that has it all; batches wait for what the test says of them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.sent: list[tuple[list[int], Deferred[Outcomes]]] = []
        self.doubts: list[tuple[str, str]] = []
        self.counters = OwnersCounters()
        around = SimpleNamespace(
            clock=self.clock,
            steady=self.clock.seconds,
            limits=Limits(),
            counters=self.counters,
            shard="here",
        )
        places = Places()
        places.set({"other": Offer(frozenset({"match:*"}))})
        self.routes = Routes(
            cast(Any, around),
            places,
            lambda *_: True,
            self.here,
            self.send,
            lambda *two: self.doubts.append(two),
        )

    def here(self, call: Call) -> Outcome:
        raise AssertionError("nothing is here")

    def send(self, shard: str, batch: Batch) -> Deferred[Outcomes]:
        assert shard == "other"
        answer: Deferred[Outcomes] = Deferred()
        self.sent.append(([call.number for call in batch.calls], answer))
        return answer

    def call(self, member: Row | None = ANN) -> Deferred[bytes]:
        return self.routes.call("match:1", "add", member, b"")

    def turn(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        self.clock.advance(0)

    def answer(self, result: Result) -> None:
        numbers, answer = self.sent[-1]
        answer.callback(Outcomes([Outcome(number, result) for number in numbers]))
        self.turn()


def test_none_overtakes_one_that_was_not_there() -> None:
    road = Road()
    first = road.call()
    road.turn()
    second, other = road.call(), road.call(BOB)
    road.turn()
    assert [numbers for numbers, _ in road.sent] == [[1]], "one batch at a time"
    road.answer(Result.NOT_HERE)
    third = road.call()
    road.turn()
    assert road.sent[-1][0] == [3], "another's does not wait for it"
    road.answer(Result.DONE)
    road.turn(AGAIN_SECONDS)
    assert road.sent[-1][0] == [1, 2, 4]
    road.answer(Result.DONE)
    assert all(each.called for each in (first, second, third, other))
    assert not road.clock.getDelayedCalls() or road.turn(1) is None
    assert not road.routes._parked


@pytest.mark.parametrize(
    ("error", "is_again"),
    [
        (ShardUnknown("other", is_unheard=True), True),
        (ShardUnknown("other"), False),
        (HubUnavailable("fake", "away"), False),
    ],
)
def test_only_what_nobody_heard_is_asked_again(error: Exception, is_again: bool) -> None:
    road = Road()
    results: list[Any] = []
    road.call().addBoth(results.append)
    road.turn()
    road.sent[-1][1].errback(error)
    road.turn(AGAIN_SECONDS)
    if is_again:
        assert len(road.sent) == 2 and not results
        road.answer(Result.DONE)
        assert results == [b""]
    else:
        (failure,) = results
        assert failure.check(Refused) and failure.value.error is codes.INTERNAL_ERROR
        assert len(road.sent) == 1 and road.counters.unknown == 1


def test_only_the_shard_that_was_asked_says_what_became_of_it() -> None:
    road = Road()
    called = road.call()
    road.turn()
    road.routes.settle("dead", Outcomes([Outcome(1, Result.NOT_HERE)]))
    road.turn(AGAIN_SECONDS)
    assert len(road.sent) == 1
    road.answer(Result.DONE)
    road.routes.settle("other", Outcomes([Outcome(1, Result.NOT_HERE)]))  # once more, and too late
    road.turn(AGAIN_SECONDS)
    assert len(road.sent) == 1 and called.called


def test_one_that_is_never_there_makes_the_shard_doubtful_and_ends_in_time() -> None:
    road = Road()
    results: list[Any] = []
    road.call().addBoth(results.append)
    road.turn()
    for _ in range(DOUBT_AFTER):
        assert not road.doubts
        road.answer(Result.NOT_HERE)
        road.turn(AGAIN_SECONDS)
    assert road.doubts == [("other", "match:1")]
    road.answer(Result.NOT_HERE)
    road.turn(Limits().command_seconds)
    assert len(results) == 1 and results[0].check(Refused)
    assert (road.counters.waiting, road.routes._parked) == (0, {})


def test_what_would_not_fit_into_a_question_harms_no_other() -> None:
    road = Road()
    road.routes.call("match:1", "add", ANN, bytes(PARAMS_MAX_BYTES))
    with pytest.raises(Refused) as refused:
        road.routes.call("match:1", "add", ANN, bytes(PARAMS_MAX_BYTES + 1))
    assert refused.value.error is codes.LIMIT_EXCEEDED
    assert road.counters.waiting == 1
