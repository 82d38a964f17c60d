"""The command line of the settings: for each its flag, its environment variable and its help.

Everything here is made from the structs of ``spread.node.settings``; a setting that is added there has
its flag, its variable, its line in ``--help`` and in the example configuration at once. Values pass through
unconverted, as click got them: ``spread.node.config`` converts them, and words what is wrong with them.

The section ``node`` is left out of a flag, the others are its first part; ``SHORT`` has the exceptions.
The environment variable is the flag in capitals: ``--text-message-max-bytes`` is
``SPREAD_TEXT_MESSAGE_MAX_BYTES``. A list of tables has a variable, which takes JSON, and no flag.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click
from msgspec import Meta, Struct
from msgspec.structs import fields

from spread.node.settings import Settings
from spread.node.settings.kinds import format_duration, is_duration, is_secret

__all__ = [
    "FLAGS",
    "SEVERAL",
    "SHORT",
    "Flag",
    "SettingsCommand",
    "example_toml",
    "flags_of",
    "given",
    "options",
    "shown_default",
]

Kind = Literal["bool", "choice", "duration", "float", "int", "list", "str", "tables"]
"""``list``: of texts, or of choices. ``tables``: a list of sections, which have settings of their own."""
Default = bool | float | int | str | tuple[Any, ...]

SHORT: dict[str, str] = {
    "hub.url": "hub",
    "text.listen": "text",
    "app.app": "app",
    "app.tables": "tables",
}
"""Flags that are not made from the name of their setting."""

SEVERAL = frozenset({"hub.url"})
"""Settings that may be given several times, or as a list in a file: it becomes one text, with spaces."""

_METAVARS: dict[str, str] = {
    "node.shard": "N|A-B|auto",
    "node.http": "HOST:PORT|off",
    "node.json": "HOST:PORT|off",
    "node.ops": "HOST:PORT|off",
    "node.tls_cert": "FILE",
    "node.tls_key": "FILE",
    "hub.url": "URL",
    "hub.tls_ca": "FILE",
    "hub.tls_cert": "FILE",
    "hub.tls_key": "FILE",
    "text.listen": "HOST:PORT|off",
    "app.app": "MODULE:CLASS",
    "app.tables": "DIR",
}
_UNITS: dict[str, str] = {"_per_second": "per second", "_seconds": "seconds", "_bytes": "bytes"}

_HINTS = """\
\b
Examples:
  spread-node --shard 0-1
      two shards; then `nc 127.0.0.1 8007` in two windows, and type
  spread-node --shard 0
  spread-node --shard 1
      the same two shards, each in a terminal of its own
  spread-node --client-insecure
      the same for WebSocket, without tokens, for a first try only: then
      `spread tail news`, and in another window `spread publish news hello`
  spread-node --shard 0-1 --app chat:Chat
      two shards that run your own code, the class Chat of chat.py
  spread-node --config spread.toml --check
      say what is wrong with a configuration, start nothing

\b
Every setting is looked up in this order: flag, environment variable (the flag
in capitals, SPREAD_ before it), configuration file, default. In a file the
sections client to emulation are those of a Centrifugo v6 configuration, and
channel.namespaces lists the namespaces; docs/configuration.md explains them.
"""

_EXIT_CODES = """\
\b
Exit codes:
  0  clean stop, or --check found nothing wrong
  2  bad usage or configuration
  3  the shard number is taken by another live process
  4  the hub cannot be reached
"""

_LINE_CHARACTERS = 64
"""A longer word does not fit into a line of ``--help``."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One setting: everything that is known about it apart from its value."""

    key: str
    """``section.field``, its name in a configuration file; further tables may come between the two."""
    flag: str
    """With its two dashes; empty if there is none."""
    variable: str
    """Its environment variable."""
    kind: Kind
    default: Default
    help: str
    """What it is: sentences, without its default and bounds."""
    unit: str
    """``seconds``, ``bytes``, ``per second``, or nothing."""
    choices: tuple[str, ...]
    bounds: str
    """In words, ``1 to 100 bytes``; empty without any."""
    type: Any
    """The annotated type of the field, for ``msgspec.convert``."""
    is_secret: bool = False
    """Its value is never shown."""

    @property
    def section(self) -> str:
        """The first part of the key."""
        return self.key.partition(".")[0]

    @property
    def table(self) -> str:
        """The key without its last part."""
        return self.key.rpartition(".")[0]

    @property
    def field(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]

    @property
    def parameter(self) -> str:
        """Under which name click passes its value."""
        return self.key.replace(".", "_")

    @property
    def expected(self) -> str:
        """What a value must be, in words that follow "must be"."""
        match self.kind:
            case "bool":
                return "true or false"
            case "choice":
                return _alternatives(self.choices)
            case "str":
                return f"text of {self.bounds}" if self.bounds else "text"
            case "list":
                return f"a list of these: {', '.join(self.choices)}" if self.choices else "a list of texts"
            case "tables":
                return "a list of tables"
            case "duration":
                bounds = f" ({self.bounds})" if self.bounds else ""
                return f"a duration such as 25s, 1m30s or 300ms, or a number of seconds{bounds}"
            case "int" | "float":
                number = "a whole number" if self.kind == "int" else "a number"
                return f"{number} ({self.bounds})" if self.bounds else number


