"""docs/http-api.md: every example is run, and every number is the code's."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from spread.hub.api import ClientInfo
from spread.node import codes
from spread.node.api import MAX_BODY_BYTES, api_paths, api_resource, http, methods
from spread.node.config import load
from spread.node.control import ANSWER_MAX_BYTES
from spread.node.namespaces import Namespaces
from spread.node.pattern import MAX_ALTERNATIVES
from spread.node.settings import Settings
from spread.node.web.site import BoundedFactory, quiet_site
from tests.node.fake_api import Cluster

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "http-api.md").read_text()
KEY = "KEY"
INVENTED = ("epoch", "uid", "name", "version")
"""What is another text each time, or with each release."""


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def examples() -> Iterator[tuple[str, str, int, Any]]:
    for block in blocks(""):
        for example in block.split("\n\n"):
            request, answer = example.strip().splitlines()
            _, path, body = request.split(" ", 2)
            status, result = answer.split(" ", 1)
            yield path, body, int(status), json.loads(result)


def comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: "…" if name in INVENTED else comparable(inner) for name, inner in value.items()}
    return [comparable(inner) for inner in value] if isinstance(value, list) else value


def configured() -> Settings:
    """The configuration on the page."""
    [toml] = blocks("toml")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "spread.toml")
        file.write_text(toml.replace("take this from SPREAD_HTTP_API_KEY instead", KEY))
        return load(file=str(file), environ={}, flags={})


class ExamplesTest(TestCase):
    """The page, followed from top to bottom."""

    timeout = 30

    def setUp(self) -> None:
        settings = configured()
        self.cluster = Cluster(reactor, Namespaces(settings.channel))  # type: ignore[arg-type]
        self.addCleanup(self.cluster.stop)
        resource = api_resource(settings.http_api, self.cluster.first.methods)
        site = quiet_site(reactor, {path: resource for path in api_paths(settings.http_api)})  # type: ignore[arg-type]
        self.factory = BoundedFactory(site, 100, lambda: None)
        port = reactor.listenTCP(0, self.factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(self._closed)
        self.addCleanup(port.stopListening)
        self.here = f"127.0.0.1:{port.getHost().port}"

    @inlineCallbacks
    def _closed(self) -> Any:
        while self.factory.connections:  # until the test's own deadline
            yield deferLater(reactor, 0.01, lambda: None)

    def _asked(self, path: str, body: str) -> tuple[int, Any]:
        connection = HTTPConnection(self.here, timeout=10)
        with contextlib.closing(connection):
            connection.request("POST", path, body, {"X-API-Key": KEY})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    @inlineCallbacks
    def test_requests(self) -> Any:
        clients = self.cluster.second.clients
        clients.add("17", "2f6c", "room:1")
        clients.add("18", "3a7d")
        info = ClientInfo("17", "2f6c", b'{"name":"Ann"}')
        self.cluster.second.hub.add_presence("room:7", info, 60)
        run = list(examples())
        assert {path.removeprefix("/api/") for path, *_ in run} == set(methods.METHODS)
        for path, body, status, expected in run:
            found = yield deferToThread(self._asked, path, body)
            assert (found[0], comparable(found[1])) == (status, comparable(expected)), (path, body)

    @inlineCallbacks
    def test_the_shell(self) -> Any:
        [command] = blocks("sh")
        if shutil.which("curl") is None:
            raise SkipTest("there is no curl here")
        arguments = ["sh", "-c", command.replace("127.0.0.1:8000", self.here)]
        printed = yield deferToThread(subprocess.check_output, arguments, timeout=20)
        assert f"prints `{printed.decode()}`" in DOCUMENT

    @inlineCallbacks
    def test_python(self) -> Any:
        [program] = blocks("python")
        program = program.replace("127.0.0.1:8000", self.here)
        found = yield deferToThread(
            subprocess.check_output, [sys.executable, "-c", program], timeout=20, env={"no_proxy": "*"}
        )
        assert re.fullmatch(r"1 \w{8}\n", found.decode()), found


def test_the_numbers_are_those_of_the_code() -> None:
    assert f"more than {methods.BATCH_MAX_COMMANDS} commands" in DOCUMENT
    assert f"{methods.BROADCAST_MAX_CHANNELS} channels in a broadcast" in DOCUMENT
    assert f"larger than {MAX_BODY_BYTES >> 20} MiB" in DOCUMENT
    assert f"{http.MAX_CALLS} requests to answer" in DOCUMENT
    assert f"up to {http.LINES_MAX} of them" in DOCUMENT
    assert f"ends after {methods.HISTORY_MAX_PUBLICATIONS} publications or" in DOCUMENT
    assert f"{methods.HISTORY_MAX_BYTES >> 20} MiB of data" in DOCUMENT
    assert f"`parallel` {methods.BATCH_PARALLEL} at a time" in DOCUMENT
    assert f"have {ANSWER_MAX_BYTES // 1_000_000} MB together" in DOCUMENT
    assert f"{MAX_ALTERNATIVES} alternatives" in DOCUMENT
    assert f"up to {codes.REASON_MAX_BYTES} bytes" in DOCUMENT


def test_the_errors_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (1\d\d) \| ([^|]+) \| (\d\d\d) \|", DOCUMENT, re.MULTILINE)
    assert [(int(code), message) for code, message, _ in rows] == [
        (error.code, error.message) for error in sorted(methods.ERRORS.values())
    ]
    assert {int(code): int(status) for code, _, status in rows} == http.STATUSES
