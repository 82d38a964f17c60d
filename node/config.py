"""Where settings come from: defaults, a file, the environment, flags; the later ones win.

``load`` gives valid ``Settings`` or raises ``ConfigError``, and nothing else: one line that says where a
value came from, what is wrong with it and what to do. Every value given is checked, also one that a
later source replaces, so that a mistake does not wait for the day it matters. No message holds a password.

A file is TOML or JSON, one table for each section. The environment is taken strictly: an unknown
``SPREAD_...`` variable is an error, since it is most likely a misspelled setting. Not refused are what
Kubernetes sets for services whose names begin with ``spread``, and what Spread reads elsewhere.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import stat
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping
from itertools import combinations
from string import Formatter
from typing import Any

import msgspec

from spread.node.addresses import (
    Address,
    AutoShard,
    OneShard,
    ShardRange,
    Shards,
    parse_address,
    parse_shards,
)
from spread.node.flags import FLAGS, Flag
from spread.node.logs import one_line
from spread.node.settings import Settings

__all__ = ["ConfigError", "load"]

FILE_MAX_BYTES = 1 << 20

_BY_KEY = {flag.key: flag for flag in FLAGS}
_BY_VARIABLE = {flag.variable: flag for flag in FLAGS}
_SECTIONS = tuple(dict.fromkeys(flag.section for flag in FLAGS))

_OTHER_VARIABLES = frozenset({"SPREAD_HOME", "SPREAD_CONFIG", "SPREAD_CHECK"})
_FLEET_PREFIX = "SPREAD_FLEET_"
_KUBERNETES_NAME = re.compile(
    r"SPREAD_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_KUBERNETES_PORT_NAME = re.compile(r"SPREAD_(\w+_)?PORT")
_KUBERNETES_PORT_VALUE = re.compile(r"(tcp|udp|sctp)://\S+")

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_PREFIX = re.compile(r"[A-Za-z0-9_.:-]+")
_SHOWN_MAX_CHARACTERS = 80

_Given = Iterator[tuple[str, str, Any]]
"""Key, where it comes from in words, and its value, already checked by itself."""


class ConfigError(ValueError):
    """A configuration that cannot be used. Its text is one line for the person who wrote it."""

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(source, problem)
        self.source = source
        """Where it is wrong: a key of a file, a variable, a flag."""
        self.problem = problem
        """What is wrong, and what to do."""

    def __str__(self) -> str:
        return one_line(f"{self.source}: {self.problem}")


def load(*, file: str | None, environ: Mapping[str, str], flags: Mapping[str, str | bool]) -> Settings:
    """Build the settings.

    :param file: path of a configuration file (``.toml``, ``.json``; any other is tried as both), if any.
    :param environ: all environment variables, ``os.environ``.
    :param flags: by key (``text.listen``) the settings that were given as flags.
    :raises ConfigError: something cannot be used; the first thing found.
    """
    values: dict[str, Any] = {}
    origins = {flag.key: f"the default of {flag.flag}" for flag in FLAGS}
    sources = [_from_environment(environ), _from_flags(flags)]
    if file is not None:
        sources.insert(0, _from_file(file))
    for source in sources:
        for key, origin, value in source:
            values[key] = value
            origins[key] = origin
    tree: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for key, value in values.items():
        section, _, field = key.partition(".")
        tree[section][field] = value
    settings = msgspec.convert(tree, Settings)
    _check_together(settings, origins)
    return settings


# --- the file ---------------------------------------------------------------------------------------


def _from_file(file: str) -> _Given:
    tree = _parse(file, _read(file))
    if not isinstance(tree, dict):
        raise ConfigError(file, f"it must hold one table for each section, not {_shown(tree)}")
    for section, table in tree.items():
        if section not in _SECTIONS:
            raise ConfigError(file, _unknown_section(section))
        if not isinstance(table, dict):
            hint = f"; did you mean {_HEAD_KEYS[section]}?" if section in _HEAD_KEYS else ""
            raise ConfigError(file, f"{section} must be a table, not {_shown(table)}{hint}")
        for field, value in table.items():
            key = f"{section}.{field}"
            if key not in _BY_KEY:
                raise ConfigError(file, f"unknown key {_shown_key(key)}{_did_you_mean_key(key)}")
            origin = f"{file}: {key}"
            yield key, origin, _checked(_BY_KEY[key], value, origin, value)


def _read(file: str) -> str:
    try:
        with open(file, "rb") as stream:
            content = stream.read(FILE_MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError(file, f"cannot be read: {_reason(error)}") from None
    if len(content) > FILE_MAX_BYTES:
        raise ConfigError(file, f"larger than {FILE_MAX_BYTES} bytes, so hardly a configuration")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(file, f"not UTF-8 text (at line {line}); save it as UTF-8") from None


def _parse(file: str, text: str) -> object:
    parsers = {".toml": {"TOML": _toml}, ".json": {"JSON": _json}}
    problems = []
    suffix = os.path.splitext(file)[1].lower()
    for name, parse in parsers.get(suffix, {"TOML": _toml, "JSON": _json}).items():
        try:
            return parse(text)
        except RecursionError:
            problems.append(f"not valid {name}: nested too deeply")
        except ValueError as error:  # the errors of both parsers, and numbers too long for Python
            problems.append(f"not valid {name}: {error}")
    raise ConfigError(file, "; ".join(problems))


def _toml(text: str) -> object:
    return tomllib.loads(text)


def _json(text: str) -> object:
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{_shown_key(twice)} is there twice")
    return unique


_HEAD_KEYS = {flag.flag.removeprefix("--"): flag.key for flag in FLAGS if flag.flag == f"--{flag.section}"}
"""Flags that have the name of a section: ``hub`` and ``text``. In a file they are ``url`` and ``listen``."""


def _unknown_section(section: str) -> str:
    if section in _BY_KEY:
        flag = _BY_KEY[section]
        return f"unknown section {section}; write {flag.field} inside of the section {flag.section}"
    named = [flag.key for flag in FLAGS if flag.field == section]
    near = named or difflib.get_close_matches(section, _SECTIONS, 1)
    hint = f"did you mean {near[0]}?" if near else f"the sections are {', '.join(_SECTIONS)}"
    return f"unknown section {_shown_key(section)}; {hint}"


def _did_you_mean_key(key: str) -> str:
    """The nearest key, preferring one of the same name in another section."""
    named = [flag.key for flag in FLAGS if flag.field == key.partition(".")[2]]
    near = named or difflib.get_close_matches(key, _BY_KEY, 1)
    return f"; did you mean {near[0]}?" if near else "; spread-node --print-config shows all keys"


# --- environment and flags --------------------------------------------------------------------------


def _from_environment(environ: Mapping[str, str]) -> _Given:
    for variable, text in sorted(environ.items()):
        if not variable.startswith("SPREAD_"):
            continue
        if flag := _BY_VARIABLE.get(variable):
            origin = f"environment variable {variable}"
            yield flag.key, origin, _converted(flag, text, origin)
        elif not _is_elsewhere(variable, text):
            raise ConfigError(
                f"environment variable {_shown_key(variable)}",
                f"unknown{_did_you_mean_variable(variable)}",
            )


def _is_elsewhere(variable: str, text: str) -> bool:
    """Read by another part of Spread, or one of those that Kubernetes sets for every service."""
    return (
        variable in _OTHER_VARIABLES
        or variable.startswith(_FLEET_PREFIX)
        or _KUBERNETES_NAME.fullmatch(variable) is not None
        or (
            _KUBERNETES_PORT_NAME.fullmatch(variable) is not None
            and _KUBERNETES_PORT_VALUE.fullmatch(text) is not None
        )
    )


def _did_you_mean_variable(variable: str) -> str:
    keys = {f"SPREAD_{flag.section}_{flag.field}".upper(): flag.variable for flag in FLAGS}
    if variable in keys:
        return f"; did you mean {keys[variable]}?"
    # Without the part that all have in common, which would make anything look near.
    names = [name.removeprefix("SPREAD_") for name in [*_BY_VARIABLE, *sorted(_OTHER_VARIABLES)]]
    near = difflib.get_close_matches(variable.removeprefix("SPREAD_"), names, 1)
    return (
        f"; did you mean SPREAD_{near[0]}?" if near else "; unset it, spread-node --help shows all variables"
    )


def _from_flags(flags: Mapping[str, str | bool]) -> _Given:
    for key, given in flags.items():
        if key not in _BY_KEY:
            raise ConfigError("flags", f"unknown key {_shown_key(key)}{_did_you_mean_key(key)}")
        flag = _BY_KEY[key]
        origin = f"flag {flag.flag}"
        if isinstance(given, str):
            yield key, origin, _converted(flag, given, origin)
        else:
            yield key, origin, _checked(flag, given, origin, given)


# --- one value --------------------------------------------------------------------------------------


def _converted(flag: Flag, text: str, origin: str) -> Any:
    """What a text from the environment or a flag stands for, checked."""
    value: object = text
    word = text.strip()
    try:
        if flag.kind == "int":
            value = int(word)
        elif flag.kind == "float":
            value = float(word)
        elif flag.kind == "bool":
            value = True if word.lower() in _TRUE else False if word.lower() in _FALSE else text
    except ValueError:
        pass  # left as text, and refused as such below
    if flag.kind == "bool" and not isinstance(value, bool):
        raise ConfigError(origin, f"must be true or false (or yes, no, on, off, 1, 0), not {_shown(text)}")
    return _checked(flag, value, origin, text)


def _checked(flag: Flag, value: object, origin: str, given: object) -> Any:
    """The value in the type of its setting; ``given`` is how it was written."""
    wrong = ConfigError(origin, f"must be {flag.expected}, not {_shown(given)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise ConfigError(origin, "is not valid UTF-8 text")
    try:
        return msgspec.convert(value, flag.type)
    except msgspec.ValidationError:
        raise wrong from None


def _shown(value: object) -> str:
    """A value in an error line: short, and without a password."""
    if isinstance(value, str):
        start = value.find("://") + 3 if "://" in value else 0
        credentials, at, host = value[start:].rpartition("@")
        user, colon, _ = credentials.partition(":")
        if at and colon:
            value = f"{value[:start]}{user}:***@{host}"
        if len(value) > _SHOWN_MAX_CHARACTERS:
            value = f"{value[:_SHOWN_MAX_CHARACTERS]}..."
        return f"'{value}'"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):  # TOML has hexadecimal numbers longer than Python prints
        return str(value) if abs(value) < 1 << 128 else "a number of more than 38 digits"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else f"a {type(value).__name__}"


def _shown_key(key: str) -> str:
    return _shown(key)[1:-1]


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


# --- values together --------------------------------------------------------------------------------


def _check_together(settings: Settings, origins: Mapping[str, str]) -> None:
    _check_addresses(settings, origins)
    _check_text(settings, origins)
    _check_hub(settings, origins)


def _check_addresses(settings: Settings, origins: Mapping[str, str]) -> None:
    try:
        shards = parse_shards(settings.node.shard)
    except ValueError as error:
        raise ConfigError(origins["node.shard"], f"{_shown(settings.node.shard)}: {error}") from None
    addresses: dict[str, Address] = {}
    for key, text in {
        "text.listen": settings.text.listen,
        "node.http": settings.node.http,
        "node.ops": settings.node.ops,
    }.items():
        try:
            address = parse_address(text)
        except ValueError as error:
            raise ConfigError(origins[key], f"{_shown(text)}: {error}") from None
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
                f"{_shown(settings.text.channel)}: a channel name holds no spaces or control characters",
            )


def _check_template(key: str, template: str, name: str, origins: Mapping[str, str]) -> None:
    origin = origins[key]
    if "\n" in template or "\r" in template:
        raise ConfigError(origin, "must be one line; take out the line break")
    remedy = f"only {{{name}}} is filled in, and other braces are written twice: {{{{ and }}}}"
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(origin, f"{_shown(template)}: {error}; {remedy}") from None
    if any(field is not None and (field != name or spec or turn) for _, field, spec, turn in parts):
        raise ConfigError(origin, f"{_shown(template)}: {remedy}")


def _check_hub(settings: Settings, origins: Mapping[str, str]) -> None:
    hub = settings.hub
    if not _PREFIX.fullmatch(hub.prefix):
        raise ConfigError(
            origins["hub.prefix"],
            f"{_shown(hub.prefix)}: only letters, digits and _ - . : may be in it",
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
        raise ConfigError(origin, f"{_shown(path)} cannot be read: {_reason(error)}") from None
    if not is_file:
        raise ConfigError(origin, f"{_shown(path)} is not a file")
