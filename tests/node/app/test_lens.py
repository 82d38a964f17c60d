"""What an app makes of publications, asked through real sessions: views, the latest only, exclusions."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, cast

import pytest

from spread.hub.api import MAX_EXCLUDED, Format, PublishOptions
from spread.node.app.app import App
from spread.node.app.client import SPARE_VIEWS
from spread.node.app.values import Refuse, Subscribing
from spread.node.settings import NamespaceOptions
from tests.node.app.stage import Cast, Troupe, log_of
from tests.node.people import namespaces

CACHED = NamespaceOptions(
    history_size=1,
    history_ttl=60,
    force_recovery=True,
    force_recovery_mode="cache",
    allow_subscribe_for_client=True,
    allow_subscribe_for_anonymous=True,
)
"""Who comes gets the newest publication."""


class Cards(Cast):
    """Each player sees its own card of those on the table."""

    def view(self, client: Any, channel: str) -> Hashable | None:
        if channel == "closed":
            raise Refuse(103, "permission denied")
        return str(client.id)

    def see(self, channel: str, key: Any, data: Any) -> Any:
        return data.get(key)


def test_views_of_channels_that_nobody_came_into_do_not_pile_up() -> None:
    troupe = Troupe(Cards)
    ann = troupe.guest()
    ann.subscribes("a")
    client = troupe.client(ann)
    client.set_view("a", "mine")
    for number in range(3 * SPARE_VIEWS):
        client.set_view(f"no {number}", number)
    assert len(client.where) <= SPARE_VIEWS + 1 and client.where["a"] == "mine"
    assert client.where[f"no {3 * SPARE_VIEWS - 1}"] == 3 * SPARE_VIEWS - 1


def test_each_sees_its_own() -> None:
    troupe = Troupe(Cards)
    ann, ben, zoe = troupe.guest(), troupe.guest(), troupe.text()
    ann.subscribes("a", join_leave=True)
    ben.subscribes("a")
    troupe.app.publish("a", {ann.client: "ace", ben.client: "king"})
    troupe.turn()
    assert (ann.heard, ben.heard) == (["ace"], ["king"])
    # Who joins and leaves is told to all, whatever they see.
    troupe.guest().subscribes("a")
    assert "join" in ann.pushes[-1]
    lobby = zoe.session._channel.name
    troupe.app.publish(lobby, {zoe.session.client: {"hand": 1}})
    troupe.turn()
    assert zoe.heard[-1] == '{"hand":1}'


def test_a_view_may_refuse_and_that_is_its_answer() -> None:
    troupe = Troupe(Cards)
    ann = troupe.guest()
    assert ann.asks(subscribe={"channel": "closed"})["error"]["code"] == 103
    assert troupe.city.shards[0].channels.get("closed") is None


def test_what_is_no_key_changes_nothing() -> None:
    class Teams(Cast):
        def see(self, channel: str, key: Any, data: Any) -> Any:
            return data.get(key)

        def subscribing(self, client: Any, channel: str) -> Any:
            client.set_view(channel, "red")  # before it is in there
            return Subscribing()

    troupe = Troupe(Teams)
    ann = troupe.guest()
    ann.subscribes("a")
    client = troupe.client(ann)
    for channel in ("a", "b"):
        with pytest.raises(TypeError, match="unhashable"):
            client.set_view(channel, cast(Hashable, ["no", "key"]))
    troupe.app.publish("a", {"red": 1})
    troupe.turn()
    assert ann.heard == [1]
    ann.subscribes("b")
    client.set_view("b", "blue")
    troupe.app.publish("b", {"red": 1, "blue": 2})
    troupe.turn()
    assert ann.heard == [2]


@pytest.mark.parametrize("name", ["view", "see", "latest"])
def test_what_is_asked_for_each_publication_cannot_be_waited_for(name: str) -> None:
    async def later(*_: Any) -> None:
        raise AssertionError("never called")

    slow = type("Slow", (Cast,), {name: later})
    with pytest.raises(TypeError, match=rf"Slow.{name}\(\) must answer at once: no async def"):
        Troupe(slow)


def test_an_app_whose_latest_is_wrong_harms_nobody() -> None:
    class Wrong(Cast):
        def latest(self, channel: str, data: Any) -> Hashable | None:
            if data == "raise":
                raise RuntimeError("a defect of the app")
            return cast(Hashable, ["no", "key"])

    troupe = Troupe(Wrong)
    ann = troupe.guest()
    ann.subscribes("a")
    with log_of() as lines:
        for data in ("raise", "unhashable"):
            troupe.app.publish("a", data)
        troupe.turn()
    assert ann.heard == ["raise", "unhashable"]
    assert troupe.city.shards[0].counters.lens_errors == 2
    assert len(lines) == 2


def test_exclusions_are_ids_and_not_too_many() -> None:
    troupe = Troupe(Cast, shards=2)
    ann, ben, zoe = troupe.guest(0), troupe.guest(1), troupe.text(1)
    for one in (ann, ben):
        one.subscribes("a")
    app = troupe.app
    with pytest.raises(TypeError, match="not one id"):
        app.publish("a", 1, exclude=ann.client)
    with pytest.raises(ValueError, match="65 clients are excluded; at most 64 may be"):
        app.publish("a", 1, exclude=[str(number) for number in range(MAX_EXCLUDED + 1)])
    app.publish("a", 2, exclude=[str(number) for number in range(MAX_EXCLUDED - 1)] + [ben.client])
    app.publish("a", 3, exclude={ann.client})
    lobby = zoe.session._channel.name
    app.publish(lobby, 4, exclude=[zoe.session.client])
    app.publish(lobby, 5)
    troupe.turn()
    assert (ann.heard, ben.heard) == ([2], [3])
    lines = zoe.heard
    assert "5" in lines and "4" not in lines


def test_a_newest_one_that_is_not_for_a_client_is_no_state_of_it() -> None:
    troupe = Troupe(Cast, namespaces(CACHED))
    ann, ben = troupe.guest(), troupe.guest()
    start = ann.subscribes("a")
    options = troupe.city.namespaces.options("a")
    assert options is not None
    kept = PublishOptions(history=options.history, exclude=(ann.client,))
    troupe.city.shards[0].hub.publish("a", b'"for ben"', Format.JSON, 0, kept)
    troupe.turn()
    ann.asks(unsubscribe={"channel": "a"})
    position = {"recover": True, "epoch": start["epoch"]}
    given = ben.subscribes("a", **position)
    assert ([each["data"] for each in given["publications"]], given["recovered"]) == (["for ben"], True)
    given = ann.subscribes("a", **position)
    assert ("publications" in given, given.get("recovered", False)) == (False, False)
    # Who is where the channel is misses nothing.
    ann.asks(unsubscribe={"channel": "a"})
    assert ann.subscribes("a", **position, offset=1)["recovered"]


def test_who_is_shown_nothing_goes_on_from_the_top() -> None:
    class Blind(Cast):
        def see(self, channel: str, key: Any, data: Any) -> Any:
            return data or None

    stream = NamespaceOptions(
        history_size=9,
        history_ttl=60,
        force_recovery=True,
        allow_subscribe_for_client=True,
        allow_subscribe_for_anonymous=True,
    )
    troupe = Troupe(Blind, namespaces(stream))
    ann = troupe.guest()
    epoch = ann.subscribes("a")["epoch"]

    def back(offset: int) -> tuple[Any, list[Any]]:
        ann.asks(unsubscribe={"channel": "a"})
        given = ann.subscribes("a", recover=True, epoch=epoch, offset=offset)
        assert given["recovered"]
        return given.get("offset", 0), [each["data"] for each in given.get("publications", ())]

    for data in (0, 0, 7, 0):
        troupe.app.publish("a", data)
    troupe.turn()
    assert ann.heard == [7]
    # It is asked to begin after 1, and is given 3; or it is at the top, and need not read 4 again.
    assert back(1) == (1, [7])
    assert back(3) == (4, [])


def test_what_an_app_does_not_have_costs_nothing() -> None:
    troupe = Troupe(App)
    troupe.guest().subscribes("a")
    channel = troupe.city.shards[0].channels.get("a")
    assert channel is not None and channel.sight is None
