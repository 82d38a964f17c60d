"""How a hook is run: whatever comes of it, it is one client's matter and nobody else's.

An answer comes at once or by a Deferred, within ``app.hook_seconds``. What goes wrong becomes an error of the
protocol (``session.shared.Refused``) or the end of the connection (``Ended``); it is logged, with the
client's id, and counted by the name of the hook.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from inspect import iscoroutine
from time import perf_counter
from types import AsyncGeneratorType, GeneratorType
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.reactor import Clock
from spread.node import codes
from spread.node.app.client import Client
from spread.node.app.data import Nonsense
from spread.node.app.load import explain
from spread.node.app.steps import stepped
from spread.node.app.values import Disconnect, Refuse
from spread.node.app.watch import HookBlocked, Watch
from spread.node.limits import Rate
from spread.node.session.logic import Answer
from spread.node.session.shared import Ended, Refused

__all__ = ["BUCKETS", "HookStats", "Hooks"]

BUCKETS = (0.0001, 0.001, 0.01, 0.1, 1.0)
"""Upper bounds in seconds; what took longer is counted in all."""

ERRORS_PER_SECOND = 20.0
"""Of each hook, in the log: one that fails all the time must not hide the others.

What is above is counted, and told with the next."""

LOG_MAX_CHARACTERS = 20_000
"""Of one error in the log; of a longer text, which an exception may have, the middle is left out."""

MAX_NAMES = 500
"""Hooks, methods and timers that are counted each by its name; all others as ``OTHERS``."""

OTHERS = "others"

Convert = Callable[[Any], Any]

_UNFINISHED = (GeneratorType, AsyncGeneratorType)
"""What a function with a ``yield`` gives, of which nothing has run yet: a decorator was forgotten."""


class HookStats:
    """What became of all calls of one hook."""

    __slots__ = ("calls", "counts", "errors", "rate", "seconds", "timeouts", "unlogged")

    def __init__(self, now: float) -> None:
        self.calls = 0
        self.errors = 0
        self.timeouts = 0
        self.seconds = 0.0
        self.counts = [0] * (len(BUCKETS) + 1)
        self.rate = Rate(ERRORS_PER_SECOND, now)
        self.unlogged = 0

    def took(self, seconds: float) -> None:
        """A call has come to its end."""
        self.seconds += seconds
        self.counts[bisect_left(BUCKETS, seconds)] += 1


class Hooks:
    """Runs them.

    :param seconds: how long one may take.
    :param max_waiting: how many may wait at a time.
    """

    log = Logger("spread.node.app.hooks")

    def __init__(self, clock: Clock, watch: Watch, seconds: float, max_waiting: int) -> None:
        self.stats: dict[str, HookStats] = {}
        """By the name of the hook."""
        self.waiting = 0
        """Hooks that have begun, and wait for something."""
        self._clock = clock
        self._watch = watch
        self._seconds = seconds
        self._max_waiting = max_waiting

    def call(
        self,
        hook: str,
        client: Client | None,
        function: Callable[..., Any],
        *args: Any,
        convert: Convert | None = None,
    ) -> Answer[Any]:
        """Call a hook; gives its answer.

        :param hook: its name, for the log and the metrics.
        :param client: whose matter it is.
        :param convert: what is made of its answer; what that raises is the hook's error.
        :raises Refused: at once or by the Deferred, as is the next.
        :raises Ended: and nothing else.
        """
        stats = self._stats_of(hook)
        stats.calls += 1
        began = perf_counter()
        try:
            before = self._watch.enter(hook)
            try:
                answer = function(*args)
            finally:
                self._watch.leave(before)
            if iscoroutine(answer):
                answer = Deferred.fromCoroutine(stepped(answer, partial(self._watch.named, hook)))
            if not isinstance(answer, Deferred):
                stats.took(perf_counter() - began)
                if isinstance(answer, _UNFINISHED):
                    raise Nonsense(hook, answer, "its answer, a Deferred of it, or be async")
                return answer if convert is None else convert(answer)
        # Also SystemExit and the like: the team's code must not end the shard, nor somebody's connection.
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and not self._watch.is_on:
                raise  # a test that somebody ends
            raise self._told(hook, client, error) from None
        return self._awaited(hook, client, answer, began, convert)

    def _stats_of(self, hook: str) -> HookStats:
        stats = self.stats.get(hook)
        if stats is None:
            name = hook if len(self.stats) < MAX_NAMES else OTHERS
            stats = self.stats.setdefault(name, HookStats(self._clock.seconds()))
        return stats

    def notify(self, hook: str, client: Client | None, function: Callable[..., Any], *args: Any) -> None:
        """Call a hook that has nothing to say; ``Disconnect`` ends its client's connection all the same."""
        try:
            answer = self.call(hook, client, function, *args)
        except (Refused, Ended) as error:
            self._unwanted(hook, client, error)
            return
        if isinstance(answer, Deferred):
            answer.addErrback(lambda failure: self._unwanted(hook, client, failure.value))

    def _unwanted(self, hook: str, client: Client | None, error: Any) -> None:
        if isinstance(error, Ended) and client is not None:
            client.disconnect(error.disconnect.code, error.disconnect.reason)
        elif not (isinstance(error, Refused) and error.error is codes.INTERNAL_ERROR):
            self._log(hook, client, f"it has raised {error!r}, and there is nothing to refuse")

    def _awaited(
        self, hook: str, client: Client | None, answer: Deferred[Any], began: float, convert: Convert | None
    ) -> Answer[Any]:
        stats = self._stats_of(hook)
        outcome: list[Any] = []
        result: Deferred[Any] = Deferred(lambda _: cancelled())
        timer: Any = None

        def answered(value: Any) -> Any:
            outcome.append(value)
            if timer is not None:  # else it is answered at once
                self._end_waiting(timer)
                if not result.called:
                    settle()
                elif isinstance(value, Failure) and not value.check(CancelledError, Refuse, Disconnect):
                    # Nobody is told any more, but whoever wrote it should know.
                    self._told(hook, client, cast(BaseException, value.value))
            # It may be the team's own, which gives it to several.
            return None if isinstance(value, Failure) else value

        def settle() -> None:
            stats.took(perf_counter() - began)
            try:
                result.callback(self._outcome(hook, client, outcome[0], convert))
            except (Refused, Ended) as error:
                result.errback(Failure(error))

        def late() -> None:
            stats.timeouts += 1
            stats.took(perf_counter() - began)
            self._log(hook, client, f"it has not answered after {self._seconds:g} s")
            self.waiting -= 1
            if not result.called:  # else its client has gone, and it has gone on all the same
                result.errback(Failure(Refused(codes.INTERNAL_ERROR)))
            cancel()

        def cancelled() -> None:
            # The client has gone: what the hook does then is its own matter.
            result.errback(Failure(CancelledError()))
            cancel()

        def cancel() -> None:
            try:
                before = self._watch.enter(hook)
                try:
                    answer.cancel()
                finally:
                    self._watch.leave(before)
            except BaseException as error:  # of a canceller of the team's
                self._told(hook, client, error)

        answer.addBoth(answered)
        if outcome:
            stats.took(perf_counter() - began)
            return self._outcome(hook, client, outcome[0], convert)
        if self.waiting >= self._max_waiting:
            stats.errors += 1
            self._log(hook, client, f"{self.waiting} hooks wait already, which is app.max_waiting_hooks")
            cancel()
            raise Refused(codes.INTERNAL_ERROR)
        self.waiting += 1
        timer = self._clock.callLater(self._seconds, late)
        return result

    def _end_waiting(self, timer: Any) -> None:
        if timer.active():
            timer.cancel()
            self.waiting -= 1

    def _outcome(self, hook: str, client: Client | None, outcome: Any, convert: Convert | None) -> Any:
        """:raises Refused: or ``Ended``."""
        if isinstance(outcome, Failure):
            raise self._told(hook, client, cast(BaseException, outcome.value)) from None
        try:
            return outcome if convert is None else convert(outcome)
        except BaseException as error:
            raise self._told(hook, client, error) from None

    # -- what went wrong ------------------------------------------------------------------------------------

    def _told(self, hook: str, client: Client | None, error: BaseException) -> Exception:
        """What the client is told of it."""
        if isinstance(error, Refused | Ended):
            return error
        if isinstance(error, Refuse):
            told = codes.Error(error.code, error.message, error.temporary)
            known = codes.ERRORS.get(told.code)  # which sessions know by its identity
            return Refused(known if known == told else told)
        if isinstance(error, Disconnect):
            return Ended(codes.Disconnect(error.code, error.reason), f"by {hook}")
        stats = self._stats_of(hook)
        if isinstance(error, HookBlocked):
            stats.timeouts += 1
            self._log(hook, client, str(error))
        else:
            stats.errors += 1
            self._log(hook, client, explain(error))
        return Refused(codes.INTERNAL_ERROR)

    def _log(self, hook: str, client: Client | None, text: str) -> None:
        stats = self._stats_of(hook)
        if not stats.rate.take(self._clock.seconds()):
            stats.unlogged += 1
            return
        unlogged, stats.unlogged = stats.unlogged, 0
        if len(text) > LOG_MAX_CHARACTERS:
            half = LOG_MAX_CHARACTERS // 2
            text = f"{text[:half]} … {text[-half:]}"
        self.log.error(
            "{hook}{of}: {text}{more}",
            hook=hook,
            of="" if client is None else f" for client {client.id} of user {client.user!r}",
            text=text,
            more=f"; {unlogged} more errors were left out" if unlogged else "",
        )
