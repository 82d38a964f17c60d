"""Deltas: against our own reader, that of an SDK, and hostile ones."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable

import pytest
from centrifuge.fossil import apply_delta
from hypothesis import example, given
from hypothesis import strategies as st

from spread.node.wire.delta import MAX_COPIES, apply, patch, patch_text
from spread.node.wire.messages import ProtocolError

LIMIT = 1 << 20
BASE = (
    b'{"room":"arena-7","tick":1041,'
    b'"players":[{"id":"a","hp":90,"x":10,"y":4},{"id":"b","hp":77,"x":3,"y":9}]}'
)
TARGET = BASE.replace(b"1041", b"1042")
PATCH = b"1e\nS@0,1:21C@T,3CtI09;"

ALPHABETS = {
    "ascii": 'abc {}[]",:0123456789\\\n',
    "cyrillic": "абвгдеёжзийклмнопрстуфхцчшщъыьэюя ",
    "chinese": "的一是不了人我在有他这中大来上国",
    "emoji": "😀😁🙈👍🏽🇨🇳👩‍👩‍👧é\u0301",
    "all": "ab0\nжы的一é😀👍\u07ff\u0800\uffff\U00010000",
}

texts = st.one_of([st.text(alphabet=alphabet, max_size=300) for alphabet in ALPHABETS.values()])


@st.composite
def edited(draw: st.DrawFn) -> tuple[str, str]:
    """A text, and what became of it by edits here and there."""
    alphabet = draw(st.sampled_from(list(ALPHABETS.values())))
    part = draw(st.text(alphabet=alphabet, min_size=1, max_size=60))
    before = part * draw(st.integers(1, 40)) + draw(st.text(alphabet=alphabet, max_size=60))
    after = before
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(after)))
        gone = draw(st.integers(0, 30))
        after = after[:at] + draw(st.text(alphabet=alphabet, max_size=8)) + after[at + gone :]
    return before, after


def check(made: bytes | None, base: bytes, target: bytes) -> None:
    if made is not None:
        assert len(made) < len(target)
        assert apply(base, made, LIMIT) == target
        assert apply(base, made, len(target)) == target
        assert apply_delta(base, made) == target


def test_the_worked_example() -> None:
    assert patch(BASE, TARGET) == PATCH
    assert patch_text(BASE, TARGET) == PATCH
    assert apply(BASE, PATCH, LIMIT) == TARGET
    assert apply_delta(BASE, PATCH) == TARGET


@given(edited())
def test_edits_of_text(texts: tuple[str, str]) -> None:
    base, target = (text.encode() for text in texts)
    made = patch_text(base, target)
    check(made, base, target)
    if made is not None:
        made.decode()
    check(patch(base, target), base, target)


@given(texts, texts)
def test_any_two_texts(one: str, other: str) -> None:
    base, target = one.encode(), other.encode()
    made = patch_text(base, target)
    check(made, base, target)
    assert made is None or made.decode()


@given(st.binary(max_size=400), st.binary(max_size=400), st.binary(max_size=40))
@example(b"", b"", b"")
@example(b"a" * 64, b"", b"")
@example(b"", b"a" * 64, b"")
def test_any_two_pieces_of_bytes(start: bytes, end: bytes, new: bytes) -> None:
    base, target = start + end, start + new + end
    for make in (patch, patch_text):
        check(make(base, target), base, target)
        check(make(target, base), target, base)
        check(make(start, end), start, end)
    made = patch_text(base, target)
    assert made is None or made.decode() is not None


@pytest.mark.parametrize("alphabet", [alphabet for name, alphabet in ALPHABETS.items() if name != "all"])
def test_one_letter_in_a_long_text_is_a_short_patch(alphabet: str) -> None:
    rng = random.Random(alphabet)
    letters = [rng.choice(alphabet) for _ in range(3_000)]
    base = "".join(letters).encode()
    for _ in range(200):
        before = letters.copy()
        letters[rng.randrange(len(letters))] = rng.choice(alphabet)
        base, target = "".join(before).encode(), "".join(letters).encode()
        made = patch_text(base, target)
        assert made is not None
        made.decode()
        check(made, base, target)
        assert len(made) < 40


def test_a_character_is_never_cut_in_text() -> None:
    base, target = "ждано и забыто, ".encode() * 4, "жгано и забыто, ".encode() * 4
    cut, whole = patch(base, target), patch_text(base, target)
    assert cut is not None and whole is not None
    with pytest.raises(UnicodeDecodeError):  # both letters begin with the same byte
        cut.decode()
    whole.decode()
    check(cut, base, target)
    check(whole, base, target)


def document(rng: random.Random, players: int) -> list[bytes]:
    return [
        b'{"id":"player-%d","hp":%d,"x":%d,"y":%d}' % (n, *(rng.randrange(10_000) for _ in range(3)))
        for n in range(players)
    ]


@pytest.mark.parametrize("make", [patch, patch_text])
def test_scattered_edits_are_found(make: Callable[[bytes, bytes], bytes | None]) -> None:
    rng = random.Random(1)
    players = document(rng, 200)
    base = b"[%b]" % b",".join(players)
    for at in range(5, 200, 20):  # ten of two hundred changed
        players[at] = players[at].replace(b"player", b"winner")
    target = b"[%b]" % b",".join(players)
    made = make(base, target)
    assert made is not None and len(made) < 300
    check(made, base, target)
    del players[50:55]  # then some gone, some new, two in another place
    players[10:10] = document(rng, 3)
    players[30], players[33] = players[33], players[30]
    target = b"[%b]" % b",".join(players)
    made = make(base, target)
    assert made is not None and len(made) < 700
    check(made, base, target)


def test_the_effort_is_bounded() -> None:
    rng = random.Random(2)
    base = bytes(rng.randrange(97, 123) for _ in range(60_000))
    every_64th = bytearray(base)
    every_64th[32::64] = b"~" * len(every_64th[32::64])
    made = patch(base, bytes(every_64th))
    assert made is not None and made.count(b"@") <= MAX_COPIES + 2
    check(made, base, bytes(every_64th))
    assert patch(base, bytes(rng.randrange(33, 97) for _ in range(60_000))) is None
    repeated = (b"a" * 20 + b"b") * 2_800  # copies of little use, as many as are allowed
    check(patch(b"a" * 60_000, repeated), b"a" * 60_000, repeated)


@pytest.mark.parametrize(
    ("base", "target"),
    [(b"", b""), (b"same", b"same"), (b"a" * 100, b"b" * 100), (b"x" * 9, b"x" * 9), (b"", b"new" * 100)],
)
def test_no_patch_where_it_would_not_be_shorter(base: bytes, target: bytes) -> None:
    assert patch(base, target) is None
    assert patch_text(base, target) is None


def test_text_that_is_none_makes_no_patch_that_is_none() -> None:
    base, target = b"\xff" * 100, b"\xff" * 100 + b"\xfe\xfd"
    made = patch_text(base, target)
    assert made is None or made.decode()
    check(patch(base, target), base, target)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\n",
        b"1e",
        b"1e\n",
        b"1e;",
        b"-1\n0;",
        b"1e\nS@0,1:21C@T,3CtI09",  # cut off
        b"1e\nS@0,1:21C@T,3CtI08;",  # another checksum
        b"1e\nS@0,1:31C@T,3CtI09;",  # another letter
        b"1e\nS@0,1:21C@T,3CtI09;;",
        b"1e\nS@0,1:21C@T,3CtI09;\n",
        b"1d\nS@0,1:21C@T,3CtI09;",  # makes more than it says
        b"1f\nS@0,1:21C@T,3CtI09;",  # or less
        b"1e\nS@0,z:2",
        b"1e\n1e@1,0;",  # copies beyond the end
        b"1e\n~~~~~~@0,0;",
        b"1e\n1@~~~~~~,0;",
        b"1e\n1@0;0;",
        b"1e\n1@0,1@0,?",
        b"1e\n@0,0;",
        b"1e\n1@,0;",
        b"1e\n;",
        b"1e\n0000001@0,0;",
        b"1e\n1\n0;",
        b"~~~~~~\n0;",  # a target of 68 GB
        b"~~~~~~~~~~~~\n0;",
        b"\xff\xfe",
        b"1e\n\xffS@0,",
    ],
)
def test_what_is_no_patch(bad: bytes) -> None:
    with pytest.raises(ProtocolError):
        apply(BASE, bad, LIMIT)


def test_the_limit() -> None:
    assert apply(BASE, PATCH, len(TARGET)) == TARGET
    with pytest.raises(ProtocolError, match="105 bytes"):
        apply(BASE, PATCH, len(TARGET) - 1)


def test_a_bomb_makes_no_more_than_it_says() -> None:
    base = b"x" * 100_000
    bomb = b"OOO0\n" + b"OOO@0," * 5_000 + b"0;"
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            apply(base, bomb, 10_000_000)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    nothing = b"0\n" + b"0@0,0:" * 50_000 + b"0;"
    assert apply(base, nothing, 0) == b""


@given(st.binary(max_size=60))
def test_only_protocol_errors_come_of_any_bytes(garbage: bytes) -> None:
    for bad in (garbage, b"1e\n" + garbage, PATCH[:8] + garbage):
        try:
            apply(BASE, bad, 1_000)
        except ProtocolError:
            continue


def test_a_byte_changed_on_the_way_does_not_go_unnoticed() -> None:
    for at in range(len(PATCH)):
        for byte in set(range(256)) - {PATCH[at]}:
            with pytest.raises(ProtocolError):
                apply(BASE, PATCH[:at] + bytes([byte]) + PATCH[at + 1 :], 1_000)
