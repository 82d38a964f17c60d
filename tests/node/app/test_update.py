"""An app is replaced in one turn, or not at all."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from queue import Queue
from types import ModuleType
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from spread.node.app.load import Loaded, LoadError, forget, load
from spread.node.app.loading import INTERRUPT_SECONDS, SWITCH_SECONDS, Apart
from spread.node.app.update import NotPlain, Outcome, State, Updater, plain_copy
from tests.node.app.stage import log_of
from tests.node.app.teams import Team

SECONDS = 5.0
WAIT_SECONDS = 20.0
"""For a thread; a test that needs it has failed."""

APP = """
class Game:
    answer = {answer}
    def __init__(self):
        self.state = {{}}
    def check(self):
        pass
    def export_state(self):
        return self.state
    def import_state(self, state):
        self.state = state
"""


def app(answer: int, *more: str) -> str:
    return APP.format(answer=answer) + "".join(f"    {line}\n" for line in more)


class Threads(Clock):
    """A clock, and what threads hand over to it."""

    def __init__(self) -> None:
        super().__init__()
        self.handed: Queue[tuple[Callable[..., Any], tuple[Any, ...]]] = Queue()

    def callFromThread(self, callable: Callable[..., Any], *args: Any) -> None:
        self.handed.put((callable, args))

    def turn(self) -> None:
        """Do what a thread hands over next."""
        callable, args = self.handed.get(timeout=WAIT_SECONDS)
        callable(*args)


class Host:
    """Runs one app, and nothing of it."""

    def __init__(self, running: Any) -> None:
        self.app = running
        self.guards: list[str] = []
        self.objects: Any = None
        self.wrong: Exception | None = None

    def guarded(self, name: str) -> AbstractContextManager[object]:
        self.guards.append(name)
        return nullcontext()

    def construct(self, loaded: Loaded) -> Any:
        return loaded.app_class()

    def prepare(self, app: Any) -> None:
        if self.wrong is not None:
            raise self.wrong

    def quiet(self) -> Deferred[None]:
        return succeed(None)

    def resume(self) -> None:
        pass

    def prepare_objects(self, app: Any) -> Any:
        return [app]

    def swap(self, app: Any, objects: Any) -> None:
        self.app = app
        self.objects = objects


class Under:
    """A shard's updater under test, with a team's directory."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.clock = Threads()
        team.write(game=app(1))
        running = team.load()
        self.host = Host(running.app_class())
        self.apart = Apart(self.clock, SECONDS)
        self.updater = Updater(self.clock, self.host, self.apart, running, "game:Game", SECONDS)

    @property
    def answer(self) -> int:
        answer: int = self.host.app.answer
        return answer

    def begin(self) -> list[Outcome]:
        """Begin an update; what this gives is filled when that has ended."""
        outcomes: list[Outcome] = []
        self.updater.update().addCallback(outcomes.append)
        return outcomes

    def update(self, source: str | None = None) -> Outcome:
        if source is not None:
            self.team.write(game=source)
        outcomes = self.begin()
        self.clock.turn()
        (outcome,) = outcomes
        assert self.updater.state is State.IDLE
        return outcome

    def refused(self, source: str | None = None) -> str:
        """Update to what is broken; why it was refused."""
        old, answer, version = self.host.app, self.answer, self.updater.version
        outcome = self.update(source)
        assert not outcome.ok
        assert (self.host.app, self.answer) == (old, answer)
        assert outcome.version == outcome.before == self.updater.version == version
        return outcome.error


@pytest.fixture
def under(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Under]:
    monkeypatch.chdir(tmp_path)
    team = Team(tmp_path)
    yield Under(team)
    for generation in _generations():
        forget(int(generation.removeprefix("spread_app_")))


def _generations() -> set[str]:
    """Of the modules that Python knows."""
    return {name.split(".")[0] for name in sys.modules if name.startswith("spread_app_")}


def test_the_new_code_runs_with_the_state_of_the_old(under: Under) -> None:
    under.host.app.state = {"scores": [1, 2], b"raw": None}
    old, before = under.host.app, under.updater.version
    outcome = under.update(app(2))
    assert (outcome.ok, outcome.app, outcome.before, outcome.error) == (True, "game:Game", before, "")
    assert outcome.version == under.updater.version != before
    assert under.updater.title == f"game:Game {outcome.version}"
    assert (under.answer, under.host.app.state) == (2, {"scores": [1, 2], b"raw": None})
    assert under.host.app.state["scores"] is not old.state["scores"]
    assert under.host.objects == [under.host.app]
    assert under.host.guards == ["__init__", "check", "export_state", "import_state"]
    assert (under.updater.updates, under.updater.refused) == (1, 0)


