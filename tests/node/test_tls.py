"""TLS on the public ports: certificates, and each kind of connection over it. The clients are Python's."""

from __future__ import annotations

import socket
import ssl
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives import serialization
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ServerFactory
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import TestCase
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from spread.node import codes
from spread.node.edge.jsonlines import JsonLinesFactory
from spread.node.edge.text import TextFactory
from spread.node.edge.websocket import websocket_resource
from spread.node.limits import Admission
from spread.node.listen import bind, start_listening, stop_listening
from spread.node.outbox import TlsOutbox
from spread.node.settings import Settings
from spread.node.tls import BadCertificate, TlsContext, over_tls
from spread.node.web.site import BoundedFactory, answering, quiet_site
from tests.fakes import Loopback
from tests.hub.certificates import Authority
from tests.node.edges import FakeSessions

reactor = cast(Any, global_reactor)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def logged(action: Callable[[], Any]) -> list[LogEvent]:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        action()
    finally:
        globalLogPublisher.removeObserver(events.append)
    return events


def test_files_that_cannot_be_used(tmp_path: Path, authority: Authority) -> None:
    here, other = authority.issue("localhost"), authority.issue("other")
    nowhere, rubbish, locked = (str(tmp_path / name) for name in ("nowhere", "rubbish", "locked"))
    Path(rubbish).write_text("rubbish")
    key: Any = serialization.load_pem_private_key(Path(here.key).read_bytes(), None)
    Path(locked).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    for cert, key_file, words in (
        (nowhere, here.key, "nowhere cannot be read: No such file"),
        (here.cert, nowhere, "nowhere cannot be read: No such file"),
        (str(tmp_path), here.key, "cannot be read: Is a directory"),
        (rubbish, here.key, "rubbish is no certificate in PEM: "),
        (here.cert, rubbish, "rubbish is not the private key"),
        (here.cert, other.key, "other key.pem is not the private key"),
        (here.cert, locked, "locked is not the private key, without a passphrase"),
        (here.key, here.cert, "is no certificate in PEM"),
    ):
        with pytest.raises(BadCertificate) as error:
            TlsContext(cert, key_file)
        assert words in str(error.value)
    TlsContext(here.cert, here.key)


def test_without_a_context_a_factory_stays_as_it_is() -> None:
    factory = ServerFactory()
    assert over_tls(None, factory, reactor) is factory


def test_a_factory_that_refuses() -> None:
    factory = ServerFactory()
    factory.buildProtocol = lambda addr: None  # type: ignore[method-assign]
    assert over_tls(cast(Any, object.__new__(TlsContext)), factory, reactor).buildProtocol(None) is None


# -- the outbox --------------------------------------------------------------------------------------------


