"""A real Valkey Cluster for tests: primaries with replicas, on loopback ports, taken apart and put together.

The nodes start from a written ``nodes.conf``, as after a restart of all, so that nobody has to meet: it
takes the two seconds for which a primary that has just started takes no writes. Plain sockets and
subprocesses, as in ``servers``; what takes long (``migrate``, ``fail_over``) is run in a thread by tests
whose shards must go on.
"""

from __future__ import annotations

import secrets
import time
from types import TracebackType
from typing import Any, Self

from tests.hub.servers import Valkey, ValkeyError, free_port, until

__all__ = ["SLOTS", "Node", "ValkeyCluster"]

SLOTS = 16384


class Node(Valkey):
    """One node. ``kill``, ``stop``, ``cont`` and ``restart`` as of any server; it keeps its id."""

    def __init__(self, cluster: ValkeyCluster, index: int, primary: Node | None) -> None:
        super().__init__(password=cluster.password, users=cluster.users, extra=cluster.extra)
        self.index = index
        self.id = secrets.token_hex(20)
        self.shard_id = primary.shard_id if primary is not None else secrets.token_hex(20)
        self.first_primary = primary
        """Whose replica it is when the cluster starts."""
        self.port = free_port()
        self.bus_port = free_port()
        self._node_timeout_ms = cluster.node_timeout_ms
        self._full_coverage = cluster.full_coverage

    def _configuration(self, port: int) -> list[str]:
        return [
            *super()._configuration(port),
            "cluster-enabled yes",
            "cluster-config-file nodes.conf",
            f"cluster-port {self.bus_port}",
            f"cluster-node-timeout {self._node_timeout_ms}",
            "cluster-replica-validity-factor 0",
            "cluster-allow-replica-migration no",
            f"cluster-require-full-coverage {'yes' if self._full_coverage else 'no'}",
        ]

    def write_conf(self, nodes: list[Node], slots: dict[int, tuple[int, int]]) -> None:
        """What a node knows of all when it starts.

        :param slots: index of a primary to its first and last slot.
        """
        lines = []
        epochs = {index: position + 1 for position, index in enumerate(slots)}
        for node in nodes:
            myself = "myself," if node is self else ""
            primary = node.first_primary
            role = f"slave {primary.id}" if primary is not None else "master -"
            epoch = epochs[(primary or node).index]
            owned = " {}-{}".format(*slots[node.index]) if node.index in slots else ""
            # Without a shard-id, Valkey 9.1 ends with an assertion at the first SPUBLISH.
            address = f"127.0.0.1:{node.port}@{node.bus_port},,tls-port=0,shard-id={node.shard_id}"
            lines.append(f"{node.id} {address} {myself}{role} 0 0 {epoch} connected{owned}")
        lines.append(f"vars currentEpoch {len(slots)} lastVoteEpoch 0")
        (self.directory / "nodes.conf").write_text("\n".join(lines) + "\n")

    @property
    def is_running(self) -> bool:
        """It was started and not killed; it may be frozen."""
        return self._process is not None

    @property
    def is_ok(self) -> bool:
        """It says that the cluster serves all slots."""
        text = self.command("CLUSTER", "INFO").decode()
        return "cluster_state:ok" in text

    @property
    def role(self) -> str:
        """``master`` or ``slave``, as it says itself."""
        return str(self.command("ROLE")[0].decode())

    def receivers(self, channel: str) -> int:
        """How many connections are subscribed to a shard channel here."""
        return int(self.command("PUBSUB", "SHARDNUMSUB", channel)[1])


