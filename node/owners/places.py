"""Which shard a channel belongs to: rendezvous hashing over the live shards whose app looks after it.

The first in rank is responsible: it owns the channel, and hears who is in it. The second, its deputy, hears
the same, so that it can go on without a moment's delay, and knows of channels which the death of the first
has emptied.

Shards with different apps, during a rolling update, may be told apart by what they offer: only those that
have objects for a channel can own it; those that only watch it are asked where no shard has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from spread.hub.rendezvous import Rendezvous
from spread.node.owners.wire import Offer
from spread.node.pattern import matching

__all__ = ["NOWHERE", "Place", "Places"]

REMEMBERED = 65_536
"""Channels whose place is remembered; beyond that all are looked up anew."""

REMEMBERED_CHARACTERS = 255
"""Of the name of one: a client may ask for any, as long as its frame is."""


class Place(NamedTuple):
    """Where a channel belongs."""

    is_owned: bool
    """Some shard has objects for it."""
    ranked: tuple[str, ...]
    """Incarnations: who is responsible, and its deputy; fewer where there are no more shards."""

    @property
    def first(self) -> str:
        """Who is responsible; "": nobody."""
        return self.ranked[0] if self.ranked else ""


NOWHERE = Place(False, ())


class _Ranking:
    """The order of some shards for each channel."""

    def __init__(self, shards: tuple[str, ...]) -> None:
        self._shards = shards
        self._all = Rendezvous(shards)
        self._but: dict[str, _Ranking] = {}

    def of(self, channel: str) -> tuple[str, ...]:
        first = self._shards[self._all.place(channel)]
        if len(self._shards) == 1:
            return (first,)
        others = self._but.get(first)
        if others is None:
            others = self._but[first] = _Ranking(tuple(each for each in self._shards if each != first))
        return (first, others._shards[others._all.place(channel)])


class Places:
    """See the line at the top."""

    def __init__(self) -> None:
        self._offers: dict[str, Offer] = {}
        self._matchers: dict[str, Callable[[str], object]] = {}
        self._places: dict[str, Place] = {}
        self._rankings: dict[tuple[str, ...], _Ranking] = {}

    def set(self, offers: dict[str, Offer]) -> bool:
        """The live shards, and what their apps look after. ``True``: it is not what it was."""
        if offers == self._offers:
            return False
        self._offers = dict(offers)
        patterns = {pattern for offer in offers.values() for pattern in offer.objects | offer.watch}
        self._matchers = {
            pattern: self._matchers.get(pattern) or matching(pattern) for pattern in sorted(patterns)
        }
        self._places.clear()
        self._rankings.clear()
        return True

    def of(self, channel: str) -> Place:
        """Where a channel belongs."""
        place = self._places.get(channel)
        if place is None:
            if len(channel) > REMEMBERED_CHARACTERS:
                return self._look_up(channel)
            if len(self._places) >= REMEMBERED:
                self._places.clear()
            place = self._places[channel] = self._look_up(channel)
        return place

    def _look_up(self, channel: str) -> Place:
        fitting = {pattern for pattern, fits in self._matchers.items() if fits(channel)}
        if not fitting:
            return NOWHERE
        shards = [shard for shard, offer in self._offers.items() if offer.objects & fitting]
        is_owned = bool(shards)
        if not shards:
            shards = [shard for shard, offer in self._offers.items() if offer.watch & fitting]
        key = tuple(sorted(shards))
        ranking = self._rankings.get(key)
        if ranking is None:
            ranking = self._rankings[key] = _Ranking(key)
        return Place(is_owned, ranking.of(channel))
