"""All shards are updated one after the other, until one refuses."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from spread.hub.api import HubCounters
from spread.node.app.reload import NO_APP, Reload, ShardOutcome
from spread.node.app.update import Outcome
from spread.node.metrics import ShardCounters, ShardMetrics
from spread.node.web.ops import ops_site
from spread.node.web.reload import ALIVE_SECONDS
from tests.fakes import HttpAnswer, asked
from tests.node.app.stage import log_of
from tests.node.fake_api import Cluster, Shard

LOAD_SECONDS = 5.0


def outcome(number: int, error: str = "") -> Outcome:
    version = "old" if error else f"new{number}"
    return Outcome(ok=not error, app="game:Game", version=version, before="old", error=error)


class FakeUpdater:
    """Updates when it is told to, or at once."""

    def __init__(self) -> None:
        self.under_way: list[Deferred[Outcome]] = []
        self.at_once: Outcome | None = None

    def update(self) -> Deferred[Outcome]:
        if self.at_once is not None:
            return succeed(self.at_once)
        self.under_way.append(Deferred())
        return self.under_way[-1]


class Shards:
    """Two shards with an app, and what the first one tells of the reload of both."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.clock = self.cluster.clock
        self.updaters = [FakeUpdater(), FakeUpdater()]
        self.reloads = [
            self.reload(shard, updater)
            for shard, updater in zip((self.cluster.first, self.cluster.second), self.updaters, strict=True)
        ]
        self.told: list[ShardOutcome] = []
        self.done: list[bool] = []

    def reload(self, shard: Shard, updater: FakeUpdater | None, app: str = "game:Game old") -> Reload:
        load = shard._load
        shard.hub.enter(lambda: msgspec.structs.replace(load(), app=app), lambda incumbent: None)
        return Reload(self.clock, shard.hub, shard.control, shard.incarnation, updater, LOAD_SECONDS)

    def begin(self) -> None:
        self.reloads[0].all(self.told.append).addCallback(self.done.append)

    def wait(self, seconds: float = 2.0) -> None:
        for _ in range(int(seconds / 0.1)):
            self.clock.advance(0.1)


@pytest.fixture
def shards() -> Shards:
    return Shards()


def test_one_after_the_other(shards: Shards) -> None:
    shards.begin()
    shards.wait()
    assert [len(each.under_way) for each in shards.updaters] == [1, 0]
    shards.updaters[0].under_way[0].callback(outcome(0))
    shards.wait(20.0)  # longer than a question may take
    assert [len(each.under_way) for each in shards.updaters] == [1, 1]
    assert [(one.shard, one.ok, one.version) for one in shards.told] == [(0, True, "new0")]
    shards.updaters[1].under_way[0].callback(outcome(1))
    shards.wait()
    assert [(one.shard, one.ok, one.version) for one in shards.told] == [(0, True, "new0"), (1, True, "new1")]
    assert shards.done == [True]
    assert shards.updaters[1].under_way[1:] == []


def test_the_first_that_refuses_is_the_last(shards: Shards) -> None:
    shards.updaters[0].at_once = outcome(0, "Traceback\n  line")
    shards.begin()
    shards.wait()
    assert [(one.shard, one.ok, one.error) for one in shards.told] == [
        (0, False, "Traceback\n  line"),
        (1, False, "not asked, since shard 0 has failed"),
    ]
    left = shards.told[1]
    assert (left.was_asked, left.app, left.version, left.before) == (False, "game:Game", "old", "old")
    assert (shards.done, shards.updaters[1].under_way) == ([False], [])


def test_what_a_shard_runs_is_told_before_the_roster_knows_it(shards: Shards) -> None:
    shards.updaters[0].at_once, shards.updaters[1].at_once = outcome(0), outcome(1)
    shards.begin()
    shards.wait()
    shards.updaters[0].at_once = outcome(0, "no")
    shards.begin()
    shards.wait()
    assert [one.version for one in shards.told if not one.was_asked] == ["new1"]
    shards.wait(10.0)
    shards.begin()
    shards.wait()
    assert shards.told[-1].version == "old"  # as the roster has it, whoever has told it so


def test_another_shard_refuses(shards: Shards) -> None:
    shards.updaters[0].at_once = outcome(0)
    shards.updaters[1].at_once = outcome(1, "no")
    shards.begin()
    shards.wait()
    assert [(one.shard, one.ok, one.error) for one in shards.told] == [(0, True, ""), (1, False, "no")]
    assert shards.done == [False]


def test_what_one_refused_a_second_reload_heals(shards: Shards) -> None:
    shards.updaters[0].at_once, shards.updaters[1].at_once = outcome(0), outcome(1, "no")
    shards.begin()
    shards.wait()
    shards.updaters[1].at_once = outcome(1)
    shards.begin()
    shards.wait()
    assert shards.done == [False, True]
    assert [(one.shard, one.ok) for one in shards.told] == [(0, True), (1, False), (0, True), (1, True)]


def test_one_reload_of_all_at_a_time(shards: Shards) -> None:
    shards.begin()
    shards.begin()
    assert [one.error for one in shards.told] == ["another reload of all shards is under way"]
    assert shards.done == [False]
    shards.updaters[0].under_way[0].callback(outcome(0, "no"))
    assert [one.was_asked for one in shards.told[1:]] == [True, False]
    shards.updaters[0].at_once = shards.updaters[1].at_once = outcome(0)
    shards.begin()
    shards.wait()
    assert shards.done == [False, False, True]


