"""Events in the protocols of clients."""

from __future__ import annotations

import json

import pytest

from spread.hub.api import ClientInfo, Format, Joined, Left, Publication
from spread.node import encoders
from spread.node.codec import Codec
from spread.node.encoders import (
    TEXT,
    codec_of,
    encode_json,
    encode_protobuf,
    encode_text,
    json_payload,
    payload,
    publications_for,
    recovered_for,
)
from spread.node.wire import centrifuge_pb2
from spread.node.wire.delta import apply
from spread.node.wire.messages import ClientInfo as WireInfo

SHARD = bytes(8)


def made(data: bytes, format: Format, offset: int = 0, delta: bool = False) -> Publication:
    return Publication(data, format, SHARD, 0, offset, "epoch" if offset else "", delta=delta)


def _identity(message: bytes) -> bytes:
    return message


def codecs(protocol: str) -> Codec:
    return codec_of("test", protocol, _identity, b"".join)


@pytest.mark.parametrize(
    ("data", "format", "as_json", "as_bytes"),
    [
        (b'{"a":1}', Format.JSON, b'{"a":1}', b'{"a":1}'),
        ("grüß dich\r\n".encode(), Format.TEXT, '"grüß dich"'.encode(), '"grüß dich"'.encode()),
        (
            b"half \xff a letter\n",
            Format.TEXT,
            '"half \ufffd a letter"'.encode(),
            '"half \ufffd a letter"'.encode(),
        ),
        (b"\x00\xff", Format.BINARY, None, b"\x00\xff"),
        (b'{\n "a": 1}', Format.BINARY, b'{"a": 1}', b'{\n "a": 1}'),
    ],
)
def test_payloads(data: bytes, format: Format, as_json: bytes | None, as_bytes: bytes) -> None:
    publication = made(data, format)
    assert json_payload(publication) == as_json
    assert payload(publication) == as_bytes
    encoded = encode_json("room", publication, None)
    if as_json is None:
        assert encoded is None
    else:
        assert encoded == b'{"push":{"channel":"room","pub":{"data":%b}}}' % as_json


def test_a_publication_in_full() -> None:
    info = ClientInfo("ann", "c1", b'{"n":1}', b"\xff")
    publication = Publication(b"1", Format.JSON, SHARD, 0, 1, "epoch", info, {"k": "v"})
    assert json.loads(encode_json("room", publication, None) or b"") == {
        "push": {
            "channel": "room",
            "pub": {
                "data": 1,
                "offset": 1,
                "epoch": "epoch",
                "info": {"user": "ann", "client": "c1", "conn_info": {"n": 1}},
                "tags": {"k": "v"},
            },
        }
    }
    reply = centrifuge_pb2.Reply.FromString((encode_protobuf("room", publication, None) or b"")[1:])  # type: ignore[attr-defined]
    assert reply.push.pub.info.chan_info == b"\xff"
    assert reply.push.pub.epoch == "epoch"
    second = Publication(b"1", Format.JSON, SHARD, 0, 2, "epoch")
    assert b"epoch" not in (encode_json("room", second, None) or b"")


@pytest.mark.parametrize("event", [Joined, Left])
def test_joins_and_leaves(event: type[Joined | Left]) -> None:
    happened = event(ClientInfo("ann", "c1"))
    name = "join" if event is Joined else "leave"
    said = json.loads(encode_json("room", happened, None) or b"")
    assert said == {"push": {"channel": "room", name: {"info": {"user": "ann", "client": "c1"}}}}
    reply = centrifuge_pb2.Reply.FromString((encode_protobuf("room", happened, None) or b"")[1:])  # type: ignore[attr-defined]
    assert getattr(reply.push, name).info.client == "c1"
    assert encode_text("room", happened, None) is None


