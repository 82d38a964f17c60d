"""What a client has missed: never a hole, never a double, or a clear no."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spread.hub.api import Format, Position, Publication, Stream
from spread.node.recovery import newest, recovered


def publication(offset: int, epoch: str = "e") -> Publication:
    return Publication(b"%d" % offset, Format.JSON, bytes(8), 0, offset, epoch)


def stream(offsets: range, top: int, epoch: str = "e") -> Stream:
    return Stream(Position(epoch, top), [publication(offset, epoch) for offset in offsets])


@given(
    known=st.integers(0, 30),
    top=st.integers(0, 30),
    kept=st.integers(0, 30),
    passed=st.integers(0, 10),
    began=st.integers(0, 10),
    limit=st.integers(1, 40),
)
def test_all_that_was_missed_or_nothing(
    known: int, top: int, kept: int, passed: int, began: int, limit: int
) -> None:
    """The history is read when it ends at ``top`` and begins after ``kept``; the fan-out is at ``now``."""
    now = top + passed - 5
    if now < 0:
        return
    read = stream(range(max(known, kept) + 1, top + 1), top)
    read.publications[:] = read.publications[:limit]
    collected = [publication(offset) for offset in range(max(1, now - began + 1), now + 1)]
    missed = recovered(Position("e", known), read, collected, Position("e", now), limit)
    wanted = list(range(known + 1, now + 1))
    if missed is None:
        there = {one.offset for one in (*read.publications, *collected)}
        assert known > now or not set(wanted) <= there or len(wanted) > limit
    else:
        assert [one.offset for one in missed] == wanted
        assert len(missed) <= limit


def test_another_epoch_is_not_recovered() -> None:
    position = Position("e", 3)
    whole = stream(range(1, 4), 3)
    assert recovered(Position("other", 0), whole, [], position, 10) is None
    assert recovered(Position("e", 0), stream(range(1, 4), 3, "new"), [], position, 10) is None
    assert recovered(Position("e", 0), whole, None, position, 10) is None
    mixed = [publication(3, "new")]
    assert recovered(Position("e", 2), stream(range(0), 2), mixed, position, 10) is None


def test_the_empty_epoch_is_any() -> None:
    missed = recovered(Position("", 1), stream(range(2, 4), 3), [], Position("e", 3), 10)
    assert missed is not None and [one.offset for one in missed] == [2, 3]


def test_the_newest() -> None:
    now = Position("e", 3)
    kept = stream(range(3, 4), 3)
    assert newest(Position("", 0), kept, [], now) == [publication(3)]
    assert newest(Position("e", 3), kept, [], now) == []
    assert newest(Position("other", 3), kept, [], now) == [publication(3)]
    assert newest(Position("e", 2), stream(range(2, 3), 2), [publication(3)], now) == [publication(3)]
    assert newest(Position("e", 0), stream(range(0), 0), [], Position("e", 0)) is None
    assert newest(Position("e", 2), stream(range(2, 3), 2), [], now) is None
    assert newest(Position("e", 2), kept, None, now) is None
    assert newest(Position("e", 2), stream(range(3, 4), 3, "new"), [], now) is None
