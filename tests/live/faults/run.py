"""One run of the harness: ``python -m tests.live.faults.run --faults 200 --seed 1``.

Starts a stage and its witnesses, does the faults of the plan one after the other, and judges. Exits with 1
when anything was lost, doubled, out of order, invented, told without a cause, or took longer to recover than
its kind of fault may.

*Recovery* is counted for each subscriber that a fault hurts, from the end of the fault to the first delivery
of a publication that had not been acknowledged when the fault ended. So it holds the restart of what was
killed, the back-off of the SDK, its recovery, and the wait for the next publication of the channel.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.live.faults.ledger import Finding, Ledger, Sent
from tests.live.faults.plan import Strike, drawn, told_slice
from tests.live.faults.stage import Hurt, Stage, stage_class
from tests.live.faults.table import Done, Outcome, printed
from tests.live.faults.witnesses import Role, Troupe, cast

__all__ = ["Options", "Run", "main", "options_of", "run"]

POLL_SECONDS = 0.05
WHOLE_SECONDS = 30.0
"""For shards and servers to be well again before the next fault."""
UNACKNOWLEDGED_SECONDS = 1.0
"""An acknowledgement that is later than this after the delivery was not there when the fault ended."""
OPEN_SECONDS = 60.0
WARM_UP_SECONDS = 2.0
MEMORY_SECONDS = 2.0
SHOWN_MAX = 12
"""Findings of one kind that are printed."""


@dataclass(frozen=True)
class Options:
    """Of the command line."""

    faults: int
    seed: int
    stage: str = "valkey"
    shards: int = 4
    publishers: int = 100
    subscribers: int = 400
    channels: int = 50
    interval: float = 0.6
    kinds: tuple[str, ...] = ()
    only: tuple[int, int] | None = None
    plant: str = ""
    slack: float = 1.0
    patience: float = 30.0
    """A subscriber that has seen nothing for so long after a fault is told as silent."""
    quiet: float = 1.0
    """So many times as long as the plan says is it quiet between the faults, and before the first."""
    catch_up: float = 30.0
    """How long subscribers may take in the end until they have all that was acknowledged."""
    keep: str = ""

    def replay(self, first: int, last: int) -> str:
        """The command that does a slice of the plan again."""
        parts = [
            f"python -m tests.live.faults.run --faults {self.faults} --seed {self.seed} --stage {self.stage}",
            f"--shards {self.shards} --publishers {self.publishers} --subscribers {self.subscribers}",
            f"--channels {self.channels} --interval {self.interval:g}",
        ]
        if self.kinds:
            parts.append(f"--kinds {','.join(self.kinds)}")
        if self.quiet != 1.0:
            parts.append(f"--quiet {self.quiet:g}")
        if self.plant:
            parts.append(f"--plant {self.plant}")
        return " ".join([*parts, f"--only {first}-{last}"])


@dataclass
class _Affected:
    """A subscriber that has not recovered yet."""

    seen: list[tuple[float, Sent]] = field(default_factory=list)


class Run:
    """See the module."""

    def __init__(
        self, options: Options, stage: Stage, ledger: Ledger, troupe: Troupe, roles: Sequence[Role]
    ) -> None:
        self._options = options
        self._stage = stage
        self._ledger = ledger
        self._troupe = troupe
        self._roles = {role.who: role for role in roles}
        self._kinds = {kind.name: kind for kind in stage.kinds()}
        self._memory: dict[tuple[int, int], list[int]] = {}
        self._measured_at = 0.0
        self.done: list[Done] = []
        self.findings: list[Finding] = []
        self.began_at = 0.0

    # -- watching --------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Take what the witnesses have written, and measure memory now and then."""
        for line in self._troupe.lines():
            self._ledger.take(line)
        now = time.monotonic()
        if now - self._measured_at >= MEMORY_SECONDS:
            self._measured_at = now
            for shard in self._stage.shards:
                if size := shard.resident_bytes():
                    self._memory.setdefault((shard.number, shard.pid), []).append(size)

    def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Poll until it holds; whether it did in time."""
        deadline = time.monotonic() + seconds
        while True:
            self.poll()
            if condition():
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)

    def _for(self, seconds: float) -> None:
        self.until(lambda: False, seconds)

    # -- the parts of a run ----------------------------------------------------------------------------

    def open(self) -> None:
        """Everybody is there, and talks."""
        ledger = self._ledger
        for role in self._roles.values():
            if role.interval:
                ledger.publisher(role.who, role.channel)
            else:
                ledger.subscriber(role.who, role.channel)
        self._troupe.open()
        if not self.until(lambda: all(s.is_subscribed for s in ledger.subscribers.values()), OPEN_SECONDS):
            late = [s.who for s in ledger.subscribers.values() if not s.is_subscribed]
            raise AssertionError(f"not subscribed: {late[:20]}\n{self._troupe.complaints()[-2000:]}")
        self.began_at = time.monotonic()
        self._troupe.publish()
        self._for(WARM_UP_SECONDS * self._options.quiet)

    def strike(self, strike: Strike) -> Done:
        """One fault, from its begin until all have recovered and the gap is over."""
        kind = self._kinds[strike.kind]
        self.until(self._stage.is_whole, WHOLE_SECONDS)
        began_at = time.monotonic()
        hurt = kind.begin(strike)
        affected = {who: _Affected() for who in self._hurt(hurt)}
        if hurt.destroys:
            self._ledger.destroyed(hurt.channels, began_at, began_at + strike.seconds)
        if kind.end is not None:
            self._for(strike.seconds)
            kind.end(strike)
            ended_at = time.monotonic()
        else:
            ended_at = began_at
        for who in affected:
            self._ledger.watched[who] = []
        recovered = self._recovered(affected, ended_at)
        self._ledger.watched.clear()
        done = Done(strike, kind, began_at, ended_at, recovered, sorted(affected.keys() - recovered.keys()))
        self.done.append(done)
        self._check(done)
        self._for(strike.gap * self._options.quiet)
        return done

    def _hurt(self, hurt: Hurt) -> list[str]:
        found = []
        for subscriber in self._ledger.subscribers.values():
            role = self._roles[subscriber.who]
            shard = role.shards[subscriber.endpoint]
            if (
                (hurt.shards is None or shard in hurt.shards)
                and (hurt.channels is None or role.channel in hurt.channels)
                and (role.is_gated or not hurt.only_gated)
            ):
                found.append(subscriber.who)
        return found

    def _recovered(self, affected: dict[str, _Affected], ended_at: float) -> dict[str, float]:
        """Seconds, by subscriber."""
        recovered: dict[str, float] = {}
        watched = self._ledger.watched

        def look() -> bool:
            now = time.monotonic()
            for who in list(watched):
                seen = affected[who].seen
                seen += watched[who]
                watched[who].clear()
                while seen:
                    at, sent = seen[0]
                    if at < ended_at or sent.acknowledged_at <= ended_at:
                        seen.pop(0)
                    elif sent.acknowledged_at != float("inf") or now - at > UNACKNOWLEDGED_SECONDS:
                        recovered[who] = at - ended_at
                        del watched[who]
                        break
                    else:
                        break
            return not watched

        self.until(look, self._options.patience)
        return recovered

    def _check(self, done: Done) -> None:
        limit = done.kind.limit_seconds * self._options.slack
        for who in done.silent:
            details = f"nothing for {self._options.patience:g} s after {done.strike.kind}"
            self._find("silent", done.ended_at + self._options.patience, who, details)
        late = [who for who, seconds in done.recovered.items() if seconds > limit]
        for who in late[:3]:
            details = (
                f"{done.recovered[who]:.2f} s to recover from {done.strike.kind}, more than {limit:g} s"
                f" ({self._roles[who].way}; {len(late)} like this)"
            )
            self._find("slow", done.ended_at + limit, who, details)

    def _find(self, what: str, at: float, who: str, details: str) -> None:
        self.findings.append(Finding(what, at, who, self._roles[who].channel, details))

    def finish(self) -> Outcome:
        """Publishers stop, subscribers catch up, and all is judged."""
        asked = self._troupe.cease()
        ceasing = time.monotonic()
        self._for(0.5)
        self._troupe.ceased(asked)
        took = time.monotonic() - self.began_at
        ledger = self._ledger
        self.until(lambda: ledger.behind() == 0, self._options.catch_up)
        self._for(1.0)  # for what should not come
        findings = [*ledger.verdict(), *self.findings]
        for at, number, code in self._stage.exits:
            if code != 4:  # cannot reach its hub at the start, and is started again
                findings.append(Finding("died", at, f"shard {number}", "-", f"exited with {code}"))
        for shard in self._stage.shards:
            text = shard.log.read_text(errors="replace")
            if (place := text.find("Traceback")) >= 0:
                findings.append(
                    Finding(
                        "raised", ceasing, f"shard {shard.number}", "-", text[max(0, place - 300) :][:1500]
                    )
                )
        return Outcome(
            seconds=took,
            done=self.done,
            ledger=ledger,
            findings=sorted(findings, key=lambda finding: finding.at),
            memory=list(self._memory.values()),
            starts=sum(shard.starts for shard in self._stage.shards),
            bystanders=self._stage.hub_bystanders(),
        )

    def under_way(self, finding: Finding) -> list[Done]:
        """The faults that may have to do with it."""
        before = [done for done in self.done if done.began_at <= finding.at + 0.5]
        return before[-2:] if before else self.done[:1]


def run(options: Options, say: Callable[[str], None] = print) -> tuple[Outcome, int]:
    """A whole run; what came of it, and the exit code."""
    channels = [f"c{number}" for number in range(options.channels)]
    module = ("tests.live.faults.planted", options.plant) if options.plant else ("spread.node",)
    stage = stage_class(options.stage)(options.shards, channels, module)
    kinds = {kind.name: kind for kind in stage.kinds()}
    if unknown := set(options.kinds) - kinds.keys():
        raise ValueError(f"no such kinds: {', '.join(unknown)}; there are {', '.join(kinds)}")
    offers = [kind.offer for name, kind in kinds.items() if not options.kinds or name in options.kinds]
    plan = drawn(options.seed, offers, options.faults)
    if options.only is not None:
        plan = plan[options.only[0] - 1 : options.only[1]]
    roles = cast(options.shards, channels, options.subscribers, options.publishers, options.interval)
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="sp-w-", dir="/tmp"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        stack.callback(stage.close)
        stage.start()
        troupe = Troupe(stage, roles, directory, stack)
        now = Run(options, stage, Ledger(), troupe, roles)
        now.open()
        say(f"{len(roles)} clients on {options.shards} shards, {len(plan)} faults, seed {options.seed}")
        for strike in plan:
            done = now.strike(strike)
            say(f"{time.monotonic() - now.began_at:7.1f} s {strike}: {done}")
        outcome = now.finish()
        if options.keep:
            for shard in stage.shards:
                shutil.copy(shard.log, options.keep)
            for path in directory.iterdir():
                shutil.copy(path, options.keep)
        if complaints := troupe.complaints():
            say(complaints[-2_000:])
    _tell(options, now, outcome, say)
    say(printed(options.stage, options.seed, outcome))
    return outcome, 1 if outcome.findings else 0


def _tell(options: Options, now: Run, outcome: Outcome, say: Callable[[str], None]) -> None:
    shown: dict[str, int] = {}
    for finding in outcome.findings:
        shown[finding.what] = shown.get(finding.what, 0) + 1
        if shown[finding.what] > SHOWN_MAX:
            continue
        faults = now.under_way(finding)
        say(f"{finding.at - now.began_at:7.1f} s {finding}")
        if faults:
            for done in faults:
                say(f"            fault {done.strike} at {done.began_at - now.began_at:.1f} s")
            say(f"            {options.replay(faults[0].strike.number, faults[-1].strike.number)}")
    for what, count in shown.items():
        if count > SHOWN_MAX:
            say(f"{what}: {count - SHOWN_MAX} more")


def options_of(arguments: Sequence[str]) -> Options:
    """The command line, read."""
    parser = argparse.ArgumentParser(prog="python -m tests.live.faults.run", description=__doc__)
    parser.add_argument("--faults", type=int, default=50, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="of the plan")
    parser.add_argument("--stage", default="valkey", help="which hubs there are")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--publishers", type=int, default=100)
    parser.add_argument("--subscribers", type=int, default=400)
    parser.add_argument("--channels", type=int, default=50)
    parser.add_argument(
        "--interval", type=float, default=0.6, help="seconds between a publisher's publications"
    )
    parser.add_argument("--kinds", default="", help="only these kinds of faults, with commas between them")
    parser.add_argument("--only", type=told_slice, help="only these faults of the plan, as 17 or 17-23")
    parser.add_argument("--plant", default="", help="a safety that is switched off, see planted.py")
    parser.add_argument("--slack", type=float, default=1.0, help="recovery may take so many times its limit")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds until one counts as silent")
    parser.add_argument(
        "--quiet", type=float, default=1.0, help="gaps between faults are so many times as long"
    )
    parser.add_argument("--catch-up", type=float, default=30.0, help="seconds for the last ones to arrive")
    parser.add_argument("--keep", default="", help="a directory for logs and what witnesses wrote")
    found = parser.parse_args(arguments)
    found.kinds = tuple(name for name in found.kinds.split(",") if name)
    return Options(**vars(found))


def main(arguments: Sequence[str]) -> int:
    """The command; its exit code."""
    return run(options_of(arguments), lambda text: print(text, flush=True))[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
