"""The ``spread-node`` command, as real processes: one line for each mistake, and signals."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spread.node.cli import _at_ports_of
from spread.node.listen import bind
from spread.node.settings import Settings
from tests.hub.certificates import Authority

QUIET = ("--text", "127.0.0.1:0", "--http", "127.0.0.1:0", "--ops", "off")
COMMAND = [sys.executable, "-m", "spread.node"]
PATIENCE_SECONDS = 20.0


def environment(**variables: str) -> dict[str, str]:
    """Ours, but for what would configure the process; and a home in which nothing is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPREAD_")}
    return {**kept, "SPREAD_HOME": "/nonexistent/spread", **variables}


def ran(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def complaint(code: int, *arguments: str, **variables: str) -> str:
    """The one line in which the command says what is wrong; it must end with ``code``."""
    done = ran(*arguments, **variables)
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout) == (code, ""), done
    assert done.stderr.startswith("spread-node: error: ")
    assert done.stderr.count("\n") == 1, f"more than a line: {done.stderr}"
    return done.stderr


# --- bad usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shard", "x"), ["--shard", "'x'"]),
        (("--shard", "1024"), ["--shard", "1023"]),
        (("--shard", "3-1"), ["--shard"]),
        (("--shrad", "0"), ["--shrad", "--shard"]),
        (("0",), ["0"]),
        (("--shard",), ["--shard"]),
        (("--text", "8007"), ["--text", "8007"]),
        (("--text", "0.0.0.0:0"), ["--allow-anonymous"]),
        (("--text-message-max-bytes", "0"), ["1 to 16777216"]),
        (("--config", "/nowhere/spread.toml"), ["/nowhere/spread.toml", "No such file"]),
        (("--hub", "http://here"), ["hub"]),
        (("--hub", "redis://127.0.0.1", "--hub-tls-ca", "/dev/null"), ["/dev/null"]),
        (("--hub", "rediss://127.0.0.1", "--hub-tls-ca", "/nowhere/ca.pem"), ["/nowhere/ca.pem"]),
        (("--hub", "memory:", "--shard", "0-1"), ["memory:", "embedded:"]),
        (("--hub", "memory:", "--hub-tls-ca", __file__), ["rediss://"]),
    ],
)
def test_bad_usage(arguments: tuple[str, ...], words: list[str]) -> None:
    line = complaint(2, *arguments)
    assert [word for word in words if word not in line] == [], line


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("SPREAD_SHRAD", "0", ["SPREAD_SHRAD", "SPREAD_SHARD"]),
        ("SPREAD_STOP_SECONDS", "soon", ["SPREAD_STOP_SECONDS", "'soon'"]),
        ("SPREAD_FLEET_SOCKETS", "text=x", ["SPREAD_FLEET_SOCKETS"]),
        ("SPREAD_HOME", "/tmp/" + "x" * 120, ["SPREAD_HOME", "107"]),
    ],
)
def test_a_bad_environment(variable: str, value: str, words: list[str]) -> None:
    line = complaint(2, *QUIET, **{variable: value})
    assert [word for word in words if word not in line] == [], line


def test_an_unknown_key_of_a_file_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "spread.toml"
    file.write_text("[text]\nmesage_max_bytes = 10\n")
    line = complaint(2, "--config", str(file))
    assert "unknown key text.mesage_max_bytes; did you mean text.message_max_bytes?" in line


def test_what_spread_does_not_have_is_an_error_or_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "centrifugo.json"
    file.write_text('{"admin": {"enabled": true}, "client": {"token": {"hmac_secret_key": "s3cr3t"}}}')
    arguments = ("--config", str(file), "--hub", "memory:", "--shard", "0", "--check")
    words = f"{file}: Spread does not have admin; take this out, or pass over it with --lenient-config\n"
    assert complaint(2, *arguments) == f"spread-node: error: {words}"
    for done in (ran(*arguments, "--lenient-config"), ran(*arguments, SPREAD_LENIENT_CONFIG="true")):
        assert (done.returncode, done.stderr) == (0, f"spread-node: warning: {words}")


