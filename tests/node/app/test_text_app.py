"""Clients of the text protocol and the hooks of an app: the same rules as for all others, and no way around
them by going at once."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from spread.node.app.values import DROP, Disconnect, Identity, Refuse
from tests.node.app.stage import KINDS, Cast, Troupe, answered, log_of


class Filter(Cast):
    """What people say waits, where the test says so; and some words nobody hears."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[str, Deferred[Any]] = {}
        self.asked: list[str] = []

    def publishing(self, client: Any, channel: str, data: Any) -> Any:
        self.asked.append(f"{data} in {channel}")
        if data == "gone":
            client.disconnect(4001, "out")
        if data == "damn":
            raise Refuse(400, "mind your language")
        if data == "ban":
            raise Disconnect(4500, "banned")
        if data.startswith("wait"):
            return self.waiting.setdefault(data, Deferred())
        return DROP if data == "drop" else data.replace("darn", "****")

    def subscribing(self, client: Any, channel: str) -> Any:
        if channel == "secret":
            raise Refuse(103, "not in there")
        return self.waiting.setdefault(channel, Deferred()) if channel == "slow" else None


def says(person: Any, *lines: str) -> None:
    person.says(*(line.encode() + b"\n" for line in lines))


@pytest.fixture
def troupe() -> Troupe:
    return Troupe(Filter)


@pytest.fixture
def listener(troupe: Troupe) -> Any:
    """Hears all that is said in the lobby."""
    person = troupe.text()
    assert person.heard == ["hi 1"]
    return person


def test_what_is_said_is_asked_about(troupe: Troupe, listener: Any) -> None:
    person = troupe.text()
    says(person, "hello", "darn it", "damn", "drop", "bye")
    troupe.turn()
    assert listener.heard == ["hello", "**** it", "bye"]
    assert person.heard == ["hi 2", "error: mind your language"]
    says(person, "ban", "after")
    troupe.turn()
    assert listener.heard == [] and person.heard == ["error: banned"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("raise", "error: internal server error"),
        ("refuse", "error: not you"),
        ("disconnect", "error: away"),
        ("nonsense", "error: internal server error"),
    ],
)
def test_who_is_not_let_in(kind: str, how: str, wanted: str) -> None:
    errors = {
        "raise": KeyError("x"),
        "refuse": Refuse(4000, "not you"),
        "disconnect": Disconnect(4001, "away"),
    }

    def act() -> Any:
        if how in errors:
            raise errors[how]
        return 7

    class Guarded(Filter):
        def connecting(self, client: Any) -> Any:
            return answered(kind, act)

    troupe = Troupe(Guarded)
    with log_of():
        person = troupe.text()
    says(person, "let me in")
    person.session.lost()
    troupe.turn()
    assert person.heard == [wanted] and troupe.app.asked == [] and troupe.app.told == []
    assert not len(troupe.city.shards[0].channels)


def test_nobody_joins_or_talks_where_it_may_not(troupe: Troupe) -> None:
    person = troupe.text()
    says(person, "/join secret", "one", "/join open", "two")
    troupe.turn()
    assert person.heard == ["hi 1", "error: not in there"]
    assert troupe.app.asked == ["one in lobby", "two in open"]


# -- the end of the connection -------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["lost", "goodbye"])
def test_what_was_said_before_the_end_is_published_in_order(troupe: Troupe, listener: Any, end: str) -> None:
    person = troupe.text()
    says(person, "zero", "wait 1", "two", "wait 3", "damn", "four")
    troupe.turn()
    assert listener.heard == ["zero"]
    {"lost": person.session.lost, "goodbye": lambda: person.session.goodbye(0)}[end]()
    troupe.turn()
    assert listener.heard == []
    troupe.app.waiting["wait 1"].callback("one")
    troupe.turn()
    assert listener.heard == ["one", "two"]
    troupe.app.waiting["wait 3"].callback("three")
    troupe.turn()
    assert listener.heard == ["three", "four"]
    assert troupe.host.hooks.waiting == 0


def test_one_that_never_is_answered_holds_up_its_own_alone(troupe: Troupe, listener: Any) -> None:
    person = troupe.text()
    says(person, "wait", "after")
    person.session.lost()
    with log_of() as lines:
        troupe.turn(6.0)
    assert listener.heard == ["after"] and "has not answered" in lines[0]


def test_what_never_ends_is_given_up(troupe: Troupe, listener: Any) -> None:
    person = troupe.text()
    says(person, *(f"wait {number}" for number in range(100)))
    person.session.lost()
    with log_of():
        troupe.turn(70.0)
    assert len(troupe.app.asked) < 20 and troupe.host.hooks.waiting == 0
    assert listener.heard == []


