"""Sessions, as the team's code sees them: ``logic.Party``.

What is the same for all clients of a protocol, and no matter of the protocol itself. Base classes without
anything of their own, so that it costs a session nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from spread.hub.api import Format, Publication
from spread.node import codes
from spread.node.channel import Channel
from spread.node.codec import Codec
from spread.node.encoders import data_for, encode_text
from spread.node.outbox import Outbox
from spread.node.session.contract import Visit
from spread.node.session.shared import Shared
from spread.node.session.subscribing import Grant
from spread.node.session.subscription import Subscription
from spread.node.session.surroundings import Edge
from spread.node.wire import messages

__all__ = ["CentrifugeParty", "TextParty"]


class CentrifugeParty:
    """A session of the Centrifuge protocol."""

    __slots__ = ()

    if TYPE_CHECKING:  # what the session has
        number: int
        client: str
        user: str
        codec: Codec
        visit: Visit
        shared: Shared
        subscriptions: dict[str, Subscription]

        @property
        def is_connected(self) -> bool: ...
        def push(self, channel: str, event: messages.Event) -> None: ...
        def unsubscribe(self, subscription: Subscription, why: codes.Unsubscribe | None = None) -> None: ...
        def end(self, disconnect: codes.Disconnect) -> None: ...

    @property
    def transport(self) -> str:
        """See ``logic.Party``."""
        return self.visit.transport

    @property
    def address(self) -> str:
        """See ``logic.Party``."""
        return self.visit.address

    @property
    def channels(self) -> Collection[str]:
        """See ``logic.Party``."""
        return self.subscriptions.keys()

    @property
    def protocol(self) -> str:
        """See ``logic.Party``."""
        return self.codec.protocol

    def tell(self, data: bytes) -> bool:
        """See ``logic.Party``."""
        carried = data_for(self.codec, data)
        if not carried or not self.is_connected:
            return False
        self.push("", messages.Message(carried))
        return True

    def subscribe(self, channel: str, grant: Grant) -> Deferred[int]:
        """See ``logic.Party``."""
        return self.shared.registry.bring(self, channel, grant)

    def leave(self, channel: str) -> bool:
        """See ``logic.Party``."""
        subscription = self.subscriptions.get(channel)
        if subscription is not None:
            self.unsubscribe(subscription, codes.SERVER_UNSUBSCRIBE)
        return subscription is not None

    def dismiss(self, disconnect: codes.Disconnect) -> None:
        """See ``logic.Party``."""
        self.end(disconnect)


class TextParty:
    """A session of the text protocol."""

    __slots__ = ()

    if TYPE_CHECKING:  # what the session has
        outbox: Outbox
        _edge: Edge
        _channel: Channel | None

        @property
        def is_open(self) -> bool: ...
        def refuse(self, text: str) -> None: ...

    @property
    def transport(self) -> str:
        """See ``logic.Party``."""
        return "text"

    @property
    def protocol(self) -> str:
        """See ``logic.Party``."""
        return "text"

    @property
    def address(self) -> str:
        """See ``logic.Party``."""
        return self._edge.address

    @property
    def channels(self) -> Collection[str]:
        """See ``logic.Party``."""
        return () if self._channel is None else (self._channel.name,)

    def tell(self, data: bytes) -> bool:
        """See ``logic.Party``."""
        if not self.is_open:
            return False
        line: Any = encode_text("", Publication(data, Format.JSON, b"", 0), None)
        if line is not None:
            self.outbox.write(line)
        return True

    def leave(self, channel: str) -> bool:
        """See ``logic.Party``."""
        return False

    def dismiss(self, disconnect: codes.Disconnect) -> None:
        """See ``logic.Party``."""
        self.refuse(disconnect.reason)
