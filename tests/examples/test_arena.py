"""The game of docs/examples/arena: its rules, and on the stage what its players get."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from spread.node.app.load import forget, load
from spread.node.app.update import UpdateRefused
from spread.node.tables import Tables
from spread.node.testing import FakeClient, Refused, Stage
from tests.examples.arenas import copied

BAD_NAME, NOT_IN_MATCH, MATCH_FULL = 4001, 4002, 4003
SEATS = 20
TICK = 0.05

_generations = count(8000)


class Sources:
    """A directory with the example, and what was loaded from it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._loaded: list[int] = []

    def load(self, spec: str = "arena:Arena") -> type[Any]:
        self._loaded.append(next(_generations))
        found: type[Any] = load(spec, self._loaded[-1], [str(self.directory)]).app_class
        return found

    def forget(self) -> None:
        for generation in self._loaded:
            forget(generation)


class Player:
    """One who does what the page does."""

    def __init__(self, stage: Stage, name: str, shard: int = 0) -> None:
        self.name = name
        self.client: FakeClient = stage.client(
            data={"secret": f"the secret of the player {name}"}, shard=shard
        )
        self.match: str = self.client.rpc("hall/seat", seconds=1.0)
        self.client.subscribe(self.match)
        self.id = ""

    def enter(self) -> Any:
        entered = self.do("enter", name=self.name)
        self.id = entered["id"]
        return entered

    def do(self, command: str, **params: Any) -> Any:
        return self.client.rpc(f"{self.match}/{command}", params, seconds=1.0)

    @property
    def state(self) -> Any:
        return self.client.publications(self.match)[-1]

    @property
    def names(self) -> list[str]:
        return [player[1] for player in self.state["players"]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory.mktemp("built"))


@pytest.fixture
def sources(built: Path, tmp_path: Path) -> Iterator[Sources]:
    sources = Sources(shutil.copytree(built, tmp_path / "arena"))
    yield sources
    sources.forget()


@pytest.fixture
def stage(sources: Sources) -> Iterator[Stage]:
    config, tables = sources.directory / "arena.toml", str(sources.directory / "tables")
    with Stage(sources.load(), config, tables=tables, shards=2) as stage:
        yield stage


# -- the game, without a shard


class Yard:
    """A game with two players who stand where nobody hides."""

    def __init__(self, sources: Sources) -> None:
        self.tables = Tables(sources.directory / "tables")
        self.game = sources.load("game:Game")()
        for id, x in (("ann", 100.0), ("bob", 200.0)):
            self.game.enter(id, id.title(), self.tables)
            self.put(id, x, 60.0)

    def put(self, id: str, x: float, y: float) -> Any:
        player = self.game.players[id]
        player.x, player.y = x, y
        return player

    def steps(self, seconds: float) -> list[Any]:
        """What happened."""
        return [each for _ in range(round(seconds / TICK)) for each in self.game.step(TICK, self.tables)]


@pytest.fixture
def yard(sources: Sources) -> Yard:
    return Yard(sources)


def test_a_player_runs_at_one_pace_in_all_directions(yard: Yard) -> None:
    assert yard.game.move("ann", 40.0, 30.0) == 2
    ann, pace = yard.game.players["ann"], yard.tables.arenas["yard"].pace
    yard.steps(1.0)
    assert math.hypot(ann.x - 100.0, ann.y - 60.0) == pytest.approx(pace)
    yard.game.move("ann", math.nan, 1.0)
    before = ann.x, ann.y
    yard.steps(0.5)
    assert (ann.x, ann.y) == before


def test_walls_and_edges_stop_players(yard: Yard) -> None:
    arena, wall = yard.tables.arenas["yard"], yard.tables.walls["middle"]
    ann = yard.put("ann", wall.x - 20.0, wall.y + wall.height / 2)
    yard.game.move("ann", 1.0, 0.0)
    yard.steps(2.0)
    assert ann.x == wall.x - 14.0
    yard.game.move("ann", 0.7, 0.7)  # along it, then past it
    yard.steps(10.0)
    assert (ann.x, ann.y) == (arena.width - 14.0, arena.height - 14.0)


def test_who_is_shot_down_begins_anew_and_the_other_scores(yard: Yard) -> None:
    weapon = yard.tables.weapons["pistol"]
    events: list[Any] = []
    for shot in range(1, 6):
        assert yard.game.players["bob"].health == 100 - (shot - 1) * weapon.damage
        assert yard.game.shoot("ann", 0.0, yard.tables) == 1 + shot
        events = yard.steps(weapon.cooldown + TICK)
    assert [kind for kind, *_ in events] == ["hit", "fall"]
    assert events[1] == ["fall", 200, 60, "bob", "ann"]
    ann, bob = yard.game.players["ann"], yard.game.players["bob"]
    assert (ann.score, ann.falls, bob.score, bob.falls, bob.health) == (1, 0, 0, 1, 100)


