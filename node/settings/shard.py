"""Spread's own sections: the shard, its hub, and the text protocol. Values only."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from spread.node.settings.kinds import Secret, Section

__all__ = ["HubSettings", "NodeSettings", "TextSettings"]

Seconds = Annotated[float, Meta(gt=0, le=3600)]


class NodeSettings(Section, frozen=True, kw_only=True):
    """The shard itself."""

    shard: Annotated[
        str,
        Meta(
            description="Which shard to run: a number (0 to 1023), a range A-B (one process each), "
            "or auto (the lowest number that no live shard holds)."
        ),
    ] = "auto"
    http: Annotated[
        str, Meta(description="HOST:PORT for HTTP, or off. Shared by all shards of a machine.")
    ] = "127.0.0.1:8000"
    json: Annotated[
        str,
        Meta(
            description="HOST:PORT for the Centrifuge protocol as lines of JSON over TCP, or off. Shared by "
            "all shards of a machine."
        ),
    ] = "off"
    tls_cert: Annotated[
        str,
        Meta(
            description="PEM file of the certificate shown to clients, followed by its chain: the ports for "
            "HTTP, JSON and text then speak TLS alone."
        ),
    ] = ""
    tls_key: Annotated[str, Meta(description="PEM file of the key of --tls-cert.")] = ""
    ops: Annotated[
        str,
        Meta(
            description="HOST:PORT for /healthz, /readyz and /metrics, or off. The number of the shard is "
            "added to the port. Never expose it to the public."
        ),
    ] = "127.0.0.1:8100"
    log_format: Annotated[
        Literal["text", "json"], Meta(description="How log lines are written to stderr.")
    ] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warn", "error"], Meta(description="The least level that is logged.")
    ] = "info"
    allow_anonymous: Annotated[
        bool,
        Meta(
            description="Let anyone who can reach a public (non-loopback) address in, without authentication."
        ),
    ] = False
    max_clients: Annotated[
        int,
        Meta(
            ge=0,
            description="Clients of one shard; one more is told so and closed. 0: as many as the limit on "
            "open files allows.",
        ),
    ] = 0
    max_clients_per_address: Annotated[
        int, Meta(ge=0, description="Clients of one shard from one IP address. 0: no limit.")
    ] = 0
    max_http_connections: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Connections to the HTTP port of one shard; one more is closed at once.",
        ),
    ] = 512
    outbox_max_bytes: Annotated[
        int,
        Meta(
            ge=65536,
            le=1 << 30,
            description="Bytes that may wait for one client; a client that is slower than this is closed.",
        ),
    ] = 1 << 20
    fanout_seconds: Annotated[
        float,
        Meta(gt=0, le=1, description="Longest time the shard delivers messages before it serves others."),
    ] = 0.005
    inbox_max_bytes: Annotated[
        int,
        Meta(
            ge=65536,
            le=1 << 30,
            description="Bytes of messages from the hub that may wait to be delivered; above it the shard "
            "stops reading from the hub.",
        ),
    ] = 4 << 20
    stop_seconds: Annotated[
        Seconds, Meta(description="Longest time a clean stop may take, from the first signal to the exit.")
    ] = 10.0


class HubSettings(Section, frozen=True, kw_only=True):
    """The hub: Redis or Valkey, where shards meet."""

    url: Annotated[
        Secret,
        Meta(
            description="redis://[user:password@]host:port[/db], rediss://, redis+unix:///path, "
            "redis+sentinel://h1,h2/name, redis+cluster://h1,h2, embedded: or memory:. Given several times, "
            "each has a part of the channels."
        ),
    ] = "embedded:"
    prefix: Annotated[
        str, Meta(min_length=1, max_length=64, description="First part of every key and channel in Redis.")
    ] = "spread"
    tls_ca: Annotated[
        str,
        Meta(
            description="PEM file of the authorities that may sign the hub's certificate; else the system's."
        ),
    ] = ""
    tls_cert: Annotated[str, Meta(description="PEM file of the certificate shown to the hub.")] = ""
    tls_key: Annotated[str, Meta(description="PEM file of the key of --hub-tls-cert.")] = ""
    start_seconds: Annotated[
        Seconds, Meta(description="How long a starting shard waits for the hub before it gives up.")
    ] = 5.0
    reply_seconds: Annotated[
        Seconds, Meta(description="A hub connection that leaves a command unanswered this long is cut.")
    ] = 3.0
    publish_seconds: Annotated[
        Seconds,
        Meta(description="How long a publication may wait for the hub before its publisher gets an error."),
    ] = 5.0
    journal_max_bytes: Annotated[
        int, Meta(ge=0, le=1 << 30, description="Bytes of publications that may wait while the hub is away.")
    ] = 32 << 20
    journal_max_publications: Annotated[
        int, Meta(ge=0, le=10_000_000, description="Publications that may wait while the hub is away.")
    ] = 100_000
    min_replicas: Annotated[
        int,
        Meta(
            ge=0,
            le=100,
            description="Replicas of the hub that must have what a channel keeps before its publisher hears "
            "that it was taken.",
        ),
    ] = 0
    embedded_fsync: Annotated[
        Literal["always", "everysec", "no"],
        Meta(
            description="When the embedded server has its file written to the disk: before it answers, "
            "once a second, or when the system likes. With any but the first it may lose what it has taken."
        ),
    ] = "always"
    linger_seconds: Annotated[
        Seconds, Meta(description="How long a channel is still heard after its last client has left it.")
    ] = 3.0
    probe_seconds: Annotated[
        Seconds,
        Meta(description="A subscriber connection silent for this long is probed, and cut if it stays deaf."),
    ] = 3.0
    ask_seconds: Annotated[
        Seconds,
        Meta(description="How long all shards may take to answer a question, as of who is connected."),
    ] = 10.0


class TextSettings(Section, frozen=True, kw_only=True):
    """The text protocol."""

    listen: Annotated[
        str, Meta(description="HOST:PORT for the text protocol, or off. Shared by all shards of a machine.")
    ] = "127.0.0.1:8007"
    greeting: Annotated[
        str,
        Meta(
            max_length=4096,
            description="Line sent to each new client; {number} counts the clients of the whole cluster.",
        ),
    ] = "欢迎来到Spread Site,您是第{number}个客户端用户!"
    goodbye: Annotated[
        str,
        Meta(
            max_length=4096,
            description="Line sent to each client when the shard stops; {shard} is its number.",
        ),
    ] = "goodbye: shard {shard} is stopping, please connect again"
    channel: Annotated[
        str,
        Meta(min_length=1, max_length=255, description="The channel a client is in until it joins another."),
    ] = "lobby"
    message_max_bytes: Annotated[
        int,
        Meta(ge=1, le=16 << 20, description="Largest message; a client that sends a larger one is closed."),
    ] = 65536
    idle_flush_seconds: Annotated[
        Seconds,
        Meta(description="What has come without a line ending is a message after this time."),
    ] = 0.2
    max_messages_per_second: Annotated[
        float,
        Meta(
            ge=0,
            description="Messages of one client; what is above is refused with an error line. 0: no limit.",
        ),
    ] = 0
    max_unacknowledged: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000,
            description="Messages of one client that may be on their way to the hub; above it the client is "
            "not read until some have arrived.",
        ),
    ] = 256
    max_unacknowledged_bytes: Annotated[
        int,
        Meta(ge=1024, le=1 << 30, description="The same limit in bytes."),
    ] = 131072
