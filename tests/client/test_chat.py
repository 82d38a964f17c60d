"""The text client on a fake network, with a fake clock."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from datetime import datetime
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from spread.client.chat import MOVES, ChatClient, ChatSettings, State
from spread.client.connection import Backoff, ChatConnection
from spread.client.lines import KEPT_MAX_LINES
from spread.client.terminal import Screen

ADDRESS = "127.0.0.1:8007"


class FakeTransport:
    """Twisted's TCP transport, as far as the client uses it; the test plays the kernel and the server."""

    def __init__(self, connection: ChatConnection) -> None:
        self.connection = connection
        self.sent = bytearray()
        self.buffered = bytearray()
        self.is_stuck = False
        self.options: set[str] = set()
        self.producer: Any = None
        self.is_half_closed = False
        self.is_losing = False
        self.is_aborted = False
        self.is_gone = False
        connection.makeConnection(cast(Any, self))

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.options.add("no delay")

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.options.add("keep alive")

    def registerProducer(self, producer: object, streaming: bool) -> None:
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        assert not self.is_half_closed
        if self.is_stuck:
            self.buffered += data
            if self.producer is not None:
                self.producer.pauseProducing()
        else:
            self.sent += data

    def loseWriteConnection(self) -> None:
        self.is_half_closed = True

    def loseConnection(self) -> None:
        assert self.producer is None, "Twisted would wait for the producer for ever"
        self.is_losing = True

    def abortConnection(self) -> None:
        self.is_aborted = True

    def drain(self) -> None:
        """What was buffered goes out."""
        self.is_stuck = False
        self.sent += self.buffered
        self.buffered.clear()
        if self.producer is not None:
            self.producer.resumeProducing()
        if self.is_half_closed:
            self.connection.writeConnectionLost()

    def server_closes(self) -> None:
        self.connection.readConnectionLost()
        assert self.is_losing
        self.gone(ConnectionDone())

    def gone(self, error: Exception) -> None:
        self.is_gone = True
        if self.producer is not None:
            self.producer.stopProducing()
        self.connection.connectionLost(Failure(error))


class Recorder:
    def __init__(self) -> None:
        self.written = bytearray()
        self.error: OSError | None = None

    def write(self, data: memoryview, /) -> int:
        if self.error is not None:
            raise self.error
        self.written += data
        return len(data)

    def fileno(self) -> int:
        raise AssertionError


class FakeSource:
    def __init__(self, is_terminal: bool) -> None:
        self.is_terminal = is_terminal
        self.asked: Callable[[bytes], object] | None = None

    def ask(self, received: Callable[[bytes], object]) -> None:
        assert self.asked is None
        self.asked = received

    def type(self, data: bytes) -> None:
        assert self.asked is not None, "the client does not read"
        received, self.asked = self.asked, None
        received(data)

    def end(self) -> None:
        self.type(b"")


class World:
    """A client with everything around it."""

    def __init__(self, *, terminal: bool = True, start: bool = True, **settings: Any) -> None:
        self.clock = Clock()
        self.out, self.err = Recorder(), Recorder()
        self.source = FakeSource(terminal)
        self.dialled: list[tuple[ChatConnection, Deferred[ChatConnection]]] = []
        self.cancelled = 0
        self.exit: list[int] = []
        self.client = ChatClient(
            self.clock,
            self.dial,
            Screen(self.out, self.err, out_is_terminal=terminal, err_is_terminal=terminal),
            self.source,
            ChatSettings(name="bob", address=ADDRESS, **settings),
            fraction=lambda: 1.0,
            now=lambda: datetime(2023, 2, 18, 16, 23, 9),
        )
        self.client.done.addCallback(self.exit.append)
        if start:
            self.client.start()

    def dial(self, connection: ChatConnection) -> Deferred[ChatConnection]:
        def cancelled(_: object) -> None:
            self.cancelled += 1

        made: Deferred[ChatConnection] = Deferred(cancelled)
        self.dialled.append((connection, made))
        return made

    def accept(self) -> FakeTransport:
        connection, made = self.dialled.pop()
        transport = FakeTransport(connection)
        made.callback(connection)
        return transport

    def refuse(self) -> None:
        self.dialled.pop()[1].errback(Failure(ConnectionRefusedError()))

    def statuses(self) -> list[str]:
        """The status lines since the last call, without address."""
        lines = self.err.written.decode().splitlines()
        self.err.written.clear()
        assert all(line.startswith(ADDRESS + ": ") for line in lines)
        return [line.removeprefix(ADDRESS + ": ") for line in lines]


