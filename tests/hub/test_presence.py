"""Who is present: one suite for all hubs, and what only one of them can show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from spread.hub.api import ClientInfo, PresenceStats
from spread.hub.errors import HubRefused, HubUnavailable
from spread.hub.memory_presence import SWEEP_SECONDS, MemoryPresence
from tests.hub.backends import Backend, OnFakeredis, OnMemory, OnValkey
from tests.hub.servers import Valkey
from tests.hub.shards import Shard, pause, redis_shard

ANN = ClientInfo("ann", "c1", b'{"name":"Ann"}', b"\x00\xff")
ANN_AGAIN = ClientInfo("ann", "c2")
BOB = ClientInfo("bob", "c3", chan_info=b"[]")


class PresenceConformance(Backend):
    """What every hub must do."""

    async def present(self, shard: Shard, channel: str, *infos: ClientInfo) -> None:
        """These are present, and counted."""
        self.assertEqual(await shard.hub.presence(channel), {info.client: info for info in infos})
        stats = PresenceStats(len(infos), len({info.user for info in infos}))
        self.assertEqual(await shard.hub.presence_stats(channel), stats)

    async def test_all_shards_see_who_is_present(self) -> None:
        one, two = await self.shard(), await self.shard()
        await self.present(one, "a")
        self.assertEqual(await one.hub.add_presence("a", ANN, 60), None)
        await two.hub.add_presence("a", ANN_AGAIN, 60)
        await two.hub.add_presence("a", BOB, 60)
        await two.hub.add_presence("b", BOB, 60)
        for shard in (one, two):
            await self.present(shard, "a", ANN, ANN_AGAIN, BOB)
            await self.present(shard, "b", BOB)
        self.assertEqual(await one.hub.presence_stats("a"), PresenceStats(3, 2))

    async def test_what_is_told_of_a_client_passes_unchanged(self) -> None:
        shard = await self.shard()
        users = ["", "3:ab", "12", ":", "-1:x", "\x00\r\n", "用户", "a b", "{x}", "%s"]
        infos = [
            ClientInfo(user, f"c{number}{user}", bytes(range(256)), user.encode())
            for number, user in enumerate(users)
        ]
        for channel in ("lobby", "x}", "{x", "房间", "a b\n", "0"):
            await gatherResults([shard.hub.add_presence(channel, info, 60) for info in infos])
            await self.present(shard, channel, *infos)

    async def test_all_anonymous_users_are_one(self) -> None:
        shard = await self.shard()
        for number in range(3):
            await shard.hub.add_presence("a", ClientInfo("", f"x{number}"), 60)
        await shard.hub.add_presence("a", ANN, 60)
        self.assertEqual(await shard.hub.presence_stats("a"), PresenceStats(4, 2))

    async def test_who_is_added_again_is_still_one(self) -> None:
        one, two = await self.shard(), await self.shard()
        for shard in (one, two, one):
            await shard.hub.add_presence("a", ANN, 60)
        await self.present(two, "a", ANN)
        # What is told of it may change, the user too.
        for changed in (ClientInfo("ann", "c1", b"new"), ClientInfo("zoe", "c1", b"new")):
            await two.hub.add_presence("a", changed, 60)
            await self.present(one, "a", changed)
        await one.hub.remove_presence("a", "c1")
        await self.present(two, "a")

    async def test_who_is_removed_is_gone(self) -> None:
        one, two = await self.shard(), await self.shard()
        for info in (ANN, ANN_AGAIN, BOB):
            await one.hub.add_presence("a", info, 60)
        self.assertEqual(await two.hub.remove_presence("a", "c1"), None)
        await self.present(one, "a", ANN_AGAIN, BOB)
        await one.hub.remove_presence("a", "c1")
        await self.present(one, "a", ANN_AGAIN, BOB)
        await one.hub.remove_presence("a", "c2")
        await self.present(one, "a", BOB)
        await one.hub.remove_presence("a", "c3")
        await self.present(one, "a")
        await one.hub.remove_presence("nobody was here", "c1")

    async def test_who_is_not_added_again_expires(self) -> None:
        one, two = await self.shard(), await self.shard()
        for channel in ("ghosts", "a", "b"):
            await one.hub.add_presence(channel, ANN, 1)
            await one.hub.add_presence(channel, ANN_AGAIN, 1)
        await two.hub.add_presence("a", BOB, 60)
        await one.hub.stop()
        await pause(0.5)
        await self.present(two, "a", ANN, ANN_AGAIN, BOB)
        await two.hub.add_presence("a", ANN, 1)
        await pause(0.6)
        await self.present(two, "a", ANN, BOB)
        await self.present(two, "ghosts")
        # What is added after all have expired is alone.
        await two.hub.add_presence("b", BOB, 60)
        await self.present(two, "b", BOB)
        await pause(0.5)
        self.assertEqual(await two.hub.presence_stats("a"), PresenceStats(1, 1))
        await self.present(two, "a", BOB)

    async def test_whoever_stays_shorter_shortens_nobody_elses_time(self) -> None:
        shard = await self.shard()
        await shard.hub.add_presence("a", ANN, 60)
        await shard.hub.add_presence("a", BOB, 0.2)
        await pause(0.3)
        await self.present(shard, "a", ANN)

    async def test_a_stopped_hub_knows_nobody(self) -> None:
        shard = await self.shard()
        await shard.hub.stop()
        for asked in (
            shard.hub.add_presence("a", ANN, 60),
            shard.hub.remove_presence("a", "c1"),
            shard.hub.presence("a"),
            shard.hub.presence_stats("a"),
        ):
            await self.assertFailure(asked, HubUnavailable)


class PresenceAway(Backend):
    """The hub is taken away."""

    async def test_while_it_is_away(self) -> None:
        shard = await self.shard()
        await shard.hub.add_presence("a", ANN, 60)
        await self.take_away(shard)
        for asked in (
            shard.hub.add_presence("a", ANN, 60),
            shard.hub.remove_presence("a", "c1"),
            shard.hub.presence("a"),
            shard.hub.presence_stats("a"),
        ):
            await self.assertFailure(asked, HubUnavailable)
        self.give_back()
        # All servers, if there are several: half of them make the hub live.
        while shard.hub.counters.servers_away or not shard.hub.is_live:
            await pause(0.01)
        await shard.hub.add_presence("a", BOB, 60)
        self.assertEqual((await shard.hub.presence("a"))["c3"], BOB)


class OfMemory(OnMemory, PresenceConformance, PresenceAway, TestCase):
    timeout = 30


class OfFakeredis(OnFakeredis, PresenceConformance, TestCase):
    timeout = 30


class OfValkey(OnValkey, PresenceConformance, PresenceAway, TestCase):
    timeout = 30

    def keys(self) -> set[str]:
        return {key.decode() for key in self.server.command("KEYS", "*presence*")}

    async def test_the_keys_of_a_channel_are_in_one_slot_and_expire(self) -> None:
        shard = await self.shard()
        await shard.hub.add_presence("a", ANN, 60)
        names = [f"spread:presence{rest}:{{a}}" for rest in ("", "_expiry", "_users")]
        self.assertEqual(self.keys(), set(names))
        for name in names:
            left = self.server.command("PTTL", name)
            self.assertTrue(58_000 < left <= 60_000, left)
        await shard.hub.remove_presence("a", ANN.client)
        self.assertEqual(self.keys(), set())

    async def test_nothing_is_left_of_a_channel_that_nobody_asks_for(self) -> None:
        shard = await self.shard()
        await shard.hub.add_presence("a", ANN, 0.2)
        await shard.hub.stop()
        await pause(0.3)
        self.assertEqual(self.server.command("KEYS", "*"), [b"spread:lineage"])

    async def test_whoever_is_added_drops_who_has_expired(self) -> None:
        shard = await self.shard()
        await shard.hub.add_presence("a", ANN, 0.2)
        await shard.hub.add_presence("a", BOB, 60)
        await pause(0.3)
        await shard.hub.add_presence("a", BOB, 60)
        self.assertEqual(self.server.command("HKEYS", "spread:presence:{a}"), [b"c3"])
        self.assertEqual(self.server.command("HGETALL", "spread:presence_users:{a}"), [b"bob", b"1"])

    async def test_a_thousand_and_more_expire_at_once(self) -> None:
        shard = await self.shard()
        crowd = [ClientInfo(f"u{number % 7}", f"c{number}") for number in range(2500)]
        await gatherResults([shard.hub.add_presence("a", info, 60) for info in crowd])
        self.assertEqual(await shard.hub.presence_stats("a"), PresenceStats(2500, 7))
        await gatherResults([shard.hub.add_presence("a", info, 0.1) for info in crowd])
        await shard.hub.add_presence("a", BOB, 60)
        await pause(0.2)
        await self.present(shard, "a", BOB)

    async def test_each_call_is_one_round_trip_and_counting_sends_no_entries(self) -> None:
        shard = await self.shard()
        crowd = [ClientInfo(f"u{number}", f"c{number}", b"x" * 1000) for number in range(200)]
        await gatherResults([shard.hub.add_presence("a", info, 60) for info in crowd])
        calls, sent = self.server.calls("evalsha"), int(self.server.info("stats")["total_net_output_bytes"])
        await shard.hub.presence_stats("a")
        self.assertLess(int(self.server.info("stats")["total_net_output_bytes"]) - sent, 20_000)
        await shard.hub.add_presence("a", crowd[0], 60)
        await shard.hub.remove_presence("a", "c0")
        self.assertEqual(len(await shard.hub.presence("a")), 199)
        self.assertEqual(self.server.calls("evalsha") - calls, 4)

    async def test_an_entry_that_cannot_be_read_is_left_out_and_counted(self) -> None:
        shard = await self.shard()
        await shard.hub.add_presence("a", ANN, 60)
        appended = b"3:zoe" + msgspec.msgpack.encode([b"x", b"y", "of a later release"])
        odd = [b"", b"nothing", b"x:y\x90", b"99:a\x90", b"-1:a\x90", b"1:\xff\x90", b"1:a", b"1:a\xc1"]
        for number, value in enumerate(odd):
            self.server.command("HSET", "spread:presence:{a}", f"odd{number}", value)
        self.server.command("HSET", "spread:presence:{a}", "later", appended)
        self.server.command("HSET", "spread:presence:{a}", b"\xff", appended)
        later = ClientInfo("zoe", "later", b"x", b"y")
        self.assertEqual(await shard.hub.presence("a"), {"c1": ANN, "later": later})
        self.assertEqual(shard.hub.counters.malformed, len(odd) + 1)
        # They do not disturb what is done with the others, and can be removed.
        for number in range(len(odd)):
            await shard.hub.remove_presence("a", f"odd{number}")
        await shard.hub.remove_presence("a", "c1")
        self.assertEqual(list(await shard.hub.presence("a")), ["later"])

    async def test_a_key_of_somebody_else(self) -> None:
        shard = await self.shard()
        self.server.command("SET", "spread:presence:{a}", "x")
        error = await self.assertFailure(shard.hub.presence("a"), HubUnavailable)
        self.assertIn("WRONGTYPE", str(error))

    async def test_the_acl_rule_of_the_documentation_allows_it_and_questions(self) -> None:
        text = (Path(__file__).parent.parent.parent / "docs" / "operations.md").read_text()
        [rule] = [line for line in text.splitlines() if line.startswith("ACL SETUSER")]
        self.server.command(*rule.replace("PASSWORD", "x").split())
        self.addCleanup(self.server.command, "ACL", "DELUSER", "spread")
        shard: Any = redis_shard(f"redis://spread:x@127.0.0.1:{self.server.port}")
        self.addCleanup(shard.hub.stop)
        await shard.hub.start(shard.receiver)
        await shard.hub.add_presence("a", ANN, 0.2)
        await shard.hub.add_presence("a", BOB, 60)
        await shard.hub.add_presence("a", ClientInfo("zoe", BOB.client), 60)
        await pause(0.3)
        self.assertEqual(await shard.hub.presence_stats("a"), PresenceStats(1, 1))
        await shard.hub.remove_presence("a", BOB.client)
        await self.present(shard, "a")
        self.assertEqual(await shard.hub.roster(), [])
        self.assertEqual(await shard.hub.ask(b"?"), [b""])
        await shard.hub.stop()
        self.assertEqual(self.server.command("ACL", "LOG"), [])

    async def test_an_acl_that_forbids_it(self) -> None:
        with Valkey(users=["spread on >x ~spread:* &spread:* +@all -zadd"]) as server:
            shard: Any = redis_shard(f"redis://spread:x@127.0.0.1:{server.port}")
            self.addCleanup(shard.hub.stop)
            await shard.hub.start(shard.receiver)
            self.assertEqual(await shard.hub.presence("a"), {})
            await self.assertFailure(shard.hub.add_presence("a", ANN, 60), HubRefused)
            await shard.hub.stop()


def test_in_memory_expired_channels_are_forgotten() -> None:
    clock = Clock()
    presence = MemoryPresence(clock)
    for number in range(10):
        presence.add(f"ch{number}", ANN, 30)
    clock.advance(SWEEP_SECONDS)
    assert len(presence) == 10
    presence.add("last", BOB, 30)
    assert len(presence) == 1
    assert presence.read("last") == {"c3": BOB}
