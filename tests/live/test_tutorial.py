"""The chat of docs/apps.md on a real shard: somebody with nc, somebody with an SDK, and an update."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from centrifuge import Client, PublicationContext, SubscriptionEventHandler

from tests.live.processes import READY, Node, home
from tests.node.app.test_tutorial import files

pytestmark = pytest.mark.live

SECONDS = 10.0


class Ears(SubscriptionEventHandler):
    def __init__(self) -> None:
        self.heard: asyncio.Queue[str] = asyncio.Queue()

    async def on_publication(self, ctx: PublicationContext) -> None:
        self.heard.put_nowait(str(ctx.pub.data))


async def talk(text: str, http: str, ops: str) -> None:
    """What the tutorial does."""
    hears, says = await asyncio.open_connection(*text.split(":"))
    await hears.readline()  # the greeting
    bob = Client(f"ws://{http}/connection/websocket")
    ears = Ears()
    lobby = bob.new_subscription("lobby", ears)
    try:
        async with asyncio.timeout(SECONDS):
            await bob.connect()
            await lobby.subscribe()
            await bob.ready(SECONDS)
            await lobby.ready(SECONDS)
            await bob.rpc("nick", {"name": "bob"})
            assert (await hears.readline()).endswith(b" is now bob\n")
            says.write(b"/nick alice\nwhat the heck, gosh\n")
            assert (await ears.heard.get()).endswith(" is now bob")
            assert (await ears.heard.get()).endswith(" is now alice")
            assert await ears.heard.get() == "alice: what the ****, gosh"
            assert (await bob.rpc("who", "lobby")).data == ["alice", "bob"]
            chat = Path("chat.py")
            chat.write_text(chat.read_text().replace("darn|heck", "darn|heck|gosh"))
            reload = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "spread.client", "reload", "--ops", ops), stdout=subprocess.PIPE
            )
            told, _ = await reload.communicate()
            assert told.startswith(b"shard 0: chat:Chat ") and reload.returncode == 0
            says.write(b"gosh\n")
            assert await ears.heard.get() == "alice: ****"
            await lobby.publish("darn")
            assert (await hears.readline()).endswith(b" is now alice\n")
            assert await hears.readline() == b"bob: ****\n"
    finally:
        await bob.disconnect()
        says.close()
        await says.wait_closed()
        # The SDK closes its socket in a task of its own.
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=SECONDS)


def test_the_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in files().items():
        Path(name).write_text(text)
    with home() as path:
        arguments = ("--shard", "0", "--hub", "memory:", "--app", "chat:Chat", "--config", "chat.toml")
        node = Node(*arguments, "--ops", "127.0.0.1:0", home=path)
        try:
            node.wait_ready(1)
            found = READY.fullmatch(node.ready[0][1])
            assert found is not None
            asyncio.run(talk(found[2], found[3], found[4]))
            assert node.stop() == 0
            assert " error " not in node.stderr()
        finally:
            node.close()
