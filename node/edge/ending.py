"""The end of a connection that is not the peer's wish: how it gets to read our last words."""

from __future__ import annotations

from typing import Any

from twisted.protocols.tls import TLSMemoryBIOProtocol

__all__ = ["end_writing"]


def end_writing(transport: Any) -> None:
    """Tell the peer that nothing more comes. What it still sends is received, so that the kernel does not
    answer that with a reset, which would overtake what we have sent.

    The connection stays until the peer closes it: the caller cuts it after some time. Over TLS this is a
    ``close_notify``, without which the peer would take the end for an attack, and what comes is dropped.
    """
    if isinstance(transport, TLSMemoryBIOProtocol):
        transport.loseConnection()
    else:
        transport.loseWriteConnection()
