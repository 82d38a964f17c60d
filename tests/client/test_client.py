"""The client against a server that is the test: connecting, staying connected, commands, server-side subs."""

from __future__ import annotations

import math
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher

import spread.client
from spread.client import (
    BadServer,
    Client,
    Connected,
    Connecting,
    ConnectionEnded,
    Disconnected,
    NotConnected,
    Refused,
    State,
    StreamPosition,
    Subscribed,
    Subscribing,
    TimedOut,
    TokenFailed,
    TooMany,
    TransportFailed,
    Unauthorized,
    Unsubscribed,
)
from spread.client.backoff import FullJitter
from spread.client.link import MOVES
from spread.client.requests import UNSENT_MAX_BYTES
from spread.node.wire.messages import (
    ClientInfo,
    Command,
    ConnectRequest,
    Disconnect,
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
    Push,
    Refresh,
    RefreshRequest,
    RefreshResult,
    Reply,
    RPCRequest,
    RPCResult,
    SendRequest,
    Subscribe,
    SubscribeRequest,
    SubscribeResult,
    Unsubscribe,
)
from tests.client.rig import Rig, Wire, failure_of, is_pending, result_of


def codes_of(errors: list[Any]) -> list[int]:
    return [error.code for error in errors]


# Connecting.


def test_it_connects_and_says_who_it_is() -> None:
    rig = Rig(token="t", data={"a": 1}, name="game", version="2")
    connected = rig.client.connect()
    assert rig.client.state is State.CONNECTING
    request = rig.accept(data=b"[1]")
    assert request == ConnectRequest(token="t", data=b'{"a":1}', name="game", version="2")
    assert rig.client.state is State.CONNECTED
    assert rig.client.client_id == "c1"
    assert result_of(connected) == Connected("c1", "test 1", b"[1]")
    assert rig.news() == [Connecting(0, "connect called"), Connected("c1", "test 1", b"[1]")]
    assert result_of(rig.client.connect()) == Connected("c1", "test 1", b"[1]")
    assert rig.news() == []


def test_a_refused_connection_is_tried_again_and_again() -> None:
    rig = Rig(fraction=lambda: 1.0)
    rig.endpoint.refuses = True
    rig.client.connect()
    (_, error) = rig.news()
    assert isinstance(error, TransportFailed)
    assert "refused" in str(error)
    delays = []
    while len(delays) < 7:
        seconds = 0
        while not rig.news():
            rig.turn(0.5)
            seconds += 1
        delays.append(seconds / 2)
    assert delays == [1.0, 1.5, 2.5, 4.5, 8.5, 16.5, 20.0]
    rig.endpoint.refuses = False
    rig.turn(20)
    rig.accept()
    rig.wire.drop()
    rig.news()
    rig.turn(1.0)
    rig.accept()


def test_jitter_is_from_the_least_to_the_most() -> None:
    assert FullJitter(0.5, 20, lambda: 0.0).next_seconds() == 0.5
    jitter = FullJitter(0.5, 20, lambda: 1.0)
    assert [jitter.next_seconds() for _ in range(40)][-1] == 20
    jitter.succeeded()
    assert jitter.next_seconds() == 1.0
    for bounds in ((2, 1), (-1, 1), (0, math.inf), (math.nan, 1)):
        with pytest.raises(ValueError):
            FullJitter(*bounds, lambda: 0.0)


def test_a_connection_that_takes_too_long_is_given_up() -> None:
    rig = Rig(connect_seconds=3)
    rig.endpoint.hangs = True
    rig.client.connect()
    rig.turn(3)
    assert rig.endpoint.cancelled == 1
    assert codes_of(rig.news()) == [0, 1]
    rig.endpoint.hangs = False
    rig.turn(0.5)
    rig.accept()


def test_a_connect_command_that_is_not_answered_is_given_up() -> None:
    rig = Rig()
    rig.client.connect()
    first = rig.wire
    rig.turn(5)
    assert first.disconnecting
    assert codes_of(rig.news()) == [0, 1]
    rig.turn(5)
    assert first.was_aborted
    rig.accept()


