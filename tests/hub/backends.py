"""What a conformance suite of one ability runs on: the hub in memory, on fakeredis, on a real Valkey.

Each is a mixin for trial's ``TestCase`` that gives ``shard``; all shards of a test share one server, or
exchange, that knows nothing when the test begins.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from fakeredis import FakeRedis, TcpFakeServer
from twisted.internet.defer import Deferred, fail

from spread.hub.cluster import ClusterHub
from spread.hub.memory import Exchange, MemoryHub
from spread.hub.process import this_process
from spread.hub.reactor import Endpoint
from spread.hub.redis import RedisHub
from spread.hub.several import SeveralHub
from tests.hub.clusters import ValkeyCluster
from tests.hub.servers import Valkey
from tests.hub.shards import Shard, cluster_shard, eventually, reactor, redis_shard, several_shard

__all__ = ["Backend", "OnCluster", "OnFakeredis", "OnMemory", "OnSeveral", "OnValkey"]


class Backend:
    """What the suites use of a backend, and of ``TestCase``."""

    addCleanup: Any
    assertEqual: Any
    assertFailure: Any
    assertIn: Any
    assertLess: Any
    assertTrue: Any
    flushLoggedErrors: Any

    def make_shard(self, **settings: Any) -> Shard:
        """A shard that is not started. ``settings``: ask_seconds."""
        raise NotImplementedError

    async def shard(self, **settings: Any) -> Shard:
        """A started shard."""
        shard = self.make_shard(**settings)
        self.addCleanup(shard.hub.stop)
        await shard.hub.start(shard.receiver)
        return shard

    async def take_away(self, *shards: Shard) -> None:
        """Take the hub away, and wait until these know."""
        raise NotImplementedError

    def give_back(self) -> None:
        """Give it back."""
        raise NotImplementedError

    async def gone(self, shard: Shard) -> None:
        """Wait until the server knows that a stopped shard is gone."""


class OnMemory(Backend):
    """One exchange."""

    def setUp(self) -> None:
        self.exchange = Exchange(reactor)

    def make_shard(self, **settings: Any) -> Shard:
        identity = this_process("test")
        return Shard(MemoryHub(self.exchange, identity.incarnation, **settings), identity)

    async def take_away(self, *shards: Shard) -> None:
        self.exchange.cut()

    def give_back(self) -> None:
        self.exchange.restore()


class OnFakeredis(Backend):
    """A second, independent server, in a thread. It cannot be taken away."""

    def setUp(self) -> None:
        # It ends a connection at any fault of its own, and tells why only here.
        logging.getLogger("fakeredis").setLevel(logging.DEBUG)
        self.server = TcpFakeServer(("127.0.0.1", 0), server_type="valkey")
        # No thread of it may outlive the tests, not even after one that failed.
        self.server.daemon_threads = True
        self.server.block_on_close = False
        serve = self.server.serve_forever
        thread = threading.Thread(target=serve, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        # It closes a connection that it answered with an error, so NOSCRIPT must not come.
        client = FakeRedis(server=self.server.fake_server)
        for script in files("spread.hub.lua").iterdir():
            if script.name.endswith(".lua"):
                client.script_load(script.read_text())
        client.close()
        self.addCleanup(thread.join)
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)

    def make_shard(self, **settings: Any) -> Shard:
        return redis_shard(f"redis://127.0.0.1:{self.server.server_address[1]}", **settings)

    async def gone(self, shard: Shard) -> None:
        client = FakeRedis(server=self.server.fake_server)
        self.addCleanup(client.close)
        channel = f"spread:control:{shard.identity.incarnation}"
        await eventually(lambda: client.pubsub_numsub(channel) == [(channel.encode(), 0)])


class OnValkey(Backend):
    """One server for all cases of a class."""

    server: Valkey

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Valkey().start()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.close()

    def setUp(self) -> None:
        if not self.server.is_running:
            self.server.start()
        self.server.command("FLUSHALL")

    def make_shard(self, **settings: Any) -> Shard:
        return redis_shard(self.server.url, **settings)

    async def take_away(self, *shards: Shard) -> None:
        self.server.kill()
        for shard in shards:
            hub = shard.hub
            assert isinstance(hub, RedisHub)
            await eventually(lambda hub=hub: not hub.is_live and hub.server.commands.protocol is None)

    def give_back(self) -> None:
        self.server.start()

    async def gone(self, shard: Shard) -> None:
        channel = f"spread:control:{shard.identity.incarnation}"
        await eventually(lambda: self.server.receivers(channel) == 0)


class OnSeveral(Backend):
    """Two servers with a part of the channels each, for all cases of a class."""

    valkeys: list[Valkey]

    @classmethod
    def setUpClass(cls) -> None:
        durable = ["appendonly yes", "appendfsync always"]
        cls.valkeys = [Valkey(extra=durable).start() for _ in range(2)]

    @classmethod
    def tearDownClass(cls) -> None:
        for server in cls.valkeys:
            server.close()

    def setUp(self) -> None:
        for server in self.valkeys:
            if not server.is_running:
                server.start()
            server.command("FLUSHALL")
        self.made: list[Shard] = []

    def make_shard(self, **settings: Any) -> Shard:
        shard = several_shard([server.url for server in self.valkeys], **settings)
        self.made.append(shard)
        return shard

    async def take_away(self, *shards: Shard) -> None:
        for server in self.valkeys:
            server.kill()
        for shard in shards or self.made:
            assert isinstance(shard.hub, SeveralHub)
            for hub in shard.hub.hubs:
                await eventually(lambda hub=hub: not hub.is_live and hub.server.commands.protocol is None)

    def give_back(self) -> None:
        for server in self.valkeys:
            server.start()

    async def gone(self, shard: Shard) -> None:
        channel = f"spread:control:{shard.identity.incarnation}"
        await eventually(lambda: self.receivers(channel) == 0)

    def receivers(self, channel: str) -> int:
        """How many connections are subscribed to a Redis channel, wherever it is."""
        return sum(server.receivers(channel) for server in self.valkeys)


class OnCluster(Backend):
    """A cluster that a module starts and stops. It is taken away by cutting all ways to its nodes."""

    cluster: ValkeyCluster

    def setUp(self) -> None:
        self.cluster.flush()
        self.is_away = False
        self.made: list[Shard] = []

    def make_shard(self, **settings: Any) -> Shard:
        shard = cluster_shard(self.cluster.url, gate=self._gated, **settings)
        self.made.append(shard)
        return shard

    def _gated(self, endpoint: Endpoint) -> Endpoint:
        return _Gated(endpoint, lambda: self.is_away)

    async def take_away(self, *shards: Shard) -> None:
        self.is_away = True
        for shard in shards or self.made:
            hub = shard.hub
            assert isinstance(hub, ClusterHub)
            for group in hub.groups:
                group.server.begin_anew("taken away")
            servers = [group.server for group in hub.groups]
            await eventually(lambda hub=hub: not hub.is_live)
            await eventually(lambda servers=servers: not any(server.commands.protocol for server in servers))

    def give_back(self) -> None:
        self.is_away = False

    async def gone(self, shard: Shard) -> None:
        channel = f"{{spread}}:control:{shard.identity.incarnation}"
        await eventually(lambda: self.receivers(channel) == 0)

    def receivers(self, channel: str) -> int:
        """How many connections are subscribed to a Redis channel, wherever it is."""
        return sum(node.receivers(channel) for node in self.cluster.running)


class _Gated:
    def __init__(self, endpoint: Endpoint, is_closed: Callable[[], bool]) -> None:
        self._endpoint = endpoint
        self._is_closed = is_closed

    def connect(self, factory: Any) -> Deferred[Any]:
        if self._is_closed():
            return fail(ConnectionRefusedError("the gate is closed"))
        return self._endpoint.connect(factory)
