"""One app replaced by a newer one, while everybody stays connected.

    IDLE → LOADING → CHECKING → IDLE

LOADING: the new code is imported, on a thread. CHECKING: it is constructed, and asked ``check()``. Then, in
one turn of the reactor, what the old app exports is imported by the new one, and it is swapped in.

What is promised: until the swap the old app runs as if nothing were; whatever fails before it leaves no trace
but an error with its traceback. One update at a time. The code of the last app stays importable, since what
is under way in it may import; that of the one before goes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from functools import partial
from inspect import isawaitable, iscoroutine
from itertools import count
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.reactor import Clock
from spread.node.app.load import Loaded, LoadError, explain, forget, harmless
from spread.node.app.steps import stepped

__all__ = ["Host", "Loader", "NotPlain", "Outcome", "State", "UpdateRefused", "Updater", "plain_copy"]

log = Logger("spread.node.app.update")

STATE_MAX_BYTES = 4 << 20
"""Of what an app exports, if nothing else is set."""

STOPS = "the shard stops"

_generations = count(1)
"""Of this process: a number is never used twice."""


class State(Enum):
    """See the top of this module."""

    IDLE = "idle"
    LOADING = "loading"
    CHECKING = "checking"


class UpdateRefused(Exception):
    """The new app cannot take over; the text says why."""


class NotPlain(Exception):
    """What an app exports is no plain data; the text says what, and where."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an update."""

    ok: bool
    app: str
    """``MODULE:CLASS``; "" if this shard has none."""
    version: str
    """Which runs now: the new one if ``ok``, else the old one."""
    before: str
    """Which ran before."""
    seconds: float = 0.0
    error: str = ""
    """"" if ``ok``; else a sentence, or a traceback of several lines."""


class Host(Protocol):
    """Who runs the app. All of it is called on the reactor's thread."""

    @property
    def app(self) -> Any:
        """The one that runs."""
        ...

    def guarded(self, name: str) -> AbstractContextManager[object]:
        """The team's code runs in it; it is ended, with an exception, when it blocks for too long."""
        ...

    def construct(self, loaded: Loaded) -> Any:
        """An app that does not run yet.

        :raises Exception: what its constructor raises, or that it is no app.
        """
        ...

    def quiet(self) -> Deferred[None]:
        """Fires when nothing is under way that would end in old objects, or after a while. Never fails."""
        ...

    def resume(self) -> None:
        """What ``quiet`` has held up goes on."""
        ...

    def prepare(self, app: Any) -> None:
        """See whether ``app`` can take over. Changes nothing.

        :raises Exception: why it cannot.
        """
        ...

    def prepare_objects(self, app: Any) -> Any:
        """The objects of the old app as the new one has them, their state handed over. Changes nothing.

        :raises Exception: which of them cannot be handed over, and why.
        """
        ...

    def swap(self, app: Any, objects: Any) -> None:
        """From now on ``app`` runs, with what ``prepare_objects`` gave. Never fails."""
        ...


class Loader(Protocol):
    """What imports apart from the reactor: ``spread.node.app.loading.Apart``."""

    def load(self, spec: str, generation: int) -> Deferred[Loaded]: ...


