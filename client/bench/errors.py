"""What can go wrong with a benchmark, and what the command makes of it."""

from __future__ import annotations

__all__ = ["BadRequest", "BenchError", "CutShort", "ServerDied"]


class BenchError(Exception):
    """The root; ``str`` is one sentence for people."""


class BadRequest(BenchError):
    """What was asked for cannot be had on this machine: exit code 2."""


class CutShort(BenchError):
    """The run ended before its time: exit code 1."""


class ServerDied(CutShort):
    """A process that is measured has ended."""
