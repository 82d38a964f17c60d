"""The owners of channels are killed, and stand still, again and again, under load; witnesses look on.

    python -m tests.live.takeover --kills 20 --stops 5

Real shards, a real Valkey, and clients of the protocol over WebSocket on all of them, each in all channels.
The objects publish whenever they tick, with their epoch and process; clients send commands at a steady rate,
and note which were acknowledged. A shard is killed (SIGKILL), and started again: at once, or when others have
taken over, in turn. Or it is stopped (SIGSTOP) until others have taken over, and goes on: what its objects
say then must be refused. Prints a line for each, and a table; the exit code is 1 if something is wrong.
``takeover_judge`` says what.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tests.hub.servers import Valkey
from tests.live.processes import READY, Node, home
from tests.live.stalled import got, metric
from tests.live.takeover_judge import Judge, Takeover
from tests.live.wires import Wire, Wires

__all__ = ["Plan", "Stage", "run", "table"]

CONFIG = """
[client]
allow_anonymous_connect_without_token = true
channel_limit = 100000
[[channel.namespaces]]
name = "match"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
"""

PATIENCE_SECONDS = 30.0

LOOK_SECONDS = 0.6
"""After it has come up, a shard has been seen by all others within this time."""

UNUSED = 1_000_000
"""Ids of commands begin above it; below are those of everything else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do."""

    kills: int = 20
    stops: int = 5
    shards: int = 3
    channels: int = 30
    clients: int = 2
    """Of each shard, each in all channels."""
    rate: float = 100.0
    """Commands in a second, in all."""
    tick_seconds: float = 0.1
    snapshot_seconds: float = 1.0
    takeover_seconds: float = 3.0
    slack_seconds: float = 0.3
    """For the time that a snapshot, or an answer, is on its way."""
    seed: int = 1


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    plan: Plan
    judge: Judge
    errors: Counter[str] = field(default_factory=Counter)
    """Answers to commands: code and message."""
    unanswered: int = 0
    forced: int = 0
    """Channels that were taken from a shard that lived."""
    unsure: int = 0
    """Times a shard could not renew its pulse in time, of those that run in the end."""
    longest_turn: float = 0.0
    """Of their reactors, in seconds."""
    faults: list[str] = field(default_factory=list)

    def wrong(self) -> list[str]:
        """What must not be, in words."""
        found = [*self.faults, *self.judge.wrong()]
        if self.plan.stops and not self.judge.refused:
            found.append("nothing was refused of those that were woken")
        return found


class Player:
    """A client in all channels: a witness, that commands."""

    def __init__(self, stage: Stage, number: int, port: int) -> None:
        self._stage = stage
        self.number = number
        self.is_there = False
        self.waiting: dict[int, int] = {}
        """Ids of its commands, and their numbers."""
        self.asked: dict[int, Callable[[Any], None]] = {}
        self._ids = UNUSED
        self._missing = len(stage.channels)
        self.wire: Wire = stage.wires.open(port, self._heard)
        subscribes = [
            {"id": 2 + at, "subscribe": {"channel": channel}} for at, channel in enumerate(stage.channels)
        ]
        self.wire.say({"id": 1, "connect": {}})
        for at in range(0, len(subscribes), 500):  # a frame has an end
            self.wire.say(*subscribes[at : at + 500])

    def _heard(self, reply: Any) -> None:
        now = time.monotonic()
        if "push" in reply:
            push = reply["push"]
            self._stage.judge.published(self.number, push["channel"], push["pub"]["data"], now)
            return
        id = reply["id"]
        if id in self.waiting:
            self._stage.answered(self.waiting.pop(id), reply, now)
        elif id in self.asked:
            self.asked.pop(id)(reply)
        else:
            assert "error" not in reply, reply
            self._missing -= "subscribe" in reply
            self.is_there = not self._missing

    def call(self, number: int, channel: str) -> None:
        """Send the command with this number."""
        self._ids += 1
        self.waiting[self._ids] = number
        self.wire.say({"id": self._ids, "rpc": {"method": f"{channel}/do", "data": {"n": number}}})

    def ask(self, method: str, answered: Callable[[Any], None]) -> None:
        """Ask something; not counted."""
        self._ids += 1
        self.asked[self._ids] = answered
        self.wire.say({"id": self._ids, "rpc": {"method": method, "data": {}}})


@dataclass(slots=True)
class Shard:
    """One process, and its clients."""

    node: Node
    writer: str = ""
    """What its objects call themselves."""
    ops: int = 0
    players: list[Player] = field(default_factory=list)
    up_at: float = 0.0
    """Since when all of them are in all channels; 0: they are not."""


class Stage:
    """Everything that runs."""

    def __init__(self, stack: ExitStack, plan: Plan, say: Callable[[str], None] = print) -> None:
        self.plan = plan
        self.judge = Judge(plan.takeover_seconds, plan.snapshot_seconds, plan.slack_seconds)
        self.outcome = Outcome(plan, self.judge)
        self.channels = [f"match:{number}" for number in range(plan.channels)]
        self._say = say
        self._stack = stack
        self._random = random.Random(plan.seed)
        self._home = stack.enter_context(home())
        self._config = self._home.parent / "takeover.toml"
        self._config.write_text(CONFIG)
        self._hub = stack.enter_context(Valkey()).url
        self.wires = Wires()
        stack.callback(self.wires.close)
        self.shards: dict[int, Shard] = {}
        self._players = 0
        self._called = 0
        self._due_at = time.monotonic()
        self.is_loaded = False
        for number in range(plan.shards):
            self.start(number)
        self._until(lambda: all(map(self._is_up, self.shards.values())), "all shards are there")
        self.is_loaded = True

    # -- shards --------------------------------------------------------------------------------------------

    def start(self, number: int) -> None:
        """A process for a shard; it gets its clients when it is ready."""
        directory = self._home.parent / f"h{number}.{time.monotonic_ns()}"
        os.environ["TAKEOVER_SNAPSHOT_SECONDS"] = str(self.plan.snapshot_seconds)
        os.environ["TAKEOVER_TICK_SECONDS"] = str(self.plan.tick_seconds)
        node = Node(
            *("--shard", str(number), "--app", "tests.live.takeover_game:Game", "--hub", self._hub),
            *("--config", str(self._config), "--ops", "127.0.0.1:0"),
            home=directory,
        )
        self._stack.callback(node.close)
        self.shards[number] = Shard(node, f"{number}.{node.pid}")

    def _is_up(self, shard: Shard) -> bool:
        assert shard.node.process.poll() is None, shard.node.stderr()
        if not shard.players and shard.node.ready:
            found = READY.fullmatch(shard.node.ready[0][1])
            assert found, shard.node.ready
            port, shard.ops = (int(found[group].rpartition(":")[2]) for group in (3, 4))
            for _ in range(self.plan.clients):
                self._players += 1
                shard.players.append(Player(self, self._players, port))
        if not shard.players or not all(player.is_there for player in shard.players):
            return False
        shard.up_at = shard.up_at or time.monotonic()
        return True

    # -- the load ------------------------------------------------------------------------------------------

    def _until(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
            self.wires.turn(0.01)
            self._offer()

    def _offer(self) -> None:
        """Send the commands that are due."""
        now = time.monotonic()
        if not self.is_loaded:
            self._due_at = now
            return
        players = [player for shard in self.shards.values() for player in shard.players if player.is_there]
        while self._due_at <= now and players:
            self._due_at += 1 / self.plan.rate
            self._called += 1
            channel = self._random.choice(self.channels)
            self.judge.called(self._called, channel)
            self._random.choice(players).call(self._called, channel)

    def answered(self, number: int, reply: Any, now: float) -> None:
        """A command was."""
        self.judge.answered(number, reply, now)
        if error := reply.get("error"):
            self.outcome.errors[f"{error['code']} {error['message']}"] += 1

    # -- what is done --------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Everybody is there, and each channel has had its owner for longer than a snapshot."""
        self._until(lambda: all(map(self._is_up, self.shards.values())), "all shards are there")
        self._until(self._is_settled, "all channels have their owners")

    def _is_settled(self) -> bool:
        judge, now = self.judge, time.monotonic()
        alive = {shard.writer for shard in self.shards.values()}
        if any(now - shard.up_at < LOOK_SECONDS for shard in self.shards.values()):
            return False
        for channel in self.channels:
            _, writer, since = judge.newest.get(channel, (0, "", now))
            if writer not in alive or now - since < self.plan.snapshot_seconds + 0.3:
                return False
            if now - judge.heard_at[channel] > 5 * self.plan.tick_seconds:
                return False
        # With so many, each shard has some: else what belongs to one that has come is not there yet.
        owners = {judge.newest[channel][1] for channel in self.channels}
        return owners == alive or len(self.channels) < 10 * len(alive)

    def richest(self) -> int:
        """The shard that owns most."""
        owners = Counter(writer for _, writer, _ in self.judge.newest.values())
        return max(self.shards, key=lambda number: owners[self.shards[number].writer])

    def kill(self, number: int, *, is_back_at_once: bool) -> list[Takeover]:
        """SIGKILL, and another process in its place."""
        self.settle()
        shard = self.shards[number]
        for player in shard.players:
            player.is_there = False
        now = time.monotonic()
        os.kill(shard.node.pid, signal.SIGKILL)
        begun = self.judge.struck(shard.writer, now, is_kill=True)
        if is_back_at_once:
            self.start(number)
        self._until(lambda: all(each.after >= 0 for each in begun), "others take over")
        if not is_back_at_once:
            self.start(number)
        self.outcome.unanswered += sum(len(player.waiting) for player in shard.players)
        return begun

    def stop(self, number: int) -> tuple[list[Takeover], int]:
        """SIGSTOP until all is taken over, and SIGCONT; also gives what was refused then."""
        self.settle()
        shard = self.shards[number]
        refused_before = self._refused(shard)
        begun = self.stand_still(number)
        fenced = len({each.channel for each in self.judge.takeovers if each.old == shard.writer})

        def all_gone() -> bool:
            return metric(got(shard.ops, "/metrics")[1], "spread_owners_fenced_total") >= fenced

        self._until(all_gone, f"shard {number} has found out that its {fenced} channels are another's")
        self.settle()  # what belongs there is handed back to it
        refused = self._refused(shard) - refused_before
        self.judge.refused += refused
        return begun, refused

    def stand_still(self, number: int) -> list[Takeover]:
        """The first part of it."""
        shard = self.shards[number]
        now = time.monotonic()
        os.kill(shard.node.pid, signal.SIGSTOP)
        for player in shard.players:
            player.is_there = False
        try:
            begun = self.judge.struck(shard.writer, now, is_kill=False)
            self._until(lambda: all(each.after >= 0 for each in begun), "others take over")
        finally:
            os.kill(shard.node.pid, signal.SIGCONT)
        for player in shard.players:
            player.is_there = True
        return begun

    def plant(self, number: int) -> None:
        """A shard's objects publish without their fence from now on; it stands still, and that is seen."""
        answers: list[Any] = []
        self.shards[number].players[0].ask("plant", answers.append)
        self._until(lambda: answers, "it is planted")
        self.stand_still(number)
        self._until(lambda: self.judge.stale, "something is seen that must not be")

    def _refused(self, shard: Shard) -> int:
        answers: list[Any] = []
        shard.players[0].ask("refused", answers.append)
        self._until(lambda: answers, "it says how much was refused")
        refused: int = answers[0]["rpc"]["data"]
        return refused

    def end(self) -> Outcome:
        """No more load; what each object has done is compared with what was acknowledged."""
        self.settle()
        self.is_loaded = False
        players = [player for shard in self.shards.values() for player in shard.players]
        self._until(lambda: not any(player.waiting for player in players), "everybody is answered")
        judge, outcome = self.judge, self.outcome
        for at, channel in enumerate(self.channels):

            def told(reply: Any, channel: str = channel) -> None:
                judge.final[channel] = reply["rpc"]["data"]["all"]

            players[at % len(players)].ask(f"{channel}/all", told)
        self._until(lambda: len(judge.final) == len(self.channels), "all objects have told what they did")
        for shard in self.shards.values():
            text = got(shard.ops, "/metrics")[1]
            outcome.forced += metric(text, "spread_owners_taken_by_force_total")
            outcome.unsure += metric(text, "spread_owners_suspensions_total")
            turn = re.search(r"^spread_longest_turn_seconds (\S+)$", text, re.MULTILINE)
            outcome.longest_turn = max(outcome.longest_turn, float(turn[1]) if turn else 0.0)
            if "Traceback" in shard.node.stderr():
                outcome.faults.append(shard.node.stderr()[-2000:])
        outcome.faults += [
            f"a client was disconnected: {player.wire.closed}" for player in players if player.wire.closed
        ]
        return outcome

    def play(self) -> Outcome:
        """All of it."""
        plan = self.plan
        stops = {(turn + 1) * plan.kills // max(1, plan.stops) for turn in range(plan.stops)}
        done_stops = 0
        for turn in range(plan.kills):
            number = turn % plan.shards
            is_back_at_once = turn % 2 == 1
            begun = self.kill(number, is_back_at_once=is_back_at_once)
            how = "back at once" if is_back_at_once else "back later"
            self._tell(f"kill {turn + 1}/{plan.kills}", number, begun, how)
            while done_stops < plan.stops and len([at for at in stops if at <= turn + 1]) > done_stops:
                done_stops += 1
                self._stop_one(done_stops)
        while done_stops < plan.stops:
            done_stops += 1
            self._stop_one(done_stops)
        return self.end()

    def _stop_one(self, turn: int) -> None:
        number = turn % self.plan.shards
        begun, refused = self.stop(number)
        self._tell(f"stop {turn}/{self.plan.stops}", number, begun, f"{refused} publications refused")

    def _tell(self, what: str, number: int, begun: list[Takeover], more: str) -> None:
        slowest = max((each.after for each in begun), default=0.0)
        oldest = max((each.age for each in begun), default=0.0)
        self._say(
            f"{what}: shard {number}, {len(begun)} channels taken over within {slowest:.2f} s, "
            f"from states {oldest:.2f} s old at most; {more}"
        )


def run(plan: Plan, say: Callable[[str], None] = print) -> Outcome:
    """Do it."""
    with ExitStack() as stack:
        return Stage(stack, plan, say).play()


def table(outcome: Outcome) -> str:
    """The outcome as Markdown."""
    plan, judge = outcome.plan, outcome.judge
    rows = [
        (
            "shards, channels, clients, commands a second",
            f"{plan.shards}, {plan.channels}, {plan.shards * plan.clients}, {plan.rate:g}",
        )
    ]
    for what, is_kill in (("killed", True), ("stopped", False)):
        times = sorted(each.after for each in judge.takeovers if each.is_kill is is_kill)
        rounds = len({each.at for each in judge.takeovers if each.is_kill is is_kill})
        if times:
            told = f"p50 {times[len(times) // 2]:.2f} s, max {times[-1]:.2f} s"
            rows.append((f"taken over from one that was {what}: {rounds} times, {len(times)} channels", told))
    ages = [each.age for each in judge.takeovers]
    undone, lost = judge.undone(), judge.lost()
    acknowledged = sum(1 for each in judge.commands.values() if each.acknowledged_at)
    errors = ", ".join(f"{count:,} × {error}" for error, count in outcome.errors.items()) or "none"
    rows += [
        ("age of the state that was gone on from, at most", f"{max(ages, default=0):.2f} s"),
        (
            "publications seen by witnesses; in epochs with two writers; of an owner that was over",
            f"{judge.publications:,}; {len(judge.two_writers)}; {len(judge.stale)}",
        ),
        ("publications of woken owners that were refused", f"{judge.refused:,}"),
        ("channels taken by force from a shard that lived", f"{outcome.forced:,}"),
        (
            "of the shards at the end: pulses that were late, longest turn of a reactor",
            f"{outcome.unsure}, {outcome.longest_turn:.2f} s",
        ),
        (
            "commands called, acknowledged, without an answer since their shard was killed",
            f"{len(judge.commands):,}, {acknowledged:,}, {outcome.unanswered:,}",
        ),
        ("errors", errors),
        (
            "acknowledged commands that went with the state since the last snapshot",
            f"{len(undone - lost):,}",
        ),
        ("commands lost, done twice", f"{len(lost)}, {len(judge.twice())}"),
    ]
    return "\n".join(["| what | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def main() -> int:
    """The command."""
    os.chdir(Path(__file__).parent.parent.parent)
    parser = argparse.ArgumentParser(prog="python -m tests.live.takeover")
    for setting in fields(Plan):
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}",
            type=type(setting.default),
            default=setting.default,
            help="by default %(default)s",
        )
    outcome = run(Plan(**vars(parser.parse_args())), lambda text: print(text, flush=True))
    print(table(outcome))
    wrong = outcome.wrong()
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
