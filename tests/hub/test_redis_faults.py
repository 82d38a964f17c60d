"""The hub on a Valkey that is killed, frozen, cut off and refuses: nothing is passed over in silence."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from spread.hub import roster
from spread.hub.address import parse_hub_address
from spread.hub.api import Incumbent, ShardIdentity
from spread.hub.errors import HubRefused, HubUnavailable, JournalFull, LeaseTaken
from spread.hub.redis import RedisHub, RedisHubSettings
from spread.hub.topology import TlsFiles, endpoint_of
from tests.hub.proxy import Proxied, Proxy
from tests.hub.servers import Valkey, free_port
from tests.hub.shards import LOAD, Recorder, Shard, eventually, pause, reactor, redis_shard


class _Faults(TestCase):
    timeout = 60

    def valkey(self, **how: Any) -> Valkey:
        server = Valkey(**how)
        self.addCleanup(server.close)
        return server.start()

    def proxy(self, server: Valkey) -> Proxy:
        proxy = Proxy(reactor, server.port)
        self.addCleanup(proxy.stop)
        return proxy

    async def shard(self, url: str, *channels: str, **settings: Any) -> Shard:
        shard = redis_shard(url, **settings)
        self.addCleanup(shard.hub.stop)
        await shard.hub.start(shard.receiver)
        for channel in channels:
            await shard.hub.subscribe(channel)
        return shard


class Killed(_Faults):
    """SIGKILL, and a new server that knows nothing."""

    async def test_ten_times_under_publishing(self) -> None:
        server = self.valkey()
        speaker = await self.shard(server.url, "a", publish_seconds=10.0)
        listener = await self.shard(server.url, "a")
        taken: list[int] = []
        for round_ in range(10):
            # Who has not been counted is not waited for.
            await eventually(lambda: [_known(shard) for shard in (speaker, listener)] == [2, 2])
            numbers = range(round_ * 100, round_ * 100 + 100)
            results: list[Deferred[None]] = []
            for number in numbers:
                if number % 100 == 50:
                    server.kill()
                results.append(speaker.publish("a", b"%d" % number))
                if number % 10 == 0:
                    await pause(0.001)
            await pause(0.02)
            server.start()
            await gatherResults(results)
            taken.extend(numbers)
            for shard in (speaker, listener):
                await eventually(lambda shard=shard: shard.hub.is_live)
                self.assertEqual(len(shard.receiver.windows), round_ + 1)
        # A last one each, so that what is on its way has arrived.
        await speaker.publish("a", b"end")
        for shard in (speaker, listener):
            await eventually(lambda shard=shard: shard.receiver.on("a")[-1] == b"end")
            heard = [int(data) for data in shard.receiver.on("a")[:-1]]
            self.assertEqual(heard, sorted(set(heard)), "in order, and none twice")
            self.assertEqual(len(shard.receiver.windows), 10)
            self.assertEqual(shard.hub.counters.missed_windows, 10)
            # Both links, each time.
            self.assertEqual(shard.hub.counters.reconnects, 20)
            # All that waited in the journal was heard. Lost is at most what was on its way through the server
            # when it died: some of the first 50 of a round, and what the same turn had sent.
            for number in set(taken) - set(heard):
                self.assertTrue(number % 100 <= 60, f"{number} was published to a dead server, and lost")
        self.assertEqual(speaker.hub.counters.published, 1001)
        self.assertEqual(speaker.hub.counters.publish_failures, 0)

    async def test_what_waited_reaches_everybody(self) -> None:
        server = self.valkey()
        shards = [await self.shard(server.url, "a", publish_seconds=20.0) for _ in range(3)]
        waited: list[bytes] = []
        for round_ in range(3):
            await eventually(lambda: [_known(shard) for shard in shards] == [3, 3, 3])
            server.kill()
            for shard in shards:
                await eventually(lambda shard=shard: _links(shard) == [None, None])
            results = []
            for number in range(50):
                for index in (0, 1):
                    data = b"%d %d" % (index, round_ * 50 + number)
                    waited.append(data)
                    results.append(shards[index].publish("a", data))
            server.start()
            await gatherResults(results)
            # What is on its way to a subscriber when the server dies is lost, as plain channels may lose it.
            for shard in shards:
                await eventually(lambda shard=shard: len(shard.receiver.publications) >= len(waited))
        for shard in shards:
            await eventually(lambda shard=shard: len(shard.receiver.publications) >= len(waited))
            heard = shard.receiver.on("a")
            self.assertEqual(sorted(heard), sorted(waited), "all of it, and nothing twice")
            for index in (b"0", b"1"):
                own = [data for data in heard if data.startswith(index)]
                self.assertEqual(own, [data for data in waited if data.startswith(index)])
            self.assertEqual(len(shard.receiver.windows), 3)
        self.assertEqual(len({tuple(shard.receiver.on("a")) for shard in shards}), 1, "one order for all")

    async def test_a_server_that_stays_away(self) -> None:
        server = self.valkey()
        shard = await self.shard(server.url, publish_seconds=0.3, max_publications=2, max_bytes=100)
        server.kill()
        await eventually(lambda: not shard.hub.is_live)
        began = reactor.seconds()
        waiting = [shard.publish("a", b"x" * 40) for _ in range(2)]
        full = await self.assertFailure(shard.publish("a", b"y"), JournalFull)
        self.assertEqual((full.waiting, full.waiting_bytes), (2, 80))
        self.assertIn("2 publications (80 bytes)", str(full))
        for each in waiting:
            error = await self.assertFailure(each, HubUnavailable)
            self.assertIn("away for 0.3 s", str(error))
        self.assertTrue(0.25 < reactor.seconds() - began < 2)
        self.assertEqual(shard.hub.counters.publish_failures, 3)

    async def test_start_gives_up_in_time(self) -> None:
        server = self.valkey()
        server.kill()
        shard = redis_shard(server.url, start_seconds=0.3)
        self.addCleanup(shard.hub.stop)
        error = await self.assertFailure(shard.hub.start(shard.receiver), HubUnavailable)
        self.assertIn("Connection refused", str(error))
        self.assertIn("tried for 0.3 s", str(error))

    async def test_start_waits_for_a_server_that_comes(self) -> None:
        server = self.valkey()
        server.kill()
        shard = redis_shard(server.url, start_seconds=10.0)
        self.addCleanup(shard.hub.stop)
        started = shard.hub.start(shard.receiver)
        await pause(0.1)
        server.start()
        await started
        self.assertTrue(shard.hub.is_live)
        self.assertEqual(shard.receiver.windows, [], "a start is not a loss")

    async def test_stop_ends_a_start(self) -> None:
        server = self.valkey()
        server.kill()
        shard = redis_shard(server.url)
        started = shard.hub.start(shard.receiver)
        failed = self.assertFailure(started, HubUnavailable)
        await pause(0.1)
        await shard.hub.stop()
        self.assertIn("stopping", str(await failed))

    async def test_who_hears_of_that_may_stop_it_too(self) -> None:
        url = f"redis://127.0.0.1:{free_port()}"
        address = parse_hub_address(url)
        stops: list[None] = []

        async def stopped() -> None:
            stops.append(None)

        hub = RedisHub(
            reactor,
            address,
            endpoint_of(reactor, address, TlsFiles(), 3.0),
            "00" * 8,
            RedisHubSettings(),
            stopped=lambda: Deferred.fromCoroutine(stopped()),
        )
        started = hub.start(Recorder())
        started.addErrback(lambda failure: hub.stop())
        await hub.stop()
        await started
        self.assertEqual(len(stops), 1)


class Forgetful(_Faults):
    async def test_a_server_that_has_lost_all_keys_keeps_its_generation(self) -> None:
        server = self.valkey()
        shard = await self.shard(server.url)
        hub = shard.hub
        assert isinstance(hub, RedisHub)
        before = server.command("HGET", "spread:lineage", "g")
        server.command("FLUSHALL")
        first = hub.server.commands.protocol
        assert first is not None
        first.cut("test")
        await eventually(lambda: hub.server.commands.protocol not in (None, first))
        connection = hub.server.commands.protocol
        assert connection is not None
        self.assertTrue(before)
        self.assertEqual(server.command("HGET", "spread:lineage", "g"), before)
        self.assertEqual(connection.generation, before)

    async def test_who_waits_for_the_start_hears_of_restored_subscriptions(self) -> None:
        server = self.valkey()
        shard = await self.shard(server.url)
        hub = shard.hub
        assert isinstance(hub, RedisHub)
        await hub.subscribe("a")
        seen: list[bool] = []
        hub.server._became_live = lambda: seen.append(hub.is_live)
        hub.server.hearing.begin_anew("test")
        await eventually(lambda: hub.is_live and len(seen) > 1)
        self.assertEqual(seen, [False, True])


class Frozen(_Faults):
    """SIGSTOP: everything stays open, nothing answers."""

    async def test_noticed_and_recovered(self) -> None:
        server = self.valkey()
        shard = await self.shard(server.url, "a", reply_seconds=0.5, probe_seconds=0.3, publish_seconds=20.0)
        await shard.publish("a", b"1")
        server.stop()
        began = time.monotonic()
        result = shard.publish("a", b"2")
        await eventually(lambda: not shard.hub.is_live, 5)
        self.assertTrue(0.4 < time.monotonic() - began < 1.5, "within reply_seconds")
        await pause(1.0)
        self.assertFalse(result.called)
        server.cont()
        await result
        await eventually(lambda: shard.hub.is_live)
        await shard.publish("a", b"3")
        await eventually(lambda: b"3" in shard.receiver.on("a"))
        self.assertEqual(shard.receiver.on("a"), [b"1", b"2", b"3"])
        # The subscriber was not deaf, the server was frozen: its connection lives, and nothing was lost.
        self.assertEqual(shard.receiver.windows, [])

    async def test_a_publication_taken_twice_is_heard_once(self) -> None:
        server = self.valkey()
        speaker = await self.shard(server.url, reply_seconds=0.5, publish_seconds=20.0)
        # Patient, so that it still has the connection on which the server speaks first when it wakes.
        listener = await self.shard(server.url, "a", probe_seconds=30.0, reply_seconds=30.0)
        server.stop()
        results = [speaker.publish("a", b"%d" % number) for number in range(20)]
        await eventually(lambda: speaker.hub.counters.publish_retries >= 20)
        server.cont()
        await gatherResults(results)
        await speaker.publish("a", b"end")
        await eventually(lambda: b"end" in listener.receiver.on("a"))
        self.assertEqual(listener.receiver.on("a"), [*(b"%d" % number for number in range(20)), b"end"])
        self.assertEqual(listener.hub.counters.duplicates, 20)

    async def test_in_the_middle_of_the_handshake(self) -> None:
        # What stopped Synapse for good (matrix-org/synapse#9351): a timeout of AUTH is no refusal.
        server = self.valkey(password="geheim")
        shard = await self.shard(server.url, "a", reply_seconds=0.3, probe_seconds=0.2)
        server.stop()
        hub = shard.hub
        assert isinstance(hub, RedisHub)
        await eventually(lambda: hub.server.commands.protocol is None and hub.server.hearing.protocol is None)
        # Several attempts, each of which connects (the kernel answers) and then waits for AUTH in vain.
        before = hub.server.commands._failures
        await eventually(lambda: hub.server.commands._failures >= before + 3)
        self.assertIn("no reply within 0.3 s", str(hub.server.commands.last_error))
        server.cont()
        await eventually(lambda: hub.is_live)
        await shard.publish("a", b"x")
        await shard.hears("a", [b"x"])

    async def test_while_it_starts(self) -> None:
        server = self.valkey(password="geheim")
        server.stop()
        shard = redis_shard(server.url, reply_seconds=0.2, start_seconds=0.7)
        self.addCleanup(shard.hub.stop)
        error = await self.assertFailure(shard.hub.start(shard.receiver), HubUnavailable)
        self.assertIn("no reply within 0.2 s", str(error))
        self.assertNotIn("geheim", str(error))

    async def test_a_stop_does_not_wait_for_it(self) -> None:
        server = self.valkey()
        shard = await self.shard(server.url, "a")
        await shard.hub.claim(0, shard.identity)
        failed = self.assertFailure(shard.publish("a", b"x"), HubUnavailable)
        server.stop()
        began = time.monotonic()
        failed = self.assertFailure(shard.publish("a", b"x"), HubUnavailable)
        await shard.hub.stop()
        await failed
        self.assertLess(time.monotonic() - began, 4)


class Deaf(_Faults):
    """The connection is open, and carries nothing any more."""

    async def test_a_deaf_subscriber_is_cut_and_hears_again(self) -> None:
        server = self.valkey()
        proxy = self.proxy(server)
        shard = await self.shard(f"redis://127.0.0.1:{proxy.port}", "a", probe_seconds=0.3)
        speaker = await self.shard(server.url)
        (subscriber,) = proxy.find(b"SUBSCRIBE")
        began = reactor.seconds()
        subscriber.swallow()
        await speaker.publish("a", b"lost")
        await eventually(lambda: shard.hub.counters.deaf_links == 1, 5)
        self.assertTrue(0.3 < reactor.seconds() - began < 1.5)
        # The connection is lost a turn after it is cut; until then the hub looks live.
        await eventually(lambda: shard.hub.counters.reconnects == 1 and shard.hub.is_live)
        await speaker.publish("a", b"heard")
        await shard.hears("a", [b"heard"])
        self.assertEqual(shard.hub.counters.reconnects, 1, "the command link was left alone")
        # The window began when the connection went deaf, not when that was noticed.
        (window,) = shard.receiver.windows
        self.assertGreater(window, 0.3)

    async def test_a_silent_channel_is_not_deaf(self) -> None:
        server = self.valkey()
        shard = await self.shard(server.url, "a", probe_seconds=0.1)
        await pause(0.8)
        self.assertEqual(shard.hub.counters.deaf_links, 0)
        self.assertEqual(shard.hub.counters.reconnects, 0)

    async def test_a_paused_subscriber_is_not_deaf(self) -> None:
        server = self.valkey()
        shard = await self.shard(server.url, "a", probe_seconds=0.1, reply_seconds=0.2)
        shard.hub.pause()
        joined = shard.hub.subscribe("b")
        await pause(0.8)
        self.assertFalse(joined.called)
        shard.hub.resume()
        await joined
        self.assertEqual(shard.hub.counters.reconnects, 0)

    async def test_both_links_black_holed(self) -> None:
        server = self.valkey()
        proxy = self.proxy(server)
        shard = await self.shard(f"redis://127.0.0.1:{proxy.port}", "a", probe_seconds=0.3, reply_seconds=0.5)
        proxy.each(Proxied.swallow)
        result = shard.publish("a", b"x")
        await eventually(lambda: not shard.hub.is_live, 5)
        await result
        self.assertEqual(shard.hub.counters.publish_retries, 1)
        await eventually(lambda: len(shard.receiver.windows) == 1)
        self.assertEqual(shard.hub.counters.deaf_links, 1)
        await shard.publish("a", b"y")
        await eventually(lambda: shard.receiver.on("a")[-1:] == [b"y"])

    async def test_a_pause_outlives_a_cut(self) -> None:
        server = self.valkey()
        proxy = self.proxy(server)
        shard = await self.shard(f"redis://127.0.0.1:{proxy.port}", "a")
        speaker = await self.shard(server.url)
        proxy.each(Proxied.cut)
        await eventually(lambda: not shard.hub.is_live)
        shard.hub.pause()
        await eventually(lambda: server.receivers("spread:ch:{a}") == 1)
        await speaker.publish("a", b"x")
        await pause(0.2)
        self.assertEqual(shard.receiver.publications, [])
        shard.hub.resume()
        await shard.hears("a", [b"x"])

    async def test_a_cut_in_a_pause_is_noticed_after_it(self) -> None:
        server = self.valkey()
        proxy = self.proxy(server)
        shard = await self.shard(f"redis://127.0.0.1:{proxy.port}", "a")
        shard.hub.pause()
        proxy.each(Proxied.cut)
        await eventually(lambda: server.receivers("spread:ch:{a}") == 0)
        shard.hub.resume()
        await eventually(lambda: len(shard.receiver.windows) == 1)
        await shard.publish("a", b"x")
        await shard.hears("a", [b"x"])


class Changed(_Faults):
    """The server answers, but is not what it was."""

    async def test_subscribers_are_killed(self) -> None:
        server = self.valkey()
        shard = await self.shard(server.url, "a", "b")
        server.command("CLIENT", "KILL", "TYPE", "PUBSUB")
        await eventually(lambda: shard.receiver.windows)
        self.assertEqual(shard.hub.counters.reconnects, 1, "the command link was left alone")
        for name in ("a", "b"):
            await shard.publish(name, b"x")
            await shard.hears(name, [b"x"])

    async def test_demoted_by_hand(self) -> None:
        self.patch(roster, "HEARTBEAT_SECONDS", 0.3)
        server, other = self.valkey(), self.valkey()
        shard = await self.shard(server.url, "a")
        await shard.hub.claim(0, shard.identity)
        lost: list[Incumbent] = []
        shard.hub.enter(lambda: LOAD, lost.append)
        server.command("REPLICAOF", "127.0.0.1", other.port)
        await eventually(lambda: shard.hub.counters.reconnects >= 1)
        await pause(1.3)
        # A server that stays a replica is left once a heartbeat, not as fast as it says so.
        self.assertTrue(2 <= shard.hub.counters.reconnects <= 6, shard.hub.counters.reconnects)
        server.command("REPLICAOF", "NO", "ONE")
        await eventually(lambda: server.command("GET", "spread:shard:0"))
        await eventually(lambda: shard.hub.is_live and shard.hub.holds_lease)
        await shard.publish("a", b"x")
        await shard.hears("a", [b"x"])
        self.assertEqual(lost, [])

    async def test_everything_is_flushed(self) -> None:
        self.patch(roster, "HEARTBEAT_SECONDS", 0.1)
        server = self.valkey()
        shard = await self.shard(server.url, "a")
        await shard.hub.claim(4, shard.identity)
        lost: list[Incumbent] = []
        shard.hub.enter(lambda: LOAD, lost.append)
        await eventually(lambda: server.command("HEXISTS", "spread:roster", 4))
        for command in (("FLUSHALL",), ("SCRIPT", "FLUSH")):
            server.command(*command)
        await eventually(lambda: server.command("GET", "spread:shard:4"))
        self.assertEqual([row.shard for row in await shard.hub.roster()], [4])
        self.assertTrue(shard.hub.holds_lease)
        self.assertEqual(lost, [])
        other = await self.shard(server.url)
        await self.assertFailure(other.hub.claim(4, other.identity), LeaseTaken)


class Leases(_Faults):
    """Who holds the number of a shard that died, or was away too long."""

    async def test_a_killed_process_of_this_machine(self) -> None:
        server = self.valkey()
        identity = "import sys, msgspec; from spread.hub.process import this_process as this; "
        identity += "print(msgspec.json.encode(this('test')).decode(), flush=True); sys.stdin.read()"
        with subprocess.Popen(
            [sys.executable, "-c", identity], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            self.addCleanup(process.kill)
            assert process.stdout is not None
            victim = msgspec.json.decode(process.stdout.readline(), type=ShardIdentity)
            self.assertEqual(victim.pid, process.pid)
            holder, claimant = await self.shard(server.url), await self.shard(server.url)
            await holder.hub.claim(0, victim)
            error = await self.assertFailure(claimant.hub.claim(0, claimant.identity), LeaseTaken)
            self.assertEqual((error.shard, error.host, error.pid), (0, victim.host, process.pid))
            self.assertEqual(await claimant.hub.claim(None, claimant.identity), 1)
            process.kill()
            # At once: while its parent has not looked it is a zombie, and gone all the same.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            self.assertEqual(await claimant.hub.claim(0, claimant.identity), 0)
        another = await self.shard(server.url)
        error = await self.assertFailure(another.hub.claim(0, another.identity), LeaseTaken)
        self.assertEqual(error.pid, os.getpid())

    async def test_a_process_of_another_machine(self) -> None:
        self.patch(roster, "LEASE_SECONDS", 0.5)
        server = self.valkey()
        elsewhere = ShardIdentity(
            incarnation="ab" * 8,
            host="elsewhere",
            pid=2**22 + 1,
            machine="b/pid:[1]",
            started="1",
            version="1",
        )
        holder, claimant = await self.shard(server.url), await self.shard(server.url)
        began = reactor.seconds()
        await holder.hub.claim(0, elsewhere)
        self.assertTrue(holder.hub.holds_lease)
        refusals = 0
        while True:
            try:
                await claimant.hub.claim(0, claimant.identity)
                break
            except LeaseTaken as error:
                self.assertEqual((error.host, error.pid), ("elsewhere", 2**22 + 1))
                refusals += 1
            await pause(0.02)
        self.assertGreater(refusals, 1)
        self.assertTrue(0.45 < reactor.seconds() - began < 2)
        self.assertFalse(holder.hub.holds_lease)

    async def test_who_was_away_too_long_is_told_who_took_its_number(self) -> None:
        self.patch(roster, "LEASE_SECONDS", 0.4)
        self.patch(roster, "HEARTBEAT_SECONDS", 0.1)
        server = self.valkey()
        proxy = self.proxy(server)
        away, other = await self.shard(f"redis://127.0.0.1:{proxy.port}", "a"), await self.shard(server.url)
        await away.hub.claim(7, away.identity)
        lost: list[Incumbent] = []
        away.hub.enter(lambda: LOAD, lost.append)
        await pause(0.6)
        self.assertTrue(away.hub.holds_lease, "renewed")
        proxy.target = free_port()
        proxy.each(Proxied.cut)
        await eventually(lambda: not away.hub.holds_lease, 5)
        await eventually(lambda: server.command("EXISTS", "spread:shard:7") == 0)
        await other.hub.claim(7, other.identity)
        other.hub.enter(lambda: LOAD, lambda incumbent: None)
        proxy.target = server.port
        await eventually(lambda: lost)
        self.assertEqual(lost, [Incumbent(shard=7, identity=other.identity)])
        await pause(0.3)
        self.assertEqual(len(lost), 1, "told once")
        self.assertFalse(away.hub.holds_lease)
        await away.hub.stop()
        self.assertTrue(other.hub.holds_lease)
        self.assertEqual([row.identity for row in await other.hub.roster()], [other.identity])


def _known(shard: Shard) -> int:
    """How many shards this one knows to hear."""
    assert isinstance(shard.hub, RedisHub)
    return shard.hub.server.gathering.known


def _links(shard: Shard) -> list[Any]:
    """Its two connections, each ``None`` while it is down."""
    assert isinstance(shard.hub, RedisHub)
    return [shard.hub.server.commands.protocol, shard.hub.server.hearing.protocol]


class Refused(_Faults):
    """Passwords and ACLs."""

    async def refused(self, url: str) -> str:
        shard = redis_shard(url)
        self.addCleanup(shard.hub.stop)
        began = reactor.seconds()
        error = await self.assertFailure(shard.hub.start(shard.receiver), HubRefused)
        self.assertLess(reactor.seconds() - began, 2, "waiting does not help")
        await shard.hub.stop()
        return str(error)

    async def test_passwords(self) -> None:
        server = self.valkey(password="geheim")
        shard = await self.shard(server.url, "a")
        await shard.publish("a", b"x")
        await shard.hears("a", [b"x"])
        told = await self.refused(f"redis://:falsch@127.0.0.1:{server.port}")
        self.assertIn("WRONGPASS", told)
        self.assertNotIn("falsch", told)
        self.assertIn("NOAUTH", await self.refused(f"redis://127.0.0.1:{server.port}"))
        open_ = self.valkey()
        told = await self.refused(f"redis://:superfluous@127.0.0.1:{open_.port}")
        self.assertNotIn("superfluous", told)

    async def test_acl_users(self) -> None:
        server = self.valkey(users=["spread on >a%b:c@d ~spread:* &spread:* +@all", "default off"])
        url = f"redis://spread:a%25b%3Ac%40d@127.0.0.1:{server.port}"
        shard = await self.shard(url, "a")
        self.assertEqual(await shard.hub.claim(0, shard.identity), 0)
        await shard.publish("a", b"x")
        await shard.hears("a", [b"x"])
        self.assertNotIn("a%b", shard.hub.name)
        for wrong in ("spread:other", "nobody:x", ":x"):
            self.assertIn("WRONGPASS", await self.refused(f"redis://{wrong}@127.0.0.1:{server.port}"))

    async def test_one_forbidden_channel_among_many(self) -> None:
        allowed = " ".join(f"&spread:ch:{{c{number}*" for number in range(10))
        server = self.valkey(
            users=[f"spread on >x ~spread:* &spread:probe:* &spread:hearing {allowed} +@all"]
        )
        shard = await self.shard(f"redis://spread:x@127.0.0.1:{server.port}")
        names = [f"c{number}" for number in range(300)]
        names.insert(123, "forbidden")
        joined = {name: shard.hub.subscribe(name) for name in names}
        error = await self.assertFailure(joined.pop("forbidden"), HubRefused)
        self.assertIn("forbidden", str(error))
        await gatherResults(list(joined.values()))
        self.assertEqual(shard.hub.counters.subscribed_channels, 300)
        error = await self.assertFailure(shard.publish("forbidden", b"x"), HubRefused)
        self.assertIn("NOPERM", str(error))
        for name in ("c0", "c122", "c123", "c299"):
            await shard.publish(name, b"x")
            await shard.hears(name, [b"x"])
        self.assertEqual(shard.hub.counters.reconnects, 0)
        # The same again after a loss.
        server.command("CLIENT", "KILL", "TYPE", "PUBSUB")
        await eventually(lambda: shard.hub.counters.missed_windows == 1)
        await shard.publish("c299", b"y")
        await shard.hears("c299", [b"x", b"y"])

    async def test_a_forbidden_probe_is_told_at_the_start(self) -> None:
        server = self.valkey(users=["spread on >x ~spread:* &spread:ch:* &spread:hearing +@all"])
        self.assertIn("spread:probe:", await self.refused(f"redis://spread:x@127.0.0.1:{server.port}"))

    async def test_a_forbidden_gathering_hurts_nobody(self) -> None:
        server = self.valkey(users=["spread on >x ~spread:* &spread:ch:* &spread:probe:* +@all"])
        shard = await self.shard(f"redis://spread:x@127.0.0.1:{server.port}", "a", "b")
        server.command("CLIENT", "KILL", "TYPE", "PUBSUB")
        await eventually(lambda: shard.hub.counters.missed_windows == 1)
        server.restart()
        await eventually(lambda: shard.hub.counters.missed_windows == 2)
        for name in ("a", "b"):
            await shard.publish(name, b"x")
            await shard.hears(name, [b"x"])

    async def test_forbidden_scripts_are_told(self) -> None:
        server = self.valkey(users=["spread on >x ~spread:* &spread:* +@all -@scripting"])
        shard = await self.shard(f"redis://spread:x@127.0.0.1:{server.port}")
        error = await self.assertFailure(shard.hub.claim(0, shard.identity), HubRefused)
        self.assertIn("NOPERM", str(error))

    async def test_no_such_database(self) -> None:
        server = self.valkey()
        self.assertIn("DB index", await self.refused(f"{server.url}/9999"))

    async def test_a_full_server_is_not_a_refusal(self) -> None:
        server = self.valkey(extra=["maxclients 1"])
        with server.connection() as occupied:
            occupied.sendall(b"PING\r\n")
            occupied.recv(16)
            shard = redis_shard(server.url, start_seconds=0.3)
            self.addCleanup(shard.hub.stop)
            error = await self.assertFailure(shard.hub.start(shard.receiver), HubUnavailable)
            self.assertIn("max number of clients", str(error))


class Databases(_Faults):
    """SELECT."""

    async def test_keys_are_in_the_database_of_the_url(self) -> None:
        server = self.valkey()
        shard = await self.shard(f"{server.url}/7", "a")
        self.assertEqual(await shard.hub.next_client(), 1)
        await shard.hub.claim(3, shard.identity)
        await shard.publish("a", b"x")
        await shard.hears("a", [b"x"])
        self.assertIn("db7", server.info("keyspace"))
        self.assertNotIn("db0", server.info("keyspace"))
        server.command("CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "yes")
        await eventually(lambda: shard.hub.counters.reconnects == 1)
        await eventually(lambda: shard.hub.is_live)
        self.assertEqual(await shard.hub.next_client(), 2, "also after a reconnect")


class UnixSocket(_Faults):
    """No TCP at all."""

    async def test_all_of_it(self) -> None:
        server = self.valkey(unix=True, password="geheim")
        shard = await self.shard(server.url, "a")
        await shard.publish("a", b"1")
        await shard.hears("a", [b"1"])
        server.restart()
        await eventually(lambda: len(shard.receiver.windows) == 1)
        await shard.publish("a", b"2")
        await shard.hears("a", [b"1", b"2"])
        self.assertNotIn("geheim", shard.hub.name)

    async def test_no_socket(self) -> None:
        shard = redis_shard("redis+unix:///tmp/no/such/socket", start_seconds=0.2)
        self.addCleanup(shard.hub.stop)
        error = await self.assertFailure(shard.hub.start(shard.receiver), HubUnavailable)
        self.assertIn("No such file", str(error))
