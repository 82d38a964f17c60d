"""Where settings come from: defaults, a file, the environment, flags; the later ones win.

``load`` gives valid ``Settings`` or raises ``ConfigError``, and nothing else: one line that says where a
value came from, what is wrong with it and what to do. Every value given is checked, also one that a
later source replaces, so that a mistake does not wait for the day it matters. No message holds a secret.

A file is TOML or JSON, one table for each section. The environment is taken strictly: an unknown
``SPREAD_...`` variable is an error, since it is most likely a misspelled setting. Not refused are what
Kubernetes sets for services whose names begin with ``spread``, and what Spread reads elsewhere.

What a Centrifugo configuration asks for and Spread does not have is an error as well (``absent`` has the
list), unless the caller wants to be lenient: then it is a warning, and the key is passed over.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from spread.node.config.absent import absent_keys, absent_variable, is_absent
from spread.node.config.checks import check_together
from spread.node.config.flags import FLAGS, Flag, flags_of
from spread.node.config.values import ConfigError, checked, converted, parse_json, reason, shown, shown_key
from spread.node.settings import Namespace, Settings

__all__ = ["ConfigError", "load"]

FILE_MAX_BYTES = 1 << 20

_BY_KEY = {flag.key: flag for flag in FLAGS}
_BY_VARIABLE = {flag.variable: flag for flag in FLAGS}
_SECTIONS = tuple(dict.fromkeys(flag.section for flag in FLAGS))
_NAMESPACES = "channel.namespaces"
_NAMESPACE_VARIABLE = "SPREAD_CHANNEL_NAMESPACES_"
_OPTIONS = {flag.key: flag for flag in flags_of(Namespace, "")}

_OTHER_VARIABLES = frozenset(
    {"SPREAD_HOME", "SPREAD_CONFIG", "SPREAD_CHECK", "SPREAD_LENIENT_CONFIG"}
    | {"SPREAD_TOKEN", "SPREAD_API_KEY"}  # of the client's commands
)
_FLEET_PREFIX = "SPREAD_FLEET_"
_KUBERNETES_NAME = re.compile(
    r"SPREAD_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_KUBERNETES_PORT_NAME = re.compile(r"SPREAD_(\w+_)?PORT")
_KUBERNETES_PORT_VALUE = re.compile(r"(tcp|udp|sctp)://\S+")

_Given = Iterator[tuple[str, str, Any]]
"""Key, where it comes from in words, and its value, already checked by itself."""
_Doubt = Callable[[ConfigError], None]
"""Called with an error that a lenient reader passes over; raises it otherwise."""


def load(
    *,
    file: str | None,
    environ: Mapping[str, str],
    flags: Mapping[str, str | bool],
    warn: Callable[[str], None] | None = None,
) -> Settings:
    """Build the settings.

    :param file: path of a configuration file (``.toml``, ``.json``; any other is tried as both), if any.
    :param environ: all environment variables, ``os.environ``.
    :param flags: by key (``text.listen``) the settings that were given as flags.
    :param warn: to be lenient: called with a line for each thing that is passed over.
    :raises ConfigError: something cannot be used; the first thing found, with what else is wrong in the same
        file by itself.
    """

    def doubt(error: ConfigError) -> None:
        if warn is None:
            raise error
        warn(str(error))

    values: dict[str, Any] = {}
    origins = {flag.key: f"the default of {flag.flag or flag.key}" for flag in FLAGS}
    sources = [_from_environment(environ, doubt), _from_flags(flags, doubt)]
    if file is not None:
        sources.insert(0, _from_file(file, doubt))
    for source in sources:
        for key, origin, value in source:
            values[key] = value
            origins[key] = origin
    _set_options(values, environ)
    for key, value in values.items():
        if key.endswith(".handler_prefix"):
            values[key] = value.rstrip("/") or "/"  # as Centrifugo does
    settings: Settings = msgspec.convert(_nested(values), Settings)
    check_together(settings, origins, doubt)
    return settings


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *tables, field = key.split(".")
        table = tree
        for name in tables:
            table = table.setdefault(name, {})
        table[field] = value
    return tree


# --- the file ---------------------------------------------------------------------------------------


def _from_file(file: str, doubt: _Doubt) -> _Given:
    tree = _parse(file, _read(file))
    if not isinstance(tree, dict):
        raise ConfigError(file, f"it must hold one table for each section, not {shown(tree)}")
    walk = _Walk(file)
    yield from walk.table(tree, "", _BY_KEY)
    walk.tell(doubt)


class _Walk:
    """Goes through the tables of a file, or of a list of tables from elsewhere.

    :param source: where they come from, in words.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._absent: list[tuple[str, str]] = []
        self._wrong: list[ConfigError] = []

    def table(self, table: Mapping[str, Any], path: str, known: Mapping[str, Flag]) -> _Given:
        """The settings of a table, and of those within it.

        :param path: its key, "" for the outermost one.
        :param known: all settings that may be in it, by key.
        """
        for name, value in table.items():
            key = f"{path}.{name}" if path else name
            origin = f"{self._source}: {key}"
            if "." in name:
                raise ConfigError(self._source, _dotted(name, key, known))
            if key in known and known[key].kind == "tables":
                yield key, origin, self.tables(value, key)
            elif key in known:
                try:
                    right = checked(known[key], value, origin, value)
                except ConfigError as error:
                    self._wrong.append(error)
                else:
                    yield key, origin, right
            elif is_absent(key):
                self._absent += absent_keys(key, value)
            elif any(each.startswith(f"{key}.") for each in known):
                if not isinstance(value, dict):
                    hint = f"; did you mean {_HEAD_KEYS[key]}?" if key in _HEAD_KEYS else ""
                    raise ConfigError(self._source, f"{key} must be a table, not {shown(value)}{hint}")
                yield from self.table(value, key, known)
            elif path:
                problem = f"unknown key {shown_key(key)}{_did_you_mean(key, known)}"
                self._wrong.append(ConfigError(self._source, problem))
            else:
                self._wrong.append(ConfigError(self._source, _unknown_section(key)))

    def tables(self, value: object, key: str) -> list[dict[str, Any]]:
        """The settings of each of a list of namespaces."""
        if not isinstance(value, list):
            raise ConfigError(f"{self._source}: {key}", f"must be a list of tables, not {shown(value)}")
        found = []
        for index, item in enumerate(value):
            path = f"{key}[{index}]"
            if not isinstance(item, dict):
                raise ConfigError(f"{self._source}: {path}", f"must be a table, not {shown(item)}")
            if "name" not in item:
                raise ConfigError(f"{self._source}: {path}", "has no name")
            known = {f"{path}.{name}": flag for name, flag in _OPTIONS.items()}
            given = self.table(item, path, known)
            found.append({each.rpartition(".")[2]: inner for each, _, inner in given})
        return found

    def tell(self, doubt: _Doubt) -> None:
        """Tell what was asked for in vain, and what is wrong; everything at once.

        :raises ConfigError: something is wrong; it has the rest with it.
        """
        wrong = self._wrong
        if self._absent:
            words = [
                f"{shown_key(key)} ({instead} instead)" if instead else shown_key(key)
                for key, instead in self._absent
            ]
            try:
                doubt(_has_not(self._source, words))
            except ConfigError as error:
                wrong = [*wrong, error]
        if wrong:
            raise ConfigError(wrong[0].source, wrong[0].problem, wrong[1:])


