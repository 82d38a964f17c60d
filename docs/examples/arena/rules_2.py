"""The rules of the arena, version 2: copy it over ``rules.py``, and type ``spread reload``."""

from __future__ import annotations

from typing import Any

VERSION = "2 shotguns"
WEAPON = "shotgun"
ARENA = "yard"
POINTS = 2


def health_after(health: int, weapon: Any) -> int:
    """What is left of a player's health after a hit: whoever is nearly done for gets a second chance."""
    left = int(health - weapon.damage)
    return 5 if left <= 0 and health > 25 else left
