"""Players that are no people: they enter, run about, shoot, and keep books of what the arena answers.

    python bots.py --bots 200 --seconds 30 --server ws://127.0.0.1:8000

Every command is answered with the number of commands done for that player, and the epoch of the match, which
rises with each new owner. A number above the last by more than one says that commands were *doubled*; one
that is not above it, that they were *lost*, or, in a new epoch, that the match has *fallen back* to the last
snapshot of a shard that died. A command without an answer is *unknown*: it may have been done, or not. Exit
code 1 if any was lost or doubled, or a bot was disconnected. Ctrl-C ends the play before ``--seconds`` do.

Ticks are measured twice. ``ms_tick_jitter`` is how far the time between two ticks was from 50 ms on the shard
that made them, as each state tells it; a tick of a match counts once, however many have seen it.
``ms_tick_late_p99`` is by the shards' own histogram, read before and after (``--ops``); of the shards
together, between two of its bounds by interpolation. ``ms_between_states`` is what bots have seen: with the
way through the hub, the network, and the slowness of the bots themselves, which share one process.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import secrets
import signal
import sys
import time
import urllib.request
from collections import Counter
from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall, deferLater

from spread.client.client import Client
from spread.client.errors import ClientError
from spread.client.subscription import Subscription

TICK_MS = 50.0
NOT_IN_MATCH = 4002
RETRY_SECONDS = 0.2
START_SECONDS = 0.01
"""Between two bots."""

NEAR = 300.0
"""In the arena's units: whoever is nearer is shot at."""

NAMES = [
    *("Ada", "Bo", "Cleo", "Dara", "Enzo", "Fay", "Gus", "Hana", "Ivo", "Juno", "Kai", "Lena", "Milo", "Nia"),
    *("Otis", "Pia", "Quin", "Rosa", "Sami", "Tess", "Uma", "Vito", "Wren", "Xena", "Yuki", "Zoe", "Aldo"),
    *("Bea", "Ciro", "Dot", "Elio", "Fern", "Gia", "Hugo", "Ines", "Jan", "Kira", "Liv", "Max", "Noor"),
]


class Seen(msgspec.Struct):
    """What the books need of a state; the rest is passed over, which is quick."""

    tick: int
    time: float
    rules: str


class Books:
    """What all bots have seen."""

    def __init__(self) -> None:
        self.answered = self.lost = self.doubled = self.fallen_back = self.unknown = self.refused = 0
        self.fell_by = 0
        self.disconnects: list[str] = []
        self.states = 0
        self.rules: Counter[str] = Counter()
        self.gaps: list[float] = []
        self.round_trips: list[float] = []
        self.jitter: list[float] = []
        self.errors: Counter[str] = Counter()
        self.ticks: dict[str, Seen] = {}
        self.late_p99: float | None = None

    def state(self, match: str, seen: Seen) -> None:
        """A bot has seen a state of a match."""
        if seen.rules not in self.rules:
            sys.stderr.write(f"rules {seen.rules}\n")
        self.states += 1
        self.rules[seen.rules] += 1
        self._tick(match, seen)

    def _tick(self, match: str, seen: Seen) -> None:
        last = self.ticks.get(match)
        if last is not None and seen.tick == last.tick + 1:
            self.jitter.append(abs(seen.time - last.time - TICK_MS))
        if last is None or seen.tick > last.tick or seen.tick < last.tick - 1000 / TICK_MS:
            self.ticks[match] = seen

    def told(self) -> dict[str, Any]:
        """All of it, for people and programs."""
        return {
            "answered": self.answered,
            "lost": self.lost,
            "doubled": self.doubled,
            "unknown": self.unknown,
            "refused": self.refused,
            "fallen_back": self.fallen_back,
            "fell_by_most": self.fell_by,
            "disconnects": len(self.disconnects),
            "why": self.disconnects[:3],
            "errors": self.errors,
            "matches": len(self.ticks),
            "states": self.states,
            "rules": self.rules,
            "ms_tick_late_p99": self.late_p99,
            "ms_tick_jitter": _shares(self.jitter),
            "ms_between_states": _shares(self.gaps),
            "ms_to_answer": _shares(self.round_trips),
        }


def _shares(values: list[float]) -> dict[str, float]:
    values.sort()
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(values[int((len(values) - 1) * share)], 1) for name, share in at.items() if values}


