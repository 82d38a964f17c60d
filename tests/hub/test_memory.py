"""The hub in memory: the conformance suite, and what only this hub can show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from spread.hub.api import Format, History, Publication, PublishOptions, ShardIdentity
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
        inbox = shard.hub.inbox
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


# -- streams by a clock --------------------------------------------------------------------------------


def _kept(hub: MemoryHub, channel: str, data: bytes, history: History, **more: Any) -> Any:
    taken: list[Any] = []
    options = PublishOptions(history=history, **more)
    hub.publish(channel, data, Format.JSON, 0, options).addCallback(taken.append)
    return taken[0]


def test_nothing_is_kept_for_ever() -> None:
    clock = Clock()
    exchange = Exchange(clock)
    hub, _ = _started(exchange)
    history = History(size=3, ttl_seconds=10, meta_ttl_seconds=100)
    for number in range(50):
        _kept(hub, f"c{number}", b"x", history, idempotency_key="k")
        clock.advance(1.0)
    streams = exchange.streams
    assert len(streams._kept) == 50 and len(streams._results) == 50
    assert sum(len(kept.entries) for kept in streams._kept.values()) <= 11
    clock.advance(60.0)
    assert _kept(hub, "c0", b"y", history, idempotency_key="k").offset == 1, "its result is remembered"
    assert len(streams._kept) < 50
    clock.advance(300.0)
    _kept(hub, "last", b"x", history)
    assert list(streams._kept) == ["last"] and streams._results == {} and len(streams._due) == 1
    hub.stop()
    assert clock.getDelayedCalls() == []


def test_the_times_of_a_channel_may_change() -> None:
    clock = Clock()
    exchange = Exchange(clock)
    hub, _ = _started(exchange)
    first = _kept(hub, "a", b"1", History(5, 100, 1000))
    _kept(hub, "a", b"2", History(5, 2, 4))
    clock.advance(3.0)
    assert exchange.streams.read("a", History(5, 2, 4), None, -1, False).publications == []
    clock.advance(5.0)
    assert exchange.streams.position("a", History(5, 2, 4)).epoch != first.epoch
    clock.advance(2000.0)
    _kept(hub, "b", b"x", History(5, 2, 4))
    assert len(exchange.streams._kept) == len(exchange.streams._due) == 1


def test_a_cut_loses_what_is_on_its_way_and_repairs_it_where_it_is_kept() -> None:
    clock = Clock()
    exchange = Exchange(clock)
    hub, receiver = _started(exchange)
    history = History(5, 60, 600)
    hub.subscribe("a", history)
    hub.subscribe("b")
    _kept(hub, "a", b"1", history)
    hub.publish("b", b"plain", Format.JSON, 0)
    exchange.cut()
    other = Publication(b"2", 1, b"another ", 0)
    exchange.take("a", other, PublishOptions(history=history))
    exchange.restore()
    clock.advance(0)
    assert receiver.on("a") == [b"1", b"2"] and receiver.on("b") == []
    assert hub.counters.repaired == 2
    exchange.cut()
    for number in range(10):
        exchange.take("a", Publication(b"%d" % number, 1, b"another ", 0), PublishOptions(history=history))
    exchange.restore()
    clock.advance(0)
    assert receiver.offsets("a") == [1, 2, 8, 9, 10, 11, 12] and hub.counters.broken == 1


def test_who_follows_later_leaves_the_others_what_is_on_its_way() -> None:
    clock = Clock()
    hub, receiver = _started(Exchange(clock))
    history = History(5, 60, 600)
    positions: list[Any] = []
    hub.subscribe("a")
    _kept(hub, "a", b"1", history)
    hub.subscribe("a", history).addCallback(positions.append)
    _kept(hub, "a", b"2", history)
    clock.advance(0)
    assert [position.offset for position in positions] == [0] and receiver.offsets("a") == [1, 2]
