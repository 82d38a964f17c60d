"""A coroutine of the team's, each of whose steps is looked at: between two of them the reactor turns."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from inspect import iscoroutine
from typing import Any

__all__ = ["stepped"]


def stepped(awaitable: Any, guard: Callable[[], AbstractContextManager[object]]) -> Generator[Any, Any, Any]:
    """For ``Deferred.fromCoroutine``.

    :param guard: each step is done in one of these. What it makes of an exception is what the coroutine
        comes to.
    """
    coroutine: Any = awaitable if iscoroutine(awaitable) else awaitable.__await__()
    step, value = coroutine.send, None
    while True:
        with guard():
            try:
                awaited = step(value)
            except StopIteration as ended:
                return ended.value
        try:
            value = yield awaited
            step = coroutine.send
        # Whatever it is, the coroutine is told of it.
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            step, value = coroutine.throw, error
