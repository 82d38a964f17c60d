"""Who verifies tokens, as the configuration has it: keys of its own, a set of keys, or nobody.

The answers are Deferreds in every case, so that a session need not know where the keys are. Keys of the
configuration answer at once. Nothing here tells a key.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from twisted.internet.defer import Deferred, execute

from spread.node.auth.jwks import FileJwks, JwksSource, JwksVerifier, UrlJwks
from spread.node.auth.keys import TokenHeader, TokenKeys
from spread.node.auth.tokens import ConnectionToken, SubscriptionToken, TokenRules, TokenVerifier
from spread.node.settings import ClientSettings, TokenSettings

__all__ = [
    "Verifier",
    "Verifiers",
    "key_source",
    "key_source_path",
    "token_keys",
    "token_rules",
    "token_verifier",
    "token_verifiers",
]


class Verifier(Protocol):
    """Says what a token says, if it is good."""

    def verify_connection(self, token: str) -> Deferred[ConnectionToken]:
        """What a connection token says.

        :returns: fails with ``TokenExpired``, ``TokenInvalid``, or, if that cannot be said now,
            ``JwksUnavailable``.
        """
        ...

    def verify_subscription(self, token: str) -> Deferred[SubscriptionToken]:
        """What a subscription token says. That it is for this user, client and channel is left to check.

        :returns: fails as above.
        """
        ...

    def stop(self) -> None:
        """Fetch no more keys; who waits for some gets ``JwksUnavailable``. Idempotent."""
        ...


class Verifiers(NamedTuple):
    """Who verifies the tokens of clients; ``None``: nobody, and each is invalid. Often both are the same."""

    connection: Verifier | None
    subscription: Verifier | None

    def stop(self) -> None:
        """Stop both."""
        for verifier in self:
            if verifier is not None:
                verifier.stop()


def token_verifiers(
    client: ClientSettings, reactor: Any, *, now: Callable[[], float] = time.time
) -> Verifiers:
    """The verifiers of connection and subscription tokens.

    :raises ValueError: the settings are not valid ones.
    """
    skip = client.insecure_skip_token_signature_verify
    connection = token_verifier(client.token, reactor, skip_signature=skip, now=now)
    if not client.subscription_token.enabled:
        return Verifiers(connection, connection)
    subscription = token_verifier(client.subscription_token, reactor, skip_signature=skip, now=now)
    return Verifiers(connection, subscription)


def token_verifier(
    token: TokenSettings,
    reactor: Any,
    *,
    skip_signature: bool = False,
    now: Callable[[], float] = time.time,
) -> Verifier | None:
    """The verifier that these keys and rules make; ``None`` if no key is given.

    :param reactor: for a set of keys that is fetched from a URL.
    :param skip_signature: ``client.insecure_skip_token_signature_verify``: any signature will do, and no key
        is needed.
    :param now: the time, in seconds since 1970.
    :raises ValueError: a key or a rule cannot be used (``KeyUnusable`` is one), or the URL.
    """
    rules = token_rules(token)
    if skip_signature:
        return _Local(_AnyKeys(), rules, now)
    keys = token_keys(token)
    if token.jwks_public_endpoint:
        return _Fetching(key_source(token.jwks_public_endpoint, reactor), keys, rules, now)
    if token.hmac_secret_key or token.rsa_public_key or token.ecdsa_public_key:
        return _Local(keys, rules, now)
    return None


def token_keys(token: TokenSettings) -> TokenKeys:
    """The keys that stand in the configuration itself.

    :raises KeyUnusable: one of them cannot be used.
    """
    return TokenKeys(
        hmac_secret=token.hmac_secret_key,
        previous_hmac_secret=token.hmac_previous_secret_key,
        previous_hmac_until=token.hmac_previous_secret_key_valid_until or None,
        rsa_public_key=token.rsa_public_key,
        ecdsa_public_key=token.ecdsa_public_key,
    )


def token_rules(token: TokenSettings) -> TokenRules:
    """What is asked of the claims.

    :raises ValueError: a rule cannot be used.
    """
    return TokenRules(
        audience=token.audience,
        audience_regex=token.audience_regex,
        issuer=token.issuer,
        issuer_regex=token.issuer_regex,
        user_id_claim=token.user_id_claim or "sub",
    )


def key_source(endpoint: str, reactor: Any) -> JwksSource:
    """Where the set of keys comes from, ``jwks_public_endpoint``.

    :raises ValueError: it is neither a URL that may be used nor a file.
    """
    if "{{" in endpoint:
        raise ValueError("placeholders ({{...}}) are not filled in; name one key set")
    path = key_source_path(endpoint)
    return FileJwks(path) if path else UrlJwks(endpoint, reactor)


def key_source_path(endpoint: str) -> str:
    """The path of the file that holds the set of keys; "" if it is behind a URL.

    :raises ValueError: it is a ``file:`` URL of another machine.
    """
    if "://" not in endpoint:
        return endpoint
    if not endpoint.lower().startswith("file://"):
        return ""
    parts = urlsplit(endpoint)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise ValueError("a file is a path, or file:///PATH with three slashes")
    return unquote(parts.path)


class _AnyKeys(TokenKeys):
    """For development: every signature is right."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<any keys>"

    def check(self, header: TokenHeader, message: bytes, signature: bytes, now: float) -> float | None:
        return None


class _Local:
    """Verifies with the keys of the configuration."""

    __slots__ = ("_now", "_verifier")

    def __init__(self, keys: TokenKeys, rules: TokenRules, now: Callable[[], float]) -> None:
        self._verifier = TokenVerifier(keys, rules)
        self._now = now

    def __repr__(self) -> str:
        return repr(self._verifier)

    def verify_connection(self, token: str) -> Deferred[ConnectionToken]:
        return execute(self._verifier.verify_connection, token, self._now())

    def verify_subscription(self, token: str) -> Deferred[SubscriptionToken]:
        return execute(self._verifier.verify_subscription, token, self._now())

    def stop(self) -> None:
        """Nothing to stop."""


class _Fetching(JwksVerifier):
    """Verifies with a set of keys, and knows where it comes from."""

    def __init__(
        self, source: JwksSource, keys: TokenKeys, rules: TokenRules, now: Callable[[], float]
    ) -> None:
        super().__init__(source, keys, rules, now)
        self._stop = source.stop

    def stop(self) -> None:
        self._stop()
