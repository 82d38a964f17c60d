"""Values of a configuration that are right by themselves, and wrong together."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Callable, Mapping
from itertools import combinations
from string import Formatter

from spread.node.addresses import (
    Address,
    AutoShard,
    OneShard,
    ShardRange,
    Shards,
    parse_address,
    parse_shards,
)
from spread.node.settings import Settings
from spread.node.values import ConfigError, reason, shown

__all__ = ["check_together"]

_PREFIX = re.compile(r"[A-Za-z0-9_.:-]+")


def check_together(
    settings: Settings, origins: Mapping[str, str], doubt: Callable[[ConfigError], None]
) -> None:
    """Refuse what is right by itself and wrong with the rest.

    :param origins: for each key, where its value comes from, in words.
    :param doubt: called with an error that Centrifugo would not see; raises it if it counts.
    :raises ConfigError: the first thing found.
    """
    _check_addresses(settings, origins)
    _check_text(settings, origins)
    _check_hub(settings, origins)


def _check_addresses(settings: Settings, origins: Mapping[str, str]) -> None:
    try:
        shards = parse_shards(settings.node.shard)
    except ValueError as error:
        raise ConfigError(origins["node.shard"], f"{shown(settings.node.shard)}: {error}") from None
    addresses: dict[str, Address] = {}
    for key, text in {
        "text.listen": settings.text.listen,
        "node.http": settings.node.http,
        "node.ops": settings.node.ops,
    }.items():
        try:
            address = parse_address(text)
        except ValueError as error:
            raise ConfigError(origins[key], f"{shown(text)}: {error}") from None
        if address is None:
            continue
        addresses[key] = address
        if key != "node.ops" and not address.is_loopback and not settings.node.allow_anonymous:
            raise ConfigError(
                origins[key],
                f"{address} can be reached from other machines and clients are not authenticated; "
                "add --allow-anonymous to let anyone in, or listen on 127.0.0.1",
            )
    ops = addresses.pop("node.ops", None)
    _check_distinct(addresses, origins)
    if ops:
        _check_ops(ops, _numbers(shards), addresses, origins)


def _numbers(shards: Shards) -> range:
    """The shard numbers as far as they are known; of ``auto``, the first it would try."""
    match shards:
        case ShardRange():
            return shards.numbers
        case OneShard(number):
            return range(number, number + 1)
        case AutoShard():
            return range(1)


def _check_distinct(addresses: Mapping[str, Address], origins: Mapping[str, str]) -> None:
    # Shards share their public ports, so the system would let two services of one shard do so, too, and
    # deal the clients out between them.
    for (key, address), (other_key, other) in combinations(addresses.items(), 2):
        if address.port == other.port != 0 and _overlap(address, other):
            raise ConfigError(origins[other_key], f"{other} is taken by {key}; take another port")


def _check_ops(
    ops: Address, numbers: range, addresses: Mapping[str, Address], origins: Mapping[str, str]
) -> None:
    origin = origins["node.ops"]
    if ops.port == 0:
        return
    try:
        ops.plus(numbers[-1])
    except ValueError as error:
        raise ConfigError(origin, f"{error}; a shard adds its number to this port") from None
    for key, address in addresses.items():
        number = address.port - ops.port
        if number in numbers and _overlap(address, ops):
            raise ConfigError(
                origin,
                f"shard {number} adds its number to the port and meets {address} of {key}; take another",
            )


def _overlap(one: Address, other: Address) -> bool:
    """Whether there are connections that both would take, given the same port."""
    hosts = {one.host.lower(), other.host.lower()}
    return (
        len(hosts) == 1
        or not hosts.isdisjoint({"0.0.0.0", "::"})
        or ("localhost" in hosts and one.is_loopback and other.is_loopback)
    )


def _check_text(settings: Settings, origins: Mapping[str, str]) -> None:
    outbox, message = settings.node.outbox_max_bytes, settings.text.message_max_bytes
    if outbox < 2 * message:
        # One message would do what the limit is for: close everybody who is sent it.
        raise ConfigError(
            origins["node.outbox_max_bytes"],
            f"{outbox} bytes hold no two messages of text.message_max_bytes, {message}; "
            f"give it {2 * message} or more, or make messages smaller",
        )
    _check_template("text.greeting", settings.text.greeting, "number", origins)
    _check_template("text.goodbye", settings.text.goodbye, "shard", origins)
    for character in settings.text.channel:
        if character.isspace() or unicodedata.category(character) == "Cc":
            raise ConfigError(
                origins["text.channel"],
                f"{shown(settings.text.channel)}: a channel name holds no spaces or control characters",
            )


def _check_template(key: str, template: str, name: str, origins: Mapping[str, str]) -> None:
    origin = origins[key]
    if "\n" in template or "\r" in template:
        raise ConfigError(origin, "must be one line; take out the line break")
    remedy = f"only {{{name}}} is filled in, and other braces are written twice: {{{{ and }}}}"
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(origin, f"{shown(template)}: {error}; {remedy}") from None
    if any(field is not None and (field != name or spec or turn) for _, field, spec, turn in parts):
        raise ConfigError(origin, f"{shown(template)}: {remedy}")


def _check_hub(settings: Settings, origins: Mapping[str, str]) -> None:
    hub = settings.hub
    if not _PREFIX.fullmatch(hub.prefix):
        raise ConfigError(
            origins["hub.prefix"],
            f"{shown(hub.prefix)}: only letters, digits and _ - . : may be in it",
        )
    if bool(hub.tls_cert) != bool(hub.tls_key):
        present, missing = ("cert", "key") if hub.tls_cert else ("key", "cert")
        raise ConfigError(
            origins[f"hub.tls_{present}"],
            f"hub.tls_{present} is given without hub.tls_{missing}; give both, or neither",
        )
    for key, path in {
        "hub.tls_ca": hub.tls_ca,
        "hub.tls_cert": hub.tls_cert,
        "hub.tls_key": hub.tls_key,
    }.items():
        if path:
            _check_readable(path, origins[key])


def _check_readable(path: str, origin: str) -> None:
    try:
        # A pipe is not opened: that would wait for its writer.
        is_file = stat.S_ISREG(os.stat(path).st_mode)
        if is_file:
            with open(path, "rb"):
                pass
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError(origin, f"{shown(path)} cannot be read: {reason(error)}") from None
    if not is_file:
        raise ConfigError(origin, f"{shown(path)} is not a file")
