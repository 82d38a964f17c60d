"""Durations: Go's syntax, or seconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spread.node.settings.kinds import format_duration, parse_duration

NANOSECONDS = 1_000_000_000
UNITS = {
    "ns": 1,
    "us": 1000,
    "µs": 1000,
    "μs": 1000,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("25s", 25),
        ("1m30s", 90),
        ("300ms", 0.3),
        ("1000ms", 1),
        ("720h", 2_592_000),
        ("1h1m1s1ms1us1ns", 3661.001001001),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("1.s", 1),
        ("-1s", -1),
        ("+1s", 1),
        ("0", 0),
        ("0s", 0),
        ("25", 25),
        ("-1", -1),
        ("0.25", 0.25),
        (" 25s\n", 25),
        ("1s1s", 2),
        ("30s1m", 90),
    ],
)
def test_what_a_duration_stands_for(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "1x",
        "1 s",
        "1S",
        "1d",
        "--1s",
        "1s-1s",
        "s1",
        ".s",
        "1e3s",
        "1e3",
        "nan",
        "inf",
        "١s",
        "1_0s",
    ],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="a duration is written 25s, 1m30s, 300ms or 720h, or is a number"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["9223372036854775808ns", "2562048h", "-2562048h", "9" * 60 + "s"])
def test_a_duration_has_an_end(text: str) -> None:
    with pytest.raises(ValueError, match="at most 292 years"):
        parse_duration(text)


def test_a_long_text_is_not_looked_at() -> None:
    with pytest.raises(ValueError, match="is written 25s"):
        parse_duration("1s" * 1_000_000)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (25.0, "25s"),
        (90, "1m30s"),
        (0.3, "300ms"),
        (2_592_000, "720h"),
        (0, "0s"),
        (-1, "-1s"),
        (0.000001, "1us"),
        (1e-9, "1ns"),
    ],
)
def test_how_a_duration_is_shown(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(-(1 << 51), 1 << 51))
def test_what_is_shown_can_be_read(nanoseconds: int) -> None:
    seconds = nanoseconds / NANOSECONDS
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.lists(st.tuples(st.integers(0, 999), st.sampled_from(sorted(UNITS))), min_size=1, max_size=8))
def test_parts_are_added(parts: list[tuple[int, str]]) -> None:
    text = "".join(f"{count}{unit}" for count, unit in parts)
    whole = sum(count * UNITS[unit] for count, unit in parts)
    assert parse_duration(text) == whole / NANOSECONDS


@given(st.text() | st.text("0123456789.-+hmsnuµ e", max_size=12))
def test_any_text_is_a_duration_or_not(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        assert "a duration is" in str(error)
    else:
        assert abs(seconds) < 293 * 366 * 86400
