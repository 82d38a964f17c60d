"""One channel that belongs to this shard: its ownership in the hub, and the object that runs under it.

    OPENING → OPEN → CLOSING → OVER

OPENING: the channel is taken, over a shard that is dead, or has handed it over, or was asked to and has not;
what was saved is loaded, the object made. OPEN: it runs as long as this shard is sure to be alive and was
since the ownership was last seen in the hub; after a gap it is looked at again, and commands wait. CLOSING:
the state is saved for the next shard, or the object says goodbye. In OVER the channel may be another's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from math import ceil
from typing import Any, cast
from zlib import crc32

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.api import Ownership
from spread.hub.errors import Fenced, HubError
from spread.hub.reactor import Timer
from spread.node import codes
from spread.node.owners.owned import Shape
from spread.node.owners.running import Running, refused
from spread.node.owners.state import Saved, thawed
from spread.node.owners.surroundings import Surroundings
from spread.node.owners.wire import Call, Outcome, Result, Row
from spread.node.session.shared import Ended, Refused

__all__ = ["Holding", "State", "not_here"]

RELEASE_SECONDS = 1.0
"""So long a live shard may take to hand a channel over; then it is taken from it."""

AGAIN_SECONDS = 0.1
"""Between two tries of whatever the hub or another shard did not do."""

IDLE_SECONDS = 0.5
"""So long a channel that is handed over waits for commands that have begun."""

HUB_SECONDS = 2.0
"""So long the hub may take for one step."""

CLOSE_SECONDS = 10.0
"""So long it is tried to save the last state of an object, while the hub is away."""

SNAPSHOT_SHARE = 0.9
"""Of the time that a snapshot may be old, after which the next is taken: it has to be made, and to arrive."""

log = Logger("spread.node.owners")


class State(Enum):
    """See the top of this module."""

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    OVER = "over"


class Holding:
    """See the top of this module.

    :param shape_of: what the app that runs has for this channel; ``None``: nothing.
    :param rows: who is in the channel, each with the incarnation of its shard.
    :param over: called once, at the end.
    :param known: the last ownership that this shard had of the channel, if any: a hub that has lost its data
        must not give its epoch again.
    """

    def __init__(
        self,
        around: Surroundings,
        channel: str,
        shape_of: Callable[[], Shape | None],
        rows: Callable[[], Mapping[str, tuple[Row, str]]],
        over: Callable[[], None],
        known: Ownership | None = None,
    ) -> None:
        self.state = State.OPENING
        self.channel = channel
        self.running: Running | None = None
        self.is_free = False
        """It has come to its end as it should: nobody has taken the channel from it."""
        self.is_broken = False
        """Its object could not be made."""
        self._around = around
        self._shape_of = shape_of
        self._rows = rows
        self._over = over
        self._is_wanted = True
        self._ownership: Ownership | None = None
        self._known = known
        self._gaps = -1
        self._is_verifying = False
        self._is_paused = False
        self._waiting: deque[tuple[Call, float, Deferred[Outcome]]] = deque()
        self._ends: list[Deferred[None]] = []
        self._snapshots: Timer | None = None
        self._is_saving = False
        self._kept = b""
        self._kept_at = 0.0
        self._kept_for = 0
        around.counters.objects += 1

    @property
    def known(self) -> Ownership | None:
        """The last ownership that this shard had of the channel; it may be over."""
        return self._ownership or self._known

    @property
    def may_act(self) -> bool:
        """It is certain that this shard owns the channel."""
        live = self._around.live
        return self.state in (State.OPEN, State.CLOSING) and live.is_sure and live.gaps == self._gaps

    def when_over(self) -> Deferred[None]:
        """Fires when it is."""
        ends: Deferred[None] = Deferred()
        if self.state is State.OVER:
            ends.callback(None)
        else:
            self._ends.append(ends)
        return ends

    # -- begin -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take the channel, and make its object."""
        self._go(self._begin())

    async def _begin(self) -> None:
        kept: bytes | None = None
        while self._is_wanted:
            try:
                ownership = await self._take()
                if ownership is None:
                    break
                self._ownership = ownership
                kept = await self._in_turn(self._around.hub.load_state, self.channel)
                break
            except (HubError, TimeoutError, CancelledError):
                await self._pause(AGAIN_SECONDS)
        shape = self._shape_of()
        if self._ownership is None or not self._is_wanted or shape is None:
            await self._leave()
            return
        running = Running(
            self._around, shape, self.channel, self._ownership, lambda: self.may_act, self._lost
        )
        try:
            await running.begin(self._thawed(kept))
            is_running = self._renewed(running)
        except (Refused, Ended):
            self.is_broken = True
            self._around.counters.failed += 1
            running.end()
            await self._leave()
            return
        self.running = running
        if self.state is State.OVER:  # fenced meanwhile
            running.end()
            return
        self.state = State.OPEN
        running.present(self._rows())
        if not is_running:
            running.start()
        self._again_snapshot(is_first=True)
        if not self._is_wanted:
            self.hand_over()
        else:
            self.look()

    async def _take(self) -> Ownership | None:
        """``None``: it is not wanted any more."""
        around = self._around
        asked: Ownership | None = None
        force_at = 0.0
        is_free = False
        while self._is_wanted:
            if not around.live.is_sure:
                await self._pause(AGAIN_SECONDS)
                continue
            self._gaps = around.live.gaps
            present = await self._in_turn(around.hub.owner_of, self.channel)
            holder = "" if present is None or present.holder == around.shard else present.holder
            lives = holder in around.live.shards
            if lives and not is_free:
                now = around.steady()
                if present != asked:  # each owner has its time
                    asked, force_at = present, now + RELEASE_SECONDS
                if now < force_at:
                    is_free = await around.release(holder, self.channel)
                    if not is_free:
                        await self._pause(AGAIN_SECONDS)
                    continue
            over = present or self.known
            taken: Ownership = await self._in_turn(around.hub.take, self.channel, over)
            seen = 0 if over is None else over.epoch
            # Of a take of before, of which no answer came, the epoch is not above what was seen.
            if taken.holder == around.shard and taken.epoch > seen:
                around.counters.taken += 1
                around.counters.taken_by_force += lives and not is_free
                return taken
            is_free = False
        return None

    def _thawed(self, kept: bytes | None) -> Saved | None:
        try:
            return thawed(kept)
        except ValueError as error:  # those of msgspec are such
            self._around.counters.failed += 1
            log.error(
                "what was saved of {channel} cannot be read: {error}", channel=self.channel, error=error
            )
            return None

    def _renewed(self, running: Running) -> bool:
        """The app may have been updated while the object was made. ``True``: it was, and the object runs.

        :raises Refused: it cannot be handed over to the new one.
        """
        shape = self._shape_of()
        if shape is None or shape is running.shape:
            self._is_wanted = self._is_wanted and shape is not None
            return False
        try:
            successor = running.successor(shape, self._around.host.app)
        except Exception:
            log.failure("handing over {channel}", channel=self.channel)
            raise Refused(codes.INTERNAL_ERROR) from None
        running.succeed(successor)
        return True

    # -- while it runs -----------------------------------------------------------------------------------

    def present(self) -> None:
        """Others may be in the channel than before."""
        if self.state is State.OPEN and self.running is not None:
            self.running.present(self._rows())

    def call(self, call: Call) -> Outcome | Deferred[Outcome]:
        """Do a command, as soon as it may be."""
        around = self._around
        if self.state is State.CLOSING or self.state is State.OVER:
            return not_here(call.number)
        if self.may_act and not self._waiting and not self._is_paused:
            return self._do(call)
        if len(self._waiting) >= around.limits.max_commands:
            around.counters.refused_full += 1
            return refused(call.number, codes.TOO_MANY_REQUESTS)
        done: Deferred[Outcome] = Deferred()
        self._waiting.append((call, around.steady() + call.seconds, done))
        around.counters.waiting += 1
        return done

    def _do(self, call: Call) -> Outcome | Deferred[Outcome]:
        assert self.running is not None
        outcome = self.running.call(call)
        return outcome.addCallback(self._checked) if isinstance(outcome, Deferred) else outcome

    def _checked(self, outcome: Outcome) -> Outcome:
        """What was done while another shard may have taken over is not known to be done."""
        return outcome if self.may_act else Outcome(outcome.number, Result.UNKNOWN)

    @property
    def is_busy(self) -> bool:
        """Commands of the object are under way."""
        running = self.running
        return (
            self.state is State.OPEN and running is not None and running.in_flight > 0 and not running.is_over
        )

    def pause(self) -> Deferred[None]:
        """Let commands wait that come from now on. Fires when none is under way any more."""
        self._is_paused = True
        return succeed(None) if self.running is None else self.running.when_idle()

    def resume(self) -> None:
        """Let them go on. Idempotent."""
        if self._is_paused:
            self._is_paused = False
            self.look()

    def look(self) -> None:
        """This shard may have had a gap, or be sure again: go on."""
        if self.state is not State.OPEN or not self._around.live.is_sure:
            return
        if self._gaps != self._around.live.gaps:
            if not self._is_verifying:
                self._is_verifying = True
                self._go(self._verify())
            return
        while self._waiting and self.may_act and not self._is_paused:
            call, until, done = self._pop()
            if self._around.steady() >= until:
                done.callback(not_here(call.number))  # who called it does not wait for it any more
                continue
            outcome = self._do(call)
            if isinstance(outcome, Deferred):
                outcome.addCallback(done.callback)
            else:
                done.callback(outcome)

    def _pop(self) -> tuple[Call, float, Deferred[Outcome]]:
        self._around.counters.waiting -= 1
        return self._waiting.popleft()

    async def _verify(self) -> None:
        try:
            while self.state is State.OPEN and self._gaps != self._around.live.gaps:
                gaps = self._around.live.gaps
                try:
                    present = await self._asked(self._around.hub.owner_of(self.channel))
                except (HubError, TimeoutError, CancelledError):
                    await self._pause(AGAIN_SECONDS)
                    continue
                if present != self._ownership:
                    self._lost()
                    return
                self._gaps = gaps
        finally:
            self._is_verifying = False
        self.look()

    def _lost(self) -> None:
        """The hub says that another shard owns it."""
        if self.state is not State.OVER:
            self._around.counters.fenced += 1
            log.info("{channel} has another owner", channel=self.channel)
            self._end()

    # -- snapshots ---------------------------------------------------------------------------------------

    def _again_snapshot(self, *, is_first: bool = False) -> None:
        running = self.running
        if running is not None and self.state is State.OPEN:
            seconds = (running.shape.cls.snapshot_seconds or AGAIN_SECONDS) * SNAPSHOT_SHARE
            if is_first:  # of objects that were made together not all are to be saved together
                seconds *= crc32(self.channel.encode()) / (1 << 32)
            self._snapshots = self._around.clock.callLater(seconds, self._snapshot)

    def _snapshot(self) -> None:
        self._snapshots = None
        running, around = self.running, self._around
        assert running is not None
        if (
            running.shape.keeps
            and running.shape.cls.snapshot_seconds
            and not self._is_saving
            and self.may_act
        ):
            state = self._frozen()
            ttl = self._ttl_seconds(running)
            is_fresh = ttl == self._kept_for and around.steady() < self._kept_at + ttl / 2
            if state is not None and not (state == self._kept and is_fresh):
                self._is_saving = True
                self._go(self._save(state))
        self._again_snapshot()

    def _ttl_seconds(self, running: Running) -> int:
        """How long the state is kept, unless it is saved again.

        Where nobody is in the channel, no longer than its object and ``keep_seconds``: its shard may not live
        to say that it has gone, and no other one takes over where nobody is.
        """
        most = self._around.limits.snapshot_ttl_seconds
        if running.members:
            return most
        cls = running.shape.cls
        return min(most, max(1, ceil(cls.linger_seconds + cls.keep_seconds)))

    def _frozen(self) -> bytes | None:
        """``None``: it cannot be had; why was logged."""
        around = self._around
        assert self.running is not None
        try:
            state = self.running.frozen()
        except (Refused, Ended):
            around.counters.snapshots_failed += 1
            return None
        around.counters.snapshot_bytes = len(state)
        if len(state) > around.limits.snapshot_max_bytes:
            around.counters.snapshots_failed += 1
            log.error(
                "the state of {channel} has {size} bytes; app.snapshot_max_bytes is {most}",
                channel=self.channel,
                size=len(state),
                most=around.limits.snapshot_max_bytes,
            )
            return None
        return state

    async def _save(self, state: bytes, ttl_seconds: int = 0) -> bool:
        """``False``: the hub could not be told, or another owns the channel."""
        around = self._around
        assert self._ownership is not None
        assert self.running is not None
        ttl = ttl_seconds or self._ttl_seconds(self.running)
        try:
            await self._asked(around.hub.save_state(self.channel, self._ownership, state, ttl))
        except Fenced:
            self._lost()
        except (HubError, TimeoutError, CancelledError) as error:
            around.counters.snapshots_failed += 1
            log.debug("saving {channel}: {error}", channel=self.channel, error=error)
        else:
            around.counters.snapshots += 1
            self._kept, self._kept_at, self._kept_for = state, around.steady(), ttl
            return True
        finally:
            self._is_saving = False
        return False

    # -- the end -----------------------------------------------------------------------------------------

    def hand_over(self) -> None:
        """Another shard is to own it. Idempotent."""
        self._is_wanted = False
        if self.state is State.OPEN:
            self.state = State.CLOSING
            self._go(self._hand_over())

    async def _hand_over(self) -> None:
        running = self.running
        assert running is not None
        self._stop_timers()
        running.stop()
        self._send_away()
        await self._within(running.when_idle(), IDLE_SECONDS)
        # Also after a gap: the hub takes it only if nobody has taken over meanwhile.
        state = self._frozen() if running.shape.keeps else None
        # What ends from now on is not in the state that goes to the next owner: it must not be called done.
        running.end()
        if state is not None:
            await self._save_at_last(state)
        self._around.counters.handed_over += 1
        await self._leave()

    def close(self) -> None:
        """Nobody needs it. Idempotent."""
        self._is_wanted = False
        if self.state is State.OPEN:
            self.state = State.CLOSING
            self._go(self._close())

    async def _close(self) -> None:
        running, host = self.running, self._around.host
        assert running is not None
        self._stop_timers()
        running.stop()
        self._send_away()
        shape = running.shape
        if shape.has("closed") and self.may_act:
            try:
                answer = host.call(f"{shape.name}.closed", None, running.object.closed)
                if isinstance(answer, Deferred):
                    await answer
            except (Refused, Ended):
                log.debug("{channel} was not closed cleanly", channel=self.channel)
        if shape.keeps:
            await self._keep(running)
        running.end()
        await self._leave()

    async def _keep(self, running: Running) -> None:
        """Save what the channel's next object begins with. If it cannot be had, the last snapshot stays."""
        keep = running.shape.cls.keep_seconds
        state = self._frozen() if keep else b""
        if state is not None:
            await self._save_at_last(state, max(1, int(keep)))

    async def _save_at_last(self, state: bytes, ttl_seconds: int = 0) -> None:
        """There will be no other: until it is done, another has taken the channel, or it takes too long."""
        until = self._around.steady() + CLOSE_SECONDS
        while self.state is State.CLOSING and self._around.steady() < until:
            if await self._save(state, ttl_seconds):
                return
            await self._pause(AGAIN_SECONDS)

    async def _leave(self) -> None:
        """Nobody owns the channel."""
        if self._ownership is not None and self.state is not State.OVER:
            try:
                await self._asked(self._around.hub.give_up(self.channel, self._ownership))
            except (HubError, TimeoutError, CancelledError) as error:
                log.debug("giving {channel} up: {error}", channel=self.channel, error=error)
        if self.state is not State.OVER:
            self.is_free = not self.is_broken
            self._end()

    def cut(self) -> None:
        """The shard ends: be gone at once."""
        self._is_wanted = False
        self._end()

    def _end(self) -> None:
        if self.state is State.OVER:
            return
        self.state = State.OVER
        self._around.counters.objects -= 1
        if self.running is not None:
            self.running.end()
        self._stop_timers()
        self._send_away()
        ends, self._ends = self._ends, []
        self._over()
        for each in ends:
            each.callback(None)

    def _send_away(self) -> None:
        """Commands that have not begun."""
        while self._waiting:
            call, _, done = self._pop()
            is_broken = self.is_broken
            done.callback(refused(call.number, codes.INTERNAL_ERROR) if is_broken else not_here(call.number))

    def _stop_timers(self) -> None:
        if self._snapshots is not None:
            self._snapshots.cancel()
            self._snapshots = None

    # -- parts of it -------------------------------------------------------------------------------------

    def _go(self, coroutine: Any) -> None:
        Deferred.fromCoroutine(coroutine).addErrback(self._bug)

    def _bug(self, failure: Failure) -> None:
        log.failure("the owner of {channel}", failure, channel=self.channel)
        self.is_broken = True
        self._end()

    def _asked(self, answer: Deferred[Any]) -> Deferred[Any]:
        return answer.addTimeout(HUB_SECONDS, cast(Any, self._around.clock))

    def _in_turn(self, ask: Callable[..., Deferred[Any]], *arguments: Any) -> Deferred[Any]:
        return self._around.gate.run(lambda: self._asked(ask(*arguments)))

    def _pause(self, seconds: float) -> Deferred[None]:
        pause: Deferred[None] = Deferred()
        self._around.clock.callLater(seconds, pause.callback, None)
        return pause

    async def _within(self, done: Deferred[None], seconds: float) -> None:
        try:
            await done.addTimeout(seconds, cast(Any, self._around.clock))
        except TimeoutError:
            log.debug("commands of {channel} go on", channel=self.channel)


def not_here(number: int) -> Outcome:
    """A command was not begun."""
    return Outcome(number, Result.NOT_HERE)
