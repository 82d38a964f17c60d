"""Documents that change a little, again and again, sent as deltas: SDKs must have each of them, exactly."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from spread.node.wire.delta import apply
from tests.sdk.conftest import Open
from tests.sdk.drivers import Variant
from tests.sdk.shards import Shards

pytestmark = pytest.mark.live

ALPHABETS = {
    "ascii": 'abcdefghijklmnopqrstuvwxyz "\\{}[],:0123456789',
    "cyrillic": "абвгдеёжзийклмнопрстуфхцчшщъыьэюя АБВГД",
    "chinese": "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年",
    "emoji": "😀😃😄😁😆😅🤣😂🙂🙃😉😊😇🥰😍🤩👍🏽🇨🇳👩\u200d👧❤\ufe0f",
}
EDITS = 1_000
"""Of each alphabet."""

PER_CALL = 50
RECEIVERS = [
    Variant("python"),
    Variant("python", is_protobuf=True),
    Variant("js"),
    Variant("js", is_protobuf=True),
    Variant("js", "sse"),
]


def documents(alphabet: str, count: int) -> Iterator[dict[str, Any]]:
    """The same document after each of so many edits."""
    rng = random.Random(alphabet)

    def some(most: int) -> str:
        return "".join(rng.choices(alphabet, k=rng.randint(1, most)))

    text = "".join(rng.choices(alphabet, k=200))
    players = [{"id": some(8), "hp": 100, "x": 0, "y": 0} for _ in range(5)]
    for number in range(count):
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(text) + 1)
            gone = rng.choice((0, 1, 1, 2, 5))
            text = text[:at] + (some(6) if rng.random() < 0.8 else "") + text[at + gone :]
        text = text[-300:] or some(6)
        rng.choice(players)[rng.choice(("hp", "x", "y"))] = rng.randrange(1_000)
        if rng.random() < 0.02:  # something else altogether
            text = "".join(rng.choices(alphabet, k=rng.randint(1, 300)))
        yield {"n": number, "text": text, "players": [dict(player) for player in players]}


class Watcher:
    """A client without an SDK: sees each frame as it comes, and reads deltas with our own reader."""

    def __init__(self, socket: ClientConnection, channel: str, token: str) -> None:
        self._socket = socket
        self._channel = channel
        self._base = b""
        self.seen = Counter[str]()
        socket.send(
            json.dumps({"id": 1, "connect": {"token": token}})
            + "\n"
            + json.dumps({"id": 2, "subscribe": {"channel": channel, "delta": "fossil"}})
        )
        replies: dict[int, dict[str, Any]] = {}
        while 2 not in replies:
            replies |= {reply["id"]: reply for reply in self._frame() if "id" in reply}
        assert replies[2]["subscribe"]["delta"] is True, replies

    def _frame(self) -> list[dict[str, Any]]:
        """The replies of one frame. Text that is not UTF-8 would end the connection, and the test."""
        frame = self._socket.recv(timeout=20)
        assert isinstance(frame, str)
        replies = [json.loads(line) for line in frame.strip().split("\n")]
        for reply in replies:
            if not reply:
                self._socket.send("{}")
        return replies

    def documents(self, count: int) -> list[Any]:
        """The next so many."""
        found: list[Any] = []
        while len(found) < count:
            for reply in self._frame():
                push = reply.get("push", {})
                if push.get("channel") == self._channel and "pub" in push:
                    found.append(self._document(push["pub"]))
        return found

    def _document(self, pub: dict[str, Any]) -> Any:
        data = pub["data"].encode()
        is_delta = pub.get("delta", False)
        self.seen["deltas" if is_delta else "whole"] += 1
        self.seen["bytes"] += len(data)
        self._base = apply(self._base, data, 1 << 20) if is_delta else data
        self.seen["bytes of documents"] += len(self._base)
        return json.loads(self._base)


@contextmanager
def watching(shards: Shards, channel: str) -> Iterator[Watcher]:
    with connect(f"{shards.url(0, 'ws')}/connection/websocket", compression=None, proxy=None) as socket:
        yield Watcher(socket, channel, shards.token("watcher"))


@pytest.mark.parametrize("name", ALPHABETS)
def test_every_document_arrives(open_client: Open, shards: Shards, name: str) -> None:
    channel = shards.fresh(f"delta:{name}")
    clients = [open_client(variant, number % 2) for number, variant in enumerate(RECEIVERS)]
    for client in clients:
        client.subscribe(channel, delta="fossil")
    plain = open_client(Variant("python"), 0)  # one that did not ask for deltas gets none
    plain.subscribe(channel)
    everything = list(documents(ALPHABETS[name], EDITS))
    calls = [everything[start : start + PER_CALL] for start in range(0, EDITS, PER_CALL)]
    with watching(shards, channel) as watcher:
        for number, call in enumerate(calls):
            is_missed = number == len(calls) // 2  # then this one is recovered
            for client in clients if is_missed else ():
                client.call("disconnect")
                client.wait("disconnected")
            publish = [{"publish": {"channel": channel, "data": document}} for document in call]
            replies = shards.api("batch", number % 2, commands=publish)
            assert all("publish" in reply for reply in replies), replies
            for client in clients if is_missed else ():
                client.call("connect")
                client.connected()
                assert client.wait("subscribed", channel=channel)["recovered"]
            for client in (*clients, plain):
                assert client.heard(channel, len(call)) == call, client.who
            assert watcher.documents(len(call)) == call
        seen = watcher.seen
        assert seen["deltas"] > 0.9 * EDITS, seen
        assert seen["bytes"] < 0.5 * seen["bytes of documents"], seen
    for client in clients:
        assert not client.pending("sub_error") and not client.pending("error")


def test_a_channel_without_deltas_negotiates_none(open_client: Open, shards: Shards) -> None:
    """An SDK that asks gets plain documents where the namespace does not have it."""
    room = shards.fresh("room")
    clients = [open_client(variant, number % 2) for number, variant in enumerate(RECEIVERS)]
    for client in clients:
        client.subscribe(room, delta="fossil")
    sent = list(documents(ALPHABETS["cyrillic"], 20))
    for document in sent:
        shards.api("publish", channel=room, data=document)
    for client in clients:
        assert client.heard(room, 20) == sent
