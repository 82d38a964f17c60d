"""Checks of the sections ``client`` and ``channel``: what is right by itself, and wrong together.

Where Centrifugo would start as well, and something would only be without effect, the error is a doubt: a
lenient reader passes over it.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping

from spread.node.auth.keys import TokenKeys
from spread.node.auth.keyset import KeyUnusable
from spread.node.auth.verifiers import key_source, key_source_path, token_rules
from spread.node.config.values import ConfigError, reason, shown
from spread.node.namespaces import Namespaces
from spread.node.settings import ClientSettings, NamespaceOptions, Settings, TokenSettings
from spread.node.settings.kinds import format_duration

__all__ = ["NO_KEY", "check_channel", "check_client", "who_is_let_in"]

_Doubt = Callable[[ConfigError], None]
_Origin = Callable[[str], str]
"""Where the value of a field comes from, in words."""

NO_KEY = "clients are not authenticated"

_NAMESPACE = re.compile(r"[-a-zA-Z0-9_.]{2,}")
_CLAIM = re.compile(r"[a-zA-Z_]+")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token of RFC 9110, section 5.6.2."""


def who_is_let_in(client: ClientSettings) -> str:
    """Why anybody may connect, in words; "" if a token is needed that only its issuer can write."""
    if client.insecure:
        return "client.insecure lets anyone in"
    if client.insecure_skip_token_signature_verify:
        return "client.insecure_skip_token_signature_verify lets anyone in"
    if client.allow_anonymous_connect_without_token:
        return "client.allow_anonymous_connect_without_token lets anyone in"
    if client.user_id_http_header:
        return "client.user_id_http_header lets anyone in who does not come through your proxy"
    token = client.token
    keys = (token.hmac_secret_key, token.rsa_public_key, token.ecdsa_public_key, token.jwks_public_endpoint)
    return "" if any(keys) else NO_KEY


# -- client --------------------------------------------------------------------------------------------------


def check_client(settings: Settings, origins: Mapping[str, str], doubt: _Doubt) -> None:
    """Check keys, rules and times.

    :raises ConfigError: the first thing found.
    """
    client = settings.client
    _check_token(client.token, lambda field: origins[f"client.token.{field}"])
    _check_token(client.subscription_token, lambda field: origins[f"client.subscription_token.{field}"])
    ping, pong = client.ping_interval, client.pong_timeout
    if ping != -1 and ping < 1:
        raise ConfigError(
            origins["client.ping_interval"], f"{format_duration(ping)}: 1s or more, or -1 for no pings"
        )
    if pong != -1 and pong <= 0:
        raise ConfigError(
            origins["client.pong_timeout"], f"{format_duration(pong)}: more than 0, or -1 to wait for ever"
        )
    if ping != -1 and pong >= ping:
        raise ConfigError(
            origins["client.pong_timeout"],
            f"{format_duration(pong)} is not shorter than client.ping_interval, {format_duration(ping)}",
        )
    if client.user_id_http_header and not _HEADER.fullmatch(client.user_id_http_header):
        raise ConfigError(
            origins["client.user_id_http_header"], f"{shown(client.user_id_http_header)} is no header's name"
        )
    largest = settings.websocket.message_size_limit
    if client.queue_max_size < 2 * largest:
        # One message would do what the limit is for: close everybody who is sent it.
        doubt(
            ConfigError(
                origins["client.queue_max_size"],
                f"{client.queue_max_size} bytes hold no two messages of websocket.message_size_limit, "
                f"{largest}; give it {2 * largest} or more, or make messages smaller",
            )
        )


def _check_token(token: TokenSettings, origin: _Origin) -> None:
    _check_key(origin("hmac_secret_key"), hmac_secret=token.hmac_secret_key)
    if token.hmac_previous_secret_key and not token.hmac_secret_key:
        raise ConfigError(
            origin("hmac_previous_secret_key"), "a previous secret without hmac_secret_key; give that, too"
        )
    # By itself, so that the error names this one.
    _check_key(origin("hmac_previous_secret_key"), hmac_secret=token.hmac_previous_secret_key)
    _check_key(origin("rsa_public_key"), rsa_public_key=token.rsa_public_key)
    _check_key(origin("ecdsa_public_key"), ecdsa_public_key=token.ecdsa_public_key)
    if token.jwks_public_endpoint:
        if token.rsa_public_key or token.ecdsa_public_key:
            raise ConfigError(
                origin("jwks_public_endpoint"),
                "is given together with rsa_public_key or ecdsa_public_key; give either",
            )
        _check_key_set(token.jwks_public_endpoint, origin("jwks_public_endpoint"))
    if token.user_id_claim and not _CLAIM.fullmatch(token.user_id_claim):
        raise ConfigError(
            origin("user_id_claim"), f"{shown(token.user_id_claim)}: only letters and _ may be in it"
        )
    for name in ("audience", "issuer"):
        pattern = getattr(token, f"{name}_regex")
        if pattern and getattr(token, name):
            raise ConfigError(origin(f"{name}_regex"), f"is given together with {name}; give one of them")
        _check_pattern(pattern, origin(f"{name}_regex"))
    token_rules(token)


def _check_key(origin: str, **key: str) -> None:
    try:
        TokenKeys(**key)  # type: ignore[arg-type]
    except KeyUnusable as error:
        raise ConfigError(origin, f"{error}") from None


