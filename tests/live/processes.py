"""Real ``spread-node`` processes, and crowds of real text clients. Plain blocking Python: what is tested
runs in other processes, so nothing here needs a reactor."""

from __future__ import annotations

import os
import random
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

READY = re.compile(r"ready shard=(\d+) text=(\S+) http=(\S+) ops=(\S+) hub=(\S+)")


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for something that announces itself by no event that we could wait for."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.01)


@contextmanager
def home() -> Iterator[Path]:
    """A private SPREAD_HOME: short, since the path of a Unix socket is limited."""
    path = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
    try:
        yield path / "h"
    finally:
        pidfile = path / "h" / "hub.pid"
        if pidfile.exists():
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(pidfile.read_text()), signal.SIGKILL)
        shutil.rmtree(path, ignore_errors=True)


def reserved_port() -> tuple[socket.socket, int]:
    """A port nobody else gets while the socket is open, and that SO_REUSEPORT listeners can share."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", 0))
    return sock, sock.getsockname()[1]


def ports_in_a_row(count: int) -> int:
    """The first of so many free ports, one after the other.

    Below those that the system gives to connections, so that none of them takes one meanwhile.
    """
    while True:
        port = random.randrange(20000, 32000)
        with ExitStack() as stack:
            try:
                for each in range(count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port + each))
            except OSError:
                continue
            return port


class Node:
    """A ``spread-node`` process: a shard, or a fleet."""

    def __init__(self, *arguments: str, home: Path, text: str = "127.0.0.1:0") -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SPREAD_")}
        environ["SPREAD_HOME"] = str(home)
        self.ready: list[tuple[float, str]] = []
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "spread.node", "--text", text),
                *("--http", "127.0.0.1:0", "--ops", "off", *arguments),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environ,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.ready.append((time.monotonic(), line.rstrip("\n")))

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self, count: int, seconds: float = 30.0) -> int:
        """Wait for ``count`` ready lines in all; gives the port of the text protocol."""
        until(
            lambda: len(self.ready) >= count or self.process.poll() is not None,
            seconds,
            f"{count} ready lines; so far {self.ready}",
        )
        assert len(self.ready) >= count, self.stderr()
        found = READY.fullmatch(self.ready[-1][1])
        assert found, self.ready[-1]
        return int(found[2].rpartition(":")[2])

    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")

    def children(self) -> dict[int, int]:
        """Shard number → pid of the shards of a fleet."""
        found = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                arguments = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                if b"spread.node" in arguments:
                    found[int(arguments[-2])] = int(child)
        return found

    def stop(self, seconds: float = 20.0) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(seconds)

    def close(self) -> None:
        """Whatever state it is in, be rid of it."""
        pids = list(self.children().values()) if self.process.poll() is None else []
        self.process.kill()
        self.process.wait()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._stderr.close()


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Client:
    """One text client; all it ever received is kept in ``received``."""

    def __init__(self, port: int, **options: int) -> None:
        self.socket = socket.socket()
        for name, value in options.items():
            self.socket.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", port))
        self.received = bytearray()
        self.is_closed = False
        self.lines = 0

    def say(self, data: bytes) -> None:
        self.socket.settimeout(20)
        self.socket.sendall(data)

    def take(self) -> None:
        """Read what is there."""
        self.socket.setblocking(False)
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        self.is_closed = not data
        self.lines += data.count(b"\n")
        self.received += data


class Crowd:
    """Many clients, read by one selector."""

    def __init__(self, port: int, count: int = 0) -> None:
        self.port = port
        self.clients: list[Client] = []
        self._selector = selectors.DefaultSelector()
        for _ in range(count):
            self.enter()

    def enter(self) -> Client:
        client = Client(self.port)
        self.clients.append(client)
        self._selector.register(client.socket, selectors.EVENT_READ, client)
        return client

    def pump(self, seconds: float = 0.05) -> None:
        """Read once whatever is readable."""
        for key, _ in self._selector.select(seconds):
            client: Client = key.data
            client.take()
            if client.is_closed:
                self._selector.unregister(client.socket)

    def until(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Read until the condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s: {what}")
            self.pump()

    def greeted(self, seconds: float = 20.0) -> None:
        """Wait for everybody's greeting, and forget it."""
        self.until(lambda: all(client.lines for client in self.clients), seconds, "greetings")
        for client in self.clients:
            line, _, rest = bytes(client.received).partition(b"\n")
            assert line.decode().startswith("欢迎来到Spread Site,您是第"), line
            client.received = bytearray(rest)
            client.lines -= 1

    def forget(self) -> None:
        """Forget all that was received."""
        for client in self.clients:
            client.received.clear()
            client.lines = 0

    def close(self) -> None:
        self._selector.close()
        for client in self.clients:
            client.socket.close()


def started(stack: ExitStack, *arguments: str, home: Path, text: str = "127.0.0.1:0") -> Node:
    """A node that is gone when the stack ends."""
    node = Node(*arguments, home=home, text=text)
    stack.callback(node.close)
    return node


def crowd_of(stack: ExitStack, port: int, count: int) -> Crowd:
    """Greeted clients that are gone when the stack ends."""
    crowd = Crowd(port, count)
    stack.callback(crowd.close)
    crowd.greeted()
    return crowd
