"""Several runs become one table."""

from __future__ import annotations

from tests.live.faults.ledger import Finding, Ledger
from tests.live.faults.plan import Strike
from tests.live.faults.stage import EVERYBODY, Kind, stage_class
from tests.live.faults.table import Done, Outcome, printed
from tests.live.faults.tour import STAGES, dealt, merged


def outcome(name: str, *findings: Finding) -> Outcome:
    ledger = Ledger()
    ledger.subscriber("s0", "c")
    ledger.publisher("p0", "c")
    for line in (
        "S 1 s0 0 0 aaaaaaaa 0",
        "P 2 p0 1",
        "A 3 p0 1",
        "M 3 s0 1 p0 1",
        "P 4 p0 2",
        "F 5 p0 2 100",
    ):
        ledger.take(line)
    kind = Kind(name, f"says {name}", lambda strike: EVERYBODY)
    done = Done(Strike(1, name, 0, 1.0, 0.5, 7), kind, 1.0, 2.0, {"s0": 0.5}, [])
    return Outcome(10.0, [done], ledger, list(findings), [[1 << 20] * 8], 2, [f"aside of {name}"])


def test_several_runs_are_one() -> None:
    finding = Finding("lost", 1.0, "s0", "c", "gone")
    both = merged([outcome("one"), outcome("two", finding)])
    text = printed("valkey two", 3, both)
    for row in (
        "| says one (`one`) | 1 | 1 | 0.50 s | 0.50 s | 20 s |",
        "| says two (`two`) | 1 | 1 | 0.50 s | 0.50 s | 20 s |",
        "| stage, seed | valkey two, 3 |",
        "| faults | 2 |",
        "| duration | 20 s |",
        "| publications acknowledged | 2 |",
        "| deliveries checked | 2 |",
        "| errors told to publishers | 100: 2 |",
        "| publications whose outcome stayed unknown | 2 |",
        "| **lost** | 1 |",
        "| processes of shards started | 4 |",
        "| | aside of two |",
    ):
        assert row in text, row


def test_faults_are_dealt_out_by_kinds() -> None:
    assert dealt(100, {"a": 5, "b": 4, "c": 1}) == {"a": 50, "b": 40, "c": 10}
    assert dealt(10, {"a": 5, "b": 4, "c": 1, "d": 1}) == {"a": 5, "b": 3, "c": 1, "d": 1}
    assert dealt(1, {"a": 5, "b": 4}) == {"a": 1, "b": 1}


def test_every_stage_can_say_what_it_offers_without_a_start() -> None:
    for name in STAGES:
        stage = stage_class(name)(3, ["c0", "c1"])
        names = [kind.name for kind in stage.kinds()]
        assert len(names) == len(set(names)) > 8, name
        assert all(kind.targets > 0 and kind.seconds[0] <= kind.seconds[1] for kind in stage.kinds())
