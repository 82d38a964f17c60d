"""What the methods of the server API answer.

A field without a default is always written; any other is left out while it has its default.
"""

from __future__ import annotations

import base64

import msgspec
from msgspec import UNSET, Raw, UnsetType

from spread.hub import api
from spread.node import codes
from spread.node.encoders import json_info, json_payload

__all__ = [
    "Broadcast",
    "ChannelInfo",
    "Channels",
    "Done",
    "Error",
    "History",
    "Info",
    "Node",
    "Presence",
    "PresenceStats",
    "Published",
    "Response",
    "client_info",
    "error",
    "publication",
    "published",
]


class Error(msgspec.Struct):
    """Why a call was not done."""

    code: int
    message: str


class Done(msgspec.Struct):
    """It was done, and there is no more to say."""


class Published(msgspec.Struct, omit_defaults=True):
    """``publish``; in a channel without history empty."""

    offset: int = 0
    epoch: str = ""


class Response(msgspec.Struct):
    """How the publication to one channel of a ``broadcast`` went."""

    result: Published | UnsetType = UNSET
    error: Error | UnsetType = UNSET


class Broadcast(msgspec.Struct):
    """``broadcast``, in the order of the channels asked for."""

    responses: list[Response]


class ClientInfo(msgspec.Struct):
    """Who is present, or has published."""

    client: str
    user: str
    conn_info: Raw | UnsetType = UNSET
    chan_info: Raw | UnsetType = UNSET


class Publication(msgspec.Struct):
    """One of ``history``."""

    data: Raw
    offset: int
    b64data: str | UnsetType = UNSET
    """The data when it is no JSON; ``data`` is ``null`` then."""
    info: ClientInfo | UnsetType = UNSET
    tags: dict[str, str] | UnsetType = UNSET


class History(msgspec.Struct):
    """``history``; epoch and offset are those of the newest publication."""

    publications: list[Publication]
    epoch: str
    offset: int


class Presence(msgspec.Struct):
    """``presence``, by client id."""

    presence: dict[str, ClientInfo]


class PresenceStats(msgspec.Struct):
    """``presence_stats``."""

    num_clients: int
    num_users: int


class ChannelInfo(msgspec.Struct):
    """A channel that has subscribers."""

    num_clients: int


class Channels(msgspec.Struct):
    """``channels``, by name."""

    channels: dict[str, ChannelInfo]


class Node(msgspec.Struct, omit_defaults=True):
    """A live shard."""

    uid: str
    name: str
    version: str
    num_clients: int
    num_users: int
    num_subs: int
    num_channels: int
    uptime: int
    """Seconds."""
    app: str = ""
    """What it runs, as ``game:Game 3f2a90c41b7d``; left out if it runs no app."""


class Info(msgspec.Struct):
    """``info``, by the shards' numbers."""

    nodes: list[Node]


def error(cause: codes.Error) -> Error:
    """What is told of an error."""
    return Error(cause.code, cause.message)


def published(position: api.Position | None) -> Published:
    """Where a publication came to stand."""
    return Published() if position is None else Published(position.offset, position.epoch)


def client_info(info: api.ClientInfo) -> ClientInfo:
    """A client. Information about it that is no JSON is left out."""
    told = json_info(info)
    assert told is not None
    return ClientInfo(info.client, info.user, _raw(told.conn_info), _raw(told.chan_info))


def publication(kept: api.Publication) -> Publication:
    """A publication of a channel's history."""
    data = json_payload(kept)
    return Publication(
        Raw(b"null" if data is None else data),
        kept.offset,
        base64.b64encode(kept.data).decode() if data is None else UNSET,
        UNSET if kept.info is None else client_info(kept.info),
        kept.tags or UNSET,
    )


def _raw(info: bytes) -> Raw | UnsetType:
    return Raw(info) if info else UNSET
