"""``spread tail``, ``publish`` and ``token`` as they are run, against a scripted server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from websockets.exceptions import ConnectionClosed

from spread.client import cli
from spread.client.advice import refusal
from spread.client.payloads import payload_of, shown
from spread.node.wire.messages import (
    ClientInfo,
    Disconnect,
    Error,
    Join,
    Leave,
    Publication,
    PublishRequest,
    PublishResult,
    SubscribeRequest,
    Unsubscribe,
)
from tests.client.fake_server import FakeServer, Peer, Script
from tests.client.test_cli import Program

SPREAD = [sys.executable, "-m", "spread.client"]
SECONDS = 30
SECRET = "the-secret-of-the-tests-0123456789abcdef"
STREAM: dict[str, Any] = {"recoverable": True, "positioned": True, "epoch": "e"}


@contextmanager
def running(*arguments: str, **variables: str) -> Iterator[Program]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        program = Program(*SPREAD, *arguments)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    try:
        yield program
    finally:
        program.close()


def spread(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*SPREAD, *arguments], input=given, capture_output=True, timeout=SECONDS)


def lines(output: bytes) -> list[Any]:
    return [json.loads(line) for line in output.splitlines()]


# tail


def test_tail_shows_the_data_of_publications() -> None:
    def script(peer: Peer) -> None:
        assert peer.accept().token == "t"
        request = peer.admit(**STREAM)
        assert (request.channel, request.recoverable, request.recover) == ("news", True, False)
        peer.push("news", Publication(b'{"a":1.0}', 1), Publication(b'"x"', 2), Publication(b"3", 3))
        peer.wait_closed()

    with FakeServer(script) as server, running("tail", "news", "--url", server.url, SPREAD_TOKEN="t") as tail:
        tail.out.until(rb'^\{"a":1\.0\}\n"x"\n3\n$')
        tail.err.until(rb"connected\n.*listening to news\n")
        tail.process.send_signal(signal.SIGINT)
        assert tail.exit_code() == 0
        assert b"t" not in tail.err.rest().replace(b"connected", b"").split()


def test_tail_shows_whole_events_and_ends_after_a_count() -> None:
    info = ClientInfo("17", "c9", b'{"name":"Ann"}', b"[1]")

    def script(peer: Peer) -> None:
        peer.accept()
        request = peer.admit(**STREAM)
        assert request.join_leave
        peer.push(
            "news",
            Join(info),
            Publication(b"1", 5, info, {"k": "v"}, time=7),
            Leave(info),
            Publication(b"2"),
            Publication(b"3"),
        )
        peer.wait_closed()

    with FakeServer(script) as server:
        done = spread("tail", "news", "--json", "--join-leave", "--count", "2", "--url", server.url)
    assert done.returncode == 0, done.stderr
    who = {"user": "17", "client": "c9", "conn_info": {"name": "Ann"}, "chan_info": [1]}
    assert lines(done.stdout) == [
        {"type": "join", "channel": "news", "info": who},
        {
            "type": "publication",
            "channel": "news",
            "offset": 5,
            "data": 1,
            "info": who,
            "tags": {"k": "v"},
            "time": 7,
        },
        {"type": "leave", "channel": "news", "info": who},
        {"type": "publication", "channel": "news", "data": 2},
    ]


def test_tail_over_protobuf_and_who_comes_and_goes() -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.admit()
        peer.push("news", Join(ClientInfo("", "c9")), Leave(ClientInfo("17", "c8")))
        peer.push("news", Publication(b"\xff"), Publication(b"no json"), Publication(b'{"a":\n1}'))
        peer.wait_closed()

    with FakeServer(script) as server:
        arguments = ("tail", "news", "--protobuf", "--join-leave", "--count", "3", "--url", server.url)
        done = spread(*arguments)
    assert done.stdout == b'{"base64":"/w=="}\n"no json"\n{"a":1}\n'
    assert b"news: someone anonymous came (client c9)\n" in done.stderr
    assert b"news: 17 left (client c8)\n" in done.stderr


def test_tail_survives_reconnects_and_says_so() -> None:
    def first(peer: Peer) -> None:
        peer.accept()
        request = peer.admit(**STREAM, offset=7, was_recovering=True, publications=[])
        assert (request.recover, request.epoch, request.offset) == (True, "e:f", 7)
        peer.push("news", Unsubscribe(2500, "insufficient state"))
        peer.answer(peer.expect(SubscribeRequest), Error(100, "internal server error", True))
        peer.admit(**STREAM, offset=7)
        peer.push("news", Publication(b"8", 8))
        peer.close(3001, "shutdown")

    def second(peer: Peer) -> None:
        peer.accept()
        missed = [Publication(b"9", 9)]
        peer.admit(**STREAM, offset=8, was_recovering=True, recovered=True, publications=missed)
        peer.wait_closed()

    with FakeServer(first, second) as server:
        done = spread("tail", "news", "--since", "e:f:7", "--count", "2", "--url", server.url)
    assert done.returncode == 0
    assert done.stdout == b"8\n9\n"
    for told in (
        b"news: the server does not have all that was asked for; some is missing",
        b"news: subscription lost: insufficient state (2500); subscribing again",
        b"internal server error (100); trying again",
        b"connection lost: shutdown (3001); connecting again",
    ):
        assert told in done.stderr


def test_tail_begins_with_all_there_is() -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        for channel in ("a", "b"):
            request = peer.admit(was_recovering=True, recovered=True, publications=[Publication(b"1", 1)])
            assert (request.channel, request.recover, request.offset) == (channel, True, 0)
        peer.wait_closed()

    with FakeServer(script) as server:
        done = spread("tail", "a", "b", "a", "--since", "all", "--count", "2", "--url", server.url)
    assert done.stdout == b"1\n1\n"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            lambda peer: (peer.accept(), peer.answer(peer.next(), Error(103, "permission denied"))),
            b"spread: error: cannot listen to news: permission denied (103); the server's options",
        ),
        (
            lambda peer: (peer.next(), peer.close(3500, "invalid token")),
            b"ended the connection: invalid token (3500); the token is signed with another secret",
        ),
        (
            lambda peer: peer.answer(peer.next(), Error(109, "token expired")),
            b"ended the connection: token expired (109); make a new token with `spread token",
        ),
        (
            lambda peer: (peer.accept(), peer.push("", Disconnect(4501, "\x1b[2Jgo away"))),
            b"ended the connection: ^[[2Jgo away (4501)\n",
        ),
    ],
)
def test_tail_ends_when_it_is_refused(script: Script, told: bytes) -> None:
    with FakeServer(script) as server:
        url = server.url.replace("127", "me:secret@127")
        done = spread("tail", "news", "--url", f"{url}?token=secret")
    assert done.returncode == 1
    assert told in done.stderr.splitlines(keepends=True)[-1]
    assert b"secret" not in done.stderr.replace(b"another secret", b"")


def test_tail_waits_for_a_server_and_ends_when_nobody_reads() -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.admit()
        while True:
            peer.push("news", Publication(b"1"))

    def until_closed(peer: Peer) -> None:
        with pytest.raises(ConnectionClosed):
            script(peer)

    with FakeServer(until_closed, refuse=1) as server, running("tail", "news", "--url", server.url) as tail:
        tail.err.until(rb"HTTP 503 Service Unavailable \(2\); trying again\n")
        tail.out.until(rb"1\n")
        assert tail.process.stdout is not None
        tail.process.stdout.close()
        assert tail.exit_code() == 0


def test_tail_of_a_full_disk_fails() -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.admit()
        peer.push("news", Publication(b"1"), Publication(b"2"))
        peer.wait_closed()

    with FakeServer(script) as server, open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*SPREAD, "tail", "news", "--url", server.url],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=SECONDS,
        )
    assert done.returncode == 1
    assert b"cannot write what was published: No space left on device" in done.stderr


# publish


def acknowledging(*refused: int) -> tuple[Script, list[bytes]]:
    """Takes publications until the client closes, but for those of these numbers."""
    taken: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.accept()
        with pytest.raises(ConnectionClosed):
            while True:
                command = peer.expect(PublishRequest)
                assert isinstance(command.request, PublishRequest)
                assert command.request.channel == "news"
                taken.append(command.request.data)
                is_refused = len(taken) in refused
                peer.answer(command, Error(103, "permission denied") if is_refused else PublishResult())

    return script, taken


@pytest.mark.parametrize(
    ("data", "payload"),
    [('{"a": 1.0}', b'{"a": 1.0}'), ("hello", b'"hello"'), ("42", b"42"), ('"é"', '"é"'.encode())],
)
def test_publish_publishes_json_or_a_string(data: str, payload: bytes) -> None:
    script, taken = acknowledging()
    with FakeServer(script) as server:
        done = spread("publish", "news", data, "--url", server.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert taken == [payload]


def test_publish_publishes_lines_in_order() -> None:
    script, taken = acknowledging()
    given = b"".join(b'{"n":%d}\r\n' % n for n in range(500)) + b"\n\nlast words"
    with FakeServer(script) as server:
        done = spread("publish", "news", "-", "--protobuf", "--url", server.url, given=given)
    assert (done.returncode, done.stderr) == (0, b"")
    assert taken == [b'{"n":%d}' % n for n in range(500)] + [b'"last words"']


def test_publish_stops_at_the_first_refusal() -> None:
    script, taken = acknowledging(3)
    with FakeServer(script) as server:
        done = spread("publish", "news", "-", "--url", server.url, given=b"1\n2\n\n3\n")
    assert done.returncode == 1
    assert done.stderr.startswith(b"spread: error: line 4 was not published: permission denied (103); ")
    assert done.stderr.endswith(b"(2 published before)\n")
    assert len(taken) == 3


def test_publish_says_when_it_does_not_know() -> None:
    with FakeServer(lambda peer: (peer.accept(), peer.next(), peer.close(3001, "shutdown"))) as server:
        done = spread("publish", "news", "1", "--url", server.url)
    assert done.returncode == 1
    assert done.stderr == b"spread: error: the data may have been published, or not: shutdown (11)\n"


@pytest.mark.parametrize(
    ("given", "told"),
    [(b"\xff\n", b"line 1 is not UTF-8\n"), (b"x" * 70_000 + b"\n", b"line 1 is above 65536 bytes\n")],
)
def test_publish_refuses_what_is_no_line(given: bytes, told: bytes) -> None:
    script, taken = acknowledging()
    with FakeServer(script) as server:
        done = spread("publish", "news", "-", "--url", server.url, given=given)
    assert (done.returncode, done.stderr) == (1, b"spread: error: " + told)
    assert not taken


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_publish_needs_a_server() -> None:
    done = spread("publish", "news", "1", "--url", f"ws://127.0.0.1:{free_port()}/")
    assert done.returncode == 1
    assert done.stderr.startswith(b"spread: error: cannot connect: Connection was refused")
    with FakeServer(lambda peer: (peer.next(), peer.close(3501, "bad request"))) as server:
        done = spread("publish", "news", "1", "--url", server.url)
    assert done.returncode == 1
    assert (
        b"cannot connect: bad request (3501); the server does not let in clients without a token"
        in done.stderr
    )


def test_an_interrupt_ends_publish() -> None:
    script, _ = acknowledging()
    accepted = threading.Event()

    def accepting(peer: Peer) -> None:
        peer.say = lambda *replies: (type(peer).say(peer, *replies), accepted.set())  # type: ignore[method-assign, assignment]
        script(peer)

    with FakeServer(accepting) as server, running("publish", "news", "-", "--url", server.url) as program:
        assert accepted.wait(SECONDS)
        program.process.send_signal(signal.SIGINT)
        assert program.exit_code() == 0


# publish --api


@contextmanager
def api(answer: Callable[[Any], tuple[int, bytes]]) -> Iterator[tuple[str, list[Any]]]:
    """A server API that answers so; gives its URL and what it was asked."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, self.headers["X-API-Key"], json.loads(body)))
            status, data = answer(asked)
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Not in the output of tests."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/api", asked
        finally:
            server.shutdown()
            thread.join()


