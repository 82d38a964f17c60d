"""Patterns of channel names, as the server API's ``channels`` takes them.

    *       any text, also none          [abc] [a-z] [!a-z]     one character, or none of them
    ?       any one character            {news,chat:*}          one of several
    \\x      x itself                     ""                     every channel

``:`` and ``.`` are characters like all others. A pattern is made into one regular expression that cannot
backtrack: the time of a match is at most the product of both lengths, whatever the pattern.
"""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["MAX_ALTERNATIVES", "MAX_LENGTH", "BadPattern", "matching"]

MAX_LENGTH = 512
"""Characters of a pattern."""

MAX_ALTERNATIVES = 64
"""What the braces of a pattern may come to: ``{a,b}:{x,y}`` are four."""

_TOKEN = re.compile(
    r"""(?P<any>\*+) | (?P<one>\?) | (?P<begin>\{) | (?P<end>\}) | (?P<comma>,)
    | \[ (?P<but>!?) (?P<set>(?:\\.|[^\]\\])+) \]
    | \\(?P<escaped>.) | (?P<plain>[^\[\\])""",
    re.VERBOSE | re.DOTALL,
)

_STAR = ""
"""The token that stands for any text; all others are regular expressions of one character."""


class BadPattern(ValueError):
    """A pattern that cannot be read."""


def matching(pattern: str) -> Callable[[str], object]:
    """A function that gives something true for the names that match.

    :raises BadPattern: if it is too long, has too many alternatives, an unfinished ``[`` or ``{``, a ``}``
        too many, a range the wrong way round, or ends in a backslash.
    """
    if len(pattern) > MAX_LENGTH:
        raise BadPattern(f"longer than {MAX_LENGTH} characters")
    if not pattern:
        return lambda name: True
    alternatives = _alternatives(pattern)
    return re.compile("|".join(map(_expression, alternatives)), re.DOTALL).fullmatch


def _alternatives(pattern: str) -> list[list[str]]:
    """The pattern without braces: lists of tokens, one of which must match."""
    # Each open brace: what stood before it, and the finished branches.
    outer: list[tuple[list[list[str]], list[list[str]]]] = []
    branch: list[list[str]] = [[]]
    at = 0
    while at < len(pattern):
        token = _TOKEN.match(pattern, at)
        if token is None:
            raise BadPattern(f"cannot be read from character {at + 1} on")
        at = token.end()
        if token["begin"]:
            outer.append((branch, []))
            branch = [[]]
        elif token["end"]:
            if not outer:
                raise BadPattern("a } without its {")
            before, finished = outer.pop()
            finished += branch
            if len(before) * len(finished) > MAX_ALTERNATIVES:
                raise BadPattern(f"more than {MAX_ALTERNATIVES} alternatives")
            branch = [head + tail for head in before for tail in finished]
        elif token["comma"] and outer:
            outer[-1][1].extend(branch)
            branch = [[]]
        else:
            one = _one(token)
            for tokens in branch:
                tokens.append(one)
    if outer:
        raise BadPattern("a { without its }")
    return branch


def _one(token: re.Match[str]) -> str:
    if token["any"]:
        return _STAR
    if token["one"]:
        return "."
    if token["set"]:
        return f"[{'^' if token['but'] else ''}{_ranges(token['set'])}]"
    return re.escape(token["escaped"] or token["plain"] or token["comma"])


def _ranges(inside: str) -> str:
    """The inside of a set, as a regular expression has it."""
    characters = re.findall(r"\\.|.", inside, re.DOTALL)
    ranges = ""
    while characters:
        first = last = characters.pop(0)[-1]
        if characters[:1] == ["-"] and len(characters) > 1:
            last = characters[1][-1]
            del characters[:2]
            if last < first:
                raise BadPattern(f"the range {first}-{last} is the wrong way round")
        ranges += f"{re.escape(first)}-{re.escape(last)}"
    return ranges


def _expression(tokens: list[str]) -> str:
    """After a star the first place where what follows fits is as good as any later one: an atomic group keeps
    it, and nothing is tried twice."""
    head, *parts = _split(tokens)
    if not parts:
        return head
    *between, last = parts
    return head + "".join(f"(?>.*?{part})" for part in between) + f".*{last}"


def _split(tokens: list[str]) -> list[str]:
    parts = [""]
    for token in tokens:
        if token == _STAR:
            parts.append("")
        else:
            parts[-1] += token
    return parts
