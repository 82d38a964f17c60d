"""The arena of docs/examples on real shards: its bots play while its rules change, and lose nothing."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.examples.arenas import copied
from tests.live.processes import READY, home, ports_in_a_row, started, until

pytestmark = pytest.mark.live

SHARDS = 2
BOTS = 10
SECONDS = 20.0
"""For what takes one or two."""


class Bots:
    """``bots.py``, and what it says."""

    def __init__(self, stack: ExitStack, arena: Path, address: str, ops: str) -> None:
        command = [sys.executable, "bots.py", "--json", "--bots", str(BOTS), "--seconds", "60"]
        self.process = subprocess.Popen(
            [*command, "--rate", "20", "--server", f"ws://{address}", "--ops", ops],
            cwd=arena,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        stack.callback(self.close)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip("\n"))

    def wait_for(self, line: str) -> None:
        until(lambda: line in self.said or self.process.poll() is not None, SECONDS, f"{line}: {self.said}")
        assert line in self.said, self.said

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(10)
        assert self.process.stdout is not None and self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()


def test_rules_change_while_bots_play(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = copied(tmp_path)
    monkeypatch.chdir(arena)
    first = ports_in_a_row(SHARDS)
    shards = ("--shard", f"0-{SHARDS - 1}", "--config", "arena.toml", "--ops", f"127.0.0.1:{first}")
    node = started(stack, *shards, home=stack.enter_context(home()))
    node.wait_ready(SHARDS)
    found = READY.fullmatch(node.ready[-1][1])
    assert found is not None
    bots = Bots(stack, arena, found[3], f"127.0.0.1:{first}-{first + SHARDS - 1}")
    bots.wait_for(f"{BOTS} bots play")
    bots.wait_for("rules 1 pistols")
    shutil.copy("rules_2.py", "rules.py")
    reload = [sys.executable, "-m", "spread.client", "reload", "--ops", f"127.0.0.1:{first}"]
    done = subprocess.run(reload, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("arena:Arena 2 shotguns (before: 1 pistols)") == SHARDS
    bots.wait_for("rules 2 shotguns")
    bots.process.send_signal(signal.SIGINT)
    told = json.loads(bots.process.communicate(timeout=SECONDS)[0])
    nothing = ("lost", "doubled", "unknown", "refused", "fallen_back", "disconnects")
    assert {name: told[name] for name in nothing} == dict.fromkeys(nothing, 0), told
    assert (bots.process.returncode, told["errors"], told["matches"]) == (0, {}, 1)
    assert told["answered"] > BOTS
    assert set(told["rules"]) == {"1 pistols", "2 shotguns"}
    assert told["ms_tick_late_p99"] is not None
