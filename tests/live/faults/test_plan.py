"""Plans come from their seed, and offer all kinds."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.live.faults.plan import GAP_SECONDS, Offer, drawn, told_slice

OFFERS = [Offer("kill", 4), Offer("freeze", 4, (1.0, 8.0)), Offer("flush")]


def test_the_same_seed_gives_the_same_plan_whatever_the_order_of_offers() -> None:
    assert drawn(7, OFFERS, 50) == drawn(7, OFFERS[::-1], 50)
    assert drawn(7, OFFERS, 50) != drawn(8, OFFERS, 50)


def test_a_longer_plan_begins_with_the_shorter_one() -> None:
    assert drawn(7, OFFERS, 50)[:17] == drawn(7, OFFERS, 17)


def test_kinds_come_evenly() -> None:
    plan = drawn(1, OFFERS, 300)
    assert Counter(strike.kind for strike in plan) == {"kill": 100, "freeze": 100, "flush": 100}
    for first in range(0, 300, 3):
        assert len({strike.kind for strike in plan[first : first + 3]}) == 3
    assert [strike.number for strike in plan] == list(range(1, 301))


def test_what_is_drawn_is_within_what_is_offered() -> None:
    plan = drawn(2, OFFERS, 300)
    assert {strike.target for strike in plan if strike.kind == "kill"} == {0, 1, 2, 3}
    assert {strike.target for strike in plan if strike.kind == "flush"} == {0}
    lasting = [strike.seconds for strike in plan if strike.kind == "freeze"]
    assert 1 <= min(lasting) < 2
    assert 7 < max(lasting) <= 8
    assert all(GAP_SECONDS[0] <= strike.gap <= GAP_SECONDS[1] for strike in plan)


def test_a_strike_draws_the_same_each_time_and_can_be_read() -> None:
    first, second = drawn(3, OFFERS, 2)
    assert first.rng().random() == first.rng().random() != second.rng().random()
    assert str(first).split()[:2] == ["1", first.kind]
    assert [" for " in str(strike) for strike in drawn(3, OFFERS, 3)] == [
        strike.kind == "freeze" for strike in drawn(3, OFFERS, 3)
    ]


def test_nothing_to_draw_from() -> None:
    with pytest.raises(ValueError, match="no kinds"):
        drawn(1, [], 1)


def test_slices() -> None:
    assert told_slice("17-23") == (17, 23)
    assert told_slice("5") == (5, 5)
    for text in ("0-3", "4-3", "x", "3-", ""):
        with pytest.raises(ValueError, match=r"slice|invalid literal"):
            told_slice(text)
