"""What the methods of the server API are asked with.

``null`` is the same as a field left out, but for ``data``, where it is the value ``null``; fields without a
meaning here are passed over. Values are typed: a number is no string. JSON inside (``data``, ``info``)
stays as its author wrote it, on one line, as ``wire.json.embeddable`` promises.
"""

from __future__ import annotations

import base64
import binascii
from typing import TypeVar

import msgspec
from msgspec import Raw

from spread.hub.api import Format, Position
from spread.node import codes
from spread.node.control import Override, SubscribeOptions
from spread.node.wire.json import embeddable
from spread.node.wire.messages import MAX_UINT64, Int64, ProtocolError, UInt64

__all__ = [
    "BadParams",
    "Batch",
    "Broadcast",
    "Channel",
    "Channels",
    "Command",
    "Disconnect",
    "History",
    "Nothing",
    "Payload",
    "Publish",
    "Refresh",
    "Rpc",
    "Subscribe",
    "Unsubscribe",
    "decoded",
]

T = TypeVar("T")


class BadParams(ValueError):
    """The parameters of a call are none of its method; error 107."""


# --- structs -------------------------------------------------------------------------------------------


class Nothing(msgspec.Struct):
    """No parameters."""


class Channel(msgspec.Struct):
    """``presence``, ``presence_stats`` and ``history_remove``."""

    channel: str = ""


class Payload(msgspec.Struct, kw_only=True):
    """What ``publish`` and ``broadcast`` have in common."""

    data: Raw = Raw()
    b64data: str = ""
    """Goes before ``data``."""
    skip_history: bool = False
    tags: dict[str, str] = {}
    idempotency_key: str = ""
    delta: bool = False
    version: UInt64 = 0
    version_epoch: str = ""

    def payload(self) -> tuple[bytes, Format]:
        """The bytes to publish. Bytes that are one JSON value on one line are JSON.

        :raises BadParams: if there are none, or they are not base64.
        """
        _unsigned(self.version)
        if self.b64data:
            return _bytes(self.b64data, "b64data")
        if not (data := bytes(self.data)):
            raise BadParams("neither data nor b64data")
        return data, Format.JSON


class Publish(Payload, kw_only=True):
    """``publish``."""

    channel: str = ""


class Broadcast(Payload, kw_only=True):
    """``broadcast``."""

    channels: list[str] = []


class _Place(msgspec.Struct):
    offset: UInt64 = 0
    epoch: str = ""

    def position(self) -> Position:
        return Position(self.epoch, _unsigned(self.offset))


class _Flag(msgspec.Struct):
    value: bool = False


class _Override(msgspec.Struct):
    presence: _Flag | None = None
    join_leave: _Flag | None = None
    force_push_join_leave: _Flag | None = None
    force_positioning: _Flag | None = None
    force_recovery: _Flag | None = None

    def flags(self) -> Override:
        return Override(
            **{
                name: flag.value
                for name in self.__struct_fields__
                if (flag := getattr(self, name)) is not None
            }
        )


class Unsubscribe(msgspec.Struct, kw_only=True):
    """``unsubscribe``; no channel is all of them."""

    user: str = ""
    channel: str = ""
    client: str = ""
    session: str = ""


class Subscribe(msgspec.Struct, kw_only=True):
    """``subscribe``."""

    user: str = ""
    channel: str = ""
    client: str = ""
    session: str = ""
    info: Raw = Raw()
    b64info: str = ""
    data: Raw = Raw()
    b64data: str = ""
    recover_since: _Place | None = None
    override: _Override | None = None
    expire_at: Int64 = 0

    def options(self) -> SubscribeOptions:
        """All but whom and what.

        :raises BadParams: if something is not base64, or a number is out of range.
        """
        return SubscribeOptions(
            info=_bytes(self.b64info, "b64info")[0] if self.b64info else _absent(self.info),
            data=_bytes(self.b64data, "b64data")[0] if self.b64data else _absent(self.data),
            recover_since=None if self.recover_since is None else self.recover_since.position(),
            override=Override() if self.override is None else self.override.flags(),
            expire_at=self.expire_at,
        )


