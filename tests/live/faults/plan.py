"""Which faults a run has: drawn from a seed, evenly over all kinds that a stage offers. Pure.

The same seed and the same offers give the same plan, and a longer plan begins with the shorter one. Each
fault carries a seed of its own for whatever its stage draws, so that a slice of a plan does what it did in
the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

__all__ = ["GAP_SECONDS", "Offer", "Strike", "drawn", "told_slice"]

GAP_SECONDS = (0.3, 2.0)
"""Of quiet after the clients of a fault have recovered; shortest and longest."""


@dataclass(frozen=True)
class Offer:
    """One kind of fault that a stage has."""

    name: str
    """Short, with hyphens; for ``--kinds``."""
    targets: int = 1
    """How many things it can hit: the plan draws one of ``range(targets)``."""
    seconds: tuple[float, float] = (0.0, 0.0)
    """How long it lasts, at least and at most."""


@dataclass(frozen=True)
class Strike:
    """One fault of a plan."""

    number: int
    """Its place in the plan, from 1."""
    kind: str
    target: int
    seconds: float
    """Between its begin and its end."""
    gap: float
    """Seconds of quiet after it."""
    seed: int

    def rng(self) -> Random:
        """For what the stage draws; the same each time."""
        return Random(self.seed)

    def __str__(self) -> str:
        lasts = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.number:4d} {self.kind} [{self.target}]{lasts}, then {self.gap:.1f} s"


def drawn(seed: int, offers: Sequence[Offer], count: int) -> list[Strike]:
    """A plan of ``count`` faults: every kind once before any comes again, in a new order each time.

    :raises ValueError: there is nothing to draw from.
    """
    if not offers:
        raise ValueError("no kinds of faults to draw from")
    draws = _drawn(Random(seed), sorted(offers, key=lambda offer: offer.name))
    return [next(draws) for _ in range(count)]


def _drawn(rng: Random, offers: Sequence[Offer]) -> Iterator[Strike]:
    number = 0
    while True:
        for offer in rng.sample(offers, len(offers)):
            number += 1
            yield Strike(
                number,
                offer.name,
                rng.randrange(offer.targets),
                round(rng.uniform(*offer.seconds), 2),
                round(rng.uniform(*GAP_SECONDS), 2),
                rng.randrange(1 << 31),
            )


def told_slice(text: str) -> tuple[int, int]:
    """``17-23`` or ``17``, as numbers of the plan, both inclusive.

    :raises ValueError: it is neither.
    """
    first, dash, last = text.partition("-")
    found = int(first), int(last if dash else first)
    if not 1 <= found[0] <= found[1]:
        raise ValueError(f"{text!r} is no slice of a plan")
    return found
