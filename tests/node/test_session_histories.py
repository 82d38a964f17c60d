"""Any order of coming, going, publishing and failing on two shards: who follows positions misses nothing.

A client here does what an SDK does: it knows the place up to which it has processed publications, asks to
recover from there, and counts what it is handed.
"""

from __future__ import annotations

import itertools
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from spread.hub.api import Broken, Format, PublishOptions
from spread.node import channel as channel_module
from spread.node import fanout as fanout_module
from spread.node.control import SubscribeOptions
from tests.node.people import OPEN, City, Person, namespaces, token

FOLLOWED = structs.replace(OPEN, force_recovery=True, history_size=1000, force_push_join_leave=True)
USERS = 4
CHANNELS = ("a", "b")


class Follower:
    """An SDK: one connection at a time, on some shard, and what it knows of each channel."""

    def __init__(self, town: Town, user: str) -> None:
        self.town = town
        self.user = user
        self.ids = itertools.count(2)
        self.places: dict[str, tuple[str, int]] = {}
        self.subscribed: set[str] = set()
        self.asked: dict[int, tuple[str, str]] = {}
        self.person: Person = self.connect(0)

    def connect(self, shard: int) -> Person:
        self.subscribed.clear()
        self.asked.clear()
        self.person = self.town.city.person(shard)
        self.person.says({"id": 1, "connect": {"token": token(sub=self.user)}})
        return self.person

    def reconnect(self, shard: int) -> None:
        self.hear()
        self.person.leaves()
        self.connect(shard)

    def says(self, method: str, channel: str) -> None:
        number = next(self.ids)
        self.asked[number] = (method, channel)
        request: dict[str, Any] = {"channel": channel}
        if method == "subscribe" and channel in self.places:
            epoch, offset = self.places[channel]
            request.update(recover=True, epoch=epoch, offset=offset)
        self.person.says({"id": number, method: request})

    def hear(self) -> None:
        """Take in what has come, as an SDK does."""
        for reply in self.person.told:
            if "push" in reply:
                self._pushed(reply["push"])
            elif reply.get("id", 0) in self.asked:
                self._answered(*self.asked.pop(reply["id"]), reply)
        if self.person.closed is not None:
            assert self.person.closed[0] in (3010, 3012), self.person.closed
            self.person.leaves()
            self.connect(0)

    def _answered(self, method: str, channel: str, reply: dict[str, Any]) -> None:
        if "error" in reply:
            assert reply["error"]["code"] in (100, 103, 105), reply
        elif method == "unsubscribe":
            self.subscribed.discard(channel)
        else:
            result = reply["subscribe"]
            assert channel not in self.subscribed
            self.subscribed.add(channel)
            if result.get("was_recovering") and not result.get("recovered"):
                assert self.town.may_break, f"lost {self.places[channel]}: {result}"
                assert result.get("offset", 0) >= self.places[channel][1], "what it has comes again"
            self.places[channel] = (result["epoch"], result.get("offset", 0))
            for publication in result.get("publications", []):
                self._published(channel, publication)

    def _pushed(self, push: dict[str, Any]) -> None:
        channel = push["channel"]
        if "pub" in push:
            assert channel in self.subscribed, push
            self._published(channel, push["pub"])
        elif "unsubscribe" in push:
            self.subscribed.discard(channel)
            if push["unsubscribe"]["code"] >= 2500:
                self.says("subscribe", channel)
        elif "subscribe" in push:
            assert channel not in self.subscribed
            self.subscribed.add(channel)
            self.places[channel] = (push["subscribe"]["epoch"], push["subscribe"].get("offset", 0))

    def _published(self, channel: str, publication: dict[str, Any]) -> None:
        epoch, offset = self.places[channel]
        assert publication["offset"] == offset + 1, f"{publication} after {offset} in {channel}"
        assert publication["data"] == publication["offset"]
        self.places[channel] = (epoch, offset + 1)


