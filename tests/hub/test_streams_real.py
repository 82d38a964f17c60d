"""Streams on a real Valkey: killed, cut, emptied, full; and what the scripts do with what they find."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from spread.hub.api import Broken, Format, History, Position
from spread.hub.envelope import KIND_PUBLICATION, pack, pack_parts, unpack
from spread.hub.errors import HubRefused, HubUnavailable
from spread.hub.history import Histories
from spread.hub.keys import Keys
from spread.hub.redis import RedisHub
from spread.hub.scripts import script
from tests.hub.proxy import Proxy
from tests.hub.servers import Valkey, ValkeyError
from tests.hub.shards import Shard, deafened, eventually, pause, reactor, redis_shard
from tests.hub.stream_conformance import KEPT, follows

STREAM, META = "spread:stream:{a}", "spread:meta:{a}"

IN_FLIGHT = 60
"""A second try finds the first among the last 64 of its channel."""


class _OnValkey(TestCase):
    timeout = 60
    extra: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.server = Valkey(extra=self.extra).start()
        self.addCleanup(self.server.close)

    async def shard(self, url: str = "", **settings: Any) -> Shard:
        shard = redis_shard(url or self.server.url, **settings)
        self.addCleanup(shard.hub.stop)
        await shard.hub.start(shard.receiver)
        return shard

    async def entries(self, shard: Shard) -> list[bytes]:
        stream = await shard.hub.history("a", KEPT, limit=-1)
        self.assertEqual(
            [each.offset for each in stream.publications], list(range(1, stream.position.offset + 1))
        )
        return [each.data for each in stream.publications]


class Interrupted(_OnValkey):
    """Links and servers that die while much is on its way."""

    # Once a second, which is the default, is not enough here: while an fsync is under way the server puts off
    # its writes for up to two seconds, and answers all the same.
    extra = ("appendonly yes", "appendfsync always")

    async def test_killed_while_publishing(self) -> None:
        speakers = [await self.shard(publish_seconds=20.0) for _ in range(2)]
        listener = await self.shard()
        await listener.hub.subscribe("a", KEPT)
        said: list[list[bytes]] = [[], []]
        results: list[Deferred[Any]] = []
        for round_ in range(4):
            for number in range(60):
                if number == 30:
                    self.server.kill()
                for index, speaker in enumerate(speakers):
                    data = b"%d %d" % (index, round_ * 60 + number)
                    said[index].append(data)
                    results.append(speaker.publish("a", data, history=KEPT))
                await pause(0.0)
            self.server.start()
            await gatherResults(results)
            for shard in (*speakers, listener):
                await eventually(lambda shard=shard: shard.hub.is_live)
        positions = await gatherResults(results)
        entries = await self.entries(listener)
        self.assertEqual(sorted(entries), sorted(said[0] + said[1]), "each once")
        for index in (0, 1):
            own = [data for data in entries if data.startswith(b"%d " % index)]
            self.assertEqual(own, said[index], "in order")
        self.assertEqual({position.epoch for position in positions}, {positions[0].epoch})
        await listener.hears("a", entries)
        self.assertEqual(listener.receiver.offsets("a"), list(range(1, 481)))
        self.assertEqual(listener.hub.counters.broken, 0)

    async def test_links_that_are_cut_while_publishing(self) -> None:
        proxy = Proxy(reactor, self.server.port)
        self.addCleanup(proxy.stop)
        url = f"redis://127.0.0.1:{proxy.port}"
        speaker = await self.shard(url, publish_seconds=20.0)
        listener = await self.shard(url)
        begin = await listener.follow("a", KEPT)
        chance = random.Random(7)
        results = []
        expected = []
        for number in range(600):
            if number >= IN_FLIGHT:
                await eventually(lambda number=number: results[number - IN_FLIGHT].called)
            expected.append(b"%d" % number)
            results.append(speaker.publish("a", expected[-1], history=KEPT))
            if number % 100 == 50:
                for connection in list(proxy.connections):
                    if chance.random() < 0.7:
                        connection.cut()
            if number % 5 == 0:
                await pause(0.002)
        positions = await gatherResults(results)
        await eventually(lambda: listener.hub.is_live)
        self.assertEqual(await self.entries(listener), expected)
        self.assertTrue(speaker.hub.counters.publish_retries > 0)
        # The position of what was taken by a try that nobody answered is that of the publication.
        self.assertEqual(positions, [Position(begin.epoch, number) for number in range(1, 601)])
        await listener.hears("a", expected)
        self.assertEqual(listener.hub.counters.broken, 0)

    async def test_a_frozen_server_takes_everything_once(self) -> None:
        speaker = await self.shard(reply_seconds=0.4, publish_seconds=20.0)
        listener = await self.shard(probe_seconds=30.0, reply_seconds=30.0)
        await listener.hub.subscribe("a", KEPT)
        self.server.stop()
        words = [b"%d" % number for number in range(20)]
        results = [speaker.publish("a", data, history=KEPT) for data in words]
        once = [speaker.publish("a", b"once", idempotency_key="k") for _ in range(2)]
        await eventually(lambda: speaker.hub.counters.publish_retries >= 22)
        self.server.cont()
        positions = await gatherResults(results)
        await gatherResults(once)
        self.assertEqual([position.offset for position in positions], list(range(1, 21)))
        self.assertEqual(await self.entries(listener), words)
        await speaker.publish("a", b"end")
        await listener.hears("a", [*words, b"once", b"end"])

    async def test_a_server_that_has_lost_everything(self) -> None:
        shards = [await self.shard(publish_seconds=20.0) for _ in range(2)]
        for shard in shards:
            await shard.hub.subscribe("a", KEPT)
        await shards[0].publish("a", b"1", history=KEPT)
        for shard in shards:
            await shard.hears("a", [b"1"])
        self.server.command("FLUSHALL")
        self.server.restart()
        for shard in shards:
            await eventually(lambda shard=shard: shard.hub.counters.broken == 1)
        after = await shards[1].publish("a", b"2", history=KEPT)
        self.assertEqual(after.offset, 1)
        for shard in shards:
            await shard.hears("a", [b"1", b"2"])
            self.assertEqual(shard.receiver.events[1][1], Broken(Position(after.epoch, 0)))


class Scripts(_OnValkey):
    """What the scripts do with what they find in the server."""

    async def test_forgotten_scripts(self) -> None:
        shard = await self.shard()
        await shard.publish("a", b"1", history=KEPT)
        await shard.publish("a", b"once", idempotency_key="k")
        self.server.command("SCRIPT", "FLUSH")
        results = [shard.publish("a", b"%d" % number, history=KEPT) for number in range(2, 30)]
        results.append(shard.publish("a", b"once", idempotency_key="l"))
        await gatherResults(results)
        self.assertEqual(await self.entries(shard), [b"%d" % number for number in range(1, 30)])
        self.server.command("SCRIPT", "FLUSH")
        self.assertEqual((await shard.hub.history("a", KEPT)).position.offset, 29)

    async def test_a_script_is_sent_whole_once(self) -> None:
        shard = await self.shard()
        before = self.server.calls("evalsha"), self.server.calls("eval")
        for number in range(10):
            await shard.publish("a", b"%d" % number, history=KEPT)
        self.assertEqual(self.server.calls("evalsha") - before[0], 9)
        self.assertEqual(self.server.calls("eval") - before[1], 1)

    async def test_an_evicted_stream(self) -> None:
        shard, listener = await self.shard(), await self.shard()
        await listener.hub.subscribe("a", KEPT)
        first = await shard.publish("a", b"1", history=KEPT)
        self.server.command("DEL", STREAM)
        self.assertEqual(await shard.publish("a", b"2", history=KEPT), Position(first.epoch, 2))
        await listener.hears("a", [b"1", b"2"])

    async def test_an_evicted_meta(self) -> None:
        shard = await self.shard()
        first, *_ = [await shard.publish("a", b"old", history=KEPT) for _ in range(5)]
        self.server.command("DEL", META)
        after = await shard.publish("a", b"new", history=KEPT)
        self.assertEqual(after.offset, 1)
        self.assertNotEqual(after.epoch, first.epoch)
        self.assertEqual(await self.entries(shard), [b"new"])
        self.server.command("DEL", META)
        stream = await shard.hub.history("a", KEPT, limit=-1)
        self.assertEqual((stream.position.offset, stream.publications), (0, []))

    async def test_a_stream_of_another_time(self) -> None:
        shard = await self.shard()
        await shard.publish("a", b"1", history=KEPT)
        self.server.command("XADD", STREAM, "99-0", "d", "x")
        self.assertEqual((await shard.publish("a", b"2", history=KEPT)).offset, 2)
        self.server.command("SET", STREAM, "no stream")
        self.assertEqual((await shard.publish("a", b"3", history=KEPT)).offset, 3)
        stream = await shard.hub.history("a", KEPT, limit=-1)
        self.assertEqual([each.data for each in stream.publications], [b"3"])

    async def test_entries_that_cannot_be_read(self) -> None:
        shard = await self.shard()
        await shard.publish("a", b"1", history=KEPT)
        self.server.command("XADD", STREAM, "1-1", "d", b"\x02")
        self.server.command("XADD", STREAM, "1-2", "d", b"\x63" * 40)
        stream = await shard.hub.history("a", KEPT, limit=-1)
        self.assertEqual([each.data for each in stream.publications], [b"1"])
        self.assertEqual((shard.hub.counters.malformed, shard.hub.counters.unknown_versions), (1, 1))

    async def test_everything_expires(self) -> None:
        shard = await self.shard()
        history = History(size=5, ttl_seconds=100, meta_ttl_seconds=1000)
        await shard.publish("a", b"1", history=history, idempotency_key="k", version=1, version_epoch="e")
        for key, seconds in ((STREAM, 100), (META, 1000), ("spread:result:{a}:k", 300)):
            self.assertTrue(seconds - 2 <= self.server.command("TTL", key) <= seconds, key)
        self.assertEqual(
            sorted(self.server.command("KEYS", "*{a}*")),
            sorted([STREAM.encode(), META.encode(), b"spread:result:{a}:k"]),
        )
        self.server.command("EXPIRE", META, 10)
        await shard.hub.history("a", history)
        self.assertTrue(self.server.command("TTL", META) > 900)
        self.server.command("EXPIRE", META, 10)
        await shard.publish("a", b"2", history=history, version=1, version_epoch="e")
        self.assertTrue(self.server.command("TTL", META) > 900)

    def take(self, origin: int, sequence: int, data: bytes, retry: bool = False) -> Position:
        """Publish as a shard does."""
        head, tail = pack_parts(Format.TEXT, b"shard%03d" % origin, sequence, 0, data)
        given = [head, tail, 1000, 60, 600, sequence, b"1" if retry else b"0", b"", b"", 300, b"epochAAA"]
        reply = self.server.command("EVAL", script("publish")[0], 2, META, STREAM, "spread:ch:{a}", *given)
        return Position(reply[16:].decode(), int(reply[:16]))

    async def test_a_second_try_is_known(self) -> None:
        for sequence in range(1, 41):
            self.take(1, 2 * sequence, b"%d" % sequence)
            self.take(2, sequence, b"other")
        # The last one, one before it, and one that is too far back.
        self.assertEqual(self.take(1, 80, b"x", retry=True).offset, 79)
        self.assertEqual(self.take(1, 78, b"x", retry=True).offset, 77)
        self.assertEqual(self.take(1, 30, b"x", retry=True).offset, 29)
        self.assertEqual(self.take(1, 2, b"x", retry=True).offset, 80, "the top")
        self.assertEqual(self.server.command("XLEN", STREAM), 80)
        self.assertEqual(self.take(1, 81, b"x", retry=True).offset, 81, "what was not taken is")
        self.assertEqual(self.take(3, 1, b"x", retry=True).offset, 82)

    async def test_a_bounded_number_of_shards_is_remembered(self) -> None:
        for origin in range(300):
            self.take(origin, 1, b"x")
            self.assertTrue(self.server.command("HLEN", META) <= 71)
        self.assertEqual(self.take(299, 1, b"x", retry=True).offset, 300)
        self.assertEqual(self.take(280, 1, b"x", retry=True).offset, 281)
        self.assertEqual(self.take(240, 1, b"x", retry=True).offset, 241, "forgotten, but among the last")
        with self.assertRaisesRegex(ValkeyError, "UNDECIDED"):
            self.take(1, 1, b"x", retry=True)
        self.assertEqual(self.server.command("XLEN", STREAM), 300)

    async def test_no_room(self) -> None:
        shard = await self.shard()
        await shard.publish("a", b"1", history=KEPT)
        self.server.command("CONFIG", "SET", "maxmemory", "1")
        error = await self.assertFailure(shard.publish("a", b"2", history=KEPT), HubUnavailable)
        self.assertIn("OOM", str(error))
        self.server.command("CONFIG", "SET", "maxmemory", "0")
        await shard.publish("a", b"3", history=KEPT)
        self.assertEqual(await self.entries(shard), [b"1", b"3"])

    async def test_what_a_subscriber_gets_is_what_is_kept(self) -> None:
        shard = await self.shard()
        await shard.publish("a", b"x" * 10, history=KEPT)
        ((entry, (field, message)),) = self.server.command("XRANGE", STREAM, "-", "+")
        self.assertEqual((entry, field), (b"1-0", b"d"))
        kind, sequence, publication = unpack(message)
        self.assertEqual((kind, sequence, publication.offset), (KIND_PUBLICATION, 1, 1))


class Following(_OnValkey):
    """What the subscriber side notices by itself."""

    async def test_a_lost_last_one_is_found(self) -> None:
        speaker, listener = await self.shard(), await self.shard(position_check_seconds=0.3)
        await listener.hub.subscribe("a", KEPT)
        for number in range(20):
            await listener.hub.subscribe(f"other {number}", KEPT)
        hear = deafened(listener)
        await speaker.publish("a", b"1", history=KEPT)
        await pause(0.02)
        hear()
        await listener.hears("a", [b"1"], 3.0)
        self.assertEqual(listener.hub.counters.repaired, 1)

    async def test_a_server_that_has_gone_back(self) -> None:
        speaker, listener = await self.shard(), await self.shard()
        await listener.hub.subscribe("a", KEPT)
        last = [await speaker.publish("a", b"%d" % number, history=KEPT) for number in range(5)][-1]
        await follows(listener, "a", [1, 2, 3, 4, 5])
        # As a replica does that takes over, and has not got the last two.
        self.server.command("HSET", META, "s", 3)
        self.server.command("XDEL", STREAM, "4-0", "5-0")
        again = await speaker.publish("a", b"again", history=KEPT)
        self.assertEqual(again, Position(last.epoch, 4))
        await eventually(lambda: listener.hub.counters.broken == 1)
        told = listener.receiver.events[-1][1]
        assert isinstance(told, Broken)
        self.assertEqual(told.position.offset, 4)
        # Or who was at 5 and is away would be told, when there are as many again, that nothing is missing.
        self.assertNotEqual(told.position.epoch, last.epoch)
        stream = await listener.hub.history("a", KEPT)
        self.assertEqual(stream.position, told.position)
        self.assertFalse(stream.continues(last))
        await speaker.publish("a", b"more", history=KEPT)
        await follows(listener, "a", [1, 2, 3, 4, 5, 5])

    async def test_large_ones_are_read_in_small_parts(self) -> None:
        speaker, listener = await self.shard(), await self.shard()
        await listener.hub.subscribe("a", KEPT)
        hear = deafened(listener)
        sizes = [300_000] * 12 + [10] * 130 + [2_000_000] * 2 + [10] * 7
        await gatherResults([speaker.publish("a", bytes(size), history=KEPT) for size in sizes])
        await pause(0.05)
        hear()
        await speaker.publish("a", b"end", history=KEPT)
        await follows(listener, "a", list(range(1, len(sizes) + 2)))
        self.assertEqual([len(data) for data in listener.receiver.on("a")], [*sizes, 3])
        assert isinstance(listener.hub, RedisHub)
        histories = Histories(listener.hub.server.commands, Keys("spread"), listener.hub.counters)
        for since, limit, max_bytes, expected in [
            (None, 100, 1 << 20, [1, 2, 3, 4]),
            (None, 3, 1 << 20, [1, 2, 3]),
            (4, 100, 1, [5]),
            (11, 100, 400_000, list(range(12, 112))),
            (141, 100, 1 << 20, [142, 143]),
            (143, 100, 1 << 30, list(range(144, 153))),
            (144, 5, 1 << 30, list(range(145, 150))),
            (152, 100, 1, []),
        ]:
            stream = await histories.read("a", KEPT, since=since, limit=limit, max_bytes=max_bytes)
            self.assertEqual([each.offset for each in stream.publications], expected)

    async def test_many_are_repaired_after_a_loss(self) -> None:
        speaker, listener = await self.shard(), await self.shard()
        names = [f"c{number}" for number in range(300)]
        await gatherResults([listener.hub.subscribe(name, KEPT) for name in names])
        await gatherResults([speaker.publish(name, b"1", history=KEPT) for name in names])
        await eventually(lambda: len(listener.receiver.publications) == 300)
        hub = listener.hub
        assert isinstance(hub, RedisHub)
        assert hub.server.hearing.protocol is not None
        deafened(listener)
        await gatherResults([speaker.publish(name, b"2", history=KEPT) for name in names])
        hub.server.hearing.protocol.cut("lost")
        await gatherResults([speaker.publish(name, b"3", history=KEPT) for name in names])
        await eventually(lambda: len(listener.receiver.publications) >= 900)
        for name in names:
            self.assertEqual(listener.receiver.offsets(name), [1, 2, 3])
        self.assertTrue(hub.counters.repaired >= 300)
        self.assertEqual(hub.counters.broken, 0)

    async def test_a_channel_that_may_not_be_read(self) -> None:
        self.server.command("ACL", "SETUSER", "half", "on", ">pw", "~*", "&*", "+@all", "-evalsha", "-eval")
        speaker = await self.shard()
        shard = await self.shard(f"redis://half:pw@127.0.0.1:{self.server.port}", linger_seconds=0.1)
        error = await self.assertFailure(shard.hub.subscribe("a", KEPT), HubRefused)
        self.assertIn("NOPERM", str(error))
        await self.assertFailure(shard.hub.history("a", KEPT), HubRefused)
        await self.assertFailure(shard.publish("a", b"x", history=KEPT), HubRefused)
        await eventually(lambda: shard.hub.counters.subscribed_channels == 0)
        self.assertEqual(shard.hub.counters.followed_channels, 0)
        await shard.hub.subscribe("a")
        await self.assertFailure(shard.hub.subscribe("a", KEPT), HubRefused)
        await speaker.publish("a", b"x", history=KEPT)
        await shard.hears("a", [b"x"])
        self.assertEqual(shard.hub.counters.subscribed_channels, 1)

    async def test_the_acl_rule_of_the_documentation_allows_it(self) -> None:
        text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
        [rule] = [line for line in text.splitlines() if line.startswith("ACL SETUSER")]
        self.server.command(*rule.replace("PASSWORD", "x").split())
        shard = await self.shard(f"redis://spread:x@127.0.0.1:{self.server.port}")
        await shard.hub.subscribe("a", KEPT)
        for version in (1, 1, 2):
            await shard.publish("a", b"x", history=KEPT, idempotency_key=str(version), version=version)
        await shard.publish("a", b"y", idempotency_key="y")
        self.server.command("SET", STREAM, "in the way")
        await shard.publish("a", b"x", history=KEPT)
        await shard.hears("a", [b"x", b"x", b"y", b"x"])
        await shard.hub.history("a", KEPT, limit=1, reverse=True)
        await shard.hub.history("a", KEPT, limit=1)
        await shard.hub.remove_history("a")
        self.assertEqual(self.server.command("ACL", "LOG"), [])

    async def test_foreign_messages(self) -> None:
        shard = await self.shard()
        await shard.hub.subscribe("a", KEPT)
        for kind in (4, 5, 6):
            self.server.command("PUBLISH", "spread:ch:{a}", pack(kind, 0, b"x" * 8, 0, 0, b""))
        await eventually(lambda: shard.hub.counters.malformed == 3)
        self.assertEqual(shard.receiver.events, [])