def test_a_file_that_is_no_certificate(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("nothing of the kind")
    assert str(file) in complaint(2, "--hub", "rediss://127.0.0.1", "--hub-tls-ca", str(file), "--check")


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for service in ("--text", "--http", "--ops"):
            line = complaint(2, "--shard", "0", "--hub", "memory:", *QUIET, service, f"127.0.0.1:{port}")
            assert f"cannot listen on 127.0.0.1:{port}: the port is taken" in line


def test_a_hub_that_cannot_be_reached() -> None:
    line = complaint(4, "--hub", "redis://user:secret@127.0.0.1:1", "--hub-start-seconds", "0.5", *QUIET)
    assert "redis://127.0.0.1:1 is not available" in line
    assert "refused" in line
    assert "secret" not in line


def test_an_app_that_cannot_start(tmp_path: Path) -> None:
    source = [
        "from spread.node import App",
        "",
        "class Game(App):",
        "    def starting(self):",
        "        self.scores",
    ]
    (tmp_path / "game.py").write_text("\n".join(source))
    arguments = ("--shard", "0", "--hub", "memory:", *QUIET, "--app", "game:Game")
    done = ran(*arguments, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, ""), done
    assert f'File "{tmp_path}/game.py", line 5, in starting' in done.stderr
    assert "cli.py" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("spread-node: error: app.app: the app cannot start: AttributeError(")


def test_a_home_that_belongs_to_nobody() -> None:
    line = complaint(2, *QUIET, SPREAD_HOME="/proc/spread")
    assert "SPREAD_HOME" in line


# --- what it answers ----------------------------------------------------------------------------------


def test_check() -> None:
    done = ran("--check", "--shard", "3", "--hub", "redis://:secret@127.0.0.1:1/2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "ok: shard 3, hub redis://127.0.0.1:1/2\n"


def test_check_of_a_public_address_that_is_meant() -> None:
    assert ran("--check", "--text", "0.0.0.0:8007", "--allow-anonymous").returncode == 0


def test_the_printed_configuration_is_a_configuration(tmp_path: Path) -> None:
    printed = ran("--print-config")
    assert (printed.returncode, printed.stderr) == (0, "")
    file = tmp_path / "spread.toml"
    file.write_text(printed.stdout)
    checked = ran("--config", str(file), "--check")
    assert (checked.returncode, checked.stdout) == (0, "ok: shard auto, hub embedded\n")


def test_help_and_version() -> None:
    for flag, words in (("--help", "--shard"), ("--version", "spread-node")):
        done = ran(flag)
        assert (done.returncode, done.stderr) == (0, "")
        assert words in done.stdout


# --- running ------------------------------------------------------------------------------------------


class Node:
    """A running command, and what it prints."""

    def __init__(self, *arguments: str, pass_fds: tuple[int, ...] = (), **variables: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )
        self.lines: list[str] = []
        self.log: list[str] = []
        self._news = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=where, daemon=True)
            for where in ((self.process.stdout, self.lines), (self.process.stderr, self.log))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Iterator[str], lines: list[str]) -> None:
        for line in stream:
            with self._news:
                lines.append(line.rstrip("\n"))
                self._news.notify_all()

    def logged(self, words: str) -> None:
        """Wait for a line of the log with these words."""
        with self._news:
            found = self._news.wait_for(lambda: any(words in line for line in self.log), PATIENCE_SECONDS)
        assert found, self.log

    def ready(self, count: int = 1) -> list[dict[str, str]]:
        """Wait for so many ready lines; gives their fields."""
        with self._news:
            found = self._news.wait_for(
                lambda: len(self.lines) >= count or self.process.poll() is not None, PATIENCE_SECONDS
            )
        assert found and len(self.lines) >= count, (self.lines, self.log)
        return [dict(field.split("=", 1) for field in line.split()[1:]) for line in self.lines]

    def connect(self) -> socket.socket:
        """A client of the (first) shard that has got its greeting."""
        host, _, port = self.ready()[0]["text"].rpartition(":")
        client = socket.create_connection((host, int(port)), PATIENCE_SECONDS)
        assert "Spread Site" in client.recv(1000).decode()
        return client

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_code(self) -> int:
        code = self.process.wait(PATIENCE_SECONDS)
        for reader in self._readers:
            reader.join(PATIENCE_SECONDS)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.exit_code()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    started: list[Node] = []
    yield started
    for node in reversed(started):
        node.close()


@pytest.fixture
def home() -> Iterator[str]:
    """A home for an embedded server; short, as paths of sockets must be."""
    folder = tempfile.mkdtemp(prefix="spread-")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def alone(nodes: list[Node], *arguments: str, **how: object) -> Node:
    """A shard on a memory hub."""
    node = Node("--shard", "0", "--hub", "memory:", *QUIET, *arguments, **how)  # type: ignore[arg-type]
    nodes.append(node)
    return node


