"""What HTTP streaming and server-sent events share: answers that never end.

    request → is it allowed?  who comes?  is there room?  → the connection is taken over → head, replies …

The request brings the first commands of a client; its connection is then taken over from ``twisted.web``, and
all replies go out on it through an outbox, straight to the socket. What the client says later comes with
requests of its own (``spread.node.edge.emulation``), so nothing it sends on this connection has a meaning.

An answer over HTTP/1.1 is chunked, one chunk for each message or burst of messages. A peer that speaks
HTTP/1.0 knows no chunks: it gets the bare bytes, and the end of the connection is the end of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from spread.hub.reactor import Clock, Timer
from spread.node import codes
from spread.node.codec import Codec
from spread.node.edge.browser import BrowserResource
from spread.node.edge.ending import end_writing
from spread.node.edge.takeover import take_over
from spread.node.encoders import codec_of
from spread.node.outbox import make_outbox
from spread.node.session.contract import EdgeSession, Sessions, Visit
from spread.node.settings import ClientSettings
from spread.node.wire import messages
from spread.node.wire.framing import LAST_CHUNK, chunk

__all__ = ["FINISH_SECONDS", "UNASKED_MAX_BYTES", "Stream", "StreamEdge", "StreamResource", "stream_of"]

FINISH_SECONDS = 5.0
"""How long a client may take to receive what was waiting for it before its connection is cut."""

UNASKED_MAX_BYTES = 65536
"""How much a client may send behind its request in all, though nobody reads it; above it is cut."""

NEVER_STORED = (
    b"X-Accel-Buffering: no\r\n"
    b"Cache-Control: private, no-cache, no-store, must-revalidate, max-age=0\r\n"
    b"Pragma: no-cache\r\n"
    b"Expire: 0\r\n"
    b"X-Content-Type-Options: nosniff\r\n"
)
"""Nothing on the way may keep an answer, nor wait for its end."""


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """One way to answer without end. One object for each."""

    codec: Codec
    head: bytes
    """The first bytes of every answer, up to where the headers of one client go."""
    start: bytes
    """What comes behind the headers, before the first message."""
    end: bytes
    """What comes behind the last message."""


def stream_of(
    transport: str,
    protocol: str,
    content_type: bytes,
    frame: Callable[[bytes], bytes],
    pack: Callable[[Sequence[bytes]], bytes],
    start: bytes = b"",
) -> tuple[Stream, Stream]:
    """The streams of a transport: for HTTP/1.1 and for HTTP/1.0.

    :param frame: one message, as part of an answer; ``pack`` the same for several.
    :param start: what comes before the first message.
    """
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n%b" % (content_type, NEVER_STORED)

    def frame_chunk(message: bytes) -> bytes:
        return chunk(frame(message))

    def pack_chunk(several: Sequence[bytes]) -> bytes:
        return chunk(pack(several)) if several else b""  # an empty chunk is the last one

    # The connection ends with the stream. A client that was told "keep-alive", as the reference server tells
    # it, may send another request on it in that very moment, and take its failure for one of the network.
    head += b"Connection: close\r\n"
    chunked = Stream(
        codec_of(transport, protocol, frame_chunk, pack_chunk),
        head + b"Transfer-Encoding: chunked\r\n",
        chunk(start) if start else b"",
        LAST_CHUNK,
    )
    bare = Stream(codec_of(f"{transport}/1.0", protocol, frame, pack), head, start, b"")
    return chunked, bare


@implementer(IProtocol)
class StreamEdge:
    """The connection of one client, from where it was taken over. An ``Edge`` for its session.

    :param headers: those of this client alone.
    :param commands: what came with its request; the session's first frame.
    """

    __slots__ = (
        "_clock",
        "_commands",
        "_ending",
        "_headers",
        "_is_closing",
        "_outbox",
        "_session",
        "_sessions",
        "_stream",
        "_transport",
        "_unasked_bytes",
        "_visit",
    )

    def __init__(
        self,
        sessions: Sessions,
        stream: Stream,
        visit: Visit,
        clock: Clock,
        headers: bytes,
        commands: bytes,
    ) -> None:
        self._sessions = sessions
        self._stream = stream
        self._visit = visit
        self._clock = clock
        self._headers = headers
        self._commands = commands
        self._session: EdgeSession | None = None
        self._outbox: Any = None
        self._transport: Any = None
        self._ending: Timer | None = None
        self._is_closing = False
        self._unasked_bytes = 0

    # -- Twisted calls -----------------------------------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """The connection is ours."""
        self._transport = transport
        sessions, stream = self._sessions, self._stream
        self._outbox = make_outbox(transport, sessions.cork, sessions.outbox_max_bytes, self._overflowed)
        self._outbox.write(b"%b%b\r\n%b" % (stream.head, self._headers, stream.start))
        self._session = sessions.open(self, self._outbox, stream.codec, self._visit)
        commands, self._commands, self._headers = self._commands, b"", b""
        self._session.received(commands)

    def connectionMade(self) -> None:
        """Part of the interface; ``makeConnection`` does it all."""

    def dataReceived(self, data: bytes) -> None:
        """A client has no business here after its request: a later one waits for ever, as HTTP has it."""
        self._unasked_bytes += len(data)
        if self._unasked_bytes > UNASKED_MAX_BYTES:
            self.cut()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is over."""
        self._is_closing = True
        if self._ending is not None and self._ending.active():
            self._ending.cancel()
        self._ending = None
        self._outbox.abandon()
        session, self._session = self._session, None
        if session is not None:
            session.lost()

    # -- the session asks --------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """See ``contract.Edge``. Frames of this client do not come over this connection."""

    def resume_reading(self) -> None:
        """See ``contract.Edge``."""

    def close(self, disconnect: codes.Disconnect) -> None:
        """See ``contract.Edge``: the last message of the stream says why."""
        if self._is_closing:
            return
        self._is_closing = True
        codec = self._stream.codec
        assert codec.wire is not None
        push = messages.Push("", messages.Disconnect(disconnect.code, disconnect.reason))
        self._ending = self._clock.callLater(FINISH_SECONDS, self.cut)
        last_words = codec.frame(codec.wire.encode_reply(messages.Reply(0, push))) + self._stream.end
        self._outbox.close(partial(end_writing, self._transport), last_words)

    def cut(self) -> None:
        """See ``contract.Edge``."""
        self._is_closing = True
        self._outbox.abandon()
        self._transport.abortConnection()

    # -- inside ------------------------------------------------------------------------------------------

    def _overflowed(self) -> None:
        if self._session is None:
            self.cut()
        else:
            self._session.end(codes.SLOW)


