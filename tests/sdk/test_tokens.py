"""Tokens that expire, while all SDKs hold them at the same time: most of these tests is waiting."""

from __future__ import annotations

import time

import pytest

from tests.sdk.conftest import Open
from tests.sdk.drivers import VARIANTS, Client, Variant
from tests.sdk.shards import Shards

pytestmark = pytest.mark.live

EXPIRED_CLOSE_SECONDS = 1.0
"""As configured."""


def test_an_expired_token_is_replaced(open_client: Open, variant: Variant, shards: Shards) -> None:
    user = shards.fresh("user")
    tokens = [shards.token(user, seconds=3_600)]
    client = open_client(variant, 0, user=user, token=shards.token(user, seconds=-10), tokens=tokens)
    assert len(client.pending("get_token")) == 1
    room = shards.fresh("room")
    client.subscribe(room)
    assert client.presence(room)[client.id]["user"] == user


def test_a_token_is_asked_for_where_there_is_none(
    open_client: Open, variant: Variant, shards: Shards
) -> None:
    user = shards.fresh("user")
    client = open_client(variant, 0, user=user, tokens=[shards.token(user)])
    assert len(client.pending("get_token")) == 1


@pytest.mark.parametrize("bad", ["forged", "nonsense", "none"])
def test_a_bad_token_is_final(open_client: Open, variant: Variant, shards: Shards, bad: str) -> None:
    token = {
        "forged": shards.token("mallory")[:-8] + "AAAAAAAA",
        "nonsense": "a.b.c",
        "none": "",
    }[bad]
    client = open_client(variant, 0, wait=False, token=token)
    assert client.wait("disconnected")["code"] == (3_501 if bad == "none" else 3_500)


def test_tokens_are_refreshed_in_time(open_client: Open, shards: Shards) -> None:
    """Connection and subscription, of every SDK: nobody is disconnected when the first token has expired."""
    clients: list[tuple[Client, str]] = []
    seconds = 2.5
    started = time.monotonic()
    for number, variant in enumerate(VARIANTS):
        user, room = shards.fresh("user"), shards.fresh("closed:room")
        client = open_client(
            variant,
            number % 2,
            user=user,
            token=shards.token(user, seconds=seconds),
            tokens=[shards.token(user, seconds=3_600)],
        )
        client.subscribe(
            room,
            token=shards.token(user, seconds=seconds, channel=room),
            tokens=[shards.token(user, seconds=3_600, channel=room)],
        )
        clients.append((client, room))
    assert time.monotonic() - started < seconds
    ids = [client.id for client, _ in clients]
    for client, room in clients:
        client.wait("get_token")
        client.wait("get_sub_token", channel=room)
    time.sleep(max(0.0, started + seconds + 2 * EXPIRED_CLOSE_SECONDS - time.monotonic()))
    for (client, room), id in zip(clients, ids, strict=True):
        shards.api("publish", channel=room, data="still")
        assert client.heard(room, 1) == ["still"]
        assert id in client.presence(room)
        assert len(client.pending("connecting")) == 1  # the first one
        assert not client.pending("disconnected")
        assert len(client.pending("subscribing", channel=room)) == 1


def test_who_does_not_refresh_is_let_go(open_client: Open, shards: Shards) -> None:
    clients = []
    for variant in VARIANTS:
        user = shards.fresh("user")
        clients.append(open_client(variant, 0, user=user, token=shards.token(user, seconds=1.5)))
    for client in clients:
        # Closed with 3005, or given up by the SDK itself, which has no way to get a token.
        until = time.monotonic() + 10
        while not (client.pending("disconnected") or client.pending("connecting", code=3_005)):
            assert time.monotonic() < until, client.who
            time.sleep(0.02)


def test_subscription_tokens(open_client: Open, variant: Variant, shards: Shards) -> None:
    room = shards.fresh("closed:room")
    alice, bob = open_client(variant, 0), open_client(variant, 1)
    info = {"role": "Ведущий"}
    subscribed = alice.subscribe(
        room,
        token=shards.token(
            alice.user,
            channel=room,
            client=alice.id,
            info=info,
            data={"map": 7},
            override={"force_recovery": {"value": True}},
        ),
    )
    assert subscribed["data"] == {"map": 7}
    assert subscribed["recoverable"]
    assert not bob.subscribe(room, token=shards.token(bob.user, channel=room))["recoverable"]
    found = bob.presence(room)
    assert found[alice.id]["chan_info"] == info
    assert found[bob.id]["chan_info"] is None
    private = shards.fresh("$room")
    bob.subscribe(private, token=shards.token(bob.user, channel=private))


def test_an_expired_subscription_token_is_replaced(
    open_client: Open, variant: Variant, shards: Shards
) -> None:
    client = open_client(variant, 0)
    room = shards.fresh("closed:room")
    expired = shards.token(client.user, seconds=-10, channel=room)
    client.subscribe(room, token=expired, tokens=[shards.token(client.user, channel=room)])
    assert len(client.pending("get_sub_token", channel=room)) == 1


def test_bad_subscription_tokens(open_client: Open, variant: Variant, shards: Shards) -> None:
    client = open_client(variant, 0)
    room = shards.fresh("closed:room")
    client.call("subscribe", channel=room, token=shards.token(client.user))
    assert client.wait("unsubscribed", channel=room)["code"] == 103
    another = shards.fresh("closed:room")
    client.call("subscribe", channel=another, token=shards.token("somebody", channel=another))
    assert client.wait("disconnected")["code"] == 3_500