def test_publish_through_the_server_api() -> None:
    with api(lambda _: (200, b'{"result":{"offset":1}}')) as (url, asked):
        done = spread("publish", "news", "-", "--api", url + "/", "--key", "k", given=b"1\ntwo\n")
    assert (done.stderr, done.returncode) == (b"", 0)
    assert asked == [
        ("/api/publish", "k", {"channel": "news", "data": 1}),
        ("/api/publish", "k", {"channel": "news", "data": "two"}),
    ]


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (200, b'{"error":{"code":102,"message":"unknown channel"}}', b"unknown channel (102); the namespace"),
        (401, b"", b"answers 401 Unauthorized: give the key of the server API with --key"),
        (500, b"", b"answers 500 Internal Server Error: see the server's log"),
        (200, b"<html>", b"is no server API: its answer is no JSON of one"),
        (200, b"{}", b"is no server API: its answer has no result"),
        (200, b"x" * 100_000, b"the answer is above 65536 bytes"),
    ],
)
def test_publish_says_what_the_api_said(status: int, body: bytes, told: bytes) -> None:
    with api(lambda _: (status, body)) as (url, _):
        done = spread("publish", "news", "1", "--api", url)
    assert done.returncode == 1
    assert done.stderr.startswith(b"spread: error: the data was not published: ")
    assert told in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"])
