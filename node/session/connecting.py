"""How a client gets in (section 4 of the protocol): who it is, and which channels it is in from the start.

1.  A token, if it sent one, decides alone.
2.  Else a trusted header (``client.user_id_http_header``) names the user.
3.  The team's code, if it has a say (``Logic.connecting``), may say otherwise of whoever came this far.
4.  Else it is anonymous, where that is allowed.
5.  Else it is refused with 3501, whose reason says what is missing: the one thing that everybody runs into
    first.

Server-side subscriptions come from the token, from the team's code, from the user's personal channel, and
from what the client says it was in before and may be in by itself. They are all prepared before the connect
reply is written, and settled in the turn in which it is.
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.python.failure import Failure

from spread.node import codes
from spread.node.auth.jwks import JwksUnavailable
from spread.node.auth.keys import TokenExpired, TokenInvalid
from spread.node.auth.permissions import may_subscribe
from spread.node.auth.tokens import ConnectionToken
from spread.node.encoders import data_for
from spread.node.session.centrifuge import CentrifugeSession
from spread.node.session.logic import Admitted, Logic
from spread.node.session.shared import Ended, Refused, Shared
from spread.node.session.subscribing import Arrival, Grant, announce_join, granted_by, prepare
from spread.node.session.subscription import Subscription
from spread.node.wire.messages import ConnectRequest, ConnectResult, SubscribeRequest, SubscribeResult

__all__ = ["connect", "verified_connection"]

NO_CREDENTIALS = codes.BAD_PROTOCOL.because("bad request: no credentials")


async def verified_connection(shared: Shared, token: str, expired: Exception) -> ConnectionToken:
    """What a connection token says.

    :param expired: raised if it has.
    :raises Refused: the keys cannot be had just now.
    :raises Ended: it is invalid.
    """
    if shared.tokens is None:
        raise Ended(codes.INVALID_TOKEN, "no key for tokens is configured (client.token)")
    try:
        return await shared.tokens.verify_connection(token)
    except TokenExpired as error:
        raise expired from error
    except TokenInvalid as error:
        raise Ended(codes.INVALID_TOKEN, str(error)) from None
    except JwksUnavailable as error:
        raise Refused(codes.INTERNAL_ERROR, str(error)) from None


async def connect(session: CentrifugeSession, request: ConnectRequest) -> ConnectResult:
    """Let a client in, or not. The team's code has its own time for that, and the hub its own.

    :raises Refused: with an error; the client may come again with another token, or later.
    :raises Ended: with a disconnect.
    :raises HubError: the hub is away.
    """
    shared = session.shared
    settings = shared.client
    token = None
    admitted: Admitted | None = None
    if request.token:
        refused = Refused(codes.TOKEN_EXPIRED, "the token has expired")
        verified = Deferred.fromCoroutine(verified_connection(shared, request.token, refused))
        token = await session.with_deadline(verified)
        if not token.user and settings.disallow_anonymous_connection_tokens:
            raise Ended(codes.NOT_PERMITTED, "the token has no user")
        session.user = token.user
        session.conn_info = token.b64info or token.info or b""
        session.token_channels = frozenset(token.subscriptions)
        if not settings.insecure:
            session.expire_at = token.expire_at or 0
    elif session.visit.user:
        session.user = session.visit.user
    if shared.logic is not None:
        admitted = await _admitted(session, shared.logic, request)
        if not session.is_alive:
            raise CancelledError  # that has ended it
    is_known = request.token or session.visit.user or admitted is not None
    if not (is_known or settings.allow_anonymous_connect_without_token or settings.insecure):
        why = "no token, and client.allow_anonymous_connect_without_token is off"
        raise Ended(NO_CREDENTIALS, why)
    if not shared.registry.connected(session):
        raise Ended(codes.CONNECTION_LIMIT, f"user {session.user!r} has {settings.user_connection_limit}")
    if session.user and settings.subscribe_to_user_personal_channel.single_connection:
        shared.registry.alone(session)
    wanted = _server_side(session, token, admitted)
    if request.subs:
        await _add_wishes(session, request, wanted)
    if len(wanted) > settings.channel_limit:
        raise Ended(codes.CHANNEL_LIMIT, f"{len(wanted)} server-side subscriptions")
    arrivals: list[Arrival] = []
    if wanted:
        preparing = Deferred.fromCoroutine(_prepare_all(session, request, wanted))
        arrivals = await session.with_deadline(preparing)
    return _settled(session, arrivals, b"" if admitted is None else admitted.data)


async def _admitted(session: CentrifugeSession, logic: Logic, request: ConnectRequest) -> Admitted | None:
    """What the team's code says of it; ``None``: nothing."""
    logic.arrived(session, request.data)
    if logic.connecting is None:
        return None
    answer = logic.connecting(session)
    admitted = await answer if isinstance(answer, Deferred) else answer
    if admitted is not None:
        session.user = admitted.user
        session.conn_info = admitted.info or session.conn_info
        session.expire_at = admitted.expire_at or session.expire_at
    return admitted