# Connecting, and connecting again.


def test_it_connects_shows_what_others_say_and_says_what_is_typed() -> None:
    world = World()
    transport = world.accept()
    assert transport.options == {"no delay", "keep alive"}
    transport.connection.dataReceived("欢迎来到Spread Site\n".encode())
    world.source.type(b"hi\nthere")
    world.source.type(b" you\n")
    assert transport.sent == b"bob: hi\nbob: there you\n"
    assert world.out.written.decode() == "欢迎来到Spread Site\n"
    assert world.statuses() == ["Start to connect.", "connect to server!"]


def test_it_tries_for_ever_and_waits_longer_each_time() -> None:
    world = World()
    waits: list[str] = []
    for _ in range(10):
        world.statuses()
        world.refuse()
        (status,) = world.statuses()
        assert status.startswith("Connection failed. Reason: Connection was refused by other side. Next try")
        waits.append(status.split()[-2])
        seconds = float(waits[-1])
        world.clock.advance(seconds - 0.01)
        assert not world.dialled
        world.clock.advance(0.02)
        assert len(world.dialled) == 1
    assert waits == ["0.1", "0.2", "0.4", "0.8", "1.6", "3.2", "6.4", "10.0", "10.0", "10.0"]


def test_the_waits_start_short_again_only_after_a_connection_that_lasted() -> None:
    backoff = Backoff(lambda: 1.0)
    for _ in range(4):
        backoff.next_seconds()
    backoff.lasted(9.9)
    assert backoff.next_seconds() == pytest.approx(1.6)
    backoff.lasted(10.0)
    assert backoff.next_seconds() == pytest.approx(0.1)
    assert Backoff(lambda: 0.0).next_seconds() == 0


def test_a_server_that_closes_at_once_is_not_asked_too_often() -> None:
    world = World()
    for _ in range(8):
        world.accept().server_closes()
        world.clock.advance(10)
    world.accept().server_closes()
    assert world.statuses()[-1] == (
        "Lost Connection. Reason: Connection was closed cleanly. Next try in 10.0 s."
    )


def test_a_connection_that_broke_is_made_again_in_the_channel_it_was_in() -> None:
    world = World(channel="first")
    transport = world.accept()
    world.source.type(b"/join  second \n/join\n")
    assert transport.sent == b"/join first\n/join  second \n/join\n"
    transport.gone(ConnectionLost())
    world.clock.advance(0.1)
    assert world.accept().sent == b"/join second\n"


def test_half_a_character_of_a_broken_connection_does_not_spoil_the_next() -> None:
    world = World()
    transport = world.accept()
    transport.connection.dataReceived(b"\xe4\xbd")
    transport.gone(ConnectionLost())
    world.clock.advance(0.1)
    world.accept().connection.dataReceived("你".encode())
    assert world.out.written.decode() == "\ufffd你"


def test_a_server_that_closes_but_takes_no_data_is_cut_off() -> None:
    world = World()
    transport = world.accept()
    transport.is_stuck = True
    world.source.type(b"a\n")
    transport.connection.readConnectionLost()
    world.source.type(b"b\n")
    assert transport.buffered == b"bob: a\n"
    world.clock.advance(5)
    assert transport.is_aborted
    transport.gone(ConnectionLost())
    world.clock.advance(0.1)
    assert world.accept().sent == b"bob: b\n"


def test_once_ends_when_connecting_fails() -> None:
    world = World(once=True)
    world.refuse()
    assert world.exit == [1]
    assert world.statuses()[-1] == "Connection failed. Reason: Connection was refused by other side."


def test_once_ends_when_the_connection_is_lost() -> None:
    world = World(once=True)
    world.accept().server_closes()
    assert world.exit == [1]
    assert world.statuses()[-1] == "Lost Connection. Reason: Connection was closed cleanly."
    assert not world.clock.getDelayedCalls()


