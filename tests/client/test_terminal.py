"""What is written to a terminal or a pipe, and how standard input is read."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spread.client.terminal import Printable, Screen, StdinReader

SECONDS = 20


class Recorder:
    """A raw output that may take less than it is given, nothing for now, or fail."""

    def __init__(self, at_most: int = 1 << 30, error: OSError | None = None) -> None:
        self.written = bytearray()
        self.at_most = at_most
        self.error = error

    def write(self, data: memoryview, /) -> int | None:
        if self.error is not None:
            raise self.error
        self.written += data[: self.at_most]
        return min(len(data), self.at_most)

    def fileno(self) -> int:
        raise AssertionError("nobody should wait for this")


def screen_of(
    out: Recorder, err: Recorder, *, terminal: bool, encoding: str = "utf-8", err_terminal: bool | None = None
) -> Screen:
    return Screen(
        out,
        err,
        out_is_terminal=terminal,
        err_is_terminal=terminal if err_terminal is None else err_terminal,
        encoding=encoding,
    )


@pytest.mark.parametrize(
    ("received", "shown"),
    [
        (b"\x1b[31mred\x07\n", "^[[31mred^G\n"),
        (b"\tkept\n", "\tkept\n"),
        (b"\x7f\x00", "^?^@"),
        ("\u009b31m\u0080".encode(), "<9b>31m<80>"),
        (b"\x9b31m", "\ufffd31m"),
        ("你好 👋\n".encode(), "你好 👋\n"),
        (b"one\r\ntwo\rthree\r\r\n", "one\ntwo^Mthree^M\n"),
    ],
)
def test_control_characters_are_shown_and_not_done(received: bytes, shown: str) -> None:
    assert Printable().feed(received, final=True).decode() == shown


@given(st.binary(max_size=80), st.sampled_from(["utf-8", "latin-1", "ascii", "gbk"]))
def test_no_control_character_reaches_a_terminal_of_any_encoding(data: bytes, encoding: str) -> None:
    text = Printable(encoding).feed(data, final=True).decode(encoding)
    assert all(character in "\n\t" or ord(character) >= 0x20 for character in text)
    assert not any(0x7F <= ord(character) < 0xA0 for character in text)


@given(st.text(max_size=30), st.integers(0, 120))
def test_what_is_shown_does_not_depend_on_how_the_bytes_arrive(text: str, cut: int) -> None:
    data = text.encode()
    printable = Printable()
    in_two = printable.feed(data[:cut]) + printable.feed(data[cut:], final=True)
    assert in_two == Printable().feed(data, final=True)


def test_characters_the_terminal_lacks_are_escaped() -> None:
    assert Printable("ascii").feed("你é\n".encode()) == b"\\u4f60\\xe9\n"


def test_a_pipe_gets_every_byte_as_it_came_even_if_it_takes_few_at_once() -> None:
    out, err = Recorder(at_most=3), Recorder()
    screen = screen_of(out, err, terminal=False)
    data = bytes(range(256)) + b"\xe4\xbd"
    screen.show(data)
    screen.end()
    assert out.written == data


def test_half_a_character_is_shown_when_the_stream_ends_and_spoils_nothing_after() -> None:
    out = Recorder()
    screen = screen_of(out, Recorder(), terminal=True)
    screen.show(b"\xe4\xbd")
    screen.end()
    screen.show("\u4f60\n".encode())
    assert out.written.decode() == "\ufffd你\n"


def test_a_status_line_stands_alone_on_a_terminal() -> None:
    out, err = Recorder(), Recorder()
    screen = screen_of(out, err, terminal=True)
    screen.show(b"no newline")
    screen.status("first \x1b[2J\nx")
    screen.status("second")
    assert err.written == b"\nfirst ^[[2J x\nsecond\n"


def test_a_status_line_needs_no_blank_line_in_a_file() -> None:
    out, err = Recorder(), Recorder()
    screen = screen_of(out, err, terminal=True, err_terminal=False)
    screen.show(b"no newline")
    screen.status("lost")
    assert err.written == b"lost\n"


def test_a_status_line_nobody_can_read_is_dropped() -> None:
    screen = screen_of(Recorder(), Recorder(error=BrokenPipeError()), terminal=False)
    screen.status("lost")


def test_an_output_that_fails_is_told() -> None:
    screen = screen_of(Recorder(error=BrokenPipeError()), Recorder(), terminal=False)
    with pytest.raises(BrokenPipeError):
        screen.show(b"x")
    screen.show(b"")


def test_an_unknown_encoding_is_told_at_once() -> None:
    with pytest.raises(LookupError):
        screen_of(Recorder(), Recorder(), terminal=True, encoding="klingon")


def when_waiting(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Call ``act`` each time the module waits for a descriptor."""
    wait = select.select

    def acting(*arguments: Any) -> object:
        act()
        return wait(*arguments)

    monkeypatch.setattr("spread.client.terminal.select.select", acting)


def test_an_output_that_was_made_non_blocking_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    data = os.urandom(300_000)  # a pipe holds 64 KiB
    got = bytearray()
    when_waiting(monkeypatch, lambda: got.extend(os.read(reading, 65536)))
    with open(writing, "wb", buffering=0) as out:
        Screen(out, out, out_is_terminal=False, err_is_terminal=False).show(data)
    while piece := os.read(reading, 65536):
        got += piece
    os.close(reading)
    assert got == data


class Calls:
    """Stands in for a reactor's ``callFromThread``."""

    def __init__(self) -> None:
        self.queue: Queue[tuple[Callable[[bytes], object], bytes]] = Queue()

    def __call__(self, received: Callable[[bytes], object], data: bytes) -> None:
        self.queue.put((received, data))

    def deliver(self) -> None:
        received, data = self.queue.get(timeout=SECONDS)
        received(data)


def test_a_pipe_is_read_only_when_asked_and_its_end_is_told() -> None:
    reading, writing = os.pipe()
    calls = Calls()
    reader = StdinReader(reading, calls, is_terminal=False)
    got: list[bytes] = []
    os.write(writing, b"one")
    reader.ask(got.append)
    calls.deliver()
    os.write(writing, b"two")
    os.close(writing)
    assert calls.queue.empty()
    reader.ask(got.append)
    calls.deliver()
    reader.ask(got.append)
    calls.deliver()
    assert got == [b"one", b"two", b""]
    os.close(reading)


def test_a_regular_file_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "typed"
    path.write_bytes(b"text")
    got: list[bytes] = []
    calls = Calls()
    with path.open("rb") as file:
        reader = StdinReader(file.fileno(), calls, is_terminal=False)
        for _ in range(2):
            reader.ask(got.append)
            calls.deliver()
    assert got == [b"text", b""]


def test_an_input_that_was_made_non_blocking_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    when_waiting(monkeypatch, lambda: os.write(writing, b"late"))
    calls = Calls()
    got: list[bytes] = []
    StdinReader(reading, calls, is_terminal=False).ask(got.append)
    calls.deliver()
    assert got == [b"late"]
    os.close(reading)
    os.close(writing)


def test_an_input_that_cannot_be_read_is_at_its_end() -> None:
    calls = Calls()
    got: list[bytes] = []
    with open(os.devnull, "wb") as only_writable:
        StdinReader(only_writable.fileno(), calls, is_terminal=False).ask(got.append)
        calls.deliver()
    assert got == [b""]
