"""Clients of Spread: a Twisted client of the Centrifuge protocol, and the `spread` command.

What applications use is named here. The text client and the commands are in modules of their own.
"""

from typing import TYPE_CHECKING, Any

if __name__ != "spread.client":
    raise ImportError(
        f"this package is spread.client; it was imported as {__name__}, which would make a second copy of it"
    )

if TYPE_CHECKING:
    from spread.client.client import Client
    from spread.client.errors import (
        BadServer,
        ClientError,
        ConnectionEnded,
        NotConnected,
        NotSubscribed,
        Refused,
        TimedOut,
        TokenFailed,
        TooMany,
        TransportFailed,
        Unauthorized,
    )
    from spread.client.events import (
        Connected,
        Connecting,
        Disconnected,
        Hook,
        Subscribed,
        Subscribing,
        Unsubscribed,
    )
    from spread.client.link import State
    from spread.client.subscription import Subscription, SubscriptionState
    from spread.node.wire.messages import (
        ClientInfo,
        HistoryResult,
        PresenceStatsResult,
        Publication,
        RefreshResult,
        StreamPosition,
    )

__all__ = [
    "BadServer",
    "Client",
    "ClientError",
    "ClientInfo",
    "Connected",
    "Connecting",
    "ConnectionEnded",
    "Disconnected",
    "HistoryResult",
    "Hook",
    "NotConnected",
    "NotSubscribed",
    "PresenceStatsResult",
    "Publication",
    "RefreshResult",
    "Refused",
    "State",
    "StreamPosition",
    "Subscribed",
    "Subscribing",
    "Subscription",
    "SubscriptionState",
    "TimedOut",
    "TokenFailed",
    "TooMany",
    "TransportFailed",
    "Unauthorized",
    "Unsubscribed",
]

_HOMES = {
    "spread.client.client": ("Client",),
    "spread.client.errors": (
        *(
            "BadServer",
            "ClientError",
            "ConnectionEnded",
            "NotConnected",
            "NotSubscribed",
            "Refused",
            "TimedOut",
        ),
        *("TokenFailed", "TooMany", "TransportFailed", "Unauthorized"),
    ),
    "spread.client.events": (
        *("Connected", "Connecting", "Disconnected", "Hook", "Subscribed", "Subscribing", "Unsubscribed"),
    ),
    "spread.client.link": ("State",),
    "spread.client.subscription": ("Subscription", "SubscriptionState"),
    "spread.node.wire.messages": (
        *("ClientInfo", "HistoryResult", "PresenceStatsResult", "Publication", "RefreshResult"),
        "StreamPosition",
    ),
}


def __getattr__(name: str) -> Any:
    # Loaded when asked for: `spread --help` and `spread chat` need none of it.
    from importlib import import_module

    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
