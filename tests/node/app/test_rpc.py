"""Methods of an app that clients call: what they are given, and what they give."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred

from spread.node.app.app import App
from spread.node.app.marks import rpc
from spread.node.app.values import Disconnect, Refuse
from tests.node.app.stage import KINDS, Cast, Troupe, answered, log_of

ERROR = {"code": 100, "message": "internal server error", "temporary": True}


class Move(msgspec.Struct):
    to: int
    fast: bool = False


GIVEN: dict[str, Any] = {
    "set": ({1}, [1]),
    "nan": (float("nan"), None),
    "none": (None, None),
    "bytes that are JSON": (b'{"a":1}', {"a": 1}),
    "text": ("ü", "ü"),
}
"""What a method gives, and what a JSON client gets."""

CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)

NONSENSE: dict[str, Any] = {"object": object(), "half a character": "\ud800", "a circle": CIRCLE}


class Game(Cast):
    @rpc("move")
    def move(self, client: Any, params: Move) -> Any:
        return {"at": params.to, "by": client.id}

    @rpc("any")
    def any(self, client: Any, params: Any) -> Any:
        return [params]

    @rpc("ping")
    def ping(self, client: Any) -> str:
        return "pong"

    @rpc("maybe")
    def maybe(self, client: Any, params: Move | None) -> bool:
        return params is None

    @rpc("give")
    def give(self, client: Any, what: str) -> Any:
        return {
            **{name: given for name, (given, _) in GIVEN.items()},
            **NONSENSE,
            "bytes that are no JSON": b'\xff"}',
        }[what]

    @rpc("kinds")
    def kinds(self, client: Any, kind: str) -> Any:
        return answered(kind, lambda: kind)

    @rpc("refuse")
    def refuse(self, client: Any, kind: str) -> Any:
        def act() -> Any:
            raise Refuse(4001, "not you")

        return answered(kind, act)

    @rpc("wrong")
    def wrong(self, client: Any, code: int) -> Any:
        raise Refuse(code, "x")

    @rpc("end")
    def end(self, client: Any, code: int) -> Any:
        raise Disconnect(code, "x")

    @rpc("leave")
    async def leave(self, client: Any) -> str:
        client.disconnect(4001, "out")
        await Deferred()
        return "never told"


def calls(person: Any, method: str, *params: Any) -> Any:
    reply = person.asks(rpc={"method": method, **({"data": params[0]} if params else {})})
    return reply["rpc"].get("data") if "rpc" in reply else reply["error"]


@pytest.fixture
def troupe() -> Troupe:
    return Troupe(Game)


def test_parameters_are_of_their_type(troupe: Troupe) -> None:
    person = troupe.guest()
    assert calls(person, "move", {"to": 3}) == {"at": 3, "by": person.client}
    assert calls(person, "any", {"x": [1]}) == [{"x": [1]}]
    assert calls(person, "any") == [None]
    assert calls(person, "ping", {"ignored": 1}) == calls(person, "ping") == "pong"
    assert calls(person, "maybe") is True


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (({"to": "x"},), "$.to"),
        (({"fast": True},), "`to`"),
        (({"to": 1, "fast": 2},), "$.fast"),
        ((), "`to`"),
    ],
)
def test_a_wrong_call_names_the_field(troupe: Troupe, params: tuple[Any, ...], field: str) -> None:
    person = troupe.guest()
    with log_of() as lines:
        error = calls(person, "move", *params)
    assert error["code"] == 107 and field in error["message"] and lines == []
    assert person.closed is None


def test_a_method_that_there_is_not(troupe: Troupe) -> None:
    person = troupe.guest()
    for method in ("nope", "connecting", "", "a/b", "\x00"):
        assert calls(person, method)["code"] == 104
    assert not [name for name in troupe.host.hooks.stats if name.startswith("rpc")], (
        "nothing is counted by it"
    )


def test_bytes_that_are_no_json_are_for_clients_of_protobuf(troupe: Troupe) -> None:
    person = troupe.guest()
    assert calls(person, "give", "bytes that are no JSON")["code"] == 100
    assert calls(person, "ping") == "pong"


def test_refusals_of_the_app_are_part_of_its_game() -> None:
    troupe = Troupe(Game, errors_limit=3)
    person = troupe.guest()
    for _ in range(10):
        assert calls(person, "wrong", 4001)["code"] == 4001
    for _ in range(4):
        calls(person, "nope")
    assert person.closed == (3509, "too many errors")


@pytest.mark.parametrize("kind", KINDS)
def test_each_way_to_answer(troupe: Troupe, kind: str) -> None:
    person = troupe.guest()
    assert calls(person, "kinds", kind) == kind
    assert calls(person, "refuse", kind) == {"code": 4001, "message": "not you"}


@pytest.mark.parametrize("what", GIVEN)
def test_what_a_method_gives(troupe: Troupe, what: str) -> None:
    assert calls(troupe.guest(), "give", what) == GIVEN[what][1]


@pytest.mark.parametrize("what", NONSENSE)
def test_what_json_cannot_say(troupe: Troupe, what: str) -> None:
    person = troupe.guest()
    with log_of() as lines:
        assert calls(person, "give", what) == ERROR
    assert len(lines) == 1 and "the rpc give has given" in lines[0]
    assert person.closed is None


@pytest.mark.parametrize("code", [0, 99, 5000, -1, 10**20])
def test_codes_that_no_client_could_be_told(troupe: Troupe, code: int) -> None:
    person = troupe.guest()
    with log_of() as lines:
        assert calls(person, "wrong", code) == ERROR
        assert calls(person, "end", code) == ERROR
    assert len(lines) == 2 and "ValueError" in lines[0] and person.closed is None


def test_the_end_of_a_connection(troupe: Troupe) -> None:
    person = troupe.guest()
    person.says({"id": 3, "rpc": {"method": "end", "data": 4001}})
    assert person.closed == (4001, "x")
    person = troupe.guest()
    person.says({"id": 3, "rpc": {"method": "leave"}})
    assert person.closed == (4001, "out")
    person.leaves()
    troupe.turn(6.0)
    assert person.told == [] and troupe.host.hooks.waiting == 0


def test_methods_that_cannot_be() -> None:
    class Bare(App):
        @rpc("a")
        def a(self) -> None: ...

    class Twice(App):
        @rpc("a")
        def a(self, client: Any) -> None: ...
        @rpc("a")
        def b(self, client: Any) -> None: ...

    class Unknown(App):
        @rpc("a")
        def a(self, client: Any, params: Nothing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    troupe = Troupe(Cast)
    for wrong, why in ((Bare, "must take 2 or 3"), (Twice, "are both called 'a'"), (Unknown, "annotation")):
        with pytest.raises(TypeError, match=why):
            troupe.swap(wrong)


def test_the_metrics_have_names_that_are_finite(troupe: Troupe) -> None:
    person = troupe.guest()
    calls(person, "ping")
    calls(person, "give", "object")
    families = {family.name: family for family in troupe.host.metrics()}
    counted = {sample.labels["hook"]: sample.value for sample in families["spread_app_hook_calls"].samples}
    assert counted == {"connected": 1, "rpc ping": 1, "rpc give": 1}
    errors = {each.labels["hook"]: each.value for each in families["spread_app_hook_errors"].samples}
    assert errors["rpc give"] == 1 and errors["rpc ping"] == 0
    buckets = [
        each.value
        for each in families["spread_app_hook_seconds"].samples
        if each.labels.get("hook") == "rpc ping" and each.name.endswith("_bucket")
    ]
    assert buckets == sorted(buckets) and buckets[-1] == 1
    for number in range(600):
        troupe.host.notify(f"made up {number}", None, lambda: None)
    stats = troupe.host.hooks.stats
    assert len(stats) == 501 and stats["others"].calls == 103
