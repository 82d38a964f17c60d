"""Who serves which slots of a cluster: asked of its nodes, again and again, and told when it changes.

A *refresh* asks one node after the other for ``CLUSTER INFO`` and ``CLUSTER SLOTS`` until one gives a view
that is good enough: the cluster is in order, and its epoch, which grows with every failover, is not below the
highest seen. A node that was frozen or cut off, and does not know yet that it has been replaced, gives a
lower one. Where no view is good enough the best of the first ``VIEWS`` is taken.

One refresh runs at a time, and ``PAUSE_SECONDS`` lie between two. One is made every ``PERIOD_SECONDS``, and
when somebody asks for it: a server has answered that a slot is elsewhere, or a connection was lost.

Nodes are asked over the links there are, else over a connection made for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import connectProtocol
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from spread.hub.errors import HubError, HubMisconfigured, HubRefused, HubUnavailable, ReplyError
from spread.hub.link import CommandProtocol, Handshake
from spread.hub.reactor import Clock, Endpoint, Timer
from spread.hub.slots import Node, Part, parse_slots

__all__ = ["GroupEndpoint", "Topology", "View"]

PERIOD_SECONDS = 2.0
"""A view is never older while the nodes answer. A demoted primary may keep silent about it."""

PAUSE_SECONDS = 0.1
"""After a refresh; twice as long after each that failed, up to a second."""

ASK_SECONDS = 1.0
"""One node's time to answer, connecting included."""

VIEWS = 3
"""So many are compared when none is good enough."""

MAX_ASKED = 16
"""Nodes asked in one refresh."""

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class View:
    """What one node tells."""

    is_ok: bool
    """All slots are served, as far as it knows."""
    epoch: int
    parts: list[Part]


