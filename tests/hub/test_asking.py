"""Who asks and who answers, without anything between them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock

from spread.hub import asking
from spread.hub.api import HubCounters
from spread.hub.asking import (
    MAX_ANSWERING,
    MAX_HELD_BYTES,
    MAX_QUEUED,
    MAX_QUEUED_BYTES,
    Answering,
    OpenQuestions,
)
from spread.hub.errors import HubUnavailable, ShardUnknown
from tests.hub.scripted import Outcome, captured

SECONDS = 10.0


# -- asking --------------------------------------------------------------------------------------------


class Asker:
    def __init__(self) -> None:
        self.clock = Clock()
        self.counters = HubCounters()
        self.open = OpenQuestions(self.clock, "there", SECONDS, self.counters)

    def ask(self) -> tuple[int, Outcome]:
        number, result = self.open.open(b"?")
        return number, Outcome(result)


@pytest.fixture
def asker() -> Asker:
    return Asker()


def test_a_question_is_open_until_all_have_answered(asker: Asker) -> None:
    (one, first), (two, second) = asker.ask(), asker.ask()
    assert two > one
    asker.open.expect(one, 2)
    asker.open.answered(one, b"B", b"from B")
    asker.open.answered(one, b"B", b"again")
    asker.open.answered(two, b"A", b"to the other")
    assert first.fired == [] and second.fired == []
    asker.open.answered(one, b"A", b"from A")
    assert first.value == [b"from B", b"from A"]
    asker.open.expect(two, 1)
    assert second.value == [b"to the other"]
    assert asker.counters.questions == 2 and asker.counters.unanswered == 0
    assert asker.clock.getDelayedCalls() == []


def test_the_deadline_says_how_many_are_missing(asker: Asker) -> None:
    number, asked = asker.ask()
    asker.open.expect(number, 3)
    asker.open.answered(number, b"A", b"x")
    asker.clock.advance(SECONDS - 0.1)
    assert asked.fired == []
    asker.clock.advance(0.1)
    assert type(asked.value) is HubUnavailable
    assert "2 of 3 shards did not answer within 10 s" in str(asked.value)
    assert asker.counters.unanswered == 1
    asker.open.answered(number, b"B", b"too late")
    asker.open.expect(number, 1)
    asker.open.fail(number, ShardUnknown("aa"))


def test_who_gives_up_waits_no_more(asker: Asker) -> None:
    number, result = asker.open.open(b"?")
    result.cancel()
    assert type(Outcome(result).value) is CancelledError
    asker.open.expect(number, 0)
    assert asker.clock.getDelayedCalls() == []
    assert asker.counters.unanswered == 0


def test_who_is_told_may_ask_again(asker: Asker) -> None:
    _, result = asker.open.open(b"?")
    again: list[int] = []
    result.addErrback(lambda failure: again.append(asker.open.open(b"?")[0]))
    asker.open.lose("it fell")
    assert again == [2]
    # The new one was not asked over what was lost.
    assert len(asker.clock.getDelayedCalls()) == 1


def test_answers_take_bounded_memory(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "MAX_HELD_BYTES", 100)
    (one, first), (two, second) = asker.ask(), asker.ask()
    for number in (one, two):
        asker.open.expect(number, 3)
    asker.open.answered(one, b"A", bytes(60))
    asker.open.answered(two, b"A", bytes(41))
    assert "more than 100 bytes" in str(second.value) and first.fired == []
    asker.open.answered(one, b"B", bytes(40))
    asker.open.answered(one, b"C", b"")
    assert len(first.value) == 3
    # What was held is free again.
    three, third = asker.ask()
    asker.open.expect(three, 1)
    asker.open.answered(three, b"A", bytes(100))
    assert third.value == [bytes(100)]
    assert MAX_HELD_BYTES == 64 << 20


# -- answering -----------------------------------------------------------------------------------------


class Asked:
    """A shard whose answers the test gives, or that answers at once."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.begun: list[tuple[bytes, Deferred[bytes]]] = []
        self.answer: Callable[[bytes], Deferred[bytes]] = lambda question: Deferred()
        self.answers: list[tuple[bytes, bytes]] = []
        """Questions and their answers, in the order they were given."""
        self.answering = Answering(self.clock, SECONDS, self._asked)

    def _asked(self, question: bytes) -> Deferred[bytes]:
        self.begun.append((question, self.answer(question)))
        return self.begun[-1][1]

    def hear(self, *questions: bytes) -> None:
        for question in questions:
            self.answering.hear(question, lambda answer, question=question: self._take(question, answer))

    def _take(self, question: bytes, answer: bytes) -> None:
        self.answers.append((question, answer))

    @property
    def questions(self) -> list[bytes]:
        return [question for question, _ in self.begun]


