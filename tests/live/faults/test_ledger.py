"""The ledger finds every planted wrong, and nothing else."""

from __future__ import annotations

import pytest

from tests.live.faults.ledger import Finding, Ledger

FIRST, OTHER = "aaaaaaaa", "bbbbbbbb"


def ledger_of(*lines: str, subscribers: int = 2) -> Ledger:
    """Publishers p0 and p1, and subscribers s0, s1 …, all in channel c."""
    ledger = Ledger()
    for number in range(subscribers):
        ledger.subscriber(f"s{number}", "c")
        ledger.take(f"C 0.5 s{number} 0")
        ledger.take(f"S 1 s{number} 0 0 {FIRST} 0")
    ledger.publisher("p0", "c")
    ledger.publisher("p1", "c")
    for line in lines:
        ledger.take(line)
    return ledger


def sent(sequence: int, publisher: str = "p0", at: float | None = None) -> list[str]:
    """Published and acknowledged."""
    at = sequence * 10 if at is None else at
    return [f"P {at} {publisher} {sequence}", f"A {at + 1} {publisher} {sequence}"]


def saw(who: str, *offsets: int, publisher: str = "p0", at: float = 0) -> list[str]:
    """Sees publications of p0 whose offsets are their sequences."""
    return [f"M {at or offset * 10 + 2} {who} {offset} {publisher} {offset}" for offset in offsets]


def whats(ledger: Ledger) -> list[str]:
    return [finding.what for finding in ledger.verdict()]


GOOD = [*sent(1), *sent(2), *sent(3), *saw("s1", 1, 2, 3)]


def test_all_well() -> None:
    ledger = ledger_of(*GOOD, *saw("s0", 1, 2, 3))
    assert ledger.verdict() == []
    assert ledger.behind() == 0
    assert (ledger.acknowledged, ledger.deliveries, ledger.known_failures) == (3, 6, 0)


def test_lines_of_different_witnesses_may_come_in_any_order() -> None:
    ledger = ledger_of(*saw("s0", 1, 2), *saw("s1", 1, 2), *sent(1), *sent(2))
    assert ledger.verdict() == []


def test_lost_in_the_middle() -> None:
    [finding] = ledger_of(*GOOD, *saw("s0", 1, 3)).verdict()
    assert (finding.what, finding.who, finding.where) == ("lost", "s0", "c")
    assert "p0#2 at aaaaaaaa:2" in str(finding)


def test_lost_at_the_end() -> None:
    ledger = ledger_of(*GOOD, *saw("s0", 1, 2))
    assert whats(ledger) == ["lost"]
    assert ledger.behind() == 1


def test_lost_at_the_beginning() -> None:
    assert whats(ledger_of(*GOOD, *saw("s0", 2, 3))) == ["lost"]


def test_acknowledged_and_seen_by_nobody() -> None:
    ledger = ledger_of(*sent(1))
    assert whats(ledger) == ["lost", "lost"]
    assert {finding.who for finding in ledger.verdict()} == {"s0", "s1"}


def test_acknowledged_with_a_position_and_seen_by_nobody() -> None:
    assert whats(ledger_of("P 1 p0 1", f"A 2 p0 1 {FIRST} 1")) == ["lost", "lost"]


def test_passed_over_although_it_was_not_acknowledged() -> None:
    lines = [*sent(1), "P 20 p0 2", "F 21 p0 2 11", *sent(3), *saw("s1", 1, 2, 3), *saw("s0", 1, 3)]
    ledger = ledger_of(*lines)
    assert whats(ledger) == ["lost"]
    assert ledger.known_failures == 1
    assert ledger.errors == {"11": 1}


def test_what_failed_need_not_be_seen_and_may_be_seen() -> None:
    failed = [*sent(1), "P 20 p0 2", "F 21 p0 2 11"]
    assert ledger_of(*failed, *saw("s0", 1), *saw("s1", 1)).verdict() == []
    assert ledger_of(*failed, *saw("s0", 1, 2), *saw("s1", 1, 2)).verdict() == []


