"""What the owners of a shard count for the metrics: plain numbers."""

from __future__ import annotations

from bisect import bisect_left

import msgspec

__all__ = ["LATE_BUCKETS", "OwnersCounters"]

LATE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Upper bounds, in seconds, of the histogram of late ticks; one more bucket has the rest."""


class OwnersCounters(msgspec.Struct, kw_only=True):
    """Numbers that only grow, but for the last four."""

    taken: int = 0
    """Channels that this shard has begun to own."""
    taken_by_force: int = 0
    """Of these, from a shard that lives and did not give up in time."""
    handed_over: int = 0
    """Channels given up, with a snapshot."""
    fenced: int = 0
    """Channels whose next owner was found out by a refusal."""
    suspensions: int = 0
    """Times this shard was not sure to be alive for the others."""
    failed: int = 0
    """Objects that could not be made."""
    calls: int = 0
    """Commands called on this shard."""
    asked_again: int = 0
    """Times a command was sent again, since it had not been begun."""
    unknown: int = 0
    """Commands of which the outcome will not be known."""
    refused_full: int = 0
    """Commands and objects refused because of a limit."""
    ticks: int = 0
    ticks_skipped: int = 0
    snapshots: int = 0
    snapshots_failed: int = 0
    late_seconds: float = 0.0
    """Of all ticks together."""
    late: list[int] = msgspec.field(default_factory=lambda: [0] * (len(LATE_BUCKETS) + 1))
    """Ticks by how late they were, see ``LATE_BUCKETS``."""
    objects: int = 0
    members: int = 0
    """Reported to this shard."""
    waiting: int = 0
    """Commands called here that are not answered yet, and commands for objects here that have not begun."""
    snapshot_bytes: int = 0
    """Of the last snapshot of any object."""

    def ticked(self, late: float) -> None:
        """A tick was so late, in seconds."""
        self.ticks += 1
        self.late_seconds += late
        self.late[bisect_left(LATE_BUCKETS, late)] += 1
