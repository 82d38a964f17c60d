"""Standard input, output and error of the text client; a terminal, a pipe or a file each.

Promises:

1.  What goes to a standard output that is no terminal is byte for byte what came.
2.  What goes to a terminal holds no control character but newline and tab: nobody in a channel can
    send escape sequences to the terminal of another.
3.  Input is read in a thread of its own, one read at a time and only when asked for. The descriptors
    stay as they are: a reactor would make them non-blocking, for the shell that shares them too, and
    epoll refuses regular files.

Writing blocks for as long as standard output is a pipe that nobody reads. No Twisted in here.
"""

from __future__ import annotations

import codecs
import os
import select
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

__all__ = ["Printable", "RawOutput", "Screen", "StdinReader"]

READ_BYTES = 65536


def _harmless() -> dict[int, str]:
    """What is shown for each control character: ``^[`` for ESC, ``<9b>`` for the C1 set."""
    shown = {code: f"^{chr(code ^ 0x40)}" for code in [*range(0x20), 0x7F]}
    shown |= {code: f"<{code:x}>" for code in range(0x80, 0xA0)}
    del shown[ord("\n")], shown[ord("\t")]
    return shown


HARMLESS = _harmless()


class Printable:
    """A stream of received bytes, made fit for a terminal.

    Bytes that are not UTF-8 become U+FFFD, characters the terminal's encoding lacks are written as
    escapes like ``\\u4f60``. A character cut in two by the network is put together again.
    """

    def __init__(self, encoding: str = "utf-8") -> None:
        """:raises LookupError: there is no such encoding."""
        codecs.lookup(encoding)
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes, *, final: bool = False) -> bytes:
        """What to write for these bytes. ``final``: the stream ends, hold nothing back."""
        text = self._held + self._decoder.decode(data, final)
        self._held = ""
        if text.endswith("\r") and not final:  # harmless if a newline follows, a way to overwrite if not
            text, self._held = text[:-1], "\r"
        shown = text.replace("\r\n", "\n").translate(HARMLESS)
        return shown.encode(self._encoding, "backslashreplace")


class RawOutput(Protocol):
    """An unbuffered binary file."""

    def write(self, data: memoryview, /) -> int | None:
        """Write some; gives how many bytes, ``None`` if none could be taken just now."""
        ...

    def fileno(self) -> int: ...


def _write_all(output: RawOutput, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        written = output.write(rest)
        if written is None:  # another program that shares the terminal has made it non-blocking
            select.select([], [output], [])
        else:
            rest = rest[written:]


class Screen:
    """Where the client shows things: what others say on one output, its own status on another."""

    def __init__(
        self,
        out: RawOutput,
        err: RawOutput,
        *,
        out_is_terminal: bool,
        err_is_terminal: bool,
        encoding: str = "utf-8",
    ) -> None:
        """:param encoding: of the terminal; what others say is not re-coded if ``out`` is none.

        :raises LookupError: there is no such encoding.
        """
        self._out = out
        self._err = err
        self._encoding = encoding
        self._out_is_terminal = out_is_terminal
        self._share_terminal = out_is_terminal and err_is_terminal
        self._printable = Printable(encoding)
        self._at_line_start = True

    def show(self, data: bytes) -> None:
        """Write what others said, at once.

        :raises OSError: it cannot be written; ``BrokenPipeError`` if nobody reads any more.
        """
        self._write(self._printable.feed(data) if self._out_is_terminal else data)

    def end(self) -> None:
        """The stream of received bytes ends here; another begins.

        :raises OSError: as ``show``.
        """
        if self._out_is_terminal:
            self._write(self._printable.feed(b"", final=True))
            self._printable = Printable(self._encoding)

    def status(self, text: str) -> None:
        """One line of the client's own. Where nobody can read it, it is dropped."""
        line = text.translate(HARMLESS).replace("\n", " ") + "\n"
        if self._share_terminal and not self._at_line_start:
            line = "\n" + line  # a message need not end in a newline
            self._at_line_start = True
        try:
            _write_all(self._err, line.encode(self._encoding, "backslashreplace"))
        except OSError:
            return

    def _write(self, data: bytes) -> None:
        if data:
            _write_all(self._out, data)
            self._at_line_start = data.endswith(b"\n")


class StdinReader:
    """Reads a descriptor without ever blocking the reactor, whatever the descriptor is.

    The thread is a daemon: a read that waits for a person does not keep the process alive.
    """

    def __init__(self, fd: int, call_from_thread: Callable[..., object], *, is_terminal: bool) -> None:
        """:param call_from_thread: the reactor's ``callFromThread``."""
        self.is_terminal = is_terminal
        self._fd = fd
        self._call_from_thread = call_from_thread
        self._asked: SimpleQueue[Callable[[bytes], object]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def ask(self, received: Callable[[bytes], object]) -> None:
        """Read once; ``received`` is called on the reactor's thread, with ``b""`` at the end of input.

        After the end, nothing more comes.
        """
        self._asked.put(received)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="stdin", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        data = b"-"
        while data:
            received = self._asked.get()
            data = self._read()
            self._call_from_thread(received, data)

    def _read(self) -> bytes:
        while True:
            try:
                return os.read(self._fd, READ_BYTES)
            except BlockingIOError:  # inherited as non-blocking
                select.select([self._fd], [], [])
            except OSError:  # the terminal is gone, or standard input cannot be read: there is no more
                return b""
