"""The messages of the Centrifuge protocol: values, and tables that leave none out."""

from __future__ import annotations

import gc
from typing import get_args

import pytest

from spread.node.wire import messages
from spread.node.wire.messages import (
    EVENT_NAMES,
    PONG,
    REQUEST_TYPES,
    RESULT_NAMES,
    ClientInfo,
    Command,
    ConnectRequest,
    Error,
    Event,
    ProtocolError,
    Publication,
    PublishRequest,
    Reply,
    Request,
    Result,
    SubscribeRequest,
)


def test_every_message_is_in_its_table() -> None:
    assert set(REQUEST_TYPES.values()) == set(get_args(Request))
    assert set(RESULT_NAMES) == {*get_args(Result), Error}
    assert set(EVENT_NAMES) == set(get_args(Event))
    for table in (list(REQUEST_TYPES), list(RESULT_NAMES.values()), list(EVENT_NAMES.values())):
        assert len(set(table)) == len(table)


def test_every_request_but_send_has_a_result_of_the_same_name() -> None:
    assert {*RESULT_NAMES.values()} - {"error"} == {*REQUEST_TYPES} - {"send"}


def test_all_that_is_named_exists() -> None:
    for name in messages.__all__:
        assert hasattr(messages, name)


def test_messages_are_values() -> None:
    request = PublishRequest("room", b"1")
    assert request == PublishRequest("room", b"1") != PublishRequest("room", b"2")
    assert hash(request) == hash(PublishRequest("room", b"1"))
    with pytest.raises(AttributeError):
        request.channel = "other"  # type: ignore[misc]


def test_what_was_not_sent_is_empty() -> None:
    assert SubscribeRequest() == SubscribeRequest(channel="", offset=0, data=b"", type=0, tf=False)
    assert Command(0, None) == PONG
    assert Reply() == Reply(0, None)


def test_no_two_messages_share_a_map() -> None:
    first, second = ConnectRequest(), ConnectRequest()
    assert first.headers is not second.headers
    assert Publication(b"1").tags is not Publication(b"1").tags


def test_the_garbage_collector_does_not_look_at_messages() -> None:
    publication = Publication(b"1", 1, ClientInfo("u", "c"), {"a": "b"})
    assert not gc.is_tracked(publication)
    assert not gc.is_tracked(Command(1, PublishRequest("room", b"1")))


def test_a_protocol_error_tells_its_reason() -> None:
    error = ProtocolError("no known method")
    assert error.reason == str(error) == "no known method"
