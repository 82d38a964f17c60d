"""The Centrifuge client protocol (v2) as values: what clients ask, what they are answered, what is pushed.

    client → server     Command: an id and one request; without a request it is a pong
    server → client     Reply: an id and a result or an ``Error``; or no id and a ``Push``; or nothing: a ping

``json`` and ``protobuf`` turn these into bytes and back; both give equal values for equal commands.
Field names and their order are those of the JSON form. A field that was not sent has its default, and a
reply's field that has its default is not written, but for those which SDKs read unguarded (``json`` has
the list).

Fields of type ``bytes`` are payloads of the users. In JSON they are the text of one value of any type,
as the user wrote it and on one line; in Protobuf they are opaque. The two are not told apart here: who
brings a payload from one to the other checks it (``json.embeddable``).

Not here: dictionary compression, numeric channel ids, map and shared-poll subscriptions. Their ``type``
is read, so that a session can refuse it (error 103); so is the presence of a tags filter (error 107).
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

__all__ = [
    "EVENT_NAMES",
    "MAX_UINT64",
    "PONG",
    "REQUEST_TYPES",
    "RESULT_NAMES",
    "ClientInfo",
    "Command",
    "Connect",
    "ConnectRequest",
    "ConnectResult",
    "Disconnect",
    "EmulationRequest",
    "Error",
    "Event",
    "HistoryRequest",
    "HistoryResult",
    "Join",
    "Leave",
    "Message",
    "PingRequest",
    "PingResult",
    "PresenceRequest",
    "PresenceResult",
    "PresenceStatsRequest",
    "PresenceStatsResult",
    "ProtocolError",
    "Publication",
    "PublishRequest",
    "PublishResult",
    "Push",
    "RPCRequest",
    "RPCResult",
    "Refresh",
    "RefreshRequest",
    "RefreshResult",
    "Reply",
    "Request",
    "Result",
    "SendRequest",
    "StreamPosition",
    "SubRefreshRequest",
    "SubRefreshResult",
    "Subscribe",
    "SubscribeRequest",
    "SubscribeResult",
    "Unsubscribe",
    "UnsubscribeRequest",
    "UnsubscribeResult",
]

MAX_UINT64 = 2**64 - 1

Int32: TypeAlias = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Int64: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
UInt32: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1)]
UInt64: TypeAlias = Annotated[int, Meta(ge=0)]  # msgspec has no bounds above int64: see MAX_UINT64


class ProtocolError(Exception):
    """What a client sent is no frame of the protocol; it is closed with 3501.

    The only exception that decoding raises, whatever the bytes.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Value(msgspec.Struct, frozen=True, gc=False):
    """Base of all messages. They hold no cycles, so the garbage collector need not look at them."""


# --- parts of several messages -------------------------------------------------------------------------


class StreamPosition(_Value, frozen=True):
    """A place in the stream of a channel."""

    offset: UInt64 = 0
    epoch: str = ""


class ClientInfo(_Value, frozen=True):
    """Who published, joined, left, or is present."""

    user: str
    """"" for an anonymous user."""
    client: str
    """The id that the connection got in its connect result."""
    conn_info: bytes = b""
    chan_info: bytes = b""


class Publication(_Value, frozen=True):
    """One message of a channel, as clients see it."""

    data: bytes
    offset: int = 0
    """1, 2, 3 … in a channel that keeps history; 0 elsewhere."""
    info: ClientInfo | None = None
    """Set when a client published, not for the server API."""
    tags: dict[str, str] = {}
    delta: bool = False
    """``data`` is the difference to the publication before."""
    time: int = 0
    """Milliseconds since 1970; 0 if it is not told."""
    epoch: str = ""
    """Told with offset 1, for those who subscribed to an empty stream."""


# --- what clients ask ----------------------------------------------------------------------------------


class SubscribeRequest(_Value, frozen=True, kw_only=True):
    """Subscribe to a channel, or (``ConnectRequest.subs``) the known position of a server-side one."""

    channel: str = ""
    token: str = ""
    recover: bool = False
    """``epoch`` and ``offset`` are the last position seen; what came after is wanted."""
    epoch: str = ""
    offset: UInt64 = 0
    data: bytes = b""
    positioned: bool = False
    recoverable: bool = False
    join_leave: bool = False
    delta: str = ""
    flag: Int64 = 0
    """Bits. 1: the client knows numeric channel ids. 2: error 112 is wanted if it cannot be recovered."""
    type: Int32 = 0
    """0 is a stream, the only kind there is here."""
    tf: bool = False
    """A tags filter was sent. It is not read any further."""


