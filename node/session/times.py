"""What comes with time in the life of one session: stale, pings and pongs, expiries, presence.

All of it hangs on the shard's one wheel, in which a session has one entry at a time: the next thing that is
due. An entry that was put there before something sooner came up does nothing when its time comes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from spread.node import codes
from spread.node.session.intake import Intake
from spread.node.session.shared import Shared
from spread.node.session.subscribing import refresh_presence
from spread.node.session.subscription import Subscription

__all__ = ["HELD_UP_SECONDS", "Times"]

HELD_UP_SECONDS = 0.75
"""What comes so much too late, three ticks of the wheel, was held up, by the team's code or a machine that
stood still: the shard has not read its clients meanwhile, and must not say that they were silent."""


class Clocked(Protocol):
    """The session, as its times need it."""

    expire_at: int
    subscriptions: dict[str, Subscription]

    @property
    def shared(self) -> Shared: ...
    @property
    def is_alive(self) -> bool: ...
    @property
    def is_connected(self) -> bool: ...
    @property
    def intake(self) -> Intake: ...
    def end(self, disconnect: codes.Disconnect) -> None: ...
    def note(self, what: str, why: str) -> None: ...
    def ping(self) -> None: ...
    def unsubscribe(self, subscription: Subscription, why: codes.Unsubscribe | None = None) -> None: ...


class Times:
    """See ``wheel.Timed``. Times are those of the reactor, but for expiries, which are of the day."""

    __slots__ = ("_ping_at", "_pong_by", "_present_at", "_session", "_wheel_at")

    def __init__(self, session: Clocked) -> None:
        self._session = session
        self._ping_at = self._pong_by = self._present_at = math.inf
        self._wheel_at = math.inf
        shared = session.shared
        self._wake_by(shared.clock.seconds() + shared.client.stale_close_delay)

    def connected(self, has_pings: bool) -> None:
        """Pings begin, and the refreshing of presence."""
        shared = self._session.shared
        now = shared.clock.seconds()
        # Somewhere in the second half of the interval, so that those who came together do not do
        # everything together for ever.
        share = 0.5 + shared.random() / 2
        if has_pings:
            self._ping_at = now + shared.client.ping_interval * share
        self._present_at = now + shared.client.presence_update_interval * share
        self.changed()

    def ponged(self) -> None:
        """The client has answered; also if nobody asked."""
        self._pong_by = math.inf

    def changed(self) -> None:
        """Something expires at another time now."""
        self._wake_by(self._next_due())

    def due(self, now: float) -> None:
        """See ``wheel.Timed``."""
        session = self._session
        if now < self._wheel_at or not session.is_alive:
            return
        self._wheel_at = math.inf
        if not session.is_connected:
            session.note("3502 stale", "it has not connected in time")
            session.end(codes.STALE)
            return
        client = session.shared.client
        if self._pong_by <= now:
            if session.intake.was_open() and now - self._pong_by < HELD_UP_SECONDS:
                session.end(codes.NO_PONG)
                return
            # Its answer may be behind what was not read, or there and not looked at yet.
            self._pong_by = now + client.pong_timeout
        self._check_expiry()
        if not session.is_alive:
            return
        if self._ping_at <= now:
            session.ping()
            self._ping_at = now + client.ping_interval
            if client.pong_timeout > 0:
                self._pong_by = now + client.pong_timeout
        if self._present_at <= now:
            self._present_at = now + client.presence_update_interval
            for subscription in session.subscriptions.values():
                if subscription.is_present:
                    refresh_presence(session.shared, subscription)
        self.changed()

    # -- inside ------------------------------------------------------------------------------------------

    def _wake_by(self, seconds: float) -> None:
        if seconds < self._wheel_at:
            self._wheel_at = seconds
            self._session.shared.wheel.at(seconds, self)

    def _next_due(self) -> float:
        session = self._session
        due = min(self._ping_at, self._pong_by, self._present_at)
        expiry = _expiry(session, session.subscriptions)
        if expiry != math.inf:
            shared = session.shared
            due = min(due, shared.clock.seconds() + max(0.0, expiry - shared.now()))
        return due

    def _check_expiry(self) -> None:
        session = self._session
        shared = session.shared
        now = shared.now()
        if _expiry(session, session.subscriptions) > now:
            return
        if session.expire_at and session.expire_at + shared.client.expired_close_delay <= now:
            session.end(codes.CONNECTION_EXPIRED)
            return
        for subscription in list(session.subscriptions.values()):
            expire_at = subscription.expire_at
            if expire_at and expire_at + shared.client.expired_sub_close_delay <= now:
                if subscription.is_server_side:
                    session.end(codes.SUBSCRIPTION_EXPIRED)
                    return
                session.unsubscribe(subscription, codes.UNSUBSCRIBE_EXPIRED)


def _expiry(session: Clocked, subscriptions: Mapping[str, Subscription]) -> float:
    """When the connection or the first of its subscriptions is closed for its expiry; infinite: never."""
    client = session.shared.client
    first = session.expire_at + client.expired_close_delay if session.expire_at else math.inf
    for subscription in subscriptions.values():
        if subscription.expire_at:
            first = min(first, subscription.expire_at + client.expired_sub_close_delay)
    return first
