"""Tables over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.web.server import NOT_DONE_YET

from spread.hub.memory import Exchange, MemoryHub
from spread.node.edge.tables import SEND_SECONDS, TablesResource
from spread.node.live_tables import LiveTables
from spread.node.metrics import ShardCounters
from spread.node.tables import Tables
from spread.node.web.site import answering, quiet_site
from tests.fakes import HttpAnswer, asked
from tests.node.tables import ITEMS, put, table

BIG = table("big", "id", {"id": "int", "text": "str"}, *([number, "x" * 100] for number in range(2000)))


@pytest.fixture
def tables(tmp_path: Path) -> LiveTables:
    clock = Clock()
    return LiveTables(
        clock,
        Tables(put(tmp_path, ITEMS, BIG)),
        str(tmp_path),
        hub=MemoryHub(Exchange(clock, publish_seconds=5.0), "1" * 16),
        history=None,
        counters=ShardCounters(),
        in_thread=lambda read: read(),  # never called: nobody starts it
    )


def get(tables: LiveTables, path: str, method: str = "GET", **headers: str) -> HttpAnswer:
    resource = TablesResource(tables, ["https://play.example"])
    health = answering(lambda: (200, "application/json", b"{}"))
    site = quiet_site(Clock(), {"health": health, "tables/": resource})
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return asked(site, f"{method} {path} HTTP/1.1\r\nHost: here\r\n{lines}\r\n".encode())


def test_a_file_is_served_as_it_is(tables: LiveTables, tmp_path: Path) -> None:
    answer = get(tables, "/tables/items.json?v=1")
    assert (answer.status, answer.body) == (200, (tmp_path / "items.json").read_bytes())
    assert answer.headers["content-type"] == "application/json"
    assert (answer.headers["cache-control"], answer.headers["vary"]) == ("no-cache", "Origin")
    etag = json.loads(tables.announcement)["tables"]["items"]
    assert answer.headers["etag"] == f'"{etag}"'


def test_the_list_is_what_is_announced(tables: LiveTables) -> None:
    answer = get(tables, "/tables/")
    assert (answer.status, answer.body) == (200, tables.announcement)
    assert get(tables, "/tables/", If_None_Match=answer.headers["etag"]).status == 304


def test_who_has_it_is_told_so(tables: LiveTables) -> None:
    etag = get(tables, "/tables/items.json").headers["etag"]
    for has in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        answer = get(tables, "/tables/items.json", If_None_Match=has)
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", etag), has
    for has in ('"x"', "", etag[:-2]):
        assert get(tables, "/tables/items.json", If_None_Match=has).status == 200, has


def test_head(tables: LiveTables) -> None:
    whole, head = (get(tables, "/tables/items.json", method) for method in ("GET", "HEAD"))
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.body))


@pytest.mark.parametrize(
    "path", ["/tables", "/tables/mobs.json", "/tables/items", "/tables/_tables.json", "/tables/.json"]
)
def test_what_is_not_there(tables: LiveTables, path: str) -> None:
    assert get(tables, path).status == 404


@pytest.mark.parametrize("path", ["/tables/../items.json", "/tables/a/items.json", "/health/items.json"])
def test_nothing_is_below_that(tables: LiveTables, path: str) -> None:
    assert get(tables, path).status == 404


def test_other_methods_are_refused(tables: LiveTables) -> None:
    assert get(tables, "/tables/items.json", "PUT").status == 405


def test_pages_of_allowed_origins_may_read_them(tables: LiveTables) -> None:
    answer = get(tables, "/tables/items.json", Origin="https://play.example")
    assert answer.headers["access-control-allow-origin"] == "https://play.example"
    assert answer.headers["vary"] == "Origin"
    assert get(tables, "/tables/items.json", Origin="https://evil.example").status == 403


class Taking:
    """A request whose peer takes its answer a piece at a time, when it likes."""

    method = b"GET"
    path = b"/tables/big.json"

    def __init__(self) -> None:
        from twisted.web.http_headers import Headers

        self.site = self.channel = self.transport = self
        self.reactor = Clock()
        self.responseHeaders = Headers()
        self.taken: list[bytes] = []
        self.producer: Any = None
        self.ends: list[str] = []

    def getHeader(self, name: bytes) -> None:
        return None

    def setHeader(self, name: bytes, value: bytes) -> None:
        self.responseHeaders.setRawHeaders(name, [value])

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert not streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, piece: bytes) -> None:
        self.taken.append(piece)

    def finish(self) -> None:
        self.ends.append("finish")

    def abortConnection(self) -> None:
        self.ends.append("abort")


def test_a_large_file_goes_out_as_it_is_taken(tables: LiveTables, tmp_path: Path) -> None:
    request = Taking()
    assert TablesResource(tables, []).respond(request) == NOT_DONE_YET
    while request.producer is not None:
        request.producer.resumeProducing()
    assert b"".join(request.taken) == (tmp_path / "big.json").read_bytes()
    assert len(request.taken) > 2 and max(map(len, request.taken)) <= 64 << 10
    request.reactor.advance(SEND_SECONDS)
    assert request.ends == ["finish"]


def test_who_does_not_take_it_is_cut(tables: LiveTables) -> None:
    request = Taking()
    TablesResource(tables, []).respond(request)
    request.producer.resumeProducing()
    request.reactor.advance(SEND_SECONDS)
    assert request.ends == ["abort"]
    request.producer.stopProducing()
    assert request.ends == ["abort"], "nothing is written to who is gone"
