"""Is the subscriber deaf? A connection that looks healthy may deliver nothing.

PING proves that the server answers, not that publications arrive: a demoted master, a wrong node or a
frozen server all have been seen to pass it. So a subscriber that was silent for ``probe_seconds`` is
probed with a publication to a channel of its own, over the command link. If nothing at all has arrived
after another ``probe_seconds`` the subscriber is cut, and connects again; a process that stood still
itself reads first what has come in the meantime.
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
        self._timer = self._clock.callLater(self._seconds, self._check, connection)

    def _check(self, connection: SubscriberProtocol) -> None:
        self._timer = None
        if connection.bytes_received != self._received or connection.is_paused:
            self._is_sent = False
        elif self._is_sent:
            self._timer = self._clock.callLater(
                min(GRACE_SECONDS, self._seconds / 4), self._judge, connection
            )
            return
        else:
            sent = self._send()
            if sent is not None:
                self._is_sent = True
                sent.addErrback(self._not_sent)
        self._again(connection)

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
