"""Lua scripts: by their hash, and whole when Redis does not know it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from spread.hub.errors import LinkLost, ReplyError
from spread.hub.scripts import run_script
from tests.hub.scripted import Outcome, Wire, answer, command_wire

LUA = Path(__file__).parents[2] / "hub" / "lua"
SCRIPTS = sorted(path.stem for path in LUA.glob("*.lua"))


def asked(name: str = "leave") -> tuple[Wire, Outcome]:
    connection, wire = command_wire(Clock())
    running = run_script(connection, name, [b"k1", b"k2"], [b"\xff", 3])
    return wire, Outcome(Deferred.fromCoroutine(running))


@pytest.mark.parametrize("name", SCRIPTS)
def test_by_its_hash(name: str) -> None:
    wire, outcome = asked(name)
    digest = hashlib.sha1((LUA / f"{name}.lua").read_bytes()).hexdigest()
    assert wire.command() == [b"EVALSHA", digest.encode(), b"2", b"k1", b"k2", b"\xff", b"3"]
    wire.says(answer([b"reply", 1]))
    assert outcome.value == [b"reply", 1]


def test_whole_when_redis_does_not_know_it() -> None:
    wire, outcome = asked()
    wire.command()
    wire.says(answer("NOSCRIPT No matching script. Please use EVAL."))
    source = (LUA / "leave.lua").read_bytes()
    assert wire.command() == [b"EVAL", source, b"2", b"k1", b"k2", b"\xff", b"3"]
    wire.says(answer(1))
    assert outcome.value == 1


@pytest.mark.parametrize("first", [True, False])
def test_other_errors_are_not_tried_again(first: bool) -> None:
    wire, outcome = asked()
    wire.command()
    if not first:
        wire.says(answer("NOSCRIPT No matching script."))
        wire.command()
    wire.says(answer("OOM command not allowed"))
    assert type(outcome.value) is ReplyError and outcome.value.code == "OOM"
    assert wire.commands() == []


def test_a_connection_that_breaks() -> None:
    wire, outcome = asked()
    wire.lose()
    assert type(outcome.value) is LinkLost


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_says_what_its_keys_and_arguments_are(name: str) -> None:
    text = (LUA / f"{name}.lua").read_text()
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("--"))
    body = text.removeprefix(head)
    for number in range(1, 15):
        for what in (f"KEYS[{number}]", f"ARGV[{number}]"):
            assert (what in body) == (what in head), what