@pytest.mark.parametrize("error", [Error(100, "internal", True), Error(111, "busy", True), Error(7, "?")])
def test_a_temporary_refusal_is_tried_again(error: Error) -> None:
    rig = Rig()
    rig.client.connect()
    (command,) = rig.asked(ConnectRequest)
    rig.answer(command, error)
    assert rig.client.state is State.CONNECTING
    assert codes_of(rig.news()) == [0, error.code]
    rig.turn(0.5)
    rig.accept()


def test_a_refusal_is_final() -> None:
    rig = Rig()
    connecting = rig.client.connect()
    (command,) = rig.asked(ConnectRequest)
    rig.answer(command, Error(103, "permission denied"))
    assert rig.news()[1:] == [Disconnected(103, "permission denied")]
    error = failure_of(connecting)
    assert isinstance(error, NotConnected)
    assert str(error) == "permission denied (103)"
    assert not rig.clock.getDelayedCalls()[1:]  # that of the closing socket
    rig.wire.drop()
    assert not rig.clock.getDelayedCalls()
    assert rig.client.state is State.DISCONNECTED


@pytest.mark.parametrize(
    ("code", "again"),
    [
        (3001, True),
        (3499, True),
        (3500, False),
        (3999, False),
        (4000, True),
        (4499, True),
        (4500, False),
        (4999, False),
        (5000, True),
    ],
)
def test_the_range_of_a_disconnect_code_decides(code: int, again: bool) -> None:
    rig = Rig()
    rig.connected()
    rig.news()
    rig.wire.push("", Disconnect(code, "because"))
    kind = Connecting if again else Disconnected
    assert rig.news() == [kind(code, "because")]
    assert rig.wire.disconnecting
    rig.turn(1)
    assert len(rig.endpoint.connections) == 1 + again


def test_low_codes_and_lost_connections_are_all_the_same() -> None:
    rig = Rig()
    rig.connected()
    rig.news()
    rig.wire.push("", Disconnect(1001, "going away"))
    assert rig.news() == [Connecting(1, "transport closed")]
    rig.turn(0.5)
    rig.accept()
    rig.news()
    rig.wire.drop()
    assert rig.news() == [Connecting(1, "transport closed")]


def test_a_message_that_the_server_found_too_large_is_not_sent_again() -> None:
    rig = Rig()
    rig.connected()
    rig.news()
    rig.wire.push("", Disconnect(1009, "too big"))
    assert rig.news() == [Disconnected(3, "message size limit")]


def test_a_disconnect_before_the_connect_reply() -> None:
    rig = Rig()
    rig.client.connect()
    rig.wire.push("", Disconnect(3001, "shutdown"))
    assert codes_of(rig.news()) == [0, 2]
    rig.turn(0.5)
    rig.wire.push("", Disconnect(3500, "invalid token"))
    assert rig.news() == [Disconnected(3500, "invalid token")]


def test_disconnect_ends_it_wherever_it_is() -> None:
    rig = Rig()
    assert result_of(rig.client.disconnect()) is None
    connecting = rig.client.connect()
    gone = rig.client.disconnect()
    assert isinstance(failure_of(connecting), NotConnected)
    assert is_pending(gone)
    rig.wire.drop()
    assert result_of(gone) is None
    rig.connected()
    rig.news()
    publishing = rig.client.publish("c", 1)
    gone = rig.client.disconnect()
    assert [type(command.request) for command in rig.wire.heard()] == [PublishRequest]
    assert isinstance(failure_of(publishing), ConnectionEnded)
    assert rig.news() == [Disconnected(0, "disconnect called")]
    rig.turn(5)
    assert rig.wire.was_aborted
    assert result_of(gone) is None
    rig.endpoint.refuses = True
    rig.client.connect()
    rig.client.disconnect()
    assert not rig.clock.getDelayedCalls()


def test_a_connection_that_was_made_too_late_is_aborted() -> None:
    rig = Rig()
    rig.endpoint.hangs = True
    rig.client.connect().addErrback(lambda _: None)
    late = rig.client._link._transport
    rig.client.disconnect()
    assert late is not None
    wire = Wire([])
    wire.protocol = late
    late.makeConnection(wire)
    assert wire.was_aborted