def test_its_states_can_be_seen(under: Under) -> None:
    under.team.write(game="import holding\n" + app(2, "def check(self): return holding.hold()"))
    checked: Deferred[None] = Deferred()
    sys.modules["holding"] = holding = ModuleType("holding")
    vars(holding)["hold"] = lambda: checked
    try:
        outcomes = under.begin()
        states = [under.updater.state]
        under.clock.turn()
        states.append(under.updater.state)
        assert (states, under.answer) == ([State.LOADING, State.CHECKING], 1)
        (second,) = under.begin()
        assert (second.ok, second.error) == (False, "an update is under way: it is checking")
        checked.callback(None)
        assert (under.answer, outcomes[0].ok) == (2, True)
        assert under.updater.state is State.IDLE
    finally:
        del sys.modules["holding"]


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("class Game:\n  def\n", "SyntaxError"),
        ("import nothing_of_that_name\n", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("class Gome: pass\n", "module game has no class Game; it has: Gome"),
        ("raise SystemExit(1)\n", "ends the program"),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt"),
        (app(2, "def __init__(self, more): pass"), "TypeError"),
        (app(2, "def check(self): raise ValueError('tables are missing')"), "ValueError: tables are missing"),
        (app(2, "async def check(self): raise ValueError('not now')"), "ValueError: not now"),
        (app(2, "def check(self): return False"), "check() has returned False"),
        (app(2, "def check(self): import sys; sys.exit(3)"), "SystemExit: 3"),
        (app(2, "def check(self): raise GeneratorExit"), "GeneratorExit"),
        (app(2, "def __init__(self): raise BaseException('no')"), "BaseException: no"),
        (
            "from twisted.internet.defer import fail\n" + app(2, "def check(self): return fail(OSError())"),
            "OSError",
        ),
        (app(2, "def import_state(self, state): state['x']"), "KeyError: 'x'"),
        (app(2, "def import_state(self, state): raise SystemExit"), "SystemExit"),
        (app(2, "async def import_state(self, state): pass"), "import_state() must answer at once"),
    ],
)
def test_what_is_broken_is_refused(under: Under, source: str, error: str) -> None:
    known = _generations()
    told = under.refused(source)
    assert error in told and "defer.py" not in told
    assert _generations() == known
    assert (under.updater.updates, under.updater.refused) == (0, 1)
    assert under.update(app(3)).ok
    assert under.answer == 3


STRANGE = {
    "surrogates": ("raise ValueError('\\ud800')\n", "ValueError: \\ud800"),
    "long": ("raise ValueError('x' * 10_000_000)\n", "[...]"),
    "frozen": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine(Exception):\n    x: int\n"
        "raise Mine(1)\n",
        "Mine: 1",
    ),
    "untold": (
        "error = SyntaxError('x')\nerror.filename, error.lineno, error.text = 'f', 1, 5\nraise error\n",
        "SyntaxError",
    ),
    "leaving": ("import sys\nsys.exit('\\ud800')\n", "SystemExit: \\ud800"),
    "two lines": ("class Game:\n    version = '1\\n2'\n", "the version of Game is one line"),
    "half a letter": ("class Game:\n    version = '\\ud800'\n", "the version of Game is one line"),
    "long version": (
        "class Game:\n    version = '1' * 65\n",
        "the version of Game is one line of 64 characters",
    ),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_strange_error_is_told_all_the_same(under: Under, kind: str) -> None:
    source, text = STRANGE[kind]
    told = under.refused(source)
    assert text in told
    assert len(told.encode()) < 40_000


def test_an_export_that_fails_is_refused(under: Under) -> None:
    under.host.app.export_state = lambda: [][0]
    assert "IndexError" in under.refused(app(2))


def test_each_step_of_an_async_check_is_guarded(under: Under, monkeypatch: pytest.MonkeyPatch) -> None:
    check = (
        *("async def check(self):", "    await holding.waits[0]"),
        *("    try: await holding.waits[1]", "    except KeyError: pass"),
    )
    waits: list[Deferred[None]] = [Deferred(), Deferred()]
    holding: Any = ModuleType("holding")
    holding.waits = waits
    monkeypatch.setitem(sys.modules, "holding", holding)
    under.team.write(game="import holding\n" + app(2, *check))
    outcomes = under.begin()
    under.clock.turn()
    waits[0].callback(None)
    waits[1].errback(KeyError())
    assert outcomes[0].ok
    # It is called, and goes on three times.
    assert under.host.guards == ["__init__", *["check"] * 4, "export_state", "import_state"]