class Bot:
    """One player."""

    def __init__(self, number: int, url: str, rate: float, books: Books) -> None:
        self._name = NAMES[number] if number < len(NAMES) else f"{NAMES[number % len(NAMES)]} {number}"
        self._wait = 1 / rate
        self._books = books
        self._match = ""
        self._subscription: Subscription | None = None
        self._id = ""
        self._done = self._epoch = 0
        self._doubt = 0  # commands that may have been done or not
        self._state = b""
        self._seen_at = 0.0
        self._is_in = self._has_been = self._is_over = False
        self.entered: Deferred[None] = Deferred()
        """For the first time."""
        self.client = Client(reactor, url, timeout_seconds=10, data={"secret": secrets.token_hex(16)})
        self.client.on_disconnected(self._disconnected)
        self.client.on_connecting(self._connecting)

    async def play(self, until: float) -> None:
        """Until this time of the reactor."""
        await self.client.connect()
        self._has_been = True
        while reactor.seconds() < until and not self._is_over:
            if self._is_in:
                await deferLater(reactor, self._wait * random.uniform(0.5, 1.5))
                await self._act()
            else:
                await self._enter()
        self.stop()
        await self.client.close()

    def stop(self) -> None:
        """Do nothing more after what is being done."""
        self._is_over = True

    async def _enter(self) -> None:
        """Again after each lost connection: the player is the same, the members of a match are new."""
        try:
            match = json.loads(await self.client.rpc("hall/seat"))
            if match != self._match or self._subscription is None:
                if self._subscription is not None:
                    await self.client.remove_subscription(self._subscription)
                self._match, self._done, self._epoch, self._doubt = match, 0, 0, 0
                self._subscription = self.client.new_subscription(match)
                self._subscription.on_publication(self._seen)
            await self._subscription.subscribe()
        except ClientError as error:
            self._books.errors[str(error)[:80]] += 1
            await deferLater(reactor, RETRY_SECONDS)
            return
        self._is_in = True
        entered = await self._do("enter", {"name": self._name})
        if entered is None:
            self._is_in = False
            await deferLater(reactor, RETRY_SECONDS)
        else:
            self._id = entered["id"]
            if not self.entered.called:
                self.entered.callback(None)

    async def _act(self) -> None:
        if not self._is_in:
            return
        players = {each[0]: each for each in json.loads(self._state)["players"]} if self._state else {}
        mine = players.pop(self._id, None)
        foe = None if mine is None else min(players.values(), key=lambda each: _far(mine, each), default=None)
        angle = random.uniform(-math.pi, math.pi)
        if mine is not None and foe is not None and _far(mine, foe) < NEAR and random.random() < 0.5:
            angle = math.atan2(foe[3] - mine[3], foe[2] - mine[2]) + random.gauss(0, 0.12)
            await self._do("shoot", {"angle": angle})
        elif random.random() < 0.3:
            await self._do("shoot", {"angle": angle})
        else:
            await self._do("move", {"dx": math.cos(angle), "dy": math.sin(angle)})

    async def _do(self, command: str, parameters: dict[str, Any]) -> Any:
        """Gives the answer, or ``None``."""
        books = self._books
        began = time.perf_counter()
        try:
            answer = json.loads(await self.client.rpc(f"{self._match}/{command}", parameters))
        except ClientError as error:
            books.errors[str(error)[:80]] += 1
            if error.code == NOT_IN_MATCH:  # it had entered after the last snapshot
                books.refused += 1
                self._is_in = False
            else:
                books.unknown += 1
                self._doubt += 1
            return None
        books.round_trips.append((time.perf_counter() - began) * 1000)
        books.answered += 1
        self._judge(answer["done"], answer["epoch"])
        return answer

    def _judge(self, done: int, epoch: int) -> None:
        books = self._books
        missing, surplus = self._done + 1 - done, done - (self._done + 1 + self._doubt)
        if missing > 0 and epoch > self._epoch:
            books.fallen_back += 1
            books.fell_by = max(books.fell_by, missing)
        elif missing > 0:
            books.lost += missing
        elif surplus > 0:
            books.doubled += surplus
        self._done, self._epoch, self._doubt = done, epoch, 0

    def _seen(self, publication: Any) -> None:
        now = time.perf_counter()
        if self._seen_at:
            self._books.gaps.append((now - self._seen_at) * 1000)
        self._seen_at = now
        self._state = publication.data
        seen = msgspec.json.decode(publication.data, type=Seen)
        self._books.state(self._match, seen)

    def _connecting(self, reason: Any) -> None:
        self._is_in = False
        if self._has_been and not self._is_over:
            self._books.disconnects.append(str(reason))

    def _disconnected(self, reason: Any) -> None:
        if not self._is_over:
            self._books.disconnects.append(str(reason))


