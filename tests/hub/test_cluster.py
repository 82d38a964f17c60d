"""The hub on a cluster: how it starts, what it may be allowed, and what it keeps where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import gatherResults
from twisted.trial.unittest import TestCase

from spread.hub.api import ClientInfo, History
from spread.hub.cluster import ClusterHub
from spread.hub.errors import HubMisconfigured, HubRefused, HubUnavailable, LinkLost
from spread.hub.slots import slot_of, slot_of_channel
from tests.hub.clusters import ValkeyCluster
from tests.hub.servers import Valkey, free_port, until
from tests.hub.shards import LOAD, Shard, cluster_shard, eventually, pause

KEPT = History(size=100, ttl_seconds=300, meta_ttl_seconds=3600)
ANN = ClientInfo("ann", "c1")
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def _documented_rule() -> str:
    """What ``docs/operations.md`` allows a shard, and besides in a cluster."""
    text = OPERATIONS.read_text()
    [rule] = [line for line in text.splitlines() if line.startswith("ACL SETUSER")]
    besides = text.partition("A cluster needs\n`")[2].partition("`")[0]
    assert besides, "the documentation has changed"
    words = rule.removeprefix("ACL SETUSER ").replace("reset ", "").replace(">PASSWORD", ">x")
    return f"{words} {' '.join(besides.split())}"


CLUSTER = ValkeyCluster(2, users=(_documented_rule(),))


def setUpModule() -> None:
    CLUSTER.start()


def tearDownModule() -> None:
    CLUSTER.close()


class Cluster(TestCase):
    timeout = 30

    def setUp(self) -> None:
        CLUSTER.flush()
        for node in CLUSTER.nodes:
            node.command("ACL", "LOG", "RESET")

    async def started(self, url: str = "", **settings: Any) -> Shard:
        shard = self.unstarted(url, **settings)
        await shard.hub.start(shard.receiver)
        return shard

    def unstarted(self, url: str = "", **settings: Any) -> Shard:
        shard = cluster_shard(url or CLUSTER.url, **settings)
        self.addCleanup(shard.hub.stop)
        return shard

    def hub(self, shard: Shard) -> ClusterHub:
        assert isinstance(shard.hub, ClusterHub)
        return shard.hub

    def as_user(self, password: str) -> str:
        return CLUSTER.url.replace("://", f"://spread:{password}@")

    async def test_the_acl_rule_of_the_documentation_allows_it(self) -> None:
        shard = await self.started(self.as_user("x"))
        await shard.hub.claim(None, shard.identity)
        shard.hub.enter(lambda: LOAD, lambda incumbent: None)
        for number in range(4):
            plain, kept = f"p{number}", f"k{number}"
            await shard.hub.subscribe(plain)
            await shard.follow(kept, KEPT)
            await shard.publish(plain, b"x")
            await shard.publish(plain, b"y", idempotency_key="z")
            await shard.publish(kept, b"x", history=KEPT, idempotency_key="z")
            await shard.hears(plain, [b"x", b"y"])
            await shard.hears(kept, [b"x"])
            await shard.hub.add_presence(kept, ANN, 60)
            self.assertEqual(await shard.hub.presence(kept), {"c1": ANN})
            await shard.hub.remove_presence(kept, "c1")
            await shard.hub.remove_history(kept)
            shard.hub.unsubscribe(plain)
        self.assertEqual(await shard.hub.ask(b"?"), [b""])
        self.assertEqual(await shard.hub.next_client(), 1)
        self.assertEqual(len(await shard.hub.roster()), 1)
        await pause(0.6)  # who lingers is left, and who hears is counted
        self.assertEqual([node.command("ACL", "LOG") for node in CLUSTER.nodes], [[], []])

    async def test_a_wrong_password(self) -> None:
        shard = self.unstarted(self.as_user("wrong"))
        await self.assertFailure(shard.hub.start(shard.receiver), HubRefused)

    async def test_a_server_that_is_no_cluster(self) -> None:
        with Valkey() as server:
            shard = self.unstarted(f"redis+cluster://127.0.0.1:{server.port}")
            error = await self.assertFailure(shard.hub.start(shard.receiver), HubMisconfigured)
            self.assertIn("use redis://", str(error))

    async def test_no_node_answers(self) -> None:
        shard = self.unstarted(f"redis+cluster://127.0.0.1:{free_port()}", start_seconds=0.3)
        error = await self.assertFailure(shard.hub.start(shard.receiver), HubUnavailable)
        self.assertIn("no node answers: 127.0.0.1:", str(error))
        self.assertIn("(tried for 0.3 s)", str(error))
        self.assertFalse(shard.hub.is_live)
        await self.assertFailure(shard.hub.next_client(), LinkLost)

    async def test_one_of_the_hosts_suffices(self) -> None:
        port = CLUSTER.nodes[1].port
        shard = await self.started(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{port}")
        self.assertEqual(shard.hub.counters.groups, 2)
        self.assertTrue(shard.hub.is_live)

    async def test_a_node_that_announces_what_cannot_be_reached(self) -> None:
        self.announce("127.0.0.2")
        self.addCleanup(self.announce, "127.0.0.1")
        shard = self.unstarted(start_seconds=0.5)
        error = await self.assertFailure(shard.hub.start(shard.receiver), HubUnavailable)
        self.assertIn("its node 127.0.0.2:", str(error))
        self.assertIn("as the cluster announces it: Connection was refused", str(error))

    def announce(self, address: str) -> None:
        """Of one node: two that cannot reach each other any more would not hear it."""
        node = CLUSTER.nodes[0]
        node.command("CONFIG", "SET", "cluster-announce-ip", address)

        def hosts() -> set[bytes]:
            told = [part[2] for each in CLUSTER.nodes for part in each.command("CLUSTER", "SLOTS")]
            return {host for host, port, *_ in told if port == node.port}

        until(lambda: hosts() == {address.encode()}, what=f"{address} announced")

    async def test_nodes_that_do_not_announce_where_they_are(self) -> None:
        for node in CLUSTER.nodes:
            node.command("CONFIG", "SET", "cluster-preferred-endpoint-type", "unknown-endpoint")
            self.addCleanup(node.command, "CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")
        shard = await self.started()
        for number in range(4):
            await shard.hub.subscribe(f"c{number}")
            await shard.publish(f"c{number}", b"x")
            await shard.hears(f"c{number}", [b"x"])

    async def test_it_is_stopped_while_it_starts(self) -> None:
        shard = self.unstarted(f"redis+cluster://127.0.0.1:{free_port()}")
        started = self.assertFailure(shard.hub.start(shard.receiver), HubUnavailable)
        await pause(0.05)
        await gatherResults([shard.hub.stop(), shard.hub.stop()])
        await started

    async def test_channels_live_in_their_slots_and_shards_in_one(self) -> None:
        shard = await self.started()
        await shard.hub.claim(None, shard.identity)
        shard.hub.enter(lambda: LOAD, lambda incumbent: None)
        names = ["lobby", "{a}b", "a}b", "{", "{}", "{{}}", "a{b}c}", "名前", "$user:1#2"]
        for name in names:
            await shard.follow(name, KEPT)
            await shard.publish(name, name.encode(), history=KEPT, idempotency_key="{x}y")
            await shard.hears(name, [name.encode()])
        await eventually(lambda: shard.hub.holds_lease)
        for node in CLUSTER.nodes:
            for key in node.command("KEYS", "*"):
                if key.startswith(b"{"):
                    self.assertEqual(slot_of(key), slot_of(b"{spread}"))
        for name in names:
            node = CLUSTER.primary_of(slot_of_channel(name))
            self.assertEqual(node.command("EXISTS", f"spread:stream:{{{name}}}"), 1)

    async def test_names_that_no_cluster_can_have_are_refused(self) -> None:
        shard = await self.started()
        await self.assertFailure(shard.hub.subscribe("}x"), HubRefused)
        await self.assertFailure(shard.publish("", b"x"), HubRefused)

    async def test_who_pauses_hears_nothing_of_any_group(self) -> None:
        shard = await self.started()
        names = [f"c{number}" for number in range(8)]
        for name in names:
            await shard.hub.subscribe(name)
        shard.hub.pause()
        for name in names:
            await shard.publish(name, b"x")
        await pause(0.05)
        self.assertEqual(shard.receiver.publications, [])
        shard.hub.resume()
        for name in names:
            await shard.hears(name, [b"x"])

    async def test_the_sequence_is_one_for_all_groups(self) -> None:
        shard = await self.started()
        for number in range(8):
            await shard.publish(f"c{number}", b"x", history=KEPT)
        taken = []
        for number in range(8):
            name = f"c{number}"
            node = CLUSTER.primary_of(slot_of_channel(name))
            fields = node.command("HGETALL", f"spread:meta:{{{name}}}")
            meta = dict(zip(fields[::2], fields[1::2], strict=True))
            origin = b"i" + bytes.fromhex(shard.identity.incarnation)
            taken.append(int(meta[origin].split()[0]))
        self.assertEqual(taken, list(range(1, 9)))
