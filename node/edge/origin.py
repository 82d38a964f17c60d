"""Which pages may connect from a browser: the check of ``Origin`` (RFC 6454).

A browser lets any page open a WebSocket to any server and sends the user's cookies with it; what it does
tell is where the page came from. A program that is no browser sends no ``Origin``, or any it likes: the
check protects users of browsers and is no authentication.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate

from twisted.web.http import Request

__all__ = ["Origins", "origin_of"]

MAX_LENGTH = 1024
"""Characters of the longest origin that is looked at: a host has at most 253."""


class Origins:
    """``client.allowed_origins``.

    :param patterns: such as ``https://*.example.com``; ``*`` is any number of characters, dots included,
        ``?`` one, ``[ab]`` one of them. ``*`` alone allows every page. Compared in lower case.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        patterns = [pattern.strip().lower() for pattern in patterns]
        self._allows_all = "*" in patterns
        self._pattern = re.compile("|".join(map(translate, patterns))) if patterns else None

    def allows(self, origin: str | None) -> bool:
        """Whether a client of this origin may connect; ``None`` is a client that is no browser."""
        if origin is None or self._allows_all:
            return True
        if self._pattern is None or len(origin) > MAX_LENGTH:
            return False
        return self._pattern.match(origin.lower()) is not None


def origin_of(request: Request) -> str | None:
    """The value of the header; several are one with commas, which no browser sends and no pattern means."""
    values = request.requestHeaders.getRawHeaders(b"origin")
    return ", ".join(value.decode("latin-1") for value in values) if values else None
