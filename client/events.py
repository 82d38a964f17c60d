"""What a client tells the application, and how the application listens.

Events are values. A ``Hook`` is one kind of event; the application calls it with a function, or decorates one
with it::

    @client.on_connected
    def _(event: Connected) -> None: ...

Functions are called in the order in which they were added, on the reactor's thread. One that raises is logged
and hurts nobody else; so is the failure of a Deferred or coroutine that it gives. Nothing waits for those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import iscoroutine
from typing import Generic, ParamSpec

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.node.wire.messages import StreamPosition

__all__ = [
    "Connected",
    "Connecting",
    "Disconnected",
    "Hook",
    "Subscribed",
    "Subscribing",
    "Unsubscribed",
    "log_failure",
]

P = ParamSpec("P")
_log = Logger("spread.client")


@dataclass(frozen=True, slots=True)
class Connecting:
    """A connection is being made, or made again."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Connected:
    """Connected, and known to the server."""

    client: str
    """The id of this connection."""
    version: str
    """Of the server."""
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """No connection, and none will be made unless ``connect`` is called."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Subscribing:
    """A subscription is being made, or made again."""

    channel: str
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Subscribed:
    """Subscribed. Missed publications, if there are some, follow."""

    channel: str
    recoverable: bool = False
    positioned: bool = False
    position: StreamPosition | None = None
    was_recovering: bool = False
    """Publications were missed, or could have been, and were asked for."""
    recovered: bool = False
    """All that were missed follow. False after ``was_recovering``: some are lost, load the state anew."""
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """Not subscribed, and it will stay so unless ``subscribe`` is called."""

    channel: str
    code: int
    reason: str


class Hook(Generic[P]):
    """One kind of event, and who listens to it."""

    __slots__ = ("_functions",)

    def __init__(self) -> None:
        self._functions: list[Callable[P, object]] = []

    def __call__(self, function: Callable[P, object]) -> Callable[P, object]:
        """Call ``function`` with every event from now on. Gives it back, so that it can decorate."""
        self._functions.append(function)
        return function

    def remove(self, function: Callable[P, object]) -> None:
        """Call it no more.

        :raises ValueError: it does not listen.
        """
        self._functions.remove(function)

    def fire(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Tell everyone. Raises nothing."""
        for function in tuple(self._functions):
            try:
                result = function(*args, **kwargs)
                if iscoroutine(result):
                    result = Deferred.fromCoroutine(result)
                if isinstance(result, Deferred):
                    result.addErrback(log_failure)
            except Exception:
                _log.failure("A function that listens to events failed")


def log_failure(failure: Failure) -> None:
    """The last errback of a Deferred that nobody else looks at."""
    _log.failure("Something failed that nobody waits for", failure)
