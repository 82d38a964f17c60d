"""What every hub must do, whatever it is made of: one suite, run against each implementation.

A subclass of ``HubConformance`` and trial's ``TestCase`` makes the hubs; all hubs of one test share the
same Redis, or exchange. ``AwayConformance`` adds what must hold while the hub is taken away.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from spread.hub.api import Format
from spread.hub.errors import HubUnavailable, JournalFull, LeaseTaken, MessageTooLarge
from tests.hub.shards import LOAD, Shard, eventually, pause

__all__ = ["AwayConformance", "HubConformance"]

LINGER_SECONDS = 0.2
"""Hubs under test drop a channel this long after the last ``unsubscribe``."""

BINARY = [
    b"",
    b"0",
    b"12",
    b"1_000",
    b"1.50",
    b"007",
    b"+5",
    b"nan",
    b"\r\n",
    b"$-1\r\n",
    b"*1\r\n$4\r\nPING\r\n",
    b"\x00\xff\xfe\x80",
    bytes(range(256)) * 300,
    "欢迎来到Spread Site".encode(),
    b"QUEUED",
    b"message",
]


class _Cases:
    """What the cases use of trial's TestCase, and of the subclass."""

    addCleanup: Any
    assertEqual: Any
    assertFailure: Any
    assertLess: Any
    assertTrue: Any
    assertFalse: Any

    def make_shard(self, **limits: Any) -> Shard:
        """A shard that is not started. ``limits``: publish_seconds, max_publications."""
        raise NotImplementedError

    async def shard(self, *channels: str, **limits: Any) -> Shard:
        """A started shard that hears ``channels``."""
        shard = self.make_shard(**limits)
        self.addCleanup(shard.hub.stop)
        await shard.hub.start(shard.receiver)
        for channel in channels:
            await shard.hub.subscribe(channel)
        return shard


