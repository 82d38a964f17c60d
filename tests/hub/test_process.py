"""Processes of this machine, with real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spread.hub import process as module
from spread.hub.api import ShardIdentity
from spread.hub.process import is_gone, this_process

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")


def changed(identity: ShardIdentity, **fields: Any) -> ShardIdentity:
    return msgspec.structs.replace(identity, **fields)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for its standard input to end."""
    child = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None and child.stdout.readline() == b"\n"
        yield child
        if child.returncode is None:
            child.kill()


def identity_of(child: subprocess.Popen[bytes]) -> ShardIdentity:
    started = module._started(child.pid)
    assert started
    return changed(this_process("1"), pid=child.pid, started=started)


def test_who_we_are() -> None:
    ours = this_process("1.2")
    assert (ours.pid, ours.version) == (os.getpid(), "1.2")
    assert len(bytes.fromhex(ours.incarnation)) == 8
    assert ours.host and ours.machine and int(ours.started) > 0
    again = this_process("1.2")
    assert again.incarnation != ours.incarnation
    assert changed(again, incarnation=ours.incarnation) == ours


def test_we_are_alive() -> None:
    assert not is_gone(this_process("1"))


def test_a_child_that_runs_is_not_gone_and_one_that_ended_is(child: subprocess.Popen[bytes]) -> None:
    identity = identity_of(child)
    assert not is_gone(identity)
    child.send_signal(signal.SIGSTOP)
    assert not is_gone(identity), "one that stands still is not gone"
    child.kill()
    child.wait()
    assert is_gone(identity)


def test_a_zombie_is_gone(child: subprocess.Popen[bytes]) -> None:
    identity = identity_of(child)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and not reaped
    assert Path(f"/proc/{child.pid}/stat").exists()
    assert is_gone(identity)


def test_a_pid_that_was_given_to_another_process_since(child: subprocess.Popen[bytes]) -> None:
    identity = identity_of(child)
    assert is_gone(changed(identity, started=str(int(identity.started) - 1)))


@pytest.mark.parametrize("fields", [{"machine": "elsewhere"}, {"machine": ""}, {"started": ""}])
def test_what_cannot_be_told_from_here_is_not_gone(fields: dict[str, str]) -> None:
    assert not is_gone(changed(this_process("1"), pid=2**22 + 1, **fields))


def test_a_pid_that_does_not_exist_is_gone() -> None:
    assert is_gone(changed(this_process("1"), pid=2**22 + 1))


def test_a_process_of_somebody_else_whose_file_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_ours(pid: int, number: int) -> None:
        raise PermissionError

    ours = this_process("1")
    monkeypatch.setattr(module, "_started", lambda pid: None)
    assert not is_gone(ours), "it can be signalled"
    monkeypatch.setattr(os, "kill", not_ours)
    assert not is_gone(ours)


def test_a_name_with_parentheses_and_spaces_does_not_shift_the_fields() -> None:
    name = Path("/proc/self/comm")
    before, started = name.read_text(), module._started(os.getpid())
    name.write_text("a) R 1 (b) 2")
    try:
        assert module._started(os.getpid()) == started
    finally:
        name.write_text(before)


def test_the_start_time_is_that_of_the_process(child: subprocess.Popen[bytes]) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(identity_of(child).started) / ticks
    assert -1.0 < age < 60.0


def test_where_nothing_tells_nobody_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(path: str) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "readlink", unknown)
    ours = this_process("1")
    assert ours.machine == "" and not is_gone(changed(ours, pid=2**22 + 1))
