"""How a client comes into a channel (section 5 of the protocol).

    permit    may it? The table of the protocol, in its order; a token alone decides, if there is one
    prepare   the channel is heard, its history read if something is to be recovered, the client present
    settle    in one turn: what was missed is worked out, the client becomes a member, its reply is made

What is published between the last two is no matter: it either is in the reply or comes after it, and in one
of them only. Whoever prepares must settle or abandon.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.api import ClientInfo, History, Joined, Left, Position, Publication, Stream
from spread.hub.errors import HubError
from spread.node import codes
from spread.node.auth.jwks import JwksUnavailable
from spread.node.auth.keys import TokenExpired, TokenInvalid
from spread.node.auth.permissions import may_read_history, may_see_presence, may_subscribe
from spread.node.auth.tokens import Overrides, SubscriptionOptions
from spread.node.channel import Channel
from spread.node.codec import Codec
from spread.node.encoders import data_for, recovered_for
from spread.node.namespaces import ChannelOptions
from spread.node.recovery import Collector, newest, recovered
from spread.node.session.shared import Ended, Refused, Shared
from spread.node.session.subscription import Owner, Subscription
from spread.node.tables import TABLES_CHANNEL
from spread.node.views import visible
from spread.node.wire.messages import SubscribeRequest, SubscribeResult

__all__ = [
    "Arrival",
    "Grant",
    "Subscriber",
    "announce_join",
    "depart",
    "granted_by",
    "permit",
    "prepare",
    "refresh_presence",
]

PRESENCE_TTL_SECONDS = 60
"""How long a client is present without a refresh; more if ``client.presence_update_interval`` is long."""

FLAG_REJECT_UNRECOVERABLE = 2

CATCH_UP_SECONDS = 1.0
CATCH_UP_LOOK_SECONDS = 0.02
"""How long a client that is ahead of this shard is kept waiting until the channel has come to where it is,
and how often that is looked at. It comes from a quicker shard; what it has must not come again."""

NOT_PRESENT = Overrides(presence=False, join_leave=False, force_push_join_leave=False)
"""In a channel that every client of a game is in."""

log = Logger("spread.node.session.subscribing")


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What a client may have in a channel, and with what of its own."""

    overrides: Overrides = Overrides()
    info: bytes = b""
    """``chan_info``."""
    data: bytes = b""
    """For the subscribe result."""
    expire_at: int = 0
    """Seconds since 1970; 0: never."""


