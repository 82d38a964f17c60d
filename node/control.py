"""What shards ask of each other about their clients: the server API reaches a client wherever it is.

A question goes to all live shards through ``Hub.ask``, the asking one included; each does its part on its
own clients (``Clients``) and answers with what came of it; ``Control`` adds the answers up. To do is
to do again: every question but ``Emulate``, ``Send`` and ``SendAll`` may be repeated with the same
outcome, so that a caller who was told of a failure asks once more.

``Relay`` is for other parts of the node: bytes of a kind that one of them has registered for
(``Control.on``), whose meaning is theirs alone.

On the wire a question is one byte, the version of this format, and a msgpack map with the name of
the question in ``type``. An answer is the version and a msgpack value. A field may be added with a default;
whatever an older shard would get wrong needs another version. A shard that does not understand a question
fails it, which the asker is told (``ControlFailed``): nothing is passed over in silence while two
releases run side by side.

The user "" is the anonymous one. ``client`` and ``session`` narrow a question down to one connection; "" is
no restriction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, TypeVar

import msgspec
from twisted.internet.defer import Deferred

from spread.hub.api import Hub, Position
from spread.node.codes import Disconnect as DisconnectCode
from spread.node.pattern import matching

__all__ = [
    "ANSWER_MAX_BYTES",
    "VERSION",
    "Channels",
    "Clients",
    "Control",
    "ControlFailed",
    "Disconnect",
    "Emulate",
    "Override",
    "Question",
    "Refresh",
    "Relay",
    "RelayHandler",
    "Send",
    "SendAll",
    "Subscribe",
    "SubscribeOptions",
    "TooManyChannels",
    "UnknownKind",
    "Unsubscribe",
]

VERSION = 1

ANSWER_MAX_BYTES = 1_000_000
"""Of an answer: the channels of one shard that match must fit in, which are some 30,000. It is below what a
hub carries, so that the asker learns what is wrong."""

T = TypeVar("T")

RelayHandler: TypeAlias = Callable[[str, bytes], "Deferred[bytes] | bytes"]
"""Given the incarnation of the asking shard and the body, gives the answer. A failure fails the question."""


class ControlFailed(Exception):
    """Some shards did not do their part; the others have. Asking again does no harm."""

    def __init__(self, failed: int, asked: int) -> None:
        super().__init__(failed, asked)
        self.failed = failed
        self.asked = asked

    def __str__(self) -> str:
        return f"{self.failed} of {self.asked} shards could not answer"


class TooManyChannels(Exception):
    """More channels match than one answer holds; a narrower pattern helps."""

    def __str__(self) -> str:
        return f"the names of the channels of one shard that match have more than {ANSWER_MAX_BYTES} bytes"


class UnknownKind(Exception):
    """A relay of a kind that nothing on this shard has registered."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind

    def __str__(self) -> str:
        return f"nothing here answers relays of the kind {self.kind[:64]!r}"


# --- the questions -------------------------------------------------------------------------------------


