"""The hub on several servers: where channels are, and what one server that is away does to the rest."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import gatherResults
from twisted.trial.unittest import TestCase

from spread.hub.address import MAX_SERVERS, parse_hub_addresses
from spread.hub.api import ClientInfo, History, Incumbent, Joined, Left
from spread.hub.errors import (
    HubMisconfigured,
    HubRefused,
    HubUnavailable,
    JournalFull,
    LeaseTaken,
)
from spread.hub.several import SeveralHub
from tests.hub.servers import Valkey, free_port
from tests.hub.shards import LOAD, Shard, eventually, several_shard

KEPT = History(size=100, ttl_seconds=300, meta_ttl_seconds=3600)
ANN = ClientInfo("ann", "c1")


class Several(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.servers = [Valkey().start() for _ in range(2)]
        for server in self.servers:
            self.addCleanup(server.close)

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]

    def unstarted(self, *urls: str, **settings: Any) -> Shard:
        shard = several_shard(urls or self.urls, **settings)
        self.addCleanup(shard.hub.stop)
        return shard

    async def started(self, *urls: str, **settings: Any) -> Shard:
        shard = self.unstarted(*urls, **settings)
        await shard.hub.start(shard.receiver)
        return shard

    async def entered(self, number: int | None = None, **settings: Any) -> Shard:
        shard = await self.started(**settings)
        row = str(await shard.hub.claim(number, shard.identity)).encode()
        shard.hub.enter(lambda: LOAD, lambda incumbent: None)
        for server in self.servers:
            if server.is_running:
                await eventually(lambda at=server: row in at.command("HKEYS", "spread:roster"))
        return shard

    def hub(self, shard: Shard) -> SeveralHub:
        assert isinstance(shard.hub, SeveralHub)
        return shard.hub

    def on(self, shard: Shard, server: int, name: str = "room") -> str:
        """A channel that is on this server."""
        hub = self.hub(shard)
        return next(
            channel
            for channel in (f"{name}{number}" for number in range(100))
            if hub.at(channel) is hub.hubs[server]
        )

    async def away(self, shard: Shard, server: int) -> None:
        self.servers[server].kill()
        hub = self.hub(shard).hubs[server]
        await eventually(lambda: not hub.is_live and hub.server.commands.protocol is None)

    async def back(self, shard: Shard, server: int) -> None:
        self.servers[server].start()
        await eventually(lambda: self.hub(shard).hubs[server].is_live)

    # -- where channels are ------------------------------------------------------------------------------

    async def test_each_channel_is_on_one_server_and_all_shards_agree(self) -> None:
        one = await self.started()
        other = await self.started(*self.urls[::-1])
        channels = [f"c{number}" for number in range(40)]
        for channel in channels:
            await other.follow(channel, KEPT)
            await one.publish(channel, channel.encode(), history=KEPT)
        for channel in channels:
            await other.hears(channel, [channel.encode()])
        there = [set(server.command("KEYS", "spread:stream:*")) for server in self.servers]
        self.assertEqual(there[0] & there[1], set())
        self.assertEqual(len(there[0]) + len(there[1]), 40)
        self.assertTrue(all(len(keys) > 8 for keys in there), there)

    async def test_servers_have_names_of_their_own(self) -> None:
        one = await self.started(f"{self.urls[0]}?name=x", f"{self.urls[1]}?name=y")
        ports = [server.port for server in self.servers]
        other = await self.started(
            f"redis://localhost:{ports[0]}?name=x", f"redis://localhost:{ports[1]}?name=y"
        )
        channels = [f"c{number}" for number in range(20)]
        for channel in channels:
            await other.hub.subscribe(channel)
            await one.publish(channel, channel.encode())
        for channel in channels:
            await other.hears(channel, [channel.encode()])

    async def test_a_shard_subscribes_where_the_channel_is(self) -> None:
        shard = await self.started()
        channel = self.on(shard, 1)
        await shard.hub.subscribe(channel)
        name = f"spread:ch:{{{channel}}}"
        self.assertEqual([server.receivers(name) for server in self.servers], [0, 1])

    # -- one is away -------------------------------------------------------------------------------------

    async def test_one_that_is_away_hurts_only_its_channels(self) -> None:
        shard = await self.entered(publish_seconds=0.3)
        here, gone = self.on(shard, 0), self.on(shard, 1)
        for channel in (here, gone):
            await shard.follow(channel, KEPT)
        self.assertEqual(shard.hub.counters.servers_away, 0)
        await self.away(shard, 1)
        self.assertEqual(shard.hub.counters.servers_away, 1)
        self.assertTrue(shard.hub.is_live)
        error = await self.assertFailure(shard.publish(gone, b"x", history=KEPT), HubUnavailable)
        self.assertIn(self.servers[1].url, str(error))
        await self.assertFailure(shard.hub.history(gone, KEPT), HubUnavailable)
        await self.assertFailure(shard.hub.add_presence(gone, ANN, 60), HubUnavailable)
        self.assertEqual((await shard.publish(here, b"y", history=KEPT)).offset, 1)
        await shard.hears(here, [b"y"])
        self.assertEqual(await shard.hub.ask(b"?"), [b""])
        self.assertEqual([row.shard for row in await shard.hub.roster()], [0])
        self.assertTrue(shard.hub.holds_lease)
        self.assertEqual(shard.receiver.windows, [])
        await self.back(shard, 1)
        await shard.publish(gone, b"z", history=KEPT)
        await eventually(lambda: b"z" in shard.receiver.on(gone))
        self.assertEqual(len(shard.receiver.windows), 1)
        self.assertEqual(shard.hub.counters.servers_away, 0)
        await shard.hub.stop()
        self.assertEqual(shard.hub.counters.servers_away, 0)

    async def test_the_first_one_is_no_more_needed_than_the_others(self) -> None:
        shard, other = await self.entered(), await self.entered()
        numbers = await shard.hub.next_client(), await other.hub.next_client()
        self.assertEqual(numbers, (1, 2))
        for each in (shard, other):
            await self.away_from(each, 0)
        self.assertEqual(sorted(await other.hub.ask(b"?")), [b"", b""])
        self.assertEqual([row.shard for row in await other.hub.roster()], [0, 1])
        self.assertEqual(await shard.hub.next_client(), 1)
        self.assertTrue(shard.hub.holds_lease and other.hub.holds_lease)

    async def away_from(self, shard: Shard, server: int) -> None:
        if self.servers[server].is_running:
            self.servers[server].kill()
        hub = self.hub(shard).hubs[server]
        await eventually(lambda: not hub.is_live and hub.server.commands.protocol is None)

    async def test_most_are_away(self) -> None:
        shard = await self.entered()
        for server in (0, 1):
            await self.away(shard, server)
        self.assertFalse(shard.hub.is_live)
        for asked in (shard.hub.ask(b"?"), shard.hub.roster(), shard.hub.next_client()):
            await self.assertFailure(asked, HubUnavailable)

    async def test_who_waits_for_one_takes_no_room_from_the_others(self) -> None:
        shard = await self.started(max_publications=4, publish_seconds=20.0)
        here, gone = self.on(shard, 0), self.on(shard, 1)
        await self.away(shard, 1)
        waiting = [shard.publish(gone, b"%d" % number) for number in range(4)]
        error = await self.assertFailure(shard.publish(gone, b"x"), JournalFull)
        self.assertEqual(error.waiting, 4)
        await gatherResults([shard.publish(here, b"a"), shard.publish(here, b"b")])
        # So may a server of which more is not answered yet; but not more than its share.
        taken = [shard.publish(here, b"%d" % number) for number in range(3)]
        await self.assertFailure(taken[2], JournalFull)
        await gatherResults(taken[:2])
        await self.back(shard, 1)
        await gatherResults(waiting)
        self.assertEqual(shard.hub.counters.journal_publications, 0)
        self.assertEqual(shard.hub.counters.journal_bytes, 0)

    async def test_who_left_while_it_was_away_is_told_afterwards(self) -> None:
        speaker, listener = await self.entered(), await self.entered()
        channel = self.on(speaker, 1)
        await listener.hub.subscribe(channel)
        await speaker.hub.add_presence(channel, ANN, 60)
        await speaker.hub.announce(channel, Joined(ANN))
        await eventually(lambda: (channel, Joined(ANN)) in listener.receiver.events)
        # What is announced after an outage waits for as many ears as before, once they are counted.
        await eventually(lambda: self.hub(speaker).hubs[1].server.gathering.known == 2)
        for shard in (speaker, listener):
            await self.away_from(shard, 1)
        await self.assertFailure(speaker.hub.remove_presence(channel, ANN.client), HubUnavailable)
        await self.assertFailure(speaker.hub.announce(channel, Left(ANN)), HubUnavailable)
        self.servers[1].start()
        await eventually(lambda: (channel, Left(ANN)) in listener.receiver.events)
        await eventually(lambda: self.hub(listener).hubs[1].is_live)
        self.assertEqual(await listener.hub.presence(channel), {})

    # -- the number --------------------------------------------------------------------------------------

    async def test_a_number_is_claimed_on_all(self) -> None:
        shard = await self.entered(3)
        leases = [server.command("GET", "spread:shard:3") for server in self.servers]
        self.assertTrue(all(shard.identity.incarnation.encode() in lease for lease in leases))
        self.assertEqual([server.command("HKEYS", "spread:roster") for server in self.servers], [[b"3"]] * 2)
        other = await self.started()
        await self.assertFailure(other.hub.claim(3, other.identity), LeaseTaken)
        self.assertEqual(await other.hub.claim(None, other.identity), 0)
        await shard.hub.stop()
        self.assertEqual([server.command("EXISTS", "spread:shard:3") for server in self.servers], [0, 0])

    async def test_one_that_is_taken_somewhere_is_taken_nowhere(self) -> None:
        self.servers[1].command("SET", "spread:shard:0", "somebody", "PX", 60_000)
        shard = await self.started()
        await self.assertFailure(shard.hub.claim(0, shard.identity), LeaseTaken)
        self.assertEqual(self.servers[0].command("EXISTS", "spread:shard:0"), 0)
        self.assertEqual(await shard.hub.claim(None, shard.identity), 1)
        self.assertEqual([server.command("EXISTS", "spread:shard:1") for server in self.servers], [1, 1])
        self.assertEqual([server.command("EXISTS", "spread:shard:0") for server in self.servers], [0, 1])

    async def test_a_server_that_comes_later_is_claimed_then(self) -> None:
        self.servers[1].kill()
        shard = await self.entered(start_seconds=0.3)
        self.assertEqual(shard.hub.name, ",".join(self.urls))
        channel = self.on(shard, 1)
        await self.assertFailure(shard.hub.add_presence(channel, ANN, 60), HubUnavailable)
        # Of a process of this machine that is gone: it need not run out.
        await self.back(shard, 1)
        await eventually(lambda: self.servers[1].command("EXISTS", "spread:shard:0"))
        await eventually(lambda: self.servers[1].command("HKEYS", "spread:roster") == [b"0"])
        await eventually(lambda: self.servers[1].command("HLEN", f"spread:presence:{{{channel}}}"))
        register = f"spread:register:{shard.identity.incarnation}"
        await eventually(lambda: self.servers[1].command("HLEN", register))

    async def test_a_server_that_comes_later_and_knows_another_of_this_number(self) -> None:
        self.servers[1].kill()
        lost: list[Incumbent] = []
        shard = await self.started(start_seconds=0.3)
        await shard.hub.claim(0, shard.identity)
        shard.hub.enter(lambda: LOAD, lost.append)
        self.servers[1].start()
        self.servers[1].command("SET", "spread:shard:0", "one of before", "PX", 1_500)
        await eventually(
            lambda: (
                shard.identity.incarnation.encode()
                in (self.servers[1].command("GET", "spread:shard:0") or b"")
            )
        )
        self.assertEqual(lost, [], "the other was gone, and its lease ran out")

    async def test_a_number_that_is_lost_on_one_server_is_lost(self) -> None:
        lost: list[Incumbent] = []
        shard = await self.started()
        await shard.hub.claim(0, shard.identity)
        shard.hub.enter(lambda: LOAD, lost.append)
        other = await self.started(self.urls[1], f"redis://127.0.0.1:{free_port()}", start_seconds=0.3)
        self.servers[1].command("DEL", "spread:shard:0")
        await other.hub.claim(0, other.identity)
        other.hub.enter(lambda: LOAD, lambda incumbent: None)
        await eventually(lambda: lost)
        self.assertEqual([each.identity.incarnation for each in lost], [other.identity.incarnation])

    # -- the start ---------------------------------------------------------------------------------------

    async def test_it_starts_without_one_and_not_without_most(self) -> None:
        nowhere = [f"redis://127.0.0.1:{free_port()}" for _ in range(2)]
        shard = await self.started(self.urls[0], nowhere[0], start_seconds=0.3)
        self.assertTrue(shard.hub.is_live)
        unstarted = self.unstarted(self.urls[0], *nowhere, start_seconds=0.3)
        error = await self.assertFailure(unstarted.hub.start(unstarted.receiver), HubUnavailable)
        self.assertIn(nowhere[0], str(error))

    async def test_one_that_refuses_ends_the_start(self) -> None:
        self.servers[1].command("CONFIG", "SET", "requirepass", "secret")
        shard = self.unstarted()
        error = await self.assertFailure(shard.hub.start(shard.receiver), HubRefused)
        self.assertIn(self.servers[1].url, str(error))

    async def test_two_names_of_one_server(self) -> None:
        port = self.servers[0].port
        shard = self.unstarted(f"redis://127.0.0.1:{port}", f"redis://localhost:{port}")
        error = await self.assertFailure(shard.hub.start(shard.receiver), HubMisconfigured)
        self.assertIn("are one server; name it once", str(error))

    async def test_it_stops_while_it_starts(self) -> None:
        shard = self.unstarted(*[f"redis://127.0.0.1:{free_port()}" for _ in range(2)])
        failed = self.assertFailure(shard.hub.start(shard.receiver), HubUnavailable)
        await shard.hub.stop()
        await failed

    async def test_pausing_pauses_all(self) -> None:
        shard = await self.started()
        channels = [self.on(shard, 0), self.on(shard, 1)]
        for channel in channels:
            await shard.hub.subscribe(channel)
        shard.hub.pause()
        for channel in channels:
            await shard.publish(channel, b"x")
        self.assertEqual(shard.receiver.publications, [])
        shard.hub.resume()
        for channel in channels:
            await shard.hears(channel, [b"x"])


class Addresses(TestCase):
    def wrong(self, *urls: str) -> str:
        return str(self.assertRaises(HubMisconfigured, parse_hub_addresses, " ".join(urls)))

    def test_several(self) -> None:
        found = parse_hub_addresses(
            " redis://a  rediss://:x@b:1/2\nredis+sentinel://s,t/one redis+unix:///c "
        )
        self.assertEqual(
            [each.name for each in found],
            ["redis://a:6379", "rediss://b:1/2", "redis+sentinel://s:26379,t:26379/one", "redis+unix:///c"],
        )

    def test_one(self) -> None:
        for url in ("embedded:", "memory:", "redis+cluster://a", "redis://a"):
            self.assertEqual(len(parse_hub_addresses(url)), 1)
        self.assertIn("no scheme", self.wrong(""))

    def test_what_is_a_hub_by_itself(self) -> None:
        self.assertIn("memory: is a hub by itself", self.wrong("redis://a", "memory:"))
        self.assertIn("embedded: is a hub by itself", self.wrong("embedded:", "embedded:"))
        self.assertIn("after a comma", self.wrong("redis+cluster://a", "redis+cluster://b"))

    def test_one_server_twice(self) -> None:
        self.assertIn("name it once", self.wrong("redis://a/0", "redis://:secret@a:6379/1"))
        self.assertNotIn("secret", self.wrong("redis://a/0", "redis://:secret@a:6379/1"))
        self.assertIn("name it once", self.wrong("redis+unix:///a", "redis+unix:///a?db=2"))
        self.assertIn("name it once", self.wrong("redis+sentinel://a,b/m", "redis+sentinel://b,a/m"))

    def test_names(self) -> None:
        urls = "redis://a?name=x", "redis+unix:///b?name=y", "redis+sentinel://c/m?name=z"
        self.assertEqual([each.label for each in parse_hub_addresses(" ".join(urls))], ["x", "y", "z"])
        self.assertIn("two servers have the name 'x'", self.wrong("redis://a?name=x", "redis://b?name=x"))
        self.assertIn("unknown parameter", self.wrong("redis+cluster://a?name=x"))

    def test_too_many(self) -> None:
        urls = [f"redis://host{number}" for number in range(MAX_SERVERS + 1)]
        self.assertEqual(len(parse_hub_addresses(" ".join(urls[:-1]))), MAX_SERVERS)
        self.assertIn(f"{MAX_SERVERS} at most", self.wrong(*urls))
