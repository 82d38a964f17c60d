"""Several shards of one cluster: what is said on one is heard on all, in one order."""

from __future__ import annotations

import random

from twisted.internet.task import deferLater

from spread.node import codes
from tests.cluster.shards import ClusterCase, Peer, RunningShard, is_clean, reactor

NOT_DELIVERED = b"error: " + codes.NOT_DELIVERED.encode() + b"\n"


def without_greeting(peer: Peer) -> list[bytes]:
    return peer.heard.splitlines()[1:]


class SeveralShards(ClusterCase):
    async def start_all(self, count: int, **settings: object) -> list[RunningShard]:
        return [await self.start(number, **settings) for number in range(count)]

    async def test_messages_cross_from_every_shard_to_every_other(self) -> None:
        shards = await self.start_all(3)
        peers = [await self.greeted(shard, number) for number, shard in enumerate(shards, 1)]
        for number, peer in enumerate(peers, 1):
            peer.says(b"from %d\n" % number)
            for other in peers:
                if other is not peer:
                    await other.until(lambda other=other, number=number: b"from %d\n" % number in other.heard)
        self.assertEqual(
            [without_greeting(peer) for peer in peers],
            [[b"from 2", b"from 3"], [b"from 1", b"from 3"], [b"from 1", b"from 2"]],
        )

    async def test_sessions_of_the_same_number_are_not_taken_for_each_other(self) -> None:
        shards = await self.start_all(2)
        first, second = [await self.greeted(shard, number) for number, shard in enumerate(shards, 1)]
        self.assertEqual([list(shard.shard._text.sessions) for shard in shards], [[1], [1]])
        first.says(b"hello\n")
        await second.hears(b"hi 2\nhello\n")
        self.assertEqual(first.heard, b"hi 1\n")

    async def test_the_numbers_of_the_greeting_are_unique_in_the_cluster(self) -> None:
        shards = await self.start_all(3)
        peers = [await self.connect(shards[number % 3]) for number in range(30)]
        for peer in peers:
            await peer.until(lambda peer=peer: peer.heard.endswith(b"\n"))
        numbers = sorted(int(peer.heard.split()[1]) for peer in peers)
        self.assertEqual(numbers, list(range(1, 31)))

    async def test_all_see_one_order_whoever_speaks(self) -> None:
        shards = await self.start_all(3)
        listeners = [await self.greeted(shard, number) for number, shard in enumerate(shards, 1)]
        speakers = [await self.greeted(shards[number % 3], 4 + number) for number in range(6)]
        chance = random.Random(5)
        said = 0
        for _ in range(40):
            for speaker in chance.sample(range(6), chance.randrange(7)):
                lines = [b"%d %d\n" % (speaker, said + index) for index in range(chance.randrange(1, 6))]
                said += len(lines)
                speakers[speaker].says(b"".join(lines))
            await deferLater(reactor, 0)
        for listener in listeners:
            await listener.until(lambda listener=listener: len(without_greeting(listener)) == said)
        orders = [without_greeting(listener) for listener in listeners]
        self.assertEqual(orders[0], orders[1])
        self.assertEqual(orders[0], orders[2])
        for speaker in range(6):
            own = [int(line.split()[1]) for line in orders[0] if line.startswith(b"%d " % speaker)]
            self.assertEqual(own, sorted(own), "what one says stays in order")
            # A speaker hears the same, but for itself.
            expected = [line for line in orders[0] if not line.startswith(b"%d " % speaker)]
            peer = speakers[speaker]
            size = len(expected)
            await peer.until(lambda peer=peer, size=size: len(without_greeting(peer)) == size)
            self.assertEqual(without_greeting(peer), expected)

    async def test_channels_of_several_shards(self) -> None:
        shards = await self.start_all(2)
        first, second = [await self.greeted(shard, number) for number, shard in enumerate(shards, 1)]
        first.says("/join 大厅\n".encode())
        await self.until(lambda: "大厅" in self.exchange.subscribers)
        second.says(b"for the lobby\n" + "/join 大厅\nfor the hall\n".encode())
        await first.hears(b"hi 1\nfor the hall\n")
        self.assertEqual(self.exchange.subscribers["大厅"].keys(), {shard.hub for shard in shards})

    async def test_a_shard_hears_only_channels_it_has_clients_in(self) -> None:
        shards = await self.start_all(2)
        first = await self.greeted(shards[0], 1)
        first.says(b"one\n")
        await self.until(lambda: shards[0].hub.counters.received == 1)
        self.assertEqual(shards[1].hub.counters.received, 0)
        self.assertEqual(shards[1].hub.counters.subscribed_channels, 0)

    async def test_one_shard_stops_and_the_others_go_on(self) -> None:
        shards = await self.start_all(3)
        peers = [await self.greeted(shard, number) for number, shard in enumerate(shards, 1)]
        stopping = shards[1].shard.stop()
        peers[0].says(b"while it stops\n")
        await stopping
        self.assertTrue(is_clean(await peers[1].ended()))
        self.assertTrue(peers[1].heard.endswith(b"bye 1\n"))
        peers[2].says(b"after it stopped\n")
        await peers[0].hears(b"hi 1\nafter it stopped\n")
        await peers[2].hears(b"hi 3\nwhile it stops\n")
        self.assertEqual(list(self.exchange.leases), [0, 2])
        successor = await self.start(1)
        again = await self.greeted(successor, 4)
        again.says(b"back again\n")
        await peers[0].hears(b"hi 1\nafter it stopped\nback again\n")

    async def test_the_roster(self) -> None:
        shards = await self.start_all(3)
        await self.greeted(shards[2], 1)
        rows = await shards[0].hub.roster()
        self.assertEqual([row.shard for row in rows], [0, 1, 2])
        self.assertEqual([row.load.clients for row in rows], [0, 0, 1])
        self.assertEqual([row.load.channels for row in rows], [0, 0, 1])
        self.assertEqual([row.load.ready for row in rows], [True] * 3)
        text = [row.load.addresses["text"] for row in rows]
        self.assertEqual(text, [f"127.0.0.1:{shard.port('text')}" for shard in shards])
        await shards[1].shard.stop()
        self.assertEqual([row.shard for row in await shards[0].hub.roster()], [0, 2])