class Override(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a server-side subscription has otherwise than its namespace says; ``None``: as it says."""

    presence: bool | None = None
    join_leave: bool | None = None
    force_push_join_leave: bool | None = None
    force_positioning: bool | None = None
    force_recovery: bool | None = None


class SubscribeOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a server-side subscription carries."""

    info: bytes = b""
    """``chan_info`` of the client in this channel."""
    data: bytes = b""
    """Given to the client in the push that tells of the subscription."""
    recover_since: Position | None = None
    """Publications after this place are sent first."""
    override: Override = Override()
    expire_at: int = 0
    """Unix time at which the subscription ends; 0: it does not."""


class _Question(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """Base of all questions."""


class Disconnect(_Question, frozen=True, kw_only=True):
    """End the connections of a user."""

    user: str
    client: str = ""
    session: str = ""
    whitelist: list[str] = []
    """Ids of clients that stay."""
    code: int
    reason: str


class Unsubscribe(_Question, frozen=True, kw_only=True):
    """End the subscriptions of a user to a channel, whoever made them."""

    user: str
    channel: str
    """"": to all."""
    client: str = ""
    session: str = ""


class Subscribe(_Question, frozen=True, kw_only=True):
    """Subscribe the connections of a user to a channel."""

    user: str
    channel: str
    client: str = ""
    session: str = ""
    options: SubscribeOptions = SubscribeOptions()


class Refresh(_Question, frozen=True, kw_only=True):
    """Let the connections of a user live on, or expire."""

    user: str
    client: str = ""
    session: str = ""
    expired: bool = False
    expire_at: int = 0
    info: bytes = b""


class Channels(_Question, frozen=True, kw_only=True):
    """Which channels have subscribers."""

    pattern: str = ""


class Emulate(_Question, frozen=True, kw_only=True):
    """Hand a frame to the emulated session with this id."""

    session: str
    data: bytes


class Send(_Question, frozen=True, kw_only=True):
    """Push a message to the connections of a user, or to one client whoever it is."""

    user: str
    client: str
    """"": to all of the user."""
    data: bytes


class SendAll(_Question, frozen=True, kw_only=True):
    """Push a message to all connections."""

    data: bytes


class Relay(_Question, frozen=True, kw_only=True):
    """Bytes for a part of the node that has registered for them."""

    kind: str
    origin: str
    """The incarnation of the asking shard."""
    body: bytes


Question: TypeAlias = (
    Disconnect | Unsubscribe | Subscribe | Refresh | Channels | Emulate | Send | SendAll | Relay
)


# --- who answers them ----------------------------------------------------------------------------------


class Clients(Protocol):
    """The clients of this shard, as ``Control`` asks for them. Counts are of connections acted on.

    Nothing here raises but for ``subscribe``'s Deferred.
    """

    def disconnect(
        self, user: str, *, client: str, session: str, whitelist: list[str], disconnect: DisconnectCode
    ) -> int:
        """End all connections of a user but those whose client id is in ``whitelist``."""
        ...

    def unsubscribe(self, user: str, channel: str, *, client: str, session: str) -> int:
        """End their subscriptions to a channel with a push of code 2000; "": to all channels."""
        ...

    def subscribe(
        self, user: str, channel: str, *, client: str, session: str, options: SubscribeOptions
    ) -> Deferred[int]:
        """Subscribe them, and push that to each. Fires when the subscriptions are heard.

        A connection that is subscribed already is left as it is, and not counted.
        """
        ...

    def refresh(
        self, user: str, *, client: str, session: str, expired: bool, expire_at: int, info: bytes
    ) -> int:
        """Set when they expire, and push that to each.

        :param expired: they have, now: closed with 3005; the other parameters say nothing then.
        :param expire_at: Unix time; 0: they do not expire any more. In the past: as ``expired``.
        :param info: their new ``conn_info``; b"": as it is.
        """
        ...

    def channels(self, pattern: str) -> dict[str, int]:
        """How many clients of this shard are in each channel that ``pattern.matching(pattern)`` holds for."""
        ...

    def emulate(self, session: str, data: bytes) -> bool:
        """Hand a frame to an emulated session; False: there is none here with this id."""
        ...

    def send(self, user: str, client: str, data: bytes) -> int:
        """Push a message to a user's connections; with ``client`` to that one alone, whoever its user is."""
        ...

    def send_all(self, data: bytes) -> int:
        """Push a message to all connections."""
        ...


class Control:
    """Asks all shards, and answers for this one. Used on the reactor's thread.

    Every ``ask_…`` fails with ``HubUnavailable`` when the hub is away or not all shards have answered in
    time, and with ``ControlFailed`` when one could not do its part. In both cases the others may have done
    theirs.

    :param incarnation: of this shard, as ``Hub.ask`` names one; told to whoever answers its relays.
    """

    def __init__(self, hub: Hub, clients: Clients, incarnation: str = "") -> None:
        self._hub = hub
        self._clients = clients
        self._incarnation = incarnation
        self._handlers: dict[str, RelayHandler] = {}

    # -- asking

    def ask_disconnect(
        self,
        user: str,
        *,
        client: str = "",
        session: str = "",
        whitelist: list[str] | None = None,
        disconnect: DisconnectCode,
    ) -> Deferred[int]:
        """See ``Clients.disconnect``; gives the number of connections on all shards, as do the next three."""
        return self._total(
            Disconnect(
                user=user,
                client=client,
                session=session,
                whitelist=whitelist or [],
                code=disconnect.code,
                reason=disconnect.reason,
            )
        )

    def ask_unsubscribe(
        self, user: str, channel: str, *, client: str = "", session: str = ""
    ) -> Deferred[int]:
        """See ``Clients.unsubscribe``."""
        return self._total(Unsubscribe(user=user, channel=channel, client=client, session=session))

    def ask_subscribe(
        self,
        user: str,
        channel: str,
        *,
        client: str = "",
        session: str = "",
        options: SubscribeOptions | None = None,
    ) -> Deferred[int]:
        """See ``Clients.subscribe``."""
        return self._total(
            Subscribe(
                user=user,
                channel=channel,
                client=client,
                session=session,
                options=options or SubscribeOptions(),
            )
        )

    def ask_refresh(
        self,
        user: str,
        *,
        client: str = "",
        session: str = "",
        expired: bool = False,
        expire_at: int = 0,
        info: bytes = b"",
    ) -> Deferred[int]:
        """See ``Clients.refresh``."""
        return self._total(
            Refresh(
                user=user, client=client, session=session, expired=expired, expire_at=expire_at, info=info
            )
        )

    def ask_channels(self, pattern: str = "") -> Deferred[dict[str, int]]:
        """How many clients, on all shards, are in each channel that matches.

        :raises BadPattern: at once.
        :raises TooManyChannels: on one shard there are more than ``ANSWER_MAX_BYTES`` hold.
        """
        matching(pattern)
        return self._ask(Channels(pattern=pattern), _CHANNELS).addCallback(_merged)

    def emulate(self, node: str, session: str, data: bytes) -> Deferred[bool]:
        """Hand a frame to a session of the shard whose incarnation is ``node``; False: it has none such.

        :raises ShardUnknown: no live shard is ``node``.
        """
        return self._ask(Emulate(session=session, data=data), _FOUND, node).addCallback(any)

    def send(self, user: str, data: bytes, *, client: str = "") -> Deferred[int]:
        """See ``Clients.send``; gives the number of connections on all shards."""
        return self._total(Send(user=user, client=client, data=data))

    def send_all(self, data: bytes) -> Deferred[int]:
        """See ``Clients.send_all``; likewise."""
        return self._total(SendAll(data=data))

    def relay(self, kind: str, body: bytes, shard: str = "") -> Deferred[list[bytes]]:
        """Ask what is registered for ``kind`` on all shards, this one included; gives their answers.

        :param shard: the incarnation of the only shard that is asked; "": all.
        :raises ShardUnknown: no live shard has that incarnation.
        :raises MessageTooLarge: the body does not fit into a question.
        """
        return self._ask(Relay(kind=kind, origin=self._incarnation, body=body), _BYTES, shard)

    def _total(self, question: Question) -> Deferred[int]:
        return self._ask(question, _COUNT).addCallback(sum)

    def _ask(
        self, question: Question, decoder: msgspec.msgpack.Decoder[T], shard: str = ""
    ) -> Deferred[list[T]]:
        return self._hub.ask(_encoded(question), shard).addCallback(_read, decoder)

    # -- answering

    def on(self, kind: str, handler: RelayHandler) -> None:
        """From now on ``handler`` answers relays of this kind, in place of any before."""
        self._handlers[kind] = handler

    def answer(self, question: bytes) -> Deferred[bytes]:
        """Do this shard's part of a question, and give its answer; what ``Receiver.asked`` needs.

        :raises ValueError: the Deferred fails with it if it is no question of this version. Other
            failures are those of ``Clients.subscribe``, and of what answers relays.
        """
        return Deferred.fromCoroutine(self._answer(question))

    async def _answer(self, question: bytes) -> bytes:
        clients = self._clients
        answer: Any
        match _decoded(question):
            case Disconnect() as asked:
                answer = clients.disconnect(
                    asked.user,
                    client=asked.client,
                    session=asked.session,
                    whitelist=asked.whitelist,
                    disconnect=DisconnectCode(asked.code, asked.reason),
                )
            case Unsubscribe() as asked:
                answer = clients.unsubscribe(
                    asked.user, asked.channel, client=asked.client, session=asked.session
                )
            case Subscribe() as asked:
                answer = await clients.subscribe(
                    asked.user,
                    asked.channel,
                    client=asked.client,
                    session=asked.session,
                    options=asked.options,
                )
            case Refresh() as asked:
                answer = clients.refresh(
                    asked.user,
                    client=asked.client,
                    session=asked.session,
                    expired=asked.expired,
                    expire_at=asked.expire_at,
                    info=asked.info,
                )
            case Channels() as asked:
                answer = clients.channels(asked.pattern)
            case Emulate() as asked:
                answer = clients.emulate(asked.session, asked.data)
            case Send() as asked:
                answer = clients.send(asked.user, asked.client, asked.data)
            case SendAll() as asked:
                answer = clients.send_all(asked.data)
            case Relay() as asked:
                answer = await self._relayed(asked)
        encoded = bytes([VERSION]) + msgspec.msgpack.encode(answer)
        return encoded if len(encoded) <= ANSWER_MAX_BYTES else _TOO_MANY

    async def _relayed(self, asked: Relay) -> bytes:
        handler = self._handlers.get(asked.kind)
        if handler is None:
            raise UnknownKind(asked.kind)
        answer = handler(asked.origin, asked.body)
        return await answer if isinstance(answer, Deferred) else answer


# --- the wire ------------------------------------------------------------------------------------------

_QUESTION = msgspec.msgpack.Decoder(Question)
_COUNT = msgspec.msgpack.Decoder(int)
_FOUND = msgspec.msgpack.Decoder(bool)
_BYTES = msgspec.msgpack.Decoder(bytes)
_CHANNELS: msgspec.msgpack.Decoder[dict[str, int] | None] = msgspec.msgpack.Decoder(dict[str, int] | None)
"""``None``: too many."""
_TOO_MANY = bytes([VERSION]) + msgspec.msgpack.encode(None)


def _encoded(question: Question) -> bytes:
    return bytes([VERSION]) + msgspec.msgpack.encode(question)


def _decoded(question: bytes) -> Question:
    if question[:1] != bytes([VERSION]):
        raise ValueError(f"a question of version {question[:1].hex() or 'none'}, not {VERSION:02x}")
    read: Question = _QUESTION.decode(question[1:])  # its errors are ValueErrors
    return read


def _read(answers: list[bytes], decoder: msgspec.msgpack.Decoder[T]) -> list[T]:
    values = []
    for answer in answers:
        if answer[:1] == bytes([VERSION]):
            try:
                values.append(decoder.decode(answer[1:]))
            except msgspec.DecodeError:
                continue
    if len(values) < len(answers):
        raise ControlFailed(len(answers) - len(values), len(answers))
    return values


def _merged(answers: list[dict[str, int] | None]) -> dict[str, int]:
    total: dict[str, int] = {}
    for channels in answers:
        if channels is None:
            raise TooManyChannels
        for name, clients in channels.items():
            total[name] = total.get(name, 0) + clients
    return total
