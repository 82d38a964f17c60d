"""Publishes as fast as the server takes it, past all shards: a process of its own.

    python -m tests.live.flood HUB-URL CHANNELS MEGABYTES HISTORY-SIZE

Publications of 1 to 50 kB, in turn to ``flood0``, ``flood1`` …; with a history size of 0 they are not kept.
Each is JSON, ``{"n": 1, …}`` counted for each channel. Prints how many were acknowledged in each channel.
"""

from __future__ import annotations

import random
import sys
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react

from spread.hub.api import PLAIN, Format, History, PublishOptions
from tests.hub.shards import redis_shard

IN_FLIGHT = 64
"""Publications on their way: 1.6 MB or so."""

TTL_SECONDS = 600


async def flood(url: str, channels: int, megabytes: float, history_size: int) -> None:
    """See the top."""
    shard = redis_shard(url)
    await shard.hub.start(shard.receiver)
    options = PLAIN
    if history_size:
        options = PublishOptions(history=History(history_size, TTL_SECONDS, 30 * 86400))
    sizes = random.Random(1)
    padding = b"x" * 50_000
    counts = [0] * channels
    left = megabytes * 1e6
    turn = 0

    async def publish_on() -> None:
        nonlocal left, turn
        while left > 0:
            turn += 1
            channel = turn % channels
            size = sizes.randrange(1000, 50_000)
            left -= size
            counts[channel] += 1
            data = b'{"n":%d,"x":"%s"}' % (counts[channel], padding[:size])
            await shard.hub.publish(f"flood{channel}", data, Format.JSON, 0, options)

    await gatherResults([Deferred.fromCoroutine(publish_on()) for _ in range(IN_FLIGHT)])
    await shard.hub.stop()
    print(*counts, flush=True)


def main(reactor: Any, url: str, channels: str, megabytes: str, history_size: str) -> Deferred[None]:
    """The command."""
    return Deferred.fromCoroutine(flood(url, int(channels), float(megabytes), int(history_size)))


if __name__ == "__main__":
    react(main, sys.argv[1:])