@pytest.fixture
def asked() -> Asked:
    return Asked()


NAMES = [b"%d" % number for number in range(3 * MAX_ANSWERING)]


def test_a_limited_number_is_answered_at_a_time_and_the_rest_in_order(asked: Asked) -> None:
    asked.hear(*NAMES)
    assert asked.begun == []
    for _ in range(5):
        asked.clock.advance(0)
    assert asked.questions == NAMES[:MAX_ANSWERING]
    # One that is done makes room for the next, whichever it is.
    for place in (7, 3):
        asked.begun[place][1].callback(b"done")
        asked.clock.advance(0)
    assert asked.answers == [(b"7", b"done"), (b"3", b"done")]
    assert asked.questions == NAMES[: MAX_ANSWERING + 2]
    asked.answering.stop()


def test_a_turn_begins_a_limited_number_even_if_all_are_answered_at_once(asked: Asked) -> None:
    asked.answer = succeed
    asked.hear(*NAMES)
    for turn in range(1, 4):
        # ``advance`` would take what is due in the next turn too.
        (due,) = asked.clock.getDelayedCalls()
        turn_over = due.func
        due.cancel()
        turn_over()
        assert asked.questions == NAMES[: turn * MAX_ANSWERING]
    assert asked.answers == [(name, name) for name in NAMES]
    asked.clock.advance(0)
    assert asked.clock.getDelayedCalls() == []


def test_a_full_queue_refuses(asked: Asked) -> None:
    asked.hear(*[b"x"] * MAX_QUEUED)
    assert asked.answers == []
    with captured() as lines:
        asked.hear(b"one more", b"and another")
    assert asked.answers == [(b"one more", b""), (b"and another", b"")]
    assert len(lines) == 1 and str(MAX_QUEUED) in lines[0]
    asked.clock.advance(0)
    asked.hear(b"there is room")
    assert len(asked.answers) == 2
    asked.answering.stop()


def test_a_queue_is_full_of_bytes_too(asked: Asked) -> None:
    asked.hear(*[bytes(1 << 20)] * (MAX_QUEUED_BYTES >> 20))
    with captured() as lines:
        asked.hear(b"x")
    assert asked.answers == [(b"x", b"")] and len(lines) == 1
    asked.answer = succeed
    asked.clock.advance(0)
    asked.hear(*[bytes(1 << 20)] * (MAX_QUEUED_BYTES >> 20))
    assert len(asked.answers) == 1 + (MAX_QUEUED_BYTES >> 20)
    asked.answering.stop()


def test_a_question_that_waited_longer_than_its_asker_is_dropped(asked: Asked) -> None:
    asked.hear(*NAMES[:MAX_ANSWERING])
    asked.clock.advance(0)
    asked.hear(b"waits too long")
    asked.clock.advance(SECONDS - 1)
    asked.hear(b"in time")
    with captured() as lines:
        asked.clock.advance(1)
        asked.clock.advance(0)
    # Those that were begun have taken too long, and make room.
    assert len(lines) == MAX_ANSWERING
    assert asked.questions == [*NAMES[:MAX_ANSWERING], b"in time"]
    assert asked.answers == [(name, b"") for name in NAMES[:MAX_ANSWERING]]
    asked.answering.stop()


def test_a_stop_answers_what_is_not_answered_and_what_comes(asked: Asked) -> None:
    asked.hear(*NAMES[: MAX_ANSWERING + 1])
    asked.clock.advance(0)
    with captured() as lines:
        asked.answering.stop()
        asked.answering.stop()
        asked.hear(b"late")
    assert sorted(asked.answers) == sorted((name, b"") for name in [*NAMES[: MAX_ANSWERING + 1], b"late"])
    assert lines == []
    assert asked.clock.getDelayedCalls() == []


def test_it_may_be_stopped_by_a_question(asked: Asked) -> None:
    def answer(question: bytes) -> Deferred[bytes]:
        asked.answering.stop()
        return succeed(b"not sent")

    asked.answer = answer
    asked.hear(b"stop", b"next")
    asked.clock.advance(0)
    assert asked.questions == [b"stop"]
    assert asked.answers == [(b"stop", b""), (b"next", b"")]
    assert asked.clock.getDelayedCalls() == []


def test_a_reply_that_fails_is_logged_and_harms_nobody(asked: Asked) -> None:
    asked.answer = succeed

    def reply(answer: bytes) -> None:
        raise ZeroDivisionError

    asked.answering.hear(b"x", reply)
    asked.hear(b"y")
    with captured() as lines:
        asked.clock.advance(0)
    assert len(lines) == 1 and asked.answers == [(b"y", b"y")]
