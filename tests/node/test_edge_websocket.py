"""The handshake of WebSocket: who gets in and what is agreed on; and clients of real sockets."""

from __future__ import annotations

import re
import socket
import struct
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
from twisted.internet import reactor as global_reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import TestCase
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from spread.node import codes
from spread.node.edge.codecs import JSON_WEBSOCKET, PROTOBUF_WEBSOCKET
from spread.node.edge.origin import REFUSALS_SECONDS
from spread.node.edge.websocket import websocket_resource
from spread.node.listen import bind, start_listening, stop_listening
from spread.node.settings import ClientSettings, Settings, WebSocketSettings
from spread.node.web.site import IDLE_SECONDS, BoundedFactory, quiet_site
from tests.node.edges import FakeSession, FakeSessions, SocketTransport

reactor = cast(Any, global_reactor)

PATH = "connection/websocket"


def settings_with(websocket: dict[str, Any] | None = None, **client: Any) -> Settings:
    return Settings(client=ClientSettings(**client), websocket=WebSocketSettings(**(websocket or {})))


class Desk:
    """A site with the resource, in memory."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.clock = Clock()
        self.sessions = FakeSessions(self.clock)
        resource = websocket_resource(self.sessions, settings or Settings())
        self.site = quiet_site(self.clock, {PATH: resource})
        self.transport = SocketTransport()

    def asks(
        self, query: str = "", method: str = "GET", version: str = "1.1", behind: bytes = b"", **headers: Any
    ) -> SimpleNamespace:
        """Send a handshake in which some headers differ: ``None`` leaves one out, lists are several lines."""
        fields: dict[str, Any] = {
            "Host": "here",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version": "13",
        }
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{method} /{PATH}{query} HTTP/{version}"]
        for name, value in fields.items():
            values = value if isinstance(value, list) else [] if value is None else [value]
            lines += [f"{name}: {each}" for each in values]
        self.transport = SocketTransport()
        self.protocol: Any = self.site.buildProtocol(IPv4Address("TCP", "192.0.2.7", 1))
        self.transport.protocol = self.protocol
        self.protocol.makeConnection(self.transport)
        self.protocol.dataReceived("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + behind)
        self.clock.advance(0)
        head, _, body = self.transport.value().partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        return SimpleNamespace(
            status=int(first.split()[1]),
            headers={name.lower(): value for name, _, value in (line.partition(": ") for line in rest)},
            body=body,
        )


def test_the_handshake_of_the_rfc() -> None:
    desk = Desk()
    answer = desk.asks()
    assert answer.status == 101
    assert answer.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert (answer.headers["upgrade"], answer.headers["connection"]) == ("websocket", "Upgrade")
    assert "sec-websocket-protocol" not in answer.headers
    assert "sec-websocket-extensions" not in answer.headers
    session = desk.sessions.last
    assert session.codec is JSON_WEBSOCKET
    assert (session.visit.transport, session.visit.address) == ("websocket", "192.168.1.1")
    assert (session.visit.user, session.visit.has_native_pings, session.visit.is_emulated) == (
        "",
        False,
        False,
    )


JSON, PROTOBUF = "centrifuge-json", "centrifuge-protobuf"


@pytest.mark.parametrize(
    ("query", "offered", "is_protobuf", "echoed"),
    [
        ("", None, False, None),
        ("", "", False, None),
        ("", " , ,", False, None),
        ("", JSON, False, JSON),
        ("", PROTOBUF, True, PROTOBUF),
        ("", f"{JSON}, {PROTOBUF}", True, PROTOBUF),
        ("", [JSON, PROTOBUF], True, PROTOBUF),
        ("", ["", JSON], False, JSON),
        ("", f"other, {JSON}", False, JSON),
        ("", "other", False, None),
        ("", "Centrifuge-Protobuf", False, None),
        ("?cf_protocol=protobuf", None, True, None),
        ("?format=protobuf", None, True, None),
        ("?a=b&cf_protocol=protobuf&c", PROTOBUF, True, PROTOBUF),
        ("?cf_protocol=protobuf", JSON, True, JSON),
        ("?cf_protocol=json", None, False, None),
        ("?cf_protocol=protobufs", "", False, None),
        ("?cf_protocol", None, False, None),
        ("?" + "&".join("a=1" for _ in range(200)), None, False, None),
        ("?%ff=%fe&cf_protocol=%70rotobuf", None, True, None),
    ],
)
def test_formats(query: str, offered: Any, is_protobuf: bool, echoed: str | None) -> None:
    desk = Desk()
    answer = desk.asks(query, Sec_WebSocket_Protocol=offered)
    assert answer.status == 101
    assert desk.sessions.last.codec is (PROTOBUF_WEBSOCKET if is_protobuf else JSON_WEBSOCKET)
    assert answer.headers.get("sec-websocket-protocol") == echoed


def test_native_pings_are_asked_for_by_the_query() -> None:
    desk = Desk()
    desk.asks("?cf_ws_frame_ping_pong=true")
    assert desk.sessions.last.visit.has_native_pings
    desk.clock.advance(25)
    desk.clock.advance(0)
    assert desk.transport.value().endswith(b"\x89\x00")
    desk.asks("?cf_ws_frame_ping_pong=false")
    assert not desk.sessions.last.visit.has_native_pings


def test_the_trusted_user_of_a_header() -> None:
    desk = Desk(settings_with(user_id_http_header="X-User"))
    desk.asks(X_User="42")
    assert desk.sessions.last.visit.user == "42"
    desk.asks()
    assert desk.sessions.last.visit.user == ""
    desk = Desk()
    desk.asks(X_User="42")
    assert desk.sessions.last.visit.user == ""


def test_what_comes_with_the_handshake_is_not_lost() -> None:
    desk = Desk()
    desk.asks(behind=b"\x81\x82\0\0\0\0{}\x81\x82\0")
    assert desk.sessions.last.frames == [b"{}"]


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (426, {"Upgrade": None}),
        (426, {"Upgrade": "h2c"}),
        (426, {"Upgrade": "websocket, h2c"}),
        (426, {"Connection": None}),
        (426, {"Connection": "keep-alive"}),
        (400, {"Upgrade": ";;;"}),
        (400, {"Sec_WebSocket_Key": None}),
        (400, {"Sec_WebSocket_Key": "short"}),
        (400, {"Sec_WebSocket_Key": "!" * 24}),
        (400, {"Sec_WebSocket_Key": ["dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ=="]}),
        (400, {"Sec_WebSocket_Version": None}),
        (400, {"Sec_WebSocket_Version": "8"}),
        (400, {"version": "1.0"}),
        (405, {"method": "POST"}),
        (405, {"method": "HEAD"}),
        (403, {"Origin": "https://evil.example"}),
    ],
)
def test_refusals(status: int, headers: dict[str, Any]) -> None:
    desk = Desk()
    answer = desk.asks(**headers)
    assert answer.status == status
    assert desk.sessions.opened == [] and desk.sessions.admitted == 0
    if status == 426:
        assert answer.headers["upgrade"] == "websocket"
    if status == 405:
        assert answer.headers["allow"] == "GET"


def test_a_keep_alive_beside_the_upgrade() -> None:
    # As Firefox writes it.
    assert Desk().asks(Connection="keep-alive, Upgrade", Upgrade="WebSocket").status == 101


def test_a_plain_request_is_answered_and_the_connection_lives_on() -> None:
    desk = Desk()
    assert desk.asks(Upgrade=None).status == 426
    assert not desk.transport.disconnecting


def test_origins() -> None:
    desk = Desk(settings_with(allowed_origins=("https://*.Example.com",)))
    assert desk.asks(Origin="https://www.example.com").status == 101
    assert desk.asks().status == 101, "no browser"
    assert desk.asks(Origin="https://example.org").status == 403


def test_refused_origins_are_logged_now_and_then() -> None:
    desk = Desk()
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        desk.clock.advance(REFUSALS_SECONDS)
        for _ in range(50):
            assert desk.asks(Origin="https://evil.example").status == 403
        desk.clock.advance(REFUSALS_SECONDS)
        desk.asks(Origin="https://evil.example/" + "x" * 3000)
    finally:
        globalLogPublisher.removeObserver(events.append)
    warnings = [event for event in events if event["log_level"].name == "warn"]
    assert [event["count"] for event in warnings] == [1, 50]
    assert "https://evil.example" in warnings[0]["origin"]
    assert len(warnings[1]["origin"]) == 255


def test_a_full_shard() -> None:
    desk = Desk()
    desk.sessions.refusal = "this shard is full"
    answer = desk.asks()
    assert (answer.status, answer.body) == (503, b"this shard is full\n")


def test_a_connection_that_cannot_be_taken_gives_its_place_back() -> None:
    desk = Desk()
    original = desk.sessions.admit

    def admit(address: str) -> str:
        desk.transport.connected = False  # type: ignore[attr-defined]  # it went while we looked
        return original(address)

    desk.sessions.admit = admit  # type: ignore[method-assign]
    desk.asks()
    assert desk.sessions.opened == [] and desk.sessions.admitted == 0


def test_a_handshake_that_takes_its_time() -> None:
    desk = Desk()
    transport = SocketTransport()
    protocol: Any = desk.site.buildProtocol(IPv4Address("TCP", "192.0.2.7", 1))
    protocol.makeConnection(transport)
    for byte in b"GET /connection/websocket HTTP/1.1\r\nHost: here\r\n" + b"X: y\r\n" * 100:
        protocol.dataReceived(bytes([byte]))
        desk.clock.advance(1)
        if transport.disconnecting:
            break
    assert transport.disconnecting and desk.clock.seconds() <= IDLE_SECONDS + 1


# -- compression -------------------------------------------------------------------------------------------

DEFLATE = "permessage-deflate"
AGREED = f"{DEFLATE}; server_no_context_takeover; client_no_context_takeover"


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [
        (DEFLATE, AGREED),
        (f"{DEFLATE}; client_max_window_bits", AGREED),
        (f"{DEFLATE}; client_max_window_bits=10", AGREED + "; client_max_window_bits=10"),
        (f"{DEFLATE}; server_max_window_bits=10", None),
        (f"{DEFLATE}; server_max_window_bits=10, {DEFLATE}", AGREED),
        (f"{DEFLATE}; unheard_of", None),
        ("x-webkit-deflate-frame", None),
        (None, None),
    ],
)
def test_compression_is_agreed_to_if_it_is_on(offered: str | None, agreed: str | None) -> None:
    desk = Desk(settings_with({"compression": True}))
    answer = desk.asks(Sec_WebSocket_Extensions=offered)
    assert answer.status == 101
    assert answer.headers.get("sec-websocket-extensions") == agreed
    assert desk.sessions.last.codec.name == (
        "json/websocket/deflate" if agreed else "json/websocket"
    ).replace("json/", "json/")
    assert "sec-websocket-extensions" not in Desk().asks(Sec_WebSocket_Extensions=offered).headers


def test_an_offer_that_cannot_be_read() -> None:
    assert Desk(settings_with({"compression": True})).asks(Sec_WebSocket_Extensions=";;").status == 400


# -- real sockets ------------------------------------------------------------------------------------------


HEAD = (
    f"GET /{PATH} HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
).encode()


class RealClients(TestCase):
    """``websockets`` as the client, in a thread; and raw bytes."""

    timeout = 30

    def serve(self, **websocket: Any) -> None:
        self.sessions = FakeSessions(reactor)
        self.sessions.on_open = self.opened
        resource = websocket_resource(self.sessions, settings_with(websocket, allowed_origins=("http://ok",)))
        self.factory = BoundedFactory(quiet_site(reactor, {PATH: resource}), 2, lambda: None)
        port: Any = start_listening(reactor, bind("127.0.0.1", 0), self.factory)
        self.addCleanup(lambda: stop_listening(port, inherited=True))
        self.port = port.getHost().port
        self.url = f"ws://127.0.0.1:{self.port}/{PATH}"

    @staticmethod
    def opened(session: FakeSession) -> None:
        def answer(frame: bytes) -> None:
            if frame == b"close me":
                session.edge.close(codes.FORCE_RECONNECT)
            else:
                session.say(frame.upper())

        session.on_frame = answer

    async def until_lost(self) -> None:
        while not all(session.lost_count for session in self.sessions.opened):
            await _turn()
        self.assertEqual(self.factory.connections, 0)

    async def test_a_conversation(self) -> None:
        self.serve()

        def talk() -> Any:
            with connect(self.url, origin="http://ok") as client:  # type: ignore[arg-type]
                client.send("hello")
                client.send(["in ", "frag", "ments"])
                client.send(b"binary")
                client.ping().wait(5)
                heard = [client.recv(5) for _ in range(3)]
                client.send("x" * 60_000)
                heard.append(len(client.recv(5)))  # type: ignore[arg-type]
                client.send("close me")
                with pytest.raises(ConnectionClosed) as closed:
                    client.recv(5)
                return heard, closed.value.rcvd

        heard, close = await deferToThread(talk)
        self.assertEqual(heard, ["HELLO", "IN FRAGMENTS", "BINARY", 60_000])
        self.assertEqual((close.code, close.reason), (3011, "force reconnect"))
        await self.until_lost()
        self.assertEqual(self.sessions.last.ended, [])

    async def test_the_client_closes(self) -> None:
        self.serve()

        def talk() -> Any:
            with connect(self.url) as client:
                client.send("hello")
                client.recv(5)
            return client.protocol.close_code

        self.assertEqual(await deferToThread(talk), 1000)
        await self.until_lost()

    async def test_a_message_that_is_too_large(self) -> None:
        self.serve()

        def talk() -> Any:
            with connect(self.url) as client:
                client.send("x" * 3_000_000)
                with pytest.raises(ConnectionClosed) as closed:
                    client.recv(5)
                return closed.value.rcvd

        close = await deferToThread(talk)
        self.assertEqual(close.code, 1009)
        await self.until_lost()

    async def test_compression(self) -> None:
        self.serve(compression=True, compression_min_size=10)

        def talk() -> Any:
            with connect(self.url) as client:
                client.send("abc" * 10_000)
                client.send("tiny")
                return client.protocol.extensions, client.recv(5), client.recv(5)

        extensions, *heard = await deferToThread(talk)
        self.assertEqual(len(extensions), 1)
        self.assertEqual(heard, ["ABC" * 10_000, "TINY"])
        await self.until_lost()

    async def test_a_page_of_elsewhere(self) -> None:
        self.serve()

        def talk() -> int:
            with pytest.raises(InvalidStatus) as refused:
                connect(self.url, origin="http://elsewhere")  # type: ignore[arg-type]
            return refused.value.response.status_code

        self.assertEqual(await deferToThread(talk), 403)

    async def test_clients_do_not_count_as_http_connections(self) -> None:
        self.serve()

        def talk() -> None:
            with ExitStack() as clients:
                for _ in range(5):
                    clients.enter_context(connect(self.url))

        await deferToThread(talk)
        self.assertEqual(len(self.sessions.opened), 5)
        await self.until_lost()

    async def raw(self, data: bytes) -> bytes:
        """What a peer gets that sends this, and waits for the end."""
        peer = socket.create_connection(("127.0.0.1", self.port))
        try:
            peer.setblocking(False)
            got = b""
            while True:
                try:
                    if data:
                        data = data[peer.send(data) :]
                    piece = peer.recv(65536)
                except BlockingIOError:
                    await _turn()
                    continue
                except ConnectionResetError:
                    return got
                if not piece:
                    return got
                got += piece
                await _turn()
        finally:
            peer.close()

    async def test_headers_that_are_too_much(self) -> None:
        self.serve()
        start = f"GET /{PATH} HTTP/1.1\r\nHost: here\r\n".encode()
        for headers in (
            b"X: " + b"x" * 65536 + b"\r\n",
            b"".join(b"X-%d: 1\r\n" % number for number in range(5000)),
            b"X: 1\r\n" * 501,
            b"\xff\x00\r\n",
        ):
            with self.subTest(len(headers)):
                got = await self.raw(start + headers + b"\r\n")
                assert got == b"" or got.startswith(b"HTTP/1.1 400 ")
        self.assertEqual(self.sessions.opened, [])

    async def test_answers_to_requests_before_the_handshake_are_not_overtaken(self) -> None:
        self.serve()
        self.sessions.on_open = lambda session: session.say(b"at once")
        got = await self.raw(b"GET /nothing HTTP/1.1\r\nHost: here\r\n\r\n" * 5 + HEAD + b"\x88\x80\0\0\0\0")
        answers, _, frames = got.rpartition(b"\r\n\r\n")
        self.assertEqual(re.findall(rb"HTTP/1.1 (\d+) ", answers), [b"404"] * 5 + [b"101"])
        self.assertEqual(frames, b"\x81\x07at once\x88\x00")

    async def test_random_bytes_behind_a_handshake(self) -> None:
        self.serve()
        got = await self.raw(HEAD + b"\xff" * 300_000)
        _, _, frames = got.partition(b"\r\n\r\n")
        self.assertEqual(struct.unpack("!H", frames[2:4]), (1002,))
        self.assertEqual([each.code for each in self.sessions.last.ended], [1002])
        await self.until_lost()


def _turn() -> Deferred[None]:
    done: Deferred[None] = Deferred()
    reactor.callLater(0.001, done.callback, None)
    return done
