"""One connection to Redis, kept alive: txredisapi's protocol on a connection of our own.

A shard has two links to a hub. Both are made of the same parts:

*   ``CommandProtocol`` — txredisapi's commands, parser and errors, with a lane of our own underneath:
    all commands of a reactor turn leave in one write, replies are matched to a FIFO of waiters, and one
    timer watches the oldest of them. 2–5 µs a command, against 25–46 µs through txredisapi's own path.
*   ``SubscriberProtocol`` — the same, plus a fast path for what a subscribed connection receives.
*   ``Link`` — connects, does the handshake, connects again for ever (0.05 s to 2 s, with jitter), and
    tells its owner when a connection is up and when it is down.

Why not txredisapi's factories: they stop for good when AUTH times out once, queue commands without
limit while Redis is away, decode payloads into numbers, and need the global reactor.

txredisapi is imported in this module only.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, cast

import hiredis
import txredisapi
from twisted.application.internet import ClientService
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, ITCPTransport
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.dialect import CLASSIC, Dialect
from spread.hub.errors import HubError, HubRefused, HubUnavailable, LinkLost, ReplyError
from spread.hub.reactor import Clock, Endpoint, StreamTransport, Timer

__all__ = [
    "CommandProtocol",
    "Handshake",
    "Link",
    "LinkState",
    "Redirects",
    "SubscriberProtocol",
    "Waiter",
]

FIRST_DELAY_SECONDS = 0.05
LAST_DELAY_SECONDS = 2.0

GRACE_SECONDS = 0.2
"""How long this process reads before it judges a silent connection: it may be the one that stood still."""


class Waiter(Protocol):
    """Who waits for the reply to a command. A Deferred is one."""

    def callback(self, result: Any, /) -> None:
        """The reply."""

    def errback(self, failure: Any, /) -> None:
        """A ``ReplyError``, or ``LinkLost`` if the connection broke before the reply came."""


class Redirects(Protocol):
    """What becomes of the answer that a key is elsewhere; see ``cluster_redirects``."""

    def noticed(self, error: ReplyError) -> None:
        """A server has answered with this error, whatever it is."""

    async def run(self, connection: CommandProtocol, key: bytes, command: tuple[Any, ...]) -> Any:
        """Run a command on a key on this connection, or where it is sent from there."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """What a new connection says before it is used, and how long a reply may take on it."""

    hub: str
    """The hub's name, for error messages."""
    client_name: str
    reply_seconds: float
    username: str | None = None
    password: str | None = None
    db: int | None = None
    master_only: bool = False
    """Refuse a server that is a replica: a demoted master still answers (Sentinel, Cluster)."""
    redirects: Redirects | None = None
    """In a cluster: who is told of errors, and follows them."""


