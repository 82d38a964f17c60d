"""Encoded messages as bytes for a socket: what one transport or another puts around them. Sans-IO.

Every function is pure, so a message is framed once for all clients of a transport. Compressed WebSocket
frames are possible for the same reason: no frame refers to an earlier one (RFC 7692, 7.1.1:
``server_no_context_takeover``), so all clients that agreed on that can get the same bytes.

A few messages for one client are packed into as few frames as may be: ``packed``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from struct import Struct

from spread.node.codes import REASON_MAX_BYTES

__all__ = [
    "FRAME_MAX_BYTES",
    "FRAME_MAX_MESSAGES",
    "LAST_CHUNK",
    "chunk",
    "compressing",
    "cut_reason",
    "line",
    "pack_lines",
    "packed",
    "packing",
    "sse",
    "websocket_binary",
    "websocket_close",
    "websocket_ping",
    "websocket_text",
]

LAST_CHUNK = b"0\r\n\r\n"
"""The end of an answer in chunks."""

FRAME_MAX_MESSAGES = 16
"""Messages in one frame, as the reference server has it."""

FRAME_MAX_BYTES = 65536
"""Bytes in one frame that holds more than one message."""

_TEXT, _BINARY, _CLOSE, _PING = 0x81, 0x82, 0x88, 0x89
_COMPRESSED = 0x40
"""RSV1 (RFC 7692, 6)."""

_MEDIUM = Struct("!BBH").pack
_LARGE = Struct("!BBQ").pack
_CODE = Struct("!H").pack


def line(message: bytes) -> bytes:
    """A message of JSON, which has no line break in it, as a line."""
    return message + b"\n"


def sse(message: bytes) -> bytes:
    """A message of JSON, which has no line break in it, as a server-sent event (HTML standard, 9.2.6)."""
    return b"data: %b\n\n" % message


def chunk(data: bytes) -> bytes:
    """Some bytes, at least one, as a part of an answer over HTTP/1.1 of unknown length (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


# -- WebSocket (RFC 6455, 5.2); frames of a server are not masked ------------------------------------------


def websocket_text(data: bytes) -> bytes:
    """A text frame; ``data`` is UTF-8."""
    return _websocket(_TEXT, data)


def websocket_binary(data: bytes) -> bytes:
    """A binary frame."""
    return _websocket(_BINARY, data)


def websocket_ping(data: bytes = b"") -> bytes:
    """A ping frame, of 125 bytes at most."""
    return _websocket(_PING, data)


def websocket_close(code: int, reason: str) -> bytes:
    """A close frame. Of a reason that is too long, the beginning is sent."""
    return _websocket(_CLOSE, _CODE(code) + cut_reason(reason))


def cut_reason(reason: str) -> bytes:
    """As many whole characters of a reason as a close frame can hold."""
    data = reason.encode(errors="replace")
    if len(data) <= REASON_MAX_BYTES:
        return data
    return data[:REASON_MAX_BYTES].decode(errors="ignore").encode()


def _websocket(first: int, data: bytes) -> bytes:
    size = len(data)
    if size < 126:
        return b"%c%c%b" % (first, size, data)
    if size < 65536:
        return _MEDIUM(first, 126, size) + data
    return _LARGE(first, 127, size) + data


def compressing(frame: Callable[[bytes], bytes], level: int, min_bytes: int) -> Callable[[bytes], bytes]:
    """The compressed form of ``websocket_text`` or ``websocket_binary`` (RFC 7692, 7.2.1).

    :param level: of zlib, 1 to 9.
    :param min_bytes: a smaller message is not compressed.
    """
    first = (_TEXT if frame is websocket_text else _BINARY) | _COMPRESSED

    def compressed(data: bytes) -> bytes:
        if len(data) < min_bytes:
            return frame(data)
        compressor = zlib.compressobj(level, wbits=-zlib.MAX_WBITS)
        small = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
        return _websocket(first, small[:-4])  # without the empty block that a flush ends with

    return compressed


# -- several messages at once ------------------------------------------------------------------------------


def packed(messages: Sequence[bytes], separator: bytes, frame: Callable[[bytes], bytes]) -> bytes:
    """Messages, in order, in as few frames as the two limits above allow."""
    if len(messages) == 1:
        return frame(messages[0])
    frames = []
    start = size = 0
    for index, message in enumerate(messages):
        size += len(message)
        if index > start and (index - start == FRAME_MAX_MESSAGES or size > FRAME_MAX_BYTES):
            frames.append(frame(separator.join(messages[start:index])))
            start, size = index, len(message)
        size += len(separator)
    if messages:
        frames.append(frame(separator.join(messages[start:])))
    return b"".join(frames)


def packing(separator: bytes, frame: Callable[[bytes], bytes]) -> Callable[[Sequence[bytes]], bytes]:
    """``packed`` as a function of the messages alone."""
    return lambda messages: packed(messages, separator, frame)


def pack_lines(messages: Sequence[bytes]) -> bytes:
    """Messages of JSON as lines."""
    return b"".join(map(line, messages))
