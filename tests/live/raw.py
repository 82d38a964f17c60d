"""Clients without an SDK: they say exactly what they are told, and show exactly what came back.

Blocking, one connection each, over the ``websockets`` library; JSON by the json module, Protobuf by the
classes that protoc made of the schema. Pings are answered while something is waited for, unless that is
turned off.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from spread.node.wire import centrifuge_pb2

pb: Any = centrifuge_pb2
"""The classes are made at run time, so that no type checker knows them."""

Object = dict[str, Any]

SECONDS = 10.0


class Gone(Exception):
    """The server has closed the connection, with this code and reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


@contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except ConnectionClosed as closed:
        assert closed.rcvd is not None, "the connection ended without a Close frame"
        raise Gone(closed.rcvd.code, closed.rcvd.reason) from None


class Socket:
    """A WebSocket.

    :param url: up to the path, which is ``/connection/websocket``.
    :param query: with its question mark.
    """

    def __init__(self, url: str, query: str = "", **options: Any) -> None:
        options = {"compression": None, "ping_interval": None, "max_size": None} | options
        self._stack = ExitStack()
        self.ws: ClientConnection = self._stack.enter_context(
            connect(f"{url}/connection/websocket{query}", proxy=None, close_timeout=5, **options)
        )
        self.frames: list[str | bytes] = []
        """All that came."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave, as a page that is closed. Idempotent."""
        self._stack.close()

    def cut(self) -> None:
        """Be gone without a word."""
        self.ws.socket.shutdown(socket.SHUT_RDWR)

    def frame(self, seconds: float = SECONDS) -> str | bytes:
        """The next frame.

        :raises Gone: there is none.
        """
        with _telling():
            frame = self.ws.recv(timeout=seconds)
        self.frames.append(frame)
        return frame

    def send(self, frame: str | bytes) -> None:
        """Send a frame.

        :raises Gone: the server has closed the connection.
        """
        with _telling():
            self.ws.send(frame)

    def ended(self, seconds: float = SECONDS) -> tuple[int, str]:
        """Code and reason of the end; what comes before it is only in ``frames``."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.frame(max(0.0, deadline - time.monotonic()))
            except Gone as gone:
                return gone.code, gone.reason


class JsonClient(Socket):
    """A client that speaks JSON."""

    def __init__(self, url: str, query: str = "", *, answers_pings: bool = True, **options: Any) -> None:
        super().__init__(url, query, **options)
        self.answers_pings = answers_pings
        self.client = ""
        """Its id, when it is connected."""
        self._come: deque[Object] = deque()
        self._kept: list[Object] = []
        self._last = 0

    def say(self, *commands: Object | str) -> None:
        """Send commands in one frame; text goes as it is."""
        self.send("\n".join(each if isinstance(each, str) else json.dumps(each) for each in commands))

    def take(self, seconds: float = SECONDS) -> Object:
        """The next reply or push, whatever it is; pings are answered and are none."""
        deadline = time.monotonic() + seconds
        while True:
            while self._come:
                found = self._come.popleft()
                if found or not self.answers_pings:
                    return found
                self.say("{}")
            frame = self.frame(max(0.0, deadline - time.monotonic()))
            assert isinstance(frame, str), frame
            self._come.extend(json.loads(line) for line in frame.strip().split("\n"))

    def wait(self, wanted: Callable[[Object], object], seconds: float = SECONDS) -> Object:
        """The first one like this, of what was passed over before and what comes; the others are kept."""
        for index, kept in enumerate(self._kept):
            if wanted(kept):
                return self._kept.pop(index)
        deadline = time.monotonic() + seconds
        while True:
            found = self.take(max(0.0, deadline - time.monotonic()))
            if wanted(found):
                return found
            self._kept.append(found)

    def reply(self, id: int, seconds: float = SECONDS) -> Object:
        """The reply to a command, without its id."""
        found = self.wait(lambda each: each.get("id") == id, seconds)
        return {name: value for name, value in found.items() if name != "id"}

    def ask(self, method: str, /, **fields: Any) -> Object:
        """Send one command, and wait for its reply."""
        self._last += 1
        number = 1000 + self._last
        self.say({"id": number, method: fields})
        return self.reply(number)

    def push(self, kind: str, channel: str | None = None, seconds: float = SECONDS) -> Any:
        """The body of the first push of a kind, of one channel or any."""

        def wanted(each: Object) -> bool:
            push = each.get("push", {})
            return kind in push and channel in (None, push.get("channel"))

        return self.wait(wanted, seconds)["push"][kind]

    def heard(self, channel: str, count: int) -> list[Any]:
        """The data of the next so many publications."""
        return [self.push("pub", channel)["data"] for _ in range(count)]

    def silent(self) -> list[Object]:
        """What has come and nobody waited for, once a command that was sent now is answered."""
        self.ask("rpc", method="nothing")
        kept, self._kept = self._kept, []
        return kept

    def connected(self, **fields: Any) -> Object:
        """Connect; the result."""
        self._last += 1
        number = 1000 + self._last
        self.say({"id": number, "connect": fields})
        result: Object = self.reply(number)["connect"]
        self.client = result["client"]
        return result


def delimited(*messages: Any) -> bytes:
    """Protobuf messages, each behind its length."""
    return b"".join(varint(len(data)) + data for data in (each.SerializeToString() for each in messages))


def varint(value: int) -> bytes:
    """An unsigned number, the lowest seven bits first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def replies_in(frame: bytes) -> Iterator[Any]:
    """The replies of a binary frame."""
    at = 0
    while at < len(frame):
        size = shift = 0
        while True:
            byte = frame[at]
            at += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        yield pb.Reply.FromString(frame[at : at + size])
        at += size


