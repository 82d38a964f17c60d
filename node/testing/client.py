"""A client in memory: speaks the protocol to a real session, and keeps what it is told.

A call gives its result, or raises what became of it. Time stands still meanwhile: a hook that waits for some
has not answered then, which is ``NoAnswer``; say how many seconds may pass, or begin the call, let
them pass, and look at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spread.node.app.data import decoded, encoded
from spread.node.codes import Disconnect
from spread.node.session.contract import Visit
from spread.node.testing.line import ADDRESS, Line
from spread.node.wire import client_json
from spread.node.wire.messages import (
    Command,
    ConnectRequest,
    ConnectResult,
    Error,
    HistoryRequest,
    HistoryResult,
    Join,
    Leave,
    Message,
    PresenceRequest,
    PresenceResult,
    Publication,
    PublishRequest,
    Push,
    Reply,
    Request,
    RPCRequest,
    RPCResult,
    SendRequest,
    Subscribe,
    SubscribeRequest,
    SubscribeResult,
    Unsubscribe,
    UnsubscribeRequest,
    UnsubscribeResult,
)

if TYPE_CHECKING:
    from spread.node.testing.stage import Shard, Stage

__all__ = ["Asked", "Closed", "FakeClient", "NoAnswer", "Received", "Refused"]


class Refused(Exception):
    """The server has answered with an error of the protocol."""

    def __init__(self, code: int, message: str, temporary: bool = False) -> None:
        super().__init__(code, message, temporary)
        self.code = code
        self.message = message
        self.temporary = temporary

    def __str__(self) -> str:
        return f"{self.code} {self.message}"


class Closed(Exception):
    """The connection has ended before there was an answer."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.code} {self.reason}"


class NoAnswer(Exception):
    """A hook has not answered in the time that was given."""


@dataclass(frozen=True, slots=True)
class Received:
    """Something that a client was told and did not ask for."""

    kind: str
    """``publication``, ``message``, ``join``, ``leave``, ``subscribe`` or ``unsubscribe``."""
    channel: str
    """"" for a message."""
    data: Any = None
    """Decoded. Of ``unsubscribe`` it is the code."""
    user: str = ""
    """Who published it, came or went; "" for an anonymous user, for an app and for a backend."""
    offset: int = 0


class Asked:
    """A call that was begun."""

    def __init__(self, client: FakeClient, what: str, request: Request) -> None:
        self.request = request
        self._client = client
        self._what = what
        self._reply: Reply | None = None

    @property
    def is_answered(self) -> bool:
        """There is a result, or an error."""
        return self._reply is not None

    def result(self, seconds: float = 0.0) -> Any:
        """What the server has answered.

        :param seconds: how much time may pass until it does.
        :raises Refused: with an error.
        :raises Closed: it has ended the connection instead.
        :raises NoAnswer: nothing so far.
        """
        client = self._client
        client.stage.advance_until(lambda: self.is_answered or client.closed is not None, seconds)
        if self._reply is None:
            if client.closed is not None:
                raise Closed(client.closed.code, client.closed.reason)
            hint = "" if seconds else "; say how many seconds it may take"
            raise NoAnswer(f"{self._what}: not answered after {seconds:g} s of the stage's clock{hint}")
        body = self._reply.body
        if isinstance(body, Error):
            raise Refused(body.code, body.message, body.temporary)
        return body


class Called(Asked):
    """An RPC; its result is the app's."""

    def result(self, seconds: float = 0.0) -> Any:
        """See ``Asked.result``."""
        answer: RPCResult = super().result(seconds)
        return decoded(answer.data)


