"""What travels between shards: its bytes, and what is said about bytes that are not ours."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import msgpack, structs

from spread.hub.api import MAX_EXCLUDED, ClientInfo, Format, Publication
from spread.hub.envelope import (
    HEADER_BYTES,
    KIND_JOINED,
    KIND_LEFT,
    KIND_PRESSURE,
    KIND_PROBE,
    KIND_PUBLICATION,
    VERSION,
    MalformedEnvelope,
    UnknownVersion,
    pack,
    pack_meta,
    pack_parts,
    unpack,
)

SHARD = bytes.fromhex("00112233445566ff")
NUMBER = st.integers(0, 2**64 - 1)
BYTE = st.integers(0, 255)


POSITION = b"0000000000000258abcdEFGH"


def test_the_bytes_of_version_2() -> None:
    packed = pack(KIND_PUBLICATION, Format.JSON, SHARD, 258, 3, b"{}")
    assert packed.hex(" ", -4) == "02010200 00112233 445566ff 00000000 00000102 00000000 00000003 7b7d"
    assert (VERSION, HEADER_BYTES) == (2, 28)
    assert (KIND_PUBLICATION, KIND_PROBE, KIND_PRESSURE, KIND_JOINED, KIND_LEFT) == (1, 2, 3, 4, 5)


def test_the_bytes_of_a_position_and_a_meta() -> None:
    meta = pack_meta(ClientInfo("u", "c", b"1", b""), {"k": "v"})
    assert meta.hex() == "95a175a163c40131c40081a16ba176"
    head, tail = pack_parts(Format.TEXT, SHARD, 1, 2, b"data", meta, True)
    assert head.hex(" ", -4) == "02010107 00112233 445566ff 00000000 00000001 00000000 00000002"
    assert tail == b"\x00\x00\x00\x0f" + meta + b"data"
    assert pack_meta(None, None) == pack_meta(None, {}) == b""
    assert pack(4, 0, SHARD, 0, 0, b"", meta)[28:] == tail[:-4]


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
INFO = st.none() | st.builds(ClientInfo, TEXT, TEXT, st.binary(max_size=8), st.binary(max_size=8))
IDS = st.lists(TEXT, max_size=3).map(tuple)
TAGS = st.none() | st.dictionaries(TEXT, TEXT, min_size=1, max_size=3)


@settings(deadline=None)
@given(
    BYTE, BYTE, st.binary(min_size=8, max_size=8), NUMBER, NUMBER, st.binary(), INFO, TAGS, st.booleans(), IDS
)
def test_round_trip(
    kind: int,
    format: int,
    shard: bytes,
    sequence: int,
    session: int,
    data: bytes,
    info: ClientInfo | None,
    tags: dict[str, str] | None,
    delta: bool,
    exclude: tuple[str, ...],
) -> None:
    meta = pack_meta(info, tags, exclude)
    packed = pack(kind, format, shard, sequence, session, data, meta, delta)
    plain = Publication(data, format, shard, session, info=info, tags=tags, delta=delta, exclude=exclude)
    assert unpack(packed) == (kind, sequence, plain)
    head, tail = pack_parts(format, shard, sequence, session, data, meta, delta)
    placed = structs.replace(plain, offset=258, epoch="abcdEFGH")
    assert unpack(head + POSITION + tail) == (KIND_PUBLICATION, sequence, placed)


def test_an_empty_payload() -> None:
    assert unpack(pack(KIND_PROBE, 0, SHARD, 0, 0, b""))[2].data == b""


def test_what_a_later_release_appends_to_the_meta_is_skipped() -> None:
    meta = msgpack.encode(["u", "c", b"", b"", None, ["d"], "more", {"and": "more"}])
    publication = unpack(pack(KIND_PUBLICATION, 1, SHARD, 1, 1, b"data", meta))[2]
    assert (publication.info, publication.data) == (ClientInfo("u", "c"), b"data")
    assert publication.exclude == ("d",)


def test_only_a_publication_that_excludes_clients_says_so() -> None:
    assert pack_meta(None, {"k": "v"}, ()) == pack_meta(None, {"k": "v"})
    assert msgpack.decode(pack_meta(None, None, ("a", "b"))) == [None, "", b"", b"", None, ["a", "b"]]


def test_no_more_clients_are_excluded_than_a_publication_can_carry() -> None:
    assert pack_meta(None, None, ("c",) * MAX_EXCLUDED)
    with pytest.raises(ValueError, match="65 clients are excluded; at most 64 may be"):
        pack_meta(None, None, ("c",) * (MAX_EXCLUDED + 1))


@settings(deadline=None)
@given(st.integers(0, 255).filter(lambda version: version != VERSION), st.binary())
def test_another_version_is_named(version: int, rest: bytes) -> None:
    with pytest.raises(UnknownVersion) as caught:
        unpack(bytes([version]) + rest)
    assert caught.value.version == version
    assert str(caught.value) == f"envelope version {version}; this release reads version 2"


@pytest.mark.parametrize("size", range(HEADER_BYTES))
def test_shorter_than_the_header(size: int) -> None:
    with pytest.raises(MalformedEnvelope) as caught:
        unpack(pack(KIND_PUBLICATION, 1, SHARD, 1, 1, b"data")[:size])
    assert not isinstance(caught.value, UnknownVersion)


@pytest.mark.parametrize(
    "position",
    [
        b"",
        POSITION[:-1],
        b"000000000000025Xabcdefgh",
        b" 000000000000258abcdefgh",
        b"0000000000_00258abcdefgh",
        b"0000000000000000abcdefgh",
        b"0000000000000258abcdefg\xff",
    ],
)
def test_a_position_that_cannot_be(position: bytes) -> None:
    head, _ = pack_parts(1, SHARD, 1, 1, b"")
    with pytest.raises(MalformedEnvelope):
        unpack(head + position)


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b"\x00\x00\x00",
        b"\x00\x00\x00\x05\x91\xc0",
        b"\x00\x00\x00\x00",
        b"\xff\xff\xff\xff\x91\xc0",
        b"\x00\x00\x00\x01\x90",
        b"\x00\x00\x00\x02\x91\x01",
        b"\x00\x00\x00\x03\x91\xa1\xff",
    ],
)
def test_a_meta_that_cannot_be(tail: bytes) -> None:
    head = pack(KIND_PUBLICATION, 1, SHARD, 1, 1, b"", b"x")[:HEADER_BYTES]
    with pytest.raises(MalformedEnvelope):
        unpack(head + tail)


def test_flags_that_nobody_knows() -> None:
    packed = bytearray(pack(KIND_PUBLICATION, 1, SHARD, 1, 1, b"data"))
    packed[3] = 8
    with pytest.raises(MalformedEnvelope, match="flags 8"):
        unpack(bytes(packed))


@settings(deadline=None)
@given(st.binary() | st.binary().map(lambda data: b"\x02" + data))
def test_any_bytes_give_a_publication_or_our_error(data: bytes) -> None:
    try:
        _, _, publication = unpack(data)
    except MalformedEnvelope:
        return
    assert data.endswith(publication.data) and len(publication.data) <= len(data) - HEADER_BYTES
