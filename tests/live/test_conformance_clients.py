"""What the protocol asks of a server, on the wire: presence and server-side subscriptions (items 8 and 9)."""

from __future__ import annotations

import time

import pytest

from tests.live.cluster import STRICT_SHARD, Cluster, token
from tests.live.processes import until
from tests.live.raw import Gone, Object, pb

pytestmark = pytest.mark.live


def now() -> int:
    return int(time.time())


# --- 8 --------------------------------------------------------------------------------------------------


def test_08_joins_leaves_and_presence(cluster: Cluster) -> None:
    channel = cluster.fresh("live:")
    with cluster.user("alice") as client:
        client.say({"id": 7, "subscribe": {"channel": channel}})
        me = {"user": "alice", "client": client.client}
        assert client.take() == {"id": 7, "subscribe": {}}
        assert client.take() == {"push": {"channel": channel, "join": {"info": me}}}, (
            "its own, after the reply"
        )
        with cluster.user("alice", 1) as second, cluster.protobuf(1) as third:
            second.ask("subscribe", channel=channel)
            assert second.push("join")["info"]["client"] == second.client
            joined = client.push("join", channel)["info"]
            assert joined == {"user": "alice", "client": second.client}
            third.ask(connect=pb.ConnectRequest(token=token("bob", info={"n": 1})))
            third.ask(subscribe=pb.SubscribeRequest(channel=channel))
            assert third.push("join", channel).info.conn_info == b'{"n":1}'
            assert client.push("join", channel)["info"]["conn_info"] == {"n": 1}
            present = client.ask("presence", channel=channel)["presence"]["presence"]
            assert len(present) == 3 and present[client.client] == me
            assert second.ask("presence_stats", channel=channel) == {
                "presence_stats": {"num_clients": 3, "num_users": 2}
            }
            second.ask("unsubscribe", channel=channel)
            assert client.push("leave", channel)["info"] == joined
            assert [each for each in second.silent() if "leave" in each["push"]] == [], "its own leave"
            third.cut()
            assert client.push("leave", channel)["info"]["user"] == "bob"
        until(lambda: cluster.present(channel) == (1, 1), 5, "one is left")
    until(lambda: cluster.present(channel) == (0, 0), 5, "nobody is left")


def test_08_joins_are_for_those_who_may_and_want(cluster: Cluster) -> None:
    channel = cluster.fresh("asked:")
    with cluster.user() as wants, cluster.user() as does_not, cluster.user(shard=1) as comes:
        wants.ask("subscribe", channel=channel, join_leave=True)
        does_not.ask("subscribe", channel=channel)
        comes.ask("subscribe", channel=channel)
        seen = {wants.push("join", channel)["info"]["client"] for _ in range(3)}
        assert seen == {each.client for each in (wants, does_not, comes)}
        assert does_not.silent() == comes.silent() == []


def test_08_storms_leave_no_ghosts(cluster: Cluster) -> None:
    for ends_subscribed in (False, True):
        channel = cluster.fresh("live:")
        with cluster.user() as client:
            pairs: list[Object] = []
            for number in range(10, 20):
                pairs.append({"id": number, "subscribe": {"channel": channel}})
                pairs.append({"id": number + 100, "unsubscribe": {"channel": channel}})
            if ends_subscribed:
                pairs.append({"id": 999, "subscribe": {"channel": channel}})
            client.say(*pairs)
            for each in pairs:
                reply = client.reply(each["id"])
                assert "subscribe" in reply or "unsubscribe" in reply, reply
            until(lambda: cluster.present(channel) == (ends_subscribed, ends_subscribed), 5, "presence")  # noqa: B023
            client.ask("publish", channel=channel, data="end")
            if ends_subscribed:
                assert client.heard(channel, 1) == ["end"]
            else:
                assert not [each for each in client.silent() if "pub" in each.get("push", {})]
        until(lambda: cluster.present(channel) == (0, 0), 5, "nobody is left")  # noqa: B023


def test_08_gone_while_it_subscribes(cluster: Cluster) -> None:
    channels = [cluster.fresh("live:") for _ in range(20)]
    for number, channel in enumerate(channels):
        client = cluster.json(number % 2)
        client.say({"id": 1, "connect": {"token": token("u")}}, {"id": 2, "subscribe": {"channel": channel}})
        if number % 3:
            client.take()
        client.cut()
        client.close()
    for channel in channels:
        until(lambda: cluster.present(channel) == (0, 0), 5, f"nobody in {channel}")  # noqa: B023


