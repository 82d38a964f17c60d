"""Questions between shards, through Redis.

    PREFIX:control              pub/sub channel that every shard hears
    PREFIX:control:INCARNATION  pub/sub channel that one shard hears: questions to it alone, answers to it

A question is published to one of these, and ``PUBLISH`` tells how many heard it: so many answers are waited
for. Redis may count a shard that died with its machine for many minutes more, until it notices that the
connection is broken; so a question that is open for ``LOOK_SECONDS`` waits only for shards of the roster.

Commands of one link are done in order, so the questions of a shard arrive in order; one that comes late, over
a link that was given up, is dropped, since its asker was told that it failed.

A message:

    offset  size  field
    0       1     version, 1
    1       1     kind: 1 question, 2 answer
    2       1     length of the header, 20 in version 1; what a later release appends is skipped
    3       1     0
    4       8     incarnation of the sender
    12      8     number of the question, which its asker gave it, big-endian
    20      n     question, or answer

A version that is not known is counted, told and dropped: its asker hears that not all have answered.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.api import HubCounters, Receiver, ShardInfo
from spread.hub.asking import MAX_ANSWER_BYTES, Answering, OpenQuestions
from spread.hub.dialect import CLASSIC, Dialect
from spread.hub.errors import HubError, HubRefused, HubUnavailable, ReplyError, ShardUnknown
from spread.hub.link import Link, SubscriberProtocol
from spread.hub.reactor import Clock, Timer

__all__ = ["KIND_ANSWER", "KIND_QUESTION", "VERSION", "Questions", "pack", "unpack"]

VERSION = 1
KIND_QUESTION = 1
KIND_ANSWER = 2

_HEADER = struct.Struct(">BBBx8sQ")

MAX_ORIGINS = 4096
"""Shards whose last question is remembered; those that first asked longest ago are forgotten first."""

TELL_SECONDS = 60.0
"""What is none of ours is counted, and logged once in so long."""

LOOK_SECONDS = 1.0
"""How often the roster is looked at while questions are open for so long."""

_INCARNATION = re.compile("[0-9a-f]{16}")


class Questions:
    """See ``Hub.ask``.

    What is heard on ``channels`` is given to ``heard``.

    :param commands: where questions and answers go out.
    :param shard: incarnation, 8 bytes.
    :param seconds: how long all may take to answer.
    :param roster: asks for the live shards, as ``Hub.roster``.
    """

    log = Logger("spread.hub.questions")

    def __init__(
        self,
        clock: Clock,
        commands: Link,
        prefix: str,
        shard: bytes,
        seconds: float,
        counters: HubCounters,
        *,
        roster: Callable[[], Deferred[list[ShardInfo]]] | None = None,
        dialect: Dialect = CLASSIC,
    ) -> None:
        self._clock = clock
        self._publish = dialect.publish
        self._commands = commands
        self._hub = commands.name
        self._shard = shard
        self._seconds = seconds
        self._counters = counters
        self._open = OpenQuestions(clock, self._hub, seconds, counters)
        self._roster = roster
        self._look_timer: Timer | None = None
        self._answering: Answering | None = None
        self._own, self._all = self.channels_of(prefix, shard)
        self._hearing: SubscriberProtocol | None = None
        self._is_stopped = False
        self._last_asked: dict[bytes, int] = {}
        self._replying = 0  # answers on the command link that are not taken yet
        self._answered: Deferred[None] | None = None  # fires when there are none
        self._told_at = float("-inf")

    @property
    def channels(self) -> tuple[bytes, bytes]:
        """See ``channels_of``."""
        return self._own, self._all

    @staticmethod
    def channels_of(prefix: str, shard: bytes) -> tuple[bytes, bytes]:
        """What a subscriber connection of a shard must hear. The one that is counted comes last: who hears a
        question of all hears the answers to its own."""
        everybody = f"{prefix}:control".encode()
        return everybody + b":" + shard.hex().encode(), everybody

    def start(self, receiver: Receiver) -> None:
        """Before any connection is made."""
        self._answering = Answering(self._clock, self._seconds, lambda question: receiver.asked(question))

    def link_up(self, connection: SubscriberProtocol) -> None:
        """This connection hears."""
        self._hearing = connection
        for channel, error in connection.forbidden.items():
            self.log.error("channel {channel}: {error}", channel=channel.decode(), error=error)

    def link_down(self, reason: str) -> None:
        """It is gone: the answers cannot come."""
        self._hearing = None
        self._open.lose(reason)

    def stop(self) -> Deferred[None]:
        """Fail what waits for answers, answer with b"" who waits for ours.

        Fires when the answers are taken, or their link is lost. Call it once.
        """
        self._is_stopped = True
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None
        self._open.lose("this shard is stopping")
        if self._answering is not None:
            self._answering.stop()
        answered: Deferred[None] = Deferred()
        self._answered = answered
        self._check_answered()
        return answered

    # -- asking ----------------------------------------------------------------------------------------

    def ask(self, question: bytes, shard: str) -> Deferred[list[bytes]]:
        """See ``Hub.ask``.

        :raises MessageTooLarge: (as a failure) above ``asking.MAX_QUESTION_BYTES``.
        :raises HubRefused: (as a failure) an ACL forbids a channel.
        """
        if shard and not _INCARNATION.fullmatch(shard):
            return fail(ShardUnknown(shard))
        connection = self._commands.protocol
        if self._is_stopped or connection is None or self._hearing is None:
            return fail(HubUnavailable(self._hub, self._why_not()))
        for forbidden, error in self._hearing.forbidden.items():
            return fail(HubRefused(self._hub, f"channel {forbidden.decode()}: {error}"))
        try:
            number, result = self._open.open(question, shard)
        except HubError as error:
            return fail(error)
        channel = self._channel_of(bytes.fromhex(shard)) if shard else self._all
        sent = connection.execute_command(
            self._publish, channel, pack(KIND_QUESTION, self._shard, number, question)
        )
        sent.addCallbacks(self._sent, self._not_sent, callbackArgs=(number, shard), errbackArgs=(number,))
        sent.addErrback(lambda failure: self.log.failure("asking", failure))
        if self._look_timer is None and self._roster is not None:
            self._look_timer = self._clock.callLater(LOOK_SECONDS, self._look, self._roster)
        return result

    def _why_not(self) -> str:
        if self._is_stopped:
            return "this shard is stopping"
        if self._commands.protocol is not None:
            return "answers cannot be heard"
        return str(self._commands.last_error or "not connected")

    def _sent(self, heard: int, number: int, shard: str) -> None:
        if heard:
            # A connection that broke unnoticed may still be counted; one shard answers once.
            self._open.expect(number, 1 if shard else heard)
        elif shard:
            self._open.fail(number, ShardUnknown(shard, is_unheard=True))
        else:
            self._open.fail(number, HubUnavailable(self._hub, "nobody heard a question, not even this shard"))

    def _not_sent(self, failure: Failure, number: int) -> None:
        failure.trap(HubError)
        error: Any = failure.value
        if isinstance(error, ReplyError):
            kind = HubRefused if error.is_refusal else HubUnavailable
            error = kind(self._hub, str(error))
        self._open.fail(number, error)

    def _look(self, roster: Callable[[], Deferred[list[ShardInfo]]]) -> None:
        self._look_timer = None
        oldest = self._open.oldest()
        if oldest is None:
            return
        self._look_timer = self._clock.callLater(LOOK_SECONDS, self._look, roster)
        until = self._clock.seconds() - LOOK_SECONDS
        if oldest <= until:
            looked = roster()
            looked.addCallback(self._looked, until)
            # The link is in trouble, or an ACL forbids it: then the deadline decides.
            looked.addErrback(lambda failure: failure.trap(HubError))
            looked.addErrback(lambda failure: self.log.failure("looking who is alive", failure))

    def _looked(self, rows: list[ShardInfo], until: float) -> None:
        alive = {row.identity.incarnation for row in rows}
        if self._shard.hex() in alive:  # else it is not kept, or not of these shards
            self._open.settle(alive, until)

    # -- being asked -----------------------------------------------------------------------------------

    def heard(self, key: bytes, payload: bytes) -> None:
        """A message of a channel that is nobody's subscription; ours are taken, others left alone."""
        if key != self._own and key != self._all:
            return
        try:
            kind, shard, number, body = unpack(payload)
        except UnknownVersion as error:
            self._counters.unknown_versions += 1
            self._tell(error)
            return
        except ValueError as error:
            self._odd(error)
            return
        if kind == KIND_QUESTION:
            self._asked(shard, number, body)
        elif kind == KIND_ANSWER and key == self._own and len(body) <= MAX_ANSWER_BYTES:
            self._open.answered(number, shard, body)
        else:
            self._odd(ValueError(f"kind {kind}, {len(body)} bytes"))

    def _asked(self, shard: bytes, number: int, question: bytes) -> None:
        last = self._last_asked
        if number <= last.get(shard, 0) or self._answering is None:
            return
        if shard not in last and len(last) >= MAX_ORIGINS:
            for forgotten in list(last)[: MAX_ORIGINS // 2]:
                del last[forgotten]
        last[shard] = number
        self._answering.hear(question, partial(self._reply, shard, number))

    def _reply(self, shard: bytes, number: int, answer: bytes) -> None:
        connection = self._commands.protocol
        if connection is not None:
            self._replying += 1
            sent: Deferred[Any] = connection.execute_command(
                self._publish, self._channel_of(shard), pack(KIND_ANSWER, self._shard, number, answer)
            )
            sent.addErrback(self._not_answered)
            sent.addBoth(self._replied)
            sent.addErrback(lambda failure: self.log.failure("answering", failure))
        # Else nobody can be told; the asker's deadline tells it.

    def _not_answered(self, failure: Failure) -> None:
        if isinstance(failure.value, ReplyError):
            self._tell(failure.value)
        else:
            failure.trap(HubError)

    def _replied(self, outcome: Any) -> Any:
        self._replying -= 1
        self._check_answered()
        return outcome

    def _check_answered(self) -> None:
        if self._answered is not None and not self._replying:
            answered, self._answered = self._answered, None
            answered.callback(None)

    def _odd(self, error: Exception) -> None:
        self._counters.malformed += 1
        self._tell(error)

    def _tell(self, error: Exception) -> None:
        now = self._clock.seconds()
        if now - self._told_at >= TELL_SECONDS:
            self._told_at = now
            self.log.warn("questions between shards: {error}", error=error)

    def _channel_of(self, shard: bytes) -> bytes:
        return self._all + b":" + shard.hex().encode()


class UnknownVersion(ValueError):
    """A message of another release."""


def pack(kind: int, shard: bytes, number: int, body: bytes) -> bytes:
    """Header and body as one message.

    :param shard: incarnation of the sender, 8 bytes.
    """
    return _HEADER.pack(VERSION, kind, _HEADER.size, shard, number) + body


def unpack(message: bytes) -> tuple[int, bytes, int, bytes]:
    """``(kind, shard, number, body)`` of a received message.

    :raises UnknownVersion: another release wrote it.
    :raises ValueError: no release did.
    """
    if message and message[0] != VERSION:
        raise UnknownVersion(f"a message of version {message[0]}; this release reads version {VERSION}")
    if len(message) < _HEADER.size:
        raise ValueError(f"{len(message)} bytes, shorter than the header")
    _, kind, length, shard, number = _HEADER.unpack_from(message)
    if not _HEADER.size <= length <= len(message):
        raise ValueError(f"a header of {length} bytes in a message of {len(message)}")
    return kind, shard, number, message[length:]
