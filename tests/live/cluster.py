"""Shards for the conformance tests: two alike, and a third with short times, low limits and its own keys.

All three are on one Valkey and have the same channels, so that what is done on one is seen on the others.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt

from tests.hub.servers import Valkey
from tests.live.processes import READY, Node, home, started
from tests.live.raw import Answer, JsonClient, Object, ProtobufClient, requested
from tests.node.minting import CURVE_KEYS, ED_KEY, RSA_KEY, jwk, key_set

SECRET = "a-secret-that-only-the-backend-of-the-tests-knows"
API_KEY = "the-key-of-the-tests"

KEYS = key_set(
    jwk(RSA_KEY.public_key(), kid="rsa", alg="RS256"),
    *(jwk(key.public_key(), kid=name, alg=name) for name, key in CURVE_KEYS.items()),
    jwk(ED_KEY.public_key(), kid="ed", alg="EdDSA"),
)

CHANNELS = """
[channel.without_namespace]
allow_subscribe_for_client = true
allow_publish_for_client = true

# Who is there.
[[channel.namespaces]]
name = "live"
presence = true
join_leave = true
force_push_join_leave = true
allow_subscribe_for_client = true
allow_publish_for_client = true
allow_presence_for_client = true

# Streams: all is recovered; positions only; the newest, asked for or not; whatever is asked for.
[[channel.namespaces]]
name = "kept"
presence = true
history_size = 5
history_ttl = "300s"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_client = true
allow_history_for_client = true
allow_presence_for_client = true

[[channel.namespaces]]
name = "placed"
history_size = 5
history_ttl = "300s"
force_positioning = true
allow_subscribe_for_client = true

[[channel.namespaces]]
name = "newest"
history_size = 1
history_ttl = "300s"
force_recovery = true
force_recovery_mode = "cache"
allow_subscribe_for_client = true

[[channel.namespaces]]
name = "auto"
history_size = 1
history_ttl = "300s"
force_recovery = true
force_recovery_mode = "cache"
auto_cache_recovery = true
allow_subscribe_for_client = true

[[channel.namespaces]]
name = "asked"
presence = true
join_leave = true
history_size = 5
history_ttl = "300s"
allow_positioning = true
allow_recovery = true
allow_subscribe_for_client = true
allow_presence_for_client = true

[[channel.namespaces]]
name = "long"
history_size = 1000
history_ttl = "300s"
force_recovery = true
allow_subscribe_for_client = true
allow_history_for_client = true

[[channel.namespaces]]
name = "delta"
history_size = 50
history_ttl = "300s"
force_recovery = true
allowed_delta_types = ["fossil"]
delta_publish = true
allow_subscribe_for_client = true
allow_history_for_client = true

# Who may do what.
[[channel.namespaces]]
name = "closed"
presence = true
join_leave = true
history_size = 5
history_ttl = "300s"
allow_publish_for_subscriber = true
allow_history_for_subscriber = true
allow_presence_for_subscriber = true

[[channel.namespaces]]
name = "open"
presence = true
history_size = 5
history_ttl = "300s"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_presence_for_client = true
allow_presence_for_anonymous = true
allow_history_for_client = true
allow_history_for_anonymous = true

[[channel.namespaces]]
name = "dialog"
allow_user_limited_channels = true

[[channel.namespaces]]
name = "strict"
channel_regex = "^[a-z]+$"
publication_data_format = "json_object"
allow_subscribe_for_client = true
allow_publish_for_client = true

[[channel.namespaces]]
name = "bytes"
publication_data_format = "binary"
allow_subscribe_for_client = true
allow_publish_for_client = true
"""

COMMON = f"""
[http_api]
key = "{API_KEY}"

[http_stream]
enabled = true

[sse]
enabled = true
{CHANNELS}
"""

USUAL = f"""
[client]
allowed_origins = ["https://*.example.com"]
expired_close_delay = "0s"
expired_sub_close_delay = "0s"

[client.token]
hmac_secret_key = "{SECRET}"
jwks_public_endpoint = "%s"
{COMMON}
"""
"""Pings and limits are those that one has without a configuration."""

STRICT = f"""
[client]
ping_interval = "1s"
pong_timeout = "400ms"
stale_close_delay = "500ms"
expired_close_delay = "300ms"
expired_sub_close_delay = "300ms"
presence_update_interval = "500ms"
channel_limit = 3
user_connection_limit = 2
commands_per_second = 20
errors_limit = 30
disallow_anonymous_connection_tokens = true
connect_include_server_time = true
channel_position_check_delay = "1s"

[client.token]
hmac_secret_key = "{SECRET}"
jwks_public_endpoint = "%s"

