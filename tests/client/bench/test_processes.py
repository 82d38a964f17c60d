"""CPU, memory and the end of processes, seen from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from spread.client.bench.cpus import pinned_to
from spread.client.bench.errors import ServerDied
from spread.client.bench.processes import (
    Usage,
    Watch,
    is_redis,
    machine_usage,
    pin,
    resident_bytes,
    usage_of,
)

GONE = 2**22
"""No process: the kernel's highest number is one less."""


def test_cpu_of_this_process() -> None:
    before, own = usage_of(os.getpid()), time.process_time()
    while time.process_time() < own + 0.05:
        pass
    after, own = usage_of(os.getpid()) - before, time.process_time() - own
    assert after.total == pytest.approx(own, abs=0.02)
    assert after.user + after.system == pytest.approx(own, abs=0.03)


def test_cpu_of_another_process_and_all_its_threads() -> None:
    program = (
        "import threading, time, sys\n"
        "def work():\n    while time.thread_time() < 0.05: pass\n"
        "threads = [threading.Thread(target=work) for _ in range(2)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "print('done', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        assert usage_of(process.pid).total >= 0.1
        assert resident_bytes(process.pid) > 1 << 20


def test_sums() -> None:
    one = Usage(3.0, 2.0, 1.0)
    assert one + one == Usage(6.0, 4.0, 2.0)
    assert one - one == Usage(0.0, 0.0, 0.0)
    busy, stolen = machine_usage()
    assert busy > 0
    assert stolen >= 0


def test_what_is_not_there() -> None:
    for ask in (usage_of, resident_bytes, is_redis):
        with pytest.raises(ProcessLookupError, match=f"there is no process {GONE}"):
            ask(GONE)
    watch = Watch()
    with pytest.raises(ProcessLookupError):
        watch.add(GONE, str)


def test_this_is_no_redis() -> None:
    assert not is_redis(os.getpid())


def test_the_end_of_a_process_is_seen() -> None:
    watch = Watch()
    watch.check()
    reading, writing = os.pipe()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        watch.add(process.pid, lambda: "it has ended")
        watch.check()
        os.write(writing, b"!")
        assert watch.wait(reading, 10.0)
        os.read(reading, 1)
        assert not watch.wait(reading, 0.0)
        process.kill()
        with pytest.raises(ServerDied, match="it has ended"):
            watch.wait(reading, 10.0)
        with pytest.raises(ServerDied, match="it has ended"):
            watch.check(10.0)
    watch.close()
    watch.check()
    os.close(reading)
    os.close(writing)


def test_pinning() -> None:
    one = frozenset({min(os.sched_getaffinity(0))})
    everywhere = os.sched_getaffinity(0)
    with (
        pinned_to(one),
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process,
    ):
        assert os.sched_getaffinity(process.pid) == one
        pin(process.pid, everywhere)
        assert os.sched_getaffinity(process.pid) == everywhere
        process.kill()
    assert os.sched_getaffinity(0) == everywhere
    with pinned_to(frozenset()):
        assert os.sched_getaffinity(0) == everywhere