def _has_not(source: str, words: list[str]) -> ConfigError:
    return ConfigError(
        source,
        f"Spread does not have {', '.join(words)}; take this out, or pass over it with --lenient-config",
    )


def _read(file: str) -> str:
    try:
        with open(file, "rb") as stream:
            content = stream.read(FILE_MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError(file, f"cannot be read: {reason(error)}") from None
    if len(content) > FILE_MAX_BYTES:
        raise ConfigError(file, f"larger than {FILE_MAX_BYTES} bytes, so hardly a configuration")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(file, f"not UTF-8 text (at line {line}); save it as UTF-8") from None


def _parse(file: str, text: str) -> object:
    parsers = {".toml": {"TOML": _toml}, ".json": {"JSON": parse_json}}
    problems = []
    suffix = os.path.splitext(file)[1].lower()
    if suffix in (".yaml", ".yml"):
        raise ConfigError(file, "YAML is not read; convert it to JSON or TOML")
    for name, parse in parsers.get(suffix, {"TOML": _toml, "JSON": parse_json}).items():
        try:
            return parse(text)
        except RecursionError:
            problems.append(f"not valid {name}: nested too deeply")
        except ValueError as error:  # the errors of both parsers, and numbers too long for Python
            problems.append(f"not valid {name}: {error}")
    raise ConfigError(file, "; ".join(problems))


def _toml(text: str) -> object:
    return tomllib.loads(text)


_HEAD_KEYS = {flag.flag.removeprefix("--"): flag.key for flag in FLAGS if flag.flag == f"--{flag.section}"}
"""Flags that have the name of a section: ``hub`` and ``text``. In a file they are ``url`` and ``listen``."""


_BEFORE_V6 = frozenset({"address", "internal_port", "port"})
"""Keys that a Centrifugo before v6 had outside of all sections, and that most of its files have."""


def _dotted(name: str, key: str, known: Mapping[str, Flag]) -> str:
    kind = "section" if name == key else "key"
    if key in known:
        return f"unknown {kind} {key}; write {known[key].field} inside of the table {known[key].table}"
    return f"unknown {kind} {shown_key(key)}{_did_you_mean(key, known)}"


def _unknown_section(section: str) -> str:
    # Centrifugo before v6 had no sections: token_hmac_secret_key is client.token.hmac_secret_key now, and
    # api_key is http_api.key.
    if section in _BEFORE_V6:
        return f"unknown section {section}; this is of a Centrifugo before v6: convert the file to v6 first"
    near = (
        _same_name(section, _BY_KEY)
        or difflib.get_close_matches(section, _SECTIONS, 1)
        or [flag.key for flag in FLAGS if f"_{flag.key}".replace(".", "_").endswith(f"_{section}")]
    )
    hint = f"did you mean {near[0]}?" if near else f"the sections are {', '.join(_SECTIONS)}"
    return f"unknown section {shown_key(section)}; {hint}"


def _same_name(field: str, known: Mapping[str, Flag]) -> list[str]:
    """The keys whose last part this is, those of the shortest tables first."""
    return sorted(
        (flag.key for flag in known.values() if flag.field == field), key=lambda key: key.count(".")
    )


def _did_you_mean(key: str, known: Mapping[str, Flag]) -> str:
    """The nearest key: in the same table of a list; else of the same name in any table, or of a like name."""
    table, _, field = key.rpartition(".")
    if table.endswith("]"):
        near = difflib.get_close_matches(field, _OPTIONS, 1)
        return f"; did you mean {near[0]}?" if near else "; spread-node --print-config shows all options"
    tables = {flag.table for flag in known.values()} - set(_SECTIONS)
    near = _same_name(field, known)
    near = difflib.get_close_matches(key, near, 1, 0) or difflib.get_close_matches(key, [*known, *tables], 1)
    return f"; did you mean {near[0]}?" if near else "; spread-node --print-config shows all keys"


# --- environment and flags --------------------------------------------------------------------------


def _from_environment(environ: Mapping[str, str], doubt: _Doubt) -> _Given:
    for variable, text in sorted(environ.items()):
        if not variable.startswith("SPREAD_") or variable.startswith(_NAMESPACE_VARIABLE):
            continue
        origin = f"environment variable {shown_key(variable)}"
        if flag := _BY_VARIABLE.get(variable):
            yield flag.key, origin, _from_text(flag, text, origin, doubt)
        elif _is_elsewhere(variable, text):
            pass
        elif absent := absent_variable(variable):
            if text.strip().lower() not in ("", "0", "false", "[]", "{}"):
                doubt(_has_not(origin, [absent]))
        else:
            raise ConfigError(origin, f"unknown{_did_you_mean_variable(variable)}")


def _from_text(flag: Flag, text: str, origin: str, doubt: _Doubt) -> Any:
    value = converted(flag, text, origin)
    if flag.kind == "tables":
        walk = _Walk(origin)
        value = walk.tables(value, flag.key)
        walk.tell(doubt)
    return value


def _set_options(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Set single options of namespaces: ``SPREAD_CHANNEL_NAMESPACES_CHAT_HISTORY_SIZE`` of ``chat``."""
    places = {
        f"{re.sub('[-.]', '_', namespace['name']).upper()}_{flag.key.upper()}": (namespace, flag)
        for namespace in values.get(_NAMESPACES, [])
        for flag in _OPTIONS.values()
    }
    for variable, text in sorted(environ.items()):
        if not variable.startswith(_NAMESPACE_VARIABLE):
            continue
        origin = f"environment variable {shown_key(variable)}"
        place = variable.removeprefix(_NAMESPACE_VARIABLE)
        if place not in places:
            near = difflib.get_close_matches(place, places, 1)
            hint = f"did you mean {_NAMESPACE_VARIABLE}{near[0]}?" if near else "there is no such namespace"
            raise ConfigError(origin, f"unknown; {hint}")
        namespace, flag = places[place]
        namespace[flag.key] = converted(flag, text, origin)


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
    keys = {f"SPREAD_{flag.key.replace('.', '_')}".upper(): flag.variable for flag in FLAGS}
    if variable in keys:
        return f"; did you mean {keys[variable]}?"
    # Without the part that all have in common, which would make anything look near.
    names = [name.removeprefix("SPREAD_") for name in [*_BY_VARIABLE, *sorted(_OTHER_VARIABLES)]]
    near = difflib.get_close_matches(variable.removeprefix("SPREAD_"), names, 1)
    return (
        f"; did you mean SPREAD_{near[0]}?" if near else "; unset it, spread-node --help shows all variables"
    )


def _from_flags(flags: Mapping[str, str | bool], doubt: _Doubt) -> _Given:
    for key, given in flags.items():
        if key not in _BY_KEY:
            raise ConfigError("flags", f"unknown key {shown_key(key)}{_did_you_mean(key, _BY_KEY)}")
        flag = _BY_KEY[key]
        origin = f"flag {flag.flag}" if flag.flag else f"key {key}"
        if isinstance(given, str):
            yield key, origin, _from_text(flag, given, origin, doubt)
        else:
            yield key, origin, checked(flag, given, origin, given)