def test_who_is_banned_says_nothing_more(troupe: Troupe, listener: Any) -> None:
    person = troupe.text()
    says(person, "wait", "ban", "after")
    person.session.lost()
    troupe.app.waiting["wait"].callback("before")
    troupe.turn()
    assert listener.heard == ["before"]
    person = troupe.text()
    says(person, "wait 2", "after")
    person.session.lost()
    troupe.app.waiting["wait 2"].errback(Disconnect(4500, "banned"))
    troupe.turn()
    assert listener.heard == []


def test_a_client_that_publishing_ends_was_where_it_was(troupe: Troupe) -> None:
    attic, person = troupe.text(), troupe.text()
    says(attic, "/join attic")
    says(person, "/join attic", "gone", "never")
    troupe.turn()
    assert attic.heard == ["hi 1", "gone"]
    assert person.heard == ["hi 2", "error: out"]
    # The team ends it while it thinks: what it thinks about is not published.
    person = troupe.text()
    says(person, "wait", "never")
    troupe.client(person).disconnect()
    assert troupe.app.waiting["wait"].called, "it was cancelled"
    troupe.turn()
    assert attic.heard == [] and person.heard == ["hi 3", "error: disconnected by the application"]
    assert troupe.host.hooks.waiting == 0


@pytest.mark.parametrize(("answer", "said"), [(None, "hello in slow"), (Refuse(), "hello in lobby")])
def test_who_goes_while_it_joins_is_asked_about_again(troupe: Troupe, answer: Any, said: str) -> None:
    person = troupe.text()
    says(person, "/join slow", "hello")
    first = troupe.app.waiting.pop("slow")
    person.session.lost()
    assert first.called, "it was cancelled"
    troupe.turn()
    assert troupe.app.asked == []
    (troupe.app.waiting["slow"].errback if answer else troupe.app.waiting["slow"].callback)(answer)
    troupe.turn()
    assert troupe.app.asked == [said]


def test_who_goes_while_it_is_let_in_is_asked_about_again() -> None:
    class Slow(Filter):
        def connecting(self, client: Any) -> Any:
            return self.waiting.setdefault("who", Deferred())

    for answer, asked in ((Identity(user="ann"), ["hello in lobby"]), (Refuse(), [])):
        troupe = Troupe(Slow)
        person = troupe.text()
        says(person, "hello")
        troupe.app.waiting.pop("who")
        person.session.lost()
        troupe.turn()
        waiting = troupe.app.waiting["who"]
        (waiting.errback if isinstance(answer, Exception) else waiting.callback)(answer)
        troupe.turn()
        assert troupe.app.asked == asked and troupe.app.told == []


@pytest.mark.parametrize("hook", ["connecting", "subscribing", "view", "connected"])
def test_a_hook_ends_its_own_client(hook: str) -> None:
    def act(self: Any, client: Any, *args: Any) -> None:
        client.disconnect(4001, "out")

    class Rude(Filter):
        pass

    setattr(Rude, hook, act)
    troupe = Troupe(Rude)
    with log_of("spread.node") as lines:
        person = troupe.text()
    greeting = ["hi 1"] if hook == "connected" else []
    assert person.heard == [*greeting, "error: out"] and lines == []
    person.session.lost()
    troupe.turn(5.0)
    assert not len(troupe.city.shards[0].channels)


def test_a_hook_ends_it_on_its_way(troupe: Troupe) -> None:
    person = troupe.text()
    troupe.app.__class__.unsubscribed = lambda self, client, channel: client.disconnect(4001, "out")
    try:
        says(person, "/join attic")
        troupe.turn()
    finally:
        del troupe.app.__class__.unsubscribed
    assert person.heard == ["hi 1", "error: out"] and list(troupe.client(person).channels) == []
    troupe.turn(5.0)
    assert not len(troupe.city.shards[0].channels)


def test_it_is_known_and_brought_elsewhere(troupe: Troupe) -> None:
    seen: list[Any] = []
    person = troupe.text()
    client = troupe.client(person)
    assert (client.user, client.transport, list(client.channels)) == ("", "text", ["lobby"])
    assert client.send("a") and client.send([1])
    assert person.heard == ["hi 1", "a", "[1]"]
    client.subscribe("attic").addBoth(seen.append)
    troupe.turn()
    assert seen == [True] and list(client.channels) == ["attic"] and not client.unsubscribe("attic")
    person.session.lost()
    assert [each[0] for each in troupe.app.told] == [
        *("connected", "subscribed", "unsubscribed", "subscribed", "unsubscribed", "disconnected"),
    ]
    assert not client.send("x")
    client.disconnect()
    assert troupe.host.client_of(client.number) is None
