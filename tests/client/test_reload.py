"""``spread reload`` shows what a shard tells of the update of all."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from spread.client import cli


@contextmanager
def shard(*lines: Any, status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """An ops port that answers with these lines; its address, and what it is asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            for line in lines:
                self.wfile.write(json.dumps(line).encode() + b"\n")

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            thread.join()


def told(shard: int | None, error: str = "") -> dict[str, Any]:
    version = "old" if error else "new"
    return {
        "ok": not error,
        "app": "game:Game",
        "version": version,
        "before": "old",
        "seconds": 0.125,
        "error": error,
        "shard": shard,
    }


def spread(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["reload", *arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_a_line_for_each_shard(capsys: pytest.CaptureFixture[str]) -> None:
    with shard(told(0), told(3), {"done": True}) as (ops, asked):
        assert spread(capsys, "--ops", ops) == (
            0,
            "shard 0: game:Game new (before: old), 0.12 s\nshard 3: game:Game new (before: old), 0.12 s\n",
            "",
        )
    assert asked == ["/reload?all=1"]


def test_the_traceback_of_a_shard_that_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    traceback = "Traceback (most recent call last):\n  File\nKeyError: \x1b[1m"
    with shard(told(0), told(1, traceback), {"done": False}) as (ops, _):
        code, out, err = spread(capsys, "--ops", ops)
    assert (code, out) == (1, "shard 0: game:Game new (before: old), 0.12 s\n")
    assert err == (
        "spread: error: shard 1 refuses; game:Game old runs on\n"
        "Traceback (most recent call last):\n  File\nKeyError: �[1m\n"
    )


def test_one_shard_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with shard(told(None)) as (ops, asked):
        assert spread(capsys, "--ops", ops, "--one")[:1] == (0,)
    assert asked == ["/reload"]
    with shard({**told(None, "no app"), "app": ""}, status=409) as (ops, _):
        assert spread(capsys, "--ops", ops, "--one") == (1, "", "spread: error: no app\n")


def test_an_answer_that_breaks_off(capsys: pytest.CaptureFixture[str]) -> None:
    with shard(told(0)) as (ops, _):
        code, _, err = spread(capsys, "--ops", ops)
    assert (code, "what the shards run now is not known" in err) == (1, True)


def test_what_is_no_ops_port(capsys: pytest.CaptureFixture[str]) -> None:
    with shard("", status=404) as (ops, _):
        code, _, err = spread(capsys, "--ops", ops)
    assert (code, "it answers 404" in err) == (1, True)
    code, _, err = spread(capsys, "--ops", ops)
    assert (code, "Connection refused" in err) == (1, True)
    with shard(["no", "struct"]) as (ops, _):
        code, _, err = spread(capsys, "--ops", ops)
    assert (code, "its answer is none of a shard" in err) == (1, True)


@pytest.mark.parametrize("ops", ["here", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", ":8100", "a b:1"])
def test_a_wrong_address(capsys: pytest.CaptureFixture[str], ops: str) -> None:
    code, _, err = spread(capsys, "--ops", ops)
    assert (code, f"{ops!r} is not HOST:PORT" in err) == (2, True)
