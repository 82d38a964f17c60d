"""The real ``spread`` command against a real server: pipes, files and terminals."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from spread.client import cli

SECONDS = 30
CHAT = [sys.executable, "-m", "spread.client", "chat"]
ON_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Output:
    """What a process writes to a pipe or terminal, read with a deadline."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.text = b""

    def read(self, deadline: float) -> bytes:
        if not select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError(f"only this came: {self.text!r}")
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # EIO: the last process has left the terminal
            data = b""
        self.text += data
        return data

    def until(self, pattern: bytes) -> re.Match[bytes]:
        """Read until the pattern is in what came."""
        deadline = time.monotonic() + SECONDS
        while not (found := re.search(pattern, self.text)):
            if not self.read(deadline):
                raise EOFError(f"only this came: {self.text!r}")
        return found

    def rest(self) -> bytes:
        """Read up to the end; all that ever came."""
        deadline = time.monotonic() + SECONDS
        while self.read(deadline):
            pass
        return self.text


class Program:
    """A running process with pipes, or with a terminal as input and output."""

    def __init__(self, *command: str, terminal: bool = False, stdin: int = subprocess.PIPE) -> None:
        if terminal:
            self.keyboard, inner = pty.openpty()
            self.process = subprocess.Popen(
                [sys.executable, "-c", ON_TERMINAL, *command],
                stdin=inner,
                stdout=inner,
                stderr=subprocess.PIPE,
            )
            os.close(inner)
            self.out = Output(self.keyboard)
        else:
            self.process = subprocess.Popen(
                command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            assert self.process.stdout is not None
            self.keyboard = -1 if self.process.stdin is None else self.process.stdin.fileno()
            self.out = Output(self.process.stdout.fileno())
        self.is_terminal = terminal
        assert self.process.stderr is not None
        self.err = Output(self.process.stderr.fileno())

    def type(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.keyboard, data) :]

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def exit_code(self) -> int:
        return self.process.wait(SECONDS)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        if self.is_terminal:
            os.close(self.keyboard)


class Server:
    """The server of the tests in a process of its own, that can be killed and comes back on its port."""

    def __init__(self, port: int = 0, close_after_bytes: int = 0) -> None:
        path = str(Path(__file__).with_name("chat_server.py"))
        self.program = Program(sys.executable, path, str(port), str(close_after_bytes))
        self.port = int(self.program.out.until(rb"ready (\d+)\n")[1])

    def kill(self) -> None:
        self.program.close()


class Peer:
    """Another client, a bare socket."""

    def __init__(self, port: int, channel: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), SECONDS)
        self.heard = Output(self.socket.fileno())
        self.say(b"/join " + channel.encode() + b"\n")
        self.heard.until(rb"joined .*\n")
        self.heard.text = b""

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)


class Stage:
    """What a test starts, ended with it."""

    def __init__(self, server: Server, channel: str) -> None:
        self.server = server
        self.channel = channel
        self.closing: list[Program | Server] = []
        self.peers: list[Peer] = []

    def peer(self, port: int | None = None) -> Peer:
        peer = Peer(port or self.server.port, self.channel)
        self.peers.append(peer)
        return peer

    def own_server(self, port: int = 0, close_after_bytes: int = 0) -> Server:
        server = Server(port, close_after_bytes)
        self.closing.append(server)
        return server

    def chat(
        self, *arguments: str, terminal: bool = False, port: int | None = None, stdin: int = subprocess.PIPE
    ) -> Program:
        """``spread chat bob`` in the channel of the test, connected if it can be."""
        where = ["--port", str(port or self.server.port), "--channel", self.channel]
        program = Program(*CHAT, "bob", *where, *arguments, terminal=terminal, stdin=stdin)
        self.closing.append(program)
        return program

    def close(self) -> None:
        for peer in self.peers:
            peer.socket.close()
        for part in self.closing:
            part.kill() if isinstance(part, Server) else part.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.kill()