class HubAway(ClusterCase):
    async def test_clients_stay_and_what_they_say_arrives_when_it_is_back(self) -> None:
        shards = [await self.start(number) for number in range(2)]
        first, second = [await self.greeted(shard, number) for number, shard in enumerate(shards, 1)]
        self.exchange.cut()
        first.says(b"one\n")
        second.says(b"two\n")
        await self.until(lambda: all(shard.hub.counters.journal_publications == 1 for shard in shards))
        self.assertIn("the hub memory is away", shards[0].shard.reasons_not_ready())
        self.exchange.restore()
        await second.hears(b"hi 2\none\n")
        await first.hears(b"hi 1\ntwo\n")
        self.assertEqual(shards[0].shard.reasons_not_ready(), [])
        self.assertEqual([shard.hub.counters.missed_windows for shard in shards], [1, 1])
        self.assertEqual([peer.end for peer in (first, second)], [None, None])

    async def test_what_one_client_says_before_and_after_it_is_back_stays_in_order(self) -> None:
        shards = [await self.start(number) for number in range(2)]
        first, second = [await self.greeted(shard, number) for number, shard in enumerate(shards, 1)]
        self.exchange.cut()
        said = b""
        for number in range(100):
            if number == 50:
                await self.until(lambda: shards[0].hub.counters.journal_publications > 0)
                self.exchange.restore()
            first.says(b"%d\n" % number)
            said += b"%d\n" % number
        await second.hears(b"hi 2\n" + said)

    async def test_who_speaks_for_too_long_gets_errors_and_stays(self) -> None:
        self.exchange.publish_seconds = 0.2
        shards = [await self.start(number, hub={"publish_seconds": 0.2}) for number in range(2)]
        first, second = [await self.greeted(shard, number) for number, shard in enumerate(shards, 1)]
        self.exchange.cut()
        first.says(b"one\ntwo\n/join side\nthree\n")
        await first.until(lambda: first.heard.count(b"error: ") == 3)
        away = b"error: " + codes.HUB_AWAY.encode() + b"\n"
        told = first.heard.splitlines(keepends=True)[1:4]
        self.assertEqual(sorted(told), sorted([NOT_DELIVERED, NOT_DELIVERED, away]))
        await first.until(lambda: first.heard.count(b"error: ") == 4)
        refused = await self.connect(shards[1])
        self.assertTrue(is_clean(await refused.ended()))
        self.assertEqual(refused.heard, away)
        self.exchange.restore()
        first.says(b"four\n")
        await second.hears(b"hi 2\nfour\n")
        self.assertIsNone(first.end)

    async def test_who_comes_meanwhile_is_greeted_when_it_is_back(self) -> None:
        shards = [await self.start(number) for number in range(2)]
        self.exchange.cut()
        peers = [await self.connect(shard) for shard in shards]
        await self.until(lambda: all(shard.counters.clients == 1 for shard in shards))
        self.exchange.restore()
        for peer in peers:
            await peer.until(lambda peer=peer: peer.heard.endswith(b"\n"))
        self.assertEqual({peer.heard for peer in peers}, {b"hi 1\n", b"hi 2\n"})
        peers[0].says(b"hello\n")
        await peers[1].until(lambda: peers[1].heard.endswith(b"\nhello\n"))

    async def test_a_flood_without_a_hub_does_not_fill_the_memory(self) -> None:
        ears = self.listen("lobby")
        shard = await self.start(0)
        peer = await self.greeted(shard, 1)
        self.exchange.cut()
        for _ in range(200):
            peer.says(b"x" * 9_999 + b"\n")
        await self.until(lambda: shard.counters.reading_pauses == 1)
        limits = shard.shard._settings.text
        for _ in range(20):
            await deferLater(reactor, 0.005)
            waiting = shard.hub.counters.journal_bytes
            # One read more than the limit may be on its way.
            self.assertLessEqual(waiting, limits.max_unacknowledged_bytes + 65536)
        self.exchange.restore()
        await self.until(lambda: len(ears.heard) == 200)
        self.assertEqual(shard.counters.publish_errors, 0)
