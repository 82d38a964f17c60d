"""What goes wrong around an object: it closes, moves, and is called meanwhile; hub and code fail."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail

from spread.hub.errors import HubUnavailable
from spread.node import App, Member, Owned, command, owns
from spread.node.owners.wire import Hello, Row, question
from spread.node.testing import Refused, Stage
from tests.node.owners.test_owners import OPEN, Game, crash, owner_of


def waiting(app: App, seconds: float) -> Deferred[None]:
    ends: Deferred[None] = Deferred()
    app.later(seconds, ends.callback, None)
    return ends


@owns("match:*")
class Kept(Owned):
    """Closes slowly, and its state can be kept from being had."""

    tick_seconds = 0.0
    linger_seconds = 1.0
    keep_seconds = 60.0

    def __init__(self) -> None:
        self.total = 0

    async def closed(self) -> None:
        await waiting(self.app, 1.0)

    def snapshot(self) -> Any:
        if self.app.is_sick:
            raise RuntimeError("no state")
        return self.total

    def restore(self, state: Any) -> None:
        if self.app.is_sick:
            raise RuntimeError("no such state")
        self.total = state

    @command("add")
    def add(self, member: Member | None) -> int:
        self.total += 1
        return self.total

    @command("slow")
    async def slow(self, member: Member) -> int:
        await waiting(self.app, 0.8)
        self.total += 1
        return self.total


class Keeper(App):
    objects = (Kept,)
    is_sick = False


class Fresh(Keeper):
    objects = (owns("match:*")(type("Fresh", (Kept,), {"keep_seconds": 0.0})),)


def counters_of(stage: Stage, number: int) -> Any:
    owners = stage.shards[number].gateway.owners
    assert owners is not None
    return owners.counters


@pytest.mark.parametrize("shards", [1, 2])
def test_what_is_called_while_it_closes_is_done_by_the_next(shards: int) -> None:
    with Stage(Keeper, OPEN, shards=shards) as stage:
        clients = [stage.client(user=f"u{number}", shard=number) for number in range(shards)]
        for client in clients:
            client.subscribe("match:1")
            client.rpc("match:1/add", seconds=1)
        for client in clients:
            client.unsubscribe("match:1")
        stage.advance(1.1)  # it is about to close, for a second
        for client in clients:
            client.subscribe("match:1")
        asked = [client.begin_rpc("match:1/add") for client in clients for _ in range(3)]
        stage.advance(0.3)
        assert not any(each.is_answered for each in asked)
        totals = [each.result(3) for each in asked]
        assert totals == sorted(totals) and max(totals) == 4 * shards


def test_the_last_snapshot_stays_when_there_is_no_newer_one() -> None:
    with Stage(Keeper, OPEN) as stage:
        ann = stage.client(user="ann")
        ann.subscribe("match:1")
        assert ann.rpc("match:1/add", seconds=1) == 1
        stage.advance(1.1)
        stage.app().is_sick = True
        ann.unsubscribe("match:1")
        stage.advance(3)
        stage.app().is_sick = False
        stage.errors.clear()
        ann.subscribe("match:1")
        assert ann.rpc("match:1/add", seconds=1) == 2


def test_what_was_closed_while_the_hub_was_away_begins_anew() -> None:
    with Stage(Fresh, OPEN) as stage:
        ann = stage.client(user="ann")
        ann.subscribe("match:1")
        assert ann.rpc("match:1/add", seconds=1) == 1
        stage.advance(1.1)
        ann.unsubscribe("match:1")
        stage.advance(1.1)
        stage.exchange.cut()
        stage.advance(3)
        stage.exchange.restore()
        stage.advance(1)
        assert counters_of(stage, 0).objects == 0
        ann.subscribe("match:1")
        assert ann.rpc("match:1/add", seconds=1) == 1


def test_a_command_that_ends_after_the_state_was_taken_is_not_called_done() -> None:
    with Stage(Keeper, OPEN, shards=2) as stage:
        client = stage.client(user="ann", shard=0)
        names = [f"match:{number}" for number in range(8)]
        for name in names:
            client.subscribe(name)
            client.rpc(f"{name}/add", seconds=1)
        channel = next(name for name in names if owner_of(stage, name) == 0)
        hub: Any = stage.shards[0].hub
        save, held = hub.save_state, list[Any]()

        def saved(*arguments: Any) -> Deferred[None]:
            held.append((Deferred(), arguments))
            ends: Deferred[None] = held[-1][0]
            return ends

        hub.save_state = saved
        slow = client.begin_rpc(f"{channel}/slow")
        stopped = Deferred.fromCoroutine(stage.shards[0].host.stop())
        with pytest.raises(Refused, match="100"):
            slow.result(1.2)
        hub.save_state = save
        for ends, arguments in held:
            save(*arguments).chainDeferred(ends)
        stage.wait(stopped, 3)
        assert client.rpc(f"{channel}/add", seconds=1) == 2


def test_a_state_that_is_handed_over_is_saved_in_the_end() -> None:
    """The hub, or this shard, was slow for a moment; nobody has died, so nothing is lost."""
    with Stage(Keeper, OPEN, shards=2) as stage:
        client = stage.client(user="ann", shard=0)
        names = [f"match:{number}" for number in range(8)]
        for name in names:
            client.subscribe(name)
        stage.advance(1.1)
        channel = next(name for name in names if owner_of(stage, name) == 0)
        assert client.rpc(f"{channel}/add", seconds=1) == 1
        hub: Any = stage.shards[0].hub
        save, fails = hub.save_state, [HubUnavailable("fake", "slow")] * 8

        def saved(*arguments: Any) -> Deferred[None]:
            return fail(fails.pop()) if fails else save(*arguments)

        hub.save_state = saved
        stage.wait(Deferred.fromCoroutine(stage.shards[0].host.stop()), 3)
        assert client.rpc(f"{channel}/add", seconds=2) == 2


def test_a_command_that_ends_while_it_is_waited_for_is_done() -> None:
    with Stage(Keeper, OPEN, shards=2) as stage:
        client = stage.client(user="ann", shard=0)
        for number in range(8):
            client.subscribe(f"match:{number}")
        stage.advance(1)
        channel = next(
            name for name in (f"match:{number}" for number in range(8)) if owner_of(stage, name) == 0
        )
        slow = client.begin_rpc(f"{channel}/slow")
        stage.advance(0.5)
        stopped = Deferred.fromCoroutine(stage.shards[0].host.stop())
        assert slow.result(1) == 1
        stage.wait(stopped, 3)
        assert client.rpc(f"{channel}/add", seconds=1) == 2


def test_a_state_that_cannot_be_restored_waits_for_better_code() -> None:
    with Stage(Keeper, OPEN, shards=2) as stage:
        clients = [stage.client(user=f"u{number}", shard=number) for number in range(2)]
        for client in clients:
            client.subscribe("match:1")
            client.rpc("match:1/add", seconds=1)
        stage.advance(1.1)
        dead = owner_of(stage, "match:1")
        app: Any = stage.app(1 - dead)
        app.is_sick = True
        crash(stage, dead)
        with pytest.raises(Refused, match="100"):
            clients[1 - dead].rpc("match:1/add", seconds=4)
        assert "no such state" in "\n".join(stage.errors)
        app.is_sick = False
        stage.advance(1.1)
        stage.errors.clear()
        assert clients[1 - dead].rpc("match:1/add", seconds=1) == 3


def test_what_is_called_on_a_dead_owner_is_done_by_the_next() -> None:
    """Nobody has heard it, so it can be asked again."""
    with Stage(Game, OPEN, shards=3) as stage:
        clients = [stage.client(user=f"u{number}", shard=number) for number in range(3)]
        for client in clients:
            client.subscribe("match:1")
            client.rpc("match:1/add", {"by": 1}, seconds=1)
        stage.advance(1.1)
        dead = owner_of(stage, "match:1")
        crash(stage, dead)
        other = clients[(dead + 1) % 3]
        asked = [other.begin_rpc("match:1/add", {"by": 1}) for _ in range(5)]
        assert [each.result(4)["total"] for each in asked] == [4, 5, 6, 7, 8]
        stage.errors.clear()


def test_a_shard_that_forgot_who_is_there_is_told_again() -> None:
    """Whatever made it forget: a member must not be locked out for good."""
    with Stage(Game, OPEN, shards=2) as stage:
        clients = [stage.client(user=f"u{number}", shard=number) for number in range(2)]
        for client in clients:
            client.subscribe("match:1")
            client.rpc("match:1/add", {"by": 1}, seconds=1)
        owner = owner_of(stage, "match:1")
        owners = stage.shards[owner].gateway.owners
        assert owners is not None
        owners._desk.drop(f"{2 - owner:016x}")
        assert clients[1 - owner].rpc("match:1/add", {"by": 1}, seconds=1)["total"] == 3


def test_an_update_during_a_greeting_is_told() -> None:
    class Nothing(Game):
        objects = ()
        watch = ()

    with Stage(Nothing, OPEN, shards=2) as stage:
        clients = [stage.client(user=f"u{number}", shard=number) for number in range(2)]
        for client in clients:
            client.subscribe("match:1")
        owners: Any = stage.shards[0].gateway.owners
        relay, held = owners._relays.relay, list[Any]()

        def slowly(kind: str, body: bytes, shard: str = "") -> Deferred[list[bytes]]:
            answer: Deferred[list[bytes]] = relay(kind, body, shard)
            if not isinstance(question(body), Hello):
                return answer
            later: Deferred[list[bytes]] = Deferred()
            held.append((answer, later))
            return later

        owners._relays.relay = slowly
        owners._met.clear()  # as after a gap
        owners._greet_new()
        stage.advance(0.1)
        stage.update(Game)
        owners._relays.relay = relay
        for answer, later in held:
            answer.chainDeferred(later)
        stage.advance(0.1)
        totals = [client.rpc("match:1/add", {"by": 1}, seconds=1)["total"] for client in clients]
        assert totals == [1, 2]


def test_the_app_keeps_an_object_by_calling_it() -> None:
    with Stage(Keeper, OPEN) as stage:
        for total in range(1, 7):
            assert stage.wait(stage.app().call("match:1", "add", None), 0.5) == total
            stage.advance(0.8)
        assert counters_of(stage, 0).taken == 1
        stage.advance(2.5)
        assert counters_of(stage, 0).objects == 0


def test_an_epoch_is_not_given_again_by_a_hub_that_lost_its_data() -> None:
    with Stage(Game, OPEN) as stage:
        ann = stage.client(user="ann")
        ann.subscribe("match:1")
        stage.advance(0.5)
        stage.exchange.owners.__init__(stage.clock)  # type: ignore[misc]
        stage.advance(1)
        epochs = [each["epoch"] for each in ann.publications("match:1")]
        assert epochs[0] == 1 and epochs[-1] == 2 and epochs == sorted(epochs)


def test_while_the_only_shard_stops_a_command_is_no_wrong_method() -> None:
    with Stage(Game, OPEN) as stage:
        ann = stage.client(user="ann")
        ann.subscribe("match:1")
        ann.rpc("match:1/add", {"by": 1}, seconds=1)
        stage.wait(Deferred.fromCoroutine(stage.shards[0].host.stop()), 3)
        with pytest.raises(Refused, match="100"):
            ann.rpc("match:1/add", {"by": 1}, seconds=6)


@owns("match:*")
class Slow(Owned):
    tick_seconds = 0.1

    async def tick(self, dt: float) -> None:
        self.app.at_once += 1
        self.app.most = max(self.app.most, self.app.at_once)
        await waiting(self.app, 0.35)
        self.app.at_once -= 1


class SlowGame(App):
    objects = (Slow,)
    at_once = most = 0


def test_slow_ticks_never_overlap_after_an_update() -> None:
    with Stage(SlowGame, OPEN) as stage:
        ann = stage.client(user="ann")
        ann.subscribe("match:1")
        stage.advance(0.3)

        class Next(SlowGame):
            at_once = most = 0

        stage.update(Next)
        app: Any = stage.app()
        stage.advance(3)
        assert app.most == 1


def test_limits_of_members_and_time() -> None:
    few = {**OPEN, "app": {"max_reported_members": 2, "command_seconds": 1.0}}
    with Stage(Game, few) as stage:
        ann, bob, cat = (stage.client(user=user) for user in ("ann", "bob", "cat"))
        for client in (ann, bob):
            client.subscribe("match:1")
            client.rpc("match:1/add", {"by": 1}, seconds=1)
        owners = stage.shards[0].gateway.owners
        assert owners is not None
        # All is told once more: no more members than before.
        owners._reports.forget(owners.shard)
        stage.advance(0.5)
        assert (owners.counters.refused_full, owners.counters.members) == (0, 2)
        cat.subscribe("match:1")
        asked = cat.begin_rpc("match:1/add", {"by": 1})
        stage.advance(0.9)
        assert not asked.is_answered and owners.counters.refused_full > 0
        with pytest.raises(Refused, match="100"):
            asked.result(0.2)
        bob.unsubscribe("match:1")
        stage.advance(2.5)
        assert cat.rpc("match:1/add", {"by": 1}, seconds=1)["total"] == 3


@owns("match:*")
class Large(Kept):
    @command("grow")
    def grow(self, member: Member, params: int) -> None:
        self.size = params

    def snapshot(self) -> Any:
        return "x" * getattr(self, "size", 0)

    def restore(self, state: Any) -> None:
        self.size = len(state)


class LargeGame(App):
    objects = (Large,)


def test_limits_of_snapshots() -> None:
    limits = {**OPEN, "app": {"snapshot_max_bytes": 2000, "snapshot_ttl_seconds": 10}}
    with Stage(LargeGame, limits) as stage:
        ann = stage.client(user="ann")
        ann.subscribe("match:1")
        ann.rpc("match:1/grow", 1000, seconds=1)
        stage.advance(1.1)
        counters = counters_of(stage, 0)
        assert counters.snapshots >= 1 and counters.snapshots_failed == 0
        hub = stage.shards[0].hub
        kept = stage.wait(hub.load_state("match:1"), 1)
        ann.rpc("match:1/grow", 3000)
        stage.advance(1.1)
        assert counters.snapshots_failed == 1 and counters.snapshot_bytes > 3000
        assert stage.wait(hub.load_state("match:1"), 1) == kept
        ann.rpc("match:1/grow", 1000)
        stage.advance(30)
        assert stage.wait(hub.load_state("match:1"), 1) == kept, "renewed though it is the same"
        # Without its shard it goes when its time is over.
        crash(stage, 0)
        stage.advance(10)
        assert stage.exchange.owners.load("match:1") is None
        stage.errors.clear()


def test_the_hub_fails_while_an_object_is_opened() -> None:
    with Stage(Game, OPEN) as stage:
        hub: Any = stage.shards[0].hub
        load, fails = hub.load_state, [HubUnavailable("fake", "away")] * 3

        def loaded(channel: str) -> Deferred[bytes | None]:
            if fails:
                raise fails.pop()
            answer: Deferred[bytes | None] = load(channel)
            return answer

        hub.load_state = loaded
        ann = stage.client(user="ann")
        ann.subscribe("match:1")
        assert ann.rpc("match:1/add", {"by": 1}, seconds=1)["total"] == 1
        assert stage.app().log_of["match:1"] == ["opened", "joined ann"]


def test_who_comes_and_goes_is_told_of_in_pairs() -> None:
    with Stage(Game, OPEN) as stage:
        ann, bob = stage.client(user="ann"), stage.client(user="bob")
        ann.subscribe("match:1")
        stage.advance(0.1)
        for _ in range(3):
            bob.subscribe("match:1")
            bob.unsubscribe("match:1")
        bob.subscribe("match:1")
        bob.close()
        stage.advance(0.2)
        log = [line for line in stage.app().log_of["match:1"] if "bob" in line]
        assert log == ["joined bob", "left bob"] * (len(log) // 2)


def places_of(stage: Stage, channel: str) -> list[int]:
    """The numbers of the first, the deputy, and the others."""
    owners = stage.shards[0].gateway.owners
    assert owners is not None
    ranked = [int(shard, 16) - 1 for shard in owners._places.of(channel).ranked]
    return ranked + [shard.number for shard in stage.shards if shard.number not in ranked]


def goes(stage: Stage, number: int) -> None:
    """A shard has no objects from now on."""
    owners = stage.shards[number].gateway.owners
    assert owners is not None
    Deferred.fromCoroutine(owners._retire())
    stage.advance(0.1)


def comes(stage: Stage, number: int) -> None:
    """It has them again."""
    owners: Any = stage.shards[number].gateway.owners
    app = stage.app(number)
    owners.swap(app, owners.prepare(app))
    stage.advance(0.1)


@pytest.mark.parametrize(("seconds", "is_gone"), [(3.0, True), (0.3, True), (0.3, False)])
def test_what_was_reported_while_a_channel_belonged_elsewhere(seconds: float, is_gone: bool) -> None:
    """Nobody tells its news there; whoever gets the channel back must not believe what it knew."""
    with Stage(Keeper, OPEN, shards=3) as stage:
        first, deputy, third = places_of(stage, "match:1")
        goes(stage, first)
        ann = stage.client(user="ann", shard=deputy)
        ann.subscribe("match:1")
        stage.advance(0.3)
        counters = counters_of(stage, third)
        assert counters.members == 1
        comes(stage, first)  # and the third has nothing to do with it
        stage.advance(seconds)
        if is_gone:
            ann.unsubscribe("match:1")
        goes(stage, first)
        stage.advance(4.0)
        goes(stage, deputy)
        stage.advance(1.0)
        assert (counters.members, counters.objects) == ((0, 0) if is_gone else (1, 1))
        if not is_gone:
            assert ann.rpc("match:1/add", seconds=1) == 1


def test_reports_of_many_are_told_in_parts_and_nobody_leaves_meanwhile() -> None:
    with Stage(Game, OPEN) as stage:
        ann = stage.client(user="ann")
        ann.subscribe("match:1")
        owners = stage.shards[0].gateway.owners
        assert owners is not None
        crowd = [Row(f"c{number}", f"u{number}", b'"' + b"x" * 1000 + b'"') for number in range(600)]
        for row in crowd:
            owners._reports.joined("match:1", row)
        stage.advance(0.2)
        log = stage.app().log_of["match:1"]
        assert log.count("joined u599") == 1 and owners.counters.members == 601
        owners._reports.forget(owners.shard)
        assert not owners._reports.knows(owners.shard, "match:1", ann.id)
        stage.advance(0.2)
        assert owners._reports.knows(owners.shard, "match:1", ann.id)
        assert not [line for line in log if line.startswith("left")]
        assert owners.counters.members == 601 and not owners._reports._coming
        # What was to come may be all gone by then.
        owners._reports.forget(owners.shard)
        stage.advance(0)
        for row in crowd:
            owners._reports.left("match:1", row.id)
        stage.advance(0.2)
        assert owners.counters.members == 1 and len([line for line in log if line.startswith("left")]) == 600
