"""Frames of commands, good ones changed in their bytes and in their structure, as JSON and as Protobuf."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any

from spread.node.wire import client_protobuf
from spread.node.wire import json as wire_json
from spread.node.wire.messages import ProtocolError
from tests.fuzz.corpus import COMMANDS, CONNECTS, PROTOBUF_COMMANDS, PROTOBUF_CONNECTS
from tests.fuzz.mutate import BOUNDARIES, MAX_BYTES, long_text, mutated

__all__ = ["connect_frame", "json_frame", "json_text", "protobuf_frame", "protobuf_message", "still_command"]

_DEEP = (10, 100, 900, 1100, 20_000)
_NAMES = ("id", "connect", "subscribe", "publish", "data", "channel", "token", "subs", "since", "offset", "x")
_CHANNELS = (
    *(
        "room",
        "stream:a",
        "stream:b",
        "newest:a",
        "delta:a",
        "plain:a",
        "binary:a",
        "object:a",
        "letters:abc",
    ),
    *("closed:a", "limited:a#ann,bob", "#ann", "$private", "nowhere:a", "letters:1", "a" * 255, "a" * 256),
)
_TEXTS = (
    "",
    "room",
    "stream:a",
    "#ann",
    "$private",
    "a" * 255,
    "a" * 256,
    ":",
    "x:y",
    "ä",
    "😀",
    "\0",
    "\n",
    "_",
)


_Change = Callable[[Random, bytes], bytes]


def json_frame(random: Random) -> bytes:
    """A frame of one or several commands, nearly always mutated."""
    return _frame(random, COMMANDS, b"\n", json_text, _gentle_json)


def protobuf_frame(random: Random) -> bytes:
    """The same in Protobuf."""
    return _frame(random, PROTOBUF_COMMANDS, b"", protobuf_message, _gentle_protobuf)


def connect_frame(random: Random, is_protobuf: bool) -> bytes:
    """The first frame of a connection: mostly good."""
    connects = PROTOBUF_CONNECTS if is_protobuf else CONNECTS
    frame = random.choice(connects)
    if random.random() < 0.85:
        return frame
    change = protobuf_message if is_protobuf else json_text
    return change(random, frame) if random.random() < 0.5 else mutated(random, frame, connects)


def _frame(random: Random, good: Sequence[bytes], between: bytes, change: _Change, gentle: _Change) -> bytes:
    several = [random.choice(good) for _ in range(random.choice((1, 1, 1, 1, 2, 3, 20)))]
    kind = random.random()
    if kind < 0.15:
        return between.join(several)
    if kind < 0.5:
        return between.join([gentle(random, each) for each in several])
    if kind < 0.75:
        index = random.randrange(len(several))
        several[index] = change(random, several[index])
        return between.join(several)[:MAX_BYTES]
    return mutated(random, between.join(several), good)


def still_command(random: Random, is_protobuf: bool) -> bytes:
    """One good command, of which some values are others of the same type."""
    command = random.choice(_HARMLESS)
    made = command if random.random() < 0.4 else _gentle_json(random, command)
    return _as_protobuf(made, command) if is_protobuf else made


# --- still commands ------------------------------------------------------------------------------------


def _gentle_json(random: Random, text: bytes) -> bytes:
    """A command that is still one: only what it says is another, of the same type."""
    command = json.loads(text)
    for _ in range(random.choice((1, 2))):
        name, request = next(((key, each) for key, each in command.items() if key != "id"), ("", None))
        if not isinstance(request, dict) or not request:
            break
        key = random.choice((*request, *_OPTIONS.get(name, ())))
        request[key] = _similar(random, key, request.get(key, _OPTION_VALUES.get(key)))
    return json.dumps(command, separators=(",", ":"), ensure_ascii=False).encode()


def _gentle_protobuf(random: Random, delimited: bytes) -> bytes:
    """The same in Protobuf: another command than the one given."""
    return _as_protobuf(_gentle_json(random, random.choice(COMMANDS)), COMMANDS[0])


def _as_protobuf(line: bytes, otherwise: bytes) -> bytes:
    """A command of JSON; or another one, if it cannot be said in Protobuf."""
    for each in (line, otherwise):
        with suppress(ProtocolError, ValueError, AttributeError):
            return client_protobuf.encode_command(wire_json.decode(each)[0])
    return PROTOBUF_COMMANDS[0]


_HARMLESS = tuple(
    each for each in COMMANDS if not re.search(rb'"(ping|send|refresh|sub_refresh|delta)"', each)
)
"""Those that do not end a session even if its user is another."""
_OPTIONS = {
    "subscribe": ("recover", "epoch", "offset", "positioned", "recoverable", "join_leave", "flag", "type"),
    "history": ("limit", "since", "reverse"),
}
_OPTION_VALUES = {
    **dict.fromkeys(("recover", "positioned", "recoverable", "join_leave", "reverse"), True),
    "epoch": "",
    "offset": 0,
    "flag": 0,
    "type": 0,
    "limit": 0,
    "since": {"offset": 0, "epoch": ""},
}


def _similar(random: Random, key: str, value: Any) -> Any:
    """Another value of the same type."""
    if key == "data":
        return random.choice(
            (*_TEXTS, None, 0, [], {"n": random.choice(BOUNDARIES)}, "a" * long_text(random))
        )
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice((0, 1, 2, 3, 5, 10, 100, 2**31 - 1, *([-1] if key == "limit" else [])))
    if isinstance(value, dict):
        return {inner: _similar(random, inner, each) for inner, each in value.items()}
    if key == "channel":
        return random.choice(_CHANNELS)
    return random.choice(_TEXTS)


# --- JSON ----------------------------------------------------------------------------------------------


def json_text(random: Random, text: bytes) -> bytes:
    """One JSON object with some of its values, names or numbers changed; else still JSON, mostly."""
    value = json.loads(text)
    for _ in range(random.choice((1, 1, 2, 3))):
        value = _changed(random, value)
    spaces = random.choice(((",", ":"), (",", ":"), (", ", ": "), (",\n", ":\r")))
    made = json.dumps(value, separators=spaces, ensure_ascii=random.random() < 0.5).encode(
        errors="surrogatepass"
    )
    kind = random.random()
    if kind < 0.06:  # a name twice
        made = made.replace(
            b"{", b'{"%b":%d,' % (random.choice(_NAMES).encode(), random.choice(BOUNDARIES)), 1
        )
    elif kind < 0.09:
        depth = random.choice(_DEEP)
        opening, closing = random.choice(((b"[", b"]"), (b'{"a":', b"}")))
        made = made.replace(b":", b":" + opening * depth + b"1" + closing * depth + b',"_":', 1)
    elif kind < 0.12:
        made = made.replace(
            b'":', b'":' + random.choice((b"1e400", b"NaN", b"-0", b"1.5", b"01", b"1e2,", b"")), 1
        )
    return made[:MAX_BYTES]


def _changed(random: Random, value: Any) -> Any:
    """A copy in which one thing is another."""
    if isinstance(value, dict) and value and random.random() < 0.8:
        name = random.choice(list(value))
        kind = random.random()
        if kind < 0.1:
            return {key: each for key, each in value.items() if key != name}
        if kind < 0.2:
            return {(random.choice(_NAMES) if key == name else key): each for key, each in value.items()}
        if kind < 0.3:
            return {**value, random.choice((*_NAMES, "unknown", "")): _value(random)}
        return {**value, name: _changed(random, value[name])}
    if isinstance(value, list) and value and random.random() < 0.6:
        index = random.randrange(len(value))
        return [*value[:index], _changed(random, value[index]), *value[index + 1 :]]
    return _value(random)


def _value(random: Random) -> Any:
    kind = random.randrange(8)
    if kind == 0:
        return random.choice((None, True, False, 1.5, 1e300, {}, []))
    if kind <= 2:
        return random.choice(BOUNDARIES)
    if kind <= 4:
        return random.choice(_TEXTS)
    if kind == 5:
        return random.choice(("a", "\ud83d", '"', "\\", "é")) * long_text(random)
    if kind == 6:
        return json.loads(random.choice(COMMANDS))
    return [random.choice(_TEXTS)] * random.randrange(4)


# --- Protobuf ------------------------------------------------------------------------------------------

_Field = tuple[int, int, Any]
"""Number, wire type, and value: an integer, bytes, or a list of fields."""


def varint(number: int) -> bytes:
    """An unsigned varint."""
    made = bytearray()
    while number > 127:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)


def protobuf_message(random: Random, delimited: bytes) -> bytes:
    """One message with its length before it; some of its fields, types, numbers or lengths are changed."""
    length, start = _read_varint(delimited, 0)
    fields = _fields(delimited[start : start + length], 4)
    for _ in range(random.choice((1, 1, 2, 3))):
        fields = _changed_fields(random, fields or [])
    body = _written(random, fields or [])[:MAX_BYTES]
    length = len(body)
    if random.random() < 0.1:
        length = random.choice((0, length - 1, length + 1, *(each for each in BOUNDARIES if each >= 0)))
    return varint(max(0, length)) + body


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while data[at] & 0x80:
        number |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
    return number | data[at] << shift, at + 1


def _fields(data: bytes, depth: int) -> list[_Field] | None:
    """What a message of the corpus holds; ``None`` if it is none, but text."""
    fields: list[_Field] = []
    at = 0
    try:
        while at < len(data):
            key, at = _read_varint(data, at)
            number, kind = key >> 3, key & 7
            value: Any
            if kind == 0:
                value, at = _read_varint(data, at)
            elif kind == 2:
                length, at = _read_varint(data, at)
                value = data[at : at + length]
                if len(value) < length:
                    return None
                at += length
                inner = _fields(value, depth - 1) if depth else None
                value = value if inner is None else inner
            else:
                return None
            if not number:
                return None
            fields.append((number, kind, value))
    except IndexError:
        return None
    return fields


def _changed_fields(random: Random, fields: list[_Field]) -> list[_Field]:
    kind = random.random()
    if not fields or kind < 0.15:
        return [*fields, (_number(random), random.randrange(8), _content(random))]
    index = random.randrange(len(fields))
    number, wire, value = fields[index]
    if kind < 0.25:
        return fields[:index] + fields[index + 1 :]
    if kind < 0.35:
        return fields + [fields[index]] * random.choice((1, 2, 50))
    if kind < 0.45:
        changed = (_number(random), wire, value)
    elif kind < 0.55:
        changed = (number, random.randrange(8), value)
    elif isinstance(value, list) and kind < 0.95:
        changed = (number, wire, _changed_fields(random, value))
    else:
        changed = (number, wire, _content(random))
    return [*fields[:index], changed, *fields[index + 1 :]]


def _number(random: Random) -> int:
    number: int = random.choice((*range(1, 20), 100, 18999, 19000, 2**29 - 1, 2**29, 0))
    return number


def _content(random: Random) -> Any:
    kind = random.randrange(6)
    if kind <= 1:
        return random.choice(BOUNDARIES) % 2**64
    if kind == 2:
        return random.choice(_TEXTS).encode()
    if kind == 3:
        return random.choice((b"\xff", b"\xed\xa0\xbd", b"a", b"\n\x01a")) * long_text(random)
    if kind == 4:
        inner: Any = b""
        for _ in range(random.choice((5, 90, 110, 1000))):
            inner = b"\x0a" + varint(len(inner)) + inner
        return inner
    return _fields(random.choice(PROTOBUF_COMMANDS)[1:], 2) or []


def _written(random: Random, fields: list[_Field]) -> bytes:
    made = []
    for number, wire, value in fields:
        made.append(varint(number << 3 | wire))
        if isinstance(value, list):
            value = _written(random, value)
        if wire == 0:
            plain = varint(value if isinstance(value, int) else len(value))
            if random.random() < 0.03:  # longer than needed
                plain = plain[:-1] + bytes((plain[-1] | 0x80,)) + b"\x80" * random.randrange(12) + b"\0"
            made.append(plain)
        elif wire == 1:
            made.append((value if isinstance(value, int) else 7).to_bytes(8, "little"))
        elif wire == 5:
            made.append((value if isinstance(value, int) else 7).to_bytes(8, "little")[:4])
        elif wire == 2:
            data = varint(value) if isinstance(value, int) else value
            length = len(data)
            if random.random() < 0.02:
                length = random.choice([each for each in BOUNDARIES if 0 <= each < 2**70])
            made += varint(length), data
        # 3 and 4 begin and end a group, 6 and 7 are nothing.
    return b"".join(made)
