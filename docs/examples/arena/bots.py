"""Players that are no people: they enter, run about, shoot, and keep books of what the arena answers.

    python bots.py --bots 200 --seconds 30 --server ws://127.0.0.1:8000

Every command is answered with the number of commands done for that player. One that is not by one above the
last was *lost* or *doubled*; after a takeover by another shard it may fall back to the last snapshot, told as
*fallen back*. A command without an answer is *unknown*. Exit code 1 if any was lost or doubled,
or a bot was disconnected.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall, deferLater

from spread.client.client import Client
from spread.client.errors import ClientError


class Books:
    """What all bots have seen."""

    def __init__(self) -> None:
        self.answered = self.lost = self.doubled = self.fallen_back = self.unknown = self.refused = 0
        self.fell_by = 0
        self.disconnects: list[str] = []
        self.states = 0
        self.rules: dict[str, int] = {}
        self.gaps: list[float] = []
        self.round_trips: list[float] = []
        self.errors: dict[str, int] = {}

    def told(self) -> dict[str, Any]:
        """All of it, for people and programs."""
        gaps, trips = sorted(self.gaps), sorted(self.round_trips)
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
            "states": self.states,
            "rules": self.rules,
            "ms_between_states": {name: _share(gaps, share) for name, share in _SHARES.items()},
            "ms_to_answer": {name: _share(trips, share) for name, share in _SHARES.items()},
        }


_SHARES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


def _share(values: list[float], share: float) -> float:
    return round(values[min(len(values) - 1, int(len(values) * share))] * 1000, 1) if values else 0.0


class Bot:
    """One player."""

    def __init__(self, number: int, url: str, rate: float, books: Books) -> None:
        self._name = f"bot {number}"
        self._wait = 1 / rate
        self._books = books
        self._match = ""
        self._done = 0
        self._doubt = 0  # commands that may have been done or not
        self._seen_at = 0.0
        self._is_over = False
        self.client = Client(reactor, url, timeout_seconds=10)
        self.client.on_disconnected(self._disconnected)
        self.client.on_connecting(self._connecting)
        self._has_been = False

    async def play(self, until: float) -> None:
        """Until this time of the reactor."""
        await self.client.connect()
        self._has_been = True
        self._match = json.loads(await self.client.rpc("hall/seat"))
        match = self.client.new_subscription(self._match)
        match.on_publication(self._seen)
        await match.subscribe()
        entered = json.loads(await self.client.rpc(f"{self._match}/enter", {"name": self._name}))
        self._done = entered["done"]
        while reactor.seconds() < until:
            await deferLater(reactor, self._wait * random.uniform(0.5, 1.5))
            if random.random() < 0.7:
                await self._do("move", {"dx": random.uniform(-1, 1), "dy": random.uniform(-1, 1)})
            else:
                await self._do("shoot", {"angle": random.uniform(-3.14, 3.14)})
        self._is_over = True
        await self.client.close()

    async def _do(self, command: str, parameters: dict[str, float]) -> None:
        books = self._books
        began = time.perf_counter()
        try:
            done = json.loads(await self.client.rpc(f"{self._match}/{command}", parameters))
        except ClientError as error:
            name = str(error)[:80]
            books.errors[name] = books.errors.get(name, 0) + 1
            books.unknown += 1
            self._doubt += 1
            return
        books.round_trips.append(time.perf_counter() - began)
        books.answered += 1
        first, last = self._done + 1, self._done + 1 + self._doubt
        if done <= self._done:
            books.fallen_back += 1
            books.fell_by = max(books.fell_by, first - done)
        elif done < first:
            books.lost += 1
        elif done > last:
            books.doubled += 1
        self._done, self._doubt = done, 0

    def _seen(self, publication: Any) -> None:
        now = time.perf_counter()
        if self._seen_at:
            self._books.gaps.append(now - self._seen_at)
        self._seen_at = now
        self._books.states += 1
        if self._books.states % 50 == 0:
            rules = json.loads(publication.data)["rules"]
            self._books.rules[rules] = self._books.rules.get(rules, 0) + 1

    def _connecting(self, reason: Any) -> None:
        if self._has_been and not self._is_over:
            self._books.disconnects.append(str(reason))

    def _disconnected(self, reason: Any) -> None:
        if not self._is_over:
            self._books.disconnects.append(str(reason))


async def run(options: argparse.Namespace) -> int:
    """All bots, until the time is over."""
    books = Books()
    url = options.server.rstrip("/") + "/connection/websocket"
    bots = [Bot(number, url, options.rate, books) for number in range(options.bots)]
    until = reactor.seconds() + options.seconds
    playing = []
    for bot in bots:
        playing.append(Deferred.fromCoroutine(bot.play(until)))
        await deferLater(reactor, 0.01)
    telling = LoopingCall(_tell, books, options.bots)
    telling.start(5, now=False)
    await gatherResults(playing, consumeErrors=True)
    telling.stop()
    print(json.dumps(books.told(), indent=None if options.json else 2), flush=True)
    return int(bool(books.lost or books.doubled or books.disconnects))


def _tell(books: Books, bots: int) -> None:
    sys.stderr.write(f"{bots} bots: {books.answered} commands answered, {books.states} states seen\n")


def main() -> None:
    """See the top of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bots", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rate", type=float, default=4, help="commands a second of each bot")
    parser.add_argument("--server", default="ws://127.0.0.1:8000")
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
