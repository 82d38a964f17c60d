"""What a client that comes back has missed (section 6 of the protocol). Decisions only: no Twisted, no I/O.

While the history of a channel is being read, the channel goes on and its fan-out is collected. Both
together must reach, without a hole, from where the client was to where the channel is in the moment in
which the client becomes a member; what comes after that it gets live. Otherwise nothing is recovered, and
the client is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from spread.hub.api import Position, Publication, Stream

__all__ = ["Collector", "newest", "recovered"]


class Collector:
    """What a channel fans out while somebody reads its history, to be joined with that.

    :param limit: publications; one more and ``is_over`` is set, and nothing is kept.
    """

    __slots__ = ("_limit", "is_over", "publications")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.publications: list[Publication] = []
        self.is_over = False

    def add(self, publication: Publication) -> None:
        """One more was fanned out."""
        if len(self.publications) >= self._limit:
            self.spoil()
        if not self.is_over:
            self.publications.append(publication)

    def spoil(self) -> None:
        """What is collected is not complete."""
        self.is_over = True
        self.publications.clear()


def recovered(
    known: Position, stream: Stream, collected: Sequence[Publication] | None, now: Position, limit: int
) -> list[Publication] | None:
    """Stream mode: what came after ``known``, oldest first; ``None`` if that cannot be told.

    :param known: where the client was; the epoch "" is any.
    :param stream: the history after ``known``, read while ``collected`` was fanned out.
    :param collected: what was fanned out since before ``stream`` was asked for; ``None``: more than was kept.
    :param now: where the channel is.
    :param limit: publications at most.
    """
    if not stream.continues(known) or stream.position.epoch != now.epoch or collected is None:
        return None
    count = now.offset - known.offset
    if not 0 <= count <= limit:
        return None
    there: dict[int, Publication] = {}
    for publication in (*stream.publications, *collected):
        if publication.epoch not in ("", now.epoch):
            return None
        there[publication.offset] = publication
    missed = [there.get(offset) for offset in range(known.offset + 1, now.offset + 1)]
    # A hole was trimmed away, or has expired.
    return None if None in missed else cast(list[Publication], missed)


def newest(
    known: Position, stream: Stream, collected: Sequence[Publication] | None, now: Position
) -> list[Publication] | None:
    """Cache mode: the newest publication, if the client does not have it; ``None`` if there is none to give.

    :param known: where the client was; offset 0: nowhere.
    """
    if collected is None or stream.position.epoch != now.epoch:
        return None
    if known.offset and known.epoch == now.epoch and known.offset == now.offset:
        return []
    for publication in (*reversed(collected), *stream.publications):
        if publication.offset == now.offset:
            return [publication]
    return None