def test_the_three_codecs_of_a_transport() -> None:
    for protocol in ("json", "protobuf"):
        plain = codecs(protocol)
        assert plain.full is not None and plain.full.then is not None
        assert [codec.is_delta for codec in (plain, plain.full, plain.full.then)] == [False, True, True]
        assert plain.full.then.then is None
        # A publication in full is the same bytes for all Protobuf clients, and encoded once.
        assert (plain.encoder is plain.full.encoder) is (protocol == "protobuf")
    assert (TEXT.encoder, TEXT.frame(b"x"), TEXT.pack([b"x", b"y"])) == (encode_text, b"x", b"xy")


TEXTS = [f'{{"text":"Привет, мир, в {number}-й раз, и ещё раз"}}'.encode() for number in range(5)]


@pytest.mark.parametrize("protocol", ["json", "protobuf"])
def test_differences(protocol: str) -> None:
    full = codecs(protocol).full
    assert full is not None and full.then is not None
    encode = full.then.encoder
    first, second = (made(text, Format.JSON, offset, delta=True) for offset, text in enumerate(TEXTS[:2], 1))

    def pub(encoded: bytes | None) -> tuple[bytes, bool]:
        assert encoded is not None
        if protocol == "json":
            said = json.loads(encoded)["push"]["pub"]
            return said["data"].encode(), said.get("delta", False)
        length = 2 if encoded[0] > 127 else 1
        said = centrifuge_pb2.Reply.FromString(encoded[length:]).push.pub  # type: ignore[attr-defined]
        return said.data, said.delta

    assert pub(encode("room", first, None)) == (TEXTS[0], False)
    difference, is_delta = pub(encode("room", second, first))
    assert is_delta
    assert len(difference) < len(TEXTS[1])
    assert apply(TEXTS[0], difference, 1000) == TEXTS[1]
    unasked = made(TEXTS[1], Format.JSON, 2)
    assert pub(encode("room", unasked, first)) == (TEXTS[1], False)
    unlike = made(b"0", Format.JSON, 2, delta=True)
    assert pub(encode("room", unlike, first)) == (b"0", False)
    joined = Joined(ClientInfo("", "c"))
    assert encode("room", joined, first) == codecs(protocol).encoder("room", joined, None)
    binary = made(b"\xff" * 100, Format.BINARY, 1, delta=True)
    if protocol == "json":
        assert encode("room", binary, first) is None
        assert pub(encode("room", second, binary)) == (TEXTS[1], False)
        assert full.encoder("room", binary, None) is None
        assert full.encoder("room", joined, None) == encode("room", joined, None)


@pytest.mark.parametrize("protocol", ["json", "protobuf"])
def test_recovered_publications(protocol: str) -> None:
    plain = codecs(protocol)
    publications = [made(text, Format.JSON, offset, delta=True) for offset, text in enumerate(TEXTS, 1)]
    publications.insert(2, made(b"\xff\xff", Format.BINARY, 0))
    as_they_are = recovered_for(plain, publications)
    assert len(as_they_are) == (5 if protocol == "json" else 6)
    assert not any(one.delta for one in as_they_are)
    assert as_they_are == publications_for(plain, publications)
    assert plain.full is not None
    told = recovered_for(plain.full, publications)
    base, seen = b"", []
    for one in told:
        data = json.loads(one.data).encode() if protocol == "json" else one.data
        base = apply(base, data, 1000) if one.delta else data
        seen.append(base)
    assert [data for data in seen if data != b"\xff\xff"] == TEXTS
    assert not told[0].delta
    assert sum(one.delta for one in told) >= 3


def test_information_that_is_no_json_is_not_for_json_clients() -> None:
    info = ClientInfo("u", "c", b"{ }", b"\x01")
    assert encoders.json_info(info) == WireInfo("u", "c", b"{ }", b"")
    assert encoders.protobuf_info(info) == WireInfo("u", "c", b"{ }", b"\x01")
    assert encoders.json_info(None) is None
    assert encoders.protobuf_info(None) is None
