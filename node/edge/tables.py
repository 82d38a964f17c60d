"""Tables over HTTP: what a game's clients read.

    GET /tables/            {"tables": {NAME: ETAG}}
    GET /tables/NAME.json   the file, with its ETag; 304 to who has it

Pages of ``client.allowed_origins`` may read them, as all that the port serves to pages. Everybody else may,
too: tables are no secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any, ClassVar

from twisted.protocols.basic import FileSender
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET

from spread.node.edge.browser import BrowserResource
from spread.node.live_tables import LiveTables
from spread.node.tables import etag_of

__all__ = ["SEND_SECONDS", "TABLES_PREFIX", "TablesResource"]

TABLES_PREFIX = b"/tables/"

SEND_SECONDS = 120.0
"""How long a client may take to read a table; then its connection is cut."""

_AT_ONCE_MAX_BYTES = 64 << 10
"""A larger file goes out piece by piece, as it is taken: for each client that reads slowly the transport
would make a copy of it."""


class TablesResource(BrowserResource):
    """See the top of this module."""

    methods: ClassVar[tuple[bytes, ...]] = (b"GET", b"HEAD")
    has_children = True
    """Every path below is for this resource, too (``spread.node.web.site``)."""

    def __init__(self, tables: LiveTables, allowed_origins: Sequence[str]) -> None:
        super().__init__(allowed_origins, 0)
        self._tables = tables

    def respond(self, request: Any) -> Any:
        """See ``BrowserResource``."""
        name: bytes = request.path.removeprefix(TABLES_PREFIX)
        if not name:
            told = self._tables.announcement
            return self._answer(request, told, etag_of(told))
        found = self._tables.file(name.removesuffix(b".json").decode("latin-1"))
        if found is None or not name.endswith(b".json"):
            return self.text(request, 404, "there is no such table")
        return self._answer(request, *found)

    def _answer(self, request: Any, body: bytes, etag: str) -> Any:
        quoted = b'"%b"' % etag.encode()
        request.responseHeaders.setRawHeaders(b"vary", [b"Origin"])  # also where there was none
        request.setHeader(b"etag", quoted)
        request.setHeader(
            b"cache-control", b"no-cache"
        )  # keep it, and ask each time whether it is still right
        if _has(request.getHeader(b"if-none-match"), quoted):
            request.setResponseCode(304)
            return b""
        request.setHeader(b"content-type", b"application/json")
        request.setHeader(b"content-length", b"%d" % len(body))
        if request.method == b"HEAD":
            return b""
        if len(body) <= _AT_ONCE_MAX_BYTES:
            return body
        _send(request, body)
        return NOT_DONE_YET


def _has(header: bytes | None, etag: bytes) -> bool:
    """Whether a client has what it asks for. A proxy that compresses makes an ETag a weak one, W/"..."."""
    tags = [tag.strip() for tag in (header or b"").split(b",")]
    return b"*" in tags or any(tag.removeprefix(b"W/") == etag for tag in tags)


def _send(request: Any, body: bytes) -> None:
    timer = request.site.reactor.callLater(SEND_SECONDS, request.channel.transport.abortConnection)

    def sent(outcome: object) -> None:
        if timer.active():
            timer.cancel()
        if not isinstance(outcome, Failure):  # else the client is gone
            request.finish()

    FileSender().beginFileTransfer(BytesIO(body), request).addBoth(sent)
