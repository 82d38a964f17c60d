"""Shards that hear each other, as separate processes, with crowds of real clients."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.live.processes import Crowd, Node, crowd_of, home, reserved_port, resident_bytes, started

pytestmark = pytest.mark.live


def check_broadcast(crowd: Crowd, messages_each: int) -> None:
    """Everybody speaks; everybody else must hear it once, byte for byte, and all in the same order."""
    crowd.forget()
    count = len(crowd.clients)
    said = [
        [b"%d/%d \x00\xff\xfe \xe4\xbd\xa0 %s\r\n" % (who, number, b"x" * (who % 50)) for who in range(count)]
        for number in range(messages_each)
    ]
    for line in said:
        for client, message in zip(crowd.clients, line, strict=True):
            client.say(message)
        crowd.pump(0)
    everything = sorted(message for line in said for message in line)
    wanted = messages_each * (count - 1)
    crowd.until(lambda: all(client.lines >= wanted for client in crowd.clients), 60, "all messages")
    rank: dict[bytes, int] = {}
    for message in bytes(crowd.clients[0].received).splitlines(keepends=True):
        rank[message] = len(rank)
    for who, client in enumerate(crowd.clients):
        heard = bytes(client.received).splitlines(keepends=True)
        own = [line[who] for line in said]
        assert sorted(heard + own) == everything, f"client {who}"
        ranked = [rank[message] for message in heard if message in rank]
        assert ranked == sorted(ranked), f"client {who} heard another order"


def test_two_hundred_clients_of_a_fleet_are_counted_and_hear_each_other(stack: ExitStack) -> None:
    node = started(stack, "--shard", "0-1", home=stack.enter_context(home()))
    port = node.wait_ready(2)
    assert sorted(line.split()[1] for _, line in node.ready) == ["shard=0", "shard=1"]
    crowd = Crowd(port, 200)
    stack.callback(crowd.close)
    crowd.until(lambda: all(client.lines for client in crowd.clients), 20, "greetings")
    numbers = sorted(
        int(bytes(client.received).decode().removeprefix("欢迎来到Spread Site,您是第").split("个")[0])
        for client in crowd.clients
    )
    assert numbers == list(range(1, 201))
    check_broadcast(crowd, 5)
    assert node.stop() == 0, node.stderr()


def test_two_terminals_hear_each_other_and_a_third_is_told_who_holds_its_number(stack: ExitStack) -> None:
    path = stack.enter_context(home())
    reserved, port = reserved_port()
    stack.callback(reserved.close)
    first = started(stack, "--shard", "0", home=path, text=f"127.0.0.1:{port}")
    second = started(stack, "--shard", "1", home=path, text=f"127.0.0.1:{port}")
    first.wait_ready(1)
    second.wait_ready(1)
    check_broadcast(crowd_of(stack, port, 20), 3)

    began = time.monotonic()
    third = started(stack, "--shard", "1", home=path, text=f"127.0.0.1:{port}")
    assert third.process.wait(10) == 3
    assert time.monotonic() - began < 3
    assert third.stderr() == (
        f"spread-node: error: shard 1 is already running: process {second.pid} on host "
        f"{third.stderr().split()[-1]}\n"
    )
    assert first.stop() == 0
    assert second.stop() == 0


# The shape of the program the article ends with: no newline in what it sends, and an answer to whatever
# it hears.
ARTICLE_LIKE = """
import datetime, sys
from twisted.internet import reactor
from twisted.internet.protocol import ClientFactory, Protocol

class Hello(Protocol):
    is_over = False

    def dataReceived(self, data):
        print("got message: ", data.decode("utf8"), flush=True)
        reactor.callLater(0.5, self.say_hello)
        if b"hello" in data and not self.is_over:
            self.is_over = True
            reactor.callLater(1.5, reactor.stop)  # when the other has its answer

    def say_hello(self):
        if self.transport.connected:
            self.transport.write(("hello, I'm %s %s" % (sys.argv[1], datetime.datetime.now())).encode())