class Town:
    """Two shards, whose fan-out does two publications in a slice; four users."""

    def __init__(self, may_break: bool) -> None:
        self.may_break = may_break
        self.city = City(namespaces(FOLLOWED), shards=2, ping_interval=-1.0)
        for shard in self.city.shards:
            shard.fanout._now = itertools.count().__next__
        self.published = dict.fromkeys(CHANNELS, 0)
        self.followers = [Follower(self, f"user-{number}") for number in range(USERS)]
        self.do(("wait", 0.0))
        for number in range(USERS):
            self.do(("subscribe", number, "a"))
        self.do(("wait", 0.0))

    def do(self, action: tuple[Any, ...]) -> None:
        city = self.city
        match action:
            case ("subscribe" | "unsubscribe" as method, who, channel):
                self.followers[who].says(method, channel)
            case ("again", who, channel):
                self.followers[who].says("unsubscribe", channel)
                self.followers[who].says("subscribe", channel)
            case ("publish", shard, channel, count):
                for _ in range(count):
                    self.publish(shard, channel)
            case ("reconnect", who, shard):
                self.followers[who].reconnect(shard)
            case ("api subscribe", who, channel):
                for shard in city.shards:
                    shard.clients.subscribe(
                        f"user-{who}", channel, client="", session="", options=SubscribeOptions()
                    ).addErrback(lambda _: None)
            case ("api unsubscribe", who, channel):
                for shard in city.shards:
                    shard.clients.unsubscribe(f"user-{who}", channel, client="", session="")
            case ("turn", turns):
                for _ in range(turns):
                    self.turn()
            case ("wait", seconds):
                city.turn(seconds)
            case ("cut",):
                if not city.exchange.is_cut:
                    city.exchange.cut()
            case ("restore",):
                if city.exchange.is_cut:
                    city.exchange.restore()
            case ("break", number, channel):
                if self.may_break:
                    self.break_(number, channel)
        for follower in self.followers:
            follower.hear()

    def turn(self) -> None:
        """One thing that is due, where ``Clock.advance`` does all."""
        clock = self.city.clock
        if clock.calls and clock.calls[0].getTime() <= clock.seconds():
            call = clock.calls.pop(0)
            call.called = 1
            call.func(*call.args, **call.kw)

    def publish(self, shard: int, channel: str) -> None:
        if self.city.exchange.is_cut:
            return
        self.published[channel] += 1
        options = self.city.namespaces.options(channel)
        assert options is not None
        self.city.shards[shard].hub.publish(
            channel,
            b"%d" % self.published[channel],
            Format.JSON,
            0,
            PublishOptions(history=options.history),
        )

    def break_(self, number: int, channel: str) -> None:
        """The hub says that something is missing, and goes on from where it is."""
        shard = self.city.shards[number]
        inbox = shard.hub.inbox
        if channel in inbox._followed:
            shard.fanout.received(channel, Broken(inbox.position(channel)))
            shard.fanout.read_done()

    def end(self) -> None:
        """All is well again: everybody has everything, and is there; then all go, and nothing is left."""
        city = self.city
        self.do(("restore",))
        for seconds in (70, 0, 0):  # who was told to subscribe again has done so
            self.do(("wait", seconds))
        for channel in CHANNELS:
            for follower in self.followers:
                if channel in follower.subscribed:
                    assert follower.places[channel][1] == self.published[channel]
            there = {f.person.session.client for f in self.followers if channel in f.subscribed}
            present: list[Any] = []
            city.shards[0].hub.presence(channel).addCallback(present.append)
            assert set(present[0]) == there
        for follower in self.followers:
            follower.hear()
            assert set(follower.person.session.subscriptions) == follower.subscribed
            assert not follower.person.session.subscribing
            follower.person.leaves()
        city.turn(5)
        for shard in city.shards:
            assert len(shard.channels) == 0
            assert shard.counters.subscriptions == shard.counters.clients == shard.clients.users == 0
            assert shard.fanout.is_idle and shard.counters.inbox_bytes == 0
            assert shard.hub.counters.subscribed_channels == shard.hub.counters.followed_channels == 0
        present = []
        for channel in CHANNELS:
            city.shards[0].hub.presence(channel).addCallback(present.append)
        assert present == [{}, {}]


who = st.integers(0, USERS - 1)
shard = st.integers(0, 1)
channel = st.sampled_from(CHANNELS)
actions = st.one_of(
    st.tuples(st.just("subscribe"), who, channel),
    st.tuples(st.just("subscribe"), who, channel),
    st.tuples(st.just("unsubscribe"), who, channel),
    st.tuples(st.just("again"), who, channel),
    st.tuples(st.just("publish"), shard, channel, st.integers(1, 6)),
    st.tuples(st.just("publish"), shard, channel, st.integers(1, 6)),
    st.tuples(st.just("reconnect"), who, shard),
    st.tuples(st.just("api subscribe"), who, channel),
    st.tuples(st.just("api unsubscribe"), who, channel),
    st.tuples(st.just("turn"), st.integers(1, 6)),
    st.tuples(st.just("turn"), st.integers(1, 6)),
    st.tuples(st.just("wait"), st.sampled_from((0.0, 1.0, 4.0, 6.0))),
    st.tuples(st.just("cut")),
    st.tuples(st.just("restore")),
    st.tuples(st.just("break"), shard, channel),
)


def lives(may_break: bool, actions: list[tuple[Any, ...]]) -> None:
    with (
        mock.patch.object(channel_module, "MEMBERS_PER_STEP", 1),
        mock.patch.object(fanout_module, "PUBLICATIONS_PER_LOOK", 1),
    ):
        town = Town(may_break)
        for action in actions:
            town.do(action)
        town.end()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(actions, max_size=40))
def test_who_follows_positions_misses_nothing_and_gets_nothing_twice(
    happens: list[tuple[Any, ...]],
) -> None:
    lives(False, happens)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(actions, max_size=40))
def test_also_when_the_hub_has_lost_something(happens: list[tuple[Any, ...]]) -> None:
    lives(True, happens)
