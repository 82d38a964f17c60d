"""Between an app's values and bytes: JSON, or bytes where it is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from spread.hub.api import Format
from spread.node import codes
from spread.node.app.values import Subscribing
from spread.node.auth.tokens import Overrides
from spread.node.session.shared import Refused
from spread.node.session.subscribing import Grant

if TYPE_CHECKING:
    from spread.node.app.marks import Call

__all__ = ["Nonsense", "decoded", "encoded", "grant_of", "moment", "payload_of", "published_data"]

MESSAGE_MAX_CHARACTERS = 255
"""Of what a client is told that is wrong with its parameters."""

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


SHOWN_MAX_CHARACTERS = 64
"""Of a value that is nonsense; of a longer one the log has the type alone."""

LATEST_MOMENT = 2**53
"""In seconds since 1970. Far enough; and what is calculated with it stays exact."""

_CHOICES = (
    *("presence", "join_leave", "force_push_join_leave", "force_positioning", "force_recovery"),
)  # of Subscribing


class Nonsense(Exception):
    """A hook has answered what it must not; the text names both."""

    def __init__(self, hook: str, value: object, wanted: str) -> None:
        super().__init__(hook, value, wanted)
        self.text = f"{hook} has given {_shown(value)}, and must give {wanted}"

    def __str__(self) -> str:
        return self.text


def _shown(value: object) -> str:
    kind = type(value).__name__
    if isinstance(value, int | float | str) and len(shown := repr(value)) <= SHOWN_MAX_CHARACTERS:
        return f"{kind} {shown}"
    return kind


def decoded(data: bytes) -> Any:
    """The JSON value that these bytes are, else the bytes; ``None`` for none.

    Bytes, too, is what is nested deeper than Python can follow.
    """
    if not data:
        return None
    try:
        return _decode(data)
    except (msgspec.DecodeError, RecursionError):
        return data


def encoded(value: Any, what: str) -> bytes:
    """``value`` as JSON, bytes as they are, ``None`` as "null".

    :param what: whose value it is, for the error.
    :raises Nonsense: JSON cannot say it.
    """
    if type(value) is bytes:
        return value
    try:
        return _encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise Nonsense(what, value, f"bytes, or what JSON can say ({error})") from None


def optional(value: Any, what: str) -> bytes:
    """The same; nothing for ``None``."""
    return b"" if value is None else encoded(value, what)


def moment(value: Any, what: str) -> int:
    """Seconds since 1970, as an app gives them.

    :raises Nonsense: it is no such number.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= LATEST_MOMENT:
        raise Nonsense(what, value, f"seconds since 1970, from 0 to {LATEST_MOMENT}")
    return int(value)


def grant_of(options: Any) -> Grant:
    """What a subscription has.

    :raises Nonsense: it is no ``Subscribing``, or something in it is nonsense.
    """
    if not isinstance(options, Subscribing):
        raise Nonsense("the options of a subscription", options, "a Subscribing, or None")
    for name in _CHOICES:
        value = getattr(options, name)
        if value is not None and not isinstance(value, bool):
            raise Nonsense(f"Subscribing.{name}", value, "True, False or None")
    return Grant(
        overrides=Overrides(
            presence=options.presence,
            join_leave=options.join_leave,
            force_push_join_leave=options.force_push_join_leave,
            force_positioning=options.force_positioning,
            force_recovery=options.force_recovery,
        ),
        info=optional(options.info, "Subscribing.info"),
        data=optional(options.data, "Subscribing.data"),
        expire_at=moment(options.expire_at, "Subscribing.expire_at"),
    )


def params_of(call: Call, data: bytes) -> Any:
    """What a caller's bytes are to a method.

    :raises Refused: they do not fit; 107, with what is wrong.
    """
    try:
        if call.decoder is None:
            return _any_of(data)
        return call.decoder.decode(data or b"{}")
    except (ValueError, RecursionError) as error:  # those of msgspec are ValueErrors
        if not data and call.decoder is not None:
            try:
                return call.decoder.decode(b"null")
            except ValueError:
                pass
        message = f"{codes.BAD_REQUEST.message}: {error}"[:MESSAGE_MAX_CHARACTERS]
        raise Refused(codes.Error(codes.BAD_REQUEST.code, message)) from None


def _any_of(data: bytes) -> Any:
    """As ``decoded``.

    :raises RecursionError: it is JSON, and nested too deeply.
    """
    try:
        return _decode(data) if data else None
    except msgspec.DecodeError:
        return data


# --- publications -----------------------------------------------------------------------------------------


def payload_of(data: bytes, format: int) -> Any:
    """A publication's data as apps see it: a JSON value, the text of a line, or bytes.

    :raises Refused: it says that it is JSON, and is not, or is nested too deeply.
    """
    if format == Format.JSON:
        try:
            return _decode(data)
        except (msgspec.DecodeError, RecursionError):
            raise Refused(codes.BAD_REQUEST, "its data is no JSON, or nested too deeply") from None
    if format == Format.TEXT:
        return data.rstrip(b"\r\n").decode(errors="replace")
    return data


def published_data(value: Any, given: Any, data: bytes, format: Format) -> tuple[bytes, Format]:
    """What is published when an app gives ``value`` for ``given``, which ``data`` is.

    :raises Nonsense: nothing can be made of it.
    """
    kind = type(value)
    # Lists and dictionaries may have been changed in place.
    if value is given and kind is not dict and kind is not list:
        return data, format
    if kind is bytes:
        return value, Format.BINARY
    if format == Format.TEXT and kind is str:
        if value == given:
            return data, format
        ending = data[len(data.rstrip(b"\r\n")) :]
        # One message is one line, whatever it was made of.
        return " ".join(value.splitlines()).encode() + ending, format
    return encoded(value, "publishing"), Format.JSON
