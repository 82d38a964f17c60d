"""HTTP streaming: a client's first commands come in the body of a POST, all replies as one endless answer.

    POST {http_stream.handler_prefix}
        Content-Type: application/octet-stream     Protobuf: each message after its length as a varint
        any other, or none                         JSON: each message on a line of its own

The last message of a stream that the server ends is a push ``disconnect`` with code and reason.
"""

from __future__ import annotations

from typing import Any

from spread.node.edge.streaming import Stream, StreamResource, stream_of
from spread.node.session.contract import Sessions
from spread.node.settings import Settings
from spread.node.web.bodies import body_of, is_protobuf
from spread.node.wire.framing import line, pack_lines

__all__ = ["HttpStreamResource", "http_stream_resource"]


def _as_is(message: bytes) -> bytes:
    return message


_JSON = stream_of(
    "http_stream",
    "json",
    b"application/x-ndjson",
    line,
    pack_lines,
)
_PROTOBUF = stream_of("http_stream", "protobuf", b"application/octet-stream", _as_is, b"".join)


class HttpStreamResource(StreamResource):
    """See the top of this module."""

    def commands_of(self, request: Any) -> bytes:
        return body_of(request)

    def stream_for(self, request: Any) -> Stream:
        chunked, bare = _PROTOBUF if is_protobuf(request) else _JSON
        return chunked if request.clientproto == b"HTTP/1.1" else bare


def http_stream_resource(sessions: Sessions, settings: Settings) -> HttpStreamResource:
    """What answers at ``http_stream.handler_prefix``."""
    return HttpStreamResource(
        sessions, settings.client, "http_stream", settings.http_stream.max_request_body_size
    )
