"""The Twisted client, and the commands built on it, against real shards."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any, cast

import pytest
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from spread.client import Client, Refused, StreamPosition
from tests.client.test_cli import Program
from tests.live.cluster import API_KEY, Cluster, token

pytestmark = pytest.mark.live

reactor = cast(Any, global_reactor)
SPREAD = [sys.executable, "-m", "spread.client"]
PATH = "/connection/websocket"
SECONDS = 30


def spread(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*SPREAD, *arguments], input=given, capture_output=True, timeout=SECONDS)


class OfShards(TestCase):
    timeout = 30
    cluster: Cluster

    @pytest.fixture(autouse=True)
    def _shards(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def client(self, shard: int = 0, user: str = "", **options: Any) -> Client:
        url = self.cluster.url(shard) + PATH
        user = user or self.cluster.fresh("user")
        client = Client(reactor, url, token=token(user), min_reconnect_seconds=0.05, **options)
        self.addCleanup(client.close)
        return client

    def api(self, method: str, **params: Any) -> Deferred[Any]:
        return deferToThread(self.cluster.api, method, 1, **params)

    @inlineCallbacks
    def until(self, is_so: Any) -> Any:
        deadline = time.monotonic() + 20
        while not is_so():
            assert time.monotonic() < deadline, "it did not come to be"
            turn: Deferred[None] = Deferred()
            reactor.callLater(0.01, turn.callback, None)
            yield turn

    @inlineCallbacks
    def everything(self, protocol: Any) -> Any:
        channel = self.cluster.fresh("kept:")
        client = self.client(protocol=protocol)
        sub = client.new_subscription(channel)
        heard: list[tuple[int, Any]] = []
        sub.on_publication(lambda each: heard.append((each.offset, json.loads(each.data))))
        yield client.connect()
        subscribed = yield sub.subscribe()
        self.assertTrue(subscribed.recoverable)
        yield client.publish(channel, {"n": 1})
        yield sub.publish({"n": 2})
        yield self.api("publish", channel=channel, data={"n": 3})
        yield self.until(lambda: len(heard) == 3)
        self.assertEqual(heard, [(n, {"n": n}) for n in (1, 2, 3)])
        history = yield sub.history(limit=2, reverse=True)
        self.assertEqual([each.offset for each in history.publications], [3, 2])
        self.assertEqual(sub.position, StreamPosition(3, history.epoch))
        presence = yield sub.presence()
        self.assertEqual(list(presence), [client.client_id])
        stats = yield client.presence_stats(channel)
        self.assertEqual((stats.num_clients, stats.num_users), (1, 1))
        error = yield self.assertFailure(client.rpc("none"), Refused)
        self.assertEqual(error.code, 108)
        yield sub.unsubscribe()
        stats = yield client.presence_stats(channel)
        self.assertEqual(stats.num_clients, 0)

    def test_everything_in_json(self) -> Any:
        return self.everything("json")

    def test_everything_in_protobuf(self) -> Any:
        return self.everything("protobuf")

    @inlineCallbacks
    def test_nothing_is_missed_over_forced_reconnects(self) -> Any:
        channel, user = self.cluster.fresh("long:"), self.cluster.fresh("user")
        client = self.client(user=user)
        heard: list[int] = []
        made: list[Any] = []
        client.on_connected(made.append)
        sub = client.new_subscription(channel)
        sub.on_publication(lambda each: heard.append(int(each.data)))
        client.connect().addErrback(lambda _: None)
        yield sub.subscribe()
        for number in range(60):
            if number % 20 == 10:
                connections = 1 + number // 20
                yield self.until(lambda count=connections: len(made) == count)
                disconnect = {"code": 3001, "reason": "shutdown"}
                yield self.api("disconnect", user=user, disconnect=disconnect)
            yield self.api("publish", channel=channel, data=number)
        yield self.until(lambda: len(heard) >= 60 and len(made) == 4)
        self.assertEqual(heard, list(range(60)))

    @inlineCallbacks
    def differences(self, protocol: Any) -> Any:
        channel = self.cluster.fresh("delta:")
        client = self.client(protocol=protocol)
        sub = client.new_subscription(channel, delta=True)
        heard: list[Any] = []
        errors: list[Any] = []
        sub.on_publication(lambda each: heard.append(json.loads(each.data)))
        sub.on_error(errors.append)
        client.connect().addErrback(lambda _: None)
        yield sub.subscribe()
        states = [{"arena": "é" * 40, "tick": tick, "players": list(range(20))} for tick in range(10)]
        for state in states:
            yield self.api("publish", channel=channel, data=state)
        yield self.until(lambda: len(heard) + len(errors) >= 10)
        self.assertEqual((heard, errors), (states, []))

    def test_differences_in_json(self) -> Any:
        return self.differences("json")

    def test_differences_in_protobuf(self) -> Any:
        return self.differences("protobuf")

    @inlineCallbacks
    def test_server_side_subscriptions(self) -> Any:
        channel, user = self.cluster.fresh("kept:"), self.cluster.fresh("user")
        client = self.client(user=user)
        told: list[Any] = []
        client.on_subscribed(lambda event: told.append(event.channel))
        client.on_publication(lambda channel, each: told.append((channel, each.data)))
        client.on_unsubscribed(lambda event: told.append(event.code))
        yield client.connect()
        yield self.api("subscribe", user=user, channel=channel)
        yield self.api("publish", channel=channel, data=1)
        yield self.until(lambda: len(told) == 2)
        yield self.api("unsubscribe", user=user, channel=channel)
        yield self.until(lambda: len(told) == 3)
        self.assertEqual(told, [channel, (channel, b"1"), 2000])


def test_tail_publish_and_token(cluster: Cluster) -> None:
    channel = cluster.fresh("kept:")
    url = cluster.url(0) + PATH
    bearer = token(cluster.fresh("user"))
    api = cluster.url(1).replace("ws:", "http:") + "/api"
    tail = Program(*SPREAD, "tail", channel, "--json", "--count", "4", "--url", url, "--token", bearer)
    try:
        tail.err.until(rb"listening to ")
        assert spread("publish", channel, "-", "--url", url, "--token", bearer, given=b"1\n2\n").stderr == b""
        assert (
            spread("publish", channel, "three", "--protobuf", "--url", url, "--token", bearer).stderr == b""
        )
        assert spread("publish", channel, "{}", "--api", api, "--key", API_KEY).stderr == b""
        assert tail.exit_code() == 0, tail.err.rest()
        events = [json.loads(line) for line in tail.out.rest().splitlines()]
    finally:
        tail.close()
    assert [event["data"] for event in events] == [1, 2, "three", {}]
    assert [event["offset"] for event in events] == [1, 2, 3, 4]
    since = spread("tail", channel, "--since", "all", "--count", "4", "--url", url, "--token", bearer)
    assert since.stdout == b'1\n2\n"three"\n{}\n'


def test_refusals_are_told(cluster: Cluster) -> None:
    url = cluster.url(0) + PATH
    done = spread("tail", "a", "--url", url)
    assert (done.returncode, b"(3501)" in done.stderr) == (1, True), done.stderr
    done = spread("tail", "a", "--url", url, "--token", "nonsense")
    assert (done.returncode, b"(3500)" in done.stderr) == (1, True), done.stderr
    done = spread("tail", "a", "--url", url, "--token", token("u", exp=1))
    assert (done.returncode, b"(109)" in done.stderr) == (1, True), done.stderr
    done = spread("tail", "nowhere:1", "--url", url, "--token", token("u"))
    assert (done.returncode, b"(102)" in done.stderr) == (1, True), done.stderr
    done = spread("publish", "closed:1", "1", "--url", url, "--token", token("u"))
    assert (done.returncode, b"(103)" in done.stderr) == (1, True), done.stderr
