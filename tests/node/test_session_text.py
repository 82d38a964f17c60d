"""Sessions: each row of the state table, on a memory hub and a clock that stands still."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher

from spread.hub.api import Format
from spread.hub.errors import HubRefused, MessageTooLarge
from spread.hub.memory import Exchange, MemoryHub
from spread.node import codes, fanout
from spread.node.fanout import REST_SECONDS
from spread.node.namespaces import Namespaces
from spread.node.pressure import HOLD_SECONDS
from spread.node.session.text import COUNT_AGAIN_SECONDS, SessionState
from spread.node.settings import ChannelSettings, Namespace, NamespaceOptions
from spread.node.wire.text import channel_name
from tests.fakes import Ears, FakeClient, Loopback

NOT_DELIVERED = f"error: {codes.NOT_DELIVERED}"
HUB_AWAY = f"error: {codes.HUB_AWAY}"
BAD_CHANNEL = f"error: {codes.BAD_CHANNEL}"


def opened(shard: Loopback) -> FakeClient:
    client = shard.client()
    shard.turn()
    return client


def listener(shard: Loopback, *channels: str) -> Ears:
    """Another shard's ears, at the same exchange."""
    ears = Ears()
    hub = MemoryHub(shard.exchange, "00000000000000ee")
    hub.start(ears)
    for channel in channels:
        hub.subscribe(channel)
    return ears


def nothing_is_left(shard: Loopback) -> bool:
    """No timers but those of lingering channels, no members, nobody who waits."""
    shard.turn(60.0)
    heard = [name for name, hubs in shard.exchange.subscribers.items() if shard.hub in hubs]
    return not (shard.clock.getDelayedCalls() or len(shard.channels) or heard)


# --- opening ------------------------------------------------------------------------------------------


def test_a_client_is_counted_and_greeted() -> None:
    shard = Loopback()
    first, second = shard.client(), shard.client()
    assert first.heard == b""
    shard.turn()
    assert (first.lines, second.lines) == (["hi 1"], ["hi 2"])
    assert first.session.state is SessionState.OPEN
    assert [client.edge.asked for client in (first, second)] == [[], []]


def test_the_greeting_comes_before_the_messages_of_others() -> None:
    shard = Loopback()
    first = opened(shard)
    second = shard.client()
    first.says(b"welcome\n")
    shard.turn()
    assert second.lines == ["hi 2", "welcome"]


def test_what_is_said_while_opening_waits_and_is_not_lost() -> None:
    shard = Loopback()
    other = opened(shard)
    shard.exchange.cut()
    client = shard.client()
    client.says(b"one\n", b"two\n")
    assert client.edge.asked == ["pause"]
    shard.turn(1.0)
    assert client.heard == b""
    shard.exchange.restore()
    shard.turn(COUNT_AGAIN_SECONDS)
    assert client.lines == ["hi 2"]
    assert other.lines == ["hi 1", "one", "two"]
    assert client.edge.asked == ["pause", "resume"]
    assert shard.counters.reading_pauses == 0  # nobody was too fast


def test_a_hub_that_stays_away_is_told_to_the_client() -> None:
    shard = Loopback()
    shard.exchange.cut()
    client = shard.client()
    client.says(b"never sent\n")
    shard.turn(4.9)
    assert client.session.state is SessionState.OPENING
    shard.turn(0.2)
    assert client.lines == [HUB_AWAY]
    assert client.session.state is SessionState.CLOSING
    assert client.edge.asked == ["pause", "finish, lingering"]
    assert shard.counters.refused_hub == 1
    client.session.lost()
    shard.exchange.restore()
    assert shard.exchange.clients == 0
    assert nothing_is_left(shard)


def test_a_hub_that_goes_between_the_count_and_the_channel() -> None:
    shard = Loopback()
    number: Deferred[int] = Deferred()
    shard.hub.next_client = lambda: number  # type: ignore[method-assign]
    client = shard.client()
    shard.exchange.cut()
    number.callback(7)
    shard.turn(4.0)
    assert client.heard == b""
    shard.exchange.restore()
    shard.turn()
    assert client.lines == ["hi 7"]


