"""Subscriptions of the client against a server that is the test."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from spread.client import (
    BadServer,
    ClientInfo,
    Connecting,
    NotSubscribed,
    Refused,
    StreamPosition,
    Subscribed,
    Subscribing,
    SubscriptionState,
    TimedOut,
    TokenFailed,
    TooMany,
    Unauthorized,
    Unsubscribed,
)
from spread.client.subscription import MAX_WAITING, MOVES
from spread.node.wire import delta
from spread.node.wire.messages import (
    Error,
    HistoryRequest,
    HistoryResult,
    Join,
    Leave,
    Message,
    PresenceRequest,
    PresenceResult,
    PresenceStatsRequest,
    PresenceStatsResult,
    Publication,
    PublishRequest,
    PublishResult,
    SubRefreshRequest,
    SubRefreshResult,
    SubscribeRequest,
    Unsubscribe,
    UnsubscribeRequest,
    UnsubscribeResult,
)
from tests.client.rig import Rig, failure_of, is_pending, result_of

STREAM: dict[str, Any] = {"recoverable": True, "positioned": True, "epoch": "e"}
CALLED = ("c", Subscribing("c", 0, "subscribe called"))


def connected() -> Rig:
    rig = Rig()
    rig.connected()
    rig.news()
    return rig


def raising(answers: list[Any]) -> Any:
    """A function for tokens that gives these, or raises them."""

    def get_token(channel: str) -> Any:
        assert channel == "c"
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return get_token


# Subscribing.


def test_it_subscribes_and_hears() -> None:
    rig = connected()
    sub = rig.listen(
        rig.client.new_subscription(
            "c", token="t", data={"a": 1}, positioned=True, recoverable=True, join_leave=True, delta=True
        )
    )
    assert sub.state is SubscriptionState.UNSUBSCRIBED
    assert sub.position is None
    subscribing = sub.subscribe()
    assert sub.state is SubscriptionState.SUBSCRIBING
    request = rig.admit(**STREAM, offset=4, data=b"[2]")
    assert request == SubscribeRequest(
        channel="c",
        token="t",
        data=b'{"a":1}',
        positioned=True,
        recoverable=True,
        join_leave=True,
        delta="fossil",
    )
    event = Subscribed("c", True, True, StreamPosition(4, "e"), data=b"[2]")
    assert result_of(subscribing) == event
    assert result_of(sub.subscribe()) == event
    assert sub.state is SubscriptionState.SUBSCRIBED
    info = ClientInfo("17", "x")
    publication = Publication(b'{"t":1.0}', offset=5, info=info, tags={"k": "v"})
    rig.wire.push("c", publication, Join(info), Leave(info), Message())
    assert rig.news() == [CALLED, ("c", event), ("c", publication), ("c", info), ("c", info), b""]
    assert sub.position == StreamPosition(5, "e")
    assert rig.client.subscription("c") is sub


def test_all_subscriptions_are_made_in_one_frame_once_it_is_connected() -> None:
    rig = Rig()
    for channel in "abc":
        rig.client.new_subscription(channel).subscribe()
    rig.connected()
    assert len(rig.asked(*[SubscribeRequest] * 3)) == 3


def test_without_history_there_is_no_position_and_no_recovery() -> None:
    rig = connected()
    sub = rig.subscribed()
    rig.wire.push("c", Publication(b"1"))
    assert sub.position is None
    rig.wire.drop()
    rig.turn(0.5)
    rig.accept()
    assert rig.admit() == SubscribeRequest(channel="c")


def test_after_an_interruption_it_recovers() -> None:
    rig = connected()
    rig.subscribed(result=STREAM | {"offset": 4})
    rig.wire.push("c", Publication(b"1", offset=5))
    rig.news()
    rig.wire.drop()
    assert rig.news() == [
        ("c", Subscribing("c", 1, "transport closed")),
        Connecting(1, "transport closed"),
    ]
    rig.turn(0.5)
    rig.accept()
    missed = [Publication(b"2", offset=6), Publication(b"3", offset=7)]
    request = rig.admit(**STREAM, offset=5, was_recovering=True, recovered=True, publications=missed)
    assert request == SubscribeRequest(channel="c", recover=True, epoch="e", offset=5)
    news = rig.news()
    assert news[1:] == [
        ("c", Subscribed("c", True, True, StreamPosition(5, "e"), True, True)),
        ("c", missed[0]),
        ("c", missed[1]),
    ]
    rig.wire.push("c", Unsubscribe(2500, "insufficient state"))
    assert rig.news() == [("c", Subscribing("c", 2500, "insufficient state"))]
    assert rig.admit(**STREAM).offset == 7


def test_what_was_lost_is_told() -> None:
    rig = connected()
    sub = rig.subscribed(result=STREAM | {"offset": 4})
    rig.wire.drop()
    rig.turn(0.5)
    rig.accept()
    rig.news()
    rig.admit(recoverable=True, epoch="f", offset=9, was_recovering=True)
    assert rig.news() == [("c", Subscribed("c", True, False, StreamPosition(9, "f"), True, False))]
    assert sub.position == StreamPosition(9, "f")


def test_an_epoch_is_learnt_from_the_first_publication() -> None:
    rig = connected()
    sub = rig.subscribed(result={"recoverable": True})
    rig.wire.push("c", Publication(b"1", offset=1, epoch="new"))
    assert sub.position == StreamPosition(1, "new")


def test_it_can_begin_in_the_past() -> None:
    rig = connected()
    sub = rig.client.new_subscription("c", since=StreamPosition(7, "e"))
    assert sub.position == StreamPosition(7, "e")
    sub.subscribe()
    assert rig.admit(**STREAM) == SubscribeRequest(channel="c", recover=True, epoch="e", offset=7)
    rig.client.new_subscription("d", since=StreamPosition()).subscribe()
    assert rig.admit() == SubscribeRequest(channel="d", recover=True)


# Being refused.


def test_a_refusal_is_final() -> None:
    rig = connected()
    sub = rig.listen(rig.client.new_subscription("c"))
    subscribing = sub.subscribe()
    (command,) = rig.asked(SubscribeRequest)
    rig.answer(command, Error(103, "permission denied"))
    error = failure_of(subscribing)
    assert isinstance(error, NotSubscribed)
    assert str(error) == "permission denied (103)"
    assert failure_of(sub.ready()).code == 103
    assert rig.news() == [CALLED, ("c", Unsubscribed("c", 103, "permission denied"))]
    rig.turn(60)
    assert rig.asked() == []


def test_a_temporary_refusal_is_tried_again() -> None:
    rig = connected()
    sub = rig.listen(rig.client.new_subscription("c"))
    subscribing = sub.subscribe()
    for _ in range(3):
        (command,) = rig.asked(SubscribeRequest)
        rig.answer(command, Error(111, "too many requests", True))
        rig.turn(0.5)
    rig.admit()
    assert result_of(subscribing)
    assert [each[1].code for each in rig.news()[1:-1]] == [111] * 3


def test_no_answer_means_a_new_connection() -> None:
    rig = connected()
    sub = rig.listen(rig.client.new_subscription("c"))
    sub.subscribe()
    rig.asked(SubscribeRequest)
    rig.turn(5)
    (_, (_, error), connecting) = rig.news()
    assert isinstance(error, TimedOut)
    assert connecting == Connecting(3, "subscribe timeout")
    rig.turn(0.5)
    rig.accept()
    rig.admit()
    assert sub.state is SubscriptionState.SUBSCRIBED


def test_a_server_that_ends_it_for_good() -> None:
    rig = connected()
    sub = rig.subscribed()
    rig.news()
    rig.wire.push("c", Unsubscribe(2000, "server unsubscribe"))
    assert rig.news() == [("c", Unsubscribed("c", 2000, "server unsubscribe"))]
    rig.wire.push("c", Unsubscribe(2000, "again"), Unsubscribe(2500, "again"), Publication(b"1"))
    assert rig.news() == []
    assert rig.asked() == []
    sub.subscribe()
    rig.admit()


def test_a_server_may_end_what_is_not_there_yet() -> None:
    rig = connected()
    sub = rig.listen(rig.client.new_subscription("c"))
    subscribing = sub.subscribe()
    rig.asked(SubscribeRequest)
    rig.wire.push("c", Unsubscribe(2501, "expired"))
    assert is_pending(subscribing)
    rig.wire.push("c", Unsubscribe(2000, "server unsubscribe"))
    assert failure_of(subscribing).code == 2000


# Unsubscribing.


def test_unsubscribe_tells_the_server_and_then_it_is_quiet() -> None:
    rig = connected()
    sub = rig.subscribed()
    waiting = sub.unsubscribe()
    (command,) = rig.asked(UnsubscribeRequest)
    rig.news()
    rig.wire.push("c", Publication(b"1"))
    assert rig.news() == []
    rig.answer(command, UnsubscribeResult())
    assert result_of(waiting) is None
    assert result_of(sub.unsubscribe()) is None
    assert rig.asked() == []


def test_an_unsubscribe_without_an_answer_means_a_new_connection() -> None:
    rig = connected()
    sub = rig.subscribed()
    waiting = sub.unsubscribe()
    rig.asked(UnsubscribeRequest)
    rig.news()
    rig.turn(5)
    assert rig.news() == [Connecting(4, "unsubscribe error")]
    assert result_of(waiting) is None
    rig.turn(0.5)
    rig.accept()
    assert rig.asked() == []


def test_storms_of_subscribe_and_unsubscribe_end_as_they_should() -> None:
    rig = connected()
    sub = rig.listen(rig.client.new_subscription("c"))
    for _ in range(10):
        sub.subscribe().addErrback(lambda _: None)
        sub.unsubscribe()
    commands = rig.asked(*[SubscribeRequest, UnsubscribeRequest] * 10)
    for command in commands[::2]:
        rig.answer(command, Error(105, "already subscribed"))
    assert sub.state is SubscriptionState.UNSUBSCRIBED
    last = sub.subscribe()
    rig.admit()
    assert result_of(last)


def test_a_removed_subscription_is_done_with() -> None:
    rig = connected()
    sub = rig.subscribed()
    rig.client.remove_subscription(sub)
    rig.asked(UnsubscribeRequest)
    assert rig.client.subscription("c") is None
    assert isinstance(failure_of(sub.subscribe()), NotSubscribed)
    other = rig.subscribed()
    rig.client.remove_subscription(sub)
    assert rig.client.subscription("c") is other


def test_offline_it_waits_for_the_connection() -> None:
    rig = Rig()
    sub = rig.listen(rig.client.new_subscription("c"))
    waiting = sub.subscribe()
    assert result_of(sub.unsubscribe()) is None
    assert failure_of(waiting).code == 7
    waiting = sub.subscribe()
    waiting.addErrback(lambda _: "cancelled")
    waiting.cancel()
    rig.connected()
    rig.client.disconnect()
    assert sub.state is SubscriptionState.SUBSCRIBING
    rig.connected()
    rig.admit()


# Tokens.


def test_a_token_is_asked_for_and_renewed() -> None:
    rig = connected()
    sub = rig.listen(rig.client.new_subscription("c", get_token=raising(["one", "two", "three", "four"])))
    sub.subscribe()
    assert rig.admit(expires=True, ttl=60).token == "one"
    rig.turn(60)
    (command,) = rig.asked(SubRefreshRequest)
    assert command.request == SubRefreshRequest("c", "two")
    rig.answer(command, SubRefreshResult(True, 10))
    rig.turn(10)
    (command,) = rig.asked(SubRefreshRequest)
    rig.news()
    rig.answer(command, Error(100, "internal", True))
    assert rig.news()[0][1].code == 100
    rig.turn(10)
    (command,) = rig.asked(SubRefreshRequest)
    rig.answer(command, Error(103, "permission denied"))
    assert rig.news() == [("c", Unsubscribed("c", 103, "permission denied"))]
    rig.asked(UnsubscribeRequest)


def test_an_expired_token_is_replaced() -> None:
    rig = connected()
    sub = rig.listen(rig.client.new_subscription("c", token="zero", get_token=raising(["one"])))
    sub.subscribe()
    (command,) = rig.asked(SubscribeRequest)
    rig.answer(command, Error(109, "token expired"))
    rig.turn(0.5)
    assert rig.admit().token == "one"


def test_an_expired_token_that_cannot_be_replaced_is_final() -> None:
    rig = connected()
    sub = rig.listen(rig.client.new_subscription("c", token="zero"))
    sub.subscribe().addErrback(lambda _: None)
    (command,) = rig.asked(SubscribeRequest)
    rig.answer(command, Error(109, "token expired"))
    (_, (_, error), unsubscribed) = rig.news()
    assert isinstance(error, Refused)
    assert unsubscribed == ("c", Unsubscribed("c", 1, "unauthorized"))


@pytest.mark.parametrize("given", ["", Unauthorized()])
def test_no_token_is_final(given: Any) -> None:
    rig = connected()
    sub = rig.client.new_subscription("c", get_token=raising([given]))
    assert failure_of(sub.subscribe()).code == 1
    assert rig.asked() == []


def test_a_token_function_that_fails_is_asked_again() -> None:
    rig = connected()
    sub = rig.listen(rig.client.new_subscription("c", get_token=raising([ValueError("no"), "one"])))
    sub.subscribe()
    error = rig.news()[1][1]
    assert isinstance(error, TokenFailed)
    assert error.code == 8
    rig.turn(0.5)
    assert rig.admit().token == "one"


def test_a_token_that_comes_too_late_is_not_used() -> None:
    rig = connected()
    late: Deferred[str] = Deferred()
    sub = rig.client.new_subscription("c", get_token=raising([late, "two"]))
    sub.subscribe().addErrback(lambda _: None)
    sub.unsubscribe()
    rig.asked(UnsubscribeRequest)
    sub.subscribe()
    assert rig.admit().token == "two"


def test_an_invalidated_subscription_begins_anew() -> None:
    rig = connected()
    sub = rig.client.new_subscription("c", get_token=raising(["one", "two"]))
    sub.subscribe()
    rig.admit(**STREAM, offset=5)
    rig.wire.push("c", Unsubscribe(2502, "state invalidated"))
    request = rig.admit(**STREAM)
    assert (request.token, request.recover, request.epoch, request.offset) == ("two", True, "_", 0)


# Commands.


def test_commands_wait_until_it_is_subscribed() -> None:
    rig = connected()
    sub = rig.client.new_subscription("c")
    assert isinstance(failure_of(sub.publish(1)), NotSubscribed)
    sub.subscribe()
    asked: list[Deferred[Any]] = [sub.publish(1), sub.history(limit=3), sub.presence(), sub.presence_stats()]
    rig.admit()
    commands = rig.asked(PublishRequest, HistoryRequest, PresenceRequest, PresenceStatsRequest)
    history = HistoryResult([], "e", 5)
    results = (PublishResult(), history, PresenceResult({}), PresenceStatsResult(0, 0))
    for command, result in zip(commands, results, strict=True):
        rig.answer(command, result)
    assert [result_of(each) for each in asked] == [None, history, {}, PresenceStatsResult(0, 0)]
    sub.publish(2)
    rig.asked(PublishRequest)


def test_commands_do_not_wait_for_ever() -> None:
    rig = Rig()
    sub = rig.client.new_subscription("c")
    sub.subscribe()
    waiting = sub.publish(1)
    rig.turn(5)
    assert isinstance(failure_of(waiting), TimedOut)
    for _ in range(MAX_WAITING - 1):
        sub.ready()
    assert isinstance(failure_of(sub.ready()), TooMany)


@pytest.mark.parametrize(
    "options",
    [
        {"channel": ""},
        {"channel": "c"},
        {"channel": "\ud83d"},
        {"since": StreamPosition(-1, "e")},
        {"since": StreamPosition(2**64, "e")},
        {"data": b"no json"},
        {"token": "\ud83d"},
    ],
)
def test_arguments_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    rig = Rig()
    rig.client.new_subscription("c")
    with pytest.raises(ValueError):
        rig.client.new_subscription(**({"channel": "d"} | options))
    assert rig.client.subscription("d") is None


# Deltas.


def as_delta(base: bytes, target: bytes) -> bytes:
    patch = delta.patch_text(base, target)
    assert patch is not None
    return json.dumps(patch.decode()).encode()


def texts(count: int) -> list[bytes]:
    return [b'{"room":"arena","tick":%d,"players":["a","b","c","d","e","f"]}' % tick for tick in range(count)]


def test_differences_are_put_together() -> None:
    rig = connected()
    sub = rig.subscribed(delta=True, result=STREAM | {"delta": True})
    first, second, third = texts(3)
    rig.news()
    whole = json.dumps(first.decode()).encode()
    rig.wire.push("c", Publication(whole, offset=1), Publication(as_delta(first, second), 2, delta=True))
    rig.wire.push("c", Publication(as_delta(second, third), 3, delta=True))
    assert [each[1].data for each in rig.news()] == [first, second, third]
    assert sub.position == StreamPosition(3, "e")


def test_recovered_differences_are_put_together() -> None:
    rig = connected()
    rig.subscribed(delta=True, result=STREAM | {"delta": True, "offset": 1})
    rig.wire.drop()
    rig.turn(0.5)
    rig.accept()
    rig.news()
    first, second, third = texts(3)
    whole = Publication(json.dumps(first.decode()).encode(), offset=2)
    missed = [whole, Publication(as_delta(first, second), offset=3, delta=True)]
    rig.admit(**STREAM, delta=True, was_recovering=True, recovered=True, publications=missed)
    rig.wire.push("c", Publication(as_delta(second, third), offset=4, delta=True))
    assert [each[1].data for each in rig.news()[1:]] == [first, second, third]


@pytest.mark.parametrize(
    "publication",
    [
        Publication(b'"1e\\nnonsense"', offset=9, delta=True),
        Publication(b"{}", offset=9),
    ],
)
def test_a_difference_that_does_not_fit_means_to_begin_anew_without(publication: Publication) -> None:
    rig = connected()
    sub = rig.subscribed(delta=True, result=STREAM | {"delta": True})
    first = texts(1)[0]
    rig.wire.push("c", Publication(json.dumps(first.decode()).encode(), offset=1))
    rig.news()
    rig.wire.push("c", publication)
    ((_, error), subscribing) = rig.news()
    assert isinstance(error, BadServer)
    assert subscribing == ("c", Subscribing("c", 2, "bad delta"))
    unsubscribe, subscribe = rig.asked(UnsubscribeRequest, SubscribeRequest)
    assert subscribe.request == SubscribeRequest(channel="c", recover=True, epoch="e", offset=1)
    rig.answer(unsubscribe, UnsubscribeResult())
    assert sub.state is SubscriptionState.SUBSCRIBING


def test_a_difference_to_nothing_does_not_fit() -> None:
    rig = connected()
    rig.subscribed(delta=True, result=STREAM | {"delta": True})
    rig.wire.push("c", Publication(b'"x"', offset=1, delta=True))
    rig.asked(UnsubscribeRequest, SubscribeRequest)


# Listeners that meddle.


def test_a_listener_may_unsubscribe_at_any_event() -> None:
    for hook in ("on_subscribing", "on_subscribed", "on_publication"):
        rig = connected()
        sub = rig.listen(rig.client.new_subscription("c"))
        getattr(sub, hook)(lambda _, sub=sub: sub.unsubscribe())
        waiting = sub.subscribe().addErrback(lambda reason: reason.value.code)
        if hook != "on_subscribing":
            missed = [Publication(b"1", offset=1), Publication(b"2", offset=2)]
            rig.admit(**STREAM, recovered=True, publications=missed)
        rig.asked(UnsubscribeRequest)
        assert result_of(waiting) == 7
        told = [each[1].data for each in rig.news() if isinstance(each[1], Publication)]
        assert told == [b"1"] * (hook == "on_publication")
        assert sub.state is SubscriptionState.UNSUBSCRIBED


def test_a_listener_may_give_up_at_an_error() -> None:
    for answer in (Error(109, "token expired"), None):
        rig = connected()
        sub = rig.client.new_subscription("c", token="t")
        sub.on_error(lambda _, sub=sub: sub.unsubscribe())
        sub.subscribe().addErrback(lambda _: None)
        (command,) = rig.asked(SubscribeRequest)
        if answer is None:
            rig.turn(5)
        else:
            rig.answer(command, answer)
        rig.asked(UnsubscribeRequest)
        assert rig.client.state.value == "connected"


def test_a_listener_may_give_up_at_a_bad_delta() -> None:
    rig = connected()
    sub = rig.subscribed(delta=True, result=STREAM | {"delta": True})
    sub.on_error(lambda _: sub.unsubscribe())
    rig.wire.push("c", Publication(b"1", offset=1))
    rig.asked(UnsubscribeRequest)


def test_a_listener_may_change_things_while_the_link_is_lost() -> None:
    rig = connected()
    one, two = rig.subscribed("a"), rig.subscribed("b")
    one.on_subscribing(lambda _: two.unsubscribe())
    rig.news()
    rig.wire.drop()
    assert rig.news() == [
        ("a", Subscribing("a", 1, "transport closed")),
        ("b", Unsubscribed("b", 0, "unsubscribe called")),
        Connecting(1, "transport closed"),
    ]
    assert two.state is SubscriptionState.UNSUBSCRIBED


def test_the_states_are_a_table_that_is_kept() -> None:
    assert set(MOVES) == set(SubscriptionState)
    with pytest.raises(RuntimeError, match="cannot go from unsubscribed to subscribed"):
        Rig().client.new_subscription("c")._enter(SubscriptionState.SUBSCRIBED)
