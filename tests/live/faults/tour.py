"""Several stages, one after the other, and one table.

``python -m tests.live.faults.tour --faults 300 --stages all``. The faults are dealt out by how many kinds
each stage has; each stage has the plan that ``run`` would draw for it with the same seed, so that what is
found is done again with ``run``. All other options are those of ``run``. A stage that cannot be had is left
out, and told. Exits with 1 when any stage has found something.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from tests.live.faults.run import Options, options_of, run
from tests.live.faults.shims.shim import is_possible
from tests.live.faults.stage import stage_class
from tests.live.faults.table import Outcome, printed

__all__ = ["STAGES", "dealt", "main", "merged", "tour"]

STAGES = ("valkey", "shims", "sentinel", "sentinel-safe", "two", "cluster")
"""All, in the order in which they are gone through."""


class _Sum:
    """What the table asks of a ledger, of several."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        ledgers = [outcome.ledger for outcome in outcomes]
        self.acknowledged = sum(ledger.acknowledged for ledger in ledgers)
        self.deliveries = sum(ledger.deliveries for ledger in ledgers)
        self.retries = sum(ledger.retries for ledger in ledgers)
        self.known_failures = sum(ledger.known_failures for ledger in ledgers)
        self.errors: Counter[str] = sum((ledger.errors for ledger in ledgers), Counter())
        self.told: Counter[str] = sum((ledger.told for ledger in ledgers), Counter())


def merged(outcomes: Sequence[Outcome]) -> Outcome:
    """All of them as one."""
    return Outcome(
        seconds=sum(outcome.seconds for outcome in outcomes),
        done=[done for outcome in outcomes for done in outcome.done],
        ledger=cast(Any, _Sum(outcomes)),
        findings=[finding for outcome in outcomes for finding in outcome.findings],
        memory=[samples for outcome in outcomes for samples in outcome.memory],
        starts=sum(outcome.starts for outcome in outcomes),
        bystanders=[line for outcome in outcomes for line in outcome.bystanders],
    )


def dealt(faults: int, kinds: dict[str, int]) -> dict[str, int]:
    """So many faults for each stage: at least one, else by its number of kinds."""
    total = sum(kinds.values())
    shares = {name: max(1, faults * count // total) for name, count in kinds.items()}
    first = next(iter(shares))
    shares[first] += max(0, faults - sum(shares.values()))
    return shares


def tour(options: Options, stages: Sequence[str], say: Callable[[str], None]) -> tuple[Outcome, int]:
    """Go through the stages; what came of all, and the exit code."""
    kinds = {}
    for name in stages:
        if name == "shims" and not is_possible():
            say("no stage shims: there is no compiler, or Valkey is linked statically")
            continue
        offered = {kind.name for kind in stage_class(name)(options.shards, ["c"]).kinds()}
        if chosen := offered & set(options.kinds) if options.kinds else offered:
            kinds[name] = len(chosen)
    outcomes = []
    for name, faults in dealt(options.faults, kinds).items():
        say(f"--- stage {name}: {faults} faults")
        offered = {kind.name for kind in stage_class(name)(options.shards, ["c"]).kinds()}
        chosen = tuple(kind for kind in options.kinds if kind in offered)
        outcome, _ = run(replace(options, stage=name, faults=faults, kinds=chosen), say)
        outcomes.append(outcome)
    result = merged(outcomes)
    say(printed(" ".join(kinds), options.seed, result))
    return result, 1 if result.findings else 0


def main(arguments: Sequence[str]) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.live.faults.tour", add_help=False)
    parser.add_argument("--stages", default="all")
    found, rest = parser.parse_known_args(arguments)
    stages = STAGES if found.stages == "all" else found.stages.split(",")
    return tour(options_of(rest), stages, lambda text: print(text, flush=True))[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
