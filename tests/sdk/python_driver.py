"""The driver of centrifuge-python: see drivers.py. One process for all clients and both formats."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import centrifuge
from centrifuge import ClientEventHandler, DeltaType, StreamPosition, SubscriptionEventHandler


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


class Client(ClientEventHandler):
    def __init__(self, command: dict[str, Any]) -> None:
        self.who: str = command["who"]
        self.is_binary: bool = command["protobuf"]
        self.subs: dict[str, centrifuge.Subscription] = {}
        tokens = command.get("tokens")
        self.sdk = centrifuge.Client(
            command["url"].replace("http", "ws") + "/connection/websocket",
            events=self,
            token=command.get("token") or "",
            get_token=self.token_giver(tokens) if tokens else None,
            use_protobuf=self.is_binary,
            timeout=10,
            min_reconnect_delay=command.get("min_reconnect_delay", 100) / 1000,
            max_reconnect_delay=1,
            proxy=None,
        )

    def tell(self, event: str, **fields: Any) -> None:
        say({"who": self.who, "event": event, **fields})

    def value(self, data: Any) -> Any:
        """JSON in what the SDK gives: values, or bytes."""
        if isinstance(data, bytes):
            return json.loads(data) if data else None
        return data

    def bytes(self, data: Any) -> Any:
        return json.dumps(data).encode() if self.is_binary else data

    def info(self, info: Any) -> Any:
        if info is None:
            return None
        conn_info, chan_info = self.value(info.conn_info), self.value(info.chan_info)
        return {"user": info.user, "client": info.client, "conn_info": conn_info, "chan_info": chan_info}

    def publication(self, pub: Any) -> dict[str, Any]:
        data, tags = self.value(pub.data), pub.tags or None
        return {"data": data, "offset": int(pub.offset or 0), "info": self.info(pub.info), "tags": tags}

    def token_giver(self, tokens: list[str]) -> Callable[[], Awaitable[str]]:
        left = list(tokens)

        async def give() -> str:
            self.tell("get_token")
            return left.pop(0) if len(left) > 1 else left[0]

        return give

    def giver(self, event: str, values: list[Any]) -> Callable[[str], Awaitable[Any]]:
        """Gives one after the other, the last one again and again."""
        left = list(values)

        async def give(channel: str) -> Any:
            self.tell(event, channel=channel)
            return left.pop(0) if len(left) > 1 else left[0]

        return give

    def subscription(self, command: dict[str, Any]) -> centrifuge.Subscription:
        channel = command["channel"]
        if channel not in self.subs:
            tokens, states = command.get("tokens"), command.get("states")
            positions = [StreamPosition(**state) for state in states or ()]
            self.subs[channel] = self.sdk.new_subscription(
                channel,
                events=Subscription(self, channel),
                token=command.get("token") or "",
                get_token=self.giver("get_sub_token", tokens) if tokens else None,
                max_resubscribe_delay=1,
                positioned=bool(command.get("positioned")),
                recoverable=bool(command.get("recoverable")),
                join_leave=bool(command.get("join_leave")),
                delta=DeltaType.FOSSIL if command.get("delta") else None,
                get_state=self.giver("get_state", positions) if states else None,
            )
        return self.subs[channel]

    async def on_connecting(self, ctx: Any) -> None:
        self.tell("connecting", code=ctx.code, reason=ctx.reason)

    async def on_connected(self, ctx: Any) -> None:
        self.tell("connected", client=ctx.client, transport="websocket")

    async def on_disconnected(self, ctx: Any) -> None:
        self.tell("disconnected", code=ctx.code, reason=ctx.reason)

    async def on_error(self, ctx: Any) -> None:
        self.tell("error", code=ctx.code, reason=str(ctx.error))

    async def on_subscribing(self, ctx: Any) -> None:
        self.tell("server_subscribing", channel=ctx.channel)

    async def on_subscribed(self, ctx: Any) -> None:
        self.tell("server_subscribed", channel=ctx.channel, **subscribed(self, ctx))

    async def on_unsubscribed(self, ctx: Any) -> None:
        self.tell("server_unsubscribed", channel=ctx.channel)

    async def on_publication(self, ctx: Any) -> None:
        self.tell("server_publication", channel=ctx.channel, **self.publication(ctx.pub))

    async def on_join(self, ctx: Any) -> None:
        self.tell("server_join", channel=ctx.channel, info=self.info(ctx.info))

    async def on_leave(self, ctx: Any) -> None:
        self.tell("server_leave", channel=ctx.channel, info=self.info(ctx.info))


def subscribed(client: Client, ctx: Any) -> dict[str, Any]:
    at = ctx.stream_position
    return {
        "recoverable": ctx.recoverable,
        "positioned": ctx.positioned,
        "was_recovering": ctx.was_recovering,
        "recovered": ctx.recovered,
        "position": at and {"offset": int(at.offset), "epoch": at.epoch},
        "data": client.value(ctx.data),
    }


class Subscription(SubscriptionEventHandler):
    def __init__(self, client: Client, channel: str) -> None:
        self.client = client
        self.channel = channel

    def tell(self, event: str, **fields: Any) -> None:
        self.client.tell(event, channel=self.channel, **fields)

    async def on_subscribing(self, ctx: Any) -> None:
        self.tell("subscribing", code=ctx.code, reason=ctx.reason)

    async def on_subscribed(self, ctx: Any) -> None:
        self.tell("subscribed", **subscribed(self.client, ctx))

    async def on_unsubscribed(self, ctx: Any) -> None:
        self.tell("unsubscribed", code=ctx.code, reason=ctx.reason)

    async def on_publication(self, ctx: Any) -> None:
        self.tell("publication", **self.client.publication(ctx.pub))

    async def on_join(self, ctx: Any) -> None:
        self.tell("join", info=self.client.info(ctx.info))

    async def on_leave(self, ctx: Any) -> None:
        self.tell("leave", info=self.client.info(ctx.info))

    async def on_error(self, ctx: Any) -> None:
        error = ctx.error
        self.tell("sub_error", code=getattr(error, "code", ctx.code), reason=str(error))


class Commands:
    """One method a command."""

    async def connect(self, client: Client, command: dict[str, Any]) -> None:
        await client.sdk.connect()

    async def disconnect(self, client: Client, command: dict[str, Any]) -> None:
        await client.sdk.disconnect()

    async def subscribe(self, client: Client, command: dict[str, Any]) -> None:
        await client.subscription(command).subscribe()

    async def unsubscribe(self, client: Client, command: dict[str, Any]) -> None:
        await client.subs[command["channel"]].unsubscribe()

    async def storm(self, client: Client, command: dict[str, Any]) -> None:
        sub = client.subscription(command)
        for _ in range(command["pairs"]):
            await sub.subscribe()
            await sub.unsubscribe()
        if command.get("stay"):
            await sub.subscribe()

    async def publish(self, client: Client, command: dict[str, Any]) -> None:
        await client.sdk.publish(command["channel"], client.bytes(command["data"]))

    async def rpc(self, client: Client, command: dict[str, Any]) -> Any:
        return client.value((await client.sdk.rpc(command["method"], client.bytes(command["data"]))).data)

    async def presence(self, client: Client, command: dict[str, Any]) -> Any:
        found = await client.sdk.presence(command["channel"])
        return {id: client.info(info) for id, info in found.clients.items()}

    async def presence_stats(self, client: Client, command: dict[str, Any]) -> Any:
        found = await client.sdk.presence_stats(command["channel"])
        return {"num_clients": found.num_clients, "num_users": found.num_users}

    async def history(self, client: Client, command: dict[str, Any]) -> Any:
        since = command.get("since")
        found = await client.sdk.history(
            command["channel"],
            limit=command.get("limit", 0),
            since=StreamPosition(**since) if since else None,
            reverse=command.get("reverse", False),
        )
        publications = [client.publication(pub) for pub in found.publications]
        return {"offset": int(found.offset), "epoch": found.epoch, "publications": publications}

    async def close(self, client: Client, command: dict[str, Any]) -> None:
        await client.sdk.disconnect()


async def run(clients: dict[str, Client], command: dict[str, Any]) -> None:
    number = command["n"]
    try:
        if command["do"] == "open":
            client = clients[command["who"]] = Client(command)
            say({"n": number})
            await client.sdk.connect()
            return
        result = await getattr(Commands(), command["do"])(clients[command["who"]], command)
    except Exception as error:
        say({"n": number, "error": {"code": getattr(error, "code", 0), "message": repr(error)}})
    else:
        say({"n": number, "ok": result})


async def main() -> None:
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, "")

    threading.Thread(target=read, daemon=True).start()
    clients: dict[str, Client] = {}
    tasks: set[asyncio.Task[None]] = set()
    while line := await lines.get():
        task = loop.create_task(run(clients, json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    asyncio.run(main())
