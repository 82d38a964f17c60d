"""How clients of WebSocket and of lines are written to: one codec for each kind of them."""

from __future__ import annotations

from dataclasses import dataclass

from spread.node.codec import Codec
from spread.node.encoders import codec_of
from spread.node.wire.framing import (
    compressing,
    line,
    pack_lines,
    packing,
    websocket_binary,
    websocket_text,
)

__all__ = ["JSON_LINES", "JSON_WEBSOCKET", "PROTOBUF_WEBSOCKET", "WebSocketCodecs", "compressed_codecs"]

JSON_WEBSOCKET = codec_of("websocket", "json", websocket_text, packing(b"\n", websocket_text))
"""One text frame for one or more objects, each on a line of its own."""

PROTOBUF_WEBSOCKET = codec_of("websocket", "protobuf", websocket_binary, packing(b"", websocket_binary))
"""One binary frame for one or more messages, each with its length before it."""

JSON_LINES = codec_of("lines", "json", line, pack_lines)
"""One line for each object."""


@dataclass(frozen=True, slots=True)
class WebSocketCodecs:
    """The codecs of clients that have agreed on the same extensions."""

    json: Codec = JSON_WEBSOCKET
    protobuf: Codec = PROTOBUF_WEBSOCKET


def compressed_codecs(level: int, min_bytes: int) -> WebSocketCodecs:
    """For clients that have agreed on permessage-deflate without context takeover.

    Each message is compressed once, however many get it.

    :param level: of zlib, 1 to 9.
    :param min_bytes: a smaller message is sent as it is.
    """
    text = compressing(websocket_text, level, min_bytes)
    binary = compressing(websocket_binary, level, min_bytes)
    return WebSocketCodecs(
        codec_of("websocket/deflate", "json", text, packing(b"\n", text)),
        codec_of("websocket/deflate", "protobuf", binary, packing(b"", binary)),
    )
