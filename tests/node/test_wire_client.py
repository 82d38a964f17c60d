"""The client's half of both codecs, against the server's half and against hostile bytes."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spread.node.wire import client_json, client_protobuf, json, protobuf
from spread.node.wire.messages import (
    PONG,
    ClientInfo,
    Command,
    Connect,
    ConnectRequest,
    HistoryRequest,
    HistoryResult,
    PingRequest,
    ProtocolError,
    Push,
    Reply,
    StreamPosition,
    SubscribeRequest,
)
from tests.node.wire_values import BINARIES, JSON_PAYLOADS, commands, replies

HALVES = [(client_json, json), (client_protobuf, protobuf)]


@given(commands(JSON_PAYLOADS, leave_out=("tf",)))
def test_the_server_reads_the_commands_in_json(command: Command) -> None:
    assert json.decode(client_json.encode_command(command)) == [command]


@given(commands(BINARIES, leave_out=("tf",)))
def test_the_server_reads_the_commands_in_protobuf(command: Command) -> None:
    assert protobuf.decode(client_protobuf.encode_command(command)) == [command]


def is_told_only_elsewhere(reply: Reply) -> bool:
    """A connect push is for unidirectional transports."""
    return isinstance(reply.body, Push) and isinstance(reply.body.event, Connect)


@given(replies(JSON_PAYLOADS))
def test_replies_in_json_come_back(reply: Reply) -> None:
    expected = [] if is_told_only_elsewhere(reply) else [reply]
    assert client_json.decode_replies(json.encode_reply(reply)) == expected


@given(replies(BINARIES))
def test_replies_in_protobuf_come_back(reply: Reply) -> None:
    expected = [] if is_told_only_elsewhere(reply) else [reply]
    assert client_protobuf.decode_replies(protobuf.encode_reply(reply)) == expected


@pytest.mark.parametrize(("client", "server"), HALVES)
def test_frames_hold_several_commands_and_replies(client: ModuleType, server: ModuleType) -> None:
    sent = [Command(1, ConnectRequest(name="x")), Command(2, SubscribeRequest(channel="c")), PONG]
    assert server.decode(client.join(map(client.encode_command, sent))) == sent
    answered = [Reply(), Reply(7, HistoryResult([], "e", 2**64 - 1)), Reply()]
    assert client.decode_replies(server.join(map(server.encode_reply, answered))) == answered
    assert server.decode(client.PONG) == [PONG]
    assert client.decode_replies(server.PING) == [Reply()]


@pytest.mark.parametrize(("client", "server"), HALVES)
def test_an_empty_position_is_written(client: ModuleType, server: ModuleType) -> None:
    command = Command(1, HistoryRequest("c", -1, StreamPosition()))
    assert server.decode(client.encode_command(command)) == [command]


def test_a_request_without_fields() -> None:
    assert client_json.encode_command(Command(3, PingRequest())) == b'{"id":3,"ping":{}}'


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\n",
        b"{}\n\n{}",
        b"[]",
        b"null",
        b"1",
        b"{",
        b"\xff",
        b'{"id":1}',
        b'{"id":1,"publish":{},"rpc":{}}',
        b'{"id":-1,"publish":{}}',
        b'{"id":4294967296,"publish":{}}',
        b'{"id":1,"connect":[]}',
        b'{"id":1,"connect":{"ping":1e400}}',
        b'{"id":1,"connect":{"ttl":-5}}',
        b'{"id":1,"subscribe":{"offset":18446744073709551616}}',
        b'{"id":1,"history":{"offset":99999999999999999999}}',
        b'{"push":{"channel":"c","pub":{"offset":18446744073709551616}}}',
        b'{"push":{"channel":"c","subscribe":{"offset":18446744073709551616}}}',
        b'{"push":{"channel":5,"pub":{}}}',
        b'{"push":{"pub":{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}}}",
    ],
)
def test_what_is_no_reply_in_json_is_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        client_json.decode_replies(frame)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x05\x08",
        b"\xff" * 12,
        b"\x80",
        b"\x02\x08\x01",  # an id and nothing else
        b"\x06\x08\x01\x3a\x00\x42\x00",  # two results
        b"\x03\x2a\x01\xff",
    ],
)
def test_what_is_no_reply_in_protobuf_is_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        client_protobuf.decode_replies(frame)


@given(st.binary(max_size=60))
def test_nothing_but_a_protocol_error_is_raised(frame: bytes) -> None:
    for client in (client_json, client_protobuf):
        try:
            client.decode_replies(frame)
        except ProtocolError:
            continue


@given(replies(BINARIES), st.integers(0, 300), st.integers(0, 255))
def test_broken_protobuf_raises_nothing_else(reply: Reply, place: int, byte: int) -> None:
    frame = bytearray(protobuf.encode_reply(reply))
    frame[place % len(frame)] = byte
    try:
        client_protobuf.decode_replies(bytes(frame))
    except ProtocolError:
        return


def test_what_a_newer_server_says_is_left_out() -> None:
    frame = b'{"push":{"channel":"c","novelty":{"a":1}}}\n{"id":2,"publish":{"more":[1]},"and":3}'
    assert [reply.id for reply in client_json.decode_replies(frame)] == [2]
    push = b"\x22\x05\x12\x01c\x7a\x00"  # a push to c with field 15
    assert client_protobuf.decode_replies(b"%c%b" % (len(push), push)) == []


def test_other_servers_write_empty_lists_as_null() -> None:
    frame = (
        b'{"id":1,"history":{"publications":null,"epoch":"e","offset":3}}\n'
        b'{"id":2,"connect":{"client":"a","subs":null}}\n'
        b'{"id":3,"presence":{"presence":null}}\n'
        b'{"id":4,"subscribe":{"publications":[{"data":1,"info":null,"tags":null}]}}'
    )
    first, second, third, fourth = (reply.body for reply in client_json.decode_replies(frame))
    assert first == HistoryResult([], "e", 3)
    assert getattr(second, "subs", None) == {}
    assert getattr(third, "presence", None) == {}
    assert getattr(fourth, "publications", [])[0].info is None


def test_half_a_character_in_a_payload_spoils_nothing() -> None:
    frame = rb'{"push":{"channel":"c","join":{"info":{"user":"\ud83d","client":"a"}}}}'
    (reply,) = client_json.decode_replies(frame)
    assert isinstance(reply.body, Push)
    assert getattr(reply.body.event, "info", None) == ClientInfo("\ufffd", "a")
