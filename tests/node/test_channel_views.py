"""Publications that not all members get, or not all alike: exclusions, views, and keys of the latest."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator
from typing import Any, cast

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher

from spread.hub.api import Format, Position, Publication, PublishOptions
from spread.node import channel as channel_module
from spread.node import codes
from spread.node.channel import Channel
from spread.node.codec import Codec
from spread.node.cork import Cork
from spread.node.encoders import TEXT
from spread.node.metrics import ShardCounters
from spread.node.session.shared import Refused
from spread.node.settings import NamespaceOptions
from spread.node.views import Sight
from spread.node.wire.delta import apply
from tests.fakes import FakeMember, Loopback
from tests.node.people import LINES, City, namespaces

SHARD = bytes(8)


class Spectacles:
    """An app that shows what is in a publication under the view's name, and has a key where there is one."""

    def __init__(self, views: bool = True, latest: bool = False) -> None:
        self.views = views
        self.keys = latest
        self.view: Callable[[int], Hashable | None] = lambda number: None
        self.asked: list[Hashable | None] = []

    def has_views(self, channel: str) -> bool:
        return self.views and channel != "plain"

    def has_latest(self, channel: str) -> bool:
        return self.keys and channel != "plain"

    def view_of(self, number: int, channel: str) -> Hashable | None:
        return self.view(number)

    def see(self, channel: str, key: Hashable | None, data: Any) -> Any | None:
        self.asked.append(key)
        # It may do with the data what it likes.
        return data.pop(str(key), None) if isinstance(data, dict) else data

    def latest(self, channel: str, data: Any) -> Hashable | None:
        key: Hashable | None = data["id"]
        return key


@pytest.fixture
def failures() -> Iterator[list[LogEvent]]:
    """What is logged with a failure."""
    found: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        if "log_failure" in event:
            found.append(event)

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)


class Stage:
    """A channel with members, each with a view."""

    def __init__(
        self,
        *views: Hashable | None,
        lens: Spectacles | None = None,
        codec: Codec = TEXT,
        room: int | None = None,
    ) -> None:
        self.cork = Cork(Clock(), lambda: 0.0, 1.0)
        self.counters = ShardCounters()
        self.lens = lens
        sight = None if lens is None else Sight(lens, "a", self.counters)
        self.channel = Channel("a", None, self.counters, sight)
        self.channel.position = Position("epoch", 0)
        self.members = [FakeMember(number, self.cork, codec) for number in range(1, len(views) + 1)]
        for member, view in zip(self.members, views, strict=True):
            member.view = view
            self.channel.add(member)

    def publish(
        self, data: Any, *exclude: str, publisher: int = 0, offset: int = 0, delta: bool = False
    ) -> None:
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        publication = Publication(
            raw,
            Format.JSON,
            SHARD,
            publisher,
            offset,
            "epoch" if offset else "",
            delta=delta,
            exclude=exclude,
        )
        for _ in self.channel.fan_out(publication, publisher) or ():
            pass
        self.cork.flush(1.0)

    def heard(self) -> list[list[Any]]:
        return [[json.loads(line) for line in member.heard.splitlines()] for member in self.members]


# --- exclude ------------------------------------------------------------------------------------------


def test_who_is_excluded_does_not_get_it() -> None:
    stage = Stage(None, None, None)
    stage.publish(1, "client 2", "somebody elsewhere", "")
    stage.publish(2, publisher=3)
    stage.publish(3, "client 1", "client 3", publisher=3)
    assert stage.heard() == [[1, 2], [2, 3], [1]]
    assert stage.counters.deliveries == 2 + 2 + 1


def test_an_exclusion_of_nobody_here_is_an_ordinary_publication() -> None:
    stage = Stage(None, None)
    publication = Publication(b"1\n", Format.TEXT, SHARD, 0, exclude=("elsewhere",))
    assert stage.channel.fan_out(publication, 0) is None
    stage.cork.flush(1.0)
    assert stage.heard() == [[1], [1]]


def test_exclusions_follow_those_who_come_and_go() -> None:
    stage = Stage(None, None)
    stage.publish(1, "client 1")
    late = FakeMember(3, stage.cork)
    stage.channel.add(late)
    stage.channel.remove(stage.members[0])
    stage.members.append(late)
    stage.publish(2, "client 1", "client 3")
    assert stage.heard() == [[], [1, 2], []]