def test_a_name_that_is_gone_is_told(under: Under) -> None:
    assert under.refused(app(2).replace("Game", "Match")) == "module game has no class Game; it has: Match"


def test_what_an_import_prints_and_starts_is_its_own(under: Under, capfd: pytest.CaptureFixture[str]) -> None:
    starts = "import threading\nprint('hello', end='')\nthreading.Thread(target=print, daemon=True).start()\n"
    assert under.update(starts + app(2)).ok
    assert capfd.readouterr().out.startswith("hello")


def test_beside_an_import_the_reactor_gets_its_turn(under: Under) -> None:
    usual = sys.getswitchinterval()
    noting = "import sys\nSEEN = sys.getswitchinterval()\n"
    assert under.update(noting + app(2, "seen = SEEN")).ok
    assert under.host.app.seen == pytest.approx(SWITCH_SECONDS)
    assert sys.getswitchinterval() == usual
    under.refused("class Game\n")
    assert sys.getswitchinterval() == usual


def test_after_an_update_there_is_a_turn_to_tidy_up(under: Under) -> None:
    tidied: list[State] = []
    under.updater._last_step = lambda: tidied.append(under.updater.state)
    under.update(app(2))
    assert tidied == []
    under.clock.advance(0)
    assert tidied == [State.IDLE]


def test_the_traceback_is_of_the_teams_code(under: Under) -> None:
    under.team.write(rules="def look():\n    return {}['spear']\n")
    told = under.refused("import rules\n" + app(2, "def check(self): rules.look()"))
    files = [line.split('"')[1] for line in told.splitlines() if line.startswith("  File")]
    assert [Path(file).name for file in files] == ["game.py", "rules.py"]
    assert told.splitlines()[-1] == "KeyError: 'spear'"


def test_what_the_host_does_not_take_is_refused(under: Under) -> None:
    under.host.wrong = ValueError("no method tick for a timer that is set")
    assert "no method tick" in under.refused(app(2))


def test_state_that_is_not_plain_is_refused_by_its_place(under: Under) -> None:
    under.host.app.state = {"games": [{"players": {"ann": object()}}]}
    assert "export_state()['games'][0]['players']['ann'] is no plain data" in under.refused(app(2))


def test_a_check_that_never_answers_is_refused_in_time(under: Under) -> None:
    imports = "from twisted.internet.defer import Deferred\n"
    under.team.write(game=imports + app(2, "async def check(self): await Deferred()"))
    outcomes = under.begin()
    under.clock.turn()
    under.clock.advance(SECONDS - 0.1)
    assert not outcomes
    under.clock.advance(0.1)
    assert (outcomes[0].ok, outcomes[0].error) == (False, "check() has not answered after 5 s")
    assert under.answer == 1
    assert not under.clock.getDelayedCalls()


def test_a_shard_that_stops_is_not_updated_any_more(under: Under) -> None:
    outcomes = under.begin()
    under.updater.stop()
    under.clock.turn()
    under.updater.stop()
    outcomes += under.begin()
    assert [(each.ok, each.error) for each in outcomes] == [(False, "the shard stops")] * 2
    assert under.host.guards == []


def test_from_nothing_there_is_nothing_to_import(under: Under) -> None:
    under.host.app.export_state = lambda: None
    assert under.update(app(2, "def import_state(self, state): self.state = state['x']")).ok
    assert "import_state" not in under.host.guards


def test_a_check_that_cannot_even_be_cancelled_is_refused_in_time(under: Under) -> None:
    imports = "from twisted.internet.defer import Deferred\n"
    under.team.write(game=imports + app(2, "def check(self): return Deferred(lambda _: {}['canceller'])"))
    outcomes = under.begin()
    under.clock.turn()
    with log_of() as logged:
        under.clock.advance(SECONDS)
    assert (outcomes[0].ok, outcomes[0].error) == (False, "check() has not answered after 5 s")
    assert logged[-1].endswith("KeyError: 'canceller'")
    assert under.host.guards == ["__init__", "check", "check"]
    assert under.update(app(3)).ok


LOOP = """
import reached
reached.event.set()
while True:
    try:
        pass
    except Exception:
        pass
class Game: pass
"""
HANGING = "import reached\nreached.event.set()\nreached.leave.wait()\nclass Game: pass\n"


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module by which the team's code tells that it has come to a place, and waits there."""
    module: Any = ModuleType("reached")
    module.event, module.leave = threading.Event(), threading.Event()
    monkeypatch.setitem(sys.modules, "reached", module)
    yield module
    module.leave.set()


def _loading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("load ")]


