"""One Valkey whose disk fills up, and wall clocks that jump, its own and those of the shards.

Keys with an expiry may be gone after a step forwards of Valkey's clock, which is then told.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from tests.hub.servers import ValkeyError
from tests.live.faults.plan import Strike
from tests.live.faults.shims.shim import ShimmedValkey, built, environ_of
from tests.live.faults.stage import EVERYBODY, Hurt, Kind, of_shard
from tests.live.faults.stage_valkey import DURABLE, ValkeyStage

__all__ = ["ShimsStage"]

STEPS = (-3600, -60, -5, 5, 60, 3600)


class ShimsStage(ValkeyStage):
    """See the module."""

    name = "shims"

    valkey: ShimmedValkey

    def start_hub(self) -> None:
        self.valkey = self.stack.enter_context(ShimmedValkey(self.directory, extra=DURABLE))
        self.links = [self.gates.open(self.valkey.port) for _ in range(self.size)]

    def shard_environ(self, shard: int) -> dict[str, str]:
        return environ_of([built("clockstep", self.directory)], clock=self._clock(shard))

    def _clock(self, shard: int) -> Path:
        return self.directory / f"clock-{shard}"

    def hub_kinds(self) -> list[Kind]:
        return [
            Kind("disk-full-refused", "disk full, fsync each second: writes are refused", self._fill_gently,
                 self._drain, seconds=(0.5, 4.0), limit_seconds=6.0),
            Kind("disk-full-exit", "disk full, fsync always: Valkey exits", self._fill, self._drain,
                 seconds=(0.5, 4.0), limit_seconds=6.0),
            Kind("clock-valkey", "wall clock of Valkey steps, and back", self._step, self._step_back,
                 seconds=(0.5, 4.0), limit_seconds=10.0),
            Kind("clock-shard", "wall clock of a shard steps, and back", self._step_shard,
                 self._step_shard_back, targets=self.size, seconds=(0.5, 4.0), limit_seconds=5.0),
        ]  # fmt: skip

    def _fill_gently(self, strike: Strike) -> Hurt:
        # Acknowledged in this time is what it has in memory, and writes to the file when there is room again.
        self.valkey.command("CONFIG", "SET", "appendfsync", "everysec")
        self.valkey.fill()
        return EVERYBODY

    def _fill(self, strike: Strike) -> Hurt:
        self.valkey.fill()
        return EVERYBODY

    def _drain(self, strike: Strike) -> None:
        self.valkey.drain()
        if self.valkey.has_ended():
            self.valkey.kill()
            self.valkey.start()
            return
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with suppress(ValkeyError):
                self.valkey.command("SET", "harness:room", "1")
                break
            time.sleep(0.02)
        self.valkey.command("CONFIG", "SET", "appendfsync", "always")

    def _step(self, strike: Strike) -> Hurt:
        seconds = strike.rng().choice(STEPS)
        self.valkey.step(seconds)
        # What the stream of a channel may live is less than the largest step.
        return Hurt(destroys=seconds > 0)

    def _step_back(self, strike: Strike) -> None:
        self.valkey.step(0)

    def _step_shard(self, strike: Strike) -> Hurt:
        self._clock(strike.target).write_text(str(strike.rng().choice(STEPS)))
        return of_shard(strike.target)

    def _step_shard_back(self, strike: Strike) -> None:
        self._clock(strike.target).write_text("0")