def test_what_was_there_before_a_subscriber_came_is_not_for_it() -> None:
    ledger = Ledger()
    ledger.publisher("p0", "c")
    ledger.subscriber("s0", "c")
    ledger.subscriber("s1", "c")
    lines = [f"S 1 s1 0 0 {FIRST} 0", *GOOD, f"S 25 s0 0 0 {FIRST} 2", *saw("s0", 3)]
    for line in lines:
        ledger.take(line)
    assert ledger.verdict() == []


def test_doubled_delivery() -> None:
    assert whats(ledger_of(*GOOD, *saw("s0", 1, 2, 2, 3))) == ["doubled"]
    assert whats(ledger_of(*GOOD, *saw("s0", 1, 2, 3, 1))) == ["doubled"]


def test_kept_twice() -> None:
    lines = [*sent(1), *(f"M 13 {who} {offset} p0 1" for who in ("s0", "s1") for offset in (1, 2))]
    ledger = ledger_of(*lines)
    assert "doubled" in whats(ledger)
    assert set(whats(ledger)) == {"doubled"}


def test_a_second_try_with_a_key_that_is_kept_twice() -> None:
    lines = ["P 10 p0 1", "R 12 p0 1 TimeoutError", f"A 14 p0 1 {FIRST} 2"]
    ledger = ledger_of(*lines, *saw("s0", 1), *saw("s1", 1), "M 15 s0 2 p0 1", "M 15 s1 2 p0 1")
    assert set(whats(ledger)) == {"doubled"}
    assert ledger.retries == 1


def test_out_of_order() -> None:
    assert whats(ledger_of(*GOOD, *saw("s0", 1), *saw("s0", 3), *saw("s0", 2))) == ["out of order"]


def test_two_publications_in_one_place() -> None:
    ledger = ledger_of(*sent(1), *sent(1, "p1"), *saw("s1", 1), *saw("s0", 1, publisher="p1"))
    assert "out of order" in whats(ledger)


def test_a_publisher_is_overtaken_by_itself() -> None:
    lines = [*sent(1), *sent(2)]
    for who in ("s0", "s1"):
        lines += [f"M 22 {who} 1 p0 2", f"M 23 {who} 2 p0 1"]
    [finding] = ledger_of(*lines).verdict()
    assert (finding.what, finding.who) == ("out of order", "p0")


def test_what_failed_may_come_late() -> None:
    lines = ["P 10 p0 1", "F 15 p0 1 1", *sent(2)]
    for who in ("s0", "s1"):
        lines += [f"M 22 {who} 1 p0 2", f"M 23 {who} 2 p0 1"]
    assert ledger_of(*lines).verdict() == []


def test_a_copy_of_the_stream_goes_on() -> None:
    # s0 goes on in the copy from 2, s1 has seen 3 where it was before.
    lines = [*sent(1), *sent(2), *sent(3), *sent(4), *saw("s0", 1, 2), *saw("s1", 1, 2, 3)]
    lines += [f"S 35 s0 1 1 {OTHER} 2", f"S 36 s1 1 1 {OTHER} 3", *saw("s0", 3, 4, at=43), *saw("s1", 4)]
    ledger = ledger_of()
    ledger.destroyed(None, 30, 34)
    for line in lines:
        ledger.take(line)
    assert ledger.verdict() == [] and ledger.behind() == 0
    assert ledger.told["recovered in a copy"] == 2


def test_what_is_published_again_after_a_failover_is_seen_there() -> None:
    # 2 is seen by s1 alone, is gone with the old master, and is taken again by the new one.
    lines = [*sent(1), *saw("s0", 1), *saw("s1", 1), "P 20 p0 2", "M 21 s1 2 p0 2", "R 31 p0 2 100"]
    lines += [f"S 35 s0 0 0 {OTHER} 1", f"S 36 s1 1 0 {OTHER} 1", f"A 40 p0 2 {OTHER} 2"]
    seen = [*lines, "M 41 s0 2 p0 2", "M 41 s1 2 p0 2"]
    for each, expected in ((seen, []), ([*lines, "M 41 s1 2 p0 2"], ["lost"])):
        ledger = ledger_of()
        ledger.destroyed(None, 30, 34)
        for line in each:
            ledger.take(line)
        assert sorted(set(whats(ledger))) == expected


