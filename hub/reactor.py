"""The parts of Twisted's interfaces that we call, as types a checker can read.

Twisted declares them with zope.interface, whose methods have no ``self``; to mypy and pyright every
call of one is an error. Nothing here runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred

__all__ = ["Clock", "Endpoint", "StreamTransport", "Timer"]


class Timer(Protocol):
    """``IDelayedCall``."""

    def cancel(self) -> None: ...
    def reset(self, secondsFromNow: float) -> None: ...
    def active(self) -> bool: ...


class Clock(Protocol):
    """``IReactorTime``."""

    def seconds(self) -> float: ...
    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any, **kw: Any) -> Timer: ...


class StreamTransport(Protocol):
    """``ITCPTransport`` and ``IPushProducer``, as far as a TCP or Unix connection has both."""

    def write(self, data: bytes) -> None: ...
    def loseConnection(self) -> None: ...
    def abortConnection(self) -> None: ...
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...


class Endpoint(Protocol):
    """``IStreamClientEndpoint``."""

    def connect(self, protocolFactory: Any, /) -> Deferred[Any]: ...
