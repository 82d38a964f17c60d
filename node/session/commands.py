"""What a connected client asks for (sections 5 and 7 of the protocol): one function for each command.

Each gives the result, or a Deferred of it, or ``None`` where no reply is due; it raises ``Refused`` for an
error and ``Ended`` for a disconnect, as its Deferred does. ``HubError`` becomes error 100, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, succeed

from spread.hub.api import ClientInfo, Format, Position, PresenceStats, Publication, PublishOptions, Stream
from spread.node import codes
from spread.node.auth.jwks import JwksUnavailable
from spread.node.auth.keys import TokenExpired, TokenInvalid
from spread.node.auth.permissions import may_publish, may_read_history, may_see_presence
from spread.node.encoders import data_for, json_info, protobuf_info, publications_for
from spread.node.namespaces import ChannelOptions
from spread.node.session.centrifuge import CentrifugeSession, Outcome
from spread.node.session.connecting import connect, verified_connection
from spread.node.session.shared import Ended, Refused
from spread.node.session.subscribing import Grant, announce_join, permit, prepare
from spread.node.tables import TABLES_CHANNEL
from spread.node.views import visible
from spread.node.wire import json
from spread.node.wire.messages import (
    Command,
    ConnectRequest,
    HistoryRequest,
    HistoryResult,
    PresenceRequest,
    PresenceResult,
    PresenceStatsRequest,
    PresenceStatsResult,
    ProtocolError,
    PublishRequest,
    PublishResult,
    RefreshRequest,
    RefreshResult,
    RPCRequest,
    RPCResult,
    SendRequest,
    SubRefreshRequest,
    SubRefreshResult,
    SubscribeRequest,
    SubscribeResult,
    UnsubscribeRequest,
    UnsubscribeResult,
)

__all__ = ["run"]

SHOWN_MAX_CHARACTERS = 255
"""Of the name of a channel in the log: it may not have been looked at yet."""

DELTA_TYPES = ("", "fossil")


def run(session: CentrifugeSession, command: Command) -> Deferred[Outcome] | Outcome:
    """Do a command."""
    return _COMMANDS[type(command.request)](session, command.request)


def _options(session: CentrifugeSession, channel: str) -> ChannelOptions:
    if not channel:
        raise Ended(codes.BAD_PROTOCOL, "no channel")
    options = session.shared.namespaces.options(channel)
    if options is None:
        raise _unknown(channel)
    return options


def _unknown(channel: str) -> Refused:
    name = channel[:SHOWN_MAX_CHARACTERS]
    return Refused(codes.UNKNOWN_CHANNEL, f"the namespace of {name!r} is not in channel.namespaces")


def _not_allowed(options: str, channel: str) -> Refused:
    name = channel[:SHOWN_MAX_CHARACTERS]
    return Refused(codes.PERMISSION_DENIED, f"{options} do not let this user do that in {name!r}")


# --- coming in, going out -------------------------------------------------------------------------------


def _connect(session: CentrifugeSession, request: ConnectRequest) -> Deferred[Outcome]:
    return Deferred.fromCoroutine(connect(session, request))


def _subscribe(session: CentrifugeSession, request: SubscribeRequest) -> Deferred[Outcome]:
    # The rows of the table in section 5, in their order.
    shared = session.shared
    channel = request.channel
    if not channel:
        raise Ended(codes.BAD_PROTOCOL, "no channel")
    if shared.namespaces.is_too_long(channel):
        raise Refused(codes.BAD_REQUEST)
    if channel in session.subscriptions or channel in session.subscribing:
        raise Refused(codes.ALREADY_SUBSCRIBED)
    if len(session.subscriptions) + len(session.subscribing) >= shared.client.channel_limit:
        raise Refused(codes.LIMIT_EXCEEDED)
    options = _options(session, channel)
    if why := shared.namespaces.why_invalid(channel):
        raise Refused(codes.BAD_REQUEST, f"{channel!r}: {why}")
    if request.delta not in DELTA_TYPES:
        raise Ended(codes.BAD_PROTOCOL, f"delta {request.delta[:16]!r}")
    session.subscribing[channel] = True

    def over(outcome: Any) -> Any:
        del session.subscribing[channel]
        return outcome

    if shared.logic is None or shared.logic.subscribing is None:
        subscribing = session.with_deadline(Deferred.fromCoroutine(_subscribed(session, request, options)))
    else:
        # What the team's code takes is not the hub's time.
        subscribing = Deferred.fromCoroutine(_subscribed_by_leave(session, request, options))
    return subscribing.addBoth(over)


async def _subscribed(
    session: CentrifugeSession, request: SubscribeRequest, options: ChannelOptions
) -> SubscribeResult | None:
    grant = await permit(session.shared, session, request, options)
    return await _entered(session, request, options, grant)


async def _subscribed_by_leave(
    session: CentrifugeSession, request: SubscribeRequest, options: ChannelOptions
) -> SubscribeResult | None:
    logic = session.shared.logic
    assert logic is not None and logic.subscribing is not None
    # A token that was given must be good; without one the team may let in whom the namespace keeps out.
    by_token = await _permitted(session, request, options) if request.token or request.type else None
    answer = logic.subscribing(session, request.channel)
    grant = await answer if isinstance(answer, Deferred) else answer
    if not session.is_alive:
        raise CancelledError  # that has ended it
    grant = grant or by_token or await _permitted(session, request, options)
    return await session.with_deadline(Deferred.fromCoroutine(_entered(session, request, options, grant)))


def _permitted(
    session: CentrifugeSession, request: SubscribeRequest, options: ChannelOptions
) -> Deferred[Grant]:
    return session.with_deadline(Deferred.fromCoroutine(permit(session.shared, session, request, options)))


async def _entered(
    session: CentrifugeSession, request: SubscribeRequest, options: ChannelOptions, grant: Grant
) -> SubscribeResult | None:
    shared = session.shared
    if request.tf:
        raise Refused(codes.BAD_REQUEST, "tags filters are not supported")
    arrival = await prepare(shared, session, request, options, grant)
    if not session.subscribing[request.channel]:
        arrival.abandon()
        raise Refused(codes.PERMISSION_DENIED, "the server has ended it before it began")
    subscription, result = arrival.settle()
    session.subscribed(subscription)
    announce_join(shared, subscription)
    return result


def _unsubscribe(session: CentrifugeSession, request: UnsubscribeRequest) -> Outcome:
    if not request.channel:
        raise Ended(codes.BAD_PROTOCOL, "no channel")
    subscription = session.subscriptions.get(request.channel)
    if subscription is not None:
        session.unsubscribe(subscription)
    elif request.channel in session.subscribing:  # by the server: those of the client have been waited for
        session.subscribing[request.channel] = False
    return UnsubscribeResult()


# --- publish --------------------------------------------------------------------------------------------


def _publish(session: CentrifugeSession, request: PublishRequest) -> Deferred[Outcome]:
    shared = session.shared
    channel, data = request.channel, request.data
    if not channel:
        raise Ended(codes.BAD_PROTOCOL, "no channel")
    options = shared.namespaces.options(channel)
    if not data and (options is None or options.publication_data_format != "binary"):
        raise Refused(codes.BAD_REQUEST)
    if options is None:
        raise _unknown(channel)
    if request.type:
        raise Refused(codes.BAD_REQUEST, "map publications are not supported")
    if shared.tables is not None and channel == TABLES_CHANNEL:
        raise Refused(codes.PERMISSION_DENIED, f"{channel} is the server's own")
    subscription = session.subscriptions.get(channel)
    if not (shared.client.insecure or may_publish(options, session.user, subscription is not None)):
        raise _not_allowed("allow_publish_for_client and its like", channel)
    format_ = _format(session, data, options.publication_data_format)
    logic = shared.logic
    if logic is not None and logic.publishing is not None:
        chosen = logic.publishing(session, channel, data, format_)
        if isinstance(chosen, Deferred):
            session.hold_back(channel)
            return chosen.addCallback(lambda value: _published_as(session, channel, options, value))
        return _published_as(session, channel, options, chosen)
    return _hand_over(session, channel, options, data, format_)


def _published_as(
    session: CentrifugeSession, channel: str, options: ChannelOptions, chosen: tuple[bytes, Format] | None
) -> Deferred[Outcome]:
    """Publish what the team's code has made of it; ``None``: nothing, which the client is not told."""
    return succeed(_PUBLISHED) if chosen is None else _hand_over(session, channel, options, *chosen)


