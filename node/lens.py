"""What the app makes of a channel's publications before members get them: views, and keys of which the latest counts.

The channel asks a ``Lens``. It is none of the message path of other channels: whether a channel has views, or keys,
is looked up when the channel comes into being on this shard, and once more when ``Channels.lens`` is set again.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol

__all__ = ["Lens"]


class Lens(Protocol):
    """The app, as the channels of its shard see it. All of it is asked on the reactor's thread and answers at once.

    ``data`` is a decoded JSON value, the text of one message (``str``, without its line ending) in channels of the
    text protocol, or ``bytes`` where it is binary. It is decoded anew for each call: whoever is given it may change
    it.

    What ``see`` and ``latest`` raise is logged and counted by the channel (``view_errors``), and harms nobody else.
    """

    def has_views(self, channel: str) -> bool:
        """Members of this channel are told apart by their view: ``view_of`` and ``see`` are asked."""
        ...

    def has_latest(self, channel: str) -> bool:
        """Publications of this channel may take the place of older ones: ``latest`` is asked."""
        ...

    def view_of(self, number: int, channel: str) -> Hashable | None:
        """The view of somebody who is about to become a member, or reads the history without being one.

        :param number: that of the session, unique on this shard; of a text client too.
        :raises Exception: it cannot be told; a subscription is then answered with that error: what is neither a
            ``Refused`` nor an ``Ended`` (``session.shared``) is an internal error.
        """
        ...

    def see(self, channel: str, key: Hashable | None, data: Any) -> Any | None:
        """What members with this view get of a publication; ``None``: nothing. Once for each publication and view."""
        ...

    def latest(self, channel: str, data: Any) -> Hashable | None:
        """The key of which this publication is the latest; ``None``: it takes nobody's place. Once for each."""
        ...
