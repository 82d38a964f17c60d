"""What mutated bytes are sent to, inside this process, and what is noted of the answers.

A target plays one case at a time: a connection from its beginning to its end, drawn from one ``Random``.
Whatever goes wrong is raised: an exception of the server, an answer that is not the protocol's, a code that
means a fault of the server's. Faults that are only logged are the matter of who plays.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable
from random import Random

from spread.node.codes import DISCONNECTS, ERRORS
from spread.node.edge.codecs import JSON_LINES
from spread.node.wire.messages import (
    Command,
    ConnectRequest,
    Disconnect,
    Error,
    ProtocolError,
    Push,
    Reply,
    SubscribeRequest,
)
from tests.fuzz import frames, requests
from tests.fuzz.corpus import CONNECTS, FLOOD, HANDSHAKE, PROTOBUF_FLOOD, SESSION
from tests.fuzz.messages import connect_frame, json_frame, protobuf_frame
from tests.fuzz.town import PROTOBUF, Caller, Town, replies_of
from tests.fuzz.wires import Wire

__all__ = [
    "CodecTarget",
    "HttpTarget",
    "SessionTarget",
    "Target",
    "WebSocketTarget",
    "note",
    "note_code",
    "note_replies",
    "websocket_answers",
]

OWN_CLOSE_CODES = {1000, 1001, 1002, 1007, 1009}
"""Of RFC 6455, that the server may close with. Others are echoes of the peer's."""

_FAULTS = {"error 100", "close 3004", "status 500"}
"""The hub is there, so these say that the server failed."""

_STATUS = re.compile(rb"(?:^|\n|(?<=\}))HTTP/1\.1 (\d{3}) [A-Z]")
_API_ERROR = re.compile(rb'\{"error":\{"code":(\d+)')
_LAST_PUSH = re.compile(rb'\{"push":\{"disconnect":\{"code":(\d+)')


def note(told: Counter[str], what: str) -> None:
    """Count an outcome.

    :raises AssertionError: it must not be.
    """
    told[what] += 1
    assert what not in _FAULTS, what


def note_code(told: Counter[str], code: int) -> None:
    """Count the end of a connection."""
    assert code in DISCONNECTS or code in OWN_CLOSE_CODES or 4000 <= code < 5000, f"close {code}"
    note(told, f"close {code}")


def note_replies(told: Counter[str], replies: list[Reply], is_hub_there: bool = True) -> None:
    """Count what a client got."""
    for reply in replies:
        body = reply.body
        if body is None:
            told["ping"] += 1
        elif isinstance(body, Error):
            assert body.code in ERRORS, body
            if is_hub_there:
                note(told, f"error {body.code}")
            else:
                told[f"error {body.code}"] += 1
        elif isinstance(body, Push):
            if isinstance(body.event, Disconnect):
                note_code(told, body.event.code)
            told["push"] += 1
        else:
            told["reply"] += 1


class Target:
    """One way in."""

    name = ""

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()
        """Outcomes by name, of all cases so far."""
        self.sent: list[bytes] = []
        """The frames of the last case."""

    def play(self, random: Random, town: Town) -> int:
        """One case; how many frames it had."""
        raise NotImplementedError


# --- codecs --------------------------------------------------------------------------------------------


class CodecTarget(Target):
    """Frames to commands: nothing but ``ProtocolError``, and commands are the same after another round."""

    def __init__(
        self,
        name: str,
        draw: Callable[[Random], bytes],
        decode: Callable[[bytes], list[Command]],
        encode: Callable[[Command], bytes],
        others: tuple[Callable[[bytes], object], ...],
    ) -> None:
        super().__init__()
        self.name = name
        self._draw = draw
        self._decode = decode
        self._encode = encode
        self._others = others

    def play(self, random: Random, town: Town) -> int:
        """See ``Target``."""
        frame = self._draw(random)
        self.sent = [frame]
        try:
            commands = self._decode(frame)
        except ProtocolError:
            self.told["refused"] += 1
        else:
            self.told["decoded"] += 1
            for command in commands:
                if not _has_filter(command):
                    assert self._decode(self._encode(command)) == [command], command
        if random.random() < 0.2:
            try:
                random.choice(self._others)(frame)
            except ProtocolError:
                self.told["refused elsewhere"] += 1
        return 1


