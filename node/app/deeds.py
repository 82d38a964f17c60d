"""What an app does: each method of ``App`` ends up in one of these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec
from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.python.failure import Failure

from spread.hub.api import (
    ClientInfo,
    Format,
    Hub,
    Position,
    PresenceStats,
    PublishOptions,
    Stream,
    check_excluded,
)
from spread.hub.errors import ShardUnknown
from spread.node.app.data import decoded, encoded, grant_of
from spread.node.app.marks import Call
from spread.node.app.values import (
    Disconnect,
    Page,
    Present,
    Published,
    Refuse,
    RemoteError,
    Subscribing,
    is_text,
)
from spread.node.codes import Disconnect as DisconnectCode
from spread.node.control import ANSWER_MAX_BYTES, Control, Override, SubscribeOptions
from spread.node.namespaces import ChannelOptions, Namespaces
from spread.node.session.logic import Answer
from spread.node.session.shared import Ended, Refused

if TYPE_CHECKING:
    from spread.node.app.host import Objects

__all__ = ["KIND", "Deeds", "without_app"]

KIND = "app"
"""Of the relays by which apps call each other."""

ABSENT = "absent"
"""Stands for the value where there is no such method."""

OUTCOME_MAX_BYTES = ANSWER_MAX_BYTES - 64
"""Of what a method gives to another shard."""


class Deeds(ABC):
    """See ``App``, method by method."""

    objects: Objects | None

    def __init__(
        self,
        hub: Hub,
        control: Control,
        namespaces: Namespaces,
        number: Callable[[], int | None],
        personal: Callable[[str], str] | None,
    ) -> None:
        self._hub = hub
        self._control = control
        self._namespaces = namespaces
        self._number = number
        self._personal = personal
        self._remotes: dict[str, Call] = {}

    @property
    def shard(self) -> int:
        """The number of this shard."""
        number = self._number()
        if number is None:
            raise RuntimeError("this shard has no number yet")
        return number

    # -- channels -------------------------------------------------------------------------------------------

    def _options(self, channel: str) -> ChannelOptions:
        if not isinstance(channel, str) or not channel or not is_text(channel):
            raise LookupError(f"{channel!r:.64} is no channel")
        if self._namespaces.is_too_long(channel):
            raise LookupError(f"{channel[:64]!r} is no channel")
        options = self._namespaces.options(channel)
        if options is None:
            raise LookupError(f"the namespace of {channel!r} is not in channel.namespaces")
        return options

    def publish(
        self,
        channel: str,
        data: Any,
        *,
        exclude: Iterable[str] = (),
        tags: dict[str, str] | None = None,
        idempotency_key: str = "",
        fence: Any = None,
    ) -> Deferred[Position | None]:
        """See ``App.publish``."""
        options = self._options(channel)
        more: dict[str, Any] = {}
        if isinstance(exclude, str):
            raise TypeError("exclude takes ids of clients, not one id")  # each letter would be one
        if excluded := tuple(exclude):
            for each in excluded:
                _is_name("exclude", "ids of clients", each)
            check_excluded(excluded)
            more["exclude"] = excluded
        if fence is not None:
            more["fence"] = fence
        if tags or idempotency_key != "":
            # What no shard could read must not be sent to them.
            words = [idempotency_key, *(word for pair in (tags or {}).items() for word in pair)]
            if not all(isinstance(word, str) and is_text(word) for word in words):
                raise TypeError("tags and idempotency_key are texts")
        return self._hub.publish(
            channel,
            encoded(data, "publish"),
            Format.BINARY if type(data) is bytes else Format.JSON,
            0,
            PublishOptions(
                history=options.history,
                delta=options.delta_publish,
                tags=tags,
                idempotency_key=idempotency_key,
                **more,
            ),
        )

    def broadcast(self, channels: Iterable[str], data: Any) -> Deferred[list[Position | None]]:
        """See ``App.broadcast``."""
        names = list(channels)
        for channel in names:
            self._options(channel)  # before anything is published
        published = [self.publish(channel, data) for channel in names]
        return gatherResults(published, consumeErrors=True).addErrback(_first)

    def history(self, channel: str, limit: int, since: Position | None, reverse: bool) -> Deferred[Page]:
        """See ``App.history``."""
        options = self._options(channel)
        if options.history is None:
            raise LookupError(f"{channel!r} keeps no history")
        asked = self._hub.history(channel, options.history, since=since, limit=limit, reverse=reverse)
        return asked.addCallback(_page)

    def presence(self, channel: str) -> Deferred[dict[str, Present]]:
        """See ``App.presence``."""
        self._options(channel)
        return self._hub.presence(channel).addCallback(_present)

    def presence_stats(self, channel: str) -> Deferred[PresenceStats]:
        """See ``App.presence_stats``."""
        self._options(channel)
        return self._hub.presence_stats(channel)

    # -- clients --------------------------------------------------------------------------------------------

    def send(self, data: Any, user: str | None, client: str) -> Deferred[int]:
        """See ``App.send``."""
        if (user is None) == (not client):
            raise ValueError("send() needs a user, or the id of a client")
        _is_somebody(user or "", client)
        return self._control.send(user or "", encoded(data, "send"), client=client)

    def send_all(self, data: Any) -> Deferred[int]:
        """See ``App.send_all``."""
        return self._control.send_all(encoded(data, "send_all"))

    def publish_user(self, user: str, data: Any) -> Deferred[Any]:
        """See ``App.publish_user``."""
        if not user:
            raise ValueError("an anonymous user has no channel of its own")
        _is_somebody(user)
        if self._personal is None:
            return self.send(data, user, "")
        return self.publish(self._personal(user), data)

    def subscribe(self, user: str, channel: str, options: Subscribing | None, client: str) -> Deferred[int]:
        """See ``App.subscribe``."""
        _is_somebody(user, client)
        self._options(channel)
        grant = grant_of(Subscribing() if options is None else options)
        overrides = grant.overrides
        return self._control.ask_subscribe(
            user,
            channel,
            client=client,
            options=SubscribeOptions(
                info=grant.info,
                data=grant.data,
                expire_at=grant.expire_at,
                override=Override(
                    presence=overrides.presence,
                    join_leave=overrides.join_leave,
                    force_push_join_leave=overrides.force_push_join_leave,
                    force_positioning=overrides.force_positioning,
                    force_recovery=overrides.force_recovery,
                ),
            ),
        )

    def unsubscribe(self, user: str, channel: str, client: str) -> Deferred[int]:
        """See ``App.unsubscribe``."""
        _is_somebody(user, client)
        return self._control.ask_unsubscribe(user, channel, client=client)

    def disconnect(self, user: str, code: int, reason: str, client: str) -> Deferred[int]:
        """See ``App.disconnect``."""
        _is_somebody(user, client)
        ending = Disconnect(code, reason)
        return self._control.ask_disconnect(
            user, client=client, disconnect=DisconnectCode(ending.code, ending.reason)
        )

    # -- other shards ---------------------------------------------------------------------------------------

    def call_owner(self, channel: str, command: str, data: Any) -> Deferred[Any]:
        """See ``App.call``."""
        if self.objects is None:
            raise LookupError("this app has no objects; see App.objects")
        self._options(channel)
        try:
            return self.objects.call(channel, command, data).addErrback(_as_raised)
        except (Refused, Ended):
            return fail(_as_raised(Failure()))

    def call_shard(self, shard: int | None, method: str, data: Any) -> Deferred[Any]:
        """See ``App.call_shard``."""
        body = msgspec.msgpack.encode((method, data))
        if shard is None:
            return self._control.relay(KIND, body).addCallback(_values)
        return Deferred.fromCoroutine(self._call_one(shard, body))

    async def _call_one(self, shard: int, body: bytes) -> Any:
        rows = await self._hub.roster()
        found = next((row.identity.incarnation for row in rows if row.shard == shard), "")
        if not found:
            raise ShardUnknown(f"number {shard}")
        return _value((await self._control.relay(KIND, body, found))[0])

    def _called(self, origin: str, body: bytes) -> Deferred[bytes] | bytes:
        """A shard calls a method of this one."""
        method, data = _CALL.decode(body)
        call = self._remotes.get(method)
        if call is None:
            return _outcome(ABSENT, f"the app of shard {self._number()} has no @remote {method[:64]!r}")
        try:
            answer = self._run_remote(call, data)
        except (Refused, Ended) as error:
            return _failed(Failure(error))
        if isinstance(answer, Deferred):
            return answer.addCallbacks(_succeeded, _failed)
        return _succeeded(answer)

    @abstractmethod
    def _run_remote(self, call: Call, data: Any) -> Answer[Any]: ...


def _is_somebody(user: object, client: object = "") -> None:
    """
    :raises TypeError: one is no text.
    :raises ValueError: both are empty, which would be all anonymous clients.
    """
    _is_name("user", "the name of a user", user)
    _is_name("client", "the id of a client", client)
    if not user and not client:
        raise ValueError("whom? An anonymous client has no user: give its id, client=client.id")


def _is_name(what: str, meaning: str, value: object) -> None:
    """Whoever gives the client itself would reach nobody, or everybody.

    :raises TypeError: it is no text.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} takes {meaning}, not {type(value).__name__}")


