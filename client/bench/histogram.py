"""How long things took, as a histogram whose steps grow with the value: the twin of ``histogram.h``.

A quantile is told within 1 %, whatever its size.
"""

from __future__ import annotations

from collections import Counter

__all__ = ["Histogram"]

_STEP_BITS = 7
_STEPS = 1 << _STEP_BITS
"""Values below have a step each; above, each power of two has so many."""


class Histogram:
    """Counts of whole numbers, not below 0."""

    __slots__ = ("_counts", "largest", "sum", "total")

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.total = 0
        self.sum = 0
        self.largest = 0

    def add(self, value: int) -> None:
        shift = max(0, value.bit_length() - 1 - _STEP_BITS)
        self._counts[shift * _STEPS + (value >> shift)] += 1
        self.total += 1
        self.sum += value
        self.largest = max(self.largest, value)

    @property
    def mean(self) -> float:
        return self.sum / self.total if self.total else 0.0

    def quantile(self, share: float) -> int:
        """The value that ``share`` of all do not exceed; 0 if there are none."""
        seen = 0
        for step in sorted(self._counts):
            seen += self._counts[step]
            if seen >= share * self.total:
                return min(_value_of(step), self.largest)
        return self.largest


def _value_of(step: int) -> int:
    """The middle of a step."""
    shift = max(0, step // _STEPS - 1)
    return (step - shift * _STEPS << shift) + (1 << shift >> 1)
