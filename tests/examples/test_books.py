"""The books of the arena's bots: what they call lost, doubled and late."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from spread.node.app.load import forget, load
from tests.examples.arenas import ARENA

GENERATION = 7999


@pytest.fixture
def books() -> Any:
    loaded = load("books:Books", GENERATION, [str(ARENA)])
    yield loaded.app_class()
    forget(GENERATION)


def module_of(books: Any) -> Any:
    return sys.modules[type(books).__module__]


def test_what_becomes_of_commands(books: Any) -> None:
    page = module_of(books).Page()
    counts = ("answered", "lost", "doubled", "fallen_back", "fell_by_most", "unknown")

    def told() -> dict[str, int]:
        return {name: books.told()[name] for name in counts if books.told()[name]}

    for done in (1, 2, 3):
        books.answer(page, done, 1)
    assert told() == {"answered": 3}
    # Two without an answer, of which one was done.
    books.silence(page)
    books.silence(page)
    books.answer(page, 5, 1)
    assert told() == {"answered": 4, "unknown": 2}
    # One more than was sent; three that were answered and are gone.
    books.answer(page, 7, 1)
    assert told() == {"answered": 5, "unknown": 2, "doubled": 1}
    books.answer(page, 5, 1)
    assert told() == {"answered": 6, "unknown": 2, "doubled": 1, "lost": 3}
    # The same by another owner is a snapshot.
    books.answer(page, 3, 2)
    assert told() == {
        "answered": 7,
        "unknown": 2,
        "doubled": 1,
        "lost": 3,
        "fallen_back": 1,
        "fell_by_most": 3,
    }


def test_how_punctual_ticks_are(books: Any) -> None:
    seen = module_of(books).Seen
    for tick, time in ((1, 50.0), (2, 101.0), (2, 101.0), (3, 150.0), (5, 290.0), (4, 200.0), (6, 340.0)):
        books.state("match:1", seen(tick, time, 1, "1"))
    books.state("match:1", seen(4, 900.0, 2, "1"))
    books.state("match:2", seen(7, 350.0, 1, "2"))
    assert books.jitter == [1.0, 1.0, 0.0]  # from 1 to 2, 2 to 3, 5 to 6
    told = books.told()
    assert (told["matches"], told["states"], told["rules"]) == (2, 9, {"1": 8, "2": 1})
    assert told["ms_tick_jitter"] == {"p50": 1.0, "p99": 1.0, "max": 1.0}


def test_p99_of_histograms(books: Any) -> None:
    p99, end = module_of(books).p99_between, float("inf")
    empty = {0.001: 0.0, 0.01: 0.0, end: 0.0}
    assert p99([empty], [empty]) is None
    assert p99([{}], [{}]) is None
    assert p99([empty], [{0.001: 98.0, 0.01: 100.0, end: 100.0}]) == 5.5
    # A shard that was there before counts with what is new, one that began anew with all.
    old = {0.001: 500.0, 0.01: 900.0, end: 900.0}
    assert p99([old, old], [{0.001: 500.0, 0.01: 1000.0, end: 1000.0}, empty]) == 9.91
    assert p99([empty], [{0.001: 0.0, 0.01: 0.0, end: 9.0}]) == 10.0  # later than all bounds
