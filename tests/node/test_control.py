"""What shards ask each other about their clients."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred, succeed

from spread.hub.api import Position
from spread.hub.errors import HubUnavailable, ShardUnknown
from spread.node import codes, control
from spread.node.control import (
    ANSWER_MAX_BYTES,
    VERSION,
    ControlFailed,
    Override,
    SubscribeOptions,
    TooManyChannels,
)
from spread.node.pattern import BadPattern
from tests.node.fake_api import Cluster, FakeClients


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def clients(cluster: Cluster) -> tuple[FakeClients, FakeClients]:
    return cluster.first.clients, cluster.second.clients


def test_disconnect_reaches_all_shards(cluster: Cluster) -> None:
    here, there = clients(cluster)
    one, other = here.add("ann", "c1"), there.add("ann", "c2")
    kept, stranger = there.add("ann", "c3"), there.add("bob", "c4")
    reason = codes.Disconnect(4001, "banned")
    asked = cluster.first.control.ask_disconnect("ann", whitelist=["c3"], disconnect=reason)
    assert cluster.outcome(asked) == 2
    assert one.heard == other.heard == [reason]
    assert kept.heard == stranger.heard == []
    again = cluster.second.control.ask_disconnect("ann", whitelist=["c3"], disconnect=reason)
    assert cluster.outcome(again) == 0


def test_client_and_session_narrow_it_down(cluster: Cluster) -> None:
    here, there = clients(cluster)
    anonymous = [here.add("", "c1", session="s1"), there.add("", "c2", session="s2"), there.add("", "c3")]
    ask = cluster.first.control.ask_disconnect
    gone = codes.FORCE_DISCONNECT
    assert cluster.outcome(ask("", client="c2", session="s1", disconnect=gone)) == 0
    assert cluster.outcome(ask("", client="c2", disconnect=gone)) == 1
    assert cluster.outcome(ask("", session="s1", disconnect=gone)) == 1
    assert [len(one.heard) for one in anonymous] == [1, 1, 0]
    assert cluster.outcome(ask("", disconnect=gone)) == 1


def test_subscribe_and_unsubscribe(cluster: Cluster) -> None:
    here, there = clients(cluster)
    one, other = here.add("ann", "c1"), there.add("ann", "c2", "room:1")
    options = SubscribeOptions(
        info=b"\x00binary",
        data=b'{"a":1}',
        recover_since=Position("abc", 2**64 - 1),
        override=Override(presence=True, join_leave=False),
        expire_at=2_000_000_000,
    )
    asked = cluster.first.control.ask_subscribe("ann", "room:1", options=options)
    assert cluster.outcome(asked) == 1
    assert (one.heard, other.heard) == ([options], [])
    plain = cluster.second.control.ask_subscribe("ann", "room:2", client="c2")
    assert cluster.outcome(plain) == 1
    assert other.heard == [SubscribeOptions()]
    assert cluster.outcome(cluster.first.control.ask_unsubscribe("ann", "room:1")) == 2
    assert (one.channels, other.channels) == (set(), {"room:2"})
    assert cluster.outcome(cluster.first.control.ask_unsubscribe("ann", "")) == 2
    assert other.channels == set()


def test_refresh(cluster: Cluster) -> None:
    here, there = clients(cluster)
    one, other = here.add("ann", "c1"), there.add("ann", "c2")
    ask = cluster.first.control.ask_refresh
    assert cluster.outcome(ask("ann", client="c2", expire_at=-5, info=b"{}")) == 1
    assert cluster.outcome(ask("ann", session="s-c1", expired=True)) == 1
    assert (one.heard, other.heard) == ([(True, 0, b"")], [(False, -5, b"{}")])


def test_channels_are_added_up(cluster: Cluster) -> None:
    here, there = clients(cluster)
    here.add("ann", "c1", "room:1", "room:2")
    there.add("bob", "c2", "room:2", "news")
    ask = cluster.second.control.ask_channels
    assert cluster.outcome(ask()) == {"room:1": 1, "room:2": 2, "news": 1}
    assert cluster.outcome(ask("room:*")) == {"room:1": 1, "room:2": 2}
    with pytest.raises(BadPattern):
        ask("[")


def test_channels_that_do_not_fit_into_an_answer(cluster: Cluster) -> None:
    here, _ = clients(cluster)
    here.add("ann", "c1", *(f"{number:0250}" for number in range(ANSWER_MAX_BYTES // 250)))
    with pytest.raises(TooManyChannels) as caught:
        cluster.outcome(cluster.second.control.ask_channels())
    assert str(ANSWER_MAX_BYTES) in str(caught.value)
    assert len(cluster.outcome(cluster.second.control.ask_channels("*00"))) == ANSWER_MAX_BYTES // 250 // 100


def test_emulate_asks_one_shard(cluster: Cluster) -> None:
    here, there = clients(cluster)
    one, other = here.add("", "c1", session="same"), there.add("", "c2", session="same")
    emulate = cluster.first.control.emulate
    node = cluster.second.incarnation
    assert cluster.outcome(emulate(node, "same", b"\xff\x00")) is True
    assert (one.heard, other.heard) == ([], [b"\xff\x00"])
    assert cluster.outcome(emulate(node, "other", b"")) is False
    with pytest.raises(ShardUnknown):
        cluster.outcome(emulate("0" * 16, "same", b""))


def test_a_hub_that_is_away(cluster: Cluster) -> None:
    cluster.exchange.cut()
    with pytest.raises(HubUnavailable):
        cluster.outcome(cluster.first.control.ask_unsubscribe("ann", "room:1"))


def test_a_shard_that_could_not_do_its_part(cluster: Cluster) -> None:
    here, there = clients(cluster)
    one = here.add("ann", "c1")
    there.refuses = HubUnavailable("memory", "gone")
    with pytest.raises(ControlFailed) as caught:
        cluster.outcome(cluster.first.control.ask_subscribe("ann", "room:1"))
    assert str(caught.value) == "1 of 2 shards could not answer"
    assert one.channels == {"room:1"}, "the others have done theirs"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x02\x01",
        bytes([VERSION]),
        bytes([VERSION]) + b"\xa1x",
        bytes([VERSION]) + b"\x01\x01",
        b"\xff",
    ],
)
def test_answers_that_cannot_be_read(answer: bytes) -> None:
    class Answers:
        def ask(self, question: bytes, shard: str = "") -> Deferred[list[bytes]]:
            return succeed([bytes([VERSION]) + b"\x03", answer])

    asker = control.Control(Answers(), FakeClients())  # type: ignore[arg-type]
    failed: list[Any] = []
    asker.ask_unsubscribe("ann", "").addErrback(failed.append)
    assert failed[0].check(ControlFailed) and (failed[0].value.failed, failed[0].value.asked) == (1, 2)


@pytest.mark.parametrize(
    "question",
    [
        b"",
        b"\x02" + msgspec.msgpack.encode({"type": "Channels"}),
        bytes([VERSION]),
        bytes([VERSION]) + b"\xc1",
        bytes([VERSION]) + msgspec.msgpack.encode({"type": "Explode"}),
        bytes([VERSION]) + msgspec.msgpack.encode({"type": "Disconnect", "user": 5}),
        bytes([VERSION]) + msgspec.msgpack.encode([1]),
    ],
)
def test_what_is_no_question_fails(question: bytes) -> None:
    failed: list[Any] = []
    control.Control(None, FakeClients()).answer(question).addErrback(failed.append)  # type: ignore[arg-type]
    assert failed[0].check(ValueError)


def test_a_question_with_a_field_of_a_later_release_is_understood() -> None:
    answered: list[bytes] = []
    question = {"type": "Channels", "pattern": "", "later": [1, {}]}
    control.Control(None, FakeClients()).answer(  # type: ignore[arg-type]
        bytes([VERSION]) + msgspec.msgpack.encode(question)
    ).addCallback(answered.append)
    assert answered == [bytes([VERSION]) + msgspec.msgpack.encode({})]


def test_messages_go_to_a_user_to_a_client_and_to_all(cluster: Cluster) -> None:
    here, there = clients(cluster)
    one, other, stranger = here.add("ann", "c1"), there.add("ann", "c2"), there.add("bob", "c3")
    control = cluster.first.control
    assert cluster.outcome(control.send("ann", b"1")) == 2
    assert cluster.outcome(control.send("", b"2", client="c3")) == 1
    assert cluster.outcome(control.send("nobody", b"3")) == 0
    assert cluster.outcome(control.send_all(b"4")) == 3
    assert (one.heard, other.heard, stranger.heard) == ([b"1", b"4"], [b"1", b"4"], [b"2", b"4"])


def test_relays_reach_what_has_registered_for_them(cluster: Cluster) -> None:
    first, second = cluster.first, cluster.second
    later: Deferred[bytes] = Deferred()
    first.control.on("greet", lambda origin, body: b"first " + body)
    second.control.on("greet", lambda origin, body: later)
    asked = first.control.relay("greet", b"\x00ann")
    later.callback(b"second")
    assert sorted(cluster.outcome(asked)) == [b"first \x00ann", b"second"]
    second.control.on("greet", lambda origin, body: origin.encode())
    asked = first.control.relay("greet", b"", second.incarnation)
    assert cluster.outcome(asked) == [first.incarnation.encode()]


def test_a_relay_that_nothing_answers_fails(cluster: Cluster) -> None:
    with pytest.raises(ControlFailed):
        cluster.outcome(cluster.first.control.relay("unheard of", b""))
    cluster.first.control.on("huge", lambda origin, body: bytes(ANSWER_MAX_BYTES))
    with pytest.raises(ControlFailed):
        cluster.outcome(cluster.first.control.relay("huge", b"", cluster.first.incarnation))
    with pytest.raises(ShardUnknown):
        cluster.outcome(cluster.first.control.relay("greet", b"", "f" * 16))
