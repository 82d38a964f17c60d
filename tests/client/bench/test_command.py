"""The command: what it refuses, and whole runs against real shards with tiny numbers."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spread.client import cli
from spread.client.bench.cluster import Cluster
from spread.client.bench.engine import Programs
from spread.client.bench.errors import BadRequest
from spread.client.bench.session import print_to, raise_file_limit

SECONDS = 60
BENCH = [sys.executable, "-m", "spread.client", "bench"]
TINY = ["--secs", "0.1", "--warm", "0", "--repeat", "1", "--subscribers", "20", "--channels", "5"]


@pytest.fixture(autouse=True)
def file_limit() -> Iterator[None]:
    """What the command changes in this process is undone."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--workload W9", "Invalid value for '--workload': 'W9' is not one of w1, broadcast, w2, "),
        ("--format xml", "Invalid value for '--format': 'xml' is not one of text, json, protobuf, all."),
        ("--payload 5", "Invalid value for '--payload': 5 is not in the range 32<=x<=60000."),
        ("--secs nan", "Invalid value for '--secs': nan is not from 0.05 to 3600 seconds."),
        ("--warm -1", "Invalid value for '--warm': -1 is not from 0 to 3600 seconds."),
        ("--rate inf", "Invalid value for '--rate': inf is not from 1 to 1,000,000,000."),
        (
            "--in-flight 1,x",
            "Invalid value for '--in-flight': '1,x' is not a number, nor several with commas.",
        ),
        ("--in-flight 0", "Invalid value for '--in-flight': '0': each is from 1 to 1,000,000."),
        ("--shards 0", "Invalid value for '--shards': 0 is not in the range 1<=x<=64."),
        ("--cpu-load x", "Invalid value for '--cpu-load': 'x' is no list of CPUs, such as 0-2,5."),
        ("--cpu-load 4000", "CPU 4000 is not among those this process may use: "),
        ("--pids 12", "--pids is for --connect or --hub."),
        ("--pids a --connect 127.0.0.1:1", "Invalid value for '--pids': 'a' is not PID,PID,...."),
        ("--points 1", "--points is for --sweep."),
        ("--sweep moons", "Invalid value for '--sweep': 'moons' is not one of 'channels', 'idle', 'shards'."),
        ("--sweep channels --points 0", "--points 0: there are no 0 channels."),
        ("--connect 127.0.0.1:1", "Invalid value for '--connect': say text=127.0.0.1:1 or http=127.0.0.1:1"),
        ("--connect x --format text", "Invalid value for '--connect': 'x' is not HOST:PORT, "),
        (
            "--connect http=127.0.0.1:1",
            "Invalid value for '--connect': no text=HOST:PORT, for --format text.",
        ),
        (
            "--connect 127.0.0.1:1 --format text --shards 2",
            "--shards is for a cluster that is started here, --connect for one that runs.",
        ),
        ("--connect 127.0.0.1:1 --format text --workload W5", "W5 needs two shards or more"),
        ("--workload W5 --shards 1", "W5 needs two shards or more"),
        ("--workload W2 --members 1 --format text", "--members 1 with --format text: nobody would hear"),
        ("--json /nowhere/at/all.json", "--json /nowhere/at/all.json: No such file or directory."),
        ("--json /", "Invalid value for '--json': File '/' is a directory."),
    ],
)
def test_what_is_refused(arguments: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"spread: error: {told}")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("(see: spread bench --help)\n")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("W1 broadcast", "spread bench --quick", "Exit codes", "--cpu-servers", "--sweep"):
        assert word in text


def test_files_that_cannot_be_had() -> None:
    limits = []

    def refuse(_which: int, wanted: tuple[int, int]) -> None:
        limits.append(wanted)
        if wanted[1] > 4096:
            raise ValueError("not allowed to raise maximum limit")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _which: (1024, 4096))
        patch.setattr(resource, "setrlimit", refuse)
        raise_file_limit(2000, "W1")
        assert limits == [(4096, 4096)]
        with pytest.raises(BadRequest, match=r"W4 needs 5,100 open files, and this .* have 4,096: .*5100"):
            raise_file_limit(5100, "W4")


# -- whole runs --------------------------------------------------------------------------------------------


@pytest.fixture
def environ(c_programs: Programs, tmp_path: Path) -> dict[str, str]:
    """Programs are compiled once; what is left behind lies in a place of its own."""
    cache = tmp_path / "cache" / "spread"
    cache.mkdir(parents=True)
    (cache / "bench").symlink_to(Path(c_programs.loop).parent)
    (tmp_path / "tmp").mkdir()
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("SPREAD_")},
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path / "tmp"),
    }


def done(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BENCH, *TINY, *arguments], env=environ, capture_output=True, text=True, timeout=SECONDS, cwd="/"
    )


def left_behind(environ: dict[str, str]) -> list[str]:
    """Files, and processes: all that a run starts has its temporary directory in its environment."""
    place = f"TMPDIR={environ['TMPDIR']}".encode()
    found = [str(path) for path in Path(environ["TMPDIR"]).iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if place in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text())
        except OSError:
            continue  # of another user, or gone
    return found


