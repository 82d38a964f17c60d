"""What an app and the shard hand to each other: refusals, and what hooks may answer. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

__all__ = [
    "DROP",
    "Disconnect",
    "Identity",
    "Page",
    "Present",
    "Published",
    "Refuse",
    "RemoteError",
    "Subscribing",
    "is_text",
]

APP_ERRORS = range(100, 5000)
APP_DISCONNECTS = range(3000, 5000)


def is_text(value: str) -> bool:
    """It can be sent: Python's texts may have halves of characters in them, which UTF-8 has not."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class Refuse(Exception):
    """Raised in a hook: the command is answered with this error, and the connection lives on.

    :param code: one of the protocol's errors (100 to 113), or one of your own: 400 to 1999, or 4000 to 4999.
    :param temporary: the same command may succeed later; clients subscribe again by themselves then.
    :raises ValueError: no client could be told such a code.
    """

    # For subclasses that do not call this __init__.
    code = 103
    message = "permission denied"
    temporary = False

    def __init__(self, code: int = 103, message: str = "permission denied", temporary: bool = False) -> None:
        super().__init__(code, message, temporary)
        if type(code) is not int or code not in APP_ERRORS:
            raise ValueError(f"the code of an error is a number from 100 to 4999, not {code!r}")
        if not isinstance(message, str) or not is_text(message):
            raise ValueError(f"the message of an error is a text, not {message!r}")
        self.code = code
        self.message = message
        self.temporary = bool(temporary)

    def __str__(self) -> str:
        return f"{self.code} {self.message}"


class Disconnect(Exception):
    """Raised in a hook: the connection ends with this.

    :param code: your own: 4000 to 4499, after which clients connect again by themselves, or 4500 to 4999,
        after which they do not; or one of the protocol's, 3000 to 3999, of which the same is true below and
        from 3500 on.
    :raises ValueError: no client could be told that: another code, or a reason of over 123 bytes.
    """

    code = 4500
    reason = "disconnected by the application"

    def __init__(self, code: int = 4500, reason: str = "disconnected by the application") -> None:
        super().__init__(code, reason)
        if type(code) is not int or code not in APP_DISCONNECTS:
            raise ValueError(f"the code of a disconnect is a number from 3000 to 4999, not {code!r}")
        if not isinstance(reason, str) or len(reason.encode()) > 123:
            raise ValueError(f"the reason of a disconnect is a text of 123 bytes at most, not {reason!r}")
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.code} {self.reason}"


class RemoteError(Exception):
    """A method that was called on another shard has failed there; the text says how."""


class _Drop:
    __slots__ = ()

    def __repr__(self) -> str:
        return "DROP"


DROP: Final = _Drop()
"""Given back by ``publishing``: taken and acknowledged, and not published."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Given back by ``connecting``: who a client is. Of this, one of the text protocol has only ``user`` and
    ``info``."""

    user: str
    """"": an anonymous one."""
    info: Any = None
    """What others see of it in presence and with its publications: a JSON value, or bytes."""
    expire_at: int = 0
    """Seconds since 1970, when the connection ends; 0: it does not by itself."""
    channels: Sequence[str] = ()
    """It is in these from the start."""
    data: Any = None
    """Told to the client with the answer: a JSON value, or bytes."""


class Subscribing(msgspec.Struct, frozen=True, kw_only=True):
    """Given back by ``subscribing``: the client may, whatever the namespace says, and with this."""

    info: Any = None
    """What others see of it in this channel, besides ``Identity.info``."""
    data: Any = None
    """Told to the client with the answer."""
    expire_at: int = 0
    """Seconds since 1970, when the subscription ends; 0: it does not by itself."""
    presence: bool | None = None
    """It is in the presence of the channel; ``None``, here and below: as the namespace says."""
    join_leave: bool | None = None
    force_push_join_leave: bool | None = None
    force_positioning: bool | None = None
    force_recovery: bool | None = None


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """One publication of a channel's history."""

    data: Any
    offset: int
    user: str = ""
    """Who published it; "" for an anonymous user, and for what the app or a backend published."""
    client: str = ""
    tags: dict[str, str] = {}


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a channel's history, and where its newest publication is."""

    publications: list[Published]
    epoch: str
    offset: int


class Present(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who is in a channel."""

    user: str
    client: str
    info: Any = None
    """``Identity.info``."""
    channel_info: Any = None
    """``Subscribing.info``."""
