"""A client that stops reading, over a real socket: where only the latest of each key counts, it may."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.live.processes import Client, home, started

pytestmark = pytest.mark.live

KEYS = 10
BURST = 50
"""States of 1 kB; who has read the burst before has room for this one in its kernel."""
COUNT = 30 * BURST

GAME = f"""
from spread.node import DROP, App

class Game(App):
    number = 0

    def subscribed(self, client, channel):
        client.send(["joined", channel])

    def publishing(self, client, channel, data):
        if data != "burst":
            return data
        for _ in range({BURST}):
            state = {{"id": self.number % {KEYS}, "n": self.number, "more": "x" * 1000}}
            self.publish("states", state)
            self.publish("all", state)
            self.number += 1
        return DROP

    def latest(self, channel, data):
        return data["id"] if channel == "states" and isinstance(data, dict) else None
"""


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    (tmp_path / "game.py").write_text(GAME)
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        arguments = "--shard", "0", "--app", "game:Game", "--outbox-max-bytes", "131072"
        yield started(stack, *arguments, home=stack.enter_context(home())).wait_ready(1)


class Reader(Client):
    """One that is read only when a test says so."""

    def read(self) -> None:
        """Wait for something, if it is the end."""
        self.socket.settimeout(20)
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionError:
            data = b""
        self.is_closed = not data
        self.received += data

    def until(self, end: bytes) -> None:
        """Read to this line."""
        while not self.received.endswith(end + b"\n"):
            self.read()
            assert not self.is_closed

    def joins(self, channel: str) -> None:
        self.say(f"/join {channel}\n".encode())
        self.until(b'["joined","%b"]' % channel.encode())

    @property
    def numbers(self) -> list[int]:
        """Of the states that it has got."""
        lines = bytes(self.received).split(b"\n")[:-1]
        return [json.loads(line)["n"] for line in lines if line.startswith(b"{")]


def test_who_does_not_read_gets_the_newest_of_each_key_and_is_not_closed(port: int) -> None:
    with ExitStack() as stack:
        quick, speaker = Reader(port), Reader(port)
        slow, closed = Reader(port, SO_RCVBUF=8192), Reader(port, SO_RCVBUF=8192)
        for each, channel in ((quick, "states"), (slow, "states"), (closed, "all"), (speaker, "elsewhere")):
            stack.callback(each.socket.close)
            each.joins(channel)
        for burst in range(BURST, COUNT + 1, BURST):
            speaker.say(b"burst\n")
            while len(quick.numbers) < burst:
                quick.read()
        assert quick.numbers == list(range(COUNT)), "who reads gets all of them"
        while not set(range(COUNT - KEYS, COUNT)) <= set(slow.numbers):
            slow.read()
            assert not slow.is_closed
        assert slow.numbers == sorted(set(slow.numbers))
        assert len(slow.numbers) < COUNT / 2
        quick.say(b"and now?\n")
        slow.until(b"and now?")
        # Where each of them counts, who does not read is too slow.
        while not closed.is_closed:
            closed.read()
        assert len(closed.numbers) < COUNT / 2
