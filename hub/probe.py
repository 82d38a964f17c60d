"""Is the subscriber deaf? A connection that looks healthy may deliver nothing.

PING proves that the server answers, not that publications arrive: a demoted master, a wrong node or a
frozen server all have been seen to pass it. So a subscriber that was silent for ``probe_seconds`` is
probed with a publication to a channel of its own, over the command link. If nothing at all has arrived
after another ``probe_seconds`` the subscriber is cut, and connects again; a process that stood still
itself reads first what has come in the meantime.

Nobody notes when something arrives, since that would cost every message. It is looked ``LOOKS`` times in
``probe_seconds`` whether anything has, so silence is known as such by that much later at most.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from spread.hub.api import HubCounters
from spread.hub.errors import HubError
from spread.hub.link import GRACE_SECONDS, CommandProtocol, SubscriberProtocol
from spread.hub.reactor import Clock, Timer

__all__ = ["Probe", "probe_sender"]

LOOKS = 4
"""How often it is looked within ``probe_seconds``."""

EARLY_SECONDS = 0.001
"""A timer may fire this much before its time."""


class Probe:
    """Watches one subscriber connection from ``watch`` until ``stop``."""

    def __init__(
        self,
        clock: Clock,
        probe_seconds: float,
        send: Callable[[], Deferred[object] | None],
        counters: HubCounters,
    ) -> None:
        """
        :param send: publishes the probe; gives ``None`` while the command link is down, when nothing can be
            concluded from silence.
        """
        self._clock = clock
        self._seconds = probe_seconds
        self._send = send
        self._counters = counters
        self._timer: Timer | None = None
        self._received = -1
        self._deadline = 0.0  # until which something must arrive
        self._is_sent = False

    def watch(self, connection: SubscriberProtocol) -> None:
        """Watch this connection instead of the one before."""
        self.stop()
        self._again(connection)

    def stop(self) -> None:
        """Watch nothing. Idempotent."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        self._is_sent = False

    def _again(self, connection: SubscriberProtocol) -> None:
        self._received = connection.bytes_received
        self._deadline = self._clock.seconds() + self._seconds
        self._look_later(connection)

    def _look_later(self, connection: SubscriberProtocol) -> None:
        seconds, left = self._seconds / LOOKS, self._deadline - self._clock.seconds()
        if left > EARLY_SECONDS:
            seconds = min(seconds, left)
        self._timer = self._clock.callLater(seconds, self._look, connection)

    def _look(self, connection: SubscriberProtocol) -> None:
        self._timer = None
        if connection.bytes_received != self._received or connection.is_paused:
            self._is_sent = False
            self._again(connection)
        elif self._clock.seconds() < self._deadline - EARLY_SECONDS:
            self._look_later(connection)
        elif self._is_sent:
            self._timer = self._clock.callLater(
                min(GRACE_SECONDS, self._seconds / 4), self._judge, connection
            )
        else:
            sent = self._send()
            if sent is not None:
                self._is_sent = True
                self._deadline = self._clock.seconds() + self._seconds
                sent.addErrback(self._not_sent)
            self._look_later(connection)

    def _judge(self, connection: SubscriberProtocol) -> None:
        self._timer = None
        if self._is_sent and connection.bytes_received == self._received and not connection.is_paused:
            self._counters.deaf_links += 1
            connection.cut(f"deaf: a probe did not arrive within {self._seconds:g} s")
        else:
            self._is_sent = False
            self._again(connection)

    def _not_sent(self, failure: Failure) -> None:
        # The command link is the one in trouble, and is looked after by its own deadline.
        failure.trap(HubError)
        self._is_sent = False
        self._deadline = self._clock.seconds() + self._seconds


def probe_sender(
    connection: Callable[[], CommandProtocol | None],
    key: Callable[[], bytes],
    message: bytes,
    publish: bytes = b"PUBLISH",
) -> Callable[[], Deferred[object] | None]:
    """The usual ``send``: a PUBLISH over the command link, if it is up."""

    def send() -> Deferred[object] | None:
        commands = connection()
        return None if commands is None else commands.execute_command(publish, key(), message)

    return send
