"""Which pages may connect from a browser: the check of ``Origin`` (RFC 6454).

A browser lets any page open a WebSocket to any server and sends the user's cookies with it; what it does
tell is where the page came from. A program that is no browser sends no ``Origin``, or any it likes: the
check protects users of browsers and is no authentication.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate

from twisted.logger import Logger
from twisted.web.http import Request

__all__ = ["REFUSALS_SECONDS", "Origins", "RefusedPages", "origin_of"]

REFUSALS_SECONDS = 10.0
"""Refused origins are logged this often at most, however many there are."""

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


class RefusedPages:
    """Tells the log of pages that were refused, and which setting decides.

    :param what: what was refused, in the plural.
    """

    log = Logger("spread.node.edge.origin")

    def __init__(self, what: str) -> None:
        self._what = what
        self._count = 0
        self._logged_at = -REFUSALS_SECONDS

    def add(self, origin: str | None, now: float) -> None:
        """One more.

        :param now: seconds of the reactor's clock.
        """
        self._count += 1
        if now - self._logged_at >= REFUSALS_SECONDS:
            self.log.warn(
                "{count} {what} were refused; the last one came from a page of {origin!r}, which "
                "client.allowed_origins does not allow",
                count=self._count,
                what=self._what,
                origin=(origin or "")[:255],
            )
            self._count = 0
            self._logged_at = now


def origin_of(request: Request) -> str | None:
    """The value of the header; several are one with commas, which no browser sends and no pattern means."""
    values = request.requestHeaders.getRawHeaders(b"origin")
    return ", ".join(value.decode("latin-1") for value in values) if values else None
