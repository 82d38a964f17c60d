"""The HTTP API, driven by ``cent``: each of its methods, asked of one shard about clients of the other."""

from __future__ import annotations

import time
from collections.abc import Iterator

import cent
import pytest
from cent import (
    BatchRequest,
    BoolValue,
    BroadcastRequest,
    CentApiResponseError,
    CentUnauthorizedError,
    ChannelOptionsOverride,
    ChannelsRequest,
    Disconnect,
    DisconnectRequest,
    HistoryRemoveRequest,
    HistoryRequest,
    InfoRequest,
    PresenceRequest,
    PresenceStatsRequest,
    PublishRequest,
    RefreshRequest,
    StreamPosition,
    SubscribeRequest,
    UnsubscribeRequest,
)

from tests.live.processes import until
from tests.sdk.conftest import Open
from tests.sdk.drivers import Client, Variant
from tests.sdk.shards import API_KEY, ApiError, Shards

pytestmark = pytest.mark.live


@pytest.fixture
def api(shards: Shards) -> Iterator[cent.Client]:
    """Of shard 0."""
    with cent.Client(f"{shards.url(0)}/api", API_KEY) as client:
        yield client


@pytest.fixture
def bob(open_client: Open) -> Client:
    """On shard 1, with the SDK for Python."""
    return open_client(Variant("python"), 1)


def test_publish_and_history(api: cent.Client, bob: Client, shards: Shards) -> None:
    room = shards.fresh("room")
    bob.subscribe(room)
    first = api.publish(PublishRequest(channel=room, data={"n": 1}))
    assert first.offset == 1 and first.epoch
    again = PublishRequest(channel=room, data={"n": 2}, idempotency_key="two", tags={"a": "b"})
    assert api.publish(again) == api.publish(again)
    api.publish(PublishRequest(channel=room, data={"n": 0}, skip_history=True))
    assert bob.heard(room, 3) == [{"n": 1}, {"n": 2}, {"n": 0}]
    found = api.history(HistoryRequest(channel=room, limit=10))
    assert [publication.data for publication in found.publications] == [{"n": 1}, {"n": 2}]
    assert (found.offset, found.epoch) == (2, first.epoch)
    assert found.publications[1].tags == {"a": "b"}
    since = StreamPosition(offset=2, epoch=first.epoch)
    found = api.history(HistoryRequest(channel=room, limit=1, since=since, reverse=True))
    assert [publication.offset for publication in found.publications] == [1]
    api.history_remove(HistoryRemoveRequest(channel=room))
    assert api.history(HistoryRequest(channel=room, limit=10)).publications == []


def test_broadcast(api: cent.Client, bob: Client, shards: Shards) -> None:
    rooms = [shards.fresh("room") for _ in range(3)]
    for room in rooms:
        bob.subscribe(room)
    found = api.broadcast(BroadcastRequest(channels=[rooms[0], "nowhere:room", *rooms[1:]], data="to all"))
    assert [response.result is not None for response in found.responses] == [True, False, True, True]
    assert found.responses[1].error is not None and found.responses[1].error.code == 102
    for room in rooms:
        assert bob.heard(room, 1) == ["to all"]


def test_presence(api: cent.Client, bob: Client, shards: Shards) -> None:
    room = shards.fresh("room")
    assert api.presence(PresenceRequest(channel=room)).presence == {}
    bob.subscribe(room)
    found = api.presence(PresenceRequest(channel=room)).presence
    assert found[bob.id].user == bob.user and found[bob.id].client == bob.id
    stats = api.presence_stats(PresenceStatsRequest(channel=room))
    assert (stats.num_clients, stats.num_users) == (1, 1)


