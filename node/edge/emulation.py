"""The other half of HTTP streaming and server-sent events: what a client says after it has connected.

    POST {emulation.handler_prefix}
        {"session": …, "node": …, "data": "commands"}    JSON
        EmulationRequest       Protobuf, with Content-Type: application/octet-stream

The request may reach any shard; ``node`` tells which one has the session, and it is forwarded there. Both
names are in the client's connect result, and the session's is its secret.

    204   forwarded; also when that shard has no such session any more
    400   not an emulation request
    404   no live shard is ``node``
    413   larger than ``emulation.max_request_body_size``
    503   the hub is away, or too many requests are on their way already; not forwarded
    500   a defect of ours; it is logged

Requests are forwarded in the order in which they arrive here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET

from spread.hub.errors import HubError, ShardUnknown
from spread.node.edge.browser import BrowserResource
from spread.node.metrics import ShardCounters
from spread.node.settings import Settings
from spread.node.web.bodies import body_of, is_protobuf
from spread.node.wire import json, protobuf
from spread.node.wire.messages import ProtocolError

__all__ = [
    "MAX_IN_FLIGHT",
    "MAX_IN_FLIGHT_BYTES",
    "EmulationResource",
    "Forward",
    "emulation_resource",
]

MAX_IN_FLIGHT = 1024
"""Requests of one shard that may be on their way to their sessions; one more is refused."""

MAX_IN_FLIGHT_BYTES = 16 << 20
"""The same limit in bytes of their commands."""

Forward = Callable[[str, str, bytes], "Deferred[None]"]
"""``(node, session, commands)``: hand the commands of a session to its shard, in the order of the calls.

Fires when they are there, within some seconds. Fails with ``ShardUnknown`` if no live shard is ``node``, or
with another ``HubError``.
"""


class EmulationResource(BrowserResource):
    """See the top of this module."""

    log = Logger("spread.node.edge.emulation")

    def __init__(self, settings: Settings, forward: Forward, counters: ShardCounters) -> None:
        super().__init__(settings.client.allowed_origins, settings.emulation.max_request_body_size)
        self._forward = forward
        self._counters = counters
        self.in_flight = 0
        """Requests on their way."""
        self.in_flight_bytes = 0

    def respond(self, request: Any) -> Any:
        """See ``BrowserResource``."""
        decode = protobuf.decode_emulation if is_protobuf(request) else json.decode_emulation
        try:
            asked = decode(body_of(request))
        except ProtocolError as error:
            return self.text(request, 400, f"not an emulation request: {error}")
        if not asked.node or not asked.session:
            return self.text(request, 400, "an emulation request names its node and its session")
        size = len(asked.data)
        if self.in_flight >= MAX_IN_FLIGHT or self.in_flight_bytes + size > MAX_IN_FLIGHT_BYTES:
            self._counters.emulation_refused += 1
            return self.text(request, 503, "too many requests are on their way; try again")
        self.in_flight += 1
        self.in_flight_bytes += size
        outcome = self._forward(asked.node, asked.session, asked.data)
        outcome.addBoth(self._forwarded, request, size)
        outcome.addErrback(self._failed)
        return NOT_DONE_YET

    def _forwarded(self, outcome: Failure | None, request: Any, size: int) -> None:
        self.in_flight -= 1
        self.in_flight_bytes -= size
        if request.channel is None:
            return  # the client has gone
        if outcome is None:
            request.setResponseCode(204)
        else:
            body = self.text(request, *self._refusal(outcome))
            request.setHeader(b"content-length", b"%d" % len(body))
            request.write(body)
        request.finish()

    def _refusal(self, failure: Failure) -> tuple[int, str]:
        if failure.check(ShardUnknown):
            return 404, "no live shard is that node"
        if failure.check(HubError):
            return 503, "the hub is away; try again"
        self._failed(failure)
        return 500, "internal server error"

    def _failed(self, failure: Failure) -> None:
        self.log.failure("forwarding the commands of a client", failure)


def emulation_resource(
    settings: Settings, forward: Forward, counters: ShardCounters | None = None
) -> EmulationResource:
    """What answers at ``emulation.handler_prefix``."""
    return EmulationResource(settings, forward, counters or ShardCounters())