def test_close_is_for_good() -> None:
    rig = Rig()
    rig.connected()
    sub = rig.subscribed()
    rig.news()
    rig.client.close()
    assert rig.client.state is State.CLOSED
    assert rig.news() == [("c", Unsubscribed("c", 2, "client closed")), Disconnected(0, "disconnect called")]
    rig.wire.drop()
    for deferred in (rig.client.connect(), rig.client.publish("c", 1)):
        assert isinstance(failure_of(deferred), NotConnected)
    assert failure_of(sub.subscribe()).code == 7
    with pytest.raises(ValueError):
        rig.client.new_subscription("d")
    assert result_of(rig.client.close()) is None
    assert not rig.clock.getDelayedCalls()


def test_the_states_are_a_table_that_is_kept() -> None:
    assert set(MOVES) == set(State)
    rig = Rig()
    with pytest.raises(RuntimeError, match="cannot go from disconnected to connected"):
        rig.client._link._enter(State.CONNECTED)


def test_a_wait_can_be_cancelled() -> None:
    rig = Rig()
    connecting = rig.client.connect()
    connecting.addErrback(lambda _: "cancelled")
    connecting.cancel()
    rig.accept()
    assert result_of(connecting) == "cancelled"
    gone = rig.client.disconnect()
    gone.addErrback(lambda _: "cancelled")
    gone.cancel()
    rig.wire.drop()
    assert result_of(gone) == "cancelled"


# Listeners that meddle, or raise.


def test_a_listener_may_disconnect_at_any_event() -> None:
    for hook in ("on_connecting", "on_connected"):
        rig = Rig()
        getattr(rig.client, hook)(lambda _, rig=rig: rig.client.disconnect())
        sub = rig.listen(rig.client.new_subscription("c"))
        sub.subscribe().addErrback(lambda _: None)
        rig.client.connect().addErrback(lambda _: None)
        if hook == "on_connected":
            rig.accept(subs={"s": SubscribeResult()})
        assert rig.client.state is State.DISCONNECTED
        assert rig.news()[-1] == Disconnected(0, "disconnect called")
        rig.turn(60)
        assert len(rig.endpoint.connections) == (hook == "on_connected")


def test_a_listener_may_connect_again_at_once() -> None:
    rig = Rig()
    rig.connected()
    rig.client.on_disconnected(lambda _: rig.client.connect())
    rig.wire.push("", Disconnect(3503, "force disconnect"))
    assert len(rig.endpoint.connections) == 2
    rig.accept(client="c2")
    assert rig.client.state is State.CONNECTED


def test_a_listener_may_disconnect_and_connect_while_connecting() -> None:
    rig = Rig()

    def once(_: object) -> None:
        rig.client.on_connecting.remove(once)
        rig.client.disconnect()
        rig.client.connect()

    rig.client.on_connecting(once)
    rig.client.connect()
    assert len(rig.endpoint.connections) == 1
    rig.accept()
    assert rig.client.state is State.CONNECTED


def test_a_listener_that_raises_is_logged_and_hurts_nobody() -> None:
    rig = Rig()
    logged: list[Any] = []
    globalLogPublisher.addObserver(logged.append)

    async def later(_: object) -> None:
        raise RuntimeError("later")

    @rig.client.on_connected
    def _(event: Connected) -> None:
        raise RuntimeError("at once")

    rig.client.on_connected(later)
    sub = rig.client.new_subscription("c")
    sub.on_publication(lambda _: 1 / 0)
    try:
        rig.connected()
        sub.subscribe().addErrback(lambda _: None)
        rig.admit(recoverable=True, epoch="e", offset=1)
        rig.wire.push("c", Publication(b"1", offset=2))
    finally:
        globalLogPublisher.removeObserver(logged.append)
    assert rig.client.state is State.CONNECTED
    assert sub.position == StreamPosition(2, "e")
    causes = [event["log_failure"].type for event in logged if "log_failure" in event]
    assert causes == [RuntimeError, RuntimeError, ZeroDivisionError]


