"""Redis that stands still, Redis that is flooded, and crowds that come back: real shards on a real Valkey."""

from __future__ import annotations

import pytest

from tests.live.stalled import PHASES, Plan, run, table

pytestmark = pytest.mark.live


def test_a_redis_that_stands_still_under_load_costs_nothing_that_was_acknowledged() -> None:
    plan = Plan(seconds=9, rate=800, before_seconds=1.5, after_seconds=2, publishers=20)
    outcome = run(plan)
    print(table(outcome))
    assert outcome.wrong() == []
    assert all(outcome.acknowledged[phase] for phase in PHASES)
    assert list(outcome.errors) == ["100 internal server error"]
    # Each is read as far as it may have commands on their way, and answered by hub.publish_seconds.
    assert outcome.longest_answer < 7
    assert outcome.journal_publications <= plan.rate * 5
    for before, meanwhile, after in outcome.memory:
        assert max(meanwhile, after) < before + 40e6
    for what, answers in outcome.asked.items():
        assert set(answers) <= {"100 temporary"} or (what == "connect, new" and set(answers) == {"done"})
        assert outcome.longest_asked[what] < 7
    assert {"history", "presence", "presence_stats", "connect, new", "subscribe, new"} <= set(outcome.asked)
    assert outcome.flows_after < 5
    # Not ready within the seconds that an answer of Redis may take; and ready again.
    answers = [(since, is_ready) for since, _, is_ready in outcome.ready]
    assert all(not is_ready for since, is_ready in answers if 5 < since < plan.seconds)
    assert answers[-1][1]
