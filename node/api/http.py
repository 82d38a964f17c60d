"""The server API over HTTP.

    POST /api/METHOD     the parameters of a method, as a JSON object
    POST /api            {"method": …, "params": …}, or several of these, one a line

Answered with 200 and ``{"result": …}`` or ``{"error": {"code": …, "message": …}}``, ``batch`` with its
replies as they are. In the error mode ``transport`` (setting or header) an error is answered with a status of
its own and the bare error. What is no call at all is answered in plain text: 400 (no JSON), 401, 404, 405,
413 (by the site), 503 (too many calls at a time).

A caller shows the key in ``X-API-Key``, in ``Authorization: apikey …``, or in the query as ``api_key``.
Whoever has the key may do everything: the port is for the application's own backend, not for clients.

A caller that goes away does not stop its call: it may be half done.
"""

from __future__ import annotations

import hmac
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from spread.node import codes
from spread.node.api import params, results
from spread.node.api.methods import METHODS, ApiError, Methods
from spread.node.web.bodies import body_of
from spread.node.wire.json import embeddable
from spread.node.wire.messages import ProtocolError

__all__ = [
    "LINES_MAX",
    "MAX_BODY_BYTES",
    "MAX_CALLS",
    "STATUSES",
    "HttpApiSettings",
    "api_paths",
    "api_resource",
]

MAX_BODY_BYTES = 2 << 20
"""Of one request. The site's connections times this is what peers without a key can make a shard hold."""

MAX_CALLS = 256
"""Requests of one shard that may wait for their answers; one more is answered 503."""

LINES_MAX = 1000
"""Calls of one request to ``/api``."""

STATUSES = {
    codes.INTERNAL_ERROR.code: 500,
    codes.UNKNOWN_CHANNEL.code: 404,
    codes.METHOD_NOT_FOUND.code: 404,
    codes.LIMIT_EXCEEDED.code: 400,
    codes.BAD_REQUEST.code: 400,
    codes.NOT_AVAILABLE.code: 400,
    codes.UNRECOVERABLE_POSITION.code: 416,
}
"""Of errors, in the error mode ``transport``."""

_TEXT = b"text/plain; charset=utf-8"
_JSON = b"application/json"


class HttpApiSettings(Protocol):
    """The settings that matter here."""

    @property
    def handler_prefix(self) -> str:
        """The path of the API, ``/api``."""
        ...

    @property
    def key(self) -> str:
        """What callers must show; "": nobody can."""
        ...

    @property
    def insecure(self) -> bool:
        """No key is asked for."""
        ...

    @property
    def error_mode(self) -> str:
        """``transport``, or anything else."""
        ...


def api_paths(settings: HttpApiSettings) -> list[str]:
    """The paths of the API, without the first slash: all are served by one ``api_resource``."""
    prefix = settings.handler_prefix.strip("/")
    return [prefix, *(f"{prefix}/{method}".lstrip("/") for method in METHODS)]


def api_resource(settings: HttpApiSettings, methods: Methods) -> Resource:
    """The resource for all ``api_paths``. Its site must be a ``bodies.BoundedSite``, which hands bodies up to
    ``max_body_bytes`` to it."""
    return _Api(settings, methods)


