"""Who runs the app of a shard: what sessions see of it (``session.logic.Logic``), and what updates replace.

What an app has is looked up once, when it takes over: a hook that it does not have is ``None`` here, and
sessions do not ask. ``swap`` changes all of it in one turn: hooks, methods that clients and shards may
call, timers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from inspect import iscoroutine
from types import FrameType
from typing import Any, Protocol

from prometheus_client.core import Metric
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from spread.hub.api import Format, Hub
from spread.hub.reactor import Clock
from spread.node import codes
from spread.node.app.app import HOOKS, App
from spread.node.app.client import Client
from spread.node.app.data import (
    Nonsense,
    decoded,
    encoded,
    grant_of,
    moment,
    optional,
    params_of,
    payload_of,
    published_data,
)
from spread.node.app.deeds import KIND, Deeds
from spread.node.app.hooks import Hooks
from spread.node.app.lens import AppLens
from spread.node.app.load import PREFIX, Loaded
from spread.node.app.making import awaited, construct, suspicions
from spread.node.app.marks import Call, calls_of, remotes_of
from spread.node.app.metrics import families
from spread.node.app.timers import Timers
from spread.node.app.update import within
from spread.node.app.values import DROP, Identity, Subscribing, is_text
from spread.node.app.watch import Watch
from spread.node.channels import Channels
from spread.node.clients import Clients
from spread.node.control import Control
from spread.node.namespaces import Namespaces
from spread.node.reactor import Turns
from spread.node.session.logic import Admitted, Answer, Party
from spread.node.session.shared import Ended, Refused
from spread.node.session.subscribing import Grant
from spread.node.settings import AppSettings

__all__ = ["AppHost", "Objects"]


class Objects(Protocol):
    """The stateful channels of this shard, as the host needs them."""

    def command(self, client: Client, channel: str, command: str, data: bytes) -> Answer[Any]:
        """A client calls a command; fails with ``Refused`` or ``Ended``."""
        ...

    def call(self, channel: str, command: str, data: Any) -> Deferred[Any]:
        """The app does."""
        ...

    def entered(self, client: Client, channel: str) -> None:
        """A client has become a member of a channel, whichever."""
        ...

    def left(self, client: Client, channel: str) -> None:
        """It is one no more."""
        ...

    def quiet(self) -> Deferred[None]:
        """See ``AppHost.quiet``."""
        ...

    def resume(self) -> None:
        """See ``AppHost.resume``."""
        ...

    def prepare(self, app: App) -> Any:
        """See ``AppHost.prepare_objects``."""
        ...

    def swap(self, app: App, prepared: Any) -> None:
        """From now on objects are those of ``app``. Never fails."""
        ...

    def start(self) -> None:
        """The app runs."""
        ...

    def retire(self) -> Deferred[None]:
        """Hand all objects over to other shards. Never fails, and takes a few seconds at most."""
        ...

    def stop(self) -> Deferred[None]:
        """All clients have gone. Never fails."""
        ...


class AppHost(Deeds):
    """See the line at the top.

    :param number: that of the shard, once it has one.
    :param channels: those of the shard, which look through the app's eyes; ``None``: they do not.
    :param personal: names the personal channel of a user; ``None``: there are none.
    :param turns: of the reactor, if they are counted; see ``Watch``.
    """

    log = Logger("spread.node.app.host")

    def __init__(
        self,
        clock: Clock,
        settings: AppSettings,
        *,
        hub: Hub,
        control: Control,
        clients: Clients,
        namespaces: Namespaces,
        number: Callable[[], int | None],
        channels: Channels | None = None,
        personal: Callable[[str], str] | None = None,
        turns: Turns | None = None,
    ) -> None:
        super().__init__(hub, control, namespaces, number, personal)
        self.watch = Watch(settings.block_seconds, settings.hook_seconds, turns)
        self.watch.is_team = self._is_team
        self.hooks = Hooks(clock, self.watch, settings.hook_seconds, settings.max_waiting_hooks)
        self.timers = Timers(clock, self._timed, lambda: self._app, settings.max_timers)
        self.objects: Objects | None = None
        """Set once, before the shard starts, if there are any."""
        self.tables: Any = None
        """Likewise."""
        self.connecting: Callable[[Party], Answer[Admitted | None]] | None = None
        self.subscribing: Callable[[Party, str], Answer[Grant | None]] | None = None
        self.publishing: Callable[[Party, str, bytes, Format], Answer[tuple[bytes, Format] | None]] | None = (
            None
        )
        self.message: Callable[[Party, bytes], Answer[None]] | None = None
        self._clock = clock
        self._hook_seconds = settings.hook_seconds
        self._load_seconds = settings.load_seconds
        self._clients = clients
        self._texts: dict[int, Party] = {}  # clients of the text protocol, by number
        self._channels = channels
        self._app: App | None = None
        self._has: frozenset[str] = frozenset()
        self._calls: dict[str, Call] = {}
        self._module = ""
        control.on(KIND, self._called)

    @property
    def app(self) -> App:
        """The one that runs."""
        assert self._app is not None
        return self._app

    def has(self, hook: str) -> bool:
        """The app that runs has this hook."""
        return hook in self._has

    # -- begin, end, and another app ------------------------------------------------------------------------

    def guarded(self, name: str) -> AbstractContextManager[object]:
        """The team's code runs in it; it is ended, with ``TimeoutError``, when it blocks for too long."""
        return self.watch.guarded(name)

    def construct(self, loaded: Loaded) -> App:
        """See ``construct``."""
        return construct(loaded.app_class, self)

    def prepare(self, app: App) -> None:
        """See whether an app can take over. Changes nothing.

        :raises LookupError: a timer would call what it does not have.
        :raises RuntimeError: there would be more than ``app.max_timers``.
        """
        self.timers.check(app)

    def quiet(self) -> Deferred[None]:
        """Fires when no command of an object is under way, or after a while; those that come wait until
        ``resume``. Never fails."""
        return succeed(None) if self.objects is None else self.objects.quiet()

    def resume(self) -> None:
        """Commands go on."""
        if self.objects is not None:
            self.objects.resume()

    def prepare_objects(self, app: App) -> Any:
        """The objects of the old app as the new one has them. Changes nothing.

        :raises Exception: which of them cannot be handed over, and why.
        """
        if self.objects is None:
            return None
        with self.guarded("restore"):
            return self.objects.prepare(app)

    def swap(self, app: App, objects: Any = None) -> None:
        """From now on ``app`` runs. Never fails, since what could has been asked: ``construct``, ``prepare``,
        ``prepare_objects``."""
        kind = type(app)
        self._app = app
        self._module = kind.__module__.partition(".")[0]
        self._has = frozenset(name for name in HOOKS if getattr(kind, name) is not getattr(App, name))
        self._calls = calls_of(kind)
        self._remotes = remotes_of(kind)
        self.connecting = self._connecting if self.has("connecting") else None
        self.subscribing = self._subscribing if self.has("subscribing") else None
        self.publishing = self._publishing if self.has("publishing") else None
        self.message = self._message if self.has("message") else None
        if self.objects is not None:
            self.objects.swap(app, objects)
        if self._channels is not None:
            self._channels.lens = AppLens(self)
        self.timers.begin(app)

    def _is_team(self, frame: FrameType) -> bool:
        """Also the code of an app that is being made, and what is under way in one before."""
        top = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        return top.startswith(PREFIX) or top == self._module

    async def start(self, loaded: Loaded, *, watched: bool = True) -> None:
        """The shard has its number: construct the app, ask whether it may run, let it run.

        :param watched: what blocks is named and ended; else a debugger may stop in it.
        :raises UpdateRefused: ``check`` takes longer than ``app.load_seconds``, or ``starting`` than
            ``app.hook_seconds``.
        :raises Exception: what it raises.
        """
        if watched:
            self.watch.start()
        with self.guarded("__init__"):
            app = self.construct(loaded)
        self._module = type(app).__module__.partition(".")[0]
        for suspicion in suspicions(type(app)):
            self.log.warn("{suspicion}", suspicion=suspicion)
        with self.guarded("check"):
            checked = app.check()
        if await self._in_time("check", checked, self._load_seconds) is False:
            raise RuntimeError("check() has returned False")
        self.swap(app, self.prepare_objects(app))
        if self.has("starting"):
            with self.guarded("starting"):
                started = app.starting()
            await self._in_time("starting", started, self._hook_seconds)
        if self.objects is not None:
            self.objects.start()

    def _in_time(self, name: str, answer: Any, seconds: float) -> Deferred[Any]:
        """:raises UpdateRefused: (as a failure) it takes longer, and is cancelled."""
        waiting = Deferred.fromCoroutine(awaited(answer))
        return within(self._clock, waiting, seconds, f"{name}()", lambda: self.guarded(name))

    async def stop(self) -> None:
        """The shard stops. Never fails, and takes ``app.hook_seconds`` and a few more at most."""
        if self._app is not None and self.has("stopping"):
            try:
                answer = self.hooks.call("stopping", None, self._app.stopping)
                if isinstance(answer, Deferred):
                    await answer
            except (Refused, Ended):
                self.log.debug("the app has not stopped cleanly")
        if self.objects is not None:
            await self.objects.retire()

    def end(self) -> Deferred[None]:
        """All clients have gone: no timers, nothing to look at. Never fails. Idempotent."""
        self.timers.stop()
        self.watch.stop()
        return succeed(None) if self.objects is None else self.objects.stop()

    # -- for sessions: logic.Logic --------------------------------------------------------------------------

    def client(self, party: Party) -> Client:
        """What the app knows a session by."""
        known = party.app_client
        if known is None:
            known = party.app_client = Client(party, self)
        client: Client = known
        return client

    def arrived(self, party: Party, data: bytes) -> None:
        """See ``Logic``."""
        if party.protocol == "text":
            self._texts[party.number] = party
        elif data:
            party.app_client = Client(party, self, data)

    def connected(self, party: Party) -> None:
        """See ``Logic``."""
        if party.protocol == "text":
            self._clients.enter(party)
        client = self.client(party)
        client.was_told = True
        if self.has("connected"):
            self.hooks.notify("connected", client, self.app.connected, client)

    def disconnected(self, party: Party, reason: str) -> None:
        """See ``Logic``."""
        if party.protocol == "text":
            self._clients.leave(party)
            self._texts.pop(party.number, None)
        client: Client | None = party.app_client
        if client is not None and client.was_told:
            client.was_told = False
            if self.has("disconnected"):
                self.hooks.notify("disconnected", client, self.app.disconnected, client, reason)

    def subscribed(self, party: Party, channel: str) -> None:
        """See ``Logic``."""
        if channel not in party.channels:
            return  # it has left since: a hook has done that, or there was no room for the reply
        if self.objects is not None:
            self.objects.entered(self.client(party), channel)
        if self.has("subscribed"):
            client = self.client(party)
            self.hooks.notify("subscribed", client, self.app.subscribed, client, channel)

    def unsubscribed(self, party: Party, channel: str) -> None:
        """See ``Logic``."""
        client = self.client(party)
        client.where.pop(channel, None)
        if self.objects is not None:
            self.objects.left(client, channel)
        if self.has("unsubscribed"):
            self.hooks.notify("unsubscribed", client, self.app.unsubscribed, client, channel)

    def _connecting(self, party: Party) -> Answer[Admitted | None]:
        client = self.client(party)
        return self.hooks.call("connecting", client, self.app.connecting, client, convert=self._admitted)

    def _admitted(self, value: Any) -> Admitted | None:
        """:raises Nonsense: it is no identity, or something in it is nonsense."""
        if value is None:
            return None
        if not isinstance(value, Identity):
            raise Nonsense("connecting", value, "an Identity or None")
        if not isinstance(value.user, str) or not is_text(value.user):
            raise Nonsense("Identity.user", value.user, "a text")
        if isinstance(value.channels, str | bytes):
            raise Nonsense("Identity.channels", value.channels, "several channels, not one text")
        channels = tuple(value.channels)
        for channel in channels:
            if not isinstance(channel, str) or not channel or not is_text(channel):
                raise Nonsense("Identity.channels", channel, "the names of channels")
            if self._namespaces.is_too_long(channel) or self._namespaces.options(channel) is None:
                raise Nonsense("Identity.channels", channel, "channels of namespaces that there are")
        return Admitted(
            user=value.user,
            info=optional(value.info, "Identity.info"),
            expire_at=moment(value.expire_at, "Identity.expire_at"),
            channels=channels,
            data=optional(value.data, "Identity.data"),
        )

    def _subscribing(self, party: Party, channel: str) -> Answer[Grant | None]:
        client = self.client(party)
        return self.hooks.call("subscribing", client, self.app.subscribing, client, channel, convert=_granted)

    def _publishing(
        self, party: Party, channel: str, data: bytes, format: Format
    ) -> Answer[tuple[bytes, Format] | None]:
        client = self.client(party)
        given = payload_of(data, format)

        def chosen(value: Any) -> tuple[bytes, Format] | None:
            if value is DROP:
                return None
            if value is None and given is not None:
                raise Nonsense("publishing", value, "the data to publish, or DROP")
            return published_data(value, given, data, format)

        return self.hooks.call(
            "publishing", client, self.app.publishing, client, channel, given, convert=chosen
        )

    def _message(self, party: Party, data: bytes) -> Answer[None]:
        client = self.client(party)
        answer: Answer[None] = self.hooks.call(
            "message", client, self.app.message, client, decoded(data), convert=_nothing
        )
        return answer

    def rpc(self, party: Party, method: str, data: bytes) -> Answer[bytes]:
        """See ``Logic``."""
        call = self._calls.get(method)
        client = self.client(party)
        if call is None:
            channel, slash, command = method.rpartition("/")
            if not slash or self.objects is None:
                raise Refused(codes.METHOD_NOT_FOUND)
            answer = self.objects.command(client, channel, command, data)
            result = partial(encoded, what=f"the command {command}")
            return answer.addCallback(result) if isinstance(answer, Deferred) else result(answer)
        function = partial(call.function, self.app, client)
        arguments = (params_of(call, data),) if call.has_params else ()
        return self.hooks.call(
            f"rpc {method}", client, function, *arguments, convert=partial(encoded, what=f"the rpc {method}")
        )

    # -- timers, and what others tell ------------------------------------------------------------------------

    def _timed(self, name: str, function: Callable[..., Any], *args: Any) -> Deferred[Any] | None:
        try:
            answer = self.hooks.call(f"timer {name}", None, function, *args)
        except (Refused, Ended):
            return None
        return answer.addErrback(lambda failure: None) if isinstance(answer, Deferred) else None

    def call(
        self,
        hook: str,
        client: Client | None,
        function: Callable[..., Any],
        *args: Any,
        convert: Callable[[Any], Any] | None = None,
    ) -> Answer[Any]:
        """See ``Hooks.call``."""
        return self.hooks.call(hook, client, function, *args, convert=convert)

    def notify(self, hook: str, client: Client | None, function: Callable[..., Any], *args: Any) -> None:
        """See ``Hooks.notify``."""
        self.hooks.notify(hook, client, function, *args)

    def tell(self, hook: str, channel: str) -> None:
        """``occupied`` or ``vacated``, if the app has such a hook."""
        if self.has(hook):
            self.hooks.notify(hook, None, getattr(self.app, hook), channel)

    def metrics(self) -> Iterator[Metric]:
        """For Prometheus."""
        yield from families(self.hooks, self.watch.blocks, len(self.timers.all))

    def view_of(self, client: Client, channel: str) -> Hashable | None:
        """What ``App.view`` says.

        :raises Refused: it refuses, or is nonsense; or ``Ended``.
        """
        # A Deferred is given to ``_key``, and no answer.
        wrapped = self.hooks.call(
            "view", client, lambda: (self.app.view(client, channel),), convert=lambda given: _key(given[0])
        )
        view: Hashable | None = wrapped
        return view

    def view_changed(self, client: Client, channel: str, key: Hashable) -> None:
        """See ``Client.set_view``."""
        if self._channels is not None and channel in client.channels:
            self._channels.set_view(client.number, channel, key)

    # -- calls between shards: see Deeds.call_shard ---------------------------------------------------------

    def _run_remote(self, call: Call, data: Any) -> Answer[Any]:
        function = partial(call.function, self.app)
        return self.hooks.call(f"remote {call.name}", None, function, *((data,) if call.has_params else ()))

    # -- clients, for whoever asks by number: a Lens ---------------------------------------------------------

    def client_of(self, number: int) -> Client | None:
        """The client whose session has this number; ``None``: there is none."""
        session: Party | None = self._clients.sessions.get(number)
        if session is None:
            session = self._texts.get(number)
        return None if session is None else self.client(session)

    def clients(self) -> Iterator[Client]:
        """All who are connected here."""
        for session in [*self._clients.sessions.values(), *self._texts.values()]:
            client = self.client(session)
            if client.was_told:
                yield client


def _granted(value: Any) -> Grant | None:
    if value is None:
        return None
    if not isinstance(value, Subscribing):
        raise Nonsense("subscribing", value, "a Subscribing or None")
    return grant_of(value)


def _key(value: Any) -> Hashable | None:
    if iscoroutine(value):
        value.close()
    if isinstance(value, Deferred):
        value.addErrback(lambda failure: None)
    if isinstance(value, Deferred) or iscoroutine(value) or not _is_hashable(value):
        raise Nonsense("view", value, "at once what can be a key of a dictionary")
    view: Hashable | None = value
    return view


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _nothing(value: Any) -> None:
    return None
