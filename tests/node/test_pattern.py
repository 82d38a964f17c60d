"""Patterns of channel names."""

from __future__ import annotations

import time

import pytest

from spread.node.pattern import MAX_ALTERNATIVES, MAX_LENGTH, BadPattern, matching


@pytest.mark.parametrize(
    ("pattern", "fits", "not_so"),
    [
        ("", ["", "a", "room:1"], []),
        ("room", ["room"], ["Room", "room1", "aroom", "room\n"]),
        ("room:*", ["room:1", "room:", "room:a:b.c", "room:\n"], ["room", "xroom:1"]),
        ("a*b*c", ["abc", "aXbXc", "abcbc", "abbc"], ["ab", "acb", "abcd"]),
        ("**", ["", "x"], []),
        ("*a", ["a", "ba", "aa"], ["ab"]),
        ("a?c", ["abc", "a:c", "a\nc"], ["ac", "abbc"]),
        ("[a-c0]x", ["ax", "bx", "0x"], ["dx", "-x", "x"]),
        ("[!a-c]x", ["dx", "-x"], ["ax", "bx"]),
        ("[-a]", ["-", "a"], ["b"]),
        ("[a-]", ["-", "a"], ["b"]),
        (r"[\]\-]", ["]", "-"], ["\\", "a"]),
        ("[*?{,}^&&~~||]", ["*", "?", "{", ",", "}", "^", "&", "~", "|"], ["a", ""]),
        ("[[]", ["["], ["]"]),
        ("[!]", ["!"], ["a"]),
        ("{news,chat:*}", ["news", "chat:", "chat:1"], ["new", "chat", "news,chat:1"]),
        ("{a,b}:{x,}", ["a:x", "b:", "b:x"], ["a", "c:x"]),
        ("*:{x,y{1,2}}", ["q:x", "q:y1", "q:y2"], ["q:y", "q:x1"]),
        ("a,b", ["a,b"], ["a", "b"]),
        (r"\*\\\{", ["*\\{"], ["x"]),
        (".+(x)$^", [".+(x)$^"], ["aax"]),
        ("комната:*", ["комната:1"], ["room:1"]),
    ],
)
def test_what_fits(pattern: str, fits: list[str], not_so: list[str]) -> None:
    matches = matching(pattern)
    assert [name for name in fits if not matches(name)] == []
    assert [name for name in not_so if matches(name)] == []


@pytest.mark.parametrize(
    "pattern",
    ["[", "[]", "a]b[", "{", "}", "{a", "a}", "\\", "[z-a]", "[a--b]", "x" * (MAX_LENGTH + 1)],
)
def test_what_cannot_be_read(pattern: str) -> None:
    with pytest.raises(BadPattern):
        matching(pattern)


def test_alternatives_are_bounded() -> None:
    several = "{a,b}" * 6
    assert MAX_ALTERNATIVES == 2**6
    assert matching(several)("ababab")
    for pattern in ("{a,b}" * 7, "{" + ",".join("x" * (MAX_ALTERNATIVES + 1)) + "}", "{{{{a,b}" * 50):
        with pytest.raises(BadPattern):
            matching(pattern)


def test_no_pattern_takes_long() -> None:
    began = time.process_time()
    assert not matching("*a" * (MAX_LENGTH // 2))("a" * 255)
    assert not matching("*a" * 120 + "b")("a" * 255)
    assert not matching("{a*,*a}{a*,*a}{a*,*a}{a*,*a}{a*,*a}{a*,*a}b")("a" * 255)
    assert time.process_time() - began < 2
