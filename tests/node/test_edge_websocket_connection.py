"""WebSocket connections after the handshake: in memory, byte by byte, with the parser of a client."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from spread.node import codes
from spread.node.codec import Codec
from spread.node.edge.codecs import JSON_WEBSOCKET, PROTOBUF_WEBSOCKET
from spread.node.edge.parsers import Parsers
from spread.node.edge.websocket_connection import (
    CLOSE_SECONDS,
    LINGER_SECONDS,
    Opening,
    WebSocketEdge,
    WebSocketPort,
)
from spread.node.session.contract import Visit
from tests.node.edges import EdgeTransport, FakeSessions

LIMIT = 65536
HEAD = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


def masked(opcode: int, data: bytes = b"", fin: bool = True) -> bytes:
    """A frame of a client."""
    return Frame(Opcode(opcode), data, fin).serialize(mask=True)


TEXT, BINARY, CONT, CLOSE, PING, PONG = (
    Opcode.TEXT,
    Opcode.BINARY,
    Opcode.CONT,
    Opcode.CLOSE,
    Opcode.PING,
    Opcode.PONG,
)


class Desk:
    """A connection in memory, between a fake session and a client's parser."""

    def __init__(
        self,
        room: int | None = None,
        codec: Codec = JSON_WEBSOCKET,
        outbox_max_bytes: int = 1 << 20,
        native_pings: bool = False,
        parsers: Parsers | None = None,
        pong_seconds: float = 8.0,
        on_open: Any = None,
    ) -> None:
        self.clock = Clock()
        self.sessions = FakeSessions(self.clock, outbox_max_bytes)
        if on_open is not None:
            self.sessions.on_open = on_open
        self.port = WebSocketPort(self.sessions, self.clock, 1.0, 25.0, pong_seconds)
        self.parsers = parsers or Parsers(LIMIT)
        visit = Visit(transport="websocket", address="192.0.2.1", has_native_pings=native_pings)
        self.edge = WebSocketEdge(self.port, self.parsers, Opening(HEAD, codec, visit))
        self.transport = EdgeTransport(room)
        self.transport.connect(self.edge)
        self.session = self.sessions.last
        self.client = ClientProtocol(parse_uri("ws://here"), state=OPEN)
        self._read = len(HEAD)

    def turn(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)

    def says(self, *frames: bytes) -> None:
        """All in one read."""
        self.edge.dataReceived(b"".join(frames))

    @property
    def heard(self) -> list[Frame]:
        """Frames since the last look."""
        self.turn()
        new, self._read = self.transport.taken[self._read :], len(self.transport.taken)
        self.client.receive_data(new)
        assert self.client.parser_exc is None
        return [event for event in self.client.events_received() if isinstance(event, Frame)]

    @property
    def heard_close(self) -> tuple[int, str]:
        *_, last = self.heard
        assert last.opcode is CLOSE
        close = Close.parse(last.data)
        return int(close.code), close.reason


def test_the_answer_to_the_handshake_comes_first() -> None:
    desk = Desk()
    desk.session.say(b"{}")
    assert [bytes(frame.data) for frame in desk.heard] == [b"{}"]
    assert desk.transport.taken.startswith(HEAD)
    assert desk.transport.sends == [desk.transport.taken], "with the first message, in one send"


def test_text_and_binary_messages_are_handed_over_as_bytes() -> None:
    desk = Desk()
    desk.says(masked(TEXT, '{"é":1}'.encode()), masked(BINARY, b"\xff\x00"), masked(TEXT))
    desk.says(masked(TEXT, b"x" * 60_000))
    assert desk.session.frames == ['{"é":1}'.encode(), b"\xff\x00", b"", b"x" * 60_000]


def test_replies_are_text_or_binary() -> None:
    for codec, opcode, joined in ((JSON_WEBSOCKET, TEXT, b"a\nb"), (PROTOBUF_WEBSOCKET, BINARY, b"ab")):
        desk = Desk(codec=codec)
        desk.session.say(b"a", b"b")
        assert desk.heard == [Frame(opcode, joined)]


def test_fragments_with_control_frames_in_between() -> None:
    desk = Desk()
    emoji = "😀".encode()
    desk.says(masked(TEXT, b"a" + emoji[:1], fin=False))
    desk.says(masked(PING, b"are you there"), masked(CONT, emoji[1:3], fin=False), masked(PONG, b"?"))
    assert desk.session.frames == []
    assert desk.heard == [Frame(PONG, b"are you there")]
    desk.says(masked(CONT, emoji[3:]), masked(TEXT, b"next"))
    assert desk.session.frames == [b"a" + emoji, b"next"]


