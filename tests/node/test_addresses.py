"""Addresses and shard numbers: what is read, what is refused, and in which words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spread.node.addresses import (
    LAST_PORT,
    LAST_SHARD,
    Address,
    AutoShard,
    OneShard,
    ShardRange,
    parse_address,
    parse_shards,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8007", Address("127.0.0.1", 8007)),
        ("0.0.0.0:0", Address("0.0.0.0", 0)),
        ("[::1]:80", Address("::1", 80)),
        ("[0:0:0:0:0:0:0:1]:80", Address("::1", 80)),
        ("[fe80::1%eth0]:80", Address("fe80::1%eth0", 80)),
        ("localhost:65535", Address("localhost", 65535)),
        ("my_game-1.example.com.:80", Address("my_game-1.example.com.", 80)),
        ("3com.example:80", Address("3com.example", 80)),
    ],
)
def test_an_address_is_read(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["off", "OFF"])
def test_off_is_no_address(text: str) -> None:
    assert parse_address(text) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "missing"),
        ("127.0.0.1", "the port is missing"),
        ("8007", "the host is missing; write HOST:PORT, for example 127.0.0.1:8007"),
        (":8007", "the host is missing"),
        ("[::1]", "the port is missing"),
        ("::1:8007", "goes in brackets"),
        ("[::1:8007", "goes in brackets"),
        ("[]:1", "not an IPv6 address"),
        ("[127.0.0.1]:1", "not an IPv6 address"),
        ("[fe80::1%a]b]:1", "not an IPv6 address"),
        ("127.0.0.1:", "the port is not a number"),
        ("127.0.0.1:http", "the port is not a number"),
        ("127.0.0.1:-1", "the port is not a number"),
        ("127.0.0.1:٣", "the port is not a number"),
        ("127.0.0.1:65536", "ports run from 0 to 65535"),
        ("127.0.0.1:" + "9" * 5000, "ports run from 0 to 65535"),
        ("127.0.0.256:80", "not an IPv4 address"),
        ("127.1:80", "not an IPv4 address"),
        ("1.2.3.0x7f:80", "not an IPv4 address"),
        ("127.0.0.1.:80", "not an IPv4 address"),
        ("127.0.0.1 :80", "no spaces"),
        ("127.0.0.1:80\n", "no spaces"),
        ("a\x00b:80", "no spaces"),
        ("http://127.0.0.1:80", "without a scheme"),
        ("-a:80", "neither an IP address nor a host name"),
        ("a..b:80", "neither an IP address nor a host name"),
        ("a/b:80", "neither an IP address nor a host name"),
        ("a." * 127 + "com:80", "neither an IP address nor a host name"),
    ],
)
def test_a_wrong_address_is_refused_in_words(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("[", r"\[")):
        parse_address(text)


labels = st.from_regex(r"[a-z]([a-z0-9_-]{0,20}[a-z0-9_])?", fullmatch=True)
hosts = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.lists(labels, min_size=1, max_size=4).map(".".join),
)


@settings(deadline=None)
@given(hosts, st.integers(0, LAST_PORT))
def test_what_is_written_is_read_back(host: str, port: int) -> None:
    address = Address(host, port)
    assert parse_address(str(address)) == address


@settings(deadline=None)
@given(st.text())
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert address is None or parse_address(str(address)) == address


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.0.9", "::1", "::1%lo", "localhost", "LocalHost"])
def test_loopback(host: str) -> None:
    assert Address(host, 80).is_loopback


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "128.0.0.1", "10.0.0.1", "fe80::1", "::ffff:127.0.0.1", "localhost.example", "game"],
)
def test_everything_else_is_public(host: str) -> None:
    assert not Address(host, 80).is_loopback


def test_plus_moves_the_port() -> None:
    assert Address("::1", 8100).plus(7) == Address("::1", 8107)
    assert Address("::1", 65000).plus(535) == Address("::1", 65535)


def test_plus_leaves_any_free_port() -> None:
    assert Address("::1", 0).plus(7) == Address("::1", 0)


def test_plus_refuses_to_leave_the_ports() -> None:
    with pytest.raises(ValueError, match="port 65535 plus 1 is above the last port, 65535"):
        Address("::1", 65535).plus(1)


@pytest.mark.parametrize(
    ("text", "shards"),
    [
        ("auto", AutoShard()),
        ("AUTO", AutoShard()),
        ("0", OneShard(0)),
        ("1023", OneShard(1023)),
        ("0-7", ShardRange(0, 7)),
        ("3-3", ShardRange(3, 3)),
    ],
)
def test_shards_are_read(text: str, shards: object) -> None:
    assert parse_shards(text) == shards


def test_a_range_has_both_ends() -> None:
    assert list(ShardRange(3, 5).numbers) == [3, 4, 5]
    assert list(ShardRange(3, 3).numbers) == [3]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a shard is missing"),
        ("-1", "shard numbers run from 0 to 1023"),
        ("1024", "shard numbers run from 0 to 1023"),
        ("0-1024", "shard numbers run from 0 to 1023"),
        ("9" * 5000, "shard numbers run from 0 to 1023"),
        ("7-0", "7-0 counts backwards; write 0-7"),
        ("3-", "the end of the range is missing"),
        ("1-2-3", "shards are a number, a range such as 0-7, or auto"),
        ("all", "shards are a number"),
        ("1,2", "shards are a number"),
        (" 1", "shards are a number"),
        ("٣", "shards are a number"),
    ],
)
def test_wrong_shards_are_refused_in_words(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_shards(text)


numbers = st.integers(0, LAST_SHARD)


@settings(deadline=None)
@given(st.one_of(st.just(AutoShard()), numbers.map(OneShard), st.tuples(numbers, numbers).map(sorted)))
def test_shards_that_are_written_are_read_back(value: AutoShard | OneShard | list[int]) -> None:
    shards = ShardRange(value[0], value[1]) if isinstance(value, list) else value
    assert parse_shards(str(shards)) == shards


@settings(deadline=None)
@given(st.text(alphabet="0123456789-auto٣ ", max_size=9))
def test_any_text_is_shards_or_a_value_error(text: str) -> None:
    try:
        parse_shards(text)
    except ValueError as error:
        assert str(error)
