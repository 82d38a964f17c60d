"""A client of the text protocol in memory: a real edge and session, and a line that is only in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from twisted.internet.task import Clock

from spread.node.edge.text import TextEdge, TextFactory
from spread.node.testing.line import ADDRESS
from spread.node.testing.pipe import Pipe

if TYPE_CHECKING:
    from spread.node.testing.stage import Shard, Stage

__all__ = ["FakeTextClient"]


class _TextPipe(Pipe):
    """What a text edge asks of its transport besides."""

    def __init__(self, clock: Clock, factory: TextFactory) -> None:
        super().__init__(lambda call: clock.callLater(0, call), self._end_edge)
        self.edge = TextEdge(factory)
        self._held: list[bytes] = []
        self._is_reading = True
        self._clock = clock
        edge: Any = self.edge  # typed for transports of a reactor
        edge.makeConnection(self)

    def _end_edge(self) -> None:
        edge: Any = self.edge
        edge.connectionLost()

    def type(self, data: bytes) -> None:
        """The peer sends this."""
        self._held.append(data)
        self._hand_over()

    def _hand_over(self) -> None:
        while self._held and self._is_reading and self.is_open:
            self.edge.dataReceived(self._held.pop(0))

    def getPeer(self) -> object:
        """See ``ITransport``, here and below."""
        return SimpleNamespace(host=ADDRESS)

    def pauseProducing(self) -> None:
        self._is_reading = False

    def resumeProducing(self) -> None:
        self._is_reading = True
        self._clock.callLater(0, self._hand_over)

    def loseConnection(self) -> None:
        self.abortConnection()

    def loseWriteConnection(self) -> None:
        # The peer sees the end, and goes.
        self.abortConnection()


class FakeTextClient:
    """Made by ``Stage.text_client``: somebody with ``nc``."""

    def __init__(self, stage: Stage, shard: Shard) -> None:
        self.stage = stage
        self.shard = shard.number
        self.lines: list[str] = []
        """What it was told, oldest first, without line endings; the first is the greeting."""
        self._rest = b""
        self._pipe = _TextPipe(stage.clock, shard.text)

    @property
    def is_closed(self) -> bool:
        """Its connection has ended; the last line may say why."""
        return not self._pipe.is_open

    def say(self, line: str) -> None:
        """Type a line: a message, or a command such as ``/join NAME``.

        :raises ConnectionError: the connection has ended.
        """
        if self.is_closed:
            raise ConnectionError("; ".join(["the connection has ended", *self.lines[-1:]]))
        self._pipe.type(line.encode() + b"\n")
        self.stage.settle()

    def close(self) -> None:
        """Go, without a word."""
        self._pipe.abortConnection()
        self.stage.settle()

    def listen(self) -> bool:
        """Take what came; the stage does it, after each turn. Whether there was anything."""
        *lines, self._rest = (self._rest + self._pipe.take()).split(b"\n")
        self.lines += [line.decode(errors="replace").removesuffix("\r") for line in lines]
        return bool(lines)

    def __repr__(self) -> str:
        return f"<text client on shard {self.shard}>"
