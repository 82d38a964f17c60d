"""What docs/apps.md shows is run: the chat of the tutorial, and the examples of the reference."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spread.node.testing import Refused, Stage

ROOT = Path(__file__).parent.parent.parent.parent
README = ROOT / "README.md"
DOCUMENT = ROOT / "docs" / "apps.md"
BLOCK = re.compile(r"(?:<!-- (\S+) -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS: list[tuple[str, str, str]] = BLOCK.findall(DOCUMENT.read_text())


def files() -> dict[str, str]:
    """The sources that a reader has in the end; a file that comes in pieces is put together."""
    pieces: dict[str, list[str]] = {}
    for name, _, text in BLOCKS:
        if name:
            pieces.setdefault(name, []).append(text)
    (toml,) = [text for _, kind, text in BLOCKS if kind == "toml" and "without_namespace" in text]
    return {name: "\n".join(texts) for name, texts in pieces.items()} | {"chat.toml": toml}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A reader's directory."""
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


def test_the_chat_has_less_than_sixty_lines() -> None:
    found = files()
    assert found["chat.py"].count("\n") == 48, "the document says so"
    assert sum(found[name].count("\n") for name in ("chat.py", "test_chat.py")) < 60


def test_the_chat(here: Path) -> None:
    chat: Any = importlib.import_module("chat")
    importlib.import_module("test_chat").test_manners()
    with Stage(chat.Chat, "chat.toml", shards=2) as stage:
        alice, bob, carol = stage.text_client(), stage.client(shard=1), stage.client()
        guest = f"guest-{bob.id[:4]}"
        bob.subscribe("lobby")
        alice.say("/nick al ice")
        alice.say("/nick alice")
        alice.say("Heck!")
        assert alice.lines[1] == "error: a nickname has 2 to 16 letters"
        assert [line.split()[-1] for line in alice.lines[2:]] == ["alice"]
        assert bob.publications("lobby")[1:] == ["alice: ****!"]
        bob.publish("lobby", "hello")
        assert alice.lines[-1] == f"{guest}: hello"
        with pytest.raises(Refused, match="4001 say it in words"):
            bob.publish("lobby", {"a": 1})
        assert bob.rpc("who", "lobby") == ["alice", guest]
        assert carol.rpc("who", "tea") == []
        bob.rpc("nick", {"name": "bob"})
        assert alice.lines[-1] == f"* {guest} is now bob"
        with pytest.raises(Refused) as refused:
            bob.rpc("nick", {"name": 7})
        assert f"message: '{refused.value.message}'" in DOCUMENT.read_text()
        alice.say("/join tea")
        assert (carol.rpc("who", "tea"), bob.rpc("who", "lobby")) == (["alice"], ["bob"])
        with pytest.raises(Refused, match="103"):
            carol.publish("lobby", "from outside")


def test_the_example_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text for _, kind, text in BLOCK.findall(README.read_text()) if "(App)" in text]
    assert len(texts) == 1 and texts[0].count("\n") <= 15
    (tmp_path / "readme_chat.py").write_text(texts[0])
    monkeypatch.syspath_prepend(tmp_path)
    chat: Any = importlib.import_module("readme_chat")
    with Stage(chat.Chat) as stage:
        alice, tom = stage.client(), stage.text_client()
        assert alice.subscribe("lobby") == {"welcome to": "lobby"}
        alice.rpc("shout", "hello")
        assert (alice.publications("lobby"), tom.lines[1:]) == (["HELLO"], ["HELLO"])


def test_the_auction(here: Path) -> None:
    importlib.import_module("test_auction").test_a_bid_outlives_its_shard()


def test_the_world(here: Path) -> None:
    world: Any = importlib.import_module("world")
    spaces = {"channel": {"namespaces": [{"name": "world"}]}}
    with Stage(world.World, spaces) as stage:
        west, east = stage.client(), stage.client()
        for client in (west, east):
            client.subscribe("world:1")
        east.rpc("look", 5)
        for x in (10, 520):
            stage.wait(stage.app().publish("world:1", {"units": [{"x": x}, {"x": 1000}]}))
        assert west.publications("world:1") == [{"units": [{"x": 10}]}]
        assert east.publications("world:1") == [{"units": [{"x": 520}]}]


def test_every_example_is_python() -> None:
    texts = [text for _, kind, text in BLOCKS if kind == "python"]
    assert len(texts) > 8
    for text in texts:
        ast.parse(text if not text.startswith(" ") else "class Chat:\n" + text)


def test_what_is_sent_and_answered(here: Path) -> None:
    (text,) = [text for _, kind, text in BLOCKS if kind == "python" and "class Move(" in text]
    Path("moves.py").write_text(text)
    moves: Any = importlib.import_module("moves")
    told = re.findall(r"^\| `(\{.*?\})`.* \| 107 ``(.*) `` \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert len(told) == 3
    with Stage(moves.Game) as stage:
        ann = stage.client(user="ann")
        assert ann.rpc("move", {"to": 3}) == {"at": 3}
        for sent, message in told:
            for params in [ast.literal_eval(sent), *([None] if sent == "{}" else [])]:
                with pytest.raises(Refused) as refused:
                    ann.rpc("move", params)
                assert refused.value.message == message