class ConnectRequest(_Value, frozen=True, kw_only=True):
    """The first command of a connection."""

    token: str = ""
    data: bytes = b""
    subs: dict[str, SubscribeRequest] = {}
    """Server-side subscriptions known from an earlier connection, by channel."""
    name: str = ""
    version: str = ""
    headers: dict[str, str] = {}
    """What a browser cannot send as HTTP headers. The client's word, nothing more."""


class UnsubscribeRequest(_Value, frozen=True):
    """Leave a channel."""

    channel: str = ""


class PublishRequest(_Value, frozen=True):
    """Publish into a channel."""

    channel: str = ""
    data: bytes = b""
    type: Int32 = 0
    """0 is a stream, the only kind there is here."""


class PresenceRequest(_Value, frozen=True):
    """Who is in a channel?"""

    channel: str = ""


class PresenceStatsRequest(_Value, frozen=True):
    """How many are in a channel?"""

    channel: str = ""


class HistoryRequest(_Value, frozen=True):
    """What was published in a channel?"""

    channel: str = ""
    limit: Int32 = 0
    """0: only the position. -1: all there is, up to the server's limit."""
    since: StreamPosition | None = None
    """Strictly after this one; before it with ``reverse``."""
    reverse: bool = False


class PingRequest(_Value, frozen=True):
    """Part of the schema, sent by nobody, and answered with 3501."""


class SendRequest(_Value, frozen=True):
    """A message to the server, never answered; the only request that needs no id."""

    data: bytes = b""


class RPCRequest(_Value, frozen=True):
    """A call to the server's application."""

    method: str = ""
    data: bytes = b""


class RefreshRequest(_Value, frozen=True):
    """A new token for the connection."""

    token: str = ""


class SubRefreshRequest(_Value, frozen=True):
    """A new token for a subscription. Some clients leave out the channel; it is in the token."""

    channel: str = ""
    token: str = ""
    type: Int32 = 0
    """0 is a token; others track keys of shared-poll subscriptions."""


Request: TypeAlias = (
    ConnectRequest
    | SubscribeRequest
    | UnsubscribeRequest
    | PublishRequest
    | PresenceRequest
    | PresenceStatsRequest
    | HistoryRequest
    | PingRequest
    | SendRequest
    | RPCRequest
    | RefreshRequest
    | SubRefreshRequest
)

REQUEST_TYPES: dict[str, type[Request]] = {
    "connect": ConnectRequest,
    "subscribe": SubscribeRequest,
    "unsubscribe": UnsubscribeRequest,
    "publish": PublishRequest,
    "presence": PresenceRequest,
    "presence_stats": PresenceStatsRequest,
    "history": HistoryRequest,
    "ping": PingRequest,
    "send": SendRequest,
    "rpc": RPCRequest,
    "refresh": RefreshRequest,
    "sub_refresh": SubRefreshRequest,
}
"""Every request by the name of its method."""


class Command(_Value, frozen=True):
    """One command of a client."""

    id: UInt32 = 0
    """Chosen by the client; the reply bears the same. 0 only for ``SendRequest`` and pongs."""
    request: Request | None = None
    """``None``: a pong."""


PONG = Command()


class EmulationRequest(_Value, frozen=True):
    """Commands of a client whose replies go out over an HTTP stream, perhaps of another shard."""

    node: str = ""
    session: str = ""
    data: bytes = b""
    """A frame: what ``decode`` takes."""


# --- what they are answered ----------------------------------------------------------------------------


class Error(_Value, frozen=True):
    """A request was refused."""

    code: int
    message: str
    temporary: bool = False
    """The same request may succeed later."""


class SubscribeResult(_Value, frozen=True, kw_only=True):
    """Subscribed; or (``ConnectResult.subs``) the state of a server-side subscription."""

    expires: bool = False
    ttl: int = 0
    """Seconds until a new token is due."""
    recoverable: bool = False
    positioned: bool = False
    epoch: str = ""
    offset: int = 0
    was_recovering: bool = False
    recovered: bool = False
    publications: list[Publication] = []
    """The missed ones, oldest first. Only together with ``recovered``."""
    data: bytes = b""
    delta: bool = False


class ConnectResult(_Value, frozen=True, kw_only=True):
    """Connected."""

    client: str
    version: str
    expires: bool = False
    ttl: int = 0
    """Seconds until a new token is due."""
    data: bytes = b""
    subs: dict[str, SubscribeResult] = {}
    ping: int = 0
    """Seconds between two pings of the server."""
    pong: bool = False
    """The client has to answer pings."""
    session: str = ""
    node: str = ""
    time: int = 0
    """Milliseconds since 1970; 0 if it is not told."""


