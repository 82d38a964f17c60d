"""What happens in a match: plain Python, without a socket or a clock.

What differs between versions of the game is in ``rules``; what weapons and arenas are like is in the tables.
"""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec
import rules

RADIUS = 14.0
"""Of a player, in the arena's units: who is nearer to a bullet than that is hit."""

HEALTH = 100
AWAY_SECONDS = 20.0
"""How long somebody who has left can come back to the same score."""

MAX_BULLETS = 500
"""In the air at once; more shots are not heard of."""

PELLET_RADIANS = 0.09
"""Between two pellets of one shot."""

PLACES_TRIED = 20
"""For one that lies in no wall; then the last is taken."""


class NotInMatch(Exception):
    """Who has not entered, or is forgotten since a shard died, can do nothing until it enters."""


class Player(msgspec.Struct):
    """Whoever is in the match, or was a moment ago."""

    name: str
    x: float = 0.0
    y: float = 0.0
    angle: float = 0.0
    health: int = HEALTH
    score: int = 0
    falls: int = 0
    dx: float = 0.0
    dy: float = 0.0
    wait: float = 0.0
    """Seconds until it may shoot."""
    done: int = 0
    """Commands."""
    away: float = 0.0
    """Seconds since it has left."""


class Bullet(msgspec.Struct):
    """Flies on until it hits a player or a wall, or its time is over."""

    number: int
    x: float
    y: float
    vx: float
    vy: float
    seconds: float
    shooter: str