def test_a_hub_that_refuses_the_first_channel() -> None:
    shard = Loopback()
    shard.hub.subscribe = lambda channel, history=None: fail(HubRefused("memory", "no"))  # type: ignore[method-assign]
    client = opened(shard)
    assert client.lines == [HUB_AWAY]
    assert client.session.state is SessionState.CLOSING
    assert len(shard.channels) == 0


def test_an_unforeseen_error_while_opening_is_logged_and_ends_the_client() -> None:
    shard = Loopback()
    shard.hub.next_client = lambda: fail(RuntimeError("a bug"))  # type: ignore[method-assign]
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        client = opened(shard)
    finally:
        globalLogPublisher.removeObserver(events.append)
    assert client.lines == [HUB_AWAY]
    assert [event["log_failure"].getErrorMessage() for event in events] == ["a bug"]


@pytest.mark.parametrize("cut_for", [0.0, 1.0])
def test_lost_while_opening_leaves_nothing_behind(cut_for: float) -> None:
    shard = Loopback()
    shard.exchange.cut()
    client = shard.client()
    shard.turn(cut_for)
    client.session.lost()
    assert client.session.state is SessionState.CLOSED
    shard.exchange.restore()
    assert nothing_is_left(shard)
    assert client.heard == b""


def test_lost_while_waiting_for_the_first_channel_leaves_nothing_behind() -> None:
    shard = Loopback()
    number: Deferred[int] = Deferred()
    shard.hub.next_client = lambda: number  # type: ignore[method-assign]
    client = shard.client()
    shard.exchange.cut()
    number.callback(7)
    client.session.lost()
    assert len(shard.channels) == 0
    shard.exchange.restore()
    assert nothing_is_left(shard)


def test_what_was_said_before_the_loss_of_an_opening_connection_is_published() -> None:
    shard = Loopback()
    ears = listener(shard, "lobby", "side")
    shard.exchange.cut()
    client = shard.client()
    client.says(b"one\n", b"/join side\n", b"two\n", b"/join \x00\n", b"three\n", b"close\n", b"four\n")
    client.session.lost()
    client.session.lost()
    shard.exchange.restore()
    shard.turn()
    said = [(channel, publication.data) for channel, publication in ears.heard]
    assert said == [("lobby", b"one\n"), ("side", b"two\n"), ("side", b"three\n")]
    assert {publication.session for _, publication in ears.heard} == {0}
    assert shard.counters.messages_in == 3
    assert nothing_is_left(shard)


def test_what_the_hub_does_not_take_after_a_loss_is_counted() -> None:
    shard = Loopback()
    shard.exchange.cut()
    client = shard.client()
    client.says(b"one\n")
    client.session.lost()
    shard.turn(5.0)
    assert shard.counters.publish_errors == 1
    assert not shard.clock.getDelayedCalls()


# --- saying -------------------------------------------------------------------------------------------


def test_a_message_reaches_the_others_and_not_its_sender() -> None:
    shard = Loopback()
    ears = listener(shard, "lobby")
    first, second = opened(shard), opened(shard)
    first.says(b"hello\r\n", b"\n", b"last words")
    shard.turn()
    assert first.lines == ["hi 1"]
    assert second.heard == b"hi 2\nhello\r\n\nlast words"
    assert [publication.format for _, publication in ears.heard] == [Format.TEXT] * 3
    assert shard.counters.messages_in == 3
    assert shard.counters.deliveries == 3


def test_a_message_waits_for_a_hub_that_is_away() -> None:
    shard = Loopback()
    first, second = opened(shard), opened(shard)
    shard.exchange.cut()
    first.says(b"one\n", b"two\n")
    shard.turn(4.0)
    assert second.lines == ["hi 2"]
    shard.exchange.restore()
    shard.turn()
    assert second.lines == ["hi 2", "one", "two"]
    assert first.lines == ["hi 1"]


