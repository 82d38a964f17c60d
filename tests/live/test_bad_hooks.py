"""A team's hooks that raise, never answer, answer nonsense, or hold up the shard: whoever called one gets the
documented error, and nobody else notices."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.live.processes import READY, Client, Crowd, Node, crowd_of, home
from tests.live.wires import Wire, Wires

pytestmark = pytest.mark.live

SECONDS = 15.0

CONFIG = """
[client]
allow_anonymous_connect_without_token = true
ping_interval = "1s"
pong_timeout = "900ms"

[channel.without_namespace]
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true

[app]
app = "game:Game"
hook_seconds = 0.4
"""

GAME = """
import time

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from spread.node import App, rpc


def bad(how, well=None):
    if how == "raise":
        raise LookupError("no such sword")
    if how == "never":
        return Deferred()
    if how == "nonsense":
        return object()
    if how == "block":
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            pass  # blocks
    while how == "loop":
        pass  # loops
    return well


class Game(App):
    def connecting(self, client):
        return bad(client.data)

    def subscribing(self, client, channel):
        return bad(channel.removeprefix("bad-"))

    def publishing(self, client, channel, data):
        return bad(data, data)

    def message(self, client, data):
        # In a callback, outside of the hook itself.
        return deferLater(reactor, 0, bad, data)

    @rpc("move")
    def move(self, client, how):
        return bad(how, "moved")
