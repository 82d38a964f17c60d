"""What came of a run, as a table in Markdown for docs/reliability.md. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from tests.live.faults.ledger import Finding, Ledger
from tests.live.faults.plan import Strike
from tests.live.faults.stage import Kind

__all__ = ["VERDICTS", "Done", "Outcome", "printed"]

VERDICTS = ("lost", "doubled", "out of order", "invented")

MB = 1 << 20


@dataclass(frozen=True)
class Done:
    """One fault that was done."""

    strike: Strike
    kind: Kind
    began_at: float
    ended_at: float
    recovered: dict[str, float]
    """Seconds, by subscriber."""
    silent: list[str]
    """Subscribers that have not."""

    def __str__(self) -> str:
        if not self.recovered and not self.silent:
            return "nobody was hurt"
        seconds = self.recovered.values()
        told = "none recovered"
        if seconds:
            told = f"{len(seconds)} recovered in {median(seconds):.2f} s, the last in {max(seconds):.2f} s"
        return f"{told}{f', {len(self.silent)} silent' if self.silent else ''}"


@dataclass(frozen=True)
class Outcome:
    """Of a run."""

    seconds: float
    done: list[Done]
    ledger: Ledger
    findings: list[Finding]
    memory: list[list[int]]
    """Resident bytes of each process of a shard, in the order of time."""
    starts: int
    """Processes of shards that were started."""
    bystanders: list[str] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        """Findings by what they are."""
        return Counter(finding.what for finding in self.findings)


def printed(stage: str, seed: int, outcome: Outcome) -> str:
    """Two tables: the kinds of faults, and the run."""
    return "\n".join([*_kinds(outcome.done), "", *_run(stage, seed, outcome)])


def _kinds(done: Sequence[Done]) -> list[str]:
    lines = [
        "| fault | times | subscribers hurt | recovered, p50 | max | limit |",
        "|---|---|---|---|---|---|",
    ]
    by_kind: dict[str, list[Done]] = {}
    for each in done:
        by_kind.setdefault(each.kind.name, []).append(each)
    for name, all_of_it in sorted(by_kind.items()):
        kind = all_of_it[0].kind
        seconds = [s for each in all_of_it for s in each.recovered.values()]
        hurt = sum(len(each.recovered) + len(each.silent) for each in all_of_it)
        p50 = f"{median(seconds):.2f} s" if seconds else "-"
        most = f"{max(seconds):.2f} s" if seconds else "-"
        counted = f"{len(all_of_it)} | {hurt:,} | {p50} | {most} | {kind.limit_seconds:g} s"
        lines.append(f"| {kind.says} (`{name}`) | {counted} |")
    return lines


def _run(stage: str, seed: int, outcome: Outcome) -> list[str]:
    ledger, counts = outcome.ledger, outcome.counts
    rows: list[tuple[str, object]] = [
        ("stage, seed", f"{stage}, {seed}"),
        ("faults", len(outcome.done)),
        ("duration", f"{outcome.seconds:.0f} s"),
        ("publications acknowledged", f"{ledger.acknowledged:,}"),
        ("deliveries checked", f"{ledger.deliveries:,}"),
        ("tried again by publishers with a key", f"{ledger.retries:,}"),
        ("errors told to publishers", _listed(ledger.errors)),
        ("publications whose outcome stayed unknown", f"{ledger.known_failures:,}"),
        *((f"**{what}**", counts[what]) for what in VERDICTS),
        ("told as unrecoverable, and had been destroyed", ledger.told["recovered=false"] - counts["told"]),
        *((f"**{what}**", count) for what, count in sorted(counts.items()) if what not in VERDICTS),
        ("told to clients, all in all", _listed(ledger.told)),
        ("processes of shards started", outcome.starts),
        ("memory of a shard", _memory(outcome.memory)),
    ]
    lines = ["| run | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return [*lines, *(f"| | {line} |" for line in outcome.bystanders)]


def _listed(counter: Counter[str]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in sorted(counter.items())) or "none"


def _memory(samples: Sequence[Sequence[int]]) -> str:
    """Of the process that has lived longest, and the most of any."""
    longest = max(samples, key=len, default=())
    if not longest:
        return "not measured"
    # Imports and the first clients are over after a few samples.
    first, last = longest[min(5, len(longest) - 1)], longest[-1]
    most = max(max(each) for each in samples)
    return (
        f"{first / MB:.0f} MB, {last / MB:.0f} MB at the end of the longest life ({len(longest) * 2} s); "
        f"at most {most / MB:.0f} MB"
    )