class HubConformance(_Cases):
    """Cases for a hub that is there all the time."""

    many_channels = 10_000
    servers = 1
    """Over which channels are spread."""

    async def test_all_hear_all_in_one_order(self) -> None:
        shards = [await self.shard("a") for _ in range(3)]
        results = []
        for number in range(100):
            for index, shard in enumerate(shards):
                results.append(shard.publish("a", b"%d:%d" % (index, number)))
            if number % 10 == 0:
                await pause(0)
        await gatherResults(results)
        for shard in shards:
            await eventually(lambda shard=shard: len(shard.receiver.publications) >= 300)
        first = shards[0].receiver.on("a")
        for shard in shards:
            self.assertEqual(shard.receiver.on("a"), first)
        for index in range(3):
            own = [data for data in first if data.startswith(b"%d:" % index)]
            self.assertEqual(own, [b"%d:%d" % (index, number) for number in range(100)])

    async def test_publisher_hears_itself_on_the_same_road(self) -> None:
        shard = await self.shard("a")
        result = shard.publish("a", b"x")
        self.assertEqual(shard.receiver.publications, [], "delivered before the hub took it")
        await result
        await shard.hears("a", [b"x"])

    async def test_a_publication_says_where_it_comes_from(self) -> None:
        speaker, listener = await self.shard(), await self.shard("a")
        await speaker.hub.publish("a", b"{}", Format.JSON, 2**64 - 1)
        await speaker.hub.publish("a", b"\x00", Format.BINARY, 0)
        await listener.hears("a", [b"{}", b"\x00"])
        first, second = (publication for _, publication in listener.receiver.publications)
        self.assertEqual((first.format, first.session), (Format.JSON, 2**64 - 1))
        self.assertEqual((second.format, second.session), (Format.BINARY, 0))
        self.assertEqual(first.shard, bytes.fromhex(speaker.identity.incarnation))

    async def test_publish_fires_when_taken(self) -> None:
        speaker, listener = await self.shard(), await self.shard("a")
        self.assertEqual(await speaker.publish("a", b"x"), None)
        self.assertEqual(speaker.hub.counters.published, 1)
        await listener.hears("a", [b"x"])

    async def test_publishing_to_nobody_is_fine(self) -> None:
        shard = await self.shard()
        await shard.publish("nobody", b"x")
        self.assertEqual(shard.hub.counters.published, 1)

    async def test_only_interested_shards_hear(self) -> None:
        speaker, listener = await self.shard("a", "b"), await self.shard("b")
        await speaker.publish("a", b"1")
        await speaker.publish("b", b"2")
        # One order for all: had the first come, it would have come before the second.
        await listener.hears("b", [b"2"])
        self.assertEqual(len(listener.receiver.publications), 1)
        self.assertEqual(listener.hub.counters.received, 1)
        await speaker.hears("a", [b"1"])

    async def test_read_done_follows_what_was_received(self) -> None:
        shard = await self.shard("a")
        before = shard.receiver.reads
        await shard.publish("a", b"x")
        await shard.hears("a", [b"x"])
        await eventually(lambda: shard.receiver.reads > before)

    async def test_payloads_pass_unchanged(self) -> None:
        speaker, listener = await self.shard(), await self.shard("a")
        await gatherResults([speaker.publish("a", data) for data in BINARY])
        await listener.hears("a", BINARY)

    async def test_channels_may_have_any_name(self) -> None:
        names = ["lobby", "a b", "x}", "{x", "*", "房间", "a:b:c", "\n", "%s", "ch:{a}", "0"]
        shard = await self.shard(*names)
        for name in names:
            await shard.publish(name, name.encode())
        for name in names:
            await shard.hears(name, [name.encode()])
        self.assertEqual(len(shard.receiver.publications), len(names))

    async def test_many_channels_in_one_turn(self) -> None:
        speaker, listener = await self.shard(), await self.shard()
        names = [f"c{number}" for number in range(self.many_channels)]
        await gatherResults([listener.hub.subscribe(name) for name in names])
        self.assertEqual(listener.hub.counters.subscribed_channels, len(names))
        await gatherResults([speaker.publish(name, name.encode()) for name in names])
        await eventually(lambda: len(listener.receiver.publications) >= len(names), 20)
        heard = [(name, publication.data) for name, publication in listener.receiver.publications]
        told = [(name, name.encode()) for name in names]
        # One server tells them in the order they were published; of several each has an order of its own.
        self.assertEqual(*((sorted(heard), sorted(told)) if self.servers > 1 else (heard, told)))

    # -- subscribing and leaving ---------------------------------------------------------------------

    async def test_subscribing_twice(self) -> None:
        shard = await self.shard()
        await gatherResults([shard.hub.subscribe("a"), shard.hub.subscribe("a")])
        await shard.hub.subscribe("a")
        await shard.publish("a", b"x")
        await shard.publish("a", b"y")
        await shard.hears("a", [b"x", b"y"])
        self.assertEqual(shard.hub.counters.subscribed_channels, 1)

    async def test_a_left_channel_is_heard_for_a_while_then_dropped(self) -> None:
        shard, speaker = await self.shard("a", "barrier"), await self.shard()
        shard.hub.unsubscribe("a")
        shard.hub.unsubscribe("a")
        await speaker.publish("a", b"lingering")
        await shard.hears("a", [b"lingering"])
        await eventually(lambda: shard.hub.counters.subscribed_channels == 1)
        await self.dropped("a")
        await speaker.publish("a", b"too late")
        await speaker.publish("barrier", b"x")
        await shard.hears("barrier", [b"x"])
        self.assertEqual(shard.receiver.on("a"), [b"lingering"])

    async def dropped(self, channel: str) -> None:
        """Wait until nobody is subscribed to a channel."""

    async def test_who_comes_back_in_time_has_missed_nothing(self) -> None:
        shard, speaker = await self.shard("a"), await self.shard()
        await speaker.publish("a", b"1")
        shard.hub.unsubscribe("a")
        await speaker.publish("a", b"2")
        await shard.hub.subscribe("a")
        await pause(2 * LINGER_SECONDS)
        await speaker.publish("a", b"3")
        await shard.hears("a", [b"1", b"2", b"3"])

    async def test_who_comes_back_late_is_heard_again(self) -> None:
        shard, speaker = await self.shard("a"), await self.shard()
        for number in range(3):
            shard.hub.unsubscribe("a")
            await eventually(lambda: shard.hub.counters.subscribed_channels == 0)
            await shard.hub.subscribe("a")
            await speaker.publish("a", b"%d" % number)
        await shard.hears("a", [b"0", b"1", b"2"])

    async def test_leaving_what_was_never_joined(self) -> None:
        shard = await self.shard("a")
        shard.hub.unsubscribe("b")
        await shard.publish("a", b"x")
        await shard.hears("a", [b"x"])

    # -- pause ---------------------------------------------------------------------------------------

    async def test_a_pause_loses_nothing_and_keeps_order(self) -> None:
        shard, speaker = await self.shard("a"), await self.shard()
        payloads = [b"%d" % number + b"x" * 1000 for number in range(500)]
        await speaker.publish("a", payloads[0])
        await shard.hears("a", payloads[:1])
        shard.hub.pause()
        shard.hub.pause()
        await gatherResults([speaker.publish("a", data) for data in payloads[1:]])
        await pause(0.1)
        self.assertLess(len(shard.receiver.publications), 100)
        shard.hub.resume()
        shard.hub.resume()
        await shard.hears("a", payloads)
        self.assertEqual(shard.receiver.windows, [])

    async def test_a_press_reaches_all_who_hear_the_channel(self) -> None:
        one, two, other = await self.shard("a"), await self.shard("a", "b"), await self.shard("b")
        one.hub.press("a")
        for shard in (one, two):
            await eventually(lambda shard=shard: shard.receiver.presses == ["a"])
        two.hub.press("b")
        # Only what is heard is told, and no publication comes of it.
        await eventually(lambda: other.receiver.presses == ["b"])
        await eventually(lambda: two.receiver.presses == ["a", "b"])
        self.assertEqual(one.receiver.presses, ["a"])
        for shard in (one, two, other):
            self.assertEqual(shard.receiver.publications, [])
            self.assertEqual(shard.hub.counters.received, 0)

    # -- bounds and the end --------------------------------------------------------------------------

    async def test_too_large_a_message(self) -> None:
        shard = await self.shard("a")
        too_large: Deferred[None] = shard.publish("a", bytes((16 << 20) + 1))
        error = await self.assertFailure(too_large, MessageTooLarge)
        self.assertEqual(error.size, (16 << 20) + 1)
        self.assertLess(error.maximum, error.size)
        await shard.publish("a", b"next")
        await shard.hears("a", [b"next"])
        self.assertEqual(shard.hub.counters.published, 1)

    async def test_stop_is_idempotent_and_final(self) -> None:
        shard, other = await self.shard("a"), await self.shard("a")
        await gatherResults([shard.hub.stop(), shard.hub.stop()])
        await shard.hub.stop()
        self.assertFalse(shard.hub.is_live)
        await self.assertFailure(shard.publish("a", b"x"), HubUnavailable)
        await self.assertFailure(shard.hub.subscribe("b"), HubUnavailable)
        await self.assertFailure(shard.hub.next_client(), HubUnavailable)
        shard.hub.unsubscribe("a")
        shard.hub.press("a")
        shard.hub.pause()
        shard.hub.resume()
        await other.publish("a", b"y")
        await other.hears("a", [b"y"])
        self.assertEqual(shard.receiver.publications, [])

    async def test_stop_before_start(self) -> None:
        shard = self.make_shard()
        await shard.hub.stop()
        self.assertFalse(shard.hub.is_live)

    # -- numbers -------------------------------------------------------------------------------------

    async def test_a_number_is_held_by_one(self) -> None:
        one, two, three = [await self.shard() for _ in range(3)]
        self.assertFalse(one.hub.holds_lease)
        self.assertEqual(await one.hub.claim(7, one.identity), 7)
        self.assertTrue(one.hub.holds_lease)
        error = await self.assertFailure(two.hub.claim(7, two.identity), LeaseTaken)
        self.assertEqual((error.shard, error.pid), (7, one.identity.pid))
        self.assertIn(one.identity.host, str(error))
        self.assertFalse(two.hub.holds_lease)
        self.assertEqual(await one.hub.claim(7, one.identity), 7, "one's own number")
        await one.hub.stop()
        self.assertFalse(one.hub.holds_lease)
        self.assertEqual(await three.hub.claim(7, three.identity), 7, "given back at the stop")

    assertIn: Any

    async def test_auto_takes_the_lowest_free_number(self) -> None:
        shards = [await self.shard() for _ in range(4)]
        self.assertEqual(await shards[0].hub.claim(1, shards[0].identity), 1)
        self.assertEqual(await shards[1].hub.claim(None, shards[1].identity), 0)
        self.assertEqual(await shards[2].hub.claim(None, shards[2].identity), 2)
        await shards[1].hub.stop()
        self.assertEqual(await shards[3].hub.claim(None, shards[3].identity), 0)

    async def test_auto_gives_no_number_twice(self) -> None:
        shards = [await self.shard() for _ in range(8)]
        numbers = await gatherResults([shard.hub.claim(None, shard.identity) for shard in shards])
        self.assertEqual(sorted(numbers), list(range(8)))

    async def test_the_roster_shows_who_entered(self) -> None:
        one, two = [await self.shard() for _ in range(2)]
        self.assertEqual(await one.hub.roster(), [])
        await one.hub.claim(5, one.identity)
        await two.hub.claim(2, two.identity)
        self.assertEqual(await one.hub.roster(), [], "claimed, not entered")
        one.hub.enter(lambda: LOAD, lambda incumbent: None)
        two.hub.enter(lambda: LOAD, lambda incumbent: None)
        while len(rows := await one.hub.roster()) < 2:
            await pause(0.01)
        self.assertEqual([row.shard for row in rows], [2, 5])
        self.assertEqual([row.identity for row in rows], [two.identity, one.identity])
        self.assertEqual(rows[0].load, LOAD)
        for row in rows:
            self.assertTrue(0.0 <= row.age_seconds < 2.0, row.age_seconds)
        await two.hub.stop()
        self.assertEqual([row.shard for row in await one.hub.roster()], [5])

    async def test_clients_are_counted_over_all_hubs(self) -> None:
        shards = [await self.shard() for _ in range(3)]
        numbers = await gatherResults([shard.hub.next_client() for _ in range(20) for shard in shards])
        self.assertEqual(sorted(numbers), list(range(1, 61)))


