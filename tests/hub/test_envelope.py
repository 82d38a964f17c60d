"""What travels between shards: its bytes, and what is said about bytes that are not ours."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spread.hub.api import Format, Publication
from spread.hub.envelope import (
    HEADER_BYTES,
    KIND_PRESSURE,
    KIND_PROBE,
    KIND_PUBLICATION,
    VERSION,
    MalformedEnvelope,
    UnknownVersion,
    pack,
    unpack,
)

SHARD = bytes.fromhex("00112233445566ff")
NUMBER = st.integers(0, 2**64 - 1)
BYTE = st.integers(0, 255)


def test_the_bytes_of_version_1() -> None:
    packed = pack(KIND_PUBLICATION, Format.JSON, SHARD, 258, 3, b"{}")
    assert packed.hex(" ", -4) == "0101021c 00112233 445566ff 00000000 00000102 00000000 00000003 7b7d"
    assert (VERSION, HEADER_BYTES, KIND_PUBLICATION, KIND_PROBE, KIND_PRESSURE) == (1, 28, 1, 2, 3)


@settings(deadline=None)
@given(BYTE, BYTE, st.binary(min_size=8, max_size=8), NUMBER, NUMBER, st.binary())
def test_round_trip(kind: int, format: int, shard: bytes, sequence: int, session: int, data: bytes) -> None:
    packed = pack(kind, format, shard, sequence, session, data)
    assert unpack(packed) == (kind, sequence, Publication(data, format, shard, session))


def test_an_empty_payload() -> None:
    assert unpack(pack(KIND_PROBE, 0, SHARD, 0, 0, b""))[2].data == b""


@settings(deadline=None)
@given(st.binary(max_size=100), st.binary(max_size=200))
def test_a_longer_header_of_the_same_version_is_skipped(added: bytes, data: bytes) -> None:
    packed = bytearray(pack(KIND_PUBLICATION, 1, SHARD, 5, 6, b""))
    packed[3] = HEADER_BYTES + len(added)
    assert unpack(bytes(packed) + added + data) == (1, 5, Publication(data, 1, SHARD, 6))


@settings(deadline=None)
@given(st.integers(0, 255).filter(lambda version: version != VERSION), st.binary())
def test_another_version_is_named(version: int, rest: bytes) -> None:
    with pytest.raises(UnknownVersion) as caught:
        unpack(bytes([version]) + rest)
    assert caught.value.version == version
    assert str(caught.value) == f"envelope version {version}; this release reads version 1"


@pytest.mark.parametrize("size", range(HEADER_BYTES))
def test_shorter_than_the_header(size: int) -> None:
    with pytest.raises(MalformedEnvelope) as caught:
        unpack(pack(KIND_PUBLICATION, 1, SHARD, 1, 1, b"data")[:size])
    assert not isinstance(caught.value, UnknownVersion)


@pytest.mark.parametrize("length", [0, 27, 33, 255])
def test_a_header_whose_length_cannot_be(length: int) -> None:
    packed = bytearray(pack(KIND_PUBLICATION, 1, SHARD, 1, 1, b"data"))
    packed[3] = length
    with pytest.raises(MalformedEnvelope, match=f"a header of {length} bytes in a message of 32"):
        unpack(bytes(packed))


@settings(deadline=None)
@given(st.binary() | st.binary().map(lambda data: b"\x01" + data))
def test_any_bytes_give_a_publication_or_our_error(data: bytes) -> None:
    try:
        _, _, publication = unpack(data)
    except MalformedEnvelope:
        return
    assert data.endswith(publication.data) and len(publication.data) <= len(data) - HEADER_BYTES