def _alternatives(choices: tuple[str, ...]) -> str:
    return " or ".join(choice or "empty" for choice in choices)


def flags_of(section: type[Struct], table: str) -> Iterator[Flag]:
    """The settings of a section, and of the tables in it, in the order of its struct.

    :param table: the key of the section, "" for the whole configuration.
    """
    hints = get_type_hints(section, include_extras=True)
    for field in fields(section):
        key = f"{table}.{field.name}" if table else field.name
        annotated = hints[field.name]
        if isinstance(annotated, type) and issubclass(annotated, Struct):
            yield from flags_of(annotated, key)
            continue
        name = SHORT.get(key, key.removeprefix("node.").replace(".", "-").replace("_", "-"))
        kind, choices, meta = _described(annotated)
        unit = next((unit for end, unit in _UNITS.items() if field.name.endswith(end)), "")
        yield Flag(
            key=key,
            flag=f"--{name}" if kind != "tables" else "",
            variable=f"SPREAD_{name.upper().replace('-', '_')}",
            kind=kind,
            default=field.default,
            help=meta.get("description", ""),
            unit=unit,
            choices=choices,
            bounds=_bounds(meta, unit, _duration if kind == "duration" else _plain),
            type=annotated,
            is_secret=is_secret(annotated),
        )


def _described(annotated: Any) -> tuple[Kind, tuple[str, ...], dict[str, Any]]:
    """Kind, choices, and all that the ``Meta`` annotations of a field say, the last one winning."""
    type_, *metas = get_args(annotated)
    meta: dict[str, Any] = {}
    for one in metas:
        if isinstance(one, Meta):
            values = ((name, getattr(one, name)) for name in _META_NAMES)
            meta.update((name, value) for name, value in values if value is not None)
    if get_origin(type_) is tuple:
        item = get_args(type_)[0]
        choices = get_args(item) if get_origin(item) is Literal else ()
        return "list" if item is str or choices else "tables", choices, meta
    if get_origin(type_) is Literal:
        return "choice", get_args(type_), meta
    return "duration" if is_duration(annotated) else _KINDS[type_], (), meta


_META_NAMES = ("gt", "ge", "le", "min_length", "max_length", "description")
_KINDS: dict[Any, Kind] = {bool: "bool", float: "float", int: "int", str: "str"}


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def _duration(seconds: float) -> str:
    return "0" if seconds == 0 else format_duration(seconds)


def _bounds(meta: Mapping[str, Any], unit: str, shown: Callable[[float], str] = _plain) -> str:
    least = meta.get("ge", meta.get("min_length"))
    most = meta.get("le", meta.get("max_length"))
    words = []
    if least is not None:
        words.append(f"{shown(least)} or more" if most is None else f"{shown(least)} to {shown(most)}")
    else:
        if "gt" in meta:
            words.append(f"above {shown(meta['gt'])}")
        if most is not None:
            words.append(f"up to {shown(most)}")
    unit = "characters" if {"min_length", "max_length"} & meta.keys() else unit
    return f"{', '.join(words)} {unit}".strip() if words else ""


FLAGS: tuple[Flag, ...] = tuple(flags_of(Settings, ""))
"""Every setting, in the order of the structs."""


def options(function: _Function) -> _Function:
    """Add a click option for every setting to a command function.

    Each comes as a keyword argument named ``Flag.parameter``: a ``str`` (a ``bool`` for switches), or
    ``None`` when it was not given. ``given`` turns them into what ``spread.node.config.load`` takes.
    """
    for flag in reversed(FLAGS):
        if flag.flag:
            function = _option(flag)(function)
    return function


def given(parameters: Mapping[str, object]) -> dict[str, str | bool]:
    """From a command's keyword arguments, the settings that were given as flags, by key."""
    values = ((flag.key, parameters.get(flag.parameter)) for flag in FLAGS)
    found = ((key, " ".join(value) or None if isinstance(value, tuple) else value) for key, value in values)
    return {key: value for key, value in found if isinstance(value, str | bool)}


