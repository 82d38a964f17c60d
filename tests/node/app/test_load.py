"""The team's code is imported into a namespace of its own, as it was at one moment."""

from __future__ import annotations

import gc
import logging
import os
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from spread.node.app.load import LoadError, explain, forget, generations, load, team_frame
from spread.node.app.making import construct
from tests.node.app.teams import Team


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    made = Team(tmp_path)
    yield made
    made.forget()


GAME = "import rules\nclass Game:\n    def speed(self):\n        return rules.SPEED\n"


def test_two_generations_stand_side_by_side(team: Team) -> None:
    team.write(game=GAME, rules="SPEED = 1\n")
    old = team.load()
    team.write(rules="SPEED = 2\n")
    new = team.load()
    assert (old.app_class().speed(), new.app_class().speed()) == (1, 2)
    assert old.modules == new.modules == ("game", "rules")
    assert old.version != new.version
    assert len(new.version) == 12
    assert "rules" not in sys.modules and "game" not in sys.modules


def test_an_edit_of_the_same_size_in_the_same_second_is_seen(team: Team) -> None:
    team.write(game=GAME, rules="SPEED = 1\n")
    team.load()
    stamp = (team.directory / "rules.py").stat().st_mtime_ns
    team.write(rules="SPEED = 7\n")
    os.utime(team.directory / "rules.py", ns=(stamp, stamp))
    assert team.load().app_class().speed() == 7
    assert not list(team.directory.rglob("__pycache__"))


def test_the_same_sources_are_the_same_version_unless_they_say_another(team: Team) -> None:
    team.write(game=GAME, rules="SPEED = 1\n")
    assert team.load().version == team.load().version
    team.write(game="class Game:\n    version = '3.1'\n")
    assert team.load().version == "3.1"


@pytest.mark.parametrize(
    "statement",
    [
        "import game.rules; X = game.rules.X",
        "import game.rules as r; X = r.X",
        "from game.rules import X",
        "from game import rules; X = rules.X",
        "from .rules import X",
        "from . import rules; X = rules.X",
        "from game.rules import *",
        "from .deep.down import X",
        "import game.deep.down; X = game.deep.down.X",
    ],
)
def test_every_way_to_import_gives_the_own_generation(team: Team, statement: str) -> None:
    team.package("game")
    team.package("game/deep")
    team.write(
        game__app=f"{statement}\nclass Game:\n    x = X\n", game__rules="X = 1\n", game__deep__down="X = 1\n"
    )
    old = team.load("game.app:Game")
    team.write(game__rules="X = 2\n", game__deep__down="X = 2\n")
    assert (old.app_class.x, team.load("game.app:Game").app_class.x) == (1, 2)


def test_a_folder_without_init_is_a_package(team: Team) -> None:
    team.write(
        game="from parts.wheel import SPOKES\nclass Game:\n    x = SPOKES\n", parts__wheel="SPOKES = 8\n"
    )
    loaded = team.load()
    assert (loaded.app_class.x, loaded.modules) == (8, ("game", "parts.wheel"))


def test_modules_of_others_are_the_ordinary_ones(team: Team) -> None:
    (team.directory / "msgspec").mkdir()  # no code in it: data of the same name
    team.write(game="import json, msgspec, os.path as p\nclass Game:\n    x = (json, msgspec, p)\n")
    import json

    import msgspec

    assert team.load().app_class.x == (json, msgspec, os.path)


def test_of_an_installed_package_only_its_own_modules_are_the_teams(team: Team) -> None:
    there = team.directory / "site-packages"
    there.mkdir()
    (there / "game.py").write_text("import json\nclass Game:\n    x = json\n")
    (there / "json.py").write_text("")
    import json

    assert load("game:Game", team.number(), [str(there)]).app_class.x is json


def test_old_code_imports_what_it_was_loaded_with(team: Team) -> None:
    lazy = "class Game:\n    def speed(self):\n        from rules import SPEED\n        return SPEED\n"
    team.write(game=lazy, rules="import deeper\nSPEED = deeper.SPEED\n", deeper="SPEED = 1\n")
    old = team.load()
    assert old.modules == ("deeper", "game", "rules")  # read, though not run
    team.write(deeper="SPEED = 2\n")
    new = team.load()
    (team.directory / "deeper.py").unlink()
    assert (old.app_class().speed(), new.app_class().speed()) == (1, 2)


TYPED = """
from __future__ import annotations
import dataclasses, enum, typing
import msgspec
from other import Point
class Move(msgspec.Struct):
    to: Point
    how: Kind = None
class Kind(enum.Enum):
    FAST = "fast"
@dataclasses.dataclass
class Seen:
    move: Move
    at: typing.ClassVar[int] = 1
class Game:
    def decode(self, text):
        return msgspec.json.decode(text, type=Move)
    def hints(self):
        return typing.get_type_hints(Seen)["move"] is Move and dataclasses.fields(Seen)[0].name
"""


def test_types_are_resolved_where_they_were_written(team: Team) -> None:
    team.write(game=TYPED, other="import msgspec\nclass Point(msgspec.Struct):\n    x: int\n")
    game = team.load().app_class()
    move = game.decode('{"to": {"x": 3}, "how": "fast"}')
    assert (move.to.x, move.how.value) == (3, "fast")
    assert game.hints() == "move"


# -- what goes wrong


