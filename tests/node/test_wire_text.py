"""The text protocol's codec: whatever the cuts, the messages are the same, and nothing is lost."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spread.hub.api import Format
from spread.node.wire.text import Close, Framer, Join, Say, error_line, line_of, parse

# Few different bytes, so that line endings are frequent.
STREAMS = st.binary(max_size=200) | st.lists(st.sampled_from([b"\n", b"\r", b"a", b"bc"])).map(b"".join)


@st.composite
def cut_streams(draw: st.DrawFn) -> list[bytes]:
    """A stream of bytes in pieces, empty ones among them."""
    stream = draw(STREAMS)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    return [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])]


def framed(pieces: list[bytes], max_bytes: int) -> tuple[list[bytes], bool]:
    framer = Framer(max_bytes)
    messages = [message for piece in pieces for message in framer.feed(piece)]
    rest = framer.flush()
    return messages + [rest] * bool(rest), framer.is_overlong


# --- framing ------------------------------------------------------------------------------------------


@given(cut_streams(), st.integers(1, 20))
def test_framing_does_not_depend_on_the_cuts(pieces: list[bytes], max_bytes: int) -> None:
    assert framed(pieces, max_bytes) == framed([b"".join(pieces)], max_bytes)


@given(cut_streams())
def test_nothing_is_lost(pieces: list[bytes]) -> None:
    messages, is_overlong = framed(pieces, 1000)
    assert not is_overlong
    assert b"".join(messages) == b"".join(pieces)
    assert all(message.index(b"\n") == len(message) - 1 for message in messages[:-1])


@given(cut_streams(), st.integers(1, 20))
def test_what_comes_before_a_message_that_is_too_long(pieces: list[bytes], max_bytes: int) -> None:
    messages, is_overlong = framed(pieces, max_bytes)
    lines = b"".join(pieces).split(b"\n")
    too_long = [index for index, line in enumerate(lines) if len(line) > max_bytes]
    assert is_overlong == bool(too_long)
    if too_long:
        assert messages == [line + b"\n" for line in lines[: too_long[0]]]


def test_a_message_of_exactly_the_limit() -> None:
    framer = Framer(4)
    assert framer.feed(b"abcd\nabcd") == [b"abcd\n"]
    assert framer.has_partial
    assert framer.feed(b"\n") == [b"abcd\n"]
    assert not framer.has_partial and not framer.is_overlong
    framer.feed(b"abcd")
    assert framer.flush() == b"abcd"
    assert framer.flush() == b""


@pytest.mark.parametrize(
    "pieces", [[b"ok\nabcde"], [b"ok\nabcde\nok\n"], [b"ok\nabcd", b"e"], [b"ok\nab", b"cde\n"]]
)
def test_one_byte_above_the_limit(pieces: list[bytes]) -> None:
    framer = Framer(4)
    assert [message for piece in pieces for message in framer.feed(piece)] == [b"ok\n"]
    assert framer.is_overlong and not framer.has_partial
    assert framer.feed(b"more\n") == []
    assert framer.flush() == b""


def test_a_line_of_a_gigabyte_does_not_stay_in_memory() -> None:
    framer = Framer(1 << 20)
    read = bytes(65536)
    most = 0
    for _ in range((1 << 30) // len(read)):
        assert framer.feed(read) == []
        most = max(most, len(framer._partial or b""))
    assert framer.is_overlong
    assert 1 << 20 <= most <= (1 << 20) + len(read)
    assert not framer.has_partial


def test_a_framer_that_waits_for_nothing_holds_nothing() -> None:
    framer = Framer(100)
    framer.feed(b"one\ntwo\n")
    assert framer._partial is None


# --- commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [b"close\n", b"close\r\n", b"close"])
def test_close(message: bytes) -> None:
    assert parse(message) == Close()


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (b"/join room\n", b"room"),
        (b"/join room\r\n", b"room"),
        (b"/join   room  ", b"room"),
        (b"/join two words\n", b"two words"),
        (b"/join\n", b""),
        (b"/join ", b""),
        (b"/join \xff\n", b"\xff"),
    ],
)
def test_join(message: bytes, name: bytes) -> None:
    assert parse(message) == Join(name)


@pytest.mark.parametrize(
    "message",
    [
        b"hello\n",
        b"\n",
        b"",
        b"\r\n",
        b" close\n",
        b"close it\n",
        b"closed\n",
        b"Close\n",
        b"/joined\n",
        b"/join\troom\n",
        b"/nick me\n",
        b"c",
        b"/",
        "你好\n".encode(),
    ],
)
def test_all_else_is_said(message: bytes) -> None:
    assert parse(message) == Say(message)


@given(st.binary())
def test_what_is_said_is_not_changed(message: bytes) -> None:
    command = parse(message)
    assert not isinstance(command, Say) or command.data == message


# --- publications as lines ----------------------------------------------------------------------------


@given(st.binary())
def test_text_goes_out_as_it_came_in(data: bytes) -> None:
    assert line_of(Format.TEXT, data) is data


@given(st.text())
def test_a_json_string_becomes_its_text_on_one_line(text: str) -> None:
    line = line_of(Format.JSON, json.dumps(text).encode("utf-8"))
    encodable = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") == text
    if encodable:
        assert line == (" ".join(text.splitlines()) + "\n").encode()
        assert len(line.decode().splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b'{"a": 1}', b'{"a": 1}\n'),
        (b"17", b"17\n"),
        ('"你"'.encode(), "你\n".encode()),
        (b'"\\u4f60"', "你\n".encode()),
        (b'"', b'"\n'),
        (b'"a" "b"', b'"a" "b"\n'),
        (b'"\xff"', b'"\xff"\n'),
        (b'"\\ud83d"', b'"\\ud83d"\n'),
        (b'""', b"\n"),
        (b'"hi\\r\\nbob: yes\\rbob: no\\n"', b"hi bob: yes bob: no\n"),
    ],
)
def test_json_as_a_line(data: bytes, line: bytes) -> None:
    assert line_of(Format.JSON, data) == line


QUOTED = st.binary().map(lambda data: b'"' + data + b'"')


@given(st.sampled_from([Format.JSON, Format.BINARY, 0, 255]), st.binary() | QUOTED)
def test_every_other_publication_is_a_line(format: int, data: bytes) -> None:
    assert line_of(format, data).endswith(b"\n")


@given(st.binary())
def test_bytes_stay_what_they_are(data: bytes) -> None:
    assert line_of(Format.BINARY, data).startswith(data)
    assert len(line_of(Format.BINARY, data)) <= len(data) + 1


def test_error_line() -> None:
    assert error_line("nicht möglich") == "error: nicht möglich\n".encode()
