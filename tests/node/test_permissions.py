"""Who may do what, by the options of a channel."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from spread.node.auth.permissions import (
    may_publish,
    may_read_history,
    may_see_presence,
    may_subscribe,
    may_use_text,
)
from spread.node.namespaces import ChannelOptions, Namespaces
from spread.node.settings import NamespaceOptions
from tests.node.people import City, namespaces


def options(namespace: bool = False, **given: Any) -> ChannelOptions:
    settings = namespaces(NamespaceOptions(**given), team=given)
    found = Namespaces(settings).options("team:a" if namespace else "a")
    assert found is not None
    return found


@pytest.mark.parametrize("what", ["publish", "presence", "history"])
def test_what_may_be_done(what: str) -> None:
    asked: Callable[[ChannelOptions, str, bool], bool] = {
        "publish": may_publish,
        "presence": may_see_presence,
        "history": may_read_history,
    }[what]
    for client, anonymous, subscriber, user, is_subscribed in product(
        (False, True), (False, True), (False, True), ("", "ann"), (False, True)
    ):
        given = options(
            **{
                f"allow_{what}_for_client": client,
                f"allow_{what}_for_anonymous": anonymous,
                f"allow_{what}_for_subscriber": subscriber,
            }
        )
        wanted = (client and (bool(user) or anonymous)) or (subscriber and is_subscribed)
        assert asked(given, user, is_subscribed) is wanted


def test_who_may_subscribe() -> None:
    for client, anonymous, user in product((False, True), (False, True), ("", "ann")):
        given = options(allow_subscribe_for_client=client, allow_subscribe_for_anonymous=anonymous)
        assert may_subscribe(given, user, None) is (client and (bool(user) or anonymous))


def test_channels_of_users_are_for_them_alone() -> None:
    everybody = options(allow_subscribe_for_client=True, allow_subscribe_for_anonymous=True)
    assert not may_subscribe(everybody, "ann", ("ann",))
    limited = options(allow_user_limited_channels=True)
    assert may_subscribe(limited, "ann", ("bob", "ann"))
    assert not may_subscribe(limited, "eve", ("bob", "ann"))
    assert not may_subscribe(limited, "", ("",)), "an anonymous user is nobody"


def test_text_clients_are_anonymous_in_namespaces() -> None:
    assert may_use_text(options())
    assert not may_use_text(options(namespace=True))
    reading = {"allow_subscribe_for_client": True, "allow_subscribe_for_anonymous": True}
    assert not may_use_text(options(namespace=True, **reading))
    assert may_use_text(options(namespace=True, **reading, allow_publish_for_subscriber=True))
    writing = {"allow_publish_for_client": True, "allow_publish_for_anonymous": True}
    assert not may_use_text(options(namespace=True, **writing))
    assert may_use_text(options(namespace=True, **reading, **writing))


def test_insecure_allows_everything_but_what_is_off() -> None:
    city = City(namespaces(NamespaceOptions()), insecure=True)
    ann = city.guest()
    assert ann.subscribes("a") == {}
    assert "publish" in ann.asks(publish={"channel": "a", "data": 1})
    assert ann.asks(presence={"channel": "a"})["error"]["code"] == 108
    assert ann.asks(history={"channel": "a"})["error"]["code"] == 108
