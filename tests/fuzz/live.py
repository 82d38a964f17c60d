"""The same bytes over real sockets to a real ``spread-node``: its log, its memory, its health, a witness."""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from contextlib import ExitStack, suppress
from random import Random

import msgspec

from tests.fuzz import frames, requests
from tests.fuzz.corpus import HANDSHAKE, SESSION, settings, token
from tests.fuzz.messages import connect_frame, json_frame
from tests.fuzz.mutate import chance, mutated
from tests.fuzz.play import MAX_FAILURES, Failure, Outcome, resident_bytes
from tests.fuzz.targets import websocket_answers
from tests.hub.certificates import Authority
from tests.live.processes import Node, home, started, until

__all__ = ["play_live"]

READY = re.compile(r"ready shard=(\d+) text=(\S+) http=(\S+) json=(\S+) ops=(\S+) hub=(\S+)")
CASES_PER_CHECK = 100
PING_SECONDS = 20.0
"""A third of it is how long the witness may be away while others are served by this process."""
WARM_SHARE = 0.2


class _Witness:
    """A client of the port for JSON lines that must hear itself, and be pinged."""

    def __init__(self, port: int, context: ssl.SSLContext | None) -> None:
        self._socket = _connected(port, context)
        self._lines = self._socket.makefile("rb")
        self._pinged_at = time.monotonic()
        self._words = 0
        self._say({"id": 1, "connect": {"token": token(sub="witness")}})
        self._say({"id": 2, "subscribe": {"channel": "witness:box"}})

    def _say(self, command: object) -> None:
        self._socket.sendall(json.dumps(command).encode() + b"\n")

    def check(self) -> None:
        """Say something and hear it; pings are answered meanwhile."""
        self._words += 1
        self._say({"id": 2 + self._words, "publish": {"channel": "witness:box", "data": self._words}})
        while True:
            line = self._lines.readline()
            assert line, "the witness was closed"
            reply = json.loads(line)
            assert "error" not in reply and "disconnect" not in reply.get("push", {}), reply
            if not reply:
                self._pinged_at = time.monotonic()
                self._say({})
            if reply.get("push", {}).get("pub", {}).get("data") == self._words:
                break
        late = time.monotonic() - self._pinged_at
        assert late < PING_SECONDS * 3, f"the witness got no ping for {late:.1f} s"

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def _connected(port: int, context: ssl.SSLContext | None) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", port), timeout=20)
    return peer if context is None else context.wrap_socket(peer, server_hostname="127.0.0.1")


def _hello(context: ssl.SSLContext) -> bytes:
    """The first bytes of a client of TLS."""
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def _exchange(
    port: int, pieces: list[bytes], seconds: float, context: ssl.SSLContext | None = None
) -> tuple[bytes, int]:
    """Send pieces, and take what is answered until it ends, or nothing comes for ``seconds``; and how many
    pieces were sent."""
    sent = 0
    answer = bytearray()
    # What OpenSSL says of a connection that was cut is an OSError too.
    with _connected(port, context) as peer, suppress(ConnectionError, TimeoutError, ssl.SSLError):
        for piece in pieces:
            peer.sendall(piece)
            sent += 1
        peer.settimeout(seconds)
        while data := peer.recv(65536):
            answer += data
    return bytes(answer), sent


