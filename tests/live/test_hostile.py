"""Clients that mean harm, or are broken: told so or closed, while the shard goes on in bounded memory."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.live.processes import Client, Crowd, Node, home, resident_bytes

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """All of them meet the same shard, which must outlive them."""
    with home() as path:
        node = Node("--shard", "0", home=path)
        try:
            yield node
        finally:
            node.close()


def check_serves(port: int) -> None:
    """Two ordinary clients get a message through."""
    crowd = Crowd(port, 2)
    try:
        crowd.greeted()
        crowd.forget()
        crowd.clients[0].say(b"still there?\n")
        crowd.until(lambda: b"still there?\n" in crowd.clients[1].received, 10, "an ordinary message")
    finally:
        crowd.close()


def test_random_garbage_is_only_so_many_messages(node: Node) -> None:
    port = node.wait_ready(1)
    noise = random.Random(20261).randbytes(20_000)
    with ExitStack() as stack:
        crowd = Crowd(port, 3)
        stack.callback(crowd.close)
        crowd.greeted()
        crowd.forget()
        crowd.clients[0].say(noise)
        # The last of it has no line ending, and follows after a moment.
        for other in crowd.clients[1:]:
            crowd.until(lambda other=other: len(other.received) >= len(noise), 10, "all of the noise")
            assert bytes(other.received) == noise
        assert not any(client.is_closed for client in crowd.clients)
    check_serves(port)


def test_invalid_utf8_is_passed_on_as_it_is(node: Node) -> None:
    port = node.wait_ready(1)
    crowd = Crowd(port, 2)
    crowd.greeted()
    crowd.forget()
    crowd.clients[0].say(b"/join \xff\xfe\n\xc3\x28 \xed\xa0\x80 \xf8\n")
    crowd.until(lambda: crowd.clients[0].lines, 10, "an error for the channel name")
    assert bytes(crowd.clients[0].received).startswith(b"error: a channel name")
    crowd.until(lambda: crowd.clients[1].lines, 10, "the bytes")
    assert bytes(crowd.clients[1].received) == b"\xc3\x28 \xed\xa0\x80 \xf8\n"
    crowd.close()
    check_serves(port)


def test_an_endless_line_ends_with_an_error_in_bounded_memory(node: Node) -> None:
    port = node.wait_ready(1)
    check_serves(port)
    before = resident_bytes(node.pid)
    client = Client(port)
    most = 0
    block = b"z" * (1 << 20)
    sent = 0
    try:
        while sent < 1 << 30:
            client.socket.settimeout(20)
            sent += client.socket.send(block)
            most = max(most, resident_bytes(node.pid) - before)
    except ConnectionError:
        pass
    assert sent < 1 << 30, "a line of 1 GB was taken"
    assert most < 10_000_000
    client.socket.settimeout(5)
    try:
        while data := client.socket.recv(1 << 16):
            client.received += data
    except ConnectionError:
        pass
    assert b"error: a message may have 65536 bytes at most" in client.received, bytes(client.received)[-200:]
    client.socket.close()
    check_serves(port)


def test_ten_thousand_silent_connections(node: Node) -> None:
    port = node.wait_ready(1)
    check_serves(port)
    before = resident_bytes(node.pid)
    connections = []
    try:
        for _ in range(10_000):
            connections.append(socket.create_connection(("127.0.0.1", port), timeout=20))
        # Half of them vanish without a word: nothing is ever read or closed on these.
        began = time.monotonic()
        check_serves(port)
        assert time.monotonic() - began < 10
        per_connection = (resident_bytes(node.pid) - before) / len(connections)
        assert per_connection < 10_000, per_connection
    finally:
        for connection in connections:
            # RST, as from a machine that was cut off and came back
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
    check_serves(port)


def test_connections_that_come_and_go_leave_nothing_behind(node: Node) -> None:
    port = node.wait_ready(1)
    grown = []
    for _ in range(5):
        before = resident_bytes(node.pid)
        for _ in range(2_000):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                connection.sendall(b"/join room\nhi")
        check_serves(port)
        grown.append(resident_bytes(node.pid) - before)
    # Memory of a process goes up and down for many reasons; what leaks goes up every time.
    assert min(grown) < 500_000, grown