class ProtobufClient(Socket):
    """A client that speaks Protobuf."""

    def __init__(self, url: str, query: str = "", **options: Any) -> None:
        super().__init__(url, query, **options)
        self._come: deque[Any] = deque()
        self._kept: list[Any] = []
        self._last = 0

    def say(self, *commands: Any) -> None:
        """Send commands in one frame."""
        self.send(delimited(*commands))

    def wait(self, wanted: Callable[[Any], object], seconds: float = SECONDS) -> Any:
        """See ``JsonClient.wait``."""
        for index, kept in enumerate(self._kept):
            if wanted(kept):
                return self._kept.pop(index)
        deadline = time.monotonic() + seconds
        while True:
            while self._come:
                found = self._come.popleft()
                if found == pb.Reply():
                    self.say(pb.Command())
                elif wanted(found):
                    return found
                else:
                    self._kept.append(found)
            frame = self.frame(max(0.0, deadline - time.monotonic()))
            assert isinstance(frame, bytes), frame
            self._come.extend(replies_in(frame))

    def ask(self, **request: Any) -> Any:
        """Send one command, and wait for its reply: ``ask(publish=pb.PublishRequest(…))``."""
        self._last += 1
        number = 1000 + self._last
        self.say(pb.Command(id=number, **request))
        return self.wait(lambda each: each.id == number)

    def push(self, kind: str, channel: str) -> Any:
        """The body of the first push of a kind in a channel."""
        found = self.wait(lambda each: each.push.HasField(kind) and each.push.channel == channel)
        return getattr(found.push, kind)


class Answer:
    """Of an HTTP request."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


def requested(
    port: int, method: str, path: str, body: bytes | str = b"", headers: dict[str, str] | None = None
) -> Answer:
    """One HTTP request, and all of its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request(method, path, body or None, headers or {})
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, found, answer.read())
    finally:
        connection.close()


class HttpStream:
    """A client of HTTP streaming or server-sent events. What it says goes to any port."""

    def __init__(self, port: int, transport: str, connect: Object) -> None:
        self._is_sse = transport == "sse"
        command = json.dumps({"id": 1, "connect": connect})
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        if self._is_sse:
            self._connection.request("GET", f"/connection/sse?cf_connect={quote(command)}")
        else:
            self._connection.request("POST", "/connection/http_stream", command)
        self.answer = self._connection.getresponse()
        assert self.answer.status == 200, self.answer.read()
        self.headers = {name.lower(): value for name, value in self.answer.getheaders()}
        self.start = self.answer.readline() if self._is_sse else b""
        self.lines: list[bytes] = []
        self.result: Object = {}
        self._last = 1

    def take(self) -> Object | None:
        """The next reply or push that is no ping; ``None`` at the end of the stream."""
        while True:
            line = self.answer.readline()
            if not line:
                return None
            self.lines.append(line)
            if self._is_sse:
                assert line.startswith(b"data: "), line
                assert self.answer.readline() == b"\n"
                line = line[6:]
            found: Object = json.loads(line)
            if found:
                return found

    def connected(self) -> Object:
        """The connect result."""
        found = self.take()
        assert found is not None
        self.result = found["connect"]
        return self.result

    def said(self, port: int, *commands: Object) -> Answer:
        """Send commands in a request."""
        data = "\n".join(json.dumps(each) for each in commands)
        body = {"session": self.result["session"], "node": self.result["node"], "data": data}
        return requested(port, "POST", "/emulation", json.dumps(body))

    def ask(self, port: int, method: str, /, **fields: Any) -> Object:
        """One command through a port, and its reply without the id; what comes before it must be none."""
        self._last += 1
        assert self.said(port, {"id": self._last, method: fields}).status == 204
        found = self.take()
        assert found is not None and found.pop("id", None) == self._last, found
        return found

    def close(self) -> None:
        """Leave."""
        self.answer.close()
        self._connection.close()
