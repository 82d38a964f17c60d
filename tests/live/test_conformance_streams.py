"""What the protocol asks of a server, on the wire: tokens and streams (items 6 and 7)."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jwt
import pytest

from tests.live.cluster import SECRET, STRICT_SHARD, Cluster, token
from tests.live.raw import Object
from tests.node.minting import CURVE_KEYS, ED_KEY, OTHER_RSA_KEY, RSA_KEY, b64, hs256, public_pem

pytestmark = pytest.mark.live

EXPIRED = {"error": {"code": 109, "message": "token expired"}}
DENIED = {"error": {"code": 103, "message": "permission denied"}}
UNRECOVERABLE = {"error": {"code": 112, "message": "unrecoverable position"}}
INVALID = (3500, "invalid token")


def now() -> int:
    return int(time.time())


# --- 6 --------------------------------------------------------------------------------------------------


def test_06_keys_and_algorithms(cluster: Cluster) -> None:
    claims = {"sub": "u", "exp": now() + 100}
    good = [hs256(claims, SECRET, {"alg": f"HS{size}"}, f"sha{size}") for size in (256, 384, 512)]
    good += [jwt.encode(claims, RSA_KEY, algorithm="RS256", headers={"kid": "rsa"})]
    good += [jwt.encode(claims, key, algorithm=alg, headers={"kid": alg}) for alg, key in CURVE_KEYS.items()]
    good += [jwt.encode(claims, ED_KEY, algorithm="EdDSA", headers={"kid": "ed"})]
    for text in good:
        with cluster.json() as client:
            result = client.connected(token=text)
            assert result["expires"] is True and 98 <= result["ttl"] <= 100
    head, payload, signature = good[0].split(".")
    bad = [
        hs256(claims, "another secret"),
        hs256(claims, SECRET, {"alg": "HS512"}),
        hs256(claims, public_pem(RSA_KEY), {"alg": "HS256", "kid": "rsa"}),
        ".".join((b64('{"alg":"none"}'), payload, "")),
        ".".join((head, b64('{"sub":"admin"}'), signature)),
        f"{head}.{payload}",
        f"{head}.{payload}.",
        jwt.encode(claims, OTHER_RSA_KEY, algorithm="RS256", headers={"kid": "rsa"}),
        jwt.encode(claims, RSA_KEY, algorithm="RS256", headers={"kid": "nobody's"}),
        hs256({"sub": 17}, SECRET),
    ]
    for text in bad:
        with cluster.json() as client:
            client.say({"id": 1, "connect": {"token": text}})
            assert client.ended() == INVALID, text
            assert client.frames == []


def test_06_edges_of_time(cluster: Cluster) -> None:
    for claims, expected in (
        ({"exp": now()}, EXPIRED),
        ({"exp": now() - 1}, EXPIRED),
        ({"nbf": now() + 5}, EXPIRED),
        ({"nbf": now() + 5, "exp": now() - 5}, EXPIRED),
    ):
        with cluster.json() as client:
            client.say({"id": 1, "connect": {"token": token("u", **claims)}})
            assert client.reply(1) == expected
        with cluster.user("u") as client:
            assert client.ask("subscribe", channel="x", token=token("u", channel="x", **claims)) == expected
    lasting: list[tuple[Object, int | None]] = [
        ({"nbf": now()}, None),
        ({"exp": now() + 10}, 10),
        ({"exp": now() + 10.5, "nbf": now() - 0.5}, 10),
        ({"exp": now() + 50, "expire_at": now() + 500}, 500),
        ({"exp": now() + 50, "expire_at": 0}, None),
    ]
    for claims, ttl in lasting:
        with cluster.json() as client:
            result = client.connected(token=token("u", **claims))
            assert result.get("expires") is (True if ttl else None)
            assert result.get("ttl") in (range(ttl - 5, ttl + 1) if ttl else (None,))
            result = client.ask("subscribe", channel="x", token=token("u", channel="x", **claims))[
                "subscribe"
            ]
            assert result.get("expires") is (True if ttl else None)
            assert result.get("ttl") in (range(ttl - 5, ttl + 1) if ttl else (None,))


def test_06_subscription_tokens(cluster: Cluster) -> None:
    with cluster.user("alice") as client:
        mine = client.client
        for channel, claims, expected in (
            ("closed:a", {"channel": "closed:a"}, "ok"),
            ("$a", {"channel": "$a", "client": mine}, "ok"),
            ("dialog:a#bob", {"channel": "dialog:a#bob"}, "ok"),  # a token alone decides
            ("x", {}, DENIED),
            ("x", {"channel": ""}, DENIED),
        ):
            answer = client.ask("subscribe", channel=channel, token=token("alice", **claims))
            assert "subscribe" in answer if expected == "ok" else answer == expected, (channel, answer)
        for bad in ("x", hs256({"sub": "alice", "channel": "x"}, "another secret")):
            assert client.ask("subscribe", channel="x", token=bad) == DENIED
    for claims in ({"channel": "y"}, {"channel": "x", "sub": "bob"}, {"channel": "x", "client": "another"}):
        with cluster.user("alice") as client:
            client.say({"id": 2, "subscribe": {"channel": "x", "token": token("alice", **claims)}})
            assert client.ended() == INVALID


def test_06_claims_reach_others_as_they_are(cluster: Cluster) -> None:
    channel = cluster.fresh("closed:")
    info, chan_info, data = '{"z":1.0,"a":1e3}', '[1,{"k":"\\u00e9"}]', '{"pins":[0.10]}'
    connection = hs256(f'{{"sub":"alice","info":{info}}}', SECRET)
    subscription = hs256(f'{{"sub":"alice","channel":"{channel}","info":{chan_info},"data":{data}}}', SECRET)
    with cluster.json() as client, cluster.user("bob", 1) as other:
        client.connected(token=connection)
        other.ask("subscribe", channel=channel, token=token("bob", channel=channel, b64info=b64_of(b"{}")))
        client.ask("subscribe", channel=channel, token=subscription)
        assert f'"data":{data}' in str(client.frames[-1])
        client.ask("publish", channel=channel, data=1)
        other.push("pub", channel)
        assert f'"conn_info":{info},"chan_info":{chan_info}' in str(other.frames[-1])
        client.ask("presence", channel=channel)
        assert f'"conn_info":{info},"chan_info":{chan_info}' in str(client.frames[-1])
        assert '"chan_info":{}' in str(client.frames[-1])


def b64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_06_overrides(cluster: Cluster) -> None:
    channel = cluster.fresh("closed:")

    def made(**flags: bool) -> str:
        override = {name: {"value": value} for name, value in flags.items()}
        return token("alice", channel=channel, override=override)

    for flags, result in (
        ({}, {}),
        ({"force_positioning": True}, {"positioned": True}),
        ({"force_recovery": True}, {"positioned": True, "recoverable": True}),
    ):
        with cluster.user("alice") as client:
            found = client.ask("subscribe", channel=channel, token=made(**flags))["subscribe"]
            assert {name: value for name, value in found.items() if name != "epoch"} == result
    with cluster.user("alice") as client:
        client.ask("subscribe", channel=channel, token=made(presence=False, force_push_join_leave=True))
        assert client.ask("presence", channel=channel) == {"presence": {"presence": {}}}
        assert client.push("join", channel)["info"]["client"] == client.client
    with cluster.user("alice") as client:
        client.ask("subscribe", channel=channel, token=made(join_leave=False, force_push_join_leave=True))
        assert client.silent() == []


def test_06_refresh(cluster: Cluster) -> None:
    with cluster.user("alice", exp=now() + 2) as client:
        later = token("alice", exp=now() + 100)
        result = client.ask("refresh", token=later)["refresh"]
        assert result["expires"] is True and 98 <= result["ttl"] <= 100
        for_ever = client.ask("refresh", token=token("alice"))["refresh"]
        assert "ttl" not in for_ever and "expires" not in for_ever
        sub = token("alice", channel="closed:a", exp=now() + 2)
        assert client.ask("subscribe", channel="closed:a", token=sub)["subscribe"]["expires"] is True
        again = token("alice", channel="closed:a", exp=now() + 100)
        answer = client.ask("sub_refresh", channel="closed:a", token=again)["sub_refresh"]
        assert answer["expires"] is True and 98 <= answer["ttl"] <= 100
        with pytest.raises(TimeoutError):
            client.take(2.5)


def test_06_what_is_not_refreshed_expires(cluster: Cluster) -> None:
    with cluster.user("alice", exp=now() + 2) as client, cluster.user("alice") as other:
        sub = token("alice", channel="closed:a", exp=now() + 2)
        other.ask("subscribe", channel="closed:a", token=sub)
        other.ask("subscribe", channel="x")
        assert client.ended() == (3005, "connection expired")
        assert other.push("unsubscribe", "closed:a") == {"code": 2501, "reason": "subscription expired"}
        assert other.ask("subscribe", channel="x")["error"]["code"] == 105


# --- 7 --------------------------------------------------------------------------------------------------


def without_data(result: Object) -> Object:
    """A result with the offsets of its publications alone."""
    return result | {"publications": [each["offset"] for each in result.get("publications", [])]}


def test_07_history(cluster: Cluster) -> None:
    channel = cluster.fresh("kept:")
    top = cluster.published(channel, *range(1, 8))
    epoch = top["epoch"]
    assert top["offset"] == 7
    cases: list[tuple[Object, list[int]]] = [
        ({}, []),
        ({"limit": 0}, []),
        ({"limit": 2}, [3, 4]),  # five are kept
        ({"limit": -1}, [3, 4, 5, 6, 7]),
        ({"limit": 2, "reverse": True}, [7, 6]),
        ({"limit": 2, "since": {"offset": 4, "epoch": epoch}}, [5, 6]),
        ({"limit": 9, "since": {"offset": 0, "epoch": ""}}, [3, 4, 5, 6, 7]),
        ({"limit": 9, "since": {"offset": 99, "epoch": epoch}}, []),
        ({"limit": 2, "reverse": True, "since": {"offset": 5, "epoch": epoch}}, [4, 3]),
        ({"limit": 9, "reverse": True, "since": {"offset": 3}}, []),
    ]
    with cluster.user(shard=1) as client:
        for fields, offsets in cases:
            found = client.ask("history", channel=channel, **fields)["history"]
            assert without_data(found) == {"publications": offsets, "epoch": epoch, "offset": 7}, fields
            assert all(each["data"] == each["offset"] for each in found["publications"])


@pytest.mark.parametrize("shard", [0, 1])
def test_07_recovery(cluster: Cluster, shard: int) -> None:
    channel = cluster.fresh("kept:")
    with cluster.user() as client:
        start = client.ask("subscribe", channel=channel)["subscribe"]
        epoch = start["epoch"]
        assert start == {"recoverable": True, "positioned": True, "epoch": epoch}
        cluster.published(channel, "a", "b")
        assert client.push("pub", channel) == {"data": "a", "offset": 1, "epoch": epoch}
        assert client.push("pub", channel) == {"data": "b", "offset": 2}
    cluster.published(channel, *"cdefg")  # now five of seven are kept
    base = {"recoverable": True, "positioned": True, "epoch": epoch, "was_recovering": True}
    lost = base | {"offset": 7, "publications": []}
    cases: list[tuple[Object, Object]] = [
        (
            {"epoch": epoch, "offset": 2},
            base | {"offset": 2, "recovered": True, "publications": [3, 4, 5, 6, 7]},
        ),
        ({"epoch": epoch, "offset": 5}, base | {"offset": 5, "recovered": True, "publications": [6, 7]}),
        ({"epoch": "", "offset": 5}, base | {"offset": 5, "recovered": True, "publications": [6, 7]}),
        ({"epoch": epoch, "offset": 7}, base | {"offset": 7, "recovered": True, "publications": []}),
        ({"epoch": epoch, "offset": 1}, lost),
        ({"epoch": epoch, "offset": 8}, lost),
        ({"epoch": "another", "offset": 5}, lost),
        ({"epoch": "_"}, lost),
        ({}, lost),
    ]
    for place, expected in cases:
        with cluster.user(shard=shard) as client:
            refusing = client.ask("subscribe", channel=channel, recover=True, flag=3, **place)
            if expected is lost:
                assert refusing == UNRECOVERABLE, place
                assert client.ask("presence_stats", channel=channel)["presence_stats"]["num_clients"] == 0
                found = client.ask("subscribe", channel=channel, recover=True, flag=1, **place)["subscribe"]
            else:
                found = refusing["subscribe"]
            assert without_data(found) == expected, place
            assert ("recovered" in found) is (expected is not lost)
            published_data = [each["data"] for each in found.get("publications", [])]
            assert published_data == ["_abcdefg"[n] for n in expected["publications"]]


def test_07_all_that_there_is(cluster: Cluster) -> None:
    channel = cluster.fresh("kept:")
    epoch = cluster.published(channel, 1, 2)["epoch"]
    with cluster.user() as client:
        found = client.ask("subscribe", channel=channel, recover=True, epoch="", offset=0)["subscribe"]
        assert without_data(found) == {
            "recoverable": True,
            "positioned": True,
            "epoch": epoch,
            "was_recovering": True,
            "recovered": True,
            "publications": [1, 2],
        }


def test_07_not_too_much(cluster: Cluster) -> None:
    channel = cluster.fresh("long:")
    commands = [{"publish": {"channel": channel, "data": n}} for n in range(1, 302)]
    cluster.call("batch", commands=commands)
    with cluster.user() as client:
        epoch = client.ask("history", channel=channel)["history"]["epoch"]
        assert len(client.ask("history", channel=channel, limit=-1)["history"]["publications"]) == 300
        assert len(client.ask("history", channel=channel, limit=999)["history"]["publications"]) == 300
        found = client.ask("subscribe", channel=channel, recover=True, epoch=epoch, offset=0)["subscribe"]
        assert found["was_recovering"] and "recovered" not in found and found["offset"] == 301
        client.ask("unsubscribe", channel=channel)
        found = client.ask("subscribe", channel=channel, recover=True, epoch=epoch, offset=1)["subscribe"]
        assert found["recovered"] and len(found["publications"]) == 300 and found["offset"] == 1
    assert len(cluster.api("history", channel=channel, limit=-1)["publications"]) == 301


def test_07_the_newest_alone(cluster: Cluster) -> None:
    for name, asked in (("newest:", {"recover": True}), ("auto:", {})):
        channel = cluster.fresh(name)
        with cluster.user() as client:
            found = client.ask("subscribe", channel=channel, **asked)["subscribe"]
            assert "recovered" not in found and "publications" not in found
            assert found.get("was_recovering", False) is ("recover" in asked), "the client's own word"
        epoch = cluster.published(channel, "a", "b", "c")["epoch"]
        result = {
            "recoverable": True,
            "positioned": True,
            "epoch": epoch,
            "offset": 3,
        } | ({"was_recovering": True} if asked else {})
        for place, publications in (
            ({}, [3]),
            ({"epoch": epoch, "offset": 1}, [3]),
            ({"epoch": "another", "offset": 3}, [3]),
            ({"epoch": epoch, "offset": 3}, []),
        ):
            with cluster.user(shard=1) as client:
                found = client.ask("subscribe", channel=channel, **asked, **place)["subscribe"]
                assert without_data(found) == result | {"recovered": True, "publications": publications}


def test_07_what_clients_ask_for(cluster: Cluster) -> None:
    channel = cluster.fresh("asked:")
    epoch = cluster.published(channel, 1)["epoch"]
    place = {"epoch": epoch, "offset": 1}
    for asked, expected in (
        ({}, {}),
        ({"positioned": True}, {"positioned": True, **place}),
        ({"recoverable": True}, {"positioned": True, "recoverable": True, **place}),
    ):
        with cluster.user() as client:
            assert client.ask("subscribe", channel=channel, **asked)["subscribe"] == expected
            # Where it may not be asked for, it is not had.
            assert client.ask("subscribe", channel=cluster.fresh("r"), **asked)["subscribe"] == {}


@contextmanager
def publishing(cluster: Cluster, channel: str) -> Iterator[None]:
    """Publish 1, 2, 3 … almost without a pause, from both shards in turn."""
    over = threading.Event()

    def publish() -> None:
        number = 0
        while not over.is_set():
            number += 1
            cluster.api("publish", number % 2, channel=channel, data=number)
            over.wait(0.002)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_07_nothing_between_history_and_live(cluster: Cluster) -> None:
    channel = cluster.fresh("long:")
    epoch = cluster.api("history", channel=channel)["epoch"]
    seen: list[int] = []
    with publishing(cluster, channel):
        for turn in range(20):
            with cluster.user(shard=turn % 2) as client:
                place = {"epoch": epoch, "offset": len(seen)}
                client.say({"id": 7, "subscribe": {"channel": channel, "recover": True, **place}})
                first = client.take()  # no publication before it
                assert first["id"] == 7 and first["subscribe"]["recovered"] is True, first
                seen += [each["offset"] for each in first["subscribe"].get("publications", [])]
                seen += [client.push("pub", channel)["offset"] for _ in range(3)]
                assert seen == list(range(1, len(seen) + 1))


def test_07_a_hole_is_told(cluster: Cluster) -> None:
    kept, placed, asked = cluster.fresh("kept:"), cluster.fresh("placed:"), cluster.fresh("asked:")
    for channel in (kept, placed, asked):
        cluster.published(channel, 1, 2)
    with (
        cluster.user() as client,
        cluster.user(shard=1, channels=[kept]) as server_side,
        cluster.user() as plain,
    ):
        for channel in (kept, placed, asked):
            client.ask("subscribe", channel=channel)
        plain.ask("subscribe", channel=asked)
        for channel in (kept, placed, asked):
            # Behind the server's back the stream goes on, and what came meanwhile is not kept.
            cluster.hub.command("HSET", f"spread:meta:{{{channel}}}", "s", 20)
            cluster.hub.command("DEL", f"spread:stream:{{{channel}}}")
            cluster.published(channel, "later")
        for channel in (kept, placed):
            assert client.push("unsubscribe", channel) == {"code": 2500, "reason": "insufficient state"}
        assert server_side.ended() == (3010, "insufficient state")
        # Who does not follow positions goes on without a word.
        assert plain.push("pub", asked)["data"] == "later"
        found = client.ask("subscribe", channel=kept, recover=True, epoch="", offset=2)["subscribe"]
        assert "recovered" not in found and found["was_recovering"] and found["offset"] == 21
        cluster.published(kept, "live")
        assert client.push("pub", kept)["offset"] == 22


def test_07_another_epoch_is_told(cluster: Cluster) -> None:
    channel = cluster.fresh("kept:")
    cluster.published(channel, 1, 2)
    with cluster.user() as client:
        before = client.ask("subscribe", channel=channel)["subscribe"]
        cluster.hub.command("DEL", f"spread:meta:{{{channel}}}", f"spread:stream:{{{channel}}}")
        after = cluster.published(channel, "new")
        assert after["offset"] == 1 and after["epoch"] != before["epoch"]
        assert client.push("unsubscribe", channel) == {"code": 2500, "reason": "insufficient state"}
        place = {"epoch": before["epoch"], "offset": 2}
        found = client.ask("subscribe", channel=channel, recover=True, **place)["subscribe"]
        expected = {"recoverable": True, "positioned": True, "was_recovering": True, **after}
        assert found == expected


def test_07_a_position_is_checked_without_traffic(cluster: Cluster) -> None:
    channel = cluster.fresh("kept:")
    cluster.published(channel, 1)
    with cluster.json(STRICT_SHARD) as client:
        client.connected(token=token(cluster.fresh("u")))
        client.ask("subscribe", channel=channel)
        cluster.hub.command("DEL", f"spread:meta:{{{channel}}}", f"spread:stream:{{{channel}}}")
        assert client.push("unsubscribe", channel) == {"code": 2500, "reason": "insufficient state"}


def test_07_a_wiped_hub_is_told(frail: Cluster) -> None:
    before = frail.published("kept:a", 1)
    with frail.user() as client, frail.user(shard=1, channels=["kept:a"]) as other:
        client.ask("subscribe", channel="kept:a")
        frail.hub.command("FLUSHALL")
        frail.published("kept:a", 2)
        assert client.push("unsubscribe", "kept:a")["code"] == 2500
        assert other.ended() == (3010, "insufficient state")
        place = {"epoch": before["epoch"], "offset": 1}
        found = client.ask("subscribe", channel="kept:a", recover=True, **place)["subscribe"]
        assert found["was_recovering"] and "recovered" not in found and found["epoch"] != before["epoch"]
        frail.published("kept:a", 3)
        assert client.push("pub", "kept:a") == {"data": 3, "offset": 2}
    frail.check_alive()
