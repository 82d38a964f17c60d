"""A Valkey Cluster: three primaries with a replica each, failovers by the cluster, slots that move.

Without ``hub.min_replicas`` a failover may lose what was acknowledged, and everybody is told; so all that
ends in one may destroy. Moving slots may not, as long as there was no failover.
"""

from __future__ import annotations

import time
from contextlib import suppress

from tests.hub.clusters import SLOTS, Node, ValkeyCluster
from tests.hub.servers import ValkeyError, until
from tests.live.faults.plan import Strike
from tests.live.faults.stage import Hurt, Kind, Stage
from tests.live.faults.stage_valkey import DURABLE, PREFIX

__all__ = ["ClusterStage"]

PRIMARIES = 3
MOVED_SLOTS = 40
"""In one go; a few of them have channels of the run."""

AHEAD_SECONDS = 0.7
"""What is acknowledged in this time is lost."""

REFUSALS = (OSError, AssertionError, ValkeyError, StopIteration)


class ClusterStage(Stage):
    """See the module."""

    name = "cluster"

    cluster: ValkeyCluster

    def start_hub(self) -> None:
        self.cluster = self.stack.enter_context(ValkeyCluster(PRIMARIES, 1, extra=tuple(DURABLE)))

    def hub_arguments(self, shard: int) -> list[str]:
        return ["--hub", self.cluster.url]

    def hub_is_whole(self) -> bool:
        """All nodes serve, agree, and each primary has a replica in step."""
        with suppress(*REFUSALS):
            views = set()
            for node in self.cluster.nodes:
                replication = node.info("replication")
                if not node.is_ok:
                    return False
                if replication["role"] == "slave" and replication["master_link_status"] != "up":
                    return False
                shards = self.cluster.shards(node)
                views.add(str(sorted((tuple(sorted(ranges)), head.id) for ranges, head, _ in shards)))
                if any(not replicas for ranges, _, replicas in shards if ranges):
                    return False
            return len(views) == 1
        return False

    def hub_kinds(self) -> list[Kind]:
        long, short = (4.0, 8.0), (0.0, 0.3)
        return [
            Kind("primary-kill", "SIGKILL of a primary, back after the failover", self._kill, self._start,
                 targets=PRIMARIES, seconds=long),
            Kind("primary-kill-behind", "SIGKILL of a primary whose replica had lost touch with it",
                 self._kill_ahead, self._start, targets=PRIMARIES, seconds=long),
            Kind("primary-restart", "SIGKILL of a primary, back before it is missed", self._restart,
                 self._start, targets=PRIMARIES, seconds=short, limit_seconds=8.0),
            Kind("primary-freeze", "SIGSTOP of a primary, back after the failover", self._freeze,
                 self._start, targets=PRIMARIES, seconds=long),
            Kind("primary-freeze-short", "SIGSTOP of a primary, shorter than is noticed",
                 self._freeze_shortly, self._start, targets=PRIMARIES, seconds=(0.2, 0.6),
                 limit_seconds=8.0),
            Kind("replica-down", "SIGKILL of a replica", self._kill_replica, self._start,
                 targets=PRIMARIES, seconds=(0.2, 2.0), limit_seconds=5.0),
            Kind("cluster-failover", "CLUSTER FAILOVER", self._fail_over, targets=PRIMARIES),
            Kind("slots-by-key", "slots moved key by key", self._migrate, targets=PRIMARIES),
            Kind("slots-at-once", "CLUSTER MIGRATESLOTS", self._migrate_at_once, targets=PRIMARIES),
        ]  # fmt: skip

    # -- who is who ------------------------------------------------------------------------------------

    def _primaries(self) -> list[Node]:
        heads = [head for ranges, head, _ in self.cluster.shards() if ranges]
        return sorted(heads, key=lambda node: node.index)

    def _primary(self, strike: Strike) -> Node:
        heads = self._primaries()
        return heads[strike.target % len(heads)]

    def _hurt(self, primary: Node, destroys: bool = False) -> Hurt:
        """The channels of its slots: nobody else may notice."""
        ranges = next(ranges for ranges, head, _ in self.cluster.shards() if head is primary)
        hurt = {
            channel
            for channel in self.channels
            if any(first <= self._slot(channel) <= last for first, last in ranges)
        }
        return Hurt(channels=frozenset(hurt), destroys=destroys)

    def _moved(self) -> Hurt:
        # Where a replica has taken over, what comes from elsewhere cannot be told from what was left behind.
        generations = {
            head.command("HGET", key, "g")
            for _, head, _ in self.cluster.shards()
            for key in head.command("KEYS", f"{PREFIX}:lineage:*")
        }
        return Hurt(destroys=len(generations) > 1)

    def _slot(self, channel: str) -> int:
        return int(self.cluster.running[0].command("CLUSTER", "KEYSLOT", channel))

    # -- faults ----------------------------------------------------------------------------------------

    def _kill(self, strike: Strike) -> Hurt:
        primary = self._primary(strike)
        hurt = self._hurt(primary, destroys=True)
        primary.kill()
        return hurt

    def _kill_ahead(self, strike: Strike) -> Hurt:
        primary = self._primary(strike)
        hurt = self._hurt(primary, destroys=True)
        primary.command("ACL", "SETUSER", "default", "-psync", "-sync")
        primary.command("CLIENT", "KILL", "TYPE", "replica")
        time.sleep(AHEAD_SECONDS)
        primary.kill()
        return hurt

    def _restart(self, strike: Strike) -> Hurt:
        primary = self._primary(strike)
        hurt = self._hurt(primary)
        primary.kill()
        return hurt

    def _freeze(self, strike: Strike) -> Hurt:
        primary = self._primary(strike)
        hurt = self._hurt(primary, destroys=True)
        primary.stop()
        return hurt

    def _freeze_shortly(self, strike: Strike) -> Hurt:
        primary = self._primary(strike)
        hurt = self._hurt(primary)
        primary.stop()
        return hurt

    def _kill_replica(self, strike: Strike) -> Hurt:
        self.cluster.replica_of(self._primary(strike)).kill()
        return Hurt(shards=frozenset())

    def _start(self, strike: Strike) -> None:
        for node in self.cluster.nodes:
            node.cont()
            if not node.is_running:
                node.start()

    def _fail_over(self, strike: Strike) -> Hurt:
        primary = self._primary(strike)
        hurt = self._hurt(primary, destroys=True)
        self.cluster.fail_over(self.cluster.replica_of(primary))
        return hurt

    def _slots(self, strike: Strike) -> tuple[Node, Node, list[int]]:
        """Some neighbouring slots, and whose they are to be; that of a channel of the run is among them."""
        rng = strike.rng()
        target = self._primary(strike)
        others = [
            (first, last)
            for ranges, head, _ in self.cluster.shards()
            if head is not target
            for first, last in ranges
        ]
        slots = [self._slot(channel) for channel in self.channels]
        rng.shuffle(slots)
        for slot in slots:
            for first, last in others:
                if first <= slot <= last:
                    begin = max(first, slot - rng.randrange(MOVED_SLOTS))
                    end = min(last, begin + MOVED_SLOTS - 1, SLOTS - 1)
                    return self.cluster.primary_of(slot), target, list(range(begin, end + 1))
        raise AssertionError("all channels are on one primary")

    def _migrate(self, strike: Strike) -> Hurt:
        source, target, slots = self._slots(strike)
        for slot in slots[:5] if len(slots) > 5 else slots:
            self.cluster.open_migration(slot, target)
            self.cluster.move_keys(slot, source, target)
            self.cluster.finish_migration(slot, source, target)
        until(self.hub_is_whole, 20.0, "one view of the slots")
        return self._moved()

    def _migrate_at_once(self, strike: Strike) -> Hurt:
        _, target, slots = self._slots(strike)
        self.cluster.migrate_at_once(slots[0], slots[-1], target)
        until(self.hub_is_whole, 20.0, "one view of the slots")
        return self._moved()
