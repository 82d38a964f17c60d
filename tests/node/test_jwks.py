"""Key sets from files and from real HTTP servers: fast, slow, huge, broken, redirecting, gone."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet import reactor as global_reactor
from twisted.internet import ssl
from twisted.internet.defer import CancelledError, Deferred, gatherResults, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock, deferLater
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import TestCase
from twisted.web.client import BrowserLikePolicyForHTTPS
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from spread.node.auth.jwks import FileJwks, JwksUnavailable, JwksVerifier, UrlJwks
from spread.node.auth.keys import KeyUnknown, TokenExpired, TokenInvalid, TokenKeys
from spread.node.auth.keyset import MAX_SET_BYTES, KeySet, KeyUnusable
from spread.node.auth.tokens import TokenRules
from tests.hub.certificates import Authority
from tests.node.minting import (
    CURVE_KEYS,
    OTHER_RSA_KEY,
    RSA_KEY,
    SECRET,
    hs256,
    jwk,
    key_set,
    public_pem,
    signed,
)

reactor = cast(Any, global_reactor)
log_publisher = cast(Any, globalLogPublisher)
LOOPBACK = "127.0.0.1"
NOW = 1_700_000_000.0

OLD = key_set(jwk(RSA_KEY.public_key(), kid="old"))
NEW = key_set(jwk(RSA_KEY.public_key(), kid="old"), jwk(OTHER_RSA_KEY.public_key(), kid="new"))


def kids(found: KeySet) -> list[str | None]:
    return [key.kid for key in found.keys]


def result(deferred: Deferred[Any]) -> Any:
    """What a Deferred that must have fired has fired with; failures are raised."""
    results: list[Any] = []
    failures: list[Any] = []
    deferred.addCallbacks(results.append, failures.append)
    if failures:
        failures[0].raiseException()
    return results[0]


@pytest.fixture
def events() -> Generator[list[LogEvent], None, None]:
    seen: list[LogEvent] = []
    log_publisher.addObserver(seen.append)
    yield seen
    log_publisher.removeObserver(seen.append)


# --- files --------------------------------------------------------------------------------------------


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(OLD)
    source = FileJwks(str(path))
    first = result(source.key_set())
    assert kids(first) == ["old"]
    assert result(source.key_set("old")) is result(source.key_set("unknown")) is first
    assert source.counters.reads == 1
    (tmp_path / "next").write_bytes(NEW)
    (tmp_path / "next").rename(path)
    assert kids(result(source.key_set())) == ["old", "new"]
    assert (source.counters.reads, source.counters.failures) == (2, 0)


def test_the_old_keys_stay_when_the_file_breaks(tmp_path: Path, events: list[LogEvent]) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(OLD)
    source = FileJwks(str(path))
    first = result(source.key_set())

    def put_a_pipe() -> None:
        path.rmdir()
        os.mkfifo(path)

    breaks: list[tuple[Callable[[], object], str]] = [
        (lambda: path.write_bytes(b"<html>"), "it is not a JSON object with keys"),
        (lambda: path.write_bytes(OLD + b" " * MAX_SET_BYTES), "it is larger than 65536 bytes"),
        (path.unlink, "No such file or directory"),
        (path.mkdir, "it is not a file|Is a directory"),
        (put_a_pipe, "it is not a file"),
    ]
    for number, (break_it, reason) in enumerate(breaks, 1):
        break_it()
        events.clear()
        for _ in range(3):
            assert result(source.key_set()) is first
        # Said once, not for each token.
        assert [event["reason"] in reason.split("|") for event in events] == [True]
        assert events[0]["then"] == "the old set stays in use"
        assert source.counters.failures == number
    path.unlink()
    path.write_bytes(NEW)
    assert kids(result(source.key_set())) == ["old", "new"]
    source.stop()


def test_a_file_that_was_never_good(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    source = FileJwks(str(path))
    with pytest.raises(JwksUnavailable, match=r"keys\.json is not available: No such file") as caught:
        result(source.key_set())
    assert caught.value.source == str(path)
    path.write_bytes(b"{}")
    with pytest.raises(JwksUnavailable, match="not a JSON object"):
        result(source.key_set())
    path.write_bytes(OLD)
    assert kids(result(source.key_set())) == ["old"]


# --- URLs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/jwks.json",
        "http://10.0.0.1/jwks.json",
        "http://127.0.0.1.example.com/",
        "http://localhost.example.com/",
        "ftp://localhost/jwks.json",
        "file:///etc/jwks.json",
        "localhost/jwks.json",
        "https://",
        "https:///jwks.json",
        "https://exämple.com/",
        "https://example.com/a b",
        "https://example.com/\r\nX: y",
        "https://user:password@example.com/",
        "https://user@example.com/",
        "https://example.com/#part",
        "https://example.com:port/",
        "https://[::1/",
        "",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="the URL of the key set") as caught:
        UrlJwks(url, Clock())
    assert "password@" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["https://example.com/jwks.json?x=y", "http://localhost:1/", "http://127.9.9.9/", "http://[::1]:8080/k"],
)
def test_urls_that_are_taken(url: str) -> None:
    UrlJwks(url, Clock())


class Issuer(Resource):
    """An HTTP server of keys that does what it is told."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.body = OLD
        self.code = 200
        self.headers: dict[str, str] = {}
        self.requests: list[str] = []
        self.agents: set[str] = set()
        self.is_silent = False
        self.trickles = False
        self.trickle_bytes = 10
        self.redirects: dict[str, str] = {}
        self.held: list[Any] = []

    def render_GET(self, request: Any) -> Any:
        path = request.uri.decode()
        self.requests.append(path)
        self.agents.add(request.getHeader("user-agent"))
        for name, value in self.headers.items():
            request.setHeader(name, value)
        if path in self.redirects:
            request.setResponseCode(302)
            request.setHeader("location", self.redirects[path])
            return b"elsewhere"
        if self.is_silent or self.trickles:
            self.held.append(request)
            if self.trickles:
                request.write(self.body[: self.trickle_bytes])
            return NOT_DONE_YET
        request.setResponseCode(self.code)
        return self.body

    def answer(self) -> None:
        for request in self.held:
            request.write(self.body)
            request.finish()
        self.held.clear()


