"""An app is made: what can be wrong with one is found here, before it runs, and not by its clients."""

from __future__ import annotations

from inspect import getattr_static
from types import SimpleNamespace
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.reactor import Clock
from spread.node.app.app import HOOKS, App
from spread.node.app.lens import at_once, patterns_of
from spread.node.app.load import Loaded, own_name
from spread.node.app.marks import calls_of, everys_of, fits, remotes_of, slips
from spread.node.app.timers import HELD, Timers
from spread.node.owners.owned import METHODS, Owned, shapes_of
from spread.node.settings import AppSettings

__all__ = ["awaited", "construct", "look_at", "suspicions"]


def construct(app_class: type[Any], host: Any) -> App:
    """An app that does not run yet.

    :raises TypeError: it is no ``App``, or something is wrong with one of its methods, or with ``views``,
        ``watch`` or ``objects``.
    :raises Exception: what its ``__init__`` raises.
    """
    if not issubclass(app_class, App):
        raise TypeError(f"{app_class.__qualname__} is no subclass of spread.node.App")
    calls_of(app_class), remotes_of(app_class), everys_of(app_class)
    at_once(app_class)
    patterns_of(app_class), patterns_of(app_class, "watch")
    for name in HOOKS:
        if not callable(getattr(app_class, name)):
            raise TypeError(f"{app_class.__qualname__}.{name} is a hook, and nothing that can be called")
    fits(app_class, App, (*HOOKS, "check", "export_state", "import_state"))
    for shape in shapes_of(app_class):
        fits(shape.cls, Owned, METHODS)
    app = app_class.__new__(app_class)
    # Before its own __init__, which may want timers, and need not call that of App.
    vars(app).update({"_host": host, HELD: []})
    if getattr_static(app_class, "log") is vars(App)["log"]:
        # A logger makes a name of the class's, which is a private one.
        vars(app)["log"] = Logger(own_name(f"{app_class.__module__}.{app_class.__qualname__}"))
    app_class.__init__(app)
    return app


class _Nowhere:
    """Stands for the shard of an app that is only looked at: it has tables, timers that never begin, and
    nothing else."""

    def __init__(self, tables: Any) -> None:
        self.tables = None if tables is None else SimpleNamespace(tables=tables)
        self.timers = Timers(cast(Clock, None), lambda *_: None, lambda: None, AppSettings().max_timers)

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name}: this app is only looked at, and in no shard")


def look_at(loaded: Loaded, tables: Any) -> list[str]:
    """Construct an app that will not run, and ask whether it may; a ``check`` that waits is not waited for.

    :param tables: what it finds as ``self.tables``.
    :returns: what looks wrong, and need not be.
    :raises Exception: what is wrong with it.
    """
    answer = construct(loaded.app_class, cast(Any, _Nowhere(tables))).check()
    checked: list[Any] = []
    Deferred.fromCoroutine(awaited(answer)).addBoth(checked.append)
    if checked and isinstance(checked[0], Failure):
        checked[0].raiseException()
    if checked and checked[0] is False:
        raise RuntimeError("check() has returned False")
    return suspicions(loaded.app_class)


def suspicions(app_class: type[App]) -> list[str]:
    """Names of methods that may be slips of the pen."""
    found = slips(app_class, App, (*HOOKS, "check", "export_state", "import_state"))
    return found + [slip for shape in shapes_of(app_class) for slip in slips(shape.cls, Owned, METHODS)]


async def awaited(answer: Any) -> Any:
    """The answer of a method that may give it at once, or not."""
    return await answer if hasattr(answer, "__await__") else answer
