"""Epochs are letters, and hardly ever the same twice."""

from __future__ import annotations

import string

from spread.hub.epochs import EPOCH_LETTERS, drawn_epoch


def test_an_epoch_is_eight_letters() -> None:
    drawn = [drawn_epoch() for _ in range(10_000)]
    assert {len(epoch) for epoch in drawn} == {EPOCH_LETTERS} == {8}
    assert len(set(drawn)) == len(drawn)
    assert set(b"".join(drawn).decode()) == set(string.ascii_letters)
