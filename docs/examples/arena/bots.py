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
import secrets
import signal
import sys
import time
from typing import Any

import msgspec
from books import Books, Page, Seen, histograms, p99_between
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall, deferLater

from spread.client.client import Client
from spread.client.errors import ClientError
from spread.client.subscription import Subscription

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


class Bot:
    """One player."""

    def __init__(self, number: int, url: str, rate: float, books: Books) -> None:
        self._name = NAMES[number] if number < len(NAMES) else f"{NAMES[number % len(NAMES)]} {number}"
        self._wait = 1 / rate
        self._books = books
        self._match = ""
        self._subscription: Subscription | None = None
        self._id = ""
        self._page = Page()
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
                self._match, self._page = match, Page()
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
                books.silence(self._page)
            return None
        books.round_trips.append((time.perf_counter() - began) * 1000)
        books.answer(self._page, answer["done"], answer["epoch"])
        return answer

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