class Subscriber(Owner, Protocol):
    """The session, as subscribing needs it."""

    @property
    def client(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def conn_info(self) -> bytes: ...
    @property
    def codec(self) -> Codec: ...


def granted_by(options: SubscriptionOptions, expire_at: int = 0) -> Grant:
    """What a token's word on one channel grants."""
    return Grant(
        overrides=options.overrides,
        info=options.b64info or options.info or b"",
        data=options.b64data or options.data or b"",
        expire_at=expire_at,
    )


async def permit(
    shared: Shared, subscriber: Subscriber, request: SubscribeRequest, options: ChannelOptions
) -> Grant:
    """Rows 7 to 14 of the table: what a client may have that asks for a channel by itself.

    :raises Refused: it may not.
    :raises Ended: its token is another's.
    """
    if request.type:
        raise Refused(codes.PERMISSION_DENIED, "map and shared-poll subscriptions are not supported")
    namespaces = shared.namespaces
    if request.channel == TABLES_CHANNEL and shared.tables is not None:
        return Grant(overrides=NOT_PRESENT, data=shared.tables())
    if request.token:
        return await _permit_by_token(shared, subscriber, request)
    if namespaces.is_private(request.channel):
        raise Refused(codes.PERMISSION_DENIED, f"{request.channel!r} is private, and no token was given")
    limited_to = namespaces.users_of(request.channel)
    if may_subscribe(options, subscriber.user, limited_to) or shared.client.insecure:
        return Grant()
    if limited_to is not None:
        option = "allow_user_limited_channels"
    elif options.allow_subscribe_for_client:
        option = "allow_subscribe_for_anonymous"
    else:
        option = "allow_subscribe_for_client"
    if getattr(options, option):
        raise Refused(codes.PERMISSION_DENIED, f"{request.channel!r} is for other users")
    raise Refused(
        codes.PERMISSION_DENIED, f"no subscription token, and {option} is off for {request.channel!r}"
    )


async def _permit_by_token(shared: Shared, subscriber: Subscriber, request: SubscribeRequest) -> Grant:
    if shared.subscription_tokens is None:
        raise Refused(codes.PERMISSION_DENIED, "no key for subscription tokens is configured")
    try:
        token = await shared.subscription_tokens.verify_subscription(request.token)
    except TokenExpired as error:
        raise Refused(codes.TOKEN_EXPIRED, str(error)) from None
    except TokenInvalid as error:
        raise Refused(codes.PERMISSION_DENIED, str(error)) from None
    except JwksUnavailable as error:
        raise Refused(codes.INTERNAL_ERROR, str(error)) from None
    if token.channel != request.channel:
        raise Ended(codes.INVALID_TOKEN, "the subscription token is for another channel")
    if token.user != subscriber.user:
        raise Ended(codes.INVALID_TOKEN, "the subscription token is for another user")
    if token.client and token.client != subscriber.client:
        raise Ended(codes.INVALID_TOKEN, "the subscription token is for another client")
    return granted_by(token, token.expire_at or 0)


def _chosen(override: bool | None, option: bool) -> bool:
    return option if override is None else override


class Arrival:
    """A subscription that is prepared: heard, present, and not yet a member."""

    __slots__ = (
        "_channel",
        "_collector",
        "_grant",
        "_is_over",
        "_is_positioned",
        "_is_recoverable",
        "_is_recovering",
        "_is_server_side",
        "_options",
        "_request",
        "_shared",
        "_stream",
        "_subscriber",
        "info",
        "is_present",
    )

    def __init__(
        self,
        shared: Shared,
        subscriber: Subscriber,
        request: SubscribeRequest,
        options: ChannelOptions,
        grant: Grant,
        channel: Channel,
        is_server_side: bool,
    ) -> None:
        self._shared = shared
        self._subscriber = subscriber
        self._request = request
        self._options = options
        self._grant = grant
        self._channel = channel
        self._is_server_side = is_server_side
        self._collector: Collector | None = None
        self._stream: Stream | None = None
        self._is_over = False
        overrides = grant.overrides
        may_ask = options.history is not None and may_read_history(options, subscriber.user, False)
        has_positions = channel.position is not None
        self._is_recoverable = has_positions and (
            _chosen(overrides.force_recovery, options.force_recovery)
            or (request.recoverable and (options.allow_recovery or may_ask or shared.client.insecure))
        )
        self._is_positioned = self._is_recoverable or (
            has_positions
            and (
                _chosen(overrides.force_positioning, options.force_positioning)
                or (request.positioned and (options.allow_positioning or may_ask or shared.client.insecure))
            )
        )
        self._is_recovering = self._is_recoverable and (
            request.recover or (self._is_cache and options.auto_cache_recovery)
        )
        self.is_present = _chosen(overrides.presence, options.presence)
        self.info = ClientInfo(subscriber.user, subscriber.client, subscriber.conn_info, grant.info)

    @property
    def _is_cache(self) -> bool:
        return self._options.force_recovery_mode == "cache"

    @property
    def name(self) -> str:
        """That of the channel."""
        return self._channel.name

    async def read(self) -> None:
        """What there is to read and to write before it can be settled."""
        shared = self._shared
        if self._is_recovering and self._options.history is not None:
            limit = shared.client.recovery_max_publication_limit
            known = Position(self._request.epoch, self._request.offset)
            if self._is_behind(known):
                await self._catch_up(known, self._options.history)
            self._collector = self._channel.collect(limit)
            self._stream = await shared.hub.history(
                self._channel.name,
                self._options.history,
                since=None if self._is_cache else known,
                limit=1 if self._is_cache else limit,
                reverse=self._is_cache,
            )
        if self.is_present:
            await shared.hub.add_presence(self._channel.name, self.info, presence_ttl(shared))

    def _is_behind(self, known: Position) -> bool:
        at = self._channel.position
        return at is not None and at.epoch == known.epoch and at.offset < known.offset

    async def _catch_up(self, known: Position, history: History) -> None:
        shared = self._shared
        top = (await shared.hub.history(self._channel.name, history)).position
        if top.epoch != known.epoch or top.offset < known.offset:
            return  # nobody has been where it says it is
        until = shared.clock.seconds() + CATCH_UP_SECONDS
        while self._is_behind(known) and shared.clock.seconds() < until:
            await deferLater(cast(Any, shared.clock), CATCH_UP_LOOK_SECONDS)

    def settle(self) -> tuple[Subscription, SubscribeResult]:
        """Make the client a member. Its reply must be written in the same turn.

        :raises Refused: it wants no subscription that does not recover. Nothing is left behind, as with any
            other failure.
        """
        try:
            return self._settle()
        except BaseException:
            self.abandon()
            raise

    def _settle(self) -> tuple[Subscription, SubscribeResult]:
        request, grant, options, channel = self._request, self._grant, self._options, self._channel
        view = channel.view_of(self._subscriber.number)
        position = channel.position or Position("", 0)
        missed = self._missed(position) if self._is_recovering else None
        if request.recover and self._is_recovering and missed is None and self._rejects_holes:
            raise Refused(codes.UNRECOVERABLE_POSITION)
        codec = self._subscriber.codec
        may_differ = self._is_positioned and channel.takes_delta
        if may_differ and request.delta in options.allowed_delta_types and codec.full is not None:
            codec = codec.full
        overrides = grant.overrides
        joins = _chosen(overrides.join_leave, options.join_leave)
        subscription = Subscription(
            self._subscriber,
            channel,
            codec,
            self.info,
            is_server_side=self._is_server_side,
            is_positioned=self._is_positioned,
            is_present=self.is_present,
            announces=joins,
            hears_joins=_chosen(overrides.force_push_join_leave, options.force_push_join_leave)
            or (request.join_leave and joins and self._may_see_presence()),
            expire_at=grant.expire_at,
            view=view,
        )
        given = visible(missed or (), self._subscriber.client, channel.sight, view)
        ttl = self._shared.ttl(grant.expire_at)
        is_stream = missed is not None and not self._is_cache
        result = SubscribeResult(
            expires=bool(ttl),
            ttl=ttl,
            recoverable=self._is_recoverable,
            positioned=self._is_positioned,
            epoch=position.epoch if self._is_positioned else "",
            offset=(request.offset if is_stream and given else position.offset) if self._is_positioned else 0,
            was_recovering=self._is_recovering and request.recover,
            # The newest one is not for it: then it has no state from here.
            recovered=missed is not None and (is_stream or bool(given) or not missed),
            publications=recovered_for(codec, given),
            data=data_for(codec, grant.data),
            delta=codec.is_delta,
        )
        if given and codec.is_delta:
            channel.add_with_base(subscription, given[-1])
        else:
            channel.add(subscription)
        self._end()
        return subscription, result

    @property
    def _rejects_holes(self) -> bool:
        return bool(self._request.flag & FLAG_REJECT_UNRECOVERABLE)

    def _missed(self, now: Position) -> list[Publication] | None:
        stream, collector = self._stream, self._collector
        if stream is None or collector is None:
            return None
        known = Position(self._request.epoch, self._request.offset)
        collected = None if collector.is_over else collector.publications
        if self._is_cache:
            return newest(known, stream, collected, now)
        limit = self._shared.client.recovery_max_publication_limit
        return recovered(known, stream, collected, now, limit)

    def _may_see_presence(self) -> bool:
        return self._shared.client.insecure or may_see_presence(self._options, self._subscriber.user, True)

    def abandon(self) -> None:
        """It comes to nothing. Idempotent."""
        if self._is_over:
            return
        self._end()
        if self.is_present:
            _leave_presence(self._shared, self._channel.name, self._subscriber.client)

    def _end(self) -> None:
        self._is_over = True
        if self._collector is not None:
            self._channel.stop_collecting(self._collector)
        self._shared.channels.release(self._channel)


async def prepare(
    shared: Shared,
    subscriber: Subscriber,
    request: SubscribeRequest,
    options: ChannelOptions,
    grant: Grant,
    *,
    is_server_side: bool = False,
) -> Arrival:
    """Have the channel heard, read what must be read, be present.

    :raises HubError: the hub is away, or refuses the channel. Nothing is left behind.
    """
    channel = await shared.channels.hold(request.channel, options.history)
    arrival = Arrival(shared, subscriber, request, options, grant, channel, is_server_side)
    try:
        await arrival.read()
    except BaseException:  # cancelled, too
        arrival.abandon()
        raise
    return arrival


def announce_join(shared: Shared, subscription: Subscription) -> None:
    """Tell the channel of a new member, if that is told; after its reply was written."""
    if subscription.announces:
        told = shared.hub.announce(subscription.channel.name, Joined(subscription.info))
        told.addErrback(_not_told, "a join", subscription.channel.name)


def depart(shared: Shared, subscription: Subscription) -> None:
    """Take a client out of a channel; presence and the others are told."""
    channel = subscription.channel
    shared.channels.leave(subscription, channel)
    if subscription.is_present:
        _leave_presence(shared, channel.name, subscription.info.client)
    if subscription.announces:
        told = shared.hub.announce(channel.name, Left(subscription.info))
        told.addErrback(_not_told, "a leave", channel.name)


def refresh_presence(shared: Shared, subscription: Subscription) -> None:
    """It is still there."""
    name = subscription.channel.name
    told: Deferred[None] = shared.hub.add_presence(name, subscription.info, presence_ttl(shared))
    told.addErrback(_not_told, "a presence", name)


def presence_ttl(shared: Shared) -> int:
    """Seconds, so that one refresh may fail."""
    return max(PRESENCE_TTL_SECONDS, int(shared.client.presence_update_interval * 2.2))


def _leave_presence(shared: Shared, channel: str, client: str) -> None:
    # If this fails the hub does it later.
    shared.hub.remove_presence(channel, client).addErrback(_not_told, "an absence", channel)


def _not_told(failure: Failure, what: str, channel: str) -> None:
    failure.trap(HubError)
    # Counted with the links that are away; a line for each would be a flood.
    log.debug("{what} of {channel} was lost: {why}", what=what, channel=channel, why=failure.value)
