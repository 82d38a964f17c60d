"""Who is in a channel, and how members are grouped for a fan-out."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Protocol

from spread.node.codec import Codec
from spread.node.outbox import Outbox

__all__ = ["Groups", "Member", "ViewGroups", "grouped", "grouped_by_view"]


class Member(Protocol):
    """Who is in a channel: a text session, or a subscription of another one."""

    @property
    def number(self) -> int:
        """That of the session, unique on this shard, never 0."""
        ...

    @property
    def client(self) -> str:
        """The id of the client, by which publications exclude it; "" if it has none."""
        ...

    @property
    def outbox(self) -> Outbox: ...

    codec: Codec
    """Set by the channel when delta compression goes on from a full publication."""

    view: Hashable | None
    """What the app tells it apart by; changed with ``Channel.set_view``."""

    @property
    def hears_joins(self) -> bool:
        """Gets joins and leaves."""
        ...

    def broken(self) -> None:
        """Publications are missing and cannot be had; called after the position has been set anew."""


Groups = list[tuple[Codec, tuple[Outbox, ...]]]
"""Outboxes by codec."""

ViewGroups = list[tuple[Hashable | None, Groups]]
"""The same, by view."""


def grouped(members: Iterable[Member]) -> Groups:
    """The outboxes of members, by codec."""
    by_codec: dict[Codec, list[Outbox]] = {}
    for member in members:
        by_codec.setdefault(member.codec, []).append(member.outbox)
    return [(codec, tuple(outboxes)) for codec, outboxes in by_codec.items()]


def grouped_by_view(members: Iterable[Member]) -> ViewGroups:
    """The outboxes of members, by view and codec."""
    by_view: dict[Hashable | None, list[Member]] = {}
    for member in members:
        by_view.setdefault(member.view, []).append(member)
    return [(view, grouped(alike)) for view, alike in by_view.items()]
