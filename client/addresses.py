"""Where a server is: ``ws://``, ``wss://`` and ``tcp://`` URLs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from websockets.exceptions import InvalidURI
from websockets.uri import WebSocketURI, parse_uri

from spread.client.connection import Clock
from spread.client.formats import Format
from spread.client.transport import FrameTransport, LineTransport, Owner, WebSocketTransport

__all__ = ["ServerAddress", "parse_address"]


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A URL, understood."""

    host: str
    port: int
    is_secure: bool
    uri: WebSocketURI | None
    """None: lines over bare TCP."""

    def endpoint(self, reactor: Any, timeout_seconds: float) -> IStreamClientEndpoint:
        """What connects there. The certificates of ``wss`` are checked against those the system trusts."""
        endpoint = cast(
            IStreamClientEndpoint, HostnameEndpoint(reactor, self.host, self.port, timeout_seconds)
        )
        if not self.is_secure:
            return endpoint
        from twisted.internet.ssl import optionsForClientTLS  # slow to load

        return wrapClientTLS(optionsForClientTLS(self.host), endpoint)

    def transport(
        self, owner: Owner, clock: Clock, frame_max_bytes: int, format: Format, headers: Mapping[str, str]
    ) -> FrameTransport:
        """A protocol for one connection."""
        if self.uri is None:
            return LineTransport(owner, clock, frame_max_bytes)
        return WebSocketTransport(owner, clock, frame_max_bytes, self.uri, format.subprotocol, headers)


def parse_address(url: str, format: Format) -> ServerAddress:
    """Understand a URL.

    :raises ValueError: it is none, or the format cannot be spoken there; the text says what is wrong.
    """
    scheme = urlsplit(url).scheme
    if scheme == "tcp":
        parts = urlsplit(url)
        if not parts.hostname or not parts.port or parts.path.strip("/") or parts.query or parts.username:
            raise ValueError(f"{url!r} is not tcp://HOST:PORT")
        if format.is_binary:
            raise ValueError("over bare TCP only JSON is spoken")
        return ServerAddress(parts.hostname, parts.port, False, None)
    if scheme not in ("ws", "wss"):
        raise ValueError(f"{url!r} begins with none of ws://, wss:// and tcp://")
    try:
        uri = parse_uri(url)
    except InvalidURI as error:
        raise ValueError(f"{url!r} is no URL of a WebSocket: {error.msg}") from None
    return ServerAddress(uri.host, uri.port, uri.secure, uri)
