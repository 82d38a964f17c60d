"""Payloads as a command line shows and takes them: JSON, on one line."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
from msgspec import Raw

from spread.node.wire.client_json import embeddable
from spread.node.wire.messages import ClientInfo, ProtocolError, Publication

__all__ = ["info_object", "payload_of", "publication_object", "shown"]


def shown(data: bytes) -> bytes:
    """A payload as JSON on one line: JSON as it is, other text as a string, other bytes as
    ``{"base64": …}``."""
    try:
        return embeddable(data)
    except ProtocolError:
        pass
    try:
        return msgspec.json.encode(data.decode())
    except UnicodeError:
        return msgspec.json.encode({"base64": base64.b64encode(data).decode()})


def payload_of(text: bytes) -> bytes:
    """What was typed, as a payload: JSON if it is, else the JSON string of it.

    :raises ValueError: it is not UTF-8.
    """
    try:
        return embeddable(text)
    except ProtocolError:
        return msgspec.json.encode(text.decode())


def info_object(info: ClientInfo) -> dict[str, Any]:
    """Who it was, for an output of JSON."""
    members: dict[str, Any] = {"user": info.user, "client": info.client}
    if info.conn_info:
        members["conn_info"] = Raw(shown(info.conn_info))
    if info.chan_info:
        members["chan_info"] = Raw(shown(info.chan_info))
    return members


def publication_object(channel: str, publication: Publication) -> bytes:
    """All there is to know of a publication, as one line of JSON."""
    members: dict[str, Any] = {"type": "publication", "channel": channel}
    if publication.offset:
        members["offset"] = publication.offset
    members["data"] = Raw(shown(publication.data))
    if publication.info is not None:
        members["info"] = info_object(publication.info)
    if publication.tags:
        members["tags"] = publication.tags
    if publication.time:
        members["time"] = publication.time
    return msgspec.json.encode(members)