def test_fragments_of_one_byte() -> None:
    desk = Desk()
    message = b"0123456789" * 100
    stream = masked(BINARY, b"", fin=False)
    stream += b"".join(masked(CONT, bytes([byte]), fin=False) for byte in message) + masked(CONT)
    for byte in stream[:3000]:
        desk.says(bytes([byte]))
    desk.says(stream[3000:])
    assert desk.session.frames == [message]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_messages_arrive_whole_however_they_are_cut(data: st.DataObject) -> None:
    desk = Desk()
    messages = data.draw(st.lists(st.binary(max_size=400), max_size=6))
    stream = b""
    for message in messages:
        pieces = data.draw(st.integers(1, 4))
        size = -(-len(message) // pieces) or 1
        cuts = [message[start : start + size] for start in range(0, max(len(message), 1), size)]
        for number, piece in enumerate(cuts):
            stream += masked(CONT if number else BINARY, piece, fin=number == len(cuts) - 1)
            if data.draw(st.booleans()):
                stream += masked(PING, b"p")
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        desk.says(stream[:size])
        stream = stream[size:]
    assert desk.session.frames == messages
    assert all(frame == Frame(PONG, b"p") for frame in desk.heard)


# -- memory ----------------------------------------------------------------------------------------------


def test_a_connection_between_two_messages_has_no_parser() -> None:
    parsers = Parsers(LIMIT)
    one, two = Desk(parsers=parsers), Desk(parsers=parsers)
    for desk in (one, two, one):
        desk.says(masked(TEXT, b"whole"), masked(PING))
        assert desk.edge._parser is None
    begun = masked(TEXT, b"x" * 200)
    one.says(begun[:1])
    two.says(begun[:150])
    assert one.edge._parser is not two.edge._parser
    two.says(begun[150:])
    one.says(begun[1:])
    assert one.edge._parser is two.edge._parser is None
    assert one.session.frames[-1] == two.session.frames[-1] == b"x" * 200


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 8])
def test_a_parser_stays_with_a_frame_that_has_begun(size: int) -> None:
    # The parser has taken these bytes out of its buffer by the time it waits for more.
    desk = Desk()
    frame = masked(TEXT, b"x" * 300)
    desk.says(frame[:size])
    other = Desk(parsers=desk.parsers)
    other.says(masked(TEXT, b"other"))
    desk.says(frame[size:])
    assert (desk.session.frames, other.session.frames) == ([b"x" * 300], [b"other"])


def test_nothing_is_left_of_a_lost_connection() -> None:
    desk = Desk()
    desk.says(masked(TEXT, b"x" * 100, fin=False), masked(CONT, b"y")[:3])
    desk.turn()
    desk.transport.lose()
    assert desk.session.lost_count == 1
    assert desk.edge._parser is None and desk.edge._message is None
    assert desk.clock.getDelayedCalls() == []


# -- limits and faults -------------------------------------------------------------------------------------


def ended_with(desk: Desk, code: int) -> None:
    """The session was told, the client is told, and the connection ends though the client does nothing."""
    assert [each.code for each in desk.session.ended] == [code]
    assert desk.heard_close[0] == code
    for _ in range(3):
        desk.says(masked(TEXT, b"more"))
    desk.turn(CLOSE_SECONDS + LINGER_SECONDS)
    assert desk.transport.is_ended
    desk.transport.lose()
    assert desk.session.lost_count == 1
    assert desk.clock.getDelayedCalls() == []


def test_a_message_at_the_limit_and_above() -> None:
    desk = Desk()
    desk.says(masked(BINARY, b"x" * LIMIT))
    assert len(desk.session.frames) == 1
    desk.says(masked(BINARY, b"x" * (LIMIT + 1))[:10])
    ended_with(desk, 1009)


def test_a_length_beyond_all_bounds() -> None:
    desk = Desk()
    desk.says(struct.pack("!BBQ", 0x82, 0xFF, (1 << 63) - 1))
    ended_with(desk, 1009)


def test_fragments_over_the_limit() -> None:
    desk = Desk()
    desk.says(masked(TEXT, b"x" * 40_000, fin=False))
    desk.says(masked(CONT, b"x" * 30_000))
    ended_with(desk, 1009)
    assert desk.session.frames == []


@pytest.mark.parametrize("pieces", [[b"\xff"], [b"ok", b"\xc3"], [b"\xc3", b"\x28"], [b"\xed\xa0\x80"]])
def test_text_that_is_not_utf_8(pieces: list[bytes]) -> None:
    desk = Desk()
    frames = [masked(CONT if n else TEXT, p, fin=n == len(pieces) - 1) for n, p in enumerate(pieces)]
    desk.says(masked(TEXT, b"first"), *frames, masked(TEXT, b"behind"))
    assert desk.session.frames == [b"first"]
    ended_with(desk, 1007)