factory = ClientFactory.forProtocol(Hello)
reactor.connectTCP("127.0.0.1", int(sys.argv[2]), factory)
reactor.run()
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Node]:
    """Two shards that several tests share."""
    with ExitStack() as stack:
        yield started(stack, "--shard", "0-1", home=stack.enter_context(home()))


def test_clients_that_send_no_newline_hear_each_other(fleet: Node) -> None:
    port = fleet.wait_ready(2)
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", ARTICLE_LIKE, name, str(port)], stdout=subprocess.PIPE, text=True
        )
        for name in ("alice", "bob")
    ]
    alice, bob = (program.communicate(timeout=20)[0] for program in programs)
    assert "hello, I'm bob" in alice and "hello, I'm alice" not in alice
    assert "hello, I'm alice" in bob and "hello, I'm bob" not in bob


def test_a_client_that_never_reads_is_closed_and_nobody_else_notices(stack: ExitStack, fleet: Node) -> None:
    port = fleet.wait_ready(2)
    deaf = Crowd(port, 1)
    stack.callback(deaf.close)
    deaf.greeted()
    crowd = crowd_of(stack, port, 6)
    publisher, *readers = crowd.clients
    shards = fleet.children()
    before = {number: resident_bytes(pid) for number, pid in shards.items()}
    most = dict.fromkeys(shards, 0)

    size, total = 50_000, 100_000_000
    count = total // size
    heard = dict.fromkeys(range(len(readers)), 0)
    sent = 0
    pending = b""
    publisher.socket.setblocking(False)

    def step() -> None:
        nonlocal sent, pending
        while sent < count or pending:
            if not pending:
                pending = b"%08d " % sent + b"x" * (size - 10) + b"\n"
                sent += 1
            try:
                pending = pending[publisher.socket.send(pending) :]
            except BlockingIOError:
                break
        crowd.pump(0.01)
        for number, pid in shards.items():
            most[number] = max(most[number], resident_bytes(pid) - before[number])
        for index, reader in enumerate(readers):
            assert not reader.is_closed, f"reader {index} was closed after {heard[index]} of {count}"
            while len(reader.received) >= size:
                message = bytes(reader.received[:size])
                del reader.received[:size]
                assert message[:9] == b"%08d " % heard[index] and message.endswith(b"x\n")
                heard[index] += 1

    deadline = time.monotonic() + 90
    while min(heard.values()) < count:
        assert time.monotonic() < deadline, heard
        step()
    assert max(most.values()) < 10_000_000, most
    # It is cut, with the rest of what had been sent to it still readable.
    deaf_client = deaf.clients[0]
    deaf.until(lambda: deaf_client.is_closed, 10, "the client that never read is closed")
    assert len(deaf_client.received) < 20_000_000


def test_eight_shards_serve_eight_thousand_clients_and_stop_cleanly(stack: ExitStack) -> None:
    node = started(stack, "--shard", "0-7", home=stack.enter_context(home()))
    port = node.wait_ready(8, 60)
    crowd = crowd_of(stack, port, 8000)
    crowd.forget()
    for who in (0, 4000, 7999):
        crowd.clients[who].say(b"from %d\n" % who)
    crowd.until(
        lambda: sum(client.lines for client in crowd.clients) >= 3 * 7999, 60, "three messages for all"
    )
    first = bytes(crowd.clients[1].received)
    assert sorted(first.splitlines()) == [b"from 0", b"from 4000", b"from 7999"]
    wrong = [who for who, client in enumerate(crowd.clients) if client.lines != 3 - (who in (0, 4000, 7999))]
    assert not wrong
    crowd.forget()
    node.process.terminate()
    crowd.until(lambda: all(client.lines for client in crowd.clients), 20, "good-byes")
    assert {bytes(client.received)[:8] for client in crowd.clients} == {b"goodbye:"}
    assert node.process.wait(20) == 0, node.stderr()[-2000:]
