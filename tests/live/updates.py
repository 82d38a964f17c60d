"""The arena is updated again and again while bots play in it, well and badly, and none of them notices.

    python -m tests.live.updates --updates 50 --bots 200

Three shards of the arena (``docs/examples/arena``, a copy of it), bots over WebSocket in a process of their
own, and ``spread reload`` as an operator types it. Each update changes the rules; of five, one is broken on
purpose, in one of the ways of ``BROKEN`` after the other. A good one must run on all shards in the end, a bad
one must be refused with its error and leave all shards as they were; the bots keep books of every command.
The memory of the shards and the versions of the code in it are looked at all the while. Prints a line for
each update and a table; the exit code is 1 if anything was not as it must be.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.live.processes import READY, Node, home, ports_in_a_row, resident_bytes, until

__all__ = ["BROKEN", "Outcome", "Plan", "run", "table"]

ARENA = Path(__file__).parents[2] / "docs" / "examples" / "arena"
SPREAD = (sys.executable, "-m", "spread.client")
SECONDS = 60.0
"""For what takes a moment."""

GROWTH_MAX_BYTES = 6 << 20
"""Of a shard, from the tenth update to the last: what 40 versions of the code that were kept would exceed."""

GENERATIONS_MAX = 5
"""Those that the shard began with, runs and ran last; and two that Python has not collected yet."""

RULES = ("pistol", "shotgun")

STATE = """
    updates = 0

    def export_state(self) -> Any:
        return self.updates + 1

    def import_state(self, state: Any) -> None:
        self.updates = state

"""
"""The arena keeps all it has in its objects; so that something else is handed over, it counts its updates."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A way in which an update can be broken."""

    name: str
    file: str
    old: str
    """Replaced in the file by ``new``; "": all of it is."""
    new: str
    error: str
    """What ``spread reload`` must tell."""


BROKEN = (
    Broken("syntax error", "rules.py", "", "VERSION = (\n", r"SyntaxError: '\(' was never closed"),
    Broken(
        "failing import",
        "rules.py",
        "",
        "import nowhere_to_be_found\n",
        r"ModuleNotFoundError: .*nowhere_to_",
    ),
    Broken("failing check", "rules.py", "yard", "moon", r"(?s)in check.*KeyError: .*moon"),
    Broken(
        "failing import_state",
        "arena.py",
        "        self.updates = state",
        "        raise LookupError('where is the state?')",
        r"LookupError: where is the state\?",
    ),
    Broken(
        "endless loop at import",
        "rules.py",
        "",
        "while True:\n    pass\n",
        r"still runs after .* at rules\.py:",
    ),
    Broken(
        "an object's restore fails",
        "arena.py",
        "    def restore(self, state: Any) -> None:\n",
        "    def restore(self, state: Any) -> None:\n        raise LookupError('no such game')\n",
        r"LookupError: no such game",
    ),
)
"""The last one takes the place of every second failing ``import_state``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do."""

    updates: int = 50
    bots: int = 200
    every_seconds: float = 3.0
    """From one update to the next."""
    shards: int = 3
    rate: float = 2.0
    """Commands of each bot in a second."""
    load_seconds: float = 1.0


@dataclass(slots=True)
class Update:
    """What came of one update."""

    number: int
    what: str
    """"good", or how it was broken."""
    version: str
    """Which runs then."""
    seconds: float
    memory: list[int]
    """Of each shard, in bytes."""
    generations: list[int]
    wrong: list[str]


@dataclass(slots=True)
class Outcome:
    """What came of it all."""

    plan: Plan
    before: list[int] = field(default_factory=list)
    """Memory of each shard before the first update."""
    updates: list[Update] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    """Those that ran."""
    ticks: dict[str, float] = field(default_factory=dict)
    books: dict[str, Any] = field(default_factory=dict)
    """What the bots tell."""
    faults: list[str] = field(default_factory=list)
    log: str = ""
    """Of all shards."""

    def wrong(self) -> list[str]:
        """What must not be, in words."""
        found = [f"update {each.number}: {what}" for each in self.updates for what in each.wrong]
        found += self.faults
        books = self.books
        if not books:
            return [*found, "the bots have told nothing"]
        for what in ("lost", "doubled", "unknown", "refused", "fallen_back", "disconnects"):
            if books.get(what):
                found.append(f"{books[what]} {what}: {books.get('why')} {books.get('errors')}")
        if not books["answered"]:
            found.append("no command was answered")
        if self.versions != set(books["rules"]):
            found.append(f"bots have seen {sorted(books['rules'])}, but {sorted(self.versions)} have run")
        if len(self.updates) > 10:
            ten, last = self.updates[9], self.updates[-1]
            for shard, (early, late) in enumerate(zip(ten.memory, last.memory, strict=True)):
                if late - early > GROWTH_MAX_BYTES:
                    found.append(f"shard {shard} has grown by {(late - early) / 1e6:.1f} MB")
            if max(last.generations) > GENERATIONS_MAX:
                found.append(f"versions of the code in memory: {last.generations}")
        return found


