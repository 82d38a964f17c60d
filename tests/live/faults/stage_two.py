"""Two Valkeys with half of the channels each: what happens to one is not noticed in channels of the other.

Besides the usual witnesses there is one for each server on each shard, which publishes to a channel of its
own ten times a second and hears itself. While one server is hurt, the channels of the other may not be silent
for longer than ``LONGEST_GAP_SECONDS``: else the fault ends in an ``AssertionError``.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from tests.hub.servers import Valkey, ValkeyError, until
from tests.live.faults.links import Gate, subscribers
from tests.live.faults.plan import Strike
from tests.live.faults.stage import Hurt, Kind, Shard, Stage
from tests.live.faults.stage_valkey import DURABLE, PREFIX
from tests.live.raw import Gone, JsonClient

__all__ = ["TwoStage"]

LONGEST_GAP_SECONDS = 2.0
"""On a machine with nothing else to do it is a tenth of a second."""

ASIDE = "aside"
CANDIDATES = 12
"""Channels of which one is looked for that is on a server."""
BEAT_SECONDS = 0.1


class _Aside:
    """Publishes to a channel through a shard, and hears it there."""

    def __init__(self, shard: Shard, channel: str, server: int) -> None:
        self.shard = shard
        self.channel = channel
        self.server = server
        self.heard_at = 0.0
        self.longest = 0.0
        """Between two, since ``begin``."""
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{channel}@{shard.number}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._is_closing.set()
        self._thread.join(20)

    def is_well(self) -> bool:
        """It heard something just now."""
        return time.monotonic() - self.heard_at < 5 * BEAT_SECONDS

    def begin(self) -> None:
        """Measure from now on."""
        self.longest, self.heard_at = 0.0, time.monotonic()

    def end(self) -> float:
        """The longest silence since ``begin``."""
        return max(self.longest, time.monotonic() - self.heard_at)

    def _run(self) -> None:
        while not self._is_closing.is_set():
            try:
                self._talk()
            except (Gone, OSError, TimeoutError, AssertionError, KeyError):
                self._is_closing.wait(0.2)  # its shard is away; that is not what is looked for

    def _talk(self) -> None:
        with JsonClient(f"ws://127.0.0.1:{self.shard.port}") as client:
            client.connected()
            client.say({"id": 1, "subscribe": {"channel": self.channel}})
            number = 1
            while not self._is_closing.is_set():
                number += 1
                client.say({"id": number, "publish": {"channel": self.channel, "data": number}})
                beat = time.monotonic() + BEAT_SECONDS
                while (left := beat - time.monotonic()) > 0:
                    with suppress(TimeoutError):
                        push = client.take(left).get("push", {})
                        if "unsubscribe" in push:
                            raise Gone(push["unsubscribe"].get("code", 0), "unsubscribed: it comes again")
                        if "pub" in push:
                            self._heard()

    def _heard(self) -> None:
        now = time.monotonic()
        self.longest = max(self.longest, now - self.heard_at)
        self.heard_at = now


class TwoStage(Stage):
    """See the module."""

    name = "two"

    servers: list[Valkey]
    links: list[list[Gate]]
    """By server, by shard."""

    def start_hub(self) -> None:
        self.servers = [self.stack.enter_context(Valkey(extra=DURABLE)) for _ in range(2)]
        self.links = [[self.gates.open(server.port) for _ in range(self.size)] for server in self.servers]
        self._asides: list[_Aside] = []
        self._watched: list[_Aside] = []
        self._gap = 0.0

    def start(self) -> None:
        super().start()
        for server in range(2):
            channel = self._channel_on(server)
            for shard in self.shards:
                aside = _Aside(shard, channel, server)
                self._asides.append(aside)
                self.stack.callback(aside.close)
                aside.start()

    def _channel_on(self, server: int) -> str:
        """A channel that the shards keep on this server: found by publishing."""
        with JsonClient(f"ws://127.0.0.1:{self.shards[0].port}") as client:
            client.connected()
            for number in range(CANDIDATES):
                channel = f"{ASIDE}-{number}"
                client.ask("publish", channel=channel, data=0)
                if self._has(server, channel):
                    return channel
        raise AssertionError(f"none of {CANDIDATES} channels is on server {server}")

    def _has(self, server: int, channel: str) -> bool:
        return bool(self.servers[server].command("EXISTS", f"{PREFIX}:meta:{{{channel}}}"))

    def hub_arguments(self, shard: int) -> list[str]:
        ports = [gates[shard].port for gates in self.links]
        # Each shard has gates of its own, so that the servers need names.
        urls = [f"redis://127.0.0.1:{port}?name={server}" for server, port in enumerate(ports)]
        return [part for url in urls for part in ("--hub", url)]

    def hub_is_whole(self) -> bool:
        with suppress(OSError, AssertionError, ValkeyError):
            return all(server.command("PING") == b"PONG" for server in self.servers)
        return False

    def hub_bystanders(self) -> list[str]:
        return [f"longest silence in channels of the server that was well: {self._gap:.2f} s"]

    def hub_kinds(self) -> list[Kind]:
        return [
            Kind("one-kill", "SIGKILL of one of two Valkeys", self._kill, self._start, targets=2,
                 seconds=(0.5, 6.0), limit_seconds=4.0),
            Kind("one-freeze", "SIGSTOP of one of two Valkeys", self._freeze, self._thaw, targets=2,
                 seconds=(1.0, 8.0)),
            Kind("one-stall", "black hole between all shards and one of two Valkeys", self._stall,
                 self._heal, targets=2, seconds=(1.0, 8.0)),
            Kind("one-cut", "connections of all shards to one of two Valkeys cut", self._cut,
                 self._uncut, targets=2, seconds=(0.1, 0.3), limit_seconds=5.0),
            Kind("one-deaf", "subscribers of one of two Valkeys hear nothing", self._deafen, self._undeafen,
                 targets=2, seconds=(7.0, 9.0), limit_seconds=10.0),
            Kind("one-flushall", "FLUSHALL of one of two Valkeys", self._flush, self._unflushed, targets=2,
                 seconds=(0.1, 0.5), limit_seconds=5.0),
        ]  # fmt: skip

    # -- faults ----------------------------------------------------------------------------------------

    def _begin(self, strike: Strike, destroys: bool = False) -> Hurt:
        """Before the fault, while its server can be asked who is hurt."""
        hurt = frozenset(channel for channel in self.channels if self._has(strike.target, channel))
        self._watched = [aside for aside in self._asides if aside.server != strike.target]
        for aside in self._watched:
            until(aside.is_well, 20.0, f"{aside.channel} on shard {aside.shard.number} is heard")
        for aside in self._watched:
            aside.begin()
        return Hurt(channels=hurt, destroys=destroys)

    def _end(self, strike: Strike) -> None:
        gaps = {f"{aside.channel} on shard {aside.shard.number}": aside.end() for aside in self._watched}
        self._gap = max(self._gap, *gaps.values())
        slow = {where: round(gap, 2) for where, gap in gaps.items() if gap > LONGEST_GAP_SECONDS}
        assert not slow, f"{strike}: silence, in seconds, in channels of the other server: {slow}"

    def _kill(self, strike: Strike) -> Hurt:
        hurt = self._begin(strike)
        self.servers[strike.target].kill()
        return hurt

    def _start(self, strike: Strike) -> None:
        self.servers[strike.target].start()
        self._end(strike)

    def _freeze(self, strike: Strike) -> Hurt:
        hurt = self._begin(strike)
        self.servers[strike.target].stop()
        return hurt

    def _thaw(self, strike: Strike) -> None:
        self.servers[strike.target].cont()
        self._end(strike)

    def _stall(self, strike: Strike) -> Hurt:
        hurt = self._begin(strike)
        for gate in self.links[strike.target]:
            gate.stall()
        return hurt

    def _heal(self, strike: Strike) -> None:
        for gate in self.links[strike.target]:
            gate.heal()
        self._end(strike)

    def _cut(self, strike: Strike) -> Hurt:
        hurt = self._begin(strike)
        for gate in self.links[strike.target]:
            gate.cut()
        return hurt

    def _uncut(self, strike: Strike) -> None:
        self._end(strike)

    def _deafen(self, strike: Strike) -> Hurt:
        hurt = self._begin(strike)
        for gate in self.links[strike.target]:
            gate.deafen(subscribers)
        return hurt

    def _undeafen(self, strike: Strike) -> None:
        self._end(strike)

    def _flush(self, strike: Strike) -> Hurt:
        hurt = self._begin(strike, destroys=True)
        self.servers[strike.target].command("FLUSHALL")
        return hurt

    def _unflushed(self, strike: Strike) -> None:
        self._end(strike)