class Topology:
    """What is known of a cluster.

    :param name: the hub's, for errors.
    :param seeds: nodes that are asked when no other is known, or none of them answers.
    :param server: makes the endpoint of a node.
    :param lanes: connections for commands that are up, by the node's address.
    :param changed: called with the parts of each view that was taken, in the order of the primaries' ids.
    """

    log = Logger("spread.hub.cluster")

    def __init__(
        self,
        clock: Clock,
        name: str,
        seeds: Iterable[Address],
        server: Callable[[str, int], Endpoint],
        handshake: Handshake,
        lanes: Callable[[], dict[Address, CommandProtocol]],
        changed: Callable[[list[Part]], None],
    ) -> None:
        self.refreshes = 0
        """Views taken."""
        self._clock = clock
        self._name = name
        self._seeds = tuple(seeds)
        self._server = server
        self._handshake = handshake
        self._lanes = lanes
        self._changed = changed
        self._known: tuple[Address, ...] = ()
        self._first = 0  # where among the known the asking begins
        self._epoch = -1
        self._failures = 0
        self._hint: Address | None = None
        self._waiters: list[Deferred[None]] = []  # for the next refresh
        self._joined: list[Deferred[None]] = []  # for the end of the one that runs
        self._running: Deferred[None] | None = None
        self._timer: Timer | None = None
        self._is_soon = False
        self._is_wanted = False
        self._not_before = 0.0
        self._is_stopped = False
        self.last_error: HubError | None = None
        """Why the last refresh has failed, if it has."""

    async def begin(self) -> None:
        """The first refresh, over the seeds; from then on they go on by themselves.

        :raises HubUnavailable: no seed answers.
        :raises HubRefused: the credentials do not work.
        :raises HubMisconfigured: a seed is no node of a cluster.
        """
        running = self._running = Deferred.fromCoroutine(self._refresh())
        try:
            await running
        finally:
            self._running = None
            self._tell()
            if not self._is_stopped:
                self._schedule(PERIOD_SECONDS)

    def soon(self, hint: Address | None = None) -> None:
        """Ask as soon as may be.

        :param hint: the node that is asked first.
        """
        if hint is not None:
            self._hint = hint
        self._is_wanted = True
        if self._running is None and not self._is_soon and not self._is_stopped:
            self._soon()

    def refreshed(self) -> Deferred[None]:
        """Fires when a refresh that begins later than now has ended, well or not."""
        waiter: Deferred[None] = Deferred(lambda each: _remove(self._waiters, each))
        if self._is_stopped:
            waiter.callback(None)
        else:
            self._waiters.append(waiter)
            self.soon()
        return waiter

    def settled(self) -> Deferred[None]:
        """Fires when no refresh runs, or is about to."""
        waiter: Deferred[None] = Deferred(lambda each: _remove(self._joined, each))
        if self._running is None and not self._is_soon:
            waiter.callback(None)
        else:
            self._joined.append(waiter)
        return waiter

    def stop(self) -> None:
        """Ask no more; who waits is told. Idempotent."""
        self._is_stopped = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        self._is_soon = False
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
        self._tell()

    def _tell(self, *more: Deferred[None]) -> None:
        waiters, self._joined = [*more, *self._joined], []
        if self._is_stopped:
            waiters, self._waiters = waiters + self._waiters, []
        for waiter in waiters:
            if not waiter.called:
                waiter.callback(None)

    def _soon(self) -> None:
        self._is_soon = True
        self._schedule(max(0.0, self._not_before - self._clock.seconds()))

    def _schedule(self, seconds: float) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = self._clock.callLater(seconds, self._run)

    def _run(self) -> None:
        self._timer = None
        self._is_soon = self._is_wanted = False
        waiters, self._waiters = self._waiters, []
        self._running = running = Deferred.fromCoroutine(self._refresh())
        running.addErrback(self._failed)
        running.addBoth(self._ended, waiters)
        running.addErrback(lambda failure: self.log.failure("asking who serves what", failure))

    def _failed(self, failure: Any) -> None:
        error = failure.value
        if isinstance(error, HubError):
            self.last_error = error
            self._failures += 1
            if self._failures == 1:
                self.log.warn("who serves which slots is not known: {error}", error=error)
        elif not isinstance(error, CancelledError):
            self._failures += 1
            self.log.failure("asking who serves what", failure)

    def _ended(self, outcome: Any, waiters: list[Deferred[None]]) -> None:
        self._running = None
        self._not_before = self._clock.seconds() + min(1.0, PAUSE_SECONDS * 2.0 ** min(self._failures, 10))
        if not self._is_stopped:
            if self._is_wanted:
                self._soon()
            else:
                self._schedule(PERIOD_SECONDS)
        self._tell(*waiters)

    # -- one refresh -----------------------------------------------------------------------------------

    async def _refresh(self) -> None:
        lanes = self._lanes()
        best: View | None = None
        seen, reasons = 0, []
        final: HubError | None = None
        for address in self._candidates(lanes):
            if self._is_stopped:
                return
            try:
                view = await self._bounded(self._ask(address, lanes.get(address)))
            except (HubMisconfigured, HubRefused) as error:
                final = error
                continue
            except HubError as error:
                reasons.append(f"{address[0]}:{address[1]}: {_reason(error)}")
                continue
            except (CancelledError, ConnectingCancelledError):
                reasons.append(f"{address[0]}:{address[1]}: no answer within {ASK_SECONDS:g} s")
                continue
            except Exception as error:
                # Whatever is wrong with one node, the next may know; the reasons are all told below.
                reasons.append(f"{address[0]}:{address[1]}: {error}".rstrip("."))
                continue
            seen += 1
            if view.is_ok and view.epoch >= self._epoch:
                best = view
                break
            if best is None or (view.is_ok, view.epoch) > (best.is_ok, best.epoch):
                best = view
            if seen >= VIEWS:
                break
        if self._is_stopped:
            return
        if best is None:
            raise final or HubUnavailable(self._name, "no node answers: " + "; ".join(reasons[:4]))
        self._take(best)

    def _take(self, view: View) -> None:
        if self._failures:
            self.log.info("who serves which slots is known again")
        self._failures = 0
        self.last_error = None
        self._epoch = view.epoch
        self.refreshes += 1
        nodes = [part.primary for part in view.parts]
        nodes += [replica for part in view.parts for replica in part.replicas]
        self._known = tuple((node.host, node.port) for node in nodes)
        self._changed(view.parts)

    def _candidates(self, lanes: dict[Address, CommandProtocol]) -> list[Address]:
        """In the order in which they are asked: all of them get their turn."""
        self._first += 1
        connected = _rotated(list(lanes), self._first)
        others = _rotated([each for each in self._known if each not in lanes], self._first)
        hint, self._hint = self._hint, None
        first = [hint] if hint is not None else []
        ordered: dict[Address, None] = dict.fromkeys([*first, *connected, *others])
        # The seeds last, but always: they may be the only way to nodes nobody knows yet.
        seeds = [seed for seed in self._seeds if seed not in ordered][:MAX_ASKED]
        return [*list(ordered)[: max(1, MAX_ASKED - len(seeds))], *seeds]

    async def _bounded(self, asking: Awaitable[View]) -> View:
        asked: Deferred[View] = Deferred.fromCoroutine(cast(Any, asking))
        timer = self._clock.callLater(ASK_SECONDS, asked.cancel)
        try:
            return await asked
        finally:
            if timer.active():
                timer.cancel()

    async def _ask(self, address: Address, lane: CommandProtocol | None) -> View:
        if lane is not None:
            return await self._view(lane, address[0])
        endpoint = self._server(*address)
        connection: CommandProtocol = await connectProtocol(
            cast(Any, endpoint), cast(Any, CommandProtocol(self._clock, self._handshake))
        )
        try:
            await connection.introduce()
            return await self._view(connection, address[0])
        finally:
            connection.cut("asked")

    async def _view(self, connection: CommandProtocol, host: str) -> View:
        told = connection.execute_command(b"CLUSTER", b"INFO")
        told.addErrback(self._not_informed)
        try:
            slots = await connection.execute_command(b"CLUSTER", b"SLOTS")
        except ReplyError as error:
            if error.is_refusal:
                raise HubRefused(self._name, f"CLUSTER SLOTS: {error}") from error
            if "cluster support disabled" in str(error) or "unknown command" in str(error):
                raise HubMisconfigured(
                    f"hub: {host} is no node of a cluster; use redis:// for a single server"
                ) from error
            raise HubUnavailable(self._name, str(error)) from error
        info: bytes = await told
        try:
            parts = parse_slots(slots, host)
        except ValueError as error:
            raise HubUnavailable(self._name, f"CLUSTER SLOTS: {error}") from error
        if not parts:
            raise HubUnavailable(self._name, "it knows of no node that serves slots")
        lines = dict(line.split(b":", 1) for line in info.split() if b":" in line)
        epoch = lines.get(b"cluster_current_epoch", b"0")
        is_ok = lines.get(b"cluster_state", b"ok") == b"ok"
        return View(is_ok, int(epoch) if epoch.isdigit() else 0, parts)

    def _not_informed(self, failure: Any) -> bytes:
        # An ACL forbids it, or SLOTS fails too and tells why.
        failure.trap(HubError, CancelledError)
        return b""


