"""Shards of a city that run an app: real sessions, a memory hub, and a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from twisted.internet.defer import succeed
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from spread.hub.api import Load
from spread.node.app.app import App
from spread.node.app.host import AppHost
from spread.node.app.load import Loaded
from spread.node.outbox import Outbox
from spread.node.session.text import Session, Surroundings
from spread.node.settings import AppSettings, ChannelSettings, HubSettings, TextSettings
from tests.fakes import FakeEdge, FakeTransport, identity
from tests.node.people import City

__all__ = ["KINDS", "Cast", "TextPerson", "Troupe", "answered", "log_of"]

KINDS = ("value", "deferred", "async")
"""How a hook may answer."""


def answered(kind: str, answer: Callable[[], Any]) -> Any:
    """What ``answer`` gives or raises, in one of ``KINDS``."""
    if kind == "value":
        return answer()
    if kind == "deferred":
        return succeed(None).addCallback(lambda _: answer())

    async def step() -> Any:
        await succeed(None)
        return answer()

    return step()


class Cast(App):
    """An app that notes what it is told, and whose hooks a test sets."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def connected(self, client: Any) -> None:
        self.told.append(("connected", client.id))

    def disconnected(self, client: Any, reason: str) -> None:
        self.told.append(("disconnected", client.id, reason))

    def subscribed(self, client: Any, channel: str) -> None:
        self.told.append(("subscribed", client.id, channel))

    def unsubscribed(self, client: Any, channel: str) -> None:
        self.told.append(("unsubscribed", client.id, channel))


def loaded(app_class: type[App]) -> Loaded:
    return Loaded(app_class, "1", (), 0)


def _load() -> Load:
    return Load(clients=0, channels=0, addresses={}, ready=True)


class Troupe:
    """A city whose shards all run this app.

    :param app: settings of the section ``app`` that are not the defaults.
    """

    def __init__(
        self,
        app_class: type[App],
        channels: ChannelSettings | None = None,
        shards: int = 1,
        app: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        **client: Any,
    ) -> None:
        self.city = City(channels, shards, **client)
        self.hosts: list[AppHost] = []
        self.texts: list[Surroundings] = []
        for number, shard in enumerate(self.city.shards):
            host = AppHost(
                self.city.clock,
                AppSettings(**(app or {})),
                hub=shard.hub,
                control=shard.control,
                clients=shard.clients,
                namespaces=self.city.namespaces,
                number=lambda number=number: number + 1,  # type: ignore[misc]
                channels=shard.channels,
            )
            host.swap(host.construct(loaded(app_class)))
            shard.shared = shard.clients.shared = replace(shard.shared, logic=host)
            self.hosts.append(host)
            self.texts.append(
                Surroundings(
                    self.city.clock,
                    shard.hub,
                    shard.channels,
                    shard.pressure,
                    shard.counters,
                    TextSettings(**{"greeting": "hi {number}", "goodbye": "bye {shard}", **(text or {})}),
                    HubSettings(publish_seconds=5.0),
                    self.city.namespaces,
                    host,
                )
            )
            shard.hub.claim(number + 1, identity(f"{number + 1:016x}"))
            shard.hub.enter(_load, lambda incumbent: None)

    @property
    def host(self) -> AppHost:
        return self.hosts[0]

    @property
    def app(self) -> Any:
        return self.hosts[0].app

    def turn(self, seconds: float = 0.0) -> None:
        self.city.turn(seconds)

    def guest(self, shard: int = 0, **connect: Any) -> Any:
        return self.city.guest(shard, **connect)

    def text(self, shard: int = 0) -> TextPerson:
        """Someone of the text protocol; greeted already, if the app does not mind."""
        person = TextPerson(self, shard)
        self.turn()
        return person

    def client(self, person: Any, shard: int = 0) -> Any:
        """The app's ``Client`` of a session."""
        return self.hosts[shard].client(person.session)

    def swap(self, app_class: type[App], shard: int = 0) -> Any:
        """Another version takes over."""
        host = self.hosts[shard]
        app = host.construct(loaded(app_class))
        host.prepare(app)
        host.swap(app)
        return app

    def result(self, asked: Any) -> Any:
        """What something comes to; raises what it fails with."""
        got: list[Any] = []
        asked.addBoth(got.append)
        self.turn()
        assert len(got) == 1, "not answered"
        if hasattr(got[0], "raiseException"):
            got[0].raiseException()
        return got[0]


class TextPerson:
    """A client of the text protocol."""

    def __init__(self, troupe: Troupe, shard: int) -> None:
        self.edge: Any = FakeEdge()
        self.transport = FakeTransport()
        of_shard = troupe.city.shards[shard]
        outbox = Outbox(self.transport, of_shard.cork, 1 << 20, lambda: None)
        self.session = self.edge.session = Session(
            next(of_shard.clients._numbers), self.edge, outbox, troupe.texts[shard]
        )
        self.session.open()
        self._seen = 0

    def says(self, *lines: bytes) -> None:
        self.session.received(list(lines))

    @property
    def heard(self) -> list[str]:
        """The lines that have come since this was last asked."""
        self.session.outbox.flush()
        new = self.transport.taken[self._seen :]
        self._seen = len(self.transport.taken)
        return new.decode().splitlines()


@contextmanager
def log_of(namespace: str = "spread.node.app") -> Iterator[list[str]]:
    """The lines that are logged meanwhile, of the namespaces that begin so; failures, whoever logs them."""
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        if "log_failure" in event:
            lines.append(event["log_failure"].getTraceback())
        elif str(event.get("log_namespace", "")).startswith(namespace):
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(observe)
