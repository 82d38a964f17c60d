"""Clients without WebSocket whose requests land on a shard that does not hold their stream."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.sdk.emulation import Poster, Stream
from tests.sdk.shards import Shards

pytestmark = pytest.mark.live

CLIENTS = 10
MESSAGES = 1_000
"""Of each client, and back to it."""

PER_REQUEST = 10
SECONDS = 60.0


async def exchange(shards: Shards, number: int) -> None:
    """One client: says so many messages in its own channel, and hears them."""
    holder = number % 2
    transport = ("http_stream", "sse")[number // 2 % 2]
    user, channel = shards.fresh("user"), shards.fresh("room")
    stream = await Stream.opened(shards.ports[holder], transport, {"token": shards.token(user)})
    poster, pongs = (Poster(shards.ports[1 - holder], stream) for _ in range(2))
    heard: list[Any] = []
    offsets: list[int] = []
    answered: list[int] = []
    subscribed = asyncio.Event()

    async def read() -> None:
        async for reply in stream.replies:
            if not reply:
                await pongs.answer_ping()
            elif "push" in reply:
                if reply["push"].get("channel") == channel and "pub" in reply["push"]:
                    heard.append(reply["push"]["pub"]["data"])
                    offsets.append(reply["push"]["pub"]["offset"])
                assert "disconnect" not in reply["push"], reply
            else:
                assert "error" not in reply, reply
                if "subscribe" in reply:
                    subscribed.set()
                else:
                    assert "publish" in reply, reply
                    answered.append(reply["id"])
            if len(heard) >= MESSAGES and len(answered) >= MESSAGES:
                return

    reader = asyncio.create_task(read())
    try:
        await poster.send({"subscribe": {"channel": channel}})
        await asyncio.wait_for(subscribed.wait(), 10)
        sent: list[int] = []
        for start in range(0, MESSAGES, PER_REQUEST):
            assert not reader.done(), await reader
            commands = [
                {"publish": {"channel": channel, "data": {"n": n, "text": "Привет"}}}
                for n in range(start, start + PER_REQUEST)
            ]
            sent += await poster.send(*commands)
        await asyncio.wait_for(reader, SECONDS)
        assert [data["n"] for data in heard] == list(range(MESSAGES))
        assert offsets == list(range(1, MESSAGES + 1))
        assert answered == sent
    finally:
        reader.cancel()
        await asyncio.wait([reader])
        for each in (poster, pongs, stream):
            await each.close()


def test_requests_of_many_clients_are_passed_on_in_order(shards: Shards) -> None:
    async def everybody() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(exchange(shards, number))

    asyncio.run(everybody())


def test_requests_of_a_client_that_is_gone(shards: Shards) -> None:
    """Accepted where the shard is known, 404 where it is not."""

    async def scenario() -> None:
        stream = await Stream.opened(shards.ports[0], "http_stream", {"token": shards.token("somebody")})
        poster = Poster(shards.ports[1], stream)
        try:
            shards.api("disconnect", 1, user="somebody", disconnect={"code": 4_444, "reason": "gone"})
            last: dict[str, Any] = {}
            async for reply in stream.replies:
                last = reply or last
            assert last == {"push": {"disconnect": {"code": 4_444, "reason": "gone"}}}
            await poster.send({"publish": {"channel": "room", "data": 1}})
            stream.node = "00000000-0000-4000-8000-000000000000"
            with pytest.raises(AssertionError, match="404"):
                await poster.send({"publish": {"channel": "room", "data": 1}})
        finally:
            await poster.close()
            await stream.close()
        # The connection ends with the stream. An HTTP client that is not told so sends the next request of
        # anybody over it, which then fails.
        assert stream.headers["connection"].lower() == "close"

    asyncio.run(scenario())