def _far(one: list[Any], other: list[Any]) -> float:
    return math.hypot(one[2] - other[2], one[3] - other[3])


# -- what the shards say of themselves -------------------------------------------------------------------

Histogram = dict[float, float]
"""Of ticks: how many were late by so many seconds at most."""

_BUCKET = re.compile(r'^spread_tick_late_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)
_PORTS = re.compile(r"([^:]+):(\d+)(?:-(\d+))?")


def histograms(ops: str) -> list[Histogram]:
    """Of all shards whose ops ports are in ``HOST:FIRST-LAST``; those that do not answer have none."""
    found = _PORTS.fullmatch(ops)
    if found is None:
        return []
    host, first, last = found[1], int(found[2]), int(found[3] or found[2])
    return [_histogram(f"http://{host}:{port}/metrics") for port in range(first, last + 1)]


def _histogram(url: str) -> Histogram:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    return {float(bound): float(count) for bound, count in _BUCKET.findall(text)}


def p99_between(before: list[Histogram], after: list[Histogram]) -> float | None:
    """In milliseconds, of the ticks between two readings; ``None``: nobody told of any."""
    counts: dict[float, float] = {}
    for old, new in zip(before, after, strict=True):
        has_begun_anew = any(new.get(bound, 0) < count for bound, count in old.items())
        for bound, count in new.items():
            fresh = count - (0 if has_begun_anew else old.get(bound, 0))
            counts[bound] = counts.get(bound, 0) + fresh
    wanted = 0.99 * counts.get(math.inf, 0)
    if not wanted:
        return None
    below, under = 0.0, 0.0
    for bound, count in sorted(counts.items()):
        if count >= wanted:
            if bound == math.inf:
                break
            return round((below + (bound - below) * (wanted - under) / (count - under)) * 1000, 2)
        below, under = bound, count
    return round(below * 1000, 2)


# -- all of them -----------------------------------------------------------------------------------------


async def run(options: argparse.Namespace) -> int:
    """All bots, until the time is over."""
    books = Books()
    url = options.server.rstrip("/") + "/connection/websocket"
    bots = [Bot(number, url, options.rate, books) for number in range(options.bots)]
    before = histograms(options.ops)
    until = reactor.seconds() + options.seconds
    signal.signal(signal.SIGINT, lambda *_: reactor.callFromThread(lambda: [bot.stop() for bot in bots]))
    playing = []
    for bot in bots:
        playing.append(Deferred.fromCoroutine(bot.play(until)))
        await deferLater(reactor, START_SECONDS)
    gatherResults([bot.entered for bot in bots]).addCallback(
        lambda all: sys.stderr.write(f"{len(all)} bots play\n")
    ).addErrback(lambda failure: failure.printTraceback())
    telling = LoopingCall(_tell, books, options.bots)
    telling.start(5, now=False).addErrback(lambda failure: failure.printTraceback())
    await gatherResults(playing, consumeErrors=True)
    telling.stop()
    books.late_p99 = p99_between(before, histograms(options.ops))
    print(json.dumps(books.told(), indent=None if options.json else 2), flush=True)
    return int(bool(books.lost or books.doubled or books.disconnects))


def _tell(books: Books, bots: int) -> None:
    sys.stderr.write(f"{bots} bots: {books.answered} commands answered, {books.states} states seen\n")


def main() -> None:
    """See the top of this module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bots", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rate", type=float, default=4, help="commands a second of each bot")
    parser.add_argument("--server", default="ws://127.0.0.1:8000")
    parser.add_argument("--ops", default="127.0.0.1:8100-8102", help="HOST:FIRST-LAST, the shards' ops ports")
    parser.add_argument("--json", action="store_true", help="one line at the end")
    options = parser.parse_args()
    codes: list[int] = []

    def over(outcome: Any) -> None:
        if isinstance(outcome, int):
            codes.append(outcome)
        else:
            outcome.printTraceback()
            codes.append(2)
        reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(run(options)).addBoth(over))
    reactor.run()
    sys.exit(codes[0])


if __name__ == "__main__":
    main()