def _option(flag: Flag) -> Callable[[_Function], _Function]:
    variable = flag.variable if len(flag.variable) <= _LINE_CHARACTERS else ""
    facts = [f"default: {shown_default(flag)}", flag.bounds, variable]
    help = f"{flag.help}  [{'; '.join(fact for fact in facts if fact)}]"
    if flag.kind == "bool":
        names = f"{flag.flag}/--no-{flag.flag.removeprefix('--')}"
        return click.option(names, flag.parameter, default=None, help=help)
    return click.option(
        flag.flag,
        flag.parameter,
        type=click.STRING,
        default=None,
        multiple=flag.key in SEVERAL,
        metavar=_metavar(flag),
        help=help,
    )


def shown_default(flag: Flag) -> str:
    """The default of a setting as people write it; ``none`` for an empty one."""
    if flag.kind == "bool":
        return "yes" if flag.default else "no"
    if flag.kind == "duration" and isinstance(flag.default, float):
        return format_duration(flag.default)
    if isinstance(flag.default, float):
        return _plain(flag.default)
    return str(flag.default) if flag.default not in ("", ()) else "none"


def _metavar(flag: Flag) -> str:
    if flag.kind == "choice":
        return "|".join(filter(None, flag.choices))
    kinds = {"int": "N", "float": "N", "str": "TEXT", "duration": "DURATION", "list": "TEXT,..."}
    unit = flag.unit.upper() if flag.unit in ("seconds", "bytes") else ""
    return _METAVARS.get(flag.key) or unit or kinds[flag.kind]


class SettingsCommand(click.Command):
    """A command whose ``--help`` begins with examples and groups the settings by section."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("epilog", _EXIT_CODES)
        super().__init__(*args, **kwargs)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the command does, and how it is used most."""
        super().format_help_text(ctx, formatter)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(_HINTS)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options first, then a group for each section."""
        sections = {flag.parameter: flag.section for flag in FLAGS}
        groups: dict[str, list[tuple[str, str]]] = {"": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(sections.get(parameter.name or "", ""), []).append(_shortened(record))
        for section, records in groups.items():
            if records:
                is_long = any(len(names) > 50 for names, _ in records)
                with formatter.section(_heading(section)):
                    formatter.write_dl(records, col_max=6 if is_long else 30)


def _shortened(record: tuple[str, str]) -> tuple[str, str]:
    """A line of ``--help`` whose two names for a switch fit a terminal."""
    names, help = record
    flag, slash, _ = names.partition(" / --no-")
    return (f"{flag}{slash}..." if len(names) > 72 else names), help


def _heading(table: str) -> str:
    if not table:
        return "This command"
    struct: Any = Settings
    for name in table.split("."):
        struct = next(field.type for field in fields(struct) if field.name == name)
    return (struct.__doc__ or table).strip().splitlines()[0].removesuffix(".")


def example_toml() -> str:
    """A complete configuration file: every setting, explained, with its default."""
    lines = [
        "# The configuration of spread-node. Every setting is here, with its default.",
        "# The flag or the environment variable that is named with it wins over what stands here.",
    ]
    table = ""
    for flag in sorted(FLAGS, key=_place):
        if flag.table != table:
            table = flag.table
            lines += ["", f"# {_heading(table)}", f"[{table}]"]
        names = flag.flag or "in place of this line, as tables: [[channel.namespaces]]"
        names = f"{names}, {flag.variable}"
        choices = [choice for choice in flag.choices if choice]
        facts = [names, " or ".join(choices), flag.bounds]
        lines += ["", *(f"# {line}" for line in textwrap.wrap(flag.help, 98, break_on_hyphens=False))]
        words = "; ".join(fact for fact in facts if fact)
        lines += [f"#   {line}" for line in textwrap.wrap(words, 104, break_on_hyphens=False)]
        lines.append(f"{flag.field} = {_toml(flag)}")
    return "\n".join(lines) + "\n"


def _place(flag: Flag) -> tuple[int, int]:
    """Where a setting stands in a file: TOML has the values of a table before the tables within it."""
    sections = [field.name for field in fields(Settings)]
    tables = list(dict.fromkeys(each.table for each in FLAGS if each.section == flag.section))
    return sections.index(flag.section), (flag.table != flag.section) * (1 + tables.index(flag.table))


def _toml(flag: Flag) -> str:
    if flag.kind == "duration" and isinstance(flag.default, float):
        return json.dumps(format_duration(flag.default))
    if isinstance(flag.default, float | int) and flag.kind == "float":
        return repr(float(flag.default))
    # Strings, numbers, booleans and lists of JSON are those of TOML, but for DEL, which no default holds.
    return json.dumps(flag.default, ensure_ascii=False)
