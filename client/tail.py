"""``spread tail``: what is published in channels, one line each, for as long as it runs.

Publications go to standard output, what happens to the connection to standard error. It ends with 0 after
enough publications, on Ctrl-C, or when nobody reads its output any more; with 1 when the server refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from spread.client.advice import refusal
from spread.client.client import Client
from spread.client.errors import ClientError, Refused
from spread.client.events import Connected, Connecting, Disconnected, Subscribed, Subscribing, Unsubscribed
from spread.client.payloads import info_object, publication_object, shown
from spread.client.terminal import Screen
from spread.node.wire.messages import ClientInfo, Publication, StreamPosition

__all__ = ["Tail", "TailSettings", "place_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TailSettings:
    """What the user asked for."""

    channels: tuple[str, ...]
    since: StreamPosition | None = None
    json: bool = False
    join_leave: bool = False
    count: int | None = None
    """End after so many publications."""
    place: str
    """Where the server is, for status lines."""


def place_of(url: str) -> str:
    """A URL without what may be secret in it: a password, or a token in the query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class Tail:
    """Runs once: ``start``, until ``done`` fires."""

    def __init__(self, client: Client, screen: Screen, settings: TailSettings) -> None:
        self.done: Deferred[int] = Deferred()
        """Fires with the exit status, when the connection is closed."""
        self._client = client
        self._screen = screen
        self._settings = settings
        self._left = settings.count
        self._is_over = False
        self._refused: Refused | None = None
        """The last word of the server, which says more than what the client made of it."""
        client.on_connecting(self._connecting)
        client.on_connected(self._connected)
        client.on_disconnected(self._disconnected)
        client.on_error(self._failed)
        for channel in settings.channels:
            subscription = client.new_subscription(
                channel,
                since=settings.since,
                # Asked for even where it is not given: an interruption should cost nothing.
                recoverable=True,
                join_leave=settings.join_leave,
            )
            subscription.on_subscribing(self._subscribing)
            subscription.on_subscribed(self._subscribed)
            subscription.on_unsubscribed(self._unsubscribed)
            subscription.on_publication(partial(self._published, channel))
            subscription.on_join(partial(self._moved, channel, "join"))
            subscription.on_leave(partial(self._moved, channel, "leave"))
            subscription.on_error(self._failed)
            subscription.subscribe().addErrback(_told_elsewhere)

    def start(self) -> None:
        """Connect."""
        self._client.connect().addErrback(_told_elsewhere)

    def stop(self) -> Deferred[None]:
        """The user has interrupted; fires when the connection is closed."""
        self._finish(0)
        return self._client.close()

    def _finish(self, status: int) -> None:
        if not self._is_over:
            self._is_over = True
            self._client.close().addCallback(lambda _: self.done.callback(status))

    def _say(self, text: str) -> None:
        if not self._is_over:
            self._screen.status(f"{self._settings.place}: {text}")

    def _give_up(self, what: str, text: str, code: int) -> None:
        if not self._is_over:
            if self._refused is not None:
                text, code = self._refused.text, self._refused.code
            self._screen.status(f"spread: error: {refusal(what, text, code)}")
            self._finish(1)

    # The connection.

    def _connecting(self, event: Connecting) -> None:
        if event.code:
            self._say(f"connection lost: {event.reason} ({event.code}); connecting again")

    def _connected(self, event: Connected) -> None:
        self._refused = None
        self._say("connected")

    def _disconnected(self, event: Disconnected) -> None:
        self._give_up(f"{self._settings.place} ended the connection", event.reason, event.code)

    def _failed(self, error: ClientError) -> None:
        if isinstance(error, Refused):
            self._refused = error
        self._say(f"{error}; trying again")

    # Channels.

    def _subscribing(self, event: Subscribing) -> None:
        if event.code > 1:
            self._say(f"{event.channel}: subscription lost: {event.reason} ({event.code}); subscribing again")

    def _subscribed(self, event: Subscribed) -> None:
        self._refused = None
        self._say(f"listening to {event.channel}")
        if event.was_recovering and not event.recovered:
            self._say(f"{event.channel}: the server does not have all that was asked for; some is missing")

    def _unsubscribed(self, event: Unsubscribed) -> None:
        self._give_up(f"cannot listen to {event.channel}", event.reason, event.code)

    def _published(self, channel: str, publication: Publication) -> None:
        if self._settings.json:
            self._show(publication_object(channel, publication))
        else:
            self._show(shown(publication.data))
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._finish(0)

    def _moved(self, channel: str, kind: str, info: ClientInfo) -> None:
        if self._settings.json:
            self._show(msgspec.json.encode({"type": kind, "channel": channel, "info": info_object(info)}))
        else:
            user = info.user or "someone anonymous"
            self._say(f"{channel}: {user} {'came' if kind == 'join' else 'left'} (client {info.client})")

    def _show(self, line: bytes) -> None:
        if self._is_over:
            return
        try:
            self._screen.show(line + b"\n")
        except OSError as error:
            gone = isinstance(error, BrokenPipeError)
            if not gone:
                self._screen.status(f"spread: error: cannot write what was published: {error.strerror}")
            self._finish(0 if gone else 1)


def _told_elsewhere(_: Failure) -> None:
    """The listeners to events have told it."""
