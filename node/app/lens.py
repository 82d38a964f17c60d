"""The app, as the channels of its shard see it: ``spread.node.lens.Lens``."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from spread.node.pattern import BadPattern, matching

if TYPE_CHECKING:
    from spread.node.app.app import App
    from spread.node.app.host import AppHost

__all__ = ["AppLens", "at_once", "patterns_of"]


def at_once(app_class: type[App]) -> None:
    """What is asked for each publication cannot be waited for.

    :raises TypeError: one of these methods is ``async def``.
    """
    for name in ("view", "see", "latest"):
        if iscoroutinefunction(getattr(app_class, name)):
            raise TypeError(f"{app_class.__qualname__}.{name}() must answer at once: no async def")


def patterns_of(app_class: type[App], name: str = "views") -> list[Callable[[str], object]]:
    """What tells whether a channel is one of ``App.views``, or of ``App.watch``.

    :raises TypeError: these are no patterns, or one of them cannot be read; the text says which.
    """
    patterns: Any = getattr(app_class, name)
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        raise TypeError(f"{app_class.__qualname__}.{name} must be several patterns, not {patterns!r}")
    found = []
    for pattern in patterns:
        try:
            found.append(matching(pattern))
        except (BadPattern, TypeError) as error:
            raise TypeError(f"{app_class.__qualname__}.{name}: {pattern!r}: {error}") from None
    return found


class AppLens:
    """Asks the app that runs when it is made. One is made for each version of it, since what the others had
    is looked up here once."""

    def __init__(self, host: AppHost) -> None:
        """:raises TypeError: see ``patterns_of``, which was asked when the app was constructed."""
        self._host = host
        self._patterns = patterns_of(type(host.app))
        self._sees = host.has("view") or host.has("see") or bool(self._patterns)
        self._has_latest = host.has("latest")

    @property
    def is_idle(self) -> bool:
        """The app has nothing of the kind, and channels need not ask."""
        return not self._sees and not self._has_latest

    def has_views(self, channel: str) -> bool:
        """See ``Lens``. An app that names patterns has views in these channels, else in all."""
        if not self._patterns:
            return self._sees
        return any(pattern(channel) for pattern in self._patterns)

    def has_latest(self, channel: str) -> bool:
        """See ``Lens``."""
        return self._has_latest

    def view_of(self, number: int, channel: str) -> Hashable | None:
        """See ``Lens``. What ``Client.set_view`` has set goes before what ``App.view`` says."""
        client = self._host.client_of(number)
        if client is None:
            return None
        if channel in client.where:
            return client.where[channel]
        return self._host.view_of(client, channel) if self._host.has("view") else None

    def see(self, channel: str, key: Hashable | None, data: Any) -> Any | None:
        """See ``Lens``."""
        with self._host.guarded("see"):
            return self._host.app.see(channel, key, data)

    def latest(self, channel: str, data: Any) -> Hashable | None:
        """See ``Lens``."""
        with self._host.guarded("latest"):
            return self._host.app.latest(channel, data)
