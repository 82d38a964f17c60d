"""After an outage: are the other shards back?

When Redis returns, every shard finds it at a moment of its own, up to 2 s apart. A publication that the
first one sends at once is heard by nobody else yet. So a shard subscribes to one more channel as the last
thing after an outage, and a shard that is back first keeps its journal until as many hear that channel as
did before; for ``WAIT_SECONDS`` at most, since one of them may have died meanwhile.

The count is asked every ``COUNT_SECONDS`` (``PUBSUB NUMSUB``, one integer) and, while this shard waits, every
``LOOK_SECONDS``. Where an ACL forbids asking, nobody waits and
nobody asks again; a server that is busy is asked again later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.dialect import CLASSIC, Dialect
from spread.hub.errors import HubError, LinkLost, ReplyError
from spread.hub.link import LAST_DELAY_SECONDS, CommandProtocol, SubscriberProtocol
from spread.hub.reactor import Clock, Timer

__all__ = ["Gathering"]

COUNT_SECONDS = 0.5
LOOK_SECONDS = 0.05
WAIT_SECONDS = LAST_DELAY_SECONDS + 0.2
"""A shard tries to connect at least every two seconds; a little more for its handshake."""


class Gathering:
    """How many shards hear, and what waits for that.

    :param key: the channel that every shard hears which hears all of its channels.
    """

    log = Logger("spread.hub.gathering")

    def __init__(self, clock: Clock, key: bytes, dialect: Dialect = CLASSIC) -> None:
        self._clock = clock
        self.key = key
        """May be changed while no connection takes part or is waited for."""
        self._dialect = dialect
        self.known = 0
        """Shards that heard when they were last counted."""
        # Whether this shard hears, and whether it ever did: the journal waits for its own ears too, also
        # when the outage came before the first count.
        self._hears = False
        self._has_heard = False
        self._connection: CommandProtocol | None = None
        self._done: Callable[[], None] | None = None
        self._deadline = 0.0
        self._timer: Timer | None = None

    def take_part(self, connection: SubscriberProtocol) -> None:
        """This shard hears all of its channels again."""
        self._hears = self._has_heard = True
        connection.change_subscriptions(self._dialect.subscribe, [self.key])

    def hear_no_more(self) -> None:
        """The connection that took part is gone."""
        self._hears = False

    def wait(self, connection: CommandProtocol, done: Callable[[], None]) -> None:
        """Call ``done`` when as many shards hear as before, or it has taken too long.

        From then on the count is kept up to date, until ``stop``.
        """
        self.stop()
        self._connection = connection
        self._done = done
        self._deadline = self._clock.seconds() + WAIT_SECONDS
        self._ask(connection)

    def stop(self) -> None:
        """The connection is gone: wait and ask no more; ``done`` is not called. Idempotent."""
        self._connection = None
        self._done = None
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _ask(self, connection: CommandProtocol) -> None:
        self._timer = None
        asked: Deferred[Any] = connection.execute_command(b"PUBSUB", self._dialect.count, self.key)
        asked.addCallbacks(self._told, self._not_told, callbackArgs=(connection,), errbackArgs=(connection,))
        asked.addErrback(lambda failure: self.log.failure("counting the shards", failure))

    def _told(self, reply: Any, connection: CommandProtocol) -> None:
        if connection is not self._connection:
            return
        count: int = reply[1]
        is_complete = count >= self.known and (self._hears or not self._has_heard)
        if self._done is not None and not is_complete and self._clock.seconds() < self._deadline:
            self._timer = self._clock.callLater(LOOK_SECONDS, self._ask, connection)
            return
        self.known = count
        self._timer = self._clock.callLater(COUNT_SECONDS, self._ask, connection)
        self._finish()

    def _not_told(self, failure: Failure, connection: CommandProtocol) -> None:
        failure.trap(HubError)
        if connection is not self._connection or failure.check(LinkLost):
            return
        if isinstance(failure.value, ReplyError) and failure.value.is_later:
            self._timer = self._clock.callLater(COUNT_SECONDS, self._ask, connection)
        self._finish()

    def _finish(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            done()
