"""Connections of JSON lines: in memory, and one over a real socket."""

from __future__ import annotations

import json
import random
import socket
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.trial.unittest import TestCase

from spread.node import codes
from spread.node.edge.codecs import JSON_LINES
from spread.node.edge.jsonlines import FINISH_SECONDS, LINGER_SECONDS, JsonLinesFactory
from spread.node.listen import bind, start_listening, stop_listening
from spread.node.settings import Settings
from tests.node.edges import EdgeTransport, FakeSessions

reactor = cast(Any, global_reactor)

LIMIT = 65536


class Desk:
    """A connection in memory."""

    def __init__(self, room: int | None = None, outbox_max_bytes: int = 1 << 20) -> None:
        self.clock = Clock()
        self.sessions = FakeSessions(self.clock, outbox_max_bytes)
        self.edge = JsonLinesFactory(self.sessions, Settings(), self.clock).buildProtocol(None)
        self.transport = EdgeTransport(room)
        self.transport.connect(self.edge)
        self.session = self.sessions.last

    def says(self, data: bytes) -> None:
        self.edge.dataReceived(data)

    def turn(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)

    @property
    def heard(self) -> list[Any]:
        self.turn()
        *lines, rest = self.transport.taken.split(b"\n")
        assert rest == b""
        return [json.loads(each) for each in lines]


def told(code: int, reason: str) -> dict[str, Any]:
    return {"push": {"disconnect": {"code": code, "reason": reason}}}


def test_a_line_is_a_frame() -> None:
    desk = Desk()
    desk.says(b'{"id":1}\n{"id":2}\r\n\n{"id"')
    assert desk.session.frames == [b'{"id":1}', b'{"id":2}', b""]
    desk.says(b":3}")
    desk.says(b"\r")
    desk.says(b"\n\r\n")
    assert desk.session.frames[3:] == [b'{"id":3}', b""]
    assert (desk.session.visit.transport, desk.session.visit.address) == ("json", "192.0.2.1")
    assert desk.session.codec is JSON_LINES


def test_replies_are_lines() -> None:
    desk = Desk()
    desk.session.say(b"{}", b'{"id":1}')
    assert desk.heard == [{}, {"id": 1}]


@given(st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"").rstrip(b"\r"))), st.data())
def test_lines_arrive_whole_however_they_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    desk = Desk()
    stream = b"".join(line + data.draw(st.sampled_from([b"\n", b"\r\n"])) for line in lines)
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        desk.says(stream[:size])
        stream = stream[size:]
    assert desk.session.frames == lines


def test_what_has_no_line_ending_is_a_frame_at_the_end() -> None:
    desk = Desk()
    desk.says(b'{"id":1}\n{"id":2}')
    desk.transport.lose()
    assert (desk.session.frames, desk.session.lost_count) == ([b'{"id":1}', b'{"id":2}'], 1)
    desk = Desk()
    desk.says(b"begun")
    desk.edge.pause_reading()
    desk.transport.lose()
    assert (desk.session.frames, desk.session.lost_count) == ([], 1)


def ended_with(desk: Desk, code: int, reason: str) -> None:
    assert [each.code for each in desk.session.ended] == [code]
    assert desk.heard[-1] == told(code, reason)
    assert desk.transport.has_ended_writing and not desk.transport.is_ended
    desk.says(b"more\n")
    desk.turn(LINGER_SECONDS)
    assert desk.transport.is_aborted
    desk.transport.lose()
    assert desk.session.lost_count == 1
    assert desk.clock.getDelayedCalls() == []


def test_lines_at_the_limit_and_above() -> None:
    desk = Desk()
    desk.says(b"x" * LIMIT + b"\r\n" + b"y" * LIMIT)
    desk.says(b"\n")
    assert desk.session.frames == [b"x" * LIMIT, b"y" * LIMIT]
    desk.says(b"z\n" + b"z" * (LIMIT + 1) + b"\nbehind\n")
    assert desk.session.frames[2:] == [b"z"]
    ended_with(desk, 3501, "line too long")