def _deltas(member: FakeMember) -> list[str]:
    """What a client with delta compression makes of what it got; it starts from nothing."""
    base, result = b"", []
    for line in member.heard.splitlines():
        pub = json.loads(line)["push"]["pub"]
        base = apply(base, pub["data"].encode(), 1 << 16) if "delta" in pub else pub["data"].encode()
        result.append(base.decode())
    return result


def _long(number: int) -> bytes:
    return json.dumps({"number": number, "words": "many of them " * 8}).encode()


def test_who_was_excluded_is_told_no_difference_to_what_it_did_not_get() -> None:
    assert LINES.full is not None
    stage = Stage(None, None, codec=LINES.full)
    for offset in range(1, 6):
        stage.publish(_long(offset), *["client 1"] * (offset == 3), offset=offset, delta=True)
    numbers = [[json.loads(each)["number"] for each in _deltas(member)] for member in stage.members]
    assert numbers == [[1, 2, 4, 5], [1, 2, 3, 4, 5]]
    assert b'"delta":true' in stage.members[0].heard.replace(b" ", b"")


def test_one_that_excluded_somebody_is_no_base_for_all() -> None:
    assert LINES.full is not None
    stage = Stage(None, codec=LINES.full)
    stage.publish(_long(1), offset=1, delta=True)
    stage.publish(_long(2), "client 1", offset=2, delta=True)
    late = FakeMember(2, stage.cork, LINES.full)
    given = Publication(_long(2), Format.JSON, SHARD, 0, 2, "epoch", delta=True, exclude=("client 1",))
    stage.channel.add_with_base(late, given)
    stage.publish(_long(3), offset=3, delta=True)
    assert [json.loads(each)["number"] for each in _deltas(stage.members[0])] == [1, 3]
    assert [json.loads(each)["number"] for each in _deltas(late)] == [3]


def test_runs_end_where_somebody_is_excluded() -> None:
    city = City()
    ann, ben = city.guest(), city.guest()
    for one in (ann, ben):
        one.subscribes("a")
    shard = city.shards[0]
    for number in range(6):
        options = PublishOptions(exclude=(ann.client,) if number in (0, 3) else ())
        publication = Publication(b"%d" % number, Format.JSON, bytes(8), 0, exclude=options.exclude)
        shard.fanout.received("a", publication)
    shard.fanout.read_done()
    city.turn()
    assert ann.heard == [1, 2, 4, 5]
    assert ben.heard == [0, 1, 2, 3, 4, 5]


def test_excluded_on_all_shards_and_in_what_is_read_later() -> None:
    kept = NamespaceOptions(
        history_size=9,
        history_ttl=60,
        force_recovery=True,
        allow_history_for_subscriber=True,
        allow_subscribe_for_client=True,
        allow_subscribe_for_anonymous=True,
    )
    city = City(namespaces(kept), shards=2)
    ann, ben = city.guest(0), city.guest(1)
    epoch = ann.subscribes("a")["epoch"]
    ben.subscribes("a")
    options = city.namespaces.options("a")
    assert options is not None and options.history is not None
    for number in (1, 2, 3):
        exclude = (ben.client,) if number == 2 else (ann.client,) if number == 3 else ()
        wanted = PublishOptions(history=options.history, exclude=exclude)
        city.shards[0].hub.publish("a", b"%d" % number, Format.JSON, 0, wanted)
    city.turn()
    assert (ann.heard, ben.heard) == ([1, 2], [1, 3])
    for one, expected in ((ann, [1, 2]), (ben, [1, 3])):
        read = one.asks(history={"channel": "a", "limit": 9})["history"]
        assert ([each["data"] for each in read["publications"]], read["offset"]) == (expected, 3)
        one.asks(unsubscribe={"channel": "a"})
        back = one.subscribes("a", recover=True, epoch=epoch, offset=0)
        assert back["recovered"]
        assert [each["data"] for each in back["publications"]] == expected


# --- views --------------------------------------------------------------------------------------------


def test_the_app_is_asked_once_for_each_view() -> None:
    stage = Stage("red", "blue", "red", "grey", None, lens=Spectacles())
    stage.publish({"red": 1, "blue": 2, "None": 3})
    assert stage.heard() == [[1], [2], [1], [], [3]]
    assert stage.lens is not None
    assert sorted(map(str, stage.lens.asked)) == ["None", "blue", "grey", "red"]
    counters = stage.counters
    assert (counters.views_seen, counters.deliveries, counters.lens_errors) == (4, 4, 0)


def test_views_that_get_the_same_share_its_bytes() -> None:
    stage = Stage("red", "blue", lens=Spectacles(), codec=LINES)
    stage.publish({"red": [1], "blue": [1]})
    assert stage.members[0].heard == stage.members[1].heard
    assert stage.counters.encoded == 1


