"""Public keys, and sets of them (JWKS, RFC 7517). No Twisted and no I/O.

A key verifies what its kind allows and nothing else: an RSA key the RS algorithms, a curve its one ES
algorithm. Keys that are weak, private, symmetric or meant for something else are refused; in a set they are
left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import Algorithm, ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import PyJWTError
from msgspec import UNSET, Raw, Struct, UnsetType

__all__ = [
    "ECDSA",
    "EDDSA",
    "MAX_KEYS",
    "MAX_SET_BYTES",
    "PUBLIC",
    "RSA",
    "KeySet",
    "KeySetInvalid",
    "KeyUnusable",
    "PublicKey",
    "parse_key_set",
]

MAX_SET_BYTES = 65536
MAX_KEYS = 64

RSA_BITS = range(2048, 8193)
"""Below, RFC 7518 forbids it; above, one verification takes milliseconds of the whole shard."""

RSA: dict[str, Algorithm] = {
    "RS256": RSAAlgorithm(RSAAlgorithm.SHA256),
    "RS384": RSAAlgorithm(RSAAlgorithm.SHA384),
    "RS512": RSAAlgorithm(RSAAlgorithm.SHA512),
}
ECDSA: dict[str, Algorithm] = {
    "ES256": ECAlgorithm(ECAlgorithm.SHA256),
    "ES384": ECAlgorithm(ECAlgorithm.SHA384),
    "ES512": ECAlgorithm(ECAlgorithm.SHA512),
}
EDDSA: dict[str, Algorithm] = {"EdDSA": OKPAlgorithm()}
PUBLIC: dict[str, Algorithm] = {**RSA, **ECDSA, **EDDSA}

_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
"""RFC 7518 ties each ES algorithm to one curve."""


class KeyUnusable(ValueError):
    """A configured key cannot be used; the message says which and why, and nothing of the key."""


class KeySetInvalid(Exception):
    """A document is no usable key set. ``reason`` holds nothing of it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PublicKey:
    """A public key, and the algorithms it may verify.

    :param kid: its name in a key set.
    :param algorithm: the only algorithm, if the key set says so; otherwise all that fit the key.
    :raises KeyUnusable: a kind, curve or size that is not accepted, or one that does not fit the algorithm.
    """

    __slots__ = ("_key", "algorithms", "kid")

    def __init__(self, key: object, *, kid: str | None = None, algorithm: str | None = None) -> None:
        if isinstance(key, RSAPublicKey):
            if key.key_size not in RSA_BITS:
                raise KeyUnusable(f"an RSA key of {key.key_size} bits (2048 to 8192 are accepted)")
            algorithms = frozenset(RSA)
        elif isinstance(key, EllipticCurvePublicKey):
            if key.curve.name not in _CURVES:
                raise KeyUnusable("an ECDSA key on a curve other than P-256, P-384 and P-521")
            algorithms = frozenset({_CURVES[key.curve.name]})
        elif isinstance(key, Ed25519PublicKey):
            algorithms = frozenset(EDDSA)
        else:
            raise KeyUnusable("neither an RSA nor an ECDSA nor an Ed25519 public key")
        if algorithm is not None:
            algorithms &= {algorithm}
            if not algorithms:
                raise KeyUnusable("an algorithm that is not supported, or not with this key")
        self.kid = kid
        self.algorithms = algorithms
        self._key = key

    def __repr__(self) -> str:
        return f"<PublicKey {' '.join(sorted(self.algorithms))}>"

    def signed(self, alg: str, message: bytes, signature: bytes) -> bool:
        """Whether the signature is this key's, by ``alg``, which must be one of ``algorithms``."""
        return PUBLIC[alg].verify(message, self._key, signature)


class KeySet:
    """The public keys of an issuer, by ``kid``."""

    __slots__ = ("keys",)

    def __init__(self, keys: Sequence[PublicKey]) -> None:
        self.keys = tuple(keys)

    def __repr__(self) -> str:
        return f"<KeySet of {len(self.keys)}>"

    def find(self, kid: str | None) -> tuple[PublicKey, ...]:
        """The keys that a token with this ``kid`` may be signed with; several may share a name.

        Only a set of one key leaves no doubt which is meant by a token without ``kid``; and a key without
        ``kid`` is only ever meant when it is the only one.
        """
        if len(self.keys) == 1 and (kid is None or self.keys[0].kid is None):
            return self.keys
        return tuple(key for key in self.keys if kid is not None and key.kid == kid)


class _Jwk(Struct):
    kty: str
    kid: str | None = None
    use: str | None = None
    key_ops: list[str] | None = None
    alg: str | None = None
    crv: str | None = None
    n: str | None = None
    e: str | None = None
    x: str | None = None
    y: str | None = None
    d: Raw | UnsetType = UNSET


class _Jwks(Struct):
    keys: list[Raw]


_KINDS: dict[str, tuple[Callable[[dict[str, Any]], Any], tuple[str, ...]]] = {
    "RSA": (RSAAlgorithm.from_jwk, ("kty", "n", "e")),
    "EC": (ECAlgorithm.from_jwk, ("kty", "crv", "x", "y")),
    "OKP": (OKPAlgorithm.from_jwk, ("kty", "crv", "x")),
}
"""By ``kty``: what makes a key, and the members it is made of. No symmetric keys: what is published is no
secret."""


def parse_key_set(document: bytes) -> KeySet:
    """The usable keys of a JWKS document. Those that are for something else, private or broken are left out.

    :raises KeySetInvalid: it is none, is above the bounds, or has no usable key.
    """
    if len(document) > MAX_SET_BYTES:
        raise KeySetInvalid(f"it is larger than {MAX_SET_BYTES} bytes")
    try:
        entries = msgspec.json.decode(document, type=_Jwks).keys
    except (msgspec.DecodeError, RecursionError):
        raise KeySetInvalid("it is not a JSON object with keys") from None
    if len(entries) > MAX_KEYS:
        raise KeySetInvalid(f"it has more than {MAX_KEYS} keys")
    keys = [key for key in map(_usable_key, entries) if key is not None]
    if not keys:
        raise KeySetInvalid(f"none of its {len(entries)} keys is usable")
    return KeySet(keys)


def _usable_key(entry: Raw) -> PublicKey | None:
    try:
        jwk = msgspec.json.decode(entry, type=_Jwk)
    except (msgspec.DecodeError, RecursionError):
        return None
    if jwk.kty not in _KINDS or jwk.d is not UNSET or jwk.use not in (None, "sig"):
        return None
    if jwk.key_ops is not None and "verify" not in jwk.key_ops:
        return None
    make, names = _KINDS[jwk.kty]
    members = {name: getattr(jwk, name) for name in names}
    try:
        return PublicKey(make(members), kid=jwk.kid, algorithm=jwk.alg)
    except (KeyUnusable, PyJWTError, UnsupportedAlgorithm, ValueError, TypeError):
        return None
