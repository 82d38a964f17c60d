"""The text protocol: bytes to messages and back. Sans-IO: no socket, no clock.

    client → server
        MESSAGE \\n          to all others of the channel, byte for byte, line ending included
        MESSAGE             the same, when nothing has followed for a moment (who feeds us keeps the time)
        /join NAME \\n       move to another channel; no answer but an error
        close \\n            end the connection
    server → client
        greeting \\n, then the messages of others; `error: …` \\n for what went wrong

A line ends with LF; a CR before it belongs to the message and is ignored in commands. Whatever is not a
command is a message, the empty line too.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import msgspec

from spread.hub.api import Format

__all__ = ["Close", "Framer", "Join", "Say", "channel_name", "error_line", "line_of", "parse"]

_JOIN = b"/join"

MAX_CHANNEL_BYTES = 255


@dataclass(frozen=True, slots=True)
class Say:
    """A message for the channel, exactly as it came."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Join:
    """Move to another channel; the name is not checked yet."""

    name: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """End the connection."""


def parse(message: bytes) -> Say | Join | Close:
    """What a framed message asks for."""
    first = message[:1]
    if first == b"c" or first == b"/":
        line = message.rstrip(b"\r\n")
        if line == b"close":
            return Close()
        if line.startswith(_JOIN) and line[len(_JOIN) : len(_JOIN) + 1] in (b"", b" "):
            return Join(line[len(_JOIN) :].strip(b" "))
    return Say(message)


def channel_name(raw: bytes) -> str | None:
    """A channel name as a client typed it; ``None`` if it is none."""
    if not 0 < len(raw) <= MAX_CHANNEL_BYTES:
        return None
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        return None
    return name if name.isprintable() and " " not in name else None


class Framer:
    """Cuts a stream of bytes into messages.

    Keeps at most ``max_bytes`` and one read. After ``is_overlong`` is set nothing more comes out.
    """

    __slots__ = ("_max_bytes", "_partial", "is_overlong")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._partial: bytearray | None = None  # most clients have none most of the time
        self.is_overlong = False
        """A message was larger than allowed; the ones before it have been given."""

    @property
    def has_partial(self) -> bool:
        """Something has arrived that no line ending has followed yet."""
        return self._partial is not None

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that ``data`` completes, each with its line ending."""
        if self.is_overlong:
            return []
        *lines, rest = data.split(b"\n")
        messages = [line + b"\n" for line in lines]
        if self._partial is not None:
            if not messages:
                self._partial += rest
                if len(self._partial) > self._max_bytes:
                    self.is_overlong = True
                    self._partial = None
                return messages
            messages[0] = bytes(self._partial) + messages[0]
            self._partial = None
        limit = self._max_bytes + 1
        for index, message in enumerate(messages):
            if len(message) > limit:
                self.is_overlong = True
                return messages[:index]
        self.is_overlong = len(rest) > self._max_bytes
        if rest and not self.is_overlong:
            self._partial = bytearray(rest)
        return messages

    def flush(self) -> bytes:
        """What has arrived without a line ending, as a message; empty if there is nothing."""
        partial, self._partial = self._partial, None
        return bytes(partial) if partial is not None else b""


def error_line(text: str) -> bytes:
    """An error, as a client of the text protocol sees it."""
    return f"error: {text}\n".encode()


def line_of(format: int, data: bytes) -> bytes:
    """A publication of any format, as text clients get it.

    Text goes out as it came in. A JSON string becomes the text it stands for, on one line, so that nobody can
    make up lines of others: its line breaks become spaces. Any other JSON value and bytes stay what they are,
    with a line ending.
    """
    if format == Format.TEXT:
        return data
    if format == Format.JSON and data[:1] == b'"':
        # What is no JSON string after all, no UTF-8, or has half a character, stays as it is.
        with suppress(msgspec.DecodeError, UnicodeError):
            return " ".join(msgspec.json.decode(data, type=str).splitlines()).encode() + b"\n"
    return data if data.endswith(b"\n") else data + b"\n"
