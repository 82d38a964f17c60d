"""The hub on fakeredis: the conformance suite against a second, independent server."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from fakeredis import FakeRedis, TcpFakeServer
from twisted.trial.unittest import TestCase

from tests.hub.conformance import HubConformance
from tests.hub.shards import Shard, deafened, redis_shard
from tests.hub.stream_conformance import StreamConformance


class FakeredisConformance(HubConformance, StreamConformance, TestCase):
    """Every case, against fakeredis in a thread."""

    timeout = 60
    many_channels = 2000

    def setUp(self) -> None:
        # It ends a connection at any fault of its own, and tells why only here.
        logging.getLogger("fakeredis").setLevel(logging.DEBUG)
        self.server = TcpFakeServer(("127.0.0.1", 0), server_type="valkey")
        # No thread of it may outlive the tests, not even after one that failed.
        self.server.daemon_threads = True
        self.server.block_on_close = False
        serve = self.server.serve_forever
        thread = threading.Thread(target=serve, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        # It closes a connection that it answered with an error, so NOSCRIPT must not come.
        client = FakeRedis(server=self.server.fake_server)
        for script in files("spread.hub.lua").iterdir():
            if script.name.endswith(".lua"):
                client.script_load(script.read_text())
        client.close()
        self.addCleanup(thread.join)
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)

    def make_shard(self, **limits: Any) -> Shard:
        return redis_shard(f"redis://127.0.0.1:{self.server.server_address[1]}", **limits)

    def deafen(self, shard: Shard) -> Callable[[], None]:
        return deafened(shard)

    def forget_everything(self) -> None:
        client = FakeRedis(server=self.server.fake_server)
        client.flushall()
        client.close()