def until_nothing_is_left(environ: dict[str, str]) -> None:
    """What has ended may still be there for a moment: nobody is told when it goes."""
    deadline = time.monotonic() + 20
    while left := left_behind(environ):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def test_a_run(environ: dict[str, str], tmp_path: Path) -> None:
    ran = done(
        environ,
        *("--workload", "W1,idle,across", "--format", "json", "--no-history", "--in-flight", "4"),
        *("--json", str(tmp_path / "f.json")),
    )
    assert ran.returncode == 0, ran.stderr
    rows = [line for line in ran.stdout.splitlines() if line.startswith("W")]
    assert [row.split()[0] for row in rows] == ["W1", "W5", "W4"]
    assert "spread: 1 of 3: W1 json plain K=4, about " in ran.stderr
    told = json.loads((tmp_path / "f.json").read_text())
    assert (told["generator"], told["cut_short"], told["hub"]) == ("C", None, "embedded")
    first, idle, across = told["results"]
    assert first["figures"]["shard_us"]["times"].keys() == {"loop", "batched loop"}
    assert first["figures"]["redis_us"]["median"] > 0
    assert idle["figures"]["connects_per_second"]["times"].keys() == {"loop"}
    assert across["case"]["shards"] == 2
    assert not any(result["faults"] for result in told["results"])
    until_nothing_is_left(environ)


def test_a_sweep(environ: dict[str, str], tmp_path: Path) -> None:
    chart = ["--charts", str(tmp_path)] if _has_matplotlib() else []
    ran = done(environ, "--sweep", "idle", "--points", "0,30", "--json", str(tmp_path / "f.json"), *chart)
    assert ran.returncode == 0, ran.stderr
    told = json.loads((tmp_path / "f.json").read_text())
    assert [result["point"] for result in told["results"]] == [0, 30]
    assert "W1 json plain K=1 30 idle clients" in ran.stdout
    assert (tmp_path / "sweep-idle.png").exists() == bool(chart)


def _has_matplotlib() -> bool:
    import importlib.util

    return importlib.util.find_spec("matplotlib") is not None


def test_without_a_compiler(environ: dict[str, str]) -> None:
    only = ["--workload", "W1", "--format", "text", "--no-history", "--in-flight", "16"]
    ran = done(environ | {"CC": "no-such-compiler"}, *only)
    assert ran.returncode == 0, ran.stderr
    assert "no C compiler (no-such-compiler); the load generator is in Python" in ran.stderr
    assert "W1 text plain K=16" in ran.stdout
    assert "loop" not in ran.stdout


def test_a_cluster_that_runs_already(environ: dict[str, str], cluster: Cluster, tmp_path: Path) -> None:
    at = ",".join([*(f"text={each}" for each in cluster.text), *(f"http={each}" for each in cluster.http)])
    pids = ",".join(str(server.pid) for server in cluster.servers)
    ran = done(
        environ,
        *("--connect", at, "--pids", pids, "--workload", "W2,W3", "--format", "text,protobuf"),
        *("--history", "--json", str(tmp_path / "f.json")),
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads((tmp_path / "f.json").read_text())
    assert [result["name"] for result in told["results"]] == [
        "W2 text history K=64",
        "W2 protobuf history K=64",
        "W3 text history",
        "W3 protobuf history",
    ]
    for result in told["results"]:
        assert result["figures"]["shard_us"]["median"] > result["figures"]["redis_us"]["median"] > 0
        assert result["figures"]["p999_ms"]["times"].keys() == {"loop"}


@contextmanager
def running(environ: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A run that is in the middle of measuring, and would go on for long."""
    with subprocess.Popen(
        [*BENCH, *TINY, "--secs", "50", "--format", "text", "--no-history", "--workload", "W1", *arguments],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        start_new_session=True,
    ) as process:
        try:
            deadline = time.monotonic() + 30
            # Nothing but the CPU of the generator tells from outside that it measures.
            while not _busy_generator(environ):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.02)
            yield process
        finally:
            process.kill()


def _processes(environ: dict[str, str], what: str) -> list[int]:
    place = f"TMPDIR={environ['TMPDIR']}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if place in (process / "environ").read_bytes() and what in (process / "cmdline").read_text():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def _busy_generator(environ: dict[str, str]) -> bool:
    for pid in _processes(environ, "/generator-"):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if int(fields[11]) + int(fields[12]) >= 3:  # hundredths of a second
            return True
    return False


def test_a_table_that_nobody_reads() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as out:
        print_to("a table\n", out)
        print_to("another\n", out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_nothing(environ: dict[str, str], number: signal.Signals) -> None:
    with running(environ) as process:
        # As a terminal does: all processes of the group are told.
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert err.splitlines()[-1] == f"spread: error: W1 text plain K=1: stopped by {number.name}"
    assert out == ""
    assert left_behind(environ) == []


def test_a_run_that_is_killed_leaves_no_process(environ: dict[str, str]) -> None:
    with running(environ) as process:
        process.kill()
        process.wait(SECONDS)
        deadline = time.monotonic() + 30
        while left := _processes(environ, ""):
            assert time.monotonic() < deadline, left
            time.sleep(0.02)


def test_a_shard_that_dies(environ: dict[str, str], tmp_path: Path) -> None:
    with running(environ, "--json", str(tmp_path / "f.json")) as process:
        (shard,) = _processes(environ, "spread.node")
        os.kill(shard, signal.SIGKILL)
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert err.splitlines()[-1] == "spread: error: W1 text plain K=1: shard 0 was killed by SIGKILL"
    assert "SIGKILL" in json.loads((tmp_path / "f.json").read_text())["cut_short"]
    assert left_behind(environ) == []


def test_a_cluster_that_does_not_start(environ: dict[str, str]) -> None:
    ran = done(environ, "--workload", "W1", "--format", "text", "--hub", "moon:")
    assert ran.returncode == 1
    last = ran.stderr.splitlines()[-1]
    assert last.startswith(
        "spread: error: W1 text plain K=1: shard 0 has ended with code 2; its last words: "
    )
    assert left_behind(environ) == []
