"""The cluster that is measured: started here, or running already.

Each shard that is started here is a process of its own with ports of its own, so that a client can be put on
a certain shard; those of a fleet share one port. They live in a private SPREAD_HOME, and see by a pipe when
this process ends, however it ends.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from spread.client.bench.cpus import Cpus, pinned_to
from spread.client.bench.errors import CutShort
from spread.client.bench.processes import Server, Watch, is_redis, pin

__all__ = ["HISTORY", "Cluster", "started"]

HISTORY = "bench:"
"""What channels that keep history begin with, and the namespace they are in."""

START_SECONDS = 60.0
STOP_SECONDS = 15.0

CONFIG = """\
[client]
insecure = true
allowed_origins = ["*"]
channel_limit = 1000000

[channel]
history_meta_ttl = "600s"

[[channel.namespaces]]
name = "bench"
history_size = 100
history_ttl = "300s"
force_recovery = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
"""

_EMBEDDED = "embedded:"
_READY = re.compile(r"ready shard=\d+ text=(\S+) http=(\S+) ops=\S+ hub=\S+")


@dataclass(slots=True)
class Cluster:
    """Where its shards take clients, in numbers, and its processes as far as they are known."""

    text: tuple[str, ...]
    http: tuple[str, ...]
    servers: tuple[Server, ...] = ()
    watch: Watch = field(default_factory=Watch)

    def addresses(self, is_text: bool) -> tuple[str, ...]:
        return self.text if is_text else self.http

    @property
    def shards(self) -> tuple[Server, ...]:
        return tuple(server for server in self.servers if not server.is_redis)


@contextmanager
def started(
    count: int,
    *,
    hub: str,
    redis: Sequence[Server],
    servers_on: Cpus,
    load_on: Cpus,
    environ: Mapping[str, str],
) -> Iterator[Cluster]:
    """A cluster of ``count`` shards that is gone afterwards, with all it had started.

    :param hub: a URL; empty: a Valkey of its own.
    :param redis: the processes of that hub, if they are known; where they run is their owner's matter.
    :raises CutShort: it does not start.
    """
    home = Path(tempfile.mkdtemp(prefix="spread-bench-"))
    shards: list[_Shard] = []
    watch = Watch()
    lifeline, ours = os.pipe()
    try:
        (home / "bench.toml").write_text(CONFIG)
        environ = {
            name: value
            for name, value in environ.items()
            if not name.startswith("SPREAD_") or name.startswith("SPREAD_HUB_TLS_")
        } | {
            "SPREAD_HOME": str(home),
            "SPREAD_CONFIG": str(home / "bench.toml"),
            "SPREAD_HUB": hub or _EMBEDDED,  # it may hold a password, which is nothing for a command line
            "SPREAD_HUB_PREFIX": f"bench-{secrets.token_hex(4)}",  # in a Redis of others, ours is ours
            "SPREAD_FLEET_LIFELINE": str(lifeline),
        }
        with pinned_to(servers_on):
            for number in range(count):
                shards.append(_Shard(number, environ, lifeline, home))
        for shard in shards:
            shard.wait_ready(time.monotonic() + START_SECONDS)
            watch.add(shard.process.pid, shard.story)
        if hub in ("", _EMBEDDED):
            redis = [Server("valkey", int((home / "hub.pid").read_text()), is_redis=True)]
            if load_on:
                pin(redis[0].pid, load_on)
        for server in redis:
            watch.add(server.pid, lambda: "Redis has died")
        servers = [Server(f"shard {shard.number}", shard.process.pid) for shard in shards]
        yield Cluster(
            tuple(shard.text for shard in shards),
            tuple(shard.http for shard in shards),
            (*servers, *redis),
            watch,
        )
    finally:
        watch.close()
        _stop(shards, home)
        os.close(lifeline)
        os.close(ours)
        shutil.rmtree(home, ignore_errors=True)


class _Shard:
    """A process of ``spread-node``."""

    def __init__(self, number: int, environ: Mapping[str, str], lifeline: int, home: Path) -> None:
        self.number = number
        self.text = self.http = ""
        self._log = home / f"shard-{number}.log"
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "spread.node", "--shard", str(number)),
                    *("--text", "127.0.0.1:0", "--http", "127.0.0.1:0", "--ops", "off"),
                    *("--log-level", "warn"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environ,
                cwd="/",
                pass_fds=(lifeline,),
                start_new_session=True,
            )

    def wait_ready(self, deadline: float) -> None:
        assert self.process.stdout is not None
        out = self.process.stdout.fileno()
        came = b""
        while b"\n" not in came:
            if not select.select([out], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise CutShort(f"shard {self.number} is not ready within {START_SECONDS:g} s")
            more = os.read(out, 4096)
            if not more:
                self.process.wait(STOP_SECONDS)
                raise CutShort(self.story())
            came += more
        ready = _READY.match(came.decode(errors="replace"))
        if ready is None:
            raise CutShort(f"shard {self.number} says {came!r}")
        self.text, self.http = ready[1], ready[2]

    def story(self) -> str:
        """How it ended."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        code = self.process.poll()
        if code is None:
            how = "has died"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"has ended with code {code}"
        words = self._log.read_text(errors="replace").splitlines()
        return f"shard {self.number} {how}" + (f"; its last words: {words[-1][:300]}" if words else "")


def _stop(shards: list[_Shard], home: Path) -> None:
    """Stop them all, in time, and the Valkey that they leave behind if they cannot stop it."""
    for shard in shards:
        shard.process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for shard in shards:
        try:
            shard.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            shard.process.kill()
            shard.process.wait()
        assert shard.process.stdout is not None
        shard.process.stdout.close()
    with suppress(OSError, ValueError):
        pid = int((home / "hub.pid").read_text())
        if is_redis(pid) and str(home).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            fd = os.pidfd_open(pid)
            os.kill(pid, signal.SIGKILL)
            select.select([fd], [], [], STOP_SECONDS)
            os.close(fd)
