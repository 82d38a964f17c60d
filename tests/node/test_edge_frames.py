"""Whole messages without a parser: what is taken, and what is left to the parser."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from spread.node.edge.frames import whole_messages

LIMIT = 1000
MASK = b"\x01\x02\x03\x04"


def masked(first: int, payload: bytes, length: bytes | None = None, mask: bytes = MASK) -> bytes:
    """A frame of a client."""
    if length is None:
        size = len(payload)
        length = bytes([0x80 | size]) if size < 126 else struct.pack("!BH", 0x80 | 126, size)
    body = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes([first]) + length + mask + body


def test_text_and_binary_of_all_lengths() -> None:
    for size in (0, 1, 3, 4, 125, 126, 127, 500, LIMIT):
        for first in (0x81, 0x82):
            payload = bytes(65 + index % 26 for index in range(size))
            frame = masked(first, payload)
            assert whole_messages(frame, LIMIT) == ([payload], len(frame))


def test_several_and_the_beginning_of_another() -> None:
    frames = [masked(0x81, b"one"), masked(0x82, b"\xff\x00"), masked(0x81, "zwölf".encode())]
    data = b"".join(frames)
    assert whole_messages(data, LIMIT) == ([b"one", b"\xff\x00", "zwölf".encode()], len(data))
    for cut in range(len(data)):
        messages, at = whole_messages(data[:cut], LIMIT)
        ends = [sum(map(len, frames[:count])) for count in range(4)]
        assert at == max(end for end in ends if end <= cut)
        assert len(messages) == ends.index(at)


@pytest.mark.parametrize(
    "odd",
    [
        masked(0x01, b"a fragment"),
        masked(0x80, b"the end of a message"),
        masked(0xC1, b"compressed"),
        masked(0x89, b"ping"),
        masked(0x88, b"\x03\xe8"),
        masked(0x83, b"an opcode of another time"),
        masked(0x81, b"\xff\xfe no UTF-8"),
        masked(0x81, b"x" * (LIMIT + 1)),
        masked(0x81, b"short", length=struct.pack("!BH", 0x80 | 126, 5)),
        masked(0x81, b"short", length=struct.pack("!BQ", 0x80 | 127, 5)),
        b"\x81\x05hello, not masked",
    ],
)
def test_the_parser_gets_what_is_anything_else_and_all_behind_it(odd: bytes) -> None:
    before, behind = masked(0x81, b"before"), masked(0x81, b"behind")
    assert whole_messages(before + odd + behind, LIMIT) == ([b"before"], len(before))


frame = st.builds(
    masked,
    st.sampled_from([0x81, 0x82, 0x81, 0x82, 0x01, 0x80, 0x89, 0xC1, 0x88, 0x83]),
    st.binary(max_size=200) | st.text(max_size=60).map(str.encode),
    mask=st.binary(min_size=4, max_size=4),
)


@given(st.lists(frame, max_size=5).map(b"".join) | st.binary(max_size=60), st.integers(0, 300))
def test_it_finds_what_the_parser_finds(data: bytes, limit: int) -> None:
    messages, at = whole_messages(data, limit)
    parser = ServerProtocol(state=OPEN, max_size=limit)
    parser.receive_data(data[:at])
    found = parser.events_received()
    assert [bytes(each.data) for each in found] == messages  # type: ignore[union-attr]
    assert all(each.fin and each.opcode in (Opcode.TEXT, Opcode.BINARY) for each in found)  # type: ignore[union-attr]
    assert parser.parser_exc is None and parser.state is OPEN