class Stage:
    """The shards, the bots and the files."""

    def __init__(self, stack: ExitStack, plan: Plan) -> None:
        self.plan = plan
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sp-")))
        self.arena = directory / "arena"
        shutil.copytree(ARENA, self.arena, ignore=shutil.ignore_patterns("web", "tables", "__pycache__"))
        stack.enter_context(contextlib.chdir(self.arena))
        subprocess.run(
            [*SPREAD, "tables", "build", "arena.xlsx", "-o", "tables/"], check=True, timeout=SECONDS
        )
        self.originals = {name: (self.arena / name).read_text() for name in ("arena.py", "rules.py")}
        head, check, rest = self.originals["arena.py"].partition("    def check(self)")
        self.originals["arena.py"] = head + STATE.lstrip("\n") + check + rest
        for broken in BROKEN:
            self.write(0, broken)
        self.version = self.write(0)
        self.ops = ports_in_a_row(plan.shards)
        self.node = Node(
            *("--shard", f"0-{plan.shards - 1}", "--config", "arena.toml"),
            *("--ops", f"127.0.0.1:{self.ops}", "--app-load-seconds", f"{plan.load_seconds:g}"),
            home=stack.enter_context(home()),
        )
        stack.callback(self.node.close)
        self.node.wait_ready(plan.shards)
        found = READY.fullmatch(self.node.ready[-1][1])
        assert found is not None
        self.http = found[3]
        self.pids = [pid for _, pid in sorted(self.node.children().items())]

    def write(self, number: int, broken: Broken | None = None) -> str:
        """The sources of this update; gives the version that its rules call themselves."""
        version = f"{number} {RULES[number % 2]}s"
        texts = dict(self.originals)
        rules = re.sub(r"(?m)^VERSION = .*$", f'VERSION = "{version}"', texts["rules.py"])
        texts["rules.py"] = re.sub(r"(?m)^WEAPON = .*$", f'WEAPON = "{RULES[number % 2]}"', rules)
        if broken is not None:
            text = texts[broken.file]
            assert broken.old in text, broken
            texts[broken.file] = text.replace(broken.old, broken.new) if broken.old else broken.new
        for name, text in texts.items():
            (self.arena / name).write_text(text)
        return version

    def reload(self) -> subprocess.CompletedProcess[str]:
        command = [*SPREAD, "reload", "--ops", f"127.0.0.1:{self.ops}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)

    def memory(self) -> list[int]:
        return [resident_bytes(pid) for pid in self.pids]

    def metrics(self, shard: int) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.ops + shard, timeout=SECONDS)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        finally:
            connection.close()


def _value(metrics: str, pattern: str) -> str:
    found = re.search(rf"(?m)^{pattern}", metrics)
    return found[1] if found else "?"


def _update(stage: Stage, number: int, broken: Broken | None) -> Update:
    """Do one, and look at what came of it."""
    plan, wrong = stage.plan, list[str]()
    version = stage.write(number, broken)
    began = time.monotonic()
    said = stage.reload()
    seconds = time.monotonic() - began
    if broken is None:
        stage.version = version
        done = re.findall(rf"(?m)^shard (\d+): arena:Arena {version} \(before: ", said.stdout)
        if said.returncode or said.stderr or done != [str(shard) for shard in range(plan.shards)]:
            wrong.append(f"exit code {said.returncode}: {said.stdout}{said.stderr}")
    elif said.returncode != 1 or said.stdout or not re.search(broken.error, said.stderr):
        wrong.append(f"exit code {said.returncode}, {broken.error} is not in {said.stdout}{said.stderr}")
    all_metrics = [stage.metrics(shard) for shard in range(plan.shards)]
    running = {_value(each, r'spread_app_info\{.*version="([^"]*)".*\}') for each in all_metrics}
    if running != {stage.version}:
        wrong.append(f"{running} run, not {stage.version}")
    generations = [_value(each, r"spread_app_generations (\S+)") for each in all_metrics]
    return Update(
        number=number,
        what="good" if broken is None else broken.name,
        version=stage.version,
        seconds=seconds,
        memory=stage.memory(),
        generations=[int(float(each)) if each != "?" else 0 for each in generations],
        wrong=wrong,
    )