# Pings.


def test_pings_are_answered_and_awaited() -> None:
    rig = Rig()
    rig.connected(ping=25, pong=True)
    for _ in range(4):
        rig.turn(34)
        rig.wire.say(Reply(), Reply())
        assert rig.asked(*[type(None)]) == [Command()]
    rig.news()
    rig.turn(20)
    rig.wire.push("c", Publication(b"1"))  # other data is no ping
    rig.turn(15)
    assert rig.news() == [Connecting(2, "no ping")]


def test_no_ping_is_awaited_where_none_was_promised() -> None:
    rig = Rig()
    rig.connected()
    rig.turn(1000)
    rig.wire.say(Reply())
    assert rig.asked() == []
    assert rig.client.state is State.CONNECTED


# Tokens.


def test_a_token_is_asked_for_and_may_come_later() -> None:
    tokens: list[Deferred[str]] = [Deferred()]
    rig = Rig(get_token=lambda: tokens[-1])
    rig.client.connect()
    rig.turn()
    assert not rig.endpoint.connections
    tokens[0].callback("late")
    assert rig.accept().token == "late"
    rig.wire.drop()
    rig.turn(0.5)
    assert rig.accept().token == "late"


def test_an_expired_token_is_replaced() -> None:
    given = iter(["one", "two"])

    async def get_token() -> str:
        return next(given)

    rig = Rig(token="zero", get_token=get_token)
    rig.client.connect()
    (command,) = rig.asked(ConnectRequest)
    rig.answer(command, Error(109, "token expired"))
    assert codes_of(rig.news()) == [0, 109]
    rig.turn(0.5)
    assert rig.accept().token == "one"


def test_an_expired_token_that_cannot_be_replaced_is_final() -> None:
    rig = Rig(token="zero")
    connecting = rig.client.connect()
    (command,) = rig.asked(ConnectRequest)
    rig.answer(command, Error(109, "token expired"))
    (_, refused, disconnected) = rig.news()
    assert isinstance(refused, Refused)
    assert disconnected == Disconnected(1, "unauthorized")
    assert failure_of(connecting).code == 1
    assert failure_of(rig.client.connect()).code == 1
    rig.news()
    rig.client.set_token("fresh")
    rig.client.connect()
    assert rig.accept().token == "fresh"
    with pytest.raises(ValueError):
        rig.client.set_token("é")


@pytest.mark.parametrize("given", ["", Unauthorized()])
def test_no_token_is_final(given: Any) -> None:
    def get_token() -> str:
        if isinstance(given, Exception):
            raise given
        return str(given)

    rig = Rig(get_token=get_token)
    assert failure_of(rig.client.connect()).code == 1
    assert rig.news()[1:] == [Disconnected(1, "unauthorized")]


@pytest.mark.parametrize("wrong", [ValueError("no"), 5, "é", None])
def test_a_token_function_that_fails_is_asked_again(wrong: Any) -> None:
    answers = [wrong, "good"]

    def get_token() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    rig = Rig(get_token=get_token)
    rig.client.connect()
    (_, error) = rig.news()
    assert isinstance(error, TokenFailed)
    assert error.code == 5
    rig.turn(0.5)
    assert rig.accept().token == "good"


def test_a_token_that_never_comes_is_given_up() -> None:
    rig = Rig(get_token=lambda: Deferred())
    rig.client.connect()
    rig.turn(30)
    assert codes_of(rig.news()) == [0, 5]
    rig.client.disconnect()
    assert not rig.clock.getDelayedCalls()


def test_a_token_is_renewed_in_time() -> None:
    given = iter(["one", "two", "three"])
    rig = Rig(get_token=lambda: next(given))
    rig.connected(expires=True, ttl=60)
    rig.turn(60)
    (command,) = rig.asked(RefreshRequest)
    assert command.request == RefreshRequest("two")
    rig.answer(command, RefreshResult(expires=True, ttl=30))
    rig.turn(30)
    (command,) = rig.asked(RefreshRequest)
    rig.answer(command, RefreshResult())
    rig.turn(1000)
    assert rig.asked() == []


