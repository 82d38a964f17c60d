"""Slots, hash tags, and what nodes tell about them."""

from __future__ import annotations

import pytest

from spread.hub.errors import ReplyError
from spread.hub.keys import Keys
from spread.hub.slots import (
    MAX_PARTS,
    SLOTS,
    Node,
    Part,
    Redirect,
    is_divided,
    parse_slots,
    same_groups,
    slot_of,
    slot_of_channel,
    tag_in,
)


def test_slots_are_those_of_the_specification() -> None:
    # CRC16 of "123456789" is given there as 0x31C3.
    assert slot_of(b"123456789") == 0x31C3
    assert slot_of(b"{user1000}.following") == slot_of(b"{user1000}.followers") == slot_of(b"user1000")
    assert slot_of(b"foo{}{bar}") == 8363, "an empty tag counts for nothing: the whole key"
    assert slot_of(b"foo{{bar}}zap") == slot_of(b"{bar")
    assert slot_of(b"foo{bar}{zap}") == slot_of(b"bar")
    assert slot_of(b"no{end") == slot_of(b"no{end") != slot_of(b"end")


@pytest.mark.parametrize(
    "channel",
    ["lobby", "{a}b", "a}b", "{", "{}", "{{}}", "a{b}c}", "名前", "a b", "x}", "{}x", "$user:1#2,3"],
)
def test_all_keys_of_a_channel_are_in_one_slot(channel: str) -> None:
    keys = Keys("spread")
    used = {
        slot_of(keys.channel(channel)),
        slot_of(keys.stream(channel)),
        slot_of(keys.meta(channel)),
        slot_of(keys.result(channel, "{an}idempotency{key}")),
    }
    assert used == {slot_of_channel(channel)}
    assert not is_divided(channel)


@pytest.mark.parametrize("channel", ["", "}", "}x", "}{a}"])
def test_names_that_leave_the_tag_empty_are_known(channel: str) -> None:
    assert is_divided(channel)


def test_a_tag_is_found_for_any_slots() -> None:
    for slots in (range(5461), [16383], {7, 8}):
        assert slot_of(f"spread:probe:x:{{{tag_in(slots)}}}".encode()) in slots
    assert tag_in(range(SLOTS)) == "0"
    with pytest.raises(ValueError, match="no slots"):
        tag_in([])


def test_a_tag_stays_when_other_slots_go() -> None:
    slots = set(range(4000))
    tag = tag_in(slots)
    slots -= set(range(0, 4000, 2)) - {slot_of(tag.encode())}
    assert tag_in(slots) == tag


def node(name: str, port: int = 7000) -> list[object]:
    return [b"10.0.0.1", port, name.encode(), []]


def part(primary: str, *ranges: tuple[int, int], replicas: str = "") -> Part:
    return Part(Node(primary, "h", 1), tuple(Node(replica, "h", 1) for replica in replicas), tuple(ranges))


def test_cluster_slots_is_read_by_primary() -> None:
    parts = parse_slots(
        [
            [8000, 16383, node("bb", 7001)],
            [0, 99, node("aa"), node("cc", 7002), node("dd", 7003)],
            [200, 299, node("aa"), node("cc", 7002)],
        ],
        "seed",
    )
    assert [each.primary.id for each in parts] == ["aa", "bb"]
    assert parts[0].ranges == ((0, 99), (200, 299))
    assert len(list(parts[0].slots)) == 200
    assert parts[0].ids == {"aa", "cc", "dd"}
    assert str(parts[1].primary) == "10.0.0.1:7001"
    assert str(Node("x", "::1", 7)) == "[::1]:7"


def test_a_node_that_does_not_know_its_address_has_that_which_was_asked() -> None:
    for host in (None, b""):
        parts = parse_slots([[0, 1, [host, 7000, b"aa"]]], "seed")
        assert parts[0].primary == Node("aa", "seed", 7000)


def test_a_replica_without_an_address_is_left_out() -> None:
    assert parse_slots([[0, 1, node("aa"), [b"?", 7000, b"bb"]]], "seed")[0].replicas == ()


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (b"OK", "CLUSTER SLOTS"),
        (None, "CLUSTER SLOTS"),
        ([[0, 1]], "values"),
        ([[0, 99999, node("aa")]], "slots 0 to 99999"),
        ([[0, 1, [b"?", 1, b"aa"]]], "announces no address"),
        ([[0, 1, [b"h", 0, b"aa"]]], "announces the port 0"),
        ([[0, 1, [b"h", 1, b"\xff"]]], "CLUSTER SLOTS"),
        ([[0, 1, [b"h"]]], "CLUSTER SLOTS"),
        ([[n, n, node(str(n))] for n in range(MAX_PARTS + 1)], "above the maximum"),
    ],
)
def test_what_is_no_answer_is_an_error(reply: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_slots(reply, "seed")


def test_a_group_stays_itself() -> None:
    before = [part("a", (0, 99), replicas="xy"), part("b", (100, 199), replicas="z")]
    assert same_groups(before, [part("a", (0, 99)), part("b", (100, 199))]) == [0, 1]
    assert same_groups(before, [part("b", (0, 150)), part("a", (151, 199))]) == [1, 0], "ids go before slots"
    assert same_groups(before, [part("y", (0, 99), replicas="a"), part("b", (100, 199))]) == [0, 1]
    assert same_groups(before, [part("c", (0, 60)), part("b", (61, 199))]) == [0, 1], "most of its slots"
    assert same_groups(before, [part("c", (0, 40)), part("a", (41, 99)), part("b", (100, 199))]) == [
        None,
        0,
        1,
    ]
    assert same_groups(before, [part("c", (0, 40)), part("b", (41, 199))]) == [None, 1]
    assert same_groups(before, [part("x", (50, 99)), part("a", (0, 49))]) == [None, 0], "a replica that left"
    assert same_groups([], [part("a", (0, 9))]) == [None]
    assert same_groups(before, []) == []


def test_redirections_are_read() -> None:
    assert Redirect.of(ReplyError("MOVED 3999 10.0.0.1:6381")) == Redirect(False, 3999, "10.0.0.1", 6381)
    assert Redirect.of(ReplyError("ASK 0 host.example:7000")) == Redirect(True, 0, "host.example", 7000)
    assert Redirect.of(ReplyError("MOVED 1 :7000")) == Redirect(False, 1, "", 7000)
    assert Redirect.of(ReplyError("MOVED 1 [::1]:7000")) == Redirect(False, 1, "::1", 7000)
    assert Redirect.of(ReplyError("MOVED 1 ::1:7000")) == Redirect(False, 1, "::1", 7000)


@pytest.mark.parametrize(
    "text",
    [
        "ERR no",
        "MOVED",
        "MOVED 1",
        "MOVED x h:1",
        "MOVED 16384 h:1",
        "ASK 1 h:x",
        "ASK 1 h:0",
        "MOVED 1 ?:7000",
    ],
)
def test_what_nobody_can_follow_is_none(text: str) -> None:
    assert Redirect.of(ReplyError(text)) is None
