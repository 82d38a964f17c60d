"""One child of a fleet, with processes and a clock that are not real."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from spread.node import child as child_module
from spread.node.child import TRANSITIONS, Child, Ending, Event, Recipe, State
from spread.node.listen import bind


class FakeProcess:
    """``IProcessTransport`` of a process that does what a test says."""

    def __init__(self, protocol: Any, arguments: dict[str, Any]) -> None:
        self.protocol = protocol
        self.arguments = arguments
        self.signals: list[str] = []
        self.is_running = True
        self.closed = 0

    def signalProcess(self, name: str) -> None:
        if not self.is_running:
            raise ProcessExitedAlready()
        self.signals.append(name)

    def loseConnection(self) -> None:
        self.closed += 1

    def exit(self, code: int | None = 0, number: int | None = None) -> None:
        """It exits, and its pipes end."""
        self.exit_only(code, number)
        self.protocol.processEnded(self.reason)

    def exit_only(self, code: int | None = 0, number: int | None = None) -> None:
        self.is_running = False
        error = ProcessTerminated(code, number) if code or number else ProcessDone(0)
        self.reason = Failure(error)
        self.protocol.processExited(self.reason)


class FakeReactor(Clock):
    """A clock that also starts processes."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []
        self.error: OSError | None = None

    def spawnProcess(self, protocol: Any, executable: Any, /, **arguments: Any) -> None:
        if self.error is not None:
            raise self.error
        process = FakeProcess(protocol, {"executable": executable, **arguments})
        self.processes.append(process)
        protocol.makeConnection(process)


class FakeParent:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.ready = 0
        self.endings: list[tuple[State, Ending]] = []

    def child_said(self, line: str) -> None:
        self.lines.append(line)

    def child_ready(self) -> None:
        self.ready += 1

    def child_ended(self, child: Child, before: State, ending: Ending) -> None:
        assert child.state is State.WAITING
        self.endings.append((before, ending))


class Scene:
    """A child, its parent and its reactor."""

    def __init__(self, start_seconds: float | None = None, sockets: Any = None) -> None:
        self.reactor = FakeReactor()
        self.parent = FakeParent()
        recipe = Recipe(["shard", "--quiet"], {"PATH": "/bin"}, stop_seconds=10, start_seconds=start_seconds)
        self.child = Child(self.reactor, self.parent, 1, sockets or {}, recipe, random=lambda: 0.0)

    @property
    def process(self) -> FakeProcess:
        return self.reactor.processes[-1]

    def say(self, data: bytes, fd: int = 1) -> None:
        self.process.protocol.childDataReceived(fd, data)

    def begin_and_be_ready(self) -> None:
        self.child.begin()
        self.say(b"ready shard=1 text=127.0.0.1:8007\n")


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    assert scene.reactor.getDelayedCalls() == [], "a timer was left behind"


# --- states -------------------------------------------------------------------------------------------


def test_every_state_is_left_for_waiting_or_from_it() -> None:
    """The whole machine: what has a process can lose it, and only what has none can be gone."""
    with_process = {state for (state, event) in TRANSITIONS if event is Event.ENDED}
    assert with_process == {State.STARTING, State.READY, State.STOPPING}
    assert all(TRANSITIONS[state, Event.ENDED] is State.WAITING for state in with_process)
    assert not any(state is State.GONE for state, _ in TRANSITIONS)
    assert [key for key, to in TRANSITIONS.items() if to is State.GONE] == [(State.WAITING, Event.CLOSE)]


def test_a_process_is_started_with_its_sockets_and_its_life_line() -> None:
    with bind("127.0.0.1", 0) as text, bind("127.0.0.1", 0) as http:
        scene = Scene(sockets={"text": text, "http": http})
        scene.child.begin()
        assert scene.process.arguments == {
            "executable": "shard",
            "args": ["shard", "--quiet", "--shard", "1"],
            "env": {
                "PATH": "/bin",
                "SPREAD_FLEET_SOCKETS": "text=3,http=4",
                "SPREAD_FLEET_LIFELINE": "0",
            },
            "childFDs": {0: "w", 1: "r", 2: 2, 3: text.fileno(), 4: http.fileno()},
        }
        scene.child.close_sockets()
        assert text.fileno() == http.fileno() == -1