class _Live:
    """One node, and what is sent to it.

    :param context: it speaks TLS alone.
    """

    def __init__(
        self,
        node: Node,
        http: int,
        lines: int,
        ops: int,
        outcome: Outcome,
        context: ssl.SSLContext | None,
    ) -> None:
        self.node = node
        self.http = http
        self.lines = lines
        self.ops = ops
        self.outcome = outcome
        self.context = context
        self._hello = b"" if context is None else _hello(context)
        self.sent: list[bytes] = []

    def play(self, random: Random) -> None:
        """One connection."""
        kind = random.random()
        # Most answers are there at once, and nobody waits for more.
        seconds = 0.5 if random.random() < 0.01 else 0.003
        port = self.http
        if kind < 0.4:
            is_protobuf, is_compressed = random.random() < 0.5, random.random() < 0.3
            headers = list(HANDSHAKE)
            if is_compressed:
                headers.append((b"Sec-WebSocket-Extensions", b"permessage-deflate"))
            target = b"/connection/websocket" + (b"?format=protobuf" if is_protobuf else b"")
            self.sent = [
                requests.written((b"GET", target, tuple(headers), b"")),
                *frames.conversation(
                    random, is_protobuf=is_protobuf, is_compressed=is_compressed, count=random.randrange(1, 9)
                ),
            ]
        elif kind < 0.7:
            self.sent = [each.replace(SESSION, b"0" * 32) for each in requests.conversation(random)]
        else:
            port = self.lines
            self.sent = [
                connect_frame(random, False),
                *(json_frame(random) for _ in range(random.randrange(1, 9))),
            ]
            self.sent = [frame + b"\n" for frame in self.sent]
        context = self.context
        if self._hello and random.random() < 0.3:  # below TLS
            context = None
            self.sent[0] = mutated(random, self._hello, [self._hello, *self.sent])
        answer, sent = _exchange(port, self.sent, seconds, context)
        told = self.outcome.told
        self.outcome.frames += sent
        self.outcome.sent_bytes += sum(map(len, self.sent[:sent]))
        for status in re.findall(rb"(?:^|\n|(?<=\}))HTTP/1\.1 (\d{3}) [A-Z]", answer):
            told[f"status {status.decode()}"] += 1
            assert status != b"500", answer
        if answer.startswith(b"HTTP/1.1 101 ") and kind < 0.4:
            answers, _ = websocket_answers(answer.partition(b"\r\n\r\n")[2])
            for payload in (payload for opcode, payload in answers if opcode == 8):
                told[f"close {int.from_bytes(payload[:2], 'big') or 'none'}"] += 1
        for code in re.findall(rb'"disconnect":\{"code":(\d+)', answer):
            told[f"close {code.decode()}"] += 1
        for error in re.findall(rb'"error":\{"code":(\d+)', answer):
            told[f"error {error.decode()}"] += 1
        assert not told["close 3004"] and not told["error 100"], answer

    def check(self) -> None:
        """It lives, says nothing of faults, and is healthy."""
        assert self.node.process.poll() is None, self.node.stderr()
        log = self.node.stderr()
        assert "Traceback" not in log, log[log.index("Traceback") - 300 :][:3000]
        for port, path, context in ((self.http, b"/health", self.context), (self.ops, b"/readyz", None)):
            asked = b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path
            answer, _ = _exchange(port, [asked], 5, context)
            assert answer.startswith(b"HTTP/1.1 200 "), answer


def play_live(seed: int, count: int, first: int = 0, is_tls: bool = False) -> Outcome:
    """Send at least ``count`` mutated frames over sockets to a node with a hub of its own.

    :param is_tls: over TLS; and some below it.
    """
    name = "live-tls" if is_tls else "live"
    outcome = Outcome(name, seed)
    began = time.monotonic()
    with ExitStack() as stack:
        path = stack.enter_context(home())
        config = path.parent / "spread.json"
        made = msgspec.to_builtins(settings(PING_SECONDS), enc_hook=str)
        for section in ("node", "hub", "text"):
            del made[section]
        config.write_bytes(msgspec.json.encode(made))
        context = None
        tls: tuple[str, ...] = ()
        if is_tls:
            authority = Authority(path.parent)
            issued = authority.issue("127.0.0.1")
            tls = ("--tls-cert", issued.cert, "--tls-key", issued.key)
            context = ssl.create_default_context(cafile=authority.ca)
        ports = ("--json", "127.0.0.1:0", "--ops", "127.0.0.1:0")
        node = started(stack, "--shard", "0", *ports, *tls, "--config", str(config), home=path)
        until(lambda: node.ready or node.process.poll() is not None, 30, "the ready line")
        found = READY.fullmatch(node.ready[0][1]) if node.ready else None
        assert found, (node.ready, node.stderr())
        http, lines, ops = (int(found[index].rpartition(":")[2]) for index in (3, 4, 5))
        live = _Live(node, http, lines, ops, outcome, context)
        witness = _Witness(lines, context)
        stack.callback(witness.close)
        case = first
        before = 0
        while outcome.frames < count and len(outcome.failures) < MAX_FAILURES:
            try:
                live.play(chance(seed, name, case))
                if case % CASES_PER_CHECK == 0:
                    witness.check()
                    live.check()
            except (AssertionError, OSError) as error:
                outcome.failures.append(Failure(seed, name, case, live.sent, str(error)))
                outcome.frames += 1
            outcome.cases += 1
            case += 1
            if not before and outcome.frames >= count * WARM_SHARE:
                before = resident_bytes(node.pid)
        try:
            witness.check()
            live.check()
            outcome.resident = (before, resident_bytes(node.pid))
            assert node.stop() == 0, "it did not stop cleanly"
            assert "Traceback" not in node.stderr(), node.stderr()[-3000:]
        except (AssertionError, OSError) as error:
            outcome.failures.append(Failure(seed, name, case, live.sent, f"after all: {error}"))
    outcome.seconds = time.monotonic() - began
    return outcome