def _hand_over(
    session: CentrifugeSession, channel: str, options: ChannelOptions, data: bytes, format_: Format
) -> Deferred[Outcome]:
    shared = session.shared
    subscription = session.subscriptions.get(channel)
    info = (
        subscription.info
        if subscription is not None
        else ClientInfo(session.user, session.client, session.conn_info)
    )
    taken = shared.hub.publish(
        channel,
        data,
        format_,
        0,  # the publisher gets it too, if it is subscribed
        PublishOptions(history=options.history, info=info, delta=options.delta_publish),
    )
    session.intake.hold(channel)
    return taken.addCallback(_published)


_PUBLISHED = PublishResult()


def _published(_: Position | None) -> Outcome:
    return _PUBLISHED


def _format(session: CentrifugeSession, data: bytes, wanted: str) -> Format:
    """What the data is.

    :raises Refused: it is not what the channel takes.
    """
    if session.codec.protocol == "json":
        is_json = True  # it was decoded as such
    else:
        try:
            # JSON on several lines must stay what it is for Protobuf clients.
            is_json = json.embeddable(data) == data
            if not is_json and wanted in ("json", "json_object"):
                return Format.BINARY
        except ProtocolError:
            is_json = False
    if (wanted in ("json", "json_object") and not is_json) or (
        wanted == "json_object" and data.lstrip()[:1] != b"{"
    ):
        raise Refused(codes.BAD_REQUEST)
    return Format.JSON if is_json else Format.BINARY


