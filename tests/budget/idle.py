"""What idle clients cost: bytes of server memory for each, and how fast they come in.

    python -m tests.budget.idle --clients 5000 --transport websocket --protocol json --subscribe

Starts one real shard, connects the clients from this process, and reads the memory of the shard before and
after. Some clients come and go first, so that what is allocated once is not counted; since the shard may use
what they left again, as many are left out when the growth is divided by the clients.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import select
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

BUDGET_BYTES = 10_000
"""What one idle WebSocket client may cost."""

WARM_UP_CLIENTS = 100
OPEN_AT_A_TIME = 200

CONFIG = """
[client]
allow_anonymous_connect_without_token = true
[channel.without_namespace]
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
"""

UPGRADE = (
    b"GET /connection/websocket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n%b\r\n"
)


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print a table."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory() as directory:
        shard = IdleShard(Path(directory))
        try:
            figures = measure(shard, options)
        finally:
            shard.stop()
    for name, value in figures.items():
        print(f"{name:<28}{value:>14,.0f}")
    is_kept = figures["bytes per client"] <= options.budget
    print(f"budget of {options.budget:,} bytes: {'kept' if is_kept else 'EXCEEDED'}")
    return 0 if is_kept else 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.budget.idle", description=__doc__)
    parser.add_argument("--clients", type=int, default=5000)
    parser.add_argument("--transport", choices=("websocket", "json", "text"), default="websocket")
    parser.add_argument("--protocol", choices=("json", "protobuf"), default="json")
    parser.add_argument("--subscribe", action="store_true", help="each client is in one channel, with all")
    parser.add_argument("--budget", type=int, default=BUDGET_BYTES, help="bytes; more is an exit code of 1")
    return parser.parse_args(arguments)


class IdleShard:
    """A shard in a process of its own."""

    def __init__(self, directory: Path) -> None:
        config = directory / "idle.toml"
        config.write_text(CONFIG)
        command = [sys.executable, "-m", "spread.node", "--shard", "0", "--hub", "memory:"]
        command += ["--config", str(config), "--log-level", "error"]
        for port in ("text", "http", "json", "ops"):
            command += [f"--{port}", "127.0.0.1:0"]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SPREAD_")}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        self._ports = {name: int(port) for name, port in re.findall(r" (\w+)=\S+?:(\d+)", ready)}
        assert self._ports, f"the shard did not start: {ready!r}"

    def port(self, transport: str) -> int:
        return self._ports["http" if transport == "websocket" else transport]

    @property
    def resident_bytes(self) -> int:
        """Memory of the shard that is its own."""
        text = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text()
        return sum(int(size) << 10 for size in re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.MULTILINE))

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait_for_clients(self, count: int) -> None:
        """Until the shard has so many, as it says itself."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        url = f"http://127.0.0.1:{self._ports['ops']}/metrics"
        wanted = f"\nspread_clients {float(count)}\n".encode()
        deadline = time.monotonic() + 30
        while True:
            with opener.open(url, timeout=30) as answer:
                if wanted in answer.read():
                    return
            assert time.monotonic() < deadline, f"the shard does not have {count} clients"
            time.sleep(0.05)

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()  # closes the pipe, too


def measure(shard: IdleShard, options: argparse.Namespace) -> dict[str, float]:
    """Connect the clients, and see what they cost."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.clients + 100 > hard:
        sys.exit(f"{options.clients} clients need more open files than this process may have, {hard}")
    for client in _connected(shard, options, min(WARM_UP_CLIENTS, options.clients)):
        client.close()
    shard.wait_for_clients(0)
    before = shard.resident_bytes
    cpu, began = shard.cpu_seconds, time.monotonic()
    clients = _connected(shard, options, options.clients)
    seconds, spent = time.monotonic() - began, shard.cpu_seconds - cpu
    shard.wait_for_clients(options.clients)
    after = shard.resident_bytes
    for client in clients:
        client.close()
    return {
        "clients": options.clients,
        "memory before, bytes": before,
        "memory after, bytes": after,
        "bytes per client": (after - before) / max(1, options.clients - WARM_UP_CLIENTS),
        "connects per second": options.clients / seconds,
        "CPU of one connect, us": spent / options.clients * 1e6,
    }


def _connected(shard: IdleShard, options: argparse.Namespace, count: int) -> list[socket.socket]:
    """Clients that are connected, and subscribed if that is asked for."""
    clients: list[socket.socket] = []
    while len(clients) < count:
        batch = [_Opening(shard, options) for _ in range(min(OPEN_AT_A_TIME, count - len(clients)))]
        poll = select.epoll()
        waiting = {opening.sock.fileno(): opening for opening in batch}
        for fd in waiting:
            poll.register(fd, select.EPOLLIN)
        deadline = time.monotonic() + 30
        while waiting:
            assert time.monotonic() < deadline, f"{len(waiting)} clients were not let in"
            for fd, _ in poll.poll(1.0):
                if waiting[fd].read():
                    poll.unregister(fd)
                    del waiting[fd]
        poll.close()
        clients += [opening.sock for opening in batch]
        if sys.stderr.isatty():
            print(f"\r{len(clients)} of {count}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r" + " " * 20 + "\r", end="", file=sys.stderr)
    return clients


class _Opening:
    """A client on its way in."""

    def __init__(self, shard: IdleShard, options: argparse.Namespace) -> None:
        self._steps = _steps(options)
        self._came = b""
        self.sock = socket.create_connection(("127.0.0.1", shard.port(options.transport)))
        self._until = b""
        self._next()

    def _next(self) -> bool:
        step = next(self._steps, None)
        if step is None:
            return True
        say, self._until = step
        if say:
            self.sock.sendall(say)
        return False

    def read(self) -> bool:
        """``True`` when it is in."""
        data = self.sock.recv(65536)
        assert data, f"closed after {self._came!r}"
        self._came += data
        if self._until not in self._came:
            return False
        self._came = b""
        return self._next()


def _steps(options: argparse.Namespace) -> Any:
    """What to say, and what to wait for, one after the other."""
    if options.transport == "text":
        return iter([(b"", b"\n")])
    is_websocket = options.transport == "websocket"
    if options.protocol == "protobuf":
        assert is_websocket, "JSON lines are JSON"
        connect, subscribe = b"\x04\x08\x01\x22\x00", b"\x0a\x08\x02\x2a\x06\x0a\x04room"
        connected, subscribed = b"\x08\x01", b"\x08\x02"
    else:
        connect = json.dumps({"id": 1, "connect": {}}).encode()
        subscribe = json.dumps({"id": 2, "subscribe": {"channel": "room"}}).encode()
        connected, subscribed = b'"id":1', b'"id":2'

    def framed(command: bytes) -> bytes:
        if not is_websocket:
            return command + b"\n"
        head = bytes([0x82 if options.protocol == "protobuf" else 0x81, 0x80 | len(command)])
        return head + bytes(4) + command  # masked with zeros

    steps = []
    if is_websocket:
        wanted = b"Sec-WebSocket-Protocol: centrifuge-protobuf\r\n" if options.protocol == "protobuf" else b""
        steps.append((UPGRADE % wanted, b"\r\n\r\n"))
    steps.append((framed(connect), connected))
    if options.subscribe:
        steps.append((framed(subscribe), subscribed))
    return iter(steps)


if __name__ == "__main__":
    sys.exit(main())
