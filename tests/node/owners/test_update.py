"""An app with stateful channels is updated: its objects are those of the new code, and nobody notices."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from spread.node import App, Member, Owned, command, owns
from spread.node.app.update import UpdateRefused
from spread.node.testing import Refused, Stage
from tests.node.owners.test_owners import OPEN


@owns("match:*")
class Match(Owned):
    tick_seconds = 0.1
    name = "old"

    def __init__(self) -> None:
        self.passed = 0.0
        self.count = 0
        self.total = 0

    def joined(self, member: Member) -> None:
        self.app.joins.append(member.user)

    def tick(self, dt: float) -> None:
        self.passed += dt
        self.count += 1
        self.publish({"by": self.name, "passed": self.passed, "count": self.count})

    def snapshot(self) -> Any:
        return [self.passed, self.count, self.total]

    def restore(self, state: Any) -> None:
        self.passed, self.count, self.total = state

    @command("who")
    def who(self, member: Member, params: Any) -> Any:
        return [self.name, sorted(each.user for each in self.members.values())]

    @command("later")
    async def later(self, member: Member, params: Any) -> str:
        self.app.waiting.append(Deferred())
        await self.app.waiting[-1]
        return self.name

    @command("add")
    async def add(self, member: Member, params: Any) -> int:
        self.app.waiting.append(Deferred())
        await self.app.waiting[-1]
        self.total += params
        return self.total

    @command("total")
    def sum(self, member: Member, params: Any) -> int:
        return self.total


class Game(App):
    objects = (Match,)
    waiting: list[Deferred[None]] = []  # noqa: RUF012 - of all versions

    def __init__(self) -> None:
        self.joins: list[str] = []


class Newer(Match):
    name = "new"


class Faster(Match):
    name = "fast"
    tick_seconds = 0.05


class Slow(Match):
    name = "slow"

    async def tick(self, dt: float) -> None:  # type: ignore[override]
        self.app.waiting.append(Deferred())
        await self.app.waiting[-1]


def version(shape: type[Match]) -> type[App]:
    return type(shape.__name__, (Game,), {"objects": (shape,)})


def played(stage: Stage) -> Any:
    """A member of a match, who has seen half a tick more than three."""
    client = stage.client(user="ann")
    client.subscribe("match:1")
    stage.advance(0.35)
    return client


def test_ticks_and_time_go_on_without_a_gap() -> None:
    with Stage(Game, OPEN) as stage:
        client = played(stage)
        for number in range(1, 11):
            before = client.publications("match:1")[-1]
            # Again and again amid a tick: whoever began anew each time would never tick.
            for _ in range(4):
                stage.update(version(Newer if number % 2 else Match))
                stage.advance(0.025)
            (now,) = client.publications("match:1")[len(client.publications("match:1")) - 1 :]
            assert now["count"] == before["count"] + 1
            assert now["passed"] == pytest.approx(before["passed"] + 0.1)


def test_ticks_of_another_pace_begin_at_once_and_no_time_is_lost() -> None:
    with Stage(Game, OPEN) as stage:
        client = played(stage)
        count, passed = (client.publications("match:1")[-1][part] for part in ("count", "passed"))
        stage.update(version(Faster))
        stage.advance(0.051)
        first = client.publications("match:1")[-1]
        assert (first["by"], first["count"]) == ("fast", count + 1)
        assert 0.05 < first["passed"] - passed < 0.16  # since the last tick of the old one
        stage.advance(1.0)
        assert client.publications("match:1")[-1]["count"] == count + 21


def test_members_stay_and_are_not_told_again() -> None:
    with Stage(Game, OPEN) as stage:
        client = played(stage)
        stage.update(version(Newer))
        assert client.rpc("match:1/who", None) == ["new", ["ann"]]
        assert stage.app(0).joins == []


def test_a_command_of_the_old_object_is_answered_once_by_it() -> None:
    with Stage(Game, OPEN) as stage:
        client = played(stage)
        asked = client.begin_rpc("match:1/later")
        stage.advance(0.01)
        stage.update(version(Newer))
        assert client.rpc("match:1/who", None)[0] == "new"
        Game.waiting.pop().callback(None)
        assert asked.result(1) == "old"


def test_what_a_command_that_is_under_way_does_is_handed_over() -> None:
    with Stage(Game, OPEN) as stage:
        client, other = played(stage), stage.client(user="bob")
        other.subscribe("match:2")
        asked = client.begin_rpc("match:1/add", 3)
        updated = Deferred.fromCoroutine(stage.shards[0].update(version(Newer)))
        stage.advance(0.5)
        assert not updated.called
        later = client.begin_rpc("match:1/total")
        assert other.rpc("match:2/who")[0] == "old"  # who is not busy goes on
        assert not later.is_answered
        Game.waiting.pop().callback(None)
        assert (asked.result(0.1), later.result(0.1)) == (3, 3)
        assert updated.called and client.rpc("match:1/who")[0] == "new"


def test_a_command_that_comes_too_late_to_be_handed_over_is_not_called_done() -> None:
    with Stage(Game, OPEN) as stage:
        client = played(stage)
        changes, looks = client.begin_rpc("match:1/add", 3), client.begin_rpc("match:1/later")
        stage.update(version(Newer))
        look, change = Game.waiting.pop(), Game.waiting.pop()
        look.callback(None)
        assert looks.result(0.1) == "old"
        change.callback(None)
        with pytest.raises(Refused, match="100"):
            changes.result(0.1)
        assert client.rpc("match:1/total") == 0


def test_a_state_is_asked_for_once_and_who_cannot_be_asked_again_is_not_known_to_be_done() -> None:
    class Once(Match):
        def snapshot(self) -> Any:
            self.app.asked += 1
            if self.app.asked > 1:
                raise RuntimeError("again?")
            return super().snapshot()

    first = type("First", (Game,), {"objects": (owns("match:*")(Once),), "asked": 0})
    with Stage(first, {**OPEN, "app": {"hook_seconds": 30.0}}) as stage:
        Once.snapshot_seconds = 0.0
        client = played(stage)
        asked = client.begin_rpc("match:1/later")
        stage.app(0).asked = 0
        stage.update(version(Newer))
        assert client.rpc("match:1/who")[0] == "new"
        Game.waiting.pop().callback(None)
        with pytest.raises(Refused, match="100"):
            asked.result(0.1)
        assert "again?" in stage.errors[0]
        stage.errors.clear()


def test_commands_that_waited_for_an_update_that_fails_go_on() -> None:
    class Failing(Match):
        def restore(self, state: Any) -> None:
            raise RuntimeError("no")

    with Stage(Game, OPEN) as stage:
        client = played(stage)
        asked = client.begin_rpc("match:1/add", 3)
        updated = Deferred.fromCoroutine(stage.shards[0].update(version(Failing)))
        stage.advance(0.5)
        later = client.begin_rpc("match:1/total")
        Game.waiting.pop().callback(None)
        assert (asked.result(0.1), later.result(0.1)) == (3, 3)
        with pytest.raises(UpdateRefused, match="no"):
            stage.wait(updated)


def test_a_tick_that_is_not_done_does_not_hold_up_the_next_version() -> None:
    with Stage(version(Slow), OPEN) as stage:
        client = played(stage)
        stage.update(version(Newer))
        stage.advance(0.1)
        assert client.publications("match:1")[-1]["by"] == "new"
        Game.waiting.pop().callback(None)
        stage.advance(0.1)


def test_an_object_that_cannot_be_handed_over_leaves_all_as_they_were() -> None:
    class Leaving(Match):
        def restore(self, state: Any) -> None:
            raise SystemExit

    with Stage(Game, OPEN) as stage:
        client = played(stage)
        before = client.publications("match:1")[-1]["count"]
        with pytest.raises(UpdateRefused, match="SystemExit"):
            stage.update(version(Leaving))
        stage.advance(0.1)
        assert client.publications("match:1")[-1]["count"] == before + 1
        assert client.rpc("match:1/who", None) == ["old", ["ann"]]
        stage.errors.clear()
