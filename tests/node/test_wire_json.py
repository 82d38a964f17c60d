"""The JSON codec: frames as clients send them, replies as SDKs read them, payloads untouched."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spread.node.wire.json import (
    PING,
    decode,
    decode_emulation,
    embeddable,
    encode_push,
    encode_reply,
    join,
)
from spread.node.wire.messages import (
    PONG,
    ClientInfo,
    Command,
    ConnectRequest,
    ConnectResult,
    Disconnect,
    EmulationRequest,
    Error,
    HistoryRequest,
    HistoryResult,
    Join,
    Leave,
    Message,
    PingRequest,
    PingResult,
    PresenceRequest,
    PresenceResult,
    PresenceStatsRequest,
    PresenceStatsResult,
    ProtocolError,
    Publication,
    PublishRequest,
    PublishResult,
    Push,
    Refresh,
    RefreshRequest,
    RefreshResult,
    Reply,
    Request,
    RPCRequest,
    RPCResult,
    SendRequest,
    StreamPosition,
    SubRefreshRequest,
    SubRefreshResult,
    Subscribe,
    SubscribeRequest,
    SubscribeResult,
    Unsubscribe,
    UnsubscribeRequest,
    UnsubscribeResult,
)
from tests.node.wire_values import (
    JSON_PAYLOADS,
    JSON_VALUES,
    commands,
    json_meaning,
    json_text,
    replies,
)

PUBLISHER = ClientInfo("17", "2f6c")


def refused(frame: bytes | str) -> str:
    with pytest.raises(ProtocolError) as caught:
        decode(frame)
    return caught.value.reason


# --- commands ------------------------------------------------------------------------------------------


def test_the_first_frame_of_a_javascript_client() -> None:
    frame = (
        '{"connect":{"token":"eyJ…","name":"js"},"id":1}\n{"subscribe":{"channel":"room:7","flag":1},"id":2}'
    )
    expected = [
        Command(1, ConnectRequest(token="eyJ…", name="js")),
        Command(2, SubscribeRequest(channel="room:7", flag=1)),
    ]
    assert decode(frame) == expected
    assert decode(frame.encode()) == expected
    assert decode(frame + "\n") == expected


@pytest.mark.parametrize(
    ("text", "command"),
    [
        (
            '{"publish":{"channel":"room:7","data":{"t":"yo"}},"id":3}',
            Command(3, PublishRequest("room:7", b'{"t":"yo"}')),
        ),
        ('{"unsubscribe":{"channel":"room:7"},"id":4}', Command(4, UnsubscribeRequest("room:7"))),
        (
            '{"subscribe":{"channel":"room:7","recover":true,"epoch":"qWvNaRtx","offset":43,"flag":1},"id":6}',
            Command(6, SubscribeRequest(channel="room:7", recover=True, epoch="qWvNaRtx", offset=43, flag=1)),
        ),
        (
            '{"id":1,"connect":{"data":[1],"version":"5.7.1","headers":{"a":"b"},'
            '"subs":{"news":{"recover":true,"epoch":"kFzP","offset":12}}}}',
            Command(
                1,
                ConnectRequest(
                    data=b"[1]",
                    version="5.7.1",
                    headers={"a": "b"},
                    subs={"news": SubscribeRequest(recover=True, epoch="kFzP", offset=12)},
                ),
            ),
        ),
        ('{"connect":{},"id":1}', Command(1, ConnectRequest())),
        ('{"id":2,"presence":{"channel":"a"}}', Command(2, PresenceRequest("a"))),
        ('{"id":2,"presence_stats":{"channel":"a"}}', Command(2, PresenceStatsRequest("a"))),
        (
            '{"id":2,"history":{"channel":"a","limit":-1,"since":{"offset":3,"epoch":"e"},"reverse":true}}',
            Command(2, HistoryRequest("a", -1, StreamPosition(3, "e"), True)),
        ),
        ('{"id":2,"history":{"channel":"a"}}', Command(2, HistoryRequest("a"))),
        ('{"id":2,"rpc":{"method":"m","data":null}}', Command(2, RPCRequest("m", b"null"))),
        ('{"id":2,"refresh":{"token":"t"}}', Command(2, RefreshRequest("t"))),
        ('{"id":2,"sub_refresh":{"token":"t"}}', Command(2, SubRefreshRequest("", "t"))),
        ('{"id":2,"ping":{}}', Command(2, PingRequest())),
        ('{"send":{"data":1}}', Command(0, SendRequest(b"1"))),
        ('{"id":9,"send":{}}', Command(9, SendRequest())),
        # Kinds of subscriptions there are not, for the session to refuse.
        (
            '{"id":2,"subscribe":{"channel":"a","type":1,"tf":{"op":"and"}}}',
            Command(2, SubscribeRequest(channel="a", type=1, tf=True)),
        ),
        (
            '{"id":2,"publish":{"channel":"a","type":1,"key":"k"}}',
            Command(2, PublishRequest("a", b"", 1)),
        ),
        (
            '{"id":2,"sub_refresh":{"channel":"a","type":1,"track":[]}}',
            Command(2, SubRefreshRequest("a", "", 1)),
        ),
        ('{"id":4294967295,"connect":{}}', Command(4294967295, ConnectRequest())),
        (
            '{"id":1,"subscribe":{"offset":18446744073709551615}}',
            Command(1, SubscribeRequest(offset=2**64 - 1)),
        ),
    ],
)
def test_commands(text: str, command: Command) -> None:
    assert decode(text) == [command]
    assert decode(f"{text}\r\n") == [command]
    assert decode(f"{{}}\n{text}\n") == [PONG, command]


@pytest.mark.parametrize(
    "text",
    ["{}", "{ }", '{"id":0}', '{"connect":{}}', '{"id":0,"publish":{"channel":"a"}}', '{"new":1}'],
)
def test_what_has_no_id_is_a_pong(text: str) -> None:
    assert decode(text) == [PONG]


def test_unknown_fields_are_ignored() -> None:
    text = (
        '{"id":1,"new":[{}],"subscribe":{"channel":"a","new":{"x":[1.5,null]},"phase":2,"cursor":"x"},"x":1}'
    )
    assert decode(text) == [Command(1, SubscribeRequest(channel="a"))]


def test_null_is_as_if_it_was_not_there() -> None:
    text = (
        '{"id":1,"publish":null,"connect":{"token":null,"data":{"a":null},"headers":{"h":null},'
        '"subs":{"a":{"epoch":null,"offset":1,"data":null,"tf":null}}}}'
    )
    subs = {"a": SubscribeRequest(offset=1, data=b"null")}
    assert decode(text) == [Command(1, ConnectRequest(data=b'{"a":null}', subs=subs))]
    assert decode('{"id":1,"history":{"since":null}}') == [Command(1, HistoryRequest())]
    assert decode('{"id":1,"subscribe":{"tf":null}}') == [Command(1, SubscribeRequest())]
    assert decode('{"id":null}') == [PONG]
    assert refused('{"id":1,"connect":null}') == "no known method"


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "\n",
        "\n{}",
        "{}\n\n",
        "{}\n\n{}",
        "{}\n \n{}",
        "{}{}",
        "{},{}",
        "[]",
        "null",
        "1",
        '"connect"',
        "{",
        "{'id':1}",
        '{"id":1,"connect":{}',
        '{"id":-1,"connect":{}}',
        '{"id":4294967296,"connect":{}}',
        '{"id":"1","connect":{}}',
        '{"id":1.5,"connect":{}}',
        '{"id":true,"connect":{}}',
        '{"id":1,"connect":[]}',
        '{"id":1,"connect":{"subs":[]}}',
        '{"id":1,"connect":{"token":1}}',
        '{"id":1,"subscribe":{"offset":-1}}',
        '{"id":1,"subscribe":{"offset":18446744073709551616}}',
        '{"id":1,"connect":{"subs":{"a":{"offset":18446744073709551616}}}}',
        '{"id":1,"history":{"since":{"offset":18446744073709551616}}}',
        '{"id":1,"history":{"limit":2147483648}}',
        '{"id":1,"subscribe":{"offset":1' + "0" * 5000 + "}}",
        '{"id":1,"rpc":{"data":01}}',
        '{"id":1,"rpc":{"data":NaN}}',
        '{"id":1,"rpc":{"data":"\t"}}',
        "\ufeff{}",
        "\ud800",
        b'{"id":1,"rpc":{"data":"\xff"}}',
        b'{"id":1,"rpc":{"data":"\xed\xa0\x80"}}',
        b'{"id":1,"rpc":{"method":"\xff"}}',
        b'{"new":"\xc0\x80"}',
        b"\0",
    ],
)
def test_what_is_no_frame(frame: bytes | str) -> None:
    assert refused(frame)


def test_a_command_asks_for_one_thing() -> None:
    assert refused('{"id":1}') == refused('{"id":1,"new":{}}') == "no known method"
    both = '"connect":{},"subscribe":{}'
    assert refused(f'{{"id":1,{both}}}') == refused(f"{{{both}}}") == "several methods in one command"


@pytest.mark.parametrize(
    "around", ['{"id":1,"rpc":{"data":%s}}', '{"new":%s}', '{"id":1,"connect":%s}', "%s"]
)
@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}")])
def test_what_is_nested_too_deep(around: str, start: str, end: str) -> None:
    depth = 1_000_000
    assert refused(around % (start * depth + "1" + end * depth))
    assert refused(around % (start * depth))


def test_what_is_nested_deep_enough_for_anybody() -> None:
    value = "[" * 400 + "]" * 400
    assert decode(f'{{"id":1,"rpc":{{"data":{value}}}}}') == [Command(1, RPCRequest("", value.encode()))]


@given(st.lists(commands(JSON_PAYLOADS), min_size=1, max_size=4))
def test_commands_come_out_as_they_were_written(written: list[Command]) -> None:
    frame = "\n".join(map(json_text, written))
    assert decode(frame) == decode(frame.encode()) == written


PIECES = [
    *'{}[],:"\\1n \n\r',
    '"id":1',
    '"publish":{',
    '"data":',
    '"channel":"a"',
    "null",
    "\\ud83d",
    "\ud83d",
]


@given(st.binary(max_size=50) | st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_anything_is_a_frame_or_a_protocol_error(frame: bytes | str) -> None:
    for read in (decode, decode_emulation):
        try:
            read(frame)
        except ProtocolError as error:
            assert error.reason


@given(commands(JSON_PAYLOADS), st.data())
def test_a_damaged_command_is_one_or_a_protocol_error(command: Command, data: st.DataObject) -> None:
    frame = bytearray(json_text(command).encode())
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        decode(bytes(frame))
    except ProtocolError as error:
        assert error.reason


# --- payloads ------------------------------------------------------------------------------------------

AS_WRITTEN = [
    b"1.0",
    b"1e5",
    b"1E+400",
    b"-0",
    b"123456789012345678901234567890",
    b"0.1000000000000000055511151231257827",
    b'{"b":1,"a":2}',
    b'{"a":1,"a":2}',
    b'{ "a" : [ 1 ,\t2 ] }',
    b'"\\u00e9\\/\\n\\\\ud83d"',
    b'"\\ud83d\\ude00"',
    '"é 😀 \u2028"'.encode(),
    b"null",
    b"false",
    b"0",
    b'""',
    b"[]",
    b"{}",
]


def written_requests(payload: str) -> list[tuple[str, Any]]:
    """Every place of a command that a payload can be in."""
    data = payload.encode()
    return [
        (f'"publish":{{"data":{payload},"channel":"a"}}', PublishRequest("a", data)),
        (f'"rpc":{{"data":{payload}}}', RPCRequest("", data)),
        (f'"send":{{"data": {payload} }}', SendRequest(data)),
        (f'"subscribe":{{"data":{payload}}}', SubscribeRequest(data=data)),
        (f'"connect":{{"data":{payload}}}', ConnectRequest(data=data)),
        (
            f'"connect":{{"subs":{{"a":{{"data":{payload}}}}}}}',
            ConnectRequest(subs={"a": SubscribeRequest(data=data)}),
        ),
    ]


@pytest.mark.parametrize("payload", AS_WRITTEN)
def test_a_payload_stays_as_it_was_written(payload: bytes) -> None:
    for text, request in written_requests(payload.decode()):
        assert decode(f'{{"id":1,{text}}}') == [Command(1, request)]
        # The same beside a field that is null, and beside half a character.
        assert decode(f'{{"id":1,"x":null,"refresh":null,{text}}}') == [Command(1, request)]
        assert decode(f'{{"id":1,"x":"\\ud83d",{text}}}') == [Command(1, request)]
    assert embeddable(payload) == payload
    assert encode_push("a", Publication(payload)) == b'{"push":{"channel":"a","pub":{"data":%b}}}' % payload


def test_a_carriage_return_ends_an_event_of_sse() -> None:
    frame = b'{"id":1,"publish":{"data":{"a":\r[1, "x \\" y\\r", 2]\r}}}\r\n'
    assert decode(frame) == [Command(1, PublishRequest("", b'{"a":[1, "x \\" y\\r", 2]}'))]


@pytest.mark.parametrize(
    ("payload", "mended"),
    [
        (r'"\ud83d"', r'"\ufffd"'),
        (r'"\uD83D x"', r'"\ufffd x"'),
        (r'"\ude00\ud83d"', r'"\ufffd\ufffd"'),
        (r'"\ud83d\ud83d\ude00"', r'"\ufffd\ud83d\ude00"'),
        (r'"\ud83d\u0061"', r'"\ufffd\u0061"'),
        (r'"\\ud83d\ud83d"', r'"\\ud83d\ufffd"'),
        (r'"\\\ud83d"', r'"\\\ufffd"'),
        (r'{"\ud83d":1.0}', r'{"\ufffd":1.0}'),
    ],
)
def test_half_a_character_does_not_end_a_connection(payload: str, mended: str) -> None:
    for (text, _), (_, request) in zip(written_requests(payload), written_requests(mended), strict=True):
        assert decode(f'{{"id":1,{text}}}') == [Command(1, request)]
    assert embeddable(payload.encode()) == mended.encode()
    assert decode(r'{"id":1,"rpc":{"method":"a\ud83d"}}') == [Command(1, RPCRequest("a\ufffd"))]


@given(st.lists(st.sampled_from(["\\ud83d", "\\uDE00", "\\\\", "\\u0061", "d83d", "\\n", "x"]), max_size=8))
def test_whatever_is_cut_in_two(pieces: list[str]) -> None:
    text = f'"{"".join(pieces)}"'
    read = json.loads(embeddable(text.encode()))
    whole = json.loads(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert read.encode().replace("\ufffd".encode(), b"") == whole.encode().replace("\ufffd".encode(), b"")


@given(JSON_VALUES, st.sampled_from([None, 1, "\t"]), st.sampled_from(["\n", "\r\n", "\r"]))
def test_a_value_on_many_lines_becomes_one_line(value: Any, indent: Any, line_break: str) -> None:
    written = json.dumps(value, indent=indent)
    one_line = json.dumps(value, separators=(",", ": ")) if "\n" in written else written
    text = written.replace("\n", line_break) + line_break
    assert embeddable(text.encode()) == one_line.encode()


@pytest.mark.parametrize(
    "value", [b"", b" ", b"\n", b"1 2", b"{", b"{}\n{}", b"nul", b'"\xff"', b'"\n"', b"\xff"]
)
def test_what_cannot_be_embedded(value: bytes) -> None:
    with pytest.raises(ProtocolError):
        embeddable(value)


# --- emulation -----------------------------------------------------------------------------------------


def test_a_request_to_the_emulation_endpoint() -> None:
    body = r'{"session":"5d0e","node":"9b1f","data":"{\"subscribe\":{\"channel\":\"test\"},\"id\":2}"}'
    request = decode_emulation(body.encode())
    assert request == EmulationRequest("9b1f", "5d0e", b'{"subscribe":{"channel":"test"},"id":2}')
    assert decode(request.data) == [Command(2, SubscribeRequest(channel="test"))]
    assert decode_emulation("{}") == EmulationRequest()
    assert decode_emulation('{"node":null}') == EmulationRequest()


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data":{}}', b'{"node":1}', b'{"data":"\xff"}'])
def test_what_is_no_request_to_the_emulation_endpoint(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_emulation(body)


# --- replies -------------------------------------------------------------------------------------------

POSITION: dict[str, Any] = {"recoverable": True, "positioned": True, "epoch": "qWvNaRtx"}


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (
            Reply(1, ConnectResult(client="2f6c", version="spread 0.1", ping=25, pong=True)),
            '{"id":1,"connect":{"client":"2f6c","version":"spread 0.1","ping":25,"pong":true}}',
        ),
        (
            Reply(2, SubscribeResult(**POSITION, offset=41)),
            '{"id":2,"subscribe":{"recoverable":true,"positioned":true,"epoch":"qWvNaRtx","offset":41}}',
        ),
        (
            Reply(body=Push("room:7", Join(PUBLISHER))),
            '{"push":{"channel":"room:7","join":{"info":{"user":"17","client":"2f6c"}}}}',
        ),
        (
            Reply(body=Push("room:7", Publication(b'{"t":"hi"}', 42))),
            '{"push":{"channel":"room:7","pub":{"data":{"t":"hi"},"offset":42}}}',
        ),
        (Reply(), "{}"),
        (
            Reply(body=Push("room:7", Publication(b'{"t":"yo"}', 43, PUBLISHER))),
            '{"push":{"channel":"room:7","pub":{"data":{"t":"yo"},"offset":43,'
            '"info":{"user":"17","client":"2f6c"}}}}',
        ),
        (Reply(3, PublishResult()), '{"id":3,"publish":{}}'),
        (Reply(4, UnsubscribeResult()), '{"id":4,"unsubscribe":{}}'),
        (
            Reply(
                6,
                SubscribeResult(
                    **POSITION,
                    offset=43,
                    was_recovering=True,
                    recovered=True,
                    publications=[Publication(b'{"n":1}', 44), Publication(b'{"n":2}', 45)],
                ),
            ),
            '{"id":6,"subscribe":{"recoverable":true,"positioned":true,"epoch":"qWvNaRtx","offset":43,'
            '"was_recovering":true,"recovered":true,'
            '"publications":[{"data":{"n":1},"offset":44},{"data":{"n":2},"offset":45}]}}',
        ),
        (
            Reply(
                6,
                SubscribeResult(
                    recoverable=True, positioned=True, epoch="bzKpLmQe", offset=9, was_recovering=True
                ),
            ),
            '{"id":6,"subscribe":{"recoverable":true,"positioned":true,"epoch":"bzKpLmQe","offset":9,'
            '"was_recovering":true}}',
        ),
        (
            Reply(6, Error(112, "unrecoverable position")),
            '{"id":6,"error":{"code":112,"message":"unrecoverable position"}}',
        ),
        (
            Reply(
                1,
                ConnectResult(
                    client="2f6c",
                    version="spread 0.1",
                    subs={
                        "#17": SubscribeResult(recoverable=True, positioned=True, epoch="aaBBccDD", offset=3)
                    },
                    ping=25,
                    pong=True,
                ),
            ),
            '{"id":1,"connect":{"client":"2f6c","version":"spread 0.1","subs":{"#17":{"recoverable":true,'
            '"positioned":true,"epoch":"aaBBccDD","offset":3}},"ping":25,"pong":true}}',
        ),
        (Reply(1, Error(109, "token expired")), '{"id":1,"error":{"code":109,"message":"token expired"}}'),
        (
            Reply(body=Push("room:7", Unsubscribe(2500, "insufficient state"))),
            '{"push":{"channel":"room:7","unsubscribe":{"code":2500,"reason":"insufficient state"}}}',
        ),
        (
            Reply(
                1,
                ConnectResult(
                    client="77aa", version="spread 0.1", ping=25, pong=True, session="5d0e", node="9b1f"
                ),
            ),
            '{"id":1,"connect":{"client":"77aa","version":"spread 0.1","ping":25,"pong":true,'
            '"session":"5d0e","node":"9b1f"}}',
        ),
        (Reply(2, SubscribeResult()), '{"id":2,"subscribe":{}}'),
    ],
)
def test_the_replies_of_a_session(reply: Reply, text: str) -> None:
    assert encode_reply(reply).decode() == text


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (Reply(1, RPCResult()), '{"id":1,"rpc":{}}'),
        (Reply(1, RPCResult(b"null")), '{"id":1,"rpc":{"data":null}}'),
        (Reply(1, PingResult()), '{"id":1,"ping":{}}'),
        (Reply(1, RefreshResult()), '{"id":1,"refresh":{}}'),
        (Reply(1, SubRefreshResult(True, 60)), '{"id":1,"sub_refresh":{"expires":true,"ttl":60}}'),
        (Reply(1, PresenceResult({})), '{"id":1,"presence":{"presence":{}}}'),
        (
            Reply(1, PresenceResult({"c": ClientInfo("", "", b"1.0", b"{}")})),
            '{"id":1,"presence":{"presence":{"c":{"user":"","client":"","conn_info":1.0,"chan_info":{}}}}}',
        ),
        (Reply(1, PresenceStatsResult(0, 0)), '{"id":1,"presence_stats":{"num_clients":0,"num_users":0}}'),
        (Reply(1, HistoryResult([], "", 0)), '{"id":1,"history":{"publications":[],"epoch":"","offset":0}}'),
        (Reply(1, Error(100, "", True)), '{"id":1,"error":{"code":100,"message":"","temporary":true}}'),
        (
            Reply(body=Push("c", Unsubscribe(0, ""))),
            '{"push":{"channel":"c","unsubscribe":{"code":0,"reason":""}}}',
        ),
        (Reply(body=Push("", Disconnect(3001, ""))), '{"push":{"disconnect":{"code":3001,"reason":""}}}'),
        (Reply(body=Push("", Message(b"[1]"))), '{"push":{"message":{"data":[1]}}}'),
        (Reply(body=Push("", Refresh(True, 5))), '{"push":{"refresh":{"expires":true,"ttl":5}}}'),
        (
            Reply(body=Push("c", Leave(ClientInfo("", "x")))),
            '{"push":{"channel":"c","leave":{"info":{"user":"","client":"x"}}}}',
        ),
        (Reply(body=Push("c", Subscribe())), '{"push":{"channel":"c","subscribe":{}}}'),
        (
            Reply(body=Push('"\n', Publication(b"1", tags={'"': "\n"}, delta=True, time=-1, epoch="e"))),
            r'{"push":{"channel":"\"\n","pub":{"data":1,"tags":{"\"":"\n"},"delta":true,"time":-1,"epoch":"e"}}}',
        ),
    ],
)
def test_what_is_left_out_and_what_never_is(reply: Reply, text: str) -> None:
    assert encode_reply(reply).decode() == text


@given(replies(JSON_PAYLOADS))
def test_replies_mean_what_they_say(reply: Reply) -> None:
    encoded = encode_reply(reply)
    assert b"\n" not in encoded and b"\r" not in encoded
    assert json.loads(encoded) == json_meaning(reply)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), replies(JSON_PAYLOADS))
def test_a_push_is_a_reply(channel: str, reply: Reply) -> None:
    if isinstance(reply.body, Push) and isinstance(reply.body.event, Publication):
        publication = reply.body.event
    else:
        publication = Publication(b"1")
    assert encode_push(channel, publication) == encode_reply(Reply(body=Push(channel, publication)))


def test_several_replies_in_one_frame() -> None:
    frame = join([encode_reply(Reply(3, PublishResult())), PING])
    assert frame == b'{"id":3,"publish":{}}\n{}'
    assert join([PING]) == PING


def test_a_request_is_one_of_the_protocol() -> None:
    # What sessions match on; a private type of the codec would fall through.
    for text, _ in written_requests("1"):
        assert isinstance(decode(f'{{"id":1,{text}}}')[0].request, Request)
