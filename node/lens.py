"""What the app makes of a channel's publications before members get them.

Views: members are told apart by a key, and get what the app shows to that key. Latest-only: a publication may
have a key, and takes the place of an older one with that key which still waits for a slow client.

The channel asks a ``Lens``. Whether a channel has views, or keys, is looked up when it comes into being on
this shard, and once more when ``Channels.lens`` is set again: other channels pay nothing for it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol

__all__ = ["Lens"]


class Lens(Protocol):
    """The app, as the channels of its shard see it. Asked on the reactor's thread; it answers at once.

    ``data`` is a decoded JSON value; the text of one message (``str``, without its line ending) if it came by
    the text protocol; ``bytes`` if it is binary. It is decoded anew for each call, so it may be changed.

    What ``see`` and ``latest`` raise is logged and counted by the channel (``lens_errors``): that view gets
    nothing of this publication, or it has no key.
    """

    def has_views(self, channel: str) -> bool:
        """Members of this channel are told apart: ``view_of`` and ``see`` are asked. Must not raise."""
        ...

    def has_latest(self, channel: str) -> bool:
        """Publications of this channel may replace older ones: ``latest`` is asked. Must not raise."""
        ...

    def view_of(self, number: int, channel: str) -> Hashable | None:
        """The view of somebody who is about to become a member, or reads the history without being one.

        :param number: that of the session, unique on this shard; of a text client too.
        :raises Refused: (``session.shared``) the subscription, or the reading, is answered with that.
            Anything else that is raised makes it an internal error.
        """
        ...

    def see(self, channel: str, key: Hashable | None, data: Any) -> Any | None:
        """What members with this view get; ``None``: nothing. Once for each publication and view.

        :param key: ``None`` for those whose view is ``None``.
        """
        ...

    def latest(self, channel: str, data: Any) -> Hashable | None:
        """The key of which this is the latest; ``None``: it replaces nothing. Once for each publication."""
        ...
