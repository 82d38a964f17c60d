"""What a peer of the HTTP port may send: requests, good ones and others (RFC 9112), one after the other."""

from __future__ import annotations

from random import Random

from tests.fuzz.corpus import HANDSHAKE, REQUESTS, Request
from tests.fuzz.messages import json_text
from tests.fuzz.mutate import BOUNDARIES, BROKEN_TEXT, long_text, mutated

__all__ = ["RAW", "conversation", "written"]

_METHODS = (
    b"GET",
    b"POST",
    b"PUT",
    b"OPTIONS",
    b"HEAD",
    b"TRACE",
    b"CONNECT",
    b"PRI",
    b"get",
    b"",
    b"\xff",
    b"A" * 50,
)
_VERSIONS = (b"HTTP/1.0", b"HTTP/1.1", b"HTTP/1.1 ", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/9.9", b"http/1.1", b"")
_TARGETS = (
    *(b"*", b"/", b"//", b"http://here/health", b"/../health", b"/%00", b"/health%2f", b"?", b"/\xff"),
    *(b"/connection/sse?cf_connect=%7b", b"/connection/sse?cf_connect=%ff&cf_connect=%7b%7d", b"/api/"),
    *(b"/connection/websocket?" + b"a=b&" * 200, b"/health#x", b"/api/publish?api_key=", b"/connection/sse/"),
)
_HEADERS = (
    (b"Transfer-Encoding", b"chunked"),
    (b"Transfer-Encoding", b"identity"),
    (b"Transfer-Encoding", b"gzip, chunked"),
    (b"Content-Length", b"5"),
    (b"Content-Length", b"+5"),
    (b"Content-Length", b"0x5"),
    (b"Content-Length", b"5, 5"),
    (b"Content-Length", b"9" * 5000),
    (b"Expect", b"100-continue"),
    (b"Connection", b"close"),
    (b"Connection", b"keep-alive, Upgrade"),
    (b"Upgrade", b"h2c"),
    (b"Host", b"other"),
    (b"Host ", b"here"),
    (b"", b"x"),
    (b"X-User", b"\xff"),
    (b"Cookie", b"a=b; \xff; =;;"),
    (b"Authorization", b"apikey"),
    (b"Authorization", b"Basic !!!"),
    (b"Origin", b"null"),
    (b"Origin", b"https://evil.example"),
    (b"X-API-Key", b"\xff"),
    (b"X-Centrifugo-Error-Mode", b"transport"),
    (b"Access-Control-Request-Headers", b"a\x00b"),
    (b"Content-Type", b"multipart/form-data; boundary=x"),
    (b"Content-Type", b"application/octet-stream"),
    (b"Sec-WebSocket-Extensions", b"permessage-deflate; client_max_window_bits"),
    (b"Sec-WebSocket-Extensions", b";;"),
    (b"Sec-WebSocket-Key", b"short"),
    (b"Sec-WebSocket-Protocol", b""),
    (b"Range", b"bytes=0-1"),
    (b"If-Modified-Since", b"never"),
)


def written(request: Request, version: bytes = b"HTTP/1.1") -> bytes:
    """A request with its length, as it should be."""
    method, target, headers, body = request
    lines = [b"%b %b %b" % (method, target, version), *(b"%b: %b" % header for header in headers)]
    if body or method == b"POST":
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


RAW = tuple(written(request) for request in REQUESTS)


def _body(random: Random, body: bytes) -> bytes:
    if body.startswith(b"{") and random.random() < 0.6:
        try:
            return json_text(random, body)
        except ValueError:
            pass  # several lines
    return mutated(random, body, [request[3] for request in REQUESTS if request[3]])


def _chunked(random: Random, body: bytes) -> bytes:
    """A body in chunks, rightly or not."""
    made = []
    at = 0
    while at < len(body):
        piece = body[at : at + random.choice((1, 7, 50, 5000))]
        at += len(piece)
        size = b"%x" % len(piece)
        kind = random.random()
        if kind < 0.03:
            size = random.choice(
                (b"", b"-1", b"0x5", b"g", b"f" * 16, b"f" * 17, b"00000%x" % len(piece), b"+1")
            )
        elif kind < 0.05:
            size += random.choice((b";a=b", b";" + b"x" * long_text(random), b" ", b";\xff"))
        end = b"\r\n" if kind < 0.97 else random.choice((b"\n", b"", b"xx"))
        made.append(b"%b\r\n%b%b" % (size, piece, end))
    last = b"0\r\n\r\n"
    if random.random() < 0.15:
        last = random.choice(
            (b"", b"0\r\n", b"0\r\nTrailer: x\r\n\r\n", b"000\r\n\r\n", b"0;x\r\n" + b"y" * 5000)
        )
    return b"".join(made) + last


def _headers(random: Random, headers: tuple[tuple[bytes, bytes], ...]) -> list[tuple[bytes, bytes]]:
    changed = list(headers)
    for _ in range(random.choice((1, 1, 2, 3))):
        kind = random.random()
        if kind < 0.4 or not changed:
            changed.append(random.choice(_HEADERS))
        elif kind < 0.5:
            changed.append(random.choice((*changed, *HANDSHAKE)))
        elif kind < 0.6:
            del changed[random.randrange(len(changed))]
        elif kind < 0.75:
            index = random.randrange(len(changed))
            name, value = changed[index]
            changed[index] = (name, mutated(random, value, [value for _, value in _HEADERS]))
        elif kind < 0.85:
            changed.append((b"X-" + b"y" * random.choice((1, 5000)), b"z" * long_text(random)))
        elif kind < 0.9:
            changed += [(b"X-%d" % number, b"1") for number in range(random.choice((50, 499, 501, 1000)))]
        else:
            changed.append((random.choice((b" folded", b"X", b"X\0")), random.choice((b"\0", *BROKEN_TEXT))))
    return changed


def _request(random: Random) -> bytes:
    method, target, headers, body = random.choice(REQUESTS)
    kind = random.random()
    if kind < 0.1:
        return written((method, target, headers, body))
    if kind < 0.3:
        return mutated(random, random.choice(RAW), RAW)
    version = b"HTTP/1.1"
    fields = list(headers)
    if random.random() < 0.15:
        method = random.choice(_METHODS)
    if random.random() < 0.1:
        version = random.choice(_VERSIONS)
    if random.random() < 0.12:
        target = random.choice(_TARGETS) if random.random() < 0.5 else mutated(random, target, _TARGETS)
    if random.random() < 0.35:
        fields = _headers(random, headers)
    if body and random.random() < 0.5:
        body = _body(random, body)
    if body and random.random() < 0.2:
        fields.append((b"Transfer-Encoding", b"chunked"))
        body = _chunked(random, body)
    elif body or method == b"POST":
        length = len(body)
        if random.random() < 0.08:
            length = random.choice((0, length - 1, length + 1, *BOUNDARIES))
        fields.append((b"Content-Length", b"%d" % length))
    lines = [b" ".join((method, target, version)), *(b"%b: %b" % field for field in fields)]
    end = b"\r\n" if random.random() < 0.97 else random.choice((b"\n", b"\r", b"\r\r\n"))
    return end.join(lines) + end + end + body


def conversation(random: Random) -> list[bytes]:
    """Requests of one connection, one element for each."""
    return [_request(random) for _ in range(random.choice((1, 1, 1, 2, 3, 6)))]
