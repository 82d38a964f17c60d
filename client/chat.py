"""The text client: says lines in a channel, shows what others say, and comes back when it was cut off.

It speaks the text protocol in plain bytes. A typed line goes out as ``NAME: line``; ``/join CHANNEL``
and ``close``, typed as a whole line, are commands and go out as they are.

Promises:

1.  *Connected again.* Unless told otherwise it connects for ever, with exponential back-off and full
    jitter, and joins the channel it was in.
2.  *Nothing refused in silence.* A line typed while there is no connection is kept, and sent in order
    once there is one. Too many kept lines (``KEPT_MAX_LINES``, ``KEPT_MAX_BYTES``): the oldest is
    given up, with a message. From a pipe or a file nothing is given up: it is not read until there is
    a connection that takes it.
3.  *A clean end.* When the input ends, everything is sent, then this side of the connection is closed,
    and the server's side is awaited: a connection closed on both sides at once can lose what the
    server has not read.

Not promised: a line that was written to a connection which then broke may be lost. The text protocol
has no acknowledgements, so the client does not know, and does not send it twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Protocol as Interface
from typing import cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from spread.client.connection import CLOSE_SECONDS, Backoff, ChatConnection, Clock, Timer, cancel
from spread.client.lines import MESSAGE_MAX_BYTES, KeptLines, LineSplitter, channel_of, is_close, message_of
from spread.client.terminal import Screen

__all__ = ["ChatClient", "ChatSettings", "State"]

INTERRUPT_SECONDS = 1.0
"""How long an interrupted client still tries to send what it wrote."""


class State(Enum):
    """What the client is doing."""

    WAITING = "waiting"
    """Not connected; before the first attempt, or until the next one."""
    CONNECTING = "connecting"
    CONNECTED = "connected"
    CLOSING = "closing"
    """All was written; until the connection is closed."""
    CLOSED = "closed"
    """Done; ``ChatClient.done`` has fired."""


MOVES: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.CONNECTING, State.CLOSED}),
    State.CONNECTING: frozenset({State.CONNECTED, State.WAITING, State.CLOSED}),
    State.CONNECTED: frozenset({State.WAITING, State.CLOSING, State.CLOSED}),
    State.CLOSING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}


class Ending(Enum):
    """Why the client comes to its end."""

    INPUT = "the input has ended"
    COMMAND = "close was typed"
    INTERRUPTED = "interrupted"


class Source(Interface):
    """Where typed bytes come from."""

    is_terminal: bool

    def ask(self, received: Callable[[bytes], object]) -> None:
        """Read once; call ``received`` later, with ``b""`` at the end."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """What the user asked for."""

    name: str
    address: str
    """``host:port``, for status lines."""
    channel: str = ""
    """Joined on connecting; "": the server decides."""
    hello_seconds: float | None = None
    """Say hello on connecting and then this often."""
    once: bool = False
    """End with status 1 when connecting fails or the connection is lost."""
    stay: bool = False
    """Listen on after the end of the input."""


class ChatClient:
    """One person, or one pipe, in a channel. Runs once: ``start``, until ``done`` fires.

    Everything is called on the reactor's thread.
    """

    def __init__(
        self,
        clock: Clock,
        dial: Callable[[ChatConnection], Deferred[ChatConnection]],
        screen: Screen,
        source: Source,
        settings: ChatSettings,
        *,
        fraction: Callable[[], float] = random.random,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """:param dial: connects a protocol to the server, like ``connectProtocol(endpoint, ...)``.

        :param fraction: random numbers from 0 to 1, for the back-off.
        :param now: the time that a hello tells.
        """
        self.state = State.WAITING
        self.done: Deferred[int] = Deferred()
        """Fires once, with the exit status: 0, or 1 when something could not be done or may be lost."""
        self._clock = clock
        self._dial = dial
        self._screen = screen
        self._source = source
        self._settings = settings
        self._now = now
        self._channel = settings.channel.encode()
        self._must_join = False
        """A ``/join`` was given up among the oldest lines; what follows it belongs to that channel."""
        self._backoff = Backoff(fraction)
        self._timer: Timer | None = None
        """The one timer of the present state; gone with it."""
        self._connecting: Deferred[ChatConnection] | None = None
        self._connection: ChatConnection | None = None
        self._connected_at = 0.0
        self._takes_more = False
        """There is a connection and its buffer is not full."""
        self._hello: LoopingCall | None = None
        self._splitter = LineSplitter(MESSAGE_MAX_BYTES)
        self._kept = KeptLines()
        self._asked = False
        self._input_open = True
        self._ending: Ending | None = None
        self._stopped: list[Deferred[None]] = []

    # Beginning and end.

    def start(self) -> None:
        """Connect, and begin to read the input."""
        self._connect()
        self._ask()

    def stop(self) -> Deferred[None]:
        """The user has interrupted. Fires within ``INTERRUPT_SECONDS``; the exit status is 0."""
        if self.state is State.CLOSED:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        self._stopped.append(stopped)
        self._ending = Ending.INTERRUPTED
        if self.state is State.CONNECTED:
            self._close()
        if self._connection is not None:
            self._cancel_timer()
            self._timer = self._clock.callLater(INTERRUPT_SECONDS, self._connection.abort)
        else:
            self._finish(0)
        return stopped

    def _enter(self, state: State) -> None:
        if state not in MOVES[self.state]:
            raise RuntimeError(f"the chat client cannot go from {self.state.value} to {state.value}")
        self.state = state
        self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            cancel(self._timer)

    def _finish(self, status: int) -> None:
        self._enter(State.CLOSED)
        self._stop_hello()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._kept:
            self._say(f"{_count(len(self._kept), 'line')} not sent.")
        self.done.callback(status)
        stopped, self._stopped = self._stopped, []
        for waiter in stopped:
            waiter.callback(None)

    def _say(self, text: str) -> None:
        self._screen.status(f"{self._settings.address}: {text}")

    # The connection.

    def _connect(self) -> None:
        self._enter(State.CONNECTING)
        self._say("Start to connect.")
        self._connecting = self._dial(ChatConnection(self, self._clock))
        self._connecting.addErrback(self._connection_failed)

    def _connection_failed(self, reason: Failure) -> None:
        self._connecting = None
        if self.state is State.CONNECTING:  # else it was cancelled
            self._retry("Connection failed", reason)

    def connected(self, connection: ChatConnection) -> None:
        """A ``ChatConnection`` is made."""
        self._enter(State.CONNECTED)
        self._connecting = None
        self._connection = connection
        self._connected_at = self._clock.seconds()
        self._takes_more = True
        self._say("connect to server!")
        if self._channel:
            self._join(connection)
        if self._settings.hello_seconds is not None:
            self._hello = LoopingCall(self._say_hello)
            self._hello.clock = cast(IReactorTime, self._clock)
            self._hello.start(self._settings.hello_seconds).addErrback(self._hello_failed)
        if self._kept:
            self._say(f"Sending {_count(len(self._kept), 'line')} typed before.")
        self._go_on()

    def lost(self, connection: ChatConnection, reason: Failure) -> None:
        """A ``ChatConnection`` is closed, by whomever."""
        self._connection = None
        self._takes_more = False
        self._stop_hello()
        if self.state is State.CLOSED:
            return
        try:
            self._screen.end()
        except OSError as error:
            self._output_failed(error)
            return
        if self.state is State.CONNECTED:
            self._backoff.lasted(self._clock.seconds() - self._connected_at)
            self._retry("Lost Connection", reason)
        elif self._ending is Ending.INTERRUPTED or (
            isinstance(reason.value, ConnectionDone)
            and (connection.all_sent or self._ending is Ending.COMMAND)
        ):
            self._finish(0)
        else:
            self._say(f"Lost Connection. Reason: {_sentence(reason)} What was sent last may be lost.")
            self._finish(1)

    def _retry(self, what: str, reason: Failure) -> None:
        text = f"{what}. Reason: {_sentence(reason)}"
        if self._settings.once:
            self._say(text)
            self._finish(1)
        else:
            delay_seconds = self._backoff.next_seconds()
            self._say(f"{text} Next try in {delay_seconds:.1f} s.")
            self._enter(State.WAITING)
            self._timer = self._clock.callLater(delay_seconds, self._connect)

    def heard(self, data: bytes) -> None:
        """The server has sent something."""
        if self.state is State.CLOSED:
            return
        try:
            self._screen.show(data)
        except OSError as error:
            self._output_failed(error)

    def _output_failed(self, error: OSError) -> None:
        """Nobody can be shown anything: a reader that has gone is no error, a full disk is one."""
        gone = isinstance(error, BrokenPipeError)
        if not gone:
            self._say(f"Cannot write what others say. Reason: {error.strerror}.")
        connection = self._connection
        self._finish(0 if gone else 1)
        if connection is not None:
            connection.abort()

    # Backpressure: the client is the transport's producer.

    def pauseProducing(self) -> None:
        """The connection's buffer is full."""
        self._takes_more = False

    def resumeProducing(self) -> None:
        """The connection's buffer is empty."""
        if self.state is State.CONNECTED:
            self._takes_more = True
            self._go_on()

    def stopProducing(self) -> None:
        """The connection is closed; ``lost`` says so too."""
        self._takes_more = False

    # What is typed, and sent.

    def _ask(self) -> None:
        """Read more input, if the time has come for it.

        A person is always listened to. A pipe can wait, and nothing of it is given up that way.
        """
        wanted = self._source.is_terminal or (self._takes_more and not self._kept)
        if wanted and not self._asked and self._input_open and self._ending is None:
            self._asked = True
            self._source.ask(self._read)

    def _read(self, data: bytes) -> None:
        self._asked = False
        if self._ending is not None:
            return
        self._input_open = bool(data)
        lines = self._splitter.feed(data) if data else self._splitter.end()
        for number, line in enumerate(lines, start=1):
            self._typed(line)
            if self._ending is not None and number < len(lines):
                self._say(f"{_count(len(lines) - number, 'line')} after close not sent.")
                break
        if not self._input_open and self._ending is None and not self._keeps_listening():
            self._ending = Ending.INPUT
        if self._ending is not None and self._kept:
            self._say(f"{_count(len(self._kept), 'line')} not sent yet; Ctrl-C gives up.")
        self._go_on()

    def _keeps_listening(self) -> bool:
        says_hello = self._settings.hello_seconds is not None
        return self._settings.stay or (says_hello and not self._source.is_terminal)

    def _typed(self, line: bytes | None) -> None:
        if line is not None and is_close(line):
            self._ending = Ending.COMMAND
        elif line is None or len(message_of(self._settings.name, line)) > MESSAGE_MAX_BYTES:
            self._say(f"A line not sent: with your name it is above {MESSAGE_MAX_BYTES} bytes.")
        else:
            self._kept.append(line)
            self._send_kept()
            if self._source.is_terminal:
                self._give_up_oldest()

    def _give_up_oldest(self) -> None:
        for line in self._kept.give_up():
            channel = channel_of(line)
            if channel:
                self._channel = channel
                self._must_join = True
            else:
                shown = line[:60].decode("utf-8", "replace")
                self._say(f"A line not sent, too many wait: {shown}{'…' if len(line) > 60 else ''}")

    def _go_on(self) -> None:
        """Do what can be done now: send, end, or read more."""
        self._send_kept()
        if self._ending is None:
            self._ask()
        elif not self._kept:
            if self.state is State.CONNECTED:
                self._close()
            elif self._connection is None:
                self._finish(0)

    def _join(self, connection: ChatConnection) -> None:
        self._must_join = False
        connection.write(b"/join " + self._channel + b"\n")

    def _send_kept(self) -> None:
        while self._kept and self._takes_more and self._connection is not None:
            if self._must_join:
                self._join(self._connection)
            line = self._kept.popleft()
            self._channel = channel_of(line) or self._channel
            self._connection.write(message_of(self._settings.name, line))

    def _say_hello(self) -> None:
        if self._takes_more and self._connection is not None:  # else it would pile up
            self._connection.write(f"hello, I'm {self._settings.name} {self._now()}\n".encode())

    def _hello_failed(self, reason: Failure) -> None:
        self._say(f"No more hello. Reason: {_sentence(reason)}")

    def _stop_hello(self) -> None:
        hello, self._hello = self._hello, None
        if hello is not None and hello.running:
            hello.stop()

    def _close(self) -> None:
        """All that will be said is written; have it delivered."""
        connection = self._connection
        assert connection is not None
        self._enter(State.CLOSING)
        self._takes_more = False
        self._stop_hello()
        if self._ending is Ending.COMMAND:  # both sides stay open: the server may answer until it closes
            connection.write(b"close\n")
            self._timer = self._clock.callLater(CLOSE_SECONDS, self._server_stays)
        else:
            connection.finish()

    def all_sent(self) -> None:
        """All has gone out and our side is closed; the server's turn."""
        if self.state is State.CLOSING and self._ending is not Ending.INTERRUPTED:
            self._timer = self._clock.callLater(CLOSE_SECONDS, self._server_stays)

    def _server_stays(self) -> None:
        self._say(f"The server has not closed the connection within {CLOSE_SECONDS:g} s.")
        if self._connection is not None:
            self._connection.close()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _sentence(reason: Failure) -> str:
    """What went wrong, on one line."""
    return " ".join(reason.getErrorMessage().split()).rstrip(".") + "."
