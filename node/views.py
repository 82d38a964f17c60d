"""One channel as the app shows it: who gets what of a publication, live and from the history.

A publication is for a client if it does not exclude it, and as far as the app lets the client's view see it.
Delta compression is of no use in such a channel: what one client was given last is not what another was.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import msgspec
from twisted.logger import Logger

from spread.hub.api import Format, Publication
from spread.node.lens import Lens
from spread.node.metrics import ShardCounters

__all__ = ["Sight", "visible"]

ERRORS_LOGGED = 10
LOGGED_EVERY = 1000
"""Errors of the app are logged up to so many, then each thousandth: there may be one for each publication."""


class Sight:
    """What the app makes of one channel's publications."""

    log = Logger("spread.node.views")

    __slots__ = ("_channel", "_counters", "_lens", "has_latest", "has_views")

    def __init__(self, lens: Lens, channel: str, counters: ShardCounters) -> None:
        self._lens = lens
        self._channel = channel
        self._counters = counters
        self.has_views = lens.has_views(channel)
        self.has_latest = lens.has_latest(channel)

    def view_of(self, number: int) -> Hashable | None:
        """The view of a session.

        :raises Exception: what the app raises; a ``TypeError`` if its answer cannot be a key.
        """
        if not self.has_views:
            return None
        view = self._lens.view_of(number, self._channel)
        hash(view)
        return view

    def view_again(self, number: int) -> Hashable | None:
        """The same for one that is a member already: ``None`` if the app raises something."""
        try:
            return self.view_of(number)
        except Exception:
            self._failed("view")
            return None

    def see(self, view: Hashable | None, publication: Publication) -> Publication | None:
        """A publication as that view gets it; ``None``: not at all. Never raises what the app does."""
        self._counters.views_seen += 1
        try:
            seen = self._lens.see(self._channel, view, _decoded(publication))
            return (
                None if seen is None else msgspec.structs.replace(publication, data=_data(publication, seen))
            )
        except Exception:
            self._failed("see")
            return None

    def latest(self, publication: Publication) -> Hashable | None:
        """The key of which it is the latest, as clients' outboxes know it. Never raises what the app does."""
        try:
            key = self._lens.latest(self._channel, _decoded(publication))
            hash(key)
        except Exception:
            self._failed("latest")
            return None
        return None if key is None else (self._channel, key)

    def _failed(self, what: str) -> None:
        counters = self._counters
        counters.lens_errors += 1
        if counters.lens_errors <= ERRORS_LOGGED or counters.lens_errors % LOGGED_EVERY == 0:
            self.log.failure(
                "{what} of the app in channel {channel} (error {number})",
                what=what,
                channel=self._channel,
                number=counters.lens_errors,
            )


def visible(
    publications: Iterable[Publication], client: str, sight: Sight | None, view: Hashable | None
) -> list[Publication]:
    """What of these a client gets, in their order.

    :param client: its id.
    :param sight: that of the channel, if it has one.
    """
    meant = [each for each in publications if client not in each.exclude]
    if sight is None or not sight.has_views:
        return meant
    return [seen for seen in (sight.see(view, each) for each in meant) if seen is not None]


def _decoded(publication: Publication) -> Any:
    data = publication.data
    if publication.format == Format.JSON:
        return msgspec.json.decode(data)
    return data.rstrip(b"\r\n").decode(errors="replace") if publication.format == Format.TEXT else data


def _data(publication: Publication, seen: Any) -> bytes:
    """What the app shows, in the publication's own format.

    :raises TypeError: it cannot be that.
    """
    if publication.format == Format.JSON:
        return msgspec.json.encode(seen)
    wanted = str if publication.format == Format.TEXT else bytes
    if not isinstance(seen, wanted):
        raise TypeError(f"see() gave {type(seen).__name__} for a publication that is {wanted.__name__}")
    if isinstance(seen, bytes):
        return seen
    if "\n" in seen or "\r" in seen:
        raise TypeError("see() gave several lines for a message of one")
    data = publication.data
    return seen.encode() + data[len(data.rstrip(b"\r\n")) :]