def test_08_presence_outlives_no_shard(frail: Cluster) -> None:
    channel = "live:a"
    with frail.user("alice", 0) as client, frail.user("bob", 1) as other:
        client.ask("subscribe", channel=channel)
        other.ask("subscribe", channel=channel)
        frail.nodes[0].process.kill()
        frail.nodes[0].process.wait()
        # There is nobody to renew it, and it expires: within the 60 s that an entry lives.
        assert frail.api("presence_stats", 1, channel=channel) == {"num_clients": 2, "num_users": 2}
        expiry = frail.hub.command("ZSCORE", f"spread:presence_expiry:{{{channel}}}", client.client)
        left = float(expiry) / 1000 - time.time()
        assert 40 < left <= 60.5
        # The hub drops what has expired by itself.
        frail.hub.command("ZADD", f"spread:presence_expiry:{{{channel}}}", 1, client.client)
        assert frail.api("presence_stats", 1, channel=channel) == {"num_clients": 1, "num_users": 1}
        keys = [f"spread:{name}:{{{channel}}}" for name in ("presence", "presence_expiry", "presence_users")]
        assert all(0 < frail.hub.command("PTTL", key) <= 60_500 for key in keys)


def test_08_presence_is_renewed(cluster: Cluster) -> None:
    channel = cluster.fresh("live:")
    # With pings of WebSocket, which the library answers by itself.
    with cluster.json(STRICT_SHARD, "?cf_ws_frame_ping_pong=true") as client:
        client.connected(token=token(cluster.fresh("u")))
        client.ask("subscribe", channel=channel)
        key = f"spread:presence_expiry:{{{channel}}}"
        before = float(cluster.hub.command("ZSCORE", key, client.client))
        until(lambda: float(cluster.hub.command("ZSCORE", key, client.client)) > before + 500, 5, "renewal")


# --- 9 --------------------------------------------------------------------------------------------------


def test_09_personal_channel(cluster: Cluster) -> None:
    user = cluster.fresh("u")
    channel = f"kept:#{user}"
    with cluster.json(STRICT_SHARD) as client:
        result = client.connected(token=token(user))
        sub = result["subs"][channel]
        assert list(result["subs"]) == [channel] and sub["recoverable"] and sub["positioned"]
        assert isinstance(result["time"], int)
        cluster.published(channel, "for you")
        assert client.push("pub", channel)["data"] == "for you"
        assert client.ask("subscribe", channel=channel)["error"] == {
            "code": 105,
            "message": "already subscribed",
        }
    cluster.published(channel, "missed", "too")
    with cluster.json(STRICT_SHARD) as client:
        known = {channel: {"recover": True, "epoch": sub["epoch"], "offset": 1}}
        found = client.connected(token=token(user), subs=known)["subs"][channel]
        assert found["recovered"] is True and found["was_recovering"] is True
        assert [each["data"] for each in found["publications"]] == ["missed", "too"]


def test_09_channels_of_a_token(cluster: Cluster) -> None:
    plain, closed = cluster.fresh("room"), cluster.fresh("closed:")
    subs = {
        closed: {
            "info": {"role": "host"},
            "data": {"map": 7},
            "override": {"force_recovery": {"value": True}, "force_push_join_leave": {"value": True}},
        }
    }
    with cluster.json() as client:
        found = client.connected(token=token("alice", subs=subs))["subs"]
        assert list(found) == [closed]
        epoch = found[closed]["epoch"]
        assert found[closed] == {
            "recoverable": True,
            "positioned": True,
            "epoch": epoch,
            "data": {"map": 7},
        }
        me = {"user": "alice", "client": client.client, "chan_info": {"role": "host"}}
        assert client.push("join", closed)["info"] == me
        cluster.published(closed, 1)
        assert client.heard(closed, 1) == [1]
        assert cluster.api("presence", 1, channel=closed)["presence"] == {client.client: me}
    cluster.published(closed, 2)
    with cluster.json(1) as client:
        known = {
            closed: {"recover": True, "epoch": epoch, "offset": 1},
            "dialog:not#mine": {},  # it may not, so this is passed over
            plain: {"recover": True, "epoch": "x", "offset": 5},  # it may, by itself
        }
        found = client.connected(token=token("alice", subs=subs), subs=known)["subs"]
        assert set(found) == {plain, closed} and found[plain] == {}
        assert [each["data"] for each in found[closed]["publications"]] == [2]
        assert found[closed]["recovered"] is True
    with cluster.json() as client:
        assert client.connected(token=token("alice", channels=[plain]))["subs"] == {plain: {}}
        cluster.published(plain, "p")
        assert client.heard(plain, 1) == ["p"]
        assert client.ask("unsubscribe", channel=plain) == {"unsubscribe": {}}
        assert client.ask("subscribe", channel=plain) == {"subscribe": {}}