def test_a_copy_that_lacks_something_is_found_out() -> None:
    lines = [*sent(1), *sent(2), *sent(3), *saw("s0", 1), *saw("s1", 1, 2, 3), f"S 35 s0 1 1 {OTHER} 1"]
    # What was acknowledged as 2 and 3 is not there: others are.
    lines += [*sent(1, "p1", 40), "M 42 s0 2 p1 1", f"S 45 s1 1 0 {OTHER} 2"]
    ledger = ledger_of()
    ledger.destroyed(None, 30, 34)
    for line in lines:
        ledger.take(line)
    assert "lost" in whats(ledger), "s0 was told that it has all"


def test_recovered_elsewhere_in_another_epoch() -> None:
    assert "lost" in whats(ledger_of(*GOOD, *saw("s0", 1, 2), f"S 35 s0 1 1 {OTHER} 7"))


def test_invented() -> None:
    assert whats(ledger_of(*GOOD, *saw("s0", 1, 2, 3, 4), *saw("s1", 4))) == ["invented"]


def test_recovered() -> None:
    lines = [*saw("s0", 1), "U 15 s0 1", "D 15 s0 1", "C 16 s0 1", f"S 17 s0 1 1 {FIRST} 1", *saw("s0", 2, 3)]
    ledger = ledger_of(*GOOD, *lines)
    assert ledger.verdict() == []
    assert ledger.subscribers["s0"].endpoint == 1


def test_recovered_with_a_hole() -> None:
    assert whats(ledger_of(*GOOD, *saw("s0", 1), f"S 17 s0 1 1 {FIRST} 1", *saw("s0", 3))) == ["lost"]


def test_recovered_what_it_had() -> None:
    assert whats(ledger_of(*GOOD, *saw("s0", 1), f"S 17 s0 1 1 {FIRST} 1", *saw("s0", 1, 2, 3))) == [
        "doubled"
    ]


def test_recovered_in_another_epoch() -> None:
    assert "lost" in whats(ledger_of(*GOOD, *saw("s0", 1, 2, 3), f"S 37 s0 1 1 {OTHER} 3"))


def test_told_where_nothing_was_destroyed() -> None:
    ledger = ledger_of(*GOOD, *saw("s0", 1), f"S 37 s0 1 0 {FIRST} 3")
    assert whats(ledger) == ["told"], "and nothing is lost, since it was told"
    assert ledger.told == {"recovered=false": 1}


def told_after_a_destruction(*lines: str, channels: frozenset[str] | None = None, at: float = 36) -> Ledger:
    ledger = ledger_of(*GOOD, *saw("s0", 1))
    ledger.destroyed(channels, at, at)
    for line in lines:
        ledger.take(line)
    return ledger


def test_told_after_a_destruction() -> None:
    after = [*sent(4), f"M 43 s0 1 p0 4", f"S 42 s1 1 0 {OTHER} 0", f"M 43 s1 1 p0 4"]  # noqa: F541
    assert told_after_a_destruction(f"S 37 s0 1 0 {OTHER} 0", *after).verdict() == []
    assert told_after_a_destruction(f"S 37 s0 1 0 {OTHER} 0", *after, channels=frozenset("c")).verdict() == []
    assert "told" in whats(
        told_after_a_destruction(f"S 37 s0 1 0 {OTHER} 0", *after, channels=frozenset("d"))
    )


def test_told_too_long_after_a_destruction() -> None:
    assert whats(told_after_a_destruction(f"S 137 s0 1 0 {FIRST} 3")) == ["told"]


def test_not_told_although_it_was_destroyed() -> None:
    """It goes on in the new stream as if nothing had been."""
    lines = [*sent(4), "M 43 s0 1 p0 4", f"S 42 s1 1 0 {OTHER} 0", "M 43 s1 1 p0 4"]
    assert "out of order" in whats(told_after_a_destruction(*lines))


