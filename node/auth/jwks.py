"""Key sets (JWKS, RFC 7517): the public keys of an issuer, read from a file or fetched from a URL, and kept.

Promises:

1.  *A set is never older than its time to live* while the issuer can be reached. When it cannot, the old
    set stays in use, which is logged and counted.
2.  *A new key works at once.* A ``kid`` that the set does not have makes it be read again; but a URL is asked
    at most every ``refetch_seconds``, whatever clients send, and those who wait share one fetch.
3.  *Not known is not the same as wrong.* Where a ``kid`` could not be looked up, ``JwksUnavailable`` says so:
    the client should be sent away for a moment, not for good.
4.  *Everything is bounded*: bytes, seconds, keys, redirects (to the same host, port and scheme only).
5.  Keys come over https; over http from this machine only.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Callable
from typing import Any, Protocol, TypeVar
from urllib.parse import urljoin, urlsplit

from msgspec import Struct
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from spread.node.auth.keys import TokenKeys, token_header
from spread.node.auth.keyset import MAX_SET_BYTES, KeySet, KeySetInvalid, parse_key_set
from spread.node.auth.tokens import ConnectionToken, SubscriptionToken, TokenRules, TokenVerifier

__all__ = [
    "FileJwks",
    "JwksCounters",
    "JwksSource",
    "JwksUnavailable",
    "JwksVerifier",
    "UrlJwks",
]

MAX_REDIRECTS = 3
FETCH_SECONDS = 5.0
"""For everything: the name, the connection, redirects, the last byte."""
TTL_SECONDS = 3600.0
"""How long a set is used, if the answer does not say."""
TTL_BOUNDS = (60.0, 86400.0)
"""What an answer may say: no fetch for each client, and no revoked key for long."""
REFETCH_SECONDS = 10.0

log = Logger("spread.node.auth.jwks")

_Verified = TypeVar("_Verified")


class JwksUnavailable(Exception):
    """Whether there is such a key cannot be said now; the same token may be good in a moment."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"the key set {self.source} is not available: {self.reason}"


class JwksCounters(Struct, kw_only=True):
    """Plain numbers of one source."""

    reads: int = 0
    """Attempts to read the set."""
    failures: int = 0
    """Those of them after which the old set, or none, stayed."""


class JwksSource(Protocol):
    """Where a key set comes from."""

    counters: JwksCounters

    def key_set(self, kid: str | None = None) -> Deferred[KeySet]:
        """The set in force.

        :param kid: the name of a wanted key. The set fired with either has it, or was read to look for it.
        :returns: fires at once if nothing must be read. Fails with ``JwksUnavailable`` if there is no set
            yet, or ``kid`` is not in the set that there is and another cannot be had now.
        """
        ...

    def stop(self) -> None:
        """Read no more; those who wait get ``JwksUnavailable``."""
        ...


