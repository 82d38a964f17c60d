"""Deltas: a publication as the difference from the one before it. Sans-IO.

The format is that of the Fossil version control system, as clients of the Centrifuge protocol read it::

    patch   = length LF *(copy / insert) checksum ";"
    copy    = length "@" offset ","       ; so many bytes of the base, from there
    insert  = length ":" bytes            ; so many bytes of the patch itself

Numbers are in base 64, the most significant digit first, with the digits ``0-9 A-Z _ a-z ~``. The first one
is the length of the target. The checksum is the sum of the target's 32-bit words, the highest byte first,
the last word filled up with zeros, modulo 2³².

``patch`` is for what is sent as bytes. ``patch_text`` is for what is sent inside JSON: there a patch must be
text itself, so it never cuts a character in two. Both look for what the ends of base and target have in
common, and then, in what is left between, for what goes on in the base after an edit: they try short samples
of the target further and further on. The effort is bounded (``MAX_COPIES``, ``MAX_PROBES``), not the quality:
what was not found is sent literally. A patch that would be no shorter than the target is not made.

All bytes are looked at by primitives in C, none in a loop of Python. Measured (2 cores, Python 3.11), one
number changed / ten numbers changed / another document of the same kind: 1 kB 11 / 46 / 20 µs, 10 kB 30 / 100
/ 170 µs, 60 kB 120 / 200 / 1500 µs. The checksum is most of the first: 106 µs for 60 kB.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from spread.node.wire.messages import ProtocolError

__all__ = ["MAX_COPIES", "MAX_PROBES", "apply", "patch", "patch_text"]

MAX_COPIES = 128
"""Pieces of the base in one patch, between the common start and the common end."""

MAX_PROBES = 256
"""Samples of the target looked for in the base for one patch."""

_MAX_MISSES = 32
"""Samples in a row that are nowhere; then the rest is taken to be new."""

_SAMPLE = 16
"""Bytes of a sample. Shorter ones are found in wrong places, longer ones miss what lies between two edits."""

_WINDOW = 4096
"""How far before and after the expected place a sample is looked for, in bytes."""

_DIGITS = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~"
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}
_PAIRS = [_DIGITS[high : high + 1] + _DIGITS[low : low + 1] for high in range(64) for low in range(64)]
_LENGTH = re.compile(rb"([0-9A-Z_a-z~]{1,6})\n")
_STEP = re.compile(rb"([0-9A-Z_a-z~]{1,6})(?:(;)|(:)|@([0-9A-Z_a-z~]{1,6}),)")


class _Match(NamedTuple):
    """``target[at : at + length] == base[base_at : base_at + length]``."""

    at: int
    base_at: int
    length: int


def patch(base: bytes, target: bytes) -> bytes | None:
    """What makes ``target`` of ``base``; None if that is not shorter than the target itself."""
    return _patch(base, target, is_text=False)


def patch_text(base: bytes, target: bytes) -> bytes | None:
    """As ``patch``, for two texts in UTF-8: the patch is one, too. (``None`` if one of them is not UTF-8 and
    the patch would not be, either.)"""
    return _patch(base, target, is_text=True)


def apply(base: bytes, patch: bytes, limit: int) -> bytes:
    """The target of a patch.

    :param limit: the longest target to be made, in bytes; no more memory than that is used.
    :raises ProtocolError: if it is no patch, or not of this base.
    """
    start = _LENGTH.match(patch)
    if start is None:
        raise ProtocolError("a patch that does not say a length")
    length = _value(start[1])
    if length > limit:
        raise ProtocolError(f"a patch that makes {length} bytes")
    at, made, parts = start.end(), 0, list[bytes]()
    while (step := _STEP.match(patch, at)) is not None:
        at = step.end()
        count = _value(step[1])
        if step[2]:
            if at != len(patch):
                raise ProtocolError("a patch with something behind its end")
            target = b"".join(parts)
            if made != length or _checksum(target) != count:
                raise ProtocolError("a patch of another base")
            return target
        made += count
        if made > length:
            raise ProtocolError("a patch that makes more than it says")
        source, first = (patch, at) if step[3] else (base, _value(step[4]))
        if first + count > len(source):
            raise ProtocolError("a patch that copies what is not there")
        if step[3]:
            at += count
        if count:
            parts.append(source[first : first + count])
    raise ProtocolError("a patch that does not go on")


def _patch(base: bytes, target: bytes, is_text: bool) -> bytes | None:
    size = len(target)
    out = [_number(size), b"\n"]
    room = size - len(out[0]) - 4  # for copies and inserts, if it is to be shorter
    done = 0  # so much of the target has been written
    for at, base_at, length in _matches(base, target):
        if is_text:
            at, base_at, length = _whole_characters(target, at, base_at, length)
        copy = b"%b@%b," % (_number(length), _number(base_at))
        if length <= len(copy):
            continue
        if at > done:
            out += (_number(at - done), b":", target[done:at])
            room -= at - done
        out.append(copy)
        room -= len(copy)
        if room < 0:
            return None
        done = at + length
    if not done:
        return None
    if done < size:
        out += (_number(size - done), b":", target[done:])
    out += (_number(_checksum(target)), b";")
    made = b"".join(out)
    if len(made) >= size or (is_text and not _is_text(made)):
        return None
    return made


def _is_text(data: bytes) -> bool:
    """Whole characters were cut from what should have been text; this is for what never was."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _matches(base: bytes, target: bytes) -> list[_Match]:
    """What both have in common, in the order of the target, without overlaps."""
    shorter = min(len(base), len(target))
    start = _common_start(base, 0, target, 0, shorter)
    end = _common_end(base, len(base), target, len(target), shorter - start)
    found = [_Match(0, 0, start)]
    if len(target) - end - start > _SAMPLE and len(base) - end - start >= _SAMPLE:
        _find_between(base, target, start, len(base) - end, len(target) - end, found)
    found.append(_Match(len(target) - end, len(base) - end, end))
    return found


