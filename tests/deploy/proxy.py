"""HAProxy with the configuration of ``deploy/``, and a name server that it finds its shards through."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.deploy.files import DEPLOY

HAPROXY = os.environ.get("HAPROXY") or shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")

ADDRESSES = ("127.1.0.1", "127.1.0.2")
"""Containers of a service have addresses of their own, and the same ports."""


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
    """See the line at the top; on ports of this machine.

    :param text: the port of the text protocol that all shards have; ``http`` likewise.
    :param changes: what to replace in the configuration, wherever it is.
    :param certificate: the line for TLS is in use, with the certificate and key in this file.
    """

    def __init__(
        self,
        name_server: int,
        text: int,
        http: int,
        changes: Mapping[str, str] | None = None,
        certificate: Path | None = None,
    ) -> None:
        self._listening = [_listening() for _ in range(4)]
        ports = [one.getsockname()[1] for one in self._listening]
        self.text_port, self.http_port, self.api_port, self.tls_port = ports
        descriptors = [one.fileno() for one in self._listening]
        configuration = (DEPLOY / "haproxy.cfg").read_text()
        for before, after, times in (
            *((old, new, None) for old, new in (changes or {}).items()),
            ("    bind :8007\n", f"    bind fd@{descriptors[0]}\n", 1),
            ("    bind :8000\n", f"    bind fd@{descriptors[1]}\n", 1),
            ("    bind :8001\n", f"    bind fd@{descriptors[2]}\n", 1),
            ("    #bind :8443 ssl", f"    {'' if certificate else '#'}bind fd@{descriptors[3]} ssl", 1),
            ("/usr/local/etc/haproxy/spread.pem", str(certificate), 1),
            ("127.0.0.11:53", f"127.0.0.1:{name_server}", 1),
            ("node:8007 check port 8000", f"node:{text} check port {http}", 1),
            ("node:8000 check", f"node:{http} check", 2),
            ("maxconn 65536", "maxconn 500", 1),  # as many open files as any machine grants
        ):
            count = configuration.count(before)
            assert count == times if times else count, before
            configuration = configuration.replace(before, after)
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


def clients_of(address: str, port: int) -> int:
    """Established connections to a shard, as the kernel has them."""
    local = f"{struct.unpack('<I', socket.inet_aton(address))[0]:08X}:{port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(words[1] == local and words[3] == "01" for words in map(str.split, lines))