class FakeClient:
    """Made by ``Stage.client``."""

    def __init__(self, stage: Stage, shard: Shard, user: str, transport: str) -> None:
        self.stage = stage
        self.shard = shard.number
        self.id = ""
        """As others see it; "" until it is connected."""
        self.user = user
        self.data: Any = None
        """What came with the answer to its request to connect: ``Identity.data``."""
        self.channels: list[str] = []
        """Those it is in."""
        self.received: list[Received] = []
        """What it was told, oldest first."""
        self._id = 0
        self._asked: dict[int, Asked] = {}
        visit = Visit(transport=transport, address=ADDRESS, user=user)
        self._line = Line(stage.clock, shard.gateway.clients, visit)

    @property
    def closed(self) -> Disconnect | None:
        """Why its connection has ended, ``code`` and ``reason``; ``None``: it has not."""
        return self._line.closed

    # -- what it asks ---------------------------------------------------------------------------------------

    def connect(self, token: str, data: Any) -> None:
        """``Stage.client`` does it."""
        asked = self._ask(ConnectRequest(token=token, data=_payload(data)), "connect")
        result: ConnectResult = asked.result(self.stage.hook_seconds)
        self.id, self.data = result.client, decoded(result.data)

    def subscribe(
        self,
        channel: str,
        *,
        token: str = "",
        data: Any = None,
        join_leave: bool = False,
        seconds: float = 0.0,
    ) -> Any:
        """Come into a channel. Gives ``Subscribing.data``; what is recovered is among ``received``.

        :param join_leave: be told of those who come and go.
        :param seconds: here and below: how much time may pass until the answer.
        :raises Refused: here and below: with an error of the protocol.
        :raises Closed: the connection has ended.
        :raises NoAnswer: a hook has not answered in this time.
        """
        request = SubscribeRequest(channel=channel, token=token, data=_payload(data), join_leave=join_leave)
        result: SubscribeResult = self._ask(request, f"subscribe to {channel}").result(seconds)
        return decoded(result.data)

    def unsubscribe(self, channel: str) -> None:
        """Leave a channel."""
        self._ask(UnsubscribeRequest(channel), f"unsubscribe from {channel}").result()

    def publish(self, channel: str, data: Any, *, seconds: float = 0.0) -> None:
        """Publish to a channel."""
        self.begin_publish(channel, data).result(seconds)

    def begin_publish(self, channel: str, data: Any) -> Asked:
        """The same without waiting."""
        return self._ask(PublishRequest(channel, encoded(data, "the client")), f"publish to {channel}")

    def rpc(self, method: str, params: Any = None, *, seconds: float = 0.0) -> Any:
        """Call a method, or a command (``CHANNEL/COMMAND``); gives its result."""
        return self.begin_rpc(method, params).result(seconds)

    def begin_rpc(self, method: str, params: Any = None) -> Asked:
        """The same without waiting."""
        return self._ask(RPCRequest(method, _payload(params)), f"rpc {method}", Called)

    def send(self, data: Any) -> None:
        """Send something to the server, which answers nothing."""
        self._say(Command(0, SendRequest(encoded(data, "the client"))))
        self.stage.settle()

    def history(self, channel: str, limit: int = 100) -> list[Any]:
        """The data of what was published in a channel, oldest first."""
        asked = self._ask(HistoryRequest(channel, limit), f"history of {channel}")
        result: HistoryResult = asked.result()
        return [decoded(each.data) for each in result.publications]

    def presence(self, channel: str) -> dict[str, str]:
        """The users who are in a channel, by client id."""
        result: PresenceResult = self._ask(PresenceRequest(channel), f"presence of {channel}").result()
        return {client: info.user for client, info in result.presence.items()}

    # -- what it was told -----------------------------------------------------------------------------------

    def publications(self, channel: str) -> list[Any]:
        """The data of what was published in a channel while it was there, oldest first."""
        return [each.data for each in self.received if (each.kind, each.channel) == ("publication", channel)]

    @property
    def messages(self) -> list[Any]:
        """The data of what it was sent in no channel, oldest first."""
        return [each.data for each in self.received if each.kind == "message"]

    # -- its line -------------------------------------------------------------------------------------------

    def stop_reading(self) -> None:
        """Take nothing from now on, as one that is too slow."""
        self._line.pipe.stop_reading()

    def read_on(self) -> None:
        """Take all that waits, and go on."""
        self._line.pipe.read_on()
        self.stage.settle()

    def close(self) -> None:
        """Go, without a word."""
        self._line.pipe.abortConnection()
        self.stage.settle()

    # -- inside ---------------------------------------------------------------------------------------------

    def _ask(self, request: Request, what: str, kind: type[Asked] = Asked) -> Asked:
        self._id += 1
        asked = self._asked[self._id] = kind(self, what, request)
        self._say(Command(self._id, request))
        self.stage.settle()
        return asked

    def _say(self, command: Command) -> None:
        if self.closed is not None:
            raise Closed(self.closed.code, self.closed.reason)
        self._line.say(client_json.encode_command(command))

    def listen(self) -> bool:
        """Take what came, answer pings. The stage does it, after each turn; whether there was anything."""
        data = self._line.pipe.take()
        for reply in client_json.decode_replies(data) if data else ():
            if reply.id:
                asked = self._asked.pop(reply.id, None)
                if asked is not None:
                    asked._reply = reply
                    self._answered(asked.request, reply.body)
            elif isinstance(reply.body, Push):
                self._pushed(reply.body)
            elif self.closed is None:  # a ping
                self._say(Command())
        return bool(data)

    def _answered(self, request: Request, body: object) -> None:
        """In the order in which it is told, also of what is pushed."""
        if isinstance(body, ConnectResult):
            for channel, subscribed in body.subs.items():
                self._entered(channel, subscribed)
        elif isinstance(body, SubscribeResult):
            assert isinstance(request, SubscribeRequest)
            self._entered(request.channel, body)
        elif isinstance(body, UnsubscribeResult):
            assert isinstance(request, UnsubscribeRequest)
            self._left(request.channel)

    def _pushed(self, push: Push) -> None:
        event, channel = push.event, push.channel
        if isinstance(event, Publication):
            self._published(channel, event)
        elif isinstance(event, Message):
            self.received.append(Received("message", "", decoded(event.data)))
        elif isinstance(event, Join | Leave):
            kind = "join" if isinstance(event, Join) else "leave"
            data = decoded(event.info.conn_info)
            self.received.append(Received(kind, channel, data, event.info.user))
        elif isinstance(event, Subscribe):
            self.channels.append(channel)
            self.received.append(Received("subscribe", channel, decoded(event.data)))
        elif isinstance(event, Unsubscribe):
            self._left(channel)
            self.received.append(Received("unsubscribe", channel, event.code))

    def _published(self, channel: str, publication: Publication) -> None:
        user = publication.info.user if publication.info else ""
        data = decoded(publication.data)
        self.received.append(Received("publication", channel, data, user, publication.offset))

    def _entered(self, channel: str, result: SubscribeResult) -> None:
        self.channels.append(channel)
        for publication in result.publications:
            self._published(channel, publication)

    def _left(self, channel: str) -> None:
        if channel in self.channels:
            self.channels.remove(channel)

    def __repr__(self) -> str:
        return f"<client {self.user or 'anonymous'} on shard {self.shard}>"


def _payload(data: Any) -> bytes:
    return b"" if data is None else encoded(data, "the client")
