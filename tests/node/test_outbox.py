"""The outbox, on a fake transport and on real sockets with a reader that is slow, erratic, or gone."""

from __future__ import annotations

import random
import select
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from spread.node.cork import Cork
from spread.node.listen import bind, start_listening, stop_listening
from spread.node.outbox import CHUNK_BYTES, PATIENCE_RESTS, Outbox, make_outbox
from tests.fakes import FakeTransport

reactor = cast(Any, global_reactor)


class Desk:
    """An outbox on a fake transport."""

    def __init__(self, room: int | None = None, limit_bytes: int = 1 << 20) -> None:
        self.clock = Clock()
        self.cork = Cork(self.clock, self.clock.seconds, 1.0)
        self.transport = FakeTransport(room)
        self.events: list[str] = []
        self.outbox = Outbox(self.transport, self.cork, limit_bytes, lambda: self.events.append("overflowed"))

    def close(self) -> None:
        self.outbox.close(lambda: self.events.append("finished"))

    def turn(self) -> None:
        self.clock.advance(0)


def test_frames_of_a_turn_leave_in_one_send() -> None:
    desk = Desk()
    for frame in (b"one ", b"two ", b"three"):
        desk.outbox.write(frame)
    assert desk.transport.sends == []
    desk.turn()
    assert desk.transport.sends == [b"one two three"]
    desk.turn()
    desk.outbox.write(b"four")
    desk.turn()
    assert desk.transport.sends == [b"one two three", b"four"]


def test_a_frame_is_shared_and_not_copied() -> None:
    desk, other = Desk(), Desk()
    frame = b"shared by all"
    for each in (desk, other):
        each.outbox.write(frame)
        each.turn()
    assert desk.transport.sends[0] is other.transport.sends[0] is frame


def test_what_the_kernel_does_not_take_waits_and_counts() -> None:
    desk = Desk(room=3)
    desk.outbox.write(b"abcdef")
    desk.turn()
    assert (desk.transport.taken, desk.transport.buffer, desk.outbox.waiting_bytes) == (b"abc", b"def", 3)
    desk.outbox.write(b"ghi")
    desk.turn()
    assert len(desk.transport.sends) == 1, "nothing overtakes the rest"
    assert desk.outbox.waiting_bytes == 6
    desk.transport.drain(4)
    assert (desk.transport.taken, desk.outbox.waiting_bytes) == (b"abcdefg", 2)
    desk.transport.drain()
    assert (desk.transport.taken, desk.outbox.waiting_bytes) == (b"abcdefghi", 0)
    desk.outbox.write(b"jkl")
    desk.turn()
    assert desk.transport.taken == b"abcdefghijkl"


