"""What every hub must do with channels that keep history, whatever it is made of: one suite for each.

Used like ``conformance``. A subclass also says how a shard is made deaf for a moment (``deafen``), and how
everything that is kept is lost (``forget_everything``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import gatherResults

from spread.hub.api import (
    MAX_EXCLUDED,
    Broken,
    ClientInfo,
    Format,
    History,
    Joined,
    Left,
    Position,
    Publication,
    PublishOptions,
)
from spread.hub.errors import HubUnavailable, JournalFull
from tests.hub.conformance import BINARY
from tests.hub.shards import Shard, eventually, pause

__all__ = ["KEPT", "StreamAwayConformance", "StreamConformance", "follows"]

KEPT = History(size=1000, ttl_seconds=60, meta_ttl_seconds=3600)
ANN = ClientInfo("ann", "c1", b'{"name":"Ann"}', b"\x00\xff")
BOB = ClientInfo("", "c2")


async def follows(shard: Shard, channel: str, offsets: list[int], seconds: float = 10.0) -> None:
    """Wait until exactly these offsets have come on a channel, in this order."""
    await eventually(
        lambda: len(shard.receiver.offsets(channel)) >= len(offsets),
        seconds,
        f"{len(offsets)} on {channel}: {shard.receiver.offsets(channel)[-5:]}",
    )
    heard = shard.receiver.offsets(channel)
    assert heard == offsets, f"{heard[:20]} … {heard[-5:]}"


class _Cases:
    addCleanup: Any
    assertEqual: Any
    assertNotEqual: Any
    assertFailure: Any
    assertTrue: Any
    assertIn: Any

    async def shard(self, *channels: str, **limits: Any) -> Shard:
        raise NotImplementedError

    async def kept(self, shard: Shard, channel: str, history: History = KEPT) -> list[bytes]:
        """All data that is kept of a channel."""
        stream = await shard.hub.history(channel, history, limit=-1)
        return [publication.data for publication in stream.publications]


class StreamConformance(_Cases):
    """Cases for a hub that is there all the time."""

    def deafen(self, shard: Shard) -> Callable[[], None]:
        """The shard hears nothing, and does not know it, until what this gives is called."""
        raise NotImplementedError

    def forget_everything(self) -> None:
        """All that is kept is lost."""
        raise NotImplementedError

    # -- publishing ----------------------------------------------------------------------------------

    async def test_positions_count_from_one(self) -> None:
        speaker, listener = await self.shard(), await self.shard("a")
        positions = await gatherResults([speaker.publish("a", b"%d" % n, history=KEPT) for n in range(5)])
        self.assertEqual([position.offset for position in positions], [1, 2, 3, 4, 5])
        epoch = positions[0].epoch
        self.assertTrue(len(epoch) == 8 and epoch.isascii() and epoch.isalpha(), epoch)
        self.assertEqual({position.epoch for position in positions}, {epoch})
        await listener.hears("a", [b"0", b"1", b"2", b"3", b"4"])
        for (_, heard), position in zip(listener.receiver.publications, positions, strict=True):
            self.assertEqual((heard.epoch, heard.offset), (position.epoch, position.offset))
        self.assertEqual(speaker.hub.counters.published, 5)
        other = await speaker.publish("b", b"x", history=KEPT)
        self.assertEqual(other.offset, 1)

    async def test_what_a_publication_carries(self) -> None:
        speaker, listener = await self.shard(), await self.shard("a")
        hub = speaker.hub
        tags = {"k": "v", "": "欢迎"}
        most = tuple(f"client {number}" for number in range(MAX_EXCLUDED))
        too_many = PublishOptions(exclude=(*most, "one more"))
        for history in (None, KEPT):
            for options in (
                PublishOptions(history=history, info=ANN),
                PublishOptions(history=history, tags=tags, delta=True),
                PublishOptions(history=history, info=BOB, tags=tags),
                PublishOptions(history=history, delta=True),
                PublishOptions(history=history, info=ANN, exclude=("one", "two")),
                PublishOptions(history=history, exclude=most, idempotency_key=f"key {history}"),
                PublishOptions(history=history),
            ):
                await hub.publish("a", b"{}", Format.JSON, 2**64 - 1, options)
            with self.assertRaisesRegex(ValueError, "65 clients are excluded; at most 64 may be"):
                hub.publish("a", b"{}", Format.JSON, 0, too_many)
        await listener.hears("a", [b"{}"] * 14)
        heard = [publication for _, publication in listener.receiver.publications]
        carried = [(each.info, each.tags, each.delta, each.exclude) for each in heard]
        expected = [
            (ANN, None, False, ()),
            (None, tags, True, ()),
            (BOB, tags, False, ()),
            (None, None, True, ()),
            (ANN, None, False, ("one", "two")),
            (None, None, False, most),
            (None, None, False, ()),
        ]
        self.assertEqual(carried, expected * 2)
        self.assertEqual([each.offset for each in heard], [0] * 7 + [1, 2, 3, 4, 5, 6, 7])
        self.assertEqual({each.session for each in heard}, {2**64 - 1})
        self.assertEqual({each.format for each in heard}, {Format.JSON})
        self.assertEqual({each.shard for each in heard}, {bytes.fromhex(speaker.identity.incarnation)})
        stream = await hub.history("a", KEPT, limit=-1)
        self.assertEqual(stream.publications, heard[7:], "history gives the same as was heard")

    async def test_kept_payloads_pass_unchanged(self) -> None:
        speaker, listener = await self.shard(), await self.shard("a")
        await gatherResults([speaker.publish("a", data, history=KEPT, info=ANN) for data in BINARY])
        await listener.hears("a", BINARY)
        self.assertEqual(await self.kept(speaker, "a"), BINARY)

    async def test_channels_with_history_may_have_any_name(self) -> None:
        shard = await self.shard()
        for name in ["lobby", "a b", "x}", "{x", "*", "房间", "a:b:c", "\n", "%s", "stream:{a}", "0"]:
            await shard.hub.subscribe(name, KEPT)
            await shard.publish(name, name.encode(), history=KEPT, idempotency_key="}{:\n")
            await shard.hears(name, [name.encode()])
            self.assertEqual(await self.kept(shard, name), [name.encode()])

    async def test_the_size_is_kept(self) -> None:
        shard = await self.shard()
        history = History(size=3, ttl_seconds=60, meta_ttl_seconds=3600)
        for number in range(10):
            await shard.publish("a", b"%d" % number, history=history)
        stream = await shard.hub.history("a", history, limit=-1)
        self.assertEqual([each.offset for each in stream.publications], [8, 9, 10])
        self.assertEqual(stream.position.offset, 10)

    async def test_what_is_kept_is_forgotten_in_time(self) -> None:
        shard = await self.shard()
        brief = History(size=10, ttl_seconds=1, meta_ttl_seconds=60)
        briefest = History(size=10, ttl_seconds=1, meta_ttl_seconds=1)
        first = await shard.publish("brief", b"1", history=brief)
        second = await shard.publish("briefest", b"1", history=briefest)
        await pause(1.3)
        stream = await shard.hub.history("brief", brief, limit=-1)
        self.assertEqual((stream.position, stream.publications), (first, []))
        after = await shard.publish("brief", b"2", history=brief)
        self.assertEqual(after, Position(first.epoch, 2))
        stream = await shard.hub.history("briefest", briefest, limit=-1)
        self.assertEqual((stream.position.offset, stream.publications), (0, []))
        self.assertNotEqual(stream.position.epoch, second.epoch)
        third = await shard.publish("briefest", b"2", history=briefest)
        self.assertEqual(third, Position(stream.position.epoch, 1))

    async def test_removing_a_history(self) -> None:
        shard = await self.shard()
        taken = [await shard.publish("a", b"%d" % number, history=KEPT) for number in range(3)]
        last = taken[-1]
        await shard.hub.remove_history("a")
        await shard.hub.remove_history("never")
        stream = await shard.hub.history("a", KEPT, limit=-1)
        self.assertEqual((stream.position, stream.publications), (last, []))
        self.assertEqual(await shard.publish("a", b"x", history=KEPT), Position(last.epoch, 4))
        self.assertEqual(await self.kept(shard, "a"), [b"x"])

    # -- once only -----------------------------------------------------------------------------------

    async def test_an_idempotency_key_publishes_once(self) -> None:
        one, two, listener = await self.shard(), await self.shard(), await self.shard("a", "b")
        first = await one.publish("a", b"1", history=KEPT, idempotency_key="k")
        self.assertEqual(await two.publish("a", b"2", history=KEPT, idempotency_key="k"), first)
        other = await two.publish("a", b"3", history=KEPT, idempotency_key="other")
        elsewhere = await two.publish("b", b"4", history=KEPT, idempotency_key="k")
        self.assertEqual((first.offset, other.offset, elsewhere.offset), (1, 2, 1))
        await listener.hears("a", [b"1", b"3"])
        await listener.hears("b", [b"4"])
        self.assertEqual(await self.kept(one, "a"), [b"1", b"3"])

    async def test_an_idempotency_key_without_history(self) -> None:
        one, two, listener = await self.shard(), await self.shard(), await self.shard("a")
        for shard, data in ((one, b"1"), (two, b"2"), (one, b"3")):
            self.assertEqual(await shard.publish("a", data, idempotency_key="k", info=ANN), None)
        await one.publish("a", b"end")
        await listener.hears("a", [b"1", b"end"])
        self.assertEqual(listener.receiver.publications[0][1].info, ANN)

    async def test_the_same_key_all_at_once(self) -> None:
        shards = [await self.shard() for _ in range(3)]
        positions = await gatherResults(
            [shard.publish("a", b"x", history=KEPT, idempotency_key="k") for shard in shards for _ in "xyz"]
        )
        self.assertEqual(len(set(map(str, positions))), 1)
        self.assertEqual(await self.kept(shards[0], "a"), [b"x"])

    async def test_versions(self) -> None:
        shard, listener = await self.shard(), await self.shard("a")
        offsets = []
        for number, (version, epoch) in enumerate(
            [
                (5, ""),
                (5, ""),
                (4, ""),
                (6, ""),
                (0, ""),
                (6, ""),
                (1, "x"),
                (1, "x"),
                (7, ""),
                (2**64 - 2, ""),
                (2**64 - 1, ""),
                (2**64 - 2, ""),
            ]
        ):
            position = await shard.publish(
                "a", b"%d" % number, history=KEPT, version=version, version_epoch=epoch
            )
            offsets.append(position.offset)
        self.assertEqual(offsets, [1, 1, 1, 2, 3, 3, 4, 4, 5, 6, 7, 7])
        await listener.hears("a", [b"0", b"3", b"4", b"6", b"8", b"9", b"10"])

    # -- reading -------------------------------------------------------------------------------------

    async def test_what_is_read_of_a_history(self) -> None:
        shard = await self.shard()
        taken = [await shard.publish("a", b"%d" % number, history=KEPT) for number in range(1, 11)]
        top = taken[-1]
        here = top.epoch
        for since, limit, reverse, expected in [
            (None, 0, False, []),
            (None, 3, False, [1, 2, 3]),
            (None, -1, False, list(range(1, 11))),
            (None, 99, False, list(range(1, 11))),
            (None, 3, True, [10, 9, 8]),
            (None, -1, True, list(range(10, 0, -1))),
            (0, 2, False, [1, 2]),
            (7, 2, False, [8, 9]),
            (7, -1, False, [8, 9, 10]),
            (7, 0, False, []),
            (10, -1, False, []),
            (11, -1, False, []),
            (2**64 - 1, -1, False, []),
            (7, 2, True, [6, 5]),
            (7, -1, True, [6, 5, 4, 3, 2, 1]),
            (2, -1, True, [1]),
            (1, -1, True, []),
            (0, -1, True, []),
            (2**64 - 1, 2, True, [10, 9]),
        ]:
            place = None if since is None else Position("ignored", since)
            stream = await shard.hub.history("a", KEPT, since=place, limit=limit, reverse=reverse)
            self.assertEqual(stream.position, top)
            self.assertEqual(
                [publication.offset for publication in stream.publications],
                expected,
                f"since {since}, limit {limit}, reverse {reverse}",
            )
            for publication in stream.publications:
                self.assertEqual(publication.data, b"%d" % publication.offset)
                self.assertEqual(publication.epoch, here)

    async def test_the_first_question_begins_the_epoch(self) -> None:
        one, two = await self.shard(), await self.shard()
        stream = await one.hub.history("a", KEPT, limit=-1)
        self.assertEqual((stream.position.offset, stream.publications), (0, []))
        self.assertEqual((await two.hub.history("a", KEPT)).position, stream.position)
        self.assertEqual(await two.hub.subscribe("a", KEPT), stream.position)
        self.assertEqual(await one.publish("a", b"x", history=KEPT), Position(stream.position.epoch, 1))
        self.assertNotEqual((await one.hub.history("b", KEPT)).position.epoch, stream.position.epoch)

    async def test_streams_after_the_stop(self) -> None:
        shard = await self.shard()
        await shard.hub.stop()
        await self.assertFailure(shard.publish("a", b"x", history=KEPT), HubUnavailable)
        await self.assertFailure(shard.hub.subscribe("a", KEPT), HubUnavailable)
        await self.assertFailure(shard.hub.history("a", KEPT), HubUnavailable)
        await self.assertFailure(shard.hub.remove_history("a"), HubUnavailable)
        await self.assertFailure(shard.hub.announce("a", Joined(ANN)), HubUnavailable)

    # -- following -----------------------------------------------------------------------------------

    async def test_a_subscription_begins_after_its_position(self) -> None:
        speaker, listener = await self.shard(), await self.shard()
        taken = [await speaker.publish("a", b"%d" % number, history=KEPT) for number in range(3)]
        top = taken[-1]
        self.assertEqual(await listener.hub.subscribe("a", KEPT), top)
        self.assertEqual(listener.hub.counters.followed_channels, 1)
        await speaker.publish("a", b"3", history=KEPT)
        await listener.hears("a", [b"3"])
        again = await listener.follow("a", KEPT)
        self.assertEqual(again, Position(top.epoch, 4))
        self.assertEqual(await listener.hub.subscribe("a"), None)
        self.assertEqual(listener.hub.counters.repaired, 0)
        self.assertEqual(listener.hub.counters.broken, 0)
        listener.hub.unsubscribe("a")
        await eventually(lambda: listener.hub.counters.followed_channels == 0)
        await speaker.publish("a", b"unheard", history=KEPT)
        self.assertEqual(await listener.hub.subscribe("a", KEPT), Position(top.epoch, 5))
        await speaker.publish("a", b"5", history=KEPT)
        await listener.hears("a", [b"3", b"5"])

    async def test_subscribing_twice_at_once(self) -> None:
        shard = await self.shard()
        first, second, plain = await gatherResults(
            [shard.hub.subscribe("a", KEPT), shard.hub.subscribe("a", KEPT), shard.hub.subscribe("a")]
        )
        self.assertEqual((first, plain), (second, None))
        assert first is not None
        self.assertEqual(first.offset, 0)

    async def test_who_has_no_position_hears_all_of_it_too(self) -> None:
        speaker, listener = await self.shard(), await self.shard("a")
        await speaker.publish("a", b"1", history=KEPT)
        await listener.hears("a", [b"1"])
        results = [speaker.publish("a", b"%d" % number, history=KEPT) for number in range(2, 6)]
        position = await listener.follow("a", KEPT)
        self.assertTrue(1 <= position.offset <= 5)
        await gatherResults(results)
        await speaker.publish("a", b"6", history=KEPT)
        await listener.hears("a", [b"1", b"2", b"3", b"4", b"5", b"6"])

    async def test_subscribing_in_a_flood(self) -> None:
        speakers = [await self.shard() for _ in range(2)]
        listeners = [await self.shard() for _ in range(4)]
        results: list[Any] = []
        begun: list[Any] = []
        turn = 0
        # It goes on until the last of them hears it, on a slow machine too.
        while turn < 150 or not all(each.called for each in begun):
            for speaker in speakers:
                results += [speaker.publish("a", b"x" * 50, history=KEPT) for _ in range(2)]
            if turn % 30 == 10 and len(begun) < len(listeners):
                begun.append(listeners[len(begun)].hub.subscribe("a", KEPT))
            turn += 1
            await pause(0)
        results.append(speakers[0].publish("a", b"the end", history=KEPT))
        positions = await gatherResults(begun)
        taken = await gatherResults(results)
        top = len(results)
        self.assertEqual(sorted(position.offset for position in taken), list(range(1, top + 1)))
        self.assertEqual(len(positions), 4)
        for listener, position in zip(listeners, positions, strict=True):
            # What was handed over before the position was known may be there too; without a hole either.
            await eventually(lambda listener=listener: listener.receiver.offsets("a")[-1:] == [top])
            heard = listener.receiver.offsets("a")
            self.assertTrue(0 < heard[0] <= position.offset + 1, (heard[0], position))
            self.assertEqual(heard, list(range(heard[0], top + 1)))
            self.assertEqual(listener.hub.counters.broken, 0)

    async def test_plain_ones_keep_their_place(self) -> None:
        speaker, listener = await self.shard(), await self.shard()
        await listener.hub.subscribe("a", KEPT)
        expected = [b"%d" % number for number in range(20)]
        published = [
            speaker.publish("a", data, history=KEPT if number % 3 else None)
            for number, data in enumerate(expected)
        ]
        # The listener may have heard all before the speaker has read the answers.
        await gatherResults(published)
        await listener.hears("a", expected)
        offsets = listener.receiver.offsets("a")
        self.assertEqual([offset for offset in offsets if offset], list(range(1, 14)))

    async def test_what_was_not_heard_is_repaired(self) -> None:
        speaker, listener = await self.shard(), await self.shard()
        position = await listener.follow("a", KEPT)
        await speaker.publish("a", b"1", history=KEPT)
        await listener.hears("a", [b"1"])
        hear = self.deafen(listener)
        for number in range(2, 252):
            await speaker.publish("a", b"%d" % number, history=KEPT)
        await pause(0.05)
        hear()
        for number in range(252, 255):
            await speaker.publish("a", b"%d" % number, history=KEPT, info=ANN)
        await follows(listener, "a", list(range(1, 255)))
        await listener.hears("a", [b"%d" % number for number in range(1, 255)])
        self.assertTrue(250 <= listener.hub.counters.repaired <= 253, listener.hub.counters.repaired)
        self.assertEqual(listener.hub.counters.broken, 0)
        self.assertEqual(await listener.hub.subscribe("a", KEPT), Position(position.epoch, 254))

    async def test_what_cannot_be_repaired_is_told(self) -> None:
        speaker, listener = await self.shard(), await self.shard()
        history = History(size=3, ttl_seconds=60, meta_ttl_seconds=3600)
        await listener.hub.subscribe("a", history)
        first = await speaker.publish("a", b"1", history=history)
        await listener.hears("a", [b"1"])
        hear = self.deafen(listener)
        for number in range(2, 11):
            await speaker.publish("a", b"%d" % number, history=history)
        await pause(0.05)
        hear()
        await speaker.publish("a", b"11", history=history)
        await listener.hears("a", [b"1", b"9", b"10", b"11"])
        events = [event for _, event in listener.receiver.events]
        self.assertEqual(events[1], Broken(Position(first.epoch, 8)))
        self.assertEqual(listener.hub.counters.broken, 1)
        await speaker.publish("a", b"12", history=history)
        await listener.hears("a", [b"1", b"9", b"10", b"11", b"12"])

    async def test_a_history_removed_meanwhile_is_told(self) -> None:
        speaker, listener = await self.shard(), await self.shard()
        await listener.hub.subscribe("a", KEPT)
        hear = self.deafen(listener)
        lost = await speaker.publish("a", b"lost", history=KEPT)
        await speaker.hub.remove_history("a")
        await pause(0.05)
        hear()
        await speaker.publish("a", b"2", history=KEPT)
        await listener.hears("a", [b"2"])
        self.assertEqual(listener.receiver.events[0][1], Broken(lost))

    async def test_another_epoch_is_told(self) -> None:
        speaker, listener = await self.shard(), await self.shard()
        before = await listener.follow("a", KEPT)
        for number in range(5):
            await speaker.publish("a", b"%d" % number, history=KEPT)
        await follows(listener, "a", [1, 2, 3, 4, 5])
        self.forget_everything()
        after = await speaker.publish("a", b"new", history=KEPT)
        self.assertEqual(after.offset, 1)
        self.assertNotEqual(after.epoch, before.epoch)
        await follows(listener, "a", [1, 2, 3, 4, 5, 1])
        self.assertEqual(
            listener.receiver.events[5:],
            [
                ("a", Broken(Position(after.epoch, 0))),
                ("a", Publication(b"new", 1, bytes.fromhex(speaker.identity.incarnation), 0, 1, after.epoch)),
            ],
        )
        await speaker.publish("a", b"more", history=KEPT)
        await follows(listener, "a", [1, 2, 3, 4, 5, 1, 2])
        self.assertEqual(listener.hub.counters.broken, 1)
        self.assertEqual(await listener.hub.subscribe("a", KEPT), Position(after.epoch, 2))

    async def test_another_epoch_in_a_flood(self) -> None:
        speaker, listener = await self.shard(), await self.shard()
        await listener.hub.subscribe("a", KEPT)
        results = []
        for number in range(100):
            results += [speaker.publish("a", b"%d" % number, history=KEPT) for _ in range(3)]
            if number in (30, 60):
                await gatherResults(results)
                self.forget_everything()
            await pause(0)
        last = (await gatherResults(results))[-1]
        await eventually(
            lambda: (
                (heard := listener.receiver.publications[-1][1]).epoch == last.epoch
                and heard.offset == last.offset
            )
        )
        position = Position("", 0)
        for _, event in listener.receiver.events:
            if isinstance(event, Broken):
                position = event.position
            else:
                assert isinstance(event, Publication)
                if position.epoch:
                    self.assertEqual((event.epoch, event.offset), (position.epoch, position.offset + 1))
                position = Position(event.epoch, event.offset)
        self.assertTrue(1 <= listener.hub.counters.broken <= 2, listener.hub.counters.broken)

    # -- announcements -------------------------------------------------------------------------------

    async def test_announcements_come_in_order(self) -> None:
        speaker, plain, follower = await self.shard(), await self.shard("a"), await self.shard("b")
        await follower.hub.subscribe("a", KEPT)
        results: list[Any] = []
        for number in range(10):
            results.append(speaker.hub.announce("a", Joined(ANN)))
            results.append(speaker.publish("a", b"%d" % number, history=KEPT))
            results.append(speaker.hub.announce("a", Left(BOB)))
            results.append(speaker.publish("a", b"plain"))
        answers = await gatherResults(results)
        self.assertEqual(answers[0::4] + answers[2::4], [None] * 20)
        for listener in (plain, follower):
            await eventually(lambda listener=listener: len(listener.receiver.events) >= 40)
            events: list[Any] = [event for _, event in listener.receiver.events]
            self.assertEqual(events[0::4], [Joined(ANN)] * 10)
            self.assertEqual(events[2::4], [Left(BOB)] * 10)
            self.assertEqual([event.data for event in events[1::4]], [b"%d" % n for n in range(10)])
            self.assertEqual([event.data for event in events[3::4]], [b"plain"] * 10)
            self.assertEqual(listener.hub.counters.received, 20)
        self.assertEqual(speaker.hub.counters.published, 20)
        self.assertEqual(speaker.hub.counters.journal_bytes, 0)
        self.assertEqual(len(await self.kept(speaker, "a")), 10)


class StreamAwayConformance(_Cases):
    """Cases in which the hub is taken away and comes back; what it keeps, it still has."""

    windows = 1
    """Told of an outage to who hears the channels "a", "b" and "idle": one of each server that has some."""

    async def take_away(self) -> None:
        raise NotImplementedError

    def give_back(self) -> None:
        raise NotImplementedError

    async def back(self, *shards: Shard) -> None:
        raise NotImplementedError

    async def test_what_waited_is_kept_once_and_in_order(self) -> None:
        shard = await self.shard()
        position = await shard.follow("a", KEPT)
        await shard.publish("a", b"before", history=KEPT)
        await shard.hears("a", [b"before"])
        await self.take_away()
        results = [
            shard.publish("a", b"%d" % number, history=KEPT, info=ANN, idempotency_key=str(number % 50))
            for number in range(100)
        ]
        self.assertEqual(shard.hub.counters.journal_publications, 100)
        self.give_back()
        taken = await gatherResults(results)
        expected = [Position(position.epoch, offset) for offset in range(2, 52)]
        self.assertEqual(taken, expected * 2)
        await shard.hears("a", [b"before", *(b"%d" % number for number in range(50))])
        self.assertEqual(await self.kept(shard, "a"), shard.receiver.on("a"))
        self.assertEqual(shard.hub.counters.journal_publications, 0)
        self.assertEqual(shard.hub.counters.journal_bytes, 0)

    async def test_following_goes_on_where_it_was(self) -> None:
        shards = [await self.shard() for _ in range(2)]
        for shard in shards:
            for channel in ("a", "b", "idle"):
                await shard.hub.subscribe(channel, KEPT)
        await shards[0].publish("a", b"1", history=KEPT)
        for shard in shards:
            await shard.hears("a", [b"1"])
        await self.take_away()
        results = [
            shard.publish(channel, b"x", history=KEPT)
            for _ in range(20)
            for shard in shards
            for channel in ("a", "b")
        ]
        await self.back(*shards)
        await gatherResults(results)
        for shard in shards:
            await follows(shard, "a", list(range(1, 42)))
            await follows(shard, "b", list(range(1, 41)))
            self.assertEqual(shard.hub.counters.broken, 0)
            self.assertEqual(shard.hub.counters.followed_channels, 3)
            self.assertEqual(len(shard.receiver.windows), self.windows)

    async def test_following_waits_for_the_hub(self) -> None:
        shard = await self.shard()
        top = await shard.publish("a", b"x", history=KEPT)
        await self.take_away()
        joined, given_up = shard.hub.subscribe("a", KEPT), shard.hub.subscribe("a", KEPT)
        given_up.cancel()
        await self.assertFailure(given_up, Exception)
        await pause(0.05)
        self.assertEqual(joined.called, False)
        await self.back(shard)
        self.assertEqual(await joined, top)
        await shard.publish("a", b"y", history=KEPT)
        await shard.hears("a", [b"y"])

    async def test_a_followed_channel_left_while_it_is_away(self) -> None:
        shard = await self.shard()
        await shard.hub.subscribe("a", KEPT)
        await self.take_away()
        shard.hub.unsubscribe("a")
        joined = shard.hub.subscribe("b", KEPT)
        shard.hub.unsubscribe("b")
        await self.assertFailure(joined, HubUnavailable)
        await self.back(shard)
        await eventually(lambda: shard.hub.counters.followed_channels == 0)

    async def test_nothing_is_announced_or_read_while_it_is_away(self) -> None:
        shard = await self.shard("a", max_publications=1)
        await self.take_away()
        await self.assertFailure(shard.hub.announce("a", Left(ANN)), HubUnavailable)
        await self.assertFailure(shard.hub.history("a", KEPT), HubUnavailable)
        await self.assertFailure(shard.hub.remove_history("a"), HubUnavailable)
        waiting = shard.publish("a", b"x", history=KEPT)
        await self.assertFailure(shard.publish("a", b"y", history=KEPT), JournalFull)
        await self.back(shard)
        self.assertEqual((await waiting).offset, 1)
        await shard.hears("a", [b"x"])
        self.assertEqual(len(shard.receiver.events), 1, "no announcement")
