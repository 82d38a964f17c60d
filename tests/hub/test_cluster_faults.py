"""A hub on a real cluster whose nodes die, freeze and change their parts, and whose slots move.

Channels that keep history must give each shard exactly what was acknowledged, once and in order; who
publishes to them must not get an error.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from spread.hub.api import Broken, ClientInfo, History
from spread.hub.cluster import ClusterHub, Group
from spread.hub.errors import Fenced, HubUnavailable
from spread.hub.slots import slot_of, slot_of_channel
from tests.hub.clusters import Node, ValkeyCluster
from tests.hub.shards import LOAD, Shard, cluster_shard, eventually, pause

KEPT = History(size=10_000, ttl_seconds=300, meta_ttl_seconds=3600)
KEPT_CHANNELS = [f"k{number}" for number in range(6)]
PLAIN_CHANNELS = [f"p{number}" for number in range(6)]
ANN = ClientInfo("ann", "c1")
CONTROL_SLOT = slot_of(b"{spread}")
CLUSTER = ValkeyCluster(3, 1, node_timeout_ms=800)


def setUpModule() -> None:
    CLUSTER.start()


def tearDownModule() -> None:
    CLUSTER.close()


class _Traffic:
    """One shard publishes to all channels, some hundred times a second."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._number = 0
        self.acknowledged: dict[str, list[bytes]] = {name: [] for name in KEPT_CHANNELS + PLAIN_CHANNELS}
        self.failures: list[str] = []
        self.slowest: dict[str, float] = dict.fromkeys(self.acknowledged, 0.0)
        self._call = LoopingCall(self._publish)
        self._clock: Any = self._call.clock

    def start(self) -> None:
        self._call.start(0.02)

    async def stop(self) -> None:
        if self._call.running:
            self._call.stop()
        await eventually(lambda: self._shard.hub.counters.journal_publications == 0)

    def _publish(self) -> None:
        for channel in self.acknowledged:
            self._number += 1
            data = b"%d" % self._number
            options: dict[str, Any] = {"history": KEPT} if channel.startswith("k") else {}
            published = self._shard.publish(channel, data, **options)
            published.addCallbacks(
                self._taken, self._not_taken, (channel, data, self._clock.seconds()), None, (channel,)
            )

    def _not_taken(self, failure: Failure, channel: str) -> None:
        self.failures.append(f"{channel}: {failure.getErrorMessage()}")

    def _taken(self, position: object, channel: str, data: bytes, began: float) -> None:
        self.acknowledged[channel].append(data)
        self.slowest[channel] = max(self.slowest[channel], self._clock.seconds() - began)


