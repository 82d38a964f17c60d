"""The codes that a client of the Centrifuge protocol makes up itself, and what those of a server mean.

A server's codes begin at 100 (errors), 2000 (unsubscribed) and 3000 (disconnected). Below them are the
client's own, numbered as in the official SDKs, so that code which was written for one of those can be kept.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ErrorCode", "Reason", "reconnects", "resubscribes"]


class Reason(NamedTuple):
    """Why a state was entered."""

    code: int
    text: str


# Connecting.
CONNECT_CALLED = Reason(0, "connect called")
TRANSPORT_CLOSED = Reason(1, "transport closed")
NO_PING = Reason(2, "no ping")
SUBSCRIBE_TIMEOUT = Reason(3, "subscribe timeout")
UNSUBSCRIBE_ERROR = Reason(4, "unsubscribe error")

# Disconnected.
DISCONNECT_CALLED = Reason(0, "disconnect called")
UNAUTHORIZED = Reason(1, "unauthorized")
BAD_PROTOCOL = Reason(2, "bad protocol")
MESSAGE_SIZE_LIMIT = Reason(3, "message size limit")

# Subscribing; also 1, transport closed.
SUBSCRIBE_CALLED = Reason(0, "subscribe called")
BAD_DELTA = Reason(2, "bad delta")
"""A patch did not fit. Official SDKs give up there."""

# Unsubscribed; also 1, unauthorized.
SERVER_UNSUBSCRIBED = Reason(2000, "server unsubscribe")
UNSUBSCRIBE_CALLED = Reason(0, "unsubscribe called")
CLIENT_CLOSED = Reason(2, "client closed")


class ErrorCode:
    """The code of an error that did not come from the server."""

    TIMEOUT = 1
    TRANSPORT_CLOSED = 2
    CLIENT_DISCONNECTED = 3
    CLIENT_CLOSED = 4
    CONNECT_TOKEN = 5
    REFRESH_TOKEN = 6
    UNSUBSCRIBED = 7
    SUBSCRIBE_TOKEN = 8
    SUBSCRIPTION_REFRESH_TOKEN = 9
    CONNECTION_CLOSED = 11
    BAD_CONFIGURATION = 12
    CONNECT = 13
    SUBSCRIBE = 14
    BAD_PROTOCOL = 16
    BAD_DELTA = 17
    TOO_MANY = 18


# The server's, where the client does more than its range says.
TOKEN_EXPIRED = 109
UNSUBSCRIBED_STATE_INVALIDATED = 2502
DISCONNECTED_STATE_INVALIDATED = 3014
MESSAGE_TOO_BIG = 1009
"""A close code of WebSocket (RFC 6455, section 7.4.1): the same message would be refused again."""


def reconnects(code: int) -> bool:
    """The client comes back after a connection was closed with this code."""
    return not (3500 <= code < 4000 or 4500 <= code < 5000)


def resubscribes(code: int) -> bool:
    """The client subscribes again after the server ended a subscription with this code."""
    return code >= 2500