[client.subscribe_to_user_personal_channel]
enabled = true
personal_channel_namespace = "kept"
{COMMON.replace("[http_api]", "[http_api]" + chr(10) + 'error_mode = "transport"')}
"""

STRICT_SHARD = 2


class KeyServer:
    """Serves the set of keys, after a while.

    :param seconds: this long.
    """

    def __init__(self, seconds: float) -> None:
        owner = self
        self.asked = 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.asked += 1
                time.sleep(seconds)
                self.send_response(200)
                self.send_header("Content-Length", str(len(KEYS)))
                self.end_headers()
                self.wfile.write(KEYS)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/keys.json"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Cluster:
    """Shards on one Valkey.

    :param nodes: by shard number.
    """

    def __init__(self, hub: Valkey, nodes: list[Node], keys: KeyServer | None = None) -> None:
        self.hub = hub
        self.nodes = nodes
        self.keys = keys
        self.ports = [port_of(node) for node in nodes]
        self._last = 0

    def fresh(self, name: str) -> str:
        """A name of a channel or a user that no other test has."""
        self._last += 1
        return f"{name}{self._last}"

    def url(self, shard: int) -> str:
        """For WebSockets."""
        return f"ws://127.0.0.1:{self.ports[shard]}"

    def json(self, shard: int = 0, query: str = "", **options: Any) -> JsonClient:
        """A client that has not connected yet."""
        return JsonClient(self.url(shard), query, **options)

    def protobuf(self, shard: int = 0, **options: Any) -> ProtobufClient:
        """The same in Protobuf."""
        options.setdefault("subprotocols", ["centrifuge-protobuf"])
        return ProtobufClient(self.url(shard), **options)

    @contextmanager
    def user(self, name: str = "", shard: int = 0, **claims: Any) -> Iterator[JsonClient]:
        """A connected JSON client."""
        with self.json(shard) as client:
            client.connected(token=token(name or self.fresh("user"), **claims))
            yield client

    def call(self, method: str, shard: int = 0, /, **params: Any) -> Object:
        """A call of the HTTP API; all that it answered."""
        answer = self.post(f"/api/{method}", json.dumps(params), shard)
        assert answer.status == 200, answer.body
        found: Object = json.loads(answer.body)
        return found

    def api(self, method: str, shard: int = 0, /, **params: Any) -> Any:
        """The result of a call."""
        return self.call(method, shard, **params)["result"]

    def published(self, channel: str, *data: Any) -> Object:
        """Publish through the API, from both shards in turn; the last position."""
        position: Object = {}
        for number, each in enumerate(data):
            position = self.api("publish", number % 2, channel=channel, data=each)
        return position

    def present(self, channel: str) -> tuple[int, int]:
        """How many clients and users are in a channel."""
        found = self.api("presence_stats", 1, channel=channel)
        return found["num_clients"], found["num_users"]

    def post(self, path: str, body: bytes | str, shard: int = 0, **headers: str) -> Answer:
        """A request with the key."""
        return requested(self.ports[shard], "POST", path, body, {"X-API-Key": API_KEY} | headers)

    def check_alive(self) -> None:
        """Nothing that clients did has ended a shard, or was unexpected to it."""
        for node in self.nodes:
            assert node.process.poll() is None, node.stderr()
            assert "Traceback" not in node.stderr(), node.stderr()


def port_of(node: Node) -> int:
    """That of HTTP, once the node is ready."""
    node.wait_ready(1)
    found = READY.match(node.ready[-1][1])
    assert found, node.ready
    return int(found[3].rpartition(":")[2])


def token(user: str, **claims: Any) -> str:
    """A token signed with the secret; ``exp`` and the like as given."""
    return jwt.encode({"sub": user} | claims, SECRET, algorithm="HS256")


def started_shard(stack: ExitStack, hub: Valkey, path: Path, shard: int, config: str) -> Node:
    """A shard with that configuration, which need not be ready yet."""
    file = path.parent / f"shard{shard}.toml"
    file.write_text(config)
    return started(stack, "--shard", str(shard), "--hub", hub.url, "--config", str(file), home=path)


def running(stack: ExitStack) -> Cluster:
    """All three, up; they are gone when the stack ends."""
    path = stack.enter_context(home())
    hub = stack.enter_context(Valkey())
    keys = KeyServer(0.4)
    stack.callback(keys.close)
    file = path.parent / "keys.json"
    file.write_bytes(KEYS)
    configs = [USUAL % file, USUAL % file, STRICT % keys.url]
    nodes = [started_shard(stack, hub, path, shard, config) for shard, config in enumerate(configs)]
    return Cluster(hub, nodes, keys)


def pair(stack: ExitStack) -> Cluster:
    """Two usual shards on a Valkey of their own, for tests that break something."""
    path = stack.enter_context(home())
    hub = stack.enter_context(Valkey())
    file = path.parent / "keys.json"
    file.write_bytes(KEYS)
    return Cluster(hub, [started_shard(stack, hub, path, shard, USUAL % file) for shard in (0, 1)])
