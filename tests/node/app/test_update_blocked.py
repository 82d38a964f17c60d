"""Code of the new app that never comes back, on the reactor's thread: it is ended, named, and refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed

from spread.node import App
from spread.node.app.load import Loaded, load
from spread.node.app.update import Outcome, Updater
from tests.node.app.stage import Troupe, loaded, log_of
from tests.node.app.teams import Team

SECONDS = 0.15

LOOP = "while True: self.turns = 1"
GAME = """
from twisted.internet.defer import Deferred
from spread.node import App

WAITS = Deferred()

class Game(App):
    turns = 0
"""


class Running(App):
    """What runs before, and after."""

    def export_state(self) -> Any:
        return {}


class Here:
    """Loads at once."""

    def __init__(self, team: Team) -> None:
        self._team = team

    def load(self, spec: str, generation: int) -> Deferred[Loaded]:
        self._team.generations.append(generation)
        return succeed(load(spec, generation, [str(self._team.directory)]))


class Blocked:
    """A host whose watch looks, and an updater of its app."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.troupe = Troupe(Running, app={"hook_seconds": SECONDS, "block_seconds": SECONDS / 3})
        self.host = self.troupe.host
        self.host.watch.start()
        clock: Any = self.troupe.city.clock
        self.updater = Updater(clock, self.host, Here(team), loaded(Running), "game:Game", 5.0)
        self.outcomes: list[Outcome] = []

    def update(self, method: str) -> None:
        self.team.write(game=GAME + "".join(f"    {line}\n" for line in method.splitlines()))
        self.updater.update().addCallback(self.outcomes.append)


@pytest.fixture
def blocked(tmp_path: Path) -> Iterator[Blocked]:
    team = Team(tmp_path)
    made = Blocked(team)
    with log_of():
        yield made
    made.host.watch.stop()
    team.forget()


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("__init__", f"def __init__(self):\n    {LOOP}"),
        ("check", f"def check(self):\n    {LOOP}"),
        ("import_state", f"def import_state(self, state):\n    {LOOP}"),
        (
            "import_state",
            "def import_state(self, state):\n    while True:\n        try: self.turns = 1\n"
            "        except Exception: pass",
        ),
    ],
)
def test_a_loop_is_ended_and_refused(blocked: Blocked, name: str, method: str) -> None:
    blocked.update(method)
    (outcome,) = blocked.outcomes
    assert not outcome.ok
    assert f"TimeoutError: {name} was ended after" in outcome.error
    assert "game.py:" in outcome.error
    assert type(blocked.host.app) is Running


def test_a_loop_in_a_later_step_of_check_is_ended_too(blocked: Blocked) -> None:
    blocked.update(f"async def check(self):\n    await WAITS\n    {LOOP}")
    assert blocked.outcomes == []
    sys.modules[f"spread_app_{blocked.team.generations[-1]}.game"].WAITS.callback(None)
    assert "TimeoutError: check was ended after" in blocked.outcomes[0].error


def test_a_loop_of_the_old_app_as_it_exports_is_ended_too(blocked: Blocked) -> None:
    old = blocked.host.app
    blocked.update("def export_state(self):\n    " + LOOP)
    assert blocked.outcomes.pop().ok
    stuck = blocked.host.app
    assert stuck is not old
    blocked.update("pass")
    assert "TimeoutError: export_state was ended after" in blocked.outcomes[0].error
    assert blocked.host.app is stuck
