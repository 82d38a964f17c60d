"""As ``stage_sentinel``, with shards that acknowledge what both replicas have: ``hub.min_replicas = 2``.

A failover loses nothing that was acknowledged, also when the old master goes on beside the new one, cut off
from the Sentinels alone. Clients that have seen what was acknowledged to nobody, and is gone, are still told.
"""

from __future__ import annotations

from tests.live.faults.stage_sentinel import SentinelStage

__all__ = ["SentinelSafeStage"]


class SentinelSafeStage(SentinelStage):
    """See the module."""

    name = "sentinel-safe"

    def hub_arguments(self, shard: int) -> list[str]:
        return [*super().hub_arguments(shard), "--hub-min-replicas", "2"]

    @property
    def is_acknowledged_by_replicas(self) -> bool:
        return True
