"""The emulation endpoint over real sockets: what clients of streams say after they have connected."""

from __future__ import annotations

import http.client
import json

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from spread.hub.errors import HubUnavailable, ShardUnknown
from spread.node.edge import emulation
from spread.node.wire import centrifuge_pb2
from tests.cluster.shards import Peer, reactor
from tests.node.streams import CONNECT, NODE, ORIGIN, StreamCase, emulated, get, post, reply

PATH = "/emulation"
COMMAND = b'{"rpc":{},"id":2}'


def protobuf_request(node: str, session: str, data: bytes) -> bytes:
    request = centrifuge_pb2.EmulationRequest(node=node, session=session, data=data)  # type: ignore[attr-defined]
    body: bytes = request.SerializeToString()
    return body


class Posting(StreamCase):
    async def test_commands_reach_the_stream(self) -> None:
        peer = await self.connect(post("/connection/http_stream", CONNECT))
        await self.streams(peer, reply(1) + b"\n")
        answer = await self.asked(post(PATH, emulated(0, COMMAND, b'{"rpc":{},"id":3}')))
        self.assertEqual((answer.status, answer.rest), (204, b""))
        self.assertNotIn("content-length", answer.headers)
        self.assertNotIn("transfer-encoding", answer.headers)
        self.assertEqual(self.forwarded, [(NODE, "0", COMMAND + b'\n{"rpc":{},"id":3}')])
        await self.streams(peer, reply(1) + b"\n" + reply(2) + b"\n" + reply(3) + b"\n")

    async def test_protobuf(self) -> None:
        data = bytes(range(256))
        body = protobuf_request(NODE, "0", data)
        answer = await self.asked(post(PATH, body, "Content-Type: application/octet-stream"))
        self.assertEqual(answer.status, 204)
        self.assertEqual(self.forwarded, [(NODE, "0", data)])

    async def test_a_session_that_is_gone_and_a_node_that_is_not_known(self) -> None:
        self.assertEqual((await self.asked(post(PATH, emulated(77, COMMAND)))).status, 204)
        answer = await self.asked(post(PATH, emulated(0, COMMAND, node="other"), f"Origin: {ORIGIN}"))
        self.assertEqual((answer.status, answer.body), (404, b"no live shard is that node\n"))
        self.assertEqual(answer.headers["access-control-allow-origin"], ORIGIN)

    async def test_what_is_no_emulation_request(self) -> None:
        bodies: list[bytes] = [
            b"",
            b"hello",
            b"null",
            b"[]",
            b"{}",
            b'"data"',
            b"{" * 60000,
            b"[" * 60000,
            b"\xff",
            b'{"session":"\xff","node":"n","data":""}',
            b'{"session":1,"node":"n","data":""}',
            b'{"session":"s","node":["n"],"data":""}',
            b'{"session":"s","node":"n","data":{"connect":{}}}',
            b'{"session":"","node":"n","data":"{}"}',
            b'{"session":"s","node":"","data":"{}"}',
            emulated(0, COMMAND)[:-1],
            protobuf_request(NODE, "0", COMMAND),
        ]
        for body in bodies:
            answer = await self.asked(post(PATH, body, f"Origin: {ORIGIN}"))
            self.assertEqual(answer.status, 400, body[:80])
            self.assertEqual(answer.headers["access-control-allow-origin"], ORIGIN)
        for body in (b"", b"\xff", b"\x0a\x01\xff", b"\x12\xff\xff\xff\xff\x0f", emulated(0, COMMAND)):
            answer = await self.asked(post(PATH, body, "Content-Type: application/octet-stream"))
            self.assertEqual(answer.status, 400, body[:80])
        self.assertEqual(self.forwarded, [])

    async def test_half_a_character_is_no_reason_to_fail(self) -> None:
        body = b'{"session":"\\ud83d","node":"%b","data":"\\ud83d"}' % NODE.encode()
        self.assertEqual((await self.asked(post(PATH, body))).status, 204)
        self.assertEqual(self.forwarded, [(NODE, "\ufffd", "\ufffd".encode())])

    async def test_a_body_of_64_kib_and_one_byte_more(self) -> None:
        room = 65536 - len(emulated(0, b""))
        self.assertEqual((await self.asked(post(PATH, emulated(0, b"x" * room)))).status, 204)
        self.assertEqual((await self.asked(post(PATH, emulated(0, b"x" * (room + 1))))).status, 413)
        self.assertEqual(len(self.forwarded), 1)

    async def test_methods_origins_and_paths(self) -> None:
        for method in ("GET", "HEAD", "PUT"):
            answer = await self.asked(get(PATH, method=method, version="1.0"))
            self.assertEqual((answer.status, answer.headers["allow"]), (405, "POST, OPTIONS"))
        answer = await self.asked(get(PATH, f"Origin: {ORIGIN}", method="OPTIONS"))
        self.assertEqual((answer.status, answer.headers["access-control-max-age"]), (204, "300"))
        self.assertEqual(answer.headers["access-control-allow-origin"], ORIGIN)
        answer = await self.asked(post(PATH, emulated(0, COMMAND), "Origin: https://evil.example.com"))
        self.assertEqual(answer.status, 403)
        answer = await self.asked(post(PATH, emulated(0, COMMAND), f"Origin: {ORIGIN}"))
        self.assertEqual(answer.status, 204)
        self.assertEqual(answer.headers["access-control-allow-credentials"], "true")
        self.assertEqual((await self.asked(post(PATH + "/", emulated(0, COMMAND)))).status, 404)
        self.assertEqual(len(self.forwarded), 1)

    async def test_a_client_that_expects_100_continue(self) -> None:
        body = emulated(0, COMMAND)
        peer = await self.connect(post(PATH, body, "Expect: 100-continue")[: -len(body)])
        await peer.until(lambda: peer.heard == b"HTTP/1.1 100 Continue\r\n\r\n")
        peer.says(body)
        await peer.until(lambda: b"HTTP/1.1 204 " in peer.heard)
        self.assertEqual(len(self.forwarded), 1)


