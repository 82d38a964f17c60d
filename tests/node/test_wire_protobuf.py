"""The Protobuf codec, held against generated classes, those of a real SDK among them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from hypothesis import given
from hypothesis import strategies as st

from spread.node.wire import centrifuge_pb2, json, messages
from spread.node.wire.messages import (
    EVENT_NAMES,
    PONG,
    REQUEST_TYPES,
    RESULT_NAMES,
    ClientInfo,
    Command,
    ConnectRequest,
    ConnectResult,
    EmulationRequest,
    Error,
    ProtocolError,
    Publication,
    PublishRequest,
    PublishResult,
    Push,
    Reply,
    RPCResult,
    SendRequest,
    SubscribeRequest,
)
from spread.node.wire.protobuf import (
    PING,
    decode,
    decode_emulation,
    encode_push,
    encode_reply,
    join,
)
from tests.node.wire_values import (
    BINARIES,
    JSON_PAYLOADS,
    assert_same,
    commands,
    delimited,
    json_text,
    proto_command,
    replies,
    undelimited,
)

OURS: Any = centrifuge_pb2
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sdk() -> Any:
    """The generated classes of centrifuge-python."""
    return pytest.importorskip("centrifuge.protocol.client_pb2")


def refused(frame: bytes) -> str:
    with pytest.raises(ProtocolError) as caught:
        decode(frame)
    return caught.value.reason


# --- commands ------------------------------------------------------------------------------------------


def test_the_bytes_of_a_connect_command() -> None:
    assert decode(bytes.fromhex("04 08 01 22 00")) == [Command(1, ConnectRequest())]


def test_several_commands_in_one_frame() -> None:
    subscribe = OURS.Command(id=2, subscribe={"channel": "room:7", "flag": 1})
    frame = bytes.fromhex("04 08 01 22 00") + b"\0" + delimited(subscribe.SerializeToString())
    subscription = Command(2, SubscribeRequest(channel="room:7", flag=1))
    assert decode(frame) == [Command(1, ConnectRequest()), PONG, subscription]


@pytest.mark.parametrize("size", [0, 1, 110, 127, 128, 129, 16000, 16384, 70000])
def test_messages_of_any_size(size: int) -> None:
    data = bytes(size)
    frame = delimited(*[OURS.Command(id=3, publish={"channel": "c", "data": data}).SerializeToString()] * 2)
    assert decode(frame) == [Command(3, PublishRequest("c", data))] * 2
    reply = encode_reply(Reply(1, RPCResult(data)))
    (message,) = undelimited(reply)
    assert OURS.Reply.FromString(message).rpc.data == data
    assert delimited(message) == reply


def test_a_length_with_more_bytes_than_it_needs() -> None:
    assert decode(b"\x84\x80\x00" + bytes.fromhex("08 01 22 00")) == [Command(1, ConnectRequest())]
    assert decode(b"\x80\x00") == [PONG]


@pytest.mark.parametrize(
    "command",
    [
        OURS.Command(),
        OURS.Command(connect={}),
        OURS.Command(publish={"channel": "a"}),
    ],
)
def test_what_has_no_id_is_a_pong(command: Any) -> None:
    assert decode(delimited(command.SerializeToString())) == [PONG]
    assert decode(PING) == [PONG]


def test_send_needs_no_id() -> None:
    frame = delimited(
        OURS.Command(send={"data": b"\xff"}).SerializeToString(),
        OURS.Command(id=9, send={}).SerializeToString(),
    )
    assert decode(frame) == [Command(0, SendRequest(b"\xff")), Command(9, SendRequest())]


def test_a_command_asks_for_one_thing() -> None:
    assert refused(delimited(b"\x08\x01")) == "no known method"
    assert refused(delimited(b"\x08\x01\xa2\x06\x00")) == "no known method"  # field 100
    for id in (0, 1):
        command = OURS.Command(id=id, connect={}, subscribe={})
        assert refused(delimited(command.SerializeToString())) == "several methods in one command"


def test_unknown_fields_are_ignored() -> None:
    # Fields 100 (a varint, bytes, 32 and 64 bits) and 16, in the command and in its request.
    unknown = b"\xa0\x06\x01\xa2\x06\x01x\xa5\x06abcd\xa1\x06abcdefgh\x80\x01\x02"
    request = OURS.SubscribeRequest(channel="a").SerializeToString() + unknown
    frame = delimited(b"\x08\x01\x2a" + delimited(request) + unknown)
    assert decode(frame) == [Command(1, SubscribeRequest(channel="a"))]


def test_a_field_of_another_wire_type_is_unknown() -> None:
    assert decode(delimited(b"\x08\x01\x2a\x02\x08\x07")) == [Command(1, SubscribeRequest())]
    assert refused(delimited(b"\x08\x01\x28\x07")) == "no known method"
    assert decode(delimited(b"\x0a\x01\x07\x22\x00")) == [PONG]


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x01",
        b"\x80",
        b"\x04\x08\x01\x22",
        b"\x05\x08\x01\x22\x00",
        b"\xff\xff\xff\xff\x0f\x08\x01",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x08\x01",
        b"\xff" * 10 + b"\x01\x08\x01",
        b"\x80" * 10 + b"\x00",
        b"\x80" * 9 + b"\x01",
        b"\x00\x00\x04\x08\x01\x22",
        b"\x02\x08\x80",  # an id that does not end
        b"\x0c\x08" + b"\xff" * 11,
        b"\x03\x08\x01\x22",
        b"\x04\x08\x01\x22\x01",  # a request longer than its command
        b"\x02\x00\x00",  # field 0
        b"\x01\x0c",  # the end of a group
        b"\x01\x0b",  # a group that does not end
        b"\x01\x0e",  # wire type 6
        b"\x07\x08\x01\x32\x03\x0a\x01\xff",  # a channel that is not UTF-8
        b"\x09\x08\x01\x32\x05\x0a\x03\xed\xa0\x80",
        b"{}",
    ],
)
def test_what_is_no_frame(frame: bytes) -> None:
    assert refused(frame)
    assert refused(b"\x04\x08\x01\x22\x00" + frame) if frame else True


def test_what_is_nested_too_deep() -> None:
    groups = b"\xa3\x06" * 30000 + b"\xa4\x06" * 30000
    assert refused(delimited(groups))
    assert refused(delimited(b"\x08\x01\x2a" + delimited(groups)))


def test_the_content_of_a_filter_is_not_read() -> None:
    nested = b""
    for _ in range(150):
        nested = b"\x32" + delimited(nested)
    frame = delimited(b"\x08\x01\x2a" + delimited(b"\x6a" + delimited(nested)))
    assert decode(frame) == [Command(1, SubscribeRequest(tf=True))]


@given(st.lists(commands(BINARIES), min_size=1, max_size=4))
def test_commands_come_out_as_they_were_written(written: list[Command]) -> None:
    assert decode(delimited(*[proto_command(OURS, command) for command in written])) == written


@given(commands(JSON_PAYLOADS))
def test_a_command_means_the_same_in_json(command: Command) -> None:
    assert decode(delimited(proto_command(OURS, command))) == json.decode(json_text(command)) == [command]


@given(st.binary(max_size=60))
def test_anything_is_a_frame_or_a_protocol_error(data: bytes) -> None:
    for frame in (data, delimited(data), delimited(b"\x08\x01" + data)):
        for read in (decode, decode_emulation):
            try:
                read(frame)
            except ProtocolError as error:
                assert error.reason


@given(commands(BINARIES), st.data())
def test_a_damaged_command_is_one_or_a_protocol_error(command: Command, data: st.DataObject) -> None:
    frame = bytearray(delimited(proto_command(OURS, command)))
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        decode(bytes(frame))
    except ProtocolError as error:
        assert error.reason


def test_a_request_to_the_emulation_endpoint() -> None:
    body = OURS.EmulationRequest(node="9b1f", session="5d0e", data=b"\0").SerializeToString()
    assert decode_emulation(body) == EmulationRequest("9b1f", "5d0e", b"\0")
    assert decode_emulation(b"") == EmulationRequest()
    with pytest.raises(ProtocolError):
        decode_emulation(b"\x0a\x01\xff")


# --- replies -------------------------------------------------------------------------------------------


def test_the_bytes_of_a_connect_reply() -> None:
    reply = Reply(1, ConnectResult(client="c1", version="", ping=25, pong=True))
    assert encode_reply(reply) == bytes.fromhex("0c 08 01 2a 08 0a 02 63 31 38 19 40 01")


def test_results_are_there_even_if_they_are_empty() -> None:
    assert encode_reply(Reply(3, PublishResult())) == bytes.fromhex("04 08 03 42 00")
    assert encode_reply(Reply(3, Error(0, ""))) == bytes.fromhex("04 08 03 12 00")


def test_a_ping_is_one_byte() -> None:
    assert encode_reply(Reply()) == PING == b"\0"


@given(replies(BINARIES))
def test_replies_mean_what_they_say(reply: Reply) -> None:
    (message,) = undelimited(encode_reply(reply))
    assert_same(OURS.Reply.FromString(message), reply)


def test_a_push_is_a_reply() -> None:
    publication = Publication(b"\xff", 42, ClientInfo("17", "2f6c", b"\0"), {"a": "b"}, epoch="e")
    assert encode_push("room:7", publication) == encode_reply(Reply(body=Push("room:7", publication)))


def test_several_replies_in_one_frame() -> None:
    assert join([encode_reply(Reply(3, PublishResult())), PING]) == bytes.fromhex("04 08 03 42 00 00")


def described(module: Any) -> FileDescriptorProto:
    """What a generated module was made from."""
    file = FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    return file


def schema_of(module: Any) -> dict[str, tuple[int, int, int]]:
    """Number, type and label of every field."""
    return {
        f"{message.name}.{field.name}": (field.number, field.type, field.label)
        for message in described(module).message_type
        for field in message.field
    }


# --- what others have generated ------------------------------------------------------------------------


@given(data=st.data())
def test_an_sdk_reads_our_replies(sdk: Any, data: st.DataObject) -> None:
    reply = data.draw(replies(BINARIES))
    (message,) = undelimited(encode_reply(reply))
    assert_same(sdk.Reply.FromString(message), reply)


@given(data=st.data())
def test_we_read_the_commands_of_an_sdk(sdk: Any, data: st.DataObject) -> None:
    # Its schema is older than kinds of subscriptions.
    command = data.draw(commands(BINARIES, leave_out=("type",)))
    assert decode(delimited(proto_command(sdk, command))) == [command]


def test_the_schema_is_that_of_an_sdk(sdk: Any) -> None:
    ours, theirs = schema_of(OURS), schema_of(sdk)
    newer = {
        "Publication.epoch",
        "SubscribeRequest.type",
        "PublishRequest.type",
        "SubRefreshRequest.type",
    }
    assert {name: field for name, field in ours.items() if name not in newer}.items() <= theirs.items()
    assert not newer & theirs.keys()


# --- the schema ----------------------------------------------------------------------------------------


def test_the_schema_has_the_fields_of_the_messages() -> None:
    own = {"Command": {"id", *REQUEST_TYPES}, "Reply": {"id", "push", *RESULT_NAMES.values()}}
    own["Push"] = {"channel", *EVENT_NAMES.values()}
    own["FilterNode"] = set()
    for name, message in OURS.DESCRIPTOR.message_types_by_name.items():
        expected = own[name] if name in own else set(getattr(messages, name).__struct_fields__)
        assert set(message.fields_by_name) == expected, name


def test_the_schema_leads_each_method_to_its_message() -> None:
    fields = OURS.Command.DESCRIPTOR.fields_by_name
    for name, request in REQUEST_TYPES.items():
        assert fields[name].message_type.name == request.__name__
    for result, name in RESULT_NAMES.items():
        assert OURS.Reply.DESCRIPTOR.fields_by_name[name].message_type.name == result.__name__
    for event, name in EVENT_NAMES.items():
        assert OURS.Push.DESCRIPTOR.fields_by_name[name].message_type.name == event.__name__


def test_the_generated_module_is_that_of_the_schema() -> None:
    """Without protoc: every line of the schema, and none else, is in the descriptor."""
    kinds = {kind: name.lower() for name, kind in FieldDescriptorProto.Type.items()}
    found = set()
    for message in described(OURS).message_type:
        maps = {nested.name: nested for nested in message.nested_type}
        for field in message.field:
            kind = field.type_name.rpartition(".")[2] or kinds[field.type].removeprefix("type_")
            if kind in maps:
                key, value = maps[kind].field
                value_kind = value.type_name.rpartition(".")[2] or kinds[value.type].removeprefix("type_")
                kind = f"map<{kinds[key.type].removeprefix('type_')}, {value_kind}>"
            elif field.label == field.LABEL_REPEATED:
                kind = f"repeated {kind}"
            found.add((message.name, kind, field.name, field.number))
    written = set()
    text = (ROOT / "node/wire/centrifuge.proto").read_text()
    for name, body in re.findall(r"^message (\w+) \{(.*?)\}$", text, re.MULTILINE | re.DOTALL):
        for line in filter(None, map(str.strip, body.splitlines())):
            matched = re.fullmatch(r"(.+) (\w+) = (\d+);", line)
            assert matched, line
            written.add((name, matched[1], matched[2], int(matched[3])))
    assert found == written


def test_protoc_makes_the_same_module(tmp_path: Path) -> None:
    if find_spec("grpc_tools"):
        protoc = [sys.executable, "-m", "grpc_tools.protoc"]
    elif path := shutil.which("protoc"):
        protoc = [path]
    else:
        pytest.skip("no protoc: neither grpcio-tools nor the program is installed")
    source = "spread/node/wire/centrifuge.proto"
    outputs = [f"--descriptor_set_out={tmp_path}/set", f"--python_out={tmp_path}"]
    subprocess.run([*protoc, "-I", ROOT / "tests/_typing", *outputs, source], check=True, timeout=60)
    (made,) = FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file
    for message in made.message_type:  # protoc adds what generated modules leave out
        for field in [*message.field, *(field for nested in message.nested_type for field in nested.field)]:
            field.ClearField("json_name")
    assert described(OURS) == made
    version = re.compile(r"# Protobuf Python Version: (.*)")
    text = (tmp_path / source).with_name("centrifuge_pb2.py").read_text()
    committed = (ROOT / "node/wire/centrifuge_pb2.py").read_text()
    if version.findall(text) == version.findall(committed):
        assert text == committed
