"""What travels between shards: a versioned header, then the bytes of the publication.

    offset  size  field
    0       1     version, 1
    1       1     kind: 1 publication, 2 probe, 3 pressure (see api.Hub.press)
    2       1     format of the payload (``api.Format``); 0 for other kinds
    3       1     length of the header, 28 in version 1; what a later release appends is skipped
    4       8     incarnation of the publishing shard
    12      8     sequence of that shard on this link, from 1, big-endian; 0 for other kinds
    20      8     number of the publishing session on that shard, big-endian; 0 for none
    28      n     payload

The sequence lets a receiver drop what it already had: a shard sends an unanswered publication again
with the number it had before. A version that is not known raises ``UnknownVersion``, so that the
caller can say so and count it; two releases run side by side in a rolling update as long as the
version byte is the same.

Sans-IO: bytes and values only.
"""

from __future__ import annotations

import struct

from spread.hub.api import Publication

__all__ = [
    "HEADER_BYTES",
    "KIND_PRESSURE",
    "KIND_PROBE",
    "KIND_PUBLICATION",
    "VERSION",
    "MalformedEnvelope",
    "UnknownVersion",
    "pack",
    "unpack",
]

VERSION = 1
KIND_PUBLICATION = 1
KIND_PROBE = 2
KIND_PRESSURE = 3

_HEADER = struct.Struct(">BBBB8sQQ")
HEADER_BYTES = _HEADER.size


class MalformedEnvelope(ValueError):
    """Bytes on one of our channels that no release of Spread wrote."""


class UnknownVersion(MalformedEnvelope):
    """An envelope of another release."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version

    def __str__(self) -> str:
        return f"envelope version {self.version}; this release reads version {VERSION}"


def pack(kind: int, format: int, shard: bytes, sequence: int, session: int, payload: bytes) -> bytes:
    """Header and payload as one message.

    :param shard: incarnation, exactly 8 bytes.
    """
    return _HEADER.pack(VERSION, kind, format, HEADER_BYTES, shard, sequence, session) + payload


def unpack(message: bytes) -> tuple[int, int, Publication]:
    """``(kind, sequence, publication)`` of a received message.

    :raises UnknownVersion: another release wrote it.
    :raises MalformedEnvelope: it is shorter than its header, or the header than version 1 has it.
    """
    # 0.2 µs, once for each message a shard receives.
    if not message or message[0] != VERSION:
        raise UnknownVersion(message[0]) if message else MalformedEnvelope("empty message")
    if len(message) < HEADER_BYTES:
        raise MalformedEnvelope(f"{len(message)} bytes, shorter than the header")
    _, kind, format_, length, shard, sequence, session = _HEADER.unpack_from(message)
    if not HEADER_BYTES <= length <= len(message):
        raise MalformedEnvelope(f"a header of {length} bytes in a message of {len(message)}")
    return kind, sequence, Publication(message[length:], format_, shard, session)
