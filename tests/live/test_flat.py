"""A shard without members of a channel pays nothing for it: by its own counters it hears nothing of 500
publications."""

from __future__ import annotations

import re
import socket
import urllib.request
from contextlib import ExitStack

import pytest

from tests.live.processes import home, started

pytestmark = pytest.mark.live

PUBLICATIONS = 500


def counters(port: int) -> dict[str, float]:
    """The counters of a shard."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(spread_\w+) (\S+)$", text, re.MULTILINE)}


def entered(stack: ExitStack, port: int, channel: bytes) -> socket.socket:
    """A text client that was greeted and has joined a channel."""
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
    greeting = b""
    while not greeting.endswith(b"\n"):
        greeting += sock.recv(4096)
    sock.sendall(b"/join %b\n" % channel)
    return sock


def test_a_shard_without_members_hears_nothing_of_a_channel() -> None:
    with ExitStack() as stack:
        place = stack.enter_context(home())
        ports = []
        for number in ("0", "1"):
            node = started(stack, "--shard", number, "--ops", "127.0.0.1:0", home=place)
            node.wait_ready(1)
            ports.append(
                {name: int(port) for name, port in re.findall(r" (\w+)=\S+?:(\d+)", node.ready[0][1])}
            )
        with_members, without = ports
        speaker, hearer = (entered(stack, with_members["text"], b"match-1") for _ in range(2))
        entered(stack, without["text"], b"match-2")  # it has clients, in another channel
        # What is said before a join is confirmed waits for it, so the first echo tells that both are in.
        heard = b""
        while b"first" not in heard:
            speaker.sendall(b"first\n")
            hearer.settimeout(1)
            try:
                heard += hearer.recv(65536)
            except TimeoutError:
                continue
        hearer.settimeout(20)
        before = [counters(each["ops"]) for each in ports]
        for index in range(PUBLICATIONS):
            speaker.sendall(b"message-%d\n" % index)
        while b"message-%d\n" % (PUBLICATIONS - 1) not in heard:
            heard += hearer.recv(65536)
        grown = [
            {name: value - old[name] for name, value in counters(each["ops"]).items()}
            for each, old in zip(ports, before, strict=True)
        ]
        assert grown[0]["spread_hub_received_total"] >= PUBLICATIONS
        assert grown[0]["spread_deliveries_total"] >= PUBLICATIONS
        for name in ("spread_hub_received_total", "spread_spread_total", "spread_deliveries_total"):
            assert grown[1][name] == 0, name
        assert grown[1]["spread_encoded_total"] == grown[1]["spread_framed_total"] == 0
