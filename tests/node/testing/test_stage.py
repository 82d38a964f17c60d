"""An app on the stage: what its clients get, when time passes, and what goes wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred

from spread.node import (
    DROP,
    App,
    Client,
    Disconnect,
    Identity,
    Owned,
    Refuse,
    Subscribing,
    command,
    every,
    owns,
    remote,
    rpc,
)
from spread.node.app.update import UpdateRefused
from spread.node.config import ConfigError
from spread.node.testing import AppErrors, Closed, NoAnswer, Refused, Stage
from tests.node.tables import ITEMS, put, table

OPEN = {
    "channel": {
        "without_namespace": {
            "allow_publish_for_subscriber": True,
            "presence": True,
            "allow_presence_for_subscriber": True,
            "join_leave": True,
            "history_size": 10,
            "history_ttl": "60s",
            "allow_history_for_subscriber": True,
        }
    }
}


class Move(msgspec.Struct):
    to: int


class Game(App):
    def __init__(self) -> None:
        self.ticks = 0
        self.told: list[Any] = []

    def connecting(self, client: Client) -> Identity | None:
        if client.data == "banned":
            raise Refuse(4001, "banned")
        if client.data == "away":
            raise Disconnect(4500, "go away")
        if client.data == "guest":
            return Identity(user="guest", data={"hello": client.data}, channels=("hall",))
        return None

    def subscribing(self, client: Client, channel: str) -> Any:
        return Subscribing(data={"in": channel})

    def subscribed(self, client: Client, channel: str) -> None:
        if channel == "late":
            client.subscribe("brought")

    async def publishing(self, client: Client, channel: str, data: Any) -> Any:
        if data == "slow":
            waiting: Deferred[None] = Deferred()
            self.later(2.0, waiting.callback, None)
            await waiting
        if data == "drop":
            return DROP
        return data

    def message(self, client: Client, data: Any) -> None:
        if data == "bye":
            client.disconnect(4501, "bye")
        client.send({"echo": data})

    def disconnected(self, client: Client, reason: str) -> None:
        self.told.append((client.user, reason))

    @rpc("move")
    def move(self, client: Client, params: Move) -> dict[str, int]:
        if params.to < 0:
            raise Refuse(4002, "no such place")
        return {"at": params.to}

    @rpc("sum")
    async def sum(self, client: Client) -> int:
        return sum(await self.call_shard(None, "number"))

    @rpc("broken")
    def broken(self, client: Client) -> None:
        raise KeyError("spear")

    @rpc("never")
    def never(self, client: Client) -> Deferred[None]:
        return Deferred()

    @remote
    def number(self) -> int:
        return self.shard + 10

    @every(1.0)
    def tick(self) -> None:
        self.ticks += 1

    def export_state(self) -> Any:
        return self.ticks


class Newer(Game):
    def import_state(self, state: Any) -> None:
        self.ticks = state

    @rpc("ticks")
    def get_ticks(self, client: Client) -> int:
        return self.ticks


class Broken(Game):
    def check(self) -> None:
        raise ValueError("tables are missing")


def test_clients_on_two_shards_hear_each_other() -> None:
    with Stage(Game, OPEN, shards=2) as stage:
        alice, bob = stage.client(user="alice"), stage.client(user="bob", shard=1)
        assert alice.subscribe("room") == {"in": "room"}
        bob.subscribe("room", join_leave=True)
        alice.publish("room", {"n": 1})
        alice.publish("room", "drop")
        assert alice.publications("room") == bob.publications("room") == [{"n": 1}]
        (heard,) = [each for each in bob.received if each.kind == "publication"]
        assert (heard.user, heard.channel, heard.offset) == ("alice", "room", 1)
        assert bob.history("room") == [{"n": 1}]
        assert bob.presence("room") == {alice.id: "alice", bob.id: "bob"}
        alice.unsubscribe("room")
        assert (alice.channels, bob.channels) == ([], ["room"])
        assert bob.received[-1].kind == "leave"
        assert alice.rpc("sum") == 21


def test_what_is_called_gives_its_result_or_raises() -> None:
    with Stage(Game) as stage:
        alice = stage.client(user="alice")
        assert alice.rpc("move", {"to": 3}) == {"at": 3}
        for params, code in (({"to": -1}, 4002), ({"to": "x"}, 107)):
            with pytest.raises(Refused) as refused:
                alice.rpc("move", params)
            assert refused.value.code == code
        assert "`$.to`" in refused.value.message
        with pytest.raises(Refused, match="104 method not found"):
            alice.rpc("nothing")
        alice.subscribe("room")
        with pytest.raises(Refused, match="103 permission denied"):
            alice.publish("room", 1)


def test_whoever_is_refused_is_told_why() -> None:
    with Stage(Game) as stage:
        guest = stage.client(data="guest")
        assert (guest.data, guest.channels) == ({"hello": "guest"}, ["hall"])
        with pytest.raises(Refused, match="4001 banned"):
            stage.client(user="alice", data="banned")
        with pytest.raises(Closed, match="4500 go away"):
            stage.client(data="away")
        with pytest.raises(Closed, match="3501"):
            stage.client()


def test_messages_and_the_end_of_a_connection() -> None:
    with Stage(Game) as stage:
        alice, bob = stage.client(user="alice"), stage.client(user="bob")
        alice.subscribe("late")
        assert alice.channels == ["late", "brought"]
        alice.send("hi")
        alice.send("bye")
        assert alice.messages == [{"echo": "hi"}]
        assert alice.closed == (4501, "bye")
        assert bob.closed is None
        with pytest.raises(Closed):
            alice.rpc("move", {"to": 1})
        bob.close()
        assert [user for user, _ in stage.app().told] == ["alice", "bob"]


def test_time_passes_when_it_is_told_to() -> None:
    with Stage(Game, OPEN) as stage:
        alice = stage.client(user="alice")
        alice.subscribe("room")
        with pytest.raises(NoAnswer, match=r"publish to room: .* say how many seconds"):
            alice.publish("room", "slow")
        asked = alice.begin_publish("room", "after")
        assert not asked.is_answered
        stage.advance(2.0)
        assert (asked.is_answered, alice.publications("room")) == (True, ["slow", "after"])
        alice.publish("room", "slow", seconds=2.0)
        stage.advance(600.0)
        assert (stage.app().ticks, alice.closed) == (604, None)  # it has answered pings


def test_a_slow_client() -> None:
    with Stage(Game, OPEN) as stage:
        alice, bob = stage.client(user="alice"), stage.client(user="bob")
        alice.subscribe("room")
        bob.subscribe("room")
        bob.stop_reading()
        for number in range(3):
            alice.publish("room", number)
        assert bob.publications("room") == []
        bob.read_on()
        assert bob.publications("room") == [0, 1, 2]
        bob.stop_reading()
        for _ in range(20):
            alice.publish("room", "x" * 60_000, seconds=10.0)  # publishers wait for whom is behind
        assert bob.closed == (3008, "slow")


def test_an_update() -> None:
    with Stage(Game, shards=2) as stage:
        alice = stage.client(user="alice", shard=1)
        stage.advance(3.0)
        stage.update(Newer)
        assert alice.rpc("ticks") == 3
        with pytest.raises(UpdateRefused, match="tables are missing"):
            stage.update(Broken)
        stage.advance(1.0)
        assert alice.rpc("ticks") == 4


def test_what_goes_wrong_is_not_overlooked() -> None:
    with pytest.raises(AppErrors, match="KeyError: 'spear'"), Stage(Game) as stage:
        assert stage.client(user="alice").begin_rpc("broken").is_answered
    with pytest.raises(Refused) as failed, Stage(Game) as stage:
        stage.client(user="alice").rpc("broken")
    assert "KeyError: 'spear'" in failed.value.__notes__[0]
    with Stage(Game) as stage:
        asked = stage.client(user="alice").begin_rpc("never")
        stage.advance(5.0)
        with pytest.raises(Refused, match="100 internal server error"):
            asked.result()
        (error,) = stage.errors
        assert "rpc never" in error and "of user 'alice'" in error and "not answered after 5 s" in error
        stage.errors.clear()


def test_an_app_that_must_not_run() -> None:
    with pytest.raises(ValueError, match="tables are missing"), Stage(Broken):
        pass
    wrong: Any = "game:Game"
    with pytest.raises(TypeError, match="not for 'game:Game'"):
        Stage(wrong)
    with pytest.raises(ValueError, match="one shard"):
        Stage(Game, shards=0)
    with pytest.raises(ConfigError, match="did you mean"):
        Stage(Game, {"channel": {"without_namespaces": {}}})


class Wall(Game):
    def connecting(self, client: Client) -> Identity:
        return Identity(user="")

    def subscribing(self, client: Client, channel: str) -> Any:
        if channel == "attic":
            raise Refuse(4003, "not up there")
        return Subscribing()

    async def publishing(self, client: Client, channel: str, data: Any) -> Any:
        if data == "away":
            raise Disconnect(4500, "go away")
        return await super().publishing(client, channel, data)

    def connected(self, client: Client) -> None:
        self.told.append(("hello", client.transport))


def test_text_clients() -> None:
    with Stage(Wall, OPEN, shards=2) as stage:
        tom, tim = stage.text_client(), stage.text_client(shard=1)
        alice = stage.client()
        alice.subscribe("lobby")
        tom.say("hi")
        tom.say("drop")
        tom.say("slow")
        tom.say("after")  # does not overtake it
        assert (tim.lines[1:], alice.publications("lobby")) == (["hi"], ["hi"])
        stage.advance(2.0)
        assert tim.lines[1:] == ["hi", "slow", "after"]
        alice.publish("lobby", {"n": 1})
        assert tim.lines[-1] == '{"n":1}'
        tom.say("/join attic")
        tom.say("/join kitchen")
        assert tom.lines[-1] == "error: not up there"
        assert [list(client.channels) for client in stage.app().clients_here()] == [["lobby"], ["kitchen"]]
        assert [client.transport for client in stage.app().clients_here("kitchen")] == ["text"]
        tim.close()
        assert stage.app(1).clients_here() == []
        tom.say("away")
        assert (tom.is_closed, tom.lines[-1]) == (True, "error: go away")
        with pytest.raises(ConnectionError, match="go away"):
            tom.say("once more")


@owns("count:*")
class Counter(Owned):
    tick_seconds = 0.1

    def opened(self, channel: str) -> None:
        self.total = 0

    def snapshot(self) -> Any:
        return self.total

    def restore(self, state: Any) -> None:
        self.total = state

    def tick(self, dt: float) -> None:
        self.publish([self.epoch, self.total])

    @command("add")
    def add(self, member: Any, params: int) -> int:
        self.total += params
        return self.total


class Counting(Wall):
    objects = (Counter,)


SPACES = {"channel": {"namespaces": [{"name": "count"}]}}


def test_an_owner_is_killed_and_another_stops() -> None:
    with Stage(Counting, SPACES, shards=3) as stage:
        people = [stage.client(shard=number) for number in range(3)]
        for each in people:
            each.subscribe("count:1")
        assert [each.rpc("count:1/add", 1) for each in people] == [1, 2, 3]
        stage.advance(1.1)  # a snapshot is made each second
        people[0].rpc("count:1/add", 100)
        first = stage.owner("count:1")
        assert first is not None and stage.owned("count:1").total == 103
        stage.kill(first)
        assert (people[first].closed is not None, stage.owner("count:1")) == (True, None)
        with pytest.raises(LookupError, match="no shard has an object"):
            stage.owned("count:1")
        left = [number for number in range(3) if number != first]
        assert stage.advance_until(lambda: stage.owner("count:1") is not None, 3.0)
        (second,) = [number for number in left if number == stage.owner("count:1")]
        (third,) = [number for number in left if number != second]
        assert people[third].rpc("count:1/add", 1, seconds=1.0) == 4  # as the last snapshot had it
        stage.stop(second)
        assert people[second].closed == (3001, "shutdown")
        assert stage.owner("count:1") == third
        assert people[third].rpc("count:1/add", 1, seconds=1.0) == 5  # nothing is lost
        stage.advance(0.1)
        assert people[third].publications("count:1")[-1] == [3, 5]
        for gone in (first, second, 7):
            with pytest.raises(LookupError, match=r"ended|no 7"):
                stage.client(shard=gone)
        assert stage.app(first).told == [("hello", "websocket")]  # the dead are told nothing


class Smithy(Counting):
    def check(self) -> None:
        assert self.tables.items["sword"].damage < 50, "nobody could bear that"

    @rpc("damage")
    def damage(self, client: Client, params: str) -> int:
        damage: int = self.tables.items[params].damage
        return damage


def test_tables_and_their_changes(tmp_path: Path) -> None:
    put(tmp_path, ITEMS)
    with Stage(Smithy, SPACES, tables=str(tmp_path)) as stage:
        alice = stage.client()
        assert alice.rpc("damage", "sword") == 5
        alice.subscribe("$tables")
        put(tmp_path, table("items", "id", {"id": "str", "damage": "int"}, ["sword", 7]))
        stage.advance(5.0)
        assert alice.rpc("damage", "sword") == 7
        assert [list(each["tables"]) for each in alice.publications("$tables")] == [["items"]]
    with pytest.raises(AttributeError, match="items"), Stage(Smithy, SPACES):
        pass


class Calling(App):
    objects = (Counter,)

    async def connecting(self, client: Client) -> Identity:
        return Identity(user="", data=await self.call("count:1", "add", client.data))


def test_what_a_command_refuses_the_app_can_catch_or_pass_on() -> None:
    with Stage(Calling, SPACES) as stage:
        assert stage.client(data=3).data == 3
        for wrong, refused in (("three", "107 .*`str`"), (None, "107")):
            with pytest.raises(Refused, match=refused):
                stage.client(data=wrong)
        with pytest.raises(Refuse, match="104 method not found"):
            stage.wait(stage.app().call("count:1", "fly"))
        with pytest.raises(LookupError, match="no object"):
            stage.app().call("room", "add", 1)
