"""What a WebSocket peer may send after its handshake: frames, good ones and others (RFC 6455, section 5)."""

from __future__ import annotations

import zlib
from random import Random

from tests.fuzz.messages import connect_frame, json_frame, protobuf_frame
from tests.fuzz.mutate import BROKEN_TEXT, mutated

__all__ = ["conversation", "frame"]

_CONT, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_CODES = (0, 999, 1000, 1001, 1004, 1005, 1006, 1009, 1011, 1015, 1016, 2999, 3000, 3500, 4999, 5000, 65535)


def frame(
    random: Random,
    opcode: int,
    payload: bytes,
    *,
    fin: bool = True,
    reserved: int = 0,
    is_masked: bool = True,
    length: int | None = None,
    size: int = 0,
) -> bytes:
    """One frame, as wrong as it is wanted.

    :param length: what it says that its length is.
    :param size: bytes of that length, 1, 3 or 9; 0: as few as do.
    """
    length = len(payload) if length is None else length
    size = size or (1 if length < 126 else 3 if length < 65536 else 9)
    first = fin << 7 | reserved << 4 | opcode
    mask = 0x80 if is_masked else 0
    if size == 1:
        head = bytes((first, mask | length & 0x7F))
    elif size == 3:
        head = bytes((first, mask | 126)) + (length % 2**16).to_bytes(2, "big")
    else:
        head = bytes((first, mask | 127)) + (length % 2**64).to_bytes(8, "big")
    if not is_masked:
        return head + payload
    key = random.randbytes(4)
    return head + key + _masked(payload, key)


def _masked(payload: bytes, key: bytes) -> bytes:
    if not payload:
        return b""
    pad = (key * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(len(payload), "big")


def _close(random: Random) -> bytes:
    payload = random.choice((b"", b"\x03", b"\x03\xe8", random.choice(_CODES).to_bytes(2, "big")))
    if len(payload) == 2:
        payload += random.choice((b"", b"bye", random.choice(BROKEN_TEXT), b"x" * 123, b"x" * 124))
    return frame(random, _CLOSE, payload)


def _control(random: Random) -> bytes:
    kind = random.random()
    opcode = random.choice((_PING, _PONG))
    if kind < 0.7:
        return frame(random, opcode, random.randbytes(random.choice((0, 4, 125))))
    if kind < 0.8:
        return frame(random, opcode, b"x" * random.choice((126, 127, 1000)))
    if kind < 0.9:
        return frame(random, opcode, b"part", fin=False)
    return _close(random)


def _fragments(random: Random, opcode: int, message: bytes) -> bytes:
    """A message in pieces, with control frames between them, and sometimes what may not be there."""
    count = random.choice((2, 2, 3, 10))
    cuts = sorted(random.randrange(len(message) + 1) for _ in range(count - 1))
    pieces = [message[start:end] for start, end in zip([0, *cuts], [*cuts, len(message)], strict=True)]
    made = []
    for index, piece in enumerate(pieces):
        kind = _CONT if index else opcode
        if random.random() < 0.04:
            kind = random.choice((opcode, _TEXT, 3, 7, 11, 15))
        is_last = index == count - 1
        made.append(frame(random, kind, piece, fin=is_last != (random.random() < 0.03)))
        if random.random() < 0.2:
            made.append(_control(random))
    return b"".join(made)


def _deflated(random: Random, message: bytes) -> bytes:
    """As permessage-deflate has it: right, cut, of a bomb, or no such data at all."""
    kind = random.random()
    if kind < 0.1:
        message = b" " * random.choice((100_000, 3_000_000))
    elif kind < 0.2:
        return random.randbytes(random.randrange(1, 50))
    packer = zlib.compressobj(wbits=-15)
    data = packer.compress(message) + packer.flush(zlib.Z_SYNC_FLUSH)
    return data if kind < 0.25 else data[:-4] if kind < 0.95 else mutated(random, data, [data])


def _odd(random: Random, opcode: int, message: bytes) -> bytes:
    """One thing is wrong with the head of a frame."""
    kind = random.randrange(7)
    if kind == 0:
        return frame(random, random.randrange(16), message)
    if kind == 1:
        return frame(random, opcode, message, reserved=random.randrange(1, 8))
    if kind == 2:
        return frame(random, opcode, message, is_masked=False)
    if kind == 3:
        return frame(random, opcode, message, size=random.choice((1, 3, 9)))
    if kind == 4:
        length = random.choice((0, 1, 125, 126, 65535, 65536, 65537, 2**31, 2**63 - 1, 2**63, 2**64 - 1))
        return frame(random, opcode, message, length=length, size=random.choice((0, 9)))
    if kind == 5:
        return frame(random, opcode, message[:-3], length=len(message))
    return frame(random, _CONT, message)


def conversation(random: Random, *, is_protobuf: bool, is_compressed: bool, count: int) -> list[bytes]:
    """What a peer sends: a connect, then ``count`` frames or so, one element for each."""
    opcode = _BINARY if is_protobuf else _TEXT
    sent = [frame(random, opcode, connect_frame(random, is_protobuf))]
    for _ in range(count):
        message = protobuf_frame(random) if is_protobuf else json_frame(random)
        kind = random.random()
        if kind < 0.35:
            made = frame(random, opcode, message)
        elif kind < 0.4:
            made = frame(random, _BINARY if opcode == _TEXT else _TEXT, message)
        elif kind < 0.55:
            made = _fragments(random, opcode, message)
        elif kind < 0.65:
            made = _control(random)
        elif kind < 0.75 and is_compressed:
            made = frame(random, opcode, _deflated(random, message), reserved=4)
        elif kind < 0.87:
            made = _odd(random, opcode, message)
        else:
            made = mutated(random, frame(random, opcode, message), sent)
        sent.append(made)
    return sent
