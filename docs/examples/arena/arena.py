"""The arena: players move and shoot in matches of twenty, on the shard that owns their match.

    Arena   the app: names of those who connect, and which state a slow client may skip
    Hall    the channel ``hall``, where everybody is: gives seats in matches
    Match   one channel ``match:N``: the state of its game, twenty ticks a second

What happens in a tick is in ``game``, what may change from version to version in ``rules``, and what weapons
and arenas are like in the tables.
"""

from __future__ import annotations

import random
from typing import Any

import game
import msgspec
import rules

from spread.node import App, Client, Identity, Owned, Refuse, command, owns

SEATS = 20
NAME_MAX_CHARACTERS = 16


class Enter(msgspec.Struct):
    """A player takes part under this name."""

    name: str


class Move(msgspec.Struct):
    """Where a player wants to go: a direction, each part from -1 to 1."""

    dx: float
    dy: float


class Shoot(msgspec.Struct):
    """A shot in a direction, in radians."""

    angle: float


@owns("hall")
class Hall(Owned):
    """Who sits in which match. A seat is free again when its player's connection has gone."""

    tick_seconds = 0.0

    def opened(self, channel: str) -> None:
        self.seats: dict[str, str] = {}

    def snapshot(self) -> Any:
        return self.seats

    def restore(self, state: Any) -> None:
        self.seats = dict(state)

    def left(self, member: Any) -> None:
        self.seats.pop(member.id, None)

    @command("seat")
    def seat(self, member: Any, params: None) -> str:
        """The match in which this player plays: the fullest with a free seat."""
        match = self.seats.get(member.id)
        if match is None:
            taken: dict[str, int] = {}
            for name in self.seats.values():
                taken[name] = taken.get(name, 0) + 1
            free = [name for name, count in taken.items() if count < SEATS]
            numbers = {int(name.partition(":")[2]) for name in taken}
            new = next(number for number in range(1, len(numbers) + 2) if number not in numbers)
            match = max(free, key=lambda name: taken[name], default=f"match:{new}")
            self.seats[member.id] = match
        return match


@owns("match:*")
class Match(Owned):
    """One game."""

    tick_seconds = 0.05
    snapshot_seconds = 1.0
    linger_seconds = 5.0

    def opened(self, channel: str) -> None:
        self.game = game.Game(seed=random.getrandbits(32))

    def snapshot(self) -> Any:
        return self.game.export()

    def restore(self, state: Any) -> None:
        self.game = game.Game.load(state)

    def left(self, member: Any) -> None:
        self.game.remove(member.id)

    def tick(self, dt: float) -> None:
        self.game.step(dt, self.app.tables)
        self.publish(self.game.view())

    @command("enter")
    def enter(self, member: Any, params: Enter) -> dict[str, Any]:
        name = params.name.strip()[:NAME_MAX_CHARACTERS]
        if not name:
            raise Refuse(4001, "a player needs a name")
        return self.game.add(member.id, name, self.app.tables)

    @command("move")
    def move(self, member: Any, params: Move) -> int:
        return self.game.move(member.id, params.dx, params.dy)

    @command("shoot")
    def shoot(self, member: Any, params: Shoot) -> int:
        return self.game.shoot(member.id, params.angle, self.app.tables)


class Arena(App):
    """See the top of this module."""

    version = rules.VERSION
    objects = (Hall, Match)

    def check(self) -> None:
        """An update without its tables is refused."""
        game.check(self.tables)

    def connecting(self, client: Client) -> Identity:
        return Identity(user="", channels=("hall",))

    def latest(self, channel: str, data: Any) -> str | None:
        """Of a match only the newest state counts: a client that reads slowly skips those between."""
        return "state" if channel.startswith("match:") else None
