"""One Valkey that has written what it acknowledges, and shards that reach it through a gate each."""

from __future__ import annotations

import time
from contextlib import suppress

from tests.hub.servers import Valkey, ValkeyError
from tests.live.faults.links import Gate, subscribers
from tests.live.faults.plan import Strike
from tests.live.faults.stage import EVERYBODY, Hurt, Kind, Stage, of_shard

__all__ = ["ValkeyStage"]

DURABLE = ["appendonly yes", "appendfsync always"]

PREFIX = "spread"


class ValkeyStage(Stage):
    """See the module."""

    name = "valkey"

    valkey: Valkey
    links: list[Gate]
    """By shard."""

    def start_hub(self) -> None:
        self.valkey = self.stack.enter_context(Valkey(extra=DURABLE))
        self.links = [self.gates.open(self.valkey.port) for _ in range(self.size)]

    def hub_arguments(self, shard: int) -> list[str]:
        return ["--hub", f"redis://127.0.0.1:{self.links[shard].port}"]

    def hub_is_whole(self) -> bool:
        with suppress(OSError, AssertionError, ValkeyError):
            return bool(self.valkey.command("PING") == b"PONG")
        return False

    def hub_kinds(self) -> list[Kind]:
        size = self.size
        down = (0.1, 3.0)
        return [
            Kind("valkey-kill", "SIGKILL of Valkey", self._kill, self._start, seconds=down,
                 limit_seconds=3.0),
            Kind("valkey-restart", "clean restart of Valkey", self._shut_down, self._start, seconds=down,
                 limit_seconds=3.0),
            Kind("valkey-freeze", "SIGSTOP of Valkey", self._freeze, self._thaw, seconds=(1.0, 8.0)),
            Kind("link-cut", "hub connections of a shard cut", self._cut, targets=size, limit_seconds=5.0),
            Kind("link-tear", "the same in the middle of a frame", self._tear, targets=size,
                 limit_seconds=5.0),
            Kind("link-stall", "black hole between a shard and Valkey", self._stall, self._heal,
                 targets=size, seconds=(1.0, 8.0)),
            Kind("link-deaf", "subscriber connection that brings nothing", self._deafen, targets=size,
                 limit_seconds=10.0),
            Kind("link-delay", "50-300 ms of delay to Valkey", self._delay, self._heal, targets=size,
                 seconds=(1.0, 4.0), limit_seconds=3.0),
            Kind("output-buffer", "subscribers over their output buffer", self._overflow, limit_seconds=5.0),
            Kind("kill-pubsub", "CLIENT KILL TYPE pubsub", self._kill_pubsub, limit_seconds=5.0),
            Kind("kill-normal", "CLIENT KILL TYPE normal", self._kill_normal, limit_seconds=5.0),
            Kind("kill-one", "CLIENT KILL ID of one connection", self._kill_one, targets=2 * size,
                 limit_seconds=5.0),
            Kind("script-flush", "SCRIPT FLUSH", self._flush_scripts, limit_seconds=3.0),
            Kind("flushall", "FLUSHALL", self._flush_all, limit_seconds=5.0),
            Kind("stream-lost", "a channel's stream deleted", self._delete_stream,
                 targets=len(self.channels), limit_seconds=5.0),
            Kind("meta-lost", "a channel's epoch and top deleted", self._delete_meta,
                 targets=len(self.channels), limit_seconds=5.0),
        ]  # fmt: skip

    # -- the server ------------------------------------------------------------------------------------

    def _kill(self, strike: Strike) -> Hurt:
        self.valkey.kill()
        return EVERYBODY

    def _shut_down(self, strike: Strike) -> Hurt:
        with suppress(AssertionError, OSError):  # it answers with the end of the connection
            self.valkey.command("SHUTDOWN", "NOW")
        deadline = time.monotonic() + 2
        with suppress(OSError, AssertionError):
            while time.monotonic() < deadline:
                self.valkey.connection(seconds=1).close()
                time.sleep(0.01)
        self.valkey.kill()
        return EVERYBODY

    def _start(self, strike: Strike) -> None:
        self.valkey.start()

    def _freeze(self, strike: Strike) -> Hurt:
        self.valkey.stop()
        return EVERYBODY

    def _thaw(self, strike: Strike) -> None:
        self.valkey.cont()

    # -- links of one shard ----------------------------------------------------------------------------

    def _cut(self, strike: Strike) -> Hurt:
        self.links[strike.target].cut()
        return of_shard(strike.target)

    def _tear(self, strike: Strike) -> Hurt:
        self.links[strike.target].tear(up=strike.rng().random() < 0.5)
        return of_shard(strike.target)

    def _stall(self, strike: Strike) -> Hurt:
        up, down = strike.rng().choice([(True, True), (False, True), (True, False)])
        self.links[strike.target].stall(up=up, down=down)
        return of_shard(strike.target)

    def _deafen(self, strike: Strike) -> Hurt:
        self.links[strike.target].deafen(subscribers)
        return of_shard(strike.target)

    def _delay(self, strike: Strike) -> Hurt:
        self.links[strike.target].delay(strike.rng().uniform(0.05, 0.3))
        return of_shard(strike.target)

    def _heal(self, strike: Strike) -> None:
        gate = self.links[strike.target]
        if strike.kind == "link-stall" and strike.seed % 2:  # a middlebox that has forgotten the connections
            gate.cut()
        gate.heal()

    # -- commands --------------------------------------------------------------------------------------

    def _overflow(self, strike: Strike) -> Hurt:
        before = self.valkey.command("CONFIG", "GET", "client-output-buffer-limit")[1]
        self.valkey.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 4096 0 0")
        # Something that everybody hears, that means nothing to a shard, and that no kernel takes at once.
        self.valkey.command("PUBLISH", f"{PREFIX}:hearing", b"x" * (8 << 20))
        self.valkey.command("CONFIG", "SET", "client-output-buffer-limit", before)
        return EVERYBODY

    def _kill_pubsub(self, strike: Strike) -> Hurt:
        self.valkey.command("CLIENT", "KILL", "TYPE", "pubsub")
        return EVERYBODY

    def _kill_normal(self, strike: Strike) -> Hurt:
        self.valkey.command("CLIENT", "KILL", "TYPE", "normal")
        return EVERYBODY

    def _kill_one(self, strike: Strike) -> Hurt:
        rows = self.valkey.command("CLIENT", "LIST").decode().splitlines()
        ids = sorted(int(row.split()[0].removeprefix("id=")) for row in rows if " cmd=client" not in row)
        if ids:
            with suppress(ValkeyError):
                self.valkey.command("CLIENT", "KILL", "ID", ids[strike.target % len(ids)])
        return EVERYBODY

    def _flush_scripts(self, strike: Strike) -> Hurt:
        self.valkey.command("SCRIPT", "FLUSH")
        return EVERYBODY

    def _flush_all(self, strike: Strike) -> Hurt:
        self.valkey.command("FLUSHALL")
        return Hurt(destroys=True)

    def _delete_stream(self, strike: Strike) -> Hurt:
        return self._delete("stream", strike)

    def _delete_meta(self, strike: Strike) -> Hurt:
        return self._delete("meta", strike)

    def _delete(self, what: str, strike: Strike) -> Hurt:
        channel = self.channels[strike.target]
        self.valkey.command("DEL", f"{PREFIX}:{what}:{{{channel}}}")
        return Hurt(channels=frozenset([channel]), destroys=True)
