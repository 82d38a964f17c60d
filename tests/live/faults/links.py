"""TCP gates that hurt what passes: cut, cut in the middle of a frame, stalled, deafened, delayed.

A gate stands between one client side (*near*) and one server (*far*): a shard and its Valkey, or the clients
and a shard. All gates of a run live on one event loop in a thread of its own; every method of a gate can be
called from any thread, and has taken effect when it returns. Nothing is ever dropped from a connection that
goes on: like a network, a gate delays bytes or ends the connection, and then everybody knows.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

__all__ = ["Connection", "Gate", "Gates", "all_of_them", "subscribers"]

BUFFER_BYTES = 256 * 1024
"""What a gate takes from one side before the other has taken it."""

ABORT = struct.pack("ii", 1, 0)

T = TypeVar("T")


def all_of_them(connection: Connection) -> bool:
    """Every connection of a gate."""
    return True


def subscribers(connection: Connection) -> bool:
    """Those over which publications come from Redis."""
    return connection.is_subscriber


class _Side(asyncio.Protocol):
    """One end of a connection; what it reads goes to ``peer``."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        self.name = name
        self.transport: asyncio.Transport | None = None
        self.peer: _Side | None = None
        self.is_stalled = False
        self.is_deaf = False  # for good: this direction is never forwarded again
        self.is_full = False
        self.is_torn = False
        self.waiting: deque[tuple[float, bytes]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(BUFFER_BYTES)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection.made(self)
        self.look()

    def look(self) -> None:
        """Read, or do not."""
        if self.transport is None or self.transport.is_closing():
            return
        peer_is_there = self.peer is not None and self.peer.transport is not None
        if self.is_stalled or self.is_deaf or self.is_full or not peer_is_there:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.is_full = True
            self.peer.look()

    def resume_writing(self) -> None:
        if self.peer is not None:
            self.peer.is_full = False
            self.peer.look()

    def data_received(self, data: bytes) -> None:
        if self.name == "near" and b"SUBSCRIBE" in data:
            self.connection.is_subscriber = True
        if self.is_torn and len(data) > 1:
            self._forward(data[: len(data) // 2])
            loop = self.connection.gate.loop
            loop.call_later(0.005, self.connection.cut)  # so that the first half leaves before the reset
            self.is_stalled = True
            self.look()
            return
        delay = self.connection.gate.delay_seconds
        if delay or self.waiting:
            loop = self.connection.gate.loop
            due = loop.time() + delay
            if self.waiting:
                due = max(due, self.waiting[-1][0])
            self.waiting.append((due, data))
            loop.call_at(due, self._due)
        else:
            self._forward(data)

    def _due(self) -> None:
        if self.waiting:
            self._forward(self.waiting.popleft()[1])

    def _forward(self, data: bytes) -> None:
        peer = self.peer
        if peer is not None and peer.transport is not None and not peer.transport.is_closing():
            peer.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connection.lost(self)


class Connection:
    """One connection through a gate."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.is_subscriber = False
        self.near = _Side(self, "near")
        self.far = _Side(self, "far")
        self.near.peer, self.far.peer = self.far, self.near
        self._connecting: asyncio.Task[None] | None = None

    def made(self, side: _Side) -> None:
        """One end is there."""
        self.near.is_stalled, self.far.is_stalled = self.gate.stalls
        if side is self.near:
            self.gate.connections.append(self)
            self._connecting = self.gate.loop.create_task(self._connect())
        self.near.look()
        self.far.look()

    async def _connect(self) -> None:
        try:
            await self.gate.loop.create_connection(lambda: self.far, "127.0.0.1", self.gate.target)
        except OSError:
            self.cut()

    def lost(self, side: _Side) -> None:
        """One end is gone; so is the other, when it has sent what it had."""
        other = side.peer
        if other is not None and other.transport is not None:
            other.transport.close()
        if self in self.gate.connections:
            self.gate.connections.remove(self)
        if side is self.near and self._connecting is not None:
            self._connecting.cancel()

    def cut(self) -> None:
        """Reset both ends."""
        for side in (self.near, self.far):
            transport = side.transport
            if transport is None or transport.is_closing():
                continue
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            transport.abort()

    def stall(self, *, up: bool, down: bool) -> None:
        """What the near side says (up), what the far side says (down) stays where it is, or goes on."""
        self.near.is_stalled, self.far.is_stalled = up, down
        self.near.look()
        self.far.look()

    def deafen(self) -> None:
        """The near side never hears anything any more, and is not told."""
        self.far.is_deaf = True
        self.far.look()

    def tear(self, *, up: bool) -> None:
        """The next bytes in that direction are forwarded half, and then both ends are reset."""
        (self.near if up else self.far).is_torn = True


class Gate:
    """Listens on a free loopback port, and passes everything on to ``target``.

    :param target: the port of the server on loopback; may be changed, for connections to come.
    """

    def __init__(self, gates: Gates, target: int) -> None:
        self._gates = gates
        self.loop = gates.loop
        self.target = target
        self.connections: list[Connection] = []
        self.stalls = (False, False)
        self.delay_seconds = 0.0
        self.port = 0
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """On the loop."""
        self._server = await self.loop.create_server(lambda: Connection(self).near, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def _each(
        self, act: Callable[[Connection], object], which: Callable[[Connection], bool] = all_of_them
    ) -> int:
        def do() -> int:
            chosen = [each for each in self.connections if which(each)]
            for connection in chosen:
                act(connection)
            return len(chosen)

        return self._gates.call(do)

    def count(self, which: Callable[[Connection], bool] = all_of_them) -> int:
        """How many connections there are."""
        return self._each(lambda connection: None, which)

    def cut(self, which: Callable[[Connection], bool] = all_of_them) -> int:
        """Reset them; gives how many."""
        return self._each(Connection.cut, which)

    def tear(self, *, up: bool, which: Callable[[Connection], bool] = all_of_them) -> int:
        """Cut each of them in the middle of the next bytes of that direction."""
        return self._each(lambda connection: connection.tear(up=up), which)

    def deafen(self, which: Callable[[Connection], bool] = subscribers) -> int:
        """The connections that there are bring nothing any more; new ones are well."""
        return self._each(Connection.deafen, which)

    def stall(self, *, up: bool = True, down: bool = True) -> int:
        """A black hole: connections are accepted and stay open, nothing passes until ``heal``."""
        self.stalls = (up, down)
        return self._each(lambda connection: connection.stall(up=up, down=down))

    def delay(self, seconds: float) -> None:
        """All takes this much longer, each way, until ``heal``."""
        self.delay_seconds = seconds

    def heal(self) -> int:
        """No stall and no delay any more; what was held goes on."""
        self.stalls = (False, False)
        self.delay_seconds = 0.0
        return self._each(lambda connection: connection.stall(up=False, down=False))

    def close(self) -> None:
        """Stop listening, and cut all."""
        self._gates.call(lambda: self._server.close() if self._server is not None else None)
        self.cut()


class Gates:
    """The loop, in its thread; a context manager that closes all gates in the end."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._gates: list[Gate] = []
        self._thread = threading.Thread(target=self.loop.run_forever, name="gates", daemon=True)
        self._thread.start()

    def open(self, target: int) -> Gate:
        """A new gate before a port."""
        gate = Gate(self, target)
        asyncio.run_coroutine_threadsafe(gate.listen(), self.loop).result(10)
        self._gates.append(gate)
        return gate

    def call(self, function: Callable[[], T]) -> T:
        """Run it on the loop, and wait for it."""

        async def do() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(do(), self.loop).result(10)

    def close(self) -> None:
        """Idempotent."""
        if not self._thread.is_alive():
            return
        for gate in self._gates:
            gate.close()

        async def finish() -> None:
            rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            await asyncio.sleep(0)  # for connections to be lost

        asyncio.run_coroutine_threadsafe(finish(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