class PushTransport:
    """A TLS transport as an outbox sees it: takes what it is given, and has enough at ``room`` bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.writes: list[bytes] = []
        self.waiting = 0
        self.producer: Any = None

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        self.waiting += len(data)
        if self.waiting > self.room and self.producer is not None:
            self.producer.pauseProducing()

    def drain(self) -> None:
        self.waiting = 0
        if self.producer is not None:
            self.producer.resumeProducing()


class Desk:
    def __init__(self, room: int, limit_bytes: int = 1000) -> None:
        self.loopback = Loopback()
        self.transport = PushTransport(room)
        self.events: list[str] = []
        self.outbox = TlsOutbox(
            self.transport, self.loopback.cork, limit_bytes, lambda: self.events.append("overflowed")
        )


def test_frames_of_a_turn_are_one_write() -> None:
    desk = Desk(room=100)
    desk.outbox.write(b"one ")
    desk.outbox.write(b"two")
    assert desk.outbox.waiting_bytes == 7
    desk.loopback.turn()
    assert (desk.transport.writes, desk.outbox.waiting_bytes) == ([b"one two"], 0)


def test_what_the_transport_has_no_room_for_waits_and_counts() -> None:
    desk = Desk(room=100)
    desk.outbox.write(b"x" * 150)
    desk.loopback.turn()
    assert desk.outbox.waiting_bytes == 150, "given last, and not known to be sent"
    desk.outbox.write(b"y" * 50)
    desk.loopback.turn()
    assert desk.outbox.waiting_bytes == 200 and len(desk.transport.writes) == 1
    desk.transport.drain()
    assert (desk.transport.writes[1:], desk.outbox.waiting_bytes) == ([b"y" * 50], 0)


def test_last_words_after_an_overflow() -> None:
    desk = Desk(room=100)
    desk.outbox.write(b"x" * 500)
    desk.loopback.turn()
    desk.outbox.write(b"y" * 501)
    assert desk.events == ["overflowed"] and desk.outbox.waiting_bytes == 500
    desk.outbox.close(lambda: desk.events.append("finished"), b"bye")
    desk.outbox.write(b"too late")
    assert desk.events == ["overflowed"]
    desk.transport.drain()
    assert desk.transport.writes == [b"x" * 500, b"bye"]
    assert desk.events == ["overflowed", "finished"]
    assert desk.transport.producer is None, "the transport waits for a producer before it ends"


def test_a_lost_connection() -> None:
    desk = Desk(room=10)
    desk.outbox.write(b"x" * 50)
    desk.loopback.turn()
    desk.outbox.write(b"y")
    desk.transport.producer.stopProducing()
    desk.outbox.close(lambda: desk.events.append("finished"), b"bye")
    desk.transport.drain()
    assert (desk.outbox.waiting_bytes, desk.events, len(desk.transport.writes)) == (0, [], 1)


# -- real connections --------------------------------------------------------------------------------------


class OverTls(TestCase):
    timeout = 30

    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.authority = Authority(Path(directory.name))
        self.issued = self.authority.issue("localhost", "127.0.0.1")
        self.context = TlsContext(self.issued.cert, self.issued.key)
        self.sessions = FakeSessions(reactor)
        self.sessions.on_open = lambda session: setattr(
            session, "on_frame", lambda frame: session.say(frame.upper())
        )

    def listen(self, factory: Any) -> int:
        sock = bind("127.0.0.1", 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        port: Any = start_listening(reactor, sock, over_tls(self.context, factory, reactor))
        self.addCleanup(lambda: stop_listening(port, inherited=True))
        return int(port.getHost().port)

    def listen_http(self) -> int:
        children = {
            "connection/websocket": websocket_resource(self.sessions, Settings()),
            "health": answering(lambda: (200, "text/plain", b"fine" * 50_000)),
        }
        self.factory = BoundedFactory(quiet_site(reactor, children), 1, lambda: None)
        return self.listen(self.factory)

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority.ca)

    def connected(self, port: int, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        try:
            return (context or self.trusting()).wrap_socket(sock, server_hostname="localhost")
        except BaseException:
            sock.close()
            raise

    async def until(self, fact: Callable[[], bool]) -> None:
        while not fact():
            await _turn()

    async def test_versions(self) -> None:
        port = self.listen(JsonLinesFactory(self.sessions, Settings(), reactor))

        def version(most: ssl.TLSVersion) -> str | None:
            context = self.trusting()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version = ssl.TLSVersion.TLSv1
                context.maximum_version = most
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            try:
                with self.connected(port, context) as sock:
                    return sock.version()
            except (ssl.SSLError, OSError):
                return None

        heard = [
            await deferToThread(version, most)
            for most in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_1)
        ]
        self.assertEqual(heard, ["TLSv1.3", "TLSv1.2", None])
        await self.until(lambda: all(session.lost_count for session in self.sessions.opened))

    async def test_a_new_certificate_is_for_new_connections(self) -> None:
        port = self.listen(JsonLinesFactory(self.sessions, Settings(), reactor))

        def serial(sock: ssl.SSLSocket) -> Any:
            certificate = sock.getpeercert()
            assert certificate is not None
            return certificate["serialNumber"]

        old = await deferToThread(self.connected, port)
        first = serial(old)
        new = self.authority.issue("localhost", "127.0.0.1")  # in the same files
        self.assertEqual(new, self.issued)
        self.assertEqual([e["log_level"].name for e in logged(self.context.reload)], ["info"])
        fresh = await deferToThread(self.connected, port)
        self.assertNotEqual(serial(fresh), first)
        Path(self.issued.cert).write_text("rubbish")
        events = logged(lambda: self.assertFalse(self.context.reload()))
        self.assertEqual([event["log_level"].name for event in events], ["error"])
        newest = await deferToThread(self.connected, port)
        self.assertEqual(serial(newest), serial(fresh))

        def talk() -> list[bytes]:
            heard = []
            for sock in (old, fresh, newest):
                with sock:
                    sock.sendall(b"hello\n")
                    heard.append(sock.recv(100))
            return heard

        self.assertEqual(await deferToThread(talk), [b"HELLO\n"] * 3)
        await self.until(lambda: all(session.lost_count for session in self.sessions.opened))

    async def test_websocket(self) -> None:
        port = self.listen_http()
        url = f"wss://localhost:{port}/connection/websocket"

        def talk() -> Any:
            with connect(url, ssl=self.trusting()) as client:
                client.send("hello")
                heard = [client.recv(5)]
                for _ in range(10):
                    client.send("x" * 60_000)
                heard += [len(client.recv(5)) for _ in range(10)]  # type: ignore[misc]
                reactor.callFromThread(self.sessions.last.edge.close, codes.FORCE_RECONNECT)
                with pytest.raises(ConnectionClosed) as closed:
                    client.recv(5)
                return heard, closed.value.rcvd

        heard, close = await deferToThread(talk)
        self.assertEqual(heard, ["HELLO"] + [60_000] * 10)
        self.assertEqual((close.code, close.reason), (3011, "force reconnect"))
        await self.until(lambda: bool(self.sessions.last.lost_count))
        self.assertIsInstance(self.sessions.last.outbox, TlsOutbox)
        self.assertEqual(self.factory.connections, 0)

    async def test_a_slow_websocket_client_is_told_so(self) -> None:
        self.sessions.outbox_max_bytes = 300_000
        port = self.listen_http()
        ready: Deferred[None] = Deferred()
        said: list[int] = []

        def flood(frame: bytes) -> None:
            while not self.sessions.last.ended:
                self.sessions.last.say(b"x" * 10_000)
                said.append(self.sessions.last.outbox.waiting_bytes)
            ready.callback(None)

        self.sessions.on_open = lambda session: setattr(session, "on_frame", flood)

        def talk() -> Any:
            url = f"wss://localhost:{port}/connection/websocket"
            with connect(url, ssl=self.trusting(), max_queue=1) as client:
                client.send("flood me")
                count = 0
                with pytest.raises(ConnectionClosed) as closed:
                    while True:
                        assert client.recv(5) == "x" * 10_000
                        count += 1
                return count, closed.value.rcvd

        count, close = await deferToThread(talk)
        await ready
        self.assertEqual((close.code, close.reason), (3008, "slow"))
        self.assertGreater(count, 0)
        self.assertLess(count, len(said))
        self.assertLessEqual(max(said), 310_000)
        await self.until(lambda: bool(self.sessions.last.lost_count))

    async def test_http_beside_it(self) -> None:
        port = self.listen_http()

        def ask() -> bytes:
            with self.connected(port) as sock:
                sock.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
                return _all_of(sock)

        heard = await deferToThread(ask)
        self.assertTrue(heard.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertTrue(heard.endswith(b"fine" * 50_000))
        await self.until(lambda: self.factory.connections == 0)

    async def test_lines_end_as_tls_should(self) -> None:
        port = self.listen(JsonLinesFactory(self.sessions, Settings(), reactor))

        def talk() -> bytes:
            with self.connected(port) as sock:
                sock.sendall(b"hello\n" * 100)
                reactor.callFromThread(reactor.callLater, 0.05, self._close_last)
                return _all_of(sock)

        heard = await deferToThread(talk)
        self.assertTrue(heard.endswith(b'{"push":{"disconnect":{"code":3001,"reason":"shutdown"}}}\n'))
        await self.until(lambda: bool(self.sessions.last.lost_count))

    def _close_last(self) -> None:
        self.sessions.last.edge.close(codes.SHUTDOWN)

    async def test_text_ends_as_tls_should(self) -> None:
        loopback = Loopback()
        factory = TextFactory(loopback.shared, Admission(1, 0), loopback.cork, count(1), 1 << 20)
        port = self.listen(factory)

        def talk() -> tuple[bytes, bytes]:
            with self.connected(port) as sock:
                sock.sendall(b"close\n")
                heard = _all_of(sock)
                with self.connected(port) as full:
                    return heard, _all_of(full)

        talking = deferToThread(talk)
        while not talking.called:
            loopback.turn(0.001)
            await _turn()
        greeted, full = await talking
        self.assertEqual(greeted, b"hi 1\n")
        self.assertIn(b"full", full)
        while factory.sessions or factory.lingering:
            loopback.turn(0.001)
            await _turn()

    async def test_a_peer_that_speaks_no_tls(self) -> None:
        port = self.listen(JsonLinesFactory(self.sessions, Settings(), reactor))

        def talk() -> bytes:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
                sock.sendall(b'{"id":1,"connect":{}}\n' * 10)
                heard = b""
                while piece := sock.recv(4096):
                    heard += piece
                return heard

        heard = await deferToThread(talk)
        self.assertNotIn(b"{", heard)
        await self.until(lambda: bool(self.sessions.last.lost_count))
        self.assertEqual(self.sessions.last.frames, [])


def _all_of(sock: ssl.SSLSocket) -> bytes:
    """All until the end; raises ``ssl.SSLEOFError`` if TLS was not ended before the connection."""
    sock.settimeout(10)
    heard = b""
    while piece := sock.recv(65536):
        heard += piece
    return heard


def _turn() -> Deferred[None]:
    done: Deferred[None] = Deferred()
    reactor.callLater(0.001, done.callback, None)
    return done
