"""Commands on their way: numbered, batched, answered or given up.

All commands of one reactor turn go out in one frame, unless that would be larger than ``FRAME_MAX_BYTES``.
Every Deferred that is given out is fired: with the result, with ``Refused``, with ``TimedOut``, or by
``fail`` when the connection ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from spread.client.connection import Clock, Timer, cancel
from spread.client.errors import BadServer, ClientError, Refused, TimedOut, TooMany
from spread.client.formats import Format
from spread.node.wire.messages import Command, Error, Request, Result, SendRequest

__all__ = ["FRAME_MAX_BYTES", "UNSENT_MAX_BYTES", "Requests"]

FRAME_MAX_BYTES = 65536
"""What a Centrifugo reads of one message, unless it was configured otherwise."""

UNSENT_MAX_BYTES = 4 * 1024 * 1024
"""Commands that wait because the server does not read; above it, new ones are refused."""

R = TypeVar("R", bound=Result)


@dataclass(slots=True)
class _Pending:
    """A command that waits for its reply."""

    answered: Deferred[Any]
    expected: type
    timer: Timer


class Requests:
    """The commands of one client, over all of its connections."""

    def __init__(
        self,
        clock: Clock,
        format: Format,
        write: Callable[[bytes], bool],
        *,
        timeout_seconds: float,
        max_pending: int,
    ) -> None:
        """:param write: sends one frame; gives False, and sends nothing, if that cannot be done now."""
        self._clock = clock
        self._format = format
        self._write = write
        self._timeout_seconds = timeout_seconds
        self._max_pending = max_pending
        self._last_id = 0
        self._pending: dict[int, _Pending] = {}
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._flush: Timer | None = None

    def __len__(self) -> int:
        """How many wait for an answer."""
        return len(self._pending)

    def ask(self, request: Request, expected: type[R]) -> Deferred[R]:
        """Send a command. Fails with ``Refused``, ``TimedOut``, ``TooMany``, or what ``fail`` is given.

        Cancelling takes no word back: the reply is ignored.

        :raises ValueError: the request cannot be written.
        """
        number = self._last_id % 0xFFFFFFFF + 1
        data = self._format.encode(Command(number, request))
        if len(self._pending) >= self._max_pending:
            raise TooMany(f"{self._max_pending} commands wait for an answer")
        self._queue(data)
        self._last_id = number
        timer = self._clock.callLater(self._timeout_seconds, partial(self._timed_out, number))
        answered: Deferred[R] = Deferred(lambda _: self._forget(number))
        self._pending[number] = _Pending(answered, expected, timer)
        return answered

    def tell(self, request: SendRequest) -> None:
        """Send what has no answer.

        :raises TooMany: and nothing is sent.
        """
        self._queue(self._format.encode(Command(0, request)))

    def pong(self) -> None:
        """Answer a ping; one answer is enough for all pings that were not answered yet."""
        if self._format.pong not in self._unsent[-1:]:
            self._queue(self._format.pong)

    def answer(self, number: int, body: Result | Error) -> None:
        """A reply has come. One that nobody waits for is ignored.

        :raises BadServer: it does not fit its command.
        """
        pending = self._pending.get(number)
        if pending is None:
            return
        if not isinstance(body, (pending.expected, Error)):
            raise BadServer(f"{type(body).__name__} in answer to something else")
        self._forget(number)
        if isinstance(body, Error):
            pending.answered.errback(Refused(body.code, body.message, body.temporary))
        else:
            pending.answered.callback(body)

    def flush(self) -> None:
        """Send now what the turn has gathered."""
        if self._flush is not None:
            cancel(self._flush)
            self._flush = None
        sent = 0
        while sent < len(self._unsent):
            size, end = len(self._unsent[sent]), sent + 1
            while end < len(self._unsent) and size + len(self._unsent[end]) + 1 <= FRAME_MAX_BYTES:
                size += len(self._unsent[end]) + 1
                end += 1
            if not self._write(self._format.join(self._unsent[sent:end])):
                break
            sent = end
        self._unsent_bytes -= sum(map(len, self._unsent[:sent]))
        del self._unsent[:sent]

    def fail(self, error: ClientError) -> None:
        """The connection has ended: all that wait fail, what was not sent is dropped."""
        if self._flush is not None:
            cancel(self._flush)
            self._flush = None
        self._unsent.clear()
        self._unsent_bytes = 0
        pending, self._pending = self._pending, {}
        for each in pending.values():
            cancel(each.timer)
        for each in pending.values():
            if not each.answered.called:
                each.answered.errback(error)

    def _queue(self, data: bytes) -> None:
        if self._unsent_bytes + len(data) > UNSENT_MAX_BYTES:
            raise TooMany(f"{self._unsent_bytes} bytes wait to be sent")
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._flush is None:
            self._flush = self._clock.callLater(0, self._flushed)

    def _flushed(self) -> None:
        self._flush = None
        self.flush()

    def _timed_out(self, number: int) -> None:
        self._pending.pop(number).answered.errback(TimedOut("no answer in time"))

    def _forget(self, number: int) -> None:
        pending = self._pending.pop(number, None)
        if pending is not None:
            cancel(pending.timer)
