"""One value of a configuration: from how it was written to the type of its setting, or why that cannot be.

No message holds a secret: neither the value of a setting that is one, nor a password of a URL that was given
where it does not belong.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from spread.node.config.flags import SEVERAL, Flag
from spread.node.logs import one_line
from spread.node.settings.kinds import parse_duration

__all__ = ["ConfigError", "checked", "converted", "parse_json", "reason", "shown", "shown_key"]

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_SHOWN_MAX_CHARACTERS = 80


class ConfigError(ValueError):
    """A configuration that cannot be used. Its text is one line for the person who wrote it.

    :param more: what else is wrong, and was found with it.
    """

    def __init__(self, source: str, problem: str, more: Sequence[ConfigError] = ()) -> None:
        super().__init__(source, problem)
        self.source = source
        """Where it is wrong: a key of a file, a variable, a flag."""
        self.problem = problem
        """What is wrong, and what to do."""
        self.more = tuple(more)

    def __str__(self) -> str:
        return one_line(f"{self.source}: {self.problem}")


def converted(flag: Flag, text: str, origin: str) -> Any:
    """What a text from the environment or a flag stands for, checked; of ``tables``, what its JSON holds.

    :raises ConfigError: it cannot be used.
    """
    value: object = text
    word = text.strip()
    try:
        if flag.kind == "int":
            value = int(word)
        elif flag.kind == "float":
            value = float(word)
        elif flag.kind == "bool":
            value = True if word.lower() in _TRUE else False if word.lower() in _FALSE else text
        elif flag.kind in ("list", "tables") and word.startswith(("[", "{")):
            value = parse_json(word)
        elif flag.kind in ("list", "tables"):
            value = re.split(r"[,\s]+", word) if word else []
    except (ValueError, RecursionError):
        pass  # left as text, and refused as such below
    if flag.kind == "bool" and not isinstance(value, bool):
        raise ConfigError(origin, f"must be true or false (or yes, no, on, off, 1, 0), not {shown(text)}")
    if flag.kind == "tables":
        if not isinstance(value, list):
            raise ConfigError(origin, f"must be a list of tables in JSON, not {shown(text)}")
        return [{"name": item} if isinstance(item, str) else item for item in value]
    return checked(flag, value, origin, text)


def checked(flag: Flag, value: object, origin: str, given: object) -> Any:
    """The value in the type of its setting.

    :param given: how it was written, for the error.
    :raises ConfigError: it cannot be used.
    """
    if any("\ud800" <= character <= "\udfff" for text in _texts(value) for character in text):
        raise ConfigError(origin, "is not valid UTF-8 text")
    if flag.key in SEVERAL and isinstance(value, list) and value and _texts(value) == value:
        value = " ".join(value)
    if flag.kind == "list" and isinstance(value, list):
        # The item that is wrong says more than the whole.
        choices = flag.choices
        wrong_items = (
            item for item in value if not isinstance(item, str) or (choices and item not in choices)
        )
        given = next(wrong_items, given)
    wrong = ConfigError(origin, f"must be {flag.expected}, not {'this' if flag.is_secret else shown(given)}")
    if flag.kind == "duration" and isinstance(value, str):
        try:
            value = parse_duration(value)
        except ValueError:
            raise wrong from None
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong
    try:
        return msgspec.convert(value, flag.type)
    except msgspec.ValidationError:
        raise wrong from None


def _texts(value: object) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str)]


def parse_json(text: str) -> object:
    """A JSON value whose objects have each name once.

    :raises ValueError: it is none.
    :raises RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shown_key(twice)} is there twice")
    return unique


def shown(value: object) -> str:
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


def shown_key(key: str) -> str:
    """A key in an error line."""
    return shown(key)[1:-1]


def reason(error: OSError | ValueError) -> str:
    """Why a file cannot be used."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
