"""Requests that may come from a page in a browser: from which page, and what its script may read (CORS).

A page may ask if its origin is one of ``client.allowed_origins``, the same rule as for WebSocket; all others
get 403. An allowed page gets the headers that let its script read the answer, and use the cookies of
its user (https://fetch.spec.whatwg.org/#http-cors-protocol). A client that is no browser sends no origin, and
is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from spread.node.edge.origin import Origins, RefusedPages, origin_of

__all__ = ["PREFLIGHT_SECONDS", "BrowserResource"]

PREFLIGHT_SECONDS = 300
"""How long a browser may remember the answer to a preflight."""

_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, \t-]{1,1000}")
"""A list of header names (RFC 9110, 5.6.2)."""


class BrowserResource(Resource):
    """A resource that pages of allowed origins may ask.

    :param max_body_bytes: of a request; one with a larger body is refused before it gets here.
    """

    isLeaf = True
    methods: ClassVar[tuple[bytes, ...]] = (b"POST",)

    def __init__(self, allowed_origins: Sequence[str], max_body_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._origins = Origins(allowed_origins)
        self._refused = RefusedPages("requests for streams")
        self.max_body_bytes = max_body_bytes

    def respond(self, request: Any) -> Any:
        """Answer a request that may be made, with a method of ``methods``: what ``render`` returns."""
        raise NotImplementedError

    def render(self, request: Any) -> Any:
        """See ``twisted.web.resource.IResource``."""
        origin = origin_of(request)
        if not self._origins.allows(origin):
            self._refused.add(origin, request.site.reactor.seconds())
            return self.text(request, 403, "the origin of this page is not allowed")
        for name, value in _headers_for(origin):
            request.setHeader(name, value)
        if request.method == b"OPTIONS":
            return self._preflight(request)
        if request.method not in self.methods:
            allowed = b", ".join((*self.methods, b"OPTIONS"))
            request.setHeader(b"allow", allowed)
            return self.text(request, 405, f"only {allowed.decode()}")
        return self.respond(request)

    def text(self, request: Any, status: int, text: str) -> bytes:
        """An answer in words."""
        body = f"{text}\n".encode()
        request.setResponseCode(status)
        request.setHeader(b"content-type", b"text/plain; charset=utf-8")
        request.setHeader(b"cache-control", b"no-store")
        if request.method == b"HEAD":
            request.setHeader(b"content-length", b"%d" % len(body))
            return b""
        return body

    def origin_headers(self, request: Any) -> bytes:
        """The headers that let the page read an answer, for who writes one by hand."""
        return b"".join(b"%b: %b\r\n" % header for header in _headers_for(origin_of(request)))

    def _preflight(self, request: Any) -> int:
        request.setResponseCode(204)
        request.setHeader(b"access-control-allow-methods", b", ".join((*self.methods, b"OPTIONS")))
        wanted = request.getHeader(b"access-control-request-headers") or b""
        # A wildcard does not count when cookies are sent along.
        names = wanted if _NAMES.fullmatch(wanted) else b"Content-Type"
        request.setHeader(b"access-control-allow-headers", names)
        request.setHeader(b"access-control-max-age", b"%d" % PREFLIGHT_SECONDS)
        request.finish()  # here, since Twisted would tell the length of no body
        return NOT_DONE_YET


def _headers_for(origin: str | None) -> list[tuple[bytes, bytes]]:
    if origin is None:
        return []
    return [
        (b"Access-Control-Allow-Origin", origin.encode("latin-1")),
        (b"Access-Control-Allow-Credentials", b"true"),
        (b"Vary", b"Origin"),
    ]