# Lines that wait.


def test_lines_typed_while_there_is_no_connection_are_sent_in_order_once_there_is() -> None:
    world = World(channel="first")
    world.refuse()
    world.source.type(b"one\n/join second\ntwo\n")
    world.clock.advance(1)
    transport = world.accept()
    assert transport.sent == b"/join first\nbob: one\n/join second\nbob: two\n"
    assert world.statuses()[-1] == "Sending 3 lines typed before."
    transport.gone(ConnectionLost())
    world.clock.advance(1)
    assert world.accept().sent == b"/join second\n", "what was written is not sent twice"


def test_the_oldest_of_too_many_kept_lines_is_given_up_and_the_person_is_told() -> None:
    world = World()
    world.source.type(b"first\n" + b"x" * 61 + b"\n" + b"x\n" * KEPT_MAX_LINES)
    assert world.statuses()[1:] == [
        "A line not sent, too many wait: first",
        f"A line not sent, too many wait: {'x' * 60}…",
    ]
    assert world.accept().sent == b"bob: x\n" * KEPT_MAX_LINES


def test_a_join_among_the_lines_given_up_still_counts() -> None:
    world = World()
    transport = world.accept()
    transport.is_stuck = True
    world.source.type(b"fills it\n/join there\n" + b"secret\n" * KEPT_MAX_LINES)
    assert "not sent" not in world.err.written.decode()
    transport.drain()
    assert transport.sent == b"bob: fills it\n/join there\n" + b"bob: secret\n" * KEPT_MAX_LINES


def test_a_connection_that_is_full_gets_no_more_until_it_takes_more() -> None:
    world = World()
    transport = world.accept()
    transport.is_stuck = True
    world.source.type(b"one\ntwo\n")
    assert transport.buffered == b"bob: one\n"
    transport.drain()
    world.source.type(b"three\n")
    assert transport.sent == b"bob: one\nbob: two\nbob: three\n"


def test_a_pipe_is_read_only_while_the_connection_takes_it() -> None:
    world = World(terminal=False)
    assert world.source.asked is None
    transport = world.accept()
    transport.is_stuck = True
    world.source.type(b"1\n" * 2000)
    assert world.source.asked is None
    transport.drain()
    assert transport.sent == b"bob: 1\n" * 2000
    transport.gone(ConnectionLost())
    world.source.type(b"2\n" * 2000)  # was being read when the connection broke
    assert world.source.asked is None
    world.clock.advance(1)
    assert world.accept().sent == b"bob: 2\n" * 2000
    assert "not sent" not in world.err.written.decode()


@pytest.mark.parametrize("excess", [0, 1])
def test_a_line_the_server_would_refuse_is_not_sent(excess: int) -> None:
    world = World()
    transport = world.accept()
    line = b"x" * (65536 - len(b"bob: \n") + excess)
    world.source.type(line[:40000])
    world.source.type(line[40000:] + b"\nnext\n")
    assert transport.sent == (b"bob: next\n" if excess else b"bob: " + line + b"\nbob: next\n")
    told = ["A line not sent: with your name it is above 65536 bytes."] if excess else []
    assert world.statuses()[2:] == told


# Hello.


def test_hello_is_said_on_every_connection_and_then_again_and_again() -> None:
    hello = b"hello, I'm bob 2023-02-18 16:23:09\n"
    world = World(hello_seconds=5, channel="game")
    transport = world.accept()
    assert transport.sent == b"/join game\n" + hello
    world.clock.pump([4.9, 0.2, 5])
    assert transport.sent == b"/join game\n" + hello * 3
    transport.gone(ConnectionLost())
    world.clock.advance(6)
    assert world.accept().sent == b"/join game\n" + hello
    assert transport.sent.count(hello) == 3


def test_hello_does_not_pile_up_in_a_connection_that_is_full() -> None:
    world = World(hello_seconds=1)
    transport = world.accept()
    transport.is_stuck = True
    world.clock.pump([1] * 5)
    assert transport.buffered.count(b"hello") == 1


def test_a_hello_that_fails_is_told() -> None:
    world = World(hello_seconds=1)
    transport = world.accept()
    world.client._now = lambda: cast(datetime, 1 / 0)
    world.clock.advance(1)
    assert world.statuses()[-1] == "No more hello. Reason: division by zero."
    transport.gone(ConnectionLost())
    assert world.client.state is State.WAITING


