"""A Redis that stands still under load, and what shards and clients make of it.

    python -m tests.live.stalled --seconds 60 --rate 2000

Real shards, a real Valkey with ``appendfsync always``, and clients of the protocol over WebSocket. Publishers
offer their publications at a steady rate, whatever is answered, to channels that keep history; each shard
has subscribers to all of them. The server is stopped (SIGSTOP) for so long, and goes on. All the while the
memory of the shards is looked at, whether they are ready, how long clients wait for pings, and what those
are answered who ask and who come during the stall. In the end everything that was acknowledged must have
reached every subscriber once and in order. Prints a table; the exit code is 1 if that is not so.
"""

from __future__ import annotations

import argparse
import http.client
import re
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, fields
from typing import Any

from tests.hub.servers import Valkey
from tests.live.processes import READY, Node, home, resident_bytes, started
from tests.live.raw import Gone, JsonClient
from tests.live.wires import Wires

__all__ = ["Outcome", "Plan", "run", "table"]

PING_SECONDS = 2.0

PHASES = ("before", "stalled", "after")

CONFIG = f"""
[client]
allow_anonymous_connect_without_token = true
ping_interval = "{PING_SECONDS:g}s"
pong_timeout = "1s"
presence_update_interval = "5s"

[channel.without_namespace]
presence = true
history_size = 20000
history_ttl = "600s"
force_recovery = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_presence_for_client = true
allow_presence_for_anonymous = true
allow_history_for_client = true
allow_history_for_anonymous = true
"""

UNSENT_BYTES = 65536
"""A publisher for which so much waits in this process is not read by its shard: it offers nothing more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do."""

    seconds: float = 60.0
    """The server stands still."""
    rate: float = 2000.0
    """Publications offered in a second, in all."""
    before_seconds: float = 5.0
    after_seconds: float = 10.0
    shards: int = 2
    channels: int = 20
    subscribers: int = 2
    """Of each shard, each in all channels."""
    publishers: int = 20
    """In all."""
    size: int = 100
    """Characters of a publication, about."""


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    plan: Plan
    sent: int = 0
    held_up: int = 0
    """Publications that were due while no publisher was read."""
    acknowledged: Counter[str] = field(default_factory=Counter)
    """By the phase in which they were sent: before, stalled, after."""
    errors: Counter[str] = field(default_factory=Counter)
    """Answers to publications: code and message."""
    final_errors: int = 0
    """Of them such that are not said to be temporary."""
    longest_answer: float = 0.0
    """Seconds from a publisher's send() to the answer."""
    unanswered: int = 0
    missing: int = 0
    """Acknowledged publications that a subscriber did not get, all subscribers together."""
    twice: int = 0
    disordered: int = 0
    told: list[str] = field(default_factory=list)
    """What subscribers were told of losses."""
    unacknowledged_heard: int = 0
    """Publications that were answered with an error, and were heard."""
    heard: int = 0
    disconnects: list[str] = field(default_factory=list)
    longest_ping: float = 0.0
    memory: list[list[int]] = field(default_factory=list)
    """Resident bytes of each shard: before, the most during the stall, the most after it."""
    journal_bytes: int = 0
    """The most in one shard."""
    journal_publications: int = 0
    ready: list[tuple[float, int, bool]] = field(default_factory=list)
    """Seconds since the stop, shard, whether it said it was ready."""
    asked: dict[str, Counter[str]] = field(default_factory=dict)
    """What those who asked during the stall were answered, by what they asked for."""
    longest_asked: dict[str, float] = field(default_factory=dict)
    flows_after: float = 0.0
    """Seconds from the continuation to the first acknowledgement."""
    whole_after: float = 0.0
    """From the end of the load until every subscriber had all that was acknowledged."""
    present_after: float = 0.0
    """Until everybody is present again."""
    faults: list[str] = field(default_factory=list)

    def wrong(self) -> list[str]:
        """What must not be, in words."""
        found = list(self.faults)
        if self.missing or self.twice or self.disordered:
            found.append(f"missing {self.missing}, twice {self.twice}, in disorder {self.disordered}")
        if self.unanswered or self.final_errors:
            found.append(f"{self.unanswered} without an answer, {self.final_errors} final errors")
        if self.disconnects or self.told:
            found.append(f"disconnected {self.disconnects[:5]}, told {self.told[:5]}")
        if self.longest_ping > PING_SECONDS + 2:
            found.append(f"a ping {self.longest_ping:.1f} s after the one before")
        return found


