"""The books that bots keep: what became of their commands, and how punctual ticks were. No Twisted.

See ``bots.py`` for what the numbers mean.
"""

from __future__ import annotations

import math
import re
import sys
import urllib.request
from collections import Counter
from typing import Any

import msgspec

TICK_MS = 50.0


class Seen(msgspec.Struct):
    """What the books need of a state; the rest is passed over, which is quick."""

    tick: int
    time: float
    epoch: int
    rules: str


class Page:
    """Of one player."""

    def __init__(self) -> None:
        self.done = self.epoch = 0
        self.doubt = 0
        """Commands that may have been done or not."""


class Books:
    """What all bots have seen."""

    def __init__(self) -> None:
        self.answered = self.lost = self.doubled = self.fallen_back = self.unknown = self.refused = 0
        self.fell_by = 0
        self.disconnects: list[str] = []
        self.states = 0
        self.rules: Counter[str] = Counter()
        self.gaps: list[float] = []
        self.round_trips: list[float] = []
        self.jitter: list[float] = []
        self.errors: Counter[str] = Counter()
        self.ticks: dict[str, Seen] = {}
        self.late_p99: float | None = None

    def answer(self, page: Page, done: int, epoch: int) -> None:
        """A command was answered: so many are done for the player, says the owner of this epoch."""
        self.answered += 1
        missing, surplus = page.done + 1 - done, done - (page.done + 1 + page.doubt)
        if missing > 0 and epoch > page.epoch:
            self.fallen_back += 1
            self.fell_by = max(self.fell_by, missing)
        elif missing > 0:
            self.lost += missing
        elif surplus > 0:
            self.doubled += surplus
        page.done, page.epoch, page.doubt = done, epoch, 0

    def silence(self, page: Page) -> None:
        """There was no answer."""
        self.unknown += 1
        page.doubt += 1

    def state(self, match: str, seen: Seen) -> None:
        """A bot has seen a state of a match."""
        if seen.rules not in self.rules:
            sys.stderr.write(f"rules {seen.rules}\n")
        self.states += 1
        self.rules[seen.rules] += 1
        self._tick(match, seen)

    def _tick(self, match: str, seen: Seen) -> None:
        last = self.ticks.get(match)
        is_newer = last is None or (seen.epoch, seen.tick) > (last.epoch, last.tick)
        if last is not None and (seen.epoch, seen.tick) == (last.epoch, last.tick + 1):
            self.jitter.append(abs(seen.time - last.time - TICK_MS))
        if is_newer:
            self.ticks[match] = seen

    def told(self) -> dict[str, Any]:
        """All of it, for people and programs."""
        return {
            "answered": self.answered,
            "lost": self.lost,
            "doubled": self.doubled,
            "unknown": self.unknown,
            "refused": self.refused,
            "fallen_back": self.fallen_back,
            "fell_by_most": self.fell_by,
            "disconnects": len(self.disconnects),
            "why": self.disconnects[:3],
            "errors": self.errors,
            "matches": len(self.ticks),
            "states": self.states,
            "rules": self.rules,
            "ms_tick_late_p99": self.late_p99,
            "ms_tick_jitter": _shares(self.jitter),
            "ms_between_states": _shares(self.gaps),
            "ms_to_answer": _shares(self.round_trips),
        }


def _shares(values: list[float]) -> dict[str, float]:
    values.sort()
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(values[int((len(values) - 1) * share)], 1) for name, share in at.items() if values}


# -- what the shards say of themselves -------------------------------------------------------------------

Histogram = dict[float, float]
"""Of ticks: how many were late by so many seconds at most."""

_BUCKET = re.compile(r'^spread_tick_late_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)
_PORTS = re.compile(r"([^:]+):(\d+)(?:-(\d+))?")


def histograms(ops: str) -> list[Histogram]:
    """Of all shards whose ops ports are in ``HOST:FIRST-LAST``; those that do not answer have none."""
    found = _PORTS.fullmatch(ops)
    if found is None:
        return []
    host, first, last = found[1], int(found[2]), int(found[3] or found[2])
    return [_histogram(f"http://{host}:{port}/metrics") for port in range(first, last + 1)]


def _histogram(url: str) -> Histogram:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    return {float(bound): float(count) for bound, count in _BUCKET.findall(text)}


def p99_between(before: list[Histogram], after: list[Histogram]) -> float | None:
    """In milliseconds, of the ticks between two readings; ``None``: nobody told of any."""
    counts: dict[float, float] = {}
    for old, new in zip(before, after, strict=True):
        has_begun_anew = any(new.get(bound, 0) < count for bound, count in old.items())
        for bound, count in new.items():
            fresh = count - (0 if has_begun_anew else old.get(bound, 0))
            counts[bound] = counts.get(bound, 0) + fresh
    wanted = 0.99 * counts.get(math.inf, 0)
    if not wanted:
        return None
    below, under = 0.0, 0.0
    for bound, count in sorted(counts.items()):
        if count >= wanted:
            if bound == math.inf:
                break
            return round((below + (bound - below) * (wanted - under) / (count - under)) * 1000, 2)
        below, under = bound, count
    return round(below * 1000, 2)
