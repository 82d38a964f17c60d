"""A team's app is updated again and again, well and badly, on a fleet whose clients never stop calling it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import pytest

from tests.live.processes import READY, Node, home, ports_in_a_row, until
from tests.live.wires import Wire, Wires

pytestmark = pytest.mark.live

SPREAD = [sys.executable, "-m", "spread.client"]
T = TypeVar("T")

CLIENTS = 10
"""On each shard's ports, which they share."""
SECONDS = 20.0

GAME = """
from spread.node import App, rpc
from rules import RULES

class Game(App):
    def __init__(self):
        self.calls = 0
        self.updates = 0

    @rpc("move")
    def move(self, client, params):
        self.calls += 1
        client.state["moves"] = client.state.get("moves", 0) + 1
        return {"n": params["n"], "rules": RULES, "moves": client.state["moves"]}

    @rpc("total")
    def total(self, client, params):
        return {"calls": self.calls, "updates": self.updates, "shard": self.shard}

    def check(self):
        assert RULES != "mistaken", "these rules are mistaken"
        assert (RULES, self.shard) != ("uneven", 1), "these rules are not for this shard"

    def export_state(self):
        return {"calls": self.calls, "updates": self.updates}

    def import_state(self, state):
        if RULES == "forgetful":
            raise LookupError("where has the state gone?")
        self.calls, self.updates = state["calls"], state["updates"] + 1
"""

BROKEN = {
    "syntax error": ("RULES = (\n", r"SyntaxError: '\(' was never closed"),
    "failing import": ("import nowhere_to_be_found\n", r"ModuleNotFoundError: .*nowhere_to_be_found"),
    "failing check": ("RULES = 'mistaken'\n", r"AssertionError: these rules are mistaken"),
    "failing import_state": ("RULES = 'forgetful'\n", r"LookupError: where has the state gone\?"),
    "infinite loop at import": ("while True:\n    pass\n", r"still runs after 1 s at rules\.py:[12] "),
}


class Player:
    """A client that calls the app, and calls it again as soon as it is answered."""

    def __init__(self, wires: Wires, port: int) -> None:
        self.asked = 0
        self.answers: list[str] = []
        """The rules that each call was answered by, in order."""
        self.wrong: list[Any] = []
        self.total: dict[str, int] = {}
        self.is_playing = True
        self.wire: Wire = wires.open(port, self.heard)
        self.wire.say({"id": 1, "connect": {}})

    def heard(self, reply: Any) -> None:
        if "connect" in reply:
            self.ask()
        elif reply.get("id") == 1_000_000:
            self.total = reply["rpc"]["data"]
        else:
            data = reply.get("rpc", {}).get("data", {})
            if (data.get("n"), data.get("moves")) != (self.asked, self.asked):
                self.wrong.append(reply)
            self.answers.append(data.get("rules", ""))
            if self.is_playing:
                self.ask()

    def ask(self) -> None:
        self.asked += 1
        params = {"n": self.asked}
        self.wire.say({"id": self.asked + 1, "rpc": {"method": "move", "data": params}})

    @property
    def is_served(self) -> bool:
        return self.wire.closed is None and not self.wrong


class Field:
    """A fleet of two shards that runs the app, and players."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self.directory = directory
        self.write("rules.py", "RULES = 'first'\n")
        self.write("game.py", GAME)
        self.ops = ports_in_a_row(2)
        self.node = Node(
            *("--shard", "0-1", "--app", "game:Game", "--ops", f"127.0.0.1:{self.ops}"),
            *("--app-load-seconds", "1", "--client-allow-anonymous-connect-without-token"),
            home=stack.enter_context(home()),
        )
        stack.callback(self.node.close)
        self.node.wait_ready(2)
        found = READY.fullmatch(self.node.ready[-1][1])
        assert found is not None
        port = int(found[3].rpartition(":")[2])
        self.wires = Wires()
        stack.callback(self.wires.close)
        self.players = [Player(self.wires, port) for _ in range(CLIENTS * 2)]
        self.until(lambda: all(player.answers for player in self.players), "all are answered")

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def until(self, condition: Any, what: str) -> None:
        """While the players play."""

        def is_so() -> bool:
            assert all(player.is_served for player in self.players), self.node.stderr()
            return bool(condition())

        self.wires.until(is_so, SECONDS, what)

    def reload(self) -> subprocess.CompletedProcess[str]:
        """What ``spread reload`` says, while the players play."""
        command = [*SPREAD, "reload", "--ops", f"127.0.0.1:{self.ops}"]
        return self.meanwhile(
            lambda: subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        )

    def post(self) -> list[Any]:
        """What the ops port says to the same."""
        return self.meanwhile(self._post)

    def _post(self) -> list[Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.ops, timeout=SECONDS)
        connection.request("POST", "/reload?all=1")
        lines = connection.getresponse().read().splitlines()
        connection.close()
        return [json.loads(line) for line in lines if line]

    def meanwhile(self, ask: Callable[[], T]) -> T:
        """What it gives; while the players play."""
        done: list[T] = []
        thread = Thread(target=lambda: done.append(ask()))
        thread.start()
        self.until(lambda: not thread.is_alive(), "the reload has ended")
        thread.join()
        return done[0]

    def rules(self) -> set[str]:
        """By which all players' next calls but one are answered: that one may be on its way."""
        counts = {player: len(player.answers) for player in self.players}
        self.until(
            lambda: all(len(player.answers) > counts[player] + 1 for player in self.players),
            "all are answered again",
        )
        return {each for player in self.players for each in player.answers[counts[player] + 1 :]}

    def metric(self, shard: int, name: str) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", self.ops + shard, timeout=SECONDS)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def stop_playing(self) -> None:
        """The last calls are answered, then the totals are asked for."""
        for player in self.players:
            player.is_playing = False
        self.until(
            lambda: all(len(player.answers) == player.asked for player in self.players), "the last answers"
        )
        for player in self.players:
            player.wire.say({"id": 1_000_000, "rpc": {"method": "total"}})
        self.until(lambda: all(player.total for player in self.players), "the totals")