class UnsubscribeResult(_Value, frozen=True):
    """Left, or never there."""


class PublishResult(_Value, frozen=True):
    """Taken."""


class PresenceResult(_Value, frozen=True):
    """Who is in the channel, by client id."""

    presence: dict[str, ClientInfo]


class PresenceStatsResult(_Value, frozen=True):
    """How many connections and how many different users are in the channel."""

    num_clients: int
    num_users: int


class HistoryResult(_Value, frozen=True):
    """Publications, and the position of the newest of the channel."""

    publications: list[Publication]
    epoch: str
    offset: int


class PingResult(_Value, frozen=True):
    """Part of the schema, never sent."""


class RPCResult(_Value, frozen=True):
    """What the application answers."""

    data: bytes = b""


class RefreshResult(_Value, frozen=True, kw_only=True):
    """The new token is good."""

    client: str = ""
    version: str = ""
    expires: bool = False
    ttl: int = 0
    """Seconds until the next token is due."""


class SubRefreshResult(_Value, frozen=True):
    """The new token is good."""

    expires: bool = False
    ttl: int = 0
    """Seconds until the next token is due."""


Result: TypeAlias = (
    ConnectResult
    | SubscribeResult
    | UnsubscribeResult
    | PublishResult
    | PresenceResult
    | PresenceStatsResult
    | HistoryResult
    | PingResult
    | RPCResult
    | RefreshResult
    | SubRefreshResult
)

RESULT_NAMES: dict[type[Result | Error], str] = {
    Error: "error",
    ConnectResult: "connect",
    SubscribeResult: "subscribe",
    UnsubscribeResult: "unsubscribe",
    PublishResult: "publish",
    PresenceResult: "presence",
    PresenceStatsResult: "presence_stats",
    HistoryResult: "history",
    PingResult: "ping",
    RPCResult: "rpc",
    RefreshResult: "refresh",
    SubRefreshResult: "sub_refresh",
}
"""The field of a reply that each result goes into."""


# --- what is pushed ------------------------------------------------------------------------------------


class Join(_Value, frozen=True):
    """Someone came into the channel."""

    info: ClientInfo


class Leave(_Value, frozen=True):
    """Someone left the channel."""

    info: ClientInfo


class Unsubscribe(_Value, frozen=True):
    """The server ended the subscription; from code 2500 on the client subscribes again."""

    code: int
    reason: str


class Message(_Value, frozen=True):
    """A message to this one connection, in no channel."""

    data: bytes = b""


class Subscribe(_Value, frozen=True, kw_only=True):
    """The server made a server-side subscription."""

    recoverable: bool = False
    positioned: bool = False
    epoch: str = ""
    offset: int = 0
    data: bytes = b""


class Connect(_Value, frozen=True, kw_only=True):
    """Connected, as unidirectional transports are told. The fields of ``ConnectResult``."""

    client: str
    version: str
    data: bytes = b""
    subs: dict[str, SubscribeResult] = {}
    expires: bool = False
    ttl: int = 0
    ping: int = 0
    pong: bool = False
    session: str = ""
    node: str = ""
    time: int = 0


class Disconnect(_Value, frozen=True):
    """The connection ends; for transports that have no close code of their own."""

    code: int
    reason: str
    reconnect: bool = False


class Refresh(_Value, frozen=True):
    """The server has set a new expiry of the connection."""

    expires: bool = False
    ttl: int = 0


Event: TypeAlias = (
    Publication | Join | Leave | Unsubscribe | Message | Subscribe | Connect | Disconnect | Refresh
)

EVENT_NAMES: dict[type[Event], str] = {
    Publication: "pub",
    Join: "join",
    Leave: "leave",
    Unsubscribe: "unsubscribe",
    Message: "message",
    Subscribe: "subscribe",
    Connect: "connect",
    Disconnect: "disconnect",
    Refresh: "refresh",
}
"""The field of a push that each event goes into."""


class Push(_Value, frozen=True):
    """Something happened that the client did not ask for."""

    channel: str
    """"" for what belongs to no channel."""
    event: Event


class Reply(_Value, frozen=True):
    """One message to a client."""

    id: int = 0
    """That of the command; 0 for pushes and pings."""
    body: Result | Error | Push | None = None
    """``None``: a ping."""
