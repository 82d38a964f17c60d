"""What updates the app of a shard, put together: imports on real threads, and a clock that stands still."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, maybeDeferred

from spread.hub.api import Hub
from spread.node.app.load import forget, generations
from spread.node.app.update import Outcome
from spread.node.app.updating import Updating, line_of
from spread.node.live_tables import LiveTables
from spread.node.metrics import ShardCounters
from spread.node.settings import AppSettings
from spread.node.tables import Tables
from tests.node.app.teams import Team
from tests.node.app.test_update import Host, Threads, app
from tests.node.fake_api import Cluster
from tests.node.tables import ITEMS, put, table

SPEC = "game:Game"


class Parts:
    """A shard's ``Updating``, with tables."""

    def __init__(self, directory: Path, has_app: bool = True) -> None:
        self.team = Team(directory)
        self.team.write(game=app(1))
        self.directory = directory / "tables"
        self.directory.mkdir()
        put(self.directory, ITEMS)
        self.clock = Threads()
        shard = Cluster().first
        hub: Hub = shard.hub
        self.tables = LiveTables(
            self.clock,
            Tables(self.directory),
            str(self.directory),
            hub=hub,
            history=None,
            counters=ShardCounters(),
            in_thread=maybeDeferred,
        )
        running = self.team.load()
        self.host = Host(running.app_class())
        self.updating = Updating(
            self.clock,
            AppSettings(app=SPEC),
            hub=hub,
            relays=shard.control,
            incarnation=shard.incarnation,
            host=self.host if has_app else None,
            loaded=running if has_app else None,
            tables=self.tables,
        )

    def update(self) -> Outcome:
        """Until it is done; the import is on a thread."""
        outcomes: list[Outcome] = []
        self.updating.reload.one().addCallback(outcomes.append)
        while not outcomes:
            self.clock.turn()
        self.clock.advance(0)
        return outcomes[0]

    def metrics(self) -> dict[str, Any]:
        return {
            sample.name: sample.labels or sample.value
            for family in self.updating.metrics()
            for sample in family.samples
        }


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Parts]:
    monkeypatch.chdir(tmp_path)
    made = Parts(tmp_path)
    yield made
    made.team.forget()
    for name in [name for name in sys.modules if re.fullmatch(r"spread_app_\d+", name)]:
        forget(int(name.removeprefix("spread_app_")))


def test_broken_tables_refuse_the_update_and_stay_as_they_were(parts: Parts) -> None:
    parts.team.write(game=app(2))
    (parts.directory / "items.json").write_text("{")
    outcome = parts.update()
    assert (outcome.ok, parts.host.app.answer) == (False, 1)
    assert outcome.error.startswith("the tables are broken, so they stay, and so does the app: ")
    assert "items" in outcome.error and "Traceback" not in outcome.error
    assert parts.tables.tables.items["sword"].damage == 5
    put(parts.directory, ITEMS)
    assert parts.update().ok
    assert parts.host.app.answer == 2


def test_tables_that_cannot_be_read_in_time_refuse_the_update(parts: Parts) -> None:
    parts.tables._in_thread = lambda function: Deferred()
    outcomes: list[Outcome] = []
    parts.updating.reload.one().addCallback(outcomes.append)
    parts.clock.advance(AppSettings().load_seconds)
    assert [each.error for each in outcomes] == ["reading the tables has not answered after 5 s"]
    parts.tables._in_thread = maybeDeferred
    assert parts.update().ok


def test_the_new_code_finds_the_new_tables(parts: Parts) -> None:
    put(parts.directory, table("items", "id", {"id": "str", "damage": "int"}, ["axe", 70]))
    seen: list[int] = []
    construct = parts.host.construct

    def looking(loaded: Any) -> Any:
        seen.append(parts.tables.tables.items["axe"].damage)
        return construct(loaded)

    parts.host.construct = looking  # type: ignore[method-assign]
    assert parts.update().ok
    assert seen == [70]


def test_what_runs_is_in_the_metrics(parts: Parts) -> None:
    title = parts.updating.title
    parts.team.write(game=app(2))
    assert parts.update().ok
    parts.team.write(game="class Game\n")
    assert not parts.update().ok
    told = parts.metrics()
    assert parts.updating.title == f"{SPEC} {told['spread_app_info']['version']}" != title
    assert told["spread_app_info"]["app"] == SPEC
    assert (told["spread_app_updates_total"], told["spread_app_updates_refused_total"]) == (1, 1)
    assert told["spread_app_generations"] == generations()


def test_old_code_is_collected_after_each_update(parts: Parts) -> None:
    gc.collect()
    gc.disable()  # nothing goes but by the update itself
    gc.freeze()
    try:
        known = []
        for number in range(2, 5):
            parts.team.write(game=app(number))
            assert parts.update().ok
            parts.team.write(game=f"raise ValueError({number})\n")
            assert not parts.update().ok
            known.append(generations())
    finally:
        gc.unfreeze()
        gc.enable()
    assert len(set(known[1:])) == 1


def test_without_an_app_there_is_nothing_to_update(tmp_path: Path) -> None:
    parts = Parts(tmp_path, has_app=False)
    outcome = parts.update()
    assert (outcome.ok, parts.updating.title, parts.metrics()) == (False, "", {})
    assert "runs no app" in outcome.error
    parts.team.forget()


def test_the_line_of_a_shard() -> None:
    done = Outcome(ok=True, app=SPEC, version="2", before="1")
    assert line_of(done, 3) == "reloaded shard=3 app=game:Game version=2"
    failed = Outcome(ok=False, app=SPEC, version="1", before="1", error="Traceback\n  x\nKeyError: 'y'\n")
    assert line_of(failed, 3) == "refused shard=3 KeyError: 'y'"
