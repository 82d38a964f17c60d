"""A cluster that runs already: where it takes clients, and which processes it has."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from spread.client.bench.cluster import Cluster
from spread.client.bench.errors import BadRequest
from spread.client.bench.processes import Server, Watch, is_redis

__all__ = ["Where", "parse_connect", "parse_pids", "pointed_at", "servers_of"]

_ADDRESS = re.compile(r"(?:(text|http)=)?(?:\[([^\]]+)\]|([^\[\]:,=]+)):([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Where:
    """Addresses in numbers, one for each shard."""

    text: tuple[str, ...]
    http: tuple[str, ...]

    @property
    def is_here(self) -> bool:
        """All of them are of this machine."""
        return all(
            ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_loopback
            for address in (*self.text, *self.http)
        )

    @property
    def shards(self) -> int:
        """How many there are for every format."""
        return min(len(addresses) for addresses in (self.text, self.http) if addresses)

    def check(self, has_text: bool, has_http: bool) -> None:
        """:raises BadRequest: there is no address for a format."""
        if has_text and not self.text:
            raise BadRequest("--connect: no text=HOST:PORT, for --format text")
        if has_http and not self.http:
            raise BadRequest("--connect: no http=HOST:PORT, for --format json and protobuf")


def parse_connect(text: str, has_text: bool, has_http: bool) -> Where:
    """``HOST:PORT,…``, each after ``text=`` or ``http=`` where formats of both kinds are asked for.

    :raises ValueError: it is not that; the text says what is wrong.
    """
    found: dict[str, list[str]] = {"text": [], "http": []}
    for part in text.split(","):
        match = _ADDRESS.fullmatch(part)
        if match is None or not 0 < int(match[4]) < 65536:
            raise ValueError(f"{part!r} is not HOST:PORT, text=HOST:PORT or http=HOST:PORT")
        if match[1] is None and has_text and has_http:
            raise ValueError(f"say text={part} or http={part}, or give one --format")
        kind = match[1] or ("text" if has_text else "http")
        found[kind].append(_looked_up(match[2] or match[3], int(match[4])))
    return Where(tuple(found["text"]), tuple(found["http"]))


def _looked_up(host: str, port: int) -> str:
    try:
        # An IPv4 address first, for that is what shards listen on by default.
        found = sorted(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), key=lambda each: each[0])
    except OSError as error:
        raise ValueError(f"{host}: {error.strerror}") from None
    address = str(found[0][4][0])
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def parse_pids(text: str) -> tuple[int, ...]:
    """``PID,…``

    :raises ValueError: it is not that.
    """
    if not re.fullmatch("[0-9]{1,9}(,[0-9]{1,9})*", text):
        raise ValueError(f"{text!r} is not PID,PID,...")
    return tuple(map(int, text.split(",")))


def servers_of(pids: Sequence[int]) -> tuple[Server, ...]:
    """:raises BadRequest: there is no such process."""
    try:
        return tuple(Server(f"process {pid}", pid, is_redis(pid)) for pid in pids)
    except ProcessLookupError as error:
        raise BadRequest(f"--pids: {error}") from None


@contextmanager
def pointed_at(where: Where, servers: Sequence[Server]) -> Iterator[Cluster]:
    """The cluster, watched for as long as it is measured."""
    cluster = Cluster(where.text, where.http, tuple(servers), Watch())
    try:
        for server in servers:
            cluster.watch.add(server.pid, lambda name=server.name: f"{name} has died")  # type: ignore[misc]
        yield cluster
    finally:
        cluster.watch.close()