@pytest.mark.parametrize(
    "broken",
    [
        Frame(TEXT, b"not masked").serialize(mask=False),
        b"\xc1" + masked(TEXT, b"x")[1:],
        b"\xa1" + masked(TEXT, b"x")[1:],
        b"\x91" + masked(TEXT, b"x")[1:],
        b"\x83" + masked(TEXT, b"x")[1:],
        b"\x8f" + masked(TEXT, b"x")[1:],
        masked(CONT, b"of nothing"),
        masked(TEXT, b"a", fin=False) + masked(TEXT, b"b"),
        b"\x09" + masked(PING)[1:],
        b"\x89\xfe\x00\x7e" + b"\0" * 130,
        masked(CLOSE, b"\x03"),
        masked(CLOSE, struct.pack("!H", 1005)),
        masked(CLOSE, struct.pack("!H", 65535)),
        masked(TEXT, b"a", fin=False) + masked(CLOSE, struct.pack("!H", 1000)),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=str,
)
def test_what_the_protocol_forbids(broken: bytes) -> None:
    desk = Desk()
    desk.says(masked(TEXT, b"before"), broken)
    assert desk.session.frames == [b"before"]
    ended_with(desk, 1002)


def test_a_close_whose_reason_is_not_utf_8() -> None:
    desk = Desk()
    desk.says(masked(CLOSE, struct.pack("!H", 1000) + b"\xff"))
    ended_with(desk, 1007)


def test_random_bytes_end_it_or_wait() -> None:
    chance = random.Random(5)
    for _ in range(300):
        desk = Desk()
        for _ in range(4):
            desk.says(chance.randbytes(chance.randrange(1, 400)))
        desk.turn(60)
        if desk.session.ended:
            assert desk.transport.is_ended and len(desk.session.ended) == 1
        desk.transport.lose()
        assert desk.session.lost_count == 1


def test_pings_that_nobody_waits_for_the_answers_of() -> None:
    desk = Desk(room=1000, outbox_max_bytes=65536)
    for _ in range(2000):
        if desk.transport.is_ended or desk.session.ended:
            break
        desk.says(masked(PING, b"x" * 125))
        desk.turn()
    assert desk.session.ended == [codes.SLOW]


# -- pause and resume --------------------------------------------------------------------------------------


def test_what_was_parsed_waits_while_reading_is_paused() -> None:
    desk = Desk()
    session, edge = desk.session, desk.edge

    def pause_at_each(frame: bytes) -> None:
        edge.pause_reading()
        edge.pause_reading()

    session.on_frame = pause_at_each
    desk.says(*(masked(TEXT, b"%d" % number) for number in range(4)))
    assert session.frames == [b"0"] and desk.transport.is_paused
    desk.says(masked(TEXT, b"4"))  # over TLS, some more of the same read
    for count in range(2, 6):
        edge.resume_reading()
        assert len(session.frames) == count and desk.transport.is_paused
    edge.resume_reading()
    edge.resume_reading()
    assert not desk.transport.is_paused
    assert session.frames == [b"0", b"1", b"2", b"3", b"4"]


def test_a_session_that_pauses_and_resumes_at_once() -> None:
    desk = Desk()

    def nod(frame: bytes) -> None:
        desk.edge.pause_reading()
        desk.edge.resume_reading()

    desk.session.on_frame = nod
    desk.says(*(masked(TEXT, b"%d" % number) for number in range(4)))
    assert desk.session.frames == [b"0", b"1", b"2", b"3"] and not desk.transport.is_paused


def test_nothing_is_handed_over_after_close() -> None:
    desk = Desk()
    desk.session.on_frame = lambda frame: desk.edge.close(codes.STALE)
    desk.says(masked(TEXT, b"one"), masked(TEXT, b"two"), masked(TEXT, b"\xff"))
    desk.says(masked(TEXT, b"three"))
    assert desk.session.frames == [b"one"]
    desk.edge.resume_reading()
    assert desk.session.frames == [b"one"]


# -- the end -----------------------------------------------------------------------------------------------


def test_close_says_why_and_waits_for_the_peer() -> None:
    desk = Desk()
    desk.session.say(b"last reply")
    desk.edge.close(codes.SHUTDOWN)
    desk.edge.close(codes.STALE)
    desk.session.say(b"too late")
    first, last = desk.heard
    assert (first.data, Close.parse(last.data)) == (b"last reply", Close(3001, "shutdown"))
    desk.turn(CLOSE_SECONDS - 0.1)
    assert not desk.transport.is_ended
    desk.says(masked(PING), masked(TEXT, b"on its way"), masked(CLOSE, struct.pack("!H", 3001)))
    assert desk.transport.is_closed and not desk.transport.is_aborted
    assert desk.heard == []
    desk.says(b"and more")
    desk.transport.lose()
    assert (desk.session.frames, desk.session.ended, desk.session.lost_count) == ([], [], 1)
    assert desk.clock.getDelayedCalls() == []


def test_a_peer_that_does_not_answer_a_close_is_dropped() -> None:
    desk = Desk()
    desk.edge.close(codes.SHUTDOWN)
    desk.turn(CLOSE_SECONDS + 0.1)
    assert desk.transport.is_aborted


def test_a_peer_that_does_not_take_what_waits_is_dropped() -> None:
    desk = Desk(room=10)
    desk.session.say(b"x" * 100)
    desk.edge.close(codes.SHUTDOWN)
    desk.turn(CLOSE_SECONDS + 0.1)
    assert desk.transport.is_aborted
    assert b"shutdown" not in desk.transport.taken


def test_a_long_reason_is_cut() -> None:
    desk = Desk()
    desk.edge.close(codes.BAD_PROTOCOL.because("因" * 50))
    assert desk.heard_close == (3501, "因" * 41)


def test_the_close_of_a_peer_is_answered_behind_what_waits() -> None:
    desk = Desk()
    desk.session.on_frame = lambda frame: desk.session.say(b"reply")
    desk.says(masked(TEXT, b"request"), masked(PING, b"x"), masked(CLOSE, struct.pack("!H", 1000) + b"bye"))
    frames = desk.heard
    assert [frame.opcode for frame in frames] == [TEXT, PONG, CLOSE]
    assert frames[-1].data == struct.pack("!H", 1000) + b"bye"
    assert desk.transport.is_closed
    desk.session.say(b"too late")
    desk.says(masked(TEXT, b"behind"))
    assert desk.session.frames == [b"request"]
    desk.transport.lose()
    assert (desk.session.ended, desk.session.lost_count) == ([], 1)


def test_an_empty_close() -> None:
    desk = Desk()
    desk.says(masked(CLOSE))
    assert desk.heard == [Frame(CLOSE, b"")]
    assert desk.transport.is_closed


def test_a_close_of_a_peer_that_reads_no_more() -> None:
    desk = Desk(room=50)
    desk.session.say(b"x" * 1000)
    desk.turn()
    desk.says(masked(CLOSE, struct.pack("!H", 1001)))
    assert not desk.transport.is_ended
    desk.turn(CLOSE_SECONDS + 0.1)
    assert desk.transport.is_aborted


def test_both_close_at_the_same_time() -> None:
    desk = Desk(room=50)
    desk.session.say(b"x" * 1000)
    desk.edge.close(codes.SHUTDOWN)
    desk.says(masked(CLOSE, struct.pack("!H", 1000)))
    assert not desk.transport.is_ended, "our Close has not left"
    desk.transport.drain()
    assert desk.transport.is_closed
    assert desk.heard_close == (3001, "shutdown")


def test_close_resumes_reading() -> None:
    desk = Desk()
    desk.edge.pause_reading()
    desk.says(masked(TEXT, b"waits"))
    desk.edge.close(codes.SHUTDOWN)
    assert not desk.transport.is_paused
    desk.edge.pause_reading()
    assert not desk.transport.is_paused
    desk.says(masked(CLOSE))
    assert desk.transport.is_closed and desk.session.frames == []


def test_a_fault_behind_our_close_is_left_to_the_clock() -> None:
    desk = Desk()
    desk.edge.close(codes.SHUTDOWN)
    desk.says(b"\xff\xff\xff")
    assert not desk.transport.is_ended
    desk.turn(CLOSE_SECONDS + 0.1)
    assert desk.transport.is_aborted


def test_after_a_fault_the_peer_sees_the_end_of_what_we_send() -> None:
    desk = Desk()
    desk.says(b"\xff\xff\xff")
    assert desk.transport.has_ended_writing and not desk.transport.is_ended
    desk.says(masked(CLOSE, struct.pack("!H", 1002)))
    desk.turn(LINGER_SECONDS + 0.1)
    assert desk.transport.is_aborted


def test_cut() -> None:
    desk = Desk()
    desk.session.say(b"x")
    desk.edge.cut()
    desk.turn()
    assert desk.transport.is_aborted and desk.transport.sends == []
    desk.edge.close(codes.SHUTDOWN)
    desk.transport.lose()
    assert desk.session.lost_count == 1 and desk.clock.getDelayedCalls() == []


def test_a_session_that_closes_as_it_opens() -> None:
    desk = Desk(on_open=lambda session: session.edge.close(codes.SHUTDOWN), native_pings=True)
    assert desk.heard_close == (3001, "shutdown")
    desk.says(masked(TEXT, b"hello"))
    desk.says(masked(CLOSE))
    assert desk.transport.is_closed and desk.session.frames == []


def test_a_session_that_says_too_much_as_it_opens() -> None:
    desk = Desk(room=0, outbox_max_bytes=65536, on_open=lambda session: session.say(b"x" * 70_000))
    assert desk.transport.is_aborted


# -- slow clients ------------------------------------------------------------------------------------------


def test_a_slow_client_is_told_so() -> None:
    desk = Desk(room=1000, outbox_max_bytes=65536)
    for _ in range(3):
        desk.session.say(b"x" * 30_000)
        desk.turn()
    assert desk.session.ended == [codes.SLOW]
    assert not desk.transport.is_ended
    desk.transport.drain()
    frames = desk.heard
    assert [len(frame.data) for frame in frames[:-1]] == [30_000], "what was begun is whole"
    assert Close.parse(frames[-1].data) == Close(3008, "slow")
    desk.says(masked(CLOSE, struct.pack("!H", 3008)))
    assert desk.transport.is_closed


def test_a_slow_client_that_does_not_take_that_either_is_cut() -> None:
    desk = Desk(room=1000, outbox_max_bytes=65536)
    for _ in range(3):
        desk.session.say(b"x" * 30_000)
        desk.turn()
    desk.turn(CLOSE_SECONDS - 0.1)
    assert not desk.transport.is_ended
    desk.turn(0.2)
    assert desk.transport.is_aborted


# -- pings of WebSocket ------------------------------------------------------------------------------------


def test_native_pings() -> None:
    desk = Desk(native_pings=True)
    pings = 0
    for _ in range(126):
        desk.turn(1)
        for frame in desk.heard:
            assert frame == Frame(PING, b"")
            pings += 1
            desk.turn(7)
            desk.says(masked(PONG))
    assert pings in (5, 6, 7) and desk.session.ended == []
    desk.edge.close(codes.SHUTDOWN)
    assert len(desk.clock.getDelayedCalls()) == 1, "no more pings"


def test_a_ping_that_is_not_answered() -> None:
    desk = Desk(native_pings=True)
    desk.turn(12.4)
    assert desk.heard == []
    desk.turn(12.7)
    assert [frame.opcode for frame in desk.heard] == [PING]
    desk.turn(8)
    assert desk.session.ended == [codes.NO_PONG]
    assert desk.heard_close == (3012, "no pong")


def test_pings_that_need_no_answer() -> None:
    desk = Desk(native_pings=True, pong_seconds=-1)
    count = 0
    for _ in range(126):
        desk.turn(1)
        count += len(desk.heard)
    assert count in (5, 6) and desk.session.ended == []


# -- compression -------------------------------------------------------------------------------------------


def deflated(*pieces: bytes) -> list[bytes]:
    extension = PerMessageDeflate(True, True, 15, 15)
    return [
        Frame(CONT if n else TEXT, piece, n == len(pieces) - 1).serialize(mask=True, extensions=[extension])
        for n, piece in enumerate(pieces)
    ]


def test_compressed_messages() -> None:
    desk = Desk(parsers=Parsers(LIMIT, 10 * LIMIT))
    desk.says(*deflated(b"x" * 1000), masked(TEXT, b"plain"), *deflated(b"", b"a" * 500, b"b" * 500))
    desk.says(*deflated(b"x" * 10 * LIMIT))
    assert desk.edge._parser is None
    assert desk.session.frames == [b"x" * 1000, b"plain", b"a" * 500 + b"b" * 500, b"x" * 10 * LIMIT]


@pytest.mark.parametrize("pieces", [[b"x" * (10 * LIMIT + 1)], [b"x" * LIMIT, b"x"], [b"x" * 100 * LIMIT]])
def test_a_compressed_message_over_the_limit(pieces: list[bytes]) -> None:
    desk = Desk(parsers=Parsers(LIMIT, 10 * LIMIT))
    desk.says(*deflated(*pieces))
    ended_with(desk, 1009)


def test_what_cannot_be_inflated() -> None:
    desk = Desk(parsers=Parsers(LIMIT, 10 * LIMIT))
    desk.says(b"\xc1" + masked(TEXT, b"\xff\xff\xff")[1:])
    ended_with(desk, 1002)
