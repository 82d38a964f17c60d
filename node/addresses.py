"""What is listened on, and which shards are run: two small notations, parsed. Values only: no sockets.

    address = "off" / host ":" port      127.0.0.1:8007   [::1]:8007   localhost:0   0.0.0.0:80
    shards  = "auto" / number / number "-" number       3      0-7      auto

Port 0 stands for any free port. Shard numbers run from 0 to 1023. Both notations are strict (no spaces,
no guesses); what does not parse raises ``ValueError`` with a sentence that can be shown to people.
Parsing what ``str`` gives returns an equal value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple

__all__ = [
    "LAST_SHARD",
    "Address",
    "AutoShard",
    "OneShard",
    "ShardRange",
    "Shards",
    "parse_address",
    "parse_shards",
]

LAST_PORT = 65535
LAST_SHARD = 1023

_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMERIC = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
"""A host whose last label looks like this is an IPv4 address or a mistake; resolvers would guess."""


class Address(NamedTuple):
    """Where to listen."""

    host: str
    """An IPv4 address, an IPv6 address without brackets, or a name."""
    port: int
    """0 to 65535; 0 is any free port."""

    def __str__(self) -> str:
        """``host:port``, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Only this machine can reach it. Every other name but ``localhost`` counts as public."""
        try:
            # An IPv4-mapped ::ffff:127.0.0.1 counts as public: Python releases differ on it.
            return int(IPv6Address(self.host)) == 1
        except AddressValueError:
            pass
        try:
            return IPv4Address(self.host).is_loopback
        except AddressValueError:
            return self.host.lower() == "localhost"

    def plus(self, number: int) -> Address:
        """The address ``number`` ports further; any free port stays any free port.

        :raises ValueError: that port would be above 65535.
        """
        if self.port == 0:
            return self
        if self.port + number > LAST_PORT:
            raise ValueError(f"port {self.port} plus {number} is above the last port, {LAST_PORT}")
        return Address(self.host, self.port + number)


def parse_address(text: str) -> Address | None:
    """Read ``HOST:PORT``; ``None`` for ``off``.

    :raises ValueError: with a sentence that says what is wrong and what is expected.
    """
    if text.lower() == "off":
        return None
    if not text:
        raise ValueError("an address is missing; write HOST:PORT or off")
    if any(character.isspace() or not character.isprintable() for character in text):
        raise ValueError("an address holds no spaces or control characters; write HOST:PORT or off")
    if "://" in text:
        raise ValueError("an address is HOST:PORT without a scheme, for example 127.0.0.1:8007")
    host, colon, port = text.rpartition(":")
    if text.startswith("[") and text.endswith("]"):
        raise ValueError("the port is missing; write [HOST]:PORT, for example [::1]:8007")
    if not colon:
        if text.isdecimal():
            raise ValueError(f"the host is missing; write HOST:PORT, for example 127.0.0.1:{text}")
        raise ValueError("the port is missing; write HOST:PORT, for example 127.0.0.1:8007")
    return Address(_parse_host(host), _parse_port(port))


def _parse_host(host: str) -> str:
    if not host:
        raise ValueError("the host is missing; write 127.0.0.1 for this machine, 0.0.0.0 for every network")
    if host.startswith("[") and host.endswith("]"):
        inner = host[1:-1]
        try:
            if "[" in inner or "]" in inner:  # a scope, %eth0, may hold anything as far as Python cares
                raise AddressValueError(inner)
            return str(IPv6Address(inner))
        except AddressValueError:
            raise ValueError("what is in the brackets is not an IPv6 address") from None
    if ":" in host:
        raise ValueError("an IPv6 address goes in brackets, for example [::1]:8007")
    labels = host.removesuffix(".").split(".")
    if _NUMERIC.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(host))
        except AddressValueError:
            raise ValueError("the host is not an IPv4 address; write four numbers from 0 to 255") from None
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("the host is neither an IP address nor a host name")
    return host


def _parse_port(port: str) -> int:
    if not (port.isascii() and port.isdecimal()):
        raise ValueError(f"the port is not a number from 0 to {LAST_PORT}")
    # A long run of digits is not handed to int(), which refuses it in words of its own.
    if len(port) > 5 or int(port) > LAST_PORT:
        raise ValueError(f"ports run from 0 to {LAST_PORT}")
    return int(port)


@dataclass(frozen=True, slots=True)
class OneShard:
    """One shard, in this process."""

    number: int

    def __str__(self) -> str:
        return str(self.number)


@dataclass(frozen=True, slots=True)
class AutoShard:
    """One shard, in this process, with the lowest number that no live shard holds."""

    def __str__(self) -> str:
        return "auto"


@dataclass(frozen=True, slots=True)
class ShardRange:
    """The shards ``first`` to ``last``, both included, each in a process of its own; at least one."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    @property
    def numbers(self) -> range:
        """Every shard number of the range, in order."""
        return range(self.first, self.last + 1)


Shards = OneShard | AutoShard | ShardRange


def parse_shards(text: str) -> Shards:
    """Read which shards to run: a number, a range ``A-B``, or ``auto``.

    :raises ValueError: with a sentence that says what is wrong and what is expected.
    """
    if text.lower() == "auto":
        return AutoShard()
    if not text:
        raise ValueError("a shard is missing; write a number, a range such as 0-7, or auto")
    first, dash, last = text.partition("-")
    if not dash:
        return OneShard(_parse_shard(text))
    if first and not last:
        raise ValueError("the end of the range is missing; write A-B, for example 0-7")
    shards = ShardRange(_parse_shard(first), _parse_shard(last))
    if shards.first > shards.last:
        raise ValueError(f"{shards} counts backwards; write {shards.last}-{shards.first}")
    return shards


def _parse_shard(text: str) -> int:
    # "-1" comes here as an empty first number.
    if text and not (text.isascii() and text.isdecimal()):
        raise ValueError("shards are a number, a range such as 0-7, or auto")
    if not text or len(text) > 4 or int(text) > LAST_SHARD:
        raise ValueError(f"shard numbers run from 0 to {LAST_SHARD}")
    return int(text)