def _check_key_set(endpoint: str, origin: str) -> None:
    try:
        key_source(endpoint, None)
        path = key_source_path(endpoint)
        if path:
            with open(path, "rb"):
                pass
    except OSError as error:
        raise ConfigError(origin, f"{shown(endpoint)} cannot be read: {reason(error)}") from None
    except ValueError as error:
        raise ConfigError(origin, f"{error}") from None


def _check_pattern(pattern: str, origin: str) -> None:
    try:
        with warnings.catch_warnings():
            # What Python warns of means something else in Go's syntax, such as [[:alpha:]].
            warnings.simplefilter("error")
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError, Warning) as error:
        raise ConfigError(origin, f"{shown(pattern)} is no regular expression: {error}") from None


# -- channel -------------------------------------------------------------------------------------------------


def check_channel(settings: Settings, origins: Mapping[str, str], doubt: _Doubt) -> None:
    """Check namespaces, and who refers to one.

    :raises ConfigError: the first thing found.
    """
    channel = settings.channel
    if not channel.history_meta_ttl.is_integer():
        raise ConfigError(origins["channel.history_meta_ttl"], _not_whole(channel.history_meta_ttl))
    _check_options(
        channel.without_namespace,
        channel.history_meta_ttl,
        lambda field: origins[f"channel.without_namespace.{field}"],
        doubt,
    )
    names: set[str] = set()
    for index, namespace in enumerate(channel.namespaces):
        place = f"{origins['channel.namespaces']}[{index}]"
        if not _NAMESPACE.fullmatch(namespace.name):
            raise ConfigError(
                f"{place}.name",
                f"{shown(namespace.name)}: two or more of letters, digits and - _ . make a name",
            )
        if namespace.name in names:
            raise ConfigError(f"{place}.name", f"{shown(namespace.name)} is there twice")
        if channel.namespace_boundary and channel.namespace_boundary in namespace.name:
            raise ConfigError(
                f"{place}.name",
                f"{shown(namespace.name)} has channel.namespace_boundary in it, so no channel is ever in it",
            )
        names.add(namespace.name)

        def origin(field: str, place: str = place) -> str:
            return f"{place}.{field}"

        _check_options(namespace, channel.history_meta_ttl, origin, doubt)
    _check_references(settings, origins)


def _check_options(options: NamespaceOptions, meta_ttl: float, origin: _Origin, doubt: _Doubt) -> None:
    for field in ("history_ttl", "history_meta_ttl"):
        if not getattr(options, field).is_integer():
            raise ConfigError(origin(field), _not_whole(getattr(options, field)))
    if bool(options.history_size) != bool(options.history_ttl):
        present, missing = "history_size", "history_ttl"
        if options.history_ttl:
            present, missing = missing, present
        raise ConfigError(origin(present), f"is given without {missing}; give both, or neither")
    meta_ttl = options.history_meta_ttl or meta_ttl
    if meta_ttl < options.history_ttl:
        raise ConfigError(
            origin("history_ttl"),
            f"{format_duration(options.history_ttl)} is longer than history_meta_ttl, "
            f"{format_duration(meta_ttl)}",
        )
    _check_pattern(options.channel_regex, origin("channel_regex"))
    if options.force_recovery and not options.history_size:
        raise ConfigError(origin("force_recovery"), "needs history; give history_size and history_ttl")
    for field in ("force_positioning", "allow_positioning", "allow_recovery"):
        if getattr(options, field) and not options.history_size:
            doubt(ConfigError(origin(field), "needs history; give history_size and history_ttl"))
    if options.force_push_join_leave and not options.join_leave:
        doubt(ConfigError(origin("force_push_join_leave"), "needs join_leave; turn that on, too"))
    follows = (
        options.force_positioning,
        options.allow_positioning,
        options.force_recovery,
        options.allow_recovery,
    )
    if options.allowed_delta_types and not any(follows):
        doubt(
            ConfigError(
                origin("allowed_delta_types"),
                "needs positions to be followed; turn on positioning or recovery, forced or allowed",
            )
        )
    if options.auto_cache_recovery and not (
        options.force_recovery and options.force_recovery_mode == "cache"
    ):
        doubt(
            ConfigError(
                origin("auto_cache_recovery"), "needs force_recovery, and force_recovery_mode set to cache"
            )
        )


def _not_whole(seconds: float) -> str:
    return f"{format_duration(seconds)} is not a number of whole seconds; write {math.ceil(seconds)}s"


def _check_references(settings: Settings, origins: Mapping[str, str]) -> None:
    personal = settings.client.subscribe_to_user_personal_channel
    table = "client.subscribe_to_user_personal_channel"
    name = personal.personal_channel_namespace
    namespaces = Namespaces(settings.channel, name)
    options = namespaces.options(namespaces.personal_channel("17"))
    if personal.enabled and options is None:
        raise ConfigError(
            origins[f"{table}.personal_channel_namespace"],
            f"there is no namespace {shown(name)} in channel.namespaces",
        )
    if personal.enabled and personal.single_connection and options and not options.presence:
        where = f"the namespace {shown(name)}" if name else "channel.without_namespace"
        raise ConfigError(origins[f"{table}.single_connection"], f"needs presence in {where}")
    if namespaces.options(settings.text.channel) is None:
        raise ConfigError(
            origins["text.channel"], f"{shown(settings.text.channel)} is in none of channel.namespaces"
        )