def test_subscribe_and_unsubscribe(api: cent.Client, open_client: Open, shards: Shards) -> None:
    room = shards.fresh("closed:room")
    bob = open_client(Variant("js"), 1)
    api.subscribe(
        SubscribeRequest(
            user=bob.user,
            channel=room,
            info={"by": "backend"},
            data={"map": 7},
            override=ChannelOptionsOverride(force_recovery=BoolValue(value=True)),
        )
    )
    found = bob.wait("server_subscribed", channel=room)
    assert found["recoverable"] and found["data"] == {"map": 7}
    presence = api.presence(PresenceRequest(channel=room)).presence
    assert presence[bob.id].chan_info == {"by": "backend"}
    api.unsubscribe(UnsubscribeRequest(user=bob.user, channel=room))
    bob.wait("server_unsubscribed", channel=room)
    until(lambda: not api.presence(PresenceRequest(channel=room)).presence, 5, "bob gone")


def test_disconnect(api: cent.Client, open_client: Open) -> None:
    python = Variant("python")
    one = open_client(python, 0)
    other, spared = (open_client(python, 1, user=one.user) for _ in range(2))
    api.disconnect(DisconnectRequest(user=one.user, whitelist=[spared.id]))
    for client in (one, other):
        assert client.wait("disconnected")["code"] == 3_503
    reason = Disconnect(code=4_777, reason="enough")
    api.disconnect(DisconnectRequest(user=one.user, client=other.id, disconnect=reason))
    assert not spared.pending("disconnected")
    api.disconnect(DisconnectRequest(user=one.user, client=spared.id, disconnect=reason))
    ended = spared.wait("disconnected")
    assert (ended["code"], ended["reason"]) == (4_777, "enough")


def test_refresh(api: cent.Client, open_client: Open, shards: Shards) -> None:
    python = Variant("python")
    room = shards.fresh("room")
    kept = open_client(python, 1)
    kept.subscribe(room)
    api.refresh(RefreshRequest(user=kept.user, expire_at=int(time.time()) + 3_600))
    kept.publish(room, 1)
    assert kept.heard(room, 1) == [1]
    gone = open_client(python, 1, token=shards.token("gone"))
    api.refresh(RefreshRequest(user="gone", expired=True))
    assert gone.wait("connecting", code=3_005)["reason"] == "connection expired"


def test_channels_and_info(api: cent.Client, open_client: Open, shards: Shards) -> None:
    rooms = [shards.fresh("listed-room") for _ in range(2)]
    for shard in (0, 1):
        client = open_client(Variant("python"), shard)
        for room in rooms[: shard + 1]:
            client.subscribe(room)
    found = api.channels(ChannelsRequest(pattern="listed-*")).channels
    assert {name: entry.num_clients for name, entry in found.items()} == {rooms[0]: 2, rooms[1]: 1}
    nodes = api.info(InfoRequest()).nodes
    assert len(nodes) == 2 and len({node.uid for node in nodes}) == 2
    # Shards tell of themselves every few seconds.
    until(lambda: sum(node.num_clients for node in api.info(InfoRequest()).nodes) >= 2, 15, "both counted")
    assert all(node.version and node.uptime >= 0 for node in nodes)


def test_batch(api: cent.Client, shards: Shards) -> None:
    room = shards.fresh("room")
    publish = [PublishRequest(channel=room, data=number) for number in range(3)]
    requests = [*publish, PresenceStatsRequest(channel=room), HistoryRequest(channel=room, limit=5)]
    replies = api.batch(BatchRequest(requests=requests)).replies
    assert [reply.offset for reply in replies[:3]] == [1, 2, 3]
    assert replies[3].num_clients == 0
    assert [publication.data for publication in replies[4].publications] == [0, 1, 2]


def test_errors(api: cent.Client, shards: Shards) -> None:
    for code, request in (
        (102, PublishRequest(channel="nowhere:room", data=1)),
        (107, PublishRequest(channel="", data=1)),
        (108, HistoryRequest(channel=shards.fresh("plain:room"))),
        (108, PresenceRequest(channel=shards.fresh("plain:room"))),
    ):
        with pytest.raises(CentApiResponseError) as caught:
            api._send(request)  # what its methods do, whatever the request
        assert caught.value.code == code
    with pytest.raises(ApiError) as error:
        shards.api("rpc", method="sum", params={})
    assert error.value.code == 104
    with (
        cent.Client(f"{shards.url(0)}/api", "wrong") as stranger,
        pytest.raises(CentUnauthorizedError),
    ):
        stranger.info(InfoRequest())