def rest_of(client: socket.socket) -> str:
    """All that comes until the end."""
    client.settimeout(PATIENCE_SECONDS)
    heard = b""
    while data := client.recv(65536):
        heard += data
    return heard.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_with_a_goodbye(nodes: list[Node], number: signal.Signals) -> None:
    node = alone(nodes)
    pattern = r"ready shard=0 text=127\.0\.0\.1:\d+ http=127\.0\.0\.1:\d+ ops=off hub=memory"
    with node.connect() as client:
        node.send(number)
        assert rest_of(client) == "goodbye: shard 0 is stopping, please connect again\n"
    assert node.exit_code() == 0
    assert re.fullmatch(pattern, "\n".join(node.lines))
    assert "has stopped" in node.log[-1]
    assert "Traceback" not in "".join(node.log)


def test_a_second_signal_ends_it_at_once(nodes: list[Node]) -> None:
    node = alone(nodes, "--stop-seconds", "60")
    with node.connect() as idle, node.connect() as client:
        # Much waits for who does not read, so a clean stop would take seconds.
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall((b"x" * 999 + b"\n") * 500)
        node.send(signal.SIGTERM)
        assert rest_of(client).startswith("goodbye")
        asked_at = time.monotonic()
        node.send(signal.SIGINT)
        assert node.exit_code() == 128 + signal.SIGINT
        assert time.monotonic() - asked_at < 1.5


def test_a_signal_stops_it_while_it_waits_for_its_hub(nodes: list[Node]) -> None:
    with bind("127.0.0.1", 0) as silent:
        silent.listen()  # accepts, and never answers
        hub = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        node = Node("--hub", hub, *QUIET, "--hub-start-seconds", "60", "--hub-reply-seconds", "60")
        nodes.append(node)
        silent.setblocking(True)
        silent.settimeout(PATIENCE_SECONDS)
        connection, _ = silent.accept()
        with connection:
            asked_at = time.monotonic()
            node.send(signal.SIGTERM)
            assert node.exit_code() == 0
            assert time.monotonic() - asked_at < 5
    assert (node.lines, node.log) == ([], [])


def test_a_stop_that_takes_too_long_is_cut_short(nodes: list[Node]) -> None:
    node = alone(nodes, "--stop-seconds", "0.5")
    with node.connect():
        asked_at = time.monotonic()
        node.send(signal.SIGTERM)
        assert node.exit_code() == 0
        assert time.monotonic() - asked_at < 1.5


def test_hang_up_changes_nothing(nodes: list[Node]) -> None:
    node = alone(nodes)
    with node.connect() as first, node.connect() as second:
        node.send(signal.SIGHUP)
        node.logged("SIGHUP")
        first.send(b"still there?\n")
        assert second.recv(100) == b"still there?\n"