@pytest.fixture
def stage(server: Server, request: pytest.FixtureRequest) -> Iterator[Stage]:
    stage = Stage(server, request.node.name)
    yield stage
    stage.close()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Pipes and files.


def test_one_line_from_a_pipe_is_said_and_that_was_all(stage: Stage) -> None:
    peer = stage.peer()
    program = stage.chat()
    program.type(b"hi\n")
    program.end_input()
    assert program.exit_code() == 0
    peer.heard.until(rb"bob: hi\n")
    assert peer.heard.text == b"bob: hi\n"
    out = program.out.rest().decode()
    # A server that sees the end of the input before it has sent an answer drops the answer.
    assert re.fullmatch(r"欢迎来到Spread Site,您是第\d+个客户端用户!\n(joined .*\n)?", out)
    address = f"127.0.0.1:{stage.server.port}"
    assert program.err.rest().decode() == f"{address}: Start to connect.\n{address}: connect to server!\n"


def test_a_whole_file_arrives_in_order(stage: Stage, tmp_path: Path) -> None:
    peer = stage.peer()
    path = tmp_path / "typed"
    lines = [b"%d \xff\x00\x1b\r" % number for number in range(30000)]
    path.write_bytes(b"\n".join(lines))  # the last line without newline
    with path.open("rb") as file:
        program = stage.chat(stdin=file.fileno())
    peer.heard.until(rb"bob: 29999 .*\n")
    assert peer.heard.text == b"".join(b"bob: " + line + b"\n" for line in lines)
    assert program.exit_code() == 0
    assert b"not sent" not in program.err.rest()


def test_what_others_say_is_written_to_a_pipe_byte_for_byte_and_at_once(stage: Stage) -> None:
    peer = stage.peer()
    program = stage.chat("--stay", stdin=subprocess.DEVNULL)
    program.out.until(rb"joined .*\n")
    program.out.text = b""
    said = bytes(range(256)) + b"\x1b[31m\r\n\xe4\xbd\n"
    peer.say(said)
    program.out.until(rb"\xe4\xbd\n$")
    assert program.out.text == said
    program.process.send_signal(signal.SIGTERM)
    assert program.exit_code() == 0


def test_a_message_without_newline_is_shown_too(stage: Stage) -> None:
    peer = stage.peer()
    program = stage.chat("--stay", stdin=subprocess.DEVNULL)
    program.out.until(rb"joined .*\n")
    peer.say(b"hello, I'm A")
    program.out.until(rb"hello, I'm A$")


def test_a_line_that_is_too_long_is_refused_and_the_next_is_sent(stage: Stage) -> None:
    peer = stage.peer()
    program = stage.chat()
    program.type(b"x" * 70000 + b"\nnext\n")
    program.end_input()
    assert program.exit_code() == 0
    peer.heard.until(rb"bob: next\n")
    assert peer.heard.text == b"bob: next\n"
    assert b"A line not sent" in program.err.rest()


def test_commands_work_in_a_pipe(stage: Stage) -> None:
    peer = stage.peer()
    program = stage.chat()
    program.type(b"here\n/join elsewhere\nthere\nclose\n")
    assert program.exit_code() == 0
    peer.heard.until(rb"here\n")
    assert peer.heard.text == b"bob: here\n"
    assert program.out.rest().endswith(b"joined elsewhere\n")


def test_hello_goes_on_after_the_end_of_a_pipe(stage: Stage) -> None:
    peer = stage.peer()
    stage.chat("--hello", "0.2", stdin=subprocess.DEVNULL)
    peer.heard.until(rb"(hello, I'm bob \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+\n){3}")


def test_a_reader_of_the_output_that_leaves_ends_it_quietly(stage: Stage) -> None:
    peer = stage.peer()
    program = stage.chat("--stay", stdin=subprocess.DEVNULL)
    program.out.until(rb"joined .*\n")
    assert program.process.stdout is not None
    program.process.stdout.close()
    peer.say(b"anybody?\n")
    assert program.exit_code() == 0
    assert b"Error" not in program.err.rest()


