"""A client's link to its server: connected, kept alive, made again, until it is told to stop.

States, and what moves between them::

    DISCONNECTED ─ connect() ─▶ CONNECTING ─ connect reply ─▶ CONNECTED
         ▲                        │   ▲                          │ │
         ├─ final refusal ────────┘   └─ lost, closed, no ping ──┘ │
         └─ disconnect(), final close code ────────────────────────┘
    any ─ close() ─▶ CLOSED

While CONNECTING it tries, waits (full jitter), and tries again, for ever. It carries commands and pushes, and
knows nothing of channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar, cast
from typing import Protocol as Interface

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from spread.client import codes
from spread.client.addresses import ServerAddress
from spread.client.backoff import FullJitter
from spread.client.codes import ErrorCode, Reason, reconnects
from spread.client.connection import Clock, Timer, cancel
from spread.client.errors import (
    BadServer,
    ClientError,
    ConnectionEnded,
    NotConnected,
    Refused,
    TimedOut,
    TokenFailed,
    TooMany,
    TransportFailed,
    Unauthorized,
)
from spread.client.events import log_failure
from spread.client.formats import Format
from spread.client.renewal import Renewal
from spread.client.requests import Requests
from spread.client.tokens import GivenToken, TokenSource
from spread.client.transport import FrameTransport
from spread.node.wire.messages import (
    ConnectRequest,
    ConnectResult,
    Disconnect,
    ProtocolError,
    Push,
    RefreshRequest,
    RefreshResult,
    Request,
    Result,
    SendRequest,
    SubRefreshResult,
)

__all__ = ["MOVES", "Link", "LinkSettings", "Owner", "State"]

REFRESH_RETRY_SECONDS = 5.0

R = TypeVar("R", bound=Result)


class State(Enum):
    """What a client is doing."""

    DISCONNECTED = "disconnected"
    """Not connected, and not about to be."""
    CONNECTING = "connecting"
    """Trying, or waiting for the next try."""
    CONNECTED = "connected"
    CLOSED = "closed"
    """For good."""


MOVES: dict[State, frozenset[State]] = {
    State.DISCONNECTED: frozenset({State.CONNECTING, State.CLOSED}),
    State.CONNECTING: frozenset({State.CONNECTED, State.DISCONNECTED}),
    State.CONNECTED: frozenset({State.CONNECTING, State.DISCONNECTED}),
    State.CLOSED: frozenset(),
}


class Owner(Interface):
    """Who is told. Nothing of this may raise."""

    def connect_request(self, token: str) -> ConnectRequest:
        """What to say first."""
        ...

    def connecting(self, reason: Reason) -> None: ...

    def connected(self, result: ConnectResult) -> None: ...

    def disconnected(self, reason: Reason) -> None: ...

    def left(self) -> None:
        """The state is no longer CONNECTED; comes before ``connecting`` or ``disconnected``."""
        ...

    def invalidated(self) -> None:
        """Tokens and positions are void."""
        ...

    def pushed(self, push: Push) -> None: ...

    def failed(self, error: ClientError) -> None:
        """Something went wrong which the link will try again."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """How a link behaves."""

    address: ServerAddress
    endpoint: IStreamClientEndpoint
    format: Format
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: float
    connect_seconds: float
    max_ping_delay_seconds: float
    frame_max_bytes: int
    max_pending: int
    get_token: Callable[[], GivenToken] | None


class Link:
    """See the module. Everything is called on the reactor's thread."""

    def __init__(
        self, clock: Clock, owner: Owner, settings: LinkSettings, token: str, jitter: FullJitter
    ) -> None:
        self.state = State.DISCONNECTED
        self._moves = 0
        self._reason = Reason(0, "not connected")
        """Why it is DISCONNECTED."""
        self.clock = clock
        self.settings = settings
        self.token = token
        self._owner = owner
        self._jitter = jitter
        self._tokens = None if settings.get_token is None else TokenSource(clock, settings.get_token)
        self._token_is_expired = False
        """The server has refused it; the next attempt needs another."""
        self._requests = Requests(
            clock,
            settings.format,
            self._write,
            timeout_seconds=settings.timeout_seconds,
            max_pending=settings.max_pending,
        )
        self._dialing: Deferred[FrameTransport] | None = None
        self._transport: FrameTransport | None = None
        self._leaving: set[FrameTransport] = set()
        """Closed by us; their sockets may still be open."""
        self._when_gone: list[Deferred[None]] = []
        self._waiting: list[Deferred[None]] = []
        """For CONNECTED; fail when that is given up."""
        self._timer: Timer | None = None
        """Of the state: CONNECTING, until the next attempt or the end of this one; CONNECTED, for a ping."""
        self._renewal = Renewal(
            clock,
            self._tokens,
            self._send_refresh,
            ended=self.disconnect,
            failed=owner.failed,
            error_code=ErrorCode.REFRESH_TOKEN,
            retry_seconds=REFRESH_RETRY_SECONDS,
            fraction=jitter.fraction,
        )
        self._pong = False
        self._ping_seconds = 0.0

    # What the client asks.

    @property
    def is_connected(self) -> bool:
        return self.state is State.CONNECTED

    def connect(self) -> None:
        """Begin, unless it has begun."""
        if self.state is State.DISCONNECTED:
            move = self._enter(State.CONNECTING)
            self._jitter.succeeded()
            self._owner.connecting(codes.CONNECT_CALLED)
            if move == self._moves:
                self._attempt()

    def disconnect(self, reason: Reason) -> None:
        """End, for good unless ``connect`` is called; what was told or asked in this turn is still sent."""
        if self.state in (State.CONNECTING, State.CONNECTED):
            if self.state is State.CONNECTED:
                self._requests.flush()
            self._leave(reason, reconnect=False)

    def reconnect(self, reason: Reason) -> None:
        """Leave this connection and make another."""
        if self.state in (State.CONNECTING, State.CONNECTED):
            self._leave(reason, reconnect=True)

    def set_token(self, token: str) -> None:
        """The token of the next connection."""
        self.token = token
        self._token_is_expired = False

    def close(self) -> None:
        """End, and never begin again."""
        self.disconnect(codes.DISCONNECT_CALLED)
        if self.state is State.DISCONNECTED:
            self._enter(State.CLOSED)

    def gone_sockets(self) -> Deferred[None]:
        """Fires when no socket of this link is open that the link has left; never fails."""
        if not self._leaving:
            return succeed(None)
        gone: Deferred[None] = Deferred(lambda each: _drop(each, self._when_gone))
        self._when_gone.append(gone)
        return gone

    def when_connected(self, timeout_seconds: float | None = None) -> Deferred[None]:
        """Fires as soon as the state is CONNECTED; fails with ``NotConnected`` when no connection will be
        made, and with ``TimedOut`` after the time, if there is one."""
        if self.state is State.CONNECTED:
            return succeed(None)
        if self.state is not State.CONNECTING:
            return fail(self._not_connected())
        if len(self._waiting) >= self.settings.max_pending:
            return fail(TooMany(f"{len(self._waiting)} wait for a connection"))
        waiting: Deferred[None] = Deferred(lambda each: _drop(each, self._waiting))
        self._waiting.append(waiting)
        if timeout_seconds is not None:
            clock = cast(IReactorTime, self.clock)
            waiting.addTimeout(timeout_seconds, clock, onTimeoutCancel=_no_connection_in_time)
        return waiting

    def ask(self, request: Request, expected: type[R]) -> Deferred[R]:
        """As ``Requests.ask``; without a connection it fails with ``NotConnected``, and what cannot be
        written fails with ``ValueError``. Raises nothing."""
        if self.state is not State.CONNECTED:
            return fail(self._not_connected())
        return self._asked(request, expected)

    def tell(self, request: SendRequest) -> None:
        """As ``Requests.tell``."""
        self._requests.tell(request)

    def refresh(self, token: str) -> Deferred[RefreshResult]:
        """Give the server a new token; it replaces the present one when the server has taken it."""

        def refreshed(result: RefreshResult) -> RefreshResult:
            self.token = token
            self._renewal.granted(result.expires, result.ttl)
            return result

        return self.ask(RefreshRequest(token), RefreshResult).addCallback(refreshed)

    def break_off(self, error: ProtocolError | BadServer) -> None:
        """The server does not keep to the protocol: nothing it says can be trusted."""
        self._owner.failed(error if isinstance(error, BadServer) else BadServer(error.reason))
        self.disconnect(codes.BAD_PROTOCOL)

    # States.

    def _enter(self, state: State) -> int:
        """Gives the number of the move: while it is the last one, nobody has meddled."""
        if state not in MOVES[self.state]:
            raise RuntimeError(f"the client cannot go from {self.state.value} to {state.value}")
        self.state = state
        self._moves += 1
        return self._moves

    def _leave(self, reason: Reason, *, reconnect: bool) -> None:
        """Drop the connection, or the attempt; then try again, or not."""
        was_connected = self.state is State.CONNECTED
        if self._timer is not None:
            cancel(self._timer)
            self._timer = None
        self._renewal.cancel()  # which also asks for no token any more
        transport, self._transport = self._transport, None
        dialing, self._dialing = self._dialing, None
        if not reconnect:
            self._enter(State.DISCONNECTED)
            self._reason = reason
        elif was_connected:
            self._enter(State.CONNECTING)
        move = self._moves
        if reconnect:  # before anything is told: who is told may call disconnect, and that cancels it
            self._timer = self.clock.callLater(self._jitter.next_seconds(), self._attempt)
        if dialing is not None:
            dialing.cancel()
        if transport is not None and transport.is_made:
            self._leaving.add(transport)
            transport.close()
        if was_connected:
            self._owner.left()
        self._requests.fail(ConnectionEnded(reason.text))
        if move != self._moves:
            return
        if not reconnect:
            self._owner.disconnected(reason)
            if move == self._moves:
                self._stop_waiting(self._not_connected())
        elif was_connected:
            self._owner.connecting(reason)

    def _not_connected(self) -> NotConnected:
        return NotConnected(self._reason.text, self._reason.code or None)

    def _stop_waiting(self, error: NotConnected | None) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if each.called:
                continue
            if error is None:
                each.callback(None)
            else:
                each.errback(error)

    def _send_refresh(self, token: str) -> Deferred[RefreshResult | SubRefreshResult]:
        self.token = token
        return cast(
            Deferred[RefreshResult | SubRefreshResult], self.ask(RefreshRequest(token), RefreshResult)
        )

    # One attempt.

    def _attempt(self) -> None:
        self._timer = None
        if self._token_is_expired and self._tokens is None:
            self._leave(codes.UNAUTHORIZED, reconnect=False)
        elif self._tokens is not None and (self._token_is_expired or not self.token):
            self._tokens.ask(self._got_token, self._got_no_token)
        else:
            self._dial()

    def _got_token(self, token: str) -> None:
        if not token:
            self._leave(codes.UNAUTHORIZED, reconnect=False)
            return
        self.token = token
        self._token_is_expired = False
        self._dial()

    def _got_no_token(self, cause: BaseException) -> None:
        if isinstance(cause, Unauthorized):
            self._leave(codes.UNAUTHORIZED, reconnect=False)
        else:
            self._try_again(TokenFailed(ErrorCode.CONNECT_TOKEN, cause))

    def _try_again(self, error: ClientError) -> None:
        """This attempt has failed; the next will be made."""
        self._leave(codes.TRANSPORT_CLOSED, reconnect=True)
        self._owner.failed(error)

    def _dial(self) -> None:
        settings = self.settings
        transport = settings.address.transport(
            self, self.clock, settings.frame_max_bytes, settings.format, settings.headers
        )
        self._timer = self.clock.callLater(settings.connect_seconds, self._not_opened)
        self._transport = transport
        dialing: Deferred[FrameTransport] = cast(Any, settings.endpoint).connect(_Once(transport))
        self._dialing = dialing
        dialing.addCallbacks(self._dialed, self._not_dialed, callbackArgs=(dialing,), errbackArgs=(dialing,))
        dialing.addErrback(log_failure)

    def _dialed(self, transport: FrameTransport, dialing: Deferred[FrameTransport]) -> None:
        if self._dialing is dialing:
            self._dialing = None
        elif transport is not self._transport and transport not in self._leaving:
            transport.abort()  # it could not be cancelled any more, and nobody wants it

    def _not_dialed(self, reason: Failure, dialing: Deferred[FrameTransport]) -> None:
        if self._dialing is dialing:
            self._dialing = None
            self._try_again(TransportFailed(_sentence(reason)))

    def _not_opened(self) -> None:
        self._try_again(TimedOut(f"no connection within {self.settings.connect_seconds:g} s"))

    # The transport tells.

    def opened(self, transport: FrameTransport) -> None:
        """The server can be talked to."""
        if transport is not self._transport:
            transport.abort()
            return
        if self._timer is not None:
            cancel(self._timer)
            self._timer = None
        answer = self._asked(self._owner.connect_request(self.token), ConnectResult)
        self._requests.flush()
        answer.addCallbacks(self._connected, self._refused).addErrback(log_failure)

    def received(self, transport: FrameTransport, frame: bytes) -> None:
        """A frame has come."""
        if transport is not self._transport:
            return
        try:
            for reply in self.settings.format.decode(frame):
                body = reply.body
                if body is None:
                    self._pinged()
                elif isinstance(body, Push):
                    self._pushed(body)
                else:
                    self._requests.answer(reply.id, body)
                if transport is not self._transport:
                    break
        except (ProtocolError, BadServer) as error:
            if transport is self._transport:
                self.break_off(error)

    def drained(self, transport: FrameTransport) -> None:
        """More can be written."""
        if transport is self._transport:
            self._requests.flush()

    def closed(self, transport: FrameTransport, code: int, reason: str) -> None:
        """The server has closed, or the network."""
        if transport is self._transport:
            self._closed(code, reason)

    def gone(self, transport: FrameTransport) -> None:
        """The socket is closed."""
        self._leaving.discard(transport)
        if not self._leaving:
            when_gone, self._when_gone = self._when_gone, []
            for each in when_gone:
                each.callback(None)

    def _write(self, frame: bytes) -> bool:
        transport = self._transport
        if transport is None or not transport.is_writable:
            return False
        transport.write(frame)
        return True

    def _closed(self, code: int, reason: str) -> None:
        """By the server, with a close code or a last push."""
        if code == codes.MESSAGE_TOO_BIG:
            self._leave(codes.MESSAGE_SIZE_LIMIT, reconnect=False)
            return
        if code == codes.DISCONNECTED_STATE_INVALIDATED:
            if self._tokens is not None:
                self.token = ""
            self._owner.invalidated()
        told = Reason(code, reason) if code >= 3000 else codes.TRANSPORT_CLOSED
        was_connected = self.state is State.CONNECTED
        again = reconnects(code)
        self._leave(told, reconnect=again)
        if again and not was_connected:  # there is no event for a try that failed
            self._owner.failed(TransportFailed(reason or told.text))

    def _pushed(self, push: Push) -> None:
        if isinstance(push.event, Disconnect):
            self._closed(push.event.code, push.event.reason)
        elif self.state is State.CONNECTED:
            self._owner.pushed(push)

    # The connect reply.

    def _asked(self, request: Request, expected: type[R]) -> Deferred[R]:
        try:
            return self._requests.ask(request, expected)
        except (TooMany, ValueError) as error:
            return fail(error)

    def _connected(self, result: ConnectResult) -> None:
        transport = self._transport
        self._token_is_expired = False
        self._enter(State.CONNECTED)
        self._jitter.succeeded()
        self._pong = result.pong
        self._ping_seconds = result.ping + self.settings.max_ping_delay_seconds if result.ping else 0.0
        self._wait_for_ping()
        self._renewal.granted(result.expires, result.ttl)
        self._owner.connected(result)
        if transport is self._transport and transport is not None:
            self._stop_waiting(None)

    def _refused(self, reason: Failure) -> None:
        error = reason.value
        if isinstance(error, ConnectionEnded):
            return
        if isinstance(error, Refused) and error.code == codes.TOKEN_EXPIRED:
            self._token_is_expired = True
            if self._tokens is None:
                self._owner.failed(error)
                self.disconnect(codes.UNAUTHORIZED)
            else:
                self._try_again(error)
        elif isinstance(error, Refused) and error.code >= 100 and not error.temporary:
            self._leave(Reason(error.code, error.text), reconnect=False)
        else:
            is_told = isinstance(error, ClientError)
            self._try_again(cast(ClientError, error) if is_told else BadServer(str(error)))

    # Pings.

    def _pinged(self) -> None:
        if self.state is not State.CONNECTED:
            return
        self._wait_for_ping()
        if self._pong:
            try:
                self._requests.pong()
            except TooMany:
                return  # the server reads nothing, so it sees no pong anyway

    def _wait_for_ping(self) -> None:
        if self._timer is not None:
            cancel(self._timer)
            self._timer = None
        if self._ping_seconds:
            self._timer = self.clock.callLater(self._ping_seconds, self._not_pinged)

    def _not_pinged(self) -> None:
        self._leave(codes.NO_PING, reconnect=True)


class _Once(Factory):
    """Connects one transport, and does not log it."""

    noisy = False

    def __init__(self, transport: FrameTransport) -> None:
        self._transport = transport

    def buildProtocol(self, addr: object) -> FrameTransport:
        return self._transport


def _no_connection_in_time(value: object, seconds: float) -> object:
    if isinstance(value, Failure):
        raise TimedOut(f"no connection within {seconds:g} s")
    return value


def _drop(waiting: Deferred[None], waiters: list[Deferred[None]]) -> None:
    """One who waited has cancelled."""
    if waiting in waiters:
        waiters.remove(waiting)


def _sentence(reason: Failure) -> str:
    return reason.getErrorMessage().rstrip(".") or type(reason.value).__name__
