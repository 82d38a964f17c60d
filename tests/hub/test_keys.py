"""The names of a channel's keys."""

from __future__ import annotations

from spread.hub.keys import Keys


def test_the_names() -> None:
    keys = Keys("p")
    assert keys.channel("房间") == keys.channel_prefix + "房间}".encode() == "p:ch:{房间}".encode()
    assert (keys.stream("a"), keys.meta("a")) == (b"p:stream:{a}", b"p:meta:{a}")
    assert keys.result("a", "k:é") == "p:result:{a}:k:é".encode()