def test_hang_up_reads_the_certificate_again(nodes: list[Node], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue("localhost")
    node = alone(nodes, "--tls-cert", issued.cert, "--tls-key", issued.key)
    trusting = ssl.create_default_context(cafile=authority.ca)
    host, _, port = node.ready()[0]["text"].rpartition(":")

    def connected() -> tuple[ssl.SSLSocket, object]:
        plain = socket.create_connection((host, int(port)), PATIENCE_SECONDS)
        client = trusting.wrap_socket(plain, server_hostname="localhost")
        assert "Spread Site" in client.recv(1000).decode()
        certificate = client.getpeercert()
        assert certificate is not None
        return client, certificate["serialNumber"]

    first, old = connected()
    authority.issue("localhost")  # in the same files
    node.send(signal.SIGHUP)
    node.logged("read the certificate")
    second, new = connected()
    with first, second:
        assert old != new
        first.send(b"still there?\n")
        assert second.recv(100) == b"still there?\n"


def test_a_public_ops_port_is_warned_of(nodes: list[Node]) -> None:
    node = Node("--shard", "0", "--hub", "memory:", *QUIET[:4], "--ops", "0.0.0.0:0")
    nodes.append(node)
    assert node.ready()[0]["ops"].startswith("0.0.0.0:")
    node.logged("the ops port 0.0.0.0:0 can be reached from outside")


def test_the_log_as_json(nodes: list[Node]) -> None:
    node = alone(nodes, "--log-format", "json")
    node.ready()
    node.logged('"shard":0')


def child(nodes: list[Node]) -> tuple[Node, int]:
    """A shard that takes us for the parent of its fleet, and our end of its lifeline."""
    read, write = os.pipe()
    try:
        return alone(nodes, pass_fds=(read,), SPREAD_FLEET_LIFELINE=str(read)), write
    finally:
        os.close(read)


def test_a_child_is_patient_with_signals(nodes: list[Node]) -> None:
    node, lifeline = child(nodes)
    try:
        with node.connect() as client:
            node.send(signal.SIGINT)  # of the terminal, for the parent
            node.send(signal.SIGTERM)  # the parent's
            node.send(signal.SIGTERM)  # of whoever signals all processes of a group
            assert rest_of(client).startswith("goodbye")
        assert node.exit_code() == 0
    finally:
        os.close(lifeline)
    assert not any("parent" in line for line in node.log)


@pytest.mark.parametrize("word", [b"", b"a word is no end"])
def test_a_child_whose_parent_is_gone_stops(nodes: list[Node], word: bytes) -> None:
    node, lifeline = child(nodes)
    with node.connect() as client:
        os.write(lifeline, word)
        os.close(lifeline)
        assert rest_of(client).startswith("goodbye")
    assert node.exit_code() == 0
    assert any("the parent of this shard is gone" in line for line in node.log)


# --- with the embedded server -------------------------------------------------------------------------


def test_a_number_that_is_taken(nodes: list[Node], home: str) -> None:
    first = Node("--shard", "5", *QUIET, SPREAD_HOME=home)
    nodes.append(first)
    assert first.ready()[0]["hub"] == "embedded"
    line = complaint(3, "--shard", "5", *QUIET, SPREAD_HOME=home)
    assert f"shard 5 is already running: process {first.process.pid} on host {socket.gethostname()}" in line
    second = Node("--shard", "auto", *QUIET, SPREAD_HOME=home)
    nodes.append(second)
    assert second.ready()[0]["shard"] == "0"
    with first.connect() as speaker, second.connect() as listener:
        speaker.send(b"across\n")
        assert listener.recv(100) == b"across\n"
    for node in (first, second):
        node.send(signal.SIGTERM)
        assert node.exit_code() == 0
    assert not os.path.exists(f"{home}/hub.sock"), "the last one stops the server"


def test_a_number_that_is_lost_to_another(nodes: list[Node], home: str) -> None:
    node = Node("--shard", "5", *QUIET, SPREAD_HOME=home)
    nodes.append(node)
    holder = (
        '{"incarnation":"00000000000000ff","host":"elsewhere","pid":77,'
        '"machine":"","started":"","version":"0"}'
    )
    with node.connect() as client, socket.socket(socket.AF_UNIX) as hub:
        hub.connect(f"{home}/hub.sock")
        hub.sendall(f"SET spread:shard:5 '{holder}'\r\n".replace('"', '\\"').replace("'", '"').encode())
        assert hub.recv(100) == b"+OK\r\n"
        assert rest_of(client).startswith("goodbye")
    assert node.exit_code() == 3
    assert node.log[-1] == ("spread-node: error: shard 5 is already running: process 77 on host elsewhere")


def test_a_fleet(nodes: list[Node], home: str) -> None:
    node = Node("--shard", "0-1", *QUIET, SPREAD_HOME=home)
    nodes.append(node)
    ready = node.ready(2)
    assert sorted(fields["shard"] for fields in ready) == ["0", "1"]
    assert ready[0]["text"] == ready[1]["text"], "they share their ports"
    with node.connect() as first, node.connect() as second:
        first.send(b"hello\n")
        assert second.recv(100) == b"hello\n"
        node.send(signal.SIGTERM)
        assert re.fullmatch(r"goodbye: shard [01] is stopping, please connect again\n", rest_of(first))
        assert rest_of(second).startswith("goodbye")
    assert node.exit_code() == 0


def test_the_shards_of_a_fleet_end_with_it(nodes: list[Node], home: str) -> None:
    node = Node("--shard", "0-1", *QUIET, SPREAD_HOME=home)
    nodes.append(node)
    node.ready(2)
    pid = node.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 2
    with node.connect() as client:
        node.send(signal.SIGKILL)
        assert rest_of(client).startswith("goodbye")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(os.path.exists(f"/proc/{child}") for child in children):
        assert time.monotonic() < deadline, "they run on"
        time.sleep(0.01)
    assert not os.path.exists(f"{home}/hub.sock"), "and the last of them stops the server"


# --- inside -------------------------------------------------------------------------------------------


def test_the_shards_of_a_fleet_share_ports_that_the_system_chose() -> None:
    settings = Settings()
    assert _at_ports_of({}, settings) is settings
    with bind("127.0.0.1", 0) as text, bind("127.0.0.1", 0) as http:
        following = _at_ports_of({0: {"text": text, "http": http}}, settings)
        assert following.text.listen == f"127.0.0.1:{text.getsockname()[1]}"
        assert following.node.http == f"127.0.0.1:{http.getsockname()[1]}"
        assert _at_ports_of({0: {}}, settings) == settings
