"""SIGUSR1 in the first moments of a process, when there is nothing yet that could be updated.

By default that signal ends a process. Here it is noted instead, and answered when it can be: an app may have
been imported already, and would else stay as it was. This module imports nothing that takes time.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

__all__ = ["hold", "take_over"]

_noted: list[int] = []


def hold() -> None:
    """From now on SIGUSR1 is noted. Call it before anything else, on the main thread."""
    if hasattr(signal, "SIGUSR1"):
        # A handler, which other programs that are started from here do not inherit, unlike "ignore".
        signal.signal(signal.SIGUSR1, lambda number, frame: _noted.append(number))


def take_over(asked: Callable[[], object]) -> None:
    """From now on SIGUSR1 calls ``asked``; it is called at once, and once, if one was noted."""
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lambda number, frame: asked())
        if _noted:
            _noted.clear()
            asked()