class KeepingConnections(StreamCase):
    async def test_many_posts_on_one_connection(self) -> None:
        count = 300

        def talk(connection: http.client.HTTPConnection) -> tuple[set[int], set[object]]:
            statuses, sockets = set(), set()
            for number in range(count):
                connection.request("POST", PATH, emulated(9, b"%d" % number), {"Content-Type": "text/plain"})
                sockets.add(connection.sock)
                answer = connection.getresponse()
                statuses.add(answer.status)
                answer.read()
            return statuses, sockets

        statuses, sockets = await self.in_thread(talk)
        self.assertEqual((statuses, len(sockets)), ({204}, 1))
        self.assertEqual([data for _, _, data in self.forwarded], [b"%d" % number for number in range(count)])
        self.assertEqual((self.emulation.in_flight, self.emulation.in_flight_bytes), (0, 0))

    async def test_pipelined_posts_are_forwarded_in_order(self) -> None:
        count = 50
        peer = await self.connect(
            b"".join(post(PATH, emulated(9, b"%d" % number)) for number in range(count))
        )
        await peer.until(lambda: peer.heard.count(b"HTTP/1.1 204 ") == count)
        self.assertEqual([data for _, _, data in self.forwarded], [b"%d" % number for number in range(count)])

    async def test_errors_do_not_end_the_connection(self) -> None:
        requests = [b"{", emulated(9, COMMAND), emulated(9, COMMAND, node="other"), emulated(9, COMMAND)]

        def talk(connection: http.client.HTTPConnection) -> list[int]:
            statuses = []
            for body in requests:
                connection.request("POST", PATH, body)
                answer = connection.getresponse()
                answer.read()
                statuses.append(answer.status)
            return statuses

        self.assertEqual(await self.in_thread(talk), [400, 204, 404, 204])

    async def test_http_1_0(self) -> None:
        peer = await self.connect(post(PATH, emulated(9, COMMAND), version="1.0"))
        await peer.ended()
        self.assertTrue(peer.heard.startswith(b"HTTP/1.0 204 "))


