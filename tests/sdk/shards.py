"""Two real shards on a real hub, each with an HTTP port of its own, for SDKs to connect to.

The hub is one Valkey, or what ``SPREAD_TEST_HUB`` says: ``two`` is two plain Valkeys, ``cluster`` a Valkey
Cluster of three primaries.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from contextlib import ExitStack
from typing import Any

import jwt

from tests.hub.clusters import ValkeyCluster
from tests.hub.servers import Valkey
from tests.live.processes import READY, Node, home, started

SECRET = "a-secret-that-only-the-backend-of-the-tests-knows"
API_KEY = "the-key-of-the-tests"

# Expired connections and subscriptions are closed soon, so that a refresh that was not understood shows
# within a test; pings come often, so that clients answer some.
CONFIG = f"""
[client]
allowed_origins = ["*"]
ping_interval = "2s"
pong_timeout = "1s"
expired_close_delay = "1s"
expired_sub_close_delay = "1s"

[client.token]
hmac_secret_key = "{SECRET}"

[client.subscribe_to_user_personal_channel]
enabled = true

[http_api]
key = "{API_KEY}"

[http_stream]
enabled = true

[sse]
enabled = true

[channel.without_namespace]
presence = true
join_leave = true
force_push_join_leave = true
history_size = 1000
history_ttl = "300s"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_client = true
allow_presence_for_client = true
allow_history_for_client = true

# Nothing but publish and subscribe.
[[channel.namespaces]]
name = "plain"
allow_subscribe_for_client = true
allow_publish_for_client = true

# Nothing at all without a token.
[[channel.namespaces]]
name = "closed"
presence = true
history_size = 10
history_ttl = "300s"
allow_history_for_subscriber = true
allow_presence_for_subscriber = true

# What there is, clients must ask for.
[[channel.namespaces]]
name = "asked"
presence = true
join_leave = true
history_size = 10
history_ttl = "300s"
allow_positioning = true
allow_recovery = true
allow_subscribe_for_client = true
allow_publish_for_client = true
allow_presence_for_client = true
allow_history_for_client = true

# A stream that forgets soon.
[[channel.namespaces]]
name = "short"
history_size = 3
history_ttl = "300s"
force_recovery = true
allow_subscribe_for_client = true
allow_history_for_client = true

[[channel.namespaces]]
name = "delta"
history_size = 100
history_ttl = "300s"
force_recovery = true
allowed_delta_types = ["fossil"]
delta_publish = true
allow_subscribe_for_client = true
"""


class ApiError(Exception):
    """What the HTTP API answered instead of a result."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code


class Shards:
    """Shard 0 and shard 1."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.ports: list[int] = []
        for node in nodes:
            node.wait_ready(1)
            found = READY.fullmatch(node.ready[-1][1])
            assert found, node.ready
            self.ports.append(int(found[3].rpartition(":")[2]))
        self._last = 0

    def url(self, shard: int, scheme: str = "http") -> str:
        """Where a shard is, without a slash at the end."""
        return f"{scheme}://127.0.0.1:{self.ports[shard]}"

    def fresh(self, name: str) -> str:
        """A name that no other test uses, for a channel or a user."""
        self._last += 1
        return f"{name}-{self._last}"

    def token(self, user: str, *, seconds: float | None = None, **claims: Any) -> str:
        """A connection token, or with ``channel`` a subscription token; it expires ``seconds`` from now."""
        claims["sub"] = user
        if seconds is not None:
            claims["exp"] = int(time.time() + seconds)
        return jwt.encode(claims, SECRET, algorithm="HS256")

    def api(self, method: str, shard: int = 0, /, **params: Any) -> Any:
        """The result of a call of the HTTP API.

        :raises ApiError: there is none.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[shard], timeout=20)
        try:
            headers = {"X-API-Key": API_KEY, "Content-Type": "application/json"}
            connection.request(
                "POST", f"/api/{method}", json.dumps(params, ensure_ascii=False).encode(), headers
            )
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        assert answer.status == 200, (method, answer.status, text)
        reply = json.loads(text)
        if "error" in reply:
            raise ApiError(reply["error"]["code"], reply["error"]["message"])
        return reply["result"] if method != "batch" else reply["replies"]

    def check_alive(self) -> None:
        """Nothing that clients did has ended a shard, or was unexpected to it."""
        for node in self.nodes:
            assert node.process.poll() is None, node.stderr()
            assert "Traceback" not in node.stderr(), node.stderr()


def running(stack: ExitStack) -> Shards:
    """Both shards, up; they are gone when the stack ends."""
    path = stack.enter_context(home())
    urls = hub(stack, os.environ.get("SPREAD_TEST_HUB", "valkey"))
    config = path.parent / "spread.toml"
    config.write_text(CONFIG)
    nodes = [
        started(stack, "--shard", str(shard), *urls, "--config", str(config), home=path) for shard in (0, 1)
    ]
    return Shards(nodes)


def hub(stack: ExitStack, name: str) -> list[str]:
    """Start it; gives the flags for it."""
    if name == "cluster":
        return ["--hub", stack.enter_context(ValkeyCluster(3)).url]
    servers = [stack.enter_context(Valkey()) for _ in range({"valkey": 1, "two": 2}[name])]
    return [part for server in servers for part in ("--hub", server.url)]
