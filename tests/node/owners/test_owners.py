"""Stateful channels on a stage: who owns them, who may call, and what becomes of them when shards go."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred

from spread.node import App, Member, Owned, Refuse, command, owns
from spread.node.app.update import UpdateRefused
from spread.node.testing import FakeClient, Refused, Stage

OPEN: dict[str, Any] = {
    "client": {"allow_anonymous_connect_without_token": True},
    "channel": {
        "without_namespace": {"allow_subscribe_for_client": True, "allow_subscribe_for_anonymous": True},
        "namespaces": [
            {"name": name, "allow_subscribe_for_client": True, "allow_subscribe_for_anonymous": True}
            for name in ("match", "chat")
        ],
    },
}


class Add(msgspec.Struct):
    by: int


@owns("match:*")
class Match(Owned):
    tick_seconds = 0.1
    snapshot_seconds = 1.0
    linger_seconds = 3.0

    def __init__(self) -> None:
        self.total = 0
        self.ticks = 0
        self.log = self.app.log_of.setdefault(self.channel, [])

    def opened(self, channel: str) -> None:
        self.log.append("opened")

    def closed(self) -> None:
        self.log.append("closed")

    def joined(self, member: Member) -> None:
        self.log.append(f"joined {member.user}")

    def left(self, member: Member) -> None:
        self.log.append(f"left {member.user}")

    def tick(self, dt: float) -> None:
        self.ticks += 1
        self.publish({"tick": self.ticks, "epoch": self.epoch, "shard": self.app.shard})

    def snapshot(self) -> Any:
        return {"total": self.total, "ticks": self.ticks}

    def restore(self, state: Any) -> None:
        self.total, self.ticks = state["total"], state["ticks"]
        self.log.append("restored")

    @command("add")
    def add(self, member: Member | None, params: Add) -> dict[str, Any]:
        if params.by < 0:
            raise Refuse(4001, "no less")
        self.total += params.by
        return {"total": self.total, "shard": self.app.shard}

    @command("who")
    async def who(self, member: Member) -> list[str]:
        waiting: Deferred[None] = Deferred()
        self.app.later(0.5, waiting.callback, None)
        await waiting
        return sorted(each.user for each in self.members.values())

    @command("tell")
    def tell(self, member: Member, params: Any) -> None:
        self.send(member.id, params)


class Game(App):
    objects = (Match,)
    watch = ("chat:*",)

    def __init__(self) -> None:
        self.log_of: dict[str, list[str]] = {}
        self.heard: list[tuple[str, str]] = []

    def occupied(self, channel: str) -> None:
        self.heard.append(("occupied", channel))

    def vacated(self, channel: str) -> None:
        self.heard.append(("vacated", channel))

    def export_state(self) -> Any:
        return self.log_of

    def import_state(self, state: Any) -> None:
        self.log_of = state


def owner_of(stage: Stage, channel: str) -> int:
    """The number of the shard that has the object; there must be one."""
    (number,) = [
        shard.number
        for shard in stage.shards
        if shard.gateway.owners is not None and not shard.gateway.owners._is_stopped
        for holding in shard.gateway.owners._desk.holdings
        if holding.channel == channel and holding.running is not None
    ]
    return number


def entered(stage: Stage, client: FakeClient, owner: int) -> str:
    """A channel that this shard owns, which the client is in now."""
    for number in range(100):
        client.subscribe(f"match:{number}")
        stage.advance(0.5)
        if stage.owner(f"match:{number}") == owner:
            return f"match:{number}"
    raise AssertionError(f"shard {owner} owns nothing")


def logged(stage: Stage, channel: str) -> list[str]:
    return [line for number in range(len(stage.shards)) for line in stage.app(number).log_of.get(channel, [])]


def test_one_shard_has_it_all() -> None:
    with Stage(Game, OPEN) as stage:
        ann = stage.client(user="ann")
        with pytest.raises(Refused, match="103"):
            ann.rpc("match:1/add", {"by": 1}, seconds=6)
        with pytest.raises(Refused, match="104"):
            ann.rpc("chat:1/add", {"by": 1})
        ann.subscribe("match:1")
        assert ann.rpc("match:1/add", {"by": 2}, seconds=1)["total"] == 2
        with pytest.raises(Refused, match=r"107 .*by"):
            ann.rpc("match:1/add", {"by": "two"})
        with pytest.raises(Refused, match="4001 no less"):
            ann.rpc("match:1/add", {"by": -1})
        with pytest.raises(Refused, match="104"):
            ann.rpc("match:1/fly")
        assert ann.rpc("match:1/who", seconds=1) == ["ann"]
        ann.rpc("match:1/tell", "hello")
        assert ann.messages == ["hello"]
        stage.advance(1.0)
        ticks = [each["tick"] for each in ann.publications("match:1")]
        assert len(ticks) > 10 and ticks == list(range(1, len(ticks) + 1))
        ann.unsubscribe("match:1")
        stage.advance(2.9)
        assert logged(stage, "match:1") == ["opened", "joined ann", "left ann"]
        stage.advance(0.2)
        assert logged(stage, "match:1")[3:] == ["closed"]
        assert stage.app().heard == [("occupied", "match:1"), ("vacated", "match:1")]
        owners = stage.shards[0].gateway.owners
        assert owners is not None
        assert (owners._desk._entries, owners._reports._known, owners._routes._open) == ({}, {}, {})
        # What was closed begins anew.
        ann.subscribe("match:1")
        assert ann.rpc("match:1/add", {"by": 1}, seconds=1)["total"] == 1


def test_shards_share_one_object() -> None:
    with Stage(Game, OPEN, shards=3) as stage:
        clients = [stage.client(user=f"u{number}", shard=number) for number in range(3)]
        for number in range(20):
            channel = f"match:{number}"
            for client in clients:
                client.subscribe(channel)
            totals = [client.rpc(f"{channel}/add", {"by": 1}, seconds=1) for client in clients]
            assert [each["total"] for each in totals] == [1, 2, 3]
            assert {each["shard"] for each in totals} == {owner_of(stage, channel)}
        owners = {owner_of(stage, f"match:{number}") for number in range(20)}
        assert owners == {0, 1, 2}
        assert clients[0].rpc("match:3/who", seconds=1) == ["u0", "u1", "u2"]
        assert stage.wait(stage.app(1).call("match:3", "add", {"by": 4}), 1)["total"] == 7
        clients[0].subscribe("chat:1")
        stage.advance(0.1)
        heard = [each for number in range(3) for each in stage.app(number).heard if each[1] == "chat:1"]
        assert heard == [("occupied", "chat:1")]


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_what_nobody_is_in_ends_with_its_shard(end: str) -> None:
    with Stage(Game, OPEN, shards=3) as stage:
        ann = stage.client(user="ann", shard=1)
        channel = entered(stage, ann, owner=0)
        assert ann.rpc(f"{channel}/add", {"by": 5}, seconds=1)["total"] == 5
        stage.advance(1.0)
        ann.unsubscribe(channel)
        stage.advance(1.0)
        assert stage.owner(channel) == 0  # it lingers
        getattr(stage, end)(0)
        stage.advance(3.0)
        ann.subscribe(channel)
        assert ann.rpc(f"{channel}/add", {"by": 1}, seconds=5)["total"] == 1


def test_who_is_back_before_it_would_have_gone_finds_what_was_there() -> None:
    with Stage(Game, OPEN, shards=2) as stage:
        ann = stage.client(user="ann", shard=1)
        channel = entered(stage, ann, owner=0)
        ann.rpc(f"{channel}/add", {"by": 5}, seconds=1)
        ann.unsubscribe(channel)
        stage.advance(1.0)
        stage.stop(0)
        ann.subscribe(channel)
        assert ann.rpc(f"{channel}/add", {"by": 1}, seconds=5)["total"] == 6


def test_the_app_alone_can_call() -> None:
    with Stage(Game, OPEN, shards=2) as stage:
        assert stage.wait(stage.app(0).call("match:1", "add", {"by": 4}), 1)["total"] == 4
        assert stage.wait(stage.app(1).call("match:1", "add", {"by": 1}), 1)["total"] == 5
        stage.advance(3.2)
        assert logged(stage, "match:1") == ["opened", "closed"]
        with pytest.raises(LookupError):
            stage.app().call("chat:1", "add", {"by": 1})
        with pytest.raises(LookupError, match="is no channel"):
            stage.app().call("match:" + "x" * 250, "add", {"by": 1})


def crash(stage: Stage, number: int) -> None:
    """A shard is gone without a word."""
    shard = stage.shards[number]
    owners = shard.gateway.owners
    assert owners is not None
    owners._is_stopped = True
    live = owners._live
    live._is_stopped = True
    if live._timer is not None:
        live._timer.cancel()
    live._sure_until = float("-inf")
    shard.hub.stop()


def test_another_takes_over_from_a_dead_one() -> None:
    with Stage(Game, OPEN, shards=3) as stage:
        clients = [stage.client(user=f"u{number}", shard=number) for number in range(3)]
        for client in clients:
            client.subscribe("match:1")
        for client in clients:
            client.rpc("match:1/add", {"by": 1}, seconds=1)
        stage.advance(1.5)
        dead = owner_of(stage, "match:1")
        survivor = clients[(dead + 1) % 3]
        before = survivor.publications("match:1")[-1]
        crash(stage, dead)
        began = stage.clock.seconds()
        assert stage.advance_until(lambda: survivor.publications("match:1")[-1]["shard"] != dead, 5)
        assert stage.clock.seconds() - began < 3
        after = next(each for each in survivor.publications("match:1") if each["shard"] != dead)
        assert after["epoch"] == before["epoch"] + 1
        assert before["tick"] - after["tick"] <= 11, "no older than a snapshot"
        assert survivor.rpc("match:1/add", {"by": 1}, seconds=1)["total"] == 4
        stage.advance(0.5)
        left = [line for line in logged(stage, "match:1") if line.startswith("left")]
        assert left == [f"left u{dead}"]
        assert ("occupied", "match:1") in stage.app(owner_of(stage, "match:1")).heard
        stage.errors.clear()


def test_a_shard_that_stops_hands_over() -> None:
    with Stage(Game, OPEN, shards=2) as stage:
        clients = [stage.client(user=f"u{number}", shard=number) for number in range(2)]
        for number in range(6):
            for client in clients:
                client.subscribe(f"match:{number}")
                client.rpc(f"match:{number}/add", {"by": 1}, seconds=1)
        moved = [number for number in range(6) if owner_of(stage, f"match:{number}") == 0]
        assert moved
        stage.wait(Deferred.fromCoroutine(stage.shards[0].host.stop()), 3)
        stage.advance(0.5)
        for number in range(6):
            assert owner_of(stage, f"match:{number}") == 1
            # Clients of the shard that stops can play on until it is gone; nothing is lost.
            totals = [client.rpc(f"match:{number}/add", {"by": 1}, seconds=1)["total"] for client in clients]
            assert totals == [3, 4]
        owners = stage.shards[0].gateway.owners
        assert owners is not None and owners.counters.handed_over == len(moved)
        assert stage.shards[1].gateway.owners.counters.taken_by_force == 0  # type: ignore[union-attr]


@owns("match:*")
class Better(Match):
    @command("add")
    def add(self, member: Member | None, params: Add) -> dict[str, Any]:
        self.total += params.by * 10
        return {"total": self.total, "shard": self.app.shard}


class BetterGame(Game):
    objects = (Better,)


class Forgetful(Better):
    def restore(self, state: Any) -> None:
        raise KeyError("points")


class BrokenGame(Game):
    objects = (Forgetful,)


def test_an_update_keeps_the_state() -> None:
    with Stage(Game, OPEN, shards=2) as stage:
        clients = [stage.client(user=f"u{number}", shard=number) for number in range(2)]
        for client in clients:
            client.subscribe("match:1")
            client.rpc("match:1/add", {"by": 1}, seconds=1)
        slow = clients[1].begin_rpc("match:1/who")
        with pytest.raises(UpdateRefused, match=r"match:1.*points"):
            stage.update(BrokenGame)
        assert clients[0].rpc("match:1/add", {"by": 1}, seconds=1)["total"] == 3
        stage.update(BetterGame)
        assert clients[0].rpc("match:1/add", {"by": 1}, seconds=1)["total"] == 13
        assert slow.result(1) == ["u0", "u1"]
        before = len(clients[0].publications("match:1"))
        stage.advance(1.0)
        assert 9 <= len(clients[0].publications("match:1")) - before <= 11, "one timer, not two"
        stage.errors.clear()


def test_who_goes_is_told() -> None:
    with Stage(Game, OPEN, shards=2) as stage:
        clients = [stage.client(user=f"u{number}", shard=number) for number in range(2)]
        for client in clients:
            client.subscribe("match:1")
        stage.advance(0.1)
        clients[0].close()
        stage.advance(0.1)
        clients[1].close()
        stage.advance(0.1)
        assert logged(stage, "match:1")[-2:] == ["left u0", "left u1"]


def test_a_shard_that_stood_still_is_refused() -> None:
    """Its clock goes on, and its pulse has run out: it must not act, and finds out that it is over."""
    with Stage(Game, OPEN, shards=2) as stage:
        clients = [stage.client(user=f"u{number}", shard=number) for number in range(2)]
        for client in clients:
            client.subscribe("match:1")
            client.rpc("match:1/add", {"by": 1}, seconds=1)
        stage.advance(1.1)
        old = owner_of(stage, "match:1")
        other = 1 - old
        owners = stage.shards[old].gateway.owners
        assert owners is not None
        (holding,) = owners._desk.holdings
        # Somebody takes the channel, as others would after the shard's pulse has run out.
        thief = stage.shards[other].hub
        assert holding._ownership is not None
        taken = stage.wait(thief.take("match:1", holding._ownership), 1)
        assert taken.epoch == holding._ownership.epoch + 1
        running = holding.running
        assert running is not None
        assert stage.wait(running.publish({"tick": -1}), 1) is False
        assert owners.counters.fenced == 1 and holding.state.value == "over"
        assert all(each["tick"] != -1 for each in clients[other].publications("match:1"))
        # It still belongs here, and the other does not hold it: it is taken back, from the last snapshot.
        assert stage.advance_until(
            lambda: clients[other].publications("match:1")[-1]["epoch"] == taken.epoch + 1, 3
        )
        assert clients[other].rpc("match:1/add", {"by": 1}, seconds=1)["total"] == 3


def test_the_hub_is_away_for_a_while() -> None:
    """Nobody ticks meanwhile; then all goes on where it was, and nobody has left."""
    with Stage(Game, OPEN, shards=3) as stage:
        clients = [stage.client(user=f"u{number}", shard=number) for number in range(3)]
        for client in clients:
            client.subscribe("match:1")
            client.rpc("match:1/add", {"by": 1}, seconds=1)
        owner = owner_of(stage, "match:1")
        owners = stage.shards[owner].gateway.owners
        assert owners is not None
        stage.exchange.cut()
        stage.advance(2.0)
        ticks = owners.counters.ticks
        waiting = clients[owner].begin_rpc("match:1/add", {"by": 1})
        stage.advance(2.0)
        assert owners.counters.ticks == ticks and not waiting.is_answered
        stage.exchange.restore()
        assert waiting.result(2)["total"] == 4
        stage.advance(5.0)
        assert owner_of(stage, "match:1") == owner
        assert [line for line in logged(stage, "match:1") if line.startswith(("left", "restored"))] == []
        assert owners.counters.ticks > ticks and owners.counters.taken == 1
        assert [client.rpc("match:1/add", {"by": 1}, seconds=1)["total"] for client in clients] == [5, 6, 7]


def test_a_command_whose_owner_dies_is_not_done_again() -> None:
    with Stage(Game, OPEN, shards=3) as stage:
        clients = [stage.client(user=f"u{number}", shard=number) for number in range(3)]
        for client in clients:
            client.subscribe("match:1")
            client.rpc("match:1/add", {"by": 1}, seconds=1)
        stage.advance(1.1)
        dead = owner_of(stage, "match:1")
        other = clients[(dead + 1) % 3]
        begun = other.begin_rpc("match:1/who")
        stage.advance(0.1)
        crash(stage, dead)
        with pytest.raises(Refused, match="100"):
            begun.result(4)
        # What is called before its owner is known again waits for that.
        assert other.rpc("match:1/add", {"by": 1}, seconds=4)["total"] == 4
        stage.errors.clear()


def test_a_death_that_empties_a_channel_is_told() -> None:
    with Stage(Game, OPEN, shards=3) as stage:
        alone = stage.client(user="ann", shard=0)
        for number in range(12):
            alone.subscribe(f"chat:{number}")
            alone.subscribe(f"match:{number}")
        stage.advance(0.5)
        crash(stage, 0)
        stage.advance(4.0)
        for kind in ("chat", "match"):
            for number in range(12):
                channel = f"{kind}:{number}"
                heard = [what for each in (1, 2) for what, name in stage.app(each).heard if name == channel]
                assert heard[-1:] == ["vacated"], (channel, heard)
        stage.advance(4.0)
        for number in (1, 2):
            owners = stage.shards[number].gateway.owners
            assert owners is not None
            assert (owners.counters.objects, owners.counters.members, owners._desk._entries) == (0, 0, {})
        stage.errors.clear()


def test_limits() -> None:
    few = {**OPEN, "app": {"max_objects": 1, "max_commands": 2, "max_reported_members": 3}}
    with Stage(Game, few) as stage:
        ann, bob = stage.client(user="ann"), stage.client(user="bob")
        ann.subscribe("match:1")
        assert ann.rpc("match:1/add", {"by": 1}, seconds=1)["total"] == 1
        ann.subscribe("match:2")
        with pytest.raises(Refused, match="106"):
            ann.rpc("match:2/add", {"by": 1}, seconds=1)
        with pytest.raises(Refuse, match="106"):
            stage.wait(stage.app().call("match:3", "who"), 1)
        assert "match:3" not in stage.shards[0].gateway.owners._desk._entries
        bob.subscribe("match:1")
        calls = [ann.begin_rpc("match:1/who"), bob.begin_rpc("match:1/who")]
        with pytest.raises(Refused, match="111"):
            bob.rpc("match:1/who")
        assert [call.result(1) for call in calls] == [["ann", "bob"]] * 2
        owners = stage.shards[0].gateway.owners
        assert owners is not None and owners.counters.refused_full >= 2
        assert owners.counters.waiting == 0


@owns("match:*")
class Sick(Owned):
    tick_seconds = 0.1

    def opened(self, channel: str) -> None:
        if channel == "match:0":
            raise KeyError("no rules")

    def tick(self, dt: float) -> None:
        raise ValueError("no tick")

    def snapshot(self) -> Any:
        return None if self.app.is_well else {"object": object()}

    def restore(self, state: Any) -> None:
        pass

    @command("fail")
    def fail(self, member: Member) -> None:
        raise RuntimeError("it does")

    @command("ok")
    def ok(self, member: Member) -> str:
        return "ok"


class Ward(App):
    objects = (Sick,)
    is_well = False


def test_errors_of_an_object_are_its_own() -> None:
    with Stage(Ward, OPEN) as stage:
        ann = stage.client(user="ann")
        ann.subscribe("match:0")
        ann.subscribe("match:1")
        with pytest.raises(Refused, match="100"):
            ann.rpc("match:0/ok", seconds=1)
        assert ann.rpc("match:1/ok", seconds=1) == "ok"
        with pytest.raises(Refused, match="100"):
            ann.rpc("match:1/fail")
        stage.advance(1.5)
        assert ann.rpc("match:1/ok", seconds=1) == "ok"
        owners = stage.shards[0].gateway.owners
        assert owners is not None and owners.counters.failed >= 1 and owners.counters.snapshots_failed >= 1
        text = "\n".join(stage.errors)
        for part in ("Sick.opened", "no rules", "Sick.tick", "Sick.fail", "for client", "Sick.snapshot"):
            assert part in text
        stage.app().is_well = True
        stage.errors.clear()


class Nothing(Game):
    objects = ()
    watch = ()


def test_an_update_brings_objects_and_takes_them_away() -> None:
    with Stage(Nothing, OPEN, shards=2) as stage:
        clients = [stage.client(user=f"u{number}", shard=number) for number in range(2)]
        for client in clients:
            client.subscribe("match:1")
            with pytest.raises(Refused, match="104"):
                client.rpc("match:1/add", {"by": 1})
        stage.update(Game)
        totals = [client.rpc("match:1/add", {"by": 1}, seconds=1)["total"] for client in clients]
        assert totals == [1, 2]
        assert sorted(logged(stage, "match:1")) == ["joined u0", "joined u1", "opened"]
        stage.update(Nothing)
        stage.advance(1)
        with pytest.raises(Refused, match="104"):
            clients[0].rpc("match:1/add", {"by": 1})
        for shard in stage.shards:
            assert shard.gateway.owners is not None and not shard.gateway.owners._desk.holdings
        # Whoever has the state next, goes on with it.
        stage.update(Game)
        assert clients[1].rpc("match:1/add", {"by": 1}, seconds=1)["total"] == 3


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"objects": (Owned,)}, "@owns is missing"),
        ({"objects": (int,)}, "no subclass of spread.node.Owned"),
        ({"objects": (type("Hasty", (Match,), {"tick_seconds": 1e-300}),)}, "less than a millisecond"),
        ({"watch": "chat:*"}, "several"),
        ({"watch": ("chat:[",)}, "watch"),
    ],
)
def test_an_app_that_is_wrong(attributes: dict[str, Any], why: str) -> None:
    wrong = type("Wrong", (App,), attributes)
    with Stage(Game, OPEN) as stage, pytest.raises(UpdateRefused, match=why):
        stage.update(wrong)


def test_a_member_is_named_by_its_id() -> None:
    with Stage(Game, OPEN) as stage:
        ann = stage.client(user="ann")
        ann.subscribe("match:1")
        stage.advance(0.1)
        match = stage.owned("match:1")
        (member,) = match.members.values()
        with pytest.raises(TypeError, match="the id of a member, not Member"):
            match.send(member, 1)
        assert stage.wait(match.send(member.id, 1))
        assert ann.messages == [1]