def test_09_the_api_subscribes_and_unsubscribes_across_shards(cluster: Cluster) -> None:
    user, channel, plain = cluster.fresh("u"), cluster.fresh("closed:"), cluster.fresh("room")
    cluster.published(channel, 1, 2)
    with cluster.user(user, 0) as client, cluster.user(user, 1) as other:
        place = {"offset": 1, "epoch": ""}
        given = {"data": {"map": 7}, "info": {"n": 1}, "recover_since": place}
        override = {"force_recovery": {"value": True}}
        fields = {"user": user, "channel": channel, "override": override, **given}
        assert cluster.api("subscribe", 1, **fields) == {}
        for each in (client, other):
            push = each.push("subscribe", channel)
            epoch = push["epoch"]
            assert push["recoverable"] and push["positioned"] and push["data"] == {"map": 7}
            assert each.push("pub", channel) == {"data": 2, "offset": 2}
        cluster.published(channel, 3)
        for each in (client, other):
            assert each.push("pub", channel) == {"data": 3, "offset": 3}
        assert epoch
        present = cluster.api("presence", channel=channel)["presence"]
        assert {info["chan_info"]["n"] for info in present.values()} == {1} and len(present) == 2
        # One connection alone.
        assert cluster.api("subscribe", 0, user=user, channel=plain, client=other.client) == {}
        assert other.push("subscribe", plain) == {}
        assert cluster.api("unsubscribe", 0, user=user, channel=channel, client=other.client) == {}
        assert other.push("unsubscribe", channel) == {"code": 2000, "reason": "server unsubscribe"}
        assert client.silent() == []
        assert cluster.api("unsubscribe", 1, user=user, channel=channel) == {}
        assert client.push("unsubscribe", channel) == {"code": 2000, "reason": "server unsubscribe"}
        # A subscription that the client has made ends in the same way.
        client.ask("subscribe", channel=plain)
        assert cluster.api("unsubscribe", 1, user=user, channel="") == {}
        for each in (client, other):
            assert each.push("unsubscribe", plain) == {"code": 2000, "reason": "server unsubscribe"}
        until(lambda: cluster.present(channel) == (0, 0), 5, "nobody is left")


def test_09_the_api_disconnects_across_shards(cluster: Cluster) -> None:
    user = cluster.fresh("u")
    with cluster.user(user, 0) as client, cluster.user(user, 1) as other, cluster.user(user, 1) as third:
        assert cluster.api("disconnect", 0, user=user, client=third.client) == {}
        assert third.ended() == (3503, "force disconnect")
        assert cluster.api("disconnect", 1, user=user, whitelist=[other.client]) == {}
        assert client.ended() == (3503, "force disconnect")
        assert other.silent() == []
        # Below 3500 the SDK comes back, above it does not: the backend's own codes, too.
        assert cluster.api("disconnect", 0, user=user, disconnect={"code": 4501, "reason": "banned"}) == {}
        assert other.ended() == (4501, "banned")


def test_09_the_api_refreshes_across_shards(cluster: Cluster) -> None:
    user, channel = cluster.fresh("u"), cluster.fresh("live:")
    with cluster.user(user, 0, exp=now() + 60) as client, cluster.user(user, 1) as other:
        assert cluster.api("refresh", 1, user=user, expire_at=now() + 100, info={"level": 2}) == {}
        for each in (client, other):
            push = each.push("refresh")
            assert push["expires"] is True and 98 <= push["ttl"] <= 100
        client.ask("subscribe", channel=channel)
        assert client.push("join", channel)["info"]["conn_info"] == {"level": 2}
        assert cluster.api("refresh", 0, user=user, client=other.client, expired=True) == {}
        assert other.ended() == (3005, "connection expired")
        assert cluster.api("refresh", 1, user=user) == {}
        assert client.push("refresh") == {}


def test_09_an_expired_server_side_subscription_ends_the_connection(cluster: Cluster) -> None:
    user = cluster.fresh("u")
    with cluster.user(user, 1) as client:
        cluster.api("subscribe", user=user, channel=cluster.fresh("room"), expire_at=now() + 1)
        client.push("subscribe")
        with pytest.raises(Gone) as gone:
            while True:
                client.take()
        assert (gone.value.code, gone.value.reason) == (3006, "subscription expired")
