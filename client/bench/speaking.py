"""Clients of the generator in Python: one class for each protocol, over a socket that does not block."""

from __future__ import annotations

import errno
import os
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator

from websockets.frames import Frame, Opcode

from spread.client.formats import FORMATS, Format
from spread.node.wire.messages import (
    Command,
    ConnectRequest,
    ConnectResult,
    Error,
    ProtocolError,
    Publication,
    PublishRequest,
    Push,
    Reply,
    SubscribeRequest,
    SubscribeResult,
    Unsubscribe,
)

__all__ = ["Client", "Lost", "Spoken", "client_of"]

Spoken = tuple[bytes, int]
"""A payload, and the bytes of the frame that brought it; 0 but for the first of a frame."""

_READ_BYTES = 1 << 18
_SUBSCRIBES_AT_ONCE = 64

_UPGRADE = (
    b"GET %b HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: c3ByZWFkLWJlbmNoLWtleQ==\r\n%b\r\n"
)


class Lost(Exception):
    """The client cannot go on; ``str`` says why."""


class Client(ABC):
    """One connection: made, brought to where it hears its rooms, spoken through."""

    def __init__(self, channels: list[str], address: tuple[str, int], source: str) -> None:
        """:param channels: what it subscribes to; none for one that only publishes."""
        self.is_ready = False
        self.began = 0
        self.waiting = b""
        """What could not be sent yet."""
        self._channels = channels
        self._came = b""
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source:
            self.sock.bind((source, 0))
        self._is_connected = False
        self._address = address

    def connect(self) -> None:
        error = self.sock.connect_ex(self._address)
        if error not in (0, errno.EINPROGRESS):
            raise Lost(f"not let in: {os.strerror(error)}")

    def writable(self) -> None:
        """The socket can take something."""
        if not self._is_connected:
            error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise Lost(f"not let in: {os.strerror(error)}")
            self._is_connected = True
            self._hello()
        if self.waiting:
            data, self.waiting = self.waiting, b""
            self.say(data)

    def say(self, data: bytes) -> None:
        if self.waiting:
            self.waiting += data
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise Lost(f"lost: {error.strerror}") from None
        self.waiting = data[sent:]

    def readable(self) -> list[Spoken]:
        """Read once; the payloads that came."""
        try:
            data = self.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise Lost(f"lost: {error.strerror}") from None
        if not data:
            raise Lost("lost: the server has closed the connection")
        self._came += data
        return list(self._parsed())

    def close(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    @abstractmethod
    def publish(self, channel: str, payload: bytes) -> None: ...

    @abstractmethod
    def _hello(self) -> None:
        """It is connected."""

    @abstractmethod
    def _parsed(self) -> Iterator[Spoken]:
        """What has come, as far as it is whole."""


class TextClient(Client):
    """The text protocol. Joining is not answered: the probes tell whether it hears."""

    def _hello(self) -> None:
        pass

    def _parsed(self) -> Iterator[Spoken]:
        *lines, self._came = self._came.split(b"\n")
        for line in lines:
            if line.startswith(b"~"):
                yield line, len(line) + 1
            elif line.startswith(b"error:") or self.is_ready:
                raise Lost(f"told {line.decode(errors='replace')}")
            else:
                if self._channels and self._channels[0]:
                    self.say(f"/join {self._channels[0]}\n".encode())
                self.is_ready = True

    def publish(self, channel: str, payload: bytes) -> None:
        self.say(payload + b"\n")


class SdkClient(Client):
    """The Centrifuge protocol over a WebSocket."""

    def __init__(
        self,
        channels: list[str],
        address: tuple[str, int],
        source: str,
        *,
        format: Format,
        path: str,
        token: str,
    ) -> None:
        super().__init__(channels, address, source)
        self._format = format
        self._path = path
        self._token = token
        self._is_open = False
        self._last_id = 0
        self._asked = self._joined = 0

    def _hello(self) -> None:
        wanted = self._format.subprotocol
        header = f"Sec-WebSocket-Protocol: {wanted}\r\n" if wanted else ""
        self.say(_UPGRADE % (self._path.encode(), header.encode()))

    def _command(self, request: ConnectRequest | SubscribeRequest | PublishRequest) -> None:
        self._last_id += 1
        self._frame(self._format.encode(Command(self._last_id, request)))

    def _frame(self, data: bytes, opcode: Opcode | None = None) -> None:
        kind = opcode or (Opcode.BINARY if self._format.is_binary else Opcode.TEXT)
        self.say(Frame(kind, data).serialize(mask=True))

    def publish(self, channel: str, payload: bytes) -> None:
        data = payload if self._format.is_binary else b'"%b"' % payload
        self._command(PublishRequest(channel, data))

    def _parsed(self) -> Iterator[Spoken]:
        if not self._is_open:
            head, is_whole, rest = self._came.partition(b"\r\n\r\n")
            if not is_whole:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                raise Lost(f"no WebSocket: {head[:80].decode(errors='replace')}")
            self._is_open = True
            self._came = rest
            self._command(ConnectRequest(token=self._token))
        came, used = self._came, 0
        while (frame := _frame_at(came, used)) is not None:
            opcode, begin, end = frame
            data, size, used = came[begin:end], end - used, end
            if opcode == Opcode.PING:
                self._frame(data, Opcode.PONG)
            elif opcode == Opcode.CLOSE:
                raise Lost(f"closed by the server: {data[2:].decode(errors='replace')}")
            elif opcode in (Opcode.TEXT, Opcode.BINARY):
                for payload in self._payloads(data):
                    yield payload, size
                    size = 0
        self._came = came[used:]

    def _payloads(self, data: bytes) -> Iterator[bytes]:
        try:
            replies = self._format.decode(data)
        except ProtocolError as error:
            raise Lost(f"told what is not of the protocol: {error}") from None
        for reply in replies:
            payload = self._replied(reply)
            if payload is not None:
                yield payload if self._format.is_binary else payload[1:-1]

    def _replied(self, reply: Reply) -> bytes | None:
        body = reply.body
        if isinstance(body, Push):
            if isinstance(body.event, Publication):
                return bytes(body.event.data)
            if isinstance(body.event, Unsubscribe):
                raise Lost("unsubscribed by the server")
        elif isinstance(body, Error):
            raise Lost(f"told: {body.message}")
        elif isinstance(body, ConnectResult):
            self._subscribe()
        elif isinstance(body, SubscribeResult):
            self._joined += 1
            self._subscribe()
        elif body is None:
            self._frame(self._format.pong)
        return None

    def _subscribe(self) -> None:
        while self._asked < min(len(self._channels), self._joined + _SUBSCRIBES_AT_ONCE):
            self._command(SubscribeRequest(channel=self._channels[self._asked]))
            self._asked += 1
        self.is_ready = self._joined == len(self._channels)


def _frame_at(data: bytes, at: int) -> tuple[int, int, int] | None:
    """A frame of a server, which is not masked: opcode, where its data begin and end. ``None``: not whole."""
    if len(data) < at + 2:
        return None
    size, begin = data[at + 1] & 127, at + 2
    if size > 125:
        wide = 2 if size == 126 else 8
        size, begin = int.from_bytes(data[begin : begin + wide], "big"), begin + wide
    return None if len(data) < begin + size else (data[at] & 15, begin, begin + size)


def client_of(
    format: str, channels: list[str], address: tuple[str, int], source: str, path: str, token: str
) -> Client:
    """A client that speaks text, json or protobuf."""
    if format == "text":
        return TextClient(channels, address, source)
    known = FORMATS["json"] if format == "json" else FORMATS["protobuf"]
    return SdkClient(channels, address, source, format=known, path=path, token=token)
