"""A server of the text protocol that does what it must not: for what generators find out."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Faults = Callable[[int, bytes], Sequence[bytes]]
"""Gives what each hears instead of message number 1, 2, 3… of all."""


def honest(_number: int, line: bytes) -> Sequence[bytes]:
    return [line]


class FaultyServer:
    """A thread for each client: there are few."""

    def __init__(self, faults: Faults = honest) -> None:
        self._faults = faults
        self._lock = threading.Lock()
        self._members: list[socket.socket] = []
        self._count = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._members.append(client)
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as lines:
            try:
                client.sendall(b"welcome\n")
                for line in lines:
                    self._spread(client, line)
            except OSError:
                pass

    def _spread(self, speaker: socket.socket, line: bytes) -> None:
        if line.startswith(b"/join"):
            return
        with self._lock:
            heard: Sequence[bytes] = [line]
            if line.startswith(b"~m"):
                self._count += 1
                heard = self._faults(self._count, line)
            for member in self._members:
                if member is not speaker:
                    try:
                        member.sendall(b"".join(heard))
                    except OSError:
                        continue

    def hang_up(self) -> None:
        """Close all connections."""
        with self._lock:
            for member in self._members:
                try:
                    member.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join(10)


@contextmanager
def faulty(faults: Faults = honest) -> Iterator[FaultyServer]:
    server = FaultyServer(faults)
    try:
        yield server
    finally:
        server.close()