def test_a_message_that_the_hub_does_not_take_in_time_is_told_to_its_sender() -> None:
    shard = Loopback()
    client = opened(shard)
    shard.exchange.cut()
    client.says(b"one\n", b"two\n")
    shard.turn(5.0)
    assert client.lines == ["hi 1", NOT_DELIVERED, NOT_DELIVERED]
    assert client.session.state is SessionState.OPEN
    assert shard.counters.publish_errors == 2
    shard.exchange.restore()
    client.says(b"three\n")
    shard.turn()
    assert shard.hub.counters.published == 1


def test_a_full_journal_is_told_at_once() -> None:
    shard = Loopback(Exchange(Clock(), max_waiting=1))
    client = opened(shard)
    shard.exchange.cut()
    client.says(b"one\n", b"two\n")
    shard.turn()
    assert client.lines == ["hi 1", NOT_DELIVERED]


def test_an_error_that_is_not_temporary_is_logged_too() -> None:
    shard = Loopback()
    client = opened(shard)
    shard.hub.publish = lambda *_: fail(MessageTooLarge(2, 1))  # type: ignore[method-assign]
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        client.says(b"one\n")
    finally:
        globalLogPublisher.removeObserver(events.append)
    shard.turn()
    assert client.lines == ["hi 1", NOT_DELIVERED]
    assert [event["why"] for event in events] == ["a publication of 2 bytes is above the maximum of 1"]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_unacknowledged": 4}, b"x\n"),
        ({"max_unacknowledged_bytes": 4096}, b"x" * 1023 + b"\n"),
    ],
)
def test_a_client_is_not_read_while_too_much_is_on_its_way(limits: dict[str, int], message: bytes) -> None:
    shard = Loopback(**limits)
    client = opened(shard)
    shard.exchange.cut()
    taken: list[Deferred[None]] = []
    shard.hub.publish = lambda *_: taken.append(Deferred()) or taken[-1]  # type: ignore
    client.says(message, message, message)
    assert client.edge.asked == []
    client.says(message)
    assert client.edge.asked == ["pause"]
    assert shard.counters.reading_pauses == 1
    taken.pop().callback(None)
    taken.pop().callback(None)
    assert client.edge.asked == ["pause"], "goes on below half, lest it pauses for each message"
    taken.pop().callback(None)
    assert client.edge.asked == ["pause", "resume"]
    client.says(message, message, message, message)
    assert client.edge.asked == ["pause", "resume", "pause"]
    client.session.lost()
    for one in taken:
        one.callback(None)
    assert client.edge.asked == ["pause", "resume", "pause"], "nothing is asked of a lost connection"


def test_the_rate_limit_refuses_what_is_above_and_says_so() -> None:
    shard = Loopback(max_messages_per_second=2)
    first, second = opened(shard), opened(shard)
    first.says(b"1\n", b"2\n", b"3\n", b"/join lobby\n")
    shard.turn(0.5)
    first.says(b"4\n", b"5\n")
    shard.turn()
    assert second.lines == ["hi 2", "1", "2", "4"]
    too_fast = "error: too many messages (2 a second are allowed); this one was not sent"
    assert first.lines == ["hi 1", too_fast, too_fast]
    assert (shard.counters.rate_limited, shard.counters.messages_in) == (2, 5)


def test_who_speaks_in_a_pressed_channel_is_held_for_a_moment() -> None:
    shard = Loopback()
    client, silent = opened(shard), opened(shard)
    shard.pressure.heard("lobby")
    client.says(b"one\n", b"two\n")
    assert (client.edge.asked, silent.edge.asked) == (["pause"], [])
    assert (shard.counters.held_publishers, shard.counters.reading_pauses) == (1, 0)
    shard.turn(HOLD_SECONDS)
    assert client.edge.asked == ["pause", "resume"]
    shard.turn(HOLD_SECONDS)
    client.says(b"three\n")
    shard.turn()
    assert client.edge.asked == ["pause", "resume"]
    assert silent.lines == ["hi 2", "one", "two", "three"]


