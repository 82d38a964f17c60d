"""The witness of centrifuge-python: see witnesses.py for its commands, ledger.py for its lines."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
from typing import Any

import centrifuge
from centrifuge import ClientEventHandler, SubscriptionEventHandler

from tests.live.faults.record import FLUSH_SECONDS, Record, answer, value


class Witness(ClientEventHandler):
    def __init__(self, record: Record, options: dict[str, Any]) -> None:
        self.record = record
        self.who: str = options["who"]
        self.channel: str = options["channel"]
        self.interval: float = options["interval"]
        self.is_binary: bool = options["protobuf"]
        self.sequence = 0
        self.sdk = centrifuge.Client(
            options["endpoints"][0].replace("http", "ws") + "/connection/websocket",
            events=self,
            use_protobuf=self.is_binary,
            min_reconnect_delay=0.1,
            max_reconnect_delay=1,
            max_server_ping_delay=3,
            proxy=None,
        )

    async def start(self) -> None:
        if not self.interval:
            sub = self.sdk.new_subscription(
                self.channel,
                events=Subscription(self),
                recoverable=True,
                min_resubscribe_delay=0.1,
                max_resubscribe_delay=1,
            )
            await sub.subscribe()
        await self.sdk.connect()

    async def on_connected(self, ctx: Any) -> None:
        self.record.note("C", self.who, 0)

    async def on_connecting(self, ctx: Any) -> None:
        self.record.note("D", self.who, ctx.code)

    async def on_disconnected(self, ctx: Any) -> None:
        self.record.note("D", self.who, ctx.code)

    async def publish(self, is_on: asyncio.Event) -> None:
        while is_on.is_set():
            await asyncio.sleep(self.interval * random.uniform(0.5, 1.5))
            if not is_on.is_set():
                return
            self.sequence += 1
            data: Any = [self.who, self.sequence]
            self.record.note("P", self.who, self.sequence)
            try:
                await self.sdk.publish(self.channel, json.dumps(data).encode() if self.is_binary else data)
            except Exception as error:
                self.record.note("F", self.who, self.sequence, getattr(error, "code", type(error).__name__))
            else:
                self.record.note("A", self.who, self.sequence)


class Subscription(SubscriptionEventHandler):
    def __init__(self, client: Witness) -> None:
        self.record = client.record
        self.who = client.who

    async def on_subscribed(self, ctx: Any) -> None:
        at = ctx.stream_position
        flags = int(ctx.was_recovering), int(ctx.recovered)
        self.record.note("S", self.who, *flags, at.epoch, int(at.offset))

    async def on_subscribing(self, ctx: Any) -> None:
        self.record.note("U", self.who, ctx.code)

    async def on_unsubscribed(self, ctx: Any) -> None:
        self.record.note("U", self.who, ctx.code)

    async def on_publication(self, ctx: Any) -> None:
        publisher, sequence = value(ctx.pub.data)
        self.record.note("M", self.who, int(ctx.pub.offset), publisher, sequence)


class Witnesses:
    """One method a command."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._clients: list[Witness] = []
        self._is_on = asyncio.Event()
        self._publishing: list[asyncio.Task[None]] = []

    async def open(self, command: dict[str, Any]) -> None:
        for options in command["clients"]:
            client = Witness(self._record, options)
            self._clients.append(client)
            await client.start()

    async def publish(self, command: dict[str, Any]) -> None:
        self._is_on.set()
        publishers = [client for client in self._clients if client.interval]
        self._publishing = [asyncio.create_task(each.publish(self._is_on)) for each in publishers]

    async def cease(self, command: dict[str, Any]) -> None:
        self._is_on.clear()
        await asyncio.gather(*self._publishing)


async def run(witnesses: Witnesses, record: Record, command: dict[str, Any]) -> None:
    try:
        await getattr(witnesses, command["do"])(command)
        record.flush()
    except Exception as error:
        answer(command["n"], error)
    else:
        answer(command["n"])


async def main(path: str) -> None:
    loop = asyncio.get_running_loop()
    record = Record(path)
    lines: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, "")

    async def flush() -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            record.flush()

    threading.Thread(target=read, daemon=True).start()
    tasks: set[asyncio.Task[None]] = {loop.create_task(flush())}
    witnesses = Witnesses(record)
    while line := await lines.get():
        task = loop.create_task(run(witnesses, record, json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
