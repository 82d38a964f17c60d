"""Tokens and keys for tests, good and bad, made without the code under test."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

SECRET = "the-secret-of-the-tests-0123456789abcdef"
OTHER_SECRET = "a-secret-before-it-0123456789abcdefghijk"

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CURVE_KEYS = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
}
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def public_pem(key: Any) -> str:
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


def private_pem(key: Any) -> str:
    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem.decode()


def jwk(key: Any, **members: Any) -> dict[str, Any]:
    """A private or public key as a member of a key set."""
    kinds = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}
    name = "RSA" if "RSA" in type(key).__name__ else "OKP" if "Ed25519" in type(key).__name__ else "EC"
    made: dict[str, Any] = dict(kinds[name].to_jwk(key, as_dict=True))  # type: ignore[attr-defined]
    made.pop("key_ops", None)
    return made | members


def key_set(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


def b64(data: bytes | str) -> str:
    return base64.urlsafe_b64encode(data.encode() if isinstance(data, str) else data).rstrip(b"=").decode()


def hs256(
    payload: bytes | str | dict[str, Any],
    secret: str | bytes = SECRET,
    header: Any = None,
    digest: str = "sha256",
) -> str:
    """A rightly signed token of any header and payload, text of broken JSON included."""
    header = {"alg": "HS256"} if header is None else header
    header = json.dumps(header) if isinstance(header, dict) else header
    payload = json.dumps(payload) if isinstance(payload, dict) else payload
    message = f"{b64(header)}.{b64(payload)}"
    key = secret.encode() if isinstance(secret, str) else secret
    return f"{message}.{b64(hmac.digest(key, message.encode(), getattr(hashlib, digest)))}"


def signed(claims: dict[str, Any], alg: str, key: Any, **header: Any) -> str:
    """A token signed by PyJWT."""
    return jwt.encode(claims, key, algorithm=alg, headers=header)
