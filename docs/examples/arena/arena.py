"""The arena: players move and shoot in matches of twenty, on the shard that owns their match.

    Arena   the app: who those are that connect, and which states a slow client may skip
    Hall    the channel ``hall``, where everybody is: gives seats in matches
    Match   one channel ``match:N``: the state of its game, twenty ticks a second

What happens in a tick is in ``game``, what may change from version to version in ``rules``, and what weapons
and arenas are like in the tables.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import rules
from game import AWAY_SECONDS, Game, NotInMatch, check, plan

from spread.node import App, Client, Identity, Owned, Refuse, command, owns

SEATS = 20
NAME_MAX_CHARACTERS = 16
SECRET_MIN_CHARACTERS = 16

BAD_NAME, NOT_IN_MATCH, MATCH_FULL = 4001, 4002, 4003
"""Codes of refusals, which the page knows."""

PLAN_TICKS = 20
"""How often the plan of the arena comes with the state, since a new version or new tables may change it."""


class Enter(msgspec.Struct):
    """A player takes part under this name."""

    name: str


class Move(msgspec.Struct):
    """Where a player wants to go: a direction, of length 1 for full speed."""

    dx: float
    dy: float


class Shoot(msgspec.Struct):
    """A shot in a direction, in radians."""

    angle: float


class Seat(msgspec.Struct):
    """In the hall: who sits in which match."""

    match: str
    away: float = 0.0
    """Seconds since its player has left."""


@owns("hall")
class Hall(Owned):
    """Who sits in which match. A seat is kept for a moment when its player's connection has gone."""

    tick_seconds = 1.0
    seats: dict[str, Seat]

    def opened(self, channel: str) -> None:
        self.seats = {}

    def snapshot(self) -> Any:
        return msgspec.to_builtins(self.seats)

    def restore(self, state: Any) -> None:
        self.seats = msgspec.convert(state, dict[str, Seat])

    def tick(self, dt: float) -> None:
        here = {member.user for member in self.members.values()}
        for user, seat in list(self.seats.items()):
            seat.away = 0.0 if user in here else seat.away + dt
            if seat.away > AWAY_SECONDS:
                del self.seats[user]

    @command("seat")
    def seat(self, member: Any, params: None) -> str:
        """The match in which this player plays: the fullest with a free seat."""
        seat = self.seats.get(member.user)
        if seat is None:
            taken: dict[str, int] = {}
            for each in self.seats.values():
                taken[each.match] = taken.get(each.match, 0) + 1
            new = next(
                name for number in range(len(taken) + 1) if (name := f"match:{number + 1}") not in taken
            )
            free = [name for name, count in taken.items() if count < SEATS]
            seat = self.seats[member.user] = Seat(max(free, key=lambda name: taken[name], default=new))
        return seat.match


@owns("match:*")
class Match(Owned):
    """One game."""

    tick_seconds = 0.05
    snapshot_seconds = 1.0
    linger_seconds = AWAY_SECONDS
    game: Game

    def opened(self, channel: str) -> None:
        self.game = Game()

    def snapshot(self) -> Any:
        return self.game.export()

    def restore(self, state: Any) -> None:
        self.game = Game.load(state)

    def left(self, member: Any) -> None:
        # After a lost connection its player may be here again already, by another one.
        if not any(each.user == member.user for each in self.members.values()):
            self.game.leave(member.user)

    def tick(self, dt: float) -> None:
        events = self.game.step(dt, self.app.tables)
        view = {"epoch": self.epoch, **self.game.view(events)}
        if self.game.tick % PLAN_TICKS == 0:
            view["plan"] = plan(self.app.tables)
        self.publish(view)

    @command("enter")
    def enter(self, member: Any, params: Enter) -> dict[str, Any]:
        """Take part. Who is in already only changes the name."""
        name = " ".join(params.name.split())
        if not 0 < len(name) <= NAME_MAX_CHARACTERS or not name.isprintable():
            raise Refuse(BAD_NAME, f"a name has 1 to {NAME_MAX_CHARACTERS} visible characters")
        if member.user not in self.game.players and len(self.game.players) >= SEATS:
            raise Refuse(MATCH_FULL, "this match is full", temporary=True)
        done = self._done(self.game.enter, member.user, name, self.app.tables)
        return {"id": member.user, "rules": rules.VERSION, **done, **plan(self.app.tables)}

    @command("move")
    def move(self, member: Any, params: Move) -> dict[str, int]:
        """Go in a direction until the next command."""
        return self._done(self.game.move, member.user, params.dx, params.dy)

    @command("shoot")
    def shoot(self, member: Any, params: Shoot) -> dict[str, int]:
        """One shot, unless the weapon is not ready."""
        return self._done(self.game.shoot, member.user, params.angle, self.app.tables)

    def _done(self, what: Callable[..., int], *values: Any) -> dict[str, int]:
        """How many commands are done for this player, and by which owner: players can keep books."""
        try:
            return {"done": what(*values), "epoch": self.epoch}
        except NotInMatch:
            raise Refuse(NOT_IN_MATCH, "enter first") from None


class Arena(App):
    """See the top of this module."""

    version = rules.VERSION
    objects = (Hall, Match)

    def check(self) -> None:
        """An update without its tables is refused."""
        check(self.tables)

    def connecting(self, client: Client) -> Identity:
        """A player is whoever knows its secret: also by a new connection, after the old one was lost."""
        data = client.data
        secret = data.get("secret") if isinstance(data, dict) else None
        if not isinstance(secret, str) or len(secret) < SECRET_MIN_CHARACTERS:
            raise Refuse(message=f"a player needs a secret of {SECRET_MIN_CHARACTERS} characters or more")
        return Identity(user=hashlib.sha256(secret.encode()).hexdigest()[:12], channels=("hall",))

    def latest(self, channel: str, data: Any) -> str | None:
        """Of a match only the newest state counts: a client that reads slowly skips those between."""
        return "state" if channel.startswith("match:") else None
