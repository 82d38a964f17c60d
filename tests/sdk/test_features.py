"""What SDKs do, against two shards: each test runs over each transport and format.

``alice`` is on shard 0 and ``bob`` on shard 1, so that all they share goes through the hub.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.live.processes import until
from tests.sdk.conftest import Open
from tests.sdk.drivers import VARIANTS, Client, SdkError, Variant
from tests.sdk.shards import Shards

pytestmark = pytest.mark.live

PAYLOADS: list[Any] = [
    {"text": "hi", "n": 1, "nested": {"list": [1, 2.5, -3e40, None, True, {}]}},
    'Привет, мир 🎲\u2028 <script> \\ " \x7f',
    "two\nlines\r\nand a tab\t",
    ["欢迎来到", [], [[]]],
    7,
    "",
    0,
    False,
    9007199254740991,
    {"": ""},
    "x" * 20_000,
]

Pair = tuple[Client, Client]

# For what the SDK for Python has no option for, or does not look at.
with_js = pytest.mark.parametrize("variant", [each for each in VARIANTS if each.sdk == "js"], ids=str)


@pytest.fixture
def pair(open_client: Open, variant: Variant) -> Pair:
    """Two users who do not share a shard."""
    return open_client(variant, 0, wait=False), open_client(variant, 1, wait=False)


@pytest.fixture
def alice(pair: Pair) -> Client:
    pair[0].connected()
    return pair[0]


@pytest.fixture
def bob(pair: Pair) -> Client:
    pair[1].connected()
    return pair[1]


@pytest.fixture
def room(shards: Shards) -> str:
    """A channel with everything on."""
    return shards.fresh("room")


def test_publications_reach_both_shards_as_they_are(alice: Client, bob: Client, room: str) -> None:
    for client in (alice, bob):
        assert client.subscribe(room)["recoverable"]
    for number, payload in enumerate(PAYLOADS):
        (alice, bob)[number % 2].publish(room, payload)
    for client in (alice, bob):
        publications = client.publications(room, len(PAYLOADS))
        assert [publication["data"] for publication in publications] == PAYLOADS
        assert [publication["offset"] for publication in publications] == [
            number + 1 for number in range(len(PAYLOADS))
        ]
        for number, publication in enumerate(publications):
            sender = (alice, bob)[number % 2]
            assert publication["info"]["user"] == sender.user
            assert publication["info"]["client"] == sender.id


def test_order_is_the_same_for_all(alice: Client, bob: Client, shards: Shards, variant: Variant) -> None:
    channel = shards.fresh("plain:room")
    for client in (alice, bob):
        assert not client.subscribe(channel)["recoverable"]
    sent = [
        client.begin("publish", channel=channel, data=f"{client.who} {number}")
        for number in range(100)
        for client in (alice, bob)
    ]
    assert len(sent) == 200
    heard = [client.heard(channel, 200) for client in (alice, bob)]
    assert heard[0] == heard[1]
    for client in (alice, bob):
        mine = [data for data in heard[0] if data.startswith(f"{client.who} ")]
        said = [f"{client.who} {number}" for number in range(100)]
        assert mine == said if variant.keeps_order else sorted(mine) == sorted(said)
    for number, client in zip(sent, [alice, bob] * 100, strict=True):
        client.result(number)


def test_the_api_publishes_without_info(alice: Client, bob: Client, room: str, shards: Shards) -> None:
    for client in (alice, bob):
        client.subscribe(room)
    result = shards.api("publish", 1, channel=room, data={"from": "backend"}, tags={"level": "7"})
    for client in (alice, bob):
        publication = client.wait("publication")
        assert publication["data"] == {"from": "backend"}
        assert publication["info"] is None
        assert publication["tags"] == {"level": "7"}
        assert publication["offset"] == result["offset"] == 1


def test_presence(open_client: Open, variant: Variant, room: str) -> None:
    alice = open_client(variant, 0, claims={"info": {"name": "Алиса"}})
    bob = open_client(variant, 1, user=alice.user)
    for client in (alice, bob):
        client.subscribe(room)
    info = {"user": alice.user, "conn_info": None, "chan_info": None}
    everybody = {
        alice.id: info | {"client": alice.id, "conn_info": {"name": "Алиса"}},
        bob.id: info | {"client": bob.id},
    }
    for client in (alice, bob):
        assert client.presence(room) == everybody
        assert client.call("presence_stats", channel=room) == {"num_clients": 2, "num_users": 1}
    alice.unsubscribe(room)
    until(lambda: list(bob.presence(room)) == [bob.id], 5, "alice gone after unsubscribe")
    bob.call("disconnect")
    until(lambda: alice.presence(room) == {}, 5, "bob gone after disconnect")
    stats = alice.call("presence_stats", channel=room)
    assert stats == {"num_clients": 0, "num_users": 0}


def test_joins_and_leaves(alice: Client, bob: Client, room: str) -> None:
    alice.subscribe(room)
    assert alice.wait("join", channel=room)["info"]["client"] == alice.id  # its own
    bob.subscribe(room)
    for client in (alice, bob):
        info = client.wait("join", channel=room)["info"]
        assert (info["client"], info["user"]) == (bob.id, bob.user)
    bob.unsubscribe(room)
    assert alice.wait("leave", channel=room)["info"]["client"] == bob.id
    bob.call("subscribe", channel=room)
    assert alice.wait("join", channel=room)["info"]["client"] == bob.id
    bob.call("disconnect")
    assert alice.wait("leave", channel=room)["info"]["client"] == bob.id
    assert not bob.pending("leave")


def test_history(alice: Client, bob: Client, room: str) -> None:
    alice.subscribe(room)
    for number in range(1, 7):
        alice.publish(room, {"n": number})
    top = bob.history(room)
    assert top["publications"] == [] and top["offset"] == 6 and top["epoch"]

    def offsets(**options: Any) -> list[int]:
        found = bob.history(room, **options)
        assert (found["offset"], found["epoch"]) == (6, top["epoch"])
        for publication in found["publications"]:
            assert publication["data"] == {"n": publication["offset"]}
            assert publication["info"]["client"] == alice.id
        return [publication["offset"] for publication in found["publications"]]

    def since(offset: int) -> dict[str, Any]:
        return {"offset": offset, "epoch": top["epoch"]}

    assert offsets(limit=-1) == [1, 2, 3, 4, 5, 6]
    assert offsets(limit=2) == [1, 2]
    assert offsets(limit=2, reverse=True) == [6, 5]
    assert offsets(limit=-1, since=since(4)) == [5, 6]
    assert offsets(limit=1, since=since(2)) == [3]
    assert offsets(limit=2, since=since(4), reverse=True) == [3, 2]
    assert offsets(limit=9, since=since(6)) == []
    with pytest.raises(SdkError) as caught:
        bob.history(room, limit=1, since={"offset": 1, "epoch": "other"})
    assert caught.value.code == 112


def test_what_was_missed_is_recovered(alice: Client, bob: Client, room: str) -> None:
    alice.subscribe(room)
    first = bob.subscribe(room)
    alice.publish(room, "heard")
    assert bob.heard(room, 1) == ["heard"]
    bob.call("disconnect")
    bob.wait("disconnected")
    for number in range(50):
        alice.publish(room, number)
    bob.call("connect")
    bob.connected()
    again = bob.wait("subscribed", channel=room)
    assert again["was_recovering"] and again["recovered"]
    assert again["position"]["epoch"] == first["position"]["epoch"]
    alice.publish(room, "live")
    publications = bob.publications(room, 51)
    assert [publication["data"] for publication in publications] == [*range(50), "live"]
    assert [publication["offset"] for publication in publications] == list(range(2, 53))
    assert not bob.pending("publication")


def test_a_forced_reconnect_loses_nothing(
    alice: Client, bob: Client, room: str, shards: Shards, variant: Variant
) -> None:
    for client in (alice, bob):
        client.subscribe(room)
    sent = []
    for number in range(60):
        sent.append(alice.begin("publish", channel=room, data=number))
        if number in (10, 30, 50):
            shards.api("disconnect", 0, user=bob.user, disconnect={"code": 4_000, "reason": "come again"})
            assert bob.wait("connecting", code=4_000)["reason"] == "come again"
        if number in (29, 49, 59):
            bob.connected()
    for number in sent:
        alice.result(number)
    bob.publish(room, "still there")
    heard = [client.publications(room, 61) for client in (alice, bob)]
    for publications in heard:
        assert [publication["offset"] for publication in publications] == list(range(1, 62))
    told = [[publication["data"] for publication in publications] for publications in heard]
    assert told[0] == told[1]
    assert told[0][-1] == "still there"
    assert (told[0] if variant.keeps_order else sorted(told[0][:-1]))[:60] == list(range(60))


def test_what_is_forgotten_is_not_recovered(bob: Client, shards: Shards) -> None:
    channel = shards.fresh("short:room")
    bob.subscribe(channel)
    bob.call("disconnect")
    for number in range(10):
        shards.api("publish", channel=channel, data=number)
    bob.call("connect")
    again = bob.wait("subscribed", channel=channel)
    assert again["was_recovering"] and not again["recovered"]
    assert again["position"]["offset"] == 10
    shards.api("publish", channel=channel, data="live")
    assert bob.heard(channel, 1) == ["live"]


def test_state_is_loaded_again_where_recovery_fails(bob: Client, shards: Shards) -> None:
    channel = shards.fresh("short:room")
    for number in range(5):
        epoch = shards.api("publish", channel=channel, data=number)["epoch"]
    states = [{"offset": 4, "epoch": "another"}, {"offset": 4, "epoch": epoch}]
    bob.subscribe(channel, states=states)
    assert len(bob.pending("get_state")) == 2  # error 112 in between
    assert bob.heard(channel, 1) == [4]


@with_js
def test_what_is_there_is_taken_with_an_empty_position(
    open_client: Open, variant: Variant, shards: Shards
) -> None:
    channel = shards.fresh("short:room")
    for number in range(3):
        shards.api("publish", channel=channel, data=number)
    client = open_client(variant, 0)
    assert client.subscribe(channel, since={"offset": 0, "epoch": ""})["recovered"]
    assert client.heard(channel, 3) == [0, 1, 2]


def test_options_a_client_asks_for(alice: Client, bob: Client, shards: Shards) -> None:
    channel = shards.fresh("asked:room")
    plain = alice.subscribe(channel)
    assert not plain["recoverable"] and not plain["positioned"]
    asked = bob.subscribe(channel, recoverable=True, positioned=True, join_leave=True)
    assert asked["recoverable"] and asked["positioned"]
    assert bob.wait("join")["info"]["client"] == bob.id
    alice.unsubscribe(channel)
    assert bob.wait("leave")["info"]["client"] == alice.id
    assert not alice.pending("join")


def test_errors(alice: Client, shards: Shards, room: str) -> None:
    plain = shards.fresh("plain:room")
    for code, do, arguments in (
        (108, "rpc", {"method": "sum", "data": [1, 2]}),
        (102, "publish", {"channel": "nowhere:room", "data": 1}),
        (103, "publish", {"channel": shards.fresh("closed:room"), "data": 1}),
        (108, "history", {"channel": plain, "limit": 1}),
        (108, "presence", {"channel": plain}),
        (108, "presence_stats", {"channel": plain}),
        (103, "presence", {"channel": shards.fresh("closed:room")}),
    ):
        with pytest.raises(SdkError) as caught:
            alice.call(do, **arguments)
        assert caught.value.code == code, (do, arguments)
    for code, channel in (
        (102, "nowhere:room"),
        (103, shards.fresh("closed:room")),
        (103, "$private"),
        (107, "комната"),
        (107, "x" * 256),
    ):
        alice.call("subscribe", channel=channel)
        assert alice.wait("unsubscribed", channel=channel)["code"] == code
    alice.subscribe(room)  # it is none the worse for it
    alice.publish(room, 1)
    assert alice.heard(room, 1) == [1]


@with_js
def test_a_message_to_nobody(open_client: Open, variant: Variant) -> None:
    """There is nothing here that would take it."""
    alice = open_client(variant, 0)
    alice.call("send", data={"to": "the backend"})
    assert alice.wait("disconnected")["code"] == 3_508


def test_channels_of_the_token(open_client: Open, variant: Variant, shards: Shards, room: str) -> None:
    alice = open_client(variant, 0, claims={"channels": [room]})
    bob = open_client(variant, 1, claims={"channels": [room]})
    for client in (alice, bob):
        found = client.wait("server_subscribed", channel=room)
        assert found["recoverable"] and found["position"]["epoch"]
    assert set(alice.presence(room)) == {alice.id, bob.id}
    assert alice.wait("server_join", channel=room)["info"]["client"] in (alice.id, bob.id)
    bob.publish(room, "to all")
    for client in (alice, bob):
        assert client.publications(room, 1, "server_publication")[0]["data"] == "to all"
    alice.call("disconnect")
    bob.wait("server_leave", channel=room)
    for number in range(5):
        bob.publish(room, number)
    alice.call("connect")
    alice.connected()
    assert alice.wait("server_subscribed", channel=room)["recovered"]
    missed = alice.publications(room, 5, "server_publication")
    assert [publication["data"] for publication in missed] == list(range(5))
    alice.call("subscribe", channel=room)
    assert alice.wait("unsubscribed", channel=room)["code"] == 105


def test_the_personal_channel(alice: Client, bob: Client, shards: Shards) -> None:
    for client in (alice, bob):
        own = f"#{client.user}"
        client.wait("server_subscribed", channel=own)
        shards.api("publish", 0, channel=own, data=f"for {client.user}")
        found = client.wait("server_publication", channel=own)
        assert found["data"] == f"for {client.user}"
    for client in (alice, bob):
        assert not client.pending("server_publication")


def test_the_api_ends_connections(alice: Client, bob: Client, room: str, shards: Shards) -> None:
    for client in (alice, bob):
        client.subscribe(room)
    shards.api("disconnect", 0, user=bob.user)  # who is on the other shard
    ended = bob.wait("disconnected")
    assert (ended["code"], ended["reason"]) == (3_503, "force disconnect")
    until(lambda: list(alice.presence(room)) == [alice.id], 5, "bob gone")
    shards.api("disconnect", 1, user=alice.user, disconnect={"code": 4_500, "reason": "banned"})
    ended = alice.wait("disconnected")
    assert (ended["code"], ended["reason"]) == (4_500, "banned")


def test_the_api_ends_subscriptions(alice: Client, bob: Client, shards: Shards) -> None:
    room = shards.fresh("asked:room")  # where nothing is recovered
    for client in (alice, bob):
        client.subscribe(room)
    shards.api("unsubscribe", 1, user=alice.user, channel=room)
    shards.api("unsubscribe", 1, user=bob.user, channel=shards.fresh("another"))
    assert alice.wait("unsubscribed", channel=room)["code"] == 2_000
    until(lambda: list(bob.presence(room)) == [bob.id], 5, "alice gone")
    bob.publish(room, 1)
    assert bob.heard(room, 1) == [1]
    alice.subscribe(room)
    bob.publish(room, 2)
    assert alice.heard(room, 1) == [2]


@with_js
def test_the_api_subscribes(open_client: Open, variant: Variant, room: str, shards: Shards) -> None:
    alice = open_client(variant, 0)
    shards.api("subscribe", 1, user=alice.user, channel=room)
    assert alice.wait("server_subscribed", channel=room)["recoverable"]
    shards.api("publish", 1, channel=room, data="now")
    assert alice.wait("server_publication", channel=room)["data"] == "now"
    assert list(alice.presence(room)) == [alice.id]
    shards.api("unsubscribe", 1, user=alice.user, channel=room)
    alice.wait("server_unsubscribed", channel=room)
    until(lambda: not alice.presence(room), 5, "alice gone")


@pytest.mark.parametrize("stays", [False, True])
def test_a_storm_of_subscribes_leaves_no_ghost(
    alice: Client, bob: Client, shards: Shards, stays: bool
) -> None:
    rooms = [shards.fresh("room") for _ in range(5)]
    for room in rooms:
        alice.call("storm", channel=room, pairs=10, stay=stays)
    for room in rooms:
        if stays:
            # What is published while the storm is on may come between two subscriptions.
            until(lambda room=room: is_heard(alice, shards, room), 10, "alice hears")
            assert list(bob.presence(room)) == [alice.id]
        else:
            until(lambda room=room: bob.presence(room) == {}, 10, "nobody is there")
    alice.call("disconnect")
    for room in rooms:
        until(lambda room=room: bob.presence(room) == {}, 10, "nobody is there any more")


def is_heard(client: Client, shards: Shards, channel: str) -> bool:
    shards.api("publish", 1, channel=channel, data="?")
    return bool(client.pending("publication", channel=channel))


def test_a_storm_of_connects_leaves_no_ghost(alice: Client, bob: Client, room: str) -> None:
    alice.subscribe(room)
    for _ in range(5):
        alice.call("disconnect")
        alice.call("connect")
    until(lambda: len(bob.presence(room)) == 1, 10, "one alice")
    alice.call("disconnect")
    until(lambda: bob.presence(room) == {}, 10, "nobody is there")


def test_sdks_formats_and_transports_hear_each_other(open_client: Open, shards: Shards, room: str) -> None:
    everybody = [open_client(each, number % 2) for number, each in enumerate(VARIANTS)]
    for client in everybody:
        client.subscribe(room)
    for number, client in enumerate(everybody):
        client.publish(room, {"from": number, "text": "Привет 🎲"})
    for client in everybody:
        publications = client.publications(room, len(everybody))
        assert [publication["data"]["from"] for publication in publications] == list(range(len(everybody)))
        assert {publication["data"]["text"] for publication in publications} == {"Привет 🎲"}
        assert [each["info"]["client"] for each in publications] == [other.id for other in everybody]
    assert set(everybody[0].presence(room)) == {client.id for client in everybody}
