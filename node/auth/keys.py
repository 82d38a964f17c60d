"""Signed tokens (JWS compact form, RFC 7515) and the keys they are verified with.

Promises:

1.  *The configuration chooses the key, never the token.* ``alg`` is looked up in a fixed table, and each
    family of it has its own keys: an HMAC check is given nothing but an HMAC secret. ``none``, ``crit``,
    ``b64`` and an ``alg`` without a configured key are refused; ``jku``, ``jwk`` and ``x5u`` are not read.
2.  *Nothing of a payload is read before its signature is verified*, and nothing of a token above
    ``MAX_TOKEN_BYTES``.
3.  *Nothing tells a key*: no repr, no error, no log line. Reasons of errors hold no text from the token.

What the claims mean is the matter of ``spread.node.auth.tokens``. No Twisted, no I/O and no clock.

    TokenError
    ├── TokenExpired            exp has come, or nbf has not
    └── TokenInvalid            anything else, with a reason
        └── KeyUnknown          its kid is not in the key set; a newer key set may have it
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import HMACAlgorithm
from jwt.exceptions import InvalidKeyError
from msgspec import Raw, Struct

from spread.node.auth.keyset import ECDSA, PUBLIC, RSA, KeySet, KeyUnusable, PublicKey

__all__ = [
    "MAX_TOKEN_BYTES",
    "KeyUnknown",
    "TokenError",
    "TokenExpired",
    "TokenHeader",
    "TokenInvalid",
    "TokenKeys",
    "check_object",
    "decoded",
    "parts_of",
    "sign",
    "token_header",
]

MAX_TOKEN_BYTES = 16384
"""A longer token is refused unread. Browsers and proxies give up on headers of half that."""

_HMAC: dict[str, HMACAlgorithm] = {
    "HS256": HMACAlgorithm(HMACAlgorithm.SHA256),
    "HS384": HMACAlgorithm(HMACAlgorithm.SHA384),
    "HS512": HMACAlgorithm(HMACAlgorithm.SHA512),
}


class TokenError(Exception):
    """A token that cannot be used."""


class TokenExpired(TokenError):
    """Nothing is wrong with the token but the time."""

    def __init__(self, claim: Literal["exp", "nbf"]) -> None:
        super().__init__(claim)
        self.claim = claim

    def __str__(self) -> str:
        return "the token has expired" if self.claim == "exp" else "the token is not valid yet"


class TokenInvalid(TokenError):
    """The token is no token of ours. ``reason`` is for logs: it holds nothing of the token or a key."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the token is invalid: {self.reason}"


class KeyUnknown(TokenInvalid):
    """The key set has no key with the token's ``kid``; perhaps it is newer than the set."""

    def __init__(self) -> None:
        super().__init__("its key is not in the key set")


class TokenKeys:
    """The keys that tokens are verified with. Each kind is on its own: what is not given is not accepted.

    :param hmac_secret: for HS256, HS384 and HS512.
    :param previous_hmac_secret: also accepted, while a new secret is being introduced.
    :param previous_hmac_until: seconds since 1970; after it the previous secret is not accepted any more,
        nor, before it, a token that says (``iat``) that it was issued later. The time of the shard decides,
        since whoever has the old secret can write any ``iat``.
    :param rsa_public_key: PEM, for RS256, RS384 and RS512.
    :param ecdsa_public_key: PEM, for ES256, ES384 or ES512 as its curve says.
    :param key_set: for all RS, ES and EdDSA. It excludes the two before.
    :raises KeyUnusable: one of them cannot be used.
    """

    __slots__ = ("_key_set", "_pem", "_previous_secret", "_previous_until", "_secret")

    def __init__(
        self,
        *,
        hmac_secret: str = "",
        previous_hmac_secret: str = "",
        previous_hmac_until: float | None = None,
        rsa_public_key: str = "",
        ecdsa_public_key: str = "",
        key_set: KeySet | None = None,
    ) -> None:
        if previous_hmac_secret and not hmac_secret:
            raise KeyUnusable("a previous HMAC secret without a current one")
        if key_set is not None and (rsa_public_key or ecdsa_public_key):
            raise KeyUnusable("a key set and a PEM key: which of them decides is not clear")
        self._secret = _hmac_secret(hmac_secret) if hmac_secret else None
        self._previous_secret = _hmac_secret(previous_hmac_secret) if previous_hmac_secret else None
        self._previous_until = previous_hmac_until
        self._pem: dict[str, PublicKey] = {}
        for name, pem, family in (("RSA", rsa_public_key, RSA), ("ECDSA", ecdsa_public_key, ECDSA)):
            if pem:
                key = _pem_key(name, pem)
                if not key.algorithms <= family.keys():
                    raise KeyUnusable(f"the {name} public key is a key of another kind")
                self._pem.update(dict.fromkeys(key.algorithms, key))
        self._key_set = key_set

    def __repr__(self) -> str:
        kinds = ["hmac"] if self._secret else []
        kinds += ["previous hmac"] if self._previous_secret else []
        kinds += sorted(self._pem)
        kinds += ["key set"] if self._key_set is not None else []
        return f"<TokenKeys: {', '.join(kinds) or 'none'}>"

    def with_key_set(self, key_set: KeySet) -> TokenKeys:
        """The same HMAC secrets with this key set.

        :raises KeyUnusable: there are PEM keys.
        """
        if self._pem:
            raise KeyUnusable("a key set and a PEM key: which of them decides is not clear")
        keys = TokenKeys(key_set=key_set)
        keys._secret = self._secret
        keys._previous_secret = self._previous_secret
        keys._previous_until = self._previous_until
        return keys

    def check(self, header: TokenHeader, message: bytes, signature: bytes, now: float) -> float | None:
        """Verify a signature.

        :returns: the latest ``iat`` that the key may have signed; None if that does not matter.
        :raises TokenInvalid: the signature is wrong, or no key is meant for the header.
        :raises KeyUnknown: another key set may have the key.
        """
        alg = header.alg
        if alg in _HMAC:
            return self._check_hmac(alg, message, signature, now)
        if self._key_set is not None:
            keys = self._key_set.find(header.kid)
            if not keys and header.kid is not None:
                raise KeyUnknown
            if not keys:
                raise TokenInvalid("it has no kid, and the key set has several keys")
        else:
            keys = (self._pem[alg],) if alg in self._pem else ()
        keys = tuple(key for key in keys if alg in key.algorithms)
        if not keys:
            raise TokenInvalid(f"there is no key for {alg}")
        if not any(key.signed(alg, message, signature) for key in keys):
            raise TokenInvalid("the signature is wrong")
        return None

    def _check_hmac(self, alg: str, message: bytes, signature: bytes, now: float) -> float | None:
        algorithm = _HMAC[alg]
        if self._secret is None:
            raise TokenInvalid(f"there is no key for {alg}")
        if algorithm.verify(message, self._secret, signature):
            return None
        until = self._previous_until
        if (
            self._previous_secret is None
            or (until is not None and now > until)
            or not algorithm.verify(message, self._previous_secret, signature)
        ):
            raise TokenInvalid("the signature is wrong")
        return until


