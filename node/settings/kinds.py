"""Kinds of values that settings have besides numbers, texts and switches. Values only.

A duration is written as Centrifugo has it (``25s``, ``1m30s``, ``300ms``, ``720h``: Go's syntax), or as a
plain number of seconds; the structs hold seconds. A secret is a text that is never shown: not in the repr of
a section, not in an error, not in a log.
"""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cache
from typing import Annotated, Any, get_args, get_type_hints

from msgspec import Meta, Struct

__all__ = [
    "DAY_SECONDS",
    "YEAR_SECONDS",
    "Duration",
    "Secret",
    "Section",
    "format_duration",
    "is_duration",
    "is_secret",
    "parse_duration",
]

DAY_SECONDS = 86400
YEAR_SECONDS = 365 * DAY_SECONDS

Duration = Annotated[float, Meta(extra={"duration": True})]
"""Seconds in the structs; Go's syntax, or seconds, where people write it."""
Secret = Annotated[str, Meta(extra={"secret": True})]

_NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,  # the micro sign
    "\u03bcs": 1_000,  # the Greek letter
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_PART = r"(\d+\.?\d*|\.\d+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)"
_PARTS = re.compile(_PART, re.ASCII)
_DURATION = re.compile(rf"([-+]?)((?:{_PART})+)", re.ASCII)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)", re.ASCII)
_MAX_NANOSECONDS = (1 << 63) - 1
"""What Go can hold, about 292 years."""
_MAX_CHARACTERS = 64


def parse_duration(text: str) -> float:
    """Seconds that a text stands for: ``1m30s``, ``300ms``, ``-1s``, or a plain number of seconds.

    :raises ValueError: it is none, with a sentence that says how one is written.
    """
    word = text.strip()
    whole = None
    if len(word) <= _MAX_CHARACTERS:
        if _NUMBER.fullmatch(word):
            whole = Decimal(word) * 1_000_000_000
        elif match := _DURATION.fullmatch(word):
            whole = sum(
                (Decimal(number) * _NANOSECONDS[unit] for number, unit in _PARTS.findall(match[2])), Decimal()
            )
            whole = -whole if match[1] == "-" else whole
    if whole is None:
        raise ValueError("a duration is written 25s, 1m30s, 300ms or 720h, or is a number of seconds")
    if abs(whole) > _MAX_NANOSECONDS:
        raise ValueError("a duration is at most 292 years")
    return int(whole.to_integral_value(ROUND_HALF_EVEN)) / 1_000_000_000


def format_duration(seconds: float) -> str:
    """The shortest usual way to write a duration: ``25s``, ``1m30s``, ``300ms``, ``720h``."""
    left = round(abs(seconds) * 1_000_000_000)
    if left == 0:
        return "0s"
    words = "-" if seconds < 0 else ""
    for unit in ("h", "m", "s", "ms", "us", "ns"):
        count, left = divmod(left, _NANOSECONDS[unit])
        words += f"{count}{unit}" if count else ""
    return words


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all sections are: values that cannot be changed, and whose repr shows no secret."""

    def __repr__(self) -> str:
        hidden = _hidden(type(self))
        shown = (
            f"{name}='***'" if name in hidden and value else f"{name}={value!r}"
            for name in self.__struct_fields__
            for value in [getattr(self, name)]
        )
        return f"{type(self).__name__}({', '.join(shown)})"


@cache
def _hidden(section: type[Struct]) -> frozenset[str]:
    hints = get_type_hints(section, include_extras=True)
    return frozenset(name for name, hint in hints.items() if is_secret(hint))


def is_secret(annotated: Any) -> bool:
    """Whether values of this annotated type are never shown."""
    return _has(annotated, "secret")


def is_duration(annotated: Any) -> bool:
    """Whether values of this annotated type are written as durations."""
    return _has(annotated, "duration")


def _has(annotated: Any, mark: str) -> bool:
    metas = (meta for meta in get_args(annotated)[1:] if isinstance(meta, Meta))
    return any(mark in (meta.extra or {}) for meta in metas)
