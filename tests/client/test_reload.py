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
from spread.client import reload as module

SECONDS = 20.0


@contextmanager
def shard(*lines: Any, status: int = 200, is_silent: bool = False) -> Iterator[tuple[str, list[str]]]:
    """An ops port that answers with these lines; its address, and what it is asked.

    :param lines: ``None`` is an empty one.
    :param is_silent: then it says nothing, and does not end.
    """
    asked: list[str] = []
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            for line in lines:
                self.wfile.write((json.dumps(line) if line else "").encode() + b"\n")
            if is_silent:
                over.wait(SECONDS)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            over.set()
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


def left(shard: int) -> dict[str, Any]:
    return {**told(shard, "not asked, since shard 1 has failed"), "was_asked": False}


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
    with shard(told(0), told(1, traceback), left(2), left(3), {"done": False}) as (ops, _):
        code, out, err = spread(capsys, "--ops", ops)
    assert (code, out) == (1, "shard 0: game:Game new (before: old), 0.12 s\n")
    assert err == (
        "spread: error: shard 1 refuses; game:Game old runs on\n"
        "Traceback (most recent call last):\n  File\nKeyError: �[1m\n"
        "spread: shard 2: not asked, since shard 1 has failed; game:Game old runs on\n"
        "spread: shard 3: not asked, since shard 1 has failed; game:Game old runs on\n"
        "spread: of the shards, 0 run the new code, 1, 2, 3 do not; mend it, or put the old sources back, "
        "and reload again\n"
    )


def test_as_long_as_a_shard_says_that_it_is_at_it_it_is_waited_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with shard(None, told(0), None, None, {"done": True}) as (ops, _):
        assert spread(capsys, "--ops", ops)[0::2] == (0, "")


def test_a_shard_that_says_nothing_any_more_is_given_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.1)
    with shard(told(0), is_silent=True) as (ops, _):
        code, out, err = spread(capsys, "--ops", ops)
    assert (code, out.split(":")[0]) == (1, "shard 0")
    assert err.endswith("it says nothing any more; what the shards run now is not known\n")


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
