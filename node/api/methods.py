"""The methods of the server API, without HTTP.

A method is called with its parameters as JSON and gives its result as JSON, or fails with ``ApiError``: the
caller learns a code of the protocol and nothing of what is inside. What the hub or other shards could not do
is error 100; some of it may have been done, and every method but ``publish`` and ``broadcast`` without an
idempotency key may be called again.

The server API stands above the permissions of clients: only a namespace that does not exist (102) and what a
namespace has switched off (108) are refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from spread.hub.api import Format, History, Hub, Position, PublishOptions
from spread.hub.errors import HubUnavailable, MessageTooLarge
from spread.node import codes
from spread.node.api import params, results
from spread.node.api.params import BadParams, decoded
from spread.node.control import Control, ControlFailed, TooManyChannels
from spread.node.metrics import ShardCounters
from spread.node.pattern import BadPattern

__all__ = [
    "BATCH_MAX_COMMANDS",
    "BATCH_PARALLEL",
    "BROADCAST_MAX_CHANNELS",
    "ERRORS",
    "HISTORY_MAX_BYTES",
    "HISTORY_MAX_PUBLICATIONS",
    "METHODS",
    "ApiError",
    "ChannelOptions",
    "Methods",
    "Namespaces",
]

BATCH_MAX_COMMANDS = 1000
"""Commands of one batch; error 106 above."""

BATCH_PARALLEL = 32
"""Commands of one parallel batch that run at a time."""

BROADCAST_MAX_CHANNELS = 10_000
"""Channels of one broadcast; error 106 above."""

HISTORY_MAX_PUBLICATIONS = 10_000
"""Publications of one answer; whoever wants more asks on from the last one."""

HISTORY_MAX_BYTES = 8 << 20
"""Data of one answer: after the publication that reaches it none is added."""

HISTORY_PAGE = 200
"""Publications that are read from the hub at a time."""

METHODS = (
    *("publish", "broadcast", "subscribe", "unsubscribe", "disconnect", "refresh"),
    *("presence", "presence_stats", "history", "history_remove", "channels", "info", "rpc", "batch"),
)
"""All names, as in the path of a request."""

ERRORS = {
    error.code: error
    for error in (
        codes.INTERNAL_ERROR,
        codes.UNKNOWN_CHANNEL,
        codes.METHOD_NOT_FOUND,
        codes.LIMIT_EXCEEDED,
        codes.BAD_REQUEST,
        codes.NOT_AVAILABLE,
        codes.UNRECOVERABLE_POSITION,
    )
}
"""All that a call may fail with, by code."""


class ApiError(Exception):
    """A call was not done; what its caller is told."""

    def __init__(self, error: codes.Error) -> None:
        super().__init__(error)
        self.error = error


class ChannelOptions(Protocol):
    """What the methods need to know of a channel."""

    @property
    def history(self) -> History | None:
        """``None``: it keeps none."""
        ...

    @property
    def presence(self) -> bool:
        """It is known who is in it."""
        ...

    @property
    def delta_publish(self) -> bool:
        """Its publications may be sent as differences, whether they say so or not."""
        ...


class Namespaces(Protocol):
    """Where the options of channels come from."""

    def options(self, channel: str) -> ChannelOptions | None:
        """``None``: there is no such namespace."""
        ...

    def is_too_long(self, channel: str) -> bool:
        """Its name is longer than names may be."""
        ...


class Methods:
    """The server API of the whole cluster, as one shard offers it.

    :param counters: counts calls by method, and errors by code.
    """

    log = Logger("spread.node.api")

    def __init__(self, hub: Hub, control: Control, namespaces: Namespaces, counters: ShardCounters) -> None:
        self._hub = hub
        self._control = control
        self._namespaces = namespaces
        for method in METHODS:
            counters.api_calls.setdefault(method, 0)
        for code in ERRORS:
            counters.api_errors.setdefault(code, 0)
        self.counters = counters
        self._methods: dict[str, Callable[[bytes], Awaitable[msgspec.Struct]]] = {
            name: getattr(self, f"_{name}") for name in METHODS if name != "batch"
        }

    def call(self, method: str, arguments: bytes) -> Deferred[bytes]:
        """Call a method; gives its result as a JSON object.

        :param arguments: one JSON value that ``wire.json.embeddable`` gave; empty: none.
        :raises ApiError: it was not done. The Deferred fails with nothing else.
        """
        return Deferred.fromCoroutine(self._counted(method, arguments))

    async def _counted(self, method: str, arguments: bytes) -> bytes:
        try:
            if method not in METHODS:
                raise ApiError(codes.METHOD_NOT_FOUND)
            self.counters.api_calls[method] += 1
            if method == "batch":
                return await self._batch(arguments)
            return msgspec.json.encode(await self._methods[method](arguments))
        except Exception as problem:
            error = self._error(method, problem)
            raise ApiError(error) from None

    def _error(self, method: str, problem: Exception) -> codes.Error:
        """What a caller is told of a problem; counted, and logged if nobody foresaw it."""
        match problem:
            case ApiError():
                error = problem.error
            case BadParams() | BadPattern() | MessageTooLarge():
                self.log.debug("{method} was called wrongly: {problem}", method=method, problem=problem)
                error = codes.BAD_REQUEST
            case TooManyChannels():
                error = codes.LIMIT_EXCEEDED
            case HubUnavailable() | ControlFailed():
                self.log.debug("{method} was not done: {problem}", method=method, problem=problem)
                error = codes.INTERNAL_ERROR
            case _:
                self.log.error("{method} was not done: {problem!r}", method=method, problem=problem)
                error = codes.INTERNAL_ERROR
        self.counters.api_errors[error.code] += 1
        return error

    def _options(self, channel: str) -> ChannelOptions:
        if not channel or self._namespaces.is_too_long(channel):
            raise BadParams("no channel, or one with a name that is too long")
        options = self._namespaces.options(channel)
        if options is None:
            raise ApiError(codes.UNKNOWN_CHANNEL)
        return options

    # -- publications

    async def _publish(self, arguments: bytes) -> results.Published:
        asked = decoded(params.Publish, arguments)
        self._options(asked.channel)
        data, format = asked.payload()
        return results.published(await self._take(asked.channel, data, format, asked))

    async def _broadcast(self, arguments: bytes) -> results.Broadcast:
        asked = decoded(params.Broadcast, arguments)
        if not asked.channels:
            raise BadParams("no channels")
        if len(asked.channels) > BROADCAST_MAX_CHANNELS:
            raise ApiError(codes.LIMIT_EXCEEDED)
        data, format = asked.payload()

        async def response(channel: str) -> results.Response:
            try:
                return results.Response(
                    result=results.published(await self._take(channel, data, format, asked))
                )
            except Exception as problem:
                return results.Response(error=results.error(self._error("broadcast", problem)))

        # The hub is given all of them, in this order, before the first is waited for.
        responses = [Deferred.fromCoroutine(response(channel)) for channel in asked.channels]
        return results.Broadcast(await gatherResults(responses))

    async def _take(
        self, channel: str, data: bytes, format: Format, asked: params.Payload
    ) -> Position | None:
        options = self._options(channel)
        return await self._hub.publish(
            channel,
            data,
            format,
            0,
            PublishOptions(
                history=None if asked.skip_history else options.history,
                tags=asked.tags or None,
                delta=asked.delta or options.delta_publish,
                idempotency_key=asked.idempotency_key,
                version=asked.version,
                version_epoch=asked.version_epoch,
            ),
        )

    # -- clients

    async def _subscribe(self, arguments: bytes) -> results.Done:
        asked = decoded(params.Subscribe, arguments)
        self._options(asked.channel)
        await self._control.ask_subscribe(
            asked.user, asked.channel, client=asked.client, session=asked.session, options=asked.options()
        )
        return results.Done()

    async def _unsubscribe(self, arguments: bytes) -> results.Done:
        asked = decoded(params.Unsubscribe, arguments)
        if asked.channel:
            self._options(asked.channel)
        await self._control.ask_unsubscribe(
            asked.user, asked.channel, client=asked.client, session=asked.session
        )
        return results.Done()

    async def _disconnect(self, arguments: bytes) -> results.Done:
        asked = decoded(params.Disconnect, arguments)
        await self._control.ask_disconnect(
            asked.user,
            client=asked.client,
            session=asked.session,
            whitelist=asked.whitelist,
            disconnect=asked.reason(),
        )
        return results.Done()

    async def _refresh(self, arguments: bytes) -> results.Done:
        asked = decoded(params.Refresh, arguments)
        await self._control.ask_refresh(
            asked.user,
            client=asked.client,
            session=asked.session,
            expired=asked.expired,
            expire_at=asked.expire_at,
            info=asked.conn_info(),
        )
        return results.Done()

    # -- presence and history

    async def _presence(self, arguments: bytes) -> results.Presence:
        channel = self._present(arguments)
        there = await self._hub.presence(channel)
        return results.Presence({client: results.client_info(info) for client, info in there.items()})

    async def _presence_stats(self, arguments: bytes) -> results.PresenceStats:
        stats = await self._hub.presence_stats(self._present(arguments))
        return results.PresenceStats(stats.num_clients, stats.num_users)

    def _present(self, arguments: bytes) -> str:
        channel = decoded(params.Channel, arguments).channel
        if not self._options(channel).presence:
            raise ApiError(codes.NOT_AVAILABLE)
        return channel

    async def _history(self, arguments: bytes) -> results.History:
        asked = decoded(params.History, arguments)
        kept = self._kept(asked.channel)
        since = None if asked.since is None else asked.since.position()
        if asked.reverse and since is not None and since.offset == 0:
            raise BadParams("nothing is before offset 0")
        wanted = min(asked.limit, HISTORY_MAX_PUBLICATIONS) if asked.limit >= 0 else HISTORY_MAX_PUBLICATIONS
        top: Position | None = None
        publications: list[results.Publication] = []
        size = 0
        while True:
            limit = min(wanted - len(publications), HISTORY_PAGE)
            page = await self._hub.history(
                asked.channel, kept, since=since, limit=limit, reverse=asked.reverse
            )
            if top is None:
                top = page.position
                if since is not None and not page.continues(since):
                    raise ApiError(codes.UNRECOVERABLE_POSITION)
            elif page.position.epoch != top.epoch:
                raise ApiError(codes.INTERNAL_ERROR)  # the stream was lost between two pages
            for publication in page.publications:
                publications.append(results.publication(publication))
                size += len(publication.data)
                if size >= HISTORY_MAX_BYTES:
                    break
            if len(page.publications) < limit or len(publications) >= wanted or size >= HISTORY_MAX_BYTES:
                return results.History(publications, top.epoch, top.offset)
            since = Position(top.epoch, page.publications[-1].offset)

    async def _history_remove(self, arguments: bytes) -> results.Done:
        channel = decoded(params.Channel, arguments).channel
        self._kept(channel)
        await self._hub.remove_history(channel)
        return results.Done()

    def _kept(self, channel: str) -> History:
        kept = self._options(channel).history
        if kept is None:
            raise ApiError(codes.NOT_AVAILABLE)
        return kept

    # -- the cluster

    async def _channels(self, arguments: bytes) -> results.Channels:
        found = await self._control.ask_channels(decoded(params.Channels, arguments).pattern)
        return results.Channels({name: results.ChannelInfo(clients) for name, clients in found.items()})

    async def _info(self, arguments: bytes) -> results.Info:
        decoded(params.Nothing, arguments)
        return results.Info(
            [
                results.Node(
                    uid=row.identity.incarnation,
                    name=f"{row.identity.host}-{row.shard}",
                    version=row.identity.version,
                    num_clients=row.load.clients,
                    num_users=row.load.users,
                    num_subs=row.load.subscriptions,
                    num_channels=row.load.channels,
                    uptime=row.load.uptime_seconds,
                    app=row.load.app,
                )
                for row in await self._hub.roster()
            ]
        )

    async def _rpc(self, arguments: bytes) -> results.Done:
        if not decoded(params.Rpc, arguments).method:
            raise BadParams("no method")
        raise ApiError(codes.METHOD_NOT_FOUND)

    # -- several calls

    async def _batch(self, arguments: bytes) -> bytes:
        asked = decoded(params.Batch, arguments)
        if len(asked.commands) > BATCH_MAX_COMMANDS:
            raise ApiError(codes.LIMIT_EXCEEDED)
        replies = [b""] * len(asked.commands)
        commands = iter(enumerate(asked.commands))

        async def work() -> None:
            for index, command in commands:
                replies[index] = await self._reply(command)

        at_a_time = BATCH_PARALLEL if asked.parallel else 1
        await gatherResults([Deferred.fromCoroutine(work()) for _ in range(at_a_time)])
        return b'{"replies":[%b]}' % b",".join(replies)

    async def _reply(self, command: dict[str, Any]) -> bytes:
        given = {name: bytes(raw) for name, raw in command.items() if bytes(raw) != b"null"}
        known = [name for name in given if name in self._methods]
        try:
            if len(known) > 1 or "batch" in given:
                raise ApiError(self._error("batch", BadParams("not one method in a command")))
            method = known[0] if known else ""
            return b'{"%b":%b}' % (method.encode(), await self.call(method, given.get(method, b"")))
        except ApiError as problem:
            return b'{"error":%b}' % msgspec.json.encode(results.error(problem.error))
