"""The client's half of the Protobuf form: commands to bytes, frames to replies and pushes. Sans-IO.

``protobuf`` is the server's half, and says what the form is.

What it promises of hostile input: nothing but ``ProtocolError`` is raised. Fields and kinds of pushes that
are not known are left out; so a push without a known event gives no reply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from spread.node.wire.client_json import METHOD_NAMES
from spread.node.wire.messages import (
    ClientInfo,
    Command,
    ConnectResult,
    Disconnect,
    Error,
    Event,
    HistoryResult,
    Join,
    Leave,
    Message,
    PingResult,
    PresenceResult,
    PresenceStatsResult,
    ProtocolError,
    Publication,
    PublishResult,
    Push,
    Refresh,
    RefreshResult,
    Reply,
    Result,
    RPCResult,
    SubRefreshResult,
    Subscribe,
    SubscribeResult,
    Unsubscribe,
    UnsubscribeResult,
)
from spread.node.wire.protobuf import _delimited, _fill, _length, _parsed, _pb, join

__all__ = ["PONG", "decode_replies", "encode_command", "join"]

PONG = b"\0"
"""What the client answers pings with."""

# --- commands ------------------------------------------------------------------------------------------


def encode_command(command: Command) -> bytes:
    """One command, with its length before it.

    :raises ValueError: if a number is out of range or a text has half a character.
    """
    if command.request is None:
        return PONG
    message = _pb.Command()
    message.id = command.id
    _fill(getattr(message, METHOD_NAMES[type(command.request)]), command.request)
    return _delimited(message)


# --- replies -------------------------------------------------------------------------------------------


def decode_replies(frame: bytes) -> list[Reply]:
    """The replies and pushes of one frame, in order.

    :raises ProtocolError: if any of it is no reply, or it is empty; then none of them is given.
    """
    if not frame:
        raise ProtocolError("empty frame")
    return [reply for data in _messages(frame) if (reply := _reply(data)) is not None]


def _messages(frame: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(frame):
        length, start = _length(frame, start)
        end = start + length
        if end > len(frame):
            raise ProtocolError("a length beyond the end of the frame")
        yield frame[start:end]
        start = end


def _reply(data: bytes) -> Reply | None:
    reply = _parsed(_pb.Reply, data)
    fields = [(field.name, value) for field, value in reply.ListFields() if field.name != "id"]
    if not fields and reply.id == 0:
        return Reply()
    if len(fields) != 1:
        raise ProtocolError("a reply without one known result")
    name, value = fields[0]
    if name != "push":
        return Reply(reply.id, _RESULTS[name](value))
    for field, event in value.ListFields():
        if field.name in _EVENTS:
            return Reply(0, Push(value.channel, _EVENTS[field.name](event)))
    return None


def _info(info: Any) -> ClientInfo:
    return ClientInfo(info.user, info.client, info.conn_info, info.chan_info)


def _publication(publication: Any) -> Publication:
    return Publication(
        data=publication.data,
        offset=publication.offset,
        info=_info(publication.info) if publication.HasField("info") else None,
        tags=dict(publication.tags),
        delta=publication.delta,
        time=publication.time,
        epoch=publication.epoch,
    )


def _subscribed(result: Any) -> SubscribeResult:
    return SubscribeResult(
        expires=result.expires,
        ttl=result.ttl,
        recoverable=result.recoverable,
        positioned=result.positioned,
        epoch=result.epoch,
        offset=result.offset,
        was_recovering=result.was_recovering,
        recovered=result.recovered,
        publications=[_publication(publication) for publication in result.publications],
        data=result.data,
        delta=result.delta,
    )


def _connected(result: Any) -> ConnectResult:
    return ConnectResult(
        client=result.client,
        version=result.version,
        expires=result.expires,
        ttl=result.ttl,
        data=result.data,
        subs={channel: _subscribed(sub) for channel, sub in result.subs.items()},
        ping=result.ping,
        pong=result.pong,
        session=result.session,
        node=result.node,
        time=result.time,
    )


_RESULTS: dict[str, Callable[[Any], Result | Error]] = {
    "error": lambda error: Error(error.code, error.message, error.temporary),
    "connect": _connected,
    "subscribe": _subscribed,
    "unsubscribe": lambda _: UnsubscribeResult(),
    "publish": lambda _: PublishResult(),
    "presence": lambda result: PresenceResult(
        {client: _info(info) for client, info in result.presence.items()}
    ),
    "presence_stats": lambda result: PresenceStatsResult(result.num_clients, result.num_users),
    "history": lambda result: HistoryResult(
        [_publication(publication) for publication in result.publications], result.epoch, result.offset
    ),
    "ping": lambda _: PingResult(),
    "rpc": lambda result: RPCResult(result.data),
    "refresh": lambda result: RefreshResult(
        client=result.client, version=result.version, expires=result.expires, ttl=result.ttl
    ),
    "sub_refresh": lambda result: SubRefreshResult(result.expires, result.ttl),
}

_EVENTS: dict[str, Callable[[Any], Event]] = {
    "pub": _publication,
    "join": lambda event: Join(_info(event.info)),
    "leave": lambda event: Leave(_info(event.info)),
    "unsubscribe": lambda event: Unsubscribe(event.code, event.reason),
    "message": lambda event: Message(event.data),
    "subscribe": lambda event: Subscribe(
        recoverable=event.recoverable,
        positioned=event.positioned,
        epoch=event.epoch,
        offset=event.offset,
        data=event.data,
    ),
    "disconnect": lambda event: Disconnect(event.code, event.reason, event.reconnect),
    "refresh": lambda event: Refresh(event.expires, event.ttl),
}
