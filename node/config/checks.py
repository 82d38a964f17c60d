"""Values of a configuration that are right by themselves, and wrong together."""

from __future__ import annotations

import os
import re
import ssl
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
from spread.node.config.checks_protocol import NO_KEY, check_channel, check_client, who_is_let_in
from spread.node.config.values import ConfigError, reason, shown
from spread.node.settings import Settings

__all__ = ["check_together"]

_PREFIX = re.compile(r"[A-Za-z0-9_.:-]+")
_PATH = re.compile(r"/[A-Za-z0-9_.~/-]*")


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
    _check_pair("node", settings.node.tls_cert, settings.node.tls_key, origins)
    _check_hub(settings, origins)
    check_client(settings, origins, doubt)
    check_channel(settings, origins, doubt)
    _check_paths(settings, origins)


def _check_addresses(settings: Settings, origins: Mapping[str, str]) -> None:
    try:
        shards = parse_shards(settings.node.shard)
    except ValueError as error:
        raise ConfigError(origins["node.shard"], f"{shown(settings.node.shard)}: {error}") from None
    addresses: dict[str, Address] = {}
    for key, text in {
        "text.listen": settings.text.listen,
        "node.http": settings.node.http,
        "node.json": settings.node.json,
        "node.ops": settings.node.ops,
    }.items():
        try:
            address = parse_address(text)
        except ValueError as error:
            raise ConfigError(origins[key], f"{shown(text)}: {error}") from None
        if address is None:
            continue
        addresses[key] = address
        if key != "node.ops" and not address.is_loopback:
            _check_public(key, address, settings, origins)
    ops = addresses.pop("node.ops", None)
    _check_distinct(addresses, origins)
    if ops:
        _check_ops(ops, _numbers(shards), addresses, origins)


def _check_public(key: str, address: Address, settings: Settings, origins: Mapping[str, str]) -> None:
    if key == "node.http" and settings.http_api.insecure and not settings.http_api.disabled:
        raise ConfigError(
            origins["http_api.insecure"],
            f"anybody who can reach {address} could publish and disconnect clients; set http_api.key "
            "instead, or listen on 127.0.0.1",
        )
    # The text protocol knows no tokens.
    anybody = NO_KEY if key == "text.listen" else who_is_let_in(settings.client)
    if anybody and not settings.node.allow_anonymous:
        first = "set a key in client.token, " if anybody == NO_KEY and key != "text.listen" else ""
        raise ConfigError(
            origins[key],
            f"{address} can be reached from other machines and {anybody}; "
            f"{first}add --allow-anonymous to let anyone in, or listen on 127.0.0.1",
        )


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
    if hub.tls_ca:
        _check_readable(hub.tls_ca, origins["hub.tls_ca"])
    _check_files("hub", hub.tls_cert, hub.tls_key, origins)


def _check_pair(section: str, certificate: str, key: str, origins: Mapping[str, str]) -> None:
    """Check that a server can be had with these two files."""
    _check_files(section, certificate, key, origins)
    if not certificate:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Asked for a password, OpenSSL would wait for one on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (ssl.SSLError, ValueError, OSError) as error:
        mismatch = isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH"
        raise ConfigError(
            origins[f"{section}.tls_key"],
            f"{shown(key)} is not the key of the certificate in {shown(certificate)}"
            if mismatch
            else f"{shown(certificate)} and {shown(key)} are not a certificate and its key in PEM, without a "
            "password",
        ) from None


def _check_files(section: str, certificate: str, key: str, origins: Mapping[str, str]) -> None:
    if bool(certificate) != bool(key):
        present, missing = ("cert", "key") if certificate else ("key", "cert")
        raise ConfigError(
            origins[f"{section}.tls_{present}"],
            f"{section}.tls_{present} is given without {section}.tls_{missing}; give both, or neither",
        )
    for name, path in (("tls_cert", certificate), ("tls_key", key)):
        if path:
            _check_readable(path, origins[f"{section}.{name}"])


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


def _check_paths(settings: Settings, origins: Mapping[str, str]) -> None:
    emulated = settings.http_stream.enabled or settings.sse.enabled
    taken = {"/health": "the health check"}
    for section, prefix, is_served in (
        ("http_api", settings.http_api.handler_prefix, not settings.http_api.disabled),
        ("websocket", settings.websocket.handler_prefix, not settings.websocket.disabled),
        ("http_stream", settings.http_stream.handler_prefix, settings.http_stream.enabled),
        ("sse", settings.sse.handler_prefix, settings.sse.enabled),
        ("emulation", settings.emulation.handler_prefix, emulated),
    ):
        origin = origins[f"{section}.handler_prefix"]
        if not _PATH.fullmatch(prefix):
            raise ConfigError(origin, f"{shown(prefix)} is no path; it begins with /, as /connection does")
        path = prefix.rstrip("/")
        if is_served and path in taken:
            raise ConfigError(origin, f"{shown(prefix)} is taken by {taken[path]}; take another path")
        if is_served:
            taken[path] = section
