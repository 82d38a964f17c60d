"""The proxy's configuration, read by HAProxy itself and run in front of real shards."""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY
from tests.hub.servers import Valkey
from tests.live.processes import Client, Crowd, Node, home, until

HAPROXY = os.environ.get("HAPROXY") or shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs a loopback network of several addresses"),
]

ADDRESSES = ("127.1.0.1", "127.1.0.2")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class NameServer:
    """Answers every question for an IPv4 address with ``addresses``, as Docker's does for a service."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.asked: set[bytes] = set()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(8192)
            if not query:
                return
            self._socket.sendto(self._answer(query), client)

    def _answer(self, query: bytes) -> bytes:
        end = query.index(b"\0", 12) + 1
        question = query[12 : end + 4]
        self.asked.add(question[1 : 1 + question[0]])
        is_ipv4 = question[-4:-2] == b"\0\1"
        addresses = self.addresses if is_ipv4 else []
        header = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(addresses), 0, 0)
        # Each answer: the name by reference to the question, type A, class IN, 600 s, four bytes.
        answers = [
            struct.pack(">HHHIH", 0xC00C, 1, 1, 600, 4) + socket.inet_aton(address) for address in addresses
        ]
        return header + question + b"".join(answers)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(10)
        self._socket.close()


class Proxy:
    """HAProxy with the configuration of ``deploy/``, on ports of this machine."""

    def __init__(self, name_server: int, text: int, http: int) -> None:
        self._listening = [_listening(), _listening()]
        self.text_port, self.http_port = (one.getsockname()[1] for one in self._listening)
        descriptors = [one.fileno() for one in self._listening]
        configuration = (DEPLOY / "haproxy.cfg").read_text()
        for pattern, replacement in (
            (r"bind :8007", f"bind fd@{descriptors[0]}"),
            (r"bind :8000", f"bind fd@{descriptors[1]}"),
            (r"127\.0\.0\.11:53", f"127.0.0.1:{name_server}"),
            (r"node:8007 check port 8000", f"node:{text} check port {http}"),
            (r"node:8000 check", f"node:{http} check"),
            (r"maxconn 65536", "maxconn 500"),  # as many open files as any machine grants
        ):
            configuration, count = re.subn(pattern, replacement, configuration)
            assert count == 1, pattern
        self._directory = Path(tempfile.mkdtemp(prefix="sp-haproxy-"))
        (self._directory / "haproxy.cfg").write_text(configuration)
        self._log = open(self._directory / "log", "wb")  # noqa: SIM115 - closed by close()
        assert HAPROXY is not None
        self.process = subprocess.Popen(
            [HAPROXY, "-db", "-f", str(self._directory / "haproxy.cfg")],
            pass_fds=descriptors,
            stdout=self._log,
            stderr=self._log,
        )

    def health(self) -> int:
        """The status of GET /health through the proxy; 503 while there is no shard."""
        url = f"http://127.0.0.1:{self.http_port}/health"
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
                status: int = answer.status
                return status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    def log(self) -> str:
        return (self._directory / "log").read_text(errors="replace")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for one in self._listening:
            one.close()
        self._log.close()
        shutil.rmtree(self._directory)


def _listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(100)
    return sock


def test_the_configuration_is_valid() -> None:
    assert HAPROXY is not None
    # -dW: a warning is an error.
    checked = subprocess.run(
        [HAPROXY, "-dW", "-c", "-f", str(DEPLOY / "haproxy.cfg")], capture_output=True, text=True, timeout=30
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_clients_are_spread_over_the_shards_there_are(stack: ExitStack) -> None:
    hub = stack.enter_context(Valkey())
    path = stack.enter_context(home())
    names = NameServer()
    stack.callback(names.close)

    def shard(address: str, text: int, http: int) -> Node:
        node = Node(
            *("--shard", "auto", "--hub", hub.url, "--http", f"{address}:{http}"),
            home=path,
            text=f"{address}:{text}",
        )
        stack.callback(node.close)
        node.wait_ready(1)
        return node

    # Containers of a service have addresses of their own, and the same ports.
    first = shard(ADDRESSES[0], 0, 0)
    text, http = (int(port) for port in re.findall(r"(?:text|http)=\S+:(\d+)", first.ready[0][1]))
    names.addresses = [ADDRESSES[0]]
    proxy = Proxy(names.port, text, http)
    stack.callback(proxy.close)
    until(lambda: proxy.health() == 200, 20, "the first shard behind the proxy")
    assert names.asked == {b"node"}
    early = Crowd(proxy.text_port, 2)
    stack.callback(early.close)
    early.greeted()

    # Another container: found within seconds, and it gets the next clients, since it has the fewest.
    second = shard(ADDRESSES[1], text, http)
    names.addresses = list(ADDRESSES)
    crowd = Crowd(proxy.text_port)
    stack.callback(crowd.close)

    def enter() -> Client:
        client = crowd.enter()
        crowd.until(lambda: client.lines, 20, "a greeting")
        client.received.clear()
        return client

    def second_has_clients() -> bool:
        client = enter()
        if clients_of(ADDRESSES[1], text):
            return True
        client.say(b"close\n")
        crowd.until(lambda: client.is_closed, 20, "the end of a client")
        crowd.clients.remove(client)
        client.socket.close()
        return False

    until(second_has_clients, 20, "a client on the second shard")
    while len(crowd.clients) < 5:
        enter()
    assert clients_of(ADDRESSES[0], text) and clients_of(ADDRESSES[1], text)

    # One says something: everybody else hears it, whichever shard they are on.
    early.clients[0].say(b"hello\r\n")
    crowd.until(lambda: all(bytes(one.received) == b"hello\r\n" for one in crowd.clients), 20, "hello")

    # A shard stops: its clients are told and closed, the others stay, and new ones find the one that is left.
    assert first.stop() == 0
    early.until(
        lambda: all(one.is_closed for one in early.clients), 20, "the end of the first shard's clients"
    )
    assert (
        bytes(early.clients[1].received) == b"hello\r\ngoodbye: shard 0 is stopping, please connect again\n"
    )
    late = Crowd(proxy.text_port, 4)
    stack.callback(late.close)
    late.greeted()
    assert proxy.health() == 200
    assert second.process.poll() is None
    assert "[ALERT]" not in proxy.log(), proxy.log()


def clients_of(address: str, port: int) -> int:
    """Established connections to a shard, as the kernel has them."""
    local = f"{struct.unpack('<I', socket.inet_aton(address))[0]:08X}:{port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(words[1] == local and words[3] == "01" for words in map(str.split, lines))