class Updater:
    """Updates the app of one shard."""

    def __init__(
        self,
        reactor: Clock,
        host: Host,
        loader: Loader,
        running: Loaded,
        spec: str,
        seconds: float,
        first: Callable[[], Deferred[Any]] = lambda: succeed(None),
        state_max_bytes: int = STATE_MAX_BYTES,
        last: Callable[[], object] = lambda: None,
    ) -> None:
        """
        :param running: what runs now; the host has constructed it.
        :param seconds: how long ``check()`` may take.
        :param first: what is to be read again before the app; what fails in it, fails the update.
        :param state_max_bytes: how large the exported state may be, as msgpack.
        :param last: is called after each update, in a turn of its own, when its outcome has been told.
        """
        self.spec = spec
        self.state = State.IDLE
        self.updates = 0
        """Done so far."""
        self.refused = 0
        """Updates that were begun, and failed."""
        self._reactor = reactor
        self._host = host
        self._loader = loader
        self._running = running
        self._last: int | None = None
        self._seconds = seconds
        self._first = first
        self._state_max_bytes = state_max_bytes
        self._last_step = last
        self._is_stopped = False

    @property
    def version(self) -> str:
        """Of the app that runs."""
        return self._running.version

    @property
    def title(self) -> str:
        """What runs, for people: ``game:Game 3f2a90c41b7d``."""
        return f"{self.spec} {self.version}"

    def stop(self) -> None:
        """The shard stops: no update any more, and one that is under way is refused. Idempotent."""
        self._is_stopped = True

    def update(self) -> Deferred[Outcome]:
        """Load the app anew, and let it take over. Never fails.

        While an update is under way, another one is refused at once.
        """
        if self.state is not State.IDLE:
            return succeed(self._outcome(error=f"an update is under way: it is {self.state.value}"))
        if self._is_stopped:
            return succeed(self._outcome(error=STOPS))
        began = self._reactor.seconds()
        generation = next(_generations)
        before = self.version
        updating = Deferred.fromCoroutine(self._update(generation))

        def ended(result: Failure | None) -> Outcome:
            self.state = State.IDLE
            self._reactor.callLater(0, self._last_step)
            seconds = self._reactor.seconds() - began
            if not isinstance(result, Failure):
                self.updates += 1
                log.info(
                    "the app {app} runs in version {version}, before it was {before}",
                    app=self.spec,
                    version=self.version,
                    before=before,
                )
                return self._outcome(before=before, seconds=seconds)
            self.refused += 1
            forget(generation)
            error = result.value
            assert error is not None
            is_told = isinstance(error, LoadError | UpdateRefused | NotPlain)
            text = harmless(str(error)) if is_told else explain(error)
            log.error("the app {app} runs on as it is: {text}", app=self.spec, text=text)
            # What holds the frames of the code that was refused, holds that code.
            for part in ("__traceback__", "__context__", "__cause__"):
                BaseException.__setattr__(error, part, None)  # its own may refuse, as a frozen dataclass's
            return self._outcome(error=text, seconds=seconds)

        return updating.addBoth(ended)

    def _outcome(self, *, before: str = "", seconds: float = 0.0, error: str = "") -> Outcome:
        return Outcome(
            ok=not error,
            app=self.spec,
            version=self.version,
            before=before or self.version,
            seconds=round(seconds, 3),
            error=error,
        )

    async def _update(self, generation: int) -> None:
        self.state = State.LOADING
        await self._first()
        loaded = await self._loader.load(self.spec, generation)
        self.state = State.CHECKING
        self._see_whether_it_stops()
        with self._host.guarded("__init__"):
            app = self._host.construct(loaded)
        with self._host.guarded("check"):
            checked = app.check()
        if isinstance(checked, Deferred) or isawaitable(checked):
            guard = partial(self._host.guarded, "check")
            if not isinstance(checked, Deferred):
                checked = Deferred.fromCoroutine(stepped(checked, guard))
            checked = await within(self._reactor, checked, self._seconds, "check()", guard)
        if checked is False:
            raise UpdateRefused("check() has returned False")
        try:
            await self._host.quiet()
            self._take_over(app)
        finally:
            self._host.resume()
        last, self._last = self._last, self._running.generation
        self._running = loaded
        if last is not None:
            forget(last)

    def _take_over(self, app: Any) -> None:
        """In one turn: what happened between the export and the swap would be lost."""
        self._see_whether_it_stops()
        self._host.prepare(app)
        state = self._exported(self._host.app)
        if state is not None:  # else the one that first exports something could not be updated to
            with self._host.guarded("import_state"):
                _synchronous(app.import_state(state), "import_state()")
        objects = self._host.prepare_objects(app)
        self._host.swap(app, objects)

    def _see_whether_it_stops(self) -> None:
        if self._is_stopped:
            raise UpdateRefused(STOPS)

    def _exported(self, app: Any) -> Any:
        with self._host.guarded("export_state"):
            state = app.export_state()
        _synchronous(state, "export_state()")
        return plain_copy(state, "export_state()", self._state_max_bytes)


def within(
    reactor: Clock,
    answer: Deferred[Any],
    seconds: float,
    what: str,
    guard: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Deferred[Any]:
    """``answer``, or after some time ``UpdateRefused``: it is cancelled then, and what it does is its own; so
    it is when this is cancelled.

    :param guard: it is cancelled in this: its canceller may be the team's.
    """

    def cancelled(_: object) -> None:
        if timer.active():
            timer.cancel()
        cancel()

    def late() -> None:
        result.errback(Failure(UpdateRefused(f"{what} has not answered after {seconds:g} s")))
        cancel()

    def cancel() -> None:
        try:
            with guard():
                answer.cancel()
        # Whatever it is, it is the canceller's.
        except BaseException as error:
            log.error("{what} was cancelled: {text}", what=what, text=explain(error))

    def answered(outcome: Any) -> None:
        if result.called:
            return
        if timer.active():
            timer.cancel()
        if isinstance(outcome, Failure):
            result.errback(outcome)
        else:
            result.callback(outcome)

    result: Deferred[Any] = Deferred(cancelled)
    timer = reactor.callLater(seconds, late)
    answer.addBoth(answered)
    return result


def plain_copy(value: Any, name: str, max_bytes: int = STATE_MAX_BYTES) -> Any:
    """A copy of plain data that shares nothing with ``value``.

    Plain are ``None``, bool, int, float, str, bytes, lists and dictionaries. What stands for such data comes
    as that: a tuple or a set as a list, a struct or dataclass as a dictionary.

    :param name: what to call ``value`` in an error.
    :param max_bytes: how large it may be, as msgpack: to copy it holds up the shard.
    :raises NotPlain: something in it is nothing of the kind.
    :raises UpdateRefused: it is larger.
    """
    try:
        encoded = msgspec.msgpack.encode(value)
        if len(encoded) > max_bytes:
            raise UpdateRefused(
                f"{name} has given {len(encoded)} bytes; app.state_max_bytes is {max_bytes}: "
                "what is so large is better kept elsewhere, or less of it"
            )
        return msgspec.msgpack.decode(encoded)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise NotPlain(f"{_culprit(value, name, 0)} is no plain data ({error})") from None


def _culprit(value: Any, name: str, depth: int) -> str:
    """The innermost part that cannot be encoded."""
    parts: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        parts = [(f"{name}[{key!r}]", part) for key, part in value.items()]
        parts += [(f"key {key!r} of {name}", key) for key in value]
    elif isinstance(value, list | tuple):
        parts = [(f"{name}[{at}]", part) for at, part in enumerate(value)]
    for inner, part in parts if depth < 32 else []:
        try:
            msgspec.msgpack.encode(part)
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
            return _culprit(part, inner, depth + 1)
    return name


def _synchronous(answer: Any, what: str) -> None:
    if isinstance(answer, Deferred):
        answer.addErrback(lambda failure: log.failure("an answer that nobody waits for", failure))
    elif iscoroutine(answer):
        answer.close()
    elif not isawaitable(answer):
        return
    raise UpdateRefused(f"{what} must answer at once, since the apps are swapped in one turn: no async def")
