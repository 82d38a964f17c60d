"""A connection that began as an HTTP request and goes on as something else.

A WebSocket, or an answer that never ends, lives for hours; the objects with which ``twisted.web`` parsed
its first bytes take 10 kB and stand between the socket and its reader. ``take_over`` puts another protocol
in their place, right behind the transport (TCP, Unix or TLS), and lets them go.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request

__all__ = ["Recipient", "take_over"]

_log = Logger("spread.node.edge.takeover")


class Recipient(Protocol):
    """``IProtocol``, as far as a transport calls it: any ``twisted.internet.protocol.Protocol``."""

    def makeConnection(self, transport: Any, /) -> object: ...
    def dataReceived(self, data: bytes, /) -> object: ...
    def connectionLost(self, reason: Failure, /) -> object: ...


def take_over(request: Request, protocol: Recipient) -> bool:
    """Make ``protocol`` the recipient of the connection that ``request`` came on; HTTP is over there.

    Called in the ``render`` of a resource, which returns ``NOT_DONE_YET`` then, or any time after that as
    long as nothing of an answer was written. The protocol is connected before this returns, and gets the
    bytes that came behind the request, if there were any: ``makeConnection``, then ``dataReceived``, even
    if it has paused its transport meanwhile. After that the transport calls it as if it had never had
    another one. What was answered before on this connection (pipelining) may still wait in the transport's
    own buffer: ``spread.node.outbox.make_outbox`` does not overtake it.

    Nothing may be asked of the request afterwards, ``notifyFinish`` included. If its port counts
    connections (``spread.node.web.site.BoundedFactory``), this one does not count any longer.

    :returns: ``False`` if there is nothing to take over: the connection is gone or ending, or is not
        HTTP/1. The protocol is untouched then.
    """
    channel: Any = request.channel
    if not isinstance(channel, HTTPChannel):
        return False
    transport: Any = channel.transport
    if transport is None or not transport.connected or transport.disconnecting:
        return False
    # What follows mends, in this order, what HTTPChannel does in connectionMade, in allContentReceived and
    # with data that comes while it handles a request.
    parser: Any = channel
    parser.unregisterProducer()
    parser._networkProducer.unregisterProducer()
    parser.setTimeout(None)
    came = b"".join([*parser._dataBuffer, parser._buffer])
    parser._dataBuffer = []
    parser._buffer = b""  # its loop over lines ends here, if we are called out of it
    parser.requests = []
    parser.transport = None
    request.channel = None  # type: ignore[assignment]  # as it is after a lost connection
    name = "wrappedProtocol" if isinstance(transport, TLSMemoryBIOProtocol) else "protocol"
    former = getattr(transport, name)
    setattr(transport, name, protocol)
    taken_over = getattr(former, "taken_over", None)
    if taken_over is not None:
        taken_over()
    transport.resumeProducing()  # the channel pauses it when much comes while it handles a request
    try:
        protocol.makeConnection(transport)
        if came:
            protocol.dataReceived(came)
    except Exception:
        # As a transport does it: the fault must not get at what is left of the request.
        _log.failure("a protocol that took over from HTTP")
        transport.abortConnection()
    return True
