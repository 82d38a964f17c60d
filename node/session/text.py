"""A client of the text protocol, as the shard sees it: who it is, what it may do, which command.

    state     event                          next      what happens
    OPENING   the hub has counted it, and
              its channel is heard           OPEN      greeting, then what it said meanwhile
    OPENING   the hub stays away             CLOSING   error line
    OPEN      message                        OPEN      published; the client is not read while too much is
                                                       on its way
    OPEN      /join                          OPEN      later commands wait until the channel is heard
    OPEN      close                          CLOSING   what waits is sent, then the connection ends
    OPEN      message too long               CLOSING   error line
    any       outbox over its limit          CLOSED    the connection is dropped, and counted
    any       the shard stops                CLOSING   goodbye line
    any       connection lost                CLOSED    it leaves its channel

Whenever a connection ends but by its client's wish or for want of a hub, what the client had said before is
still published, also what waited for an opening or a join.

A session never touches a transport: it has an outbox to write to, and an ``Edge`` to ask for the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from enum import Enum
from typing import Any, TypeVar, cast
from uuid import uuid4

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.api import PLAIN, Format, PublishOptions
from spread.hub.errors import HubError, HubRefused, HubUnavailable, JournalFull
from spread.node import codes
from spread.node.channel import Channel
from spread.node.codec import Codec
from spread.node.encoders import TEXT
from spread.node.limits import Rate
from spread.node.outbox import Outbox
from spread.node.session.logic import Admitted
from spread.node.session.party import TextParty
from spread.node.session.rest import identify, may_enter, say_rest
from spread.node.session.shared import Ended, Refused
from spread.node.session.subscribing import Grant
from spread.node.session.surroundings import Edge, Surroundings
from spread.node.wire.text import Join, Say, channel_name, error_line, parse

__all__ = ["Edge", "Session", "SessionState", "Surroundings"]

T = TypeVar("T")

REST_SECONDS = 60.0
"""How long the team's code may think, in all, about what a client has said that has gone."""

COUNT_AGAIN_SECONDS = 0.25
"""Pause before the hub is asked again for the number of a new client."""