class AwayConformance(_Cases):
    """Cases in which the hub is taken away and comes back."""

    assertEqual: Any
    assertFailure: Any

    async def take_away(self) -> None:
        """Take the hub away from all shards of the test, and wait until they know."""
        raise NotImplementedError

    def give_back(self) -> None:
        """Give it back."""
        raise NotImplementedError

    async def back(self, *shards: Shard) -> None:
        """Give it back, and wait until these are live."""
        self.give_back()
        for shard in shards:
            await eventually(lambda shard=shard: shard.hub.is_live and not shard.hub.counters.servers_away)

    async def test_what_waited_arrives_in_order(self) -> None:
        shard = await self.shard("a")
        await shard.publish("a", b"before")
        await shard.hears("a", [b"before"])
        await self.take_away()
        self.assertFalse(shard.hub.is_live)
        results = [shard.publish("a", b"%d" % number) for number in range(100)]
        self.assertEqual(shard.hub.counters.journal_publications, 100)
        self.assertEqual(shard.hub.counters.journal_bytes, 190)
        self.give_back()
        # Who is told of the first publishes another at once: it must not overtake the others.
        results[0].addCallback(lambda _: shard.publish("a", b"last"))
        await gatherResults(results)
        await shard.hears("a", [b"before", *(b"%d" % number for number in range(100)), b"last"])
        self.assertEqual(shard.hub.counters.journal_publications, 0)
        self.assertEqual(shard.hub.counters.journal_bytes, 0)

    async def test_the_window_is_told(self) -> None:
        shards = [await self.shard("a") for _ in range(2)]
        await self.take_away()
        await pause(0.05)
        await self.back(*shards)
        for shard in shards:
            self.assertEqual(len(shard.receiver.windows), 1)
            self.assertTrue(0.05 <= shard.receiver.windows[0] < 10, shard.receiver.windows)
            self.assertEqual(shard.hub.counters.missed_windows, 1)
            self.assertEqual(shard.hub.counters.missed_seconds, shard.receiver.windows[0])

    async def test_subscribing_waits_for_the_hub(self) -> None:
        shard = await self.shard()
        await self.take_away()
        joined, given_up = shard.hub.subscribe("a"), shard.hub.subscribe("a")
        given_up.cancel()
        await self.assertFailure(given_up, Exception)
        await pause(0.05)
        self.assertFalse(joined.called)
        await self.back(shard)
        await joined
        await shard.publish("a", b"x")
        await shard.hears("a", [b"x"])

    async def test_leaving_while_it_is_away(self) -> None:
        shard, speaker = await self.shard("a", "b"), await self.shard()
        await self.take_away()
        shard.hub.unsubscribe("a")
        joined = shard.hub.subscribe("c")
        shard.hub.unsubscribe("c")
        await self.assertFailure(joined, HubUnavailable)
        await pause(2 * LINGER_SECONDS)
        await self.back(shard, speaker)
        self.assertEqual(shard.hub.counters.subscribed_channels, 1)
        for channel in ("a", "c", "b"):
            await speaker.publish(channel, b"x")
        await shard.hears("b", [b"x"])
        self.assertEqual(len(shard.receiver.publications), 1)

    async def test_a_deadline_ends_the_wait(self) -> None:
        shard = await self.shard("a", publish_seconds=0.2)
        await self.take_away()
        error = await self.assertFailure(shard.publish("a", b"x"), HubUnavailable)
        self.assertIn("0.2 s", str(error))
        self.assertEqual(shard.hub.counters.publish_failures, 1)
        self.assertEqual(shard.hub.counters.journal_publications, 0)
        await self.back(shard)
        await shard.publish("a", b"y")
        await shard.hears("a", [b"y"])

    assertIn: Any

    async def test_a_full_journal_refuses_at_once(self) -> None:
        shard = await self.shard("a", max_publications=3)
        await self.take_away()
        waiting = [shard.publish("a", b"%d" % number) for number in range(3)]
        error = await self.assertFailure(shard.publish("a", b"no room"), JournalFull)
        self.assertEqual((error.waiting, error.waiting_bytes), (3, 3))
        await self.back(shard)
        await gatherResults(waiting)
        await shard.hears("a", [b"0", b"1", b"2"])

    async def test_stop_fails_what_waits(self) -> None:
        shard = await self.shard("a")
        await self.take_away()
        waiting = [shard.publish("a", b"x"), shard.publish("a", b"y"), shard.hub.subscribe("b")]
        failures = gatherResults([self.assertFailure(each, HubUnavailable) for each in waiting])
        await shard.hub.stop()
        self.assertTrue(failures.called)
        for error in await failures:
            self.assertIn("stopping", str(error))
        self.assertEqual(shard.hub.counters.journal_publications, 0)

    async def test_nothing_else_answers_while_it_is_away(self) -> None:
        shard = await self.shard()
        await self.take_away()
        await self.assertFailure(shard.hub.next_client(), HubUnavailable)
        await self.assertFailure(shard.hub.claim(0, shard.identity), HubUnavailable)
        await self.assertFailure(shard.hub.roster(), HubUnavailable)
        await self.back(shard)
        self.assertEqual(await shard.hub.next_client(), 1)