def test_a_shard_that_does_not_end_is_given_up(shards: Shards) -> None:
    shards.updaters[0].at_once = outcome(0)
    shards.begin()
    shards.wait(60.0)
    assert "whether it was updated is not known" in shards.told[-1].error
    assert shards.done == [False]
    assert len(shards.updaters[1].under_way) == 1


def test_a_shard_that_dies_is_told_of(shards: Shards) -> None:
    shards.updaters[0].at_once = outcome(0)
    shards.begin()
    shards.wait()
    shards.cluster.second.hub.stop()
    shards.wait(20.0)
    assert (shards.told[-1].shard, shards.told[-1].ok) == (1, False)
    assert "whether it was updated is not known" in shards.told[-1].error


def test_a_hub_that_is_away_for_a_moment_begins_nothing_twice(shards: Shards) -> None:
    shards.updaters[0].at_once = outcome(0)
    shards.begin()
    shards.wait()
    shards.cluster.exchange.cut()
    shards.wait()
    shards.cluster.exchange.restore()
    shards.wait()
    shards.updaters[1].under_way[0].callback(outcome(1))
    shards.wait()
    assert (shards.done, len(shards.updaters[1].under_way)) == ([True], 1)


def test_shards_without_an_app_are_passed_over(shards: Shards) -> None:
    shards.reloads[0] = shards.reload(shards.cluster.first, None, app="")
    shards.updaters[1].at_once = outcome(1)
    shards.begin()
    shards.wait()
    assert ([one.shard for one in shards.told], shards.done) == ([1], [True])


def test_no_shard_with_an_app_is_an_error(shards: Shards) -> None:
    for number, shard in enumerate((shards.cluster.first, shards.cluster.second)):
        shards.reloads[number] = shards.reload(shard, None, app="")
    shards.begin()
    assert shards.told[0].error == "no shard runs an app; it is started with --app MODULE:CLASS"
    assert shards.done == [False]


# -- over HTTP


def site(reload: Reload, clock: Clock | None = None) -> Any:
    return ops_site(clock or Clock(), ShardMetrics(ShardCounters(), HubCounters()), list, reload)


def post(shards: Shards, path: str, *headers: str, method: str = "POST") -> HttpAnswer:
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: here", "Content-Length: 0", *headers])
    return asked(site(shards.reloads[0]), f"{head}\r\n\r\n".encode())


def test_this_shard_alone(shards: Shards) -> None:
    shards.updaters[0].at_once = outcome(0)
    answer = post(shards, "/reload")
    told = msgspec.json.decode(answer.body)
    assert (answer.status, told["ok"], told["version"], told["error"]) == (200, True, "new0", "")
    shards.updaters[0].at_once = outcome(0, "Traceback")
    answer = post(shards, "/reload")
    told = msgspec.json.decode(answer.body)
    assert (answer.status, told["ok"], told["version"], told["error"]) == (409, False, "old", "Traceback")


def test_a_shard_without_an_app_says_so(shards: Shards) -> None:
    shards.reloads[0] = shards.reload(shards.cluster.first, None, app="")
    answer = post(shards, "/reload")
    assert (answer.status, msgspec.json.decode(answer.body)["error"]) == (409, NO_APP)


def test_only_those_who_mean_it_may(shards: Shards) -> None:
    assert post(shards, "/reload", method="GET").status == 405
    assert post(shards, "/reload", "Origin: https://elsewhere.example").status == 403
    assert shards.updaters[0].under_way == []


def connected(shards: Shards) -> tuple[Any, StringTransport]:
    protocol = site(shards.reloads[0], shards.clock).buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
    transport = StringTransport()
    protocol.makeConnection(transport)
    protocol.dataReceived(b"POST /reload?all=1 HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n")
    return protocol, transport


def test_all_shards_line_by_line(shards: Shards) -> None:
    _, transport = connected(shards)
    shards.updaters[0].under_way[0].callback(outcome(0))
    shards.wait()
    assert b'"shard":0' in transport.value() and b'"done"' not in transport.value()
    shards.updaters[1].under_way[0].callback(outcome(1))
    shards.wait()
    _, second, last = [line for line in transport.value().split(b"\r\n") if line.startswith(b"{")]
    assert (msgspec.json.decode(second)["shard"], msgspec.json.decode(last)) == (1, {"done": True})


def test_while_nothing_happens_it_says_that_it_goes_on(shards: Shards) -> None:
    _, transport = connected(shards)
    for times in range(1, 4):
        shards.wait(ALIVE_SECONDS + 0.5)
        assert transport.value().count(b"\r\n1\r\n\n") == times
    shards.updaters[0].under_way[0].callback(outcome(0, "no"))
    shards.wait()
    assert transport.value().count(b'"done":false') == 1
    shards.wait(ALIVE_SECONDS * 2)
    assert transport.value().count(b"\r\n1\r\n\n") == 3


def test_an_answer_that_cannot_be_made_ends_all_the_same(shards: Shards) -> None:
    shards.updaters[0].at_once = outcome(0, "\ud800")
    with log_of("spread.node.web") as logged:
        answer = post(shards, "/reload")
    assert (answer.status, answer.body) == (409, b"0\r\n\r\n")  # nothing, and that is all
    assert "UnicodeEncodeError" in logged[0]


def test_who_does_not_wait_for_the_end_stops_it(shards: Shards) -> None:
    protocol, _ = connected(shards)
    protocol.connectionLost(Failure(ConnectionDone()))
    shards.updaters[0].under_way[0].callback(outcome(0))
    shards.wait()
    assert shards.updaters[1].under_way == []
