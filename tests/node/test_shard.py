"""One shard: how it starts, what it tells of itself, how it stops."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, globalLogPublisher

from spread.hub.api import Incumbent, Load
from spread.hub.errors import HubRefused, HubUnavailable, LeaseTaken
from spread.node import shard as shard_module
from spread.node.listen import CannotListen, bind
from spread.node.shard import RESERVED_FILES, ShardState
from tests.cluster.shards import ClusterCase, RunningShard, reactor
from tests.fakes import identity


class ShardCase(ClusterCase):
    def events(self) -> list[LogEvent]:
        """What is logged from now on."""
        events: list[LogEvent] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        return events

    async def get(self, running: RunningShard, service: str, path: str) -> tuple[int, str]:
        """Status and body of an HTTP answer."""
        peer = await self.connect(running, service)
        peer.says(f"GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
        await peer.ended()
        head, _, body = peer.heard.decode().partition("\r\n\r\n")
        return int(head.split()[1]), body


class Starting(ShardCase):
    async def test_the_ready_line(self) -> None:
        running = await self.start(3, node={"ops": "127.0.0.1:0"}, services=("text", "http"))
        ports = [running.port(service) for service in ("text", "http", "ops")]
        self.assertEqual(len(set(ports)), 3)
        text, http, ops = (f"127.0.0.1:{port}" for port in ports)
        self.assertEqual(running.ready_line, f"ready shard=3 text={text} http={http} ops={ops} hub=memory")
        self.assertEqual(running.shard.state, ShardState.READY)

    async def test_services_that_are_off(self) -> None:
        running = await self.start(0, services=())
        self.assertEqual(running.ready_line, "ready shard=0 text=off http=off ops=off hub=memory")

    async def test_the_number_of_the_shard_is_added_to_the_ops_port(self) -> None:
        with bind("127.0.0.1", 0, shared=False) as sock:
            port = sock.getsockname()[1]
        running = await self.start(7, node={"ops": f"127.0.0.1:{port - 7}"})
        self.assertEqual(running.port("ops"), port)

    async def test_open_files_for_a_few_clients_are_warned_of(self) -> None:
        events = self.events()
        running = self.shard(0, node={"max_http_connections": 900}, file_limit=970)
        await running.shard.start(running.lost)
        [warning] = [event for event in events if "clients fit" in str(event.get("log_format"))]
        self.assertEqual((warning["most"], warning["http"]), (6, 900))

    async def test_the_lowest_free_number(self) -> None:
        numbers = []
        for _ in range(3):
            running = await self.start()
            numbers.append(running.shard.number)
        self.assertEqual(numbers, [0, 1, 2])
        await self.shards[1].shard.stop()
        again = await self.start()
        self.assertEqual(again.shard.number, 1)

    async def test_a_number_that_is_taken(self) -> None:
        await self.start(5)
        late = self.shard(5)
        with self.assertRaises(LeaseTaken):
            await late.shard.start(late.lost)
        text = late.shard._sockets["text"]
        self.assertEqual(text.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), 0, "took no clients")
        await late.shard.stop()
        self.assertEqual(text.fileno(), -1)
        self.assertIn(5, self.exchange.leases, "the other's lease is not given back")

    async def test_a_hub_that_is_not_there(self) -> None:
        self.exchange.cut()
        running = self.shard(0)
        with self.assertRaises(HubUnavailable):
            await running.shard.start(running.lost)
        await running.shard.stop()
        self.assertEqual(running.shard.state, ShardState.STOPPED)

    async def test_an_ops_port_that_is_taken_gives_the_lease_back(self) -> None:
        with bind("127.0.0.1", 0, shared=False) as sock:
            sock.listen()
            running = self.shard(0, node={"ops": f"127.0.0.1:{sock.getsockname()[1]}"})
            with self.assertRaises(CannotListen):
                await running.shard.start(running.lost)
        self.assertEqual(list(self.exchange.leases), [0])
        await running.shard.stop()
        self.assertEqual(list(self.exchange.leases), [])

    async def test_a_public_port_that_cannot_listen_closes_those_that_can(self) -> None:
        running = self.shard(0, node={"ops": "127.0.0.1:0"}, services=("text", "http"))
        running.shard._sockets["http"].close()
        with self.assertRaises(OSError):
            await running.shard.start(running.lost)
        ports = [port.getHost().port for port in (*running.shard._ports.values(), running.shard._ops_port)]  # type: ignore
        await running.shard.stop()
        self.assertEqual(self.exchange.leases, {})
        self.assertEqual(len(ports), 2)
        for port in ports:
            with socket.socket() as sock:
                self.assertNotEqual(sock.connect_ex(("127.0.0.1", port)), 0)

    async def test_the_first_heartbeat_says_ready(self) -> None:
        loads: list[Load] = []
        running = self.shard(0)
        running.hub.enter = lambda load, lost: loads.append(load())  # type: ignore[method-assign]
        running.ready_line = await running.shard.start(running.lost)
        self.assertEqual([load.ready for load in loads], [True])
        self.assertEqual(loads[0].addresses["text"], f"127.0.0.1:{running.port('text')}")

    async def test_files_bound_the_clients(self) -> None:
        cases = [(0, 100, 36), (10, 100, 10), (99, 100, 36), (0, 10, 1)]
        for max_clients, files, expected in cases:
            node = {"max_clients": max_clients, "max_http_connections": 7}
            running = self.shard(node=node, file_limit=files + 7)
            self.assertEqual(running.shard._admission.max_clients, expected)
        self.assertEqual(RESERVED_FILES, 64)


class Running(ShardCase):
    async def test_healthy_and_ready(self) -> None:
        running = await self.start(0, node={"ops": "127.0.0.1:0"}, services=("text", "http"))
        self.assertEqual(await self.get(running, "http", "/health"), (200, "{}"))
        self.assertEqual(await self.get(running, "ops", "/healthz"), (200, "ok\n"))
        self.assertEqual(await self.get(running, "ops", "/readyz"), (200, "ready\n"))

    async def test_why_it_is_not_ready(self) -> None:
        running = await self.start(0, node={"ops": "127.0.0.1:0", "max_clients": 1})
        await self.greeted(running, 1)
        self.exchange.cut()
        running.hub._number = None  # the lease has run out
        reasons = "the hub memory is away\nthe lease of shard 0 could not be renewed\nfull: 1 clients\n"
        self.assertEqual(await self.get(running, "ops", "/readyz"), (503, reasons))
        self.assertEqual(await self.get(running, "ops", "/healthz"), (200, "ok\n"))

    async def test_metrics(self) -> None:
        running = await self.start(0, node={"ops": "127.0.0.1:0", "max_clients": 5})
        first, second = await self.greeted(running, 1), await self.greeted(running, 2)
        first.says(b"one\n")
        await second.hears(b"hi 2\none\n")
        status, body = await self.get(running, "ops", "/metrics")
        self.assertEqual(status, 200)
        for line in (
            "spread_clients 2.0",
            "spread_connects_total 2.0",
            "spread_messages_in_total 1.0",
            "spread_deliveries_total 1.0",
            "spread_hub_published_total 1.0",
            'spread_limit{setting="node.max_clients"} 5.0',
            'spread_limit{setting="text.message_max_bytes"} 65536.0',
        ):
            self.assertIn(f"\n{line}\n", body)

    async def test_every_limit_of_the_settings_is_told(self) -> None:
        running = await self.start(0)
        told = running.shard._metrics._limits
        settings: Any = running.shard._settings
        limits = {
            f"{section}.{name}"
            for section in ("node", "hub", "text", "app")
            for name in type(getattr(settings, section)).__struct_fields__
            if "max_" in name
        }
        self.assertEqual(told.keys(), limits)

    async def test_the_number_is_taken_by_another(self) -> None:
        entered: list[Any] = []
        running = self.shard(0)
        running.hub.enter = lambda load, lost: entered.append(lost)  # type: ignore[method-assign]
        await running.shard.start(running.lost)
        holder = Incumbent(shard=0, identity=identity(pid=77))
        entered[0](holder)
        self.assertTrue(running.is_lost)
        self.assertEqual(running.shard.lost_to, holder)

    async def test_a_summary_is_logged_when_there_is_something_to_tell(self) -> None:
        self.patch(shard_module, "SUMMARY_SECONDS", 0.05)
        events = self.events()

        def summaries() -> list[tuple[int, int, int, int]]:
            names = ("clients", "connects", "spread", "deliveries")
            return [tuple(event[name] for name in names) for event in events if "deliveries" in event]  # type: ignore

        running = await self.start(0)
        first, second = await self.greeted(running, 1), await self.greeted(running, 2)
        await self.until(lambda: sum(connects for _, connects, _, _ in summaries()) == 2)
        seen = len(summaries())
        await deferLater(reactor, 0.12)
        self.assertEqual(len(summaries()), seen, "silence is not told")
        first.says(b"one\n")
        await second.hears(b"hi 2\none\n")
        await self.until(lambda: len(summaries()) > seen)
        self.assertEqual(summaries()[-1], (2, 0, 1, 1))


class Stopping(ShardCase):
    async def test_it_stops_once_for_everybody_who_asks(self) -> None:
        running = await self.start(0, node={"ops": "127.0.0.1:0"}, services=("text", "http"))
        ports = [running.port(service) for service in ("text", "http", "ops")]
        asked = [running.shard.stop(), running.shard.stop()]
        self.assertEqual(running.shard.state, ShardState.STOPPING)
        self.assertIn("the shard is stopping", running.shard.reasons_not_ready())
        for one in asked:
            await one
        await running.shard.stop()
        self.assertEqual(running.shard.state, ShardState.STOPPED)
        self.assertEqual(self.exchange.leases, {})
        for port in ports:
            with socket.socket() as sock:
                self.assertNotEqual(sock.connect_ex(("127.0.0.1", port)), 0)

    async def test_a_shard_that_was_never_started(self) -> None:
        running = self.shard()
        sock = running.shard._sockets["text"]
        await running.shard.stop()
        self.assertEqual(sock.fileno(), -1)

    async def test_what_was_said_is_delivered_before_the_goodbye(self) -> None:
        running = await self.start(0)
        first, second = await self.greeted(running, 1), await self.greeted(running, 2)
        self.exchange.cut()
        first.says(b"one\n")
        await self.until(lambda: running.hub.counters.journal_publications == 1)
        stopping = running.shard.stop()
        await deferLater(reactor, 0.1)
        self.assertEqual(second.heard, b"hi 2\n")
        self.exchange.restore()
        await stopping
        self.assertEqual(second.heard, b"hi 2\none\nbye 0\n")

    async def test_a_hub_that_is_away_does_not_hold_it_up_for_longer_than_it_may(self) -> None:
        running = await self.start(0, node={"stop_seconds": 0.5})
        peer = await self.greeted(running, 1)
        self.exchange.cut()
        peer.says(b"one\n")
        await self.until(lambda: running.hub.counters.journal_publications == 1)
        started = reactor.seconds()
        await running.shard.stop()
        self.assertLess(reactor.seconds() - started, 1.0)
        self.assertEqual(running.counters.publish_errors, 1)
        self.assertIn(b"bye 0\n", peer.heard)

    async def test_clients_who_wait_for_the_hub_are_told_and_what_they_said_is_kept(self) -> None:
        ears = self.listen("lobby")
        running = await self.start(0, node={"stop_seconds": 1.0})
        self.exchange.cut()
        peer = await self.connect(running)
        peer.says(b"one\n")
        await self.until(lambda: running.counters.clients == 1)
        (session,) = running.shard._text.sessions.values()
        await self.until(lambda: session._inbox is not None)
        stopping = running.shard.stop()
        await peer.ended()
        self.assertEqual(peer.heard, b"bye 0\n")
        self.exchange.restore()
        await stopping
        await self.hear(ears, b"one\n")

    async def test_errors_on_the_way_are_logged_and_the_lease_is_given_back(self) -> None:
        running = await self.start(0)

        def broken(shard: int) -> None:
            raise RuntimeError("a bug")

        running.shard._text.say_goodbye = broken  # type: ignore[method-assign]
        await running.shard.stop()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.exchange.leases, {})

    async def test_a_hub_that_cannot_be_left(self) -> None:
        events = self.events()
        for error in (HubRefused("memory", "no"), RuntimeError("a bug")):
            running = await self.start()
            self.addCleanup(running.hub.stop)
            running.hub.stop = lambda error=error: fail(error)  # type: ignore
            await running.shard.stop()
            self.assertEqual(running.shard.state, ShardState.STOPPED)
        told = [str(event["error"]) for event in events if "error" in event]
        self.assertEqual(told, ["the hub memory refused: no"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    async def test_a_server_that_is_ours_is_prepared_before_the_hub_starts(self) -> None:
        running = self.shard(0)
        prepared: Deferred[None] = Deferred()
        running.shard._opened = type(running.shard._opened)(running.hub, lambda: prepared)
        starting = Deferred.fromCoroutine(running.shard.start(running.lost))
        self.assertEqual(running.shard.state, ShardState.STARTING)
        self.assertFalse(running.hub.is_live)
        prepared.callback(None)
        running.ready_line = await starting
        self.assertTrue(running.hub.is_live)
