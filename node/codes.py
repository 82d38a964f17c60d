"""Every sentence the server says to a client about what went wrong, in one place.

The text protocol sends them as ``error: …`` lines.
"""

from __future__ import annotations

__all__ = [
    "ADDRESS_FULL",
    "BAD_CHANNEL",
    "CHANNEL_REFUSED",
    "HUB_AWAY",
    "NOT_DELIVERED",
    "SHARD_FULL",
    "TOO_FAST",
    "TOO_LONG",
]

SHARD_FULL = "this shard is full ({limit} clients); try again later"
ADDRESS_FULL = "too many connections from your address ({limit})"
HUB_AWAY = "the server cannot reach its hub just now; try again in a moment"
TOO_LONG = "a message may have {limit} bytes at most; closing"
TOO_FAST = "too many messages ({limit:g} a second are allowed); this one was not sent"
NOT_DELIVERED = "the message was not sent: the server cannot reach its hub just now"
BAD_CHANNEL = "a channel name has 1 to 255 bytes of UTF-8 without spaces or control characters"
CHANNEL_REFUSED = "channel {channel} is not allowed"
