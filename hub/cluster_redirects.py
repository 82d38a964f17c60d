"""What a shard does when a node of a cluster answers that a key is elsewhere.

For commands that give back something: reads, leases, heartbeats. They are run again where the answer sends
them, or where the next refresh of the topology finds the slot, until they have been tried for
``reply_seconds``. Publications have an order, and go their own way: see ``publish``. All are *noticed* here,
so that the topology is asked again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from spread.hub.api import HubCounters
from spread.hub.cluster_topology import Address, Topology
from spread.hub.errors import HubError, HubUnavailable, ReplyError
from spread.hub.link import CommandProtocol
from spread.hub.reactor import Clock
from spread.hub.slots import Redirect

__all__ = ["ClusterRedirects"]

AGAIN_SECONDS = 0.05
"""Pause before a command is tried again where it was answered "later"."""

ELSEWHERE = frozenset({"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"})


class ClusterRedirects:
    """Of all connections of one hub.

    :param seconds: how long a command is tried.
    :param owner: the connection for commands to who serves a key, if it is up.
    :param at: the same to a node by its address.
    """

    def __init__(
        self,
        clock: Clock,
        name: str,
        seconds: float,
        counters: HubCounters,
        owner: Callable[[bytes], CommandProtocol | None],
        at: Callable[[Address], CommandProtocol | None],
    ) -> None:
        self._clock = clock
        self._name = name
        self._seconds = seconds
        self._counters = counters
        self._owner = owner
        self._at = at
        self.topology: Topology | None = None

    def noticed(self, error: ReplyError) -> None:
        """A node has answered this."""
        if error.code == "MOVED":
            redirect = Redirect.of(error)
            self._counters.redirects += 1
            if self.topology is not None:
                self.topology.soon((redirect.host, redirect.port) if redirect and redirect.host else None)
        elif error.code == "ASK":
            self._counters.redirects += 1
        elif error.code == "CLUSTERDOWN" and self.topology is not None:
            self.topology.soon()

    async def run(self, connection: CommandProtocol, key: bytes, command: tuple[Any, ...]) -> Any:
        """Run a command on a key, on this connection or where it is sent from there.

        :raises ReplyError: it was answered with an error of its own.
        :raises HubUnavailable: nobody serves the key.
        :raises LinkLost: the outcome is unknown.
        """
        until = self._clock.seconds() + self._seconds
        is_asking = False
        while True:
            if is_asking:
                connection.execute_command(b"ASKING").addErrback(_tolerate)
            try:
                return await connection.execute_command(*command)
            except ReplyError as error:
                if error.code not in ELSEWHERE:
                    raise
                if self._clock.seconds() >= until:
                    raise HubUnavailable(self._name, str(error)) from error
                connection, is_asking = await self._next(connection, key, error)

    async def _next(
        self, connection: CommandProtocol, key: bytes, error: ReplyError
    ) -> tuple[CommandProtocol, bool]:
        redirect = Redirect.of(error)
        if redirect is not None and redirect.is_ask:
            target = self._at((redirect.host, redirect.port))
            if target is not None:
                return target, True
        if error.code == "TRYAGAIN" or self.topology is None:
            pause: Deferred[None] = Deferred()
            self._clock.callLater(AGAIN_SECONDS, pause.callback, None)
            await pause
        else:
            await self.topology.refreshed()
        owner = self._owner(key)
        if owner is None:
            raise HubUnavailable(self._name, f"{error}; the link there is down")
        return owner, False


def _tolerate(failure: Failure) -> None:
    # The command behind it tells the same.
    failure.trap(HubError)
