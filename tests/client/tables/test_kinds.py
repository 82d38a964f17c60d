"""Types and rules of columns, and what their cells are read as."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from spread.client.tables.kinds import List, NoKind, Ref, Unfit, parse_kind
from spread.client.tables.rules import BadRule, default_of, parse_rules, violated


@pytest.mark.parametrize(
    ("kind", "cell", "value"),
    [
        ("int", 5, 5),
        ("int", 5.0, 5),
        ("int", " 5".strip(), 5),
        ("INT", "-5.0", -5),
        ("int", 2**53, 2**53),
        ("float", 5, 5.0),
        ("float", "1e3", 1000.0),
        ("float", ".5", 0.5),
        ("str", "a, b", "a, b"),
        ("str", 1001, "1001"),
        ("str", 1001.0, "1001"),
        ("str", 1.5, "1.5"),
        ("str", True, "TRUE"),
        ("bool", True, True),
        ("bool", "no", False),
        ("bool", "Yes", True),
        ("bool", 0, False),
        ("enum(a|b c)", "b c", "b c"),
        ("Enum ( 1 | 2 )", 2, "2"),
        ("list[int]", "1; 2;3", [1, 2, 3]),
        ("list[int]", "1\n2\n", [1, 2]),
        ("list[int]", 7, [7]),
        ("list(str)", "a, b; c", ["a, b", "c"]),
        ("list[enum(a|b)]", "b;a", ["b", "a"]),
    ],
)
def test_cells_are_read(kind: str, cell: object, value: Any) -> None:
    read = parse_kind(kind).read(cell)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("kind", "cell", "why"),
    [
        ("int", 5.5, "5.5 is no whole number"),
        ("int", "five", "'five' is no whole number"),
        ("int", True, "TRUE is no whole number"),
        ("int", date(2026, 1, 2), r"2026-01-02 \(a date or time\) is no whole number"),
        ("int", 2**53 + 2, "beyond 9007199254740992"),
        ("int", "٣", "no whole number"),
        ("float", "nan", "'nan' is no number"),
        ("float", "1,5", "'1,5' is no number"),
        ("float", "1e999", "no number"),
        ("float", False, "FALSE is no number"),
        ("str", date(2026, 1, 2), "format the column as text"),
        ("bool", 2, "neither TRUE nor FALSE"),
        ("bool", "maybe", "neither TRUE nor FALSE"),
        ("enum(a|b)", "c", "'c' is none of a, b"),
        ("list[int]", "1;;2", "nothing between two ;"),
        ("list[int]", "1,2", "'1,2' is no whole number; put ; between values"),
        ("list[int]", "1;x", "'x' is no whole number$"),
        ("int", "x" * 100, "x…"),
    ],
)
def test_cells_that_do_not_fit(kind: str, cell: object, why: str) -> None:
    with pytest.raises(Unfit, match=why):
        parse_kind(kind).read(cell)


def test_references_are_written_with_their_column() -> None:
    whole, short = parse_kind("ref(mobs.name)"), parse_kind("list[ ref( mobs ) ]")
    assert isinstance(whole, Ref) and (whole.table, whole.column) == ("mobs", "name")
    assert isinstance(short, List) and isinstance(short.inner, Ref) and short.inner.column == ""
    assert whole.spelled == "ref(mobs.name)"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "there is no type; write int"),
        ("number", "'number' is no type; there are int, float"),
        ("list[list[int]]", "a list of lists"),
        ("list[what]", "'what' is no type"),
        ("enum()", "an empty one"),
        ("enum(a|a)", "a choice twice"),
        ("enum(a;b|c)", "with a ; or a bracket"),
        ("ref(a.b.c)", "is no type"),
    ],
)
def test_what_is_no_type(text: str, why: str) -> None:
    with pytest.raises(NoKind, match=why):
        parse_kind(text)


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("", "int", (False, False, False, None, None, None)),
        ("key", "str", (True, False, False, None, None, None)),
        ("Unique; required", "int", (False, True, True, None, None, None)),
        ("1..100", "int", (False, False, False, 1, 100, None)),
        ("required\n-1.5 ..", "float", (False, False, True, -1.5, None, None)),
        ("..8", "list[str]", (False, False, False, None, 8, None)),
        ("0..9, default 5", "int", (False, False, False, 0, 9, 5)),
        ("default: a, b; c", "str", (False, False, False, None, None, "a, b; c")),
        ("default = 1;2", "list[int]", (False, False, False, None, None, [1, 2])),
    ],
)
def test_rules_are_read(text: str, kind: str, expected: tuple[Any, ...]) -> None:
    column = parse_kind(kind)
    rules = parse_rules(text, column)
    default = default_of(rules, column) if rules.default is not None else None
    assert (rules.key, rules.unique, rules.required, rules.least, rules.most, default) == expected


@pytest.mark.parametrize(
    ("text", "kind", "why"),
    [
        ("big", "int", "'big' is no rule; there are key, unique"),
        ("1..", "bool", "1.. is for numbers and texts, and this is bool"),
        ("9..1", "int", "nothing is in 9..1"),
        ("1..2, 3..4", "int", "a second range"),
        ("..", "int", "neither end"),
        ("key", "float", "float cannot be a key"),
        ("unique", "list[int]", "not for lists"),
        ("required, default 1", "int", "default does not go with required"),
        ("default", "int", "default what"),
    ],
)
def test_what_is_no_rule(text: str, kind: str, why: str) -> None:
    with pytest.raises(BadRule, match=why):
        parse_rules(text, parse_kind(kind))


@pytest.mark.parametrize(
    ("text", "why"), [("default x", "no whole number"), ("1..2, default 3", "more than")]
)
def test_a_default_obeys_its_column(text: str, why: str) -> None:
    kind = parse_kind("int")
    with pytest.raises(BadRule, match=why):
        default_of(parse_rules(text, kind), kind)


def test_bounds_are_of_the_length_of_texts_and_of_each_value_of_lists() -> None:
    text, numbers = parse_kind("str"), parse_kind("list[int]")
    rules = parse_rules("2..3", text)
    assert not violated(rules, text, "abc")
    assert violated(rules, text, "a") == "'a' has 1 characters: it is too short"
    assert "too long" in violated(rules, text, "abcd")
    assert violated(parse_rules("2..3", numbers), numbers, [2, 3, 4, 1]) == "4 is more than 3"
    assert violated(parse_rules("2..", numbers), numbers, [2, 1]) == "1 is less than 2"