# --- asking ---------------------------------------------------------------------------------------------


def _presence(session: CentrifugeSession, request: PresenceRequest) -> Deferred[Outcome]:
    _check_presence(session, request.channel)
    asked = session.shared.hub.presence(request.channel)
    info_of: Any = json_info if session.codec.protocol == "json" else protobuf_info

    def told(present: dict[str, ClientInfo]) -> Outcome:
        return PresenceResult({client: info_of(info) for client, info in present.items()})

    return session.with_deadline(asked.addCallback(told))


def _presence_stats(session: CentrifugeSession, request: PresenceStatsRequest) -> Deferred[Outcome]:
    _check_presence(session, request.channel)

    def told(stats: PresenceStats) -> Outcome:
        return PresenceStatsResult(stats.num_clients, stats.num_users)

    return session.with_deadline(session.shared.hub.presence_stats(request.channel).addCallback(told))


def _check_presence(session: CentrifugeSession, channel: str) -> None:
    options = _options(session, channel)
    if not options.presence:
        raise Refused(codes.NOT_AVAILABLE)
    is_subscribed = channel in session.subscriptions
    if not (session.shared.client.insecure or may_see_presence(options, session.user, is_subscribed)):
        raise _not_allowed("allow_presence_for_client and its like", channel)


def _history(session: CentrifugeSession, request: HistoryRequest) -> Deferred[Outcome]:
    shared = session.shared
    channel, since = request.channel, request.since
    options = _options(session, channel)
    if options.history is None:
        raise Refused(codes.NOT_AVAILABLE)
    if not (
        shared.client.insecure or may_read_history(options, session.user, channel in session.subscriptions)
    ):
        raise _not_allowed("allow_history_for_client and its like", channel)
    if request.limit < -1 or (request.reverse and since is not None and since.offset == 0):
        raise Refused(codes.BAD_REQUEST)
    cap = shared.client.history_max_publication_limit
    limit = request.limit
    if cap and not 0 <= limit <= cap:
        limit = cap

    def told(stream: Stream) -> Outcome:
        position = stream.position
        if since is not None and not stream.continues(Position(since.epoch, since.offset)):
            raise Refused(codes.UNRECOVERABLE_POSITION)
        publications = publications_for(session.codec, _visible(session, channel, stream.publications))
        return HistoryResult(publications, position.epoch, position.offset)

    asked = shared.hub.history(
        channel,
        options.history,
        since=None if since is None else Position(since.epoch, since.offset),
        limit=limit,
        reverse=request.reverse,
    )
    return session.with_deadline(asked.addCallback(told))


def _visible(
    session: CentrifugeSession, channel: str, publications: Sequence[Publication]
) -> Sequence[Publication]:
    sight = session.shared.channels.sight_of(channel)
    subscription = session.subscriptions.get(channel)
    if subscription is not None:
        view = subscription.view
    else:
        view = None if sight is None else sight.view_of(session.number)
    return visible(publications, session.client, sight, view)


def _rpc(session: CentrifugeSession, request: RPCRequest) -> Deferred[Outcome] | Outcome:
    logic = session.shared.logic
    if logic is None:
        raise Refused(codes.NOT_AVAILABLE)

    def told(data: bytes) -> Outcome:
        carried = data_for(session.codec, data)
        if data and not carried:
            raise Refused(codes.INTERNAL_ERROR, f"{request.method} gives bytes that are no JSON")
        return RPCResult(carried)

    answer = logic.rpc(session, request.method, request.data)
    return answer.addCallback(told) if isinstance(answer, Deferred) else told(answer)