class Publisher:
    """Offers publications; each is answered in the end."""

    def __init__(self, stage: Stage, number: int, port: int) -> None:
        self._stage = stage
        self._number = number
        self._sent = 0
        self.waiting: dict[int, tuple[str, float, str]] = {}
        self.wire = stage.wires.open(port, self._heard)
        self.wire.say({"id": 1, "connect": {}})

    @property
    def is_held_up(self) -> bool:
        return self.wire.unsent_bytes > UNSENT_BYTES or self.wire.closed is not None

    def publish(self, now: float) -> None:
        self._sent += 1
        number = self._sent + 1
        channel = self._stage.channels[(self._number + self._sent) % len(self._stage.channels)]
        key = f"{self._number}.{number}"
        self.waiting[number] = (channel, now, self._stage.phase)
        data = {"k": key, "x": self._stage.padding}
        self.wire.say({"id": number, "publish": {"channel": channel, "data": data}})

    def _heard(self, reply: Any) -> None:
        stage, outcome = self._stage, self._stage.outcome
        number = reply.get("id", 0)
        if "connect" in reply:
            stage.connected += 1
            return
        channel, sent_at, phase = self.waiting.pop(number)
        now = time.monotonic()
        outcome.longest_answer = max(outcome.longest_answer, now - sent_at)
        key = f"{self._number}.{number}"
        if "publish" in reply:
            outcome.acknowledged[phase] += 1
            stage.acknowledged[channel].append(key)
            if stage.continued_at and not outcome.flows_after:
                outcome.flows_after = now - stage.continued_at
        else:
            error = reply["error"]
            outcome.errors[f"{error['code']} {error['message']}"] += 1
            outcome.final_errors += not error.get("temporary")
            stage.refused[channel].add(key)


class Subscriber:
    """In all channels; writes down what it hears."""

    def __init__(self, stage: Stage, port: int) -> None:
        self._stage = stage
        self.logs: dict[str, list[str]] = {channel: [] for channel in stage.channels}
        self._offsets: dict[str, int] = {}
        self.wire = stage.wires.open(port, self._heard)
        subscribes = [
            {"id": 2 + number, "subscribe": {"channel": channel}}
            for number, channel in enumerate(stage.channels)
        ]
        self.wire.say({"id": 1, "connect": {}}, *subscribes)

    def _heard(self, said: Any) -> None:
        outcome = self._stage.outcome
        push = said.get("push")
        if push is None:
            if "subscribe" in said:
                channel = self._stage.channels[said["id"] - 2]
                self._offsets[channel] = said["subscribe"].get("offset", 0)
            elif "error" in said:
                outcome.faults.append(f"a subscriber was answered {said}")
            self._stage.connected += 1
            return
        channel = push["channel"]
        if "pub" not in push:
            outcome.told.append(str(push))
            return
        publication = push["pub"]
        outcome.disordered += publication["offset"] != self._offsets[channel] + 1
        self._offsets[channel] = publication["offset"]
        self.logs[channel].append(publication["data"]["k"])


