"""What fuzzing has found, each as the shortest case that shows it."""

from __future__ import annotations

import pytest

from spread.node.edge.codecs import JSON_LINES
from spread.node.session.shared import TTL_MAX_SECONDS
from spread.node.wire.messages import (
    Command,
    ConnectRequest,
    ConnectResult,
    Push,
    Refresh,
    RefreshRequest,
    RefreshResult,
    SubRefreshRequest,
    SubRefreshResult,
    SubscribeRequest,
    SubscribeResult,
)
from tests.fuzz.corpus import HANDSHAKE, token
from tests.fuzz.requests import written
from tests.fuzz.town import PROTOBUF, Caller, Faults, Town

YEARS_52000 = 1_640_995_200_000
"""An ``exp`` in milliseconds, as JavaScript counts: a common mistake of backends."""


@pytest.mark.parametrize("codec", [JSON_LINES, PROTOBUF])
def test_who_expires_in_the_far_future_is_told_as_much_as_32_bits_hold(codec: object) -> None:
    with Faults() as faults:
        town = Town()
        caller = Caller(town.shards[0], codec)  # type: ignore[arg-type]
        claims = {"sub": "ann", "exp": YEARS_52000}
        of_channel = token(**claims, channel="closed:a")
        caller.ask(
            Command(1, ConnectRequest(token=token(**claims))),
            Command(2, SubscribeRequest(channel="closed:a", token=of_channel)),
            Command(3, RefreshRequest(token(**claims))),
        )
        town.turn()
        caller.ask(Command(4, SubRefreshRequest("closed:a", of_channel)))
        town.turn()
        town.shards[0].gateway.clients.refresh(
            "ann", client="", session="", expired=False, expire_at=YEARS_52000, info=b""
        )
        town.turn()
        told = {type(reply.body): reply.body for reply in caller.replies()}
        for kind in (ConnectResult, SubscribeResult, RefreshResult, SubRefreshResult):
            assert getattr(told[kind], "ttl", 0) == TTL_MAX_SECONDS, told
        assert told[Push] == Push("", Refresh(True, TTL_MAX_SECONDS))
        assert faults.found == []
        town.stop()


@pytest.mark.parametrize("name", [b"Connection", b"Upgrade", b"Sec-WebSocket-Key", b"Sec-WebSocket-Version"])
@pytest.mark.parametrize("value", [b"\x05Upgrade", b"a\x00b", b"a\x7f"])
def test_control_characters_in_the_handshake_of_a_websocket(name: bytes, value: bytes) -> None:
    with Faults() as faults:
        town = Town()
        wire = town.shards[0].http()
        headers = tuple((each, value if each == name else good) for each, good in HANDSHAKE)
        wire.say(written((b"GET", b"/connection/websocket", headers, b"")))
        town.turn()
        assert wire.take().startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 426 "))
        assert faults.found == []
        wire.lose()
        town.stop()


@pytest.mark.parametrize(
    "bad", [b"GET\r\n", b"GET / HTTP/1.1\r\n:\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"]
)
def test_what_comes_behind_a_bad_request_over_tls(bad: bytes) -> None:
    # A transport of TLS hands over what arrives until the peer has ended, too.
    with Faults() as faults:
        town = Town()
        wire = town.shards[0].http(hears_after_end=True)
        wire.say(bad)
        assert wire.disconnecting
        for data in (b"\r\n", b"\r\n\r\n", b"GET /health HTTP/1.1\r\n\r\n"):
            wire.say(data)
        town.turn()
        assert wire.take().count(b"HTTP/1.1 ") == 1
        assert faults.found == []
        town.stop()
