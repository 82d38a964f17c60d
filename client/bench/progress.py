"""What is being done, on standard error: on a terminal a line that is written over, else a line a case."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TextIO

from spread.client.bench.plan import Case, Options

__all__ = ["Progress", "seconds_of"]

_WIDTH = 100


def seconds_of(case: Case, options: Options) -> float:
    """How long a case takes, about."""
    clients = case.members * case.groups + case.idle_clients
    opening = 2.5 + clients / 2500 + case.rooms * case.members / 5000
    if case.is_idle:
        return options.repeat * (opening + 2.0)
    targets = 3 if case.batching_matters else 2
    return opening + options.repeat * targets * (options.warm + options.seconds + 0.2)


class Progress:
    """Follows the cases in their order."""

    def __init__(self, out: TextIO, cases: Sequence[Case], options: Options) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self._names = [case.name for case in cases]
        self._left = [seconds_of(case, options) for case in cases]
        self._number = 0
        self._began = time.monotonic()

    def begin(self) -> None:
        """The next case begins."""
        self._number += 1
        self._began = time.monotonic()
        if not self._is_terminal:
            print(
                f"spread: {self._number} of {len(self._names)}: {self.name}, {self._time_left()}",
                file=self._out,
            )
            self._out.flush()

    @property
    def name(self) -> str:
        """The case that has begun."""
        return self._names[self._number - 1]

    def _time_left(self) -> str:
        mine = self._left[self._number - 1] - (time.monotonic() - self._began)
        seconds = max(1.0, mine) + sum(self._left[self._number :])
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"

    def step(self, what: str) -> None:
        """What is being done in this case."""
        if self._is_terminal:
            line = f"{self._number} of {len(self._names)}: {self.name}: {what}, {self._time_left()}"
            self._out.write(f"\r{line[:_WIDTH]:<{_WIDTH}}")
            self._out.flush()

    def clear(self) -> None:
        """Leave no trace on a terminal."""
        if self._is_terminal:
            self._out.write("\r" + " " * _WIDTH + "\r")
            self._out.flush()
