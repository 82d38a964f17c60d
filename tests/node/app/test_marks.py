"""What is wrong with a decorator is said where it is used."""

from __future__ import annotations

from typing import Any

import pytest

from spread.node import command, every, owns, remote, rpc


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
