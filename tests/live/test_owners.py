"""The owner of a channel is killed, or stands still: another goes on, and no two publish in one epoch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.hub.servers import Valkey
from tests.live.processes import READY, Node, home
from tests.live.wires import Wire, Wires

pytestmark = pytest.mark.live

ROUNDS = 2
SHARDS = 3
TAKEOVER_SECONDS = 3.0
SNAPSHOT_SECONDS = 1.0
PATIENCE_SECONDS = 20.0

GAME = """
from spread.node import App, Owned, command, owns

@owns("match:*")
class Match(Owned):
    tick_seconds = 0.05

    def opened(self, channel):
        self.ticks = 0
        self.total = 0

    def snapshot(self):
        return [self.ticks, self.total]

    def restore(self, state):
        self.ticks, self.total = state

    def tick(self, dt):
        self.ticks += 1
        self.publish({"tick": self.ticks, "epoch": self.epoch, "shard": self.app.shard})

    @command("add")
    def add(self, member, params):
        self.total += 1
        return self.total

class Game(App):
    objects = (Match,)
"""

CONFIG = """
[client]
allow_anonymous_connect_without_token = true
[[channel.namespaces]]
name = "match"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
"""


class Witness:
    """A client that notes who publishes."""

    def __init__(self, wires: Wires, port: int, shard: int) -> None:
        self.shard = shard
        self.ticks: list[tuple[float, dict[str, int]]] = []
        self.answers: list[Any] = []
        self._ids = 10
        self.wire: Wire = wires.open(port, self.heard)
        self.wire.say({"id": 1, "connect": {}})

    def heard(self, reply: Any) -> None:
        if reply.get("id") == 1:
            self.wire.say({"id": 2, "subscribe": {"channel": "match:1"}})
        elif "push" in reply:
            self.ticks.append((time.monotonic(), reply["push"]["pub"]["data"]))
        elif reply.get("id", 0) > 10:
            self.answers.append(reply)

    def add(self) -> None:
        self._ids += 1
        self.wire.say({"id": self._ids, "rpc": {"method": "match:1/add", "data": {}}})

    @property
    def owner(self) -> int:
        return self.ticks[-1][1]["shard"] if self.ticks else -1


class Field:
    """Three shards, and a witness on each."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        (directory / "game.py").write_text(GAME)
        (directory / "spread.toml").write_text(CONFIG)
        self._stack = stack
        valkey = stack.enter_context(Valkey())
        self._hub = valkey.url
        self.wires = Wires()
        stack.callback(self.wires.close)
        self.nodes: dict[int, Node] = {}
        self.witnesses: dict[int, Witness] = {}
        self.gone: list[Witness] = []
        for number in range(SHARDS):
            self.start(number)

    def start(self, number: int) -> None:
        arguments = ("--shard", str(number), "--app", "game:Game", "--config", "spread.toml")
        node = Node(*arguments, "--hub", self._hub, home=self._stack.enter_context(home()))
        self._stack.callback(node.close)
        node.wait_ready(1)
        found = READY.fullmatch(node.ready[-1][1])
        assert found is not None
        self.nodes[number] = node
        self.witnesses[number] = Witness(self.wires, int(found[3].rpartition(":")[2]), number)

    def until(self, condition: Any, what: str, seconds: float = PATIENCE_SECONDS) -> None:
        self.wires.until(condition, seconds, what)

    def settled(self) -> int:
        """All agree who the owner is, and it has been for longer than a snapshot takes. Gives it."""

        def is_so() -> bool:
            owners = {witness.owner for witness in self.witnesses.values()}
            if len(owners) != 1 or -1 in owners:
                return False
            now = time.monotonic()
            (owner,) = owners
            recent = [
                (at, tick) for each in self.witnesses.values() for at, tick in each.ticks if at > now - 1.5
            ]
            return (
                bool(recent)
                and min(at for at, _ in recent) < now - 1.2
                and all(tick["shard"] == owner for _, tick in recent)
            )

        self.until(is_so, "all agree on an owner")
        return next(iter(self.witnesses.values())).owner

    def check(self) -> None:
        """No two shards have published in one epoch, and nobody has seen an epoch fall back."""
        by_epoch: dict[int, set[int]] = {}
        for witness in [*self.witnesses.values(), *self.gone]:
            epochs = [tick["epoch"] for _, tick in witness.ticks]
            assert epochs == sorted(epochs)
            for _, tick in witness.ticks:
                by_epoch.setdefault(tick["epoch"], set()).add(tick["shard"])
        # A number is used again by a shard that was started again.
        assert all(len(shards) == 1 for shards in by_epoch.values()), by_epoch


@pytest.fixture
def field(stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Field]:
    monkeypatch.chdir(tmp_path)
    yield Field(stack, tmp_path)


def _taken_over(field: Field, owner: int, began: float) -> None:
    """Another goes on, in time, and from a state that is no older than a snapshot."""
    witness = next(each for number, each in field.witnesses.items() if number != owner)
    field.until(lambda: witness.owner != owner, "another takes over")
    at, tick = next((at, tick) for at, tick in witness.ticks if at > began and tick["shard"] != owner)
    last = next(tick for _, tick in reversed(witness.ticks) if tick["shard"] == owner)
    assert at - began < TAKEOVER_SECONDS, f"{at - began:.2f} s"
    assert tick["epoch"] > last["epoch"]
    lost = (last["tick"] - tick["tick"]) * 0.05
    assert lost <= SNAPSHOT_SECONDS + 0.3, f"{lost:.2f} s of the state are lost"
    print(f"taken over after {at - began:.2f} s; {max(0, lost):.2f} s of the state are lost")


def test_an_owner_that_is_killed(field: Field) -> None:
    for _ in range(ROUNDS):
        owner = field.settled()
        before = time.monotonic()
        node = field.nodes.pop(owner)
        field.gone.append(field.witnesses.pop(owner))
        os.kill(node.pid, signal.SIGKILL)
        _taken_over(field, owner, before)
        other = next(iter(field.witnesses.values()))
        other.answers.clear()
        other.add()
        field.until(lambda other=other: other.answers, "a command is done")
        assert "rpc" in other.answers[0], other.answers
        field.start(owner)
    field.settled()
    field.check()


def test_an_owner_that_stands_still(field: Field) -> None:
    for _ in range(ROUNDS):
        owner = field.settled()
        node = field.nodes[owner]
        os.kill(node.pid, signal.SIGSTOP)
        try:
            _taken_over(field, owner, time.monotonic())
        finally:
            os.kill(node.pid, signal.SIGCONT)
        # It belongs there, so it comes back to it, in a new epoch.
        field.until(
            lambda owner=owner: all(each.owner == owner for each in field.witnesses.values()), "it is back"
        )
        assert node.process.poll() is None, node.stderr()
    field.check()
