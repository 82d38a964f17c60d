"""A short run of each fuzzing target, and what must hold however bytes are cut into pieces.

``python -m tests.fuzz.run`` is the long one.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spread.node.edge.codecs import JSON_LINES
from spread.node.wire import client_json, client_protobuf, protobuf
from spread.node.wire import json as wire_json
from spread.node.wire.messages import Command, ConnectRequest, ProtocolError
from tests.fuzz import frames, requests
from tests.fuzz.corpus import COMMANDS, CONNECTS, HANDSHAKE, PROTOBUF_COMMANDS, PROTOBUF_CONNECTS, REQUESTS
from tests.fuzz.live import play_live
from tests.fuzz.mutate import MAX_BYTES, chance, mutated
from tests.fuzz.play import TARGETS, Failure, Outcome, play
from tests.fuzz.run import main, table
from tests.fuzz.targets import Target, note, note_code, websocket_answers
from tests.fuzz.town import PROTOBUF, Caller, Faults, Town
from tests.fuzz.wires import Wire

SEED = 20_261_124


@pytest.mark.parametrize("target", list(TARGETS))
def test_a_short_run(target: str) -> None:
    outcome = play(target, SEED, 4000)
    outcome.check()
    assert outcome.frames >= 4000
    enough = {
        "json": ("decoded", "refused"),
        "protobuf": ("decoded", "refused"),
        "session": ("reply", "push", "close 3501", "close 3508", "error 103", "error 107", "error 112"),
        "websocket": ("reply", "push", "control", "close 3501", "close 1002", "close 1007", "close 1009"),
        "storm": ("reply", "push", "error 100", "error 105", "error 107", "close 3501", "order refused"),
        "http": ("status 200", "status 204", "status 400", "status 101", "status 401", "status 404"),
    }
    assert not [name for name in enough[target] if outcome.told[name] < 5], outcome.told


@pytest.mark.live
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
def test_a_short_run_over_sockets(is_tls: bool) -> None:
    outcome = play_live(SEED, 800, is_tls=is_tls)
    outcome.check()
    assert outcome.told["status 101"] > 30 and outcome.told["close 3501"] > 20, outcome.told


# --- the corpus and the mutations ----------------------------------------------------------------------


def test_the_corpus_is_good() -> None:
    for lines, messages in ((CONNECTS, PROTOBUF_CONNECTS), (COMMANDS, PROTOBUF_COMMANDS)):
        for line, message in zip(lines, messages, strict=True):
            [of_json] = wire_json.decode(line)
            [of_protobuf] = protobuf.decode(message)
            assert of_json.id == of_protobuf.id and type(of_json.request) is type(of_protobuf.request)
    with Faults() as faults:
        town = Town()
        for request in REQUESTS:
            wire = town.shards[0].http()
            wire.say(requests.written(request))
            town.turn()
            status = int(wire.take().split()[1])
            assert status in (101, 200, 204, 404), (request, status)
            assert (status == 404) == request[1].startswith(b"/nothing"), request
            wire.lose()
        assert faults.found == []
        town.stop()


@pytest.mark.parametrize("target", list(TARGETS))
def test_the_same_seed_gives_the_same_frames(target: str) -> None:
    def sent() -> list[list[bytes]]:
        one = TARGETS[target]()
        town = Town()
        all_sent = []
        for case in range(30):
            one.play(chance(SEED, target, case), town)
            all_sent.append(one.sent)
        town.stop()
        return all_sent

    first = sent()
    assert first == sent()
    assert len({repr(each) for each in first}) > 20


@given(st.integers(), st.binary(max_size=2000))
def test_mutations_are_bounded(seed: int, data: bytes) -> None:
    random = chance(seed, "x", 0)
    for _ in range(10):
        data = mutated(random, data, [data, b"other"])
        assert len(data) <= MAX_BYTES


# --- the harness finds what it looks for ---------------------------------------------------------------


class _Bad(Target):
    """Does harm in its third case."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.cases = 0
        self.kept: list[object] = []

    def play(self, random: object, town: Town) -> int:
        self.cases += 1
        self.sent = [b"frame %d" % self.cases]
        if self.how == "grow":
            self.kept += [[] for _ in range(500)]
        if self.cases != 3:
            return 1
        shard = town.shards[0]
        if self.how == "raise":
            raise KeyError("a fault")
        if self.how == "log":
            shard.gateway.clients.log.critical("a fault")
        if self.how == "code":
            note(self.told, "close 3004")
        if self.how == "unknown code":
            note_code(self.told, 3999)
        if self.how == "mute":
            shard.fanout.received = lambda channel, event: None  # type: ignore[method-assign]
        if self.how == "leak":
            caller = Caller(shard, JSON_LINES)
            caller.wire.lose = lambda: None  # type: ignore[method-assign]  # nobody tells the session
            caller.ask(Command(1, ConnectRequest()))
        return 1


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("raise", "KeyError: 'a fault'"),
        ("log", "logged: "),
        ("code", "close 3004"),
        ("unknown code", "close 3999"),
        ("mute", "witnesses heard"),
        ("leak", "left behind"),
        ("grow", "objects more"),
    ],
)
def test_harm_is_found(monkeypatch: pytest.MonkeyPatch, how: str, says: str) -> None:
    monkeypatch.setitem(TARGETS, "json", lambda: _Bad(how))
    outcome = play("json", 1, 250)
    with pytest.raises(AssertionError) as found:
        outcome.check()
    assert says in str(found.value)
    if how in ("raise", "log", "code"):
        assert "--target json --seed 1 --first 2 --frames 1" in str(found.value)
        assert "frame 3" in str(found.value)


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class _Begun:
        def beginLoggingTo(self, *args: Any, **named: Any) -> None: ...

    monkeypatch.setattr("tests.fuzz.run.globalLogBeginner", _Begun())
    assert main(["--frames", "300", "--seed", "5"]) == 0
    out = capsys.readouterr().out
    assert "seed 5" in out and all(f"| {target} |" in out for target in TARGETS)
    monkeypatch.setitem(TARGETS, "json", lambda: _Bad("raise"))
    assert main(["--target", "json", "--frames", "10", "--seed", "5"]) == 1
    assert "reproduce with" in capsys.readouterr().out