def test_a_renewal_that_fails_for_now_is_tried_again() -> None:
    answers: list[Any] = ["one", ValueError(), "two", "three", "four"]

    def get_token() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    rig = Rig(get_token=get_token)
    rig.connected(expires=True, ttl=60)
    rig.news()
    rig.turn(60)
    assert codes_of(rig.news()) == [6]
    rig.turn(5)
    (command,) = rig.asked(RefreshRequest)
    rig.answer(command, Error(100, "internal", True))
    assert codes_of(rig.news()) == [100]
    rig.turn(5)
    rig.asked(RefreshRequest)
    rig.turn(5)
    assert codes_of(rig.news()) == [1]
    rig.turn(5)
    rig.asked(RefreshRequest)
    rig.wire.drop()
    rig.turn(0.5)
    assert rig.accept().token == "four"


def test_a_renewal_that_is_refused_is_final() -> None:
    for answers, expected in (
        (["one", "two"], Disconnected(103, "permission denied")),
        (["one", ""], Disconnected(1, "unauthorized")),
        (["one", Unauthorized()], Disconnected(1, "unauthorized")),
    ):
        left: list[Any] = list(answers)

        def get_token(left: list[Any] = left) -> str:
            answer = left.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        rig = Rig(get_token=get_token)
        rig.connected(expires=True, ttl=60)
        rig.news()
        rig.turn(60)
        if answers[1] == "two":
            (command,) = rig.asked(RefreshRequest)
            rig.answer(command, Error(103, "permission denied"))
        assert rig.news() == [expected]


def test_refresh_renews_now() -> None:
    given: list[Any] = ["one", "two", ValueError("none")]

    def get_token() -> str:
        answer = given.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    rig = Rig(get_token=get_token)
    rig.connected()
    refreshing = rig.client.refresh()
    (command,) = rig.asked(RefreshRequest)
    rig.answer(command, RefreshResult(expires=True, ttl=5))
    assert result_of(refreshing).ttl == 5
    assert failure_of(rig.client.refresh()).code == 6
    assert failure_of(Rig().client.refresh()).code == 12


def test_without_a_function_nothing_is_renewed() -> None:
    rig = Rig(token="t")
    rig.connected(expires=True, ttl=60)
    rig.turn(600)
    assert rig.asked() == []


def test_invalidated_state_drops_the_token_and_positions() -> None:
    given = iter(["one", "two"])
    rig = Rig(get_token=lambda: next(given))
    rig.connected(subs={"s": SubscribeResult(recoverable=True, epoch="e", offset=5)})
    rig.wire.push("", Disconnect(3014, "state invalidated"))
    rig.turn(0.5)
    request = rig.accept()
    assert request.token == "two"
    assert request.subs == {"s": SubscribeRequest(recover=True, epoch="_", offset=0)}


# Commands.


def test_commands_of_a_turn_go_out_in_one_frame_and_come_back_in_any_order() -> None:
    rig = Rig()
    rig.connected()
    position = StreamPosition(3, "e")
    asked = [
        rig.client.publish("c", {"t": "hi"}),
        rig.client.history("c", limit=2, since=position, reverse=True),
        rig.client.presence("c"),
        rig.client.presence_stats("c"),
        rig.client.rpc("sum", [1, 2]),
        rig.client.rpc("none"),
        rig.client.send("ahoy"),
    ]
    assert rig.wire.frames() == []
    commands = rig.asked(
        *(PublishRequest, HistoryRequest, PresenceRequest, PresenceStatsRequest, RPCRequest, RPCRequest),
        SendRequest,
    )
    assert [command.request for command in commands] == [
        PublishRequest("c", b'{"t":"hi"}'),
        HistoryRequest("c", 2, position, True),
        PresenceRequest("c"),
        PresenceStatsRequest("c"),
        RPCRequest("sum", b"[1,2]"),
        RPCRequest("none"),
        SendRequest(b'"ahoy"'),
    ]
    history = HistoryResult([Publication(b"1", offset=2)], "e", 9)
    info = ClientInfo("17", "c1")
    answers = [
        PublishResult(),
        history,
        PresenceResult({"c1": info}),
        PresenceStatsResult(2, 1),
        RPCResult(b"3"),
        RPCResult(),
    ]
    rig.wire.say(
        *(Reply(command.id, body) for command, body in reversed(list(zip(commands, answers, strict=False))))
    )
    expected = [None, history, {"c1": info}, PresenceStatsResult(2, 1), b"3", b"", None]
    assert [result_of(each) for each in asked] == expected


