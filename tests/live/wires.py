"""Many cheap WebSocket clients in one thread, for load: JSON, no compression, one selector.

A frame is masked with zeros, which is allowed and leaves it as it is; what the server sends is taken apart
here. Pings are answered as they come. What the kernel does not take waits in ``Wire.unsent_bytes``.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import msgspec

__all__ = ["Wire", "Wires"]

HANDSHAKE = (
    "GET /connection/websocket HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode


class Wire:
    """One client.

    :param heard: called with each reply or push that is no ping.
    """

    def __init__(self, wires: Wires, port: int, heard: Callable[[Any], None]) -> None:
        self._wires = wires
        self.heard = heard
        self.port = port
        self.pings = 0
        self.pinged_at = 0.0
        """When the last ping came; 0: none yet."""
        self.longest_ping = 0.0
        """The longest time between two pings."""
        self.closed: tuple[int, str] | None = None
        """How it ended: the code and reason of the Close frame; 0 without one."""
        self.is_reading = True
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.sendall(HANDSHAKE.encode())
        self._in = bytearray()
        self._out = bytearray()
        while b"\r\n\r\n" not in self._in:
            data = self._sock.recv(4096)
            assert data, "no answer to the handshake"
            self._in += data
        assert self._in.startswith(b"HTTP/1.1 101 "), bytes(self._in)
        del self._in[: self._in.index(b"\r\n\r\n") + 4]
        self._sock.setblocking(False)
        wires.selector.register(self._sock, selectors.EVENT_READ, self)

    @property
    def unsent_bytes(self) -> int:
        """What the kernel has not taken."""
        return len(self._out)

    def say(self, *commands: Any) -> None:
        """Send commands in one frame."""
        self._frame(0x81, b"\n".join(map(encode, commands)))

    def _frame(self, first: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = bytes((first, 0x80 | size))
        elif size < 65536:
            head = struct.pack("!BBH", first, 0xFE, size)
        else:
            head = struct.pack("!BBQ", first, 0xFF, size)
        was_empty = not self._out
        self._out += head + bytes(4) + payload
        if was_empty and self.closed is None:
            self.write()
            if self._out:
                self._watch()

    def write(self) -> None:
        """Give the kernel what it takes."""
        try:
            while self._out:
                sent = self._sock.send(memoryview(self._out)[:262144])
                del self._out[:sent]
        except BlockingIOError:
            return
        except OSError as error:
            self._end(0, str(error))

    def read(self) -> None:
        """Take what is there."""
        try:
            data = self._sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(0, str(error))
            return
        if not data:
            self._end(0, "closed")
            return
        self._in += data
        self.take()

    def take(self) -> None:
        """Take apart what has come."""
        buffer, at = self._in, 0
        while len(buffer) - at >= 2 and self.closed is None:
            size, body = buffer[at + 1], at + 2
            if size == 126:
                body += 2
                size = int.from_bytes(buffer[at + 2 : body])
            elif size == 127:
                body += 8
                size = int.from_bytes(buffer[at + 2 : body])
            if len(buffer) < body + size:
                break
            first, payload = buffer[at], bytes(buffer[body : body + size])
            at = body + size
            if first == 0x88:
                self._end(int.from_bytes(payload[:2]), payload[2:].decode())
            elif first == 0x89:
                self._frame(0x8A, payload)
            else:
                assert first == 0x81, f"a frame that begins with {first:#x}"
                for line in payload.split(b"\n"):
                    self._line(line)
        del buffer[:at]

    def _line(self, line: bytes) -> None:
        if line == b"{}":
            now = time.monotonic()
            if self.pinged_at:
                self.longest_ping = max(self.longest_ping, now - self.pinged_at)
            self.pinged_at = now
            self.pings += 1
            self.say({})
        elif line:
            self.heard(decode(line))

    def pause(self) -> None:
        """Read no more."""
        self.is_reading = False
        self._watch()

    def resume(self) -> None:
        """Read again."""
        self.is_reading = True
        self._watch()

    def _watch(self) -> None:
        events = selectors.EVENT_READ if self.is_reading else 0
        events |= selectors.EVENT_WRITE if self._out else 0
        selector = self._wires.selector
        if self._sock in self._wires.idle:
            if events:
                self._wires.idle.discard(self._sock)
                selector.register(self._sock, events, self)
        elif events:
            selector.modify(self._sock, events, self)
        else:
            selector.unregister(self._sock)
            self._wires.idle.add(self._sock)

    def sent_all(self) -> None:
        """The kernel has taken everything."""
        self._watch()

    def _end(self, code: int, reason: str) -> None:
        if self.closed is None:
            self.closed = (code, reason)
            if self._sock in self._wires.idle:
                self._wires.idle.discard(self._sock)
            else:
                self._wires.selector.unregister(self._sock)
            self._sock.close()

    def close(self) -> None:
        """Be gone. Idempotent."""
        self._end(0, "by itself")


class Wires:
    """All clients of one thread."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.idle: set[socket.socket] = set()
        self.all: list[Wire] = []

    def open(self, port: int, heard: Callable[[Any], None]) -> Wire:
        """A new client, which has not connected in the sense of the protocol."""
        wire = Wire(self, port, heard)
        self.all.append(wire)
        return wire

    def turn(self, seconds: float) -> None:
        """Read and write what can be, after waiting so long at most."""
        for key, events in self.selector.select(seconds):
            wire: Wire = key.data
            if events & selectors.EVENT_WRITE:
                wire.write()
                if not wire.unsent_bytes and wire.closed is None:
                    wire.sent_all()
            if events & selectors.EVENT_READ and wire.closed is None:
                wire.read()

    def until(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Go on until the condition holds.

        :raises AssertionError: it does not, in time.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
            self.turn(0.02)

    def close(self) -> None:
        """All are gone."""
        for wire in self.all:
            wire.close()
        self.selector.close()