def _has_filter(command: Command) -> bool:
    """What our client cannot write."""
    request = command.request
    if isinstance(request, ConnectRequest):
        return any(each.tf for each in request.subs.values())
    return isinstance(request, SubscribeRequest) and request.tf


# --- sessions ------------------------------------------------------------------------------------------


class SessionTarget(Target):
    """Whole sessions: JSON and Protobuf handed over as frames, and JSON as lines over a connection."""

    name = "session"

    def play(self, random: Random, town: Town) -> int:
        """See ``Target``."""
        is_protobuf = random.random() < 0.5
        draw = protobuf_frame if is_protobuf else json_frame
        self.sent = [connect_frame(random, is_protobuf)]
        self.sent += [draw(random) for _ in range(random.choice((1, 2, 4, 8)))]
        room = random.choice((0, 100, 5000)) if random.random() < 0.05 else None
        if room is not None:  # more than fits
            self.sent.insert(1, PROTOBUF_FLOOD if is_protobuf else FLOOD)
        shard = random.choice(town.shards)
        if not is_protobuf and random.random() < 0.3:
            return self._lines(random, town, shard.json(room))
        caller = Caller(shard, PROTOBUF if is_protobuf else JSON_LINES, room)
        said = 0
        for frame in self.sent:
            if not caller.is_reading:
                town.until(lambda: caller.is_reading, 6.0)
            if not caller.say(frame):
                break
            said += 1
            if random.random() < 0.5:
                town.turn()
        _end(random, town, caller.wire, may_vanish=room is None)
        caller.wire.drain()
        note_replies(self.told, caller.replies())
        if caller.closed is not None:
            note_code(self.told, caller.closed.code)
        caller.wire.lose()
        return said

    def _lines(self, random: Random, town: Town, wire: Wire) -> int:
        said = _say(random, town, wire, [frame + b"\r\n" for frame in self.sent])
        _end(random, town, wire)
        wire.drain()
        whole, _, _ = wire.take().rpartition(b"\n")  # a line that was being sent when all ended is none
        note_replies(self.told, replies_of(False, whole) if whole else [])
        wire.lose()
        return said


def _say(random: Random, town: Town, wire: Wire, sent: list[bytes]) -> int:
    """Send frames, in pieces as they may arrive, while somebody reads them; how many were begun.

    Nearly always a frame by itself: whatever comes in one piece with a fault is sent for nothing.
    """
    said = 0
    waiting = b""
    for index, frame in enumerate(sent):
        waiting += frame
        said += 1
        if index < len(sent) - 1 and random.random() < 0.15:
            continue
        cuts = sorted(
            random.randrange(len(waiting) + 1) for _ in range(random.choice((0, 0, 0, 0, 1, 3, 12)))
        )
        for start, end in zip([0, *cuts], [*cuts, len(waiting)], strict=True):
            if wire.is_paused:
                town.until(lambda: not wire.is_paused or wire.disconnecting, 12.0)
            if not wire.can_say or wire.has_ended_writing:
                return said
            if start < end:
                wire.say(waiting[start:end])
            if random.random() < 0.3:
                town.turn()
        waiting = b""
    return said


def _end(random: Random, town: Town, wire: Wire, may_vanish: bool = True) -> None:
    """Some peers vanish at once; some wait for what comes."""
    kind = random.random()
    if kind < 0.1 and may_vanish:
        wire.lose()
    town.turn(20.0 if kind > 0.99 else 0.02)


# --- WebSocket -----------------------------------------------------------------------------------------


def websocket_answers(data: bytes) -> tuple[list[tuple[int, bytes]], bool]:
    """Opcodes and payloads of the server's frames; and whether all are whole.

    :raises AssertionError: one of them is not what a server may send.
    """
    answers: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        if len(data) < at + 2:
            return answers, False
        first, length = data[at], data[at + 1]
        at += 2
        assert first & 0x80 and not first & 0x30 and not length & 0x80, "no frame of a server"
        size = {126: 2, 127: 8}.get(length, 0)
        length = int.from_bytes(data[at : at + size], "big") if size else length
        at += size
        payload = data[at : at + length]
        at += length
        if len(payload) < length:
            return answers, False
        if first & 0x40:
            payload = zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff")
        answers.append((first & 0x0F, payload))
    return answers, True


