"""Commands on their way to the objects of channels, wherever these are.

A command waits here until it is known where its channel belongs and that shard has heard that who commands
is a member; then it goes there, with others, one batch after the other. What is done at once is in the answer
to the batch, the rest comes later. No command is done twice: only one that was answered ``NOT_HERE``, or was
heard by nobody, so that nothing was done, goes again, within its time. When a batch fails in another way, or
its shard dies, what it became is unknown, and told so (error 100).

The commands of one member in one channel begin in the order in which they were called: none goes while one
before it waits here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import cast

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.errors import HubError, ShardUnknown
from spread.hub.reactor import Timer
from spread.node import codes
from spread.node.control import ControlFailed
from spread.node.owners.places import Places
from spread.node.owners.surroundings import Surroundings
from spread.node.owners.wire import Batch, Call, Outcome, Outcomes, Result, Row
from spread.node.session.shared import Ended, Refused

__all__ = ["Routes"]

AGAIN_SECONDS = 0.05
"""After this time what was not there is looked for again."""

DOUBT_AFTER = 4
"""Times a command was not there, though its member was reported: then that is told again."""

BATCH_MAX_BYTES = 128 << 10
"""Of the parameters in one batch; one command may be larger."""

PARAMS_MAX_BYTES = 768 << 10
"""Of the parameters of one command: those that are in a batch with it must fit into a question, too."""

log = Logger("spread.node.owners")

Knows = Callable[[str, str, str], bool]
"""Whether a shard has heard that in a channel there is a member."""


class _Command:
    """One that waits for what becomes of it."""

    __slots__ = (
        *("channel", "command", "key", "member", "misses", "number", "params"),
        *("result", "target", "timer", "until"),
    )

    def __init__(
        self, number: int, channel: str, command: str, member: Row | None, params: bytes, until: float
    ) -> None:
        self.number = number
        self.channel = channel
        self.command = command
        self.member = member
        self.params = params
        self.until = until
        self.key = (channel, "" if member is None else member.id)
        """With which others it keeps its order."""
        self.misses = 0
        """Times it was answered ``NOT_HERE``."""
        self.target = ""
        """Where it is; "": not on its way."""
        self.timer: Timer | None = None
        self.result: Deferred[bytes]


class Routes:
    """See the top of this module.

    :param here: does a command on this shard.
    :param send: sends a batch to another.
    :param doubt: called with a shard and a channel of which the shard seems to know less than was reported.
    """

    def __init__(
        self,
        around: Surroundings,
        places: Places,
        knows: Knows,
        here: Callable[[Call], Outcome | Deferred[Outcome]],
        send: Callable[[str, Batch], Deferred[Outcomes]],
        doubt: Callable[[str, str], None],
    ) -> None:
        self._around = around
        self._places = places
        self._knows = knows
        self._here = here
        self._send = send
        self._doubt = doubt
        self._numbers = count(1)
        self._open: dict[int, _Command] = {}
        self._parked: dict[tuple[str, str], dict[int, None]] = {}
        """Those that wait here, by what they keep their order with."""
        self._ready: dict[str, dict[int, None]] = {}
        self._on_its_way: set[str] = set()
        self._turn: Timer | None = None
        self._again: Timer | None = None
        self._is_stopped = False

    def call(self, channel: str, command: str, member: Row | None, params: bytes) -> Deferred[bytes]:
        """Call a command; gives its result, as JSON.

        :param member: who commands; ``None``: the app.
        :raises Refused: at once, or as a failure; as which there may be ``Ended``, too.
        """
        around = self._around
        around.counters.calls += 1
        if len(self._open) >= around.limits.max_commands:
            around.counters.refused_full += 1
            raise Refused(codes.TOO_MANY_REQUESTS)
        if len(params) > PARAMS_MAX_BYTES:
            raise Refused(codes.LIMIT_EXCEEDED, f"{len(params)} bytes for the command {command[:64]!r}")
        seconds = around.limits.command_seconds
        number = next(self._numbers)
        one = _Command(number, channel, command, member, params, around.steady() + seconds)
        one.result = Deferred(lambda _: self._forget(number))
        one.timer = around.clock.callLater(seconds, self._late, number)
        self._open[number] = one
        around.counters.waiting += 1
        if self._is_stopped or one.key in self._parked or not self._dispatch(one):
            self._park(one)
        return one.result

    # -- there -------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Places have changed, or a shard has heard who is where."""
        for key in list(self._parked):
            for number in sorted(self._parked.pop(key, ())):
                one = self._open.get(number)
                # What is done here may not be there after all, and has been parked again then.
                if one is not None and (key in self._parked or not self._dispatch(one)):
                    self._park(one)

    def _park(self, one: _Command) -> None:
        one.target = ""
        self._parked.setdefault(one.key, {})[one.number] = None
        if self._again is None and not self._is_stopped:
            self._again = self._around.clock.callLater(AGAIN_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._again = None
        self.pump()  # what has to wait on comes back here

    def _dispatch(self, one: _Command) -> bool:
        """``False``: it has to wait."""
        place = self._places.of(one.channel)
        target = place.first
        if not target or not place.is_owned:
            return False
        if one.member is not None and not self._knows(target, one.channel, one.member.id):
            return False
        one.target = target
        if target == self._around.shard:
            outcome = self._here(self._call(one))
            if isinstance(outcome, Deferred):
                outcome.addCallback(partial(self._settle_one, target))
                outcome.addErrback(lambda failure: log.failure("a command", failure))
            else:
                self._settle_one(target, outcome)
            return True
        self._ready.setdefault(target, {})[one.number] = None
        self._soon()
        return True

    def _call(self, one: _Command) -> Call:
        left = max(0.0, one.until - self._around.steady())
        return Call(one.number, one.channel, one.command, one.member, one.params, left)

    def _soon(self) -> None:
        if self._turn is None and not self._is_stopped:
            self._turn = self._around.clock.callLater(0, self._flush)

    def _flush(self) -> None:
        self._turn = None
        for target in [target for target in self._ready if target not in self._on_its_way]:
            calls = self._batch(target)
            if calls:
                self._on_its_way.add(target)
                numbers = [call.number for call in calls]
                sent = self._send(target, Batch(calls))
                sent.addCallback(partial(self.settle, target))
                sent.addErrback(self._not_sent, target, numbers)
                sent.addBoth(self._sent, target)

    def _batch(self, target: str) -> list[Call]:
        waiting = self._ready.pop(target)
        calls: list[Call] = []
        room = BATCH_MAX_BYTES
        for number in sorted(waiting):
            if room <= 0:
                break
            del waiting[number]
            one = self._open.get(number)
            if one is None:
                continue
            # Who commands has left, or the shard knows nothing any more; or one before it has come back.
            is_known = one.member is None or self._knows(target, one.channel, one.member.id)
            if not is_known or one.key in self._parked:
                self._park(one)
                continue
            call = self._call(one)
            room -= len(call.params) + len(call.channel) + len(call.command) + 64
            calls.append(call)
        if waiting:
            self._ready[target] = waiting
        return calls

    def _sent(self, outcome: object, target: str) -> None:
        self._on_its_way.discard(target)
        if isinstance(outcome, Failure):
            log.failure("commands for {target}", outcome, target=target)
        if self._ready:
            self._soon()

    def _not_sent(self, failure: Failure, target: str, numbers: list[int]) -> None:
        is_unheard = failure.check(ShardUnknown) is not None and cast(ShardUnknown, failure.value).is_unheard
        for number in numbers:
            one = self._open.get(number)
            if one is None or one.target != target:
                continue
            if is_unheard:
                self._around.counters.asked_again += 1
                self._park(one)
            else:
                self._unknown(number)
        failure.trap(HubError, ControlFailed, TimeoutError, CancelledError)
        log.debug("commands for {target}: {why}", target=target, why=failure.value)

    def lost(self, shard: str) -> None:
        """It has gone: of what was there nothing will be heard."""
        self._on_its_way.discard(shard)
        ready = self._ready.pop(shard, {})
        for number, one in list(self._open.items()):
            if one.target == shard:
                if number in ready:
                    self._park(one)
                else:
                    self._unknown(number)

    # -- and back ----------------------------------------------------------------------------------------

    def settle(self, origin: str, outcomes: Outcomes) -> None:
        """What became of commands on a shard. Those that are not there, or nobody waits for, do not count."""
        for outcome in outcomes.outcomes:
            self._settle_one(origin, outcome)

    def _settle_one(self, origin: str, outcome: Outcome) -> None:
        number = outcome.number
        one = self._open.get(number)
        if one is None or one.target != origin:
            return
        match outcome.result:
            case Result.NOT_HERE:
                self._around.counters.asked_again += 1
                self._park(one)
                one.misses += 1
                if one.member is not None and one.misses % DOUBT_AFTER == 0:
                    self._doubt(origin, one.channel)
            case Result.UNKNOWN:
                self._unknown(number)
            case Result.DONE:
                self._close(one).callback(outcome.data)
            case Result.REFUSED:
                error = codes.Error(outcome.code, outcome.message, outcome.temporary)
                known = codes.ERRORS.get(error.code)  # which sessions may know by its identity
                if known is not None and known == error:
                    error = known
                self._close(one).errback(Refused(error))
            case Result.ENDED:
                why = codes.Disconnect(outcome.code, outcome.message)
                self._close(one).errback(Ended(why, f"by the command {one.command}"))

    def _unknown(self, number: int) -> None:
        one = self._open.get(number)
        if one is not None:
            self._around.counters.unknown += 1
            self._close(one).errback(Refused(codes.INTERNAL_ERROR, "what became of a command is unknown"))

    def _late(self, number: int) -> None:
        one = self._open[number]
        if one.target:
            self._unknown(number)
        else:
            self._close(one).errback(Refused(codes.INTERNAL_ERROR, "the owner of a channel was not found"))

    def _close(self, one: _Command) -> Deferred[bytes]:
        self._forget(one.number)
        return one.result

    def _forget(self, number: int) -> None:
        one = self._open.pop(number, None)
        if one is not None:
            parked = self._parked.get(one.key)
            if parked is not None:
                parked.pop(number, None)
                if not parked:
                    del self._parked[one.key]
            self._around.counters.waiting -= 1
            if one.timer is not None and one.timer.active():
                one.timer.cancel()

    def stop(self) -> None:
        """Answer whoever waits. Idempotent."""
        self._is_stopped = True
        for timer in (self._turn, self._again):
            if timer is not None:
                timer.cancel()
        self._turn = self._again = None
        for number in list(self._open):
            self._unknown(number)