def _server_side(
    session: CentrifugeSession, token: ConnectionToken | None, admitted: Admitted | None
) -> dict[str, Grant]:
    """The channels that it is in from the start, whatever it asks for, and what it may have there."""
    shared = session.shared
    wanted = {name: granted_by(options) for name, options in (token.subscriptions if token else {}).items()}
    for name in () if admitted is None else admitted.channels:
        wanted.setdefault(name, Grant())
    if session.user and shared.client.subscribe_to_user_personal_channel.enabled:
        wanted.setdefault(shared.namespaces.personal_channel(session.user), Grant())
    return wanted


async def _add_wishes(session: CentrifugeSession, request: ConnectRequest, wanted: dict[str, Grant]) -> None:
    """Add the channels that it names and could come into by itself; the others are passed over.

    :raises Ended: one has no namespace; or the team's code ends the connection.
    """
    shared = session.shared
    names: list[str] = []
    for name in request.subs:
        if name in wanted:
            continue
        if shared.namespaces.options(name) is None:
            raise Ended(codes.BAD_PROTOCOL, f"unknown namespace of {name!r}")
        if not (shared.namespaces.is_private(name) or shared.namespaces.why_invalid(name)):
            names.append(name)
    logic = shared.logic
    if logic is None or logic.subscribing is None:
        wanted.update((name, Grant()) for name in names if _may_enter(session, name))
        return
    # Looked at before the team's code is asked of each.
    if len(wanted) + len(names) > shared.client.channel_limit:
        raise Ended(codes.CHANNEL_LIMIT, f"{len(wanted) + len(names)} channels are asked for")
    asking = [Deferred.fromCoroutine(_leave_for(session, logic, name)) for name in names]
    try:
        grants = await gatherResults(asking, consumeErrors=True)
    except FirstError as error:
        for one in asking:
            one.addErrback(lambda failure: None)
            one.cancel()
        raise _reason(error.subFailure) from None
    if not session.is_alive:
        raise CancelledError  # that has ended it
    wanted.update((name, grant) for name, grant in zip(names, grants, strict=True) if grant is not None)


async def _leave_for(session: CentrifugeSession, logic: Logic, name: str) -> Grant | None:
    """What the team's code, or else the namespace, grants it there; ``None``: it may not."""
    assert logic.subscribing is not None
    try:
        answer = logic.subscribing(session, name)
        grant = await answer if isinstance(answer, Deferred) else answer
    except Refused:
        return None
    return grant or (Grant() if _may_enter(session, name) else None)


def _may_enter(session: CentrifugeSession, name: str) -> bool:
    shared = session.shared
    options = shared.namespaces.options(name)
    assert options is not None
    return shared.client.insecure or may_subscribe(options, session.user, shared.namespaces.users_of(name))


async def _prepare_all(
    session: CentrifugeSession, request: ConnectRequest, wanted: dict[str, Grant]
) -> list[Arrival]:
    preparing: list[Deferred[Arrival]] = []
    arrivals: list[Arrival] = []
    shared = session.shared

    def prepared(arrival: Arrival) -> Arrival:
        arrivals.append(arrival)
        return arrival

    try:
        for name, grant in wanted.items():
            options = shared.namespaces.options(name)
            if options is None:
                raise Refused(codes.UNKNOWN_CHANNEL, f"unknown namespace of {name!r}")
            # What clients may type is no rule for what a backend grants, nor for users' personal channels.
            if not name or shared.namespaces.is_too_long(name):
                raise Refused(codes.BAD_REQUEST, f"{name!r} is no channel")
            known = request.subs.get(name) or SubscribeRequest()
            asked = SubscribeRequest(
                channel=name, recover=known.recover, epoch=known.epoch, offset=known.offset
            )
            one = Deferred.fromCoroutine(prepare(shared, session, asked, options, grant, is_server_side=True))
            preparing.append(one.addCallback(prepared))
        return await gatherResults(preparing, consumeErrors=True)
    except BaseException as error:
        for one in preparing:
            # Those that are not done yet abandon themselves when cancelled.
            one.addErrback(lambda failure: None)
            one.cancel()
        for arrival in arrivals:
            arrival.abandon()
        if isinstance(error, FirstError):
            raise _reason(error.subFailure) from None
        raise


def _reason(failure: Failure) -> BaseException:
    error = failure.value
    assert isinstance(error, BaseException)
    return error


def _settled(session: CentrifugeSession, arrivals: list[Arrival], data: bytes) -> ConnectResult:
    """In one turn: members of all channels, and the reply. The session writes it at once."""
    shared = session.shared
    subs: dict[str, SubscribeResult] = {}
    joined: list[Subscription] = []
    for arrival in arrivals:
        subscription, subs[arrival.name] = arrival.settle()
        session.subscribed(subscription)
        joined.append(subscription)
    for subscription in joined:
        announce_join(shared, subscription)
    settings = shared.client
    ttl = shared.ttl(session.expire_at)
    pings = settings.ping_interval > 0 and not session.visit.has_native_pings
    is_emulated = session.visit.is_emulated
    return ConnectResult(
        client=session.client,
        version=shared.version,
        expires=bool(ttl),
        ttl=ttl,
        data=data_for(session.codec, data),
        subs=subs,
        ping=max(1, round(settings.ping_interval)) if pings else 0,
        pong=pings and settings.pong_timeout > 0,
        session=session.secret if is_emulated else "",
        node=shared.node if is_emulated else "",
        time=int(shared.now() * 1000) if settings.connect_include_server_time else 0,
    )
