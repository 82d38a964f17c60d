"""Good frames, good requests, and the settings of the shards that get them after they were mutated."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from spread.node.auth.keys import sign
from spread.node.settings import (
    ChannelSettings,
    ClientSettings,
    HttpApiSettings,
    HttpStreamSettings,
    Namespace,
    NamespaceOptions,
    PersonalChannel,
    Settings,
    SseSettings,
    TokenSettings,
    WebSocketSettings,
)
from spread.node.wire import client_protobuf
from spread.node.wire import json as wire_json

__all__ = [
    "API_KEY",
    "COMMANDS",
    "CONNECTS",
    "EMULATIONS",
    "FLOOD",
    "HANDSHAKE",
    "NODES",
    "PROTOBUF_COMMANDS",
    "PROTOBUF_CONNECTS",
    "PROTOBUF_FLOOD",
    "REQUESTS",
    "SESSION",
    "Request",
    "settings",
    "token",
]

SECRET = "a-secret-that-fuzzing-may-know-0123456789"
API_KEY = "the-key-of-the-backend"
NODES = ("00000000000000f0", "00000000000000f1")
"""The incarnations of the two shards."""
SESSION = b"5e5510a5e5510a5e5510a5e5510a5e55"
"""Stands for the secret of an open emulated session, which is put in its place when all is mutated."""


def token(**claims: object) -> str:
    """A token that the shards take."""
    return sign(claims, SECRET)


def settings(ping_seconds: float = 25.0) -> Settings:
    """All that is public is open, so that mutated frames get far; limits are low, so that they are met."""
    may: dict[str, Any] = {
        f"allow_{what}_for_{who}": True
        for what in ("subscribe", "publish", "presence", "history")
        for who in ("client", "anonymous")
    }
    kept = {"history_size": 20, "history_ttl": 60.0, "history_meta_ttl": 120.0}
    everything: dict[str, Any] = {
        "presence": True,
        "join_leave": True,
        "force_push_join_leave": True,
        **kept,
        **may,
    }
    options = NamespaceOptions(**everything, allow_positioning=True, allow_recovery=True)
    named: dict[str, dict[str, Any]] = {
        "plain": may,
        "closed": {},
        "stream": {**everything, "force_recovery": True},
        "newest": {
            **everything,
            "force_recovery": True,
            "force_recovery_mode": "cache",
            "auto_cache_recovery": True,
        },
        "delta": {
            **everything,
            "force_recovery": True,
            "allowed_delta_types": ("fossil",),
            "delta_publish": True,
        },
        "binary": {**may, "publication_data_format": "binary"},
        "object": {**may, "publication_data_format": "json_object"},
        "letters": {**may, "channel_regex": "^[a-z]+$"},
        "limited": {"allow_user_limited_channels": True},
        "witness": {"allow_subscribe_for_client": True, "allow_publish_for_client": True},
    }
    return Settings(
        client=ClientSettings(
            allow_anonymous_connect_without_token=True,
            allowed_origins=("https://*.example.com",),
            token=TokenSettings(hmac_secret_key=SECRET),
            subscribe_to_user_personal_channel=PersonalChannel(enabled=True),
            channel_limit=16,
            queue_max_size=131072,
            errors_limit=50,
            max_unacknowledged_commands=32,
            ping_interval=ping_seconds,
            pong_timeout=ping_seconds / 3,
            user_id_http_header="X-User",
        ),
        channel=ChannelSettings(
            without_namespace=options,
            namespaces=tuple(Namespace(name=name, **each) for name, each in named.items()),
        ),
        http_api=HttpApiSettings(key=API_KEY),
        http_stream=HttpStreamSettings(enabled=True),
        sse=SseSettings(enabled=True),
        websocket=WebSocketSettings(compression=True, compression_min_size=20),
    )


# --- commands ------------------------------------------------------------------------------------------

CONNECTS: tuple[bytes, ...] = tuple(
    json.dumps(one, separators=(",", ":")).encode()
    for one in (
        {"id": 1, "connect": {}},
        {"id": 1, "connect": {"name": "js", "version": "5", "data": {"a": [1]}, "headers": {"x": "y"}}},
        {"id": 1, "connect": {"token": token(sub="ann", info={"name": "Ann"})}},
        {"id": 1, "connect": {"token": token(sub="bob", exp=1 << 40, channels=["stream:a", "plain:a"])}},
        {
            "id": 1,
            "connect": {
                "token": token(sub="eve", subs={"newest:a": {"info": {}, "data": [0]}, "delta:b": {}}),
                "subs": {"newest:a": {"recover": True, "epoch": "abcd", "offset": 3}, "room": {}},
            },
        },
        {"id": 1, "connect": {"token": token(sub="old", exp=1)}},
    )
)
"""First commands of a connection, all but the last good."""

COMMANDS: tuple[bytes, ...] = tuple(
    json.dumps(one, separators=(",", ":"), ensure_ascii=False).encode()
    for one in (
        {},
        {"id": 2, "subscribe": {"channel": "room"}},
        {"id": 2, "subscribe": {"channel": "room", "recoverable": True, "join_leave": True, "flag": 1}},
        {"id": 2, "subscribe": {"channel": "stream:a", "recover": True, "epoch": "", "offset": 0}},
        {"id": 2, "subscribe": {"channel": "stream:a", "recover": True, "epoch": "zzzz", "flag": 3}},
        {"id": 2, "subscribe": {"channel": "newest:a", "positioned": True, "data": {"why": None}}},
        {"id": 2, "subscribe": {"channel": "delta:a", "delta": "fossil"}},
        {"id": 2, "subscribe": {"channel": "$private", "token": token(sub="ann", channel="$private")}},
        {"id": 2, "subscribe": {"channel": "closed:a", "token": token(channel="closed:a", data={"x": 1})}},
        {"id": 2, "subscribe": {"channel": "limited:a#ann,bob"}},
        {"id": 2, "subscribe": {"channel": "letters:abc", "type": 1}},
        {"id": 3, "unsubscribe": {"channel": "room"}},
        {"id": 3, "unsubscribe": {"channel": "stream:a"}},
        {"id": 4, "publish": {"channel": "room", "data": {"text": "hello 😀 \n", "n": 1.0}}},
        {"id": 4, "publish": {"channel": "stream:a", "data": [1, 2, 3]}},
        {"id": 4, "publish": {"channel": "delta:a", "data": {"list": list(range(30)), "n": 17}}},
        {"id": 4, "publish": {"channel": "newest:a", "data": "text"}},
        {"id": 4, "publish": {"channel": "object:a", "data": {"a": 1}}},
        {"id": 4, "publish": {"channel": "binary:a", "data": 0}},
        {"id": 5, "presence": {"channel": "room"}},
        {"id": 6, "presence_stats": {"channel": "room"}},
        {"id": 7, "history": {"channel": "stream:a", "limit": -1}},
        {"id": 7, "history": {"channel": "stream:a", "limit": 5, "since": {"offset": 2, "epoch": ""}}},
        {"id": 7, "history": {"channel": "room", "limit": 3, "reverse": True}},
        {"id": 8, "rpc": {"method": "move", "data": {"x": 1}}},
        {"id": 9, "refresh": {"token": token(sub="ann", exp=1 << 40)}},
        {
            "id": 10,
            "sub_refresh": {"channel": "room", "token": token(sub="ann", channel="room", exp=1 << 40)},
        },
        {"id": 11, "ping": {}},
        {"send": {"data": {"fire": "and forget"}}},
    )
)
"""Commands of a connected client."""


def _protobuf(lines: tuple[bytes, ...]) -> tuple[bytes, ...]:
    return tuple(client_protobuf.encode_command(wire_json.decode(line)[0]) for line in lines)


PROTOBUF_CONNECTS = _protobuf(CONNECTS)
PROTOBUF_COMMANDS = _protobuf(COMMANDS)
FILTERED = b'{"id":2,"subscribe":{"channel":"room","tf":{"key":"a","cmp":"eq","val":"1"}}}'
COMMANDS += (FILTERED,)  # our client cannot send this, so it is not in Protobuf
PROTOBUF_COMMANDS += (b"\x12\x08\x02\x2a\x0e\n\x04room\x6a\x06\n\x01a\x12\x01b",)

_FLOOD = (
    b'{"id":50,"subscribe":{"channel":"stream:a"}}',
    *(b'{"id":%d,"publish":{"channel":"stream:a","data":"%b"}}' % (n, b"a" * 4000) for n in range(51, 91)),
)
FLOOD = b"\n".join(_FLOOD)
"""More than may wait for a client that does not read."""
PROTOBUF_FLOOD = b"".join(_protobuf(_FLOOD))

EMULATIONS: tuple[bytes, ...] = tuple(
    json.dumps({"session": SESSION.decode(), "node": NODES[0], "data": data}).encode()
    for data in ("{}", COMMANDS[1].decode(), f"{COMMANDS[13].decode()}\n{COMMANDS[11].decode()}")
)

# --- requests ------------------------------------------------------------------------------------------

HANDSHAKE: tuple[tuple[bytes, bytes], ...] = (
    (b"Host", b"here"),
    (b"Upgrade", b"websocket"),
    (b"Connection", b"Upgrade"),
    (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"Sec-WebSocket-Version", b"13"),
)

Request = tuple[bytes, bytes, tuple[tuple[bytes, bytes], ...], bytes]
"""Method, target, headers without the length, body."""

_HOST = (b"Host", b"here")
_JSON = (b"Content-Type", b"application/json")
_BINARY = (b"Content-Type", b"application/octet-stream")
_ORIGIN = (b"Origin", b"https://www.example.com")
_KEY = (b"X-API-Key", API_KEY.encode())

_API: tuple[tuple[str, object], ...] = (
    ("publish", {"channel": "stream:a", "data": {"from": "api"}, "tags": {"a": "b"}}),
    ("publish", {"channel": "room", "b64data": "e30=", "idempotency_key": "k1", "delta": True}),
    ("publish", {"channel": "stream:a", "data": 1, "version": 3, "version_epoch": "e", "skip_history": True}),
    ("broadcast", {"channels": ["room", "plain:a", "nowhere:x"], "data": [1]}),
    ("subscribe", {"user": "ann", "channel": "stream:b", "recover_since": {"offset": 1, "epoch": "x"}}),
    ("unsubscribe", {"user": "ann", "channel": "room"}),
    ("disconnect", {"user": "ann", "disconnect": {"code": 4001, "reason": "go"}, "whitelist": ["x"]}),
    ("refresh", {"user": "bob", "expire_at": 1 << 33, "info": {"a": 1}}),
    ("presence", {"channel": "room"}),
    ("presence_stats", {"channel": "room"}),
    ("history", {"channel": "stream:a", "limit": 2, "since": {"offset": 1, "epoch": ""}, "reverse": True}),
    ("history_remove", {"channel": "stream:a"}),
    ("channels", {"pattern": "{room,stream:*}"}),
    ("info", {}),
    ("rpc", {"method": "x"}),
    ("batch", {"commands": [{"publish": {"channel": "a", "data": 1}}, {"info": {}}], "parallel": True}),
)

REQUESTS: tuple[Request, ...] = (
    (b"GET", b"/health", (_HOST,), b""),
    (b"HEAD", b"/health", (_HOST,), b""),
    (b"GET", b"/nothing/here?a=b", (_HOST,), b""),
    (b"POST", b"/connection/http_stream", (_HOST, _JSON, _ORIGIN), CONNECTS[0] + b"\n" + COMMANDS[1]),
    (b"POST", b"/connection/http_stream", (_HOST, _JSON), CONNECTS[2]),
    (b"POST", b"/connection/http_stream", (_HOST, _BINARY), PROTOBUF_CONNECTS[2] + PROTOBUF_COMMANDS[1]),
    (b"OPTIONS", b"/connection/http_stream", (_HOST, _ORIGIN), b""),
    (b"GET", b"/connection/sse?cf_connect=" + quote(CONNECTS[2]).encode(), (_HOST, _ORIGIN), b""),
    (b"POST", b"/connection/sse", (_HOST, (b"X-User", b"carl")), CONNECTS[0]),
    *((b"POST", b"/emulation", (_HOST, _JSON, _ORIGIN), body) for body in EMULATIONS),
    (
        b"POST",
        b"/emulation",
        (_HOST, _BINARY),
        b"\n\x10%b\x12\x20%b\x1a%c%b"
        % (NODES[1].encode(), SESSION, len(PROTOBUF_COMMANDS[1]), PROTOBUF_COMMANDS[1]),
    ),
    *(
        (b"POST", f"/api/{method}".encode(), (_HOST, _JSON, _KEY), json.dumps(params).encode())
        for method, params in _API
    ),
    (
        b"POST",
        b"/api?api_key=" + API_KEY.encode(),
        (_HOST,),
        b"\n".join(json.dumps({"method": name, "params": params}).encode() for name, params in _API[:6]),
    ),
    (b"GET", b"/connection/websocket?cf_protocol=protobuf", HANDSHAKE, b""),
    (
        b"GET",
        b"/connection/websocket",
        (*HANDSHAKE, (b"Sec-WebSocket-Protocol", b"centrifuge-json, centrifuge-protobuf"), _ORIGIN),
        b"",
    ),
)
