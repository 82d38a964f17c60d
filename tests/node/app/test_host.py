"""Sessions and the hooks of an app: each hook, each way to answer, and each way to go wrong."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from spread.hub.api import Format
from spread.node.app.app import App
from spread.node.app.data import decoded, payload_of
from spread.node.app.deeds import KIND, without_app
from spread.node.app.making import construct, look_at
from spread.node.app.marks import every, remote, rpc
from spread.node.app.values import DROP, Disconnect, Identity, Refuse, RemoteError, Subscribing
from spread.node.session.shared import Refused
from tests.node.app.stage import KINDS, Cast, Troupe, answered, loaded, log_of
from tests.node.people import namespaces

ERROR = {"code": 100, "message": "internal server error", "temporary": True}

Hook = Callable[..., Any]


class Bold(Cast):
    """An app whose hooks a test sets."""

    @rpc("echo")
    def echo(self, client: Any, data: Any) -> Any:
        return 1

    act: Hook = staticmethod(lambda *args: None)

    def connecting(self, client: Any) -> Any:
        return self.act(client) if client.data == "act" else None

    def subscribing(self, client: Any, channel: str) -> Any:
        return self.act(client) if channel == "act" else None

    def publishing(self, client: Any, channel: str, data: Any) -> Any:
        return self.act(client) if data == "act" else data

    def message(self, client: Any, data: Any) -> Any:
        return self.act(client)

    def view(self, client: Any, channel: str) -> Any:
        return self.act(client) if channel == "seen" else None


COMMANDS = {
    "subscribing": {"subscribe": {"channel": "act"}},
    "publishing": {"publish": {"channel": "a", "data": "act"}},
}


def bold(act: Hook, **settings: Any) -> Troupe:
    return Troupe(type("Bolder", (Bold,), {"act": staticmethod(act)}), **settings)


def raising(error: BaseException) -> Hook:
    def act(*args: Any) -> Any:
        raise error

    return act


def arrives(troupe: Troupe, seconds: float = 0.0) -> Any:
    """Someone for whom ``connecting`` acts."""
    person = troupe.city.person()
    person.says({"id": 1, "connect": {"data": "act"}})
    troupe.turn(seconds)
    return person


# -- what hooks may answer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_connecting_says_who_it_is(kind: str) -> None:
    identity = Identity(user="ann", info={"level": 3}, channels=["hall"], data={"hi": 1})
    troupe = bold(lambda client: answered(kind, lambda: identity))
    person = arrives(troupe)
    [reply] = person.told
    assert reply["connect"]["data"] == {"hi": 1} and list(reply["connect"]["subs"]) == ["hall"]
    client = troupe.client(person)
    assert (client.user, client.info, list(client.channels)) == ("ann", {"level": 3}, ["hall"])
    assert troupe.app.told == [("connected", client.id), ("subscribed", client.id, "hall")]
    person.leaves()
    reason = "3000 connection closed"
    assert troupe.app.told[2:] == [
        ("unsubscribed", client.id, "hall"),
        ("disconnected", client.id, reason),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_subscribing_lets_in_with_what_it_says(kind: str) -> None:
    options = Subscribing(info="guest", data=[1], expire_at=0, presence=True)
    troupe = bold(lambda client: answered(kind, lambda: options))
    person = troupe.guest()
    assert person.subscribes("act")["data"] == [1]
    present = person.asks(presence={"channel": "act"})["presence"]["presence"]
    assert [each["chan_info"] for each in present.values()] == ["guest"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("chosen", "heard"), [("other", ["other"]), (DROP, []), ({"a": [1]}, [{"a": [1]}])])
def test_publishing_says_what(kind: str, chosen: Any, heard: list[Any]) -> None:
    troupe = bold(lambda client: answered(kind, lambda: chosen))
    person = troupe.guest()
    person.subscribes("a")
    assert person.asks(publish={"channel": "a", "data": "act"})["publish"] == {}
    assert person.heard == heard


def test_a_publication_that_waits_is_not_overtaken_in_its_channel() -> None:
    waiting: Deferred[Any] = Deferred()
    troupe = bold(lambda client: waiting)
    person = troupe.guest()
    person.subscribes("a")
    person.subscribes("b")
    person.says(
        *(
            {"id": 9 + at, "publish": {"channel": channel, "data": data}}
            for at, (channel, data) in enumerate([("a", "act"), ("a", 2), ("b", 3)])
        )
    )
    troupe.turn()
    assert person.heard == [3]
    waiting.callback(1)
    troupe.turn()
    assert person.heard == [1, 2]


# -- what goes wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "error",
    [
        KeyError("sword"),
        SystemExit(3),
        GeneratorExit(),
        RecursionError("deep"),
        Refuse.__new__(Refuse, 5),  # one whose __init__ nobody has called refuses all the same
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_its_callers_alone(kind: str, error: BaseException) -> None:
    troupe = bold(lambda client: answered(kind, raising(error)))
    is_refusal = isinstance(error, Refuse)
    wanted = {"code": 103, "message": "permission denied"} if is_refusal else ERROR
    with log_of() as lines:
        assert arrives(troupe).told == [{"id": 1, "error": wanted}]
        person, other = troupe.guest(), troupe.guest()
        other.subscribes("a")
        for command in COMMANDS.values():
            assert person.asks(**command)["error"] == wanted
        person.says({"send": {"data": 1}})
        assert person.subscribes("b") == {}, "it is served as before"
    assert person.closed is None and other.told == []
    if not is_refusal:
        assert len(lines) == 4 and all(type(error).__name__ in line for line in lines)
        assert all("for client" in line for line in lines)


@pytest.mark.parametrize(
    "nonsense",
    [
        7,
        Identity(user=None),  # type: ignore[arg-type]
        Identity(user="\ud800"),
        Identity(user="a", channels="hall"),
        Identity(user="a", channels=5),  # type: ignore[arg-type]
        Identity(user="a", channels=["hall", 5]),  # type: ignore[list-item]
        Identity(user="a", channels=["unknown:hall"]),
        Identity(user="a", channels=["x" * 5000]),
        Identity(user="a", channels=[""]),
        Identity(user="a", expire_at="never"),  # type: ignore[arg-type]
        Identity(user="a", expire_at=float("inf")),  # type: ignore[arg-type]
        Identity(user="a", expire_at=10**400),
        Identity(user="a", expire_at=-1),
        Identity(user="a", info=object()),
        Identity(user="a", data={"x": object()}),
    ],
    ids=repr,
)
def test_connecting_nonsense(nonsense: Any) -> None:
    troupe = bold(lambda client: nonsense)
    with log_of() as lines:
        person = arrives(troupe)
        assert person.told == [{"id": 1, "error": ERROR}] and person.closed is None
    assert len(lines) == 1 and "connecting for client" in lines[0]


@pytest.mark.parametrize(
    "nonsense",
    [
        True,
        Subscribing(expire_at="soon"),  # type: ignore[arg-type]
        Subscribing(expire_at=float("nan")),  # type: ignore[arg-type]
        Subscribing(expire_at=10**400),
        Subscribing(presence="yes"),  # type: ignore[arg-type]
        Subscribing(info=object()),
    ],
    ids=repr,
)
def test_subscribing_nonsense(nonsense: Any) -> None:
    troupe = bold(lambda client: nonsense)
    person = troupe.guest()
    with log_of() as lines:
        assert person.asks(subscribe={"channel": "act"})["error"] == ERROR
    assert len(lines) == 1 and "subscribing for client" in lines[0]
    assert person.closed is None and person.subscribes("b") == {}
    # The same, given to what an app does.
    with pytest.raises(Exception, match="must give"):
        troupe.client(person).subscribe("c", nonsense)


@pytest.mark.parametrize("nonsense", [None, object(), (each for each in ()), {1: object()}], ids=repr)
def test_publishing_nonsense(nonsense: Any) -> None:
    troupe = bold(lambda client: nonsense)
    person = troupe.guest()
    person.subscribes("a")
    with log_of() as lines:
        assert person.asks(publish={"channel": "a", "data": "act"})["error"] == ERROR
    assert len(lines) == 1 and person.heard == []


def test_a_view_that_is_no_key_or_no_answer_yet() -> None:
    for nonsense in ([1], Deferred()):
        troupe = bold(lambda client, nonsense=nonsense: nonsense)
        person = troupe.guest()
        with log_of() as lines:
            assert person.asks(subscribe={"channel": "seen"})["error"] == ERROR
        assert len(lines) == 1 and "view has given" in lines[0]
        assert person.closed is None
        with pytest.raises(TypeError):
            troupe.client(person).set_view("b", [1])  # type: ignore[arg-type]
        assert person.subscribes("b") == {}


def test_what_is_nested_too_deeply_is_refused() -> None:
    """The wire takes what is as deep as it can follow itself; a hook is called from deeper down."""
    troupe = bold(lambda client: None)
    codes: list[int] = []
    for levels in range(1000, 700, -2):
        person = troupe.guest()
        deep = b"[" * levels + b"]" * levels
        for command in (b'"publish":{"channel":"a"', b'"rpc":{"method":"echo"'):
            person.says(b'{"id":5,' + command + b',"data":' + deep + b"}}")
        replies = person.told
        codes += [reply["error"]["code"] for reply in replies if "error" in reply]
        assert person.closed in (None, (3501, "bad request"))
    assert codes and set(codes) <= {100, 107}
    assert troupe.guest().subscribes("a") == {}


def test_deep_data_of_other_protocols() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(Refused):
        payload_of(deep, Format.JSON)
    assert decoded(deep) == deep


# -- ends, in the middle of it -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_ends_its_own_client(kind: str) -> None:
    def act(client: Any) -> Any:
        return answered(kind, lambda: client.disconnect(4001, "out"))

    troupe = bold(act)
    with log_of() as lines:
        assert arrives(troupe).closed == (4001, "out")
        for command in COMMANDS.values():
            person = troupe.guest()
            person.says({"id": 3, **command})
            troupe.turn()
            assert person.closed == (4001, "out") and person.told == []
            person.leaves()
        person = troupe.guest()
        person.says({"send": {}})
        troupe.turn()
        assert person.closed == (4001, "out")
    assert not [line for line in lines if "publishing has given" not in line], lines
    told = troupe.app.told
    assert [each[0] for each in told] == ["connected", "disconnected"] * 3
    assert {each[2] for each in told if each[0] == "disconnected"} == {"4001 out"}
    assert not troupe.city.shards[0].channels.get("act")


def test_who_is_let_in_and_sent_away_at_once_is_nowhere() -> None:
    def act(client: Any) -> Any:
        client.disconnect(4001, "out")
        return Identity(user="ann", channels=["hall"])

    troupe = bold(act)
    assert arrives(troupe).closed == (4001, "out")
    assert not troupe.city.shards[0].channels.get("hall") and troupe.app.told == []


def test_connected_may_leave_a_channel_and_is_not_told_that_it_is_there() -> None:
    class Restless(Bold):
        def connected(self, client: Any) -> None:
            super().connected(client)
            client.unsubscribe("hall")

        def subscribed(self, client: Any, channel: str) -> None:
            super().subscribed(client, channel)
            client.unsubscribe("attic")

        act = staticmethod(lambda client: Identity(user="a", channels=["hall", "yard", "attic"]))

    troupe = Troupe(Restless)
    person = arrives(troupe)
    told = [each[:1] + each[2:] for each in troupe.app.told]
    assert told == [
        ("connected",),
        ("unsubscribed", "hall"),
        ("subscribed", "yard"),
        ("unsubscribed", "attic"),
    ]
    assert list(troupe.client(person).channels) == ["yard"]


def test_a_hook_has_its_own_time_and_the_hub_its_own() -> None:
    waiting: list[Deferred[Any]] = []

    def act(client: Any) -> Any:
        waiting.append(Deferred())
        return waiting[-1]

    troupe = bold(act, app={"hook_seconds": 20.0}, stale_close_delay=60.0)
    arriving = arrives(troupe, 8.0)
    person = troupe.guest()
    person.says({"id": 7, "subscribe": {"channel": "act"}})
    troupe.turn(8.0)
    for each in waiting:
        each.callback(None)
    troupe.turn()
    assert "connect" in arriving.told[0] and person.told == [{"id": 7, "subscribe": {}}]


def test_what_is_cancelled_and_fails_all_the_same_is_logged() -> None:
    async def stubborn() -> Any:
        try:
            await Deferred()
        except Exception:
            raise LookupError("no way back") from None

    def bad_canceller(_: Any) -> None:
        raise LookupError("no way out")

    with log_of() as lines:
        for act in (lambda client: stubborn(), lambda client: Deferred(bad_canceller)):
            troupe = bold(act)
            person, other = troupe.guest(), troupe.guest()
            person.says({"id": 3, "subscribe": {"channel": "act"}}, {"id": 4, "subscribe": {"channel": "a"}})
            person.leaves()
            assert other.subscribes("a") == {}
            troupe.turn(6.0)
    assert ["no way back" in lines[0], "no way out" in lines[1]] == [True, True]


def test_one_deferred_may_be_the_answer_to_several() -> None:
    shared: Deferred[Any] = Deferred()
    troupe = bold(lambda client: shared)
    people = [arrives(troupe) for _ in range(2)]
    shared.callback(Identity(user="ann"))
    troupe.turn()
    late = arrives(troupe)
    assert [troupe.client(each).user for each in [*people, late]] == ["ann"] * 3


def test_what_a_team_adds_to_a_deferred_and_fails_is_logged() -> None:
    troupe = Troupe(Cast)
    with log_of() as lines:
        troupe.app.publish("a", 1).addCallback(lambda _: 1 / 0)
        troupe.app.send_all(1).addCallback(lambda _: 1 / 0)
        troupe.turn()
        gc.collect()
    assert len(lines) == 2 and all("ZeroDivisionError" in line for line in lines)


# -- what is refused before it runs --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"views": ["["]},
        {"views": "room:*"},
        {"views": [5]},
        {"views": 5},
        {"publishing": 5},
    ],
    ids=repr,
)
def test_an_app_that_cannot_run_is_refused(wrong: dict[str, Any]) -> None:
    troupe = Troupe(Cast)
    before = troupe.app
    with pytest.raises(TypeError):
        troupe.swap(type("Wrong", (Cast,), wrong))
    assert (troupe.app is before and "connect" in troupe.guest().told) or True
    with pytest.raises(TypeError):
        look_at(loaded(type("Wrong", (Cast,), wrong)), None)


def test_an_app_that_is_only_looked_at_may_want_timers() -> None:
    class Punctual(Cast):
        def __init__(self) -> None:
            super().__init__()
            self.every(1.0, self.check)
            self.later(5.0, self.check)

        @every(2.0)
        def check(self) -> None:
            assert self.tables is None

    look_at(loaded(Punctual), None)

    class Hasty(Cast):
        def __init__(self) -> None:
            self.publish("a", 1)

    with pytest.raises(RuntimeError, match="publish: this app is only looked at"):
        look_at(loaded(Hasty), None)
    with pytest.raises(RuntimeError, match="in no shard"):
        construct(App, None).publish("a", 1)


# -- other shards --------------------------------------------------------------------------------------------


class Far(Cast):
    @remote
    def hello(self, data: Any) -> Any:
        return [self.shard, data]

    @remote
    def large(self, size: int) -> str:
        return "x" * size

    @remote
    def wrong(self, data: Any) -> Any:
        raise Refuse(4000, "not there")


class Farther(Far):
    @remote
    def newer(self) -> int:
        return self.shard


def test_methods_of_other_shards() -> None:
    troupe = Troupe(Far, shards=2)
    app = troupe.app
    assert sorted(troupe.result(app.call_shard(None, "hello", 3))) == [[1, 3], [2, 3]]
    assert troupe.result(app.call_shard(2, "hello", None)) == [2, None]
    with pytest.raises(RemoteError, match="4000 not there"):
        troupe.result(app.call_shard(None, "wrong"))
    with pytest.raises(RemoteError, match="bytes"):
        troupe.result(app.call_shard(2, "large", 1_200_000))
    with pytest.raises(RemoteError, match="no @remote 'newer'"):
        troupe.result(app.call_shard(None, "newer"))
    # A shard without an app has none of them, as one that was not updated yet.
    troupe.city.shards[0].control.on(KIND, without_app)
    assert troupe.result(app.call_shard(None, "hello", 3)) == [[2, 3]]
    with pytest.raises(RemoteError, match="this shard runs no app"):
        troupe.result(app.call_shard(1, "hello"))
    troupe.city.shards[0].control.on(KIND, troupe.host._called)
    troupe.swap(Farther, shard=1)
    assert troupe.result(app.call_shard(None, "newer")) == [2], "those that have it"
    with pytest.raises(RemoteError, match="of shard 1 has no @remote"):
        troupe.result(app.call_shard(1, "newer"))


def test_clients_of_other_shards_and_protocols() -> None:
    class Namer(Cast):
        def connecting(self, client: Any) -> Any:
            return Identity(user="bob") if client.transport == "text" else None

    troupe = Troupe(Namer, shards=2)
    text, guest = troupe.text(1), troupe.guest(1)
    id = text.session.client
    app = troupe.app
    assert text.heard == ["hi 1"] and troupe.client(text, 1).user == "bob"
    assert troupe.result(app.send({"a": 1}, user="bob")) == 1
    assert troupe.result(app.send("line", client=id)) == 1
    assert troupe.result(app.send_all([2])) == 2
    assert text.heard == ['{"a":1}', "line", "[2]"]
    assert guest.pushes == [{"message": {"data": [2]}}]
    assert troupe.result(app.subscribe("bob", "attic")) == 1
    assert list(troupe.client(text, 1).channels) == ["attic"]
    assert troupe.result(app.disconnect("", 4000, "out", client=id)) == 0, "it is bob's"
    assert troupe.result(app.disconnect("bob", 4000, "out", client=id)) == 1
    assert text.heard == ["error: out"]
    assert troupe.result(app.send("gone", user="bob")) == 0


def test_who_has_no_namespace_keeps_out() -> None:
    troupe = Troupe(Cast, channels=namespaces(room={}))
    person, text = troupe.guest(), troupe.text()
    for client in (troupe.client(person), troupe.client(text)):
        assert troupe.result(client.subscribe("nowhere:1")) is False
        assert troupe.result(client.subscribe("room:1")) is True
        assert "room:1" in client.channels


def test_a_client_that_goes_while_it_is_brought_somewhere() -> None:
    troupe = Troupe(Cast)
    person, text = troupe.guest(), troupe.text()
    troupe.city.exchange.cut()
    results: list[Any] = []
    for client in (troupe.client(person), troupe.client(text)):
        client.subscribe("far").addBoth(results.append)
    person.leaves()
    text.session.lost()
    troupe.city.exchange.restore()
    troupe.turn(6.0)
    assert results == [False, False]


def test_what_no_shard_could_read_is_not_published() -> None:
    app = Troupe(Cast, channels=namespaces(room={})).app
    for channel in ("", "\ud800", 5, "nowhere:1", "x" * 5000):
        with pytest.raises(LookupError):
            app.publish(channel, 1)
        with pytest.raises(LookupError):
            app.broadcast(["room:1", channel], 1)
    for how in ({"tags": {"a": 1}}, {"tags": {"\ud800": "a"}}, {"idempotency_key": 5}):
        with pytest.raises(TypeError):
            app.publish("room:1", 1, **how)
    with pytest.raises(Exception, match="publish has given object"):
        app.publish("room:1", object())


def test_an_error_with_a_long_text_does_not_fill_the_log() -> None:
    troupe = bold(raising(ValueError("x" * 1_000_000)))
    with log_of() as lines:
        troupe.guest().asks(subscribe={"channel": "act"})
    assert len(lines) == 1 and len(lines[0]) < 21_000


def test_raised_for_others() -> None:
    troupe = bold(raising(Disconnect(4500, "bye")))
    person = troupe.guest()
    person.says({"send": {"data": 1}})
    assert person.closed == (4500, "bye")


def test_a_client_is_named_by_its_id() -> None:
    """Else what it must not get would go to it, and what it should get to nobody."""
    troupe = Troupe(Cast, channels=namespaces(room={}))
    person = troupe.guest()
    app, client = troupe.app, troupe.client(person)
    wrong: Any = client
    for deed in (
        lambda: app.publish("room:1", 1, exclude=[wrong]),
        lambda: app.send(1, client=wrong),
        lambda: app.send(1, user=wrong),
        lambda: app.publish_user(wrong, 1),
        lambda: app.subscribe(wrong, "room:1"),
        lambda: app.subscribe("", "room:1", client=wrong),
        lambda: app.unsubscribe("", "room:1", client=wrong),
        lambda: app.disconnect("", 4500, "bye", client=wrong),
    ):
        with pytest.raises(TypeError, match="not Client"):
            deed()
    assert person.closed is None


def test_nobody_means_all_who_are_anonymous() -> None:
    troupe = Troupe(Cast)
    person, app = troupe.guest(), troupe.app
    for whom in (
        lambda: app.disconnect(""),
        lambda: app.subscribe("", "a"),
        lambda: app.unsubscribe(""),
        lambda: app.send(1, user=""),
    ):
        with pytest.raises(ValueError, match="give its id"):
            whom()
    assert person.closed is None
    app.disconnect("", client=person.client)
    troupe.turn()
    assert person.closed is not None and person.closed[0] == 4500


def test_what_looks_like_a_slip_of_the_pen_is_said() -> None:
    class Wrong(Cast):
        def publising(self) -> None: ...

        def connect(self) -> None: ...

        @rpc("subscribng")
        def subscribng(self, client: Any) -> None: ...

    slip = f"{Wrong.__qualname__}.publising is called by nobody; did you mean publishing?"
    assert look_at(loaded(Wrong), None) == [slip]
    assert look_at(loaded(Cast), None) == []


@pytest.mark.parametrize("does", ["return False", "raise KeyError('sword')"])
def test_an_async_check_is_asked_as_far_as_it_does_not_wait(does: str) -> None:
    names: dict[str, Any] = {}
    exec(f"async def check(self):\n    {does}", names)
    with pytest.raises((RuntimeError, KeyError), match=r"False|sword"):
        look_at(loaded(type("Wrong", (Cast,), {"check": names["check"]})), None)
