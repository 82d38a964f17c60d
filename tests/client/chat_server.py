"""A text server for the tests of the client: one process, no hub, a program of its own.

``python chat_server.py [PORT [CLOSE_AFTER_BYTES]]`` prints ``ready PORT`` and serves until it is killed.
It greets with the number of the client, starts everybody in ``lobby``, understands ``/join CHANNEL`` and
``close``, sends each message to all others of the channel byte for byte, and takes as a message what
has come without a newline for 200 ms. After a client has sent ``CLOSE_AFTER_BYTES`` it is cut off.
"""

from __future__ import annotations

import sys
from typing import Any, cast

from twisted.internet import reactor as global_reactor
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

reactor = cast(Any, global_reactor)
IDLE_SECONDS = 0.2
MESSAGE_MAX_BYTES = 65536


class Session(Protocol):
    def __init__(self, server: ChatServer, number: int) -> None:
        self.server = server
        self.number = number
        self.channel = b"lobby"
        self.partial = b""
        self.idle: IDelayedCall | None = None

    @property
    def wire(self) -> Any:
        return self.transport

    def connectionMade(self) -> None:
        self.server.sessions.append(self)
        self.wire.write(f"欢迎来到Spread Site,您是第{self.number}个客户端用户!\n".encode())

    def dataReceived(self, data: bytes) -> None:
        self.stop_waiting()
        *lines, self.partial = (self.partial + data).split(b"\n")
        for line in lines:
            self.received(line + b"\n")
        if len(self.partial) > MESSAGE_MAX_BYTES:
            self.wire.write(b"error: the message is too long\n")
            self.wire.loseConnection()
        elif self.partial:
            self.idle = reactor.callLater(IDLE_SECONDS, self.flush)
        self.server.received_bytes += len(data)
        if 0 < self.server.close_after_bytes <= self.server.received_bytes:
            self.wire.abortConnection()

    def flush(self) -> None:
        self.idle = None
        message, self.partial = self.partial, b""
        self.received(message)

    def received(self, message: bytes) -> None:
        text = message.rstrip(b"\r\n")
        if text == b"close":
            self.wire.loseConnection()
        elif text.startswith(b"/join "):
            self.channel = text.removeprefix(b"/join ")
            self.wire.write(b"joined " + self.channel + b"\n")
        else:
            for session in self.server.sessions:
                if session is not self and session.channel == self.channel:
                    session.wire.write(message)

    def stop_waiting(self) -> None:
        if self.idle is not None:
            cast(Any, self.idle).cancel()
            self.idle = None

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.stop_waiting()
        if self.partial:
            self.flush()
        self.server.sessions.remove(self)


class ChatServer(Factory):
    noisy = False

    def __init__(self, close_after_bytes: int) -> None:
        self.sessions: list[Session] = []
        self.count = 0
        self.received_bytes = 0
        self.close_after_bytes = close_after_bytes

    def buildProtocol(self, addr: object) -> Session:
        self.count += 1
        return Session(self, self.count)


def main() -> None:
    port, close_after_bytes = [*map(int, sys.argv[1:]), 0, 0][:2]
    listening = reactor.listenTCP(port, ChatServer(close_after_bytes), interface="127.0.0.1")
    print("ready", listening.getHost().port, flush=True)
    reactor.run()


if __name__ == "__main__":
    main()
