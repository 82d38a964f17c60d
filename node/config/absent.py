"""What a Centrifugo v6 configuration can say that Spread has nothing for.

Such a key is no misspelling: the person who wrote it relies on it, and must be told. Told is only what asks
for something: a switch that is off, an empty value, a table of which nothing is on, and a value that is
Centrifugo's own default mean the same without that key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from spread.node.settings.kinds import parse_duration

__all__ = ["absent_keys", "absent_variable", "is_absent"]

_CHANNEL = {
    "allow_tags_filter": "",
    "map": "",
    "map_clients_presence_channel_prefix": "",
    "map_users_presence_channel_prefix": "",
    "publish_proxy_enabled": "http_api",
    "publish_proxy_name": "",
    "shared_poll": "",
    "sub_refresh_proxy_enabled": "subscription tokens",
    "sub_refresh_proxy_name": "",
    "subscribe_proxy_enabled": "subscription tokens",
    "subscribe_proxy_name": "",
    "subscribe_stream_proxy_bidirectional": "",
    "subscribe_stream_proxy_enabled": "",
    "subscribe_stream_proxy_name": "",
    "subscription_type": "",
    # Of the PRO edition.
    "allow_channel_compaction": "",
    "batch_flush_latest": "",
    "batch_max_delay": "",
    "batch_max_size": "",
    "broker_name": "",
    "cache_empty_proxy_enabled": "",
    "cache_empty_proxy_name": "",
    "client_publish_debounce_interval": "",
    "history_cel": "",
    "keep_latest_publication": "",
    "presence_cel": "",
    "presence_manager_name": "",
    "publish_cel": "",
    "shared_position_sync": "",
    "state_proxy_enabled": "",
    "state_proxy_name": "",
    "subscribe_cel": "",
}

ABSENT: dict[str, str] = {
    "admin": "",
    "broker": "hub.url",
    "channel.proxy": "",
    "client.allowed_delta_types": "allowed_delta_types of a namespace",
    "client.channel_position_max_time_lag": "",
    "client.connect_code_to_unidirectional_disconnect": "",
    "client.proxy": "connection tokens",
    "client.subscription_token.insecure_skip_jwks_endpoint_safety_check": "",
    "client.token.insecure_skip_jwks_endpoint_safety_check": "",
    "consumers": "http_api",
    "controller": "hub.url",
    "debug": "",
    "dev": "",
    "enable_unreleased_features": "",
    "engine": "hub.url",
    "graphite": "",
    "grpc_api": "http_api",
    "health": "",
    "http_api.external": "",
    "http_server": "node.http, node.ops, node.tls_cert and node.tls_key",
    "init": "",
    "log": "node.log_level and node.log_format",
    "map_broker": "",
    "node.info_metrics_aggregate_interval": "",
    "node.name": "",
    "opentelemetry": "",
    "pid_file": "",
    "presence_manager": "hub.url",
    "prometheus": "node.ops",
    "proxies": "",
    "rpc": "",
    "shared_poll": "",
    "shutdown": "node.stop_seconds",
    "swagger": "",
    "uni_grpc": "",
    "uni_http_stream": "",
    "uni_sse": "",
    "uni_websocket": "",
    "usage_stats": "",
    "websocket.read_buffer_size": "",
    "websocket.use_write_buffer_pool": "",
    "websocket.write_buffer_size": "",
    "webtransport": "",
    # Of the PRO edition.
    "brokers": "hub.url",
    "clickhouse_analytics": "",
    "client.max_messages_in_frame": "",
    "client.rate_limit": "client.commands_per_second",
    "client.reply_without_queue": "",
    "client.write_delay": "",
    "database": "",
    "presence_managers": "hub.url",
    "push_notifications": "",
    "user_status": "",
    **{f"channel.without_namespace.{name}": instead for name, instead in _CHANNEL.items()},
    **{f"channel.namespaces[].{name}": instead for name, instead in _CHANNEL.items()},
}
"""By key, what Spread has in its place, if anything."""

_INSTEAD_OF_ONE = {
    "health.handler_prefix": "/health of node.http",
    "http_server.address": "node.http",
    "http_server.internal_address": "node.ops",
    "http_server.internal_port": "node.ops",
    "http_server.port": "node.http",
    "http_server.tls": "node.tls_cert and node.tls_key",
    "log.file": "standard error",
    "log.level": "node.log_level",
}
"""The same for single keys of tables."""

_DEFAULTS: dict[str, object] = {
    "broker.type": "memory",
    "health.handler_prefix": "/health",
    "rpc.namespace_boundary": ":",
    "rpc.ping.method": "ping",
    "engine.type": "memory",
    "http_server.port": 8000,
    "map_broker.type": "memory",
    "presence_manager.type": "memory",
    **{
        f"channel.{table}.{name}": default
        for table in ("without_namespace", "namespaces[]")
        for name, default in (
            ("subscription_type", "stream"),
            ("subscribe_proxy_name", "default"),
            ("publish_proxy_name", "default"),
            ("sub_refresh_proxy_name", "default"),
            ("subscribe_stream_proxy_name", "default"),
        )
    },
}
"""Values that mean the same as none."""

_EITHER_WAY = {
    "health.enabled": "the HTTP port answers /health, always",
    "http_api.external": "there is one HTTP port for clients and backends",
    "usage_stats.disabled": "none are sent",
}
"""Switches that change nothing, and why."""

_SWITCHED = frozenset(
    {
        *("admin", "broker", "debug", "dev", "graphite", "grpc_api", "health", "init", "opentelemetry"),
        *("presence_manager", "prometheus", "swagger", "uni_grpc", "uni_http_stream", "uni_sse"),
        *("uni_websocket", "webtransport", "client.proxy.connect", "client.proxy.refresh", "rpc.ping"),
    }
)
"""Tables that mean nothing without an ``enabled`` that is true."""

_INDEX = re.compile(r"\[\d+\]")


def is_absent(key: str) -> bool:
    """Whether Centrifugo has this key and Spread does not."""
    return _INDEX.sub("[]", key) in ABSENT


def absent_keys(key: str, value: object) -> Iterator[tuple[str, str]]:
    """What a value asks for that Spread does not have: keys, and for each what to use instead, if anything.

    :param key: one that ``is_absent``.
    """
    instead = ABSENT[_INDEX.sub("[]", key)]
    if not isinstance(value, Mapping) or (value.get("enabled") and f"{key}.enabled" not in _EITHER_WAY):
        if not _says_nothing(key, value):
            yield key, instead
    elif not _says_nothing(key, value):
        for name, inner in value.items():
            if not _says_nothing(f"{key}.{name}", inner):
                yield f"{key}.{name}", _INSTEAD_OF_ONE.get(f"{key}.{name}", instead)


def _says_nothing(key: str, value: object) -> bool:
    plain = _INDEX.sub("[]", key)
    if not value or plain in _EITHER_WAY or _DEFAULTS.get(plain) == value:
        return True
    if isinstance(value, str):
        return _is_zero(value)
    if not isinstance(value, Mapping):
        return False
    if value.get("enabled", plain not in _SWITCHED) is False:
        return True
    return all(_says_nothing(f"{key}.{name}", inner) for name, inner in value.items())


def _is_zero(text: str) -> bool:
    """Whether it is a duration of nothing, such as 0s."""
    try:
        return parse_duration(text) == 0
    except ValueError:
        return False


def absent_variable(variable: str) -> str:
    """The key that an environment variable would set, if Centrifugo has it and Spread does not; else ""."""
    for key in ABSENT:
        name = f"SPREAD_{key.replace('.', '_').upper()}"
        if "[]" not in key and (variable == name or variable.startswith(f"{name}_")):
            return key
    return ""
