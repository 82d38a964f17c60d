"""Channels that a client names when it connects: the team's code is asked of these as of all others."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from spread.node.app.values import Disconnect, Identity, Refuse, Subscribing
from tests.node.app.stage import KINDS, Cast, Troupe, answered, log_of
from tests.node.people import namespaces


class Guarded(Cast):
    """May a client come in? That is in the name of the channel."""

    kind = "value"
    waiting: Deferred[Any] | None = None

    def connecting(self, client: Any) -> Any:
        return Identity(user="", channels=["given"])

    def subscribing(self, client: Any, channel: str) -> Any:
        self.told.append(("asked", channel))
        if channel == "slow":
            return self.waiting
        return answered(self.kind, lambda: self.decide(channel))

    def decide(self, channel: str) -> Any:
        if channel == "no":
            raise Refuse(4001, "not you")
        if channel == "end":
            raise Disconnect(4500, "not you at all")
        if channel == "wrong":
            raise KeyError(channel)
        return Subscribing(data=[1]) if channel == "closed:yes" else None


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_client_names_when_it_connects_is_asked_of(kind: str) -> None:
    closed = {"allow_subscribe_for_client": False}
    troupe = Troupe(type("Kind", (Guarded,), {"kind": kind}), namespaces(closed=closed))
    with log_of() as lines:
        guest = troupe.guest(
            subs={name: {} for name in ("no", "given", "yes", "wrong", "$no", "closed:no", "closed:yes")}
        )
    assert set(guest.greeting["subs"]) == {"given", "yes", "closed:yes"}
    assert guest.greeting["subs"]["closed:yes"]["data"] == [1]
    asked = [channel for what, channel, *_ in troupe.app.told if what == "asked"]
    assert asked == ["no", "yes", "wrong", "closed:no", "closed:yes"]
    assert len(lines) == 1 and "KeyError" in lines[0]
    person = troupe.city.person()
    person.says({"id": 1, "connect": {"subs": {"yes": {}, "end": {}}}})
    troupe.turn()
    assert person.closed == (4500, "not you at all")


def test_nobody_names_more_channels_than_it_may_be_in() -> None:
    troupe = Troupe(Guarded, channel_limit=3)
    person = troupe.city.person()
    person.says({"id": 1, "connect": {"subs": {str(number): {} for number in range(3)}}})
    troupe.turn()
    assert person.closed == (3505, "channel limit")
    assert troupe.app.told == []


def test_who_goes_meanwhile_is_in_no_channel() -> None:
    troupe = Troupe(Guarded)
    cancelled: list[Any] = []
    troupe.app.waiting = Deferred(cancelled.append)
    person = troupe.city.person()
    person.says({"id": 1, "connect": {"subs": {"yes": {}, "slow": {}}}})
    troupe.turn()
    person.leaves()
    troupe.turn()
    assert cancelled and troupe.host.hooks.waiting == 0
    assert not list(troupe.city.shards[0].channels)
