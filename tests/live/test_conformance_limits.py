"""What the protocol asks of a server where SDKs are lenient, clients are slow, or a feature is not there
(items 11, 13 and 14)."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from spread.node.wire.delta import apply
from tests.live.cluster import Cluster, token

pytestmark = pytest.mark.live

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "protocol.md"

# --- 11: leniency, and differences that are text ------------------------------------------------------


def test_11_a_refresh_of_a_subscription_may_leave_its_channel_out(cluster: Cluster) -> None:
    channel, user = cluster.fresh("closed:"), cluster.fresh("user")
    now = int(time.time())
    with cluster.user(user) as client:
        first = token(user, channel=channel, exp=now + 30)
        found = client.ask("subscribe", channel=channel, token=first)["subscribe"]
        assert found["expires"] and 25 <= found["ttl"] <= 30
        second = token(user, channel=channel, exp=now + 600)
        for place in ({}, {"channel": channel}):
            refreshed = client.ask("sub_refresh", token=second, **place)["sub_refresh"]
            assert refreshed["expires"] and 590 <= refreshed["ttl"] <= 600
        other = token(user, channel=cluster.fresh("closed:"), exp=now + 600)
        assert client.ask("sub_refresh", token=other)["error"]["code"] == 103, "not subscribed to that one"


ALPHABETS = {
    "ascii": "the quick brown fox jumps over the lazy dog, again and again",
    "cyrillic": "съешь же ещё этих мягких французских булок, да выпей чаю",
    "chinese": "视野无限广窗外有蓝天微风轻拂过湖面泛起层层涟漪令人心旷神怡",
    "emoji": "🐶🐱🐭🐹🐰🦊🐻🐼🐨🐯🦁🐮🐷🐸🐵🐔🐧🐦🐤🐣🐥🦆🦅🦉🦇🐺🐗🐴🦄🐝",
}


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_11_differences_are_text_whatever_they_cut(cluster: Cluster, alphabet: str) -> None:
    channel, letters = cluster.fresh("delta:"), ALPHABETS[alphabet]
    texts = [letters[: 10 + index] + letters[-index - 1] + letters[10:] for index in range(20)]
    with cluster.user() as client, cluster.user(shard=1) as plain:
        assert client.ask("subscribe", channel=channel, delta="fossil")["subscribe"]["delta"]
        assert "delta" not in plain.ask("subscribe", channel=channel)["subscribe"]
        cluster.published(channel, *texts)
        base, differences = b"", 0
        for text in texts:
            got = client.push("pub", channel)
            assert isinstance(got["data"], str)
            if got.get("delta"):
                differences += 1
                base = apply(base, got["data"].encode(), 1 << 16)
            else:
                base = got["data"].encode()
            assert json.loads(base) == text
        assert differences >= 15
        assert plain.heard(channel, len(texts)) == texts


# --- 13: who does not read ----------------------------------------------------------------------------


def test_13_who_does_not_read_is_slow_and_nobody_else_notices(cluster: Cluster) -> None:
    channel = cluster.fresh("")
    with cluster.user() as reader, cluster.user(shard=1) as speaker:
        slow = _slow_client(cluster, channel)
        try:
            reader.ask("subscribe", channel=channel)
            # 1 MiB waits in the shard, and little in the kernel, where each socket has a low-water mark.
            for _ in range(40):
                assert "publish" in speaker.ask("publish", channel=channel, data="x" * 60_000)
                assert len(reader.push("pub", channel)["data"]) == 60_000
            code, reason = _read_to_the_end(slow)
            assert (code, reason) == (3008, "slow")
            assert "presence_stats" not in speaker.ask("publish", channel=channel, data=1)
            assert reader.push("pub", channel)["data"] == 1
        finally:
            slow.close()


def _slow_client(cluster: Cluster, channel: str) -> socket.socket:
    """A client that is subscribed, and reads no more."""
    sock = socket.create_connection(("127.0.0.1", cluster.ports[0]), timeout=20)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.sendall(
        b"GET /connection/websocket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    hello = "\n".join(
        json.dumps(command)
        for command in (
            {"id": 1, "connect": {"token": token(cluster.fresh("user"))}},
            {"id": 2, "subscribe": {"channel": channel}},
        )
    ).encode()
    sock.sendall(bytes([0x81, 0xFE]) + len(hello).to_bytes(2, "big") + bytes(4) + hello)
    came = b""
    while b'"id":2' not in came:
        came += sock.recv(4096)
    return sock


def _read_to_the_end(sock: socket.socket) -> tuple[int, str]:
    """Read what waits; the code and the reason of the Close frame that it ends with."""
    came = b""
    while True:
        data = sock.recv(1 << 20)
        assert data, "no Close frame"
        came += data
        while (frame := _first_frame(came)) is not None:
            opcode, payload, came = frame
            if opcode == 8:
                return int.from_bytes(payload[:2], "big"), payload[2:].decode()


def _first_frame(came: bytes) -> tuple[int, bytes, bytes] | None:
    """Opcode, payload, and what comes behind it; ``None`` while it is not whole."""
    if len(came) < 2 or len(came) < 2 + (size := {126: 2, 127: 8}.get(came[1], 0)):
        return None
    length = int.from_bytes(came[2 : 2 + size], "big") if size else came[1]
    end = 2 + size + length
    return None if len(came) < end else (came[0] & 0x0F, came[2 + size : end], came[end:])


# --- 14: what is not there ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_14_map_and_shared_poll_subscriptions_are_refused(cluster: Cluster, kind: int) -> None:
    with cluster.user() as client:
        refused = client.ask("subscribe", channel=cluster.fresh("kept:"), type=kind)
        assert refused["error"] == {"code": 103, "message": "permission denied"}


def test_14_tags_filters_are_refused_and_tags_are_not(cluster: Cluster) -> None:
    channel = cluster.fresh("kept:")
    with cluster.user() as client:
        leaf = {"key": "a", "cmp": "eq", "val": "1"}
        refused = client.ask("subscribe", channel=channel, tf=leaf)
        assert refused["error"] == {"code": 107, "message": "bad request"}
        assert "subscribe" in client.ask("subscribe", channel=channel)
        cluster.api("publish", channel=channel, data=1, tags={"a": "1"})
        assert client.push("pub", channel)["tags"] == {"a": "1"}


def test_14_another_kind_of_difference_ends_the_connection(cluster: Cluster) -> None:
    with cluster.user() as client:
        client.say({"id": 5, "subscribe": {"channel": cluster.fresh("delta:"), "delta": "bsdiff"}})
        assert client.ended() == (3501, "bad request")


def test_14_flags_of_clients_for_more_are_passed_over(cluster: Cluster) -> None:
    with cluster.json() as client:
        more: dict[str, Any] = {"flag": 7, "dict": "x", "profile": "y", "new_field": [1]}
        client.connected(token=token(cluster.fresh("user")), **more)
        found = client.ask("subscribe", channel=cluster.fresh("kept:"), flag=1, new_field={"a": 1})
        assert "id" not in found["subscribe"], "no numeric ids of channels"


@pytest.mark.parametrize("path", ["webtransport", "uni_websocket", "uni_sse", "uni_http_stream"])
def test_14_there_are_no_other_transports(cluster: Cluster, path: str) -> None:
    assert cluster.post(f"/connection/{path}", b"{}").status == 404


def test_14_what_is_not_there_is_documented() -> None:
    text = re.sub(r"\s+", " ", DOCUMENT.read_text())
    for words in (
        "map and shared-poll subscriptions",
        "tags filters",
        "numeric channel ids",
        "dictionaries",
        "WebTransport",
        "unidirectional transports",
    ):
        assert words in text, words


def test_14_the_server_api_has_no_more_methods(cluster: Cluster) -> None:
    assert cluster.post("/api/map_publish", b"{}").status == 404
    assert cluster.post("/api/shared_poll_publish", b"{}").status == 404