class Gone(Protocol):
    """Accepts, and says something that is not HTTP, or nothing."""

    says = b""

    def connectionMade(self) -> None:
        cast(Any, self.transport).write(self.says)
        cast(Any, self.transport).loseConnection()


class UrlTests(TestCase):
    def setUp(self) -> None:
        self.issuer = Issuer()
        self.clock = Clock()
        self.events: list[LogEvent] = []
        log_publisher.addObserver(self.events.append)
        self.addCleanup(log_publisher.removeObserver, self.events.append)
        self.port = self.served(self.issuer)

    def served(self, resource: Resource, context: Any = None) -> int:
        site = Site(resource)
        site.noisy = False
        site.log = lambda request: None  # type: ignore[method-assign]
        return self.listening(site, context)

    def listening(self, factory: Any, context: Any = None) -> int:
        factory.noisy = False
        if context is None:
            port = reactor.listenTCP(0, factory, interface=LOOPBACK)
        else:
            port = reactor.listenSSL(0, factory, context, interface=LOOPBACK)
        self.addCleanup(port.stopListening)
        number: int = port.getHost().port
        return number

    def source(self, path: str = "/jwks.json", port: int = 0, **options: Any) -> UrlJwks:
        """A source whose connections are real, and whose time for keeping sets is not."""
        source = UrlJwks(f"http://{LOOPBACK}:{port or self.port}{path}", Timed(self.clock), **options)
        self.addCleanup(source.stop)
        return source

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            await deferLater(reactor, 0.005)

    async def refused(self, source: UrlJwks, kid: str | None = None) -> str:
        with pytest.raises(JwksUnavailable) as caught:
            await source.key_set(kid)
        return caught.value.reason

    async def test_a_set_is_kept_for_its_time(self) -> None:
        source = self.source()
        first = await source.key_set()
        assert kids(first) == ["old"]
        assert self.issuer.agents == {"spread"}
        self.issuer.body = NEW
        self.clock.advance(3599.9)
        assert result(source.key_set()) is first
        assert result(source.key_set("old")) is first
        self.clock.advance(0.2)
        assert kids(await source.key_set()) == ["old", "new"]
        assert self.issuer.requests == ["/jwks.json"] * 2
        assert (source.counters.reads, source.counters.failures) == (2, 0)

    async def test_the_answer_may_say_how_long(self) -> None:
        for header, seconds in (
            ("max-age=600", 600.0),
            ("public, Max-Age=600, must-revalidate", 600.0),
            ('max-age="600"', 600.0),
            ("max-age=0", 60.0),
            ("max-age=5", 60.0),
            ("max-age=9999999999", 86400.0),
            ("max-age=99999999999999999999", 3600.0),
            ("max-age=-1", 3600.0),
            ("s-maxage=600", 3600.0),
            ("max-age=soon", 3600.0),
            ("no-store, max-age=600", 60.0),
            ("no-cache", 60.0),
            ("", 3600.0),
        ):
            self.issuer.headers = {"cache-control": header}
            self.issuer.requests.clear()
            source = self.source()
            await source.key_set()
            self.clock.advance(seconds - 0.5)
            assert result(source.key_set())
            assert len(self.issuer.requests) == 1, header
            self.clock.advance(1)
            await source.key_set()
            assert len(self.issuer.requests) == 2, header

    async def test_a_new_key_works_at_once(self) -> None:
        source = self.source()
        await source.key_set()
        self.issuer.body = NEW
        self.clock.advance(10)
        assert kids(await source.key_set("new")) == ["old", "new"]
        assert result(source.key_set("new"))
        assert len(self.issuer.requests) == 2

    async def test_unknown_keys_do_not_flood_the_issuer(self) -> None:
        source = self.source()
        await source.key_set()
        assert await self.refused(source, "x") == "it was fetched a moment ago, without that key"
        self.clock.advance(9.9)
        for number in range(100):
            await self.refused(source, f"x{number}")
        assert result(source.key_set("old"))
        assert len(self.issuer.requests) == 1
        self.clock.advance(0.2)
        # Looked for and not there: an answer, not an error.
        assert kids(await source.key_set("x")) == ["old"]
        await self.refused(source, "x")
        assert len(self.issuer.requests) == 2

    async def test_those_who_wait_share_one_fetch(self) -> None:
        self.issuer.is_silent = True
        source = self.source()
        waiting = [source.key_set(kid) for kid in (None, "old", "x", None)]
        await self.until(lambda: self.issuer.held)
        waiting.append(source.key_set("old"))
        gone = source.key_set()
        gone.cancel()
        with pytest.raises(CancelledError):
            await gone
        assert not any(each.called for each in waiting)
        self.issuer.answer()
        found = await gatherResults(waiting)
        assert len({id(each) for each in found}) == 1
        assert len(self.issuer.requests) == source.counters.reads == 1

    async def test_the_old_set_stays_when_a_fetch_fails(self) -> None:
        source = self.source()
        first = await source.key_set()
        self.issuer.code = 500
        self.clock.advance(3600)
        self.events.clear()
        assert await source.key_set() is first
        assert source.counters.failures == 1
        assert [event["then"] for event in self.events if "then" in event] == ["the old set stays in use"]
        # Not asked again at once, nor is anybody told that a key it may have is none.
        assert result(source.key_set()) is first
        assert await self.refused(source, "new") == "the answer is 500"
        assert len(self.issuer.requests) == 2
        self.clock.advance(10)
        assert await self.refused(source, "new") == "the answer is 500"
        assert len(self.issuer.requests) == 3
        self.issuer.code, self.issuer.body = 200, NEW
        self.clock.advance(10)
        assert kids(await source.key_set("new")) == ["old", "new"]

    async def test_answers_that_are_no_keys(self) -> None:
        for code, body, reason in (
            (500, OLD, "the answer is 500"),
            (404, OLD, "the answer is 404"),
            (204, b"", "the answer is 204"),
            (302, OLD, "the answer is 302"),
            (200, b"", "it is not a JSON object with keys"),
            (200, b"<html>secret</html>", "it is not a JSON object with keys"),
            (200, b'{"keys":[]}', "none of its 0 keys is usable"),
            (200, OLD + b" " * (MAX_SET_BYTES + 1), f"it is larger than {MAX_SET_BYTES} bytes"),
            (200, b" " * 10_000_000, f"it is larger than {MAX_SET_BYTES} bytes"),
        ):
            self.issuer.code, self.issuer.body = code, body
            source = self.source("/jwks.json?key=hidden")
            self.events.clear()
            assert await self.refused(source) == reason
            assert source.counters.failures == 1
            (warning,) = [event for event in self.events if "then" in event]
            assert warning["then"] == "there is none to use instead"
            assert "hidden" not in str(warning) and "secret" not in str(warning)

    async def test_a_body_without_a_length(self) -> None:
        class Old(Protocol):
            def dataReceived(self, data: bytes) -> None:
                cast(Any, self.transport).write(b"HTTP/1.0 200 OK\r\n\r\n" + NEW)
                cast(Any, self.transport).loseConnection()

        port = self.listening(Factory.forProtocol(Old))
        assert kids(await self.source(port=port).key_set()) == ["old", "new"]

    async def test_a_body_that_is_cut_off(self) -> None:
        class Cut(Protocol):
            def dataReceived(self, data: bytes) -> None:
                cast(Any, self.transport).write(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n" + NEW)
                cast(Any, self.transport).loseConnection()

        port = self.listening(Factory.forProtocol(Cut))
        assert "ConnectionDone" in await self.refused(self.source(port=port))

    async def test_servers_that_are_none(self) -> None:
        class Garbage(Gone):
            says = b"SSH-2.0-OpenSSH\r\n\x1b[31m" + b"x" * 1000 + b"\r\n"

        for protocol in (Gone, Garbage):
            reason = await self.refused(self.source(port=self.listening(Factory.forProtocol(protocol))))
            assert reason.isprintable() and len(reason) < 250
        unused = reactor.listenTCP(0, Factory(), interface=LOOPBACK)
        number = unused.getHost().port
        await unused.stopListening()
        assert "refused" in await self.refused(self.source(port=number))

    async def test_a_name_that_no_host_can_have(self) -> None:
        source = UrlJwks(f"https://{'a' * 64}.example/", Timed(self.clock))
        with pytest.raises(JwksUnavailable):
            result(source.key_set())
        # It failed before anybody could wait for it, and is tried again all the same.
        self.clock.advance(10)
        with pytest.raises(JwksUnavailable):
            result(source.key_set())
        assert (source.counters.reads, source.counters.failures) == (2, 2)

    async def test_a_fetch_has_a_limit_in_time(self) -> None:
        for attribute in ("is_silent", "trickles"):
            setattr(self.issuer, attribute, True)
            source = self.source(fetch_seconds=0.2)
            begun = time.monotonic()
            assert await self.refused(source) == "it did not come in 0.2 s"
            assert 0.15 < time.monotonic() - begun < 5
            # The connection is gone as well.
            (request,) = self.issuer.held
            await self.until(partial(getattr, request, "_disconnected"))
            self.issuer.held.clear()

    async def test_a_body_without_an_end_is_not_read_to_it(self) -> None:
        self.issuer.trickles = True
        self.issuer.body = b" " * 1_000_000
        self.issuer.trickle_bytes = MAX_SET_BYTES + 1
        assert await self.refused(self.source()) == f"it is larger than {MAX_SET_BYTES} bytes"
        await self.until(lambda: self.issuer.held[0]._disconnected)

    async def test_redirects_within_the_host(self) -> None:
        self.issuer.redirects = {
            "/jwks.json": "/a",
            "/a": f"http://{LOOPBACK}:{self.port}/b",
            "/b": "c",
            "/loop": "/loop",
        }
        assert kids(await self.source().key_set()) == ["old"]
        assert self.issuer.requests == ["/jwks.json", "/a", "/b", "/c"]
        assert await self.refused(self.source("/loop")) == "it redirects more than 3 times"
        assert self.issuer.requests.count("/loop") == 4

    async def test_redirects_to_elsewhere(self) -> None:
        other = Issuer()
        port = self.served(other)
        for target in (
            f"http://{LOOPBACK}:{port}/",
            f"//{LOOPBACK}:{port}/",
            f"http://localhost:{self.port}/",
            f"https://{LOOPBACK}:{self.port}/",
            f"http://x@{LOOPBACK}:{self.port}/",
            "file:///etc/passwd",
            "http://[/",
        ):
            self.issuer.redirects = {"/jwks.json": target}
            reason = await self.refused(self.source())
            assert "redirects to another host" in reason or "ValueError" in reason
        assert other.requests == []

    async def test_stopping(self) -> None:
        source = self.source()
        first = await source.key_set()
        self.issuer.is_silent = True
        self.clock.advance(3600)
        known, unknown = source.key_set("old"), source.key_set("new")
        await self.until(lambda: self.issuer.held)
        source.stop()
        assert result(known) is first
        with pytest.raises(JwksUnavailable, match="the shard is stopping"):
            await unknown
        self.clock.advance(3600)
        assert result(source.key_set()) is first
        await self.refused(source, "new")
        await self.until(lambda: self.issuer.held[0]._disconnected)
        assert len(self.issuer.requests) == 2

    async def test_https_with_a_certificate_that_is_trusted(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        authority = Authority(Path(directory.name))
        issued = authority.issue("localhost")
        context = ssl.DefaultOpenSSLContextFactory(issued.key, issued.cert)
        port = self.served(self.issuer, context)
        url = f"https://localhost:{port}/jwks.json"
        trusted = ssl.Certificate.loadPEM(Path(authority.ca).read_bytes())
        source = UrlJwks(url, Timed(self.clock), policy=BrowserLikePolicyForHTTPS(trusted))
        assert kids(await source.key_set()) == ["old"]
        assert "certificate verify failed" in await self.refused(UrlJwks(url, Timed(self.clock)))


class Timed:
    """The real reactor, but what asks for the time gets that of a clock."""

    def __init__(self, clock: Clock) -> None:
        self.seconds = clock.seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


# --- tokens with keys of a source ---------------------------------------------------------------------


class FakeSource:
    """A source that does as it is told, and notes what it was asked for."""

    def __init__(self, *sets: KeySet) -> None:
        self.sets = list(sets)
        self.asked: list[str | None] = []

    def key_set(self, kid: str | None = None) -> Deferred[KeySet]:
        self.asked.append(kid)
        return succeed(self.sets.pop(0) if len(self.sets) > 1 else self.sets[0])


def verifier_of(source: Any, **rules: str) -> JwksVerifier:
    return JwksVerifier(source, TokenKeys(hmac_secret=SECRET), TokenRules(**rules), lambda: NOW)


def test_tokens_are_verified_with_the_set_of_the_moment(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(OLD)
    verifier = verifier_of(FileJwks(str(path)), issuer="us")
    old = signed({"sub": "ann", "iss": "us"}, "RS256", RSA_KEY, kid="old")
    new = signed({"sub": "bob", "iss": "us", "channel": "a"}, "RS512", OTHER_RSA_KEY, kid="new")
    assert result(verifier.verify_connection(old)).user == "ann"
    with pytest.raises(KeyUnknown):
        result(verifier.verify_subscription(new))
    path.write_bytes(NEW)
    assert result(verifier.verify_subscription(new)).user == "bob"
    assert result(verifier.verify_connection(old)).user == "ann"
    path.write_bytes(key_set(jwk(CURVE_KEYS["ES256"].public_key(), kid="only")))
    with pytest.raises(KeyUnknown):
        result(verifier.verify_connection(old))
    with pytest.raises(TokenInvalid, match="another issuer"):
        result(verifier.verify_connection(signed({}, "ES256", CURVE_KEYS["ES256"])))
    with pytest.raises(TokenExpired):
        expired = {"exp": NOW, "iss": "us"}
        result(verifier.verify_connection(signed(expired, "ES256", CURVE_KEYS["ES256"])))


def test_the_source_is_asked_for_the_key_of_the_token_only_if_it_has_one() -> None:
    source = FakeSource(KeySet(()))
    verifier = verifier_of(source)
    assert result(verifier.verify_connection(hs256({"sub": "ann"}))).user == "ann"
    for token in ("", "a.b.c", hs256({}, header={"alg": "none", "kid": "x"})):
        with pytest.raises(TokenInvalid):
            result(verifier.verify_connection(token))
    assert source.asked == []
    for kid in ({"kid": "k"}, {}):
        with pytest.raises(TokenInvalid):
            result(verifier.verify_connection(signed({}, "RS256", RSA_KEY, **kid)))
    assert source.asked == ["k", None]


def test_the_source_may_have_nothing(tmp_path: Path) -> None:
    verifier = verifier_of(FileJwks(str(tmp_path / "missing")))
    with pytest.raises(JwksUnavailable):
        result(verifier.verify_connection(signed({}, "RS256", RSA_KEY, kid="old")))
    assert result(verifier.verify_connection(hs256({"sub": "ann"}))).user == "ann"


def test_pem_keys_do_not_go_with_a_source() -> None:
    with pytest.raises(KeyUnusable):
        JwksVerifier(
            cast(Any, FakeSource()), TokenKeys(rsa_public_key=public_pem(RSA_KEY)), TokenRules(), lambda: NOW
        )
