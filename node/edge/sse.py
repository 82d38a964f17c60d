"""Server-sent events: a client's first commands come in the address, all replies as events. JSON only.

    GET {sse.handler_prefix}?cf_connect=COMMANDS      urlencoded: all that an EventSource can send
    POST {sse.handler_prefix}                         the commands are the body

An event is ``data: MESSAGE`` and an empty line, without a name or an id. The last one of a stream that the
server ends is a push ``disconnect`` with code and reason: an EventSource connects again by itself if it is
not told otherwise.
"""

from __future__ import annotations

from typing import Any, ClassVar

from spread.node.edge.streaming import Stream, StreamResource, stream_of
from spread.node.session.contract import Sessions
from spread.node.settings import Settings
from spread.node.web.bodies import body_of
from spread.node.wire.framing import sse

__all__ = ["SseResource", "sse_resource"]

_CHUNKED, _BARE = stream_of(
    "sse",
    "json",
    b"text/event-stream; charset=utf-8",
    sse,
    lambda several: b"".join([sse(message) for message in several]),
    start=b"\r\n",  # something at once: some proxies hold the headers back until then
)


class SseResource(StreamResource):
    """See the top of this module."""

    methods: ClassVar[tuple[bytes, ...]] = (b"GET", b"POST")

    def commands_of(self, request: Any) -> bytes:
        if request.method == b"POST":
            return body_of(request)
        commands: bytes = request.args.get(b"cf_connect", [b""])[0]
        return commands

    def stream_for(self, request: Any) -> Stream:
        return _CHUNKED if request.clientproto == b"HTTP/1.1" else _BARE


def sse_resource(sessions: Sessions, settings: Settings) -> SseResource:
    """What answers at ``sse.handler_prefix``."""
    return SseResource(sessions, settings.client, "sse", settings.sse.max_request_body_size)