def test_ready_is_said_on_standard_output(scene: Scene) -> None:
    scene.child.begin()
    assert scene.child.state is State.STARTING
    scene.say(b"warming up\nready shard=12 text=off\nready sh")
    assert scene.child.state is State.STARTING
    scene.say(b"ard=1 text=off\n")
    assert scene.child.state is State.READY
    assert scene.child.was_ready
    assert scene.parent.ready == 1
    assert scene.parent.lines == ["warming up", "ready shard=12 text=off", "ready shard=1 text=off"]


def test_ready_said_again_or_too_late_is_only_passed_on(scene: Scene) -> None:
    scene.begin_and_be_ready()
    scene.say(b"ready shard=1\n")
    scene.child.stop()
    scene.say(b"ready shard=1\n")
    assert scene.child.state is State.STOPPING
    assert scene.parent.ready == 1
    assert len(scene.parent.lines) == 3
    scene.process.exit()


def test_a_death_is_told_with_the_state_it_happened_in(scene: Scene) -> None:
    scene.child.begin()
    scene.process.exit(3)
    scene.begin_and_be_ready()
    scene.process.exit(None, signal.SIGKILL)
    scene.child.begin()
    scene.child.stop()
    scene.process.exit()
    assert [(before, ending.text) for before, ending in scene.parent.endings] == [
        (State.STARTING, "exit code 3"),
        (State.READY, "signal SIGKILL"),
        (State.STOPPING, "exit code 0"),
    ]


def test_a_process_that_cannot_be_started_has_died(scene: Scene) -> None:
    scene.reactor.error = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    scene.child.begin()
    [(before, ending)] = scene.parent.endings
    assert before is State.STARTING
    assert (ending.code, ending.signal) == (None, None)
    assert not ending.is_clean
    assert "could not be started" in ending.text and "unavailable" in ending.text


@pytest.mark.parametrize(
    ("code", "number", "text", "is_clean"),
    [
        (0, None, "exit code 0", True),
        (1, None, "exit code 1", False),
        (None, signal.SIGTERM, "signal SIGTERM", True),
        (None, signal.SIGSEGV, "signal SIGSEGV", False),
        (None, 40, "signal 40", False),
    ],
)
def test_endings(code: int | None, number: int | None, text: str, is_clean: bool) -> None:
    ending = Ending.of(Failure(ProcessTerminated(code, number) if code or number else ProcessDone(0)))
    assert (ending.text, ending.is_clean) == (text, is_clean)


# --- starting again -----------------------------------------------------------------------------------


def test_pauses_double_up_to_five_seconds(scene: Scene) -> None:
    pauses = []
    scene.child.begin()
    for _ in range(8):
        scene.process.exit(1)
        pauses.append(scene.child.begin_later())
        scene.reactor.advance(pauses[-1] - 0.01)
        assert scene.child.state is State.WAITING
        scene.reactor.advance(0.02)
        assert scene.child.state is State.STARTING
    scene.process.exit(1)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_pauses_are_shortened_by_chance() -> None:
    scene = Scene()
    backoff = child_module._Backoff(iter([0.0, 0.5, 0.999]).__next__)
    assert backoff.next_seconds() == 0.1
    assert backoff.next_seconds() == pytest.approx(0.2 * 0.875)
    assert 0.3 < backoff.next_seconds() < 0.4
    assert scene.reactor.processes == []


@pytest.mark.parametrize(("ready_seconds", "pause"), [(9.9, 0.4), (10.0, 0.1)])
def test_the_pause_is_short_again_after_ten_good_seconds(ready_seconds: float, pause: float) -> None:
    scene = Scene()
    for _ in range(2):
        scene.child.begin()
        scene.process.exit(1)
        scene.reactor.advance(scene.child.begin_later())
        scene.process.exit(1)
    scene.begin_and_be_ready()
    scene.reactor.advance(ready_seconds)
    scene.process.exit(1)
    assert scene.child.begin_later() == pause


