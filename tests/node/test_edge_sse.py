"""Server-sent events over real sockets."""

from __future__ import annotations

import http.client
from typing import Any

from spread.node import codes
from tests.cluster.shards import is_clean
from tests.node.streams import (
    CONNECT,
    ORIGIN,
    Answer,
    StreamCase,
    emulated,
    get,
    last_words,
    post,
    reply,
    sse_path,
)

PATH = "/connection/sse"
START = b"\r\n"


def event(message: bytes) -> bytes:
    return b"data: " + message + b"\n\n"


class Events(StreamCase):
    user_header = "X-User-Id"

    async def test_replies_come_as_events_without_end(self) -> None:
        peer = await self.connect(get(sse_path(CONNECT), "X-User-Id: 42"))
        answer = await self.streams(peer, START + event(reply(1)))
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.headers["content-type"], "text/event-stream; charset=utf-8")
        self.assertEqual(answer.headers["x-accel-buffering"], "no")
        self.assertEqual(
            answer.headers["cache-control"], "private, no-cache, no-store, must-revalidate, max-age=0"
        )
        self.assertEqual((answer.headers["pragma"], answer.headers["expire"]), ("no-cache", "0"))
        self.assertEqual(answer.headers["transfer-encoding"], "chunked")
        self.assertTrue(answer.rest.startswith(b"2\r\n\r\n\r\n"), "something at once")
        (session,) = self.sessions.opened
        visit = session.visit
        self.assertEqual(
            (visit.transport, visit.address, visit.user, visit.is_emulated), ("sse", "127.0.0.1", "42", True)
        )
        self.assertEqual(session.codec.name, "json/sse")
        session.says(b"{}")
        await self.streams(peer, START + event(reply(1)) + event(b"{}"))

    async def test_several_commands_are_several_events(self) -> None:
        commands = CONNECT + b'\n{"rpc":{"data":"a+b&c;d%e \\u00f6"},"id":2}'
        peer = await self.connect(get(sse_path(commands)))
        await self.streams(peer, START + event(reply(1)) + event(reply(2)))
        self.assertEqual(self.sessions.opened[0].frames, [commands])

    async def test_the_end_says_why(self) -> None:
        for version in ("1.1", "1.0"):
            peer = await self.connect(get(sse_path(CONNECT), version=version))
            await self.streams(peer, START + event(reply(1)))
            self.sessions.opened[-1].end(codes.SHUTDOWN)
            self.assertTrue(is_clean(await peer.ended()))
            answer = Answer(peer.heard)
            self.assertEqual(answer.body, START + event(reply(1)) + event(last_words(codes.SHUTDOWN)))
            self.assertEqual(answer.headers["connection"], "close")
            self.assertEqual("transfer-encoding" in answer.headers, version == "1.1")

    async def test_commands_in_a_body(self) -> None:
        peer = await self.connect(post(PATH, CONNECT))
        await self.streams(peer, START + event(reply(1)))
        self.assertEqual((await self.asked(post(PATH, b""))).status, 400)
        self.assertEqual((await self.asked(post(sse_path(CONNECT), b""))).status, 400)
        self.assertEqual((await self.asked(post(PATH, b"x" * 65537))).status, 413)

    async def test_no_commands(self) -> None:
        for query in ("", "?", "?cf_connect=", "?cf_connect", "?other=1", "?%", "?cf_connec%74", "?&&=&;=;"):
            answer = await self.asked(get(PATH + query, f"Origin: {ORIGIN}"))
            self.assertEqual((answer.status, answer.body), (400, b"the request brings no commands\n"), query)
            self.assertEqual(answer.headers["access-control-allow-origin"], ORIGIN)
        self.assertEqual(self.sessions.opened, [])

    async def test_what_is_no_command_ends_the_stream(self) -> None:
        for query in ("%", "1", "%00", "%ff", "[1,2]", '{"connect":[]}', "null", "{" * 5000):
            peer = await self.connect(get(f"{PATH}?cf_connect={query}"))
            self.assertTrue(is_clean(await peer.ended()))
            self.assertEqual(Answer(peer.heard).body, START + event(last_words(codes.BAD_PROTOCOL)), query)

    async def test_an_address_that_is_too_long(self) -> None:
        peer = await self.connect(get(f"{PATH}?cf_connect=" + "x" * 20000))
        await peer.ended()
        self.assertNotEqual(Answer(peer.heard).status, 200)
        self.assertEqual(self.sessions.opened, [])

    async def test_origins_methods_and_room(self) -> None:
        for method in ("HEAD", "PUT"):
            answer = await self.asked(get(sse_path(CONNECT), method=method, version="1.0"))
            self.assertEqual((answer.status, answer.headers["allow"]), (405, "GET, POST, OPTIONS"))
        answer = await self.asked(get(PATH, f"Origin: {ORIGIN}", method="OPTIONS"))
        self.assertEqual(answer.status, 204)
        self.assertEqual(answer.headers["access-control-allow-methods"], "GET, POST, OPTIONS")
        answer = await self.asked(get(sse_path(CONNECT), "Origin: https://evil.example.com"))
        self.assertEqual(answer.status, 403)
        self.sessions.room = 0
        self.assertEqual((await self.asked(get(sse_path(CONNECT)))).status, 503)
        self.sessions.room = 1
        peer = await self.connect(get(sse_path(CONNECT), f"Origin: {ORIGIN}"))
        stream = await self.streams(peer, START + event(reply(1)))
        self.assertEqual(stream.headers["access-control-allow-origin"], ORIGIN)
        self.assertEqual(stream.headers["access-control-allow-credentials"], "true")

    async def test_paths_are_exact(self) -> None:
        for path in (f"{PATH}/?cf_connect=1", f"{PATH}x?cf_connect=1", f"{PATH};x?cf_connect=1"):
            self.assertEqual((await self.asked(get(path))).status, 404, path)

    async def test_with_the_client_of_the_standard_library(self) -> None:
        def talk(connection: http.client.HTTPConnection) -> list[Any]:
            connection.request("GET", sse_path(CONNECT))
            answer = connection.getresponse()
            heard: list[Any] = [answer.status, answer.readline(), answer.readline(), answer.readline()]
            other = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            other.request("POST", "/emulation", emulated(0, b'{"rpc":{},"id":2}'))
            heard.append(other.getresponse().status)
            other.close()
            return [*heard, answer.readline()]

        heard = await self.in_thread(talk)
        self.assertEqual(
            heard, [200, b"\r\n", b"data: " + reply(1) + b"\n", b"\n", 204, b"data: " + reply(2) + b"\n"]
        )


class AnyPage(StreamCase):
    allowed_origins = ("*",)

    async def test_every_page_is_named(self) -> None:
        for origin in ("https://anything.example.com", "null"):
            peer = await self.connect(get(sse_path(CONNECT), f"Origin: {origin}"))
            answer = await self.streams(peer, START + event(reply(1)))
            self.assertEqual(answer.headers["access-control-allow-origin"], origin)
