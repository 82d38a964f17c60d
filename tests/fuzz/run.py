"""Sends mutated frames to all that reads what clients say, and tells what came of it.

    python -m tests.fuzz.run --frames 1000000 --seed 7
    python -m tests.fuzz.run --target http --seed 7 --first 1234 --frames 1     one case again

Without ``--target`` the frames are shared among the targets in this process; ``--target live`` starts a
``spread-node`` and sends them over sockets, ``live-tls`` over TLS. The exit code is 1 if anything was found.
Each finding is printed with the frames that show it and the command that repeats it. A case may depend on
those before it: if it does not fail alone, begin some hundred cases earlier.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, cast

from twisted.logger import globalLogBeginner

from tests.fuzz.live import play_live
from tests.fuzz.play import TARGETS, Outcome, play

__all__ = ["main", "table"]

SHARES = {"json": 0.2, "protobuf": 0.2, "session": 0.2, "websocket": 0.15, "http": 0.15, "storm": 0.1}
"""Of the frames, without ``--target``."""


def table(outcomes: list[Outcome]) -> str:
    """What runs came to, as Markdown."""
    lines = [
        "| target | frames | cases | MB | s | slowest, ms | growth: objects, kB | answers | errors | ends |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in outcomes:
        errors = {name[6:]: n for name, n in one.told.items() if name.startswith("error ")}
        ends = {name[6:]: n for name, n in one.told.items() if name.startswith("close ")}
        rest = {
            name: n for name, n in one.told.items() if not name.startswith(("error ", "close ", "status "))
        }
        rest |= {name[7:]: n for name, n in one.told.items() if name.startswith("status ")}
        lines.append(
            f"| {one.target} | {one.frames:,} | {one.cases:,} | {one.sent_bytes / 1e6:.0f} "
            f"| {one.seconds:.0f} | {one.slowest * 1000:.0f} "
            f"| {one.grown_objects:+,}, {one.grown_bytes / 1000:+,.0f} "
            f"| {_counts(rest)} | {_counts(errors)} | {_counts(ends)} |"
        )
    return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in sorted(counts.items())) or "–"


def main(arguments: list[str]) -> int:
    """The command; gives its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument("--frames", type=int, default=100_000, help="how many in all")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="by default another each time")
    parser.add_argument("--target", choices=[*TARGETS, "live", "live-tls"], help="one alone")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    options = parser.parse_args(arguments)
    # Otherwise Twisted keeps what is logged until somebody begins to.
    globalLogBeginner.beginLoggingTo([cast(Any, _forget)], redirectStandardIO=False, discardBuffer=True)
    print(f"seed {options.seed}", flush=True)
    shares = {options.target: 1.0} if options.target else SHARES
    outcomes = []
    is_good = True
    for name, share in shares.items():
        frames = max(1, round(options.frames * share))
        if name.startswith("live"):
            outcome = play_live(options.seed, frames, options.first, is_tls=name == "live-tls")
        else:
            outcome = play(name, options.seed, frames, options.first, _Progress(frames))
        outcomes.append(outcome)
        print(f"\r{name}: {outcome.frames:,} frames, {outcome.seconds:.1f} s{' ' * 20}", flush=True)
        try:
            outcome.check()
        except AssertionError as error:
            is_good = False
            print(error, flush=True)
    print(table(outcomes))
    return 0 if is_good else 1


def _forget(event: object) -> None:
    """What is logged and is no fault; faults are looked for by ``town.Faults``."""


class _Progress:
    """A line that is written over and over, twice a second at most."""

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self._told_at = 0.0

    def __call__(self, outcome: Outcome) -> None:
        now = time.monotonic()
        if now - self._told_at > 0.5 and sys.stdout.isatty():
            self._told_at = now
            print(f"\r{outcome.target}: {outcome.frames:,} of {self._frames:,} frames", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