def _find_between(
    base: bytes, target: bytes, start: int, base_end: int, target_end: int, found: list[_Match]
) -> None:
    """Matches between the common start and the common end, added to ``found``."""
    base_at = at = start  # behind the last match
    misses, step, ahead = 0, 2, 1  # a sample right at ``at`` would hold the edit itself
    most = len(found) + MAX_COPIES
    for _ in range(MAX_PROBES):
        sample_at = at + ahead
        if sample_at + _SAMPLE > target_end:
            return
        place = _look_up(base, target[sample_at : sample_at + _SAMPLE], base_at, base_at + ahead, base_end)
        if place < 0:
            misses += 1
            if misses == _MAX_MISSES:
                return
            ahead += step
            step = min(step * 2, _WINDOW // 4)
            continue
        before = _common_end(base, place, target, sample_at, min(sample_at - at, place))
        most_behind = min(base_end - place, target_end - sample_at)
        behind = _common_start(base, place, target, sample_at, most_behind)
        found.append(_Match(sample_at - before, place - before, before + behind))
        if len(found) == most:
            return
        base_at, at = place + behind, sample_at + behind
        misses, step, ahead = 0, 2, 1


def _look_up(base: bytes, sample: bytes, base_at: int, expected: int, end: int) -> int:
    """Where in the base a sample is: as far on as in the target, else the first place behind the last match,
    else the last one before; -1 if it is nowhere near."""
    if base.startswith(sample, expected):
        return expected if expected + _SAMPLE <= end else -1
    place = base.find(sample, base_at, min(max(base_at, expected) + _WINDOW, end))
    if place < 0:
        place = base.rfind(sample, max(base_at - _WINDOW, 0), min(base_at + _SAMPLE - 1, end))
    return place


def _common_start(a: bytes, a_at: int, b: bytes, b_at: int, most: int) -> int:
    """How many bytes from there on are the same. Slices of growing, then of shrinking size: as many bytes are
    copied as compared, twice at most."""
    same, size = 0, 32
    while same < most:
        size = min(size, most - same)
        if not b.startswith(a[a_at + same : a_at + same + size], b_at + same):
            break
        same += size
        size *= 4
    else:
        return most
    while size > 1:  # the difference is in the next ``size`` bytes
        half = size // 2
        if b.startswith(a[a_at + same : a_at + same + half], b_at + same):
            same += half
            size -= half
        else:
            size = half
    return same


def _common_end(a: bytes, a_end: int, b: bytes, b_end: int, most: int) -> int:
    """The same, backwards from there."""
    same, size = 0, 32
    while same < most:
        size = min(size, most - same)
        if not b.endswith(a[a_end - same - size : a_end - same], 0, b_end - same):
            break
        same += size
        size *= 4
    else:
        return most
    while size > 1:
        half = size // 2
        if b.endswith(a[a_end - same - half : a_end - same], 0, b_end - same):
            same += half
            size -= half
        else:
            size = half
    return same


def _whole_characters(target: bytes, at: int, base_at: int, length: int) -> tuple[int, int, int]:
    """The match without the parts of characters at its ends; of text, at most three bytes at each."""
    end = at + length
    if end < len(target):
        while end > at and 0x80 <= target[end] < 0xC0:
            end -= 1
    first = at
    while first < end and 0x80 <= target[first] < 0xC0:
        first += 1
    return first, base_at + first - at, end - first


def _number(value: int) -> bytes:
    if value < 64:
        return _DIGITS[value : value + 1]
    if value < 4096:
        return _PAIRS[value]
    return _number(value >> 12) + _PAIRS[value & 4095]


def _value(digits: bytes) -> int:
    value = 0
    for digit in digits:
        value = value << 6 | _VALUES[digit]
    return value


def _checksum(data: bytes) -> int:
    """All the words are added at once, as parts of one large integer: twice as fast as to unpack them."""
    lanes = -(-len(data) // 8)  # of 64 bits, so that the sums of 32-bit words do not run into each other
    number = int.from_bytes(data, "big") << 8 * (8 * lanes - len(data))
    low_words = int.from_bytes(b"\0\0\0\0\xff\xff\xff\xff" * lanes, "big")
    number = (number & low_words) + (number >> 32 & low_words)
    while lanes > 1:
        half = lanes // 2
        number = (number >> 64 * half) + (number & (1 << 64 * half) - 1)
        lanes -= half
    return number & 0xFFFFFFFF