def test_publish_does_not_know_what_an_api_did_that_did_not_answer(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as peer:
                peer.recv(65536)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        done = spread("publish", "news", "1", "--api", f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join(SECONDS)
    assert done.returncode == 1
    assert done.stderr.startswith(b"spread: error: the data may have been published, or not: ")


def test_publish_needs_an_api() -> None:
    done = spread("publish", "news", "1", "--api", f"http://127.0.0.1:{free_port()}/api")
    assert done.returncode == 1
    assert b"/api: Connection was refused" in done.stderr


# token


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SPREAD_CLIENT_TOKEN_HMAC_SECRET_KEY", SECRET)
    return SECRET


def made(capsys: pytest.CaptureFixture[str], *arguments: str, secret: str = SECRET) -> dict[str, Any]:
    assert cli.main(["token", *arguments]) == 0
    token = capsys.readouterr().out.rstrip("\n")
    claims: dict[str, Any] = jwt.decode(token, secret, algorithms=["HS256"])
    return claims


def test_a_token_for_a_connection(secret: str, capsys: pytest.CaptureFixture[str]) -> None:
    claims = made(capsys, "--user", "17")
    assert claims == {"sub": "17", "iat": claims["iat"], "exp": claims["iat"] + 3600}


def test_a_token_for_a_subscription(secret: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--user", "张三", "--channel", "$chat:7", "--ttl", "0", "--info", '{"name": "Ann"}')
    claims = made(capsys, *arguments)
    del claims["iat"]
    assert claims == {"sub": "张三", "channel": "$chat:7", "info": {"name": "Ann"}}


def test_where_the_secret_comes_from(tmp_path: Path, secret: str, capsys: pytest.CaptureFixture[str]) -> None:
    other = "another-secret-of-the-tests-0123456789ab"
    toml, as_json, file = tmp_path / "spread.toml", tmp_path / "config.json", tmp_path / "secret"
    toml.write_text(f'[client.token]\nhmac_secret_key = "{other}1"\n')
    as_json.write_text(json.dumps({"client": {"token": {"hmac_secret_key": other + "2"}}}))
    file.write_text(other + "3\n")
    assert made(capsys, "--user", "a", "--config", str(toml), secret=other + "1")
    assert made(capsys, "--user", "a", "--config", str(as_json), secret=other + "2")
    assert made(capsys, "--user", "a", "--config", str(toml), "--secret-file", str(file), secret=other + "3")


@pytest.mark.parametrize(
    ("content", "arguments", "told"),
    [
        (None, [], "no secret: set SPREAD_CLIENT_TOKEN_HMAC_SECRET_KEY, or give --config FILE"),
        (None, ["--secret-file", "FILE"], "No such file or directory"),
        ("\n", ["--secret-file", "FILE"], "is empty"),
        ("x" * (1 << 20) + "x", ["--secret-file", "FILE"], "is above"),
        ("[client]\n", ["--config", "FILE"], "has no client.token.hmac_secret_key"),
        ("client = 1\n", ["--config", "FILE"], "has no client.token.hmac_secret_key"),
        ("= no toml", ["--config", "FILE"], "Invalid"),
    ],
)
def test_no_secret_is_told_in_one_line(
    content: str | None,
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("SPREAD_CLIENT_TOKEN_HMAC_SECRET_KEY", raising=False)
    file = tmp_path / "file"
    if content is not None:
        file.write_text(content)
    given = [str(file) if each == "FILE" else each for each in arguments]
    assert cli.main(["token", "--user", "17", *given]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("spread: error: ")
    assert told in err
    assert err.count("\n") == 1


# The command line itself.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tail"], "Missing argument 'CHANNEL...'"),
        (["tail", ""], "a channel is empty."),
        (["tail", "a\udcff"], "a channel is not UTF-8."),
        (["tail", "a", "--since", "x"], "'x' is neither EPOCH:OFFSET nor all."),
        (["tail", "a", "--since", "e:18446744073709551616"], "is neither EPOCH:OFFSET nor all."),
        (["tail", "a", "b", "--since", "e:1"], "is a position of one channel"),
        (["tail", "a", "--count", "0"], "0 is not in the range"),
        (["tail", "a", "--url", "http://x"], "begins with none of ws://, wss:// and tcp://."),
        (["tail", "a", "--url", "tcp://x:1", "--protobuf"], "over bare TCP only JSON is spoken."),
        (["publish", "a"], "Missing argument 'DATA'."),
        (["publish", "a", "\udcff"], "'DATA': it is not UTF-8."),
        (["publish", "a", "1", "--api", "x"], "'x' begins with neither http:// nor https://."),
        (["publish", "a", "1", "--key", "a\nb"], "a key is printable ASCII."),
        (["token"], "Missing option '--user'."),
        (["token", "--user", "\udcff"], "it is not UTF-8."),
        (["token", "--user", "a", "--info", "{"], "'{' is no JSON."),
        (["token", "--user", "a", "--ttl", "-1"], "-1 is not in the range"),
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


@pytest.mark.parametrize(
    ("command", "example"),
    [("tail", "spread tail news --since all"), ("publish", "--api http"), ("token", "--channel '$chat:7'")],
)
def test_help_teaches(command: str, example: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert example in capsys.readouterr().out


def test_what_is_shown_is_always_json_on_one_line() -> None:
    for data in (b"", b"\xff", b"a\nb", b'{"a":\n 1}', b"\x00", b'"\\ud83d"'):
        assert b"\n" not in shown(data)
        json.loads(shown(data))
    assert payload_of(b"") == b'""'
    assert refusal("x", "y", 9999) == "x: y (9999)"