class Game(msgspec.Struct):
    """The state of one match. ``step`` gives what happened, for those who look on."""

    tick: int = 0
    time: float = 0.0
    """Seconds."""
    shots: int = 0
    players: dict[str, Player] = {}
    away: dict[str, Player] = {}
    bullets: list[Bullet] = []

    def export(self) -> Any:
        """All of it as plain data; ``load`` takes it, in this version of the game or the next."""
        return msgspec.to_builtins(self)

    @classmethod
    def load(cls, state: Any) -> Game:
        """The game that was exported."""
        return msgspec.convert(state, cls)

    # -- what players do: each gives the number of commands done for this player

    def enter(self, id: str, name: str, tables: Any) -> int:
        """A player comes in, or comes back; again: only the name changes."""
        player = self.players.get(id)
        if player is None:
            player = self.players[id] = self.away.pop(id, None) or Player(name)
            self._place(player, tables)
        player.name = name
        player.away = 0.0
        player.done += 1
        return player.done

    def leave(self, id: str) -> None:
        """A player has gone; its score is kept for a moment."""
        player = self.players.pop(id, None)
        if player is not None:
            player.dx = player.dy = 0.0
            self.away[id] = player

    def move(self, id: str, dx: float, dy: float) -> int:
        """A player goes on in this direction, at full speed at most."""
        player = self._player(id)
        length = math.hypot(dx, dy)
        if not math.isfinite(length):
            dx = dy = 0.0
        elif length > 1:
            dx, dy = dx / length, dy / length
        player.dx, player.dy = dx, dy
        if dx or dy:
            player.angle = math.atan2(dy, dx)
        player.done += 1
        return player.done

    def shoot(self, id: str, angle: float, tables: Any) -> int:
        """A player shoots, if the weapon is ready."""
        player = self._player(id)
        weapon = tables.weapons[rules.WEAPON]
        if player.wait <= 0 and math.isfinite(angle) and len(self.bullets) < MAX_BULLETS:
            player.wait = weapon.cooldown
            player.angle = math.remainder(angle, math.tau)
            for number in range(weapon.pellets):
                turned = player.angle + (number - (weapon.pellets - 1) / 2) * PELLET_RADIANS
                vx, vy = math.cos(turned) * weapon.speed, math.sin(turned) * weapon.speed
                self.shots += 1
                self.bullets.append(Bullet(self.shots, player.x, player.y, vx, vy, weapon.seconds, id))
        player.done += 1
        return player.done

    # -- a tick

    def step(self, dt: float, tables: Any) -> list[list[Any]]:
        """Go on by so many seconds.

        :returns: what happened: ``["hit", x, y]``, ``["fall", x, y, who, by whom]``.
        """
        arena, walls = tables.arenas[rules.ARENA], walls_of(tables)
        self.tick += 1
        self.time += dt
        for player in self.players.values():
            player.wait = max(0.0, player.wait - dt)
            # One axis after the other, so that who runs against a wall slides along it.
            dx, dy = player.dx * arena.pace * dt, player.dy * arena.pace * dt
            x = min(max(player.x + dx, RADIUS), arena.width - RADIUS)
            wall = _wall_at(x, player.y, walls, RADIUS)
            if wall is not None:
                x = wall.x - RADIUS if dx > 0 else wall.x + wall.width + RADIUS
            y = min(max(player.y + dy, RADIUS), arena.height - RADIUS)
            wall = _wall_at(x, y, walls, RADIUS)
            if wall is not None:
                y = wall.y - RADIUS if dy > 0 else wall.y + wall.height + RADIUS
            player.x, player.y = x, y
        for player in self.away.values():
            player.away += dt
        self.away = {id: player for id, player in self.away.items() if player.away < AWAY_SECONDS}
        events: list[list[Any]] = []
        self.bullets = [
            bullet for bullet in self.bullets if self._flies_on(bullet, dt, tables, walls, events)
        ]
        return events

    def view(self, events: list[list[Any]]) -> dict[str, Any]:
        """What everybody sees."""
        return {
            "tick": self.tick,
            "time": round(self.time * 1000, 1),
            "rules": rules.VERSION,
            "players": [
                [id, p.name, round(p.x), round(p.y), round(p.angle, 2), p.health, p.score, p.falls]
                for id, p in self.players.items()
            ],
            "bullets": [[b.number, round(b.x), round(b.y)] for b in self.bullets],
            "events": events,
        }

    # -- parts of it

    def _player(self, id: str) -> Player:
        try:
            return self.players[id]
        except KeyError:
            raise NotInMatch(id) from None

    def _place(self, player: Player, tables: Any) -> None:
        arena, walls = tables.arenas[rules.ARENA], walls_of(tables)
        for _ in range(PLACES_TRIED):
            player.x = random.uniform(RADIUS, arena.width - RADIUS)
            player.y = random.uniform(RADIUS, arena.height - RADIUS)
            if _wall_at(player.x, player.y, walls, RADIUS) is None:
                break
        player.health = HEALTH

    def _flies_on(
        self, bullet: Bullet, dt: float, tables: Any, walls: list[Any], events: list[list[Any]]
    ) -> bool:
        """Moves it, in steps that are too short to pass through somebody."""
        arena, weapon = tables.arenas[rules.ARENA], tables.weapons[rules.WEAPON]
        steps = max(1, math.ceil(math.hypot(bullet.vx, bullet.vy) * dt / RADIUS))
        bullet.seconds -= dt
        for _ in range(steps):
            bullet.x += bullet.vx * dt / steps
            bullet.y += bullet.vy * dt / steps
            x, y = round(bullet.x), round(bullet.y)
            is_out = not (0 < bullet.x < arena.width and 0 < bullet.y < arena.height)
            if is_out or _wall_at(bullet.x, bullet.y, walls, 0.0) is not None:
                events.append(["hit", x, y])
                return False
            for id, player in self.players.items():
                if id != bullet.shooter and math.hypot(player.x - bullet.x, player.y - bullet.y) < RADIUS:
                    events.append(["hit", x, y])
                    self._is_hit(id, player, bullet, weapon, tables, events)
                    return False
        return bullet.seconds > 0

    def _is_hit(
        self, id: str, player: Player, bullet: Bullet, weapon: Any, tables: Any, events: list[list[Any]]
    ) -> None:
        player.health = rules.health_after(player.health, weapon)
        if player.health > 0:
            return
        events.append(["fall", round(player.x), round(player.y), id, bullet.shooter])
        player.falls += 1
        self._place(player, tables)
        shooter = self.players.get(bullet.shooter) or self.away.get(bullet.shooter)
        if shooter is not None:
            shooter.score += rules.POINTS


def check(tables: Any) -> None:
    """The tables have what these rules need.

    :raises KeyError: what is missing.
    """
    _ = tables.weapons[rules.WEAPON], tables.arenas[rules.ARENA], walls_of(tables)


def walls_of(tables: Any) -> list[Any]:
    """Rows of the table ``walls``: those of the arena in which is played."""
    return [wall for wall in tables.walls.values() if wall.arena == rules.ARENA]


def plan(tables: Any) -> dict[str, Any]:
    """What the arena looks like."""
    arena = tables.arenas[rules.ARENA]
    walls = [[wall.x, wall.y, wall.width, wall.height] for wall in walls_of(tables)]
    return {"width": arena.width, "height": arena.height, "walls": walls}


def _wall_at(x: float, y: float, walls: list[Any], margin: float) -> Any:
    """The wall in which a place is, or to which it is nearer than the margin; ``None``: there is none."""
    for wall in walls:
        is_beside = wall.x - margin < x < wall.x + wall.width + margin
        if is_beside and wall.y - margin < y < wall.y + wall.height + margin:
            return wall
    return None
