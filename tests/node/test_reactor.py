"""The reactor of a shard: what it measures; and that it serves connections as Twisted's own does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spread.node import reactor as reactor_module
from spread.node.reactor import LONG_SECONDS, Turns

PROGRAM = """
import time
from spread.node.reactor import install, turns
install()
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import globalLogPublisher
assert type(reactor).__name__ == "ShardReactor"
logged, ends = [], []
globalLogPublisher.addObserver(lambda event: logged.append(str(event)))

class Server(Protocol):
    def dataReceived(self, data):
        if data == b"raise":
            raise ValueError("of one connection")
        if data == b"slow":
            time.sleep(0.06)
        self.transport.write(data.upper())
    def connectionLost(self, reason):
        ends.append(reason.type.__name__)
        if len(ends) == 3:
            reactor.stop()

class Client(Protocol):
    def __init__(self, says):
        self.says = says
    def connectionMade(self):
        self.transport.write(self.says)
    def dataReceived(self, data):
        assert data == self.says.upper()
        self.transport.loseConnection()

factory = Factory.forProtocol(Server)
port = reactor.listenTCP(0, factory, interface="127.0.0.1").getHost().port
for says in (b"hello", b"raise", b"slow"):
    client = Factory()
    client.buildProtocol = lambda address, says=says: Client(says)
    client.doStart = client.doStop = lambda: None
    client.startedConnecting = lambda connector: None
    client.clientConnectionLost = client.clientConnectionFailed = lambda connector, reason: None
    reactor.connectTCP("127.0.0.1", port, client)
reactor.callLater(10, reactor.stop)
reactor.run()
raised = sum("of one connection" in text for text in logged)
print(sorted(ends), raised, turns.long, turns.longest_seconds > 0.05)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no epoll")
def test_connections_are_served_and_closed_and_what_one_raises_ends_that_one() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    ends, raised, long, is_longest = done.stdout.strip().rsplit(" ", 3)
    assert ends == "['ConnectionDone', 'ConnectionDone', 'ValueError']"
    assert raised == "1"
    assert int(long) >= 1 and is_longest == "True"


def test_long_turns_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(reactor_module, "perf_counter", lambda: now)
    turns = Turns()
    for seconds in (0.01, LONG_SECONDS, 2 * LONG_SECONDS, 0.0):
        turns.began_at = now
        now += seconds
        turns.over()
    assert turns.long == 1
    assert turns.longest_seconds == pytest.approx(2 * LONG_SECONDS)


def test_one_that_is_there_stays() -> None:
    program = (
        "from twisted.internet import selectreactor; selectreactor.install();"
        "from spread.node.reactor import install; install();"
        "from twisted.internet import reactor; print(type(reactor).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "SelectReactor", done.stderr
