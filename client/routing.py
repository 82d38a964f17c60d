"""Where what a server says goes: to a subscription, or to the client's own listeners.

The client's own listeners hear of the connection, and of *server-side* subscriptions: those that the server
made by itself, from a token or by its API. They have no object here, only a position, with which they are
recovered on the next connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from spread.client import codes
from spread.client.codes import Reason
from spread.client.errors import ClientError
from spread.client.events import (
    Connected,
    Connecting,
    Disconnected,
    Hook,
    Subscribed,
    Subscribing,
    Unsubscribed,
)
from spread.client.subscription import Subscription, subscribed_event
from spread.node.wire.messages import (
    ClientInfo,
    ConnectRequest,
    ConnectResult,
    Event,
    Join,
    Leave,
    Message,
    Publication,
    Push,
    Subscribe,
    SubscribeRequest,
    SubscribeResult,
    Unsubscribe,
)

__all__ = ["MAX_SERVER_SIDE", "Routing"]

MAX_SERVER_SIDE = 10_000
"""Server-side subscriptions of one client. A server that makes more is not followed any further."""


@dataclass(slots=True)
class _ServerSide:
    """A server-side subscription."""

    recoverable: bool
    offset: int
    epoch: str


class Routing:
    """The owner of a client's link."""

    def __init__(self, data: bytes, name: str, version: str) -> None:
        self.on_connecting: Hook[[Connecting]] = Hook()
        self.on_connected: Hook[[Connected]] = Hook()
        self.on_disconnected: Hook[[Disconnected]] = Hook()
        self.on_error: Hook[[ClientError]] = Hook()
        self.on_message: Hook[[bytes]] = Hook()
        self.on_subscribing: Hook[[Subscribing]] = Hook()
        self.on_subscribed: Hook[[Subscribed]] = Hook()
        self.on_unsubscribed: Hook[[Unsubscribed]] = Hook()
        self.on_publication: Hook[[str, Publication]] = Hook()
        self.on_join: Hook[[str, ClientInfo]] = Hook()
        self.on_leave: Hook[[str, ClientInfo]] = Hook()
        self.subscriptions: dict[str, Subscription] = {}
        self.connected_as = Connected("", "")
        """The present, or the last, connection."""
        self.is_connected: Callable[[], bool] = bool
        """Set by who makes the link; a listener may end it in the middle of what is told here."""
        self._connections = 0
        self._server_side: dict[str, _ServerSide] = {}
        self._data = data
        self._name = name
        self._version = version

    # What the link tells.

    def connect_request(self, token: str) -> ConnectRequest:
        return ConnectRequest(
            token=token,
            data=self._data,
            name=self._name,
            version=self._version,
            subs={
                channel: SubscribeRequest(recover=True, epoch=sub.epoch, offset=sub.offset)
                for channel, sub in self._server_side.items()
                if sub.recoverable
            },
        )

    def connecting(self, reason: Reason) -> None:
        self.on_connecting.fire(Connecting(reason.code, reason.text))

    def connected(self, result: ConnectResult) -> None:
        self._connections += 1
        connection = self._connections
        self.connected_as = Connected(result.client, result.version, result.data)
        self.on_connected.fire(self.connected_as)
        for subscription in list(self.subscriptions.values()):
            if not self._is_current(connection):
                return
            subscription.link_made()
        self._follow(result.subs, connection)

    def left(self) -> None:
        lost = [sub for sub in list(self.subscriptions.values()) if sub.link_lost()]
        move = self._connections
        for subscription in lost:
            subscription.tell_link_lost()
        for channel in list(self._server_side):
            if move == self._connections:
                reason = codes.TRANSPORT_CLOSED
                self.on_subscribing.fire(Subscribing(channel, reason.code, reason.text))

    def disconnected(self, reason: Reason) -> None:
        self.on_disconnected.fire(Disconnected(reason.code, reason.text))

    def invalidated(self) -> None:
        for subscription in self.subscriptions.values():
            subscription.invalidate()
        for sub in self._server_side.values():
            sub.offset, sub.epoch = 0, "_"

    def failed(self, error: ClientError) -> None:
        self.on_error.fire(error)

    def pushed(self, push: Push) -> None:
        event = push.event
        if isinstance(event, Message):
            self.on_message.fire(event.data)
            return
        subscription = self.subscriptions.get(push.channel)
        if subscription is not None:
            subscription.pushed(event)
        else:
            self._server_side_pushed(push.channel, event)

    # Server-side subscriptions.

    def _is_current(self, connection: int) -> bool:
        return connection == self._connections and self.is_connected()

    def _follow(self, subs: dict[str, SubscribeResult], connection: int) -> None:
        """The server-side subscriptions of a new connection, instead of those of the one before."""
        ended = [channel for channel in self._server_side if channel not in subs]
        self._server_side = {
            channel: _ServerSide(sub.recoverable, sub.offset, sub.epoch)
            for channel, sub in list(subs.items())[:MAX_SERVER_SIDE]
        }
        for channel, sub in subs.items():
            if not self._is_current(connection):
                return
            self.on_subscribed.fire(subscribed_event(channel, sub))
        for channel, sub in subs.items():
            for publication in sub.publications if sub.recovered else ():
                if not self._is_current(connection):
                    return
                self._server_side_published(channel, publication)
        for channel in ended:
            if not self._is_current(connection):
                return
            self.on_unsubscribed.fire(Unsubscribed(channel, *codes.SERVER_UNSUBSCRIBED))

    def _server_side_pushed(self, channel: str, event: Event) -> None:
        if isinstance(event, Subscribe):
            if len(self._server_side) < MAX_SERVER_SIDE:
                self._server_side[channel] = _ServerSide(event.recoverable, event.offset, event.epoch)
                result = SubscribeResult(
                    recoverable=event.recoverable,
                    positioned=event.positioned,
                    epoch=event.epoch,
                    offset=event.offset,
                    data=event.data,
                )
                self.on_subscribed.fire(subscribed_event(channel, result))
        elif channel not in self._server_side:
            return  # pushed before the server knew that it was unsubscribed
        elif isinstance(event, Publication):
            self._server_side_published(channel, event)
        elif isinstance(event, Join):
            self.on_join.fire(channel, event.info)
        elif isinstance(event, Leave):
            self.on_leave.fire(channel, event.info)
        elif isinstance(event, Unsubscribe):
            del self._server_side[channel]
            self.on_unsubscribed.fire(Unsubscribed(channel, event.code, event.reason))

    def _server_side_published(self, channel: str, publication: Publication) -> None:
        connection = self._connections
        self.on_publication.fire(channel, publication)
        sub = self._server_side.get(channel)
        if sub is not None and publication.offset and connection == self._connections:
            sub.offset = publication.offset
            sub.epoch = publication.epoch or sub.epoch
