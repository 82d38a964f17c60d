"""The fault harness, short: faults in which nothing may be lost, and planted bugs that it must find."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from tests.live.faults.run import Options, run
from tests.live.faults.table import VERDICTS, Outcome

pytestmark = pytest.mark.live

SMALL = {
    "shards": 2,
    "publishers": 18,
    "subscribers": 33,
    "channels": 9,
    "interval": 0.15,
    "slack": 3.0,
    "quiet": 0.25,
}
"""Few clients, who talk much. Machines that run other tests beside have time: limits are for longer runs."""


def ran(**options: object) -> tuple[Outcome, int, str]:
    said: list[str] = []
    outcome, code = run(Options(**{**SMALL, **options}), said.append)  # type: ignore[arg-type]
    return outcome, code, "\n".join(said)


@pytest.mark.timeout(110)
def test_nothing_is_lost_doubled_or_out_of_order() -> None:
    began_at = time.monotonic()
    kinds = (
        *(
            "shard-kill",
            "shard-term",
            "valkey-kill",
            "link-tear",
            "link-stall",
            "client-stall",
            "client-tear",
        ),
        *("kill-pubsub", "kill-normal", "output-buffer", "script-flush", "flushall", "meta-lost"),
    )
    outcome, code, said = ran(seed=5, faults=len(kinds), kinds=kinds)
    assert code == 0, said
    assert outcome.findings == []
    assert {done.kind.name for done in outcome.done} == set(kinds)
    assert all(done.recovered and not done.silent for done in outcome.done), said
    ledger = outcome.ledger
    assert ledger.acknowledged > 1_000
    assert ledger.deliveries > 3 * ledger.acknowledged
    assert ledger.told["recovered=false"] >= 33, "FLUSHALL was told to everybody"
    assert outcome.starts == 4
    for verdict in VERDICTS:
        assert f"| **{verdict}** | 0 |" in said
    print(f"{time.monotonic() - began_at:.0f} s\n{said}")


def found(plant: str, kind: str, faults: int, seed: int, **options: object) -> Counter[str]:
    """What was found with that safety off."""
    outcome, code, said = ran(plant=plant, kinds=(kind,), faults=faults, seed=seed, **options)
    assert code == 1, said
    assert f"--plant {plant} --only 1-" in said, "told, how to do it again"
    return outcome.counts


def test_it_finds_that_gaps_are_not_looked_for() -> None:
    assert found("no-gap-check", "link-cut", 2, 1, catch_up=2.0)["lost"]


def test_it_finds_that_second_tries_are_kept_twice() -> None:
    assert found("no-idempotency", "link-stall", 1, 1)["doubled"]


def test_it_finds_that_nobody_probes_a_deaf_link() -> None:
    # The probe notices within 7.5 s. Without it a SUBSCRIBE that nobody confirms may, after 10 s, and
    # what was heard last is compared with the stream after 40 s only.
    assert found("no-probe", "link-deaf", 1, 1, patience=9.0, catch_up=0.0)["silent"]
