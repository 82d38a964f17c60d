"""The client's half of the JSON form: commands to bytes, frames to replies and pushes. Sans-IO.

``json`` is the server's half, and says what the form is.

What it promises of hostile input: nothing but ``ProtocolError`` is raised. Fields and kinds of pushes that
are not known are left out, as newer servers have some; so a push without a known event gives no reply.
Payloads are the JSON text as the server sent it, checked to be one value in UTF-8.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from spread.node.wire.json import _decode, _utf8, embeddable, join
from spread.node.wire.messages import (
    MAX_UINT64,
    REQUEST_TYPES,
    ClientInfo,
    Command,
    ConnectResult,
    Disconnect,
    Error,
    Event,
    HistoryResult,
    Int64,
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
    UInt32,
    UInt64,
    Unsubscribe,
    UnsubscribeResult,
)

__all__ = ["PONG", "decode_replies", "embeddable", "encode_command", "join"]

PONG = b"{}"
"""What the client answers pings with."""

# --- commands ------------------------------------------------------------------------------------------

METHOD_NAMES = {cls: name for name, cls in REQUEST_TYPES.items()}

_text = msgspec.json.encode


def encode_command(command: Command) -> bytes:
    """One command, without a newline. Its payloads must be what ``embeddable`` gives.

    :raises UnicodeError: if a text has half a character.
    """
    if command.request is None:
        return PONG
    number = b'"id":%d,' % command.id if command.id else b""
    return b'{%b"%b":%b}' % (number, METHOD_NAMES[type(command.request)].encode(), _object(command.request))


def _object(request: msgspec.Struct) -> bytes:
    members = [(name, getattr(request, name)) for name in request.__struct_fields__]
    return b"{%b}" % b",".join(
        b'"%b":%b' % (name.encode(), _value(value)) for name, value in members if value
    )


def _value(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, msgspec.Struct):
        return _object(value)
    if isinstance(value, dict):
        return b"{%b}" % b",".join(b"%b:%b" % (_text(key), _value(item)) for key, item in value.items())
    return _text(value)


# --- replies -------------------------------------------------------------------------------------------

# Every field has a default, as on the wire. Lists and maps may be null: some servers write an empty one so.


class _Struct(msgspec.Struct, gc=False):
    pass


class _Info(_Struct, gc=False):
    user: str = ""
    client: str = ""
    conn_info: Raw = Raw()
    chan_info: Raw = Raw()

    def value(self) -> ClientInfo:
        return ClientInfo(self.user, self.client, bytes(self.conn_info), bytes(self.chan_info))


class _Publication(_Struct, gc=False):
    data: Raw = Raw()
    offset: UInt64 = 0
    info: _Info | None = None
    tags: dict[str, str] | None = None
    delta: bool = False
    time: Int64 = 0
    epoch: str = ""

    def value(self) -> Publication:
        return Publication(
            data=bytes(self.data),
            offset=_offset(self.offset),
            info=None if self.info is None else self.info.value(),
            tags=self.tags or {},
            delta=self.delta,
            time=self.time,
            epoch=self.epoch,
        )


class _SubscribeResult(_Struct, gc=False):
    expires: bool = False
    ttl: UInt32 = 0
    recoverable: bool = False
    positioned: bool = False
    epoch: str = ""
    offset: UInt64 = 0
    was_recovering: bool = False
    recovered: bool = False
    publications: list[_Publication] | None = None
    data: Raw = Raw()
    delta: bool = False

    def value(self) -> SubscribeResult:
        return SubscribeResult(
            expires=self.expires,
            ttl=self.ttl,
            recoverable=self.recoverable,
            positioned=self.positioned,
            epoch=self.epoch,
            offset=_offset(self.offset),
            was_recovering=self.was_recovering,
            recovered=self.recovered,
            publications=[publication.value() for publication in self.publications or ()],
            data=bytes(self.data),
            delta=self.delta,
        )


class _ConnectResult(_Struct, gc=False):
    client: str = ""
    version: str = ""
    expires: bool = False
    ttl: UInt32 = 0
    data: Raw = Raw()
    subs: dict[str, _SubscribeResult] | None = None
    ping: UInt32 = 0
    pong: bool = False
    session: str = ""
    node: str = ""
    time: Int64 = 0

    def value(self) -> ConnectResult:
        return ConnectResult(
            client=self.client,
            version=self.version,
            expires=self.expires,
            ttl=self.ttl,
            data=bytes(self.data),
            subs={channel: sub.value() for channel, sub in (self.subs or {}).items()},
            ping=self.ping,
            pong=self.pong,
            session=self.session,
            node=self.node,
            time=self.time,
        )


class _Error(_Struct, gc=False):
    code: UInt32 = 0
    message: str = ""
    temporary: bool = False

    def value(self) -> Error:
        return Error(self.code, self.message, self.temporary)


class _Presence(_Struct, gc=False):
    presence: dict[str, _Info] | None = None

    def value(self) -> PresenceResult:
        return PresenceResult({client: info.value() for client, info in (self.presence or {}).items()})


class _PresenceStats(_Struct, gc=False):
    num_clients: UInt32 = 0
    num_users: UInt32 = 0

    def value(self) -> PresenceStatsResult:
        return PresenceStatsResult(self.num_clients, self.num_users)


class _History(_Struct, gc=False):
    publications: list[_Publication] | None = None
    epoch: str = ""
    offset: UInt64 = 0

    def value(self) -> HistoryResult:
        found = [publication.value() for publication in self.publications or ()]
        return HistoryResult(found, self.epoch, _offset(self.offset))


class _RPC(_Struct, gc=False):
    data: Raw = Raw()

    def value(self) -> RPCResult:
        return RPCResult(bytes(self.data))


class _Refresh(_Struct, gc=False):
    client: str = ""
    version: str = ""
    expires: bool = False
    ttl: UInt32 = 0

    def value(self) -> RefreshResult:
        return RefreshResult(client=self.client, version=self.version, expires=self.expires, ttl=self.ttl)


class _SubRefresh(_Struct, gc=False):
    expires: bool = False
    ttl: UInt32 = 0

    def value(self) -> SubRefreshResult:
        return SubRefreshResult(self.expires, self.ttl)


class _Nothing(_Struct, gc=False):
    """A result without fields."""


class _Member(_Struct, gc=False):
    info: _Info = msgspec.field(default_factory=_Info)


class _Ended(_Struct, gc=False):
    code: UInt32 = 0
    reason: str = ""
    reconnect: bool = False


class _Data(_Struct, gc=False):
    data: Raw = Raw()


class _Subscribed(_Struct, gc=False):
    recoverable: bool = False
    positioned: bool = False
    epoch: str = ""
    offset: UInt64 = 0
    data: Raw = Raw()

    def value(self) -> Subscribe:
        return Subscribe(
            recoverable=self.recoverable,
            positioned=self.positioned,
            epoch=self.epoch,
            offset=_offset(self.offset),
            data=bytes(self.data),
        )


class _Push(_Struct, gc=False):
    channel: str = ""
    pub: _Publication | None = None
    join: _Member | None = None
    leave: _Member | None = None
    unsubscribe: _Ended | None = None
    message: _Data | None = None
    subscribe: _Subscribed | None = None
    disconnect: _Ended | None = None
    refresh: _SubRefresh | None = None

    def event(self) -> Event | None:
        if self.pub is not None:
            return self.pub.value()
        if self.join is not None:
            return Join(self.join.info.value())
        if self.leave is not None:
            return Leave(self.leave.info.value())
        if self.unsubscribe is not None:
            return Unsubscribe(self.unsubscribe.code, self.unsubscribe.reason)
        if self.message is not None:
            return Message(bytes(self.message.data))
        if self.subscribe is not None:
            return self.subscribe.value()
        if self.disconnect is not None:
            ended = self.disconnect
            return Disconnect(ended.code, ended.reason, ended.reconnect)
        if self.refresh is not None:
            return Refresh(self.refresh.expires, self.refresh.ttl)
        return None


class _Reply(_Struct, gc=False):
    id: UInt32 = 0
    error: _Error | None = None
    push: _Push | None = None
    connect: _ConnectResult | None = None
    subscribe: _SubscribeResult | None = None
    unsubscribe: _Nothing | None = None
    publish: _Nothing | None = None
    presence: _Presence | None = None
    presence_stats: _PresenceStats | None = None
    history: _History | None = None
    ping: _Nothing | None = None
    rpc: _RPC | None = None
    refresh: _Refresh | None = None
    sub_refresh: _SubRefresh | None = None


_REPLY = msgspec.json.Decoder(_Reply)
_RESULTS = [name for name in _Reply.__struct_fields__ if name not in ("id", "push")]
_WITHOUT_FIELDS: dict[str, Result] = {
    "unsubscribe": UnsubscribeResult(),
    "publish": PublishResult(),
    "ping": PingResult(),
}


def decode_replies(frame: bytes | str) -> list[Reply]:
    """The replies and pushes of one frame, in order; a newline at its end is fine.

    :raises ProtocolError: if any of it is no reply; then none of them is given.
    """
    replies = []
    for line in _utf8(frame).removesuffix(b"\n").split(b"\n"):
        reply = Reply() if line == b"{}" else _reply(_decode(_REPLY, line, bytes))
        if reply is not None:
            replies.append(reply)
    return replies


def _offset(offset: int) -> int:
    if offset > MAX_UINT64:
        raise ProtocolError("offset out of range")
    return offset


def _reply(reply: _Reply) -> Reply | None:
    if reply.push is not None:
        event = reply.push.event()
        return None if event is None else Reply(0, Push(reply.push.channel, event))
    results = [(name, value) for name in _RESULTS if (value := getattr(reply, name)) is not None]
    if not results and reply.id == 0:
        return Reply()
    if len(results) != 1:
        raise ProtocolError("a reply without one known result")
    name, value = results[0]
    return Reply(reply.id, _WITHOUT_FIELDS.get(name) or value.value())
