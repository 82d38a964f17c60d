"""What the tests of streams over HTTP share: sessions that echo, served over real sockets, and peers."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from spread.hub.errors import ShardUnknown
from spread.node import codes
from spread.node.codec import Codec
from spread.node.cork import Cork
from spread.node.edge.emulation import emulation_resource
from spread.node.edge.http_stream import http_stream_resource
from spread.node.edge.sse import sse_resource
from spread.node.listen import bind, start_listening, stop_listening
from spread.node.metrics import ShardCounters
from spread.node.outbox import Outbox
from spread.node.session.contract import Edge, Visit
from spread.node.settings import ClientSettings, HttpStreamSettings, Settings
from spread.node.web.site import BoundedFactory, quiet_site
from spread.node.wire import messages
from tests.cluster.shards import LOOPBACK, PATIENCE_SECONDS, Peer, reactor

__all__ = ["CONNECT", "NODE", "Answer", "EchoSession", "EchoSessions", "StreamCase", "reply"]

NODE = "00000000000000aa"
CONNECT = b'{"connect":{},"id":1}'
ORIGIN = "https://game.example.com"


def reply(number: int) -> bytes:
    """What an echo answers to a command."""
    return b'{"id":%d,"rpc":{"data":"echo"}}' % number


class EchoSession:
    """Answers every command, and ends at what is none."""

    def __init__(
        self, sessions: EchoSessions, edge: Edge, outbox: Outbox, codec: Codec, visit: Visit
    ) -> None:
        self.sessions = sessions
        self.edge = edge
        self.outbox = outbox
        self.codec = codec
        self.visit = visit
        self.frames: list[bytes] = []
        self.ended: codes.Disconnect | None = None
        self.lost_count = 0

    def received(self, frame: bytes) -> None:
        assert self.codec.wire is not None
        self.frames.append(frame)
        try:
            commands = self.codec.wire.decode(frame)
        except messages.ProtocolError:
            self.end(codes.BAD_PROTOCOL)
            return
        replies = [
            self.codec.wire.encode_reply(messages.Reply(command.id, messages.RPCResult(b'"echo"')))
            for command in commands
        ]
        self.outbox.write(self.codec.pack(replies))

    def says(self, message: bytes) -> None:
        """A message that is no answer."""
        self.outbox.write(self.codec.frame(message))

    def end(self, disconnect: codes.Disconnect) -> None:
        if self.ended is None:
            self.ended = disconnect
            self.edge.close(disconnect)

    def lost(self) -> None:
        self.lost_count += 1
        self.sessions.leave(self)


class EchoSessions:
    """``contract.Sessions``, with as many clients as ``room`` allows."""

    def __init__(self) -> None:
        self.cork = Cork(reactor, time.perf_counter, 0.005)
        self.outbox_max_bytes = 1 << 20
        self.room = 100
        self.admitted: list[str] = []
        self.opened: list[EchoSession] = []

    def admit(self, address: str) -> str:
        if len(self.admitted) >= self.room:
            return "this shard is full"
        self.admitted.append(address)
        return ""

    def release(self, address: str) -> None:
        self.admitted.remove(address)

    def open(self, edge: Edge, outbox: Outbox, codec: Codec, visit: Visit) -> EchoSession:
        assert visit.address in self.admitted
        session = EchoSession(self, edge, outbox, codec, visit)
        self.opened.append(session)
        return session

    def leave(self, session: EchoSession) -> None:
        self.admitted.remove(session.visit.address)


class Answer:
    """An answer as it has come so far.

    :param data: all that came on a connection with one answer.
    """

    def __init__(self, data: bytes) -> None:
        head, self.has_head, self.rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1]) if self.has_head else 0
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    @property
    def chunks(self) -> list[bytes]:
        """The whole chunks; the last one of a finished answer is b""."""
        pieces, rest = [], self.rest
        while b"\r\n" in rest:
            size, _, after = rest.partition(b"\r\n")
            length = int(size, 16)
            if len(after) < length + 2:
                break
            assert after[length : length + 2] == b"\r\n"
            pieces.append(after[:length])
            rest = after[length + 2 :]
            if not length:
                assert rest == b"", "something behind the end"
        return pieces

    @property
    def body(self) -> bytes:
        """What has come of the body."""
        return b"".join(self.chunks) if self.headers.get("transfer-encoding") == "chunked" else self.rest


class StreamCase(TestCase):
    """A test with a site that serves all three resources, and the peers it wants."""

    allowed_origins: tuple[str, ...] = (ORIGIN,)
    user_header = ""
    max_body_bytes = 65536

    async def setUp(self) -> None:
        self.sessions = EchoSessions()
        self.forwarded: list[tuple[str, str, bytes]] = []
        settings = Settings(
            client=ClientSettings(allowed_origins=self.allowed_origins, user_id_http_header=self.user_header),
            http_stream=HttpStreamSettings(max_request_body_size=self.max_body_bytes),
        )
        self.counters = ShardCounters()
        self.emulation = emulation_resource(settings, self.forward, self.counters)
        self.site = quiet_site(
            reactor,
            {
                "connection/http_stream": http_stream_resource(self.sessions, settings),
                "connection/sse": sse_resource(self.sessions, settings),
                "emulation": self.emulation,
            },
        )
        self.factory = BoundedFactory(self.site, 100, lambda: None)
        self.listening: Any = start_listening(reactor, bind(LOOPBACK, 0), self.wrap(self.factory))
        self.port: int = self.listening.getHost().port
        self.peers: list[Peer] = []

    async def tearDown(self) -> None:
        for session in self.sessions.opened:
            if not session.lost_count:
                session.edge.cut()
        for peer in self.peers:
            if peer.end is None:
                peer.resets()
                await peer.ended()
        await self.until(lambda: not self.factory.connections)
        await self.until(lambda: all(session.lost_count == 1 for session in self.sessions.opened))
        assert self.sessions.admitted == [], "somebody was admitted, and neither opened nor released"
        await stop_listening(self.listening, inherited=False)

    def wrap(self, factory: Any) -> Any:
        """What listens."""
        return factory

    def endpoint(self) -> Any:
        """How peers connect."""
        return TCP4ClientEndpoint(reactor, LOOPBACK, self.port)

    # -- what the tests use --------------------------------------------------------------------------------

    def forward(self, node: str, session: str, data: bytes) -> Deferred[None]:
        """Sessions are known by their number."""
        if node != NODE:
            return fail(ShardUnknown(node))
        self.forwarded.append((node, session, data))
        if session.isdecimal() and int(session) < len(self.sessions.opened):
            self.sessions.opened[int(session)].received(data)
        return succeed(None)

    async def until(self, fact: Callable[[], bool]) -> None:
        deadline = reactor.seconds() + PATIENCE_SECONDS
        while not fact():
            assert reactor.seconds() < deadline, "waited in vain"
            await deferLater(reactor, 0.002)

    async def connect(self, *said: bytes, receive_bytes: int = 0) -> Peer:
        """A connection, on which this is said.

        :param receive_bytes: the size of its receive buffer, for who does not read.
        """
        peer = Peer()
        await connectProtocol(self.endpoint(), peer)
        if receive_bytes:
            transport: Any = peer.transport
            transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.peers.append(peer)
        for data in said:
            peer.says(data)
        return peer

    async def asked(self, data: bytes) -> Answer:
        """The answer to a request whose connection ends with it."""
        peer = await self.connect(data)
        await peer.until(lambda: _is_whole(Answer(peer.heard)) or peer.end is not None)
        return Answer(peer.heard)

    async def streams(self, peer: Peer, body: bytes) -> Answer:
        """Exactly this has come as the body of an answer that goes on."""
        await peer.until(lambda: len(Answer(peer.heard).body) >= len(body) or peer.end is not None)
        answer = Answer(peer.heard)
        self.assertEqual(answer.body, body)
        return answer

    async def in_thread(self, talk: Callable[[http.client.HTTPConnection], Any]) -> Any:
        """Talk to the site with the client of the standard library."""

        def run() -> Any:
            connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=PATIENCE_SECONDS)
            try:
                return talk(connection)
            finally:
                connection.close()

        return await deferToThread(run)


def _is_whole(answer: Answer) -> bool:
    length = answer.headers.get("content-length")
    if answer.status == 204:
        return True
    return bool(answer.has_head) and length is not None and len(answer.rest) >= int(length)


def post(path: str, body: bytes, *headers: str, version: str = "1.1", method: str = "POST") -> bytes:
    """A request with a body of a known length."""
    lines = [f"{method} {path} HTTP/{version}", "Host: here", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def get(path: str, *headers: str, version: str = "1.1", method: str = "GET") -> bytes:
    """A request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: here", *headers]).encode() + b"\r\n\r\n"


def sse_path(commands: bytes) -> str:
    """The address of a stream of events, with the first commands of its client."""
    return "/connection/sse?cf_connect=" + quote(commands, safe="")


def emulated(session: object, *commands: bytes, node: str = NODE) -> bytes:
    """The body of an emulation request."""
    return json.dumps({"session": str(session), "node": node, "data": b"\n".join(commands).decode()}).encode()


def last_words(disconnect: codes.Disconnect) -> bytes:
    """The push that says why a stream ends."""
    told = {"code": disconnect.code, "reason": disconnect.reason}
    return msgspec.json.encode({"push": {"disconnect": told}})
