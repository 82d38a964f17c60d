"""Decorators of an app's methods, and the tables that are made of them.

The decorators only mark a function; what is wrong with it is said when its class is looked at, before
anything of it runs.
"""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec

__all__ = [
    *("Call", "calls_of", "every", "everys_of", "fits", "remote", "remotes_of", "repeating", "rpc", "slips"),
]

F = TypeVar("F", bound=Callable[..., Any])

RPC, REMOTE, EVERY = "__spread_rpc__", "__spread_remote__", "__spread_every__"

SLIP_LIKENESS = 0.9
"""Of two names, by ``difflib``: with less, ``connect`` would be taken for ``connected``."""

MIN_SECONDS = 0.001
"""Of a timer that repeats."""

MAX_SECONDS = 1e9
"""Of any timer: thirty years. The reactor could not wait for an infinite time."""


def repeating(seconds: float) -> float:
    """The time between two calls.

    :raises ValueError: a timer cannot have it.
    """
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise ValueError(f"a timer repeats after {MIN_SECONDS} to {MAX_SECONDS:g} s, not {seconds!r}")
    return seconds


def rpc(method: str) -> Callable[[F], F]:
    """Clients may call this method of the app, by the name given here.

    It is ``(self, client, params) -> result``; ``params`` may be missing. Its annotation is what a client's
    parameters must be: a msgspec struct, a dataclass, or any type that msgspec knows. What does not fit is
    answered with error 107, which names the field. Without an annotation it is the JSON value as it came.

    :raises TypeError: no name is given.
    """
    if not isinstance(method, str) or not method:
        raise TypeError('rpc needs the name by which clients call it: @rpc("move")')
    return _mark(RPC, method)


def remote(function: F) -> F:
    """Other shards may call this method by ``App.call_shard``: ``(self, data) -> result``, plain data
    both.

    :raises TypeError: it is used with parentheses.
    """
    if not inspect.isfunction(function):
        raise TypeError("remote takes no name, for that of the method is used: @remote")
    return _mark(REMOTE, function.__name__)(function)


def every(seconds: float) -> Callable[[F], F]:
    """This method of the app is called again and again while it runs, on every shard.

    :raises ValueError: less than a millisecond, or more than thirty years.
    :raises TypeError: no seconds are given.
    """
    if callable(seconds):
        raise TypeError("every needs the seconds between two calls: @every(5.0)")
    return _mark(EVERY, repeating(seconds))


def _mark(mark: str, value: object) -> Callable[[F], F]:
    def marked(function: F) -> F:
        setattr(function, mark, value)
        return function

    return marked


class Call:
    """A method that can be called from elsewhere."""

    __slots__ = ("decoder", "function", "has_params", "name")

    def __init__(self, function: Callable[..., Any], name: str, bound_to: int) -> None:
        """:param bound_to: how many parameters come before that with the caller's data.

        :raises TypeError: it cannot be called so, or nothing can be made of its annotation.
        """
        self.function = function
        """Not bound: it takes the app first."""
        self.name = name
        where = f"{function.__qualname__}()"
        names = [
            each.name
            for each in inspect.signature(function).parameters.values()
            if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        ]
        if not bound_to <= len(names) <= bound_to + 1:
            raise TypeError(f"{where} must take {bound_to} or {bound_to + 1} parameters, not {len(names)}")
        self.has_params = len(names) > bound_to
        self.decoder: msgspec.json.Decoder[Any] | None = None
        """``None``: any JSON value will do."""
        if self.has_params:
            try:
                hint = typing.get_type_hints(function, include_extras=True).get(names[bound_to], Any)
                if hint is not Any:
                    self.decoder = msgspec.json.Decoder(hint)
            except Exception as error:
                raise TypeError(f"the annotation of {names[bound_to]} in {where}: {error}") from error


def _marked(app_class: type, mark: str) -> list[tuple[Any, Callable[..., Any]]]:
    found = []
    for name in dir(app_class):
        function = inspect.getattr_static(app_class, name)
        value = getattr(function, mark, None) if inspect.isfunction(function) else None
        if value is not None:
            found.append((value, typing.cast(Callable[..., Any], function)))
    return found


def calls_of(app_class: type, mark: str = RPC, bound_to: int = 2) -> dict[str, Call]:
    """The methods that clients may call, by name.

    :raises TypeError: something is wrong with one of them.
    """
    calls: dict[str, Call] = {}
    for name, function in _marked(app_class, mark):
        if name in calls:
            other = calls[name].function.__qualname__
            raise TypeError(f"{function.__qualname__} and {other} are both called {name!r}")
        calls[name] = Call(function, name, bound_to)
    return calls


def remotes_of(app_class: type) -> dict[str, Call]:
    """The methods that other shards may call.

    :raises TypeError: likewise.
    """
    return calls_of(app_class, REMOTE, 1)


def everys_of(app_class: type) -> dict[str, float]:
    """The methods that are called again and again, and after how many seconds.

    :raises TypeError: one of them takes more than ``self``.
    """
    everys = {}
    for seconds, function in _marked(app_class, EVERY):
        _takes(function, ["self"])
        everys[function.__name__] = seconds
    return everys


def fits(cls: type, base: type, names: Iterable[str]) -> None:
    """Methods of a class can be called as those of its base are: one that takes too few parameters would
    fail for each client, and only then.

    :raises TypeError: one of ``names`` cannot.
    """
    for name in names:
        function = inspect.getattr_static(cls, name)
        if inspect.isfunction(function):
            _takes(function, list(inspect.signature(getattr(base, name)).parameters))


def slips(cls: type, base: type, names: Iterable[str]) -> list[str]:
    """Methods that look like slips of the pen: as sentences, for a warning. Nobody calls ``publising``."""
    wanted = list(names)
    found = []
    for name in dir(cls):
        if name.startswith("_") or hasattr(base, name) or not inspect.isfunction(getattr(cls, name)):
            continue
        if not any(mark.startswith("__spread_") for mark in vars(getattr(cls, name))):
            found += [
                f"{cls.__qualname__}.{name} is called by nobody; did you mean {near}?"
                for near in difflib.get_close_matches(name, wanted, 1, SLIP_LIKENESS)
            ]
    return found


def _takes(function: Callable[..., Any], names: list[str]) -> None:
    try:
        # A wrapper takes what it takes, whatever it says of the one that it wraps.
        inspect.signature(function, follow_wrapped=False).bind(*names)
    except TypeError:
        raise TypeError(f"{function.__qualname__}() must take ({', '.join(names)})") from None