class Waiting(StreamCase):
    """The shard of the session takes its time."""

    async def setUp(self) -> None:
        self.waiting: list[Deferred[None]] = []
        await super().setUp()

    async def tearDown(self) -> None:
        for outcome in self.waiting:
            if not outcome.called:
                outcome.callback(None)
        self.assertEqual((self.emulation.in_flight, self.emulation.in_flight_bytes), (0, 0))
        await super().tearDown()

    def forward(self, node: str, session: str, data: bytes) -> Deferred[None]:
        self.forwarded.append((node, session, data))
        self.waiting.append(Deferred())
        return self.waiting[-1]

    async def post(self, data: bytes = COMMAND) -> Peer:
        """A request that is on its way, or refused."""
        peer = await self.connect(post(PATH, emulated(0, data)))
        known = len(self.waiting)
        await self.until(lambda: len(self.waiting) > known or bool(peer.heard))
        return peer

    async def test_the_answer_comes_when_the_commands_are_there(self) -> None:
        first, second = await self.post(b"1"), await self.post(b"2")
        self.assertEqual([data for _, _, data in self.forwarded], [b"1", b"2"], "nobody waits for others")
        self.assertEqual((first.heard, second.heard), (b"", b""))
        self.assertEqual((self.emulation.in_flight, self.emulation.in_flight_bytes), (2, 2))
        self.waiting[1].callback(None)
        await second.until(lambda: second.heard.startswith(b"HTTP/1.1 204 "))
        self.assertEqual(first.heard, b"")
        self.waiting[0].callback(None)
        await first.until(lambda: first.heard.startswith(b"HTTP/1.1 204 "))

    async def test_the_hub_is_away(self) -> None:
        for error, status in (
            (HubUnavailable("here", "away"), 503),
            (ShardUnknown("other"), 404),
            (RuntimeError("a defect"), 500),
        ):
            peer = await self.post()
            self.waiting[-1].errback(error)
            await peer.until(lambda peer=peer: peer.heard.endswith(b"\n"))  # type: ignore[misc]
            self.assertEqual(peer.heard[:13], b"HTTP/1.1 %d " % status)
            self.assertNotIn(b"defect", peer.heard)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    async def test_the_client_does_not_wait(self) -> None:
        for outcome in (None, HubUnavailable("here", "away"), RuntimeError("a defect")):
            peer = await self.post()
            peer.resets()
            await peer.ended()
            await self.until(lambda: not self.factory.connections)
            if outcome is None:
                self.waiting[-1].callback(None)
            else:
                self.waiting[-1].errback(outcome)
        await deferLater(reactor, 0)

    async def test_a_bounded_number_is_on_the_way(self) -> None:
        self.patch(emulation, "MAX_IN_FLIGHT", 2)
        await self.post()
        await self.post()
        refused = await self.post()
        self.assertTrue(refused.heard.startswith(b"HTTP/1.1 503 "))
        self.assertEqual((len(self.forwarded), self.counters.emulation_refused), (2, 1))
        self.waiting[0].callback(None)
        await self.post()
        self.assertEqual((len(self.forwarded), self.counters.emulation_refused), (3, 1))

    async def test_a_bounded_size_is_on_the_way(self) -> None:
        self.patch(emulation, "MAX_IN_FLIGHT_BYTES", 10)
        await self.post(b"x" * 10)
        refused = await self.post(b"x")
        self.assertTrue(refused.heard.startswith(b"HTTP/1.1 503 "))
        self.assertEqual((len(self.forwarded), self.counters.emulation_refused), (1, 1))


def test_the_body_of_the_protocol() -> None:
    assert json.loads(emulated("s", b"{}", b"{}")) == {"session": "s", "node": NODE, "data": "{}\n{}"}
