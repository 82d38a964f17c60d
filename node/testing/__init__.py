"""For tests of apps: shards and clients in memory, on a clock that stands still. See docs/apps.md.

    with Stage(Game) as stage:
        alice = stage.client(user="alice")
        alice.subscribe("room:1")
        assert alice.rpc("move", {"to": 3}) == {"at": 3}
        stage.advance(10.0)
        assert alice.publications("room:1") == [{"tick": 10}]

All but the sockets is what runs in a shard: sessions, channels, fan-out, limits, the in-memory hub.
"""

from spread.node.testing.client import Asked, Closed, FakeClient, NoAnswer, Received, Refused
from spread.node.testing.stage import AppErrors, Stage
from spread.node.testing.text import FakeTextClient

__all__ = [
    "AppErrors",
    "Asked",
    "Closed",
    "FakeClient",
    "FakeTextClient",
    "NoAnswer",
    "Received",
    "Refused",
    "Stage",
]