class _Code(msgspec.Struct):
    code: Int64 = 0
    reason: str = ""


class Disconnect(msgspec.Struct, kw_only=True):
    """``disconnect``."""

    user: str = ""
    client: str = ""
    session: str = ""
    whitelist: list[str] = []
    disconnect: _Code | None = None

    def reason(self) -> codes.Disconnect:
        """3503 unless another is given.

        :raises BadParams: if its code or its text cannot be that of a WebSocket's close frame.
        """
        default = codes.FORCE_DISCONNECT
        if self.disconnect is None:
            return default
        code, reason = self.disconnect.code or default.code, self.disconnect.reason
        if not 3000 <= code <= 4999:
            raise BadParams("disconnect.code is not in 3000 to 4999")
        if len(reason.encode()) > codes.REASON_MAX_BYTES:
            raise BadParams(f"disconnect.reason has more than {codes.REASON_MAX_BYTES} bytes")
        known = codes.DISCONNECTS.get(code)
        return codes.Disconnect(code, reason or ("" if known is None else known.reason))


class Refresh(msgspec.Struct, kw_only=True):
    """``refresh``."""

    user: str = ""
    client: str = ""
    session: str = ""
    expired: bool = False
    expire_at: Int64 = 0
    info: Raw = Raw()

    def conn_info(self) -> bytes:
        """What others are told of the client from now on; b"": no news."""
        return _absent(self.info)


class History(msgspec.Struct, kw_only=True):
    """``history``."""

    channel: str = ""
    limit: Int64 = 0
    since: _Place | None = None
    reverse: bool = False


class Channels(msgspec.Struct):
    """``channels``."""

    pattern: str = ""


class Rpc(msgspec.Struct):
    """``rpc``."""

    method: str = ""
    params: Raw = Raw()


class Batch(msgspec.Struct):
    """``batch``: each command is an object with one member, named as its method."""

    commands: list[dict[str, Raw]] = []
    parallel: bool = False


class Command(msgspec.Struct):
    """A call as the endpoint ``/api`` takes it."""

    method: str = ""
    params: Raw = Raw()


# --- decoding ------------------------------------------------------------------------------------------

_MEMBERS = msgspec.json.Decoder(dict[str, Raw])
_PAYLOADS = ("data", "info", "params")
_STRUCTS = (
    *(Nothing, Channel, Publish, Broadcast, Unsubscribe, Subscribe, Disconnect, Refresh, History),
    *(Channels, Rpc, Batch, Command),
)
_DECODERS: dict[type, msgspec.json.Decoder[object]] = {
    struct: msgspec.json.Decoder(struct) for struct in _STRUCTS
}


def decoded(struct: type[T], params: bytes) -> T:
    """Parameters of a method.

    :param params: one JSON value that ``embeddable`` gave; empty or ``null``: none are given.
    :raises BadParams: if it is not an object, or a member has another type.
    """
    if params in (b"", b"null"):
        params = b"{}"
    decoder = _DECODERS[struct]
    try:
        return decoder.decode(params)  # type: ignore[return-value]
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return decoder.decode(_without_nulls(params))  # type: ignore[return-value]
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadParams(str(error)) from None


def _without_nulls(text: bytes, depth: int = 2) -> bytes:
    """An object without those members that are null; two levels hold all that are not payloads."""
    members = _MEMBERS.decode(text)
    for name, raw in list(members.items()):
        value = bytes(raw)
        if value == b"null" and name != "data":
            del members[name]
        elif value.startswith(b"{") and name not in _PAYLOADS and depth:
            members[name] = Raw(_without_nulls(value, depth - 1))
    return msgspec.json.encode(members)


def _absent(raw: Raw) -> bytes:
    value = bytes(raw)
    return b"" if value == b"null" else value


def _unsigned(number: int) -> int:
    if number > MAX_UINT64:
        raise BadParams("a number is out of range")
    return number


def _bytes(text: str, name: str) -> tuple[bytes, Format]:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadParams(f"{name} is not base64") from None
    try:
        return data, Format.JSON if embeddable(data) == data else Format.BINARY
    except ProtocolError:
        return data, Format.BINARY
