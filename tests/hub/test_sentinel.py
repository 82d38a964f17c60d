"""Sentinel: the master is found, and found again; with real Sentinels, but for one that lies."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import hiredis
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from spread.hub import lineage, roster
from spread.hub.address import parse_hub_address
from spread.hub.api import Broken, History, Position
from spread.hub.errors import HubUnavailable
from spread.hub.redis import RedisHub
from spread.hub.topology import TlsFiles, endpoint_of
from tests.hub.servers import Sentinel, Valkey, ValkeyError, free_port, until
from tests.hub.shards import LOAD, Shard, eventually, reactor, redis_shard

KEPT = History(100, 600, 3600)


class _Cases(TestCase):
    timeout = 60

    def valkey(self, **how: Any) -> Valkey:
        server = Valkey(**how)
        self.addCleanup(server.close)
        return server.start()

    def pair(self, **how: Any) -> tuple[Valkey, Valkey]:
        """A master and its replica, in step."""
        master = self.valkey(**how)
        replica = self.valkey(replica_of=master, **how)
        until(lambda: replica.info("replication").get("master_link_status") == "up", what="replication")
        return master, replica

    def sentinel(self, master: Valkey, **how: Any) -> Sentinel:
        sentinel = Sentinel(master, "game", **how)
        self.addCleanup(sentinel.close)
        return sentinel.start()

    async def shard(self, url: str, *channels: str, connect_seconds: float = 3.0, **settings: Any) -> Shard:
        endpoint = endpoint_of(reactor, parse_hub_address(url), TlsFiles(), connect_seconds)
        shard = redis_shard(url, endpoint=endpoint, **settings)
        self.addCleanup(shard.hub.stop)
        await shard.hub.start(shard.receiver)
        for channel in channels:
            await shard.hub.subscribe(channel)
        return shard

    async def refused(self, url: str) -> str:
        """What a start that fails says."""
        shard = redis_shard(url, start_seconds=0.3)
        self.addCleanup(shard.hub.stop)
        return str(await self.assertFailure(shard.hub.start(shard.receiver), HubUnavailable))


class Failover(_Cases):
    """The master dies, or is replaced; nobody restarts a shard."""

    async def test_the_master_dies(self) -> None:
        master, replica = self.pair()
        sentinel = self.sentinel(master)
        until(lambda: sentinel.replicas == 1, what="the Sentinel knows the replica")
        settings = {"reply_seconds": 1.0, "publish_seconds": 30.0, "probe_seconds": 0.5}
        shards = [await self.shard(sentinel.url, "a", **settings) for _ in range(2)]
        self.assertEqual(master.receivers("spread:ch:{a}"), 2)
        await eventually(lambda: master.receivers("spread:hearing") == 2)
        await eventually(lambda: _counted(shards) == [2, 2])
        await shards[0].hub.claim(0, shards[0].identity)
        shards[0].hub.enter(lambda: LOAD, lambda incumbent: None)
        await shards[0].publish("a", b"before")

        master.kill()
        for shard in shards:
            await eventually(lambda shard=shard: not shard.hub.is_live)
        waited = shards[0].publish("a", b"meanwhile")
        await eventually(lambda: sentinel.master_port == replica.port, 30, "failover")
        await waited
        for shard in shards:
            await eventually(lambda shard=shard: shard.hub.is_live)
        await shards[1].publish("a", b"after")
        for shard in shards:
            await shard.hears("a", [b"before", b"meanwhile", b"after"])
            self.assertEqual(len(shard.receiver.windows), 1)
        self.assertEqual(replica.receivers("spread:ch:{a}"), 2)
        # The lease moves with it.
        await eventually(lambda: replica.command("GET", "spread:shard:0"))
        self.assertTrue(shards[0].hub.holds_lease)

        # What was the master comes back as a replica, and changes nothing.
        master.start()
        await eventually(lambda: master.info("replication")["role"] == "slave", 30, "demotion")
        await shards[0].publish("a", b"last")
        for shard in shards:
            await shard.hears("a", [b"before", b"meanwhile", b"after", b"last"])

    async def test_a_switch_by_hand(self) -> None:
        master, replica = self.pair(password="geheim")
        sentinel = self.sentinel(master)
        shard = await self.shard(sentinel.url, "a", publish_seconds=30.0)
        self.assertNotIn("geheim", shard.hub.name)
        await eventually(lambda: _switched(sentinel), 30, "SENTINEL FAILOVER is taken")
        await eventually(lambda: sentinel.master_port == replica.port, 30, "failover")
        await eventually(lambda: replica.receivers("spread:ch:{a}") == 1, 30, "the subscriber has moved")
        await shard.publish("a", b"x")
        await eventually(lambda: b"x" in shard.receiver.on("a"))
        self.assertEqual(shard.receiver.on("a"), [b"x"])

    async def test_a_demoted_master_that_still_answers_is_left(self) -> None:
        self.patch(roster, "HEARTBEAT_SECONDS", 0.1)
        old, new = self.pair()
        stub = StubSentinel(old.port)
        self.addCleanup(stub.stop)
        shard = await self.shard(stub.url, "a", probe_seconds=0.3)
        await shard.hub.claim(0, shard.identity)
        shard.hub.enter(lambda: LOAD, lambda incumbent: None)
        new.command("REPLICAOF", "NO", "ONE")
        old.command("REPLICAOF", "127.0.0.1", new.port)
        hub = shard.hub
        assert isinstance(hub, RedisHub)
        # The Sentinel has not noticed yet: what it names is tried, and left again.
        await eventually(lambda: "not the master" in str(hub.server.commands.last_error))
        self.assertFalse(hub.is_live)
        waited = shard.publish("a", b"x")
        stub.master_port = new.port
        await waited
        await eventually(lambda: hub.is_live)
        await eventually(lambda: new.command("GET", "spread:shard:0"))
        await shard.publish("a", b"y")
        await eventually(lambda: b"y" in shard.receiver.on("a"))
        self.assertEqual(shard.receiver.on("a"), [b"x", b"y"])


class Behind(_Cases):
    """A replica that lacks what was acknowledged is promoted."""

    async def detached(self) -> tuple[Valkey, Valkey, StubSentinel, Shard]:
        """Five publications are on both servers, three on the old one only."""
        old, new = self.pair()
        stub = StubSentinel(old.port)
        self.addCleanup(stub.stop)
        shard = await self.shard(stub.url, publish_seconds=30.0)
        await shard.follow("a", KEPT)
        for number in range(1, 6):
            await shard.publish("a", b"%d" % number, history=KEPT)
        await eventually(lambda: new.command("XLEN", "spread:stream:{a}") == 5)
        new.command("REPLICAOF", "127.0.0.1", free_port())
        for number in range(6, 9):
            await shard.publish("a", b"%d" % number, history=KEPT)
        await eventually(lambda: shard.receiver.offsets("a") == list(range(1, 9)))
        return old, new, stub, shard

    async def test_what_is_lost_is_told(self) -> None:
        old, new, stub, shard = await self.detached()
        epoch = shard.receiver.publications[-1][1].epoch
        old.kill()
        new.command("REPLICAOF", "NO", "ONE")
        stub.master_port = new.port
        for number in range(6, 12):
            await shard.publish("a", b"new %d" % number, history=KEPT)
        await eventually(lambda: b"new 11" in shard.receiver.on("a"))
        events = [event for _, event in shard.receiver.events]
        self.assertEqual([event.data for event in events[:8]], [b"%d" % n for n in range(1, 9)])
        self.assertIsInstance(events[8], Broken)
        self.assertEqual([event.data for event in events[9:]], [b"new %d" % n for n in range(6, 12)])
        self.assertEqual(shard.receiver.offsets("a")[8:], list(range(6, 12)))
        again = {event.epoch for event in events[9:]}
        self.assertEqual(len(again), 1)
        self.assertNotIn(epoch, again)
        # Who was at 8, or has never seen what was acknowledged after 5, is not told that all is well.
        stream = await shard.hub.history("a", KEPT, since=Position(epoch, 8), limit=-1)
        for offset in (8, 5, 3):
            self.assertFalse(stream.continues(Position(epoch, offset)))
        self.assertTrue(stream.continues(Position(again.pop(), 8)))
        # All that is kept, of both times, is of one stream.
        kept = (await shard.hub.history("a", KEPT, limit=-1)).publications
        self.assertEqual([each.offset for each in kept], list(range(1, 12)))
        self.assertEqual(len({each.epoch for each in kept}), 1)

    async def test_what_replicas_had_is_kept_and_clients_are_told_all_the_same(self) -> None:
        old, new = self.pair()
        stub = StubSentinel(old.port)
        self.addCleanup(stub.stop)
        shard = await self.shard(stub.url, publish_seconds=30.0, min_replicas=1)
        epoch = (await shard.follow("a", KEPT)).epoch
        for number in range(1, 6):
            await shard.publish("a", b"%d" % number, history=KEPT)
        old.kill()
        new.command("REPLICAOF", "NO", "ONE")
        stub.master_port = new.port
        # It has no replica any more, so that nothing is acknowledged; but it is kept, and heard.
        shard.publish("a", b"6", history=KEPT).addErrback(lambda failure: failure.trap(HubUnavailable))
        await eventually(lambda: b"6" in shard.receiver.on("a"))
        self.assertEqual(shard.receiver.offsets("a"), [1, 2, 3, 4, 5, 6])
        stream = await shard.hub.history("a", KEPT, since=Position(epoch, 3), limit=-1)
        self.assertNotEqual(stream.position.epoch, epoch)
        self.assertEqual([each.offset for each in stream.publications], [4, 5, 6])
        for offset in (3, 5, 6):  # it is not known that it was this replica that had it
            self.assertFalse(stream.continues(Position(epoch, offset)), offset)

    async def test_a_restart_from_the_file_changes_nothing(self) -> None:
        server = self.valkey(extra=["appendonly yes", "appendfsync always"])
        shard = await self.shard(server.url, "b", publish_seconds=30.0)
        first = await shard.follow("a", KEPT)
        await shard.publish("a", b"1", history=KEPT)
        server.restart()
        await shard.publish("a", b"2", history=KEPT)
        await eventually(lambda: shard.receiver.offsets("a") == [1, 2])
        self.assertEqual([event for _, event in shard.receiver.events if isinstance(event, Broken)], [])
        self.assertEqual((await shard.hub.history("a", KEPT)).position, Position(first.epoch, 2))

    async def test_a_restart_from_a_snapshot_is_told(self) -> None:
        server = self.valkey(extra=["save 3600 1"])
        shard = await self.shard(server.url, "b", publish_seconds=30.0)
        first = await shard.follow("a", KEPT)
        await shard.publish("a", b"1", history=KEPT)
        server.command("SAVE")
        await shard.publish("a", b"2", history=KEPT)
        await eventually(lambda: b"2" in shard.receiver.on("a"))  # it goes with the server otherwise
        server.restart()
        await shard.publish("a", b"3", history=KEPT)
        await eventually(lambda: b"3" in shard.receiver.on("a"))
        self.assertEqual(shard.receiver.offsets("a"), [1, 2, 2])
        position = (await shard.hub.history("a", KEPT)).position
        self.assertNotEqual(position.epoch, first.epoch)

    async def test_two_failovers_and_a_restart(self) -> None:
        # An epoch that nobody has looked at meanwhile is not taken up again.
        one, two = self.pair(extra=["appendonly yes"])
        stub = StubSentinel(one.port)
        self.addCleanup(stub.stop)
        shard = await self.shard(stub.url, publish_seconds=30.0)
        await shard.publish("a", b"1", history=KEPT)
        epoch = (await shard.hub.history("a", KEPT)).position.epoch
        await eventually(lambda: two.command("XLEN", "spread:stream:{a}") == 1)
        one.kill()
        two.command("REPLICAOF", "NO", "ONE")
        stub.master_port = two.port
        await shard.publish("b", b"1", history=KEPT)
        two.kill()
        two._replica_of = None
        two.start()
        await shard.publish("a", b"2", history=KEPT)
        position = (await shard.hub.history("a", KEPT)).position
        self.assertEqual(position.offset, 2)
        self.assertNotEqual(position.epoch, epoch)

    async def test_the_master_is_cut_off_from_the_sentinels(self) -> None:
        self.patch(lineage, "CHECK_SECONDS", 0.1)
        old, new, _, shard = await self.detached()
        hub = shard.hub
        assert isinstance(hub, RedisHub)
        endpoint: Any = hub.server.lineage._elsewhere.__self__
        stubs = [StubSentinel(port) for port in (old.port, new.port, new.port)]
        for stub in stubs:
            self.addCleanup(stub.stop)
        new.command("REPLICAOF", "NO", "ONE")
        # One of them still names the old one, as does the one that was asked until now.
        endpoint._address = replace(endpoint._address, hosts=tuple(stub.place for stub in stubs))
        await eventually(lambda: new.receivers("spread:ch:{a}") == 1)
        self.assertEqual(old.command("ROLE")[0], b"master")
        await shard.publish("a", b"new", history=KEPT)
        await eventually(lambda: b"new" in shard.receiver.on("a"))
        self.assertEqual(len([event for _, event in shard.receiver.events if isinstance(event, Broken)]), 1)

    async def test_links_to_two_servers(self) -> None:
        self.patch(lineage, "CHECK_SECONDS", 0.1)
        _old, new, stub, shard = await self.detached()
        hub = shard.hub
        assert isinstance(hub, RedisHub)
        new.command("REPLICAOF", "NO", "ONE")
        stub.master_port = new.port
        endpoint: Any = hub.server.lineage._elsewhere.__self__
        self.patch(endpoint, "_find_elsewhere", nowhere)
        assert hub.server.commands.protocol is not None
        hub.server.commands.protocol.cut("to find the other")
        await eventually(lambda: new.receivers("spread:ch:{a}") == 1)


class Finding(_Cases):
    """Which Sentinel is asked, and what is said when none knows."""

    async def test_the_second_in_the_list(self) -> None:
        master = self.valkey()
        stranger = self.sentinel(self.valkey())
        sentinel = Sentinel(master, "lobby")
        self.addCleanup(sentinel.close)
        sentinel.start()
        # One is dead, one knows other masters only; and a hub that found the third asks that one first.
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{stranger.port},127.0.0.1:{sentinel.port}"
        shard = await self.shard(f"redis+sentinel://{hosts}/lobby", "a")
        await shard.publish("a", b"x")
        await shard.hears("a", [b"x"])
        self.assertEqual(master.receivers("spread:ch:{a}"), 1)
        asked = stranger.calls("sentinel|get-master-addr-by-name")
        master.command("CLIENT", "KILL", "TYPE", "PUBSUB")
        await eventually(lambda: shard.receiver.windows)
        self.assertEqual(stranger.calls("sentinel|get-master-addr-by-name"), asked)

    async def test_a_frozen_one_is_skipped(self) -> None:
        master = self.valkey()
        frozen, sentinel = self.sentinel(master), self.sentinel(master)
        frozen.stop()
        hosts = f"127.0.0.1:{frozen.port},127.0.0.1:{sentinel.port}"
        shard = await self.shard(f"redis+sentinel://{hosts}/game", "a", connect_seconds=0.3)
        await shard.publish("a", b"x")
        await shard.hears("a", [b"x"])

    async def test_a_database_of_the_master(self) -> None:
        master = self.valkey()
        shard = await self.shard(f"{self.sentinel(master).url}/5")
        self.assertEqual(await shard.hub.next_client(), 1)
        self.assertIn("db5", master.info("keyspace"))

    async def test_none_knows_the_name(self) -> None:
        sentinel = self.sentinel(self.valkey())
        told = await self.refused(f"redis+sentinel://127.0.0.1:{sentinel.port}/nothing")
        self.assertIn(f"127.0.0.1:{sentinel.port}: knows no master named nothing", told)

    async def test_none_answers(self) -> None:
        ports = [free_port(), free_port()]
        told = await self.refused(f"redis+sentinel://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}/game")
        self.assertIn("no Sentinel knows the master", told)
        for port in ports:
            self.assertIn(f"127.0.0.1:{port}: ", told)
        self.assertIn("refused", told)

    async def test_a_stop_ends_the_search(self) -> None:
        sentinel = self.sentinel(self.valkey())
        sentinel.stop()
        shard = redis_shard(sentinel.url, start_seconds=30.0)
        started = self.assertFailure(shard.hub.start(shard.receiver), HubUnavailable)
        began = reactor.seconds()
        await shard.hub.stop()
        self.assertIn("stopping", str(await started))
        self.assertLess(reactor.seconds() - began, 1.0)

    async def test_a_password_of_the_sentinel(self) -> None:
        master = self.valkey(password="geheim")
        sentinel = self.sentinel(master, password="verborgen")
        shard = await self.shard(sentinel.url, "a")
        await shard.publish("a", b"x")
        await shard.hears("a", [b"x"])
        told = await self.refused(sentinel.url.replace("verborgen", "falsch"))
        self.assertIn("WRONGPASS", told)
        for secret in ("geheim", "verborgen", "falsch"):
            self.assertNotIn(secret, told)
        self.assertIn("NOAUTH", await self.refused(sentinel.url.partition("?")[0]))


class StubSentinel:
    """Answers as a Sentinel does, and names whom it is told to: a real one cannot be made to lag behind."""

    def __init__(self, master_port: int) -> None:
        self.master_port = master_port
        factory = Factory.forProtocol(_StubConnection)
        factory.noisy = False
        factory.stub = self
        self._listening = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.place = ("127.0.0.1", self._listening.getHost().port)
        self.url = f"redis+sentinel://127.0.0.1:{self.place[1]}/game"

    def stop(self) -> Any:
        """Stop listening; each asker closes its connection itself."""
        return self._listening.stopListening()


class _StubConnection(Protocol):
    def connectionMade(self) -> None:
        self._reader = hiredis.Reader()

    def dataReceived(self, data: bytes) -> None:
        self._reader.feed(data)
        while command := self._reader.gets():
            port = str(self.factory.stub.master_port).encode()  # type: ignore[union-attr]
            replies = {b"PING": b"+PONG\r\n", b"CLIENT": b"+OK\r\n"}
            found = b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%s\r\n" % (len(port), port)
            self.transport.write(replies.get(command[0], found))  # type: ignore[union-attr]


async def nowhere() -> str:
    """What the Sentinels would say, if all were as it was."""
    return ""


def _counted(shards: list[Shard]) -> list[int]:
    """How many shards each of them knows to hear."""
    return [shard.hub.server.gathering.known for shard in shards if isinstance(shard.hub, RedisHub)]


def _switched(sentinel: Sentinel) -> bool:
    # It refuses until it has found the replica good.
    with contextlib.suppress(ValkeyError):
        return bool(sentinel.command("SENTINEL", "FAILOVER", sentinel.service) == b"OK")
    return False