class StreamResource(BrowserResource):
    """A request for an answer that never ends.

    :param transport: the name of it, for ``Visit``.
    """

    def __init__(
        self, sessions: Sessions, client: ClientSettings, transport: str, max_body_bytes: int
    ) -> None:
        super().__init__(client.allowed_origins, max_body_bytes)
        self._sessions = sessions
        self._transport = transport
        self._user_header = client.user_id_http_header.encode()

    def commands_of(self, request: Any) -> bytes:
        """The commands that a request brings; b"": there are none."""
        raise NotImplementedError

    def stream_for(self, request: Any) -> Stream:
        """How to answer a request."""
        raise NotImplementedError

    def respond(self, request: Any) -> Any:
        """See ``BrowserResource``."""
        commands = self.commands_of(request)
        if not commands:
            return self.text(request, 400, "the request brings no commands")
        address = getattr(request.getClientAddress(), "host", None) or ""
        refused = self._sessions.admit(address)
        if refused:
            return self.text(request, 503, refused)
        user = (request.getHeader(self._user_header) or b"") if self._user_header else b""
        edge = StreamEdge(
            self._sessions,
            self.stream_for(request),
            Visit(
                transport=self._transport,
                address=address,
                user=user.decode(errors="replace"),
                is_emulated=True,
            ),
            request.site.reactor,
            self.origin_headers(request),
            commands,
        )
        if not take_over(request, edge):
            self._sessions.release(address)
            return self.text(request, 503, "the connection cannot carry a stream")
        return NOT_DONE_YET