def test_large_turns_are_cut_into_frames_that_servers_take() -> None:
    rig = Rig()
    rig.connected()
    for _ in range(5):
        rig.client.publish("c", "x" * 30_000)
    rig.client.publish("c", "y" * 70_000)
    written: list[bytes] = []
    rig.wire.write = written.append  # type: ignore[method-assign, assignment]
    rig.turn()
    assert [frame.count(b'"publish"') for frame in written] == [2, 2, 1, 1]


def test_refusals_timeouts_and_lost_connections() -> None:
    rig = Rig()
    rig.connected()
    refused, late, lost = rig.client.publish("c", 1), rig.client.publish("c", 2), None
    first, second = rig.asked(PublishRequest, PublishRequest)
    rig.answer(first, Error(103, "permission denied"))
    error = failure_of(refused)
    assert (type(error), error.code, error.temporary) == (Refused, 103, False)
    rig.turn(5)
    assert isinstance(failure_of(late), TimedOut)
    rig.answer(second, PublishResult())  # too late, and ignored
    lost = rig.client.publish("c", 3)
    rig.turn()
    rig.wire.drop()
    assert isinstance(failure_of(lost), ConnectionEnded)


def test_calls_wait_for_a_connection_that_is_being_made() -> None:
    rig = Rig()
    assert isinstance(failure_of(rig.client.publish("c", 1)), NotConnected)
    rig.client.connect()
    publishing, sending = rig.client.publish("c", 1), rig.client.send(2)
    rig.accept()
    (command, _) = rig.asked(PublishRequest, SendRequest)
    rig.answer(command, PublishResult())
    assert result_of(publishing) is None
    assert result_of(sending) is None
    rig.wire.drop()
    waiting = rig.client.publish("c", 1)
    rig.endpoint.hangs = True
    rig.turn(5)
    assert isinstance(failure_of(waiting), TimedOut)


def test_a_call_can_be_cancelled() -> None:
    rig = Rig()
    rig.connected()
    publishing = rig.client.publish("c", 1)
    publishing.addErrback(lambda _: "cancelled")
    (command,) = rig.asked(PublishRequest)
    publishing.cancel()
    rig.answer(command, PublishResult())
    assert result_of(publishing) == "cancelled"
    assert not rig.clock.getDelayedCalls()


def test_everything_that_waits_is_bounded() -> None:
    rig = Rig(max_pending=2, connect_seconds=60)
    rig.endpoint.hangs = True
    rig.client.connect().addErrback(lambda _: None)
    rig.client.publish("c", 1).addErrback(lambda _: None)
    assert isinstance(failure_of(rig.client.publish("c", 1)), TooMany)
    rig = Rig(max_pending=2)
    rig.connected()
    rig.client.publish("c", 1)
    rig.client.publish("c", 1)
    assert isinstance(failure_of(rig.client.publish("c", 1)), TooMany)


def test_a_server_that_does_not_read_gets_nothing_more() -> None:
    rig = Rig(timeout_seconds=1000)
    rig.connected(ping=25, pong=True)
    rig.wire.protocol.pauseProducing()
    size = UNSENT_MAX_BYTES // 8 - 1000
    waiting = [rig.client.publish("c", "x" * size) for _ in range(8)]
    rig.wire.say(*[Reply()] * 10)
    rig.turn()
    assert rig.wire.frames() == []
    assert isinstance(failure_of(rig.client.publish("c", "x" * size)), TooMany)
    assert isinstance(failure_of(rig.client.send("x" * size)), TooMany)
    rig.wire.protocol.resumeProducing()
    assert rig.asked(*[PublishRequest] * 8, type(None))
    rig.wire.protocol.pauseProducing()
    for _ in range(8):
        rig.client.publish("c", "x" * (size + 900)).addErrback(lambda _: None)
        rig.wire.say(Reply())
    rig.wire.say(Reply())
    assert rig.client.state is State.CONNECTED
    assert all(map(is_pending, waiting))


