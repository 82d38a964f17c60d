"""The sections of what the HTTP port serves: the API for backends, and the ways clients come. Values only.

Names, nesting and defaults are those of Centrifugo v6.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from spread.node.settings.kinds import Duration, Secret, Section

__all__ = [
    "EmulationSettings",
    "HttpApiSettings",
    "HttpStreamSettings",
    "SseSettings",
    "WebSocketSettings",
]

_Bytes = Annotated[int, Meta(ge=1, le=16 << 20)]


class HttpApiSettings(Section, frozen=True, kw_only=True):
    """The HTTP API for backends."""

    disabled: Annotated[bool, Meta(description="Do not serve the API.")] = False
    handler_prefix: Annotated[str, Meta(max_length=255, description="The path of the API.")] = "/api"
    key: Annotated[
        Secret, Meta(description="What a backend shows as X-API-Key. Empty: every request is refused.")
    ] = ""
    error_mode: Annotated[
        Literal["", "transport"],
        Meta(description="transport: errors are HTTP statuses; otherwise they are answers with status 200."),
    ] = ""
    insecure: Annotated[bool, Meta(description="Serve the API without a key. For development only.")] = False


class WebSocketSettings(Section, frozen=True, kw_only=True):
    """WebSocket."""

    disabled: Annotated[bool, Meta(description="Do not serve WebSocket.")] = False
    handler_prefix: Annotated[str, Meta(max_length=255, description="The path of WebSocket.")] = (
        "/connection/websocket"
    )
    compression: Annotated[
        bool, Meta(description="Compress messages (permessage-deflate) for clients that can read it.")
    ] = False
    compression_min_size: Annotated[
        int, Meta(ge=0, le=16 << 20, description="Bytes of the smallest message that is compressed.")
    ] = 0
    compression_level: Annotated[
        int, Meta(ge=1, le=9, description="From 1, which is fastest, to 9, which is smallest.")
    ] = 1
    write_timeout: Annotated[
        Duration,
        Meta(
            gt=0,
            le=3600,
            description="How long the last bytes for a client that is closed may take; 5s at the least.",
        ),
    ] = 1.0
    message_size_limit: Annotated[
        _Bytes, Meta(description="Bytes of the largest message of a client; one that sends more is closed.")
    ] = 65536
    decompressed_message_size_limit: Annotated[
        int,
        Meta(
            ge=0,
            le=256 << 20,
            description="The same after it was decompressed. 0: ten times message_size_limit.",
        ),
    ] = 0


class HttpStreamSettings(Section, frozen=True, kw_only=True):
    """HTTP streaming, for clients that cannot use WebSocket."""

    enabled: Annotated[bool, Meta(description="Serve HTTP streaming.")] = False
    handler_prefix: Annotated[str, Meta(max_length=255, description="The path of HTTP streaming.")] = (
        "/connection/http_stream"
    )
    max_request_body_size: Annotated[_Bytes, Meta(description="Bytes of the request that connects.")] = 65536


class SseSettings(Section, frozen=True, kw_only=True):
    """Server-sent events, for browsers that cannot use WebSocket."""

    enabled: Annotated[bool, Meta(description="Serve server-sent events.")] = False
    handler_prefix: Annotated[str, Meta(max_length=255, description="The path of server-sent events.")] = (
        "/connection/sse"
    )
    max_request_body_size: Annotated[_Bytes, Meta(description="Bytes of the request that connects.")] = 65536


class EmulationSettings(Section, frozen=True, kw_only=True):
    """Where clients of HTTP streaming and server-sent events send their commands."""

    handler_prefix: Annotated[
        str,
        Meta(max_length=255, description="The path; served when HTTP streaming or server-sent events are."),
    ] = "/emulation"
    max_request_body_size: Annotated[_Bytes, Meta(description="Bytes of one request.")] = 65536