def test_a_start_that_takes_too_long_is_killed() -> None:
    scene = Scene(start_seconds=30)
    scene.child.begin()
    scene.reactor.advance(29.9)
    assert scene.process.signals == []
    scene.reactor.advance(0.1)
    assert scene.process.signals == ["KILL"]
    scene.process.exit(None, signal.SIGKILL)
    assert [before for before, _ in scene.parent.endings] == [State.STARTING]
    scene.begin_and_be_ready()
    assert scene.reactor.getDelayedCalls() == []


# --- stopping and replacing ---------------------------------------------------------------------------


def test_a_stop_is_asked_for_and_then_enforced(scene: Scene) -> None:
    scene.begin_and_be_ready()
    scene.child.stop()
    scene.child.stop()
    assert scene.child.state is State.STOPPING
    assert scene.process.signals == ["TERM"]
    scene.reactor.advance(11.9)
    assert scene.process.signals == ["TERM"]
    scene.reactor.advance(0.1)
    assert scene.process.signals == ["TERM", "KILL"]
    scene.process.exit(None, signal.SIGKILL)
    scene.child.close()
    scene.child.stop()
    assert scene.child.state is State.GONE


def test_what_waits_is_gone_when_it_is_stopped(scene: Scene) -> None:
    scene.child.begin()
    scene.process.exit(1)
    scene.child.begin_later()
    scene.child.stop()
    assert scene.child.state is State.GONE
    scene.child.kill()
    assert scene.process.signals == []


def test_a_process_that_has_just_exited_needs_no_signal(scene: Scene) -> None:
    scene.begin_and_be_ready()
    scene.process.exit_only()
    scene.child.stop()
    scene.child.kill()
    scene.process.protocol.processEnded(scene.process.reason)
    assert [before for before, _ in scene.parent.endings] == [State.STOPPING]


@pytest.mark.parametrize("how", ["running", "waiting"])
def test_a_replacement_tells_when_it_is_ready(scene: Scene, how: str) -> None:
    scene.begin_and_be_ready()
    if how == "waiting":
        scene.process.exit(1)
        scene.child.begin_later()
    told: list[bool] = []
    scene.child.replace().addCallback(told.append)
    if how == "running":
        assert scene.process.signals == ["TERM"]
        scene.process.exit()
        scene.child.begin()
    assert len(scene.reactor.processes) == 2
    assert told == []
    scene.say(b"ready shard=1\n")
    assert told == [True]


def test_a_replacement_tells_when_there_will_be_none(scene: Scene) -> None:
    scene.begin_and_be_ready()
    told: list[bool] = []
    scene.child.replace().addCallback(told.append)
    scene.process.exit()
    scene.child.close()
    assert told == [False]
    scene.child.settle(True)
    assert told == [False]


# --- what it prints -----------------------------------------------------------------------------------


def test_lines_are_passed_on_whole(scene: Scene) -> None:
    scene.child.begin()
    for data in (b"one\ntw", b"o\n\nth", b"ree ", "é".encode()[:1], "é".encode()[1:], b"\nrest"):
        scene.say(data)
    scene.say(b"not for us\n", fd=2)
    assert scene.parent.lines == ["one", "two", "", "three é"]
    scene.process.exit()
    assert scene.parent.lines[-1] == "rest"


def test_what_is_not_utf8_is_passed_on_all_the_same(scene: Scene) -> None:
    scene.child.begin()
    scene.say(b"caf\xe9\n")
    assert scene.parent.lines == ["caf\ufffd"]
    scene.process.exit()


def test_a_line_without_end_is_cut(scene: Scene) -> None:
    scene.child.begin()
    for _ in range(50):
        scene.say(b"x" * 4096)
    scene.say(b"y\nnext\n")
    assert scene.parent.lines == ["x" * 65536, "next"]
    scene.process.exit()


def test_a_process_left_behind_does_not_hide_the_death(scene: Scene) -> None:
    """The pipes are still open: something that the child has started holds them."""
    scene.begin_and_be_ready()
    scene.process.exit_only(1)
    scene.say(b"last words\n")
    scene.reactor.advance(0.49)
    assert scene.process.closed == 0
    scene.reactor.advance(0.01)
    assert scene.process.closed == 1
    scene.process.protocol.processEnded(scene.process.reason)
    assert [before for before, _ in scene.parent.endings] == [State.READY]
    assert scene.parent.lines[-1] == "last words"
