"""Questions between the memory hubs of one exchange.

Question and answer take a reactor turn each, as they do through Redis; what is on its way when the
exchange is cut is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from twisted.internet.defer import Deferred, fail

from spread.hub.api import HubCounters, Receiver
from spread.hub.asking import Answering, OpenQuestions
from spread.hub.errors import HubError, HubUnavailable, ShardUnknown
from spread.hub.reactor import Clock

__all__ = ["MemoryQuestions", "Switchboard"]


class Switchboard:
    """What the questions of all hubs of an exchange share: who is there."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.is_cut = False
        self.shards: dict[bytes, MemoryQuestions] = {}

    def cut(self) -> None:
        """No question and no answer arrives any more."""
        self.is_cut = True
        for questions in list(self.shards.values()):
            questions.lose("cut")

    def restore(self) -> None:
        """They do again."""
        self.is_cut = False

    def carry(self, deliver: Callable[[], None]) -> None:
        """Do something a turn from now, unless the exchange is cut by then."""
        self.clock.callLater(0, lambda: None if self.is_cut else deliver())


class MemoryQuestions:
    """See ``api.Hub.ask`` for the promises.

    :param shard: incarnation, 8 bytes.
    """

    def __init__(
        self, switchboard: Switchboard, hub: str, shard: bytes, seconds: float, counters: HubCounters
    ) -> None:
        self._switchboard = switchboard
        self._hub = hub
        self._shard = shard
        self._seconds = seconds
        self._open = OpenQuestions(switchboard.clock, hub, seconds, counters)
        self._answering: Answering | None = None
        self._is_stopped = False

    def start(self, receiver: Receiver) -> None:
        """From now on this shard is asked, and may ask."""
        self._answering = Answering(
            self._switchboard.clock, self._seconds, lambda question: receiver.asked(question)
        )
        self._switchboard.shards[self._shard] = self

    def stop(self) -> None:
        """Fail what waits for answers, answer with b"" who waits for ours. Idempotent."""
        self._is_stopped = True
        self._open.lose("this shard is stopping")
        if self._answering is not None:
            self._answering.stop()
            self._switchboard.shards.pop(self._shard, None)

    def lose(self, reason: str) -> None:
        """Fail what waits for answers."""
        self._open.lose(reason)

    def ask(self, question: bytes, shard: str) -> Deferred[list[bytes]]:
        """See ``api.Hub``."""
        if self._switchboard.is_cut or self._is_stopped or self._answering is None:
            reason = "this shard is stopping" if self._is_stopped else "cut"
            return fail(HubUnavailable(self._hub, reason))
        asked = [
            questions
            for questions in self._switchboard.shards.values()
            if shard in ("", questions._shard.hex())
        ]
        if not asked:
            return fail(ShardUnknown(shard, is_unheard=True))
        try:
            number, result = self._open.open(question)
        except HubError as error:
            return fail(error)
        self._open.expect(number, len(asked))
        for questions in asked:
            self._switchboard.carry(partial(questions._hear, self, number, question))
        return result

    def _hear(self, asker: MemoryQuestions, number: int, question: bytes) -> None:
        def reply(answer: bytes) -> None:
            self._switchboard.carry(lambda: asker._open.answered(number, self._shard, answer))

        if self._answering is not None:
            self._answering.hear(question, reply)