@given(
    frames=st.lists(st.integers(0, 3 * CHUNK_BYTES // 2), max_size=12),
    rooms=st.lists(st.sampled_from([0, 1, 1000, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES]), max_size=30),
    writes_between=st.integers(1, 4),
)
def test_every_byte_in_order_whatever_the_kernel_takes(
    frames: list[int], rooms: list[int], writes_between: int
) -> None:
    desk = Desk(room=0, limit_bytes=1 << 30)
    written = b""
    waiting = [random.Random(size).randbytes(size) for size in frames]
    for room in rooms:
        for frame in waiting[:writes_between]:
            desk.outbox.write(frame)
            written += frame
        del waiting[:writes_between]
        desk.turn()
        desk.transport.drain(room)
        assert len(desk.transport.buffer) <= CHUNK_BYTES
        # What Twisted has handed on of its buffer is known when that is empty.
        known_late = desk.outbox.waiting_bytes - (len(written) - len(desk.transport.taken))
        assert 0 <= known_late <= max(0, CHUNK_BYTES - len(desk.transport.buffer))
    while desk.outbox.waiting_bytes:
        desk.turn()
        desk.transport.drain(CHUNK_BYTES)
    assert desk.transport.taken == written


def test_a_large_backlog_is_not_copied_for_each_piece_that_leaves() -> None:
    desk = Desk(room=0, limit_bytes=1 << 30)
    for _ in range(64):
        desk.outbox.write(b"x" * CHUNK_BYTES)
    desk.turn()
    while desk.outbox.waiting_bytes:
        desk.transport.drain(CHUNK_BYTES)
    assert max(len(data) for data in desk.transport.sends) <= 2 * CHUNK_BYTES


def test_an_outbox_over_its_limit_forgets_what_waits_and_says_so_once() -> None:
    desk = Desk(room=10, limit_bytes=100)
    desk.outbox.write(b"x" * 60)
    desk.turn()
    desk.outbox.write(b"y" * 50)
    assert (desk.events, desk.outbox.waiting_bytes) == ([], 100)
    desk.outbox.write(b"z")
    assert desk.events == ["overflowed"] and desk.outbox.has_overflowed
    assert desk.outbox.waiting_bytes == 50, "what is in Twisted's buffer"
    assert not desk.outbox._frames
    desk.outbox.write(b"more")
    desk.turn()
    desk.transport.drain()
    assert desk.events == ["overflowed"]
    assert desk.transport.taken == b"x" * 60
    assert desk.outbox.waiting_bytes == 0
    assert len(desk.transport.sends) == 1


def test_last_words_come_behind_the_frame_that_was_begun() -> None:
    desk = Desk(room=1000, limit_bytes=4 * CHUNK_BYTES)
    large = b"x" * (3 * CHUNK_BYTES)
    desk.outbox.write(large)
    desk.turn()
    for _ in range(5):
        desk.outbox.write(b"y" * CHUNK_BYTES)
    assert desk.events == ["overflowed"]
    assert desk.outbox.waiting_bytes == len(large) - 1000
    desk.outbox.close(lambda: desk.events.append("finished"), b"slow!")
    desk.outbox.close(lambda: desk.events.append("finished twice"), b"again")
    desk.outbox.write(b"too late")
    while desk.transport.buffer:
        assert desk.events == ["overflowed"]
        desk.transport.drain(50_000)
    assert desk.transport.taken == large + b"slow!"
    assert desk.events == ["overflowed", "finished"]


def test_last_words_come_behind_all_others_without_an_overflow() -> None:
    desk = Desk(room=3)
    desk.outbox.write(b"abcdef")
    desk.outbox.close(lambda: desk.events.append("finished"), b"bye")
    assert desk.events == []
    desk.transport.drain()
    assert (desk.transport.taken, desk.events) == (b"abcdefbye", ["finished"])


def test_there_are_no_last_words_on_a_lost_connection() -> None:
    for loss in ("abandon", "stopProducing"):
        desk = Desk(room=10, limit_bytes=100)
        desk.outbox.write(b"x" * 60)
        desk.turn()
        desk.outbox.write(b"y" * 60)
        assert desk.outbox.has_overflowed
        getattr(desk.outbox, loss)()
        desk.outbox.close(partial(desk.events.append, "finished"), b"slow!")
        assert desk.events == ["overflowed"]
        assert (desk.outbox.waiting_bytes, desk.outbox.has_overflowed) == (0, False)


def test_what_was_in_the_buffer_of_the_transport_is_not_overtaken() -> None:
    desk = Desk()
    for name, data in (("dataBuffer", b"HTTP/1.1 200 OK"), ("_tempDataLen", 15)):
        transport = FakeTransport()
        setattr(transport, name, data)
        transport.buffer = b"HTTP/1.1 200 OK"
        outbox = make_outbox(transport, desk.cork, 100, lambda: None)
        outbox.write(b"frame")
        desk.turn()
        assert (transport.sends, outbox.waiting_bytes) == ([], 5)
        transport.drain()
        assert (transport.taken, outbox.waiting_bytes) == (b"HTTP/1.1 200 OKframe", 0)


def test_a_burst_within_one_turn_is_no_slowness() -> None:
    desk = Desk(limit_bytes=100)
    for _ in range(50):
        desk.outbox.write(b"x" * 30)
    desk.turn()
    assert desk.events == []
    assert desk.transport.taken == b"x" * 1500


def test_over_half_of_the_limit_presses() -> None:
    desk = Desk(room=0, limit_bytes=100)
    desk.outbox.write(b"x" * 50)
    desk.turn()
    assert not desk.cork.is_pressed
    desk.outbox.write(b"x")
    assert desk.cork.is_pressed
    fast = Desk(limit_bytes=100)
    fast.outbox.write(b"x" * 90)
    assert not fast.cork.is_pressed, "the kernel took it"


def test_a_blocked_outbox_is_not_flushed_in_vain() -> None:
    desk = Desk(room=0)
    desk.outbox.write(b"x")
    desk.turn()
    for _ in range(10):
        desk.outbox.write(b"x")
    assert desk.clock.getDelayedCalls() == []


def test_close_with_nothing_waiting_is_finished_at_once() -> None:
    desk = Desk()
    desk.close()
    assert desk.events == ["finished"]
    desk.outbox.write(b"too late")
    desk.turn()
    assert desk.transport.sends == []


def test_close_sends_first_what_waits() -> None:
    desk = Desk(room=2)
    desk.outbox.write(b"abcdef")
    desk.close()
    desk.close()
    desk.outbox.write(b"too late")
    assert (desk.transport.taken, desk.events) == (b"ab", [])
    desk.transport.drain(2)
    assert desk.events == []
    desk.transport.drain()
    assert (desk.transport.taken, desk.events) == (b"abcdef", ["finished"])


def test_close_after_the_kernel_was_full_for_long() -> None:
    desk = Desk(room=0, limit_bytes=1 << 30)
    desk.outbox.write(b"x" * (3 * CHUNK_BYTES))
    desk.turn()
    desk.close()
    while desk.transport.buffer:
        assert desk.events == []
        desk.transport.drain(50_000)
    assert (len(desk.transport.taken), desk.events) == (3 * CHUNK_BYTES, ["finished"])


def test_an_abandoned_outbox_forgets_what_waits() -> None:
    desk = Desk(room=2)
    desk.outbox.write(b"abcdef")
    desk.turn()
    desk.outbox.write(b"ghi")
    desk.close()
    desk.outbox.abandon()
    desk.outbox.abandon()
    assert (desk.outbox.waiting_bytes, desk.events) == (0, [])
    assert not desk.outbox._frames


def test_a_connection_that_goes_while_it_is_blocked() -> None:
    desk = Desk(room=2)
    desk.outbox.write(b"abcdef")
    desk.turn()
    desk.transport.lose()
    desk.outbox.write(b"ghi")
    desk.turn()
    assert (desk.outbox.waiting_bytes, desk.events) == (0, [])


def test_a_broken_connection_is_left_to_its_transport() -> None:
    desk = Desk()
    desk.transport.is_broken = True
    desk.outbox.write(b"abc")
    desk.turn()
    assert desk.transport.is_aborted
    assert (desk.outbox.waiting_bytes, desk.events) == (0, [])
    desk.outbox.write(b"def")
    desk.close()
    desk.turn()
    assert (desk.transport.sends, desk.events) == ([b"abc"], [])


def test_a_broken_connection_found_by_a_frame_that_is_too_much() -> None:
    desk = Desk(limit_bytes=100)
    desk.transport.is_broken = True
    desk.outbox.write(b"x" * 200)
    assert (desk.transport.is_aborted, desk.events) == (True, [])


# --- real sockets -------------------------------------------------------------------------------------


class CountingSocket:
    """A socket whose sends are counted."""

    def __init__(self, sock: socket.socket, sends: list[int]) -> None:
        self._sock = sock
        self._sends = sends

    def send(self, data: bytes) -> int:
        sent = self._sock.send(data)
        self._sends.append(sent)
        return sent


class CountingTransport:
    """A Twisted transport that gives away a counting socket; all else is its own."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.sends: list[int] = []

    def getHandle(self) -> CountingSocket:
        return CountingSocket(self._transport.getHandle(), self.sends)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Server(Protocol):
    """The side that has the outbox."""

    def __init__(self) -> None:
        self.made: Deferred[None] = Deferred()
        self.lost: Deferred[BaseException] = Deferred()

    def connectionMade(self) -> None:
        self.made.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(reason.value)


class OnRealSockets(TestCase):
    """An outbox behind a listening socket of ours, and a plain socket that reads as a test wants."""

    timeout = 30

    async def connect(self, limit_bytes: int = 1 << 20) -> None:
        self.server = Server()
        factory = Factory.forProtocol(lambda: self.server)  # type: ignore[arg-type]
        factory.noisy = False
        sock = bind("127.0.0.1", 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)  # so that it is full soon
        port = start_listening(reactor, sock, factory)
        self.addCleanup(lambda: stop_listening(port, inherited=True))
        self.peer = socket.socket()
        self.addCleanup(self.peer.close)
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        self.peer.setblocking(False)
        self.peer.connect_ex(("127.0.0.1", port.getHost().port))  # type: ignore[attr-defined]
        await self.server.made
        self.transport = CountingTransport(self.server.transport)
        self.cork = Cork(reactor, reactor.seconds, 1.0)
        self.events: list[str] = []
        self.outbox = Outbox(self.transport, self.cork, limit_bytes, lambda: self.events.append("overflowed"))

    def tearDown(self) -> Any:
        if self.server.lost.called:
            return None
        cast(Any, self.server.transport).abortConnection()
        return self.server.lost

    async def turn(self) -> None:
        await deferLater(reactor, 0)

    async def until(self, fact: Callable[[], bool]) -> None:
        """Wait for what no event tells; the time limit of the test ends it."""
        while not fact():
            await deferLater(reactor, 0.001)

    def read(self, size: int) -> bytes | None:
        """What is there, at most ``size`` bytes; empty at the end; ``None`` if nothing is there."""
        try:
            return self.peer.recv(size)
        except BlockingIOError:
            return None

    @property
    def buffered(self) -> int:
        """Bytes in Twisted's buffer."""
        transport: Any = self.server.transport
        return len(transport.dataBuffer) - transport.offset + sum(map(len, transport._tempDataBuffer))

    async def read_all(self, size: int, chance: random.Random) -> bytes:
        heard = b""
        while len(heard) < size:
            assert self.buffered <= CHUNK_BYTES
            for _ in range(chance.randrange(4)):
                heard += self.read(chance.randrange(1, 40_000)) or b""
            await self.turn()
        return heard

    async def test_one_send_for_all_frames_of_a_turn(self) -> None:
        await self.connect()
        for number in range(100):
            self.outbox.write(b"frame %d\n" % number)
        await self.until(lambda: bool(self.transport.sends))
        await self.turn()
        expected = b"".join(b"frame %d\n" % number for number in range(100))
        self.assertEqual(self.transport.sends, [len(expected)])
        self.assertEqual(await self.read_all(len(expected), random.Random(1)), expected)

    async def test_a_reader_that_drains_at_random_gets_every_byte_in_order(self) -> None:
        await self.connect(limit_bytes=64 << 20)
        chance = random.Random(7)
        written, heard = b"", b""
        for _ in range(300):
            for _ in range(chance.randrange(5)):
                frame = chance.randbytes(chance.choice([1, 100, 5_000, 60_000, 200_000]))
                self.outbox.write(frame)
                written += frame
                if len(written) > 5 << 20:
                    break
            heard += self.read(chance.randrange(1, 100_000)) or b""
            self.assertLessEqual(self.buffered, CHUNK_BYTES)
            await self.turn()
        self.assertGreater(self.outbox.waiting_bytes, CHUNK_BYTES)
        heard += await self.read_all(len(written) - len(heard), chance)
        self.assertTrue(heard == written)
        await self.until(lambda: self.outbox.waiting_bytes == 0)

    async def test_a_peer_that_does_not_read_runs_the_outbox_over_once(self) -> None:
        await self.connect(limit_bytes=200_000)
        for _ in range(1000):
            self.outbox.write(b"x" * 1000)
            await self.turn()
            self.assertLessEqual(self.outbox.waiting_bytes, 200_000)
            self.assertLessEqual(self.buffered, CHUNK_BYTES)
        self.assertEqual(self.events, ["overflowed"])
        self.assertLessEqual(self.outbox.waiting_bytes, CHUNK_BYTES)

    async def test_close_with_data_waiting_is_finished_after_all_of_it(self) -> None:
        await self.connect(limit_bytes=64 << 20)
        data = random.Random(3).randbytes(3 << 20)
        for start in range(0, len(data), 100_000):
            self.outbox.write(data[start : start + 100_000])
        transport: Any = self.server.transport

        def finished() -> None:
            self.assertEqual((self.outbox.waiting_bytes, self.buffered), (0, 0))
            transport.loseConnection()

        self.outbox.close(finished)
        self.assertGreater(self.outbox.waiting_bytes, 0)
        heard = await self.read_all(len(data), random.Random(4))
        self.assertTrue(heard == data)
        await self.until(lambda: self.read(1) == b"")
        await self.server.lost

    async def test_a_peer_that_resets_while_much_waits(self) -> None:
        await self.connect()
        self.outbox.write(b"x" * 900_000)
        await self.turn()
        self.assertGreater(self.outbox.waiting_bytes, 0)
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()
        await self.server.lost
        self.assertEqual(self.outbox.waiting_bytes, 0)
        self.outbox.write(b"to nobody")
        await self.turn()
        self.assertEqual((self.outbox.waiting_bytes, self.events), (0, []))

    async def test_a_flush_finds_the_connection_broken_first(self) -> None:
        await self.connect()
        transport: Any = self.server.transport
        transport.pauseProducing()  # so that only a send can notice
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()
        poll = select.poll()
        poll.register(transport.getHandle(), 0)  # a reset is told also to those who ask for nothing
        await self.until(lambda: bool(poll.poll(0)))
        self.outbox.write(b"to nobody")
        self.assertIsInstance(await self.server.lost, ConnectionAborted)
        self.assertEqual(self.outbox.waiting_bytes, 0)

    async def test_a_flush_after_the_connection_is_gone(self) -> None:
        await self.connect()
        cast(Any, self.server.transport).abortConnection()
        await self.server.lost
        self.outbox.write(b"to nobody")
        self.outbox.flush()
        self.assertEqual((self.outbox.waiting_bytes, self.events), (0, []))


def test_who_takes_nothing_is_not_waited_for_for_ever() -> None:
    desk = Desk(room=0, limit_bytes=100)
    desk.outbox.write(b"x" * 60)
    assert desk.cork.behind == [desk.outbox]
    for _ in range(PATIENCE_RESTS):
        desk.outbox.waited_for()
    desk.cork.behind.clear()
    desk.outbox.write(b"x")
    assert desk.cork.is_pressed and desk.cork.behind == []
    desk.transport.drain(room=61)
    desk.outbox.write(b"x" * 60)
    assert desk.cork.behind == [desk.outbox]


# --- only the latest of a key -------------------------------------------------------------------------


def test_who_reads_on_gets_all_of_a_key() -> None:
    desk = Desk()
    for frame in (b"a1 ", b"a2 "):
        assert not desk.outbox.write_latest(frame, "a")
    desk.turn()
    assert not desk.outbox.write_latest(b"a3 ", "a")
    desk.turn()
    assert desk.transport.taken == b"a1 a2 a3 "


def test_what_waits_is_replaced_at_the_place_of_the_newer() -> None:
    desk = Desk(room=1)
    desk.outbox.write_latest(b"a1 ", "a")
    desk.turn()
    assert not desk.outbox.write_latest(b"a2 ", "a"), "the kernel has a part of the first"
    assert not desk.outbox.write_latest(b"b1 ", "b")
    desk.outbox.write(b"plain ")
    assert desk.outbox.write_latest(b"a3.. ", "a")
    assert desk.outbox.waiting_bytes == len(b"1 b1 plain a3.. ")
    desk.transport.drain()
    assert desk.transport.taken == b"a1 b1 plain a3.. "
    assert desk.outbox.waiting_bytes == 0


def test_a_key_is_found_when_frames_before_it_were_sent() -> None:
    desk = Desk(room=0, limit_bytes=1 << 22)
    desk.outbox.write(b"x" * CHUNK_BYTES * 2)
    desk.turn()
    for number in range(3):
        desk.outbox.write(b"%d" % number * CHUNK_BYTES)
    desk.outbox.write_latest(b"a1", "a")
    desk.transport.drain(room=CHUNK_BYTES * 3 + 1)
    assert desk.outbox.write_latest(b"a2", "a")
    desk.transport.drain()
    assert desk.transport.taken[-CHUNK_BYTES - 2 :] == b"2" * CHUNK_BYTES + b"a2"
    assert len(desk.transport.taken) == CHUNK_BYTES * 5 + 2
    assert desk.outbox.waiting_bytes == 0


def test_a_client_that_takes_nothing_costs_no_more_for_keys_than_there_are() -> None:
    desk = Desk(room=0, limit_bytes=1 << 10)
    desk.outbox.write(b"x")
    desk.turn()
    for number in range(10_000):
        desk.outbox.write_latest(b"%5d" % number, number % 3)
    assert desk.events == []
    assert desk.outbox.waiting_bytes == 1 + 3 * 5
    assert len(desk.outbox._frames) < 200
    desk.transport.drain()
    assert desk.transport.taken == b"x 9997 9998 9999"


def test_keys_of_frames_that_were_sent_are_forgotten() -> None:
    desk = Desk(room=0)
    desk.outbox.write(b"x")
    desk.turn()
    for number in range(5_000):
        desk.outbox.write_latest(b"%d," % number, number)
        if number % 10 == 9:
            desk.transport.drain(room=1 << 20)
            desk.transport.drain(room=0)
            desk.outbox.write(b"x")
            desk.turn()
    assert desk.outbox._latest is None or len(desk.outbox._latest._at) < 200


def test_nothing_is_replaced_behind_last_words_or_after_an_overflow() -> None:
    desk = Desk(room=0, limit_bytes=100)
    desk.outbox.write(b"x")
    desk.turn()
    desk.outbox.write_latest(b"a1", "a")
    desk.close()
    assert not desk.outbox.write_latest(b"a2", "a")
    desk.transport.drain()
    assert (desk.transport.taken, desk.events) == (b"xa1", ["finished"])
    over = Desk(room=0, limit_bytes=10)
    over.outbox.write(b"x")
    over.turn()
    over.outbox.write_latest(b"a1", "a")
    over.outbox.write(b"y" * 20)
    assert over.events == ["overflowed"]
    assert not over.outbox.write_latest(b"a2", "a")
    assert over.outbox.waiting_bytes == 1


@given(st.lists(st.tuples(st.sampled_from("wlld"), st.integers(0, 3), st.integers(1, 9)), max_size=60))
def test_what_a_client_gets_ends_with_the_latest_of_each_key(steps: list[tuple[str, int, int]]) -> None:
    desk = Desk(room=0)
    desk.outbox.write(b"-;")
    desk.turn()
    newest: dict[int, int] = {}
    plain: list[int] = []
    for number, (step, key, room) in enumerate(steps):
        if step == "w":
            desk.outbox.write(b"p:%d;" % number)
            plain.append(number)
        elif step == "l":
            desk.outbox.write_latest(b"%d:%d;" % (key, number), key)
            newest[key] = number
        else:
            desk.transport.drain(room)
            desk.turn()
    desk.transport.drain()
    desk.turn()
    heard = [part.split(":") for part in desk.transport.taken.decode().split(";")[1:-1]]
    numbers = [int(number) for _, number in heard]
    assert numbers == sorted(set(numbers)), "in order, and nothing twice"
    assert [int(number) for kind, number in heard if kind == "p"] == plain
    assert {int(kind): int(number) for kind, number in heard if kind != "p"} == newest
    assert desk.outbox.waiting_bytes == 0


def test_a_client_that_has_caught_up_holds_no_frames() -> None:
    desk = Desk(room=0)
    desk.outbox.write(b"x")
    desk.turn()
    desk.outbox.write_latest(b"a1", "a")
    assert desk.outbox._latest is not None
    desk.transport.drain()
    assert desk.outbox._latest is None
