"""The register of a shard's clients, apart from Redis: what is on its way when the shard stops."""

from __future__ import annotations

import gc
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from spread.hub.api import ClientInfo, HubCounters
from spread.hub.keys import ShardKeys
from spread.hub.register import Register
from spread.hub.roster import Life


class Silent:
    """A link, its connection, and a hub: none of them answers."""

    def __init__(self) -> None:
        self.protocol = self
        self.asked = 0

    def submit(self, waiter: Any, *command: Any) -> None:
        self.asked += 1

    def execute_command(self, *command: Any) -> Deferred[Any]:
        self.asked += 1
        return Deferred()

    def add_presence(self, channel: str, info: ClientInfo, ttl_seconds: float) -> Deferred[None]:
        self.asked += 1
        return Deferred()


class Stopping(TestCase):
    def test_what_is_told_again_while_the_shard_stops_ends_in_silence(self) -> None:
        silent = Silent()
        anything = cast(Any, silent)
        register = Register(Clock(), anything, ShardKeys("spread"), "aa" * 8, HubCounters(), anything)
        register.enter()
        register.beaten(Life.NEW, 0.0)
        register.add_presence("room", ClientInfo("u", "c"), 60).addErrback(lambda failure: None)
        before = silent.asked
        register.restate()
        register.beaten(Life.NEW, 1.0)
        self.assertGreater(silent.asked, before)
        register.stop()
        del register
        gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])
