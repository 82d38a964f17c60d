"""What happens in a match: plain Python, without a socket or a clock.

A player is ``[name, x, y, angle, health, score, dx, dy, seconds until it may shoot, commands done]``,
a bullet ``[x, y, vx, vy, seconds left, who shot it]``. What differs between versions of the game is in
``rules``.
"""

from __future__ import annotations

import math
import random
from typing import Any

import rules

RADIUS = 14.0
"""Of a player, in the arena's units: who is nearer to a bullet than that is hit."""

NAME, X, Y, ANGLE, HEALTH, SCORE, DX, DY, READY, DONE = range(10)


def check(tables: Any) -> None:
    """The tables have what these rules need.

    :raises KeyError: what is missing.
    """
    _ = tables.weapons[rules.WEAPON], tables.arenas[rules.ARENA]


class Game:
    """The state of one match."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.players: dict[str, list[Any]] = {}
        self.bullets: list[list[Any]] = []
        self.ticks = 0

    def export(self) -> dict[str, Any]:
        """All of it as plain data; ``load`` takes it."""
        return {"players": self.players, "bullets": self.bullets, "ticks": self.ticks}

    @classmethod
    def load(cls, state: dict[str, Any]) -> Game:
        """The game that was exported."""
        game = cls(seed=state["ticks"])
        game.players = {id: list(player) for id, player in state["players"].items()}
        game.bullets = [list(bullet) for bullet in state["bullets"]]
        game.ticks = state["ticks"]
        return game

    # -- what players do: each gives the number of commands done for this player

    def add(self, id: str, name: str, tables: Any) -> dict[str, Any]:
        """A player comes in; again: nothing changes."""
        arena = tables.arenas[rules.ARENA]
        if id not in self.players:
            self.players[id] = [name, 0.0, 0.0, 0.0, 100, 0, 0.0, 0.0, 0.0, 0]
            self._place(self.players[id], arena)
        self.players[id][DONE] += 1
        return {
            "done": self.players[id][DONE],
            "id": id,
            "width": arena.width,
            "height": arena.height,
            "rules": rules.VERSION,
        }

    def remove(self, id: str) -> None:
        """A player has left."""
        self.players.pop(id, None)

    def move(self, id: str, dx: float, dy: float) -> int:
        """A player goes on in this direction."""
        player = self._player(id)
        player[DX], player[DY] = _part(dx), _part(dy)
        if player[DX] or player[DY]:
            player[ANGLE] = math.atan2(player[DY], player[DX])
        player[DONE] += 1
        return int(player[DONE])

    def shoot(self, id: str, angle: float, tables: Any) -> int:
        """A player shoots, if the weapon is ready."""
        player = self._player(id)
        weapon = tables.weapons[rules.WEAPON]
        if player[READY] <= 0 and math.isfinite(angle):
            player[READY] = weapon.cooldown
            player[ANGLE] = angle
            for turn in self._spread(weapon):
                vx, vy = math.cos(angle + turn) * weapon.speed, math.sin(angle + turn) * weapon.speed
                self.bullets.append([player[X], player[Y], vx, vy, weapon.seconds, id])
        player[DONE] += 1
        return int(player[DONE])

    # -- a tick

    def step(self, dt: float, tables: Any) -> None:
        """Go on by so many seconds."""
        arena = tables.arenas[rules.ARENA]
        self.ticks += 1
        for player in self.players.values():
            player[READY] = max(0.0, player[READY] - dt)
            player[X] = max(0.0, min(arena.width, player[X] + player[DX] * arena.pace * dt))
            player[Y] = max(0.0, min(arena.height, player[Y] + player[DY] * arena.pace * dt))
        weapon = tables.weapons[rules.WEAPON]
        flying = []
        for bullet in self.bullets:
            bullet[0] += bullet[2] * dt
            bullet[1] += bullet[3] * dt
            bullet[4] -= dt
            if bullet[4] > 0 and not self._hits(bullet, weapon, arena):
                flying.append(bullet)
        self.bullets = flying

    def view(self) -> dict[str, Any]:
        """What everybody sees."""
        return {
            "tick": self.ticks,
            "rules": rules.VERSION,
            "players": [
                [id, each[NAME], round(each[X]), round(each[Y]), round(each[ANGLE], 2), *each[HEALTH:DX]]
                for id, each in self.players.items()
            ],
            "bullets": [[round(each[0]), round(each[1])] for each in self.bullets],
        }

    # -- parts of it

    def _player(self, id: str) -> list[Any]:
        # Who has not entered can send commands as well; it is nobody then, and its commands do nothing.
        return self.players.get(id) or ["", 0.0, 0.0, 0.0, 0, 0, 0.0, 0.0, 1.0, 0]

    def _place(self, player: list[Any], arena: Any) -> None:
        player[X], player[Y] = self._random.uniform(0, arena.width), self._random.uniform(0, arena.height)
        player[HEALTH] = 100

    def _spread(self, weapon: Any) -> list[float]:
        return [(number - (weapon.pellets - 1) / 2) * 0.08 for number in range(weapon.pellets)]

    def _hits(self, bullet: list[Any], weapon: Any, arena: Any) -> bool:
        for id, player in self.players.items():
            if id != bullet[5] and math.hypot(player[X] - bullet[0], player[Y] - bullet[1]) < RADIUS:
                player[HEALTH] = rules.health_after(player[HEALTH], weapon)
                if player[HEALTH] <= 0:
                    self._place(player, arena)
                    if bullet[5] in self.players:
                        self.players[bullet[5]][SCORE] += rules.POINTS
                return True
        return False


def _part(wanted: float) -> float:
    """Of a direction: between -1 and 1, whatever was sent."""
    return max(-1.0, min(1.0, wanted)) if math.isfinite(wanted) else 0.0
