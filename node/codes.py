"""Everything the server says to a client about what went wrong, in one place.

``Error``: the answer to one command; the connection lives on. ``Disconnect``: the connection ends; its
code is the close code of a WebSocket, and elsewhere goes into a last push. ``Unsubscribe``: one subscription
ends. Codes and texts are those of the Centrifuge protocol, so that every SDK reacts as it should: it
connects again after a disconnect below 3500 (and 4000 to 4499), and never after 3500 to 3999 (and 4500 to
4999); it subscribes again after an unsubscribe from 2500 on.

The sentences at the end are for the text protocol, which sends them as ``error: …`` lines.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "ADDRESS_FULL",
    "BAD_CHANNEL",
    "CHANNEL_REFUSED",
    "DISCONNECTS",
    "ERRORS",
    "HUB_AWAY",
    "NOT_DELIVERED",
    "REASON_MAX_BYTES",
    "SHARD_FULL",
    "TOO_FAST",
    "TOO_LONG",
    "UNSUBSCRIBES",
    "Disconnect",
    "Error",
    "Unsubscribe",
]

REASON_MAX_BYTES = 123
"""What a WebSocket close frame holds besides its code (RFC 6455, section 5.5)."""


class Error(NamedTuple):
    """The answer to a command that was not done."""

    code: int
    message: str
    temporary: bool = False
    """The same command may succeed later."""


class Disconnect(NamedTuple):
    """Why a connection is ended by the server."""

    code: int
    reason: str

    @property
    def is_final(self) -> bool:
        """The client will not connect again by itself."""
        return 3500 <= self.code < 4000 or 4500 <= self.code < 5000

    def because(self, detail: str) -> Disconnect:
        """The same code with a reason that says more, for people; 32 bytes at most are wanted."""
        return Disconnect(self.code, detail)


class Unsubscribe(NamedTuple):
    """Why a subscription is ended by the server."""

    code: int
    reason: str


INTERNAL_ERROR = Error(100, "internal server error", True)
UNAUTHORIZED = Error(101, "unauthorized")
UNKNOWN_CHANNEL = Error(102, "unknown channel")
PERMISSION_DENIED = Error(103, "permission denied")
METHOD_NOT_FOUND = Error(104, "method not found")
ALREADY_SUBSCRIBED = Error(105, "already subscribed")
LIMIT_EXCEEDED = Error(106, "limit exceeded")
BAD_REQUEST = Error(107, "bad request")
NOT_AVAILABLE = Error(108, "not available")
TOKEN_EXPIRED = Error(109, "token expired")
EXPIRED = Error(110, "expired")
TOO_MANY_REQUESTS = Error(111, "too many requests", True)
UNRECOVERABLE_POSITION = Error(112, "unrecoverable position")
CONCURRENT_PAGINATION = Error(113, "concurrent pagination", True)

ERRORS: dict[int, Error] = {
    error.code: error
    for error in (
        INTERNAL_ERROR,
        UNAUTHORIZED,
        UNKNOWN_CHANNEL,
        PERMISSION_DENIED,
        METHOD_NOT_FOUND,
        ALREADY_SUBSCRIBED,
        LIMIT_EXCEEDED,
        BAD_REQUEST,
        NOT_AVAILABLE,
        TOKEN_EXPIRED,
        EXPIRED,
        TOO_MANY_REQUESTS,
        UNRECOVERABLE_POSITION,
        CONCURRENT_PAGINATION,
    )
}
"""Every error by its code; 400 to 1999 are the application's own."""

CONNECTION_CLOSED = Disconnect(3000, "connection closed")
"""The peer went away; never sent."""
SHUTDOWN = Disconnect(3001, "shutdown")
SERVER_ERROR = Disconnect(3004, "internal server error")
CONNECTION_EXPIRED = Disconnect(3005, "connection expired")
SUBSCRIPTION_EXPIRED = Disconnect(3006, "subscription expired")
SLOW = Disconnect(3008, "slow")
WRITE_ERROR = Disconnect(3009, "write error")
INSUFFICIENT_STATE = Disconnect(3010, "insufficient state")
FORCE_RECONNECT = Disconnect(3011, "force reconnect")
NO_PONG = Disconnect(3012, "no pong")
TOO_MANY_COMMANDS = Disconnect(3013, "too many requests")
STATE_INVALIDATED = Disconnect(3014, "state invalidated")
INVALID_TOKEN = Disconnect(3500, "invalid token")
BAD_PROTOCOL = Disconnect(3501, "bad request")
STALE = Disconnect(3502, "stale")
FORCE_DISCONNECT = Disconnect(3503, "force disconnect")
CONNECTION_LIMIT = Disconnect(3504, "connection limit")
CHANNEL_LIMIT = Disconnect(3505, "channel limit")
INAPPROPRIATE_PROTOCOL = Disconnect(3506, "inappropriate protocol")
NOT_PERMITTED = Disconnect(3507, "permission denied")
NO_HANDLER = Disconnect(3508, "not available")
TOO_MANY_ERRORS = Disconnect(3509, "too many errors")

DISCONNECTS: dict[int, Disconnect] = {
    disconnect.code: disconnect
    for disconnect in (
        CONNECTION_CLOSED,
        SHUTDOWN,
        SERVER_ERROR,
        CONNECTION_EXPIRED,
        SUBSCRIPTION_EXPIRED,
        SLOW,
        WRITE_ERROR,
        INSUFFICIENT_STATE,
        FORCE_RECONNECT,
        NO_PONG,
        TOO_MANY_COMMANDS,
        STATE_INVALIDATED,
        INVALID_TOKEN,
        BAD_PROTOCOL,
        STALE,
        FORCE_DISCONNECT,
        CONNECTION_LIMIT,
        CHANNEL_LIMIT,
        INAPPROPRIATE_PROTOCOL,
        NOT_PERMITTED,
        NO_HANDLER,
        TOO_MANY_ERRORS,
    )
}
"""Every disconnect by its code; 4000 to 4999 are the application's own."""

SERVER_UNSUBSCRIBE = Unsubscribe(2000, "server unsubscribe")
UNSUBSCRIBE_INSUFFICIENT = Unsubscribe(2500, "insufficient state")
UNSUBSCRIBE_EXPIRED = Unsubscribe(2501, "subscription expired")
UNSUBSCRIBE_INVALIDATED = Unsubscribe(2502, "state invalidated")

UNSUBSCRIBES: dict[int, Unsubscribe] = {
    unsubscribe.code: unsubscribe
    for unsubscribe in (
        SERVER_UNSUBSCRIBE,
        UNSUBSCRIBE_INSUFFICIENT,
        UNSUBSCRIBE_EXPIRED,
        UNSUBSCRIBE_INVALIDATED,
    )
}
"""Every unsubscribe by its code."""

SHARD_FULL = "this shard is full ({limit} clients); try again later"
ADDRESS_FULL = "too many connections from your address ({limit})"
HUB_AWAY = "the server cannot reach its hub just now; try again in a moment"
TOO_LONG = "a message may have {limit} bytes at most; closing"
TOO_FAST = "too many messages ({limit:g} a second are allowed); this one was not sent"
NOT_DELIVERED = "the message was not sent: the server cannot reach its hub just now"
BAD_CHANNEL = "a channel name has 1 to 255 bytes of UTF-8 without spaces or control characters"
CHANNEL_REFUSED = "channel {channel} is not allowed"