class FileJwks:
    """A key set in a file, read again when the file has changed.

    The file is looked at for each token (2 µs), so a set is in force as soon as it is written. Write it to
    another name and rename it, or a half-written one may be read; that does no harm but a log line.
    """

    def __init__(self, path: str) -> None:
        self.counters = JwksCounters()
        self._path = path
        self._keys: KeySet | None = None
        self._version: object = ()
        self._reason = "it has not been read"

    def key_set(self, kid: str | None = None) -> Deferred[KeySet]:
        """See ``JwksSource``. Fires at once, always."""
        version: object = None
        try:
            status = os.stat(self._path)
            version = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
            if version != self._version:
                self.counters.reads += 1
                self._keys = parse_key_set(self._read())
                self._report(version, f"{len(self._keys.keys)} keys")
        except (OSError, KeySetInvalid) as error:
            reason = error.reason if isinstance(error, KeySetInvalid) else str(error.strerror)
            if version != self._version:
                self.counters.failures += 1
                self._report(version, reason, failed=True)
        if self._keys is None:
            return fail(JwksUnavailable(self._path, self._reason))
        return succeed(self._keys)

    def stop(self) -> None:
        """Nothing to stop."""

    def _read(self) -> bytes:
        # A FIFO in its place would block the shard when it is opened.
        with open(self._path, "rb", opener=_opened_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise KeySetInvalid("it is not a file")
            return file.read(MAX_SET_BYTES + 1)

    def _report(self, version: object, text: str, failed: bool = False) -> None:
        self._version = version
        self._reason = text
        if failed:
            log.warn("key set {path}: {reason}; {then}", path=self._path, reason=text, then=_then(self._keys))
        else:
            log.info("key set {path}: {text}", path=self._path, text=text)


class UrlJwks:
    """A key set behind a URL.

    :param url: https, or http on this machine.
    :param reactor: makes the connections and keeps the time.
    :param policy: which certificates are trusted; without it those that the system trusts.
    :raises ValueError: the URL is none of those.
    """

    def __init__(
        self,
        url: str,
        reactor: Any,
        *,
        policy: Any = None,
        ttl_seconds: float = TTL_SECONDS,
        refetch_seconds: float = REFETCH_SECONDS,
        fetch_seconds: float = FETCH_SECONDS,
    ) -> None:
        _check_url(url)
        self.counters = JwksCounters()
        self._url = url
        # A query may hold a key of its own.
        self._name = urlsplit(url)._replace(query="").geturl()
        self._reactor = reactor
        self._policy = policy
        self._ttl_seconds = ttl_seconds
        self._refetch_seconds = refetch_seconds
        self._fetch_seconds = fetch_seconds
        self._keys: KeySet | None = None
        self._reason = "it has not been fetched"
        self._fresh_until = 0.0
        self._not_before = 0.0
        self._fetch: Deferred[None] | None = None
        self._waiting: list[tuple[str | None, Deferred[KeySet]]] = []
        self._stopped = False

    def key_set(self, kid: str | None = None) -> Deferred[KeySet]:
        """See ``JwksSource``. Waits no longer than ``fetch_seconds``."""
        now = self._reactor.seconds()
        if self._has(kid) and now < self._fresh_until:
            return self._answer(kid)
        if self._stopped or (self._fetch is None and now < self._not_before):
            return self._answer(kid)
        waiting: Deferred[KeySet] = Deferred()
        self._waiting.append((kid, waiting))
        if self._fetch is None:
            self._not_before = now + self._refetch_seconds
            self.counters.reads += 1
            fetch: Deferred[tuple[KeySet, float]] = Deferred.fromCoroutine(self._fetched())
            fetch.addTimeout(self._fetch_seconds, self._reactor, _too_late)
            self._fetch = done = fetch.addCallbacks(self._succeeded, self._failed)
            done.addErrback(lambda failure: log.failure("a waiter for a key set failed", failure))
            if done.called:
                self._fetch = None
        return waiting

    def stop(self) -> None:
        """See ``JwksSource``."""
        self._stopped = True
        if self._fetch is not None:
            self._fetch.cancel()

    def _has(self, kid: str | None) -> bool:
        return self._keys is not None and (kid is None or bool(self._keys.find(kid)))

    def _answer(self, kid: str | None) -> Deferred[KeySet]:
        """The set that there is, if it will do."""
        if self._keys is not None and self._has(kid):
            return succeed(self._keys)
        return fail(JwksUnavailable(self._name, self._reason))

    def _succeeded(self, result: tuple[KeySet, float]) -> None:
        self._keys, ttl_seconds = result
        self._fresh_until = self._reactor.seconds() + ttl_seconds
        self._reason = "it was fetched a moment ago, without that key"
        log.info("key set {name}: {count} keys", name=self._name, count=len(self._keys.keys))
        for _, waiting in self._ended():
            waiting.callback(self._keys)

    def _failed(self, failure: Failure) -> None:
        self.counters.failures += 1
        self._reason = "the shard is stopping" if self._stopped else _reason(failure)
        if not self._stopped:
            then = _then(self._keys)
            log.warn("key set {name}: {reason}; {then}", name=self._name, reason=self._reason, then=then)
        for kid, waiting in self._ended():
            self._answer(kid).chainDeferred(waiting)

    def _ended(self) -> list[tuple[str | None, Deferred[KeySet]]]:
        self._fetch = None
        waiting, self._waiting = self._waiting, []
        return waiting

    async def _fetched(self) -> tuple[KeySet, float]:
        endpoints = _Endpoints(
            self._reactor, self._policy or BrowserLikePolicyForHTTPS(), self._fetch_seconds
        )
        agent = Agent.usingEndpointFactory(self._reactor, endpoints)
        headers = Headers({"accept": ["application/json"], "user-agent": ["spread"]})
        url = self._url
        try:
            for _ in range(MAX_REDIRECTS + 1):
                response: Any = await agent.request(b"GET", url.encode("ascii"), headers)
                if response.code == 200:
                    body = _Body(MAX_SET_BYTES)
                    response.deliverBody(body)
                    return parse_key_set(await body.done), self._ttl(response.headers)
                places = response.headers.getRawHeaders("location")
                if response.code not in (301, 302, 303, 307, 308) or not places:
                    raise KeySetInvalid(f"the answer is {response.code}")
                target = urljoin(url, places[0])
                if _origin(target) != _origin(url):
                    raise KeySetInvalid("it redirects to another host, port or scheme")
                url = target
            raise KeySetInvalid(f"it redirects more than {MAX_REDIRECTS} times")
        finally:
            endpoints.abort()

    def _ttl(self, headers: Headers) -> float:
        """Seconds that an answer may be used."""
        least, most = TTL_BOUNDS
        directives = ",".join(headers.getRawHeaders("cache-control", []))
        if re.search(r"\bno-(store|cache)\b", directives, re.IGNORECASE):
            return least
        age = re.search(r"(?:^|[,\s])max-age=\"?(\d{1,10})(?!\d)", directives, re.IGNORECASE)
        return min(max(float(age[1]), least), most) if age else self._ttl_seconds


class JwksVerifier:
    """Verifies tokens with the key set of a source; HMAC tokens, if there is a secret, without it.

    :param keys: the HMAC secrets, if any; no PEM keys.
    :param now: the time, in seconds since 1970. It is asked after the keys have come.
    :raises KeyUnusable: there are PEM keys.
    """

    def __init__(
        self, source: JwksSource, keys: TokenKeys, rules: TokenRules, now: Callable[[], float]
    ) -> None:
        self._source = source
        self._keys = keys
        self._rules = rules
        self._now = now
        self._key_set = KeySet(())
        self._verifier = TokenVerifier(keys.with_key_set(self._key_set), rules)

    def verify_connection(self, token: str) -> Deferred[ConnectionToken]:
        """What a connection token says.

        :returns: fails with ``TokenExpired``, ``TokenInvalid`` or ``JwksUnavailable``.
        """
        return self._verified(token, lambda: self._verifier.verify_connection(token, self._now()))

    def verify_subscription(self, token: str) -> Deferred[SubscriptionToken]:
        """What a subscription token says.

        :returns: fails with ``TokenExpired``, ``TokenInvalid`` or ``JwksUnavailable``.
        """
        return self._verified(token, lambda: self._verifier.verify_subscription(token, self._now()))

    def _verified(self, token: str, verify: Callable[[], _Verified]) -> Deferred[_Verified]:
        async def verified() -> _Verified:
            header = token_header(token)
            if not header.is_hmac:
                self._use(await self._source.key_set(header.kid))
            return verify()

        return Deferred.fromCoroutine(verified())

    def _use(self, key_set: KeySet) -> None:
        if key_set is not self._key_set:
            self._key_set = key_set
            self._verifier = TokenVerifier(self._keys.with_key_set(key_set), self._rules)


class _Body(TwistedProtocol):
    """Collects a body of limited size."""

    def __init__(self, limit_bytes: int) -> None:
        self.done: Deferred[bytes] = Deferred()
        self._limit_bytes = limit_bytes
        self._data = bytearray()

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > self._limit_bytes and not self.done.called:
            self.done.errback(KeySetInvalid(f"it is larger than {self._limit_bytes} bytes"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        # Without a length, the end of the connection is the end of the body; JSON tells if some is missing.
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(bytes(self._data))
        else:
            self.done.errback(reason)


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Makes the connections of one fetch, and can end them at once.

    Closing in the ordinary way is not enough: TLS waits for the other side to close as well.
    """

    def __init__(self, reactor: Any, policy: Any, connect_seconds: float) -> None:
        self._reactor = reactor
        self._policy = policy
        self._connect_seconds = connect_seconds
        self._connections: list[Any] = []

    def endpointForURI(self, uri: Any) -> Any:
        endpoint: Any = HostnameEndpoint(self._reactor, uri.host, uri.port, self._connect_seconds)
        if uri.scheme == b"https":
            endpoint = wrapClientTLS(self._policy.creatorForNetloc(uri.host, uri.port), endpoint)
        return _Kept(endpoint, self._connections)

    def abort(self) -> None:
        for connection in self._connections:
            if connection.transport is not None:
                connection.transport.abortConnection()


@implementer(IStreamClientEndpoint)
class _Kept:
    """An endpoint that keeps what it has connected."""

    def __init__(self, endpoint: Any, connections: list[Any]) -> None:
        self._endpoint = endpoint
        self._connections = connections

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        def kept(protocol: Any) -> Any:
            self._connections.append(protocol)
            return protocol

        connecting: Deferred[Any] = self._endpoint.connect(protocolFactory)
        return connecting.addCallback(kept)


def _opened_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("the URL of the key set is no URL") from None
    if (
        parts.scheme not in ("http", "https")
        or not host
        or not url.isascii()
        or re.search(r"[\s\x00-\x1f]", url)
    ):
        raise ValueError("the URL of the key set is neither https nor http")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError("the URL of the key set has a user, a password or a fragment")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ValueError("the URL of the key set is http, which is allowed for this machine only: use https")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _too_late(result: object, seconds: float) -> object:
    raise KeySetInvalid(f"it did not come in {seconds:g} s")


def _reason(failure: Failure) -> str:
    """Why a fetch failed, in one line."""
    if isinstance(failure.value, KeySetInvalid):
        return failure.value.reason
    # Twisted's own errors wrap a list of reasons, of which the first tells most.
    reasons = getattr(failure.value, "reasons", None) or [failure]
    # It may quote the answer, so without line endings and not all of it.
    return f"{type(reasons[0].value).__name__}: {ascii(reasons[0].getErrorMessage())[1:200]}"


def _then(keys: KeySet | None) -> str:
    return "the old set stays in use" if keys is not None else "there is none to use instead"