def test_a_held_client_may_be_lost() -> None:
    shard = Loopback()
    client = opened(shard)
    shard.pressure.heard("lobby")
    client.says(b"one\n")
    client.session.lost()
    assert nothing_is_left(shard)
    assert client.edge.asked == ["pause"]


def test_the_rate_limit_holds_for_what_is_said_at_the_end_too() -> None:
    shard = Loopback(max_messages_per_second=2)
    ears = listener(shard, "lobby")
    shard.exchange.cut()
    client = shard.client()
    client.says(b"1\n", b"2\n")
    client.edge.unfinished = b"3"
    client.session.stop_reading()
    client.session.goodbye(0)
    client.session.lost()
    shard.exchange.restore()
    shard.turn()
    assert ears.words == [b"1\n", b"2\n"]
    assert (shard.counters.rate_limited, shard.counters.messages_in) == (1, 3)


# --- joining ------------------------------------------------------------------------------------------


def test_a_client_moves_to_another_channel() -> None:
    shard = Loopback()
    mover, lobby, side = opened(shard), opened(shard), opened(shard)
    side.says(b"/join side\r\n")
    mover.says(b"before\n", b"/join  side \n", b"after\n")
    shard.turn()
    lobby.says(b"to the lobby\n")
    side.says(b"to the side\n")
    shard.turn()
    assert lobby.lines == ["hi 2", "before"]
    assert side.lines == ["hi 3", "after"]
    assert mover.lines == ["hi 1", "to the side"]
    assert mover.edge.asked == []


def test_what_follows_join_waits_until_the_channel_is_heard() -> None:
    shard = Loopback()
    ears = listener(shard, "lobby", "side")
    client = opened(shard)
    heard: Deferred[None] = Deferred()
    subscribe = shard.hub.subscribe
    shard.hub.subscribe = lambda channel, history=None: heard.addCallback(  # type: ignore[method-assign]
        lambda _: subscribe(channel)
    )
    client.says(b"before\n", b"/join side\n", b"after\n", b"/join lobby\n", b"back\n")
    shard.turn()
    assert ears.words == [b"before\n"]
    assert client.edge.asked == ["pause"]
    heard.callback(None)
    shard.turn()
    said = [(channel, publication.data) for channel, publication in ears.heard]
    assert said == [("lobby", b"before\n"), ("side", b"after\n"), ("lobby", b"back\n")]
    assert client.edge.asked == ["pause", "resume"]
    assert shard.channels.get("side") is None


def test_while_it_waits_a_client_hears_the_channel_it_leaves() -> None:
    shard = Loopback()
    client, other = opened(shard), opened(shard)
    shard.hub.subscribe = lambda channel, history=None: Deferred()  # type: ignore[method-assign]
    client.says(b"/join side\n")
    other.says(b"still here?\n")
    shard.turn()
    assert client.lines == ["hi 1", "still here?"]


def test_a_channel_that_is_not_heard_in_time_is_not_joined() -> None:
    shard = Loopback()
    client = opened(shard)
    shard.exchange.cut()
    client.says(b"/join side\n")
    shard.turn(5.0)
    assert client.lines == ["hi 1", HUB_AWAY]
    assert shard.channels.get("side") is None
    shard.exchange.restore()
    opened(shard).says(b"in the lobby\n")
    shard.turn()
    assert client.lines[-1] == "in the lobby"
    assert "side" not in shard.exchange.subscribers


def test_a_channel_that_the_hub_refuses_is_not_joined() -> None:
    shard = Loopback()
    client = opened(shard)
    shard.hub.subscribe = lambda channel, history=None: fail(HubRefused("memory", "NOPERM"))  # type: ignore[method-assign]
    client.says(b"/join secret\n")
    shard.turn()
    assert client.lines == ["hi 1", "error: channel secret is not allowed"]
    assert client.session.state is SessionState.OPEN


