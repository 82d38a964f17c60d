"""One subscription of a client: subscribed again after every interruption, from where it was.

States, and what moves between them::

    UNSUBSCRIBED ─ subscribe() ─▶ SUBSCRIBING ─ reply ─▶ SUBSCRIBED
         ▲                          │      ▲                │  │
         ├─ unsubscribe(), refusal ─┘      └─ lost, ≥ 2500 ─┘  │
         └─ unsubscribe(), pushed code < 2500 ─────────────────┘

A subscription that is SUBSCRIBING while the client has no connection waits for one. The position (epoch and
offset) is that of the last publication that the application was given, so that a recovery begins after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar, cast

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from spread.client import codes
from spread.client.backoff import FullJitter
from spread.client.codes import ErrorCode, Reason, resubscribes
from spread.client.connection import Timer, cancel
from spread.client.errors import (
    BadServer,
    ClientError,
    ConnectionEnded,
    NotConnected,
    NotSubscribed,
    Refused,
    TimedOut,
    TokenFailed,
    TooMany,
    Unauthorized,
)
from spread.client.events import Hook, Subscribed, Subscribing, Unsubscribed, log_failure
from spread.client.link import Link
from spread.client.renewal import Renewal
from spread.client.tokens import GivenToken, TokenSource
from spread.node.wire import delta
from spread.node.wire.messages import (
    ClientInfo,
    Event,
    HistoryRequest,
    HistoryResult,
    Join,
    Leave,
    PresenceRequest,
    PresenceResult,
    PresenceStatsRequest,
    PresenceStatsResult,
    ProtocolError,
    Publication,
    PublishRequest,
    PublishResult,
    RefreshResult,
    Request,
    Result,
    StreamPosition,
    SubRefreshRequest,
    SubRefreshResult,
    SubscribeRequest,
    SubscribeResult,
    Unsubscribe,
    UnsubscribeRequest,
    UnsubscribeResult,
)

__all__ = ["MOVES", "Subscription", "SubscriptionOptions", "SubscriptionState"]

REFRESH_RETRY_SECONDS = 10.0
MAX_WAITING = 1000
"""Deferreds that wait for one subscription."""

R = TypeVar("R", bound=Result)


class SubscriptionState(Enum):
    """What a subscription is doing."""

    UNSUBSCRIBED = "unsubscribed"
    SUBSCRIBING = "subscribing"
    """Asking, waiting for a connection, or waiting for the next try."""
    SUBSCRIBED = "subscribed"


State = SubscriptionState

MOVES: dict[State, frozenset[State]] = {
    State.UNSUBSCRIBED: frozenset({State.SUBSCRIBING}),
    State.SUBSCRIBING: frozenset({State.SUBSCRIBED, State.UNSUBSCRIBED}),
    State.SUBSCRIBED: frozenset({State.SUBSCRIBING, State.UNSUBSCRIBED}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionOptions:
    """What is asked of the server."""

    data: bytes = b""
    positioned: bool = False
    recoverable: bool = False
    join_leave: bool = False
    delta: str = ""
    since: StreamPosition | None = None


class Subscription:
    """Made by ``Client.new_subscription``. Everything is called on the reactor's thread."""

    def __init__(
        self,
        link: Link,
        channel: str,
        token: str,
        get_token: Callable[[str], GivenToken] | None,
        options: SubscriptionOptions,
        jitter: FullJitter,
    ) -> None:
        self.channel = channel
        self.on_subscribing: Hook[[Subscribing]] = Hook()
        self.on_subscribed: Hook[[Subscribed]] = Hook()
        self.on_unsubscribed: Hook[[Unsubscribed]] = Hook()
        self.on_publication: Hook[[Publication]] = Hook()
        self.on_join: Hook[[ClientInfo]] = Hook()
        self.on_leave: Hook[[ClientInfo]] = Hook()
        self.on_error: Hook[[ClientError]] = Hook()
        """What went wrong and will be tried again."""
        self._state = State.UNSUBSCRIBED
        self._moves = 0
        self._reason = Reason(0, f"not subscribed to {channel}")
        """Why it is UNSUBSCRIBED."""
        self._link = link
        self._token = token
        self._options = options
        self._jitter = jitter
        self._tokens = None if get_token is None else TokenSource(link.clock, lambda: get_token(channel))
        self._renewal = Renewal(
            link.clock,
            self._tokens,
            self._send_refresh,
            ended=self._refused_for_good,
            failed=self.on_error.fire,
            error_code=ErrorCode.SUBSCRIPTION_REFRESH_TOKEN,
            retry_seconds=REFRESH_RETRY_SECONDS,
            fraction=jitter.fraction,
        )
        since = options.since or StreamPosition()
        self._recover = options.since is not None
        self._offset, self._epoch = since.offset, since.epoch
        self._wants_delta = bool(options.delta)
        self._has_delta = False
        """Deltas were agreed on for this subscription."""
        self._base: bytes | None = None
        """The payload that the next patch is for."""
        self._asked: Deferred[SubscribeResult] | None = None
        self._retry: Timer | None = None
        self._subscribed = Subscribed(channel)
        self._waiting: list[Deferred[Subscribed]] = []
        self._is_removed = False
        self._lost_move = 0

    @property
    def state(self) -> SubscriptionState:
        return self._state

    @property
    def position(self) -> StreamPosition | None:
        """Of the last publication; None if the server keeps no history, or nothing is known yet."""
        return StreamPosition(self._offset, self._epoch) if self._recover else None

    # What the application asks.

    def subscribe(self) -> Deferred[Subscribed]:
        """Subscribe, and stay subscribed. Fires when that is so for the first time.

        Fails with ``NotSubscribed`` when it is given up: the server said no, ``unsubscribe`` was called,
        or the subscription was removed from its client.
        """
        if self._is_removed:
            return fail(NotSubscribed(f"the subscription to {self.channel} was removed"))
        if self._state is State.UNSUBSCRIBED:
            move = self._enter(State.SUBSCRIBING)
            self._jitter.succeeded()
            self._tell_subscribing(codes.SUBSCRIBE_CALLED)
            if move == self._moves:
                self._attempt()
        return self.ready()

    def unsubscribe(self) -> Deferred[None]:
        """Leave the channel. Fires when the server knows, or has ended the connection; never fails."""
        return self._unsubscribe(codes.UNSUBSCRIBE_CALLED)

    def ready(self) -> Deferred[Subscribed]:
        """Fires as soon as it is subscribed; fails with ``NotSubscribed`` if nobody tries any more."""
        if self._state is State.SUBSCRIBED:
            return succeed(self._subscribed)
        if self._state is State.UNSUBSCRIBED:
            return fail(self._not_subscribed())
        if len(self._waiting) >= MAX_WAITING:
            return fail(TooMany(f"{MAX_WAITING} wait for the subscription to {self.channel}"))
        waiting: Deferred[Subscribed] = Deferred(self._waits_no_more)
        self._waiting.append(waiting)
        return waiting

    def publish(self, data: object) -> Deferred[None]:
        """As ``Client.publish``, once it is subscribed."""
        request = PublishRequest(self.channel, self._link.settings.format.payload(data))
        return self._ask(request, PublishResult).addCallback(lambda _: None)

    def history(
        self, *, limit: int = 0, since: StreamPosition | None = None, reverse: bool = False
    ) -> Deferred[HistoryResult]:
        """As ``Client.history``, once it is subscribed."""
        return self._ask(HistoryRequest(self.channel, limit, since, reverse), HistoryResult)

    def presence(self) -> Deferred[dict[str, ClientInfo]]:
        """As ``Client.presence``, once it is subscribed."""
        asked = self._ask(PresenceRequest(self.channel), PresenceResult)
        return asked.addCallback(lambda result: result.presence)

    def presence_stats(self) -> Deferred[PresenceStatsResult]:
        """As ``Client.presence_stats``, once it is subscribed."""
        return self._ask(PresenceStatsRequest(self.channel), PresenceStatsResult)

    # What the client tells.

    def link_made(self) -> None:
        """The client is connected."""
        if self._state is State.SUBSCRIBING:
            self._attempt()

    def link_lost(self) -> bool:
        """The client is not connected any more; gives whether there is something to tell."""
        is_event = self._state is State.SUBSCRIBED
        self._stop()
        if is_event:
            self._lost_move = self._enter(State.SUBSCRIBING)
        return is_event

    def tell_link_lost(self) -> None:
        """Tell the application, unless it has done something else meanwhile."""
        if self._lost_move == self._moves:
            self._tell_subscribing(codes.TRANSPORT_CLOSED)

    def pushed(self, event: Event) -> None:
        """Something was pushed for the channel."""
        if isinstance(event, Unsubscribe):
            self._ended_by_server(Reason(event.code, event.reason))
        elif self._state is not State.SUBSCRIBED:
            return
        elif isinstance(event, Publication):
            self._published(event)
        elif isinstance(event, Join):
            self.on_join.fire(event.info)
        elif isinstance(event, Leave):
            self.on_leave.fire(event.info)

    def invalidate(self) -> None:
        """The server has declared token and position void."""
        if self._tokens is not None:
            self._token = ""
        self._offset, self._epoch = 0, "_"  # an epoch that no server has: not recovered, and the app is told
        self._base = None

    def remove(self, reason: Reason) -> Deferred[None]:
        """Unsubscribe, for good."""
        self._is_removed = True
        return self._unsubscribe(reason)

    # States.

    def _enter(self, state: State) -> int:
        """Gives the number of the move: while it is the last one, nobody has meddled."""
        if state not in MOVES[self._state]:
            raise RuntimeError(f"a subscription cannot go from {self._state.value} to {state.value}")
        self._state = state
        self._moves += 1
        return self._moves

    def _not_subscribed(self) -> NotSubscribed:
        return NotSubscribed(self._reason.text, self._reason.code or None)

    def _stop(self) -> None:
        """Nothing is under way any more."""
        if self._retry is not None:
            cancel(self._retry)
            self._retry = None
        self._renewal.cancel()  # which also asks for no token any more
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.cancel()

    def _tell_subscribing(self, reason: Reason) -> None:
        self.on_subscribing.fire(Subscribing(self.channel, reason.code, reason.text))

    def _again(self, reason: Reason) -> None:
        """Subscribe anew, at once."""
        self._stop()
        move = self._enter(State.SUBSCRIBING)
        self._tell_subscribing(reason)
        if move == self._moves:
            self._attempt()

    def _end(self, reason: Reason) -> None:
        self._stop()
        self._enter(State.UNSUBSCRIBED)
        self._reason = reason
        self._base = None
        waiting, self._waiting = self._waiting, []
        self.on_unsubscribed.fire(Unsubscribed(self.channel, reason.code, reason.text))
        for each in waiting:
            if not each.called:
                each.errback(self._not_subscribed())

    def _ended_by_server(self, reason: Reason) -> None:
        if reason.code == codes.UNSUBSCRIBED_STATE_INVALIDATED:
            self.invalidate()
        if not resubscribes(reason.code):
            if self._state is not State.UNSUBSCRIBED:
                self._end(reason)
        elif self._state is State.SUBSCRIBED:
            self._again(reason)

    def _unsubscribe(self, reason: Reason) -> Deferred[None]:
        if self._state is State.UNSUBSCRIBED:
            return succeed(None)
        told = self._tell_server()  # before the event, in which the application may subscribe again
        self._end(reason)
        return told

    def _tell_server(self) -> Deferred[None]:
        """Take the subscription back."""

        def untold(reason: Failure) -> None:
            # Otherwise the server may go on, and would refuse a later subscription as the second one.
            if not isinstance(reason.value, (ConnectionEnded, NotConnected)):
                self._link.reconnect(codes.UNSUBSCRIBE_ERROR)

        told = self._link.ask(UnsubscribeRequest(self.channel), UnsubscribeResult)
        return told.addCallbacks(lambda _: None, untold).addErrback(log_failure)

    # One attempt.

    def _attempt(self) -> None:
        self._retry = None
        if not self._link.is_connected or self._asked is not None:
            return
        if self._tokens is None or self._token:
            self._send()
        elif not self._tokens.is_asked:
            self._tokens.ask(self._got_token, self._got_no_token)

    def _got_token(self, token: str) -> None:
        if not token:
            self._end(codes.UNAUTHORIZED)
            return
        self._token = token
        self._send()

    def _got_no_token(self, cause: BaseException) -> None:
        if isinstance(cause, Unauthorized):
            self._end(codes.UNAUTHORIZED)
        else:
            self._try_again(TokenFailed(ErrorCode.SUBSCRIBE_TOKEN, cause))

    def _send(self) -> None:
        self._asked = asked = self._link.ask(self.request(), SubscribeResult)
        asked.addCallbacks(self._answered, self._refused, callbackArgs=(asked,), errbackArgs=(asked,))
        asked.addErrback(log_failure)

    def request(self) -> SubscribeRequest:
        """What the server would be asked now."""
        options = self._options
        return SubscribeRequest(
            channel=self.channel,
            token=self._token,
            recover=self._recover,
            epoch=self._epoch if self._recover else "",
            offset=self._offset if self._recover else 0,
            data=options.data,
            positioned=options.positioned,
            recoverable=options.recoverable,
            join_leave=options.join_leave,
            delta=options.delta if self._wants_delta else "",
        )

    def _try_again(self, error: ClientError) -> None:
        self._retry = self._link.clock.callLater(self._jitter.next_seconds(), self._attempt)
        self.on_error.fire(error)

    def _refused(self, reason: Failure, asked: Deferred[SubscribeResult]) -> None:
        error = reason.value
        if self._asked is not asked:
            return
        self._asked = None
        if isinstance(error, (ConnectionEnded, NotConnected)):
            return  # the next connection will ask again
        if isinstance(error, TimedOut):
            # The server may have subscribed us, and would refuse a second time: only a new connection helps.
            move = self._moves
            self.on_error.fire(error)
            if move == self._moves:
                self._link.reconnect(codes.SUBSCRIBE_TIMEOUT)
        elif isinstance(error, Refused) and error.code == codes.TOKEN_EXPIRED:
            self._expired(error)
        elif isinstance(error, TooMany) or (isinstance(error, Refused) and is_temporary(error)):
            self._try_again(error)
        elif isinstance(error, Refused):
            self._end(Reason(error.code, error.text))
        else:
            self._end(Reason(ErrorCode.SUBSCRIBE, str(error)))

    def _expired(self, error: Refused) -> None:
        if self._tokens is not None:
            self._token = ""
            self._try_again(error)
            return
        move = self._moves
        self.on_error.fire(error)
        if move == self._moves:
            self._end(codes.UNAUTHORIZED)

    def _answered(self, result: SubscribeResult, asked: Deferred[SubscribeResult]) -> None:
        if self._asked is not asked:
            return
        self._asked = None
        move = self._enter(State.SUBSCRIBED)
        self._jitter.succeeded()
        if result.recoverable:
            self._recover = True
            self._offset, self._epoch = result.offset, result.epoch
        self._has_delta = result.delta and self._wants_delta
        self._base = None
        self._renewal.granted(result.expires, result.ttl)
        self._subscribed = event = subscribed_event(self.channel, result)
        self.on_subscribed.fire(event)
        for publication in result.publications:
            if move != self._moves:
                break
            self._published(publication)
        if move == self._moves:
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                if not each.called:
                    each.callback(event)

    # Publications.

    def _published(self, publication: Publication) -> None:
        if self._has_delta:
            try:
                data = self._whole(publication)
            except ProtocolError as error:
                self._bad_delta(error)
                return
            self._base = data
            publication = msgspec.structs.replace(publication, data=data, delta=False)
        move = self._moves
        self.on_publication.fire(publication)
        if publication.offset and move == self._moves:
            self._offset = publication.offset
            if publication.epoch:  # told to those who have subscribed to an empty stream
                self._epoch = publication.epoch

    def _whole(self, publication: Publication) -> bytes:
        settings = self._link.settings
        data = settings.format.delta_data(publication.data)
        if not publication.delta:
            return data
        if self._base is None:
            raise ProtocolError("a difference to nothing")
        return delta.apply(self._base, data, settings.frame_max_bytes)

    def _bad_delta(self, error: ProtocolError) -> None:
        """Nothing after it can be understood either: begin again where it went wrong, without deltas."""
        self._wants_delta = False
        move = self._moves
        self.on_error.fire(BadServer(error.reason, ErrorCode.BAD_DELTA))
        if move == self._moves:
            self._tell_server()
            self._again(codes.BAD_DELTA)

    # The rest.

    def _ask(self, request: Request, expected: type[R]) -> Deferred[R]:
        if self._state is State.SUBSCRIBED:
            return self._link.ask(request, expected)
        ready = self.ready()
        ready.addTimeout(self._link.settings.timeout_seconds, cast(IReactorTime, self._link.clock), in_time)
        return ready.addCallback(lambda _: self._link.ask(request, expected))

    def _waits_no_more(self, waiting: Deferred[Subscribed]) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)

    def _send_refresh(self, token: str) -> Deferred[RefreshResult | SubRefreshResult]:
        self._token = token
        sent = self._link.ask(SubRefreshRequest(self.channel, token), SubRefreshResult)
        return cast(Deferred[RefreshResult | SubRefreshResult], sent)

    def _refused_for_good(self, reason: Reason) -> None:
        self._unsubscribe(reason)


def is_temporary(error: Refused) -> bool:
    """The same request may succeed later."""
    return error.temporary or error.code < 100


def in_time(value: object, seconds: float) -> object:
    """For ``addTimeout``: a ``TimedOut`` instead of ``CancelledError``."""
    if isinstance(value, Failure):
        raise TimedOut(f"not within {seconds:g} s")
    return value


def subscribed_event(channel: str, result: SubscribeResult) -> Subscribed:
    """What the application is told."""
    has_position = result.positioned or result.recoverable
    return Subscribed(
        channel,
        recoverable=result.recoverable,
        positioned=result.positioned,
        position=StreamPosition(result.offset, result.epoch) if has_position else None,
        was_recovering=result.was_recovering,
        recovered=result.recovered,
        data=result.data,
    )
