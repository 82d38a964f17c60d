"""An app's timers. They are the shard's: what calls a method of the app goes on with the next version of it.

But those that an app makes before it runs, in ``__init__`` or ``import_state``, are of that version alone:
the next one makes its own. Where it makes the same ones, they keep the times of those before; else an app
that is updated often would never be called by a timer that takes long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from spread.hub.reactor import Clock, Timer
from spread.node.app.marks import MAX_SECONDS, everys_of, repeating

if TYPE_CHECKING:
    from spread.node.app.app import App

__all__ = ["HELD", "Handle", "Timers"]

HELD = "_held_timers"
"""In the ``__dict__`` of an app that does not run yet: its timers, which begin when it does."""

Call = Callable[..., "Deferred[Any] | Any"]


class Handle:
    """A timer, so that it can be cancelled."""

    __slots__ = (
        "_timers",
        "args",
        "due",
        "function",
        "is_busy",
        "is_cancelled",
        "is_of_class",
        "is_of_version",
        "name",
        "seconds",
        "timer",
    )

    def __init__(
        self, timers: Timers, name: str, function: Call | None, args: tuple[Any, ...], seconds: float
    ) -> None:
        self._timers = timers
        self.name = name
        """Of the app's method; or, for the log, of ``function``."""
        self.function = function
        """``None``: the app's method of that name."""
        self.args = args
        self.seconds = seconds
        """Until the next call, for one that repeats; else 0."""
        self.due = 0.0
        self.timer: Timer | None = None
        self.is_of_class = False
        """Made by ``@every``."""
        self.is_of_version = False
        """Made before its app ran."""
        self.is_cancelled = False
        self.is_busy = False
        """The last call has not come to its end; one that is due meanwhile is left out."""

    @property
    def is_active(self) -> bool:
        """It will call."""
        return self in self._timers.all

    def cancel(self) -> None:
        """Call no more. Idempotent."""
        self._timers.cancel(self)


class Timers:
    """All timers of an app.

    :param call: calls a method, given a name for it, the method and its arguments; never fails.
    :param current: the app that runs.
    :param limit: how many there may be.
    """

    def __init__(
        self, clock: Clock, call: Callable[..., Any], current: Callable[[], App | None], limit: int
    ) -> None:
        self.all: dict[Handle, None] = {}
        self._clock = clock
        self._call = call
        self._current = current
        self._limit = limit

    def every(self, app: App, seconds: float, method: Call) -> Handle:
        """See ``App.every``."""
        return self._add(app, method, (), repeating(seconds), seconds)

    def later(self, app: App, seconds: float, method: Call, args: tuple[Any, ...]) -> Handle:
        """See ``App.later``."""
        if not seconds <= MAX_SECONDS:
            raise ValueError(f"a timer waits for {MAX_SECONDS:g} s at most, not {seconds!r}")
        return self._add(app, method, args, 0.0, max(0.0, seconds))

    def _add(self, app: App, method: Call, args: tuple[Any, ...], period: float, seconds: float) -> Handle:
        if not callable(method):
            raise TypeError(f"a timer calls a method or function, not {method!r}")
        held = vars(app).get(HELD)
        # Those that are held may take the place of others; all of them are counted by ``check``.
        if len(self.all if held is None else held) >= self._limit:
            raise RuntimeError(f"there are {self._limit} timers already, which is app.max_timers")
        name = getattr(method, "__name__", type(method).__name__)
        # By its name, so that nothing of the old version is held, and the new one's is called.
        is_own = _is_app(getattr(method, "__self__", None)) and callable(getattr(type(app), name, None))
        handle = Handle(self, name, None if is_own else method, args, period)
        if held is None:
            self._start(handle, seconds)
        else:
            handle.due = seconds
            handle.is_of_version = True
            held.append(handle)
        return handle

    def _start(self, handle: Handle, seconds: float) -> None:
        self.all[handle] = None
        handle.due = self._clock.seconds() + seconds
        handle.timer = self._clock.callLater(seconds, self._fire, handle)

    def cancel(self, handle: Handle) -> None:
        """See ``Handle.cancel``."""
        handle.is_cancelled = True
        if handle in self.all:
            del self.all[handle]
            if handle.timer is not None and handle.timer.active():
                handle.timer.cancel()

    def _fire(self, handle: Handle) -> None:
        if handle not in self.all:
            return
        if handle.seconds:
            now = self._clock.seconds()
            # On its own schedule; what the shard was too late for is left out.
            handle.due += handle.seconds * max(1, int((now - handle.due) / handle.seconds) + 1)
            handle.timer = self._clock.callLater(max(0.0, handle.due - now), self._fire, handle)
            if handle.is_busy:
                return
        else:
            del self.all[handle]
        function = handle.function
        if function is None:
            function = getattr(self._current(), handle.name, None)
            if function is None:
                return
        answer = self._call(handle.name, function, *handle.args)
        if handle.seconds and isinstance(answer, Deferred):
            handle.is_busy = True
            answer.addBoth(lambda _: self._ended(handle))

    def _ended(self, handle: Handle) -> None:
        handle.is_busy = False

    # -- the app that runs ----------------------------------------------------------------------------------

    def check(self, app: App) -> None:
        """
        :raises LookupError: a timer would call what this app does not have.
        :raises RuntimeError: with those that it has made, there would be too many.
        """
        moving = [handle for handle in self.all if not (handle.is_of_class or handle.is_of_version)]
        for handle in moving:
            if handle.function is None and not callable(getattr(app, handle.name, None)):
                raise LookupError(f"a timer waits to call {handle.name}, which the new app does not have")
        count = len(moving) + len(vars(app).get(HELD, ())) + len(everys_of(type(app)))
        if count > self._limit:
            raise RuntimeError(f"there would be {count} timers; app.max_timers is {self._limit}")

    def begin(self, app: App) -> None:
        """This app runs now: its timers begin, and those of the version before it end, but for those of the
        class that it has too."""
        wanted = everys_of(type(app))
        for handle in [each for each in self.all if each.is_of_class]:
            if wanted.get(handle.name) == handle.seconds:
                del wanted[handle.name]  # it goes on, however often the app is updated
            else:
                handle.cancel()
        for name, seconds in wanted.items():
            handle = Handle(self, name, None, (), seconds)
            handle.is_of_class = True
            self._start(handle, seconds)
        now = self._clock.seconds()
        before: dict[tuple[str, float], deque[float]] = {}
        for handle in [each for each in self.all if each.is_of_version]:
            before.setdefault((handle.name, handle.seconds), deque()).append(handle.due)
            handle.cancel()
        for handle in vars(app).pop(HELD, ()):
            if not handle.is_cancelled:
                dues = before.get((handle.name, handle.seconds))
                self._start(handle, max(0.0, dues.popleft() - now) if dues else handle.due)

    def stop(self) -> None:
        """End them all."""
        for handle in list(self.all):
            handle.cancel()


def _is_app(owner: object) -> bool:
    from spread.node.app.app import App

    return isinstance(owner, App)