class ValkeyCluster:
    """So many primaries with so many replicas each; slots are dealt out evenly.

    :param empty: further primaries without slots.
    :param node_timeout_ms: silence after which a node is held for dead; a failover takes about twice that.
    :param full_coverage: with a slot that nobody serves, no slot is served.
    """

    def __init__(
        self,
        primaries: int = 3,
        replicas: int = 0,
        *,
        empty: int = 0,
        node_timeout_ms: int = 1000,
        full_coverage: bool = False,
        password: str | None = None,
        users: tuple[str, ...] = (),
        extra: tuple[str, ...] = (),
    ) -> None:
        self.password = password
        self.users = users
        self.extra = extra
        self.node_timeout_ms = node_timeout_ms
        self.full_coverage = full_coverage
        self._shape = primaries, replicas, empty
        self.nodes: list[Node] = []

    def __enter__(self) -> Self:
        return self if self.nodes else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """As ``--hub`` takes it: the first two nodes."""
        credentials = f":{self.password}@" if self.password else ""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])
        return f"redis+cluster://{credentials}{hosts}"

    def start(self) -> Self:
        """Start all nodes; returns when they serve all slots and every replica is in step."""
        for attempt in range(3):  # another process may be quicker on a free port
            try:
                self._start()
            except AssertionError:
                self.close()
                if attempt == 2:
                    raise
                continue
            break
        return self

    def _start(self) -> None:
        primaries, replicas, empty = self._shape
        heads = [Node(self, index, None) for index in range(primaries + empty)]
        self.nodes = list(heads)
        for _ in range(replicas):
            for head in heads[:primaries]:
                self.nodes.append(Node(self, len(self.nodes), head))
        slots = {
            index: (SLOTS * index // primaries, SLOTS * (index + 1) // primaries - 1)
            for index in range(primaries)
        }
        for node in self.nodes:
            node.write_conf(self.nodes, slots)
        for node in self.nodes:
            node.start()
        self.until_ok()

    def until_ok(self, seconds: float = 15.0) -> None:
        """Wait until every running node serves, and every replica is in step with its primary."""

        def is_ready(node: Node) -> bool:
            try:
                replication = node.info("replication")
                in_step = replication["role"] == "master" or replication["master_link_status"] == "up"
                return in_step and node.is_ok
            except (OSError, AssertionError, ValkeyError):
                return False

        for node in self.nodes:
            if node.is_running and not node._stopped:
                until(lambda node=node: is_ready(node), seconds, f"node {node.index} serves")

    def close(self) -> None:
        """Kill all and remove what they wrote. Idempotent."""
        for node in self.nodes:
            node.close()
        self.nodes = []

    # -- who is where ----------------------------------------------------------------------------------

    @property
    def running(self) -> list[Node]:
        """Nodes that can be asked."""
        return [node for node in self.nodes if node.is_running and not node._stopped]

    def by_id(self, identity: bytes | str) -> Node:
        """The node with this id."""
        text = identity.decode() if isinstance(identity, bytes) else identity
        return next(node for node in self.nodes if node.id == text)

    def shards(self, asked: Node | None = None) -> list[tuple[list[tuple[int, int]], Node, list[Node]]]:
        """Slot ranges, primary and replicas, as one node tells it."""
        found: dict[str, tuple[list[tuple[int, int]], Node, list[Node]]] = {}
        for first, last, primary, *others in (asked or self.running[0]).command("CLUSTER", "SLOTS"):
            head = self.by_id(primary[2])
            entry = found.setdefault(head.id, ([], head, [self.by_id(other[2]) for other in others]))
            entry[0].append((first, last))
        return list(found.values())

    def primary_of(self, slot: int) -> Node:
        """Who serves a slot."""
        for ranges, primary, _ in self.shards():
            if any(first <= slot <= last for first, last in ranges):
                return primary
        raise AssertionError(f"nobody serves slot {slot}")

    def replica_of(self, primary: Node) -> Node:
        """A running replica of it. One that was away is told of a moment later."""

        def found() -> Node | None:
            replicas = [each for _, head, each in self.shards() if head is primary]
            assert replicas, f"node {primary.index} is no primary"
            return next((node for node in replicas[0] if node.is_running), None)

        replica: Node = until(found, what=f"a replica of node {primary.index}")
        return replica

    def flush(self) -> None:
        """Forget all keys."""
        for node in self.running:
            if node.role == "master":
                node.command("FLUSHALL")

    # -- what operators do -----------------------------------------------------------------------------

    def fail_over(self, replica: Node, how: str = "") -> None:
        """``CLUSTER FAILOVER [FORCE|TAKEOVER]``; returns when it is the primary."""
        replica.command("CLUSTER", "FAILOVER", *([how] if how else []))
        until(lambda: replica.role == "master", 10.0, f"node {replica.index} becomes primary")

    def until_promoted(self, replica: Node, seconds: float = 20.0) -> None:
        """Wait until it has taken its dead primary's place."""
        until(lambda: replica.role == "master" and replica.is_ok, seconds, "a promoted replica")

    def open_migration(self, slot: int, target: Node) -> Node:
        """Mark a slot as migrating, key by key; gives the node it is on. ``finish_migration`` ends it."""
        source = self.primary_of(slot)
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        return source

    def move_keys(self, slot: int, source: Node, target: Node) -> int:
        """Move the keys of a slot that is open; gives how many."""
        moved = 0
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            credentials = ["AUTH", self.password] if self.password else []
            source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, *credentials, "KEYS", *keys)
            moved += len(keys)
        return moved

    def finish_migration(self, slot: int, source: Node, target: Node) -> None:
        """The slot is the target's."""
        for node in (target, source, *(node for node in self.running if node.role == "master")):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def migrate(self, slot: int, target: Node) -> None:
        """Move a slot with its keys, one after the other, as resharding tools do."""
        source = self.open_migration(slot, target)
        self.move_keys(slot, source, target)
        self.finish_migration(slot, source, target)
        self.until_agreed(slot, target)

    def migrate_at_once(self, first: int, last: int, target: Node) -> None:
        """``CLUSTER MIGRATESLOTS`` (Valkey 9): the server moves them itself and hands over at once."""
        source = self.primary_of(first)
        source.command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", first, last, "NODE", target.id)
        self.until_agreed(first, target)
        self.until_agreed(last, target)

    def until_agreed(self, slot: int, owner: Node, seconds: float = 10.0) -> None:
        """Wait until all running nodes name this one as the owner of a slot."""

        def all_agree() -> bool:
            for node in self.running:
                owners = {
                    head.id for ranges, head, _ in self.shards(node) for a, b in ranges if a <= slot <= b
                }
                if owners != {owner.id}:
                    return False
            return True

        until(all_agree, seconds, f"slot {slot} on node {owner.index}")

    def until_gossiped(self, seconds: float = 10.0) -> None:
        """Wait until all running nodes tell the same of who serves what."""

        def told(node: Node) -> Any:
            return sorted((tuple(sorted(ranges)), head.id) for ranges, head, _ in self.shards(node))

        until(lambda: len({str(told(node)) for node in self.running}) == 1, seconds, "one view of the slots")


def _main() -> None:
    """A cluster to try things on by hand; ends with Ctrl-C."""
    with ValkeyCluster(3, 1) as cluster:
        print(cluster.url, flush=True)
        while True:
            time.sleep(1)


if __name__ == "__main__":
    _main()
