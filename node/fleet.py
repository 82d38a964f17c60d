"""Several shards on one machine: a parent process that serves nobody and keeps its children running.

Each child is a shard of its own, in a process of its own. What ties it to the parent:

*   *Sockets.* The parent owns one SO_REUSEPORT socket per child and service, from the first day to the
    last. The child inherits them from descriptor 3 on and listens on them (``spread.node.listen``). When
    the child dies or is replaced, the connections in its queue wait for the successor: none is reset, none
    refused, and no sibling is involved.
*   *Life line.* Descriptor 0 is the reading end of a pipe into which nothing is ever written. End of file
    means that the parent is gone, however it died: the child then stops by itself.
*   *Standard output.* Descriptor 1 goes to the parent, which passes on every line, whole. The line with
    ``ready shard=N`` says that shard N takes clients; ``reloading shard=N`` that it begins to update its
    app, and ``reloaded shard=N`` or ``refused shard=N`` what became of that. Standard error is the parent's
    own.
*   *Signals.* SIGTERM from the parent asks for a clean stop. From a terminal, SIGINT and SIGHUP reach the
    children as well as the parent; a child leaves both to its parent.

What is promised:

1.  The death of a shard touches no other shard. It is started again, after 0.1 s, doubling to 5 s.
2.  A fleet that cannot start says why by its exit code: that of a child that ended with 2 (configuration), 3
    (number taken) or 4 (hub) and was never ready; 1 when a shard died five times and was never ready. A
    shard that was ready once is never given up.
3.  A roll replaces one shard at a time, and goes on only when the successor is ready. It does not begin
    when a shard could not start with what is configured now: clients would wait in the queue of a shard
    that does not come back.
4.  A reload asks one shard after the other to update its app, each when the one before has said that it has
    done so, and stops at the first that has not.
5.  A stop is bounded: what has not ended after its time is killed.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Mapping, Sequence

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from spread.node.child import FLEET_LIFELINE, Check, Child, Ending, ProcessReactor, Recipe, State

__all__ = ["FLEET_LIFELINE", "Fleet", "State"]

FATAL_CODES = frozenset({2, 3, 4})
EARLY_DEATHS_MAX = 5

log = Logger("spread.node.fleet")


class Fleet:
    """Runs shards as child processes, until it is stopped or cannot go on. For one use."""

    def __init__(
        self,
        reactor: ProcessReactor,
        *,
        shards: Sequence[int],
        command: Sequence[str],
        sockets: Mapping[int, Mapping[str, socket.socket]],
        environ: Mapping[str, str],
        out: Callable[[str], object],
        stop_seconds: float,
        start_seconds: float | None = None,
        random: Callable[[], float] = random.random,
        check: Sequence[str] = (),
        reload_seconds: float = 60.0,
    ) -> None:
        """
        :param shards: the numbers, at least one.
        :param command: what runs one shard; ``--shard N`` is added.
        :param sockets: by shard number, then by service. The fleet owns them, and closes them in the end.
        :param environ: of the children.
        :param out: gets each line that a child writes to its standard output, line end included. An
            ``OSError`` of it is logged once, and ends the passing on; the shards run on.
        :param stop_seconds: how long a clean stop of a child may take; it is killed two seconds later.
        :param start_seconds: a child that is not ready by then is killed, which counts as its death; give
            it more than the time it may wait for its hub. ``None``: as long as it takes.
        :param random: from 0 to below 1, for the pauses between two starts.
        :param reload_seconds: how long a shard may take to update its app.
        :param check: what tells before a roll, by exit code 0, that shards could start. Empty: nothing does.
        """
        if not shards:
            raise ValueError("a fleet needs a shard")
        self._reactor = reactor
        self._environ = environ
        self._check_command = tuple(check)
        self._check: Check | None = None
        recipe = Recipe(tuple(command), environ, stop_seconds, start_seconds)
        self._out: Callable[[str], object] | None = out
        self._children = [
            Child(reactor, self, number, sockets.get(number, {}), recipe, random) for number in shards
        ]
        self._early_deaths = dict.fromkeys(shards, 0)
        self._done: Deferred[int] = Deferred()
        self._code: int | None = None
        self._all_begun = False
        self._is_asked_to_stop = False
        self._is_stopping = False
        self._is_clean = True
        self._wants_roll = False
        self._is_rolling = False
        self._reload_seconds = reload_seconds
        self._to_reload: set[int] = set()
        self._is_reloading = False

    @property
    def states(self) -> dict[int, State]:
        """Of every shard, by its number."""
        return {child.number: child.state for child in self._children}

    def start(self) -> Deferred[int]:
        """Start all shards. The first one alone, since it may have to start the hub; then the others.

        :returns: fires with the exit code of the whole when all children are gone. Never fails.
        """
        if not self._is_stopping:
            log.debug("starting {count} shards", count=len(self._children))
            self._children[0].begin()
        return self._done

    def roll(self) -> None:
        """Replace the shards one by one, so that they run what is installed and configured now.

        When they could not start, none is replaced. When a replacement does not become ready, the others
        keep running what they run. Asked for while
        shards start for the first time, or during a roll, it is done afterwards, once.
        """
        self._wants_roll = True
        self._roll_if_wanted()

    def reload(self) -> None:
        """Let the shards update their app, one after the other, up to the first that refuses.

        A shard that starts is asked when it is ready, since its app may be imported already; one that does
        not run is left out. Asked for during a reload or a roll, it is done afterwards, once.
        """
        self._to_reload.update(child.number for child in self._children)
        self._reload_if_wanted()

    def stop(self) -> None:
        """Ask every child to stop; called a second time, kill those that are left."""
        if self._is_asked_to_stop:
            for child in self._children:
                child.kill()
            return
        self._is_asked_to_stop = True
        if not self._is_stopping:
            self._finish(None)

    # -- what the children call ----------------------------------------------------------------------------

    def child_said(self, line: str) -> None:
        """Pass on a line of a child."""
        if self._out is None:
            return
        try:
            self._out(line + "\n")
        except OSError as error:
            self._out = None
            log.error("what shards print is no longer passed on: {error}", error=error)

    def child_ready(self) -> None:
        """A shard takes clients."""
        self._begin_others()
        self._roll_if_wanted()
        self._reload_if_wanted()

    def child_ended(self, child: Child, before: State, ending: Ending) -> None:
        """The process of a shard has ended; ``before`` is the state it ended in."""
        if self._is_stopping:
            self._is_clean = self._is_clean and ending.is_clean
            if self._code is None:
                log.info("shard {shard} has ended ({how})", shard=child.number, how=ending.text)
            child.close()
            self._finish_if_gone()
        elif before is State.STOPPING:
            if not ending.is_clean:
                log.warn("shard {shard} did not stop cleanly ({how})", shard=child.number, how=ending.text)
            child.begin()
        elif not self._gave_up(child, ending):
            seconds = child.begin_later()
            log.warn(
                "shard {shard} has ended ({how}); it starts again in {seconds:.1f} s",
                shard=child.number,
                how=ending.text,
                seconds=seconds,
            )
            child.settle(False)
            self._begin_others()

    # -- inside --------------------------------------------------------------------------------------------

    def _begin_others(self) -> None:
        if not self._all_begun:
            self._all_begun = True
            for child in self._children[1:]:
                child.begin()

    def _gave_up(self, child: Child, ending: Ending) -> bool:
        """Whether the fleet ends because of an unexpected death; if so, it is on its way."""
        if child.was_ready:
            return False
        self._early_deaths[child.number] += 1
        if ending.code in FATAL_CODES:
            # The child has said why, in one line on stderr; more would only bury that.
            log.debug(
                "shard {shard} has ended ({how}) before it was ready: the fleet stops",
                shard=child.number,
                how=ending.text,
            )
            self._finish(ending.code)
        elif self._early_deaths[child.number] >= EARLY_DEATHS_MAX:
            log.error(
                "shard {shard} has died {count} times before it was ready, the last time by {how}: "
                "the fleet stops",
                shard=child.number,
                count=self._early_deaths[child.number],
                how=ending.text,
            )
            self._finish(1)
        return self._is_stopping

    def _roll_if_wanted(self) -> None:
        if self._is_stopping or self._is_rolling or self._is_reloading or not self._wants_roll:
            return
        if all(child.was_ready for child in self._children):
            self._wants_roll = False
            self._is_rolling = True
            rolling = Deferred.fromCoroutine(self._roll())
            rolling.addErrback(lambda failure: log.failure("rolling the shards", failure))
            rolling.addBoth(self._rolled)

    def _reload_if_wanted(self) -> None:
        if self._is_stopping or self._is_rolling or self._is_reloading:
            return
        asked = [child for child in self._children if child.number in self._to_reload]
        self._to_reload = {child.number for child in asked if child.state is State.STARTING}
        numbers = [child.number for child in asked if child.state is State.READY]
        if not numbers:
            return
        self._is_reloading = True
        reloading = Deferred.fromCoroutine(self._reload(numbers))
        reloading.addErrback(lambda failure: log.failure("reloading the shards", failure))
        reloading.addBoth(self._reloaded)

    async def _reload(self, numbers: Sequence[int]) -> None:
        done = 0
        for child in self._children:
            if self._is_stopping:
                return
            if child.number not in numbers or child.state is not State.READY:
                continue
            if not await child.reload(self._reload_seconds):
                if not self._is_stopping:
                    log.error(
                        "shard {shard} has not updated its app: the reload ends here, the others run what "
                        "they run",
                        shard=child.number,
                    )
                self._to_reload.clear()
                return
            done += 1
        log.info("{count} shards have updated their app", count=done)

    def _reloaded(self, _: object) -> None:
        self._is_reloading = False
        self._roll_if_wanted()
        self._reload_if_wanted()

    async def _could_start(self) -> bool:
        """Whether a shard could, with what is installed and configured now; if not, that is logged."""
        if not self._check_command:
            return True
        self._check = Check(self._reactor, self._check_command, self._environ)
        ending = await self._check.run()
        self._check = None
        if self._is_stopping:
            return False
        if ending.code != 0:
            log.error(
                "a shard could not start with what is configured now ({how}): no shard is replaced",
                how=ending.text,
            )
        return ending.code == 0

    async def _roll(self) -> None:
        if not await self._could_start():
            return
        total = len(self._children)
        for position, child in enumerate(self._children, 1):
            log.info(
                "rolling shard {shard} ({position} of {total})",
                shard=child.number,
                position=position,
                total=total,
            )
            if await child.replace():
                continue
            if not self._is_stopping:
                log.error(
                    "the replacement of shard {shard} did not become ready: the roll ends here, the others "
                    "keep running what they run",
                    shard=child.number,
                )
            return
        log.info("rolled {total} shards", total=total)

    def _rolled(self, _: object) -> None:
        self._is_rolling = False
        self._roll_if_wanted()
        self._reload_if_wanted()

    def _finish(self, code: int | None) -> None:
        """Stop all shards; the exit code is ``code``, or says whether they ended well."""
        self._is_stopping = True
        self._code = code
        if self._check is not None:
            self._check.kill()
        for child in self._children:
            # Nobody will take what would still come to them: with our copies closed first, clients are
            # refused as soon as the child stops listening, and can go elsewhere at once.
            child.close_sockets()
        for child in self._children:
            child.stop()
        self._finish_if_gone()

    def _finish_if_gone(self) -> None:
        if not self._done.called and all(child.state is State.GONE for child in self._children):
            code = self._code if self._code is not None else (0 if self._is_clean else 1)
            if self._code is None:
                log.info("all shards have ended; exit code {code}", code=code)
            self._done.callback(code)