@pytest.mark.parametrize("name", [b"", b"a b", b"x" * 256, b"\xff", b"a\x00b", "\u2028".encode()])
def test_a_name_that_is_no_channel_is_refused(name: bytes) -> None:
    shard = Loopback()
    client = opened(shard)
    client.says(b"/join " + name + b"\n")
    shard.turn()
    assert client.lines == ["hi 1", BAD_CHANNEL]
    assert len(shard.channels) == 1


@pytest.mark.parametrize("name", ["a", "x" * 255, "大厅", "room:1/{2}", "é" * 127])
def test_names_of_channels(name: str) -> None:
    assert channel_name(name.encode()) == name


def test_joining_the_own_channel_does_nothing() -> None:
    shard = Loopback()
    client = opened(shard)
    client.says(b"/join lobby\n")
    shard.turn()
    assert client.lines == ["hi 1"]
    assert shard.exchange.subscribers.keys() == {"lobby"}


def test_lost_while_joining_leaves_nothing_behind() -> None:
    shard = Loopback()
    client = opened(shard)
    shard.exchange.cut()
    client.says(b"/join side\n")
    client.session.lost()
    shard.exchange.restore()
    assert nothing_is_left(shard)


def test_what_was_said_behind_join_goes_there_also_after_a_loss() -> None:
    shard = Loopback()
    ears = listener(shard, "lobby", "side")
    client = opened(shard)
    shard.exchange.cut()
    client.says(b"/join side\n")
    client.says(b"not for the lobby")
    client.session.lost()
    shard.exchange.restore()
    shard.turn()
    assert [(channel, publication.data) for channel, publication in ears.heard] == [
        ("side", b"not for the lobby")
    ]


def test_closed_by_the_shard_while_joining_leaves_nothing_behind() -> None:
    shard = Loopback()
    client = opened(shard)
    shard.exchange.cut()
    client.says(b"/join side\n")
    client.session.goodbye(0)
    shard.exchange.restore()
    client.session.lost()
    assert nothing_is_left(shard)


# --- the end ------------------------------------------------------------------------------------------


def test_close_ends_the_connection_and_what_follows_is_not_said() -> None:
    shard = Loopback()
    first, second = opened(shard), opened(shard)
    first.says(b"one\n", b"close\r\n", b"two\n")
    first.says(b"three\n")
    shard.turn()
    assert second.lines == ["hi 2", "one"]
    assert first.edge.asked == ["finish"]
    assert first.session.state is SessionState.CLOSING
    second.says(b"anybody?\n")
    shard.turn()
    assert first.lines == ["hi 1"]
    first.session.lost()
    assert first.session.state is SessionState.CLOSED


def test_a_message_that_is_too_long_ends_the_connection() -> None:
    shard = Loopback(message_max_bytes=10)
    client = opened(shard)
    client.session.overlong()
    shard.turn()
    assert client.lines == ["hi 1", "error: a message may have 10 bytes at most; closing"]
    assert client.edge.asked == ["finish, lingering"]
    assert shard.counters.too_long == 1


def test_what_was_said_before_a_message_that_is_too_long_is_not_lost() -> None:
    shard = Loopback()
    ears = listener(shard, "lobby")
    shard.exchange.cut()
    client = shard.client()
    client.says(b"one\n")
    client.session.overlong()
    client.session.lost()
    shard.exchange.restore()
    shard.turn()
    assert ears.words == [b"one\n"]
    assert nothing_is_left(shard)


def test_the_shard_says_goodbye() -> None:
    shard = Loopback()
    client = opened(shard)
    client.session.stop_reading()
    client.session.stop_reading()
    client.session.goodbye(3)
    client.session.goodbye(3)
    shard.turn()
    assert client.lines == ["hi 1", "bye 3"]
    assert client.edge.asked == ["pause", "finish, lingering"]