def test_a_view_is_changed() -> None:
    stage = Stage("red", "blue", lens=Spectacles())
    stage.publish({"red": 1, "blue": 2})
    stage.channel.set_view(stage.members[0], "blue")
    stage.publish({"red": 3, "blue": 4})
    assert stage.heard() == [[1, 4], [2, 4]]
    with pytest.raises(TypeError):
        stage.channel.set_view(stage.members[0], cast(Hashable, ["no", "key"]))
    assert stage.members[0].view == "blue"


def test_exclusion_and_publisher_with_views() -> None:
    stage = Stage("red", "red", "red", lens=Spectacles())
    stage.publish({"red": 1}, "client 1", publisher=3)
    assert stage.heard() == [[], [1], []]
    stage.publish({"blue": 1}, "client 1")
    assert stage.counters.deliveries == 1


def test_errors_of_the_app_harm_one_view_only(failures: list[LogEvent]) -> None:
    lens = Spectacles()
    stage = Stage("good", "bad", "wrong", lens=lens)

    def see(channel: str, key: Hashable | None, data: Any) -> Any:
        if key == "bad":
            raise RuntimeError("a defect of the app")
        return object() if key == "wrong" else data

    lens.see = see  # type: ignore[method-assign]
    stage.publish(1)
    assert stage.heard() == [[1], [], []]
    assert stage.counters.lens_errors == 2
    assert stage.counters.deliveries == 1
    assert ["defect" in event["log_failure"].getErrorMessage() for event in failures] == [True, False]


def test_a_flood_of_errors_is_counted_and_not_logged(failures: list[LogEvent]) -> None:
    stage = Stage("red", lens=Spectacles(views=False, latest=True))
    for number in range(100):
        stage.publish(number)  # a number has no ["id"]
    assert stage.counters.lens_errors == 100
    assert stage.heard() == [list(range(100))]
    assert len(failures) == 10


@pytest.mark.parametrize(
    ("format", "data", "seen", "expected"),
    [
        (Format.TEXT, b"hello\r\n", "HELLO", b"HELLO\r\n"),
        (Format.BINARY, b"\x00\xff", b"\xff", b"\xff"),
        (Format.JSON, b'{"a":1}', {"a": 2}, b'{"a":2}'),
        (Format.TEXT, b"hello\n", "two\nlines", None),
        (Format.TEXT, b"hello\n", b"bytes", None),
        (Format.BINARY, b"\x00", "text", None),
    ],
)
def test_the_format_stays(
    format: Format, data: bytes, seen: Any, expected: bytes | None, failures: list[LogEvent]
) -> None:
    lens = Spectacles()
    given: list[Any] = []
    lens.see = lambda channel, key, data: (given.append(data), seen)[1]  # type: ignore[method-assign]
    shown = Sight(lens, "a", ShardCounters()).see(None, Publication(data, int(format), SHARD, 0))
    assert (None if shown is None else shown.data) == expected
    assert len(failures) == (expected is None)
    assert given == [{"a": 1} if format is Format.JSON else "hello" if format is Format.TEXT else data]


def test_a_large_channel_with_views_is_served_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "MEMBERS_PER_STEP", 2)
    stage = Stage("red", "red", "red", "blue", "blue", lens=Spectacles())
    pieces = stage.channel.fan_out(Publication(b'{"red":1,"blue":2}', Format.JSON, SHARD, 0), 0)
    assert pieces is not None
    next(pieces)
    stage.channel.remove(stage.members[2])
    # Who changes its view meanwhile gets this one as it was seen when it began.
    stage.channel.set_view(stage.members[4], "red")
    list(pieces)
    stage.cork.flush(1.0)
    assert stage.heard() == [[1], [1], [], [2], [2]]


