"""``spread publish``: data into a channel, each with the server's acknowledgement.

One value from the command line, or every line of standard input. Lines are published in their order. The
first that is not acknowledged ends it, since nobody could know what else came through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol as Interface

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from spread.client.advice import failure
from spread.client.chat import Source
from spread.client.errors import ConnectionEnded, TimedOut
from spread.client.lines import MESSAGE_MAX_BYTES, LineSplitter
from spread.client.payloads import payload_of

__all__ = ["Publishing", "Sink"]


class Sink(Interface):
    """Where data is published."""

    window: int
    """How many may be on their way at once without changing their order."""

    def open(self) -> Deferred[object]:
        """Fires when publishing may begin."""
        ...

    def publish(self, payload: bytes) -> Deferred[None]: ...

    def close(self) -> Deferred[None]:
        """Fires when the connection is closed; never fails."""
        ...


class Publishing:
    """Runs once: ``start``, until ``done`` fires."""

    def __init__(
        self, sink: Sink, source: Source | None, first: list[bytes], complain: Callable[[str], None]
    ) -> None:
        """:param source: standard input; None: ``first`` is all there is.

        :param complain: takes one line for standard error.
        """
        self.done: Deferred[int] = Deferred()
        """Fires with the exit status, when the connection is closed."""
        self._sink = sink
        self._source = source
        self._complain = complain
        self._splitter = LineSplitter(MESSAGE_MAX_BYTES)
        self._waiting: deque[tuple[int, bytes]] = deque(enumerate(first, 1))
        """Payloads, with the number of the line."""
        self._lines = 0
        self._on_their_way = 0
        self._published = 0
        self._input_open = source is not None
        self._asked = False
        self._is_over = False

    def start(self) -> None:
        """Connect, and publish."""
        self._sink.open().addCallbacks(lambda _: self._go_on(), self._not_opened)

    def stop(self) -> Deferred[None]:
        """The user has interrupted; fires when the connection is closed."""
        self._finish(0)
        return self._sink.close()

    def _not_opened(self, reason: Failure) -> None:
        self._give_up(failure("cannot connect", reason.value))

    def _give_up(self, text: str) -> None:
        if not self._is_over:
            published = f" ({self._published} published before)" if self._published else ""
            self._complain(text + published)
            self._finish(1)

    def _finish(self, status: int) -> None:
        if not self._is_over:
            self._is_over = True
            self._sink.close().addCallback(lambda _: self.done.callback(status))

    def _go_on(self) -> None:
        while self._waiting and self._on_their_way < self._sink.window and not self._is_over:
            number, payload = self._waiting.popleft()
            self._on_their_way += 1
            published = self._sink.publish(payload)
            published.addCallbacks(self._acknowledged, self._refused, errbackArgs=(number,))
        if self._is_over or self._waiting or self._on_their_way:
            return
        if self._source is None or not self._input_open:
            self._finish(0)
        elif not self._asked:
            self._asked = True
            self._source.ask(self._read)

    def _read(self, data: bytes) -> None:
        self._asked = False
        self._input_open = bool(data)
        for line in self._splitter.feed(data) if data else self._splitter.end():
            self._lines += 1
            if line is None:
                self._give_up(f"line {self._lines} is above {MESSAGE_MAX_BYTES} bytes")
                return
            if not line.strip():
                continue
            try:
                self._waiting.append((self._lines, payload_of(line.removesuffix(b"\r"))))
            except ValueError:
                self._give_up(f"line {self._lines} is not UTF-8")
                return
        self._go_on()

    def _acknowledged(self, _: object) -> None:
        self._on_their_way -= 1
        self._published += 1
        self._go_on()

    def _refused(self, reason: Failure, number: int) -> None:
        self._on_their_way -= 1
        line = f"line {number}" if self._source is not None else "the data"
        if isinstance(reason.value, (TimedOut, ConnectionEnded)):
            self._give_up(failure(f"{line} may have been published, or not", reason.value))
        else:
            self._give_up(failure(f"{line} was not published", reason.value))
