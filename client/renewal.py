"""A new token before the old one expires, for a connection or a subscription."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from spread.client import codes
from spread.client.codes import Reason
from spread.client.connection import Clock, Timer, cancel
from spread.client.errors import (
    ClientError,
    ConnectionEnded,
    NotConnected,
    Refused,
    TokenFailed,
    Unauthorized,
)
from spread.client.events import log_failure
from spread.client.tokens import TokenSource
from spread.node.wire.messages import RefreshResult, SubRefreshResult

__all__ = ["Renewal"]

Renewed: TypeAlias = RefreshResult | SubRefreshResult


class Renewal:
    """When the time has come, asks the application for a token and gives it to the server.

    What is temporary is told and tried again; what is final ends what the token was for. After ``cancel``
    nothing more happens. Without an application to ask, nothing happens at all, and the server will end
    what has expired.
    """

    def __init__(
        self,
        clock: Clock,
        tokens: TokenSource | None,
        send: Callable[[str], Deferred[Renewed]],
        *,
        ended: Callable[[Reason], None],
        failed: Callable[[ClientError], None],
        error_code: int,
        retry_seconds: float,
        fraction: Callable[[], float],
    ) -> None:
        """:param error_code: of what the application's function fails with.

        :param retry_seconds: the least time between two tries; the most is twice as long.
        """
        self._clock = clock
        self._tokens = tokens
        self._send = send
        self._ended = ended
        self._failed = failed
        self._error_code = error_code
        self._retry_seconds = retry_seconds
        self._fraction = fraction
        self._timer: Timer | None = None
        self._sent: Deferred[Renewed] | None = None

    def granted(self, expires: bool, ttl_seconds: int) -> None:
        """The server says how long the present token is good for."""
        self.cancel()
        if expires and self._tokens is not None:
            self._timer = self._clock.callLater(ttl_seconds, self._ask)

    def cancel(self) -> None:
        """What the token was for is over."""
        if self._timer is not None:
            cancel(self._timer)
            self._timer = None
        if self._tokens is not None:
            self._tokens.cancel()
        sent, self._sent = self._sent, None
        if sent is not None:
            sent.cancel()

    def _ask(self) -> None:
        self._timer = None
        if self._tokens is not None:
            self._tokens.ask(self._got, self._got_none)

    def _got(self, token: str) -> None:
        if not token:
            self._ended(codes.UNAUTHORIZED)
            return
        self._sent = sent = self._send(token)
        sent.addCallbacks(self._renewed, self._refused, callbackArgs=(sent,), errbackArgs=(sent,))
        sent.addErrback(log_failure)

    def _got_none(self, cause: BaseException) -> None:
        if isinstance(cause, Unauthorized):
            self._ended(codes.UNAUTHORIZED)
        else:
            self._retry()
            self._failed(TokenFailed(self._error_code, cause))

    def _renewed(self, result: Renewed, sent: Deferred[Renewed]) -> None:
        if self._sent is sent:
            self._sent = None
            self.granted(result.expires, result.ttl)

    def _refused(self, reason: Failure, sent: Deferred[Renewed]) -> None:
        error = reason.value
        if self._sent is not sent or isinstance(error, (ConnectionEnded, NotConnected)):
            return  # it is over
        self._sent = None
        if isinstance(error, Refused) and not error.temporary:
            self._ended(Reason(error.code, error.text))
        elif isinstance(error, ClientError):
            self._retry()
            self._failed(error)

    def _retry(self) -> None:
        seconds = self._retry_seconds * (1 + self._fraction())
        self._timer = self._clock.callLater(seconds, self._ask)
