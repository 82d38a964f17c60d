"""What is measured: the workloads, and the cases that some options make of them. Values only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

from spread.client.bench.cluster import HISTORY, Cluster
from spread.client.bench.errors import BadRequest
from spread.client.bench.protocol import Opening, Run

__all__ = ["CLIENTS_FOR_SOURCE", "Case", "Format", "Options", "Workload", "cases"]

PLAIN = "bench-"
"""What channels that keep nothing begin with."""

CLIENTS_FOR_SOURCE = 20_000
"""Connections from one source address to one address; Linux has ports for 28,232."""

_SPARE_FILES = 100


class Workload(Enum):
    """By the name on the command line; the value is the other name."""

    W1 = "broadcast"
    """One channel, many subscribers, one publisher."""
    W2 = "rooms"
    """Many channels with a few members each, who publish in turn."""
    W3 = "paced"
    """W1 at a fixed rate, for latency."""
    W4 = "idle"
    """Connect, subscribe, say nothing."""
    W5 = "across"
    """W1 with the publisher on one shard and the subscribers on the others."""

    @property
    def title(self) -> str:
        return f"{self.name} {self.value}"


class Format(Enum):
    """How the clients speak."""

    TEXT = "text"
    JSON = "json"
    PROTOBUF = "protobuf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of the command, checked; ``None``: what the workload has by itself."""

    workloads: tuple[Workload, ...] = tuple(Workload)
    formats: tuple[Format, ...] = tuple(Format)
    histories: tuple[bool, ...] = (False, True)
    shards: int | None = None
    payload: int = 128
    seconds: float = 2.0
    warm: float = 0.5
    repeat: int = 5
    subscribers: int | None = None
    channels: int = 500
    members: int = 4
    in_flight: tuple[int, ...] | None = None
    rate: float = 20_000.0
    token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the result."""

    workload: Workload
    format: Format
    history: bool
    shards: int
    rooms: int
    members: int
    groups: int
    """See ``protocol``; as many as rooms, but in a sweep with many channels a client."""
    payload: int
    in_flight: int = 0
    rate: float = 0.0
    """Deliveries a second; 0: as ``in_flight`` says."""
    token: str = ""
    idle_clients: int = 0
    """Connected besides, in a channel of their own."""
    label: str = ""
    """What is special about it, in a sweep."""

    @property
    def is_text(self) -> bool:
        return self.format is Format.TEXT

    @property
    def is_idle(self) -> bool:
        return self.workload is Workload.W4

    @property
    def kind(self) -> str:
        return "history" if self.history else "plain"

    @property
    def name(self) -> str:
        parts = [self.workload.name, self.format.value, self.kind]
        if self.in_flight:
            parts.append(f"K={self.in_flight}")
        if self.label:
            parts.append(self.label)
        return " ".join(parts)

    @property
    def batching_matters(self) -> bool:
        """Whether a loop that sends several messages in one ``send()`` would do better than one that does
        not: one publisher, and several messages in flight."""
        return self.in_flight > 1 and not self.members_publish

    @property
    def members_publish(self) -> bool:
        return self.workload is Workload.W2

    @property
    def has_echo(self) -> bool:
        """With an SDK one hears what one said; over the text protocol one does not."""
        return not self.is_text

    @property
    def files(self) -> int:
        """Open files of a process that holds all connections."""
        return self.members * self.groups + self.idle_clients + _SPARE_FILES

    def opening(self, cluster: Cluster) -> Opening:
        """The clients, for the generator."""
        at = cluster.addresses(self.is_text)
        publish_at = at[:1]
        if self.workload is Workload.W5:
            at = at[1:]
        clients = self.members * self.groups
        channel = HISTORY if self.history else PLAIN
        return Opening(
            format=self.format.value,
            rooms=self.rooms,
            members=self.members,
            groups=self.groups,
            members_publish=self.members_publish or self.is_idle,  # idle: nobody publishes
            echo=self.has_echo,
            probes=not self.is_idle,
            payload=self.payload,
            at=at,
            publish_at=publish_at,
            # Text clients are in a channel from the beginning. To have moved to another makes them cost more,
            # some 6 % a delivery.
            channel="" if self.is_text and self.rooms == 1 and not self.history else channel,
            token=self.token,
            sources=1 + clients // len(at) // CLIENTS_FOR_SOURCE,
            # 2,000 connections or subscriptions a second take half of that.
            timeout=30.0 + self.rooms * self.members / 1000,
        )

    def loop_opening(self, at: str, frame_bytes: float) -> Opening:
        """The same clients for the bare loop, with as many bytes a delivery.

        :param at: where it listens.
        :param frame_bytes: of a delivery of the server.
        """
        payload = max(32, round(frame_bytes) - 1)  # less the end of the line
        opening = self.opening(Cluster(text=(at, at), http=(at, at)))
        return replace(opening, format="lines", payload=payload, at=(at,), publish_at=(at,))

    def idle_opening(self, cluster: Cluster) -> Opening:
        """The clients that are there besides."""
        alone = replace(self, workload=Workload.W4, rooms=1, groups=1, members=self.idle_clients)
        return replace(alone.opening(cluster), channel=f"{PLAIN}idle-")

    def run(self, options: Options, pids: Iterable[int]) -> Run:
        """What is published, for the generator.

        :param pids: the processes that are measured.
        """
        return Run(
            in_flight=self.in_flight,
            per_second=self.rate / self.fan_out,
            warm=options.warm,
            seconds=options.seconds,
            pids=tuple(pids),
        )

    @property
    def fan_out(self) -> int:
        """Deliveries of one message."""
        return self.members - (self.members_publish and not self.has_echo)


def cases(options: Options) -> tuple[Case, ...]:
    """What is measured, in order.

    :raises BadRequest: the options do not fit together.
    """
    return tuple(_checked(case) for case in _cases(options))


def _cases(options: Options) -> Iterator[Case]:
    for workload in options.workloads:
        for format in options.formats:
            for history in options.histories:
                yield from _cases_of(options, workload, format, history)


def _cases_of(options: Options, workload: Workload, format: Format, history: bool) -> Iterable[Case]:
    case = Case(
        workload=workload,
        format=format,
        history=history,
        shards=options.shards or (2 if workload in (Workload.W2, Workload.W5) else 1),
        rooms=1,
        groups=1,
        members=options.subscribers or (5000 if workload is Workload.W4 else 1000),
        payload=options.payload,
        token=options.token,
    )
    if workload is Workload.W4:
        return [case]
    if workload is Workload.W3:
        return [replace(case, rate=options.rate)]
    in_flight = options.in_flight or (1, 16)
    if workload is Workload.W2:
        case = replace(case, rooms=options.channels, groups=options.channels, members=options.members)
        in_flight = options.in_flight or (64,)
    return [replace(case, in_flight=each) for each in in_flight]


def _checked(case: Case) -> Case:
    if case.workload is Workload.W5 and case.shards < 2:
        raise BadRequest(
            "W5 needs two shards or more: its publisher is on one, its subscribers on the others"
        )
    if case.fan_out < 1:
        raise BadRequest("--members 1 with --format text: nobody would hear a message")
    return case
