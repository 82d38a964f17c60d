"""The proxy's configuration, read by HAProxy itself and run in front of real shards."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.deploy.files import DEPLOY
from tests.deploy.proxy import ADDRESSES, HAPROXY, NameServer, Proxy, clients_of
from tests.hub.servers import Valkey
from tests.live.processes import Client, Crowd, Node, home, until

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs a loopback network of several addresses"),
]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_the_configuration_is_valid() -> None:
    assert HAPROXY is not None
    # -dW: a warning is an error.
    checked = subprocess.run(
        [HAPROXY, "-dW", "-c", "-f", str(DEPLOY / "haproxy.cfg")], capture_output=True, text=True, timeout=30
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_clients_are_spread_over_the_shards_there_are(stack: ExitStack) -> None:
    hub = stack.enter_context(Valkey())
    path = stack.enter_context(home())
    names = NameServer()
    stack.callback(names.close)

    def shard(address: str, text: int, http: int) -> Node:
        node = Node(
            *("--shard", "auto", "--hub", hub.url, "--http", f"{address}:{http}"),
            home=path,
            text=f"{address}:{text}",
        )
        stack.callback(node.close)
        node.wait_ready(1)
        return node

    # Containers of a service have addresses of their own, and the same ports.
    first = shard(ADDRESSES[0], 0, 0)
    text, http = (int(port) for port in re.findall(r"(?:text|http)=\S+:(\d+)", first.ready[0][1]))
    names.addresses = [ADDRESSES[0]]
    proxy = Proxy(names.port, text, http)
    stack.callback(proxy.close)
    until(lambda: proxy.health() == 200, 20, "the first shard behind the proxy")
    assert names.asked == {b"node"}
    early = Crowd(proxy.text_port, 2)
    stack.callback(early.close)
    early.greeted()

    # Another container: found within seconds, and it gets the next clients, since it has the fewest.
    second = shard(ADDRESSES[1], text, http)
    names.addresses = list(ADDRESSES)
    crowd = Crowd(proxy.text_port)
    stack.callback(crowd.close)

    def enter() -> Client:
        client = crowd.enter()
        crowd.until(lambda: client.lines, 20, "a greeting")
        client.received.clear()
        return client

    def second_has_clients() -> bool:
        client = enter()
        if clients_of(ADDRESSES[1], text):
            return True
        client.say(b"close\n")
        crowd.until(lambda: client.is_closed, 20, "the end of a client")
        crowd.clients.remove(client)
        client.socket.close()
        return False

    until(second_has_clients, 20, "a client on the second shard")
    while len(crowd.clients) < 5:
        enter()
    assert clients_of(ADDRESSES[0], text) and clients_of(ADDRESSES[1], text)

    # One says something: everybody else hears it, whichever shard they are on.
    early.clients[0].say(b"hello\r\n")
    crowd.until(lambda: all(bytes(one.received) == b"hello\r\n" for one in crowd.clients), 20, "hello")

    # A shard stops: its clients are told and closed, the others stay, and new ones find the one that is left.
    assert first.stop() == 0
    early.until(
        lambda: all(one.is_closed for one in early.clients), 20, "the end of the first shard's clients"
    )
    assert (
        bytes(early.clients[1].received) == b"hello\r\ngoodbye: shard 0 is stopping, please connect again\n"
    )
    late = Crowd(proxy.text_port, 4)
    stack.callback(late.close)
    late.greeted()
    assert proxy.health() == 200
    assert second.process.poll() is None
    assert "[ALERT]" not in proxy.log(), proxy.log()