def test_views_of_clients_live_recovered_and_from_the_history() -> None:
    kept = NamespaceOptions(
        history_size=9,
        history_ttl=60,
        force_recovery=True,
        allowed_delta_types=("fossil",),
        allow_history_for_client=True,
        allow_history_for_anonymous=True,
        allow_subscribe_for_client=True,
        allow_subscribe_for_anonymous=True,
    )
    city = City(namespaces(kept))
    shard = city.shards[0]
    lens = Spectacles()
    ann, ben = city.guest(), city.guest()
    lens.view = {ann.session.number: "red", ben.session.number: "blue"}.get
    shard.channels.lens = lens
    start = ann.subscribes("a", delta="fossil")
    assert "delta" not in start
    options = city.namespaces.options("a")
    assert options is not None
    for number in range(3):
        data = json.dumps({"red": number, **({"blue": -number} if number else {})}).encode()
        shard.hub.publish("a", data, Format.JSON, 0, PublishOptions(history=options.history, delta=True))
    city.turn()
    assert ann.heard == [0, 1, 2]
    # Who is no member reads with its own view, too.
    read = ben.asks(history={"channel": "a", "limit": -1})["history"]
    assert [each["data"] for each in read["publications"]] == [-1, -2]
    back = ben.subscribes("a", recover=True, epoch=start["epoch"], offset=0)
    assert back["recovered"]
    assert [each["data"] for each in back["publications"]] == [-1, -2]
    shard.channels.set_view(ben.session.number, "a", "red")
    shard.channels.set_view(ben.session.number, "elsewhere", "red")
    shard.channels.set_view(999, "a", "red")
    shard.hub.publish("a", b'{"red":7}', Format.JSON, 0, PublishOptions(history=options.history))
    city.turn()
    assert (ann.heard, ben.heard) == ([7], [7])
    read = ben.asks(history={"channel": "a", "limit": -1})["history"]
    assert [each["data"] for each in read["publications"]] == [0, 1, 2, 7]


def test_the_app_may_refuse_when_it_is_asked_for_the_view() -> None:
    city = City()
    lens = Spectacles()
    ann = city.guest()

    def refuse(number: int) -> None:
        raise Refused(codes.PERMISSION_DENIED)

    lens.view = refuse
    city.shards[0].channels.lens = lens
    assert ann.asks(subscribe={"channel": "a"})["error"]["code"] == 103
    assert "error" not in ann.asks(subscribe={"channel": "plain"})
    assert city.shards[0].channels.get("a") is None, "nothing is left behind"


def test_another_app_looks_at_channels_that_are_there() -> None:
    city = City()
    ann = city.guest()
    ann.subscribes("a")
    shard = city.shards[0]
    lens = Spectacles()
    lens.view = lambda number: "red"
    shard.channels.lens = lens

    def heard(data: dict[str, int]) -> list[Any]:
        shard.hub.publish("a", json.dumps(data).encode(), Format.JSON, 0)
        city.turn()
        return ann.heard

    assert heard({"red": 1}) == [1]
    ann.session.subscriptions["a"].set_view("blue")
    shard.channels.lens = Spectacles()
    assert heard({"red": 1, "blue": 2}) == [2], "the view outlives the app"
    shard.channels.lens = None
    assert heard({"red": 1}) == [{"red": 1}]


def test_text_clients_have_views_too() -> None:
    loopback = Loopback()
    lens = Spectacles()
    lens.view = lambda number: number
    lens.see = lambda channel, key, data: f"{data} for {key}"  # type: ignore[method-assign]
    loopback.channels.lens = lens
    ann, ben = loopback.client(), loopback.client()
    loopback.turn()
    ann.says(b"hello\n")
    loopback.turn()
    assert ben.lines[-1] == "hello for 2"
    assert "hello" not in ann.lines[-1]


# --- the latest only ----------------------------------------------------------------------------------


def test_only_who_does_not_read_misses_what_was_replaced() -> None:
    stage = Stage(None, None, lens=Spectacles(views=False, latest=True))
    slow = stage.members[1].transport
    slow.room = 0
    stage.publish({"id": "x", "n": 0})  # of this the kernel might have taken a part: it stays
    for number in range(1, 4):
        stage.publish({"id": "x", "n": number})
        stage.publish({"id": "y", "n": number})
    stage.publish({"id": None, "n": 4})
    stage.publish({"id": "x", "n": 5})
    slow.drain()
    quick, late = stage.heard()
    assert len(quick) == 9
    assert [(each["id"], each["n"]) for each in late] == [("x", 0), ("y", 3), (None, 4), ("x", 5)]
    assert stage.counters.superseded == 5


def test_latest_with_views() -> None:
    lens = Spectacles(latest=True)
    lens.latest = lambda channel, data: "state"  # type: ignore[method-assign]
    stage = Stage("red", "blue", lens=lens)
    for member in stage.members:
        member.transport.room = 0
    for number in range(4):
        stage.publish({"red": number, **({"blue": number} if number < 3 else {})})
    for member in stage.members:
        member.transport.drain()
    # What is not shown to a view replaces nothing there.
    assert stage.heard() == [[0, 3], [0, 2]]
