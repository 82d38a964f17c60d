"""Rendezvous hashing: where keys are, and what becomes of them when names come and go."""

from __future__ import annotations

from collections import Counter

import pytest

from spread.hub.rendezvous import Rendezvous

NAMES = ["redis://a:6379", "redis://b:6379", "redis://c:6379"]
KEYS = [f"room-{number}" for number in range(6000)]


def placed(names: list[str]) -> dict[str, str]:
    place = Rendezvous(names).place
    return {key: names[place(key)] for key in KEYS}


def test_where_a_key_is_stays_for_ever() -> None:
    # Written down when this came into being: another outcome would move the channels of all who upgrade.
    place = Rendezvous(NAMES).place
    assert [place(key) for key in ("", "lobby", "a", "房间", "match:1", "match:2", "x" * 255)] == PINNED


PINNED = [0, 2, 2, 0, 0, 1, 0]


def test_all_names_have_their_share() -> None:
    counts = Counter(placed(NAMES).values())
    assert set(counts) == set(NAMES)
    assert all(1800 < count < 2200 for count in counts.values()), counts


def test_the_order_of_the_names_does_not_matter() -> None:
    assert placed(NAMES) == placed(NAMES[::-1])


def test_only_the_keys_of_a_name_that_goes_move() -> None:
    before, after = placed(NAMES), placed(NAMES[:2])
    assert all(after[key] == name for key, name in before.items() if name != NAMES[2])
    moved = Counter(after[key] for key, name in before.items() if name == NAMES[2])
    assert all(count > 800 for count in moved.values()) and len(moved) == 2


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_names_must_be_different_and_there_must_be_one(names: list[str]) -> None:
    with pytest.raises(ValueError, match="different"):
        Rendezvous(names)