def test_an_endless_loop_at_import_is_ended_and_told_with_its_line(under: Under, reached: Any) -> None:
    under.team.write(game=LOOP)
    known, usual = _generations(), sys.getswitchinterval()
    outcomes = under.begin()
    assert reached.event.wait(WAIT_SECONDS)
    (thread,) = _loading_threads()
    under.clock.advance(SECONDS)
    (outcome,) = outcomes
    assert outcome.error.startswith("the import still runs after 5 s at game.py:")
    assert (outcome.ok, under.answer, under.updater.state) == (False, 1, State.IDLE)
    while thread.is_alive():
        under.clock.advance(INTERRUPT_SECONDS)
        thread.join(0.01)
    under.clock.turn()  # its end, which nobody waits for
    under.clock.advance(INTERRUPT_SECONDS)
    assert _generations() == known
    assert sys.getswitchinterval() == usual
    assert not under.clock.getDelayedCalls()
    assert under.update(app(4)).ok


def test_while_a_refused_import_hangs_nothing_is_loaded(under: Under, reached: Any) -> None:
    under.team.write(game=HANGING)
    outcomes = under.begin()
    assert reached.event.wait(WAIT_SECONDS)
    (thread,) = _loading_threads()
    under.clock.advance(SECONDS)
    assert not outcomes[0].ok
    (again,) = under.begin()
    assert again.error.startswith("an import that was refused before still runs at game.py:3")
    assert _loading_threads() == [thread]
    reached.leave.set()
    under.clock.turn()
    thread.join(WAIT_SECONDS)
    assert under.update(app(2)).ok


def test_old_code_that_is_under_way_imports_its_own(under: Under) -> None:
    lazy = ("def late(self):", "    import rules", "    return rules.NAME")
    under.team.write(rules="NAME = 'old'\n")
    assert under.update(app(2, *lazy)).ok
    old = under.host.app
    under.team.write(rules="NAME = 'new'\n")
    assert under.update(app(3, *lazy)).ok
    assert (old.late(), under.host.app.late()) == ("old", "new")


BROKEN = [
    "class Game\n",
    "import nothing_of_that_name\n",
    app(0, "def check(self): raise ValueError"),
    app(0, "def import_state(self, state): raise ValueError"),
]


def test_fifty_updates_leave_nothing_behind(under: Under) -> None:
    apps: list[weakref.ref[Any]] = []
    known: list[int] = []
    for number in range(1, 51):
        if number % 5 == 0:
            under.refused(BROKEN[number // 5 % len(BROKEN)])
        else:
            assert under.update(app(number)).ok
            apps.append(weakref.ref(type(under.host.app)))
        if number % 10 == 0:
            gc.collect()
            known.append(len(_generations()))
    assert under.answer == 49
    # The one that runs, and the one before, whose code may still be under way.
    assert [each() is not None for each in apps] == [False] * (len(apps) - 2) + [True] * 2
    assert len(set(known)) == 1
    assert len([each for each in sys.meta_path if type(each).__name__ == "_Team"]) == known[-1]


def test_loading_on_a_thread_gives_what_loading_gives(under: Under) -> None:
    results: list[Any] = []
    under.apart.load("game:Game", under.team.number()).addBoth(results.append)
    under.clock.turn()
    assert results[0].version == load("game:Game", under.team.number()).version
    loading = under.apart.load("game:Gone", under.team.number())
    loading.addErrback(lambda failure: results.append(failure.value))
    under.clock.turn()
    assert isinstance(results[1], LoadError)


# -- plain data


@pytest.mark.parametrize(
    "value", [None, True, 1, -(2**63), 0.5, "ä", b"\0", [1, [2]], {"a": {1: 2}}, {b"k": []}]
)
def test_plain_data_is_copied(value: Any) -> None:
    copied = plain_copy(value, "it")
    assert copied == value
    assert not isinstance(value, dict | list) or copied is not value


def test_what_refers_to_itself_is_not_plain() -> None:
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(NotPlain):
        plain_copy(ring, "it")


def test_a_key_that_is_not_plain_is_named() -> None:
    with pytest.raises(NotPlain, match="it\\['a'\\]"):
        plain_copy({"a": {object: 1}}, "it")
    with pytest.raises(NotPlain, match="it\\[1\\] is no plain data"):
        plain_copy([1, 2**70], "it")


def test_state_that_is_too_large_is_refused(under: Under) -> None:
    under.updater._state_max_bytes = 1024
    under.host.app.state = "x" * 1021  # and three bytes that say so
    assert under.update(app(2)).ok
    under.host.app.state = "x" * 1022
    assert under.refused(app(3)) == (
        "export_state() has given 1025 bytes; app.state_max_bytes is 1024: what is so large is better kept "
        "elsewhere, or less of it"
    )
