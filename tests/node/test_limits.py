"""Limits on clients: for any sequence of events the promises of the two limits hold."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from spread.node.limits import Admission, Rate

ADDRESSES = ("192.0.2.1", "192.0.2.2", "2001:db8::1")
# An address comes, or the oldest client from that address goes.
EVENTS = st.lists(st.tuples(st.booleans(), st.sampled_from(ADDRESSES)), max_size=60)


@given(EVENTS, st.integers(0, 5), st.integers(0, 3))
def test_admission(events: list[tuple[bool, str]], max_clients: int, max_per_address: int) -> None:
    admission = Admission(max_clients, max_per_address)
    inside: Counter[str] = Counter()
    for comes, address in events:
        if comes:
            answer = admission.enter(address)
            if max_clients and inside.total() == max_clients:
                assert answer == "full"
            elif max_per_address and inside[address] == max_per_address:
                assert answer == "address"
            else:
                assert answer == ""
                inside[address] += 1
        elif inside[address]:
            admission.leave(address)
            inside[address] -= 1
        assert admission.clients == inside.total()
    for address in inside.elements():
        admission.leave(address)
    assert admission.clients == 0
    assert admission._by_address == {}, "addresses that are gone are forgotten"


GAPS = st.lists(st.floats(0, 3, allow_nan=False), max_size=60)


@given(GAPS, st.floats(0.1, 20))
def test_no_window_lets_more_through_than_its_time_and_one_burst(gaps: list[float], rate: float) -> None:
    bucket = Rate(rate, 100.0)
    now = 100.0
    taken: list[float] = []
    for gap in gaps:
        now += gap
        if bucket.take(now):
            taken.append(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            allowed = max(1.0, rate) + rate * (taken[last] - taken[first])
            assert last - first + 1 <= allowed + 1e-6


@given(GAPS, st.floats(0.1, 20))
def test_who_keeps_to_the_rate_is_never_refused(gaps: list[float], rate: float) -> None:
    bucket = Rate(rate, 0.0)
    now = 0.0
    for gap in gaps:
        now += gap + 1.001 / rate
        assert bucket.take(now)


def test_a_burst_of_one_second_is_let_through() -> None:
    bucket = Rate(5, 0.0)
    assert [bucket.take(0.0) for _ in range(6)] == [True] * 5 + [False]
    assert not bucket.take(0.19)
    assert bucket.take(0.2)
    assert [bucket.take(1000.0) for _ in range(6)] == [True] * 5 + [False], "it does not grow without end"


def test_less_than_one_a_second() -> None:
    bucket = Rate(0.5, 0.0)
    assert [bucket.take(now) for now in (0.0, 1.0, 2.0, 3.0, 4.0)] == [True, False, True, False, True]


def test_a_clock_that_is_set_back_silences_nobody() -> None:
    bucket = Rate(1, 10_000.0)
    assert bucket.take(10_000.0)
    assert not bucket.take(100.0)
    assert bucket.take(101.0)
