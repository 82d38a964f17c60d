"""Questions between shards, whatever carries them: who waits for answers, and who gives them.

``OpenQuestions`` is the side that asks. A question is open until as many shards have answered as it is
known to have reached, which may be told after the first answers came; until its deadline at the latest.

``Answering`` is the side that is asked. Questions wait in one queue, in the order they came, and each
reactor turn begins ``MAX_ANSWERING`` of them at most, so that a flood of questions holds up neither the
reactor nor, by more than its length, whoever asks behind it. One that waited longer than its asker does is
dropped; one that finds the queue full, or a shard that stops, is answered with b"" at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.api import HubCounters
from spread.hub.errors import HubError, HubUnavailable, MessageTooLarge, ShardUnknown
from spread.hub.reactor import Clock, Timer

__all__ = [
    "MAX_ANSWERING",
    "MAX_ANSWER_BYTES",
    "MAX_HELD_BYTES",
    "MAX_OPEN",
    "MAX_QUESTION_BYTES",
    "MAX_QUEUED",
    "MAX_QUEUED_BYTES",
    "Answering",
    "OpenQuestions",
]

MAX_OPEN = 1024
"""Questions of this shard that wait for answers; one more is refused."""

MAX_HELD_BYTES = 64 << 20
"""Of answers to all open questions; the question whose answer goes above it fails."""

MAX_QUESTION_BYTES = 1 << 20

MAX_ANSWER_BYTES = 1 << 20
"""A larger answer is logged where it was given, and b"" sent instead."""

MAX_ANSWERING = 64
"""Questions that are being answered here at a time."""

MAX_QUEUED = 1024
"""Questions that wait here to be answered."""

MAX_QUEUED_BYTES = 16 << 20

TELL_SECONDS = 60.0
"""A full queue is logged once in so long."""


class _Open:
    __slots__ = ("answers", "asked_at", "expected", "held", "result", "shard", "timer")

    def __init__(self, result: Deferred[list[bytes]], timer: Timer, asked_at: float, shard: str) -> None:
        self.result = result
        self.timer = timer
        self.asked_at = asked_at
        self.shard = shard  # the only one that is asked, or ""
        self.expected: int | None = None  # not known before the question was taken
        self.answers: dict[bytes, bytes] = {}  # by who gave it, in the order they came
        self.held = 0


class OpenQuestions:
    """The questions of this shard that wait for answers.

    :param hub: the hub's name, for errors.
    :param seconds: how long a question may be open.
    """

    def __init__(self, clock: Clock, hub: str, seconds: float, counters: HubCounters) -> None:
        self._clock = clock
        self._hub = hub
        self._seconds = seconds
        self._counters = counters
        self._numbers = count(1)
        self._open: dict[int, _Open] = {}
        self._held = 0

    def open(self, question: bytes, shard: str = "") -> tuple[int, Deferred[list[bytes]]]:
        """The number of a new question, higher than all before, and what fires with its answers.

        :param shard: the incarnation of the only one that is asked.
        :raises MessageTooLarge: above ``MAX_QUESTION_BYTES``.
        :raises HubUnavailable: ``MAX_OPEN`` are open.
        """
        if len(question) > MAX_QUESTION_BYTES:
            raise MessageTooLarge(len(question), MAX_QUESTION_BYTES)
        if len(self._open) >= MAX_OPEN:
            raise HubUnavailable(self._hub, f"{len(self._open)} questions wait for answers already")
        self._counters.questions += 1
        number = next(self._numbers)
        result: Deferred[list[bytes]] = Deferred(lambda _: self._give_up(number))
        timer = self._clock.callLater(self._seconds, self._late, number)
        self._open[number] = _Open(result, timer, self._clock.seconds(), shard)
        return number, result

    def expect(self, number: int, answers: int) -> None:
        """The question has reached so many shards."""
        question = self._open.get(number)
        if question is not None:
            question.expected = answers
            self._check(number, question)

    def answered(self, number: int, shard: bytes, answer: bytes) -> None:
        """A shard has answered. What comes too late, or twice, is dropped."""
        question = self._open.get(number)
        if question is None or shard in question.answers:
            return
        if self._held + len(answer) > MAX_HELD_BYTES:
            self._unanswered(number, f"the answers take more than {MAX_HELD_BYTES} bytes")
            return
        question.answers[shard] = answer
        question.held += len(answer)
        self._held += len(answer)
        self._check(number, question)

    def oldest(self) -> float | None:
        """When the question was asked that has been open for longest; ``None`` if none is."""
        return next((question.asked_at for question in self._open.values()), None)

    def settle(self, alive: set[str], until: float) -> None:
        """Wait no more for shards that do not live: one that was killed with its machine may be counted as a
        listener for long.

        :param alive: the incarnations of those that do.
        :param until: only questions that were asked before.
        """
        for number, question in list(self._open.items()):
            if question.asked_at > until or question.expected is None:
                continue
            if question.shard and question.shard not in alive:
                self.fail(number, ShardUnknown(question.shard))
            elif not question.shard and alive <= {shard.hex() for shard in question.answers}:
                question.expected = len(question.answers)
                self._check(number, question)

    def fail(self, number: int, error: HubError) -> None:
        """There will be no answers."""
        question = self._close(number)
        if question is not None:
            question.result.errback(error)

    def lose(self, reason: str) -> None:
        """The answers to all open questions cannot be heard: fail them."""
        for number in list(self._open):
            self._unanswered(number, reason)

    def _check(self, number: int, question: _Open) -> None:
        if question.expected is not None and len(question.answers) >= question.expected:
            self._close(number)
            question.result.callback(list(question.answers.values()))

    def _late(self, number: int) -> None:
        question = self._open[number]
        if question.expected is None:
            reason = "it did not take a question"
        else:
            missing = question.expected - len(question.answers)
            reason = f"{missing} of {question.expected} shards did not answer"
        self._unanswered(number, f"{reason} within {self._seconds:g} s")

    def _unanswered(self, number: int, reason: str) -> None:
        self._counters.unanswered += 1
        self.fail(number, HubUnavailable(self._hub, reason))

    def _give_up(self, number: int) -> None:
        self._close(number)

    def _close(self, number: int) -> _Open | None:
        question = self._open.pop(number, None)
        if question is not None:
            self._held -= question.held
            if question.timer.active():
                question.timer.cancel()
        return question


class _Answer:
    __slots__ = ("reply", "result")

    def __init__(self, reply: Callable[[bytes], None]) -> None:
        self.reply = reply
        self.result: Deferred[Any] | None = None


class Answering:
    """The questions that this shard is asked.

    :param asked: ``Receiver.asked``; a failure is logged and answered as b"".
    :param seconds: how long an answer may take; nobody waits for it longer.
    """

    log = Logger("spread.hub.asking")

    def __init__(self, clock: Clock, seconds: float, asked: Callable[[bytes], Deferred[bytes]]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._asked = asked
        # When it came, the question, and what takes the answer.
        self._queue: deque[tuple[float, bytes, Callable[[bytes], None]]] = deque()
        self._queued_bytes = 0
        self._answering: set[_Answer] = set()
        self._turn: Timer | None = None
        self._told_at = float("-inf")
        self._is_stopped = False

    def hear(self, question: bytes, reply: Callable[[bytes], None]) -> None:
        """A question has come.

        :param reply: called with the answer, once; not before a turn has passed, unless the answer is b""
            because the queue is full or this shard stops. Never called if nobody waits for it any more.
        """
        is_full = len(self._queue) >= MAX_QUEUED or self._queued_bytes + len(question) > MAX_QUEUED_BYTES
        if is_full and self._clock.seconds() - self._told_at >= TELL_SECONDS:
            self._told_at = self._clock.seconds()
            self.log.warn("{waiting} questions wait already: more are refused", waiting=len(self._queue))
        if is_full or self._is_stopped:
            reply(b"")
            return
        self._queue.append((self._clock.seconds(), question, reply))
        self._queued_bytes += len(question)
        self._soon()

    def stop(self) -> None:
        """Answer with b"" what is not answered yet, and all that still comes. Idempotent."""
        self._is_stopped = True
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        queue, self._queue = self._queue, deque()
        self._queued_bytes = 0
        answering, self._answering = self._answering, set()
        for answer in answering:
            answer.reply(b"")
            if answer.result is not None:
                answer.result.cancel()
        for _, _, reply in queue:
            reply(b"")

    def _soon(self) -> None:
        if self._turn is None and self._queue and len(self._answering) < MAX_ANSWERING:
            self._turn = self._clock.callLater(0, self._next)

    def _next(self) -> None:
        self._turn = None
        too_old = self._clock.seconds() - self._seconds
        for _ in range(min(len(self._queue), MAX_ANSWERING - len(self._answering))):
            if not self._queue:
                break  # stopped by the one before
            came_at, question, reply = self._queue.popleft()
            self._queued_bytes -= len(question)
            if came_at > too_old:
                self._begin(question, reply)
        self._soon()

    def _begin(self, question: bytes, reply: Callable[[bytes], None]) -> None:
        answer = _Answer(reply)
        self._answering.add(answer)
        result = answer.result = maybeDeferred(self._asked, question)
        result.addTimeout(self._seconds, cast(Any, self._clock))
        result.addCallback(_not_too_large)
        result.addErrback(self._failed)
        result.addCallback(self._done, answer)
        result.addErrback(lambda failure: self.log.failure("giving an answer", failure))

    def _failed(self, failure: Failure) -> bytes:
        if not self._is_stopped:
            self.log.failure("answering a question", failure)
        return b""

    def _done(self, given: bytes, answer: _Answer) -> None:
        if answer in self._answering:
            self._answering.remove(answer)
            self._soon()
            answer.reply(given)


def _not_too_large(answer: bytes) -> bytes:
    if len(answer) > MAX_ANSWER_BYTES:
        raise MessageTooLarge(len(answer), MAX_ANSWER_BYTES)
    return answer
