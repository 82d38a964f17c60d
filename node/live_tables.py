"""The tables that a shard has now: follows its directory, and announces what changes.

Every second the directory is looked at; when it has changed, and not changed again since the look before, it
is read. If all of it is right it becomes ``tables`` in one turn, else the old tables stay and the log says
why. What is new is announced on ``$tables``, once for all shards that saw the same change.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.api import Format, History, Hub, PublishOptions
from spread.hub.errors import HubError
from spread.hub.reactor import Timer
from spread.node.metrics import ShardCounters
from spread.node.tables import MAX_BYTES, TABLES_CHANNEL, Tables, TablesBroken, etag_of, signature_of

__all__ = ["ANNOUNCE_SECONDS", "LOOK_SECONDS", "LiveTables"]

LOOK_SECONDS = 1.0
ANNOUNCE_SECONDS = 2.0
"""A change is announced so long after it was taken: by then other shards have seen it too, so that who hears
of it gets it, whichever shard they ask."""
RETRY_SECONDS = 5.0
"""So long after the hub did not take an announcement it is tried again."""
SAME_KEY_SECONDS = 300.0
"""So long the hub knows the key of an announcement."""

_Result = TypeVar("_Result")
InThread = Callable[[Callable[[], _Result]], "Deferred[_Result]"]


class LiveTables:
    """See the top of this module.

    :param tables: those of ``directory``, read at the start.
    :param history: what ``$tables`` keeps, by its namespace.
    :param in_thread: calls a function that reads files; tests call it at once.
    """

    log = Logger("spread.node.live_tables")

    def __init__(
        self,
        reactor: Any,
        tables: Tables,
        directory: str,
        *,
        hub: Hub,
        history: History | None,
        counters: ShardCounters,
        max_bytes: int = MAX_BYTES,
        in_thread: InThread[Any] | None = None,
    ) -> None:
        self.tables = tables
        """The newest that are right. Who holds on to an older one reads what it read before."""
        self._reactor = reactor
        self._directory = directory
        self._hub = hub
        self._history = history
        self._counters = counters
        self._max_bytes = max_bytes
        self._in_thread: InThread[Any] = in_thread or partial(
            deferToThreadPool, reactor, reactor.getThreadPool()
        )
        self._lock = DeferredLock()
        self._taken: object = tables._signature
        """What the directory was like when it was read last."""
        self._seen: object = self._taken
        """What it was like at the last look."""
        self._timer: Timer | None = None
        self._announcing: Timer | None = None
        self._is_stopped = False
        self._changes: list[tuple[float, bytes]] = []
        counters.tables_bytes = self._size

    @property
    def announcement(self) -> bytes:
        """``{"tables": {NAME: ETAG}}`` as JSON."""
        return msgspec.json.encode({"tables": self.tables._etags})

    def file(self, name: str) -> tuple[bytes, str] | None:
        """The file of a table, and its ETag without quotes; ``None`` if there is no such table."""
        text = self.tables._files.get(name)
        return None if text is None else (text, self.tables._etags[name])

    @property
    def _size(self) -> int:
        return sum(map(len, self.tables._files.values()))

    # -- following ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Look at the directory from now on."""
        self._timer = self._reactor.callLater(LOOK_SECONDS, self._look)

    def stop(self) -> None:
        """Look no more, announce no more. Idempotent."""
        self._is_stopped = True
        for timer in (self._timer, self._announcing):
            if timer is not None:
                timer.cancel()
        self._timer = self._announcing = None

    def reload(self) -> Deferred[bool]:
        """Read the directory now; whether something was new in it.

        :raises TablesBroken: the old tables stay.
        """
        return self._lock.run(lambda: Deferred.fromCoroutine(self._read()))

    def _look(self) -> None:
        self._timer = None
        looking = self._lock.run(lambda: Deferred.fromCoroutine(self._read_if_changed()))
        looking.addErrback(self._failed)
        looking.addBoth(self._looked)

    def _looked(self, _: object) -> None:
        if not self._is_stopped:
            self._timer = self._reactor.callLater(LOOK_SECONDS, self._look)

    async def _read_if_changed(self) -> None:
        now = await self._in_thread(partial(signature_of, Path(self._directory)))
        is_settled = now == self._seen
        self._seen = now
        if is_settled and now != self._taken:
            self._taken = now  # also if it is broken: that is told once
            await self._read()

    async def _read(self) -> bool:
        try:
            tables = await self._in_thread(partial(Tables, self._directory, self._max_bytes))
        except TablesBroken:
            self._counters.tables_refused += 1
            raise
        self._taken = tables._signature
        if self._is_stopped or tables._etags == self.tables._etags:
            return False
        old, self.tables = self.tables._etags, tables
        self._counters.tables_reloads += 1
        self._counters.tables_bytes = self._size
        new = {name for name, etag in tables._etags.items() if old.get(name) != etag}
        gone = [f"-{name}" for name in old if name not in tables]
        self.log.info("new tables: {names}", names=" ".join([*sorted(new), *gone]))
        self._announce_later()
        return True

    def _failed(self, failure: Failure) -> None:
        if failure.check(TablesBroken):
            self.log.error("the tables stay as they were: {why}", why=failure.value)
        else:
            self.log.failure("looking at the tables", failure)

    # -- announcing --------------------------------------------------------------------------------------

    def _announce_later(self) -> None:
        now, told = self._reactor.seconds(), self.announcement
        # Tables may go and come again. How many times they have come is the same on every shard that saw it,
        # and belongs into the key: else the hub would take the second time for the first.
        self._changes = [change for change in self._changes if now - change[0] < SAME_KEY_SECONDS]
        times = sum(1 for _, each in self._changes if each == told)
        self._changes.append((now, told))
        if self._announcing is not None:
            self._announcing.cancel()
        self._announcing = self._reactor.callLater(ANNOUNCE_SECONDS, self._announce, told, times)

    def _announce(self, told: bytes, times: int) -> None:
        self._announcing = None
        key = f"tables {etag_of(told)} {times}"
        options = PublishOptions(history=self._history, idempotency_key=key)
        publishing = self._hub.publish(TABLES_CHANNEL, told, Format.JSON, 0, options)
        publishing.addErrback(self._not_announced, told, times)

    def _not_announced(self, failure: Failure, told: bytes, times: int) -> None:
        if not failure.check(HubError):
            self.log.failure("announcing the tables", failure)
            return
        self.log.warn("the new tables were not announced: {why}", why=failure.value)
        if not self._is_stopped and self._announcing is None:
            self._announcing = self._reactor.callLater(RETRY_SECONDS, self._announce, told, times)
