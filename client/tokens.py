"""Asking the application for a token."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from inspect import iscoroutine
from typing import Any, TypeAlias, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from spread.client.connection import Clock
from spread.client.events import log_failure

__all__ = ["TOKEN_SECONDS", "GivenToken", "TokenSource"]

GivenToken: TypeAlias = str | Deferred[str] | Coroutine[Any, Any, str]
"""What an application's function for tokens may give."""

TOKEN_SECONDS = 30.0
"""How long the application may take for a token; then its Deferred is cancelled."""


class TokenSource:
    """The application's function for tokens, asked by one who may lose interest.

    One question at a time. After ``cancel`` nothing is told.
    """

    __slots__ = ("_asked", "_clock", "_get")

    def __init__(self, clock: Clock, get: Callable[[], GivenToken]) -> None:
        self._clock = clock
        self._get = get
        self._asked: Deferred[str] | None = None

    @property
    def is_asked(self) -> bool:
        return self._asked is not None

    def ask(self, got: Callable[[str], None], failed: Callable[[BaseException], None]) -> None:
        """Call the function; then one of the two, at once or later."""
        self.cancel()
        asked = maybeDeferred(self._given)
        asked.addTimeout(TOKEN_SECONDS, cast(IReactorTime, self._clock))
        self._asked = asked

        def settled(token: object) -> None:
            if self._asked is not asked:
                return
            self._asked = None
            if isinstance(token, Failure):
                failed(cast(BaseException, token.value))
            elif isinstance(token, str) and token.isascii():
                got(token)
            else:
                failed(TypeError(f"a token is a str of ASCII, not {type(token).__name__}"))

        asked.addBoth(settled)
        asked.addErrback(log_failure)

    def _given(self) -> Deferred[str]:
        token = self._get()
        return Deferred.fromCoroutine(token) if iscoroutine(token) else cast(Deferred[str], token)

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.cancel()
