"""Typed lines: splitting, commands, and what is kept."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spread.client.lines import (
    KEPT_MAX_BYTES,
    KEPT_MAX_LINES,
    KeptLines,
    LineSplitter,
    channel_of,
    is_close,
    message_of,
)


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_lines_do_not_depend_on_how_the_bytes_arrive(data: bytes, cuts: list[int]) -> None:
    splitter = LineSplitter(1000)
    lines: list[bytes | None] = []
    places = [0, *sorted(cuts), len(data)]
    for start, end in pairwise(places):
        lines += splitter.feed(data[start:end])
    lines += splitter.end()
    assert lines == data.removesuffix(b"\n").split(b"\n") * bool(data)


def test_a_line_above_the_maximum_is_told_once_and_the_next_is_whole() -> None:
    splitter = LineSplitter(4)
    assert splitter.feed(b"1234\n12345\nab") == [b"1234", None]
    assert splitter.feed(b"cde") == []
    assert splitter.feed(b"f\nok\n") == [None, b"ok"]
    assert splitter.end() == []


def test_a_last_line_above_the_maximum_is_told_too() -> None:
    splitter = LineSplitter(4)
    assert splitter.feed(b"12345") == []
    assert splitter.end() == [None]
    assert splitter.end() == []


def test_an_endless_line_takes_no_memory() -> None:
    splitter = LineSplitter(100)
    for _ in range(50):
        assert splitter.feed(b"x" * 60) == []
        assert len(splitter._partial) <= 100


@pytest.mark.parametrize(
    ("line", "channel"),
    [
        (b"/join game", b"game"),
        (b"/join   game 7 \r", b"game 7"),
        (b"/join", b""),
        (b"/join \r", b""),
        (b"/joinery", None),
        (b" /join game", None),
        (b"join game", None),
        (b"", None),
    ],
)
def test_what_joins_a_channel(line: bytes, channel: bytes | None) -> None:
    assert channel_of(line) == channel


def test_only_the_whole_line_closes() -> None:
    assert [is_close(line) for line in (b"close", b"close\r", b"close ", b" close", b"closed", b"")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_a_message_says_who_speaks_and_a_command_does_not() -> None:
    assert message_of("张三", b"\xff hi\r") == "张三: ".encode() + b"\xff hi\r\n"
    assert message_of("bob", b"") == b"bob: \n"
    assert message_of("bob", b"/join x") == b"/join x\n"
    assert message_of("bob", b" /join x") == b"bob:  /join x\n"


def test_the_oldest_are_given_up_above_the_number_of_lines() -> None:
    kept = KeptLines()
    for number in range(KEPT_MAX_LINES + 2):
        kept.append(b"%d" % number)
    assert list(kept.give_up()) == [b"0", b"1"]
    assert len(kept) == KEPT_MAX_LINES
    assert kept.popleft() == b"2"


def test_the_oldest_are_given_up_above_the_number_of_bytes() -> None:
    kept = KeptLines()
    kept.append(b"first")
    for _ in range(KEPT_MAX_BYTES // 65536):
        kept.append(b"x" * 65536)
    assert list(kept.give_up()) == [b"first"]
    kept.popleft()
    kept.append(b"y" * 65536)
    assert list(kept.give_up()) == []