# The end.


def test_at_the_end_of_input_all_is_sent_before_our_side_is_closed() -> None:
    world = World(terminal=False)
    transport = world.accept()
    transport.is_stuck = True
    world.source.type(b"one\ntwo\nlast")
    assert transport.buffered == b"bob: one\n"
    transport.drain()
    world.source.end()
    assert transport.sent == b"bob: one\nbob: two\nbob: last\n"
    assert transport.is_half_closed
    transport.drain()
    assert not world.exit
    transport.connection.dataReceived(b"still heard\n")
    transport.server_closes()
    assert world.exit == [0]
    assert world.out.written == b"still heard\n"
    assert not world.clock.getDelayedCalls()


def test_an_input_that_ends_while_the_connection_is_full_still_gets_out() -> None:
    world = World()
    transport = world.accept()
    transport.is_stuck = True
    world.source.type(b"one\ntwo\n")
    world.source.end()
    assert world.statuses()[-1] == "1 line not sent yet; Ctrl-C gives up."
    assert not transport.is_half_closed
    transport.drain()
    assert transport.is_half_closed
    assert transport.sent == b"bob: one\nbob: two\n"


def test_an_input_that_ends_while_there_is_no_connection_waits_for_one() -> None:
    world = World()
    world.refuse()
    world.source.type(b"late\n")
    world.source.end()
    assert not world.exit
    world.clock.advance(1)
    transport = world.accept()
    assert transport.sent == b"bob: late\n"
    assert transport.is_half_closed


@pytest.mark.parametrize("refused", [False, True])
def test_an_input_that_ends_with_nothing_to_say_and_no_connection_ends_at_once(refused: bool) -> None:
    world = World()
    if refused:
        world.refuse()
    world.source.end()
    assert world.exit == [0]
    assert world.cancelled == (not refused)
    assert not world.clock.getDelayedCalls()


def test_a_server_that_stays_open_after_the_end_of_input_is_left() -> None:
    world = World()
    transport = world.accept()
    world.source.end()
    world.clock.advance(60)
    assert not transport.is_losing, "it is still being sent"
    transport.drain()
    world.clock.advance(4.9)
    assert not transport.is_losing
    world.clock.advance(0.1)
    assert transport.is_losing
    transport.gone(ConnectionDone())
    assert world.exit == [0]
    assert world.statuses()[-1] == "The server has not closed the connection within 5 s."


@pytest.mark.parametrize("all_sent", [False, True])
def test_what_may_be_lost_at_the_end_is_told(all_sent: bool) -> None:
    world = World()
    transport = world.accept()
    transport.is_stuck = True
    world.source.type(b"one\n")
    world.source.end()
    if all_sent:
        transport.drain()
        transport.gone(ConnectionLost())
    else:
        transport.server_closes()
    assert world.exit == [1]
    assert world.statuses()[-1].endswith("What was sent last may be lost.")


@pytest.mark.parametrize(
    ("settings", "terminal", "goes_on"),
    [
        ({}, False, False),
        ({"stay": True}, False, True),
        ({"stay": True}, True, True),
        ({"hello_seconds": 5}, False, True),
        ({"hello_seconds": 5}, True, False),
    ],
)
def test_who_listens_on_after_the_end_of_input(
    settings: dict[str, Any], terminal: bool, goes_on: bool
) -> None:
    world = World(terminal=terminal, **settings)
    transport = world.accept()
    world.source.end()
    assert transport.is_half_closed is not goes_on
    assert world.source.asked is None
    if goes_on:
        transport.gone(ConnectionLost())
        world.clock.advance(1)
        assert len(world.dialled) == 1


def test_close_is_sent_as_it_is_and_nothing_after_it() -> None:
    world = World()
    transport = world.accept()
    world.source.type(b"bye\nclose\r\nlate\n")
    assert transport.sent == b"bob: bye\nclose\n"
    assert world.statuses()[-1] == "1 line after close not sent."
    assert world.source.asked is None
    assert not transport.is_half_closed
    transport.connection.dataReceived(b"goodbye\n")
    transport.server_closes()
    assert world.exit == [0]
    assert world.out.written == b"goodbye\n"
    assert not world.dialled
    assert not world.clock.getDelayedCalls()


