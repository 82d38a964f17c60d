"""The two forms of the protocol, as far as a client has to know one from the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from spread.node.wire import client_json, client_protobuf
from spread.node.wire.messages import Command, ProtocolError, Reply

__all__ = ["FORMATS", "Format", "FormatName"]

FormatName: TypeAlias = Literal["json", "protobuf"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How commands, replies and payloads are written."""

    is_binary: bool
    subprotocol: str | None
    """What a WebSocket asks for; None: nothing."""
    pong: bytes
    encode: Callable[[Command], bytes]
    """:raises ValueError: a value cannot be written."""
    decode: Callable[[bytes], list[Reply]]
    """:raises ProtocolError: and nothing else."""
    join: Callable[[Iterable[bytes]], bytes]
    payload: Callable[[object], bytes]
    """What the application sends: bytes as they are, anything else as JSON.

    :raises ValueError: they are bytes, but not those of a JSON value, which is all that JSON can carry.
    :raises TypeError: it has no JSON."""
    delta_data: Callable[[bytes], bytes]
    """The whole payload or the patch that is in ``data`` once deltas were agreed on.

    :raises ProtocolError: it is none."""


def _json_payload(value: object) -> bytes:
    if not isinstance(value, bytes):
        return msgspec.json.encode(value)
    try:
        return client_json.embeddable(value)
    except ProtocolError as error:
        raise ValueError(f"bytes that are no JSON: {error.reason}") from None


def _protobuf_payload(value: object) -> bytes:
    return value if isinstance(value, bytes) else msgspec.json.encode(value)


def _json_delta_data(data: bytes) -> bytes:
    try:
        return msgspec.json.decode(data, type=str).encode()
    except (msgspec.DecodeError, UnicodeError):
        raise ProtocolError("deltas were agreed on, and the payload is no string") from None


FORMATS: dict[FormatName, Format] = {
    "json": Format(
        is_binary=False,
        subprotocol=None,
        pong=client_json.PONG,
        encode=client_json.encode_command,
        decode=client_json.decode_replies,
        join=client_json.join,
        payload=_json_payload,
        delta_data=_json_delta_data,
    ),
    "protobuf": Format(
        is_binary=True,
        subprotocol="centrifuge-protobuf",
        pong=client_protobuf.PONG,
        encode=client_protobuf.encode_command,
        decode=client_protobuf.decode_replies,
        join=client_protobuf.join,
        payload=_protobuf_payload,
        delta_data=bytes,
    ),
}
