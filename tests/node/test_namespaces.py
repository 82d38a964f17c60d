"""Namespaces: which options a channel has, and which names are none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spread.hub.api import History
from spread.node.namespaces import Namespaces
from spread.node.settings import ChannelSettings, Namespace, NamespaceOptions

CHAT = Namespace(name="chat", presence=True, history_size=10, history_ttl=60.0)
NEWS = Namespace(name="news", history_meta_ttl=7200.0, publication_data_format="json")


def namespaces(personal: str = "", **settings: Any) -> Namespaces:
    settings.setdefault("namespaces", (CHAT, NEWS))
    return Namespaces(ChannelSettings(**settings), personal)


def namespace_of(channel: str, **settings: Any) -> str | None:
    options = namespaces(**settings).options(channel)
    return None if options is None else options.namespace


@pytest.mark.parametrize(
    ("channel", "namespace"),
    [
        ("chat:room", "chat"),
        ("chat:room:1", "chat"),
        ("$chat:room", "chat"),
        ("chat:", "chat"),
        ("chat:$room", "chat"),
        ("news:#17", "news"),
        ("room", ""),
        ("chat", ""),
        ("$room", ""),
        ("#17", ""),
        (":room", ""),
        ("", ""),
        ("大厅", ""),
        ("chat:大厅", "chat"),
        ("nope:room", None),
        ("$$chat:room", None),
        ("Chat:room", None),
        ("大:厅", None),
    ],
)
def test_the_namespace_ends_at_the_first_boundary(channel: str, namespace: str | None) -> None:
    assert namespace_of(channel) == namespace


def test_boundaries_can_be_others_or_none() -> None:
    assert namespace_of("chat/room", namespace_boundary="/") == "chat"
    assert namespace_of("nope:room", namespace_boundary="/") == ""
    assert namespace_of("nope:room", namespace_boundary="") == ""
    assert namespace_of("chat::room", namespace_boundary="::") == "chat"
    assert namespace_of("private-chat:room", private_prefix="private-") == "chat"
    assert namespace_of("$chat:room", private_prefix="") is None
    assert namespace_of("::x", private_prefix=":", namespace_boundary=":") == ""


def test_the_same_object_for_all_channels_of_a_namespace() -> None:
    found = namespaces()
    assert found.options("chat:1") is found.options("$chat:2")


def test_options_are_those_of_the_namespace() -> None:
    options = namespaces().options("chat:room")
    assert options is not None
    assert (options.presence, options.join_leave, options.history_size) == (True, False, 10)
    assert options.history == History(size=10, ttl_seconds=60, meta_ttl_seconds=2_592_000)
    assert options.has_positions
    names = NamespaceOptions.__struct_fields__
    assert [name for name in names if getattr(options, name) != getattr(CHAT, name)] == ["history_meta_ttl"]


def test_what_a_namespace_leaves_open_is_that_of_all_channels() -> None:
    found = namespaces(history_meta_ttl=600.0, publication_data_format="binary")
    chat, news = found.options("chat:1"), found.options("news:1")
    assert chat is not None and news is not None
    assert (chat.history_meta_ttl, chat.publication_data_format) == (600.0, "binary")
    assert (news.history_meta_ttl, news.publication_data_format) == (7200.0, "json")
    assert chat.history is not None and chat.history.meta_ttl_seconds == 600
    assert news.history is None and not news.has_positions


@pytest.mark.parametrize(
    ("channel", "why"),
    [
        ("x" * 255, ""),
        ("x" * 256, "it is longer than 255 bytes"),
        ("é" * 128, "it is longer than 255 bytes"),
        ("é", "it has characters that are not ASCII"),
        ("chat:\ud800", "it has characters that are not ASCII"),
        ("chat:大", "it has characters that are not ASCII"),
        ("nope:x", ""),
        ("nope:大", "it has characters that are not ASCII"),
        ("a b\n", ""),
        ("", ""),
    ],
)
def test_names_are_short_and_ascii(channel: str, why: str) -> None:
    assert namespaces().why_invalid(channel) == why
    assert namespaces().is_too_long(channel) == ("longer" in why)


WRONG = "it does not match channel_regex of its namespace"


@pytest.mark.parametrize(
    ("channel", "why"),
    [
        ("strict:123", ""),
        ("$strict:123", ""),
        ("strict:12a", WRONG),
        ("strict:", WRONG),
        ("strict:123\n", WRONG),
        ("loose:any7thing", ""),
        ("loose:大7", ""),
        ("loose:nothing", WRONG),
        ("plain", ""),
        ("$xplain", WRONG),
    ],
)
def test_a_regular_expression_decides_instead(channel: str, why: str) -> None:
    found = namespaces(
        without_namespace=NamespaceOptions(channel_regex="^[a-w]"),
        namespaces=(
            Namespace(name="strict", channel_regex=r"^\d+$"),
            Namespace(name="loose", channel_regex="7"),
        ),
    )
    assert found.why_invalid(channel) == why


def test_private_channels() -> None:
    assert namespaces().is_private("$room")
    assert not namespaces().is_private("room$")
    assert not namespaces().is_private("chat:$room")
    assert not namespaces(private_prefix="").is_private("$room")


@pytest.mark.parametrize(
    ("channel", "users"),
    [
        ("dialog#17,42", ("17", "42")),
        ("#17", ("17",)),
        ("chat:a#b#17", ("17",)),
        ("dialog#", ("",)),
        ("dialog#,", ("", "")),
        ("dialog", None),
    ],
)
def test_users_of_a_channel(channel: str, users: tuple[str, ...] | None) -> None:
    assert namespaces().users_of(channel) == users


def test_users_with_other_boundaries() -> None:
    assert namespaces(user_boundary="").users_of("dialog#17") is None
    assert namespaces(user_separator="").users_of("dialog#17,42") == ("17,42",)
    assert namespaces(user_boundary="@", user_separator="+").users_of("dialog@17+42") == ("17", "42")


def test_the_personal_channel() -> None:
    assert namespaces().personal_channel("17") == "#17"
    assert namespaces("chat").personal_channel("17") == "chat:#17"
    assert namespaces("chat").users_of("chat:#17") == ("17",)


@given(st.text())
def test_any_name_can_be_asked_about(channel: str) -> None:
    found = namespaces()
    found.options(channel)
    assert isinstance(found.why_invalid(channel), str)
    assert found.is_private(channel) == channel.startswith("$")
    assert (found.users_of(channel) is None) == ("#" not in channel)
