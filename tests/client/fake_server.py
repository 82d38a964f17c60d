"""A server of the Centrifuge protocol that follows a script, on a real socket, in threads of its own.

A script is a function that talks with one connection, line by line; the first connection gets the first
script, and so on. What goes wrong in a script is raised by ``FakeServer.close``.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from spread.node.wire import json, protobuf
from spread.node.wire.messages import (
    Command,
    ConnectRequest,
    ConnectResult,
    Error,
    Event,
    Push,
    Reply,
    Request,
    Result,
    SubscribeRequest,
    SubscribeResult,
)

__all__ = ["FakeServer", "Peer", "Script"]

SECONDS = 20.0


class Peer:
    """A client, seen from the server."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        self.codec: Any = protobuf if socket.subprotocol == "centrifuge-protobuf" else json
        self._commands: list[Command] = []

    def next(self) -> Command:
        """The next command."""
        while not self._commands:
            self._commands = self.codec.decode(self.socket.recv(SECONDS))
        return self._commands.pop(0)

    def expect(self, kind: type[Request] | None) -> Command:
        """The next command, which must be of this kind; None: a pong."""
        command = self.next()
        if kind is None:
            assert command.request is None, f"{command} instead of a pong"
        else:
            assert isinstance(command.request, kind), f"{command} instead of {kind.__name__}"
        return command

    def say(self, *replies: Reply) -> None:
        """Send these in one frame."""
        self.raw(self.codec.join(map(self.codec.encode_reply, replies)))

    def raw(self, frame: Any) -> None:
        self.socket.send(frame, text=self.codec is json)

    def answer(self, command: Command, body: Result | Error) -> None:
        self.say(Reply(command.id, body))

    def push(self, channel: str, *events: Event) -> None:
        self.say(*(Reply(0, Push(channel, event)) for event in events))

    def accept(self, **fields: Any) -> ConnectRequest:
        """Answer a connect."""
        command = self.expect(ConnectRequest)
        self.answer(command, ConnectResult(**({"client": "c1", "version": "fake 1"} | fields)))
        assert isinstance(command.request, ConnectRequest)
        return command.request

    def admit(self, **fields: Any) -> SubscribeRequest:
        """Answer a subscribe."""
        command = self.expect(SubscribeRequest)
        self.answer(command, SubscribeResult(**fields))
        assert isinstance(command.request, SubscribeRequest)
        return command.request

    def close(self, code: int, reason: str) -> None:
        self.socket.close(code, reason)

    def cut(self) -> None:
        """Break the connection without a word."""
        self.socket.socket.shutdown(socket.SHUT_RDWR)

    def wait_closed(self) -> int:
        """Until the client has closed; gives its close code."""
        try:
            while True:
                self.socket.recv(SECONDS)
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd is not None else 0


Script = Callable[[Peer], object]


class FakeServer:
    """Runs from its making until ``close``; a context manager."""

    def __init__(self, *scripts: Script, refuse: int = 0, ssl: Any = None, subprotocols: bool = True) -> None:
        """:param refuse: answer so many handshakes with 503 first."""
        self._scripts: queue.SimpleQueue[Script] = queue.SimpleQueue()
        for script in scripts:
            self._scripts.put(script)
        self._errors: list[BaseException] = []
        self._refuse = refuse
        self.handshakes: list[HttpRequest] = []
        self._server = serve(
            self._serve,
            "127.0.0.1",
            0,
            process_request=self._check,
            compression=None,
            select_subprotocol=self._chosen if subprotocols else None,
            ssl=ssl,
        )
        self.port: int = self._server.socket.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}/connection/websocket"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @staticmethod
    def _chosen(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        return offered[0] if offered else None

    def _check(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        self.handshakes.append(request)
        if self._refuse:
            self._refuse -= 1
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "not yet\n")
        return None

    def _serve(self, socket: ServerConnection) -> None:
        try:
            script = self._scripts.get_nowait()
        except queue.Empty:
            socket.close(3503, "no script")
            return
        try:
            script(Peer(socket))
        except BaseException as error:
            self._errors.append(error)

    def close(self) -> None:
        """End it; raises what went wrong in a script."""
        self._server.shutdown()
        self._thread.join(SECONDS)
        if self._errors:
            raise self._errors[0]
        assert self._scripts.empty(), "a script was never run"

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
