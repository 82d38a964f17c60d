"""``POST /reload`` on the ops port: the app is updated, here or on all shards.

    POST /reload         this shard: 200 and {"ok": true, …} when it runs the new code, else 409
    POST /reload?all=1   all of them, one after the other: 200, and a line of JSON for each as it is done,
                         until one refuses; the last line is {"done": true}, or {"done": false}

A request that says from which page it comes is refused: it is a browser's, which any page can make send one.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from spread.node.app.reload import Reload, ShardOutcome
from spread.node.app.update import Outcome

__all__ = ["ReloadResource"]


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

    def __init__(self, reload: Reload) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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
        answer = _Answer(request)
        if request.args.get(b"all", [b"0"])[-1] in (b"1", b"true"):
            request.setHeader(b"content-type", b"application/x-ndjson")
            self._reload.all(answer.line, lambda: answer.is_open).addCallback(answer.done)
        else:
            self._reload.one().addCallback(answer.whole)
        return NOT_DONE_YET


class _Answer:
    """An answer that is written as it comes to be known, while there is somebody to read it."""

    def __init__(self, request: _Request) -> None:
        self.is_open = True
        self._request = request
        request.notifyFinish().addBoth(self._ended)

    def whole(self, outcome: Outcome) -> None:
        if self.is_open:
            self._request.setResponseCode(200 if outcome.ok else 409)
            body = msgspec.json.encode(outcome) + b"\n"
            self._request.setHeader(b"content-length", b"%d" % len(body))
            self._request.write(body)
            self._request.finish()

    def line(self, outcome: ShardOutcome) -> None:
        if self.is_open:
            self._write(outcome)

    def done(self, is_done: bool) -> None:
        if self.is_open:
            self._write({"done": is_done})
            self._request.finish()

    def _write(self, value: object) -> None:
        self._request.write(msgspec.json.encode(value) + b"\n")

    def _ended(self, _: object) -> None:
        self.is_open = False
