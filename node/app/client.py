"""One connected client, as an app knows it."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from spread.node.app.data import decoded, encoded, grant_of
from spread.node.app.values import Disconnect, Subscribing
from spread.node.codes import Disconnect as DisconnectCode
from spread.node.session.logic import Party

if TYPE_CHECKING:
    from spread.node.app.host import AppHost

__all__ = ["Client"]

SPARE_VIEWS = 1000
"""Views that may be set for channels that a client is not in. When there are more all of these are forgotten:
clients may ask for any number of channels, and fail to come in after ``subscribing`` has set a view."""


class Client:
    """A connection. One object while it lasts, also over updates of the app."""

    __slots__ = ("__weakref__", "_data", "_host", "_party", "state", "was_told", "where")

    def __init__(self, party: Party, host: AppHost, data: bytes = b"") -> None:
        self._party = party
        self._host = host
        self._data = data
        self.state: dict[str, Any] = {}
        """The app's own: whatever it wants to know of this client."""
        self.was_told = False
        """``connected`` has been called, and ``disconnected`` has not."""
        self.where: dict[str, Hashable] = {}
        """Views that were set for channels; see ``set_view``."""

    @property
    def id(self) -> str:
        """Unique in the cluster."""
        return self._party.client

    @property
    def number(self) -> int:
        """Unique on this shard, never 0."""
        return self._party.number

    @property
    def user(self) -> str:
        """ "" for an anonymous one, as clients of the text protocol are."""
        return self._party.user

    @property
    def info(self) -> Any:
        """What its token, or ``connecting``, says of it; ``None``: nothing."""
        return decoded(self._party.conn_info)

    @property
    def transport(self) -> str:
        """``websocket``, ``http_stream``, ``sse``, ``json`` or ``text``."""
        return self._party.transport

    @property
    def address(self) -> str:
        """The peer's IP address."""
        return self._party.address

    @property
    def data(self) -> Any:
        """What came with its request to connect; ``None``: nothing."""
        return decoded(self._data)

    @property
    def channels(self) -> Collection[str]:
        """Those it is a member of now."""
        return self._party.channels

    def send(self, data: Any) -> bool:
        """Tell it something, in no channel. ``False``: it has gone.

        :param data: a JSON value, or bytes for a client of the Protobuf protocol. A client of the text
            protocol gets a line: a text as it is, anything else as JSON.
        """
        return self._party.tell(encoded(data, "client.send"))

    def subscribe(self, channel: str, options: Subscribing | None = None) -> Deferred[bool]:
        """Bring it into a channel, without asking ``subscribing``.

        :returns: fires with ``False`` when it was there, has gone, or cannot be: there is no such namespace,
            the client is in as many channels as it may be, or, being one of the text protocol, is on its way
            into another or waits for ``publishing``. Fails with ``HubError`` or ``TimeoutError`` when the hub
            is away, but for those, which give ``False``.
        :raises Exception: at once: something in ``options`` is nonsense.
        """
        grant = grant_of(Subscribing() if options is None else options)
        return self._party.subscribe(channel, grant).addCallback(bool)

    def unsubscribe(self, channel: str) -> bool:
        """Take it out of a channel; it is told so. ``False``: it is not in there. Text clients cannot be."""
        return self._party.leave(channel)

    def disconnect(self, code: int = 4500, reason: str = "disconnected by the application") -> None:
        """End its connection. Idempotent. See ``Disconnect`` for what codes mean.

        :raises ValueError: no such code, or a reason that is too long.
        """
        ending = Disconnect(code, reason)
        self._party.dismiss(DisconnectCode(ending.code, ending.reason))

    def set_view(self, channel: str, key: Hashable) -> None:
        """From now on it sees this channel as all do whose view is ``key``; see ``App.see``.

        May be called before it is in there, for instance in ``subscribing``.

        :raises TypeError: this is no key of a dictionary; nothing has changed.
        """
        hash(key)
        if channel not in self.where and len(self.where) - len(self.channels) >= SPARE_VIEWS:
            self.where = {name: view for name, view in self.where.items() if name in self.channels}
        self.where[channel] = key
        self._host.view_changed(self, channel, key)

    def __repr__(self) -> str:
        return f"<client {self.id} of user {self.user!r}>"