class WebSocketTarget(Target):
    """Frames of WebSocket behind a handshake, through the site."""

    name = "websocket"

    def play(self, random: Random, town: Town) -> int:
        """See ``Target``."""
        is_protobuf, is_compressed = random.random() < 0.5, random.random() < 0.3
        count = random.choice((1, 2, 4, 8))
        self.sent = frames.conversation(
            random, is_protobuf=is_protobuf, is_compressed=is_compressed, count=count
        )
        query = ["format=protobuf"] if is_protobuf else []
        query += ["cf_ws_frame_ping_pong=true"] if random.random() < 0.1 else []
        headers = list(HANDSHAKE)
        if is_compressed:
            headers.append((b"Sec-WebSocket-Extensions", b"permessage-deflate"))
        target = b"/connection/websocket?" + "&".join(query).encode()
        head = requests.written((b"GET", target, tuple(headers), b""))
        room = random.choice((300, 5000)) if random.random() < 0.05 else None
        wire = random.choice(town.shards).http(room, hears_after_end=random.random() < 0.3)
        if random.random() < 0.2:
            wire.say(head + self.sent[0])
            said = 1 + _say(random, town, wire, self.sent[1:])
        else:
            wire.say(head)
            said = _say(random, town, wire, self.sent)
        _end(random, town, wire)
        wire.drain()
        self._note(wire.take(), is_protobuf)
        wire.lose()
        return said

    def _note(self, data: bytes, is_protobuf: bool) -> None:
        if not data:
            self.told["no answer"] += 1  # it has vanished too soon
            return
        head, _, rest = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        answers, _ = websocket_answers(rest)
        for index, (opcode, payload) in enumerate(answers):
            if opcode == 8:
                assert index == len(answers) - 1, "something behind a Close"
                code = int.from_bytes(payload[:2], "big")
                payload[2:].decode()
                # The echo of a Close of the peer may have any code.
                self.told["close none" if not payload else f"close {code}"] += 1
                assert f"close {code}" not in _FAULTS, payload
            elif opcode in (1, 2):
                assert opcode == (2 if is_protobuf else 1)
                note_replies(self.told, replies_of(is_protobuf, payload))
            else:
                assert opcode in (9, 10), opcode
                self.told["control"] += 1


# --- HTTP ----------------------------------------------------------------------------------------------


class HttpTarget(Target):
    """Requests to all that the HTTP port serves. A stream is kept open, for the emulation endpoint."""

    name = "http"

    def __init__(self) -> None:
        super().__init__()
        self._stream: Wire | None = None
        self._secret = b""
        self._town: Town | None = None

    def play(self, random: Random, town: Town) -> int:
        """See ``Target``."""
        self._open_stream(town)
        self.sent = requests.conversation(random)
        wire = town.shards[0].http(hears_after_end=random.random() < 0.3)
        said = _say(random, town, wire, [each.replace(SESSION, self._secret) for each in self.sent])
        _end(random, town, wire)
        self._note(wire.take())
        wire.lose()
        assert self._stream is not None
        for code in _LAST_PUSH.findall(self._stream.take()):
            note_code(self.told, int(code))
        return said

    def _note(self, data: bytes) -> None:
        for status in _STATUS.findall(data):
            note(self.told, f"status {status.decode()}")
        for error in _API_ERROR.findall(data):
            note(self.told, f"error {error.decode()}")
        if not data:
            self.told["no answer"] += 1
        for code in _LAST_PUSH.findall(data):
            note_code(self.told, int(code))

    def _open_stream(self, town: Town) -> None:
        """A client of HTTP streaming, whose session requests may be for."""
        stream = self._stream
        if stream is not None and self._town is town:
            if stream.can_say and not stream.has_ended_writing:
                return
            stream.lose()
        self._town = town
        self._stream = stream = town.shards[0].http()
        stream.say(requests.written((b"POST", b"/connection/http_stream", (), CONNECTS[0])))
        town.turn()
        found = re.search(rb'"session":"(\w+)"', stream.take())
        assert found, "no stream"
        self._secret = found[1]

    def close(self) -> None:
        """The stream's client leaves."""
        if self._stream is not None:
            self._stream.lose()
            self._stream = None
