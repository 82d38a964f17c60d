"""The handshake of WebSocket clients: who may connect, and what is agreed on.

    GET /connection/websocket      the path is websocket.handler_prefix

Protobuf is spoken if the query says ``cf_protocol=protobuf`` (or ``format=``), or the client offers the
subprotocol ``centrifuge-protobuf``; else JSON. One of the subprotocols offered is named in the answer, since
browsers insist on that; a header without a value offers none. ``cf_ws_frame_ping_pong=true`` asks for pings
of WebSocket instead of those of the protocol.

    101  the connection is a WebSocket now (``websocket_connection``)
    400  something in the headers cannot be
    403  the page that the client came from may not connect (``client.allowed_origins``)
    405  not GET
    426  no WebSocket asked for
    503  no room; the client may come again

permessage-deflate (RFC 7692) is declined unless ``websocket.compression`` is on, and then agreed to without
context takeover in both directions: each message is compressed once for all clients, and an idle connection
has no memory of what it has sent.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader, NegotiationError
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.http11 import Request as Handshake
from websockets.server import ServerProtocol

from spread.node.edge.codecs import WebSocketCodecs, compressed_codecs
from spread.node.edge.origin import Origins, RefusedPages, origin_of
from spread.node.edge.parsers import QUIET, Parsers
from spread.node.edge.takeover import take_over
from spread.node.edge.websocket_connection import Opening, WebSocketEdge, WebSocketPort
from spread.node.session.contract import Sessions, Visit

__all__ = ["WebSocketResource", "websocket_resource"]

SUBPROTOCOLS = ("centrifuge-protobuf", "centrifuge-json")
"""In this order: who offers Protobuf speaks it."""

INFLATED_FACTOR = 10
"""How much larger than ``message_size_limit`` a message may become that was compressed, if not set."""


_NEEDED = (
    b"connection",
    b"upgrade",
    b"sec-websocket-key",
    b"sec-websocket-version",
    b"sec-websocket-extensions",
)


class _Deflate(ServerPerMessageDeflateFactory):
    """Agrees only to what frames that are compressed once for everybody can keep."""

    def __init__(self) -> None:
        super().__init__(server_no_context_takeover=True, client_no_context_takeover=True)

    def process_request_params(self, params: Any, accepted_extensions: Any) -> Any:
        if any(name == "server_max_window_bits" for name, _ in params):
            # Our frames may refer to all of 32 KiB. An offer that is not answered is declined.
            raise NegotiationError("server_max_window_bits is not supported")
        return super().process_request_params(params, accepted_extensions)


class WebSocketResource(Resource):
    """Answers handshakes."""

    isLeaf = True
    log = Logger("spread.node.edge.websocket")

    def __init__(self, sessions: Sessions, settings: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        websocket, client = settings.websocket, settings.client
        self._sessions = sessions
        self._settings = settings
        self._origins = Origins(client.allowed_origins)
        self._user_header: bytes = client.user_id_http_header.encode()
        limit: int = websocket.message_size_limit
        self._plain = Parsers(limit)
        self._plain_codecs = WebSocketCodecs()
        self._inflating: Parsers | None = None
        if websocket.compression:
            inflated = websocket.decompressed_message_size_limit or INFLATED_FACTOR * limit
            self._inflating = Parsers(limit, inflated)
            self._compressed_codecs = compressed_codecs(
                websocket.compression_level, websocket.compression_min_size
            )
            self._extensions = [_Deflate()]
        self._port: WebSocketPort | None = None
        self._refused = RefusedPages("WebSocket clients")

    def render(self, request: Any) -> Any:
        """See ``Resource``."""
        headers = request.requestHeaders
        if request.method != b"GET":
            request.setHeader(b"allow", b"GET")
            return _text(request, 405, "a WebSocket is asked for with GET")
        origin = origin_of(request)
        if not self._origins.allows(origin):
            self._refused.add(origin, request.site.reactor.seconds())
            return _text(request, 403, "this origin is not allowed")
        protocol = ServerProtocol(extensions=self._extensions if self._inflating else None, logger=QUIET)
        try:
            answer = protocol.accept(_handshake(headers))
        except InvalidHeader:
            return _text(request, 400, "a header of the handshake has characters that no header may have")
        if request.clientproto != b"HTTP/1.1" or answer.status_code != 101:
            status = answer.status_code if answer.status_code != 101 else 400
            if status == 426:
                request.setHeader(b"upgrade", b"websocket")
            return _text(request, status, "this is no handshake of a WebSocket client")
        offered = _tokens(headers.getRawHeaders(b"sec-websocket-protocol"))
        subprotocol = next((each for each in SUBPROTOCOLS if each in offered), None)
        if subprotocol is not None:
            answer.headers["Sec-WebSocket-Protocol"] = subprotocol
        query = _query(request.uri)
        is_protobuf = subprotocol == SUBPROTOCOLS[0] or "protobuf" in (
            query.get("cf_protocol"),
            query.get("format"),
        )
        address = getattr(request.getClientAddress(), "host", None) or ""
        refused = self._sessions.admit(address)
        if refused:
            self.log.debug("a WebSocket client is refused: {reason}", reason=refused)
            return _text(request, 503, refused)
        is_compressed = any(isinstance(each, PerMessageDeflate) for each in protocol.extensions)
        codecs = self._compressed_codecs if is_compressed else self._plain_codecs
        visit = Visit(
            transport="websocket",
            address=address,
            user=self._user(headers),
            has_native_pings=query.get("cf_ws_frame_ping_pong") == "true",
        )
        opening = Opening(answer.serialize(), codecs.protobuf if is_protobuf else codecs.json, visit)
        parsers = self._inflating if is_compressed and self._inflating else self._plain
        if not take_over(request, WebSocketEdge(self._port_of(request), parsers, opening)):
            self._sessions.release(address)
            return _text(request, 503, "this connection cannot become a WebSocket")
        return NOT_DONE_YET

    def _port_of(self, request: Any) -> WebSocketPort:
        if self._port is None:
            client, websocket = self._settings.client, self._settings.websocket
            self._port = WebSocketPort(
                self._sessions,
                request.site.reactor,
                websocket.write_timeout,
                client.ping_interval,
                client.pong_timeout,
            )
        return self._port

    def _user(self, headers: Any) -> str:
        values = headers.getRawHeaders(self._user_header) if self._user_header else None
        return values[0].decode(errors="replace") if values else ""


def websocket_resource(sessions: Sessions, settings: Any) -> WebSocketResource:
    """What answers at ``settings.websocket.handler_prefix``, on a site with an attribute ``reactor``.

    :param settings: ``spread.node.settings.Settings``.
    """
    return WebSocketResource(sessions, settings)


def _handshake(headers: Any) -> Handshake:
    """The request as ``websockets`` wants it, without what is decided here.

    :raises InvalidHeader: a value has control characters, which ``twisted.web`` lets pass.
    """
    wanted = Headers()
    for name in _NEEDED:
        for value in headers.getRawHeaders(name) or ():
            wanted[name.decode()] = value.decode("latin-1")
    return Handshake("/", wanted)


def _tokens(values: list[bytes] | None) -> list[str]:
    """The elements of a list that may be on several lines; empty ones do not count."""
    found = (token.strip() for value in values or () for token in value.decode("latin-1").split(","))
    return [token for token in found if token]


def _query(uri: bytes) -> dict[str, str]:
    """The first value of each name."""
    text = uri.partition(b"?")[2].decode("latin-1")
    if not text:
        return {}
    try:
        found = parse_qs(text, max_num_fields=64)
    except ValueError:
        return {}
    return {name: values[0] for name, values in found.items()}


def _text(request: Any, status: int, text: str) -> bytes:
    """An answer in words."""
    request.setResponseCode(status)
    request.setHeader(b"content-type", b"text/plain; charset=utf-8")
    request.setHeader(b"cache-control", b"no-store")
    return text.encode() + b"\n"
