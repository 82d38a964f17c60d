"""Messages of the Centrifuge protocol drawn at random, and a second way to write them and to read them.

Nothing here uses the codecs: JSON is made and read with the standard library, Protobuf with generated
classes, those of the project or those of an SDK.
"""

from __future__ import annotations

import json
import types
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from hypothesis import strategies as st

from spread.node.wire.messages import (
    EVENT_NAMES,
    REQUEST_TYPES,
    RESULT_NAMES,
    Command,
    Push,
    Reply,
    SendRequest,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
BINARIES = st.binary(max_size=200)

_NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | _NUMBERS | TEXTS,
    lambda items: st.lists(items, max_size=3) | st.dictionaries(TEXTS, items, max_size=3),
    max_leaves=6,
)
JSON_PAYLOADS = st.builds(
    lambda value, ascii, separators: json.dumps(value, ensure_ascii=ascii, separators=separators).encode(),
    JSON_VALUES,
    st.booleans(),
    st.sampled_from([(",", ":"), (", ", ": ")]),
)

_UINT32 = st.integers(0, 2**32 - 1)
# Plain ints are those of replies.
_INTEGERS = {"offset": st.integers(0, 2**64 - 1), "time": st.integers(-(2**63), 2**63 - 1)}


def messages(
    cls: type[Any], payloads: st.SearchStrategy[bytes], leave_out: tuple[str, ...] = ()
) -> st.SearchStrategy[Any]:
    """Messages of one type, each field at its default or anything."""

    def of(name: str, hint: Any) -> st.SearchStrategy[Any]:
        if isinstance(hint, types.UnionType):
            return st.none() | of(name, get_args(hint)[0])
        if get_origin(hint) is list:
            return st.lists(of(name, get_args(hint)[0]), max_size=3)
        if get_origin(hint) is dict:
            return st.dictionaries(TEXTS, of(name, get_args(hint)[1]), max_size=3)
        if hasattr(hint, "__metadata__"):
            bounds = hint.__metadata__[0]
            return st.integers(bounds.ge, bounds.le if bounds.le is not None else 2**64 - 1)
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            return messages(hint, payloads, leave_out)
        simple = {str: TEXTS, bool: st.booleans(), bytes: payloads, int: _INTEGERS.get(name, _UINT32)}
        return simple[hint]

    required, optional = {}, {}
    hints = get_type_hints(cls, include_extras=True)
    for field in msgspec.structs.fields(cls):
        if field.name not in leave_out:
            (required if field.required else optional)[field.name] = of(field.name, hints[field.name])
    return st.fixed_dictionaries(required, optional=optional).map(lambda values: cls(**values))


def commands(
    payloads: st.SearchStrategy[bytes], leave_out: tuple[str, ...] = ()
) -> st.SearchStrategy[Command]:
    """Commands with a request."""
    ids = st.integers(1, 2**32 - 1)
    requests = [messages(cls, payloads, leave_out) for cls in REQUEST_TYPES.values()]
    sends = st.builds(Command, st.just(0), messages(SendRequest, payloads))
    return st.builds(Command, ids, st.one_of(requests)) | sends


def replies(payloads: st.SearchStrategy[bytes]) -> st.SearchStrategy[Reply]:
    """Replies with a result or an error, and pushes."""
    results = st.one_of([messages(cls, payloads) for cls in RESULT_NAMES])
    events = st.one_of([messages(cls, payloads) for cls in EVENT_NAMES])
    answers = st.builds(Reply, st.integers(1, 2**32 - 1), results)
    return answers | st.builds(Reply, st.just(0), st.builds(Push, TEXTS, events))


def method_of(request: Any) -> str:
    """The name of a request's method."""
    return next(name for name, cls in REQUEST_TYPES.items() if cls is type(request))


# --- JSON ----------------------------------------------------------------------------------------------


def json_text(value: Any) -> str:
    """A message as JSON with every field written, payloads as they are."""
    if isinstance(value, Command):
        members = {"id": value.id, method_of(value.request): value.request}
    elif isinstance(value, bytes):
        return value.decode()
    elif isinstance(value, msgspec.Struct):
        members = {name: getattr(value, name) for name in value.__struct_fields__}
        if "tf" in members:
            members["tf"] = {"op": "and"} if members["tf"] else b""
        # A payload that is not there has no JSON.
        members = {name: item for name, item in members.items() if item != b""}
    elif isinstance(value, dict):
        members = value
    else:
        return json.dumps(value)
    return "{" + ", ".join(f"{json.dumps(name)}: {json_text(item)}" for name, item in members.items()) + "}"


