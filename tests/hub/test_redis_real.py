"""The hub on a real Valkey: the conformance suite, and what can be counted on the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import TestCase

from spread.hub.redis import RedisHub
from spread.hub.subscribe import BATCH
from tests.hub.conformance import AwayConformance, HubConformance
from tests.hub.servers import Valkey
from tests.hub.shards import Shard, deafened, eventually, redis_shard
from tests.hub.stream_conformance import StreamAwayConformance, StreamConformance


class _OnValkey:
    """One server for all cases of a class; each case begins with an empty one."""

    server: Valkey
    shards: list[Shard]

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Valkey().start()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.close()

    def setUp(self) -> None:
        self.server.command("FLUSHALL")
        self.shards = []

    def make_shard(self, **limits: Any) -> Shard:
        shard = redis_shard(self.server.url, **limits)
        self.shards.append(shard)
        return shard


class ValkeyConformance(_OnValkey, HubConformance, StreamConformance, TestCase):
    """Every case, over TCP."""

    timeout = 60

    def deafen(self, shard: Shard) -> Callable[[], None]:
        return deafened(shard)

    def forget_everything(self) -> None:
        self.server.command("FLUSHALL")

    async def dropped(self, channel: str) -> None:
        await eventually(lambda: self.server.receivers(f"spread:ch:{{{channel}}}") == 0)

    async def test_many_channels_in_few_commands(self) -> None:
        shard = await self.shard()
        await eventually(lambda: self.server.receivers("spread:hearing") == 1)
        before = self.server.calls("subscribe")
        await self.test_many_channels_in_one_turn()
        # Two more hubs, each of which subscribes to its probe channel, to the two on which it hears questions
        # and answers, and to the one where all are counted.
        self.assertEqual(self.server.calls("subscribe") - before, -(-self.many_channels // BATCH) + 2 * 4)
        await shard.hub.stop()

    async def test_the_server_sends_only_what_is_subscribed(self) -> None:
        shards = [await self.shard("a", "b"), await self.shard("b"), await self.shard()]
        self.assertEqual(self.server.receivers("spread:ch:{a}"), 1)
        self.assertEqual(self.server.receivers("spread:ch:{b}"), 2)
        for shard in shards:
            self.assertEqual(self.server.receivers(f"spread:probe:{shard.identity.incarnation}"), 1)
        shards[0].hub.unsubscribe("b")
        await eventually(lambda: self.server.receivers("spread:ch:{b}") == 1)

    async def test_publications_of_one_turn_are_one_write(self) -> None:
        shard = await self.shard()
        before = int(self.server.info("stats")["total_reads_processed"])
        results = [shard.publish("a", b"x") for _ in range(100)]
        for result in results:
            await result
        # The INFO that counts is a read itself; a heartbeat or a probe may be another.
        self.assertLess(int(self.server.info("stats")["total_reads_processed"]) - before, 6)

    async def test_connections_bear_the_name_of_the_shard(self) -> None:
        shard = await self.shard()
        clients = self.server.command("CLIENT", "LIST").decode()
        self.assertEqual(clients.count(f"name=spread-{shard.identity.incarnation}"), 2)


class ValkeyAway(_OnValkey, AwayConformance, StreamAwayConformance, TestCase):
    """The hub is away: the server is killed. What it took it still has: it keeps an append-only file."""

    timeout = 30

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Valkey(extra=["appendonly yes", "appendfsync always"]).start()

    def setUp(self) -> None:
        if self.server._process is None:
            self.server.start()
        super().setUp()

    async def take_away(self) -> None:
        self.server.kill()
        for shard in self.shards:
            assert isinstance(shard.hub, RedisHub)
            hub = shard.hub
            await eventually(lambda hub=hub: not hub.is_live and hub.server.commands.protocol is None)

    def give_back(self) -> None:
        self.server.start()
