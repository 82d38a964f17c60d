"""The load generator in plain Python, for machines without a C compiler.

It does what ``generator.c`` does, many times as slowly: it is the limit of most runs, not the server, and
latencies are those of the generator, too. Run by ``python -m spread.client.bench.generator``.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from spread.client.bench.histogram import Histogram
from spread.client.bench.payload import Payload, read, written
from spread.client.bench.processes import machine_usage, usage_of
from spread.client.bench.protocol import (
    Begin,
    Closed,
    Event,
    Failed,
    Heard,
    Opened,
    Opening,
    Quantiles,
    Result,
    Run,
)
from spread.client.bench.speaking import Client, Lost, client_of

__all__ = ["Generator", "main"]

_PROBE_AGAIN = 0.2
_LINGER = 0.05
"""After the last delivery: doubles show up."""

Wait = Iterator[float]
"""A task, which gives the time until which it has nothing to do if nothing comes."""


@dataclass(slots=True)
class _Track:
    """What one member has of one publisher."""

    newest: int = 0
    missing: set[int] = field(default_factory=set)


class Generator:
    """Clients, and what they have heard."""

    def __init__(self, commands: int, out: int) -> None:
        self._commands = commands
        self._out = out
        self._epoll = select.epoll()
        self._epoll.register(commands, select.EPOLLIN)
        self._task: Wait = iter(())
        self._clear()

    def _clear(self) -> None:
        self._opening: Opening | None = None
        self._clients: list[Client] = []
        self._places: dict[int, tuple[Client, int, int]] = {}  # by file: the client, its member, its group
        self._listening: dict[int, int] = {}  # what epoll was told
        self._tracks: dict[tuple[int, int, int], _Track] = {}
        self._sequences: dict[tuple[int, int], int] = {}
        self._deaf: set[tuple[int, int]] = set()
        self._probe_bytes = 0
        self._probes = 0
        self._turn = 0
        self._messages = self._deliveries = self._bytes = self._reads = 0
        self._counts: dict[str, int] = {}
        self._latency = Histogram()
        self._is_measuring = False
        self._last = 0.0

    # -- what it is told -------------------------------------------------------------------------------

    def serve(self) -> None:
        """Until the commands end."""
        lines: deque[str] = deque()
        came = b""
        while True:
            while lines:
                self._obey(lines.popleft())
            until = next(self._task, None)
            now = time.monotonic()
            events = self._epoll.poll(None if until is None else max(0.0, until - now))
            for fd, event in events:
                if fd == self._commands:
                    data = os.read(fd, 65536)
                    if not data:
                        return
                    *whole, came = (came + data).split(b"\n")
                    lines.extend(line.decode() for line in whole)
                elif fd in self._places:
                    self._serve_client(fd, event)

    def _obey(self, line: str) -> None:
        word, _, words = line.partition(" ")
        pairs = dict(pair.partition("=")[::2] for pair in words.split())
        if word == "open":
            self._close()
            self._opening = msgspec.convert(_parsed(pairs), Opening, strict=False)
            self._task = self._open(self._opening)
        elif word == "run":
            self._task = self._run(msgspec.convert(_parsed(pairs), Run, strict=False))
        elif word == "close":
            self._close()
            self._tell(Closed())
        else:
            self._fail(f"not a command: {word}")

    def _tell(self, event: Event) -> None:
        os.write(self._out, msgspec.json.encode(event) + b"\n")

    def _fail(self, why: str) -> None:
        self._task = iter(())
        self._tell(Failed(why))

    def _close(self) -> None:
        self._task = iter(())
        for client in self._clients:
            client.close()
        self._clear()

    # -- clients ---------------------------------------------------------------------------------------

    def _serve_client(self, fd: int, event: int) -> None:
        client, member, group = self._places[fd]
        try:
            if event & select.EPOLLOUT:
                client.writable()
            if event & ~select.EPOLLOUT:
                self._reads += 1
                payloads = client.readable()
                now = time.monotonic_ns()
                for payload, size in payloads:
                    self._heard(payload, size, member, group, now)
            self._listen(client)
        except Lost as error:
            self._epoll.unregister(fd)
            del self._places[fd]
            self._fail(f"a client was {error}")

    def _listen(self, client: Client) -> None:
        fd = client.sock.fileno()
        wanted = select.EPOLLIN | (select.EPOLLOUT if client.waiting else 0)
        if self._listening.get(fd) != wanted:
            self._epoll.modify(fd, wanted)
            self._listening[fd] = wanted

    def _heard(self, data: bytes, size: int, member: int, group: int, now: int) -> None:
        opening = self._opening
        assert opening is not None
        said = read(data)
        if said is None or len(data) != opening.payload:
            self._count("damaged")
            return
        is_own = opening.members_publish and not opening.echo and said.publisher == member
        is_known = said.room < opening.rooms and said.publisher < self._publishers(opening)
        if not is_known or said.room % opening.groups != group or is_own:
            self._count("misrouted")
            return
        if said.is_probe:
            self._deaf.discard((said.room, member))
            self._probe_bytes += size
            self._probes += size > 0
            return
        track = self._tracks.setdefault((said.room, member, said.publisher), _Track())
        if said.sequence > track.newest:
            track.missing.update(range(track.newest + 1, said.sequence))
            track.newest = said.sequence
        elif said.sequence in track.missing:
            track.missing.remove(said.sequence)
            self._count("reordered")
        else:
            self._count("doubled")
            return
        self._deliveries += 1
        self._bytes += size
        self._last = now / 1e9
        if self._is_measuring:
            self._latency.add(max(0, now - said.due))

    def _count(self, name: str) -> None:
        self._counts[name] = self._counts.get(name, 0) + 1

    # -- connecting ------------------------------------------------------------------------------------

    def _open(self, opening: Opening) -> Wait:
        began = time.monotonic()
        deadline = began + opening.timeout
        connecting = Histogram()
        wanted = [(i // opening.groups, i % opening.groups) for i in range(opening.members * opening.groups)]
        if not opening.members_publish:
            wanted.append((-1, 0))
        wanted.reverse()
        under_way: list[Client] = []
        while wanted or under_way:
            while wanted and len(under_way) < opening.at_once:
                try:
                    under_way.append(self._connected(opening, *wanted.pop()))
                except (Lost, OSError) as error:
                    self._fail(f"a client was {error}")
                    return
            now = time.monotonic()
            for client in under_way:
                if client.is_ready:
                    connecting.add(time.monotonic_ns() - client.began)
            under_way = [client for client in under_way if not client.is_ready]
            if now > deadline:
                ready = len(self._clients) - len(under_way)
                self._fail(f"only {ready} clients were let in within {opening.timeout:g} s")
                return
            if under_way:
                yield deadline
        self._tell(Opened(len(self._clients), time.monotonic() - began, _quantiles(connecting)))
        if opening.probes:
            yield from self._probe(opening)

    def _connected(self, opening: Opening, member: int, group: int) -> Client:
        number = len(self._clients)
        is_publisher = member < 0
        at = opening.publish_at if is_publisher else opening.at
        host, _, port = at[0 if is_publisher else (member + group) % len(at)].rpartition(":")
        source = f"127.0.0.{1 + number % opening.sources}" if opening.sources > 1 else ""
        rooms = range(group, opening.rooms, opening.groups)
        channels = [f"{opening.channel}{room}" if opening.channel else "" for room in rooms]
        if is_publisher:
            channels = channels[:1] if opening.format == "text" else []
        address = (host.strip("[]"), int(port))
        client = client_of(opening.format, channels, address, source, opening.path, opening.token)
        client.began = time.monotonic_ns()
        self._clients.append(client)
        fd = client.sock.fileno()
        self._places[fd] = client, member, group
        self._listening[fd] = select.EPOLLIN | select.EPOLLOUT
        client.connect()
        self._epoll.register(fd, self._listening[fd])
        return client

    def _publishers(self, opening: Opening) -> int:
        return opening.members if opening.members_publish else 1

    def _say(self, opening: Opening, said: Payload) -> None:
        number = (
            said.publisher * opening.groups + said.room % opening.groups if opening.members_publish else -1
        )
        client = self._clients[number]
        client.publish(f"{opening.channel}{said.room}", written(said, opening.payload))
        self._listen(client)

    def _probe(self, opening: Opening) -> Wait:
        self._deaf = {(room, member) for room in range(opening.rooms) for member in range(opening.members)}
        deadline = time.monotonic() + opening.timeout
        while self._deaf:
            if time.monotonic() > deadline:
                deaf = len({room for room, _ in self._deaf})
                self._fail(f"{deaf} of {opening.rooms} channels have members that hear nothing")
                return
            for room in sorted({room for room, _ in self._deaf})[:64]:
                for publisher in range(min(2, self._publishers(opening))):
                    self._say(opening, Payload(True, room, publisher, 0, 0))
            again = time.monotonic() + _PROBE_AGAIN
            first = min(self._deaf)[0]
            while self._deaf and min(self._deaf)[0] < first + 64 and time.monotonic() < again:
                yield again
        self._tell(Heard(self._probe_bytes / self._probes if self._probes else 0.0))

    # -- a run -----------------------------------------------------------------------------------------

    def _publish(self, opening: Opening, due: int) -> None:
        turn, self._turn = self._turn, self._turn + 1
        room = turn % opening.rooms
        publisher = turn // opening.rooms % self._publishers(opening)
        sequence = self._sequences[room, publisher] = self._sequences.get((room, publisher), 0) + 1
        self._say(opening, Payload(False, room, publisher, sequence, due))
        self._messages += 1

    def _run(self, run: Run) -> Wait:
        opening = self._opening
        if opening is None:
            self._fail("there is nothing to run")
            return
        try:
            yield from self._running(opening, run)
        except Lost as error:
            self._fail(f"a publisher was {error}")
        except ProcessLookupError as error:
            self._fail(str(error))

    def _running(self, opening: Opening, run: Run) -> Wait:
        self._counts = {}
        self._latency = Histogram()
        self._messages = self._deliveries = 0
        pace = _Pace(run, time.monotonic())
        self._last = pace.began
        begin = pace.began + run.warm
        yield from self._publishing(opening, run, pace, begin)
        self._is_measuring = True
        pace.latest = 0.0
        started, cpu = time.monotonic(), time.process_time()
        used = [usage_of(pid) for pid in run.pids]
        busy, stolen = machine_usage()
        before = (self._messages, self._deliveries, self._bytes, self._reads)
        self._tell(Begin())
        yield from self._publishing(opening, run, pace, begin + run.seconds)
        self._is_measuring = False
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
        after = (self._messages, self._deliveries, self._bytes, self._reads)
        used = [usage_of(pid) - before for pid, before in zip(run.pids, used, strict=True)]
        busy_then, stolen_then = machine_usage()
        sent = self._messages * opening.fan_out
        deadline = time.monotonic() + run.drain
        while self._deliveries < sent and time.monotonic() < deadline:
            yield deadline
        linger = time.monotonic() + _LINGER
        while time.monotonic() < linger:
            yield linger
        messages, deliveries, size, reads = (b - a for a, b in zip(before, after, strict=True))
        counts = self._counts
        self._tell(
            Result(
                seconds=seconds,
                messages=messages,
                deliveries=deliveries,
                bytes=size,
                reads=reads,
                busy=cpu / seconds,
                lost=max(0, sent - self._deliveries),
                doubled=counts.get("doubled", 0),
                reordered=counts.get("reordered", 0),
                misrouted=counts.get("misrouted", 0),
                damaged=counts.get("damaged", 0),
                stalls=pace.stalls,
                late_ns=int(pace.latest * 1e9),
                sent=sent,
                latency_ns=_quantiles(self._latency),
                cpu=[(each.total, each.user, each.system) for each in used],
                machine_busy=busy_then - busy,
                machine_stolen=stolen_then - stolen,
            )
        )

    def _publishing(self, opening: Opening, run: Run, pace: _Pace, until: float) -> Wait:
        while (now := time.monotonic()) < until:
            if run.per_second:
                while (due := pace.due()) <= now:
                    pace.latest = max(pace.latest, now - due)
                    self._publish(opening, int(due * 1e9))
                    pace.count += 1
                yield min(due, until)
            else:
                sent = self._messages * opening.fan_out - pace.written_off
                if sent > self._deliveries and now > self._last + run.stall:
                    pace.stalls += 1
                    pace.written_off += sent - self._deliveries
                    sent = self._deliveries
                    self._last = now
                window = run.in_flight * opening.fan_out
                while sent - self._deliveries + opening.fan_out <= window:
                    self._publish(opening, time.monotonic_ns())
                    sent += opening.fan_out
                yield min(self._last + run.stall + 0.001, until)


@dataclass(slots=True)
class _Pace:
    """Where a run is."""

    run: Run
    began: float
    count: int = 0
    """Messages that were due."""
    latest: float = 0.0
    stalls: int = 0
    written_off: int = 0

    def due(self) -> float:
        return self.began + self.count / self.run.per_second


def _parsed(words: dict[str, str]) -> dict[str, object]:
    """Lists are written with commas."""
    return {
        name: tuple(filter(None, value.split(","))) if name in ("at", "publish_at", "pids") else value
        for name, value in words.items()
    }


def _quantiles(of: Histogram) -> Quantiles:
    p50, p90, p99, p999 = (of.quantile(share) for share in (0.5, 0.9, 0.99, 0.999))
    return Quantiles(p50, p90, p99, p999, of.largest, of.mean, of.total)


def main() -> int:
    """Serve standard input."""
    with suppress(KeyboardInterrupt, BrokenPipeError):
        Generator(0, 1).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
