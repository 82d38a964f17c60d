"""Epochs: what tells one stream of a channel from the next."""

from __future__ import annotations

import random
import string
from binascii import b2a_base64

__all__ = ["EPOCH_LETTERS", "drawn_epoch"]

EPOCH_LETTERS = 8

# The twelve of the 64 that are no letters stand for twelve letters once more.
_LETTERS = bytes.maketrans(b"0123456789+/", string.ascii_letters[:12].encode())


def drawn_epoch() -> bytes:
    """Eight letters drawn at random: 48 bits, in 0.3 µs, since each publication offers one."""
    return b2a_base64(random.getrandbits(48).to_bytes(6, "big"), newline=False).translate(_LETTERS)
