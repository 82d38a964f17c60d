"""Who owns a channel, and who lives by its pulse: one suite for all hubs."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from spread.hub.api import MAX_STATE_BYTES, History, Ownership
from spread.hub.errors import Fenced, HubUnavailable, MessageTooLarge
from spread.hub.memory_owners import SWEEP_SECONDS, MemoryOwners
from spread.hub.ownership import GIVEN_UP_SECONDS, OWNER_SECONDS
from tests.hub.backends import Backend, OnFakeredis, OnMemory, OnValkey
from tests.hub.shards import Shard, pause

KEPT = History(size=100, ttl_seconds=60, meta_ttl_seconds=3600)
MODES: list[dict[str, Any]] = [
    {},
    {"idempotency_key": "k"},
    {"history": KEPT},
    {"history": KEPT, "idempotency_key": "k"},
]


def me(shard: Shard) -> str:
    return shard.identity.incarnation


class OwnershipConformance(Backend):
    """What every hub must do."""

    async def listener(self, *channels: str) -> Shard:
        """A started shard that hears ``channels``."""
        shard = await self.shard()
        for channel in channels:
            await shard.hub.subscribe(channel)
        return shard

    async def test_one_of_many_takes_it(self) -> None:
        shards = [await self.shard() for _ in range(3)]
        self.assertEqual(await shards[0].hub.owner_of("a"), None)
        taken = await gatherResults([shard.hub.take("a") for shard in shards])
        owner = taken[0]
        self.assertEqual(taken, [owner] * 3)
        self.assertEqual(owner.epoch, 1)
        self.assertIn(owner.holder, [me(shard) for shard in shards])
        for shard in shards:
            self.assertEqual(await shard.hub.owner_of("a"), owner)
            self.assertEqual(await shard.hub.owner_of("b"), None)

    async def test_it_is_taken_over_only_from_whom_is_named(self) -> None:
        one, two, three = [await self.shard() for _ in range(3)]
        first = await one.hub.take("a")
        for wrong in (Ownership(me(two), first.epoch), Ownership(me(one), first.epoch + 1)):
            self.assertEqual(await two.hub.take("a", wrong), first)
        second = await two.hub.take("a", first)
        self.assertEqual(second, Ownership(me(two), 2))
        self.assertEqual(await three.hub.take("a", first), second)
        self.assertEqual(await two.hub.take("a", first), second, "asked again")
        self.assertEqual(await two.hub.take("a", second), Ownership(me(two), 3), "from itself")

    async def test_who_gives_up_leaves_the_epoch(self) -> None:
        one, two = await self.shard(), await self.shard()
        first = await one.hub.take("a")
        await two.hub.give_up("a", Ownership(me(two), first.epoch))
        await two.hub.give_up("b", first)
        self.assertEqual(await two.hub.owner_of("a"), first)
        self.assertEqual(await one.hub.give_up("a", first), None)
        await one.hub.give_up("a", first)
        self.assertEqual(await two.hub.owner_of("a"), None)
        self.assertEqual(await two.hub.take("a"), Ownership(me(two), 2))

    async def test_an_epoch_is_above_what_its_taker_knows(self) -> None:
        shard = await self.shard()
        known = Ownership("00000000000000aa", 41)
        self.assertEqual(await shard.hub.take("a", known), Ownership(me(shard), 42))

    async def test_owned_channels_may_have_any_name(self) -> None:
        one, two = await self.shard(), await self.shard()
        for name in ("x}", "{x", "a:{b}", "房间", "a b\n"):
            owner = await one.hub.take(name)
            self.assertEqual(await two.hub.owner_of(name), owner)
            error = await self.assertFailure(two.publish(name, b"x", fence=Ownership(me(two), 1)), Fenced)
            self.assertEqual((error.channel, error.holder, error.epoch), (name, me(one), 1))

    # -- publishing --------------------------------------------------------------------------------------

    async def test_only_the_owner_publishes(self) -> None:
        one = await self.shard()
        two = await self.listener(*(f"m{number}" for number in range(len(MODES))))
        for number, options in enumerate(MODES):
            channel = f"m{number}"
            is_kept = "history" in options
            fence = await one.hub.take(channel)
            position = await one.publish(channel, b"1", fence=fence, **options)
            self.assertEqual(position.offset if position else 0, 1 if is_kept else 0)
            taken = await two.hub.take(channel, fence)
            later = {**options, **({"idempotency_key": "k2"} if "idempotency_key" in options else {})}
            error = await self.assertFailure(one.publish(channel, b"no", fence=fence, **later), Fenced)
            self.assertEqual((error.channel, error.holder, error.epoch), (channel, me(two), taken.epoch))
            self.assertEqual(error.is_unsure, False)
            self.assertIn(me(two), str(error))
            position = await two.publish(channel, b"2", fence=taken, **later)
            self.assertEqual(position.offset if position else 0, 2 if is_kept else 0)
            await two.hub.give_up(channel, taken)
            later.pop("idempotency_key", None)
            error = await self.assertFailure(two.publish(channel, b"no", fence=taken, **later), Fenced)
            self.assertEqual((error.holder, error.epoch), ("", taken.epoch))
            nobody = Ownership("", taken.epoch)
            await self.assertFailure(two.publish(channel, b"no", fence=nobody, **later), Fenced)
            await self.assertFailure(two.publish("never", b"no", fence=taken, **later), Fenced)
            await one.publish(channel, b"3", **later)
            await two.hears(channel, [b"1", b"2", b"3"])

    async def test_what_was_taken_in_time_is_not_refused_when_it_comes_again(self) -> None:
        one, two = await self.shard(), await self.listener("plain", "kept")
        modes: list[tuple[str, dict[str, Any]]] = [("plain", {}), ("kept", {"history": KEPT})]
        for channel, history in modes:
            fence = await one.hub.take(channel)
            first = await one.publish(channel, b"1", fence=fence, idempotency_key="k", **history)
            await two.hub.take(channel, fence)
            again = await one.publish(channel, b"1", fence=fence, idempotency_key="k", **history)
            self.assertEqual(again, first)
            await one.publish(channel, b"2")
            await two.hears(channel, [b"1", b"2"])

    async def test_refused_ones_stand_in_no_others_way(self) -> None:
        one, two = await self.shard(), await self.listener("a")
        old = await one.hub.take("a")
        new = await two.hub.take("a", old)
        refused = [one.publish("a", b"no", fence=old, history=KEPT) for _ in range(3)]
        for each in refused:
            await self.assertFailure(each, Fenced)
        positions = [await one.publish("a", b"one%d" % number, history=KEPT) for number in range(3)]
        self.assertEqual([position.offset for position in positions], [1, 2, 3])
        self.assertEqual((await two.publish("a", b"two", fence=new, history=KEPT)).offset, 4)
        await two.hears("a", [b"one0", b"one1", b"one2", b"two"])

    # -- state -------------------------------------------------------------------------------------------

    async def test_only_the_owner_saves(self) -> None:
        one, two = await self.shard(), await self.shard()
        self.assertEqual(await two.hub.load_state("a"), None)
        first = await one.hub.take("a")
        for state in (b"", b"12", bytes(range(256)), bytes(MAX_STATE_BYTES)):
            self.assertEqual(await one.hub.save_state("a", first, state, 60), None)
            self.assertEqual(await two.hub.load_state("a"), state)
        too_large = one.hub.save_state("a", first, bytes(MAX_STATE_BYTES + 1), 60)
        await self.assertFailure(too_large, MessageTooLarge)
        await one.hub.save_state("a", first, b"1", 60)
        second = await two.hub.take("a", first)
        error = await self.assertFailure(one.hub.save_state("a", first, b"late", 60), Fenced)
        self.assertEqual((error.channel, error.holder, error.epoch), ("a", me(two), 2))
        self.assertEqual(await two.hub.load_state("a"), b"1")
        await two.hub.save_state("a", second, b"2", 60)
        await two.hub.give_up("a", second)
        self.assertEqual(await one.hub.load_state("a"), b"2", "stays for the next owner")
        await self.assertFailure(two.hub.save_state("a", second, b"3", 60), Fenced)

    async def test_a_state_expires(self) -> None:
        shard = await self.shard()
        await shard.hub.save_state("a", await shard.hub.take("a"), b"x", 1)
        await pause(1.1)
        self.assertEqual(await shard.hub.load_state("a"), None)

    # -- pulses ------------------------------------------------------------------------------------------

    async def test_who_lives_is_told_to_all(self) -> None:
        one, two, three = [await self.shard() for _ in range(3)]
        self.assertEqual(await one.hub.pulse(10.0), {me(one)})
        self.assertEqual(await three.hub.pulse(10.0), {me(one), me(three)})
        self.assertEqual(await three.hub.end_pulse(), None)
        await three.hub.end_pulse()
        self.assertIn(me(two), await two.hub.pulse(0.4))
        await pause(0.45)
        self.assertEqual(await one.hub.pulse(10.0), {me(one)})
        self.assertEqual(await two.hub.pulse(10.0), {me(one), me(two)})

    async def test_a_stopped_hub_owns_nothing(self) -> None:
        shard = await self.shard()
        fence = await shard.hub.take("a")
        await shard.hub.stop()
        await self.refuses(shard, fence)

    async def refuses(self, shard: Shard, fence: Ownership) -> None:
        for asked in (
            shard.hub.owner_of("a"),
            shard.hub.take("a"),
            shard.hub.give_up("a", fence),
            shard.hub.save_state("a", fence, b"x", 60),
            shard.hub.load_state("a"),
            shard.hub.pulse(1.0),
            shard.hub.end_pulse(),
        ):
            await self.assertFailure(asked, HubUnavailable)


class OwnershipAway(OwnershipConformance):
    """The hub is taken away, and comes back with what it kept."""

    async def test_while_it_is_away(self) -> None:
        shard = await self.shard()
        fence = await shard.hub.take("a")
        await self.take_away(shard)
        await self.refuses(shard, fence)
        self.give_back()

    async def test_what_waited_meanwhile_is_refused_if_it_comes_too_late(self) -> None:
        one, two = await self.shard(), await self.shard()
        fence = await one.hub.take("a")
        new = await two.hub.take("a", fence)
        await self.take_away(one, two)
        late = [one.publish("a", b"late", fence=fence, **options) for options in MODES]
        timely = [two.publish("a", b"%d" % number, fence=new) for number in range(2)]
        self.give_back()
        for each in late:
            await self.assertFailure(each, Fenced)
        await gatherResults(timely)


class InMemory(OnMemory, OwnershipAway, TestCase):
    timeout = 30


class OnFake(OnFakeredis, OwnershipConformance, TestCase):
    timeout = 30


class OnReal(OnValkey, OwnershipConformance, TestCase):
    timeout = 30

    async def test_what_is_kept_and_for_how_long(self) -> None:
        shard = await self.shard()
        fence = await shard.hub.take("a")
        await shard.hub.save_state("a", fence, b"x", 60)
        await shard.hub.pulse(60.0)
        for key, most in (("owner:{a}", OWNER_SECONDS), ("state:{a}", 60), ("pulses", 60)):
            left = int(self.server.command("TTL", f"spread:{key}"))
            self.assertTrue(0 < left <= most, (key, left))
        await shard.hub.give_up("a", fence)
        self.assertTrue(0 < int(self.server.command("TTL", "spread:owner:{a}")) <= GIVEN_UP_SECONDS)
        fence = await shard.hub.take("a")
        for options in MODES:
            self.server.command("EXPIRE", "spread:owner:{a}", "100")
            await shard.publish("a", b"x", fence=fence, **options)
            self.assertTrue(int(self.server.command("TTL", "spread:owner:{a}")) > 100)
            self.server.command("DEL", "spread:result:{a}:k")

    async def test_pulses_from_before_the_clock_was_set_back(self) -> None:
        shard = await self.shard()
        future = int(self.server.command("TIME")[0]) * 1000 + 3_600_000
        self.server.command("ZADD", "spread:pulses", str(future), "00000000000000aa")
        self.assertEqual(await shard.hub.pulse(1.0), {me(shard)})

    async def test_one_that_is_sent_again_after_its_connection_broke(self) -> None:
        one, two = await self.shard(), await self.listener("a")
        fence = await one.hub.take("a")
        await one.publish("a", b"0", fence=fence, history=KEPT)
        await one.publish("a", b"1", fence=fence)
        hub: Any = one.hub
        connection = hub.server.commands.protocol
        # What comes back on this connection is not heard any more.
        connection.dataReceived = lambda data: None
        kept = one.publish("a", b"2", fence=fence, history=KEPT)
        plain = one.publish("a", b"3", fence=fence)
        await two.hears("a", [b"0", b"1", b"2", b"3"])
        await two.hub.take("a", fence)
        connection.transport.abortConnection()
        self.assertEqual((await kept).offset, 2, "it was taken in time, and the script knows")
        error = await self.assertFailure(plain, Fenced)
        self.assertTrue(error.is_unsure)
        await two.publish("a", b"4")
        await two.hears("a", [b"0", b"1", b"2", b"3", b"4"])


def test_in_memory_what_is_over_is_forgotten() -> None:
    clock = Clock()
    owners = MemoryOwners(clock)
    fence = owners.take("a", "aa", None)
    owners.save("b", owners.take("b", "aa", None), b"x", 1)
    clock.advance(OWNER_SECONDS - 1)
    owners.use("a", fence)
    clock.advance(SWEEP_SECONDS)
    assert owners.owner_of("a") == fence
    assert owners.owner_of("b") is None
    owners.take("c", "aa", None)
    assert len(owners) == 2
    owners.give_up("a", fence)
    clock.advance(GIVEN_UP_SECONDS + SWEEP_SECONDS)
    owners.take("d", "aa", None)
    assert len(owners) == 2