"""

ERROR = {"code": 100, "message": "internal server error", "temporary": True}

FAULTS = {
    "raise": r"LookupError: no such sword",
    "nonsense": r"has given object, and must give",
    "never": r"it has not answered after 0\.4 s",
    "loop": r"was ended after 0\.\d s at \S*game\.py:\d+ \((while how == \"loop\":|pass  # loops)\)",
}
"""What a hook does, and what the log says then."""

COMMANDS: dict[str, dict[str, Any]] = {
    "connecting": {"connect": {"data": "HOW"}},
    "subscribing": {"subscribe": {"channel": "bad-HOW"}},
    "publishing": {"publish": {"channel": "lobby", "data": "HOW"}},
    "rpc move": {"rpc": {"method": "move", "data": "HOW"}},
    "message": {"send": {"data": "HOW"}},
}
"""By the hook that it calls."""


class Person:
    """A client over WebSocket, which keeps its replies by their ids, and the publications that it gets."""

    def __init__(self, wires: Wires, port: int) -> None:
        self.replies: dict[int, Any] = {}
        self.heard: list[Any] = []
        self.wire: Wire = wires.open(port, self._take)

    def _take(self, reply: Any) -> None:
        if "push" in reply:
            self.heard.append(reply["push"]["pub"]["data"])
        else:
            self.replies[reply["id"]] = reply

    def says(self, id: int, **command: Any) -> None:
        self.wire.say({"id": id, **command} if id else command)


class Shard:
    def __init__(self, stack: ExitStack, directory: Path) -> None:
        (directory / "game.py").write_text(GAME)
        (directory / "spread.toml").write_text(CONFIG)
        self.node = Node("--hub", "memory:", "--config", "spread.toml", home=stack.enter_context(home()))
        stack.callback(self.node.close)
        text_port = self.node.wait_ready(1)
        found = READY.fullmatch(self.node.ready[-1][1])
        assert found is not None
        self.port = int(found[3].rpartition(":")[2])
        self.wires = Wires()
        stack.callback(self.wires.close)
        self.crowd: Crowd = crowd_of(stack, text_port, 2)
        self.bystander = self.person()
        self.said = 0
        self.bystander.says(9, subscribe={"channel": "lobby"})
        self.until(lambda: 9 in self.bystander.replies, "the bystander is in the lobby")

    def person(self, **connect: Any) -> Person:
        """Someone who has connected, and was not refused."""
        person = Person(self.wires, self.port)
        person.says(1, connect=connect)
        self.until(lambda: 1 in person.replies, "connected")
        assert "connect" in person.replies[1], person.replies
        return person

    def until(self, condition: Any, what: str) -> None:
        def is_so() -> bool:
            self.crowd.pump(0)
            return bool(condition())

        try:
            self.wires.until(is_so, SECONDS, what)
        except AssertionError:
            print(self.node.stderr())
            raise

    def nobody_else_noticed(self) -> None:
        """The bystanders are there, and what is said reaches both."""
        self.said += 1
        self.bystander.says(100 + self.said, publish={"channel": "lobby", "data": self.said})
        listener = self.crowd.clients[1]
        self.until(
            lambda: (
                self.bystander.heard[-1:] == [self.said]
                and bytes(listener.received).endswith(b"%d\n" % self.said)
            ),
            "both bystanders hear it",
        )
        assert self.bystander.wire.closed is None and not listener.is_closed

    def calls(self, how: str) -> dict[str, Person]:
        """All hooks are called so, each by a client of its own; gives these by the name of the hook."""
        people = {
            hook: Person(self.wires, self.port) if hook == "connecting" else self.person()
            for hook in COMMANDS
        }
        for hook, command in COMMANDS.items():
            [(name, body)] = command.items()
            filled = {key: value.replace("HOW", how) for key, value in body.items()}
            people[hook].says(0 if hook == "message" else 2, **{name: filled})
        return people

    def logs(self, pattern: str) -> None:
        """It is in the log, or will be."""
        self.until(lambda: re.search(pattern, self.node.stderr()), f"a line of the log: {pattern}")

    @staticmethod
    def are_answered(people: dict[str, Person]) -> bool:
        """All but who has sent a message, which nobody answers."""
        return all(2 in one.replies for hook, one in people.items() if hook != "message")

    @property
    def speaker(self) -> Client:
        return self.crowd.clients[0]


def test_one_client_is_told_and_the_others_notice_nothing(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shard = Shard(stack, tmp_path)
    for how, log in FAULTS.items():
        people = shard.calls(how)
        # Of the text protocol, too; where it takes long, once.
        lines = [how, *([f"/join bad-{how}"] if how in ("raise", "nonsense") else [])]
        shard.speaker.received.clear()
        shard.speaker.say("".join(f"{line}\n" for line in lines).encode())
        shard.until(lambda people=people: shard.are_answered(people), f"all are answered: {how}")
        for hook, one in people.items():
            if hook != "message":  # which nobody answers
                assert one.replies.pop(2) == {"id": 2, "error": ERROR}, (how, hook)
        wanted = b"error: internal server error\n" * len(lines)
        shard.until(lambda wanted=wanted: bytes(shard.speaker.received) == wanted, f"text: {how}")
        shard.nobody_else_noticed()
        # Their connections live on, and the next command is served.
        for hook, one in people.items():
            if hook != "connecting":
                one.says(3, rpc={"method": "move", "data": "well"})
                shard.until(lambda one=one: 3 in one.replies, f"{hook} goes on after {how}")
                assert one.replies[3] == {"id": 3, "rpc": {"data": "moved"}}
                assert one.wire.closed is None
        for hook in COMMANDS:
            if (hook, how) != ("message", "nonsense"):  # it has nothing to answer
                shard.logs(rf"{hook} for client [-\w]+ of user '': (?:(?! for client )[^\0])*?{log}")
    # What only takes too long is answered, and named in the log, with its line.
    people = shard.calls("block")
    shard.until(lambda: shard.are_answered(people), "all are answered")
    assert not [one.replies for one in people.values() if "error" in one.replies.get(2, {})]
    shard.nobody_else_noticed()
    for hook in COMMANDS:
        line = r"at \S*game\.py:\d+ \((while time\.monotonic\(\) < until:|pass  # blocks)\)"
        what = "a callback" if hook == "message" else hook
        shard.logs(rf"{what} holds up the shard, for 0\.\d+ s so far, {line}")
    # Nothing but what was said well was heard, all of it, in order; and there were pings all the time.
    well = [each for each in shard.bystander.heard if each != "block"]
    assert well == list(range(1, shard.said + 1))
    shard.until(lambda: shard.bystander.wire.pings > 1, "pings go on")
    assert shard.bystander.wire.closed is None
    shard.wires.close()
    shard.crowd.close()
    assert shard.node.stop() == 0