def test_a_line_that_never_ends() -> None:
    desk = Desk()
    for _ in range(LIMIT // 4096 + 1):
        desk.says(b"x" * 4096)
    assert desk.session.frames == []
    ended_with(desk, 3501, "line too long")


def test_random_bytes() -> None:
    desk = Desk()
    chance = random.Random(2)
    said = b"".join(desk.says(piece) or piece for piece in (chance.randbytes(500) for _ in range(50)))
    assert [frame.rstrip(b"\r") for frame in desk.session.frames] == [
        line.rstrip(b"\r") for line in said.split(b"\n")[:-1]
    ]


def test_close_flushes_and_says_why() -> None:
    desk = Desk()
    desk.session.say(b'{"id":1}')
    desk.says(b"begun")
    desk.edge.close(codes.SHUTDOWN)
    desk.edge.close(codes.STALE)
    desk.session.say(b"too late")
    assert desk.heard == [{"id": 1}, told(3001, "shutdown")]
    assert desk.transport.has_ended_writing
    desk.transport.lose()
    assert (desk.session.frames, desk.session.lost_count) == ([], 1)
    assert desk.clock.getDelayedCalls() == []


def test_a_peer_that_does_not_take_what_waits_is_cut() -> None:
    desk = Desk(room=5)
    desk.session.say(b"x" * 100)
    desk.edge.close(codes.SHUTDOWN)
    desk.turn(FINISH_SECONDS)
    assert desk.transport.is_aborted


def test_a_slow_client_is_told_so_or_cut() -> None:
    for reads in (True, False):
        desk = Desk(room=10, outbox_max_bytes=65536)
        for _ in range(3):
            desk.session.say(b'"%s"' % (b"x" * 30_000))
            desk.turn()
        assert desk.session.ended == [codes.SLOW]
        if reads:
            desk.transport.drain()
            assert desk.heard == ["x" * 30_000, told(3008, "slow")]
        else:
            desk.turn(FINISH_SECONDS - 1)
            assert not desk.transport.is_aborted
            desk.turn(1)
            assert desk.transport.is_aborted


def test_a_session_that_says_too_much_as_it_opens() -> None:
    clock = Clock()
    sessions = FakeSessions(clock, 65536)
    sessions.on_open = lambda session: session.say(b"x" * 70_000)
    transport = EdgeTransport(room=0)
    transport.connect(JsonLinesFactory(sessions, Settings(), clock).buildProtocol(None))
    assert transport.is_aborted


def test_pause_and_resume() -> None:
    desk = Desk()

    def pause(frame: bytes) -> None:
        desk.edge.pause_reading()
        desk.edge.pause_reading()

    desk.session.on_frame = pause
    desk.says(b"1\n2\n3\n4")
    assert desk.session.frames == [b"1"] and desk.transport.is_paused
    desk.says(b"4\n")
    desk.edge.resume_reading()
    assert desk.session.frames == [b"1", b"2"] and desk.transport.is_paused
    desk.session.on_frame = lambda frame: None
    desk.edge.resume_reading()
    desk.edge.resume_reading()
    assert desk.session.frames == [b"1", b"2", b"3", b"44"] and not desk.transport.is_paused


def test_pause_and_resume_at_once() -> None:
    desk = Desk()

    def nod(frame: bytes) -> None:
        desk.edge.pause_reading()
        desk.edge.resume_reading()

    desk.session.on_frame = nod
    desk.says(b"1\n2\n3\n")
    assert desk.session.frames == [b"1", b"2", b"3"] and not desk.transport.is_paused


def test_nothing_is_handed_over_after_close_and_reading_goes_on() -> None:
    desk = Desk()

    def close(frame: bytes) -> None:
        desk.edge.pause_reading()
        desk.edge.close(codes.STALE)

    desk.session.on_frame = close
    desk.says(b"1\n2\n")
    desk.says(b"3\n")
    assert desk.session.frames == [b"1"]
    assert not desk.transport.is_paused


def test_cut() -> None:
    desk = Desk()
    desk.session.say(b"{}")
    desk.edge.cut()
    desk.turn()
    assert desk.transport.is_aborted and desk.transport.sends == []
    desk.transport.lose()
    assert desk.session.lost_count == 1


def test_a_refused_client_is_told_why() -> None:
    clock = Clock()
    sessions = FakeSessions(clock)
    sessions.refusal = "full"
    edge = JsonLinesFactory(sessions, Settings(), clock).buildProtocol(None)
    transport = StringTransportWithDisconnection()
    transport.protocol = edge
    edge.makeConnection(transport)
    edge.dataReceived(b"too late\n")
    assert json.loads(transport.value()) == told(3013, "full")
    assert not transport.connected and sessions.opened == []


class OverTcp(TestCase):
    """As ``nc`` does it."""

    timeout = 20

    async def test_a_program_that_ends_its_side(self) -> None:
        sessions = FakeSessions(reactor)
        sessions.on_open = lambda session: setattr(session, "on_frame", lambda frame: session.say(frame))
        factory = JsonLinesFactory(sessions, Settings())
        port: Any = start_listening(reactor, bind("127.0.0.1", 0), factory)
        self.addCleanup(lambda: stop_listening(port, inherited=True))
        with socket.create_connection(("127.0.0.1", port.getHost().port)) as peer:
            peer.setblocking(False)
            peer.sendall(b'{"id":1}\n')
            got = b""
            while not got:
                await _turn()
                try:
                    got = peer.recv(100)
                except BlockingIOError:
                    continue
            self.assertEqual(got, b'{"id":1}\n')
            sessions.last.edge.close(codes.SHUTDOWN)
            got = b""
            while not got.endswith(b"\n"):
                await _turn()
                try:
                    got += peer.recv(100)
                except BlockingIOError:
                    continue
            self.assertEqual(json.loads(got), told(3001, "shutdown"))
        while not sessions.last.lost_count:
            await _turn()


def _turn() -> Deferred[None]:
    done: Deferred[None] = Deferred()
    reactor.callLater(0.001, done.callback, None)
    return done
