"""Events of channels in the protocols of clients, and the codecs made of that.

What JSON clients get is JSON: a message of the text protocol becomes a JSON string, and a publication of
bytes that are no JSON reaches them not at all (``json_payload`` gives ``None``). Text clients get one line.
Protobuf clients get the bytes as they were published, a text message as the JSON string.

Delta compression (section 13 of the protocol): the base of a difference is the payload of the publication
before, in the form in which the client has it. JSON and Protobuf have differences of their own: one that
cuts a character in two cannot travel in a JSON string.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from spread.hub.api import ClientInfo, Format, Joined, Left, Publication
from spread.node.codec import Codec, Encoder, Event
from spread.node.wire import json, messages, protobuf
from spread.node.wire.delta import patch, patch_text
from spread.node.wire.text import line_of

__all__ = [
    "TEXT",
    "codec_of",
    "data_for",
    "encode_json",
    "encode_protobuf",
    "json_info",
    "json_payload",
    "json_publication",
    "payload",
    "protobuf_info",
    "protobuf_publication",
    "publications_for",
    "recovered_for",
]


def payload(publication: Publication) -> bytes:
    """The data of a publication as Protobuf clients get it."""
    data = publication.data
    if publication.format == Format.TEXT:
        return _as_string(data)
    return data


def json_payload(publication: Publication) -> bytes | None:
    """The data of a publication as one JSON value on one line; ``None`` if it is none."""
    data = publication.data
    if publication.format == Format.JSON:
        return data
    if publication.format == Format.TEXT:
        return _as_string(data)
    try:
        return json.embeddable(data)
    except messages.ProtocolError:
        return None


def _as_string(line: bytes) -> bytes:
    """A line of the text protocol as a JSON string, without its ending."""
    return msgspec.json.encode(line.rstrip(b"\r\n").decode(errors="replace"))


@lru_cache(maxsize=1024)
def _embedded(info: bytes) -> bytes:
    try:
        return json.embeddable(info)
    except messages.ProtocolError:
        return b""


def data_for(codec: Codec, data: bytes) -> bytes:
    """What a token or a backend says to a client of this codec; b"" if its protocol cannot carry that."""
    return _embedded(data) if data and codec.protocol == "json" else data


_JSON = int(Format.JSON)
"""A plain number: comparing with a member of an enum costs 40 ns more."""


def json_info(info: ClientInfo | None) -> messages.ClientInfo | None:
    """For JSON clients: what is no JSON is left out."""
    return None if info is None else _json_info(info)


@lru_cache(maxsize=json.REMEMBERED)
def _json_info(info: ClientInfo) -> messages.ClientInfo:
    return messages.ClientInfo(
        info.user,
        info.client,
        _embedded(info.conn_info) if info.conn_info else b"",
        _embedded(info.chan_info) if info.chan_info else b"",
    )


def protobuf_info(info: ClientInfo | None) -> messages.ClientInfo | None:
    """For Protobuf clients."""
    if info is None:
        return None
    return messages.ClientInfo(info.user, info.client, info.conn_info, info.chan_info)


def json_publication(publication: Publication) -> messages.Publication | None:
    """A publication as JSON clients get it; ``None`` if its data is no JSON."""
    data = json_payload(publication)
    if data is None:
        return None
    return _publication(publication, data, json_info(publication.info))


def protobuf_publication(publication: Publication) -> messages.Publication:
    """A publication as Protobuf clients get it."""
    return _publication(publication, payload(publication), protobuf_info(publication.info))


def _publication(
    publication: Publication, data: bytes, info: messages.ClientInfo | None, delta: bool = False
) -> messages.Publication:
    return messages.Publication(
        data,
        publication.offset,
        info,
        publication.tags or {},
        delta,
        # Told with the first one, for those who subscribed to an empty stream.
        epoch=publication.epoch if publication.offset == 1 else "",
    )


def _push(channel: str, event: Joined | Left, info: messages.ClientInfo | None) -> messages.Reply:
    assert info is not None
    happened = messages.Join(info) if isinstance(event, Joined) else messages.Leave(info)
    return messages.Reply(0, messages.Push(channel, happened))


# --- encoders -------------------------------------------------------------------------------------------


def encode_text(channel: str, event: Event, previous: Publication | None) -> bytes | None:
    """One line for a publication, nothing for the rest."""
    if type(event) is Publication:
        return line_of(event.format, event.data)
    return None


def encode_json(channel: str, event: Event, previous: Publication | None) -> bytes | None:
    """A push of the JSON protocol."""
    if type(event) is Publication:
        if event.format == _JSON and not event.tags and event.data:
            offset = event.offset
            epoch = event.epoch if offset == 1 else ""
            return json.encode_plain_push(channel, event.data, offset, json_info(event.info), epoch)
        publication = json_publication(event)
        return None if publication is None else json.encode_push(channel, publication)
    return json.encode_reply(_push(channel, event, json_info(event.info)))  # type: ignore[arg-type]


def encode_protobuf(channel: str, event: Event, previous: Publication | None) -> bytes | None:
    """A push of the Protobuf protocol."""
    if type(event) is Publication:
        return protobuf.encode_push(channel, protobuf_publication(event))
    return protobuf.encode_reply(_push(channel, event, protobuf_info(event.info)))  # type: ignore[arg-type]


def encode_json_full(channel: str, event: Event, previous: Publication | None) -> bytes | None:
    """The same with the payload as a string, as it must be once delta compression is negotiated."""
    if type(event) is not Publication:
        return encode_json(channel, event, previous)
    data = json_payload(event)
    if data is None:
        return None
    return json.encode_push(channel, _publication(event, _quoted(data), json_info(event.info)))


def encode_json_delta(channel: str, event: Event, previous: Publication | None) -> bytes | None:
    """The same as a difference to the publication before, where that is wanted and shorter."""
    if type(event) is Publication and event.delta and previous is not None:
        base, target = json_payload(previous), json_payload(event)
        difference = patch_text(base, target) if base is not None and target is not None else None
        if difference is not None:
            publication = _publication(event, _quoted(difference), json_info(event.info), delta=True)
            return json.encode_push(channel, publication)
    return encode_json_full(channel, event, previous)


def encode_protobuf_delta(channel: str, event: Event, previous: Publication | None) -> bytes | None:
    """A difference of bytes, where that is wanted and shorter."""
    if type(event) is Publication and event.delta and previous is not None:
        difference = patch(payload(previous), payload(event))
        if difference is not None:
            publication = _publication(event, difference, protobuf_info(event.info), delta=True)
            return protobuf.encode_push(channel, publication)
    return encode_protobuf(channel, event, previous)


def _quoted(data: bytes) -> bytes:
    return msgspec.json.encode(data.decode())


# --- lists ----------------------------------------------------------------------------------------------


def publications_for(codec: Codec, publications: Iterable[Publication]) -> list[messages.Publication]:
    """Publications of a reply, for a client of this codec; what its protocol cannot carry is left out."""
    if codec.protocol == "json":
        as_json = (json_publication(publication) for publication in publications)
        return [publication for publication in as_json if publication is not None]
    return [protobuf_publication(publication) for publication in publications]


def recovered_for(codec: Codec, publications: Iterable[Publication]) -> list[messages.Publication]:
    """The same for publications of a subscribe result: with delta compression, if that is negotiated."""
    if not codec.is_delta:
        return publications_for(codec, publications)
    is_json = codec.protocol == "json"
    result = []
    base: bytes | None = None
    for publication in publications:
        data = json_payload(publication) if is_json else payload(publication)
        if data is None:
            continue
        difference = None
        if publication.delta and base is not None:
            difference = patch_text(base, data) if is_json else patch(base, data)
        base = data
        sent = data if difference is None else difference
        info = json_info(publication.info) if is_json else protobuf_info(publication.info)
        result.append(
            _publication(publication, _quoted(sent) if is_json else sent, info, difference is not None)
        )
    return result


# --- codecs ---------------------------------------------------------------------------------------------

_ENCODERS: dict[str, tuple[Any, Encoder, Encoder, Encoder]] = {
    "json": (json, encode_json, encode_json_full, encode_json_delta),
    "protobuf": (protobuf, encode_protobuf, encode_protobuf, encode_protobuf_delta),
}


def codec_of(
    transport: str,
    protocol: str,
    frame: Callable[[bytes], bytes],
    pack: Callable[[Sequence[bytes]], bytes],
) -> Codec:
    """The codec of the clients of a transport, with those for delta compression.

    :param protocol: ``json`` or ``protobuf``.
    """
    wire, plain, full, delta = _ENCODERS[protocol]
    name = f"{protocol}/{transport}"
    differing = Codec(f"{name}/delta", protocol, delta, frame, pack, wire, is_delta=True)
    first = Codec(f"{name}/full", protocol, full, frame, pack, wire, then=differing, is_delta=True)
    return Codec(name, protocol, plain, frame, pack, wire, full=first)


def _as_is(line: bytes) -> bytes:
    return line


TEXT = Codec("text", "text", encode_text, _as_is, b"".join)
"""Clients of the text protocol."""
