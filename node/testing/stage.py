"""The stage on which an app is tested: one or more shards in memory, and a clock that moves when it is told.

What it promises:

1.  *Real parts.* Sessions, channels, fan-out, limits and hooks are those of a shard; there are no ports,
    and the hub is the one in memory.
2.  *No time of its own.* Whatever is due is done when a call returns; else time passes in ``advance`` alone.
3.  *Nothing is overlooked.* What goes wrong in the app, and is only logged by a shard, fails the test at the
    end, unless the test took it from ``errors``.

Not here: the watch that ends hooks which block, so a debugger may stop in one.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from itertools import count
from types import TracebackType
from typing import Any, cast

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, globalLogPublisher
from twisted.python.failure import Failure

from spread.hub.api import Load, ShardIdentity
from spread.hub.memory import Exchange, MemoryHub
from spread.node.app.app import App
from spread.node.app.host import AppHost
from spread.node.app.load import Loaded
from spread.node.app.update import Updater, UpdateRefused
from spread.node.channels import Channels
from spread.node.codes import SHUTDOWN
from spread.node.config import load
from spread.node.cork import Cork
from spread.node.edge.text import TextFactory
from spread.node.fanout import Fanout
from spread.node.gateway import Gateway
from spread.node.limits import Admission
from spread.node.live_tables import LiveTables
from spread.node.metrics import ShardCounters
from spread.node.namespaces import Namespaces
from spread.node.owners.owned import Owned
from spread.node.owners.owners import RETIRE_SECONDS
from spread.node.pressure import Pressure
from spread.node.session.surroundings import Surroundings
from spread.node.settings import Settings
from spread.node.tables import TABLES_CHANNEL, Tables
from spread.node.testing.client import FakeClient, NoAnswer
from spread.node.testing.text import FakeTextClient

__all__ = ["AppErrors", "Shard", "Stage"]

TURNS_MAX = 10_000
"""Of the clock without any time between them; whatever goes on after that never ends."""

Config = Mapping[str, Any] | Settings | str | os.PathLike[str] | None


class AppErrors(AssertionError):
    """Something went wrong in the app, and the test did not look; the text says what."""


class _Loader:
    """Gives an app class that is there already, as what imports one does."""

    def __init__(self) -> None:
        self.loaded: Loaded | None = None

    def load(self, spec: str, generation: int) -> Deferred[Loaded]:
        assert self.loaded is not None
        return succeed(self.loaded)


class Shard:
    """All of a shard but its ports."""

    def __init__(
        self, clock: Clock, exchange: Exchange, settings: Settings, number: int, app_class: type[App]
    ) -> None:
        self.number = number
        incarnation = f"{number + 1:016x}"
        self.hub = MemoryHub(exchange, incarnation)
        self.counters = ShardCounters()
        self.channels = Channels(self.hub, self.counters)
        self._cork = Cork(clock, clock.seconds, settings.node.fanout_seconds)
        pressure = Pressure(clock, self.hub, self.counters)
        personal = settings.client.subscribe_to_user_personal_channel
        namespaces = Namespaces(settings.channel, personal.personal_channel_namespace)
        self.has_ended = False
        self.tables: LiveTables | None = None
        if settings.app.tables:
            history = namespaces.options(TABLES_CHANNEL)
            self.tables = LiveTables(
                clock,
                Tables(settings.app.tables),
                settings.app.tables,
                hub=self.hub,
                history=None if history is None else history.history,
                counters=self.counters,
                max_bytes=settings.app.tables_max_bytes,
                in_thread=maybeDeferred,
            )
        numbers = count(1)
        admission = Admission(settings.node.max_clients, settings.node.max_clients_per_address)
        self.gateway = Gateway(
            clock,
            settings,
            hub=self.hub,
            channels=self.channels,
            namespaces=namespaces,
            pressure=pressure,
            counters=self.counters,
            cork=self._cork,
            admission=admission,
            numbers=numbers,
            incarnation=incarnation,
            version="0",
            number=lambda: number,
            tables=self.tables,
            has_app=True,
            steady=clock.seconds,
        )
        self._fanout = Fanout(
            clock,
            clock.seconds,
            hub=self.hub,
            channels=self.channels,
            cork=self._cork,
            pressure=pressure,
            counters=self.counters,
            answer=self.gateway.control.answer,
            incarnation=bytes.fromhex(incarnation),
            slice_seconds=settings.node.fanout_seconds,
            inbox_max_bytes=settings.node.inbox_max_bytes,
        )
        assert self.gateway.app is not None
        self.host: AppHost = self.gateway.app
        surroundings = Surroundings(
            clock,
            self.hub,
            self.channels,
            pressure,
            self.counters,
            settings.text,
            settings.hub,
            namespaces,
            self.host,
        )
        self.text = TextFactory(surroundings, admission, self._cork, numbers, settings.node.outbox_max_bytes)
        self._loaded = _loaded(app_class)
        self._loader = _Loader()
        self._updater = Updater(
            clock,
            self.host,
            self._loader,
            self._loaded,
            f"{app_class.__module__}:{app_class.__qualname__}",
            settings.app.load_seconds,
            state_max_bytes=settings.app.state_max_bytes,
        )

    async def start(self) -> None:
        """As ``shard.Shard.start``."""
        await self.hub.start(self._fanout)
        identity = ShardIdentity(
            incarnation=f"{self.number + 1:016x}", host="stage", pid=0, machine="", started="", version="0"
        )
        await self.hub.claim(self.number, identity)
        await self.host.start(self._loaded, watched=False)
        self.hub.enter(self._load, lambda incumbent: None)
        if self.tables is not None:
            self.tables.start()

    def _load(self) -> Load:
        return Load(clients=self.counters.clients, channels=len(self.channels), addresses={}, ready=True)

    async def update(self, app_class: type[App]) -> None:
        """:raises UpdateRefused: with what is wrong."""
        self._loader.loaded = _loaded(app_class)
        outcome = await self._updater.update()
        if not outcome.ok:
            raise UpdateRefused(outcome.error)

    async def stop(self) -> None:
        """As ``shard.Shard.stop``."""
        await self.host.stop()
        self.text.stop_reading()
        self.gateway.close()
        self.text.say_goodbye(self.number)
        self.gateway.end_all(SHUTDOWN)

    def end(self) -> None:
        """Nothing goes on. Idempotent."""
        self.has_ended = True
        if self.tables is not None:
            self.tables.stop()
        self.gateway.stop()
        self.text.cut_all()
        self.host.end()
        self.hub.stop()

    def die(self) -> None:
        """As if its process had been killed: nobody is told, and nothing of the app runs any more."""
        self.hub.stop()
        self.host._has = frozenset()
        self.end()

    @property
    def objects(self) -> dict[str, Owned]:
        """The objects that are here, by channel."""
        return {} if self.gateway.owners is None or self.has_ended else self.gateway.owners.objects


class Stage:
    """Use it in a ``with``; it begins and ends there.

    :param app_class: the app.
    :param config: settings: a mapping of sections, as a configuration file has them; the path of such a file;
        or ``Settings``. ``None``: as a shard without a file. What it says of ports, hubs and the name of the
        app is passed over.
    :param tables: a directory; "": that of the settings, if they have one.
    :param shards: how many.
    :raises ConfigError: something is wrong with the settings.
    :raises TypeError: that is no class of an app.
    """

    def __init__(
        self, app_class: type[App], config: Config = None, *, tables: str = "", shards: int = 1
    ) -> None:
        if not (isinstance(app_class, type) and issubclass(app_class, App)):
            raise TypeError(f"a stage is for a subclass of spread.node.App, not for {app_class!r}")
        if shards < 1:
            raise ValueError("a stage has one shard or more")
        self.settings = settings = _settings(config, tables)
        self.clock = Clock()
        self.clients: list[FakeClient | FakeTextClient] = []
        self.errors: list[str] = []
        """What has gone wrong in the app so far, as a shard logs it. Clear it, if it was to be expected."""
        self.exchange = Exchange(self.clock, publish_seconds=settings.hub.publish_seconds)
        """What the hubs of the shards share: ``cut`` takes it away, ``restore`` gives it back."""
        self.shards = [Shard(self.clock, self.exchange, settings, each, app_class) for each in range(shards)]

    def __enter__(self) -> Stage:
        globalLogPublisher.addObserver(cast(Any, self._observe))
        try:
            for shard in self.shards:
                self.wait(Deferred.fromCoroutine(shard.start()), self.hook_seconds)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for shard in self.shards:
                if not shard.has_ended:
                    self.wait(Deferred.fromCoroutine(shard.stop()), self.stop_seconds)
        finally:
            self._end()
        if error is None and self.errors:
            raise AppErrors("\n".join(self.errors))
        if error is not None and self.errors:
            error.add_note("\n".join(["What went wrong in the app:", *self.errors]))

    def _end(self) -> None:
        for shard in self.shards:
            shard.end()
        self.settle()
        globalLogPublisher.removeObserver(cast(Any, self._observe))

    @property
    def hook_seconds(self) -> float:
        """How long a hook may take."""
        return self.settings.app.hook_seconds

    @property
    def stop_seconds(self) -> float:
        """How long a shard may take to stop: its app, and objects that are handed over."""
        return self.hook_seconds + RETIRE_SECONDS + 1.0

    # -- who is on it ---------------------------------------------------------------------------------------

    def app(self, shard: int = 0) -> Any:
        """The app that runs on a shard."""
        return self.shards[shard].host.app

    def client(
        self,
        *,
        user: str = "",
        token: str = "",
        data: Any = None,
        shard: int = 0,
        transport: str = "websocket",
    ) -> FakeClient:
        """A client that has connected.

        :param user: who it is, as if a token said so; "": who it says it is (``token``), or nobody.
        :param data: for the app: ``client.data``.
        :raises Refused: ``connecting`` has refused it.
        :raises Closed: so has the shard, or the app has with ``Disconnect``.
        """
        client = FakeClient(self, self._living(shard), user, transport)
        self.clients.append(client)
        client.connect(token, data)
        return client

    def text_client(self, *, shard: int = 0) -> FakeTextClient:
        """A client of the text protocol, as ``nc`` is one; it is in the channel ``text.channel``.

        Whether it was let in, its ``lines`` say.
        """
        client = FakeTextClient(self, self._living(shard))
        self.clients.append(client)
        self.settle()
        return client

    def owner(self, channel: str) -> int | None:
        """The number of the shard that owns a channel (``@owns``); ``None``: no shard does just now."""
        return next((shard.number for shard in self.shards if channel in shard.objects), None)

    def owned(self, channel: str) -> Any:
        """The object that a channel has, to look at it.

        :raises LookupError: it has none just now.
        """
        for shard in self.shards:
            if channel in shard.objects:
                return shard.objects[channel]
        raise LookupError(f"no shard has an object for {channel!r}; see App.objects, and who is in there")

    def _living(self, number: int) -> Shard:
        if not 0 <= number < len(self.shards):
            raise LookupError(f"there are shards 0 to {len(self.shards) - 1}, and no {number}")
        shard = self.shards[number]
        if shard.has_ended:
            raise LookupError(f"shard {number} has ended")
        return shard

    # -- what becomes of shards -----------------------------------------------------------------------------

    def kill(self, shard: int) -> None:
        """Let a shard die as by SIGKILL: its clients are cut off, its app is told nothing.

        The others find out within 1.5 s; ``advance`` so far to see another one take over its channels.
        """
        self._living(shard).die()
        self.settle()

    def stop(self, shard: int) -> None:
        """Let a shard stop as by SIGTERM: it hands its channels over, and says goodbye to its clients."""
        ending = self._living(shard)
        self.wait(Deferred.fromCoroutine(ending.stop()), self.stop_seconds)
        ending.end()
        self.settle()

    def update(self, app_class: type[App]) -> None:
        """Let a newer version of the app take over on all shards, as ``spread reload`` does.

        :raises UpdateRefused: the old one goes on.
        """
        for shard in self.shards:
            if not shard.has_ended:
                self.wait(Deferred.fromCoroutine(shard.update(app_class)), self.settings.app.load_seconds)

    # -- time -----------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass, one thing after the other, and all happen that is due."""
        self.advance_until(lambda: False, seconds)

    def advance_until(self, condition: Callable[[], object], seconds: float) -> bool:
        """The same, until something holds; ``False``: it does not within this time."""
        end = self.clock.seconds() + seconds
        while True:
            self.settle()
            if condition():
                return True
            if self.clock.seconds() >= end:
                return False
            self.clock.rightNow = min(self._due(), end)

    def settle(self) -> None:
        """Do all that is due now. Every call of a client does it."""
        for _ in range(TURNS_MAX):
            self.clock.advance(0)
            heard = [client.listen() for client in list(self.clients)]
            if not any(heard) and self._due() > self.clock.seconds():
                return
        raise RuntimeError(f"it never ends: {self.clock.getDelayedCalls()}")

    def _due(self) -> float:
        """When the next thing is to be done."""
        calls: Any = self.clock.getDelayedCalls()  # typed as an interface, whose methods have no self
        return min((float(call.getTime()) for call in calls), default=math.inf)

    def wait(self, answer: Deferred[Any] | Any, seconds: float = 0.0) -> Any:
        """What a Deferred or coroutine comes to, such as one that the app gives.

        :raises NoAnswer: nothing within these seconds.
        :raises Exception: what it fails with.
        """
        if not isinstance(answer, Deferred):
            answer = Deferred.fromCoroutine(answer)
        outcome: list[Any] = []
        answer.addBoth(outcome.append)
        if not self.advance_until(lambda: outcome, seconds):
            raise NoAnswer(f"{answer} has not fired after {seconds:g} s of the stage's clock")
        if isinstance(outcome[0], Failure):
            outcome[0].raiseException()
        return outcome[0]

    # -- what goes wrong ------------------------------------------------------------------------------------

    def _observe(self, event: LogEvent) -> None:
        failure = event.get("log_failure")
        if failure is not None:
            self.errors.append(failure.getTraceback())
        elif event["log_level"] is LogLevel.error and _is_of_hooks(event):
            self.errors.append("{hook}{of}: {text}{more}".format(**event))


def _is_of_hooks(event: LogEvent) -> bool:
    return str(event.get("log_namespace")).startswith("spread.node.app.hooks")


def _loaded(app_class: type[App]) -> Loaded:
    return Loaded(app_class=app_class, version=app_class.version or "stage", modules=(), generation=0)


def _settings(config: Config, tables: str) -> Settings:
    flags: dict[str, str | bool] = {"app.tables": tables} if tables else {}
    if isinstance(config, Settings):
        return config
    if not isinstance(config, Mapping):
        return load(file=None if config is None else os.fspath(config), environ={}, flags=flags)
    # By way of a file, so that all is checked as a shard would.
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        return load(file=file.name, environ={}, flags=flags)
