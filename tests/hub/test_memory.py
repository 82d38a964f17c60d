"""The hub in memory: the conformance suite, and what only this hub can show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from spread.hub.api import ShardIdentity
from spread.hub.errors import HubUnavailable
from spread.hub.memory import Exchange, MemoryHub
from spread.hub.process import this_process
from tests.hub.conformance import LINGER_SECONDS, AwayConformance, HubConformance
from tests.hub.shards import LOAD, Recorder, Shard, reactor
from tests.hub.stream_conformance import StreamAwayConformance, StreamConformance


class MemoryConformance(HubConformance, AwayConformance, StreamConformance, StreamAwayConformance, TestCase):
    """Every case, against hubs of one exchange."""

    timeout = 30

    def setUp(self) -> None:
        self.exchange = Exchange(reactor)

    def make_shard(self, **limits: Any) -> Shard:
        self.exchange.max_waiting = limits.get("max_publications", 100_000)
        self.exchange.publish_seconds = limits.get("publish_seconds", 5.0)
        identity = this_process("test")
        return Shard(MemoryHub(self.exchange, identity.incarnation, linger_seconds=LINGER_SECONDS), identity)

    def deafen(self, shard: Shard) -> Callable[[], None]:
        assert isinstance(shard.hub, MemoryHub)
        inbox = shard.hub._inbox
        inbox.arrive = lambda channel, event: None  # type: ignore[method-assign]

        def again() -> None:
            del inbox.arrive  # type: ignore[method-assign]

        return again

    def forget_everything(self) -> None:
        self.exchange.streams.flush()

    async def take_away(self) -> None:
        self.exchange.cut()

    def give_back(self) -> None:
        self.exchange.restore()


def _started(exchange: Exchange) -> tuple[MemoryHub, Recorder]:
    hub, receiver = MemoryHub(exchange, "00" * 8), Recorder()
    hub.start(receiver)
    return hub, receiver


def test_a_delivery_takes_a_turn() -> None:
    clock = Clock()
    hub, receiver = _started(Exchange(clock))
    hub.subscribe("a")
    hub.publish("a", b"x", 1, 0)
    assert receiver.publications == []
    clock.advance(0)
    assert receiver.on("a") == [b"x"]
    assert receiver.reads == 1
    hub.stop()
    assert clock.getDelayedCalls() == []


def test_it_cannot_start_while_the_exchange_is_cut() -> None:
    exchange = Exchange(Clock())
    exchange.cut()
    failure = MemoryHub(exchange, "00" * 8).start(Recorder())
    failures: list[Any] = []
    failure.addErrback(failures.append)
    assert failures[0].check(HubUnavailable)


def test_a_receiver_may_pause_in_the_middle_of_a_turn() -> None:
    clock = Clock()
    hub, receiver = _started(Exchange(clock))

    def received(channel: str, publication: Any) -> None:
        receiver.publications.append((channel, publication))
        hub.pause()

    receiver.received = received  # type: ignore[method-assign]
    hub.subscribe("a")
    for data in (b"1", b"2"):
        hub.publish("a", data, 1, 0)
    clock.advance(0)
    assert receiver.on("a") == [b"1"]
    hub.resume()
    clock.advance(0)
    assert receiver.on("a") == [b"1", b"2"]


def test_the_number_of_a_process_that_is_gone_is_free() -> None:
    exchange = Exchange(Clock())
    (dead, _), (alive, _) = _started(exchange), _started(exchange)
    here = this_process("test")
    gone = ShardIdentity(
        incarnation="11" * 8, host="h", pid=2**22 + 1, machine=here.machine, started="1", version="1"
    )
    results: list[Any] = []
    dead.claim(None, gone).addBoth(results.append)
    alive.claim(None, here).addBoth(results.append)
    assert results == [0, 0]
    dead.stop()
    alive.enter(lambda: LOAD, lambda incumbent: None)
    alive.roster().addCallback(results.append)
    assert [row.identity for row in results[2]] == [here], "the stop of the dead one freed the number"


def test_stopping_leaves_no_timer() -> None:
    clock = Clock()
    exchange = Exchange(clock)
    hub, _ = _started(exchange)
    for number in range(100):
        hub.subscribe(f"c{number}")
        hub.unsubscribe(f"c{number}")
    hub.publish("c1", b"x", 1, 0)
    exchange.cut()
    hub.publish("c1", b"y", 1, 0).addErrback(lambda failure: failure.trap(HubUnavailable))
    hub.stop()
    assert clock.getDelayedCalls() == []