class TokenHeader(Struct, frozen=True):
    """The part of a token that says which key to use."""

    alg: str
    kid: str | None = None

    @property
    def is_hmac(self) -> bool:
        """A shared secret, not a public key, verifies it."""
        return self.alg in _HMAC


class _Header(Struct):
    alg: str
    kid: str | None = None
    crit: Raw = Raw()
    b64: Raw = Raw()


def token_header(token: str) -> TokenHeader:
    """The header of a token, which nothing vouches for.

    :raises TokenInvalid: it is not a signed token of a supported algorithm.
    """
    return parts_of(token)[0]


def sign(
    claims: Mapping[str, object],
    secret: str,
    algorithm: Literal["HS256", "HS384", "HS512"] = "HS256",
    *,
    kid: str | None = None,
) -> str:
    """A token with these claims, signed with an HMAC secret.

    :raises KeyUnusable: the secret is empty or looks like a public key.
    """
    header = {"alg": algorithm, "typ": "JWT"} | ({"kid": kid} if kid is not None else {})
    message = _base64url(msgspec.json.encode(header)) + b"." + _base64url(msgspec.json.encode(claims))
    signature = _HMAC[algorithm].sign(message, _hmac_secret(secret))
    return (message + b"." + _base64url(signature)).decode()


def parts_of(token: str) -> tuple[TokenHeader, bytes, bytes, bytes]:
    """Header, signed message, payload and signature of a token; only the header is read.

    :raises TokenInvalid: it is not a signed token of a supported algorithm.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenInvalid(f"it is longer than {MAX_TOKEN_BYTES} bytes")
    try:
        segments = token.encode("ascii").split(b".")
    except UnicodeEncodeError:
        raise TokenInvalid("it is not base64url") from None
    if len(segments) != 3:
        raise TokenInvalid("it has not three parts")
    data, payload, signature = (_unbase64url(segment) for segment in segments)
    check_object(data, "header")
    header = decoded(data, _Header, "the header is not that of a token")
    if header.alg not in _HMAC and header.alg not in PUBLIC:
        raise TokenInvalid("its alg is not supported")
    # RFC 7515: extensions named in crit must be understood, and we understand none. RFC 7797's b64 changes
    # what is signed.
    if bytes(header.crit) or bytes(header.b64):
        raise TokenInvalid("its header has an extension that is not supported")
    return TokenHeader(header.alg, header.kid), segments[0] + b"." + segments[1], payload, signature


def check_object(data: bytes, name: str) -> None:
    """Refuse what is not a JSON object in UTF-8 that has each of its names once.

    RFC 7519 lets a reader take the last of several, but another reader may have taken the first.

    :param name: what it is, for the reason.
    :raises TokenInvalid: it is none.
    """
    try:
        # The hook is called for the outermost object last, so that its answer is the one that remains.
        once = json.loads(data.decode(), object_pairs_hook=lambda pairs: len(dict(pairs)) == len(pairs))
    except (ValueError, RecursionError):
        raise TokenInvalid(f"the {name} is not JSON") from None
    if once is not True:
        raise TokenInvalid(f"the {name} is not a JSON object, or repeats a name")


def decoded(data: bytes, kind: Any, reason: str) -> Any:
    """A JSON value of this kind.

    :raises TokenInvalid: it is none, with the reason given.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError):
        raise TokenInvalid(reason) from None


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _unbase64url(segment: bytes) -> bytes:
    """Bytes of the one base64url text that stands for them: no padding, no other alphabet, no spare bits."""
    try:
        data = base64.urlsafe_b64decode(segment + b"=" * (-len(segment) % 4))
    except binascii.Error:
        data = b""
    if _base64url(data) != segment:
        raise TokenInvalid("it is not base64url")
    return data


def _hmac_secret(secret: str) -> bytes:
    """The secret as bytes. PyJWT refuses what looks like a public key: such a secret is no secret."""
    try:
        return _HMAC["HS256"].prepare_key(secret)
    except InvalidKeyError:
        raise KeyUnusable("the HMAC secret is empty, or is a key of another kind") from None


def _pem_key(name: str, pem: str) -> PublicKey:
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise KeyUnusable(f"the {name} public key is not a public key in PEM") from None
    try:
        return PublicKey(key)
    except KeyUnusable as error:
        raise KeyUnusable(f"the {name} public key is {error}") from None
