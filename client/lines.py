"""Typed lines: cut out of a stream of bytes, made into messages, kept while they cannot be sent.

Everything in here is bounded, and nothing does I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

__all__ = ["MESSAGE_MAX_BYTES", "KeptLines", "LineSplitter", "channel_of", "is_close", "message_of"]

MESSAGE_MAX_BYTES = 65536
"""With name and newline. A server closes the connection of a client that sends more at once."""
KEPT_MAX_LINES = 1000
KEPT_MAX_BYTES = 1 << 20


def is_close(line: bytes) -> bool:
    """The line is the command that ends the connection."""
    return line.removesuffix(b"\r") == b"close"


def channel_of(line: bytes) -> bytes | None:
    """The channel that a ``/join CHANNEL`` names, ``b""`` if it names none; ``None``: no such command."""
    if line.startswith(b"/join ") or line.removesuffix(b"\r") == b"/join":
        return line.removeprefix(b"/join").strip()
    return None


def message_of(name: str, line: bytes) -> bytes:
    """What is sent for a line: commands as they are, all else with the name of who typed it."""
    if channel_of(line) is not None:
        return line + b"\n"
    return name.encode() + b": " + line + b"\n"


class LineSplitter:
    """Typed bytes in, lines out. Holds at most ``max_bytes`` of an unfinished line."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._partial = bytearray()
        self._is_too_long = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """The lines these bytes complete, without newline; ``None`` for one above ``max_bytes``."""
        *complete, rest = data.split(b"\n")
        lines: list[bytes | None] = []
        for piece in complete:
            self._hold(piece)
            lines.append(self._take())
        self._hold(rest)
        return lines

    def end(self) -> list[bytes | None]:
        """The last line, if it had no newline."""
        return [self._take()] if self._partial or self._is_too_long else []

    def _hold(self, piece: bytes) -> None:
        if len(self._partial) + len(piece) > self._max_bytes:
            self._is_too_long = True
            self._partial.clear()
        if not self._is_too_long:
            self._partial += piece

    def _take(self) -> bytes | None:
        line = None if self._is_too_long else bytes(self._partial)
        self._partial.clear()
        self._is_too_long = False
        return line


class KeptLines:
    """Typed lines that wait for a connection that takes them."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._lines)

    def append(self, line: bytes) -> None:
        """Keep one more."""
        self._lines.append(line)
        self._bytes += len(line)

    def popleft(self) -> bytes:
        """:raises IndexError: none is kept."""
        line = self._lines.popleft()
        self._bytes -= len(line)
        return line

    def give_up(self) -> Iterator[bytes]:
        """Take out the oldest lines until the rest is within bounds."""
        while len(self._lines) > KEPT_MAX_LINES or self._bytes > KEPT_MAX_BYTES:
            yield self.popleft()
