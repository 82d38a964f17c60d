"""The client over real sockets, against a scripted server; and the official Python SDK against the same."""

from __future__ import annotations

import asyncio
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable
from typing import Any, cast

import centrifuge
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import Certificate, optionsForClientTLS
from twisted.trial.unittest import TestCase

from spread.client import (
    Client,
    Connected,
    Connecting,
    Disconnected,
    NotConnected,
    StreamPosition,
    Subscribed,
    TransportFailed,
)
from spread.node.wire.messages import (
    Error,
    Message,
    Publication,
    PublishRequest,
    PublishResult,
    Reply,
    RPCRequest,
    RPCResult,
    SubscribeRequest,
)
from tests.client.fake_server import FakeServer, Peer, Script

reactor = cast(Any, global_reactor)
STREAM: dict[str, Any] = {"recoverable": True, "positioned": True, "epoch": "e"}
FAST: dict[str, Any] = {"min_reconnect_seconds": 0.01, "max_reconnect_seconds": 0.02}


class OverSockets(TestCase):
    timeout = 10

    def client(self, server: FakeServer, **options: Any) -> Client:
        client = Client(reactor, options.pop("url", server.url), **(FAST | options))
        self.addCleanup(server.close)  # after the client is closed: the last one is the first
        self.addCleanup(client.close)
        return client

    def told(self, hook: Any, count: int = 1) -> Deferred[list[Any]]:
        """What a hook tells, once there are so many."""
        events: list[Any] = []
        done: Deferred[list[Any]] = Deferred()

        def tell(*values: Any) -> None:
            events.append(values[0] if len(values) == 1 else values)
            if len(events) == count:
                done.callback(events)

        hook(tell)
        return done

    def session(self, protocol: str) -> Any:
        def first(peer: Peer) -> None:
            assert peer.accept(ping=25, pong=True).token == "t"
            peer.admit(**STREAM, offset=1)
            peer.push("news", Publication(b'{"n":2}', offset=2))
            command = peer.expect(PublishRequest)
            peer.answer(command, PublishResult())
            peer.say(Reply())
            peer.expect(None)
            peer.close(3001, "shutdown")

        def second(peer: Peer) -> None:
            peer.accept()
            request = peer.admit(
                **STREAM, offset=2, was_recovering=True, recovered=True, publications=[Publication(b"3", 3)]
            )
            assert (request.recover, request.offset, request.epoch) == (True, 2, "e")
            peer.answer(peer.expect(RPCRequest), RPCResult(b'"pong"'))
            assert peer.wait_closed() == 1000

        server = FakeServer(first, second)
        client = self.client(server, token="t", protocol=protocol)
        connecting = self.told(client.on_connecting, 2)
        news = client.new_subscription("news")
        published = self.told(news.on_publication, 2)
        subscribed = self.told(news.on_subscribed, 2)

        def run() -> Any:
            connected = yield client.connect()
            self.assertEqual(connected, Connected("c1", "fake 1"))
            yield news.subscribe()
            yield news.publish({"hi": 1})
            events = yield subscribed
            self.assertEqual(events[1], Subscribed("news", True, True, StreamPosition(2, "e"), True, True))
            publications = yield published
            self.assertEqual([each.data for each in publications], [b'{"n":2}', b"3"])
            moves = yield connecting
            self.assertEqual(moves[1], Connecting(3001, "shutdown"))
            answer = yield client.rpc("ping")
            self.assertEqual(answer, b'"pong"')
            yield client.disconnect()

        return inlineCallbacks(run)()

    def test_a_session_in_json(self) -> Any:
        return self.session("json")

    def test_a_session_in_protobuf(self) -> Any:
        return self.session("protobuf")

    @inlineCallbacks
    def test_handshakes_that_are_refused(self) -> Any:
        server = FakeServer(lambda peer: (peer.accept(), peer.wait_closed()), refuse=2)
        client = self.client(server, headers={"X-Game": "7"})
        errors = self.told(client.on_error, 2)
        yield client.connect()
        found = yield errors
        self.assertEqual([str(error) for error in found], ["HTTP 503 Service Unavailable (2)"] * 2)
        self.assertIsInstance(found[0], TransportFailed)
        self.assertEqual(server.handshakes[2].headers["X-Game"], "7")
        self.assertNotIn("Sec-WebSocket-Protocol", server.handshakes[2].headers)

    @inlineCallbacks
    def test_a_server_without_protobuf(self) -> Any:
        server = FakeServer(lambda peer: peer.wait_closed(), subprotocols=False)
        client = self.client(server, protocol="protobuf", min_reconnect_seconds=20, max_reconnect_seconds=20)
        errors = self.told(client.on_error)
        client.connect().addErrback(lambda _: None)
        found = yield errors
        self.assertIn("does not speak centrifuge-protobuf", str(found[0]))

    @inlineCallbacks
    def test_final_close_codes(self) -> Any:
        server = FakeServer(lambda peer: (peer.next(), peer.close(3500, "invalid token")))
        client = self.client(server)
        ended = self.told(client.on_disconnected)
        error = yield self.assertFailure(client.connect(), NotConnected)
        self.assertEqual((error.code, error.text), (3500, "invalid token"))
        events = yield ended
        self.assertEqual(events, [Disconnected(3500, "invalid token")])

    @inlineCallbacks
    def test_a_connection_cut_without_a_word(self) -> Any:
        server = FakeServer(
            lambda peer: (peer.accept(), peer.cut()), lambda peer: (peer.accept(), peer.wait_closed())
        )
        client = self.client(server)
        connecting = self.told(client.on_connecting, 2)
        connected = self.told(client.on_connected, 2)
        client.connect().addErrback(lambda _: None)
        events = yield connecting
        self.assertEqual(events[1], Connecting(1, "transport closed"))
        yield connected

    @inlineCallbacks
    def test_fragments_pings_and_several_replies_in_a_frame(self) -> Any:
        def script(peer: Peer) -> None:
            peer.accept()
            peer.socket.send(iter(['{"push":{"mess', 'age":{"data":', '"x"}}}']))
            peer.socket.ping().wait(10)
            peer.push("", Message(b"1"), Message(b"2"))
            peer.wait_closed()

        client = self.client(FakeServer(script))
        messages = self.told(client.on_message, 3)
        client.connect().addErrback(lambda _: None)
        found = yield messages
        self.assertEqual(found, [b'"x"', b"1", b"2"])

    @inlineCallbacks
    def test_a_message_above_the_bound_ends_it(self) -> Any:
        client = self.client(
            FakeServer(lambda peer: (peer.accept(), peer.raw("x" * 5000), peer.wait_closed())),
            frame_max_bytes=4096,
        )
        ended = self.told(client.on_disconnected)
        client.connect().addErrback(lambda _: None)
        events = yield ended
        self.assertEqual(events, [Disconnected(3, "message size limit")])

    @inlineCallbacks
    def test_garbage_ends_it(self) -> Any:
        client = self.client(
            FakeServer(lambda peer: (peer.accept(), peer.raw("garbage"), peer.wait_closed()))
        )
        ended = self.told(client.on_disconnected)
        client.connect().addErrback(lambda _: None)
        events = yield ended
        self.assertEqual(events, [Disconnected(2, "bad protocol")])

    @inlineCallbacks
    def test_disconnect_in_the_middle_of_a_handshake(self) -> Any:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"ws://127.0.0.1:{silent.getsockname()[1]}/"
            client = Client(reactor, url)
            client.connect().addErrback(lambda _: None)

            def accept() -> None:
                with silent.accept()[0] as peer:
                    peer.recv(1)

            accepted = threading.Thread(target=accept)
            accepted.start()
            yield self.until(lambda: not accepted.is_alive())
            yield client.disconnect()
            yield client.close()

    @inlineCallbacks
    def test_servers_that_are_no_web_servers(self) -> Any:
        for answer in (b"220 mail\r\n\r\n", b"HTTP/1.1 101 Ha\r\nUpgrade: x\r\n\r\n", b"x" * 20000, b""):
            with socket.create_server(("127.0.0.1", 0)) as strange:

                def serve(strange: socket.socket = strange, answer: bytes = answer) -> None:
                    peer, _ = strange.accept()
                    with peer:
                        peer.recv(65536)
                        peer.sendall(answer)

                thread = threading.Thread(target=serve)
                thread.start()
                url = f"ws://127.0.0.1:{strange.getsockname()[1]}/"
                client = Client(reactor, url, min_reconnect_seconds=20)
                errors = self.told(client.on_error)
                client.connect().addErrback(lambda _: None)
                found = yield errors
                self.assertIsInstance(found[0], TransportFailed)
                yield client.close()
                thread.join(10)

    @inlineCallbacks
    def test_frames_that_are_no_frames(self) -> Any:
        def script(peer: Peer) -> None:
            peer.accept()
            peer.socket.socket.sendall(b"\xff\xff\xff\xff")
            peer.wait_closed()

        client = self.client(FakeServer(script, lambda peer: (peer.accept(), peer.wait_closed())))
        connected = self.told(client.on_connected, 2)
        client.connect().addErrback(lambda _: None)
        yield connected

    @inlineCallbacks
    def test_over_tls(self) -> Any:
        pem = self_signed()
        context = serving(pem)
        server = FakeServer(lambda peer: (peer.accept(), peer.wait_closed()), ssl=context)
        options = optionsForClientTLS("localhost", trustRoot=Certificate.loadPEM(pem))
        plain = cast(IStreamClientEndpoint, HostnameEndpoint(reactor, "127.0.0.1", server.port))
        client = self.client(server, url="wss://localhost/", endpoint=wrapClientTLS(options, plain))
        connected = yield client.connect()
        self.assertEqual(connected.client, "c1")

    @inlineCallbacks
    def test_a_certificate_that_nobody_trusts(self) -> Any:
        server = FakeServer(ssl=serving(self_signed()))
        url = f"wss://localhost:{server.port}/"
        client = self.client(server, url=url, min_reconnect_seconds=20, max_reconnect_seconds=20)
        errors = self.told(client.on_error)
        client.connect().addErrback(lambda _: None)
        found = yield errors
        self.assertIsInstance(found[0], TransportFailed)

    @inlineCallbacks
    def until(self, is_so: Callable[[], bool]) -> Any:
        """Let the reactor run until it is so."""
        while not is_so():
            turn: Deferred[None] = Deferred()
            reactor.callLater(0.01, turn.callback, None)
            yield turn

    # The official Python SDK behaves the same.

    @inlineCallbacks
    def ours(self, *scripts: Script, token: str = "") -> Any:
        client = self.client(FakeServer(*scripts), token=token)
        told: list[tuple[Any, ...]] = []
        client.on_connected(lambda event: told.append(("connected", event.client)))
        client.on_disconnected(lambda event: told.append(("disconnected", event.code, event.reason)))
        sub = client.new_subscription("c")
        sub.on_subscribed(lambda event: told.append(("subscribed", event.was_recovering, event.recovered)))
        sub.on_unsubscribed(lambda event: told.append(("unsubscribed", event.code, event.reason)))
        sub.on_publication(lambda publication: told.append(("publication", publication.offset)))
        sub.subscribe().addErrback(lambda _: None)
        client.connect().addErrback(lambda _: None)
        yield self.until(lambda: any(event[0] == "disconnected" for event in told))
        return told

    def theirs(self, *scripts: Script, token: str = "") -> list[tuple[Any, ...]]:
        told: list[tuple[Any, ...]] = []

        class Events(centrifuge.ClientEventHandler):
            async def on_connected(self, ctx: Any) -> None:
                told.append(("connected", ctx.client))

            async def on_disconnected(self, ctx: Any) -> None:
                told.append(("disconnected", ctx.code, ctx.reason))

        class SubEvents(centrifuge.SubscriptionEventHandler):
            async def on_subscribed(self, ctx: Any) -> None:
                told.append(("subscribed", ctx.was_recovering, ctx.recovered))

            async def on_unsubscribed(self, ctx: Any) -> None:
                told.append(("unsubscribed", ctx.code, ctx.reason))

            async def on_publication(self, ctx: Any) -> None:
                told.append(("publication", ctx.pub.offset))

        async def run(url: str) -> None:
            client = centrifuge.Client(url, events=Events(), token=token, min_reconnect_delay=0.01)
            await client.new_subscription("c", events=SubEvents()).subscribe()
            await client.connect()
            async with asyncio.timeout(20):
                while not any(event[0] == "disconnected" for event in told):
                    await asyncio.sleep(0.01)
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            if rest:
                await asyncio.wait(rest, timeout=5)  # it closes its socket in one of them

        with FakeServer(*scripts) as server:
            asyncio.run(run(server.url))
        return told

    @inlineCallbacks
    def agree(self, *scripts: Script, token: str = "") -> Any:
        theirs = self.theirs(*scripts, token=token)
        ours = yield self.ours(*scripts, token=token)
        self.assertEqual(ours, theirs)
        return ours

    @inlineCallbacks
    def test_they_agree_on_recovery_and_the_end(self) -> Any:
        def first(peer: Peer) -> None:
            peer.accept(ping=25, pong=True)
            peer.admit(**STREAM, offset=4)
            peer.push("c", Publication(b"1", 5), Publication(b"2", 6))
            peer.say(Reply())
            peer.expect(None)  # it has dealt with them
            peer.close(3012, "no pong")

        def second(peer: Peer) -> None:
            peer.accept(client="c2")
            request = peer.admit(
                **STREAM, offset=6, was_recovering=True, recovered=True, publications=[Publication(b"3", 7)]
            )
            assert (request.recover, request.offset) == (True, 6)
            peer.close(4500, "banned")

        told = yield self.agree(first, second)
        self.assertEqual(told[-1], ("disconnected", 4500, "banned"))

    @inlineCallbacks
    def test_they_agree_on_refusals(self) -> Any:
        def script(peer: Peer) -> None:
            peer.accept()
            peer.answer(peer.expect(SubscribeRequest), Error(103, "permission denied"))
            peer.close(3503, "force disconnect")

        told = yield self.agree(script)
        self.assertEqual(told[1], ("unsubscribed", 103, "permission denied"))

    @inlineCallbacks
    def test_they_agree_on_a_refused_connect(self) -> Any:
        told = yield self.agree(lambda peer: peer.answer(peer.next(), Error(101, "unauthorized")))
        self.assertEqual(told, [("disconnected", 101, "unauthorized")])

    @inlineCallbacks
    def test_they_agree_on_an_expired_token(self) -> Any:
        told = yield self.agree(
            lambda peer: (peer.answer(peer.next(), Error(109, "token expired")), peer.wait_closed()),
            token="t",
        )
        self.assertEqual([event[0] for event in told], ["disconnected"])
        self.assertEqual(told[0][1], 1)


def serving(pem: bytes) -> ssl.SSLContext:
    """What a server needs to speak TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:  # there is no other way to load one
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def self_signed() -> bytes:
    """A certificate for localhost, and its key."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM) + key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
