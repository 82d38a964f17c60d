"""A client of the Centrifuge protocol, as the shard sees it (sections 4 to 9 of the protocol).

    state       event                                next        what happens
    NEW         connect                              CONNECTING  its token is verified, its server-side
                                                                 subscriptions are prepared
    NEW         any other command                    CLOSING     3501
    NEW         client.stale_close_delay is over     CLOSING     3502
    CONNECTING  further commands                     CONNECTING  wait, in order; it is not read
    CONNECTING  all is well                          CONNECTED   the connect reply, then what waited
    CONNECTING  refused with an error                REFUSED     the error; what waited is dropped
    CONNECTING  refused with a disconnect            CLOSING     its code
    REFUSED     any command                          CLOSING     3501
    CONNECTED   connect, ping, no known method       CLOSING     3501
    CONNECTED   any other command                    CONNECTED   see ``commands``
    CONNECTED   no pong, expired, too slow, …        CLOSING     3012, 3005, 3008, …
    any         a frame that is none                 CLOSING     3501
    any         the shard stops                      CLOSING     3001
    any         connection lost                      CLOSED      it leaves its channels

Commands begin in the order in which they came. One that must wait for the hub does not hold up the others,
but for those of its own channel while that is being subscribed, or while the team's code makes up its mind
about a publication: whoever subscribes and publishes in one frame does so in this order, and of subscribe and
unsubscribe the later one wins.

A session never touches a transport: it has an outbox to write to, and an ``Edge`` to ask for the rest.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.errors import HubError, MessageTooLarge
from spread.node import codes
from spread.node.codec import Codec, Wire
from spread.node.limits import Rate
from spread.node.outbox import Outbox
from spread.node.session.contract import Edge, Visit
from spread.node.session.intake import Intake
from spread.node.session.party import CentrifugeParty
from spread.node.session.shared import Ended, Refused, Shared
from spread.node.session.subscribing import depart
from spread.node.session.subscription import Subscription
from spread.node.session.times import Times
from spread.node.wire import messages
from spread.node.wire.messages import Command, ProtocolError, Reply

__all__ = ["CentrifugeSession", "SessionState"]

T = TypeVar("T")

Outcome = messages.Result | None
"""What a command comes to; ``None``: no reply."""

Run = Callable[["CentrifugeSession", Command], "Deferred[Outcome] | Outcome"]

ERRORS_SECONDS = 60.0
"""The time in which ``client.errors_limit`` errors are allowed."""


class SessionState(Enum):
    """See the table at the top of this module."""

    NEW = "new"
    CONNECTING = "connecting"
    REFUSED = "refused"
    CONNECTED = "connected"
    CLOSING = "closing"
    CLOSED = "closed"


class _Work:
    """A command that is waited for. One object and one callback take 1.3 µs; four callbacks took 2.6."""

    __slots__ = ("_session", "channel", "command", "result", "size")

    def __init__(
        self,
        session: CentrifugeSession,
        command: Command,
        result: Deferred[messages.Result | None],
        size: int,
        channel: str,
    ) -> None:
        self._session = session
        self.command = command
        self.result = result
        self.size = size
        self.channel = channel

    def succeeded(self, value: messages.Result | None) -> None:
        self._session.worked(self, value)

    def failed(self, failure: Failure) -> None:
        self._session.worked(self, failure)


class CentrifugeSession(CentrifugeParty):
    """One client; as the team's code sees it: ``party.CentrifugeParty``.

    :param number: unique on this shard, never 0.
    :param client: its id, as others see it.
    :param secret: the id of an emulated session, known to its client alone.
    :param run: what does a command in state CONNECTED; see ``commands.run``.
    """

    log = Logger("spread.node.session.centrifuge")

    __slots__ = (
        "_busy",
        "_commands_rate",
        "_edge",
        "_errors",
        "_errors_since",
        "_held_back",
        "_is_batching",
        "_replies",
        "_run",
        "_waiting",
        "_working",
        "app_client",
        "client",
        "codec",
        "conn_info",
        "expire_at",
        "intake",
        "number",
        "outbox",
        "secret",
        "shared",
        "state",
        "subscribing",
        "subscriptions",
        "times",
        "token_channels",
        "user",
        "visit",
    )

    def __init__(
        self,
        number: int,
        client: str,
        secret: str,
        edge: Edge,
        outbox: Outbox,
        codec: Codec,
        visit: Visit,
        shared: Shared,
        run: Run,
    ) -> None:
        self.number = number
        self.client = client
        self.secret = secret
        self.outbox = outbox
        self.codec = codec
        self.visit = visit
        self.shared = shared
        self.state = SessionState.NEW
        self.user = ""
        self.conn_info = b""
        self.expire_at = 0
        """When the connection expires, in seconds since 1970; 0: never."""
        self.token_channels: frozenset[str] = frozenset()
        """The server-side channels of the connection token."""
        self.subscriptions: dict[str, Subscription] = {}
        self.subscribing: dict[str, bool] = {}
        """Channels whose subscriptions are on their way, at the client's wish or the server's; ``False``: it
        is not wanted any more."""
        self._edge = edge
        self._run = run
        self.app_client: Any = None
        """See ``logic.Party``."""
        self._held_back = ""  # the channel of the publication that is begun, and must not be overtaken
        # Channels that are being subscribed, or waited for, and the commands that wait for that.
        self._busy: dict[str, deque[Command]] | None = None
        # Commands that wait until the client is connected.
        self._waiting: deque[Command] | None = None
        # What was begun and is not done; cancelled when the session ends.
        self._working: set[Deferred[Any]] | None = None
        self._replies: list[bytes] = []
        self._is_batching = False
        self._errors = 0
        self._errors_since = -math.inf
        self.intake = Intake(self, edge)
        now = shared.clock.seconds()
        limit = shared.client.commands_per_second
        self._commands_rate = Rate(limit, now) if limit else None
        self.times = Times(self)

    # -- what the client says --------------------------------------------------------------------------------

    @property
    def is_alive(self) -> bool:
        """It has not been told to go, and its connection is there."""
        state = self.state  # a set of members would be asked by their hash, in Python
        return state is not SessionState.CLOSING and state is not SessionState.CLOSED

    @property
    def is_connected(self) -> bool:
        """It may command."""
        return self.state is SessionState.CONNECTED

    @property
    def is_connecting(self) -> bool:
        """It has asked to, and is not answered yet."""
        return self.state is SessionState.CONNECTING

    @property
    def _wire(self) -> Wire:
        assert self.codec.wire is not None
        return self.codec.wire

    def received(self, frame: bytes) -> None:
        """See ``contract.EdgeSession``."""
        if not self.is_alive:
            return
        if self.visit.is_emulated and not self.intake.is_open:
            self.intake.put_off(frame)
            return
        self.shared.counters.messages_in += 1
        try:
            commands = self._wire.decode(frame)
        except ProtocolError as error:
            self.violated(error.reason)
            return
        was_refused = self.state is SessionState.REFUSED
        self._is_batching = True
        for command in commands:
            self._take(command)
            if not self.is_alive or (self.state is SessionState.REFUSED and not was_refused):
                break  # what came behind a connect that was refused in the same frame is dropped
        self._is_batching = False
        self._write_replies()
        self._check_intake()

    def _check_intake(self) -> None:
        if not self._is_batching:  # else it is looked at again at the end of the batch
            self.intake.check()

    def _take(self, command: Command) -> None:
        """Begin a command, or let it wait."""
        request = command.request
        if request is None:
            self.times.ponged()
            return
        state = self.state
        if state is SessionState.CONNECTING:
            assert self._waiting is not None
            self._waiting.append(command)
        elif state is SessionState.NEW and type(request) is messages.ConnectRequest:
            self.state = SessionState.CONNECTING
            self._waiting = deque()
            self._begin(command)
        elif state is not SessionState.CONNECTED:
            self.violated("a command before connect" if state is SessionState.NEW else "a command after that")
        elif type(request) is messages.ConnectRequest or type(request) is messages.PingRequest:
            self.violated("a second connect" if type(request) is messages.ConnectRequest else "a ping")
        elif self._may_command(command):
            channel = getattr(request, "channel", "")
            if self._busy and channel in self._busy:
                self._busy[channel].append(command)
                self.intake.began()
            else:
                self._begin(command)

    def _may_command(self, command: Command) -> bool:
        if self._commands_rate is None and not self.shared.client.user_commands_per_second:
            return True
        now = self.shared.clock.seconds()
        rates = (self._commands_rate, self.shared.registry.rate_of(self.user))
        if all(rate is None or rate.take(now) for rate in rates):
            return True
        self.shared.counters.rate_limited += 1
        if command.id:
            self.answer_error(command.id, codes.TOO_MANY_REQUESTS)
        else:
            self.end(codes.TOO_MANY_COMMANDS)
        return False

    def _begin(self, command: Command) -> None:
        try:
            result = self._run(self, command)
        except Exception as error:
            self._fail(command, error)
            return
        if not isinstance(result, Deferred):
            self._answer(command, result)
            return
        if result.called and not result.paused and not isinstance(result.result, Failure | Deferred):
            self._answer(command, cast(Outcome, result.result))
            return
        self._wait_for(command, result)

    def _wait_for(self, command: Command, result: Deferred[messages.Result | None]) -> None:
        """Answer when it is done. What it is about is held back meanwhile, if it must be."""
        request = command.request
        size = len(request.data) if type(request) is messages.PublishRequest else 0
        channel, self._held_back = self._held_back, ""
        if type(request) is messages.SubscribeRequest or type(request) is messages.SubRefreshRequest:
            channel = request.channel
        if channel:
            if self._busy is None:
                self._busy = {}
            self._busy[channel] = deque()
        if self._working is None:
            self._working = set()
        self._working.add(result)
        self.intake.began(size)

        work = _Work(self, command, result, size, channel)
        result.addCallbacks(work.succeeded, work.failed)

    def hold_back(self, channel: str) -> None:
        """The command that is being begun must be done before others of its channel begin."""
        self._held_back = channel

    def worked(self, work: _Work, outcome: messages.Result | Failure | None) -> None:
        """A command that was waited for is done."""
        try:
            self.intake.done(work.size)
            if self._working is not None:
                self._working.discard(work.result)
            if isinstance(outcome, Failure):
                self._fail(work.command, cast(BaseException, outcome.value))
            else:
                self._answer(work.command, outcome)
            if work.channel and self._busy is not None:
                self._go_on(work.channel)
            if not self.intake.is_open:
                self._check_intake()
        except Exception:
            self._bug(Failure())

    def _go_on(self, channel: str) -> None:
        """A channel is not busy any more: do what waited for that."""
        assert self._busy is not None
        waiting = self._busy.pop(channel, None)
        self.intake.done(count=len(waiting or ()))
        was_batching, self._is_batching = self._is_batching, True
        while waiting and self.is_alive:
            if channel in self._busy:
                # Busy again: the rest waits for that.
                self._busy[channel].extend(waiting)
                self.intake.began(count=len(waiting))
                break
            self._begin(waiting.popleft())
        self._is_batching = was_batching
        if not self._is_batching:
            self._write_replies()

    def _bug(self, failure: Failure) -> None:
        self.log.failure("session {number}", failure, number=self.number)
        self.end(codes.SERVER_ERROR)

    # -- answers ---------------------------------------------------------------------------------------------

    def _answer(self, command: Command, result: messages.Result | None) -> None:
        if result is None or not self.is_alive:
            return
        if type(result) is messages.ConnectResult:
            self._connected(command, result)
        elif command.id:
            self.write(Reply(command.id, result))
        logic = self.shared.logic
        if logic is not None and type(result) is messages.SubscribeResult:
            logic.subscribed(self, cast(messages.SubscribeRequest, command.request).channel)

    def _fail(self, command: Command, error: BaseException) -> None:
        """The one place where what went wrong becomes a code of the protocol."""
        if not self.is_alive:
            return
        if isinstance(error, Ended):
            self.note(f"{error.disconnect.code} {error.disconnect.reason}", error.detail)
            self.end(error.disconnect)
            return
        if isinstance(error, Refused):
            answer = error.error
            if error.detail or self.state is SessionState.CONNECTING:
                self.note(f"{answer.code} {answer.message}", error.detail)
        elif isinstance(error, MessageTooLarge):
            answer = codes.LIMIT_EXCEEDED
        elif isinstance(error, HubError | CancelledError | TimeoutError):
            self.shared.counters.publish_errors += type(command.request) is messages.PublishRequest
            answer = codes.INTERNAL_ERROR
        else:
            self._bug(Failure(error))
            return
        if self.state is SessionState.CONNECTING:
            self.state = SessionState.REFUSED
            self._waiting = None
        if command.id:
            self.answer_error(command.id, answer)
        self._check_intake()

    def answer_error(self, id: int, error: codes.Error) -> None:
        """Refuse a command; too many of that end the connection.

        Error 100 is no fault of the client's, and is not counted against it: while the hub is away, everybody
        who goes on publishing gets many. Nor are those with codes of an app's own: "not your turn" is a move
        in its game.
        """
        self.shared.counters.errors[error.code] = self.shared.counters.errors.get(error.code, 0) + 1
        self.write(Reply(id, messages.Error(error.code, error.message, error.temporary)))
        if error is codes.INTERNAL_ERROR or error.code not in codes.ERRORS:
            return
        now = self.shared.clock.seconds()
        if now - self._errors_since >= ERRORS_SECONDS:
            self._errors, self._errors_since = 0, now
        self._errors += 1
        limit = self.shared.client.errors_limit
        if limit and self._errors > limit:
            self.note("3509 too many errors", f"{self._errors} of them")
            self.end(codes.TOO_MANY_ERRORS)

    def write(self, reply: Reply) -> None:
        """Send a reply or a push; what is written during one frame of the client goes out as one."""
        encoded = self._wire.encode_reply(reply)
        if self._is_batching:
            self._replies.append(encoded)
        else:
            self.outbox.write(self.codec.frame(encoded))

    def push(self, channel: str, event: messages.Event) -> None:
        """Send a push."""
        self.write(Reply(0, messages.Push(channel, event)))

    def ping(self) -> None:
        """Send a ping."""
        self.outbox.write(self.codec.frame(self._wire.PING))
        self.shared.counters.pings += 1

    def _write_replies(self) -> None:
        if self._replies:
            replies, self._replies = self._replies, []
            self.outbox.write(self.codec.pack(replies))

    # -- connected -------------------------------------------------------------------------------------------

    def _connected(self, command: Command, result: messages.ConnectResult) -> None:
        self.state = SessionState.CONNECTED
        self.write(Reply(command.id, result))
        if not self.is_connected:
            return  # its outbox had no room for that
        self.times.connected(bool(result.ping))
        logic = self.shared.logic
        if logic is not None:
            logic.connected(self)
            for channel in list(self.subscriptions):
                logic.subscribed(self, channel)  # but what a hook has ended meanwhile
        waiting, self._waiting = self._waiting, None
        was_batching, self._is_batching = self._is_batching, True
        while waiting and self.is_alive:
            self._take(waiting.popleft())
        self._is_batching = was_batching
        if not was_batching:
            self._write_replies()
        self._check_intake()

    # -- subscriptions ---------------------------------------------------------------------------------------

    def lost_position(self, subscription: Subscription) -> None:
        """See ``subscription.Owner``."""
        if subscription.is_server_side:
            self.end(codes.INSUFFICIENT_STATE)
        else:
            self.unsubscribe(subscription, codes.UNSUBSCRIBE_INSUFFICIENT)

    def subscribed(self, subscription: Subscription) -> None:
        """The client is a member of a channel now."""
        self.subscriptions[subscription.channel.name] = subscription
        self.shared.counters.subscriptions += 1
        if subscription.expire_at:
            self.times.changed()

    def unsubscribe(self, subscription: Subscription, why: codes.Unsubscribe | None = None) -> None:
        """Take the client out of a channel.

        :param why: it is told so; ``None``: it has asked for it.
        """
        name = subscription.channel.name
        if self.subscriptions.get(name) is not subscription:
            return
        del self.subscriptions[name]
        self.shared.counters.subscriptions -= 1
        depart(self.shared, subscription)
        if why is not None:
            self.push(name, messages.Unsubscribe(why.code, why.reason))
        if self.shared.logic is not None:
            self.shared.logic.unsubscribed(self, name)

    # -- the end ---------------------------------------------------------------------------------------------

    def note(self, what: str, why: str) -> None:
        """Log something about this client."""
        self.shared.registry.note(self, what, why)

    def violated(self, detail: str) -> None:
        """It does not speak the protocol."""
        self.note("3501 bad request", detail)
        self.end(codes.BAD_PROTOCOL)

    def end(self, disconnect: codes.Disconnect) -> None:
        """Tell the client why, and end the connection. Idempotent."""
        if not self.is_alive:
            return
        self._write_replies()
        if not self.is_alive:
            return  # that was the last straw for its outbox
        self.state = SessionState.CLOSING
        disconnects = self.shared.counters.disconnects
        disconnects[disconnect.code] = disconnects.get(disconnect.code, 0) + 1
        self._leave(f"{disconnect.code} {disconnect.reason}")
        self._edge.close(disconnect)

    def cut(self) -> None:
        """Drop the connection now."""
        self._edge.cut()

    def lost(self) -> None:
        """See ``contract.EdgeSession``."""
        if self.state is SessionState.CLOSED:
            return
        if self.is_alive:
            disconnects = self.shared.counters.disconnects
            code = codes.CONNECTION_CLOSED.code
            disconnects[code] = disconnects.get(code, 0) + 1
        self.state = SessionState.CLOSED
        self._leave(f"{codes.CONNECTION_CLOSED.code} {codes.CONNECTION_CLOSED.reason}")
        self.outbox.abandon()
        self.shared.registry.gone(self, self.visit.address)

    def _leave(self, reason: str) -> None:
        """Leave all channels; cancel what was begun. Idempotent."""
        self._waiting = self._busy = None
        self.intake.forget()
        working, self._working = self._working, None
        for result in list(working or ()):
            result.cancel()
        for subscription in list(self.subscriptions.values()):
            self.unsubscribe(subscription)
        if self.shared.logic is not None:
            self.shared.logic.disconnected(self, reason)

    def with_deadline(self, result: Deferred[T]) -> Deferred[T]:
        """The same, failing when the hub takes too long."""
        if not result.called:
            result.addTimeout(self.shared.hub_seconds, cast(Any, self.shared.clock))
        return result
