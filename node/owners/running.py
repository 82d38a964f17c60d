"""One object that runs: its members, its ticks, its commands. Whether it may run is for others to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.api import Ownership
from spread.hub.errors import Fenced, HubError
from spread.hub.reactor import Timer
from spread.node import codes
from spread.node.app.data import decoded, encoded, params_of
from spread.node.owners.owned import Member, Owned, Shape
from spread.node.owners.state import Kept, Saved, frozen
from spread.node.owners.surroundings import Surroundings
from spread.node.owners.wire import Call, Outcome, Result, Row
from spread.node.session.shared import Ended, Refused

__all__ = ["NotAtOnce", "Running", "Successor", "refused"]

SETTLE_SECONDS = 2.0
"""Members of a snapshot whose shards have said nothing of them by then have left."""

log = Logger("spread.node.owners")


class NotAtOnce(TypeError):
    """``snapshot`` or ``restore`` has given a Deferred."""


class Successor(NamedTuple):
    """The object of another version of the app, for a channel that is open."""

    object: Owned
    shape: Shape
    state: bytes | None
    """What it was given, as msgpack; ``None``: it begins anew."""


class Running:
    """See the line at the top. It is what the object is bound to (``owned.Bound``).

    :param may_act: this shard is certain to own the channel.
    :param fenced: called when the hub has said that it does not.
    """

    def __init__(
        self,
        around: Surroundings,
        shape: Shape,
        channel: str,
        ownership: Ownership,
        may_act: Callable[[], bool],
        fenced: Callable[[], None],
    ) -> None:
        self.shape = shape
        self.channel = channel
        self.object: Owned
        self.members: dict[str, Member] = {}
        self.in_flight = 0
        """Commands that have begun, and are not done."""
        self.is_over = False
        """The channel is another shard's: nothing that is said from now on is true."""
        self._around = around
        self._ownership = ownership
        self._may_act = may_act
        self._fenced = fenced
        self._rows: dict[str, Row] = {}
        self._shards: dict[str, str] = {}
        # Members of the snapshot of whom nothing was heard yet, and their shards.
        self._unconfirmed: dict[str, str] = {}
        self._settling: Timer | None = None
        self._idle: list[Deferred[None]] = []
        self._formers: list[tuple[Owned, bytes]] = []
        """Objects that were updated while commands were under way in them, and the state handed over."""
        self._tick_timer: Timer | None = None
        self._tick_due = 0.0
        self._ticked_at = 0.0
        self._is_ticking = False

    # -- its life ----------------------------------------------------------------------------------------

    async def begin(self, saved: Saved | None) -> None:
        """Make the object, from a snapshot if there is one.

        :raises Refused: it cannot be made; why was logged. Or ``Ended``, likewise.
        """
        host, shape = self._around.host, self.shape
        self._adopt(saved if shape.keeps else None)
        self.object = self._called("__init__", shape.made, self, host.app, self.channel, self.members)
        if saved is not None and shape.keeps:
            self._at_once("restore", self.object.restore, saved.state)
        elif shape.has("opened"):
            answer = self._called("opened", self.object.opened, self.channel)
            if isinstance(answer, Deferred):
                await answer

    def _adopt(self, saved: Saved | None) -> None:
        for kept in saved.members if saved is not None else ():
            self._rows[kept.row.id] = kept.row
            self._shards[kept.row.id] = self._unconfirmed[kept.row.id] = kept.shard
            self.members[kept.row.id] = _member(kept.row)
        if self._unconfirmed:
            self._settling = self._around.clock.callLater(SETTLE_SECONDS, self._settle)

    def start(self) -> None:
        """Begin to tick."""
        if self.shape.ticks:
            now = self._around.steady()
            self._ticked_at = now
            self._tick_due = now + self.shape.cls.tick_seconds
            self._tick_timer = self._around.clock.callLater(self.shape.cls.tick_seconds, self._tick)

    def stop(self) -> None:
        """Tick no more. Idempotent."""
        for timer in (self._tick_timer, self._settling):
            if timer is not None and timer.active():
                timer.cancel()
        self._tick_timer = self._settling = None

    def end(self) -> None:
        """It is over."""
        self.is_over = True
        self.stop()
        self._look_idle()

    def when_idle(self) -> Deferred[None]:
        """Fires when no command is in flight, or it is over."""
        if not self.in_flight or self.is_over:
            return succeed(None)
        idle: Deferred[None] = Deferred()
        self._idle.append(idle)
        return idle

    def _look_idle(self) -> None:
        if not self.in_flight or self.is_over:
            idle, self._idle = self._idle, []
            for each in idle:
                each.callback(None)

    # -- members -----------------------------------------------------------------------------------------

    def present(self, rows: Mapping[str, tuple[Row, str]]) -> None:
        """These are in the channel, each with the incarnation of its shard: tell the object who is new.

        Who was a member in the snapshot stays one until it is known that it is not.
        """
        reported = {shard for _, shard in rows.values()}
        live = self._around.live.shards
        for id in [id for id in self.members if id not in rows]:
            shard = self._unconfirmed.get(id)
            if shard is None or shard in reported or shard not in live:
                self._left(id)
        for id, (row, shard) in rows.items():
            self._unconfirmed.pop(id, None)
            self._shards[id] = shard
            if id not in self.members:
                self._rows[id] = row
                self.members[id] = member = _member(row)
                self._notify("joined", member)

    def _settle(self) -> None:
        self._settling = None
        for id in list(self._unconfirmed):
            self._left(id)

    def _left(self, id: str) -> None:
        self._unconfirmed.pop(id, None)
        self._rows.pop(id, None)
        self._shards.pop(id, None)
        member = self.members.pop(id, None)
        if member is not None:
            self._notify("left", member)

    def _notify(self, hook: str, member: Member) -> None:
        if self.shape.has(hook):
            self._around.host.notify(self._hook(hook), None, getattr(self.object, hook), member)

    # -- commands ----------------------------------------------------------------------------------------

    def call(self, call: Call) -> Outcome | Deferred[Outcome]:
        """Do a command."""
        member: Any = None
        if call.member is not None:
            member = self.members.get(call.member.id)
            if member is None:
                return refused(call.number, codes.PERMISSION_DENIED)
        command = self.shape.commands.get(call.command)
        if command is None:
            return refused(call.number, codes.METHOD_NOT_FOUND)
        args: tuple[Any, ...] = (self.object, member)
        if command.has_params:
            try:
                args += (params_of(command, call.params),)
            except Refused as error:
                return refused(call.number, error.error)
        hook = self._hook(call.command)
        object = self.object
        self.in_flight += 1
        try:
            answer = self._around.host.call(
                hook, member, command.function, *args, convert=lambda value: encoded(value, hook)
            )
        except (Refused, Ended) as error:
            return self._done(error, call.number, object)
        if not isinstance(answer, Deferred):
            return self._done(answer, call.number, object)
        return answer.addBoth(self._done, call.number, object)

    def _done(self, answer: Any, number: int, object: Owned) -> Outcome:
        self.in_flight -= 1
        if self._idle:  # whoever waits for it goes on when this one has been answered, and not meanwhile
            self._around.clock.callLater(0, self._look_idle)
        if self.is_over:
            return Outcome(number, Result.UNKNOWN)
        error = answer.value if isinstance(answer, Failure) else answer
        if isinstance(error, Refused):
            return refused(number, error.error)
        if isinstance(error, Ended):
            return Outcome(number, Result.ENDED, code=error.disconnect.code, message=error.disconnect.reason)
        if isinstance(error, BaseException):
            log.failure("a command of {channel}", Failure(error), channel=self.channel)
            return Outcome(number, Result.UNKNOWN)
        if not self._is_kept(object):
            log.warn(
                "a command of {channel} has changed an object that had been updated meanwhile; its caller is "
                "told that it is not known to be done",
                channel=self.channel,
            )
            return Outcome(number, Result.UNKNOWN)
        return Outcome(number, Result.DONE, cast(bytes, answer))

    def _is_kept(self, object: Owned) -> bool:
        """What a command has done to this object is in the one that runs."""
        handed = next((state for former, state in self._formers if former is object), None)
        if not self.in_flight:
            self._formers.clear()
        if handed is None:
            return True
        try:
            now = self._at_once("snapshot", object.snapshot, convert=msgspec.msgpack.encode)
        except (Refused, Ended):
            return False  # it was logged
        return bool(now == handed)

    # -- ticks -------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """On an absolute schedule: a late tick does not make the next ones late, and those that were missed
        are left out."""
        around, interval = self._around, self.shape.cls.tick_seconds
        now = around.steady()
        late = max(0.0, now - self._tick_due)
        missed = int(late / interval)
        self._tick_due += (1 + missed) * interval
        around.counters.ticks_skipped += missed
        if not self._may_act():
            self._ticked_at = now  # time stands still
        elif self._is_ticking:
            around.counters.ticks_skipped += 1
        else:
            around.counters.ticked(late)
            dt, self._ticked_at = now - self._ticked_at, now
            self._call_tick(dt)
        if not self.is_over and self._tick_timer is not None:
            self._tick_timer = around.clock.callLater(max(0.0, self._tick_due - around.steady()), self._tick)

    def _call_tick(self, dt: float) -> None:
        try:
            answer = self._called("tick", self.object.tick, dt)
        except (Refused, Ended):
            return  # it was logged and counted, and the object goes on
        if isinstance(answer, Deferred):
            self._is_ticking = True
            answer.addBoth(self._tick_done, self.object)

    def _tick_done(self, _: object, object: Owned) -> None:
        if object is self.object:  # else it was updated meanwhile, and the tick of its successor counts
            self._is_ticking = False

    # -- state -------------------------------------------------------------------------------------------

    def frozen(self) -> bytes:
        """The object's state, and its members.

        :raises Refused: it cannot be had; why was logged. Or ``Ended``, likewise.
        """
        members = [Kept(row, self._shards.get(id, "")) for id, row in self._rows.items()]
        taken: bytes = self._at_once(
            "snapshot", self.object.snapshot, convert=lambda state: frozen(Saved(state, members))
        )
        return taken

    def successor(self, shape: Shape, app: Any) -> Successor:
        """A new object of another version's class, with the state of this one. Changes nothing here.

        :raises Exception: why there can be none.
        """
        made = shape.made(self, app, self.channel, self.members)
        state = None
        if shape.keeps and self.shape.keeps:
            state = msgspec.msgpack.encode(_at_once(self.object.snapshot(), self._hook("snapshot")))
            _at_once(made.restore(msgspec.msgpack.decode(state)), f"{shape.name}.restore")
        return Successor(made, shape, state)

    def succeed(self, successor: Successor) -> None:
        """From now on that is the object, in the turn in which it was made. Never fails.

        Its ticks come when the next of the old one was due, if they are as far apart; the time since the last
        tick is the first one's ``dt``.
        """
        made, shape, state = successor
        before = self.shape.cls.tick_seconds if self._tick_timer is not None else 0.0
        ticked_at = self._ticked_at
        if self.in_flight and state is not None:
            self._formers.append((self.object, state))
        self.shape, self.object = shape, made
        self._is_ticking = False
        if state is None:
            if shape.has("opened"):
                self._around.host.notify(self._hook("opened"), None, made.opened, self.channel)
            for member in list(self.members.values()):
                self._notify("joined", member)
        if shape.ticks and shape.cls.tick_seconds == before:
            return
        if self._tick_timer is not None and self._tick_timer.active():
            self._tick_timer.cancel()
        self._tick_timer = None
        self.start()
        if before:
            self._ticked_at = ticked_at

    # -- owned.Bound -------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """See ``Owned``, here and below."""
        return self._ownership.epoch

    def publish(self, data: Any, **how: Any) -> Deferred[bool]:
        """To the channel, if it is still this shard's."""
        if self.is_over:
            return succeed(False)
        taken = self._around.host.publish(self.channel, data, fence=self._ownership, **how)
        return taken.addCallbacks(lambda _: True, self._not_published)

    def _not_published(self, failure: Failure) -> bool:
        failure.trap(HubError)
        if isinstance(failure.value, Fenced):
            self._fenced()
        return False

    def send(self, id: str, data: Any) -> Deferred[bool]:
        """To a member.

        :raises TypeError: at once: the member was given, and not its id.
        """
        if not isinstance(id, str):
            raise TypeError(f"send takes the id of a member, not {type(id).__name__}")
        if id not in self.members or self.is_over:
            return succeed(False)
        sent = self._around.host.send(data, None, id)
        return sent.addCallbacks(bool, self._not_sent)

    def _not_sent(self, failure: Failure) -> bool:
        log.debug("sending to a member of {channel}: {why}", channel=self.channel, why=failure.value)
        return False

    # -- parts of it -------------------------------------------------------------------------------------

    def _hook(self, name: str) -> str:
        return f"{self.shape.name}.{name}"

    def _called(self, hook: str, function: Callable[..., Any], *args: Any, convert: Any = None) -> Any:
        return self._around.host.call(self._hook(hook), None, function, *args, convert=convert)

    def _at_once(self, hook: str, function: Callable[..., Any], *args: Any, convert: Any = None) -> Any:
        name = self._hook(hook)

        def called() -> Any:
            answer = _at_once(function(*args), name)
            return answer if convert is None else convert(answer)

        return self._around.host.call(name, None, called)


def _at_once(answer: Any, hook: str) -> Any:
    if isinstance(answer, Deferred) or hasattr(answer, "__await__"):
        if isinstance(answer, Deferred):
            answer.addErrback(lambda failure: None)
        else:
            answer.close()
        raise NotAtOnce(f"{hook}() must give its state at once, no Deferred or coroutine")
    return answer


def _member(row: Row) -> Member:
    return Member(row.id, row.user, decoded(row.info))


def refused(number: int, error: codes.Error) -> Outcome:
    """A command is answered with an error."""
    return Outcome(number, Result.REFUSED, code=error.code, message=error.message, temporary=error.temporary)