def test_subscribed_anew_without_recovery_is_no_telling() -> None:
    ledger = ledger_of(*GOOD, *saw("s0", 1), f"S 37 s0 0 0 {FIRST} 3")
    assert whats(ledger) == ["lost", "lost"]


def test_what_is_published_after_a_telling_must_be_seen() -> None:
    lines = [f"S 37 s0 1 0 {OTHER} 0", f"S 37 s1 1 0 {OTHER} 0", *sent(4), "M 43 s1 1 p0 4"]
    [finding] = told_after_a_destruction(*lines).verdict()
    assert (finding.what, finding.who) == ("lost", "s0")


def test_acknowledged_and_destroyed_before_anybody_saw_it() -> None:
    ledger = ledger_of("P 35 p0 1", "A 35.5 p0 1")
    ledger.destroyed(None, 36, 36)
    for who in ("s0", "s1"):
        ledger.take(f"S 37 {who} 1 0 {OTHER} 0")
    assert ledger.verdict() == []
    ledger.take("P 38 p0 2")
    ledger.take("A 39 p0 2")
    assert whats(ledger) == ["lost", "lost"], "that one was not destroyed"


def test_an_epoch_that_was_over_before_the_subscriber_was_back() -> None:
    ledger = ledger_of(*sent(1), *saw("s0", 1), *saw("s1", 1))
    ledger.destroyed(None, 15, 15)
    middle = "mmmmmmmm"
    for line in (
        *(f"S 16 s1 1 0 {middle} 0", *sent(2), "M 22 s1 1 p0 2"),
        *(f"S 26 s1 1 0 {OTHER} 0", f"S 27 s0 1 0 {OTHER} 0"),
        *(*sent(3), "M 32 s1 1 p0 3", "M 32 s0 1 p0 3"),
    ):
        ledger.take(line)
    assert ledger.verdict() == []


def test_kept_again_in_a_new_epoch_after_a_destruction() -> None:
    """The first try was destroyed together with the knowledge that it had been made."""
    ledger = ledger_of("P 10 p0 1", *saw("s0", 1), *saw("s1", 1))
    ledger.destroyed(None, 13, 13)
    for line in (*(f"S 14 {who} 1 0 {OTHER} 0" for who in ("s0", "s1")), "A 15 p0 1"):
        ledger.take(line)
    for who in ("s0", "s1"):
        ledger.take(f"M 16 {who} 1 p0 1")
    assert ledger.verdict() == []


def test_what_clients_are_told_is_counted() -> None:
    ledger = ledger_of("U 2 s0 2500", "U 3 s0 1", "D 4 s0 3010", "D 5 s0 1")
    assert ledger.told == {"unsubscribed 2500": 1, "disconnected 3010": 1}
    assert not ledger.subscribers["s0"].is_connected


def test_unsubscribed_in_the_end() -> None:
    [finding] = ledger_of("U 2 s0 2500").verdict()
    assert finding == Finding("lost", 1.0, "s0", "c", "not subscribed in the end")


def test_a_publication_before_the_subscription() -> None:
    ledger = Ledger()
    ledger.subscriber("s0", "c")
    ledger.publisher("p0", "c")
    for line in (*sent(1), *saw("s0", 1), f"S 30 s0 0 0 {FIRST} 1"):
        ledger.take(line)
    assert "out of order" in whats(ledger)


def test_watched_subscribers() -> None:
    ledger = ledger_of(*sent(1))
    ledger.watched["s0"] = []
    for line in (*saw("s0", 1), *saw("s1", 1)):
        ledger.take(line)
    [(at, publication)] = ledger.watched["s0"]
    assert (at, publication.sequence, publication.acknowledged_at) == (12, 1, 11)


def test_no_such_line() -> None:
    with pytest.raises(ValueError, match="no such line"):
        ledger_of("X 1 s0")
    with pytest.raises(KeyError):
        ledger_of("M 1 s9 1 p0 1")
