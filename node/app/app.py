"""``App``: what a team subclasses. Hooks that the shard calls, and what an app can do.

Hooks do nothing here, and one that a subclass does not have costs nothing. Each may return its answer, a
Deferred of it, or be ``async def``. What one raises but ``Refuse`` and ``Disconnect``, and one that does
not answer within ``app.hook_seconds``, is logged, counted, and answered as error 100; it is nobody else's
concern.

An app is made once for each version of its code on each shard. It runs, that is its hooks are called, from
``starting``, or from the moment when it takes over from the version before it, which calls ``import_state``
and not ``starting``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from spread.node.app.values import Page, Present, Subscribing

if TYPE_CHECKING:
    from spread.hub.api import Position, PresenceStats
    from spread.node.app.client import Client
    from spread.node.app.host import AppHost
    from spread.node.app.timers import Handle

__all__ = ["HOOKS", "App"]

HOOKS = (
    *("starting", "stopping", "connecting", "connected", "disconnected", "subscribing", "subscribed"),
    *("unsubscribed", "publishing", "message", "occupied", "vacated", "view", "see", "latest"),
)
"""The names of those that are called only where a subclass has them."""


class App:
    """A team's game logic, in one shard: subclass it, and name that with ``--app MODULE:CLASS``.

        class Chat(App):
            def connecting(self, client):
                return Identity(user="")  # everybody may connect

            def subscribing(self, client, channel):
                return Subscribing()  # and come into any channel

            def publishing(self, client, channel, data):
                if not isinstance(data, str):
                    raise Refuse(4001, "say it in words")
                return data.replace("heck", "****")

            @rpc("shout")
            async def shout(self, client, words: str):
                await self.publish("lobby", words.upper())

    Define the hooks that you want: ``starting`` to ``latest``. Each gives its answer, a Deferred of it, or is
    ``async def``, unless it says "at once". ``Refuse`` is told to the client as an error, ``Disconnect`` ends
    its connection, anything else that is raised is logged, and told as error 100.

    ``@rpc`` methods are called by clients, ``@remote`` ones by other shards, ``@every`` ones by the clock.
    All other methods are what an app can do: ``publish`` to ``call``.

    Class attributes: ``objects``, the classes of stateful channels; ``watch``, patterns of channels of which
    ``occupied`` and ``vacated`` tell; ``views``, patterns of those that members see differently; ``version``.
    ``self.shard``, ``self.tables`` and ``self.log`` are there from ``starting`` on, the last two before.

    docs/apps.md has a tutorial, and all that is promised.
    """

    version: ClassVar[str] = ""
    """Told in the roster and by ``spread reload``; "": made of the source."""
    objects: ClassVar[Sequence[type]] = ()
    """Classes of stateful channels: ``@owns``."""
    watch: ClassVar[Sequence[str]] = ()
    """Patterns of channels of which ``occupied`` and ``vacated`` tell."""
    views: ClassVar[Collection[str]] = ()
    """Patterns of channels whose members see them differently; see ``view``."""

    _host: AppHost | None = None

    log = Logger("spread.app")

    # -- hooks: the shard -----------------------------------------------------------------------------------

    def starting(self) -> Any:
        """The shard has its number, and takes clients when this is done. What it raises ends the shard."""

    def stopping(self) -> Any:
        """The shard is about to stop; clients are still there."""

    def check(self) -> Any:
        """Asked before the app may run, also by ``--check``: what it raises, or ``False``, says that it
        must not."""

    def export_state(self) -> Any:
        """Plain data for the next version of the app, whose ``import_state`` gets it in the same turn; it is
        not called for ``None``."""
        return None

    def import_state(self, state: Any) -> Any:
        """Take over what the version before this has exported."""

    # -- hooks: clients -------------------------------------------------------------------------------------

    def connecting(self, client: Client) -> Any:
        """Who is it? ``client.user`` is what its token says, "" without one.

        :returns: an ``Identity``, or ``None``: as the token says, and without one only where that is allowed.
        """
        return None

    def connected(self, client: Client) -> Any:
        """A client has been let in, and knows it."""

    def disconnected(self, client: Client, reason: str) -> Any:
        """A client has gone, whoever ended that. Once for each ``connected``."""

    def subscribing(self, client: Client, channel: str) -> Any:
        """May it come into this channel?

        :returns: ``Subscribing``: yes, whatever the namespace says. ``None``: as the namespace says.
        """
        return None

    def subscribed(self, client: Client, channel: str) -> Any:
        """A client has come into a channel, and knows it."""

    def unsubscribed(self, client: Client, channel: str) -> Any:
        """A client is in a channel no more."""

    def publishing(self, client: Client, channel: str, data: Any) -> Any:
        """A client, which may, publishes this.

        :param data: a JSON value; the text of a line for a client of the text protocol; bytes if it is
            neither.
        :returns: the data to publish, the same or other; or ``DROP``.
        """
        return data

    def message(self, client: Client, data: Any) -> Any:
        """A client has sent this to the server. Nobody answers."""

    # -- hooks: channels ------------------------------------------------------------------------------------

    def occupied(self, channel: str) -> Any:
        """Somebody is in this channel, anywhere in the cluster. Told on one shard, at least once."""

    def vacated(self, channel: str) -> Any:
        """Nobody is in there any more."""

    def view(self, client: Client, channel: str) -> Hashable | None:
        """How does it see this channel? Asked when it comes in; ``client.set_view`` changes it. Answers at
        once.

        A publication costs a call of ``see`` for each view that has members on a shard, and a decoding of its
        data: views that many share are cheap, one for each client is as dear as there are clients.
        """
        return None

    def see(self, channel: str, key: Any, data: Any) -> Any:
        """What those with the view ``key`` get of a publication; ``None``: nothing. Asked once for all of
        them on a shard. Answers at once."""
        return data

    def latest(self, channel: str, data: Any) -> Hashable | None:
        """Of what is this publication the newest state? A slow client gets only the newest of each key.
        ``None``: it is no state. Answers at once."""
        return None

    # -- where it is ----------------------------------------------------------------------------------------

    @property
    def shard(self) -> int:
        """The number of this shard."""
        return self._does.shard

    @property
    def tables(self) -> Any:
        """The newest tables of the setting ``app.tables``; ``None``: there are none."""
        live = self._does.tables
        return None if live is None else live.tables

    @property
    def _does(self) -> AppHost:
        if self._host is None:
            raise RuntimeError("this app is in no shard")
        return self._host

    # -- what it can do: channels ---------------------------------------------------------------------------

    def publish(
        self,
        channel: str,
        data: Any,
        *,
        exclude: Iterable[str] = (),
        tags: dict[str, str] | None = None,
        idempotency_key: str = "",
        fence: Any = None,
    ) -> Deferred[Position | None]:
        """Publish to a channel. What nobody waits for may be forgotten: a failure is logged then.

        :param data: a JSON value, or bytes.
        :param exclude: ids of clients that do not get it, 64 at most. An id is that of one connection: who
            has come back has another, and finds the publication in what it recovers.
        :raises LookupError: at once, if there is no such namespace. The Deferred fails with ``HubError``.
        """
        return self._does.publish(
            channel, data, exclude=exclude, tags=tags, idempotency_key=idempotency_key, fence=fence
        )

    def broadcast(self, channels: Iterable[str], data: Any) -> Deferred[list[Position | None]]:
        """Publish the same to several channels; fails if one of them cannot be had.

        :raises LookupError: at once, if one has no namespace; then nothing is published.
        """
        return self._does.broadcast(channels, data)

    def history(
        self, channel: str, limit: int = 100, since: Position | None = None, reverse: bool = False
    ) -> Deferred[Page]:
        """What was published in a channel.

        :param limit: publications at most; 0: only where the newest is.
        :raises LookupError: at once, if the channel keeps none.
        """
        return self._does.history(channel, limit, since, reverse)

    def presence(self, channel: str) -> Deferred[dict[str, Present]]:
        """Who is in a channel, on all shards, by client id."""
        return self._does.presence(channel)

    def presence_stats(self, channel: str) -> Deferred[PresenceStats]:
        """How many are in a channel: ``num_clients`` and ``num_users``."""
        return self._does.presence_stats(channel)

    # -- what it can do: clients ----------------------------------------------------------------------------

    def clients_here(self, channel: str = "") -> list[Client]:
        """The clients of this shard: those that ``connected`` has told of, and ``disconnected`` has not.

        :param channel: only those who are in it; "": all.
        """
        clients = self._does.clients()
        return [client for client in clients if not channel or channel in client.channels]

    # -- what it can do: clients, on any shard --------------------------------------------------------------

    def send(self, data: Any, *, user: str | None = None, client: str = "") -> Deferred[int]:
        """Tell a client, or all connections of a user, something in no channel. Gives how many there are.

        :raises ValueError: at once, unless one of the two is given.
        """
        return self._does.send(data, user, client)

    def send_all(self, data: Any) -> Deferred[int]:
        """The same to all connections of the cluster."""
        return self._does.send_all(data)

    def publish_user(self, user: str, data: Any) -> Deferred[Any]:
        """Publish to a user's personal channel, if there are such; else ``send`` to all of the user's
        connections."""
        return self._does.publish_user(user, data)

    def subscribe(
        self, user: str, channel: str, options: Subscribing | None = None, *, client: str = ""
    ) -> Deferred[int]:
        """Bring the connections of a user into a channel; ``client``: that one alone. Gives how many."""
        return self._does.subscribe(user, channel, options, client)

    def unsubscribe(self, user: str, channel: str = "", *, client: str = "") -> Deferred[int]:
        """Take them out of a channel, or of all."""
        return self._does.unsubscribe(user, channel, client)

    def disconnect(
        self,
        user: str,
        code: int = 4500,
        reason: str = "disconnected by the application",
        *,
        client: str = "",
    ) -> Deferred[int]:
        """End the connections of a user; see ``Disconnect``."""
        return self._does.disconnect(user, code, reason, client)

    # -- what it can do: time -------------------------------------------------------------------------------

    def every(self, seconds: float, method: Callable[[], Any]) -> Handle:
        """Call a method again and again. A method of the app's goes on, over updates, as that of the new one.

        But timers that are made before the app runs, in ``__init__`` and ``import_state``, end with this
        version of it: the next one makes its own, and where they are the same, they keep their times.

        :raises ValueError: less than a millisecond, or more than thirty years.
        :raises RuntimeError: there are ``app.max_timers`` already.
        """
        return self._does.timers.every(self, seconds, method)

    def later(self, seconds: float, method: Callable[..., Any], *args: Any) -> Handle:
        """Call a method once; likewise."""
        return self._does.timers.later(self, seconds, method, args)

    # -- what it can do: other shards -----------------------------------------------------------------------

    def call_shard(self, shard: int | None, method: str, data: Any = None) -> Deferred[Any]:
        """Call a method marked ``@remote`` of the app on another shard, or this one.

        :param shard: its number; ``None``: on all shards, which gives a list of the answers of those that
            have an app with such a method, in no order.
        :param data: plain data, as its answer is.
        :raises TypeError: at once: it is not. The Deferred fails with ``RemoteError`` when the method fails,
            on one shard, or none has it; with ``ShardUnknown``; with ``HubError`` when the hub is away, or
            not all have answered within ``hub.ask_seconds``, which may be less than ``app.hook_seconds``.
        """
        return self._does.call_shard(shard, method, data)

    def call(self, channel: str, command: str, data: Any = None) -> Deferred[Any]:
        """Call a command of the object that a channel has, on whatever shard it is. ``member`` is ``None``
        there, and nobody needs to be in the channel.

        :raises LookupError: at once, if no app has objects for this channel, or it is none. The Deferred
            fails with what the command raises, ``Refuse`` or ``Disconnect``; with ``Refuse`` 100 also when it
            raises anything else, or what became of it is not known.
        """
        return self._does.call_owner(channel, command, data)