class ClusterFaults(TestCase):
    timeout = 60

    def setUp(self) -> None:
        CLUSTER.flush()

    async def shards(self, count: int = 2) -> list[Shard]:
        made = []
        for _ in range(count):
            shard = cluster_shard(CLUSTER.url)
            self.addCleanup(shard.hub.stop)
            await shard.hub.start(shard.receiver)
            await shard.hub.claim(None, shard.identity)
            shard.hub.enter(lambda: LOAD, lambda incumbent: None)
            for channel in KEPT_CHANNELS:
                await shard.follow(channel, KEPT)
            for channel in PLAIN_CHANNELS:
                await shard.hub.subscribe(channel)
            made.append(shard)
        return made

    def groups(self, shard: Shard) -> list[Group]:
        assert isinstance(shard.hub, ClusterHub)
        return list(shard.hub.groups)

    def ports(self, shard: Shard) -> set[int]:
        """Of the primaries, as the shard sees them."""
        return {group.primary.port for group in self.groups(shard)}

    async def live(self, *shards: Shard) -> None:
        for shard in shards:
            await eventually(lambda shard=shard: all(group.server.is_live for group in self.groups(shard)))

    async def all_there(self, traffic: _Traffic, *shards: Shard, breaks: bool = False) -> None:
        await traffic.stop()
        self.assertEqual(traffic.failures, [])
        await self.live(*shards)
        for shard in shards:
            for channel in KEPT_CHANNELS:
                await shard.hears(channel, traffic.acknowledged[channel])
            told = [event for _, event in shard.receiver.events if isinstance(event, Broken)]
            self.assertEqual(bool(told), breaks)
            for channel in PLAIN_CHANNELS:
                heard = shard.receiver.on(channel)
                self.assertEqual(len(heard), len(set(heard)), "no doubles")
                self.assertEqual(
                    heard, [data for data in traffic.acknowledged[channel] if data in set(heard)]
                )
        await self.works(*shards)

    async def works(self, *shards: Shard) -> None:
        """Plain publications are heard by all again, questions answered, leases held."""
        for channel in PLAIN_CHANNELS:
            await shards[0].publish(channel, b"now")
            for shard in shards:
                await eventually(
                    lambda shard=shard, channel=channel: shard.receiver.on(channel)[-1:] == [b"now"]
                )
        for shard in shards:
            self.assertEqual(len(await shard.hub.ask(b"?")), len(shards))
            await eventually(lambda shard=shard: shard.hub.holds_lease)

    def victim(self) -> tuple[Node, Node]:
        """A primary that has channels, and its replica, in step."""
        primary = CLUSTER.primary_of(slot_of_channel(KEPT_CHANNELS[0]))
        return primary, CLUSTER.replica_of(primary)

    def others(self, primary: Node) -> list[str]:
        """Channels that another primary serves."""
        ranges = next(ranges for ranges, head, _ in CLUSTER.shards() if head is primary)
        return [
            channel
            for channel in KEPT_CHANNELS + PLAIN_CHANNELS
            if not any(first <= slot_of_channel(channel) <= last for first, last in ranges)
        ]

    async def test_a_primary_is_killed(self) -> None:
        shards = await self.shards()
        primary, replica = self.victim()
        others = self.others(primary)
        traffic = _Traffic(shards[0])
        traffic.start()
        await pause(0.3)
        # What is acknowledged and not copied yet would be lost with it.
        await traffic.stop()
        self.assertEqual(primary.command("WAIT", 1, 2000), 1)
        primary.kill()
        traffic = _Continued(shards[0], traffic)
        traffic.start()
        await deferToThread(CLUSTER.until_promoted, replica)
        await pause(0.5)
        # The promoted copy might lack something, for all that anybody knows: who follows it is told.
        await self.all_there(traffic, *shards, breaks=True)
        self.assertLess(max(traffic.slowest[channel] for channel in others), 0.5, "they have not noticed")
        for shard in shards:
            self.assertIn(replica.port, self.ports(shard))
            self.assertTrue(shard.receiver.windows)
        primary.start()
        await deferToThread(CLUSTER.until_ok)

    async def test_a_primary_hands_over_to_its_replica(self) -> None:
        shards = await self.shards()
        old = await shards[0].hub.take("k0")
        new = await shards[1].hub.take("k0", old)
        primary, replica = self.victim()
        traffic = _Traffic(shards[0])
        traffic.start()
        await pause(0.3)
        await deferToThread(CLUSTER.fail_over, replica)
        await pause(0.5)
        await self.all_there(traffic, *shards, breaks=True)
        self.assertNotIn(primary.port, self.ports(shards[1]))
        # The replica knows the fence.
        self.assertEqual(await shards[0].hub.owner_of("k0"), new)
        await self.assertFailure(shards[0].publish("k0", b"no", fence=old), Fenced)
        await shards[1].publish("k0", b"x", fence=new)
        await deferToThread(CLUSTER.until_ok)

    async def test_a_primary_stands_still(self) -> None:
        shards = await self.shards()
        primary, replica = self.victim()
        traffic = _Traffic(shards[0])
        traffic.start()
        await pause(0.3)
        await traffic.stop()
        self.assertEqual(primary.command("WAIT", 1, 2000), 1)
        primary.stop()
        self.addCleanup(primary.cont)
        traffic = _Continued(shards[0], traffic)
        traffic.start()
        await deferToThread(CLUSTER.until_promoted, replica)
        for shard in shards:
            await eventually(lambda shard=shard: replica.port in self.ports(shard))
        await self.live(*shards)
        # It does what it was told before it learns that it is no primary any more; nobody listens.
        primary.cont()
        await pause(0.3)
        await self.all_there(traffic, *shards, breaks=True)
        await deferToThread(CLUSTER.until_ok)

    async def test_slots_move_key_by_key(self) -> None:
        shards = await self.shards()
        await shards[0].hub.add_presence("k0", ANN, 60)
        traffic = _Traffic(shards[0])
        traffic.start()
        await pause(0.3)
        for channel in ("k0", "k1", "p0", "p1"):
            slot = slot_of_channel(channel)
            source = CLUSTER.primary_of(slot)
            target = next(head for _, head, _ in CLUSTER.shards() if head is not source)
            await deferToThread(CLUSTER.migrate, slot, target)
        await pause(0.5)
        await self.all_there(traffic, *shards)
        self.assertEqual(len(await shards[1].hub.presence("k0")), 1)
        self.assertGreater(shards[0].hub.counters.redirects, 0)

    async def test_while_a_slot_is_open_what_it_keeps_goes_on(self) -> None:
        (shard,) = await self.shards(1)
        for number in range(3):
            await shard.publish("k0", b"%d" % number, history=KEPT)
        await shard.hub.add_presence("k0", ANN, 60)
        slot = slot_of_channel("k0")
        source = CLUSTER.primary_of(slot)
        target = next(head for _, head, _ in CLUSTER.shards() if head is not source)
        CLUSTER.open_migration(slot, target)
        position = await shard.publish("k0", b"here", history=KEPT)
        assert position is not None
        self.assertEqual(position.offset, 4)
        CLUSTER.move_keys(slot, source, target)
        # Its keys are there, its subscribers still here: it is taken, kept, and read when the slot has moved.
        position = await shard.publish("k0", b"there", history=KEPT)
        assert position is not None
        self.assertEqual(position.offset, 5)
        stream = await shard.hub.history("k0", KEPT, limit=-1)
        self.assertEqual(len(stream.publications), 5)
        self.assertEqual(list(await shard.hub.presence("k0")), ["c1"])
        waiting = [
            shard.publish("k0", b"once", idempotency_key="x"),
            shard.publish("k0", b"again", history=KEPT, idempotency_key="y"),
        ]
        await pause(0.3)
        self.assertFalse(any(each.called for each in waiting))
        CLUSTER.finish_migration(slot, source, target)
        for each in waiting:
            await each
        # What is not kept may come while nobody hears its slot.
        await eventually(lambda: shard.receiver.on("k0")[-1:] == [b"again"])
        heard = [data for data in shard.receiver.on("k0") if data != b"once"]
        self.assertEqual(heard, [b"0", b"1", b"2", b"here", b"there", b"again"])

    async def test_a_fence_holds_while_its_slot_moves(self) -> None:
        one, two = await self.shards()
        old = await one.hub.take("k0")
        await one.hub.save_state("k0", old, b"1", 60)
        await one.publish("k0", b"0", history=KEPT, fence=old)
        slot = slot_of_channel("k0")
        source = CLUSTER.primary_of(slot)
        target = next(head for _, head, _ in CLUSTER.shards() if head is not source)
        CLUSTER.open_migration(slot, target)
        await one.publish("k0", b"here", history=KEPT, fence=old)
        CLUSTER.move_keys(slot, source, target)
        await one.publish("k0", b"there", history=KEPT, fence=old)
        await one.hub.save_state("k0", old, b"2", 60)
        self.assertEqual(await two.hub.owner_of("k0"), old)
        new = await two.hub.take("k0", old)
        await self.assertFailure(one.publish("k0", b"no", history=KEPT, fence=old), Fenced)
        await self.assertFailure(one.hub.save_state("k0", old, b"no", 60), Fenced)
        self.assertEqual(await two.hub.load_state("k0"), b"2")
        CLUSTER.finish_migration(slot, source, target)
        await two.publish("k0", b"again", history=KEPT, fence=new)
        await self.assertFailure(one.publish("k0", b"no", history=KEPT, fence=old), Fenced)
        await self.live(one, two)
        for shard in (one, two):
            await shard.hears("k0", [b"0", b"here", b"there", b"again"])
        CLUSTER.open_migration(slot, source)
        CLUSTER.move_keys(slot, target, source)
        CLUSTER.finish_migration(slot, target, source)

    async def test_all_slots_of_a_node_move_at_once_and_back(self) -> None:
        shards = await self.shards()
        source = CLUSTER.primary_of(CONTROL_SLOT)
        ranges = next(ranges for ranges, head, _ in CLUSTER.shards() if head is source)
        target = next(head for _, head, _ in CLUSTER.shards() if head is not source)
        traffic = _Traffic(shards[0])
        traffic.start()
        await pause(0.2)
        for first, last in ranges:
            await deferToThread(CLUSTER.migrate_at_once, first, last, target)
        for shard in shards:
            await eventually(lambda shard=shard: shard.hub.counters.groups == 2)
        self.assertNotIn(source.port, self.ports(shards[0]))
        await pause(0.3)
        for first, last in ranges:
            await deferToThread(CLUSTER.migrate_at_once, first, last, source)
        for shard in shards:
            await eventually(lambda shard=shard: shard.hub.counters.groups == 3)
        await pause(0.3)
        await self.all_there(traffic, *shards)
        for shard in shards:
            self.assertEqual(shard.hub.counters.subscribed_channels, len(KEPT_CHANNELS + PLAIN_CHANNELS))
            self.assertTrue(shard.receiver.windows)
        self.assertEqual(len(await shards[0].hub.roster()), 2)

    async def test_nobody_serves_some_slots(self) -> None:
        shard = cluster_shard(CLUSTER.url, publish_seconds=1.0)
        self.addCleanup(shard.hub.stop)
        await shard.hub.start(shard.receiver)
        primary = next(
            head
            for ranges, head, _ in CLUSTER.shards()
            if not any(first <= CONTROL_SLOT <= last for first, last in ranges)
        )
        others = self.others(primary)
        lost = next(channel for channel in KEPT_CHANNELS if channel not in others)
        replica = CLUSTER.replica_of(primary)
        replica.kill()
        primary.kill()
        failed = self.assertFailure(shard.publish(lost, b"x"), HubUnavailable)
        for channel in others:
            await shard.publish(channel, b"x")
        self.assertTrue(shard.hub.is_live)
        await failed
        late = cluster_shard(CLUSTER.url, start_seconds=1.0)
        self.addCleanup(late.hub.stop)
        await late.hub.start(late.receiver)
        primary.start()
        replica.start()
        await deferToThread(CLUSTER.until_ok)
        await self.live(shard, late)
        await late.hub.subscribe(lost)
        await shard.publish(lost, b"y")
        await late.hears(lost, [b"y"])


class _Continued(_Traffic):
    """Goes on where another was stopped."""

    def __init__(self, shard: Shard, before: _Traffic) -> None:
        super().__init__(shard)
        self.acknowledged = before.acknowledged
        self.failures = before.failures
        self._number = before._number