def test_what_cannot_be_sent_is_told_at_once() -> None:
    rig = Rig()
    rig.connected()
    for wrong in (b"no json", b"\xff"):
        with pytest.raises(ValueError):
            rig.client.publish("c", wrong)
    with pytest.raises(TypeError):
        rig.client.publish("c", object())
    assert isinstance(failure_of(rig.client.publish("\ud83d", 1)), ValueError)
    rig.client.publish("c", b'{"a":\n1.0}')
    (command,) = rig.asked(PublishRequest)
    assert command.request == PublishRequest("c", b'{"a":1.0}')


@pytest.mark.parametrize(
    "options",
    [
        {"url": "http://x"},
        {"url": "ws://"},
        {"url": "tcp://x"},
        {"url": "tcp://x:1/path"},
        {"url": "tcp://x:1", "protocol": "protobuf"},
        {"url": "tcp://x:99999"},
        {"protocol": "xml"},
        {"max_pending": 0},
        {"timeout_seconds": 0},
        {"min_reconnect_seconds": 30},
        {"data": b"no json"},
        {"token": "\ud83d"},
    ],
)
def test_arguments_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"url": "ws://x/", "endpoint": object()} | options
    with pytest.raises(ValueError):
        Client(None, arguments.pop("url"), **arguments)


# Servers that do not keep to the protocol.


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"\xff\xfe",
        b"",
        b"[]",
        b'{"id":2,"rpc":{}}',  # in answer to a publish
        b'{"push":{"channel":"c","pub":{"offset":-1}}}',
    ],
)
def test_a_bad_server_is_left(line: bytes) -> None:
    rig = Rig()
    rig.connected()
    publishing = rig.client.publish("c", 1)
    rig.turn()
    rig.news()
    rig.wire.protocol.dataReceived(line + b"\n")
    (error, disconnected) = rig.news()
    assert isinstance(error, BadServer)
    assert disconnected == Disconnected(2, "bad protocol")
    assert isinstance(failure_of(publishing), ConnectionEnded)


def test_a_line_without_end_is_not_kept() -> None:
    rig = Rig(frame_max_bytes=1000)
    rig.connected()
    rig.news()
    for _ in range(11):
        rig.wire.protocol.dataReceived(b"x" * 100)
    rig.wire.protocol.dataReceived(b"x" * 100)
    assert rig.news() == [Disconnected(3, "message size limit")]
    rig = Rig(frame_max_bytes=1000)
    rig.connected()
    rig.wire.protocol.dataReceived(b"x" * 1001 + b"\n")
    assert rig.client.state is State.DISCONNECTED


def test_what_comes_before_the_connect_reply_is_ignored() -> None:
    rig = Rig()
    rig.client.connect()
    rig.news()
    rig.wire.say(Reply(), Reply(77, PublishResult()))
    rig.wire.push("c", Publication(b"1"))
    rig.wire.push("", Message(b"1"))
    assert rig.news() == []
    rig.accept()


def test_nothing_is_heard_after_a_disconnect_in_the_same_frame() -> None:
    rig = Rig()
    rig.connected()
    rig.client.on_message(lambda _: rig.client.disconnect())
    rig.wire.push("", Message(b"1"), Message(b"2"))
    assert [each for each in rig.news() if isinstance(each, bytes)] == [b"1"]
    rig.wire.protocol.dataReceived(b'{"push":{"message":{"data":3}}}\n')
    assert rig.news() == []


# Server-side subscriptions.

POSITION = {"recoverable": True, "positioned": True, "epoch": "e"}


