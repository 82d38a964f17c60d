"""Which origins are allowed."""

from __future__ import annotations

from typing import Any, cast

import pytest
from twisted.web.http_headers import Headers

from spread.node.edge.origin import MAX_LENGTH, Origins, origin_of


@pytest.mark.parametrize(
    ("patterns", "origin", "allowed"),
    [
        ([], None, True),
        ([], "https://example.com", False),
        (["*"], "https://example.com", True),
        (["*"], "null", True),
        (["https://other.com", " * "], "anything", True),
        (["https://example.com"], "https://example.com", True),
        (["https://Example.com"], "HTTPS://EXAMPLE.com", True),
        (["https://example.com"], "http://example.com", False),
        (["https://example.com"], "https://example.com:8443", False),
        (["https://example.com"], "https://example.com.evil.org", False),
        (["https://example.com"], "https://example.com\n", False),
        (["https://example.com"], "https://exampleXcom", False),
        (["https://example.com"], "", False),
        (["https://example.com"], "null", False),
        (["https://*.example.com"], "https://a.b.example.com", True),
        (["https://*.example.com"], "https://example.com", False),
        (["https://*.example.com"], "https://evil.org/.example.com", True),
        (["http://localhost:*"], "http://localhost:3000", True),
        (["http://localhost:????"], "http://localhost:300", False),
        (["http://[ab].org"], "http://b.org", True),
        (["a", "b"], "b", True),
        (["a", "b"], "ab", False),
        (["(a", "b)|*"], "x", False),
        (["https://*"], "https://" + "a" * MAX_LENGTH, False),
    ],
)
def test_origins(patterns: list[str], origin: str | None, allowed: bool) -> None:
    assert Origins(patterns).allows(origin) is allowed


def test_a_hostile_origin_takes_no_time() -> None:
    assert not Origins(["*a*a*a*a*a*a*a*a*b"]).allows("a" * MAX_LENGTH)


def test_the_header() -> None:
    class Request:
        requestHeaders = Headers()

    request = cast(Any, Request())
    assert origin_of(request) is None
    request.requestHeaders.addRawHeader(b"origin", b"https://ex\xe4mple.com")
    assert origin_of(request) == "https://exämple.com"
    request.requestHeaders.addRawHeader(b"Origin", b"b")
    assert origin_of(request) == "https://exämple.com, b"