class GroupEndpoint:
    """Leads to the present primary of a group.

    :param place: who that is.
    """

    def __init__(
        self, topology: Topology, place: Callable[[], Node], server: Callable[[str, int], Endpoint]
    ) -> None:
        self._topology = topology
        self._place = place
        self._server = server
        self._attempts: set[Deferred[Any]] = set()

    def connect(self, factory: Factory) -> Deferred[Any]:
        """Connect ``factory``; a refresh that is under way is waited for."""
        return Deferred.fromCoroutine(self._connect(factory))

    def moved(self) -> None:
        """The primary is another one: attempts to reach the old one begin anew."""
        for attempt in list(self._attempts):
            attempt.cancel()

    async def _connect(self, factory: Factory) -> Any:
        await self._topology.settled()
        while True:
            node = self._place()
            attempt = self._server(node.host, node.port).connect(factory)
            self._attempts.add(attempt)
            try:
                return await attempt
            except Exception as error:
                if self._place() != node:
                    continue
                if not isinstance(error, CancelledError | ConnectingCancelledError):
                    self._topology.soon()
                raise
            finally:
                self._attempts.discard(attempt)


def _remove(waiters: list[Deferred[None]], waiter: Deferred[None]) -> None:
    if waiter in waiters:
        waiters.remove(waiter)


def _rotated(addresses: list[Address], by: int) -> list[Address]:
    turn = by % len(addresses) if addresses else 0
    return addresses[turn:] + addresses[:turn]


def _reason(error: HubError) -> str:
    return error.reason if isinstance(error, HubUnavailable) else str(error)
