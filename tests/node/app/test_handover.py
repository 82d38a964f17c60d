"""An app is replaced while its hooks, calls and timers are under way: each ends once, as it began."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from spread.node import App, Client, Refuse, every, rpc
from spread.node.app.update import UpdateRefused
from spread.node.testing import Refused, Stage
from spread.node.wire.messages import SubscribeRequest

OPEN: dict[str, Any] = {
    "client": {"allow_anonymous_connect_without_token": True},
    "channel": {
        "without_namespace": {
            "allow_subscribe_for_client": True,
            "allow_subscribe_for_anonymous": True,
            "allow_publish_for_client": True,
            "allow_publish_for_anonymous": True,
        },
    },
}


class Old(App):
    name = "old"

    def __init__(self) -> None:
        self.waiting: dict[str, Deferred[Any]] = {}
        self.calls: list[str] = []
        self.scores = {"ann": 1}

    def wait(self, what: str) -> Deferred[Any]:
        self.waiting[what] = Deferred()
        return self.waiting[what]

    async def subscribing(self, client: Client, channel: str) -> None:
        if channel == "held":
            await self.wait("subscribing")

    async def publishing(self, client: Client, channel: str, data: Any) -> Any:
        if data == "hold":
            await self.wait("publishing")
        return f"{self.name}: {data}"

    @rpc("move")
    async def move(self, client: Client, params: Any) -> Any:
        client.state["moves"] = client.state.get("moves", 0) + 1
        if params is not None:
            await self.wait(params)
        if params == "fail":
            raise Refuse(4001, f"{self.name} says no")
        return [self.name, client.state["moves"]]

    @every(1.0)
    def beat(self) -> None:
        self.calls.append(f"{self.name} beats")

    def ring(self, what: str) -> None:
        self.calls.append(f"{self.name} rings {what}")

    def export_state(self) -> Any:
        return [self.scores, self.calls]

    def import_state(self, state: Any) -> None:
        self.scores, self.calls = state


class New(Old):
    name = "new"

    @every(0.5)
    def pulse(self) -> None:
        self.calls.append("pulse")


def test_a_call_under_way_is_answered_once_by_the_old() -> None:
    with Stage(Old, OPEN) as stage:
        ann, bob = stage.client(user="ann"), stage.client(user="bob")
        old = stage.app()
        slow, failing = ann.begin_rpc("move", "hold"), bob.begin_rpc("move", "fail")
        stage.update(New)
        assert not slow.is_answered and not failing.is_answered
        assert ann.rpc("move", None) == ["new", 2]  # ``client.state`` is the client's
        old.waiting["hold"].callback(None)
        old.waiting["fail"].callback(None)
        assert slow.result() == ["old", 2]
        with pytest.raises(Refused, match="old says no"):
            failing.result()
        assert ann.closed is bob.closed is None


def test_who_is_amid_a_hook_gets_on_with_it() -> None:
    with Stage(Old, OPEN) as stage:
        ann, bob = stage.client(user="ann"), stage.client(user="bob")
        for client in (ann, bob):
            client.subscribe("chat")
        old = stage.app()
        held = ann.begin_publish("chat", "hold")
        behind = ann.begin_publish("chat", "behind")
        stage.update(New)
        bob.publish("chat", "hello")
        assert not held.is_answered and not behind.is_answered
        old.waiting["publishing"].callback(None)
        held.result()
        behind.result()
        # Each once, in the order in which its publisher said it; what came after the update is the new one's.
        assert bob.publications("chat") == ["new: hello", "old: hold", "new: behind"]


def test_nobody_is_left_amid_a_subscription() -> None:
    with Stage(Old, OPEN) as stage:
        ann = stage.client(user="ann")
        old = stage.app()
        entering = ann._ask(SubscribeRequest(channel="held"), "subscribe")
        stage.update(New)
        assert not entering.is_answered
        old.waiting["subscribing"].callback(None)
        entering.result()
        stage.wait(stage.app().publish("held", "hello"))
        assert ann.publications("held") == ["hello"]


def test_timers_move_and_keep_their_time() -> None:
    with Stage(Old, OPEN) as stage:
        stage.app().later(0.7, stage.app().ring, "seven")
        cancelled = stage.app().later(0.6, stage.app().ring, "never")
        stage.advance(0.6 - 0.2)
        stage.update(New)
        cancelled.cancel()
        stage.advance(0.35)  # at 0.75
        assert stage.app().calls == ["new rings seven"]
        stage.advance(0.3)  # at 1.05: the beat of the old schedule, and the pulse of a new one
        assert sorted(stage.app().calls) == ["new beats", "new rings seven", "pulse"]
        stage.update(Old)
        stage.advance(1.0)
        assert stage.app().calls.count("pulse") == 1  # it went with its class
        assert stage.app().calls[-1] == "old beats"


class Ringless(App):
    """Without ``ring``."""

    def import_state(self, state: Any) -> None:
        self.state = state


def test_a_timer_without_a_method_refuses_the_update() -> None:
    with Stage(Old, OPEN) as stage:
        timer = stage.app().later(5.0, stage.app().ring, "five")
        with pytest.raises(UpdateRefused, match="ring"):
            stage.update(Ringless)
        assert isinstance(stage.app(), Old)
        timer.cancel()
        stage.update(Ringless)
        assert stage.app().state == [{"ann": 1}, []]


class Mistaken(New):
    def import_state(self, state: Any) -> None:
        self.later(0.1, self.ring, "too early")
        state[0].clear()
        raise KeyError("scores")


def test_what_a_refused_app_has_begun_is_undone() -> None:
    with Stage(Old, OPEN) as stage:
        with pytest.raises(UpdateRefused, match="scores"):
            stage.update(Mistaken)
        stage.advance(0.5)
        assert (stage.app().scores, stage.app().calls) == ({"ann": 1}, [])
        assert type(stage.app()) is Old
