"""All shards of the cluster updated, one after the other, by one of them.

It asks each in turn, in the order of the roster, to update its app (``Updater``), and stops at the first that
refuses: the others run on as they are, and are told of as those that were not asked. An update can outlast a
question, so a shard is given a ticket, and asked what has become of that until it is done. To ask again under
a ticket begins nothing twice.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Protocol

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.api import Hub, ShardInfo
from spread.hub.errors import HubError, HubUnavailable
from spread.hub.reactor import Clock
from spread.node.app.update import Outcome
from spread.node.control import ControlFailed, RelayHandler

__all__ = ["KIND", "NO_APP", "Reload", "ShardOutcome", "longest_seconds"]

KIND = "reload"
"""Of the relays by which shards ask each other."""

NO_APP = "this shard runs no app; it is started with --app MODULE:CLASS"

POLL_FIRST_SECONDS = 0.05
POLL_MOST_SECONDS = 0.5

SPARE_SECONDS = 15.0
"""For the way there and back, and a hub that is away for a moment."""

ROSTER_SECONDS = 5.0
"""A shard tells the roster what it runs with its next heartbeat; what it has answered is newer until then."""

MAX_TICKETS = 64
"""So many outcomes are remembered."""

log = Logger("spread.node.app.reload")


def longest_seconds(load_seconds: float) -> float:
    """How long whoever asks a shard for an update waits to hear what has become of it."""
    # The import, check(), and what blocks the shard between them.
    return 4 * load_seconds + SPARE_SECONDS


class ShardOutcome(Outcome, frozen=True, kw_only=True):
    """What became of the update of one shard."""

    shard: int | None
    """``None``: of none in particular."""
    was_asked: bool = True
    """``False``: one before it has refused, so it was left as it is."""


class _Asked(msgspec.Struct, frozen=True):
    ticket: str
    is_begun: bool
    """It was answered before; who does not know the ticket has forgotten it, and begins nothing."""


class _Told(msgspec.Struct, frozen=True):
    outcome: Outcome | None
    """``None``: it is under way."""


_ASKED = msgspec.msgpack.Decoder(_Asked)
_TOLD = msgspec.msgpack.Decoder(_Told)


class Relays(Protocol):
    """``spread.node.control.Control``, as far as it is called here."""

    def on(self, kind: str, handler: RelayHandler) -> None: ...
    def relay(self, kind: str, body: bytes, shard: str = "") -> Deferred[list[bytes]]: ...


class Updates(Protocol):
    """``spread.node.app.update.Updater``, as far as it is called here."""

    def update(self) -> Deferred[Outcome]: ...


class Reload:
    """Updates this shard, or all; and this one, when another shard asks for it."""

    def __init__(
        self,
        reactor: Clock,
        hub: Hub,
        relays: Relays,
        incarnation: str,
        updater: Updates | None,
        load_seconds: float,
    ) -> None:
        """
        :param incarnation: of this shard.
        :param updater: ``None``: it runs no app.
        :param load_seconds: what a step of an update may take, here and on the others.
        """
        self._reactor = reactor
        self._hub = hub
        self._relays = relays
        self._incarnation = incarnation
        self._updater = updater
        self._longest_seconds = longest_seconds(load_seconds)
        self._tickets: dict[str, Outcome | None] = {}
        # By incarnation: what a shard has told lately of the version that it runs, and when.
        self._versions: dict[str, tuple[str, float]] = {}
        self._is_reloading_all = False
        relays.on(KIND, self._asked)

    def one(self) -> Deferred[Outcome]:
        """Update this shard. Never fails."""
        if self._updater is None:
            return succeed(_refused(NO_APP))
        return self._updater.update()

    def all(
        self, tell: Callable[[ShardOutcome], None], is_wanted: Callable[[], bool] = lambda: True
    ) -> Deferred[bool]:
        """Update all shards; gives whether all have done it. Never fails.

        :param tell: is called with what became of each, as it is known, and of what else went wrong.
        :param is_wanted: asked before each shard; ``False``: those that are left stay as they are.
        """
        if self._is_reloading_all:
            tell(_problem("another reload of all shards is under way"))
            return succeed(False)
        self._is_reloading_all = True
        reloading = Deferred.fromCoroutine(self._all(tell, is_wanted))

        def failed(failure: Failure) -> bool:
            log.failure("reloading all shards", failure)
            tell(_problem(f"unforeseen: {failure.getErrorMessage()}"))
            return False

        def ended(is_done: bool) -> bool:
            self._is_reloading_all = False
            return is_done

        return reloading.addErrback(failed).addCallback(ended)

    # -- asking

    async def _all(self, tell: Callable[[ShardOutcome], None], is_wanted: Callable[[], bool]) -> bool:
        try:
            roster = await self._hub.roster()
        except HubError as error:
            tell(_problem(f"the shards are not known: {error}"))
            return False
        rows = [row for row in roster if row.load.app or row.identity.incarnation == self._incarnation]
        if not any(row.load.app for row in rows):
            tell(_problem("no shard runs an app; it is started with --app MODULE:CLASS"))
            return False
        rows = [row for row in rows if row.load.app or self._updater is not None]
        since = self._reactor.seconds() - ROSTER_SECONDS
        self._versions = {of: told for of, told in self._versions.items() if told[1] > since}
        for at, row in enumerate(rows):
            if not is_wanted():
                return False
            outcome = await self._ask(row)
            tell(ShardOutcome(shard=row.shard, **msgspec.structs.asdict(outcome)))
            if not outcome.ok:
                for left in rows[at + 1 :]:
                    tell(self._left_out(left, row.shard))
                return False
            self._versions[row.identity.incarnation] = (outcome.version, self._reactor.seconds())
        return True

    def _left_out(self, row: ShardInfo, refused: int) -> ShardOutcome:
        """It was not asked; what it runs is what it has told last."""
        app, _, version = row.load.app.partition(" ")
        version, _ = self._versions.get(row.identity.incarnation, (version, 0.0))
        error = f"not asked, since shard {refused} has failed"
        return ShardOutcome(
            shard=row.shard, was_asked=False, ok=False, app=app, version=version, before=version, error=error
        )

    async def _ask(self, row: ShardInfo) -> Outcome:
        incarnation = row.identity.incarnation
        if incarnation == self._incarnation:
            return await self.one()
        ticket = secrets.token_hex(8)
        deadline = self._reactor.seconds() + self._longest_seconds
        pause = POLL_FIRST_SECONDS
        is_begun = False
        while True:
            try:
                question = msgspec.msgpack.encode(_Asked(ticket, is_begun))
                answers = await self._relays.relay(KIND, question, incarnation)
                outcome = _TOLD.decode(answers[0] if answers else b"").outcome
                is_begun = True
            except HubUnavailable as error:
                # It may have begun all the same; the ticket tells.
                outcome, why = None, str(error)
            except (HubError, ControlFailed, msgspec.DecodeError) as error:
                return _refused(f"{error}; whether it was updated is not known")
            else:
                why = "it has not ended in time"
            if outcome is not None:
                return outcome
            if self._reactor.seconds() >= deadline:
                return _refused(f"{why}; whether it was updated is not known")
            await deferLater(self._reactor, pause)  # type: ignore[arg-type]
            pause = min(pause * 2, POLL_MOST_SECONDS)

    # -- answering

    def _asked(self, origin: str, body: bytes) -> bytes:
        asked = _ASKED.decode(body)
        if asked.ticket not in self._tickets:
            if asked.is_begun:
                return msgspec.msgpack.encode(_Told(_refused("it knows nothing of this update")))
            while len(self._tickets) >= MAX_TICKETS:
                del self._tickets[next(iter(self._tickets))]
            self._tickets[asked.ticket] = None

            def ended(outcome: Outcome) -> None:
                self._tickets[asked.ticket] = outcome

            self.one().addCallback(ended)
        return msgspec.msgpack.encode(_Told(self._tickets[asked.ticket]))


def _refused(error: str) -> Outcome:
    return Outcome(ok=False, app="", version="", before="", error=error)


def _problem(error: str) -> ShardOutcome:
    """Of no shard in particular."""
    return ShardOutcome(shard=None, ok=False, app="", version="", before="", error=error)
