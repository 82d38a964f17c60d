"""``POST /reload`` on the ops port: the app is updated, here or on all shards.

    POST /reload         this shard: 200 and {"ok": true, …} when it runs the new code, else 409
    POST /reload?all=1   all of them, one after the other: 200, and a line of JSON for each as it is done,
                         until one refuses; then one for each that was left as it is, with "was_asked" false;
                         the last line is {"done": true}, or {"done": false}

While nothing happens, an empty line comes every ``ALIVE_SECONDS``: whoever waits knows that it still goes on.

A request that says from which page it comes is refused: it is a browser's, which any page can make send one.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from spread.hub.reactor import Clock, Timer
from spread.node.app.reload import Reload, ShardOutcome
from spread.node.app.update import Outcome

__all__ = ["ALIVE_SECONDS", "ReloadResource"]

ALIVE_SECONDS = 5.0

log = Logger("spread.node.web.reload")


class _Request(Protocol):
    """``twisted.web.server.Request``, as far as it is called here."""

    method: bytes
    args: dict[bytes, list[bytes]]

    def getHeader(self, key: bytes) -> bytes | None: ...
    def setHeader(self, name: bytes, value: bytes) -> None: ...
    def setResponseCode(self, code: int) -> None: ...
    def write(self, data: bytes) -> None: ...
    def finish(self) -> None: ...
    def notifyFinish(self) -> Deferred[Any]: ...


class ReloadResource(Resource):
    """See the top of this module."""

    isLeaf = True

    def __init__(self, clock: Clock, reload: Reload) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._clock = clock
        self._reload = reload

    def render(self, request: _Request) -> Any:
        request.setHeader(b"content-type", b"application/json")
        request.setHeader(b"cache-control", b"no-store")
        if request.method != b"POST":
            request.setResponseCode(405)
            request.setHeader(b"allow", b"POST")
            return b'{"error":"only POST"}\n'
        if request.getHeader(b"origin") is not None:
            request.setResponseCode(403)
            return b'{"error":"not for browsers"}\n'
        answer = _Answer(self._clock, request)
        if request.args.get(b"all", [b"0"])[-1] in (b"1", b"true"):
            request.setHeader(b"content-type", b"application/x-ndjson")
            answer.keep_alive()
            ending = self._reload.all(answer.line, lambda: answer.is_open).addCallback(answer.done)
        else:
            ending = self._reload.one().addCallback(answer.whole)
        ending.addErrback(answer.failed)
        return NOT_DONE_YET


class _Answer:
    """An answer that is written as it comes to be known, while there is somebody to read it."""

    def __init__(self, clock: Clock, request: _Request) -> None:
        self.is_open = True
        self._clock = clock
        self._request = request
        self._timer: Timer | None = None
        request.notifyFinish().addBoth(self._ended)

    def whole(self, outcome: Outcome) -> None:
        if self.is_open:
            self._request.setResponseCode(200 if outcome.ok else 409)
            body = msgspec.json.encode(outcome) + b"\n"
            self._request.setHeader(b"content-length", b"%d" % len(body))
            self._request.write(body)
            self._request.finish()

    def keep_alive(self) -> None:
        """Write an empty line now and then, until it is done."""

        def alive() -> None:
            self._request.write(b"\n")
            self.keep_alive()

        self._timer = self._clock.callLater(ALIVE_SECONDS, alive)

    def line(self, outcome: ShardOutcome) -> None:
        if self.is_open:
            self._write(outcome)

    def done(self, is_done: bool) -> None:
        if self.is_open:
            self._write({"done": is_done})
            self._request.finish()

    def _write(self, value: object) -> None:
        self._request.write(msgspec.json.encode(value) + b"\n")

    def failed(self, failure: Failure) -> None:
        """Unforeseen: who waits is not left waiting."""
        log.failure("answering what became of an update", failure)
        if self.is_open:
            self._request.finish()

    def _ended(self, _: object) -> None:
        self.is_open = False
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
