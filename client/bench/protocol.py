"""What a load generator is told, and what it answers: lines on its standard input and output.

Commands are a word and ``name=value`` pairs; no value has a space in it:

    open format=json rooms=1 members=1000 …    connect all clients (``Opening``); what was open is closed
    run in_flight=16 warm=0.5 seconds=2 …      publish, and measure (``Run``)
    close                                      close all connections

Answers are objects of JSON, one a line, told apart by ``event``. An ``open`` is answered by ``opened``, and
with ``probes=1`` also by ``heard``, once every member of every room has heard a probe of its publishers. A
``run`` is answered by ``begin`` when the measuring begins, and by ``result`` when it has ended and all
deliveries have come or are given up. A ``close`` is answered by ``closed``. Instead of any of them, once,
``failed`` may come; after that only ``close`` and ``open`` are taken.

Who is connected: rooms are numbered from 0, and each has ``members`` clients. A client is member *m* of the
rooms *g*, *g + groups*, *g + 2 groups*…; so there are ``members * groups`` clients, and with ``groups`` equal
to ``rooms`` each is in one room. They connect to the addresses ``at`` in turn, so that neighbours in a room
are on different shards. The members publish, room after room and member after member; or one client of its
own does, connected to ``publish_at``.

Messages in flight: while fewer deliveries are outstanding than ``in_flight`` messages would bring, another is
published. With ``per_second``, messages are published when they are due, whatever is outstanding, and latency
counts from then.

The generator ends with its standard input.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import msgspec

__all__ = [
    "Begin",
    "Closed",
    "Event",
    "Failed",
    "Heard",
    "Opened",
    "Opening",
    "Quantiles",
    "Result",
    "Run",
    "event_of",
    "words_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Who connects where."""

    format: str
    """text, json, protobuf; or lines, which the bare loop speaks."""
    rooms: int
    members: int
    groups: int
    members_publish: bool
    echo: bool
    """A member gets what it published itself, too."""
    probes: bool
    payload: int
    """Bytes of a message, at least 32."""
    at: tuple[str, ...]
    """``HOST:PORT``, in numbers."""
    publish_at: tuple[str, ...]
    channel: str = "bench-"
    """What channel names begin with. Empty, with text: nobody joins a channel."""
    path: str = "/connection/websocket"
    token: str = ""
    at_once: int = 64
    """Connections under way at a time."""
    sources: int = 1
    """Source addresses, 127.0.0.1 and on: one has ports for some 28,000 connections to one address."""
    timeout: float = 60.0
    """Seconds for connecting, and again for the probes."""

    @property
    def clients(self) -> int:
        """Connections, the publisher's included."""
        return self.members * self.groups + (not self.members_publish)

    @property
    def fan_out(self) -> int:
        """Deliveries of one message."""
        return self.members - (self.members_publish and not self.echo)

    def line(self) -> str:
        return _line("open", self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How much is published for how long."""

    in_flight: int = 1
    per_second: float = 0.0
    """Messages a second; 0: as ``in_flight`` says."""
    warm: float
    seconds: float
    drain: float = 5.0
    """Seconds to wait for what is outstanding at the end."""
    stall: float = 2.0
    """After so many seconds without any delivery, what is outstanding is written off as lost."""
    pids: tuple[int, ...] = ()
    """Processes whose CPU is read. The generator does it: it alone is there when the measuring ends, and a
    moment later the servers have nothing to do."""

    def line(self) -> str:
        return _line("run", self)


def _line(word: str, command: Opening | Run) -> str:
    parts = [word]
    for field in fields(command):
        value = getattr(command, field.name)
        if isinstance(value, bool):
            value = int(value)
        elif isinstance(value, tuple):
            value = ",".join(map(str, value))
        parts.append(f"{field.name}={value}")
    return " ".join(parts) + "\n"


def words_of(line: str) -> tuple[str, dict[str, str]]:
    """A command, taken apart: for a generator."""
    word, *pairs = line.split()
    return word, dict(pair.partition("=")[::2] for pair in pairs)


class Quantiles(msgspec.Struct, frozen=True):
    """Of times in nanoseconds."""

    p50: int
    p90: int
    p99: int
    p999: int
    max: int
    mean: float
    count: int


class Event(msgspec.Struct, frozen=True, tag_field="event", tag=str.lower):
    """An answer."""


class Opened(Event, frozen=True):
    clients: int
    seconds: float
    connect_ns: Quantiles


class Heard(Event, frozen=True):
    frame_bytes: float
    """Bytes of one delivery on the wire, framing included."""


class Begin(Event, frozen=True):
    pass


class Result(Event, frozen=True, kw_only=True):
    """What was counted while it measured; losses and the like, in the whole run."""

    seconds: float
    messages: int
    deliveries: int
    bytes: int
    """Of the frames that brought deliveries."""
    reads: int
    """System calls of the generator that brought something."""
    busy: float
    """The generator's share of a core."""
    lost: int
    doubled: int
    reordered: int
    """Came after a later one of the same publisher in the same room."""
    misrouted: int
    damaged: int
    stalls: int
    late_ns: int
    """How late a message that was due was published, at worst."""
    sent: int
    """Deliveries that should have come in the whole run."""
    latency_ns: Quantiles
    cpu: list[tuple[float, float, float]]
    """Of each of the ``pids``: seconds in all, of the user, of the system."""
    machine_busy: float
    """CPU seconds of the whole machine."""
    machine_stolen: float
    """CPU seconds that the host gave to others."""


class Closed(Event, frozen=True):
    pass


class Failed(Event, frozen=True):
    why: str


_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Opened | Heard | Begin | Result | Closed | Failed)


def event_of(line: bytes) -> Event:
    """An answer, understood.

    :raises msgspec.MsgspecError: it is none.
    """
    event: Event = _decoder.decode(line)
    return event
