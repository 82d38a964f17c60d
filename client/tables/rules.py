"""What holds for the cells of a column besides their type: the third header row.

    key              the values name the rows: in every row, and no two the same
    unique           no two are the same
    required         no cell is blank
    1..100  1..  ..100    numbers from here to there, both included; of a text, its length
    default VALUE    what a blank cell means; the last rule of a cell, since it takes all that follows

Several have commas, or line breaks, between them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from spread.client.tables.kinds import Kind, List, Unfit, Value, shown

__all__ = ["BadRule", "Rules", "default_of", "parse_rules", "violated"]

_DEFAULT = re.compile(r"(?:^|[,;\n])\s*default\b\s*[:=]?(.*)\Z", re.IGNORECASE | re.DOTALL)
_NUMBER = r"[+-]?\d+(?:\.\d+)?"
_BOUNDS = re.compile(rf"({_NUMBER})?\s*(?:\.\.\.?|…)\s*({_NUMBER})?", re.ASCII)


class BadRule(Exception):
    """The third header row holds something that is no rule, or none for this column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of one column."""

    key: bool = False
    unique: bool = False
    required: bool = False
    bounds: str = ""
    """As they are written; "" without any."""
    least: float | None = None
    most: float | None = None
    default: str | None = None
    """As it is written; ``None`` without one. What it stands for, ``default_of`` knows."""

    @property
    def is_unique(self) -> bool:
        """No value may come twice."""
        return self.key or self.unique


def parse_rules(text: str, kind: Kind) -> Rules:
    """The rules of a column of this kind.

    :raises BadRule: one is none, or does not go with the others or the kind.
    """
    words: set[str] = set()
    bounds, least, most = "", None, None
    default = _DEFAULT.search(text)
    for part in re.split(r"[,;\n]", text[: default.start()] if default else text):
        word = part.strip()
        if match := _BOUNDS.fullmatch(word):
            if bounds or not (match[1] or match[2]):
                raise BadRule(f"{shown(word)} is a second range, or has neither end")
            bounds = word
            least, most = (float(end) if end else None for end in match.groups())
            if least is not None and most is not None and least > most:
                raise BadRule(f"nothing is in {word}")
        elif word.lower() in ("key", "unique", "required"):
            words.add(word.lower())
        elif word:
            raise BadRule(
                f"{shown(word)} is no rule; there are key, unique, required, 1..100 and default VALUE"
            )
    if bounds and not kind.has_bounds:
        raise BadRule(f"{bounds} is for numbers and texts, and this is {kind.spelled}")
    if "key" in words and not kind.can_be_key:
        raise BadRule(f"{kind.spelled} cannot be a key")
    if "unique" in words and isinstance(kind, List):
        raise BadRule("unique is not for lists")
    if default and words:
        raise BadRule(f"default does not go with {' and '.join(sorted(words))}")
    if default and not default[1].strip():
        raise BadRule("default what? A value comes after it")
    return Rules(
        key="key" in words,
        unique="unique" in words,
        required="required" in words,
        bounds=bounds,
        least=least,
        most=most,
        default=default[1].strip() if default else None,
    )


def default_of(rules: Rules, kind: Kind) -> Value:
    """What a blank cell of a column means; the columns that it refers to must be known.

    :raises BadRule: the default is no value of the column.
    """
    if rules.default is None:
        return kind.blank()
    try:
        value = kind.read(rules.default)
    except Unfit as error:
        raise BadRule(f"default {rules.default}: {error}") from None
    if why := violated(rules, kind, value):
        raise BadRule(f"default {rules.default}: {why}")
    return value


def violated(rules: Rules, kind: Kind, value: Value) -> str:
    """How a value is out of the bounds of its column; "" if it is not."""
    if isinstance(kind, List):
        assert isinstance(value, list)
        told = (violated(rules, kind.inner, each) for each in value)
        return next((text for text in told if text), "")
    if not rules.bounds:
        return ""
    measured = kind.measure(value)
    what = shown(value) if not isinstance(value, str) else f"{shown(value)} has {measured:g} characters: it"
    is_text = isinstance(value, str)
    if rules.least is not None and measured < rules.least:
        return f"{what} is {'too short' if is_text else f'less than {rules.least:g}'}"
    if rules.most is not None and measured > rules.most:
        return f"{what} is {'too long' if is_text else f'more than {rules.most:g}'}"
    return ""