def test_a_server_that_does_not_know_close_is_left() -> None:
    world = World()
    transport = world.accept()
    world.source.type(b"close\n")
    world.clock.advance(5)
    assert transport.is_losing
    assert world.statuses()[-1] == "The server has not closed the connection within 5 s."
    transport.gone(ConnectionDone())
    assert world.exit == [0]


def test_a_connection_that_breaks_after_close_was_typed_may_have_lost_something() -> None:
    world = World()
    transport = world.accept()
    world.source.type(b"bye\nclose\n")
    transport.gone(ConnectionLost())
    assert world.exit == [1]


def test_what_is_read_after_close_is_ignored() -> None:
    world = World()
    transport = world.accept()
    received = world.source.asked
    assert received is not None
    world.source.type(b"close\n")
    received(b"more\n")
    assert transport.sent == b"close\n"


def test_close_without_a_connection_ends_at_once() -> None:
    world = World()
    world.refuse()
    world.source.type(b"close\n")
    assert world.exit == [0]


# Ctrl-C.


def test_an_interrupt_while_connected_sends_what_was_written_and_ends_well() -> None:
    world = World()
    transport = world.accept()
    stopped = world.client.stop()
    assert transport.is_half_closed
    assert not stopped.called
    transport.drain()
    transport.server_closes()
    assert stopped.called
    assert world.exit == [0]
    assert world.client.stop().called
    assert not world.clock.getDelayedCalls()


def test_an_interrupt_does_not_wait_for_a_server_that_is_stuck() -> None:
    world = World()
    transport = world.accept()
    transport.is_stuck = True
    world.source.type(b"one\ntwo\n")
    world.source.end()
    stopped = world.client.stop()
    world.clock.advance(1)
    assert transport.is_aborted
    transport.gone(ConnectionLost())
    assert stopped.called
    assert world.exit == [0]
    assert world.statuses()[-1] == "1 line not sent."


def test_an_interrupt_while_closing_ends_well() -> None:
    world = World()
    transport = world.accept()
    world.source.end()
    transport.drain()
    world.client.stop()
    world.clock.advance(1)
    assert transport.is_aborted
    transport.gone(ConnectionLost())
    assert world.exit == [0]


@pytest.mark.parametrize("refused", [False, True])
def test_an_interrupt_without_a_connection_ends_at_once(refused: bool) -> None:
    world = World()
    if refused:
        world.refuse()
    assert world.client.stop().called
    assert world.exit == [0]
    assert not world.clock.getDelayedCalls()


def test_an_interrupt_before_the_start_ends_at_once() -> None:
    world = World(start=False)
    assert world.client.stop().called
    assert world.exit == [0]


# Output.


@pytest.mark.parametrize(
    ("error", "status"),
    [(BrokenPipeError(), 0), (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1)],
)
def test_an_output_that_takes_nothing_more_ends_it(error: OSError, status: int) -> None:
    world = World()
    transport = world.accept()
    world.out.error = error
    transport.connection.dataReceived(b"x")
    assert world.exit == [status]
    assert transport.is_aborted
    transport.connection.dataReceived(b"y")
    transport.gone(ConnectionLost())
    told = ["Cannot write what others say. Reason: No space left on device."] if status else []
    assert world.statuses()[2:] == told


def test_an_output_that_fails_when_the_connection_is_lost_ends_it() -> None:
    world = World()
    transport = world.accept()
    transport.connection.dataReceived(b"\xe4")
    world.out.error = BrokenPipeError()
    transport.gone(ConnectionLost())
    assert world.exit == [0]


# States.


def test_a_client_runs_once() -> None:
    world = World()
    world.client.stop()
    with pytest.raises(RuntimeError, match="from closed to connecting"):
        world.client.start()


def test_every_state_is_in_the_table_and_the_end_is_reached_from_all_others() -> None:
    assert set(MOVES) == set(State)
    assert MOVES[State.CLOSED] == frozenset()
    assert all(State.CLOSED in MOVES[state] for state in State if state is not State.CLOSED)
