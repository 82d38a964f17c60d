"""A fleet lets its shards update their app, one after the other; processes and clock are not real."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from twisted.internet.defer import Deferred

from spread.node.fleet import Fleet, State
from tests.node.test_fleet import FakeProcess, FakeReactor

SECONDS = 20.0


class Scene:
    """A fleet of three shards that are ready."""

    def __init__(self) -> None:
        self.reactor = FakeReactor()
        self.lines: list[str] = []
        self.fleet = Fleet(
            self.reactor,
            shards=(4, 5, 6),
            command=["shard"],
            sockets={},
            environ={},
            out=self.lines.append,
            stop_seconds=10,
            random=lambda: 0.0,
            reload_seconds=SECONDS,
        )
        self.done: Deferred[int] = self.fleet.start()
        for shard in (4, 5, 6):
            self.process(shard).be_ready()
        self.lines.clear()

    def process(self, shard: int) -> FakeProcess:
        return self.reactor.process(shard)

    def say(self, shard: int, line: str) -> None:
        self.process(shard).protocol.childDataReceived(1, f"{line}\n".encode())

    def update(self, shard: int, outcome: str = "reloaded", rest: str = " app=game:Game") -> None:
        """A shard says what a real one does."""
        self.say(shard, f"reloading shard={shard}")
        self.say(shard, f"{outcome} shard={shard}{rest}")

    @property
    def asked(self) -> dict[int, int]:
        """How many times each shard was."""
        return {shard: self.process(shard).signals.count(signal.SIGUSR1) for shard in (4, 5, 6)}

    def stop(self) -> None:
        self.fleet.stop()
        for shard, state in self.fleet.states.items():
            if state is State.STOPPING:
                self.process(shard).exit()
        assert self.reactor.getDelayedCalls() == []
        assert set(self.fleet.states.values()) == {State.GONE}


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.stop()


def test_one_after_the_other(scene: Scene) -> None:
    scene.fleet.reload()
    assert scene.asked == {4: 1, 5: 0, 6: 0}
    scene.say(4, "something else")
    scene.say(4, "reloaded shard=5 of another")
    assert scene.asked == {4: 1, 5: 0, 6: 0}
    scene.update(4)
    assert scene.asked == {4: 1, 5: 1, 6: 0}
    scene.update(5)
    scene.update(6)
    assert scene.asked == {4: 1, 5: 1, 6: 1}
    assert scene.lines[-1] == "reloaded shard=6 app=game:Game\n"


def test_the_first_that_refuses_ends_it(scene: Scene) -> None:
    scene.fleet.reload()
    scene.update(4)
    scene.update(5, "refused", " SyntaxError")
    assert scene.asked == {4: 1, 5: 1, 6: 0}
    scene.fleet.reload()
    assert scene.asked == {4: 2, 5: 1, 6: 0}
    assert set(scene.fleet.states.values()) == {State.READY}


def test_one_that_says_nothing_ends_it(scene: Scene) -> None:
    scene.fleet.reload()
    scene.reactor.advance(SECONDS)
    scene.update(4)  # too late
    assert scene.asked == {4: 1, 5: 0, 6: 0}


def test_a_late_answer_is_not_taken_for_the_next(scene: Scene) -> None:
    scene.fleet.reload()
    scene.say(4, "reloading shard=4")
    scene.reactor.advance(SECONDS)
    scene.fleet.reload()
    scene.say(4, "reloaded shard=4 app=game:Game")
    assert scene.asked == {4: 2, 5: 0, 6: 0}
    scene.update(4, "refused", " KeyError")
    assert scene.asked == {4: 2, 5: 0, 6: 0}
    scene.fleet.reload()
    scene.update(4)
    assert scene.asked == {4: 3, 5: 1, 6: 0}


def test_what_an_app_prints_does_not_hide_what_its_shard_says(scene: Scene) -> None:
    scene.fleet.reload()
    scene.say(4, "loading tables... reloading shard=4")
    scene.say(4, "done reloaded shard=4 app=game:Game version=2")
    assert scene.asked == {4: 1, 5: 1, 6: 0}
    scene.process(6).exit(1)
    scene.reactor.advance(5)
    scene.say(6, "loading tables... ready shard=6 text=off")
    assert scene.fleet.states[6] is State.READY


def test_one_that_dies_of_it_ends_it_and_starts_again(scene: Scene) -> None:
    scene.fleet.reload()
    scene.process(4).exit(1)
    scene.reactor.advance(5)
    assert scene.fleet.states[4] is State.STARTING
    scene.process(4).be_ready()
    assert scene.asked == {4: 0, 5: 0, 6: 0}


def test_one_that_takes_no_clients_is_left_out(scene: Scene) -> None:
    scene.process(5).exit(1)
    scene.fleet.reload()
    scene.update(4)
    assert scene.asked[6] == 1
    scene.update(6)
    scene.reactor.advance(5)
    scene.process(5).be_ready()
    assert scene.asked[5] == 0  # it has started since


def test_one_that_starts_is_asked_when_it_is_ready(scene: Scene) -> None:
    scene.process(5).exit(1)
    scene.reactor.advance(5)
    assert scene.fleet.states[5] is State.STARTING
    scene.fleet.reload()
    scene.update(4)
    scene.update(6)
    assert scene.asked == {4: 1, 5: 0, 6: 1}
    scene.process(5).be_ready()
    assert scene.asked == {4: 1, 5: 1, 6: 1}


def test_after_a_refusal_none_is_asked_that_starts(scene: Scene) -> None:
    scene.process(5).exit(1)
    scene.reactor.advance(5)
    scene.fleet.reload()
    scene.update(4, "refused")
    scene.process(5).be_ready()
    assert scene.asked == {4: 1, 5: 0, 6: 0}


def test_asked_for_meanwhile_it_is_done_once_more(scene: Scene) -> None:
    for _ in range(3):
        scene.fleet.reload()
    for times in (1, 2):
        for shard in (4, 5, 6):
            assert scene.asked[shard] == times
            scene.update(shard)
    assert scene.asked == {4: 2, 5: 2, 6: 2}


def test_a_roll_waits_for_it(scene: Scene) -> None:
    scene.fleet.reload()
    scene.fleet.roll()
    for shard in (4, 5, 6):
        assert State.STOPPING not in scene.fleet.states.values()
        scene.update(shard)
    assert scene.fleet.states[4] is State.STOPPING
    scene.fleet.reload()
    for shard in (4, 5, 6):
        assert scene.asked[6] == 1
        scene.process(shard).exit()
        scene.process(shard).be_ready()
    assert scene.asked == {4: 1, 5: 0, 6: 0}
