"""What can be done to good bytes: bits, pieces, numbers, text. All chance comes from one ``Random``.

A mutation takes the chance, what it mutates, and other good examples to take pieces from. What it gives is
bounded by ``MAX_BYTES``, so that a million of them take minutes. ``chance`` names one case of a run: the same
seed, target and number give the same bytes on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

__all__ = ["ALPHABET", "BOUNDARIES", "BROKEN_TEXT", "MAX_BYTES", "chance", "long_text", "mutated"]

MAX_BYTES = 200_000
"""Of one mutated frame; above what any limit of a server lets in."""

BOUNDARIES = (
    *(0, 1, -1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536),
    *(2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**32 - 1, 2**32, 2**53, 2**53 + 1),
    *(2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64, 10**30),
)
"""Where types of numbers end."""

BROKEN_TEXT = (
    b"\xff",
    b"\xc0\x80",  # NUL, longer than it may be
    b"\xed\xa0\xbd",  # half of a pair
    b"\xf4\x90\x80\x80",  # behind the last character
    b"\xf0\x9f\x98",  # cut off
    b"\x80",
    b"\xef\xbb\xbf",  # a byte order mark
    b"\0",
    "\u2028\u2029\x85\x0b\x0c\x1c".encode(),  # line endings of some
)
"""What is not UTF-8, or seldom expected in it."""

ALPHABET = (
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"\n",
    b"\r\n",
    b"\\",
    b"\\u",
    b"\\ud83d",
    b"null",
    b" ",
)
_NUMBER = re.compile(rb"-?\d+")
_LENGTHS = (64, 255, 256, 1000, 5000)
_LONG_LENGTHS = (20_000, 65_535, 65_536, 70_000)

Mutation = Callable[[Random, bytes, Sequence[bytes]], bytes]


def chance(seed: int, target: str, number: int) -> Random:
    """The chance of one case of a run."""
    return Random(f"{seed}/{target}/{number}")


def long_text(random: Random) -> int:
    """How long something is that is longer than expected; seldom longer than all limits."""
    return random.choice(_LONG_LENGTHS if random.random() < 0.02 else _LENGTHS)


def _somewhere(random: Random, data: bytes) -> int:
    return random.randrange(len(data) + 1)


def _piece(random: Random, data: bytes) -> tuple[int, int]:
    start = _somewhere(random, data)
    length = random.randrange(1, 9) if random.random() < 0.7 else random.randrange(1, len(data) + 2)
    return start, min(len(data), start + length)


def flip_bit(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One bit is another."""
    if not data:
        return b"\1"
    index = random.randrange(len(data))
    return b"%b%c%b" % (data[:index], data[index] ^ 1 << random.randrange(8), data[index + 1 :])


def change_byte(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One byte is another."""
    index = _somewhere(random, data)
    return b"%b%c%b" % (data[:index], random.randrange(256), data[index + 1 :])


def delete(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A piece is missing."""
    start, end = _piece(random, data)
    return data[:start] + data[end:]


def cut_off(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The end is missing."""
    return data[: _somewhere(random, data)]


def duplicate(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A piece is there twice, or many times."""
    start, end = _piece(random, data)
    times = random.choice((1, 1, 1, 3, 100))
    return data[:end] + data[start:end] * times + data[end:]


def splice(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The end is that of another example."""
    other = random.choice(others)
    return data[: _somewhere(random, data)] + other[_somewhere(random, other) :]


def move(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A piece is elsewhere."""
    start, end = _piece(random, data)
    rest = data[:start] + data[end:]
    at = _somewhere(random, rest)
    return rest[:at] + data[start:end] + rest[at:]


def insert(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Something is there that does not belong."""
    at = _somewhere(random, data)
    kind = random.randrange(4)
    if kind == 0:
        new = random.choice(BROKEN_TEXT)
    elif kind == 1:
        new = random.choice(ALPHABET)
    elif kind == 2:
        new = random.randbytes(random.randrange(1, 9))
    else:
        new = bytes([random.randrange(256)]) * long_text(random)
    return data[:at] + new + data[at:]


def change_number(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A number in digits is at the end of some type."""
    found = list(_NUMBER.finditer(data))
    if not found:
        return insert(random, data, others)
    one = random.choice(found)
    return b"%b%d%b" % (data[: one.start()], random.choice(BOUNDARIES), data[one.end() :])


def change_integer(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Some bytes are a number at the end of some type."""
    size = random.choice((1, 2, 4, 8))
    number = random.choice(BOUNDARIES) % (1 << 8 * size)
    at = _somewhere(random, data)
    return data[:at] + number.to_bytes(size, random.choice(("big", "little"))) + data[at + size :]


def change_varint(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A byte is a varint: of a boundary, longer than needed, or without an end."""
    at = _somewhere(random, data)
    number = random.choice(BOUNDARIES) % (1 << 70)
    made = bytearray()
    while number > 127:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    if random.random() < 0.3:
        made[-1] |= 0x80
        made += b"\x80" * random.randrange(12) + random.choice((b"", b"\0", b"\x7f"))
    return data[:at] + bytes(made) + data[at + 1 :]


MUTATIONS: tuple[Mutation, ...] = (
    *(flip_bit, flip_bit, change_byte, delete, cut_off, duplicate),
    *(splice, move, insert, change_number, change_integer, change_varint),
)


def mutated(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One to four mutations of some bytes.

    :param others: examples of the same kind; not empty.
    """
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        data = random.choice(MUTATIONS)(random, data, others)
    return data[:MAX_BYTES]
