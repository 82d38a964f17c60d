"""A client of the Centrifuge protocol: of Spread, of Centrifugo, of whatever speaks it.

    client = Client(reactor, "ws://127.0.0.1:8000/connection/websocket", token=token)
    game = client.new_subscription("game:7")
    game.on_publication(lambda publication: print(json.loads(publication.data)))
    game.subscribe().addErrback(give_up)
    client.connect().addErrback(give_up)

It behaves as the official SDKs do: it connects again and subscribes again after every interruption, asks for
what it has missed, answers pings, renews tokens, and stops where the server tells it to stop.

Promises:

1.  *Order.* The publications of a channel are told in the order of the server. Commands are sent in the order
    of the calls, those of one reactor turn in one frame.
2.  *No silence.* Every Deferred that is given out fires: with a result, or with a ``ClientError``.
3.  *A hostile server* can make it disconnect, and nothing worse. What it keeps is bounded.
4.  *A listener that raises* is logged and breaks nothing.

Not thread-safe: everything is called, and tells, on the reactor's thread.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint

from spread.client import codes
from spread.client.addresses import parse_address
from spread.client.backoff import FullJitter
from spread.client.codes import ErrorCode
from spread.client.errors import TokenFailed
from spread.client.events import Connected
from spread.client.formats import FORMATS, FormatName
from spread.client.link import Link, LinkSettings, State
from spread.client.routing import Routing
from spread.client.subscription import Subscription, SubscriptionOptions
from spread.client.tokens import GivenToken, TokenSource
from spread.node.wire.messages import (
    MAX_UINT64,
    ClientInfo,
    Command,
    HistoryRequest,
    HistoryResult,
    PresenceRequest,
    PresenceResult,
    PresenceStatsRequest,
    PresenceStatsResult,
    PublishRequest,
    PublishResult,
    RefreshResult,
    Request,
    Result,
    RPCRequest,
    RPCResult,
    SendRequest,
    StreamPosition,
)

__all__ = ["FRAME_MAX_BYTES", "MAX_PENDING", "Client"]

FRAME_MAX_BYTES = 16 * 1024 * 1024
"""The largest message taken from a server; 300 recovered publications of 48 KiB fit."""

MAX_PENDING = 1000
"""Commands of one client that wait for a reply, and calls that wait for a connection."""

R = TypeVar("R", bound=Result)


class Client:
    """See the module. ``on_...`` are hooks: call one with a function to be told.

    ``on_connecting``, ``on_connected``, ``on_disconnected``: the connection; ``on_error``: what went wrong
    and will be tried again, or ended the connection; ``on_message``: the server's message to this connection.
    ``on_subscribing``, ``on_subscribed``, ``on_unsubscribed``, ``on_publication``, ``on_join``, ``on_leave``:
    server-side subscriptions; those of ``new_subscription`` have hooks of their own.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        *,
        token: str = "",
        get_token: Callable[[], GivenToken] | None = None,
        data: object = None,
        protocol: FormatName = "json",
        name: str = "spread",
        version: str = "",
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float = 5.0,
        connect_seconds: float = 10.0,
        max_ping_delay_seconds: float = 10.0,
        min_reconnect_seconds: float = 0.5,
        max_reconnect_seconds: float = 20.0,
        frame_max_bytes: int = FRAME_MAX_BYTES,
        max_pending: int = MAX_PENDING,
        endpoint: IStreamClientEndpoint | None = None,
        fraction: Callable[[], float] = random.random,
    ) -> None:
        """:param reactor: Twisted's, or a ``Clock`` together with ``endpoint``.

        :param url: ``ws://…``, ``wss://…``, or ``tcp://HOST:PORT`` for lines of JSON.
        :param token: the connection token (JWT); "" for none, or for one from ``get_token``.
        :param get_token: gives a token, a Deferred of one, or is a coroutine function; called when there is
            no token or it expires. It raises ``Unauthorized`` if there is none to be had: the client
            then disconnects. So it does if the token is "". After any other exception it is asked again.
        :param data: for the server's application; bytes as they are, anything else as JSON.
        :param name: of this client, for the server's statistics; ``version`` too.
        :param headers: HTTP headers for the handshake.
        :param timeout_seconds: how long a command may take.
        :param connect_seconds: how long a connection, with TLS and handshake, may take.
        :param max_ping_delay_seconds: the connection is given up when the server's ping is this late.
        :param min_reconnect_seconds: with ``max_...``: the bounds of the delay before a new attempt.
        :param frame_max_bytes: the largest message taken; the client disconnects at a larger one.
        :param max_pending: commands that may wait for an answer.
        :param endpoint: where to connect to instead of the host and port in the URL, for instance with
            certificates of one's own.
        :param fraction: random numbers from 0 to 1, for delays.
        :raises ValueError: the URL or another argument makes no sense.
        """
        if protocol not in FORMATS:
            raise ValueError(f"protocol {protocol!r} is none of {', '.join(FORMATS)}")
        if max_pending < 1 or min(timeout_seconds, connect_seconds, max_ping_delay_seconds) <= 0:
            raise ValueError("bounds and times must be above 0")
        format = FORMATS[protocol]
        address = parse_address(url, format)
        self._reactor = reactor
        self._fraction = fraction
        self._delays = (min_reconnect_seconds, max_reconnect_seconds)
        self._format = format
        routing = Routing(b"" if data is None else format.payload(data), name, version)
        format.encode(Command(1, routing.connect_request(token)))  # what cannot be written is told now
        settings = LinkSettings(
            address=address,
            endpoint=address.endpoint(reactor, connect_seconds) if endpoint is None else endpoint,
            format=format,
            headers=dict(headers or {}),
            timeout_seconds=timeout_seconds,
            connect_seconds=connect_seconds,
            max_ping_delay_seconds=max_ping_delay_seconds,
            frame_max_bytes=frame_max_bytes,
            max_pending=max_pending,
            get_token=get_token,
        )
        self._routing = routing
        self._link = Link(reactor, routing, settings, token, self._jitter())
        routing.is_connected = lambda: self._link.is_connected
        self._get_token = get_token
        self.on_connecting = routing.on_connecting
        self.on_connected = routing.on_connected
        self.on_disconnected = routing.on_disconnected
        self.on_error = routing.on_error
        self.on_message = routing.on_message
        self.on_subscribing = routing.on_subscribing
        self.on_subscribed = routing.on_subscribed
        self.on_unsubscribed = routing.on_unsubscribed
        self.on_publication = routing.on_publication
        self.on_join = routing.on_join
        self.on_leave = routing.on_leave

    @property
    def state(self) -> State:
        return self._link.state

    @property
    def client_id(self) -> str:
        """The id of the present connection, or of the last one; "" before the first."""
        return self._routing.connected_as.client

    # The connection.

    def connect(self) -> Deferred[Connected]:
        """Connect, and stay connected. Fires when that is so for the first time.

        Fails with ``NotConnected`` when it is given up: the server refused for good, there is no token, or
        ``disconnect`` or ``close`` was called.
        """
        self._link.connect()
        return self._link.when_connected().addCallback(lambda _: self._routing.connected_as)

    def disconnect(self) -> Deferred[None]:
        """End the connection; what was asked before in this turn is still sent. Subscriptions stay, and are
        subscribed again after ``connect``. Fires when the socket is closed; never fails."""
        self._link.disconnect(codes.DISCONNECT_CALLED)
        return self._link.gone_sockets()

    def close(self) -> Deferred[None]:
        """As ``disconnect``, for good: subscriptions are removed, and the client cannot be used again."""
        for subscription in list(self._routing.subscriptions.values()):
            subscription.remove(codes.CLIENT_CLOSED)
        self._routing.subscriptions.clear()
        self._link.close()
        return self._link.gone_sockets()

    def set_token(self, token: str) -> None:
        """The token of the next connection.

        :raises ValueError: it is not ASCII.
        """
        if not token.isascii():
            raise ValueError("a token is ASCII")
        self._link.set_token(token)

    def refresh(self) -> Deferred[RefreshResult]:
        """Renew the token now rather than when it expires.

        Fails with ``TokenFailed`` if there is no ``get_token`` or it fails, and as any command does.
        """
        refreshed: Deferred[RefreshResult] = Deferred()
        if self._get_token is None:
            refreshed.errback(TokenFailed(ErrorCode.BAD_CONFIGURATION, ValueError("there is no get_token")))
            return refreshed

        def got(token: str) -> None:
            self._link.refresh(token).chainDeferred(refreshed)

        def failed(cause: BaseException) -> None:
            refreshed.errback(TokenFailed(ErrorCode.REFRESH_TOKEN, cause))

        TokenSource(self._reactor, self._get_token).ask(got, failed)
        return refreshed

    # Subscriptions.

    def new_subscription(
        self,
        channel: str,
        *,
        token: str = "",
        get_token: Callable[[str], GivenToken] | None = None,
        data: object = None,
        positioned: bool = False,
        recoverable: bool = False,
        join_leave: bool = False,
        since: StreamPosition | None = None,
        delta: bool = False,
    ) -> Subscription:
        """A subscription to a channel; nothing is sent before its ``subscribe`` is called.

        :param token: of the subscription; :param get_token: as for the client, called with the channel.
        :param data: for the server's application.
        :param positioned: ask the server to watch that nothing is missed; ``recoverable``: and to give
            what was missed; ``join_leave``: to tell who comes and goes. The server may do all this unasked.
        :param since: begin with the publications after this position; ``StreamPosition()`` for all there are.
        :param delta: take publications as differences to the one before. The application sees none of it.
        :raises ValueError: there is one for this channel already, or an argument cannot be sent.
        """
        if self.state is State.CLOSED:
            raise ValueError("the client is closed")
        if not channel or channel in self._routing.subscriptions:
            raise ValueError(f"there is a subscription to {channel!r} already" if channel else "no channel")
        if since is not None and not 0 <= since.offset <= MAX_UINT64:
            raise ValueError(f"{since.offset} is no offset")
        options = SubscriptionOptions(
            data=b"" if data is None else self._format.payload(data),
            positioned=positioned,
            recoverable=recoverable,
            join_leave=join_leave,
            delta="fossil" if delta else "",
            since=since,
        )
        subscription = Subscription(self._link, channel, token, get_token, options, self._jitter())
        self._format.encode(Command(1, subscription.request()))  # what cannot be written is told now
        self._routing.subscriptions[channel] = subscription
        return subscription

    def subscription(self, channel: str) -> Subscription | None:
        """The one made for this channel."""
        return self._routing.subscriptions.get(channel)

    def remove_subscription(self, subscription: Subscription) -> Deferred[None]:
        """Unsubscribe and forget it; as ``Subscription.unsubscribe``."""
        if self._routing.subscriptions.get(subscription.channel) is subscription:
            del self._routing.subscriptions[subscription.channel]
        return subscription.remove(codes.UNSUBSCRIBE_CALLED)

    # Commands. While there is no connection, but one is being made, they wait for it.

    def publish(self, channel: str, data: object) -> Deferred[None]:
        """Publish; fires when the server has taken it.

        :param data: bytes as they are (over JSON they must be JSON), anything else as JSON.
        :raises ValueError: it is bytes that cannot be sent; ``TypeError``: it has no JSON.

        Fails with ``Refused``, ``TimedOut``, ``ConnectionEnded``, ``NotConnected`` or ``TooMany``. After
        ``TimedOut`` and ``ConnectionEnded`` it is not known whether it was published.
        """
        request = PublishRequest(channel, self._format.payload(data))
        return self._ask(request, PublishResult).addCallback(lambda _: None)

    def history(
        self, channel: str, *, limit: int = 0, since: StreamPosition | None = None, reverse: bool = False
    ) -> Deferred[HistoryResult]:
        """What was published; fails as ``publish`` does.

        :param limit: 0 for the position alone, -1 for all that the server gives at once.
        :param since: only what came after it, or before it with ``reverse``, which begins with the newest.
        """
        return self._ask(HistoryRequest(channel, limit, since, reverse), HistoryResult)

    def presence(self, channel: str) -> Deferred[dict[str, ClientInfo]]:
        """Who is in the channel, by client id; fails as ``publish`` does."""
        return self._ask(PresenceRequest(channel), PresenceResult).addCallback(lambda result: result.presence)

    def presence_stats(self, channel: str) -> Deferred[PresenceStatsResult]:
        """How many are in the channel; fails as ``publish`` does."""
        return self._ask(PresenceStatsRequest(channel), PresenceStatsResult)

    def rpc(self, method: str, data: object = None) -> Deferred[bytes]:
        """Call the server's application; fires with the payload of its answer, fails as ``publish`` does."""
        payload = b"" if data is None else self._format.payload(data)
        return self._ask(RPCRequest(method, payload), RPCResult).addCallback(lambda result: result.data)

    def send(self, data: object) -> Deferred[None]:
        """A message to the server's application, which is not answered. Fires when it is on its way; fails
        with ``NotConnected``, ``TimedOut`` (no connection) or ``TooMany``."""
        request = SendRequest(self._format.payload(data))
        return self._when_connected().addCallback(lambda _: self._link.tell(request))

    def _ask(self, request: Request, expected: type[R]) -> Deferred[R]:
        if self._link.is_connected:
            return self._link.ask(request, expected)
        return self._when_connected().addCallback(lambda _: self._link.ask(request, expected))

    def _when_connected(self) -> Deferred[None]:
        return self._link.when_connected(self._link.settings.timeout_seconds)

    def _jitter(self) -> FullJitter:
        return FullJitter(*self._delays, self._fraction)
