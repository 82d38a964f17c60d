"""HTTP streaming over real sockets: what a client gets, byte for byte, and what hostile ones do not."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions, DefaultOpenSSLContextFactory
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, globalLogPublisher
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers

from spread.node import codes
from spread.node.edge import streaming
from spread.node.wire import messages, protobuf
from tests.cluster.shards import is_clean, reactor
from tests.hub.certificates import Authority
from tests.node.streams import (
    CONNECT,
    ORIGIN,
    Answer,
    StreamCase,
    emulated,
    get,
    last_words,
    post,
    reply,
)

PATH = "/connection/http_stream"
NEVER_STORED = {
    "x-accel-buffering": "no",
    "cache-control": "private, no-cache, no-store, must-revalidate, max-age=0",
    "pragma": "no-cache",
    "expire": "0",
}


class Streaming(StreamCase):
    async def test_replies_come_one_a_line_in_chunks_without_end(self) -> None:
        peer = await self.connect(post(PATH, CONNECT))
        answer = await self.streams(peer, reply(1) + b"\n")
        self.assertEqual(answer.status, 200)
        self.assertLessEqual(NEVER_STORED.items(), answer.headers.items())
        self.assertEqual(answer.headers["connection"], "close")
        self.assertEqual(answer.headers["transfer-encoding"], "chunked")
        self.assertNotIn("access-control-allow-origin", answer.headers)
        self.assertNotIn("content-length", answer.headers)
        (session,) = self.sessions.opened
        session.says(b"{}")
        await self.streams(peer, reply(1) + b"\n{}\n")
        visit = session.visit
        self.assertEqual(
            (visit.transport, visit.address, visit.user, visit.is_emulated, visit.has_native_pings),
            ("http_stream", "127.0.0.1", "", True, False),
        )
        self.assertEqual(session.codec.name, "json/http_stream")
        self.assertEqual(self.factory.connections, 0, "a stream is no waiting HTTP connection any more")

    async def test_several_commands_in_one_body(self) -> None:
        body = CONNECT + b'\n{"subscribe":{"channel":"a"},"id":2}\n'
        peer = await self.connect(post(PATH, body))
        await self.streams(peer, reply(1) + b"\n" + reply(2) + b"\n")
        self.assertEqual(self.sessions.opened[0].frames, [body])
        self.assertEqual(len(Answer(peer.heard).chunks), 1, "what is written at once is one chunk")

    async def test_protobuf(self) -> None:
        for content_type in ("application/octet-stream", "Application/Octet-Stream ; x=y"):
            frame = bytes.fromhex("0408012200")
            peer = await self.connect(post(PATH, frame, f"Content-Type: {content_type}"))
            said = protobuf.encode_reply(messages.Reply(1, messages.RPCResult(b'"echo"')))
            answer = await self.streams(peer, said)
            self.assertEqual(answer.headers["content-type"], "application/octet-stream")
            session = self.sessions.opened[-1]
            self.assertEqual(session.codec.name, "protobuf/http_stream")
            session.says(protobuf.PING)
            await self.streams(peer, said + b"\0")
            session.end(codes.SHUTDOWN)
            push = messages.Push("", messages.Disconnect(3001, "shutdown"))
            await self.streams(peer, said + b"\0" + protobuf.encode_reply(messages.Reply(0, push)))
            self.assertTrue(is_clean(await peer.ended()))

    async def test_http_1_0_gets_no_chunks(self) -> None:
        peer = await self.connect(post(PATH, CONNECT, version="1.0"))
        answer = await self.streams(peer, reply(1) + b"\n")
        self.assertEqual(answer.headers["connection"], "close")
        self.assertNotIn("transfer-encoding", answer.headers)
        (session,) = self.sessions.opened
        self.assertEqual(session.codec.name, "json/http_stream/1.0")
        session.end(codes.SHUTDOWN)
        self.assertTrue(is_clean(await peer.ended()))
        self.assertEqual(Answer(peer.heard).body, reply(1) + b"\n" + last_words(codes.SHUTDOWN) + b"\n")

    async def test_clients_of_a_kind_share_a_codec(self) -> None:
        for version in ("1.1", "1.1", "1.0", "1.0"):
            await self.streams(await self.connect(post(PATH, CONNECT, version=version)), reply(1) + b"\n")
        first, second, third, fourth = [session.codec for session in self.sessions.opened]
        self.assertIs(first, second)
        self.assertIs(third, fourth)
        self.assertIsNot(first, third)
        self.assertIs(first.encoder, third.encoder, "encoded once for both")
        self.assertEqual(first.pack([]), b"", "an empty chunk would end the stream")

    async def test_the_end_says_why_behind_everything_else(self) -> None:
        peer = await self.connect(post(PATH, CONNECT))
        await self.streams(peer, reply(1) + b"\n")
        (session,) = self.sessions.opened
        for _ in range(3):
            session.says(b'{"x":1}')
        session.end(codes.FORCE_DISCONNECT)
        session.edge.close(codes.SHUTDOWN)  # idempotent
        session.says(b'{"too":"late"}')
        self.assertTrue(is_clean(await peer.ended()))
        answer = Answer(peer.heard)
        expected = reply(1) + b'\n{"x":1}\n{"x":1}\n{"x":1}\n' + last_words(codes.FORCE_DISCONNECT) + b"\n"
        self.assertEqual(answer.body, expected)
        self.assertEqual(answer.chunks[-1], b"")
        await self.until(lambda: session.lost_count == 1)

    async def test_no_commands_at_all(self) -> None:
        answer = await self.asked(post(PATH, b""))
        self.assertEqual(answer.status, 400)

    async def test_what_is_no_command_ends_the_stream_with_its_code(self) -> None:
        for body in (
            b"hello",
            b"[]",
            b"null",
            b'{"id":-1}',
            b'{"id":"1"}',
            b"\xff\xfe",
            b"{" * 60000,
            b"\n\n",
        ):
            peer = await self.connect(post(PATH, body))
            self.assertTrue(is_clean(await peer.ended()))
            answer = Answer(peer.heard)
            self.assertEqual((answer.status, answer.chunks[-1]), (200, b""))
            self.assertEqual(answer.body, last_words(codes.BAD_PROTOCOL) + b"\n")

    async def test_the_client_goes(self) -> None:
        for go in ("leaves", "resets", "ends_saying"):
            peer = await self.connect(post(PATH, CONNECT))
            await self.streams(peer, reply(1) + b"\n")
            session = self.sessions.opened[-1]
            getattr(peer, go)()
            await self.until(lambda session=session: session.lost_count == 1)  # type: ignore[misc]
            session.says(b"{}")
            session.end(codes.SHUTDOWN)

    async def test_the_client_goes_while_its_stream_ends(self) -> None:
        peer = await self.connect(post(PATH, CONNECT))
        await self.streams(peer, reply(1) + b"\n")
        (session,) = self.sessions.opened
        peer.stops_reading()
        session.end(codes.SHUTDOWN)
        peer.resets()
        await self.until(lambda: session.lost_count == 1)

    async def test_reading_is_never_paused(self) -> None:
        peer = await self.connect(post(PATH, CONNECT))
        await self.streams(peer, reply(1) + b"\n")
        (session,) = self.sessions.opened
        session.edge.pause_reading()
        peer.leaves()
        await self.until(lambda: session.lost_count == 1)
        session.edge.resume_reading()


class Slowness(StreamCase):
    async def _blocked(self) -> tuple[Any, Any]:
        """A client that has stopped reading, and its session, whose outbox is not over its limit yet."""
        self.sessions.outbox_max_bytes = 200_000
        peer = await self.connect(receive_bytes=65536)
        peer.says(post(PATH, CONNECT))
        await self.streams(peer, reply(1) + b"\n")
        peer.stops_reading()
        (session,) = self.sessions.opened
        while session.outbox.waiting_bytes < 50_000:
            session.says(b"x" * 10_000)
            await deferLater(reactor, 0)
        return peer, session

    async def test_who_does_not_read_is_cut(self) -> None:
        self.patch(streaming, "FINISH_SECONDS", 0.1)
        _, session = await self._blocked()
        session.says(b"y" * 200_000)
        self.assertEqual(session.ended, codes.SLOW)
        await self.until(lambda: session.lost_count == 1)

    async def test_who_reads_again_is_told(self) -> None:
        peer, session = await self._blocked()
        session.says(b"y" * 200_000)
        self.assertEqual(session.ended, codes.SLOW)
        peer.goes_on_reading()
        self.assertTrue(is_clean(await peer.ended()))
        answer = Answer(peer.heard)
        self.assertTrue(answer.body.endswith(b"x\n" + last_words(codes.SLOW) + b"\n"))
        self.assertEqual(answer.chunks[-1], b"")
        self.assertNotIn(b"y", answer.body)

    async def test_who_does_not_take_the_last_words_is_cut(self) -> None:
        self.patch(streaming, "FINISH_SECONDS", 0.1)
        _, session = await self._blocked()
        session.end(codes.SHUTDOWN)
        await self.until(lambda: session.lost_count == 1)

    async def test_the_session_cuts(self) -> None:
        peer, session = await self._blocked()
        session.edge.cut()
        session.edge.cut()
        peer.goes_on_reading()
        self.assertFalse(is_clean(await peer.ended()))
        await self.until(lambda: session.lost_count == 1)


class OverTls(StreamCase):
    def wrap(self, factory: Any) -> Any:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        issued = Authority(Path(directory.name)).issue("127.0.0.1")
        return TLSMemoryBIOFactory(DefaultOpenSSLContextFactory(issued.key, issued.cert), False, factory)

    def endpoint(self) -> Any:
        return wrapClientTLS(CertificateOptions(verify=False), super().endpoint())

    async def test_a_stream_and_its_end(self) -> None:
        peer = await self.connect(post(PATH, CONNECT))
        await self.streams(peer, reply(1) + b"\n")
        (session,) = self.sessions.opened
        session.says(b"x" * 500_000)
        session.end(codes.SHUTDOWN)
        self.assertTrue(is_clean(await peer.ended()))
        answer = Answer(peer.heard)
        expected = reply(1) + b"\n" + b"x" * 500_000 + b"\n" + last_words(codes.SHUTDOWN) + b"\n"
        self.assertEqual((answer.body, answer.chunks[-1]), (expected, b""))
        await self.until(lambda: session.lost_count == 1)

    async def test_a_flood_cuts(self) -> None:
        peer = await self.connect(post(PATH, CONNECT))
        await self.streams(peer, reply(1) + b"\n")
        peer.says(b"x" * (streaming.UNASKED_MAX_BYTES + 1))
        await peer.ended()

    async def test_emulation(self) -> None:
        self.assertEqual((await self.asked(post("/emulation", emulated(9, CONNECT)))).status, 204)


class Unasked(StreamCase):
    async def test_what_comes_behind_the_request_is_ignored(self) -> None:
        peer = await self.connect(post(PATH, CONNECT) + post(PATH, CONNECT) + b"x" * 1000)
        await self.streams(peer, reply(1) + b"\n")
        peer.says(get("/nothing"))
        (session,) = self.sessions.opened
        await deferLater(reactor, 0.05)
        session.says(b"{}")
        await self.streams(peer, reply(1) + b"\n{}\n")
        self.assertEqual(len(self.sessions.opened), 1)

    async def test_a_flood_of_it_cuts(self) -> None:
        for at_once in (True, False):
            peer = await self.connect()
            flood = b"x" * (streaming.UNASKED_MAX_BYTES + 1)
            if at_once:
                peer.says(post(PATH, CONNECT) + flood)
            else:
                peer.says(post(PATH, CONNECT))
                await self.streams(peer, reply(1) + b"\n")
                peer.says(flood)
            await peer.ended()
            await self.until(lambda: self.sessions.opened[-1].lost_count == 1)


class Asking(StreamCase):
    user_header = "X-User-Id"
    max_body_bytes = 1000

    async def test_other_methods(self) -> None:
        for method in ("GET", "HEAD", "PUT", "DELETE", "BREW"):
            answer = await self.asked(get(PATH, "Connection: close", method=method))
            self.assertEqual((answer.status, answer.headers["allow"]), (405, "POST, OPTIONS"), method)
        self.assertEqual(self.sessions.opened, [])

    async def test_paths_are_exact(self) -> None:
        for path in (PATH + "/", PATH + "/a", "/connection", "/connection/http_strea%6d", "/" + PATH):
            answer = await self.asked(post(path, CONNECT))
            self.assertIn(answer.status, (404, 405), path)
        self.assertEqual(self.sessions.opened, [])

    async def test_a_preflight(self) -> None:
        names = "content-type, x-requested-with"
        preflight = ("Access-Control-Request-Method: POST", f"Access-Control-Request-Headers: {names}")
        answer = await self.asked(get(PATH, f"Origin: {ORIGIN}", *preflight, method="OPTIONS"))
        self.assertEqual(answer.status, 204)
        self.assertEqual(
            {name: value for name, value in answer.headers.items() if name.startswith("access-control")},
            {
                "access-control-allow-origin": ORIGIN,
                "access-control-allow-credentials": "true",
                "access-control-allow-methods": "POST, OPTIONS",
                "access-control-allow-headers": names,
                "access-control-max-age": "300",
            },
        )
        self.assertEqual(answer.headers["vary"], "Origin")
        self.assertNotIn("content-length", answer.headers)

    async def test_a_preflight_of_strange_headers(self) -> None:
        for header in ("Access-Control-Request-Headers: <script>", "X: y", "Access-Control-Request-Headers:"):
            answer = await self.asked(get(PATH, f"Origin: {ORIGIN}", header, method="OPTIONS"))
            self.assertEqual(answer.headers["access-control-allow-headers"], "Content-Type")

    async def test_an_allowed_page_may_read_everything(self) -> None:
        peer = await self.connect(post(PATH, CONNECT, f"Origin: {ORIGIN}"))
        answers = [
            await self.streams(peer, reply(1) + b"\n"),
            await self.asked(get(PATH, f"Origin: {ORIGIN}")),
        ]
        for answer in answers:
            self.assertEqual(answer.headers["access-control-allow-origin"], ORIGIN)
            self.assertEqual(answer.headers["access-control-allow-credentials"], "true")
            self.assertEqual(answer.headers["vary"], "Origin")

    async def test_a_foreign_page_may_nothing(self) -> None:
        events: list[LogEvent] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        for origin in ("https://evil.example.com", "null", "", f"{ORIGIN}.evil.com", "x" * 5000):
            for request in (
                post(PATH, CONNECT, f"Origin: {origin}"),
                get(PATH, f"Origin: {origin}", method="OPTIONS"),
            ):
                answer = await self.asked(request)
                self.assertEqual(answer.status, 403, origin)
                self.assertNotIn("access-control-allow-origin", answer.headers)
        (warning,) = [event for event in events if event["log_level"].name == "warn"]
        self.assertEqual(warning["origin"], "https://evil.example.com")
        self.assertIn("client.allowed_origins", warning["log_format"])
        two = await self.asked(post(PATH, CONNECT, f"Origin: {ORIGIN}", "Origin: https://evil.example.com"))
        self.assertEqual(two.status, 403)
        self.assertEqual(self.sessions.opened, [])

    async def test_no_room(self) -> None:
        self.sessions.room = 0
        answer = await self.asked(post(PATH, CONNECT, f"Origin: {ORIGIN}"))
        self.assertEqual((answer.status, answer.body), (503, b"this shard is full\n"))
        self.assertEqual(answer.headers["content-type"], "text/plain; charset=utf-8")
        self.assertEqual(answer.headers["access-control-allow-origin"], ORIGIN)

    async def test_a_user_of_the_proxy_in_front(self) -> None:
        for header, user in (("X-User-Id: 42", "42"), ("x-user-id: j\u00f6", "j\u00f6"), ("X-Other: 1", "")):
            peer = await self.connect(post(PATH, CONNECT, header))
            await self.streams(peer, reply(1) + b"\n")
            self.assertEqual(self.sessions.opened[-1].visit.user, user)
        broken = post(PATH, CONNECT, "X-User-Id: ?").replace(b"?", b"\xff")
        await self.streams(await self.connect(broken), reply(1) + b"\n")
        self.assertEqual(self.sessions.opened[-1].visit.user, "\ufffd")

    async def test_a_body_that_is_too_large(self) -> None:
        answer = await self.asked(post(PATH, b"x" * 1001))
        self.assertEqual(answer.status, 413)
        peer = await self.connect(
            f"POST {PATH} HTTP/1.1\r\nHost: here\r\nContent-Length: 99999999999\r\n\r\n".encode()
        )
        await peer.until(lambda: Answer(peer.heard).status == 413)
        endless = await self.connect(
            f"POST {PATH} HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        for _ in range(200):
            endless.says(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
        await endless.ended()
        self.assertIn(Answer(endless.heard).status, (413, 0), "0: the answer was lost when it was cut")
        self.assertEqual(self.sessions.opened, [])

    async def test_bodies_in_pieces(self) -> None:
        start = f"POST {PATH} HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        pieces = [b"%x;x=y\r\n%c\r\n" % (1, byte) for byte in CONNECT]
        peer = await self.connect(start)
        for piece in (*pieces, b"0\r\nTrailer: x\r\n\r\n"):
            peer.says(piece)
            await deferLater(reactor, 0.001)
        await self.streams(peer, reply(1) + b"\n")
        self.assertEqual(self.sessions.opened[0].frames, [CONNECT])

    async def test_a_client_that_expects_100_continue(self) -> None:
        request = post(PATH, CONNECT, "Expect: 100-continue")
        peer = await self.connect(request[: -len(CONNECT)])
        await peer.until(lambda: peer.heard == b"HTTP/1.1 100 Continue\r\n\r\n")
        peer.says(CONNECT)
        await peer.until(lambda: reply(1) in peer.heard)
        peer.heard = peer.heard.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        await self.streams(peer, reply(1) + b"\n")

    async def test_behind_another_request_of_the_same_connection(self) -> None:
        peer = await self.connect(get("/nothing") + get("/nothing") + post(PATH, CONNECT))
        await peer.until(lambda: reply(1) in peer.heard)
        first, second, third = peer.heard.split(b"HTTP/1.1 ")[1:]
        self.assertEqual((first[:3], second[:3], third[:3]), (b"404", b"404", b"200"))

    async def test_a_connection_that_cannot_be_taken_over(self) -> None:
        self.patch(streaming, "take_over", lambda request, edge: False)
        answer = await self.asked(post(PATH, CONNECT))
        self.assertEqual(answer.status, 503)
        self.assertEqual(self.sessions.admitted, [])


class Emulation(StreamCase):
    async def test_with_an_http_client(self) -> None:
        pool = HTTPConnectionPool(reactor, persistent=True)
        agent = Agent(reactor, pool=pool)
        url = f"http://127.0.0.1:{self.port}".encode()
        body: Any = _Bytes(CONNECT)
        response: Any = await agent.request(b"POST", url + PATH.encode(), Headers({}), body)
        self.assertEqual(response.code, 200)
        reader = _Reader()
        response.deliverBody(reader)
        await self.until(lambda: reader.heard == reply(1) + b"\n")
        for number in (2, 3):
            command = b'{"rpc":{},"id":%d}' % number
            posted: Any = await agent.request(
                b"POST",
                url + b"/emulation",
                Headers({}),
                _Bytes(emulated(0, command)),  # type: ignore[arg-type]
            )
            self.assertEqual(posted.code, 204)
        await self.until(lambda: reader.heard.count(b"\n") == 3)
        self.assertEqual(reader.heard, b"".join(reply(number) + b"\n" for number in (1, 2, 3)))
        self.sessions.opened[0].end(codes.SHUTDOWN)
        await reader.finished
        await pool.closeCachedConnections()


class _Bytes:
    """The body of a request of twisted.web's client."""

    def __init__(self, data: bytes) -> None:
        self.length = len(data)
        self._data = data

    def startProducing(self, consumer: Any) -> Any:
        consumer.write(self._data)
        return succeed(None)

    def stopProducing(self) -> None:
        pass


class _Reader(Protocol):
    """The body of an answer, as it comes."""

    def __init__(self) -> None:
        self.heard = b""
        self.finished: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.finished.callback(None)
