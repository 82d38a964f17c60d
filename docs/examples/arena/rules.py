"""The rules of the arena, version 1: what a new version of the game changes while players play."""

from __future__ import annotations

from typing import Any

VERSION = "1 pistols"
WEAPON = "pistol"
ARENA = "yard"
POINTS = 1


def health_after(health: int, weapon: Any) -> int:
    """What is left of a player's health after a hit."""
    return int(health - weapon.damage)
