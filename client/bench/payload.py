"""What a message of the benchmark says: the twin of ``payload.h``, which describes it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["MIN_BYTES", "Payload", "read", "written"]

HEAD_BYTES = 26
MIN_BYTES = 32

_LETTERS = b"abcdefghijklmnopqrstuvwxyz"


class Payload(NamedTuple):
    """Read or to be written."""

    is_probe: bool
    room: int
    publisher: int
    sequence: int
    due: int


def written(said: Payload, size: int) -> bytes:
    head = b"~p" if said.is_probe else b"~m"
    head += _digits(said.room, 4) + _digits(said.publisher, 2) + _digits(said.sequence, 6)
    head += _digits(said.due, 12)
    return head + _filler(size - HEAD_BYTES)


def read(data: bytes) -> Payload | None:
    """``None``: it is not what a publisher of ours wrote."""
    if len(data) < MIN_BYTES or data[:2] not in (b"~m", b"~p"):
        return None
    if data[HEAD_BYTES:] != _filler(len(data) - HEAD_BYTES):
        return None
    try:
        # int() reads digits 0-9 and a-v; ours are 0 to O in ASCII.
        numbers = [int(data[a:b].translate(_TO_BASE_32), 32) for a, b in ((2, 6), (6, 8), (8, 14), (14, 26))]
    except ValueError:
        return None
    return Payload(data[:2] == b"~p", *numbers)


_BASE_32 = b"0123456789abcdefghijklmnopqrstuv"
_OURS = bytes(range(ord("0"), ord("0") + 32))
_TO_BASE_32 = bytes(_BASE_32[_OURS.index(byte)] if byte in _OURS else ord("!") for byte in range(256))


def _digits(value: int, count: int) -> bytes:
    return bytes(ord("0") + (value >> 5 * place & 31) for place in reversed(range(count)))


_fillers: dict[int, bytes] = {}


def _filler(size: int) -> bytes:
    if size not in _fillers:
        _fillers[size] = (_LETTERS * (size // len(_LETTERS) + 1))[:size]
    return _fillers[size]