def test_server_side_subscriptions_are_told_and_recovered() -> None:
    rig = Rig()
    subs = {"a": SubscribeResult(**POSITION, offset=4), "b": SubscribeResult(data=b"1")}
    rig.connected(subs=subs)
    assert rig.news()[2:] == [
        Subscribed("a", True, True, StreamPosition(4, "e")),
        Subscribed("b", data=b"1"),
    ]
    info = ClientInfo("17", "x")
    publication = Publication(b"1", offset=5)
    rig.wire.push("a", publication, Join(info), Leave(info), Refresh())
    rig.wire.push("b", Publication(b"2"))
    assert rig.news() == [("a", publication), ("a", info), ("a", info), ("b", Publication(b"2"))]
    rig.wire.drop()
    assert rig.news() == [
        Subscribing("a", 1, "transport closed"),
        Subscribing("b", 1, "transport closed"),
        Connecting(1, "transport closed"),
    ]
    rig.turn(0.5)
    missed = [Publication(b"3", offset=6), Publication(b"4", offset=7)]
    again = SubscribeResult(**POSITION, offset=5, was_recovering=True, recovered=True, publications=missed)
    request = rig.accept(subs={"a": again})
    assert request.subs == {"a": SubscribeRequest(recover=True, epoch="e", offset=5)}
    assert rig.news()[1:] == [
        Subscribed("a", True, True, StreamPosition(5, "e"), True, True),
        ("a", missed[0]),
        ("a", missed[1]),
        Unsubscribed("b", 2000, "server unsubscribe"),
    ]
    rig.wire.drop()
    rig.turn(0.5)
    assert rig.accept().subs["a"].offset == 7


def test_the_server_adds_and_ends_subscriptions() -> None:
    rig = Rig()
    rig.connected()
    rig.news()
    rig.wire.push("a", Publication(b"0"))
    rig.wire.push("a", Subscribe(recoverable=True, epoch="e", offset=0))
    first = Publication(b"1", offset=1, epoch="f")
    rig.wire.push("a", first)
    assert rig.news() == [Subscribed("a", True, False, StreamPosition(0, "e")), ("a", first)]
    rig.wire.push("a", Unsubscribe(2000, "server unsubscribe"))
    assert rig.news() == [Unsubscribed("a", 2000, "server unsubscribe")]
    rig.wire.push("a", Publication(b"2"))
    rig.wire.push("nowhere", Unsubscribe(2000, ""))
    assert rig.news() == []
    rig.wire.push("", Message(b"{}"))
    assert rig.news() == [b"{}"]


def test_publications_that_were_not_recovered_are_not_told() -> None:
    rig = Rig()
    rig.connected(subs={"a": SubscribeResult(**POSITION, offset=9, publications=[Publication(b"1")])})
    assert len(rig.news()) == 3


def test_server_side_subscriptions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spread.client.routing.MAX_SERVER_SIDE", 2)
    rig = Rig()
    rig.connected()
    rig.news()
    for channel in "abc":
        rig.wire.push(channel, Subscribe())
    assert [event.channel for event in rig.news()] == ["a", "b"]


@pytest.mark.parametrize("hook", ["on_subscribed", "on_publication"])
def test_a_listener_may_disconnect_among_server_side_subscriptions(hook: str) -> None:
    rig = Rig()
    getattr(rig.client, hook)(lambda *_: rig.client.disconnect())
    missed = [Publication(b"1", offset=1), Publication(b"2", offset=2)]
    subs = {
        "a": SubscribeResult(**POSITION, recovered=True, publications=missed),
        "b": SubscribeResult(),
    }
    rig.connected(subs=subs)
    news = rig.news()
    told = [each for each in news if isinstance(each, Subscribed)]
    assert len(told) == (1 if hook == "on_subscribed" else 2)
    assert sum(isinstance(each, tuple) and each[0] == "a" for each in news) == (hook == "on_publication")


# The package.


def test_the_package_names_what_it_has() -> None:
    for name in spread.client.__all__:
        assert getattr(spread.client, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = spread.client.nothing  # type: ignore[attr-defined]


def test_a_push_is_a_push() -> None:
    assert Push("c", Message(b"")).channel == "c"