class Stage:
    """Everything that runs."""

    def __init__(self, stack: ExitStack, plan: Plan) -> None:
        self.plan = plan
        self.outcome = Outcome(plan)
        self.phase = "before"
        self.connected = 0
        self.stopped_at = self.continued_at = 0.0
        self.channels = [f"room{number}" for number in range(plan.channels)]
        self.acknowledged: dict[str, list[str]] = {channel: [] for channel in self.channels}
        self.refused: dict[str, set[str]] = {channel: set() for channel in self.channels}
        self.padding = "x" * max(0, plan.size - 20)
        path = stack.enter_context(home())
        self.valkey = stack.enter_context(Valkey(extra=["appendonly yes", "appendfsync always"]))
        file = path.parent / "stalled.toml"
        file.write_text(CONFIG)
        self.nodes = [
            started(
                stack,
                *("--shard", str(number), "--hub", self.valkey.url),
                *("--config", str(file), "--ops", "127.0.0.1:0"),
                home=path,
                text="off",
            )
            for number in range(plan.shards)
        ]
        for node in self.nodes:
            wait_ready(node)
        self.http = [_port(node, 3) for node in self.nodes]
        self.ops = [_port(node, 4) for node in self.nodes]
        self.wires = Wires()
        stack.callback(self.wires.close)
        self.subscribers = [Subscriber(self, port) for port in self.http for _ in range(plan.subscribers)]
        self.publishers = [
            Publisher(self, number, self.http[number % plan.shards]) for number in range(plan.publishers)
        ]
        self._missing = [(each, channel) for each in self.subscribers for channel in self.channels]
        wanted = len(self.publishers) + len(self.subscribers) * (1 + plan.channels)
        self.wires.until(lambda: self.connected == wanted, 20, "all clients are there")
        self.over = threading.Event()

    # -- the load ------------------------------------------------------------------------------------------

    def offer(self, seconds: float) -> None:
        """Publish at the rate for so long."""
        plan, began, due_before = self.plan, time.monotonic(), 0
        turn = 0
        while (now := time.monotonic()) < began + seconds:
            due = int((now - began) * plan.rate)
            for _ in range(due - due_before):
                for _ in self.publishers:
                    turn += 1
                    publisher = self.publishers[turn % len(self.publishers)]
                    if not publisher.is_held_up:
                        publisher.publish(now)
                        self.outcome.sent += 1
                        break
                else:
                    self.outcome.held_up += 1
            due_before = due
            self.wires.turn(0.005)

    def is_answered(self) -> bool:
        """Nobody waits for an answer."""
        return not any(each.waiting and each.wire.closed is None for each in self.publishers)

    def is_whole(self) -> bool:
        """Every subscriber has all that was acknowledged."""
        while self._missing:
            subscriber, channel = self._missing[-1]
            if set(self.acknowledged[channel]).difference(subscriber.logs[channel]):
                return False
            self._missing.pop()
        return True

    def judge(self) -> None:
        """Compare what was acknowledged with what was heard."""
        outcome = self.outcome
        outcome.unanswered = sum(len(publisher.waiting) for publisher in self.publishers)
        for channel, keys in self.acknowledged.items():
            for subscriber in self.subscribers:
                log = subscriber.logs[channel]
                there, taken = set(log), set(keys)
                outcome.heard += len(log)
                outcome.twice += len(log) - len(there)
                outcome.missing += len(taken - there)
                last: dict[str, int] = {}
                for key in log:  # of one publisher in the order of its sending
                    publisher, _, number = key.partition(".")
                    if key in taken:
                        outcome.disordered += int(number) < last.get(publisher, 0)
                        last[publisher] = int(number)
            heard = self.subscribers[0].logs[channel]
            outcome.unacknowledged_heard += len(self.refused[channel].intersection(heard))
        for wire in self.wires.all:
            outcome.longest_ping = max(outcome.longest_ping, wire.longest_ping)
            if wire.closed is not None:
                outcome.disconnects.append(f"{wire.closed[0]} {wire.closed[1]}")
        for node in self.nodes:
            if node.process.poll() is not None or "Traceback" in node.stderr():
                outcome.faults.append(node.stderr()[-2000:])

    # -- who looks on, in threads of their own -------------------------------------------------------------

    def sample(self) -> None:
        """Each second: memory, journal, readiness."""
        outcome = self.outcome
        outcome.memory = [[0, 0, 0] for _ in self.nodes]
        while not self.over.wait(1.0):
            place = PHASES.index(self.phase)
            for number, node in enumerate(self.nodes):
                row = outcome.memory[number]
                row[place] = max(row[place], resident_bytes(node.pid))
                with suppress(OSError, http.client.HTTPException):
                    status, _ = got(self.ops[number], "/readyz")
                    if self.stopped_at:
                        since = time.monotonic() - self.stopped_at
                        outcome.ready.append((since, number, status == 200))
                    _, text = got(self.ops[number], "/metrics")
                    outcome.journal_bytes = max(
                        outcome.journal_bytes, metric(text, "spread_hub_journal_bytes")
                    )
                    outcome.journal_publications = max(
                        outcome.journal_publications, metric(text, "spread_hub_journal_publications")
                    )

    def ask(self, shard: int) -> None:
        """One that was there before asks all that needs the hub, again and again while it stands still."""
        number = 10
        with self._client(shard) as client:
            client.connected()
            while not self.over.wait(0.2):
                room, fresh = self.channels[0], f"asked{shard}.{number}"
                asked = {
                    "history": {"channel": room, "limit": 3},
                    "presence": {"channel": room},
                    "presence_stats": {"channel": room},
                    "subscribe": {"channel": fresh},
                }
                began = time.monotonic()
                is_stalled = self.phase == "stalled"
                client.say(*({"id": number + at, name: asked[name]} for at, name in enumerate(asked)))
                for at, name in enumerate(asked):
                    reply = client.reply(number + at, 30)
                    if is_stalled:
                        self._answered(name, began, reply)
                client.ask("unsubscribe", channel=fresh)
                number += 10

    def come(self, shard: int) -> None:
        """New clients that come while it stands still, and subscribe."""
        while not self.over.wait(0.5):
            if self.phase != "stalled":
                continue
            began = time.monotonic()
            with self._client(shard) as client:
                client.say({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": self.channels[0]}})
                for number, name in ((1, "connect, new"), (2, "subscribe, new")):
                    self._answered(name, began, client.reply(number, 30))

    def _client(self, shard: int) -> JsonClient:
        return JsonClient(f"ws://127.0.0.1:{self.http[shard]}")

    def _answered(self, what: str, began: float, reply: Any) -> None:
        if self.continued_at:
            return  # it may have been done after all
        error = reply.get("error")
        said = f"{error['code']}{' temporary' if error.get('temporary') else ''}" if error else "done"
        self.outcome.asked.setdefault(what, Counter())[said] += 1
        longest = self.outcome.longest_asked
        longest[what] = max(longest.get(what, 0.0), time.monotonic() - began)

    def threads(self, stack: ExitStack) -> None:
        """Start them; they end with the stack."""
        last = len(self.nodes) - 1
        for target, *arguments in ((self.sample,), (self.ask, 0), (self.ask, last), (self.come, last)):
            thread = threading.Thread(target=self._guarded, args=(target, *arguments))
            thread.start()
            stack.callback(thread.join)
        stack.callback(self.over.set)

    def _guarded(self, target: Any, *arguments: Any) -> None:
        try:
            target(*arguments)
        except (AssertionError, Gone, OSError, TimeoutError) as error:
            self.outcome.faults.append(f"{target.__name__}: {error!r}")

    def is_all_present(self) -> bool:
        """Whether every subscriber is present in every channel."""
        for channel in self.channels:
            present = self.valkey.command("HLEN", f"spread:presence:{{{channel}}}")
            if present < len(self.subscribers):
                return False
        return True


def run(plan: Plan) -> Outcome:
    """Do it."""
    with ExitStack() as stack:
        stage = Stage(stack, plan)
        outcome = stage.outcome
        with ExitStack() as threads:
            stage.threads(threads)
            stage.offer(plan.before_seconds)
            stage.phase = "stalled"
            stage.stopped_at = time.monotonic()
            stage.valkey.stop()
            stage.offer(plan.seconds)
            stage.continued_at = time.monotonic()
            stage.valkey.cont()
            stage.phase = "after"
            stage.offer(plan.after_seconds)
            offered_at = time.monotonic()
            stage.wires.until(stage.is_answered, 60, "everybody is answered")
            stage.wires.until(stage.is_whole, 60, "all that was acknowledged is heard")
            outcome.whole_after = time.monotonic() - offered_at
            stage.wires.until(stage.is_all_present, 30, "everybody is present again")
            outcome.present_after = time.monotonic() - stage.continued_at
        stage.judge()
        return outcome


def wait_ready(node: Node) -> None:
    """Also of a shard that serves no text."""
    deadline = time.monotonic() + 30
    while not node.ready:
        assert node.process.poll() is None and time.monotonic() < deadline, node.stderr()
        time.sleep(0.01)


def _port(node: Node, group: int) -> int:
    found = READY.fullmatch(node.ready[0][1])
    assert found, node.ready
    return int(found[group].rpartition(":")[2])


def got(port: int, path: str) -> tuple[int, str]:
    """Status and body of a GET."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def metric(text: str, name: str) -> int:
    """The value of a metric without labels."""
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found, name
    return int(float(found[1]))


def table(outcome: Outcome) -> str:
    """The outcome as Markdown."""
    plan = outcome.plan
    subscriptions = plan.shards * plan.subscribers * plan.channels
    rows = [
        ("it stood still", f"{plan.seconds:g} s"),
        (
            "shards, publishers, subscriptions, channels",
            f"{plan.shards}, {plan.publishers}, {subscriptions}, {plan.channels}",
        ),
        (
            "publications offered",
            f"{plan.rate:g} a second: {outcome.sent:,} sent, {outcome.held_up:,} not, since nobody was read",
        ),
        (
            "acknowledged, by when they were sent",
            ", ".join(f"{phase} {outcome.acknowledged[phase]:,}" for phase in PHASES),
        ),
        ("errors", counted(outcome.errors)),
        ("longest wait for an answer", f"{outcome.longest_answer:.1f} s"),
        (
            "heard by all subscribers together",
            f"{outcome.heard:,}; missing {outcome.missing}, twice {outcome.twice}, "
            f"in disorder {outcome.disordered}",
        ),
        ("answered with an error, and heard", f"{outcome.unacknowledged_heard:,} publications"),
        ("clients disconnected, told of losses", f"{len(outcome.disconnects)}, {len(outcome.told)}"),
        (
            "longest time between two pings",
            f"{outcome.longest_ping:.2f} s (one is sent every {PING_SECONDS:g} s)",
        ),
        (
            "memory of each shard before, meanwhile, after",
            "; ".join(", ".join(f"{size / 1e6:.0f}" for size in row) for row in outcome.memory) + " MB",
        ),
        (
            "the journal of a shard, at most",
            f"{outcome.journal_publications:,} publications, {outcome.journal_bytes:,} bytes",
        ),
        ("`/readyz` said no", away(outcome)),
    ]
    for what, counter in sorted(outcome.asked.items()):
        longest = outcome.longest_asked[what]
        rows.append((f"{what}, meanwhile", f"{counted(counter)}; within {longest:.1f} s"))
    rows += [
        ("first acknowledgement after it went on", f"{outcome.flows_after:.2f} s"),
        ("all that was acknowledged is heard", f"{outcome.whole_after:.2f} s after the last was offered"),
        ("everybody is present", f"{outcome.present_after:.0f} s after it went on, or before"),
    ]
    return "\n".join(["| what | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def counted(counter: Counter[str]) -> str:
    """In words."""
    return ", ".join(f"{what}: {count:,}" for what, count in counter.items()) or "none"


def away(outcome: Outcome) -> str:
    """When shards said they were not ready."""
    times = [since for since, _, is_ready in outcome.ready if not is_ready]
    if not times:
        return "never"
    after = max(0.0, max(times) - outcome.plan.seconds)
    return f"from {min(times):.0f} s after it stopped until {after:.0f} s after it went on"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.live.stalled")
    for setting in fields(Plan):
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}",
            type=type(setting.default),
            default=setting.default,
            help="by default %(default)s",
        )
    outcome = run(Plan(**vars(parser.parse_args())))
    print(table(outcome))
    wrong = outcome.wrong()
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