def _nothing_is_left(team: Team) -> bool:
    names = [name for name in sys.modules if any(f"spread_app_{each}" in name for each in team.generations)]
    return not names and not any(type(each).__name__ == "_Team" for each in sys.meta_path)


def test_a_syntax_error_is_told_with_its_line(team: Team) -> None:
    team.write(game=GAME, rules="SPEED = 1\nif True\n    pass\n")
    with pytest.raises(SyntaxError) as caught:
        team.load()
    told = explain(caught.value)
    assert 'rules.py", line 2' in told and "SyntaxError" in told
    assert "importlib" not in told and told.count("File") == 2
    assert _nothing_is_left(team)


def test_a_syntax_error_in_what_is_imported_later_is_found_now(team: Team) -> None:
    team.write(game="class Game:\n    def f(self):\n        import rules\n", rules="def\n")
    with pytest.raises(SyntaxError):
        team.load()
    assert _nothing_is_left(team)


def test_a_failing_import_is_told_from_the_teams_code_on(team: Team) -> None:
    team.write(game=GAME, rules="import tables\n", tables="SPEED = 1 / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        team.load()
    told = explain(caught.value)
    assert [line.strip() for line in told.splitlines() if "File" in line] == [
        f'File "{team.directory / "game.py"}", line 1, in <module>',
        f'File "{team.directory / "rules.py"}", line 1, in <module>',
        f'File "{team.directory / "tables.py"}", line 1, in <module>',
    ]
    assert _nothing_is_left(team)


def test_the_log_of_an_app_has_its_own_name(team: Team) -> None:
    team.write(game="from spread.node import App\nclass Game(App): pass\nclass Own(App): log = 'mine'\n")
    assert construct(team.load().app_class, None).log.namespace == "game.Game"
    assert construct(team.load("game:Own").app_class, None).log == "mine"


@pytest.mark.parametrize("is_late", [False, True])
def test_who_awaited_it_is_not_told(team: Team, is_late: bool) -> None:
    team.write(
        game="def broken():\n    raise KeyError('spear')\nclass Game:\n    broken = staticmethod(broken)\n"
    )
    broken, waiting, outcome = team.load().app_class.broken, Deferred[None](), list[Failure]()

    async def awaits() -> None:
        await waiting

    def fails() -> None:
        try:
            broken()
        except KeyError:
            waiting.errback(Failure())

    if not is_late:
        fails()
    Deferred.fromCoroutine(awaits()).addErrback(outcome.append)
    if is_late:
        fails()
    assert outcome[0].value is not None
    told = explain(outcome[0].value)
    assert "game.py" in told and "twisted" not in told


def test_private_names_are_not_told(team: Team) -> None:
    team.write(game="from rules import NOTHING\nclass Game: pass\n", rules="")
    with pytest.raises(ImportError) as caught:
        team.load()
    assert "cannot import name 'NOTHING' from 'rules'" in explain(caught.value)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("game", "'game' is not MODULE:CLASS"),
        ("game:", "'game:' is not MODULE:CLASS"),
        ("game.py:Game", "'game.py:Game' names a file, not a module: game:Game"),
        ("../game:Game", "is not MODULE:CLASS"),
        ("nowhere:Game", "there is no module nowhere"),
        ("game:Gane", "module game has no class Gane; it has: Game, Other"),
        ("game:here", "game:here is no class, but int"),
        ("leaving:Game", "the import of leaving ends the program (SystemExit: 3)"),
    ],
)
def test_a_wrong_name_is_told(team: Team, spec: str, text: str) -> None:
    team.write(
        game="from other import Away\nclass Game: pass\nclass Other: pass\nhere = 1\n",
        other="class Away: pass\n",
        leaving="import sys\nsys.exit(3)\n",
    )
    with pytest.raises((LoadError, ModuleNotFoundError)) as caught:
        team.load(spec)
    if isinstance(caught.value, LoadError):
        assert text in str(caught.value)
    assert _nothing_is_left(team)


# -- what becomes of old ones


def test_what_is_forgotten_is_collected(team: Team) -> None:
    team.write(
        game=TYPED
        + "\nimport logging\nlogging.getLogger(__name__)\n"
        + "HINT = typing.Optional[Move]\nLIST = typing.List[Seen]\n",
        other="import msgspec\nclass Point(msgspec.Struct):\n    x: int\n",
    )
    old = team.load()
    assert old.app_class().decode('{"to": {"x": 3}}')
    seen = weakref.ref(old.app_class)
    names = [name for name in logging.Logger.manager.loggerDict if name.startswith("spread_app_")]
    assert old.app_class.__module__ in names
    gc.collect()
    known = generations()
    del old
    for generation in team.generations:
        forget(generation)
    gc.collect()
    assert seen() is None
    assert generations() == known - 1
    assert not [name for name in logging.Logger.manager.loggerDict if name.startswith("spread_app_")]
    assert _nothing_is_left(team)


def test_the_frame_of_the_team_is_found(team: Team) -> None:
    team.write(game="class Game:\n    def run(self, call):\n        return call()\n")
    loaded = team.load()

    def look() -> Any:
        return team_frame(sys._getframe(), loaded.generation), team_frame(sys._getframe(), 1)

    found, other = loaded.app_class().run(look)
    assert (found.f_lineno, found.f_code.co_name, other) == (3, "run", None)
