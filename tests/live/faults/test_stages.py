"""A few faults of each further stage. The long run takes them all."""

from __future__ import annotations

import pytest

from tests.live.faults.run import Options, run
from tests.live.faults.shims.shim import is_possible
from tests.live.faults.table import Outcome

pytestmark = [pytest.mark.live, pytest.mark.timeout(100)]

SMALL = {
    "shards": 2,
    "publishers": 12,
    "subscribers": 24,
    "channels": 6,
    "interval": 0.2,
    "slack": 3.0,
    "quiet": 0.25,
}


def ran(stage: str, seed: int, *kinds: str, **options: object) -> tuple[Outcome, int, str]:
    """One fault of each kind."""
    said: list[str] = []
    given = {**SMALL, "stage": stage, "seed": seed, "faults": len(kinds), "kinds": kinds, **options}
    outcome, code = run(Options(**given), said.append)  # type: ignore[arg-type]
    return outcome, code, "\n".join(said)


def well(stage: str, seed: int, *kinds: str) -> Outcome:
    """Nothing was found."""
    outcome, code, said = ran(stage, seed, *kinds)
    assert (code, outcome.findings) == (0, []), said
    assert {done.kind.name for done in outcome.done} == set(kinds)
    assert all(not done.silent for done in outcome.done), said
    return outcome


@pytest.mark.skipif(not is_possible(), reason="no compiler")
def test_a_full_disk_and_clocks_that_step() -> None:
    outcome = well("shims", 104, "disk-full-refused", "disk-full-exit", "clock-valkey", "clock-shard")
    assert sum(outcome.ledger.errors.values()), "who publishes to a full disk is told"


def test_sentinel() -> None:
    outcome = well("sentinel", 83, "master-kill-behind", "failover")
    assert outcome.ledger.told["recovered=false"] >= 24, "what a failover may have lost is told to everybody"


def test_a_cluster() -> None:
    outcome = well("cluster", 157, "slots-by-key", "slots-at-once", "primary-kill-behind")
    assert 0 < outcome.ledger.told["recovered=false"] < 24, "channels of the other primaries are well"


def test_two_servers() -> None:
    outcome = well("two", 83, "one-kill", "one-freeze")
    assert outcome.ledger.told["recovered=false"] == 0