ALWAYS_WRITTEN = {
    "ClientInfo": {"user", "client"},
    "PresenceResult": {"presence"},
    "PresenceStatsResult": {"num_clients", "num_users"},
    "HistoryResult": {"publications", "epoch", "offset"},
    "Error": {"code", "message"},
    "Unsubscribe": {"code", "reason"},
    "Disconnect": {"code", "reason"},
}


def json_meaning(value: Any) -> Any:
    """What a reply, or a part of it, is to be when it is read from JSON."""
    if isinstance(value, Reply):
        if isinstance(value.body, Push):
            push = {"channel": value.body.channel} if value.body.channel else {}
            return {"push": push | {EVENT_NAMES[type(value.body.event)]: json_meaning(value.body.event)}}
        assert value.body is not None
        return {"id": value.id, RESULT_NAMES[type(value.body)]: json_meaning(value.body)}
    if isinstance(value, msgspec.Struct):
        always = ALWAYS_WRITTEN.get(type(value).__name__, set())
        members = {name: getattr(value, name) for name in value.__struct_fields__}
        empty = (None, 0, "", b"", [], {})
        return {
            name: json_meaning(item) for name, item in members.items() if name in always or item not in empty
        }
    if isinstance(value, bytes):
        return json.loads(value)
    if isinstance(value, list):
        return [json_meaning(item) for item in value]
    if isinstance(value, dict):
        return {name: json_meaning(item) for name, item in value.items()}
    return value


# --- Protobuf ------------------------------------------------------------------------------------------


def proto_command(schema: Any, command: Command) -> bytes:
    """A command, serialised by the generated classes of ``schema``; without its length."""
    message = schema.Command(id=command.id)
    request = getattr(message, method_of(command.request))
    request.SetInParent()
    _fill(request, command.request)
    return message.SerializeToString()


def _fill(message: Any, value: Any) -> None:
    for name in value.__struct_fields__:
        item = getattr(value, name)
        if name == "tf":
            if item:
                message.tf.SetInParent()
        elif isinstance(item, dict):
            for key, entry in item.items():
                if isinstance(entry, str):
                    getattr(message, name)[key] = entry
                else:
                    _fill(getattr(message, name)[key], entry)
        elif isinstance(item, msgspec.Struct):
            getattr(message, name).SetInParent()
            _fill(getattr(message, name), item)
        elif item:
            setattr(message, name, item)


def assert_same(message: Any, value: Any) -> None:
    """A message of generated classes says what ``value`` says; fields that the schema lacks are left out."""
    if isinstance(value, Reply):
        if isinstance(value.body, Push):
            assert [field.name for field, _ in message.ListFields()] == ["push"]
            assert message.push.channel == value.body.channel
            event = EVENT_NAMES[type(value.body.event)]
            assert message.push.HasField(event)
            assert_same(getattr(message.push, event), value.body.event)
        else:
            assert value.body is not None
            name = RESULT_NAMES[type(value.body)]
            assert [field.name for field, _ in message.ListFields()] == ["id", name]
            assert message.id == value.id
            assert_same(getattr(message, name), value.body)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            item = getattr(value, name)
            if name not in message.DESCRIPTOR.fields_by_name:
                continue
            if item is None:
                assert not message.HasField(name)
            else:
                assert_same(getattr(message, name), item)
    elif isinstance(value, dict):
        assert set(message) == set(value)
        for key, entry in value.items():
            assert_same(message[key], entry)
    elif isinstance(value, list):
        assert len(message) == len(value)
        for left, right in zip(message, value, strict=True):
            assert_same(left, right)
    else:
        assert message == value and type(message) is type(value)


def delimited(*messages: bytes) -> bytes:
    """Messages as a frame: each after its length."""
    frame = b""
    for message in messages:
        length = len(message)
        while True:
            more = length > 127
            frame += bytes([length & 127 | 128 * more])
            length >>= 7
            if not more:
                break
        frame += message
    return frame


def undelimited(frame: bytes) -> list[bytes]:
    """The messages of a frame."""
    found = []
    while frame:
        length = shift = index = 0
        while True:
            length |= (frame[index] & 127) << shift
            shift += 7
            index += 1
            if frame[index - 1] < 128:
                break
        found.append(frame[index : index + length])
        assert len(found[-1]) == length
        frame = frame[index + length :]
    return found
