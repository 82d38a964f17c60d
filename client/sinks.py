"""Where ``spread publish`` publishes: as a client, or through the server API over HTTP."""

from __future__ import annotations

from typing import Any, cast

import msgspec
from msgspec import Raw
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import implementer

from spread.client.advice import HTTP_ADVICE
from spread.client.client import Client
from spread.client.errors import ClientError, ConnectionEnded, Refused, TimedOut, TransportFailed
from spread.client.tail import place_of

__all__ = ["ApiSink", "ClientSink"]

API_SECONDS = 10.0
ANSWER_MAX_BYTES = 65536


class ClientSink:
    """Publishes as a client does. Unlike a client it does not try for ever to connect: someone waits."""

    window = 100

    def __init__(self, client: Client, channel: str) -> None:
        self._client = client
        self._channel = channel
        self._error: ClientError | None = None
        client.on_error(self._failed)

    def open(self) -> Deferred[object]:
        return cast(Deferred[object], self._client.connect()).addErrback(self._why)

    def publish(self, payload: bytes) -> Deferred[None]:
        return self._client.publish(self._channel, payload)

    def close(self) -> Deferred[None]:
        return self._client.close()

    def _failed(self, error: ClientError) -> None:
        self._error = error
        self._client.disconnect()

    def _why(self, reason: Failure) -> Failure:
        return reason if self._error is None else Failure(self._error)


@implementer(IBodyProducer)
class _Body:
    """Bytes as the body of a request."""

    def __init__(self, data: bytes) -> None:
        self.length = len(data)
        self._data = data

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:
        """All is written already."""

    def resumeProducing(self) -> None:
        """All is written already."""

    def stopProducing(self) -> None:
        """All is written already."""


class _Answer(Protocol):
    """Collects the body of an answer, up to a bound."""

    def __init__(self) -> None:
        self.whole: Deferred[bytes] = Deferred()
        self._data = b""
        self._is_too_long = False

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > ANSWER_MAX_BYTES:
            self._data = b""
            self._is_too_long = True
            cast(Any, self.transport).loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._is_too_long:
            self.whole.errback(TransportFailed(f"the answer is above {ANSWER_MAX_BYTES} bytes"))
        elif reason.check(ResponseDone):
            self.whole.callback(self._data)
        else:
            self.whole.errback(ConnectionEnded(f"the answer broke off: {reason.getErrorMessage()}"))


class _Error(msgspec.Struct):
    code: int
    message: str = ""


class _Published(msgspec.Struct):
    error: _Error | None = None
    result: dict[str, Any] | None = None


class ApiSink:
    """Publishes as a backend does: ``POST URL/publish``."""

    window = 1  # several at once would go over several connections, in any order

    def __init__(self, reactor: Any, url: str, key: str, channel: str) -> None:
        self._reactor = reactor
        self._url = f"{url.rstrip('/')}/publish".encode()
        self._place = place_of(url)
        self._key = key
        self._channel = channel
        # A kept connection may be closed by the server just when the next line is sent, and then nobody
        # knows whether it was published.
        self._pool = HTTPConnectionPool(reactor, persistent=False)
        self._agent = Agent(reactor, connectTimeout=API_SECONDS, pool=self._pool)
        self._asked: Deferred[IResponse] | None = None

    def open(self) -> Deferred[object]:
        return succeed(None)

    def close(self) -> Deferred[None]:
        if self._asked is not None:
            self._asked.cancel()
        closed: Deferred[None] = self._pool.closeCachedConnections().addBoth(lambda _: None)
        return closed

    def publish(self, payload: bytes) -> Deferred[None]:
        body = msgspec.json.encode({"channel": self._channel, "data": Raw(payload)})
        headers = Headers({b"Content-Type": [b"application/json"]})
        if self._key:
            headers.addRawHeader(b"X-API-Key", self._key.encode())
        asked = self._agent.request(b"POST", self._url, headers, cast(IBodyProducer, _Body(body)))
        self._asked = asked
        asked.addErrback(self._not_asked)
        answered: Deferred[Any] = asked.addCallback(self._answered)
        answered.addTimeout(API_SECONDS, cast(IReactorTime, self._reactor), _too_late)
        return answered

    def _not_asked(self, reason: Failure) -> None:
        ended = reason.check(ResponseNeverReceived) is not None
        kind = ConnectionEnded if ended else TransportFailed
        raise kind(f"{self._place}: {_sentence(reason)}")

    def _answered(self, response: Any) -> Deferred[None]:
        if response.code != 200:
            advice = HTTP_ADVICE.get(response.code, "see the server's log")
            phrase = response.phrase.decode("latin-1")
            raise TransportFailed(f"{self._place} answers {response.code} {phrase}: {advice}")
        answer = _Answer()
        response.deliverBody(answer)
        return answer.whole.addCallback(self._read)

    def _read(self, data: bytes) -> None:
        try:
            answer = msgspec.json.decode(data, type=_Published)
        except msgspec.DecodeError:
            raise TransportFailed(f"{self._place} is no server API: its answer is no JSON of one") from None
        if answer.error is not None:
            raise Refused(answer.error.code, answer.error.message)
        if answer.result is None:
            raise TransportFailed(f"{self._place} is no server API: its answer has no result")


def _too_late(value: object, seconds: float) -> object:
    if isinstance(value, Failure):
        raise TimedOut(f"no answer within {seconds:g} s")
    return value


def _sentence(reason: Failure) -> str:
    """Twisted wraps what went wrong; this is what did."""
    inner = getattr(reason.value, "reasons", None)
    return (inner[0] if inner else reason).getErrorMessage().rstrip(".")