def _send(session: CentrifugeSession, request: SendRequest) -> Deferred[Outcome] | Outcome:
    logic = session.shared.logic
    if logic is None or logic.message is None:
        raise Ended(codes.NO_HANDLER, "a message, and no application to take it")
    answer: Deferred[Any] | None = logic.message(session, request.data)
    return answer


# --- tokens anew ----------------------------------------------------------------------------------------


def _refresh(session: CentrifugeSession, request: RefreshRequest) -> Deferred[Outcome]:
    if not request.token:
        raise Ended(codes.BAD_PROTOCOL, "a refresh without a token")
    return session.with_deadline(Deferred.fromCoroutine(_refreshed(session, request.token)))


async def _refreshed(session: CentrifugeSession, text: str) -> RefreshResult:
    shared = session.shared
    token = await verified_connection(shared, text, Ended(codes.CONNECTION_EXPIRED, "the new token, too"))
    if token.user != session.user:
        raise Ended(codes.INVALID_TOKEN, "the new token is for another user")
    if frozenset(token.subscriptions) != session.token_channels:
        raise Ended(codes.INSUFFICIENT_STATE, "the new token has other channels")
    session.expire_at = 0 if shared.client.insecure else token.expire_at or 0
    session.times.changed()
    ttl = shared.ttl(session.expire_at)
    return RefreshResult(client=session.client, version=shared.version, expires=bool(ttl), ttl=ttl)


def _sub_refresh(session: CentrifugeSession, request: SubRefreshRequest) -> Deferred[Outcome]:
    if request.type:
        raise Refused(codes.PERMISSION_DENIED, "shared-poll subscriptions are not supported")
    if request.channel and request.channel not in session.subscriptions:
        raise Refused(codes.PERMISSION_DENIED)
    if not request.token:
        raise Refused(codes.BAD_REQUEST)
    if request.channel and not session.subscriptions[request.channel].expire_at:
        raise Ended(codes.BAD_PROTOCOL, "the subscription does not expire")
    return session.with_deadline(Deferred.fromCoroutine(_sub_refreshed(session, request)))


async def _sub_refreshed(session: CentrifugeSession, request: SubRefreshRequest) -> SubRefreshResult:
    shared = session.shared
    if shared.subscription_tokens is None:
        raise Ended(codes.INVALID_TOKEN, "no key for subscription tokens is configured")
    try:
        token = await shared.subscription_tokens.verify_subscription(request.token)
    except TokenExpired as error:
        raise Ended(codes.SUBSCRIPTION_EXPIRED, str(error)) from None
    except TokenInvalid as error:
        raise Ended(codes.INVALID_TOKEN, str(error)) from None
    except JwksUnavailable as error:
        raise Refused(codes.INTERNAL_ERROR, str(error)) from None
    # Some SDKs leave the channel out; the token names it.
    channel = request.channel or token.channel
    subscription = session.subscriptions.get(channel)
    if subscription is None:
        raise Refused(codes.PERMISSION_DENIED)
    if not subscription.expire_at:
        raise Ended(codes.BAD_PROTOCOL, "the subscription does not expire")
    if token.channel != channel:
        raise Ended(codes.INVALID_TOKEN, "the new token is for another channel")
    if token.user != session.user:
        raise Ended(codes.INVALID_TOKEN, "the new token is for another user")
    if token.client and token.client != session.client:
        raise Ended(codes.INVALID_TOKEN, "the new token is for another client")
    subscription.expire_at = token.expire_at or 0
    session.times.changed()
    ttl = shared.ttl(subscription.expire_at)
    return SubRefreshResult(bool(ttl), ttl)


_COMMANDS: dict[
    type[msgspec.Struct] | type[None],
    Callable[[CentrifugeSession, Any], Deferred[Outcome] | Outcome],
] = {
    ConnectRequest: _connect,
    SubscribeRequest: _subscribe,
    UnsubscribeRequest: _unsubscribe,
    PublishRequest: _publish,
    PresenceRequest: _presence,
    PresenceStatsRequest: _presence_stats,
    HistoryRequest: _history,
    RPCRequest: _rpc,
    SendRequest: _send,
    RefreshRequest: _refresh,
    SubRefreshRequest: _sub_refresh,
}