def run(plan: Plan) -> Outcome:
    """Do it, telling of each update as it is done."""
    outcome = Outcome(plan)
    with ExitStack() as stack:
        stage = Stage(stack, plan)
        outcome.versions.add(stage.version)
        bots = subprocess.Popen(
            [
                *(sys.executable, "bots.py", "--bots", str(plan.bots), "--seconds", "86400"),
                *("--rate", f"{plan.rate:g}", "--json", "--server", f"ws://{stage.http}"),
                *("--ops", f"127.0.0.1:{stage.ops}-{stage.ops + plan.shards - 1}"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        stack.callback(bots.kill)
        until(lambda: _seated(stage) >= plan.bots or bots.poll() is not None, SECONDS, "all bots play")
        time.sleep(5)  # of play, for memory to be what play takes
        outcome.before = stage.memory()
        print(_line("before", stage.version, 0.0, outcome.before, []), flush=True)
        began = time.monotonic()
        for number in range(1, plan.updates + 1):
            time.sleep(max(0.0, began + (number - 1) * plan.every_seconds - time.monotonic()))
            update = _update(stage, number, _broken(stage, number))
            outcome.updates.append(update)
            outcome.versions.add(update.version)
            print(_line(f"{number} {update.what}", *_told(update)), flush=True)
            for what in update.wrong:
                print(f"    {what}", flush=True)
        time.sleep(plan.every_seconds)  # for the last version to be seen
        try:
            bots.send_signal(signal.SIGINT)
            told, errors = bots.communicate(timeout=SECONDS)
            outcome.books = json.loads(told.splitlines()[-1])
        except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
            bots.kill()
            outcome.faults.append(f"the bots: {error!r} {bots.communicate()[1][-2000:]}")
        else:
            if bots.returncode:
                outcome.faults.append(f"the bots end with {bots.returncode}: {errors[-2000:]}")
        for shard in range(plan.shards):
            _look_at_ticks(outcome.ticks, stage.metrics(shard))
        if sorted(stage.node.children().values()) != sorted(stage.pids):
            outcome.faults.append("a shard has died")
        if stage.node.stop() != 0:
            outcome.faults.append(f"the shards did not end well: {stage.node.stderr()[-2000:]}")
        outcome.log = stage.node.stderr()
    return outcome


def _seated(stage: Stage) -> int:
    values = [
        _value(stage.metrics(shard), r"spread_clients(?:\{.*\})? (\S+)") for shard in range(stage.plan.shards)
    ]
    return int(sum(float(each) for each in values if each != "?"))


def _broken(stage: Stage, number: int) -> Broken | None:
    """How this one is broken: one of five is."""
    if number % 5:
        return None
    turn, way = divmod(number // 5 - 1, 5)
    # Whoever has no objects takes what cannot restore any; the first shard must be one that has.
    has_objects = _value(stage.metrics(0), r"spread_owners_objects (\S+)") not in ("?", "0.0")
    return BROKEN[5] if way == 3 and turn % 2 and has_objects else BROKEN[way]


def _look_at_ticks(ticks: dict[str, float], metrics: str) -> None:
    pattern = r'(?m)^spread_tick_late_seconds_bucket\{.*le="([^"]+)".*\} (\S+)'
    for bound, count in re.findall(pattern, metrics):
        ticks[bound] = ticks.get(bound, 0.0) + float(count)


def _told(update: Update) -> tuple[str, float, list[int], list[int]]:
    return update.version, update.seconds, update.memory, update.generations


def _line(what: str, version: str, seconds: float, memory: list[int], generations: list[int]) -> str:
    sizes = " ".join(f"{each / 1e6:6.1f}" for each in memory)
    return f"{what:<32} runs {version:<12} {seconds:5.2f} s   MB {sizes}   generations {generations or ''}"


def table(outcome: Outcome) -> str:
    """All of it, for people."""
    good = [each.seconds for each in outcome.updates if each.what == "good"]
    books = outcome.books
    lines = [
        f"{len(outcome.updates)} updates, {len(good)} of them good, {outcome.plan.bots} bots, "
        f"{outcome.plan.shards} shards",
    ]
    if good:
        lines.append(
            f"spread reload, all shards: {sorted(good)[len(good) // 2]:.2f} s, at most {max(good):.2f} s"
        )
    for at, memory in [
        ("before", outcome.before),
        *((f"after {each.number}", each.memory) for each in outcome.updates if each.number % 10 == 0),
    ]:
        lines.append(f"MB of each shard {at:<9} {' '.join(f'{size / 1e6:.1f}' for size in memory)}")
    total = outcome.ticks.get("+Inf", 0.0)
    if total:
        shares = "  ".join(f"{bound} s {count / total:.4f}" for bound, count in outcome.ticks.items())
        lines.append(f"ticks late by at most: {shares}")
    for name in ("answered", "lost", "doubled", "unknown", "refused", "fallen_back", "disconnects", "states"):
        lines.append(f"{name:<12} {books.get(name, '?')}")
    for name in ("ms_between_states", "ms_to_answer"):
        lines.append(f"{name:<18} {books.get(name, '?')}")
    lines.append(
        f"rules that bots have seen: {len(books.get('rules', ()))} of {len(outcome.versions)} that ran"
    )
    return "\n".join(lines)


def main() -> int:
    """See the top of this module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=int, default=Plan().updates)
    parser.add_argument("--bots", type=int, default=Plan().bots)
    parser.add_argument("--rate", type=float, default=Plan().rate, help="commands a second of each bot")
    parser.add_argument("--every", type=float, default=Plan().every_seconds, help="seconds between updates")
    parser.add_argument("--shards", type=int, default=Plan().shards)
    parser.add_argument("--log", type=Path, help="a file for what the shards have logged")
    options = parser.parse_args()
    outcome = run(
        Plan(
            updates=options.updates,
            bots=options.bots,
            rate=options.rate,
            every_seconds=options.every,
            shards=options.shards,
        )
    )
    print(table(outcome))
    if options.log is not None:
        options.log.write_text(outcome.log)
    wrong = outcome.wrong()
    print("\n".join(wrong), file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
