"""What is wrong with a decorator is said where it is used."""

from __future__ import annotations

from functools import wraps
from typing import Any

import pytest

from spread.node import App, Owned, command, every, owns, remote, rpc
from spread.node.app.making import construct


@pytest.mark.parametrize("mark", [rpc, every, owns, command])
def test_the_parentheses_are_missing(mark: Any) -> None:
    with pytest.raises(TypeError, match=rf"{mark.__name__} needs .*: @{mark.__name__}\("):

        @mark
        def method() -> None: ...


def test_parentheses_too_many() -> None:
    wrong: Any = "nicks"
    with pytest.raises(TypeError, match="@remote"):
        remote(wrong)


@pytest.mark.parametrize("name", ["", "a/b", "x" * 129])
def test_names_of_commands(name: str) -> None:
    with pytest.raises(TypeError, match="no name of a command"):
        command(name)
    with pytest.raises(TypeError, match="needs the name"):
        rpc("")


@owns("match:*")
class Match(Owned):
    def tick(self) -> None:  # type: ignore[override]
        """It gets the seconds that have passed."""


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"publishing": lambda self, client, data: data}, r"must take \(self, client, channel, data\)"),
        ({"check": lambda self, more: None}, r"must take \(self\)"),
        ({"import_state": lambda self: None}, r"must take \(self, state\)"),
        ({"spawn": every(1.0)(lambda self, client: None)}, r"must take \(self\)"),
        ({"objects": (Match,)}, r"Match.tick\(\) must take \(self, dt\)"),
        ({"objects": Match}, r"objects must be several classes, .* \(Match,\)"),
        ({"watch": "room:*"}, "Game.watch must be several patterns, not 'room:\\*'"),
        ({"watch": ("room:[",)}, "Game.watch: 'room:\\[': cannot be read"),
    ],
)
def test_what_would_fail_for_each_client_is_said_before_there_are_any(
    attributes: dict[str, Any], text: str
) -> None:
    with pytest.raises(TypeError, match=text):
        construct(type("Game", (App,), attributes), None)


def test_hooks_may_take_more_and_be_wrapped() -> None:
    def timed(hook: Any) -> Any:
        @wraps(hook)
        def wrapper(self: Any, client: Any, channel: str, data: Any) -> Any:
            return hook(self, data)

        return wrapper

    class Game(App):
        def connected(self, client: Any, reason: str = "") -> None: ...
        def unsubscribed(self, *args: Any) -> None: ...

        @timed
        def publishing(self, data: Any) -> Any: ...

        @staticmethod
        def message(client: Any, data: Any) -> None: ...

    assert isinstance(construct(Game, None), Game)
