"""What transports put around messages, read by the parsers of others where there are some."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from spread.node.wire.framing import (
    FRAME_MAX_BYTES,
    FRAME_MAX_MESSAGES,
    LAST_CHUNK,
    chunk,
    compressing,
    cut_reason,
    line,
    pack_lines,
    packed,
    packing,
    sse,
    websocket_binary,
    websocket_close,
    websocket_ping,
    websocket_text,
)

SIZES = [0, 1, 125, 126, 127, 65535, 65536, 70_000]


def frames_of(data: bytes, is_compressed: bool = False) -> list[Frame]:
    """The frames that a client finds."""
    client = ClientProtocol(parse_uri("ws://here"), state=OPEN)
    if is_compressed:
        client.extensions = [PerMessageDeflate(True, True, 15, 15)]
    client.receive_data(data)
    assert client.parser_exc is None and not client.reader.buffer
    return [event for event in client.events_received() if isinstance(event, Frame)]


@pytest.mark.parametrize("size", SIZES)
def test_a_client_reads_what_was_framed(size: int) -> None:
    data = b"x" * size
    for frame, opcode in ((websocket_text, Opcode.TEXT), (websocket_binary, Opcode.BINARY)):
        assert frames_of(frame(data)) == [Frame(opcode, data)]
        assert frame(data) == Frame(opcode, data).serialize(mask=False)


@given(st.binary(max_size=300))
def test_frames_are_those_of_websockets(data: bytes) -> None:
    assert websocket_binary(data) == Frame(Opcode.BINARY, data).serialize(mask=False)


def test_ping() -> None:
    assert frames_of(websocket_ping()) == [Frame(Opcode.PING, b"")]
    assert frames_of(websocket_ping(b"x" * 125)) == [Frame(Opcode.PING, b"x" * 125)]


def test_close() -> None:
    assert websocket_close(3001, "shutdown") == Frame(Opcode.CLOSE, b"\x0b\xb9shutdown").serialize(mask=False)
    (frame,) = frames_of(websocket_close(4999, ""))
    assert Close.parse(frame.data) == Close(4999, "")


@pytest.mark.parametrize(
    ("reason", "cut"),
    [
        ("slow", "slow"),
        ("x" * 123, "x" * 123),
        ("x" * 124, "x" * 123),
        ("é" * 62, "é" * 61),
        ("x" + "é" * 61, "x" + "é" * 61),
        ("欢" * 41 + "!", "欢" * 41),
        ("x" + "欢" * 41, "x" + "欢" * 40),
        ("\ud83d", "?"),
    ],
)
def test_a_long_reason_is_cut_between_characters(reason: str, cut: str) -> None:
    assert cut_reason(reason) == cut.encode()
    (frame,) = frames_of(websocket_close(3000, reason))
    assert Close.parse(frame.data) == Close(3000, cut)


@pytest.mark.parametrize("frame", [websocket_text, websocket_binary])
def test_compressed_frames(frame: Callable[[bytes], bytes]) -> None:
    compressed = compressing(frame, 1, 64)
    for data in (b"", b"short", b"x" * 64, b'{"push":{"channel":"c"}}' * 5000, bytes(range(256)) * 9):
        assert compressed(data) == compressed(data)
        (read,) = frames_of(compressed(data), is_compressed=True)
        assert (read.data, read.opcode) == (data, frames_of(frame(data))[0].opcode)
        if len(data) < 64:
            assert compressed(data) == frame(data)
    assert len(compressed(b"x" * 10_000)) < 100


def test_compressed_frames_do_not_refer_to_each_other() -> None:
    compressed = compressing(websocket_text, 9, 0)
    one, two = compressed(b"abcdefgh" * 20), compressed(b"abcdefgh" * 21)
    frames = frames_of(two + one + two, is_compressed=True)
    assert [len(frame.data) for frame in frames] == [168, 160, 168]


def test_messages_are_packed_in_order_and_within_bounds() -> None:
    pack = packing(b"\n", websocket_text)
    assert pack([b"a"]) == websocket_text(b"a")
    assert pack([b"a", b"bc", b"d"]) == websocket_text(b"a\nbc\nd")
    assert pack([]) == b""
    many = [b"%d" % number for number in range(2 * FRAME_MAX_MESSAGES + 1)]
    frames = frames_of(pack(many))
    assert [frame.data.count(b"\n") for frame in frames] == [15, 15, 0]  # type: ignore[arg-type]
    assert b"\n".join(bytes(frame.data) for frame in frames) == b"\n".join(many)


@given(st.lists(st.sampled_from([1, 20_000, 32_767, 32_768, 65_535, 65_536, 100_000]), max_size=40))
def test_packing_loses_nothing(sizes: list[int]) -> None:
    messages = [bytes([number]) * size for number, size in enumerate(sizes)]
    frames: list[bytes] = []

    def keep(data: bytes) -> bytes:
        frames.append(data)
        return data

    assert packed(messages, b"", keep) == b"".join(messages)
    seen = 0
    for data in frames:
        members = [message for message in messages[seen:] if message in data]
        seen += len(members)
        assert len(members) <= FRAME_MAX_MESSAGES
        assert len(data) <= FRAME_MAX_BYTES or len(members) == 1
    with_separators = packed(messages, b"\n", lambda data: data + b"\n")
    assert with_separators == b"".join(message + b"\n" for message in messages)


def test_two_messages_of_half_a_frame_do_not_fit_with_what_is_between_them() -> None:
    half = b"x" * (FRAME_MAX_BYTES // 2)
    assert len(frames_of(packed([half, half], b"\n", websocket_text))) == 2
    assert len(frames_of(packed([half, half], b"", websocket_binary))) == 1


def test_lines_chunks_and_events() -> None:
    assert line(b"{}") == b"{}\n"
    assert pack_lines([b"{}", b"[]"]) == b"{}\n[]\n"
    assert sse(b"{}") == b"data: {}\n\n"
    assert chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert LAST_CHUNK == b"0\r\n\r\n"
