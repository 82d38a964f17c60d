"""``spread token``: connection and subscription tokens, for trying things out and for scripts.

A token is a JWT (RFC 7519) signed with HMAC-SHA256. The secret is the server's; it is read from a file, a
configuration file or the environment, never from the command line, which others on the machine can see.
No Twisted.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["SECRET_VARIABLE", "SecretError", "secret_from", "signed_token"]

SECRET_VARIABLE = "SPREAD_CLIENT_TOKEN_HMAC_SECRET_KEY"
FILE_MAX_BYTES = 1 << 20

_PATH = ("client", "token", "hmac_secret_key")


class SecretError(Exception):
    """There is no secret; the text says where one was looked for."""


def signed_token(
    secret: bytes, *, user: str, channel: str = "", info: Any = None, issued_at: int, ttl_seconds: int
) -> str:
    """A token for a connection, or with ``channel`` for a subscription.

    :param ttl_seconds: how long it is good for; 0: for ever.
    :param info: JSON that others are shown; None: nothing.
    """
    claims: dict[str, Any] = {"sub": user, "iat": issued_at}
    if ttl_seconds:
        claims["exp"] = issued_at + ttl_seconds
    if channel:
        claims["channel"] = channel
    if info is not None:
        claims["info"] = info
    message = f"{_part({'alg': 'HS256', 'typ': 'JWT'})}.{_part(claims)}"
    signature = hmac.digest(secret, message.encode(), hashlib.sha256)
    return f"{message}.{_base64(signature)}"


def secret_from(
    environment: Mapping[str, str], *, secret_file: Path | None = None, config: Path | None = None
) -> bytes:
    """The secret: of the file, else of the configuration, else of the environment.

    :raises SecretError: there is none, or what was named cannot be read.
    """
    if secret_file is not None:
        # The file's last newline is an editor's, not the secret's.
        secret = _read(secret_file).removesuffix(b"\n").removesuffix(b"\r")
        if not secret:
            raise SecretError(f"{secret_file} is empty")
        return secret
    if config is not None:
        return _configured(config)
    secret = environment.get(SECRET_VARIABLE, "").encode()
    if not secret:
        raise SecretError(f"no secret: set {SECRET_VARIABLE}, or give --config FILE or --secret-file FILE")
    return secret


def _configured(path: Path) -> bytes:
    text = _read(path)
    try:
        value: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text.decode())
    except ValueError as error:
        raise SecretError(f"{path}: {error}") from None
    for name in _PATH:
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, str) or not value:
        raise SecretError(f"{path} has no {'.'.join(_PATH)}")
    return value.encode()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise SecretError(f"{path}: {error.strerror}") from None
    if len(data) > FILE_MAX_BYTES:
        raise SecretError(f"{path} is above {FILE_MAX_BYTES} bytes")
    return data


def _part(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
