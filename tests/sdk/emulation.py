"""A small client of the emulated transports: a stream from one shard, requests to another.

The SDK for JavaScript sends what it has without waiting for the answers; this one sends request after
request, so that the order in which a server takes them is fixed, and checks every answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

Headers = dict[str, str]


async def read_head(reader: asyncio.StreamReader) -> tuple[int, Headers]:
    """Status and headers of an answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {}
    for line in head[1:-2]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return int(head[0].split()[1]), headers


class Stream:
    """What a server tells one client, reply by reply."""

    def __init__(self, transport: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._transport = transport
        self._reader = reader
        self._writer = writer
        self.headers: Headers = {}
        self.session = ""
        self.node = ""

    @classmethod
    async def opened(cls, port: int, transport: str, connect: dict[str, Any]) -> Stream:
        """A stream (``http_stream`` or ``sse``) whose connect command was answered."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        command = json.dumps({"id": 1, "connect": connect})
        if transport == "sse":
            request = f"GET /connection/sse?cf_connect={quote(command)} HTTP/1.1\r\nHost: x\r\n\r\n"
        else:
            request = (
                "POST /connection/http_stream HTTP/1.1\r\nHost: x\r\n"
                f"Content-Length: {len(command)}\r\n\r\n{command}"
            )
        writer.write(request.encode())
        status, headers = await read_head(reader)
        assert status == 200, (status, headers)
        assert headers.get("transfer-encoding") == "chunked", headers
        stream = cls(transport, reader, writer)
        stream.headers = headers
        stream.replies = stream._replies()
        reply = await anext(stream.replies)
        stream.session, stream.node = reply["connect"]["session"], reply["connect"]["node"]
        return stream

    replies: AsyncIterator[dict[str, Any]]
    """One after the other, pings (``{}``) too; ends with the stream."""

    async def _lines(self) -> AsyncIterator[bytes]:
        rest = b""
        while size := int(await self._reader.readline(), 16):
            chunk = (await self._reader.readexactly(size + 2))[:-2]
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line

    async def _replies(self) -> AsyncIterator[dict[str, Any]]:
        async for line in self._lines():
            if self._transport == "sse":
                if not line.rstrip(b"\r"):
                    continue
                assert line.startswith(b"data: "), line
                line = line[6:]
            yield json.loads(line)

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


class Poster:
    """Where one client sends its commands: a connection that is kept."""

    def __init__(self, port: int, stream: Stream) -> None:
        self._port = port
        self._stream = stream
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._last = 1

    async def send(self, *commands: dict[str, Any]) -> list[int]:
        """Send commands in one request, and wait until it was accepted; their numbers."""
        numbers = []
        lines = []
        for command in commands:
            self._last += 1
            numbers.append(self._last)
            lines.append(json.dumps({"id": self._last, **command}))
        body = {"session": self._stream.session, "node": self._stream.node, "data": "\n".join(lines)}
        status = await self._post(json.dumps(body).encode())
        assert status == 204, status
        return numbers

    async def answer_ping(self) -> None:
        """As a client must."""
        body = {"session": self._stream.session, "node": self._stream.node, "data": "{}"}
        assert await self._post(json.dumps(body).encode()) == 204

    async def _post(self, body: bytes) -> int:
        if self._connection is None:
            self._connection = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._connection
        head = f"POST /emulation HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        status, headers = await read_head(reader)
        if size := int(headers.get("content-length", 0)):
            await reader.readexactly(size)
        if headers.get("connection", "").lower() == "close":
            await self.close()
        return status

    async def close(self) -> None:
        if self._connection is not None:
            _, writer = self._connection
            self._connection = None
            writer.close()
            await writer.wait_closed()
