"""What holds up the reactor: named by its line, and ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from spread.node.app.marks import rpc
from spread.node.app.watch import HookBlocked
from spread.node.reactor import Turns
from tests.node.app.stage import Cast, Troupe, log_of

BLOCK, END = 0.05, 0.15


class Heavy(Cast):
    ended = False

    def busy(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass

    @rpc("busy")
    def is_busy(self, client: Any, seconds: float) -> str:
        self.busy(seconds)
        return "done"

    @rpc("stubborn")
    def stubborn(self, client: Any) -> None:
        while True:
            with suppress(Exception):
                self.busy(60.0)

    @rpc("later")
    async def later(self, client: Any, seconds: float) -> str:
        await self.call_shard(1, "nothing") if seconds < 0 else None
        self.busy(seconds)
        return "done"

    @rpc("nested")
    def nested(self, client: Any) -> str:
        client.subscribe("a")
        return "goes on"

    def subscribed(self, client: Any, channel: str) -> None:
        self.busy(60.0)

    def disconnected(self, client: Any, reason: str) -> None:
        Heavy.ended = True


@pytest.fixture
def troupe() -> Iterator[Troupe]:
    troupe = Troupe(Heavy, app={"block_seconds": BLOCK, "hook_seconds": END})
    troupe.host.watch.start()
    yield troupe
    troupe.host.end()
    assert not troupe.host.watch.is_on


def test_a_block_is_named(troupe: Troupe) -> None:
    person = troupe.guest()
    with log_of() as lines:
        assert person.asks(rpc={"method": "busy", "data": 0.1})["rpc"]["data"] == "done"
    assert len(lines) == troupe.host.watch.blocks == 1
    assert "rpc busy holds up the shard" in lines[0] and "test_watch.py:" in lines[0]
    assert "(while time.monotonic() < until:)" in lines[0] or "(pass)" in lines[0]


def test_a_block_is_named_in_a_directory_that_was_taken_away(
    troupe: Troupe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    person = troupe.guest()
    with log_of() as lines:
        assert person.asks(rpc={"method": "busy", "data": 60.0})["error"]["code"] == 100
    assert "rpc busy holds up the shard" in lines[0] and "test_watch.py:" in lines[0]


@pytest.mark.parametrize(("method", "data"), [("busy", 60.0), ("stubborn", None), ("later", 60.0)])
def test_what_never_ends_is_ended(troupe: Troupe, method: str, data: Any) -> None:
    person, other = troupe.guest(), troupe.guest()
    with log_of() as lines:
        error = person.asks(rpc={"method": method, "data": data})["error"]
    assert error["code"] == 100 and person.closed is other.closed is None
    assert f"rpc {method} holds up the shard" in lines[0]
    assert f"rpc {method} was ended after" in lines[1] and "test_watch.py:" in lines[1]
    stats = troupe.host.hooks.stats[f"rpc {method}"]
    assert (stats.errors, stats.timeouts) == (0, 1)
    assert other.asks(rpc={"method": "busy", "data": 0.0})["rpc"]["data"] == "done"


def test_a_hook_within_a_hook_is_ended_alone(troupe: Troupe) -> None:
    person = troupe.guest()
    with log_of() as lines:
        assert person.asks(rpc={"method": "nested"})["rpc"]["data"] == "goes on"
    assert "subscribed was ended after" in lines[-1]
    assert person.closed is None


def test_a_callback_in_a_long_turn_is_named_and_ended(troupe: Troupe) -> None:
    """The reactor's turns tell that the main thread waits for nothing."""
    turns = Turns()
    watch = troupe.host.watch
    watch.stop()
    watch._turns, watch._first_turn = turns, 0.0
    callback: Deferred[Any] = Deferred()
    failed: list[Any] = []
    callback.addCallback(lambda _: Heavy.busy(troupe.app, 60.0)).addErrback(failed.append)
    with log_of() as lines:
        watch.start()
        turns.began_at = perf_counter()
        callback.callback(None)
        watch.stop()
    assert failed[0].check(HookBlocked) and "a callback was ended after" in failed[0].getErrorMessage()
    assert len(lines) == 1 and "a callback holds up the shard" in lines[0] and "test_watch.py:" in lines[0]


def test_what_runs_in_no_hook_is_left_alone(troupe: Troupe) -> None:
    with log_of() as lines:
        Heavy.busy(troupe.app, END * 1.5)
    assert lines == [] and troupe.host.watch.blocks == 0
