"""What the cells of a column hold: the second header row, and how a cell becomes a value of JSON.

    int  float  str  bool  enum(a|b)  ref(SHEET)  ref(SHEET.COLUMN)  list[any of these]

A spreadsheet program guesses what was typed, so a cell is read by what its column says: a text ``5`` is a
number in a column of numbers, a number 1001 is a text in a column of texts. What a program has turned into
something else, such as a date, is told, never taken.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import date, time, timedelta

__all__ = [
    "Bool",
    "Enum",
    "Float",
    "Int",
    "Kind",
    "List",
    "NoKind",
    "Ref",
    "Str",
    "Unfit",
    "Value",
    "parse_kind",
]

Value = bool | int | float | str | list["Value"] | None
"""A value of JSON."""

INT_MAX = 2**53
"""Above it neither a spreadsheet nor JavaScript knows every whole number."""

_INT = re.compile(r"[+-]?\d{1,16}(\.0*)?", re.ASCII)
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_WORD = re.compile(r"\w+", re.ASCII)
_REF = re.compile(r"ref\s*\(\s*(\w+)\s*(?:\.\s*(\w+)\s*)?\)", re.IGNORECASE | re.ASCII)
_LIST = re.compile(r"list\s*[\[(](.+)[\])]", re.IGNORECASE)
_ENUM = re.compile(r"enum\s*\((.*)\)", re.IGNORECASE)
_BOOLS = {"true": True, "yes": True, "false": False, "no": False}
_SHOWN_CHARACTERS = 60


class Unfit(Exception):
    """A cell is not what its column says; the text says what it is."""


class NoKind(Exception):
    """The second header row holds something that is no type."""


class Kind(ABC):
    """What a column holds."""

    spelled: str
    """As it is written in a header, and in the files."""
    is_blankable = False
    """A blank cell is a value, not the want of one."""
    has_bounds = False
    can_be_key = False

    @abstractmethod
    def read(self, cell: object) -> Value:
        """The value of a cell that is not blank.

        :raises Unfit: it is none.
        """

    def blank(self) -> Value:
        """The value of a blank cell."""
        return None

    def measure(self, value: Value) -> float:
        """What the bounds of a column apply to: it has some only where ``has_bounds`` says so."""
        raise TypeError(f"{self.spelled} has no bounds")


class Int(Kind):
    """A whole number."""

    spelled = "int"
    has_bounds = True
    can_be_key = True

    def read(self, cell: object) -> int:
        """See ``Kind.read``."""
        if isinstance(cell, str) and _INT.fullmatch(cell):
            cell = float(cell) if "." in cell else int(cell)
        if isinstance(cell, bool) or not isinstance(cell, int | float) or cell != math.floor(cell):
            raise Unfit(f"{shown(cell)} is no whole number")
        if abs(cell) > INT_MAX:
            raise Unfit(
                f"{shown(cell)} is beyond {INT_MAX}, up to which spreadsheets know every whole number"
            )
        return int(cell)

    def measure(self, value: Value) -> float:
        """See ``Kind.measure``."""
        assert isinstance(value, int)
        return value


class Float(Kind):
    """A number."""

    spelled = "float"
    has_bounds = True

    def read(self, cell: object) -> float:
        """See ``Kind.read``."""
        if isinstance(cell, str) and _FLOAT.fullmatch(cell):
            cell = float(cell)
        if isinstance(cell, bool) or not isinstance(cell, int | float) or not math.isfinite(cell):
            raise Unfit(f"{shown(cell)} is no number")
        return float(cell)

    def measure(self, value: Value) -> float:
        """See ``Kind.measure``."""
        assert isinstance(value, float)
        return value


class Str(Kind):
    """A text. Its bounds are those of its length."""

    spelled = "str"
    is_blankable = True
    has_bounds = True
    can_be_key = True

    def read(self, cell: object) -> str:
        """See ``Kind.read``."""
        if isinstance(cell, bool):
            return "TRUE" if cell else "FALSE"
        if isinstance(cell, int | float):
            return str(int(cell)) if cell == math.floor(cell) else repr(cell)
        if not isinstance(cell, str):
            raise Unfit(f"{shown(cell)} is no text; format the column as text, and type it again")
        return cell

    def blank(self) -> Value:
        """See ``Kind.blank``."""
        return ""

    def measure(self, value: Value) -> float:
        """See ``Kind.measure``."""
        assert isinstance(value, str)
        return len(value)


class Bool(Kind):
    """Yes or no."""

    spelled = "bool"

    def read(self, cell: object) -> bool:
        """See ``Kind.read``."""
        known = _BOOLS.get(cell.lower()) if isinstance(cell, str) else None
        if cell in (True, False):  # 1 and 0 too
            known = bool(cell)
        if known is None:
            raise Unfit(f"{shown(cell)} is neither TRUE nor FALSE")
        return known


class Enum(Kind):
    """One of some words."""

    can_be_key = True

    def __init__(self, choices: Sequence[str]) -> None:
        self.choices = tuple(choices)
        self.spelled = f"enum({'|'.join(choices)})"

    def read(self, cell: object) -> str:
        """See ``Kind.read``."""
        text = Str().read(cell)
        if text not in self.choices:
            raise Unfit(f"{shown(text)} is none of {', '.join(self.choices)}")
        return text


class Ref(Kind):
    """A value of another column.

    :param column: "" is the key of that sheet.
    """

    can_be_key = True

    def __init__(self, table: str, column: str) -> None:
        self.table = table
        self.column = column
        self.target: Kind | None = None
        """What the other column holds; ``None`` until that is known."""

    @property
    def spelled(self) -> str:  # type: ignore[override]
        """See ``Kind.spelled``."""
        return f"ref({self.table}.{self.column})" if self.column else f"ref({self.table})"

    def read(self, cell: object) -> Value:
        """See ``Kind.read``."""
        if self.target is None:
            raise Unfit(f"{self.table} has no such column")
        return self.target.read(cell)


class List(Kind):
    """Several values in a cell, with ``;`` or line breaks between them. Bounds are those of each."""

    is_blankable = True

    def __init__(self, inner: Kind) -> None:
        self.inner = inner
        self.has_bounds = inner.has_bounds

    @property
    def spelled(self) -> str:  # type: ignore[override]
        """See ``Kind.spelled``."""
        return f"list[{self.inner.spelled}]"

    def read(self, cell: object) -> Value:
        """See ``Kind.read``."""
        if not isinstance(cell, str):
            return [self.inner.read(cell)]
        parts = [part.strip() for part in re.split(r"[;\n]", cell)]
        if not parts[-1]:  # one ; at the end is no harm
            parts.pop()
        values = []
        for part in parts:
            if not part:
                raise Unfit("there is nothing between two ;")
            try:
                values.append(self.inner.read(part))
            except Unfit as error:
                hint = "; put ; between values" if "," in part and not isinstance(self.inner, Str) else ""
                raise Unfit(f"{error}{hint}") from None
        return values

    def blank(self) -> Value:
        """See ``Kind.blank``."""
        return []


_PLAIN: dict[str, Callable[[], Kind]] = {"int": Int, "float": Float, "str": Str, "bool": Bool}


def parse_kind(text: str) -> Kind:
    """The kind that the second header row asks for.

    :raises NoKind: it is none, with a sentence that says how one is written.
    """
    text = text.strip()
    if text.lower() in _PLAIN:
        return _PLAIN[text.lower()]()
    if match := _REF.fullmatch(text):
        return Ref(match[1], match[2] or "")
    if match := _ENUM.fullmatch(text):
        choices = [choice.strip() for choice in match[1].split("|")]
        if len(set(choices)) < len(choices) or not all(choices):
            raise NoKind(f"{shown(text)} has a choice twice, or an empty one")
        if any(character in choice for choice in choices for character in ";\n()"):
            raise NoKind(f"{shown(text)} has a choice with a ; or a bracket in it")
        return Enum(choices)
    if match := _LIST.fullmatch(text):
        inner = parse_kind(match[1])
        if isinstance(inner, List):
            raise NoKind("a list of lists does not fit into a cell")
        return List(inner)
    raise NoKind(
        f"{shown(text)} is no type; there are int, float, str, bool, enum(a|b), ref(SHEET.COLUMN), list[TYPE]"
        if text
        else "there is no type; write int, float, str, bool, enum(a|b), ref(SHEET.COLUMN) or list[TYPE]"
    )


def shown(cell: object) -> str:
    """A cell in the words of an error."""
    if isinstance(cell, bool):
        return str(cell).upper()
    if isinstance(cell, date | time | timedelta):
        return f"{cell} (a date or time)"
    text = str(cell)
    short = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    return repr(short) if isinstance(cell, str) else short
