"""The app of ``takeover``: channels whose objects tell, with all that they say, in whose name they say it.

Each object counts, notes the commands it has done, and publishes both with each tick, together with its
epoch and its process. And each goes on publishing behind the back of its shard, under its own fence, when it
may not act any more, or another has taken over: that must be refused, and what was refused is counted.

After ``plant`` it does so without a fence: what a hub without one would allow.
"""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec
from twisted.python.failure import Failure

from spread.hub.errors import Fenced
from spread.node import App, Client, Member, Owned, command, every, owns, rpc

__all__ = ["SNAPSHOT_SECONDS", "TICK_SECONDS", "Game", "Match"]

TICK_SECONDS = float(os.environ.get("TAKEOVER_TICK_SECONDS", "0.1"))
SNAPSHOT_SECONDS = float(os.environ.get("TAKEOVER_SNAPSHOT_SECONDS", "1.0"))

REFUSALS = 3
"""After so many refusals an object that is over falls silent."""


class Done(msgspec.Struct):
    """What a command carries."""

    n: int
    """Its number, unlike all others'."""


@owns("match:*")
class Match(Owned):
    """See the top of this module."""

    tick_seconds = TICK_SECONDS
    snapshot_seconds = SNAPSHOT_SECONDS

    def __init__(self) -> None:
        self.ticks = 0
        self.done: list[int] = []
        self.told = 0
        self.saved_at = 0.0
        self.refused = 0
        self.app.matches.append(self)

    def snapshot(self) -> Any:
        return {"ticks": self.ticks, "done": self.done, "at": time.monotonic()}

    def restore(self, state: Any) -> None:
        self.ticks, self.done, self.saved_at = state["ticks"], state["done"], state["at"]
        self.told = len(self.done)
        self.tell()

    @property
    def stamp(self) -> dict[str, Any]:
        """In whose name something is said: the epoch, and the process."""
        return {"e": self.epoch, "w": f"{self.app.shard}.{os.getpid()}"}

    def tick(self, dt: float) -> None:
        self.ticks += 1
        self.tell()

    def tell(self) -> None:
        """Publish how it is, and what was done since it was told last."""
        done, self.told = self.done[self.told :], len(self.done)
        self.publish({**self.stamp, "t": self.ticks, "d": done, "s": self.saved_at})

    @command("do")
    def do(self, member: Member, params: Done) -> Any:
        self.done.append(params.n)
        return self.stamp

    @command("all")
    def all(self, member: Member) -> Any:
        return {**self.stamp, "all": self.done}


class Game(App):
    """See the top of this module."""

    objects = (Match,)

    def __init__(self) -> None:
        self.matches: list[Match] = []
        self.refused = 0
        self.is_planted = False

    @every(TICK_SECONDS)
    def behind_the_back(self) -> None:
        """Whether or not it may: so also in the first moment after a shard stood still."""
        self.matches = [match for match in self.matches if match.refused < REFUSALS]
        for match in self.matches:
            fence = None if self.is_planted else match._bound._ownership  # type: ignore[attr-defined]
            taken = self.publish(match.channel, {**match.stamp, "b": True}, fence=fence)
            taken.addErrback(self.not_taken, match)

    def not_taken(self, failure: Failure, match: Match) -> None:
        if failure.check(Fenced):
            match.refused += 1
            self.refused += 1

    @rpc("refused")
    def tell_refused(self, client: Client) -> int:
        return self.refused

    @rpc("plant")
    def plant(self, client: Client) -> None:
        self.is_planted = True