def test_a_client_that_is_stopped_while_it_opens() -> None:
    shard = Loopback()
    ears = listener(shard, "lobby")
    shard.exchange.cut()
    client = shard.client()
    client.says(b"one\n")
    client.session.stop_reading()
    client.session.goodbye(3)
    client.session.lost()
    shard.exchange.restore()
    shard.turn()
    assert client.edge.asked == ["pause", "finish, lingering"]
    assert ears.words == [b"one\n"]
    assert nothing_is_left(shard)


def test_a_stopping_shard_takes_in_what_has_arrived_without_a_line_ending() -> None:
    shard = Loopback()
    ears = listener(shard, "lobby")
    client = opened(shard)
    client.edge.unfinished = b"last words"
    client.session.stop_reading()
    shard.turn()
    assert ears.words == [b"last words"]


def test_a_stopping_shard_does_not_read_again() -> None:
    shard = Loopback(max_unacknowledged=1)
    client = opened(shard)
    shard.exchange.cut()
    client.says(b"one\n")
    client.session.stop_reading()
    shard.exchange.restore()
    shard.turn()
    assert client.edge.asked == ["pause"]


def test_cut() -> None:
    client = opened(Loopback())
    client.session.cut()
    assert client.edge.asked == ["cut"]


def test_an_outbox_that_runs_over_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "RUN_MAX_PUBLICATIONS", 1)
    shard = Loopback()
    reader, writer = shard.client(limit_bytes=100), shard.client()
    shard.turn()
    reader.transport.room = 0
    writer.says(*[b"x" * 60 + b"\n"] * 3)
    shard.turn()
    assert reader.overflows == 0, "over half: the fan-out rests for it once"
    shard.clock.advance(REST_SECONDS)
    assert reader.overflows == 1
    assert reader.lines == ["hi 1"]
    reader.session.lost()
    writer.session.lost()
    assert nothing_is_left(shard)


def test_nothing_is_taken_from_a_session_that_has_ended() -> None:
    shard = Loopback()
    ears = listener(shard, "lobby")
    client = opened(shard)
    client.session.lost()
    client.says(b"a ghost\n")
    client.session.overlong()
    client.session.goodbye(0)
    client.session.stop_reading()
    shard.turn()
    assert ears.words == []
    assert client.edge.asked == []
    assert client.lines == ["hi 1"]


# --- namespaces ---------------------------------------------------------------------------------------


def test_text_clients_keep_the_rules_of_namespaces() -> None:
    shard = Loopback()
    talk = {
        "allow_subscribe_for_client": True,
        "allow_subscribe_for_anonymous": True,
        "allow_publish_for_subscriber": True,
    }
    settings = ChannelSettings(namespaces=(Namespace(name="open", **talk), Namespace(name="shut")))
    shard.shared = replace(shard.shared, namespaces=Namespaces(settings))
    ann = shard.client()
    shard.turn()
    for name in (b"shut:a", b"nowhere:a", b"$open:a", b"open:a#17", b"open:a"):
        ann.says(b"/join %b\n" % name)
        shard.turn()
    refused = [line for line in ann.lines if line.startswith("error")]
    assert refused == [
        f"error: channel {name} is not allowed" for name in ("shut:a", "nowhere:a", "$open:a", "open:a#17")
    ]
    assert shard.channels.get("open:a") is not None


def test_what_text_clients_say_is_kept_where_the_channel_keeps_history() -> None:
    shard = Loopback()
    kept = NamespaceOptions(history_size=2, history_ttl=60.0)
    namespaces = Namespaces(ChannelSettings(without_namespace=kept))
    shard.shared = replace(shard.shared, namespaces=namespaces)
    ann = shard.client()
    shard.turn()
    ann.says(b"one\n", b"/join other\n", b"two\n")
    shard.turn()
    options = namespaces.options("lobby")
    assert options is not None and options.history is not None
    for channel, said in (("lobby", b"one\n"), ("other", b"two\n")):
        got: list[Any] = []
        shard.hub.history(channel, options.history, limit=-1).addCallback(got.append)
        assert [publication.data for publication in got[0].publications] == [said]
