"""The frames that clients send nearly always, without a parser: a whole message each, masked, not compressed.

What is anything else — a fragment, a control frame, a compressed or a large message, text that is not UTF-8,
a length that is written too long, an unmasked or a broken frame — is left, with all that follows, to the
parser (``parsers``), which knows what to make of it. So nothing is decided here but that a frame is well
(RFC 6455, 5.2).

A publication of 150 bytes takes 0.5 µs here, and 3.4 µs in the parser.
"""

from __future__ import annotations

from collections.abc import Callable

from websockets import utils

try:
    from websockets.speedups import apply_mask as _fast_mask
except ImportError:
    _fast_mask = utils.apply_mask

__all__ = ["is_utf8", "whole_messages"]

_TEXT, _BINARY = 0x81, 0x82
_MASKED = 0x80

_unmasked: Callable[[bytes, bytes], bytes] = _fast_mask


def whole_messages(data: bytes, max_bytes: int) -> tuple[list[bytes], int]:
    """The messages at the beginning of what was received between two frames, and where they end.

    :param max_bytes: a larger message is left to the parser.
    """
    messages: list[bytes] = []
    size = len(data)
    at = 0
    while size - at >= 6:
        first, second = data[at], data[at + 1]
        if (first != _TEXT and first != _BINARY) or second < _MASKED:
            break
        length = second - _MASKED
        start = at + 6
        if length > 125:
            if length == 127 or size - at < 8:
                break
            length = data[at + 2] << 8 | data[at + 3]
            if length < 126:
                break
            start = at + 8
        end = start + length
        if end > size or length > max_bytes:
            break
        message = _unmasked(data[start:end], data[start - 4 : start])
        if first == _TEXT and not is_utf8(message):
            break
        messages.append(message)
        at = end
    return messages, at


def is_utf8(data: bytes) -> bool:
    """It is text."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