def without_app(origin: str, body: bytes) -> bytes:
    """The same on a shard that runs no app."""
    return _outcome(ABSENT, "this shard runs no app")


_CALL = msgspec.msgpack.Decoder(tuple[str, Any])
_OUTCOME = msgspec.msgpack.Decoder(tuple[str, Any])


def _as_raised(failure: Failure) -> Failure:
    """What a command has raised, as the app knows it; so it may be caught, or passed on to a client."""
    error = failure.value
    if isinstance(error, Refused):
        return Failure(Refuse(error.error.code, error.error.message, error.error.temporary))
    if isinstance(error, Ended):
        return Failure(Disconnect(error.disconnect.code, error.disconnect.reason))
    return failure


def _outcome(value: Any = None, error: str = "") -> bytes:
    return msgspec.msgpack.encode((error, value))


def _succeeded(value: Any) -> bytes:
    try:
        outcome = _outcome(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return _outcome(error=f"what it gives is no plain data: {error}")
    if len(outcome) > OUTCOME_MAX_BYTES:
        return _outcome(error=f"what it gives has {len(outcome)} bytes; {OUTCOME_MAX_BYTES} is the most")
    return outcome


def _failed(failure: Failure) -> bytes:
    error = failure.value
    if isinstance(error, Refused):
        return _outcome(error=f"{error.error.code} {error.error.message}")
    if isinstance(error, Ended):
        return _outcome(error=f"{error.disconnect.code} {error.disconnect.reason}")
    return _outcome(error=failure.getErrorMessage() or "cancelled")


def _value(answer: bytes) -> Any:
    error, value = _OUTCOME.decode(answer)
    if error:
        raise RemoteError(error)
    return value


def _values(answers: list[bytes]) -> list[Any]:
    """Of all shards that have the method.

    :raises RemoteError: none has, or it has failed on one of them.
    """
    outcomes = [_OUTCOME.decode(answer) for answer in answers]
    there = [
        answer
        for answer, (error, value) in zip(answers, outcomes, strict=True)
        if value != ABSENT or not error
    ]
    return [_value(answer) for answer in there or answers[:1]]


def _page(stream: Stream) -> Page:
    publications = [
        Published(
            data=_read(each.data, each.format),
            offset=each.offset,
            user=each.info.user if each.info else "",
            client=each.info.client if each.info else "",
            tags=each.tags or {},
        )
        for each in stream.publications
    ]
    return Page(publications=publications, epoch=stream.position.epoch, offset=stream.position.offset)


def _read(data: bytes, format: int) -> Any:
    if format == Format.TEXT:
        return data.rstrip(b"\r\n").decode(errors="replace")
    return decoded(data) if format == Format.JSON else data


def _present(clients: dict[str, ClientInfo]) -> dict[str, Present]:
    return {
        client: Present(
            user=info.user, client=client, info=decoded(info.conn_info), channel_info=decoded(info.chan_info)
        )
        for client, info in clients.items()
    }


def _first(failure: Failure) -> Failure:
    reason = getattr(failure.value, "subFailure", failure)
    assert isinstance(reason, Failure)
    return reason