def test_the_table() -> None:
    outcome = Outcome("http", 1, told=Counter({"status 200": 3, "error 107": 2, "close 3501": 1, "push": 9}))
    outcome.failures.append(Failure(1, "http", 7, [b"x"], "why"))
    assert table([outcome]).endswith("| 200: 3, push: 9 | 107: 2 | 3501: 1 |")


# --- however it is cut ---------------------------------------------------------------------------------


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted(cut % (len(data) + 1) for cut in cuts)
    return [data[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True)]


def _answer(town: Town, wire: Wire, pieces: list[bytes]) -> bytes:
    for piece in pieces:
        if wire.can_say:
            wire.say(piece)
        town.turn()
    wire.drain()
    answer = wire.take()
    wire.lose()
    town.turn()
    return answer


@given(st.integers(0, 1 << 30), st.lists(st.integers(0, 1 << 16), max_size=8))
@settings(max_examples=60, deadline=None)
def test_a_websocket_ends_the_same_way_however_its_bytes_are_cut(seed: int, cuts: list[int]) -> None:
    town = Town()
    sent = b"".join(
        frames.conversation(chance(seed, "cut", 0), is_protobuf=False, is_compressed=False, count=3)
    )
    head = requests.written((b"GET", b"/connection/websocket", HANDSHAKE, b""))

    def closed(pieces: list[bytes]) -> list[bytes]:
        answer = _answer(town, town.shards[0].http(), [head, *pieces])
        answers, _ = websocket_answers(answer.partition(b"\r\n\r\n")[2])
        return [payload for opcode, payload in answers if opcode == 8]

    assert closed([sent]) == closed(_pieces(sent, cuts))
    town.stop()


@given(st.integers(0, 1 << 30), st.lists(st.integers(0, 1 << 16), max_size=8))
@settings(max_examples=60, deadline=None)
def test_requests_are_answered_the_same_way_however_they_are_cut(seed: int, cuts: list[int]) -> None:
    sent = b"".join(requests.conversation(chance(seed, "cut", 0)))

    def statuses(pieces: list[bytes]) -> list[bytes]:
        town = Town()  # anew: some requests change what the next is answered
        answer = _answer(town, town.shards[0].http(), pieces)
        town.stop()
        return [line.split()[1] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]

    assert statuses([sent]) == statuses(_pieces(sent, cuts))


# --- values of any kind --------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_METHODS = st.sampled_from(
    ["connect", "subscribe", "unsubscribe", "publish", "presence", "history", "rpc", "send", "refresh", "x"]
)
_FIELDS = st.sampled_from(
    ["channel", "data", "token", "subs", "since", "limit", "offset", "epoch", "recover", "delta", "method"]
)


@given(
    st.lists(st.dictionaries(_METHODS | st.just("id"), st.dictionaries(_FIELDS, _JSON) | _JSON), max_size=4)
)
@settings(max_examples=50, deadline=None)
def test_any_json_is_answered_or_ends_a_session(commands: list[dict[str, Any]]) -> None:
    _check_session(JSON_LINES, [json.dumps(command).encode() for command in commands], CONNECTS[0])


@given(st.lists(st.binary(max_size=100) | st.sampled_from(PROTOBUF_COMMANDS), max_size=4))
@settings(max_examples=50, deadline=None)
def test_any_bytes_are_answered_or_end_a_session(commands: list[bytes]) -> None:
    _check_session(PROTOBUF, commands, PROTOBUF_CONNECTS[0])


def _check_session(codec: Any, commands: list[bytes], connect: bytes) -> None:
    with Faults() as faults:
        town = Town()
        caller = Caller(town.shards[0], codec)
        caller.say(connect)
        for frame in commands:
            caller.say(frame)
            town.turn()
        caller.replies()
        caller.wire.lose()
        town.check()
        town.stop()
        assert faults.found == []


@given(st.binary())
def test_any_bytes_are_commands_and_replies_or_neither(frame: bytes) -> None:
    for decode in (
        wire_json.decode,
        wire_json.decode_emulation,
        wire_json.embeddable,
        protobuf.decode,
        protobuf.decode_emulation,
        client_json.decode_replies,
        client_protobuf.decode_replies,
    ):
        with suppress(ProtocolError):
            decode(frame)