def test_closed_standard_descriptors_do_no_harm(stage: Stage) -> None:
    peer = stage.peer()
    command = [*CHAT, "bob", "--port", str(stage.server.port), "--channel", stage.channel, "--hello", "1"]
    program = Program("/bin/sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', *command)
    stage.closing.append(program)
    peer.heard.until(rb"hello, I'm bob")
    peer.say(b"anybody?\n")
    assert program.process.poll() is None
    program.process.send_signal(signal.SIGTERM)
    assert program.exit_code() == 0
    assert b"anybody" not in peer.heard.text, "what was to be shown went into the socket"


# A terminal.


def test_a_conversation_on_a_terminal(stage: Stage) -> None:
    peer = stage.peer()
    program = stage.chat(terminal=True)
    program.out.until(rb"joined .*\n")
    peer.say("你好\x1b[2J\x07 \u009b31m\x7f\t!\n".encode())
    program.out.until("你好\\^\\[\\[2J\\^G <9b>31m\\^\\?\t!\r\n".encode())
    assert b"\x1b" not in program.out.text
    program.type("再见\n".encode())
    peer.heard.until("bob: 再见\n".encode())
    program.type(b"\x04")
    assert program.exit_code() == 0


@pytest.mark.parametrize("typed", [b"\x03", b"close\n"], ids=["interrupt", "close"])
def test_a_person_ends_it(stage: Stage, typed: bytes) -> None:
    program = stage.chat(terminal=True)
    program.out.until(rb"joined .*\n")
    program.type(typed)
    assert program.exit_code() == 0
    assert program.err.rest().count(b"Start to connect.") == 1


def test_a_terminal_is_left_as_it_was(stage: Stage) -> None:
    program = stage.chat(terminal=True)
    before = termios.tcgetattr(program.keyboard)
    program.out.until(rb"joined .*\n")
    assert termios.tcgetattr(program.keyboard) == before
    fdinfo = Path(f"/proc/{program.process.pid}/fdinfo/0")
    if fdinfo.exists():
        found = re.search(r"flags:\s+(\d+)", fdinfo.read_text())
        assert found is not None
        assert not int(found[1], 8) & os.O_NONBLOCK, "the shell shares this description"


# Servers that fail.


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_after_a_restart_of_the_server_it_is_back_in_its_channel_with_what_was_typed(
    stage: Stage, terminal: bool
) -> None:
    first = stage.own_server()
    program = stage.chat(terminal=terminal, port=first.port)
    program.type(b"/join other\n")
    program.out.until(rb"joined other\r?\n")
    first.kill()
    program.err.until(rb"Lost Connection\. Reason: .* Next try in")
    program.type(b"kept 1\nkept 2\n")
    program.err.until(rb"Connection failed\. Reason: Connection was refused")
    second = stage.own_server(first.port)
    stage.channel = "other"
    peer = stage.peer(second.port)
    program.out.until(rb"(?s)joined other.*joined other\r?\n")
    program.type(b"live\n")
    peer.heard.until(rb"bob: live\n")  # "kept" may have been said before the peer was there
    peer.say(b"welcome back\n")
    program.out.until(rb"welcome back\r?\n")


def test_lines_kept_for_a_server_that_is_not_there_yet_reach_those_who_listen(stage: Stage) -> None:
    port = free_port()
    bob = stage.chat(port=port, terminal=True)
    bob.err.until(rb"(?s)Connection failed.*Connection failed.*Connection failed")
    bob.type(b"early 1\nearly 2\n")
    bob.process.send_signal(signal.SIGSTOP)  # so that the listener is there first
    server = stage.own_server(port)
    peer = stage.peer(server.port)
    bob.process.send_signal(signal.SIGCONT)
    peer.heard.until(rb"^bob: early 1\nbob: early 2\n$")


def test_once_fails_when_nobody_listens(stage: Stage) -> None:
    program = stage.chat("--once", port=free_port(), stdin=subprocess.DEVNULL)
    assert program.exit_code() == 1
    assert b"Connection failed. Reason: Connection was refused" in program.err.rest()


def test_once_fails_for_a_host_that_cannot_be(stage: Stage) -> None:
    program = stage.chat("--once", "--host", "a..b", stdin=subprocess.DEVNULL)
    assert program.exit_code() == 1
    assert re.search(rb"a\.\.b:\d+: Connection failed\. Reason: .*a\.\.b", program.err.rest())


def test_once_fails_when_the_server_dies(stage: Stage) -> None:
    server = stage.own_server()
    program = stage.chat("--once", "--stay", port=server.port, stdin=subprocess.DEVNULL)
    program.out.until(rb"joined .*\n")
    server.kill()
    assert program.exit_code() == 1
    assert b"Lost Connection. Reason: " in program.err.rest()


def test_it_does_not_pretend_when_the_server_was_cut_off_while_it_spoke(stage: Stage) -> None:
    server = stage.own_server(close_after_bytes=1)
    program = stage.chat("--once", port=server.port)
    program.type(b"hi\n")
    program.end_input()
    assert program.exit_code() == 1
    assert b"Lost Connection. Reason: " in program.err.rest()


def test_an_interrupt_ends_it_while_it_tries_to_connect(stage: Stage) -> None:
    program = stage.chat(terminal=True, port=free_port())
    program.err.until(rb"Connection failed")
    program.type(b"\x03")
    assert program.exit_code() == 0


# The command line itself.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["chat"], "Missing argument 'NAME'."),
        (["chat", ""], "'NAME': it is empty."),
        (["chat", "  "], "'NAME': it is blank."),
        (["chat", "a\nb"], "'NAME': it holds a control character"),
        (["chat", "a\udcff"], "'NAME': it holds a control character, or is not UTF-8."),
        (["chat", "/join x"], "'NAME': it begins with '/'"),
        (["chat", "a "], "'NAME': it begins with '/' or a space, or ends in a space."),
        (["chat", "好" * 86], "'NAME': it is longer than 255 bytes."),
        (["chat", "bob", "--port", "0"], "'--port': 0 is not in the range 1<=x<=65535."),
        (["chat", "bob", "--port", "65536"], "'--port': 65536 is not in the range 1<=x<=65535."),
        (["chat", "bob", "--port", "x"], "'--port': 'x' is not a valid integer"),
        (["chat", "bob", "--host", ""], "'--host': it is empty."),
        (["chat", "bob", "--hello", "0"], "'--hello': 0 is not from 0.01 to 86400 seconds."),
        (["chat", "bob", "--hello", "-1"], "'--hello': -1 is not from"),
        (["chat", "bob", "--hello", "nan"], "'--hello': nan is not from"),
        (["chat", "bob", "--channel", "a\tb"], "'--channel': it holds a control character"),
        (["chat", "bob", "--loud"], "No such option"),
        (["chta"], "No such command"),
    ],
)
def test_wrong_usage_is_told_in_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("spread: error: ")
    assert told in err
    assert err.count("\n") == 1


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "spread chat alice" in capsys.readouterr().out
    assert cli.main(["chat", "--help"]) == 0
    assert "spread chat bot --hello 5" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"spread {version('spread-node')}\n"


def test_an_interrupt_before_anything_runs_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.spread, "main", interrupted)
    assert cli.main([]) == 0


def test_an_ipv6_address_is_told_from_its_port(stage: Stage) -> None:
    program = stage.chat("--once", "--host", "::1", port=free_port(), stdin=subprocess.DEVNULL)
    assert program.exit_code() == 1
    assert re.match(rb"\[::1\]:\d+: Start to connect\.", program.err.rest())