class SessionState(Enum):
    """See the table at the top of this module."""

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Session(TextParty):
    """One text client. ``number`` is unique on this shard and never 0."""

    log = Logger("spread.node.session.text")

    __slots__ = (
        "_busy",
        "_channel",
        "_edge",
        "_inbox",
        "_is_admitted",
        "_is_held",
        "_is_reading",
        "_is_stopping",
        "_joining",
        "_publishing",
        "_rate",
        "_saying",
        "_shared",
        "_unacknowledged",
        "_unacknowledged_bytes",
        "app_client",
        "client",
        "codec",
        "conn_info",
        "number",
        "outbox",
        "state",
        "user",
        "view",
    )

    def __init__(self, number: int, edge: Edge, outbox: Outbox, shared: Surroundings) -> None:
        self.number = number
        self.outbox = outbox
        self.codec: Codec = TEXT
        self.client = ""
        """An id, where there is a team's own code; the protocol has none."""
        self.user = ""
        self.conn_info = b""
        self.app_client: Any = None
        """See ``logic.Party``."""
        self.view: Hashable | None = None
        self.state = SessionState.OPENING
        self._edge = edge
        self._shared = shared
        self._channel: Channel | None = None
        self._publishing = PLAIN  # how what it says in there is published
        # What was read and not yet worked on: waits while opening or joining. Bounded by one read, since
        # the edge is paused meanwhile.
        self._inbox: deque[bytes] | None = None
        # Opening or joining; cancelled when the connection is lost.
        self._busy: Deferred[Any] | None = None
        # The channel it waits for while joining: what is said meanwhile is meant for that one.
        self._joining: str | None = None
        # The team's code has nothing against it being where it is, or wants to be.
        self._is_admitted = shared.logic is None
        # The message that the team's code thinks about: done when that has been published, or not; gives
        # whether those behind it may be.
        self._saying: Deferred[bool] | None = None
        self._is_held = False
        self._is_reading = True
        self._is_stopping = False
        self._unacknowledged = 0
        self._unacknowledged_bytes = 0
        limit = shared.text.max_messages_per_second
        self._rate = Rate(limit, shared.clock.seconds()) if limit else None

    @property
    def hears_joins(self) -> bool:
        """See ``member.Member``: people who type are not told of machines that come and go."""
        return False

    def broken(self) -> None:
        """See ``member.Member``: the text protocol has no positions."""

    @property
    def _is_alive(self) -> bool:
        return self.state in (SessionState.OPENING, SessionState.OPEN)

    # -- opening -----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Count the client across the cluster, bring it into its first channel, greet it."""
        logic = self._shared.logic
        if logic is None:
            opening = self._with_deadline(Deferred.fromCoroutine(self._open()))
        else:
            self.client = str(uuid4())
            logic.arrived(self, b"")
            opening = Deferred.fromCoroutine(self._open_if_admitted())
        self._wait_for(opening, self._opened, self._not_opened)

    async def _open(self) -> tuple[int, Channel]:
        number = await self._count()
        # Last, so that the greeting is written in the same moment in which messages begin to come.
        return number, await self._heard(self._shared.text.channel)

    async def _open_if_admitted(self) -> tuple[int, Channel]:
        number = await self._with_deadline(Deferred.fromCoroutine(self._count()))
        await identify(self, self._shared)
        self._let_in()
        return number, await self._with_deadline(self._heard(self._shared.text.channel))

    def _heard(self, channel: str) -> Deferred[Channel]:
        return self._shared.channels.join(self, channel, self._shared.history_of(channel))

    def _with_deadline(self, result: Deferred[T]) -> Deferred[T]:
        """The same, failing when the hub takes too long. What the team's code takes is not the hub's time."""
        return result.addTimeout(self._shared.hub_settings.publish_seconds, cast(Any, self._shared.clock))

    async def _count(self) -> int:
        shared = self._shared
        while True:
            try:
                return await shared.hub.next_client()
            except HubUnavailable:
                # Asked again until the deadline; a count that was lost on the way is a gap in the numbers.
                pause: Deferred[None] = Deferred()
                timer = shared.clock.callLater(COUNT_AGAIN_SECONDS, pause.callback, None)
                try:
                    await pause
                finally:
                    if timer.active():
                        timer.cancel()

    def _let_in(self) -> None:
        """The team's code has nothing against it being where it is going.

        :raises CancelledError: it was sent away while that was asked.
        """
        if not self._is_alive:
            raise CancelledError
        self._is_admitted = True

    def _opened(self, counted: tuple[int, Channel]) -> None:
        number, channel = counted
        self._enter(channel)
        self.state = SessionState.OPEN
        self.outbox.write(self._shared.text.greeting.format(number=number).encode() + b"\n")
        if self._shared.logic is not None and self._is_alive:
            self._shared.logic.connected(self)
            self._shared.logic.subscribed(self, channel.name)

    def _not_opened(self, failure: Failure) -> None:
        if failure.check(Refused, Ended):
            self.refuse(_why(failure))
            return
        self._shared.counters.refused_hub += 1
        self.refuse(codes.HUB_AWAY)

    # -- what the client says ----------------------------------------------------------------------------

    def received(self, messages: list[bytes]) -> None:
        """Framed messages, in order."""
        if not self._is_alive:
            return
        if self._inbox is None:
            self._inbox = deque(messages)
        else:
            self._inbox.extend(messages)
        self._work()

    def _work(self) -> None:
        inbox = self._inbox
        spoke = False
        while inbox and self._busy is None and self.state is SessionState.OPEN:
            command = parse(inbox.popleft())
            if isinstance(command, Say):
                self._say(command.data)
                spoke = True
            elif isinstance(command, Join):
                self._join(command.name)
            else:
                self.end()
        if inbox is not None and not inbox:
            self._inbox = None
        if spoke and not self._is_held and self._shared.pressure.hold(self._said_in(), self):
            self._is_held = True
            self._shared.counters.held_publishers += 1
        self._read_or_not()

    def _read_or_not(self) -> None:
        """Read the client only while what it says can be worked on."""
        text = self._shared.text
        # Stop at the limit, go on at half of it: not one pause for each message.
        share = 1.0 if self._is_reading else 0.5
        is_crowded = (
            self._unacknowledged >= text.max_unacknowledged * share
            or self._unacknowledged_bytes >= text.max_unacknowledged_bytes * share
        )
        wanted = not (self._inbox or is_crowded or self._is_held or self._is_stopping)
        if wanted is not self._is_reading and self._is_alive:
            self._is_reading = wanted
            if wanted:
                self._edge.resume_reading()
            else:
                self._shared.counters.reading_pauses += is_crowded
                self._edge.pause_reading()

    def _say(self, data: bytes) -> None:
        shared = self._shared
        shared.counters.messages_in += 1
        if self._rate is not None and not self._rate.take(shared.clock.seconds()):
            shared.counters.rate_limited += 1
            limit = shared.text.max_messages_per_second
            self.outbox.write(error_line(codes.TOO_FAST.format(limit=limit)))
            return
        name, how = self._said_in(), self._publishing
        if shared.logic is None or shared.logic.publishing is None:
            self._hand_over(name, how, (data, Format.TEXT))
            return
        try:
            chosen = shared.logic.publishing(self, name, data, Format.TEXT)
        except (Refused, Ended) as error:
            self._kept_back(Failure(error))
            return
        if isinstance(chosen, Deferred):
            self._think(chosen, name, how)
        else:
            self._hand_over(name, how, chosen)

    def _think(self, chosen: Deferred[Any], name: str, how: PublishOptions) -> None:
        """The team's code has not made up its mind: later messages must not overtake this one."""

        def handed_over(value: tuple[bytes, Format] | None) -> bool:
            self._hand_over(name, how, value)
            return True

        def done(may_go_on: bool) -> bool:
            if self._saying is chosen:
                self._busy = self._saying = None
                self._work()
            return may_go_on

        def failed(failure: Failure) -> bool:
            self.log.failure("session {number}", failure, number=self.number)
            return False

        self._busy = self._saying = chosen
        chosen.addCallbacks(handed_over, self._kept_back).addCallback(done).addErrback(failed)

    def _hand_over(self, name: str, how: PublishOptions, chosen: tuple[bytes, Format] | None) -> None:
        """Publish, if there is anything to publish."""
        if chosen is None:
            return
        data, format_ = chosen
        size = len(data)
        self._unacknowledged += 1
        self._unacknowledged_bytes += size
        taken = self._shared.hub.publish(name, data, format_, self.number, how)
        taken.addCallbacks(self._taken, self._not_taken, callbackArgs=(size,), errbackArgs=(size,))

    def _kept_back(self, failure: Failure) -> bool:
        """The team's code refuses a message, or ends the connection for it. Gives whether it may say more."""
        failure.trap(Refused, Ended, CancelledError)
        if failure.check(CancelledError):
            return False  # the session has ended
        if failure.check(Ended):
            self.refuse(_why(failure))
            return False
        if self._is_alive:
            self.outbox.write(error_line(_why(failure)))
        return True

    def _said_in(self) -> str:
        """The channel that what this client says goes to."""
        return self._channel.name if self._channel is not None else self._shared.text.channel

    def released(self) -> None:
        """See ``pressure.Publisher``."""
        self._is_held = False
        self._read_or_not()

    def _taken(self, _: None, size: int) -> None:
        self._unacknowledged -= 1
        self._unacknowledged_bytes -= size
        if not self._is_reading:
            self._read_or_not()

    def _not_taken(self, failure: Failure, size: int) -> None:
        self._shared.counters.publish_errors += 1
        self.outbox.write(error_line(codes.NOT_DELIVERED))
        self._taken(None, size)
        if not failure.check(HubUnavailable, JournalFull):
            self.log.error("a message was not published: {why}", why=failure.getErrorMessage())

    def _join(self, raw: bytes) -> None:
        name = channel_name(raw)
        if name is None:
            self.outbox.write(error_line(codes.BAD_CHANNEL))
            return
        if self._channel is not None and self._channel.name == name:
            return
        if not self._shared.is_open(name):
            self.outbox.write(error_line(codes.CHANNEL_REFUSED.format(channel=name)))
            return
        logic = self._shared.logic
        if logic is None or logic.subscribing is None:
            joining = self._with_deadline(self._heard(name))
        else:
            self._is_admitted = False
            joining = Deferred.fromCoroutine(self._enter_by_wish(name))
        self._joining = name
        self._wait_for(joining, self._joined, lambda failure: self._not_joined(name, failure))

    async def _enter_by_wish(self, name: str) -> Channel:
        await may_enter(self, self._shared, name)
        self._let_in()
        return await self._with_deadline(self._heard(name))

    def _joined(self, channel: Channel) -> None:
        self._leave_channel()
        if not self._is_alive:  # a hook has ended it
            self._shared.channels.leave(self, channel)
            return
        self._enter(channel)
        if self._shared.logic is not None:
            self._shared.logic.subscribed(self, channel.name)

    def _leave_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            self._shared.channels.leave(self, channel)
            if self._shared.logic is not None:
                self._shared.logic.unsubscribed(self, channel.name)

    def _enter(self, channel: Channel) -> None:
        self._channel = channel
        self._publishing = self._shared.publishing_in(channel.name)

    def _not_joined(self, name: str, failure: Failure) -> None:
        if failure.check(Refused, Ended):
            self._kept_back(failure)
        elif failure.check(HubRefused):
            self.outbox.write(error_line(codes.CHANNEL_REFUSED.format(channel=name)))
        else:
            self.outbox.write(error_line(codes.HUB_AWAY))

    def _wait_for(self, result: Deferred[Any], done: Any, failed: Any) -> None:
        """Hold back later commands until ``result`` fires; nothing of it reaches a closed session."""

        def settle(outcome: Any) -> Any:
            self._busy = self._joining = None
            self._is_admitted = True  # where it is, or was before
            return outcome

        def succeeded(value: Any) -> None:
            if self._is_alive:
                done(value)
                return
            # A hook has ended it on the way, when it could not be stopped any more.
            channel = value[1] if isinstance(value, tuple) else value
            self._shared.channels.leave(self, channel)

        def not_succeeded(failure: Failure) -> None:
            if not failure.check(HubError, CancelledError, TimeoutError, Refused, Ended):
                self.log.failure("session {number}", failure, number=self.number)
            if self._is_alive:
                failed(failure)

        self._busy = result
        result.addBoth(settle)
        result.addCallbacks(succeeded, not_succeeded)
        result.addCallback(lambda _: self._work())
        result.addErrback(lambda failure: self.log.failure("session {number}", failure, number=self.number))

    # -- the end -----------------------------------------------------------------------------------------

    def refuse(self, text: str) -> None:
        """Say what is wrong, and end the connection."""
        if self._is_alive:
            self.outbox.write(error_line(text))
            self.end(linger=True)

    def overlong(self) -> None:
        """A message was larger than allowed."""
        if self._is_alive:
            self._shared.counters.too_long += 1
            self._say_the_rest()
            self.refuse(codes.TOO_LONG.format(limit=self._shared.text.message_max_bytes))

    def stop_reading(self) -> None:
        """Take in nothing more; what was taken in is still worked on."""
        if self._is_alive and self._is_reading:
            self._is_reading = False
            self._edge.pause_reading()
        if not self._is_stopping:
            self._is_stopping = True
            self._edge.flush()

    def cut(self) -> None:
        """Drop the connection now."""
        self._edge.cut()

    def goodbye(self, shard: int) -> None:
        """The shard stops."""
        if self._is_alive:
            self._say_the_rest()
            self.outbox.write(self._shared.text.goodbye.format(shard=shard).encode() + b"\n")
            self.end(linger=True)

    def end(self, linger: bool = False) -> None:
        """Send what waits, then end the connection."""
        if self._is_alive:
            self.state = SessionState.CLOSING
            self._inbox = None
            self._leave()
            self._edge.finish(linger)

    def lost(self) -> None:
        """The connection is gone. What the client said before is still published. Idempotent."""
        if self.state is SessionState.CLOSED:
            return
        if self._is_alive:
            self._say_the_rest()
        self.state = SessionState.CLOSED
        self._leave()
        self.outbox.abandon()

    def _say_the_rest(self) -> None:
        """Publish what was taken in and will not be worked on any more."""
        said, self._inbox = self._inbox, None
        saying, self._saying = self._saying, None
        if saying is not None:
            self._busy = None  # it is not cancelled with the session
        if said:
            rest = say_rest(
                self,
                self._shared,
                said,
                here=self._said_in(),
                joining=self._joining,
                is_admitted=self._is_admitted,
                saying=saying,
                rate=self._rate,
                lost=self._lost_message,
            )
            published = Deferred.fromCoroutine(rest)
            published.addTimeout(REST_SECONDS, cast(Any, self._shared.clock))
            published.addErrback(self._lost_message)

    def _lost_message(self, failure: Failure) -> None:
        if not failure.check(Refused, Ended):  # what the team's code does not want is no error
            failure.trap(HubError, TimeoutError)
            self._shared.counters.publish_errors += 1

    def _leave(self) -> None:
        busy, self._busy = self._busy, None
        if busy is not None:
            busy.cancel()
        self._leave_channel()
        if self._shared.logic is not None:
            self._shared.logic.disconnected(self, "connection closed")

    # -- for the team's code: see logic.Party, and party.TextParty ---------------------------------------

    @property
    def is_open(self) -> bool:
        """It was greeted, and has not been told to go."""
        return self.state is SessionState.OPEN

    def known_as(self, admitted: Admitted) -> None:
        """See ``rest.Speaker``."""
        self.user, self.conn_info = admitted.user, admitted.info

    def subscribe(self, channel: str, grant: Grant) -> Deferred[int]:
        """See ``logic.Party``."""
        options = self._shared.namespaces.options(channel)
        is_none = options is None or channel_name(channel.encode()) is None
        if is_none or not self.is_open or self._busy is not None or channel in self.channels:
            return succeed(0)
        joining = self._with_deadline(self._heard(channel))
        self._joining, self._is_admitted = channel, True
        outcome = [0]

        def joined(channel: Channel) -> None:
            outcome[0] = 1
            self._joined(channel)

        told: Deferred[int] = Deferred()
        self._wait_for(joining, joined, lambda failure: None)
        joining.addBoth(lambda _: told.callback(outcome[0]))
        return told


def _why(failure: Failure) -> str:
    """What the team's code says to a client."""
    error = failure.value
    if isinstance(error, Ended):
        return error.disconnect.reason
    assert isinstance(error, Refused)
    return error.error.message