def test_a_weapon_takes_its_time_and_a_wall_stops_a_bullet(yard: Yard) -> None:
    wall = yard.tables.walls["west"]
    yard.put("ann", wall.x - 30.0, wall.y + 50.0)
    yard.put("bob", wall.x + wall.width + 30.0, wall.y + 50.0)
    for done in (2, 3, 4):
        assert yard.game.shoot("ann", 0.0, yard.tables) == done  # a command each, but one shot
    assert len(yard.game.bullets) == 1
    assert [kind for kind, *_ in yard.steps(1.0)] == ["hit"]
    assert yard.game.bullets == []
    assert yard.game.players["bob"].health == 100


def test_a_fast_bullet_does_not_jump_over_a_player(yard: Yard) -> None:
    yard.game.shoot("ann", 0.0, yard.tables)
    assert yard.game.step(0.5, yard.tables)[0][0] == "hit"  # 210 units at once, with Bob after 100
    assert yard.game.players["bob"].health < 100


def test_a_game_goes_on_from_what_was_exported(yard: Yard, sources: Sources) -> None:
    yard.game.shoot("ann", 0.0, yard.tables)
    yard.steps(TICK)
    yard.game.leave("bob")
    state = yard.game.export()
    other = sources.load("game:Game").load(state)
    assert other.export() == state
    assert other.view([]) == yard.game.view([])


# -- the arena, on the stage


def test_players_see_each_other_whatever_their_shard(stage: Stage) -> None:
    ann, bob = Player(stage, "Ann"), Player(stage, "Bob", shard=1)
    assert ann.match == bob.match == "match:1"
    entered = ann.enter()
    assert (entered["width"], entered["height"], len(entered["walls"])) == (1000, 700, 5)
    bob.enter()
    stage.advance(1.5)
    assert ann.names == bob.names == ["Ann", "Bob"]
    states = bob.client.publications("match:1")
    first = states[0]["tick"]
    assert [state["tick"] for state in states] == list(range(first, first + len(states)))
    assert any(state.get("plan", {}).get("width") == 1000 for state in states)
    assert bob.do("move", dx=1.0, dy=0.0)["done"] == 2
    bob.client.close()
    stage.advance(TICK)
    assert ann.names == ["Ann"]


def test_the_twenty_first_gets_another_match(stage: Stage) -> None:
    players = [Player(stage, f"player {number}", shard=number % 2) for number in range(SEATS + 1)]
    for player in players:
        player.enter()
    assert [player.match for player in players] == ["match:1"] * SEATS + ["match:2"]
    players[-1].client.subscribe("match:1")
    players[-1].match = "match:1"
    with pytest.raises(Refused) as refused:
        players[-1].enter()
    assert refused.value.code == MATCH_FULL


@pytest.mark.parametrize("name", ["", " \t ", "seventeen letters", "a\u202eb", "a\x00"])
def test_bad_names_are_refused(stage: Stage, name: str) -> None:
    with pytest.raises(Refused) as refused:
        Player(stage, name).enter()
    assert refused.value.code == BAD_NAME


def test_nobody_plays_without_a_secret_or_before_entering(stage: Stage) -> None:
    for data in (None, {}, {"secret": "short"}, {"secret": 7}, "secret"):
        with pytest.raises(Refused) as refused:
            stage.client(data=data)
        assert refused.value.code == 103
    with pytest.raises(Refused) as refused:
        Player(stage, "Ann").do("shoot", angle=0.0)
    assert refused.value.code == NOT_IN_MATCH


def test_a_lost_connection_costs_no_score_and_no_seat(stage: Stage) -> None:
    ann, bob = Player(stage, "Ann"), Player(stage, "Bob")
    ann.enter()
    bob.enter()
    for number in range(2, 7):
        assert ann.do("move", dx=0.0, dy=1.0)["done"] == number
    # The new connection comes before the old one is known to be lost.
    again = Player(stage, "Ann", shard=1)
    ann.client.close()
    assert (again.enter()["done"], again.id) == (7, ann.id)
    # And after it.
    again.client.close()
    stage.advance(5.0)
    assert bob.names == ["Bob"]
    ann = Player(stage, "Ann")
    assert ann.enter()["done"] == 8
    # Much later it is a new one.
    ann.client.close()
    stage.advance(30.0)
    assert Player(stage, "Ann").enter()["done"] == 1


def test_rules_are_updated_while_they_play(stage: Stage, sources: Sources) -> None:
    ann = Player(stage, "Ann")
    ann.enter()
    stage.advance(TICK)
    assert ann.state["rules"] == "1 pistols"
    shutil.copy(sources.directory / "rules_2.py", sources.directory / "rules.py")
    stage.update(sources.load())
    assert ann.do("shoot", angle=0.0)["done"] == 2
    stage.advance(TICK)
    assert (ann.state["rules"], len(ann.state["bullets"])) == ("2 shotguns", 5)
    # Rules whose weapon is in no table are refused, and these go on.
    (sources.directory / "rules.py").write_text(
        (sources.directory / "rules.py").read_text().replace('"shotgun"', '"laser"')
    )
    with pytest.raises(UpdateRefused, match="laser"):
        stage.update(sources.load())
    stage.advance(TICK)
    assert (ann.state["rules"], ann.client.closed) == ("2 shotguns", None)