@pytest.fixture
def field(stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Field]:
    monkeypatch.chdir(tmp_path)
    yield Field(stack, tmp_path)


def test_nobody_notices_but_by_the_rules(field: Field) -> None:
    assert field.rules() == {"first"}
    field.write("rules.py", "RULES = 'second'\n")
    said = field.reload()
    assert (said.returncode, said.stderr) == (0, "")
    assert re.findall(r"^shard (\d): game:Game \w{12} \(before: \w{12}\)", said.stdout, re.M) == ["0", "1"]
    assert field.rules() == {"second"}
    # Broken ones: told with the error, and nothing else.
    for what, (text, error) in BROKEN.items():
        field.write("rules.py", text)
        refused, left, last = field.post()
        assert re.search(error, refused["error"]), (what, refused)
        assert (refused["ok"], left["was_asked"], last) == (False, False, {"done": False}), what
        assert field.rules() == {"second"}, what
    assert field.metric(0, "spread_app_updates_total") == 1
    assert field.metric(0, "spread_app_updates_refused_total") == len(BROKEN)
    assert field.metric(1, "spread_app_updates_refused_total") == 0
    # What only one of them takes: said, and healed by the next.
    field.write("rules.py", "RULES = 'uneven'\n")
    said = field.reload()
    assert (said.returncode, said.stdout.count("shard 0: ")) == (1, 1)
    assert "shard 1 refuses; " in said.stderr and "these rules are not for this shard" in said.stderr
    assert "of the shards, 0 run the new code, 1 do not; mend it" in said.stderr
    assert field.rules() == {"uneven", "second"}
    field.write("rules.py", "RULES = 'third'\n")
    assert field.reload().returncode == 0
    assert field.rules() == {"third"}
    # What it began with, what ran last, and what runs.
    assert field.metric(0, "spread_app_generations") == 3
    # By a signal to the fleet's parent; what an import prints is not in the way.
    field.write("rules.py", "RULES = 'fourth'\nprint('loading ', end='')\n")
    lines = [line for _, line in field.node.ready]
    os.kill(field.node.pid, signal.SIGUSR1)
    field.until(lambda: len(field.node.ready) == len(lines) + 4, "both shards say that they are done")
    told = [line for _, line in field.node.ready][len(lines) :]
    assert [line.split(" version=")[0] for line in told] == [
        text
        for shard in (0, 1)
        for text in (f"reloading shard={shard}", f"loading reloaded shard={shard} app=game:Game")
    ]
    assert field.rules() == {"fourth"}
    # Each call was answered once, by the rules of its time; and the state is all there.
    field.stop_playing()
    for player in field.players:
        seen = [rules for at, rules in enumerate(player.answers) if player.answers[at - 1 : at] != [rules]]
        uneven = ["uneven"] * (player.total["shard"] == 0)
        assert seen == ["first", "second", *uneven, "third", "fourth"]
    calls: dict[int, int] = {}
    for player in field.players:
        calls[player.total["shard"]] = calls.get(player.total["shard"], 0) + player.asked
    assert {player.total["shard"]: player.total["calls"] for player in field.players} == calls
    assert {player.total["shard"]: player.total["updates"] for player in field.players} == {0: 4, 1: 3}
    until(lambda: field.node.stop() == 0, SECONDS, "a clean stop")
