"""Parsers of WebSocket frames: those of ``websockets``, lent to connections only while they are at it.

A parser takes 1.4 kB, and nearly all connections of a shard are between two messages nearly all the time. So
a connection borrows one for what it has just received, and keeps it only if that ends within a frame or a
message, or the connection has come to its end.
"""

from __future__ import annotations

import logging
import zlib
from types import GeneratorType
from typing import Any

from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame
from websockets.protocol import OPEN, State
from websockets.server import ServerProtocol
from websockets.streams import StreamReader

__all__ = ["QUIET", "Inflate", "Parsers"]

QUIET = logging.getLogger("spread.node.edge.websockets")
"""Where ``websockets`` says what it does: nowhere, unless it finds a fault of its own."""
QUIET.setLevel(logging.ERROR)

_BETWEEN_FRAMES = StreamReader.at_eof.__code__


class Inflate(PerMessageDeflate):
    """permessage-deflate without context takeover: between two messages it has no state.

    What it gives may be larger than what a client may send, if a message is one frame.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__(True, True, zlib.MAX_WBITS, zlib.MAX_WBITS)
        self._max_bytes = max_bytes

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        """See ``PerMessageDeflate``."""
        return super().decode(frame, max_size=self._max_bytes if frame.fin and frame.rsv1 else max_size)


class Parsers:
    """The parsers of connections with the same extensions.

    :param max_bytes: of a message; see ``websocket.message_size_limit``.
    :param inflated_max_bytes: of a message that was compressed; 0: there is no compression.
    """

    def __init__(self, max_bytes: int, inflated_max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self._inflated_max_bytes = inflated_max_bytes
        self._spare: ServerProtocol | None = None

    def borrow(self) -> ServerProtocol:
        """A parser that is between two messages."""
        parser, self._spare = self._spare, None
        if parser is None:
            parser = ServerProtocol(state=OPEN, max_size=self.max_bytes, logger=QUIET)
            if self._inflated_max_bytes:
                extensions: list[Extension] = [Inflate(self._inflated_max_bytes)]
                parser.extensions = extensions
        return parser

    def give_back(self, parser: ServerProtocol) -> ServerProtocol | None:
        """``None`` if the parser was taken back; the parser if its connection must keep it.

        It must be between two messages; whether it is between two frames is seen here.
        """
        if parser.state is not State.OPEN or parser.reader.buffer:
            return parser
        # Where its coroutines wait is the only thing that tells whether a frame has begun. If ``websockets``
        # changes there, each connection keeps its parser, and all is well but for the memory.
        waiting: Any = parser.parser
        while isinstance(inner := waiting.gi_yieldfrom, GeneratorType):
            waiting = inner
        if waiting.gi_code is not _BETWEEN_FRAMES:
            return parser
        if self._spare is None:
            self._spare = parser
        return None