class CommandProtocol(txredisapi.HiredisProtocol):
    """A connection for commands. Bytes in, bytes out: nothing is decoded.

    Replies come in the order of the commands. A command left unanswered for ``reply_seconds`` cuts the
    connection: what waited then fails with ``LinkLost``, its outcome unknown.
    """

    noisy = False

    def __init__(self, clock: Clock, handshake: Handshake) -> None:
        super().__init__(charset=None, convertNumbers=False)
        self._clock = clock
        self._handshake = handshake
        self._reader = hiredis.Reader(protocolError=txredisapi.InvalidData, replyError=ReplyError)
        self._outgoing: list[bytes] = []
        # Who waits, and since when; oldest first.
        self._waiting: deque[tuple[Waiter, float]] = deque()
        self._turn_began = 0.0
        self._deadline: Timer | None = None
        self._is_open = False
        # Of the socket, if the transport is a plain one of the reactor.
        self._send_now: Callable[[bytes], int] | None = None
        self._cut_reason: str | None = None
        self.generation = b""
        """Of the server's copy of the data, see ``lineage``; b"": not known."""
        self.server_run = b""
        """Names the server's process; b"": not known."""
        self.last_step: Callable[[Any], Awaitable[None]] | None = None
        """The end of the handshake; may raise ``ReplyError``."""
        # Set by the link that made this protocol.
        self.opened: Callable[[CommandProtocol], None] = lambda protocol: None
        self.closed: Callable[[CommandProtocol, str], None] = lambda protocol, reason: None

    # -- the connection ------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        transport: Any = self.transport
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
            transport.setTcpKeepAlive(True)
        if isinstance(transport, Connection) and not transport.TLS:
            self._send_now = transport.getHandle().send
        self._is_open = True
        self.opened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._cut_reason is None:
            self._cut_reason = reason.getErrorMessage().rstrip(".")
        self._is_open = False
        self._send_now = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._outgoing.clear()
        waiting, self._waiting = self._waiting, deque()
        for waiter, _ in waiting:
            waiter.errback(LinkLost(self._handshake.hub, self._cut_reason))
        self.closed(self, self._cut_reason)

    def cut(self, reason: str) -> None:
        """Drop the connection now; its link connects again. Who waits fails with ``reason``."""
        if self._is_open:
            self._is_open = False
            self._cut_reason = reason
            cast(StreamTransport, self.transport).abortConnection()

    async def introduce(self) -> None:
        """The handshake: credentials, database, name, role.

        :raises HubRefused: the credentials do not work.
        :raises HubUnavailable: the server is loading, or a replica where a master is wanted.
        """
        handshake = self._handshake
        try:
            if handshake.password is not None:
                await self.auth(handshake.password, handshake.username)
            if handshake.db is not None:
                await self.select(handshake.db)
            await self.ping()
            if handshake.master_only:
                role = await self.role()
                if role[0] != b"master":
                    raise HubUnavailable(handshake.hub, f"the server is a {role[0].decode()}, not the master")
            if self.last_step is not None:
                await self.last_step(self)
        except ReplyError as error:
            if error.is_later:
                raise HubUnavailable(handshake.hub, str(error)) from error
            raise HubRefused(handshake.hub, str(error)) from error
        with suppress(ReplyError):  # a name is a convenience of `CLIENT LIST`; an ACL may forbid it
            await self.execute_command(b"CLIENT", b"SETNAME", handshake.client_name)

    # -- commands ------------------------------------------------------------------------------------

    @property
    def redirects(self) -> Redirects | None:
        """Of the cluster, if this is a connection to one of its servers."""
        return self._handshake.redirects

    def submit(self, waiter: Waiter, *command: bytes | str | int | float) -> None:
        """Send a command with the others of this turn; its reply goes to ``waiter``.

        If the connection is closed already, ``waiter`` fails with ``LinkLost`` before this returns.
        """
        if not self._is_open:
            waiter.errback(LinkLost(self._handshake.hub, self._cut_reason or "not connected"))
            return
        self._write(hiredis.pack_command(command))
        self._waiting.append((waiter, self._turn_began))
        if self._deadline is None:
            self._check_deadline()

    def execute_command(self, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """Send a command; this is what all of txredisapi's command methods call.

        :raises LinkLost: (as a failure) the connection is closed, or breaks before the reply.
        :raises ReplyError: (as a failure) Redis answered with an error.
        """
        result: Deferred[Any] = Deferred()
        self.submit(result, *args)
        if "post_proc" in kwargs:
            result.addCallback(kwargs["post_proc"])
        return result

    def _write(self, packed: bytes) -> None:
        if not self._outgoing:
            self._turn_began = self._clock.seconds()
            self._clock.callLater(0, self._flush)
        self._outgoing.append(packed)

    def _flush(self) -> None:
        if not self._outgoing:
            return
        outgoing, self._outgoing = self._outgoing, []
        data = b"".join(outgoing)
        transport: Any = self.transport
        # Straight to the socket, 3–5 µs, if nothing waits before it. ``write`` alone asks epoll twice, and
        # sends in another turn, 13–18 µs; what the kernel does not take goes that way, and so do errors.
        if self._send_now is not None and not (transport.dataBuffer or transport._tempDataLen):
            with suppress(OSError):
                data = data[self._send_now(data) :]
        if data:
            cast(StreamTransport, transport).write(data)

    def _check_deadline(self) -> None:
        self._deadline = None
        if not self._waiting:
            return
        oldest = self._waiting[0]
        limit = self._handshake.reply_seconds
        grace = min(GRACE_SECONDS, limit / 4)
        left = oldest[1] + limit - grace - self._clock.seconds()
        if left > 0:
            self._deadline = self._clock.callLater(left, self._check_deadline)
        else:
            self._deadline = self._clock.callLater(grace, self._judge, oldest)

    def _judge(self, oldest: tuple[Waiter, float]) -> None:
        self._deadline = None
        if self._waiting and self._waiting[0] is oldest:
            self.cut(f"no reply within {self._handshake.reply_seconds:g} s")
        else:
            self._check_deadline()

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        if not self._is_open:
            return
        reader = self._reader
        reader.feed(data)
        try:
            reply = reader.gets()
            while reply is not False:
                self._replied(reply)
                reply = reader.gets()
        except txredisapi.InvalidData as error:
            self.cut(f"the server does not speak the Redis protocol: {error}")

    def _replied(self, reply: Any) -> None:
        if not self._waiting:
            self.cut("a reply that nothing asked for")
            return
        waiter, _ = self._waiting.popleft()
        if isinstance(reply, ReplyError):
            if self._handshake.redirects is not None:
                self._handshake.redirects.noticed(reply)
            waiter.errback(reply)
        else:
            waiter.callback(reply)


class SubscriberProtocol(CommandProtocol):
    """A subscribed connection.

    ``message(channel, payload)`` is called for each message, ``read_done()`` once after all messages of
    one read. Confirmations go to ``confirmed(is_subscribed, channel)``, an error that answers a SUBSCRIBE to
    ``refused(error)``. After the handshake no command with a reply of its own is sent here, so an error
    can only answer SUBSCRIBE or UNSUBSCRIBE.

    :param own_channel: subscribed to as the last step of the handshake: the connection is up when it hears.
    :param further_channels: subscribed to after it, in this order; an ACL may forbid them.

    A server of a cluster takes channels away when their slot moves, with a confirmation that nobody asked
    for. When it takes one of the handshake's, the connection is cut.
    """

    def __init__(
        self,
        clock: Clock,
        handshake: Handshake,
        own_channel: bytes = b"",
        further_channels: Sequence[bytes] = (),
        dialect: Dialect = CLASSIC,
    ) -> None:
        super().__init__(clock, handshake)
        self._dialect = dialect
        self._message_word = dialect.message
        self._own_channel = own_channel
        self._further_channels = further_channels
        self.forbidden: dict[bytes, ReplyError] = {}
        """The further channels that an ACL forbids."""
        self.message: Callable[[bytes, bytes], None] = lambda channel, payload: None
        self.read_done: Callable[[], None] = lambda: None
        self.confirmed: Callable[[bool, bytes], None] = lambda is_subscribed, channel: None
        self.refused: Callable[[ReplyError], None] = lambda error: None
        self.bytes_received = 0
        self.heard_at = clock.seconds()
        """When bytes last came, by this process's clock."""
        self.is_paused = False

    async def introduce(self) -> None:
        """The handshake, which ends with SUBSCRIBE to the own channel.

        :raises HubRefused: also when an ACL forbids that channel.
        """
        await super().introduce()
        if self._own_channel:
            try:
                await self.execute_command(self._dialect.subscribe, self._own_channel)
            except ReplyError as error:
                if not error.is_refusal and self._dialect.is_sharded:
                    raise HubUnavailable(self._handshake.hub, str(error)) from error  # its slot has moved
                channel = self._own_channel.decode()
                raise HubRefused(self._handshake.hub, f"channel {channel}: {error}") from error
        for further in self._further_channels:
            try:
                await self.execute_command(self._dialect.subscribe, further)
            except ReplyError as error:
                if not error.is_refusal:
                    raise HubUnavailable(self._handshake.hub, str(error)) from error
                self.forbidden[further] = error

    def pause(self) -> None:
        """Read no more from Redis for now."""
        if self._is_open and not self.is_paused:
            self.is_paused = True
            cast(StreamTransport, self.transport).pauseProducing()

    def resume(self) -> None:
        """Read again."""
        if self._is_open and self.is_paused:
            self.is_paused = False
            cast(StreamTransport, self.transport).resumeProducing()

    def change_subscriptions(self, command: bytes, channels: list[bytes]) -> None:
        """Send a command of the dialect, ``SUBSCRIBE`` say, for all ``channels``: one, or one for each."""
        if self._dialect.is_sharded:
            for channel in channels:
                self._write(hiredis.pack_command((command, channel)))
        else:
            self._write(hiredis.pack_command((command, *channels)))

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        # 0.6–1 µs a message: the reader's own loop, one type test, one comparison, one call.
        if not self._is_open:
            return
        self.bytes_received += len(data)
        self.heard_at = self._clock.seconds()
        reader = self._reader
        reader.feed(data)
        message, word = self.message, self._message_word
        try:
            reply = reader.gets()
            while reply is not False:
                if type(reply) is list and reply and reply[0] == word:
                    message(reply[1], reply[2])
                else:
                    self._other(reply)
                reply = reader.gets()
        except txredisapi.InvalidData as error:
            self.cut(f"the server does not speak the Redis protocol: {error}")
        self.read_done()

    def _other(self, reply: Any) -> None:
        if self._waiting:  # the handshake
            self._replied(reply)
        elif type(reply) is list and reply[:1] in ([self._dialect.subscribed], [self._dialect.unsubscribed]):
            if reply[1] == self._own_channel or reply[1] in self._further_channels:
                self.cut(f"the server has taken the channel {reply[1].decode()} away")
            elif reply[1] is not None:
                self.confirmed(reply[0] == self._dialect.subscribed, reply[1])
        elif isinstance(reply, ReplyError):
            self.refused(reply)
        else:
            self._replied(reply)


class LinkState(Enum):
    """Where a link stands.

    ======== ======================== =========================================
    state    event                    next
    ======== ======================== =========================================
    IDLE     start                    AWAY
    AWAY     connected, handshake ok  UP (owner: ``up``)
    AWAY     any failure              AWAY, again after a delay
    UP       connection lost or cut   AWAY (owner: ``down``), again after a delay
    any      stop                     STOPPED
    ======== ======================== =========================================
    """

    IDLE = "idle"
    AWAY = "away"
    UP = "up"
    STOPPED = "stopped"


class Link:
    """Keeps one connection to Redis, for ever.

    :param endpoint: where to connect; asked anew for each attempt, so that it may find another server.
    :param build: makes the protocol of a connection.
    :param up: called with the protocol when its handshake is done.
    :param down: called with the reason when a connection that was up is lost.
    :param jitter: gives a number in [0, 1); injected in tests.
    """

    log = Logger("spread.hub.link")

    def __init__(
        self,
        reactor: Clock,
        endpoint: Endpoint,
        *,
        name: str,
        build: Callable[[], CommandProtocol],
        up: Callable[[Any], None],
        down: Callable[[str], None],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.state = LinkState.IDLE
        self.protocol: CommandProtocol | None = None
        """The connection, while it is up."""
        self._current: CommandProtocol | None = None  # the connection, also during its handshake
        self.last_error: HubError | None = None
        self.failed: Callable[[HubError], None] = lambda error: None
        """Called at each failed attempt; who starts the hub decides by it whether waiting helps."""
        self._build = build
        self._up = up
        self._down = down
        self._jitter = jitter
        self._failures = 0
        self._is_waiting = False  # until the next attempt
        factory = _LinkFactory(self._build_protocol)
        noting: Any = _NotingEndpoint(endpoint, self._connecting, self._connect_failed)
        self._service = ClientService(
            noting, cast(Any, factory), retryPolicy=self._delay, clock=cast(Any, reactor)
        )

    def start(self) -> None:
        """Begin to connect. Call once."""
        self.state = LinkState.AWAY
        self._service.startService()

    def stop(self) -> Deferred[None]:
        """Close the connection and stay closed. Idempotent."""
        self.state = LinkState.STOPPED
        stopped: Deferred[None] | None = self._service.stopService() if self._service.running else None
        if self._current is not None:
            # What matters was answered before; a server that is frozen would hold up a polite close for ever.
            self._current.cut("stopping")
        return stopped if stopped is not None else succeed(None)

    def begin_anew(self, reason: str) -> None:
        """Give up the connection, or the pause before the next attempt: the endpoint leads elsewhere."""
        self._failures = 0
        if self._current is not None:
            self._current.cut(reason)
        elif self._is_waiting and self.state is LinkState.AWAY:
            self._service.stopService()
            self._service.startService()

    def _delay(self, attempt: int) -> float:
        self._is_waiting = True
        # ClientService counts from the last TCP connection; we count from the last good handshake, so that
        # a server that accepts and then refuses is not asked 20 times a second.
        self._failures += 1
        longest = min(LAST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(self._failures, 30))
        return longest * (0.5 + self._jitter() / 2)

    def _build_protocol(self) -> CommandProtocol | None:
        if self.state is LinkState.STOPPED:
            return None  # the attempt could not be cancelled any more: close what it made
        protocol = self._build()
        protocol.opened = self._opened
        protocol.closed = self._closed
        return protocol

    def _opened(self, protocol: CommandProtocol) -> None:
        self._current = protocol
        introduced = Deferred.fromCoroutine(protocol.introduce())
        introduced.addCallbacks(
            lambda _: self._introduced(protocol), lambda failure: self._refused(protocol, failure)
        )
        introduced.addErrback(lambda failure: self.log.failure("link to {name}", failure, name=self.name))

    def _introduced(self, protocol: CommandProtocol) -> None:
        if self.state is LinkState.STOPPED:
            return
        self._failures = 0
        self.last_error = None
        self.protocol = protocol
        self.state = LinkState.UP
        self._up(protocol)

    def _refused(self, protocol: CommandProtocol, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, HubError):
            self.log.failure("handshake with {name}", failure, name=self.name)
            error = HubUnavailable(self.name, failure.getErrorMessage())
        self._note(error)
        protocol.cut(str(error))

    def _closed(self, protocol: CommandProtocol, reason: str) -> None:
        if self._current is protocol:
            self._current = None
        if self.protocol is protocol:
            self.protocol = None
            if self.state is LinkState.UP:
                self.state = LinkState.AWAY
            self._down(reason)

    def _connecting(self) -> None:
        self._is_waiting = False

    def _connect_failed(self, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, HubError):
            error = HubUnavailable(self.name, failure.getErrorMessage().rstrip("."))
        self._note(error)

    def _note(self, error: HubError) -> None:
        self.last_error = error
        if self.state is not LinkState.STOPPED:
            self.failed(error)


class _LinkFactory(Factory):
    noisy = False

    def __init__(self, build: Callable[[], CommandProtocol | None]) -> None:
        self._build = build

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return self._build()


class _NotingEndpoint:
    """Tells of each failed attempt, which ClientService keeps to itself while it retries."""

    def __init__(
        self, endpoint: Endpoint, begun: Callable[[], None], failed: Callable[[Failure], None]
    ) -> None:
        self._endpoint = endpoint
        self._begun = begun
        self._failed = failed

    def connect(self, factory: Factory) -> Deferred[Any]:
        def note(failure: Failure) -> Failure:
            self._failed(failure)
            return failure

        self._begun()
        return self._endpoint.connect(factory).addErrback(note)
