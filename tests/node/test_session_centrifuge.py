"""Sessions of the Centrifuge protocol: the state machine, the commands, what comes with time."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from spread.hub.api import Broken, Format, Position, PublishOptions
from spread.node import codes
from spread.node.auth.jwks import JwksUnavailable
from spread.node.session.centrifuge import SessionState
from spread.node.settings import NamespaceOptions, PersonalChannel
from tests.node.people import NOW, OPEN, City, Person, namespaces, token

CLOSED = NamespaceOptions()
KEPT = {
    "history_size": 5,
    "history_ttl": 300.0,
    "allow_subscribe_for_client": True,
    "allow_subscribe_for_anonymous": True,
}


def pub(push: dict[str, Any]) -> Any:
    return push["pub"]["data"]


# --- connect ------------------------------------------------------------------------------------------


def test_an_anonymous_client_connects() -> None:
    city = City()
    ann = city.guest()
    assert ann.greeting == {"client": ann.client, "version": "spread test", "ping": 25, "pong": True}
    assert ann.session.state is SessionState.CONNECTED
    assert city.shards[0].clients.users == 1


@pytest.mark.parametrize(
    "command",
    [
        {"id": 1, "subscribe": {"channel": "a"}},
        {"id": 1, "publish": {"channel": "a", "data": 1}},
        {"send": {"data": 1}},
        {"id": 1, "ping": {}},
    ],
)
def test_connect_comes_first(command: dict[str, Any]) -> None:
    ann = City().person()
    ann.says(command)
    assert ann.closed == (3501, "bad request")
    assert ann.told == []


def test_connect_comes_once() -> None:
    ann = City().guest()
    ann.says({"id": 2, "connect": {}})
    assert ann.closed == (3501, "bad request")


@pytest.mark.parametrize(
    "frame",
    [b"", b"\n", b"no json", b'{"id":1}', b'{"id":1,"jump":{}}', b'{"id":3,"ping":{}}', b"[]", b"\xff"],
)
def test_what_is_no_command_ends_the_connection(frame: bytes) -> None:
    ann = City().guest()
    ann.says(frame)
    assert ann.closed == (3501, "bad request")
    ann.says({"id": 2, "unsubscribe": {"channel": "a"}})
    assert ann.told == []


def test_nobody_gets_in_without_credentials_and_is_told_what_is_missing() -> None:
    city = City(allow_anonymous_connect_without_token=False)
    ann = city.person()
    ann.says({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": "a"}})
    assert ann.closed == (3501, "bad request: no credentials")
    assert len(ann.closed[1]) <= 32
    assert ann.told == []


def test_commands_of_the_same_frame_wait_for_the_token_in_order() -> None:
    city = City()
    city.tokens.is_held = True
    ann = city.person()
    ann.says(
        {"id": 1, "connect": {"token": token(sub="ann")}},
        {"id": 2, "subscribe": {"channel": "a"}},
        {"id": 3, "publish": {"channel": "a", "data": {"n": 1}}},
    )
    city.turn()
    assert ann.told == []
    assert not ann.is_reading
    ann.says({"id": 4, "presence_stats": {"channel": "a"}})
    city.tokens.release()
    city.turn()
    told = ann.told
    assert [next(iter(set(reply) - {"id"})) for reply in told if "id" in reply] == [
        "connect",
        "subscribe",
        "publish",
        "presence_stats",
    ]
    assert {
        "push": {
            "channel": "a",
            "pub": {"data": {"n": 1}, "offset": 1, "epoch": told[1]["subscribe"].get("epoch", ANY)},
        }
    }
    assert ann.is_reading


class _Any:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


ANY = _Any()


def test_an_expired_token_is_an_error_after_which_nothing_goes() -> None:
    city = City()
    ann = city.person()
    ann.says(
        {"id": 1, "connect": {"token": token(sub="ann", exp=int(NOW) - 1)}},
        {"id": 2, "subscribe": {"channel": "a"}},
    )
    assert ann.told == [{"id": 1, "error": {"code": 109, "message": "token expired"}}]
    assert ann.session.state is SessionState.REFUSED
    assert ann.closed is None, "the rest of the frame is dropped"
    ann.says({"id": 3, "connect": {}})
    assert ann.closed == (3501, "bad request")
    assert ann.told == []


def test_after_an_error_at_connect_the_connection_is_left_to_the_client() -> None:
    city = City()
    ann = city.person()
    ann.says({"id": 1, "connect": {"token": token(sub="ann", exp=int(NOW) - 1)}})
    assert ann.session.state is SessionState.REFUSED
    assert ann.closed is None
    city.turn(11)
    assert ann.closed == (3502, "stale")


@pytest.mark.parametrize("bad", ["x", "a.b.c", token(sub="ann")[:-2] + "AA", token(sub="ann", channel="a")])
def test_an_invalid_token(bad: str) -> None:
    ann = City().person()
    ann.says({"id": 1, "connect": {"token": bad}})
    assert ann.closed == (3500, "invalid token")


def test_a_token_without_any_key() -> None:
    ann = City(has_keys=False).person()
    ann.says({"id": 1, "connect": {"token": token(sub="ann")}})
    assert ann.closed == (3500, "invalid token")


def test_keys_that_cannot_be_had_are_a_temporary_error() -> None:
    city = City()
    city.tokens.error = JwksUnavailable("https://keys", "it is away")
    ann = city.person()
    ann.says({"id": 1, "connect": {"token": token(sub="ann")}})
    assert ann.told == [
        {"id": 1, "error": {"code": 100, "message": "internal server error", "temporary": True}}
    ]


def test_a_token_of_nobody_may_be_refused() -> None:
    ann = City(disallow_anonymous_connection_tokens=True).person()
    ann.says({"id": 1, "connect": {"token": token(info=1)}})
    assert ann.closed == (3507, "permission denied")


def test_a_trusted_header_names_the_user() -> None:
    city = City(allow_anonymous_connect_without_token=False)
    ann = city.person(user="ann")
    ann.says({"id": 1, "connect": {}})
    assert "connect" in ann.told[0]
    assert ann.session.user == "ann"


def test_insecure_believes_but_still_looks_at_tokens() -> None:
    city = City(insecure=True, allow_anonymous_connect_without_token=False)
    assert "expires" not in city.guest(token=token(sub="ann", exp=int(NOW) + 60)).greeting
    bob = city.person()
    bob.says({"id": 1, "connect": {"token": token(sub="bob", exp=int(NOW) - 1)}})
    assert bob.told[0]["error"]["code"] == 109


def test_a_user_has_so_many_connections() -> None:
    city = City(user_connection_limit=2)
    first, _ = (city.guest(token=token(sub="ann")) for _ in range(2))
    third = city.person()
    third.says({"id": 1, "connect": {"token": token(sub="ann")}})
    assert third.closed == (3504, "connection limit")
    third.leaves()
    first.leaves()
    city.guest(token=token(sub="ann"))
    city.guest(), city.guest(), city.guest()


def test_who_does_not_connect_is_stale() -> None:
    city = City()
    ann, bob = city.person(), city.guest()
    city.turn(9.9)
    assert ann.closed is None
    city.turn(0.5)
    assert ann.closed == (3502, "stale")
    assert bob.closed is None


def test_who_waits_for_its_token_is_stale_too() -> None:
    city = City()
    city.tokens.is_held = True
    ann = city.person()
    ann.says({"id": 1, "connect": {"token": token(sub="ann")}})
    city.turn(6)
    assert ann.told == [
        {"id": 1, "error": {"code": 100, "message": "internal server error", "temporary": True}}
    ]
    city.turn(5)
    assert ann.closed == (3502, "stale")
    city.tokens.release()


def test_server_time_and_emulation() -> None:
    city = City(connect_include_server_time=True)
    ann = city.person(is_emulated=True, transport="sse")
    ann.says({"id": 1, "connect": {}})
    greeting = ann.told[0]["connect"]
    assert greeting["time"] == int(NOW * 1000)
    assert greeting["node"] == city.shards[0].shared.node
    assert len(greeting["session"]) == 32
    assert city.shards[0].clients.emulate(greeting["session"], b'{"id":2,"rpc":{"method":"x"}}')
    assert ann.told == [{"id": 2, "error": {"code": 108, "message": "not available"}}]
    assert not city.shards[0].clients.emulate("nobody", b"{}")


# --- subscribe ----------------------------------------------------------------------------------------


def test_subscribe_publish_unsubscribe() -> None:
    city = City(shards=2)
    ann, bob = city.guest(0), city.guest(1)
    assert ann.subscribes("room") == {}
    assert bob.subscribes("room") == {}
    ann.told.clear()
    assert ann.asks(publish={"channel": "room", "data": {"text": "hi"}}) == {"id": 77, "publish": {}}
    city.turn()
    [push] = [push for push in bob.pushes if "pub" in push]
    assert push["channel"] == "room"
    assert push["pub"]["data"] == {"text": "hi"}
    assert push["pub"]["info"] == {"user": "", "client": ann.client}
    assert push["pub"]["offset"] == 1
    assert push["pub"]["epoch"]
    assert bob.asks(unsubscribe={"channel": "room"}) == {"id": 77, "unsubscribe": {}}
    ann.asks(publish={"channel": "room", "data": 2})
    assert bob.heard == []
    assert bob.asks(unsubscribe={"channel": "nowhere"}) == {"id": 77, "unsubscribe": {}}


def test_a_publisher_hears_itself() -> None:
    city = City()
    ann = city.guest()
    ann.subscribes("room")
    ann.told.clear()
    ann.says({"id": 2, "publish": {"channel": "room", "data": 1}})
    city.turn()
    told = ann.told
    assert {"id": 2, "publish": {}} in told
    assert [reply["push"]["pub"]["data"] for reply in told if "push" in reply] == [1]


@pytest.mark.parametrize(
    "command", ["subscribe", "unsubscribe", "publish", "presence", "presence_stats", "history"]
)
def test_no_channel_is_no_command(command: str) -> None:
    ann = City().guest()
    ann.says({"id": 2, command: {}})
    assert ann.closed == (3501, "bad request")


def test_the_table_of_subscribe() -> None:
    city = City(
        namespaces(
            CLOSED,
            open=KEPT,
            users={"allow_subscribe_for_client": True},
            limited={"allow_user_limited_channels": True},
            letters={**KEPT, "channel_regex": "^[a-z]+$"},
        ),
        channel_limit=3,
    )
    ann = city.guest(token=token(sub="ann"))
    bob = city.guest()

    def code(person: Person, channel: str, **request: Any) -> int:
        reply = person.asks(subscribe={"channel": channel, **request})
        return reply["error"]["code"] if "error" in reply else 0

    assert code(ann, "x" * 256) == 107
    assert code(ann, "open:a") == 0
    assert code(ann, "open:a") == 105
    assert code(ann, "nowhere:a") == 102
    assert code(ann, "open:ä") == 107
    assert code(ann, "letters:A1") == 107
    assert code(ann, "open:b", type=1) == 103
    assert code(ann, "$open:b") == 103
    assert code(ann, "limited:a#bob,ann") == 0
    assert code(bob, "limited:a#bob,ann") == 103
    assert code(bob, "users:a") == 103
    assert code(ann, "plain") == 103
    assert code(ann, "open:c", tf={"key": "a", "cmp": "eq", "val": "1"}) == 107
    assert code(ann, "users:a") == 0
    assert code(ann, "open:d") == 106
    assert ann.closed is None
    ann.says({"id": 2, "subscribe": {"channel": "open:d", "delta": "bsdiff"}})
    assert ann.closed is None, "the limit on channels comes first"
    bob.says({"id": 2, "subscribe": {"channel": "open:d", "delta": "bsdiff"}})
    assert bob.closed == (3501, "bad request")


def test_subscription_tokens() -> None:
    city = City(namespaces(CLOSED))
    ann = city.guest(token=token(sub="ann"))

    def asked(**claims: Any) -> dict[str, Any]:
        return ann.asks(
            subscribe={"channel": "a", "token": token(**{"sub": "ann", "channel": "a", **claims})}
        )

    assert asked(exp=int(NOW) - 1)["error"]["code"] == 109
    bad = ann.asks(subscribe={"channel": "a", "token": "x.y.z"})
    assert bad["error"]["code"] == 103
    result = asked(exp=int(NOW) + 60, info={"a": 1}, data={"b": 2})["subscribe"]
    assert result == {"expires": True, "ttl": 60, "data": {"b": 2}}
    private = ann.asks(subscribe={"channel": "$b", "token": token(sub="ann", channel="$b")})
    assert private["subscribe"] == {}
    for claims in ({"sub": "bob"}, {"channel": "b"}, {"client": "another"}):
        eve = city.guest(token=token(sub="ann"))
        eve.says(
            {
                "id": 2,
                "subscribe": {"channel": "a", "token": token(**{"sub": "ann", "channel": "a", **claims})},
            }
        )
        assert eve.closed == (3500, "invalid token")


def test_of_subscribe_and_unsubscribe_the_later_one_wins() -> None:
    city = City()
    ann = city.guest()
    storm: list[dict[str, Any]] = []
    for number in range(10, 30, 2):
        storm += [
            {"id": number, "subscribe": {"channel": "a"}},
            {"id": number + 1, "unsubscribe": {"channel": "a"}},
        ]
    ann.says(*storm)
    city.turn()
    replies = [reply for reply in ann.told if "id" in reply]
    assert [reply["id"] for reply in replies] == list(range(10, 30))
    assert not any("error" in reply for reply in replies)
    assert ann.asks(presence_stats={"channel": "a"})["presence_stats"] == {"num_clients": 0, "num_users": 0}
    ann.says(*storm[1:], {"id": 40, "subscribe": {"channel": "a"}})
    city.turn()
    assert ann.asks(presence_stats={"channel": "a"})["presence_stats"]["num_clients"] == 1


def test_channels_do_not_wait_for_each_other() -> None:
    city = City()
    ann = city.guest()
    city.exchange.cut()
    ann.says({"id": 2, "subscribe": {"channel": "a"}}, {"id": 3, "rpc": {"method": "x"}})
    city.turn()
    assert [reply["id"] for reply in ann.told] == [3]
    city.exchange.restore()
    city.turn()
    assert 2 in [reply.get("id") for reply in ann.told]


def test_a_hub_that_stays_away_is_a_temporary_error() -> None:
    city = City()
    ann = city.guest()
    city.exchange.cut()
    ann.says({"id": 2, "subscribe": {"channel": "a"}}, {"id": 3, "publish": {"channel": "b", "data": 1}})
    city.turn(6)
    away = {"code": 100, "message": "internal server error", "temporary": True}
    assert sorted(ann.told, key=lambda reply: int(reply["id"])) == [
        {"id": 2, "error": away},
        {"id": 3, "error": away},
    ]
    city.exchange.restore()
    city.turn()
    assert ann.subscribes("a") == {}


# --- publish, history, presence, rpc, send --------------------------------------------------------------


def test_what_may_be_published() -> None:
    city = City(
        namespaces(
            CLOSED,
            free={"allow_publish_for_client": True},
            members={"allow_publish_for_subscriber": True, "allow_subscribe_for_client": True},
            objects={"allow_publish_for_client": True, "publication_data_format": "json_object"},
            anyone={"allow_publish_for_client": True, "allow_publish_for_anonymous": True},
        )
    )
    ann, bob = city.guest(token=token(sub="ann")), city.guest()

    def code(person: Person, channel: str, data: Any = 1, **more: Any) -> int:
        reply = person.asks(publish={"channel": channel, "data": data, **more})
        return reply["error"]["code"] if "error" in reply else 0

    assert code(ann, "free:a") == 0
    assert code(ann, "plain") == 103
    assert code(ann, "nowhere:a") == 102
    assert code(bob, "free:a") == 103
    assert code(bob, "anyone:a") == 0
    assert code(ann, "members:a") == 103
    ann.subscribes("members:a")
    assert code(ann, "members:a") == 0
    assert code(ann, "objects:a", [1]) == 107
    assert code(ann, "objects:a", {"a": 1}) == 0
    assert code(ann, "free:a", None) == 0
    assert code(ann, "free:a", type=1) == 107
    assert ann.asks(publish={"channel": "free:a"})["error"]["code"] == 107


def test_history() -> None:
    city = City(namespaces(OPEN, off={}, secret=KEPT))
    ann = city.guest(token=token(sub="ann"))
    for number in range(1, 5):
        ann.asks(publish={"channel": "a", "data": number})

    def history(channel: str = "a", **request: Any) -> Any:
        reply = ann.asks(history={"channel": channel, **request})
        return reply.get("history") or reply["error"]["code"]

    def numbers(**request: Any) -> list[int]:
        return [publication["data"] for publication in history(**request)["publications"]]

    top = history()
    assert (top["offset"], top["publications"]) == (4, [])
    epoch = top["epoch"]
    assert numbers(limit=2) == [1, 2]
    assert numbers(limit=-1) == [1, 2, 3, 4]
    assert numbers(limit=2, reverse=True) == [4, 3]
    assert numbers(limit=10, since={"offset": 2, "epoch": epoch}) == [3, 4]
    assert numbers(limit=10, since={"offset": 3, "epoch": ""}, reverse=True) == [2, 1]
    assert numbers(limit=10, since={"offset": 40, "epoch": epoch}) == []
    assert history(limit=1, since={"offset": 0, "epoch": "other"}) == 112
    assert history(limit=1, since={"offset": 0, "epoch": epoch}, reverse=True) == 107
    assert history(limit=-2) == 107
    assert history("off:a") == 108
    assert history("secret:a") == 103
    assert history("nowhere:a") == 102


def test_history_is_capped() -> None:
    city = City(history_max_publication_limit=2)
    ann = city.guest()
    for number in range(4):
        ann.asks(publish={"channel": "a", "data": number})
    for limit in (-1, 3, 100):
        assert len(ann.asks(history={"channel": "a", "limit": limit})["history"]["publications"]) == 2


def test_presence_across_shards() -> None:
    city = City(namespaces(OPEN, off={}, secret={**KEPT, "presence": True}), shards=2)
    ann = city.guest(0, token=token(sub="ann", info={"name": "Ann"}))
    bob = city.guest(1)
    ann.subscribes("a")
    bob.subscribes("a")
    present = bob.asks(presence={"channel": "a"})["presence"]["presence"]
    assert present == {
        ann.client: {"user": "ann", "client": ann.client, "conn_info": {"name": "Ann"}},
        bob.client: {"user": "", "client": bob.client},
    }
    assert ann.asks(presence_stats={"channel": "a"})["presence_stats"] == {"num_clients": 2, "num_users": 2}
    bob.leaves()
    city.turn()
    assert list(ann.asks(presence={"channel": "a"})["presence"]["presence"]) == [ann.client]
    assert ann.asks(presence={"channel": "off:a"})["error"]["code"] == 108
    assert ann.asks(presence={"channel": "secret:a"})["error"]["code"] == 103
    assert ann.asks(presence_stats={"channel": "nowhere:a"})["error"]["code"] == 102


def test_presence_is_refreshed_while_the_client_is_there() -> None:
    city = City(ping_interval=-1.0)
    ann = city.guest()
    ann.subscribes("a")
    city.turn(200)
    assert ann.asks(presence_stats={"channel": "a"})["presence_stats"]["num_clients"] == 1


def test_joins_and_leaves() -> None:
    city = City(
        namespaces(OPEN, quiet=KEPT, pushed={**KEPT, "join_leave": True, "force_push_join_leave": True}),
        shards=2,
    )
    ann, bob = city.guest(0), city.guest(1)
    ann.subscribes("a", join_leave=True)
    city.turn()
    assert ann.pushes == [{"channel": "a", "join": {"info": {"user": "", "client": ann.client}}}]
    bob.subscribes("a")
    city.turn()
    assert bob.pushes == [], "it did not ask"
    bob.asks(unsubscribe={"channel": "a"})
    city.turn()
    info = {"info": {"user": "", "client": bob.client}}
    assert ann.pushes == [{"channel": "a", "join": info}, {"channel": "a", "leave": info}]
    bob.subscribes("pushed:a")
    city.turn()
    assert bob.pushes == [{"channel": "pushed:a", "join": info}]
    bob.subscribes("quiet:a", join_leave=True)
    city.turn()
    assert bob.pushes == []


def test_rpc_and_send_without_an_application() -> None:
    ann = City().guest()
    assert ann.asks(rpc={"method": "x", "data": 1})["error"] == {"code": 108, "message": "not available"}
    ann.says({"send": {"data": 1}})
    assert ann.closed == (3508, "not available")


# --- positions and recovery ---------------------------------------------------------------------------


def test_what_was_missed_is_recovered() -> None:
    city = City(
        namespaces(
            NamespaceOptions(
                **{
                    **KEPT,
                    "force_recovery": True,
                    "allow_publish_for_client": True,
                    "allow_publish_for_anonymous": True,
                }
            )
        )
    )
    ann, bob = city.guest(), city.guest()
    start = ann.subscribes("a")
    assert start["recoverable"] and start["positioned"] and start["epoch"]
    assert "offset" not in start
    ann.leaves()
    for number in (1, 2, 3):
        bob.asks(publish={"channel": "a", "data": number})
    ann = city.guest()
    back = ann.subscribes("a", recover=True, epoch=start["epoch"], offset=1)
    assert back["was_recovering"] and back["recovered"]
    assert back["offset"] == 1
    assert [(one["offset"], one["data"]) for one in back["publications"]] == [(2, 2), (3, 3)]
    bob.asks(publish={"channel": "a", "data": 4})
    assert ann.heard == [4]


def test_nothing_missed_is_recovered_too() -> None:
    city = City(namespaces(NamespaceOptions(**{**KEPT, "force_recovery": True})))
    ann = city.guest()
    epoch = ann.subscribes("a")["epoch"]
    ann.asks(unsubscribe={"channel": "a"})
    back = ann.subscribes("a", recover=True, epoch=epoch, offset=0)
    assert back["recovered"] and "publications" not in back


@pytest.mark.parametrize(("epoch", "offset"), [("other", 1), (None, 9)])
def test_what_cannot_be_recovered(epoch: str | None, offset: int) -> None:
    city = City(
        namespaces(
            NamespaceOptions(
                **{
                    **KEPT,
                    "allow_recovery": True,
                    "allow_publish_for_client": True,
                    "allow_publish_for_anonymous": True,
                }
            )
        )
    )
    ann = city.guest()
    for number in range(8):
        ann.asks(publish={"channel": "a", "data": number})
    first = ann.subscribes("a", recoverable=True)
    ann.asks(unsubscribe={"channel": "a"})
    asked = {"recover": True, "recoverable": True, "epoch": epoch or first["epoch"], "offset": offset}
    back = ann.subscribes("a", **asked)
    assert back["was_recovering"] and "recovered" not in back and "publications" not in back
    assert (back["epoch"], back["offset"]) == (first["epoch"], 8)
    ann.asks(unsubscribe={"channel": "a"})
    refused = ann.asks(subscribe={"channel": "a", **asked, "flag": 3})
    assert refused["error"] == {"code": 112, "message": "unrecoverable position"}
    assert ann.subscribes(
        "a",
        **asked,
    )["was_recovering"], "nothing was left behind"


def test_since_nowhere_gives_all_there_is() -> None:
    city = City(
        namespaces(
            NamespaceOptions(
                **{
                    **KEPT,
                    "force_recovery": True,
                    "allow_publish_for_client": True,
                    "allow_publish_for_anonymous": True,
                }
            )
        )
    )
    ann = city.guest()
    for number in (1, 2):
        ann.asks(publish={"channel": "a", "data": number})
    back = ann.subscribes("a", recover=True)
    assert [one["data"] for one in back["publications"]] == [1, 2]


def test_recovery_has_a_limit() -> None:
    options = {
        **KEPT,
        "history_size": 50,
        "force_recovery": True,
        "allow_publish_for_client": True,
        "allow_publish_for_anonymous": True,
    }
    city = City(namespaces(NamespaceOptions(**options)), recovery_max_publication_limit=3)
    ann = city.guest()
    for number in range(10):
        ann.asks(publish={"channel": "a", "data": number})
    assert len(ann.subscribes("a", recover=True, offset=7)["publications"]) == 3
    ann.asks(unsubscribe={"channel": "a"})
    assert "recovered" not in ann.subscribes("a", recover=True, offset=6)


def test_cache_mode_gives_the_newest() -> None:
    options = {
        **KEPT,
        "force_recovery": True,
        "force_recovery_mode": "cache",
        "auto_cache_recovery": True,
        "allow_publish_for_client": True,
        "allow_publish_for_anonymous": True,
    }
    city = City(namespaces(NamespaceOptions(**options)))
    ann = city.guest()
    empty = ann.subscribes("a")
    assert "recovered" not in empty
    ann.asks(unsubscribe={"channel": "a"})
    for number in range(1, 9):
        ann.asks(publish={"channel": "a", "data": number})
    result = ann.subscribes("a")
    assert [one["data"] for one in result["publications"]] == [8]
    assert (result["recovered"], result["offset"]) == (True, 8)
    ann.asks(unsubscribe={"channel": "a"})
    there = ann.subscribes("a", recover=True, epoch=result["epoch"], offset=8)
    assert there["recovered"] and "publications" not in there


def test_what_is_published_while_one_subscribes_comes_once() -> None:
    options = {
        **KEPT,
        "history_size": 100,
        "force_recovery": True,
        "allow_publish_for_client": True,
        "allow_publish_for_anonymous": True,
    }
    city = City(namespaces(NamespaceOptions(**options)), shards=2)
    ann, bob = city.guest(0), city.guest(1)
    others = city.guest(0)
    others.subscribes("a")
    number = 0
    for _ in range(30):
        ann.told.clear()
        ann.says({"id": 5, "subscribe": {"channel": "a", "recover": True, "offset": number}})
        for _ in range(3):
            number += 1
            bob.says({"id": 6, "publish": {"channel": "a", "data": number}})
            city.clock.advance(0)
        city.turn()
        got = []
        for reply in ann.told:
            if "subscribe" in reply:
                got += [one["offset"] for one in reply["subscribe"].get("publications", [])]
            elif "pub" in reply.get("push", {}):
                got.append(reply["push"]["pub"]["offset"])
        assert got == [number - 2, number - 1, number]
        ann.asks(unsubscribe={"channel": "a"})


def test_a_break_ends_subscriptions_that_follow_positions() -> None:
    city = City(namespaces(NamespaceOptions(**{**KEPT, "allow_positioning": True})))
    ann, bob = city.guest(), city.guest()
    ann.subscribes("a", positioned=True)
    bob.subscribes("a")
    shard = city.shards[0]
    shard.fanout.received("a", Broken(Position("new", 4)))
    shard.fanout.read_done()
    assert ann.pushes == [{"channel": "a", "unsubscribe": {"code": 2500, "reason": "insufficient state"}}]
    assert bob.pushes == []
    assert ann.subscribes("a", positioned=True)["offset"] == 4


def test_a_break_of_a_server_side_subscription_ends_the_connection() -> None:
    city = City(namespaces(NamespaceOptions(**{**KEPT, "force_positioning": True})))
    ann = city.guest(token=token(sub="ann", channels=["a"]))
    shard = city.shards[0]
    shard.fanout.received("a", Broken(Position("new", 4)))
    shard.fanout.read_done()
    assert ann.closed == (3010, "insufficient state")


# --- server-side subscriptions ------------------------------------------------------------------------


def test_server_side_subscriptions() -> None:
    city = City(
        namespaces(NamespaceOptions(**{**KEPT, "force_recovery": True}), personal={}),
        subscribe_to_user_personal_channel=PersonalChannel(
            enabled=True, personal_channel_namespace="personal"
        ),
    )
    ann = city.guest(token=token(sub="ann", subs={"news": {"data": {"a": 1}}}))
    assert set(ann.greeting["subs"]) == {"news", "personal:#ann"}
    news = ann.greeting["subs"]["news"]
    assert news["recoverable"] and news["data"] == {"a": 1}
    assert ann.greeting["subs"]["personal:#ann"] == {}
    hub = city.shards[0].hub
    options = city.namespaces.options("news")
    assert options is not None
    hub.publish("news", b"1", Format.JSON, 0, PublishOptions(history=options.history))
    city.turn()
    assert ann.heard == [1]
    assert ann.asks(subscribe={"channel": "news"})["error"]["code"] == 105
    ann.leaves()
    hub.publish("news", b"2", Format.JSON, 0, PublishOptions(history=options.history))
    city.turn()
    ann = city.guest(
        token=token(sub="ann", channels=["news"]),
        subs={"news": {"recover": True, "epoch": news["epoch"], "offset": 1}},
    )
    again = ann.greeting["subs"]["news"]
    assert again["recovered"] and [one["data"] for one in again["publications"]] == [2]


def test_a_client_may_name_server_side_channels_that_it_could_have_alone() -> None:
    city = City(namespaces(CLOSED, free=KEPT, limited={"allow_user_limited_channels": True}))
    ann = city.guest(subs={"free:a": {}, "closed": {}, "limited:#bob": {}}, token=token(sub="ann"))
    assert set(ann.greeting["subs"]) == {"free:a"}
    bob = city.person()
    bob.says({"id": 1, "connect": {"subs": {"nowhere:a": {}}}})
    assert bob.closed == (3501, "bad request")


def test_too_many_and_unknown_server_side_channels() -> None:
    city = City(channel_limit=2)
    ann = city.person()
    ann.says({"id": 1, "connect": {"token": token(sub="ann", channels=["a", "b", "c"])}})
    assert ann.closed == (3505, "channel limit")
    bob = city.person()
    bob.says({"id": 1, "connect": {"token": token(sub="bob", channels=["a", "nowhere:b"])}})
    city.turn()
    assert bob.told == [{"id": 1, "error": {"code": 102, "message": "unknown channel"}}]
    assert len(city.shards[0].channels) == 0


def test_only_the_newest_connection_lives() -> None:
    city = City(
        shards=2,
        subscribe_to_user_personal_channel=PersonalChannel(enabled=True, single_connection=True),
    )
    old, other = city.guest(0, token=token(sub="ann")), city.guest(0, token=token(sub="bob"))
    new = city.guest(1, token=token(sub="ann"))
    city.turn()
    assert old.closed == (3504, "connection limit")
    assert new.closed is None and other.closed is None


# --- time ---------------------------------------------------------------------------------------------


def test_pings_come_on_time_whatever_the_traffic() -> None:
    city = City()
    ann = city.guest()
    ann.subscribes("a")
    pings = []
    for _ in range(200):
        city.turn(0.5)
        ann.says({"id": 3, "publish": {"channel": "a", "data": 1}})
        if {} in ann.told:
            pings.append(city.clock.seconds())
            ann.says({})
    assert len(pings) == 4
    assert 12 <= pings[0] <= 25.5
    assert all(24.5 <= later - sooner <= 25.75 for sooner, later in pairwise(pings))
    assert ann.closed is None


def test_no_pong() -> None:
    city = City(pong_timeout=3.0)
    ann = city.guest()
    city.turn(25)
    assert ann.told == [{}]
    city.turn(3.5)
    assert ann.closed == (3012, "no pong")


def test_a_pong_may_be_behind_what_was_not_read_at_once() -> None:
    city = City(pong_timeout=3.0, max_unacknowledged_commands=2)
    ann = city.guest()
    while ann.told != [{}]:
        city.turn(0.5)
    city.exchange.cut()
    ann.says(*({"id": number, "publish": {"channel": "a", "data": 1}} for number in range(10, 12)))
    assert not ann.is_reading
    city.exchange.restore()
    city.turn(0.5)
    assert ann.is_reading
    city.turn(3)
    assert ann.closed is None
    city.turn(3)
    assert ann.closed == (3012, "no pong")


def test_unasked_pongs_are_no_matter() -> None:
    ann = City().guest()
    ann.says({}, {}, {})
    ann.says(b'{"id":0}')
    assert ann.closed is None


def test_no_pong_while_the_shard_stood_still() -> None:
    """What the client has said meanwhile is not read yet."""
    city = City()
    ann, bob = city.guest(), city.guest()
    while {} not in ann.told:
        city.turn(0.25)
    city.clock.advance(15.0)
    ann.says({})
    assert ann.closed is bob.closed is None
    city.turn(8.5)
    assert ann.closed is None and bob.closed == (3012, "no pong")


def test_pings_may_be_off() -> None:
    city = City(ping_interval=-1.0)
    ann = city.guest()
    assert "ping" not in ann.greeting and "pong" not in ann.greeting
    city.turn(100)
    assert ann.told == [] and ann.closed is None
    silent = City(pong_timeout=-1.0)
    bob = silent.guest()
    assert bob.greeting["ping"] == 25 and "pong" not in bob.greeting
    silent.turn(100)
    assert bob.closed is None


def test_an_expired_connection() -> None:
    city = City(ping_interval=-1.0)
    ann = city.guest(token=token(sub="ann", exp=int(NOW) + 10))
    assert (ann.greeting["expires"], ann.greeting["ttl"]) == (True, 10)
    city.turn(34)
    assert ann.closed is None
    city.turn(2)
    assert ann.closed == (3005, "connection expired")


def test_refresh() -> None:
    city = City(ping_interval=-1.0)
    ann = city.guest(token=token(sub="ann", exp=int(NOW) + 10))
    city.turn(30)
    reply = ann.asks(refresh={"token": token(sub="ann", exp=int(NOW) + 100)})
    assert reply["refresh"] == {"client": ann.client, "version": "spread test", "expires": True, "ttl": 70}
    city.turn(80)
    assert ann.closed is None
    city.turn(20)
    assert ann.closed == (3005, "connection expired")


@pytest.mark.parametrize(
    ("text", "close"),
    [
        ("", (3501, "bad request")),
        ("x", (3500, "invalid token")),
        (token(sub="bob"), (3500, "invalid token")),
        (token(sub="ann", exp=int(NOW) - 1), (3005, "connection expired")),
        (token(sub="ann", channels=["b"]), (3010, "insufficient state")),
    ],
)
def test_a_refresh_that_is_refused(text: str, close: tuple[int, str]) -> None:
    ann = City().guest(token=token(sub="ann", exp=int(NOW) + 10))
    ann.says({"id": 2, "refresh": {"token": text}})
    assert ann.closed == close


def test_an_expired_subscription() -> None:
    city = City(ping_interval=-1.0)
    ann = city.guest(token=token(sub="ann"))
    ann.subscribes("a", token=token(sub="ann", channel="a", exp=int(NOW) + 10))
    city.turn(34)
    assert all("unsubscribe" not in push for push in ann.pushes)
    city.turn(2)
    assert ann.pushes == [{"channel": "a", "unsubscribe": {"code": 2501, "reason": "subscription expired"}}]
    assert ann.subscribes("a") == {}


def test_sub_refresh_also_without_the_channel() -> None:
    city = City(ping_interval=-1.0)
    ann = city.guest(token=token(sub="ann"))
    ann.subscribes("a", token=token(sub="ann", channel="a", exp=int(NOW) + 10))
    fresh = token(sub="ann", channel="a", exp=int(NOW) + 100)
    assert ann.asks(sub_refresh={"channel": "a", "token": fresh})["sub_refresh"] == {
        "expires": True,
        "ttl": 100,
    }
    assert ann.asks(sub_refresh={"token": fresh})["sub_refresh"] == {"expires": True, "ttl": 100}
    city.turn(60)
    assert ann.asks(sub_refresh={"channel": "b", "token": fresh})["error"]["code"] == 103
    assert ann.asks(sub_refresh={"channel": "a"})["error"]["code"] == 107
    ann.subscribes("b")
    # Before its token is looked at.
    ann.says({"id": 2, "sub_refresh": {"channel": "b", "token": "x"}})
    assert ann.closed == (3501, "bad request")


@pytest.mark.parametrize(
    ("claims", "close"),
    [
        ({"sub": "bob"}, (3500, "invalid token")),
        ({"channel": "b"}, (3500, "invalid token")),
        ({"client": "x"}, (3500, "invalid token")),
        ({"exp": int(NOW) - 1}, (3006, "subscription expired")),
    ],
)
def test_a_sub_refresh_that_is_refused(claims: dict[str, Any], close: tuple[int, str]) -> None:
    ann = City().guest(token=token(sub="ann"))
    ann.subscribes("a", token=token(sub="ann", channel="a", exp=int(NOW) + 10))
    said = {"sub": "ann", "channel": "a", "exp": int(NOW) + 100, **claims}
    ann.says({"id": 2, "sub_refresh": {"channel": "a", "token": token(**said)}})
    assert ann.closed == close


# --- limits -------------------------------------------------------------------------------------------


def test_commands_per_second() -> None:
    city = City(commands_per_second=3.0)
    ann = city.guest()
    ann.says(*({"id": number, "unsubscribe": {"channel": "a"}} for number in range(10, 15)))
    codes_ = [reply.get("error", {}).get("code", 0) for reply in ann.told]
    assert codes_ == [0, 0, 0, 111, 111]
    ann.says({"send": {}})
    assert ann.closed == (3013, "too many requests")


def test_commands_of_a_user_per_second() -> None:
    city = City(user_commands_per_second=2.0)
    one, two = (city.guest(token=token(sub="ann")) for _ in range(2))
    bob = city.guest(token=token(sub="bob"))
    for person in (one, two):
        person.says({"id": 5, "unsubscribe": {"channel": "a"}})
    assert two.asks(unsubscribe={"channel": "a"})["error"]["code"] == 111
    assert "error" not in bob.asks(unsubscribe={"channel": "a"})


def test_too_many_errors() -> None:
    ann = City(errors_limit=3).guest()
    ann.says(*({"id": number, "rpc": {"method": "x"}} for number in range(10, 20)))
    assert len(ann.told) == 4
    assert ann.closed == (3509, "too many errors")


def test_errors_of_a_hub_that_is_away_are_nobodys_fault() -> None:
    city = City(errors_limit=3)
    ann = city.guest()
    city.exchange.cut()
    ann.says(*({"id": number, "publish": {"channel": "a", "data": 1}} for number in range(10, 20)))
    city.turn(6.0)
    assert [reply["error"]["code"] for reply in ann.told] == [100] * 10
    assert ann.closed is None


def test_who_has_too_much_on_its_way_is_not_read() -> None:
    city = City(max_unacknowledged_commands=4)
    ann = city.guest()
    city.exchange.cut()
    ann.says(*({"id": number, "publish": {"channel": "a", "data": 1}} for number in range(10, 14)))
    assert not ann.is_reading
    city.exchange.restore()
    city.turn()
    assert ann.is_reading
    assert len(ann.told) == 4


def test_who_does_not_read_is_slow_and_nobody_else_notices() -> None:
    city = City(namespaces())
    bob = city.guest()
    slow = city.person(room=4000, limit_bytes=65536)
    slow.says({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": "a"}})
    bob.subscribes("a")
    city.turn()
    for _ in range(30):
        bob.asks(publish={"channel": "a", "data": "x" * 4000})
        city.turn(0.1)
    assert slow.session.state is SessionState.CLOSING
    assert city.shards[0].counters.disconnects[3008] == 1
    assert bob.closed is None


# --- the end ------------------------------------------------------------------------------------------


def test_what_is_left_behind_is_nothing() -> None:
    city = City()
    ann = city.guest(token=token(sub="ann"))
    ann.subscribes("a")
    city.exchange.cut()
    ann.says({"id": 2, "subscribe": {"channel": "b"}})
    ann.leaves()
    ann.session.lost()
    city.exchange.restore()
    city.turn(1)
    shard = city.shards[0]
    assert (len(shard.clients.sessions), shard.clients.users, shard.counters.clients) == (0, 0, 0)
    assert (len(shard.channels), shard.counters.subscriptions) == (0, 0)
    assert {code for code, count in shard.counters.disconnects.items() if count} == {3000}
    assert city.guest().asks(presence_stats={"channel": "b"})["presence_stats"]["num_clients"] == 0


def test_the_shard_stops() -> None:
    city = City()
    ann, bob = city.guest(), city.person()
    shard = city.shards[0]
    shard.clients.stop()
    shard.clients.end_all(codes.SHUTDOWN)
    assert ann.closed == bob.closed == (3001, "shutdown")
    assert shard.clients.admit("10.0.0.1") == "the shard is stopping"
    shard.clients.cut_all()
    assert ann.is_cut