class _Refused(Exception):
    """The request is no call."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text
        self.headers = headers


class _Api(Resource):
    isLeaf = True
    log = Logger("spread.node.api")
    max_body_bytes = MAX_BODY_BYTES

    def __init__(self, settings: HttpApiSettings, methods: Methods) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._settings = settings
        self._key = settings.key.encode()
        paths = [f"/{path}".encode() for path in api_paths(settings)]
        self._paths = dict(zip(paths, (None, *METHODS), strict=True))
        self._methods = methods
        self._calls = 0
        self._was_told = False
        for status in (400, 401, 503):
            methods.counters.api_errors.setdefault(status, 0)

    def render(self, request: Request) -> Any:
        try:
            method = self._method(request)
            lines = self._admitted(request, method)
        except _Refused as refused:
            for name, value in refused.headers.items():
                request.setHeader(name.replace("_", "-").encode(), value.encode())
            return _written(request, refused.status, _TEXT, refused.text.encode() + b"\n")
        gone: list[Failure] = []
        request.notifyFinish().addErrback(gone.append)
        self._calls += 1
        done = Deferred.fromCoroutine(self._answer(request, method, lines, gone))
        done.addErrback(lambda failure: self.log.failure("an API call failed", failure))
        return NOT_DONE_YET

    # -- what is asked

    def _method(self, request: Request) -> str | None:
        """The method that is called; None: the body tells."""
        try:
            return self._paths[request.path]
        except KeyError:
            raise _Refused(404, "no such method") from None

    def _admitted(self, request: Request, method: str | None) -> list[bytes]:
        """The parameters of the call, or the calls."""
        errors = self._methods.counters.api_errors
        if request.method != b"POST":
            raise _Refused(405, "only POST", allow="POST")
        if not self._is_allowed(request):
            errors[401] += 1
            raise _Refused(401, "the API key is missing or wrong")
        if self._calls >= MAX_CALLS:
            errors[503] += 1
            raise _Refused(503, "too many calls at a time", retry_after="1")
        body = body_of(request).strip()
        try:
            return [embeddable(body) if body else b""] if method else _lines(body)
        except ProtocolError as error:
            errors[400] += 1
            raise _Refused(400, f"the body is not JSON: {error.reason}") from None

    def _is_allowed(self, request: Request) -> bool:
        if self._settings.insecure:
            return True
        if not self._key:
            if not self._was_told:
                self._was_told = True
                self.log.warn("a call of the HTTP API was refused, as all are: http_api.key is not set")
            return False
        shown = [*(request.requestHeaders.getRawHeaders(b"x-api-key") or ())]
        for value in request.requestHeaders.getRawHeaders(b"authorization") or ():
            scheme, _, credentials = value.partition(b" ")
            if scheme.lower() == b"apikey":
                shown.append(credentials.strip())
        shown += (request.args or {}).get(b"api_key", ())
        return any([hmac.compare_digest(self._key, key) for key in shown])

    # -- what is answered

    async def _answer(
        self, request: Request, method: str | None, lines: list[bytes], gone: list[Failure]
    ) -> None:
        try:
            if method:
                status, body = await self._called(request, method, lines[0])
            else:
                # One after the other, as if they had come in requests of their own.
                answers = [await self._legacy(request, line) for line in lines]
                status = answers[0][0] if len(answers) == 1 else 200
                body = b"\n".join(answer for _, answer in answers)
        finally:
            self._calls -= 1
        if not gone:
            request.write(_written(request, status, _JSON, body))
            request.finish()

    async def _legacy(self, request: Request, line: bytes) -> tuple[int, bytes]:
        try:
            command = params.decoded(params.Command, line)
        except params.BadParams:
            command = params.Command()
        return await self._called(request, command.method, bytes(command.params))

    async def _called(self, request: Request, method: str, arguments: bytes) -> tuple[int, bytes]:
        try:
            result = await self._methods.call(method, arguments)
        except ApiError as failed:
            error = msgspec.json.encode(results.error(failed.error))
            mode = request.requestHeaders.getRawHeaders(b"x-centrifugo-error-mode")
            if (mode[0] if mode else self._settings.error_mode.encode()) == b"transport":
                return STATUSES[failed.error.code], error
            return 200, b'{"error":%b}' % error
        return 200, result if method == "batch" else b'{"result":%b}' % result


def _lines(body: bytes) -> list[bytes]:
    """The calls in a body: one JSON value, or one a line.

    :raises ProtocolError: if it is neither.
    """
    try:
        return [embeddable(body)]
    except ProtocolError:
        if b"\n" not in body:
            raise
    if body.count(b"\n") >= LINES_MAX:
        raise ProtocolError(f"more than {LINES_MAX} lines")
    return [embeddable(line) for line in body.split(b"\n") if line.strip()]


def _written(request: Request, status: int, content_type: bytes, body: bytes) -> bytes:
    """Set the head of an answer; gives its body."""
    request.setResponseCode(status)
    request.setHeader(b"content-type", content_type)
    request.setHeader(b"content-length", b"%d" % len(body))
    request.setHeader(b"cache-control", b"no-store")
    return b"" if request.method == b"HEAD" else body
