"""Tokens: who a client is and what it may hear, signed by the team's own backend (JWT, RFC 7519).

A *connection token* says who connects; a *subscription token* lets its bearer into one channel. The
difference is the ``channel`` claim: one that has it is no connection token, one without is no
subscription token. Signatures and keys are the matter of ``spread.node.auth.keys``.

Promises:

1.  *Expired means: otherwise good.* ``TokenExpired`` is raised only for a token that nothing else is wrong
    with, since the client is then told to get a new one and come back.
2.  *No leeway.* A token is good at ``nbf`` and no more at ``exp``; both may have fractions of a second.
3.  *JSON passes as it is.* Claims that are handed on keep their text, without white space.

Unknown claims are not read, and ``null`` is the same as an absent claim, but for those handed on as JSON.
No Twisted, no I/O and no clock: the time is an argument, in seconds since 1970.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from spread.node.auth.keys import (
    TokenExpired,
    TokenInvalid,
    TokenKeys,
    check_object,
    decoded,
    parts_of,
)

__all__ = [
    "ConnectionToken",
    "Overrides",
    "SubscriptionOptions",
    "SubscriptionToken",
    "TokenRules",
    "TokenVerifier",
]


class Overrides(Struct, frozen=True, kw_only=True):
    """Options of a channel that a token sets for its bearer; None leaves the channel's own."""

    presence: bool | None = None
    join_leave: bool | None = None
    force_push_join_leave: bool | None = None
    force_recovery: bool | None = None
    force_positioning: bool | None = None


class SubscriptionOptions(Struct, frozen=True, kw_only=True):
    """What a token says of one subscription. ``b64info`` and ``b64data``, if any, stand in for the others."""

    info: bytes | None = None
    """JSON shown to others as ``chan_info``: the text of the claim, without white space."""
    b64info: bytes | None = None
    """The same as bytes, decoded."""
    data: bytes | None = None
    """JSON for the subscribe result."""
    b64data: bytes | None = None
    overrides: Overrides = Overrides()


class SubscriptionToken(SubscriptionOptions, frozen=True, kw_only=True):
    """A verified subscription token."""

    channel: str
    user: str
    """Must equal the connection's user; empty for an anonymous one."""
    client: str = ""
    """If not empty: must equal the connection's client id."""
    expire_at: int | None = None
    """When the subscription expires, in seconds since 1970; None: never."""
    issued_at: float | None = None
    token_id: str = ""


class ConnectionToken(Struct, frozen=True, kw_only=True):
    """A verified connection token."""

    user: str
    """Empty for an anonymous connection."""
    expire_at: int | None = None
    """When the connection expires, in seconds since 1970; None: never."""
    info: bytes | None = None
    """JSON shown to others as ``conn_info``: the text of the claim, without white space."""
    b64info: bytes | None = None
    """Stands in for ``info``: bytes, decoded."""
    channels: tuple[str, ...] = ()
    subs: dict[str, SubscriptionOptions] = {}
    meta: bytes | None = None
    """JSON that never leaves the server."""
    issued_at: float | None = None
    token_id: str = ""

    @property
    def subscriptions(self) -> Mapping[str, SubscriptionOptions]:
        """The server-side subscriptions: ``subs``, or if there are none, ``channels``."""
        return self.subs or {channel: SubscriptionOptions() for channel in self.channels}


class TokenRules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked of the claims besides their time. An empty rule asks nothing.

    The regular expressions are searched for, so that a whole match needs ``^`` and ``$``.

    :raises ValueError: both forms of one rule are given, or a regular expression is none.
    """

    audience: str = ""
    audience_regex: str = ""
    issuer: str = ""
    issuer_regex: str = ""
    user_id_claim: str = "sub"
    """The claim, a string, that names the user."""

    def __post_init__(self) -> None:
        for name, exact, pattern in (
            ("audience", self.audience, self.audience_regex),
            ("issuer", self.issuer, self.issuer_regex),
        ):
            if exact and pattern:
                raise ValueError(f"{name} and {name}_regex exclude each other")
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{name}_regex is no regular expression: {error}") from None
        if not self.user_id_claim:
            raise ValueError("user_id_claim is empty")


_SECONDS = 1 << 53
"""Beyond, a float cannot count seconds; year 285 million."""
_Time = (
    Annotated[int, Meta(ge=-_SECONDS, le=_SECONDS)]
    | Annotated[float, Meta(ge=-float(_SECONDS), le=float(_SECONDS))]
    | None
)


class _Switch(Struct):
    value: bool = False


class _OverrideClaims(Struct):
    presence: _Switch | None = None
    join_leave: _Switch | None = None
    force_push_join_leave: _Switch | None = None
    force_recovery: _Switch | None = None
    force_positioning: _Switch | None = None


class _OptionClaims(Struct):
    info: Raw = Raw()
    b64info: str | None = None
    data: Raw = Raw()
    b64data: str | None = None
    override: _OverrideClaims | None = None


class _Claims(Struct):
    sub: str | None = None
    exp: _Time = None
    nbf: _Time = None
    iat: _Time = None
    aud: str | list[str] | None = None
    iss: str | None = None
    jti: str | None = None
    channel: str | None = None
    expire_at: Annotated[int, Meta(ge=0, le=_SECONDS)] | None = None


class _ConnectionClaims(_Claims):
    info: Raw = Raw()
    b64info: str | None = None
    channels: list[str] | None = None
    subs: dict[str, _OptionClaims] | None = None
    meta: Raw = Raw()


class _SubscriptionClaims(_Claims):
    client: str | None = None


_Decoded = TypeVar("_Decoded")
_ClaimsT = TypeVar("_ClaimsT", bound=_Claims)


class TokenVerifier:
    """Verifies tokens with one set of keys and rules."""

    def __init__(self, keys: TokenKeys, rules: TokenRules | None = None) -> None:
        self._keys = keys
        self._rules = rules = rules or TokenRules()
        self._audience = re.compile(rules.audience_regex) if rules.audience_regex else None
        self._issuer = re.compile(rules.issuer_regex) if rules.issuer_regex else None

    def __repr__(self) -> str:
        return f"<TokenVerifier {self._keys!r}>"

    def verify_connection(self, token: str, now: float) -> ConnectionToken:
        """What a connection token says.

        :param now: seconds since 1970.
        :raises TokenExpired: its time is over, or has not come.
        :raises TokenInvalid: anything else.
        """
        payload, issued_until = self._signed(token, now)
        claims = self._claims(payload, _ConnectionClaims, issued_until)
        if claims.channel:
            raise TokenInvalid("it has a channel: it is a subscription token")
        verified = ConnectionToken(
            user=self._user(claims, payload),
            expire_at=_expire_at(claims),
            info=_compact(claims.info),
            b64info=_unbase64(claims.b64info, "b64info"),
            channels=tuple(claims.channels or ()),
            subs={
                channel: SubscriptionOptions(**_options(sub)) for channel, sub in (claims.subs or {}).items()
            },
            meta=_compact(claims.meta),
            issued_at=claims.iat,
            token_id=claims.jti or "",
        )
        _check_time(claims, now)
        return verified

    def verify_subscription(self, token: str, now: float) -> SubscriptionToken:
        """What a subscription token says. That it is for this user, client and channel is left to check.

        :param now: seconds since 1970.
        :raises TokenExpired: its time is over, or has not come.
        :raises TokenInvalid: anything else.
        """
        payload, issued_until = self._signed(token, now)
        claims = self._claims(payload, _SubscriptionClaims, issued_until)
        if not claims.channel:
            raise TokenInvalid("it has no channel: it is not a subscription token")
        verified = SubscriptionToken(
            channel=claims.channel,
            user=self._user(claims, payload),
            client=claims.client or "",
            expire_at=_expire_at(claims),
            issued_at=claims.iat,
            token_id=claims.jti or "",
            **_options(_claims_of(payload, _OptionClaims)),
        )
        _check_time(claims, now)
        return verified

    def _signed(self, token: str, now: float) -> tuple[bytes, float | None]:
        """The payload of a token whose signature is right, and the latest ``iat`` it may have."""
        header, message, payload, signature = parts_of(token)
        return payload, self._keys.check(header, message, signature, now)

    def _claims(self, payload: bytes, kind: type[_ClaimsT], issued_until: float | None) -> _ClaimsT:
        check_object(payload, "payload")
        claims = _claims_of(payload, kind)
        if issued_until is not None and claims.iat is not None and claims.iat > issued_until:
            raise TokenInvalid("it was issued with the previous secret after the end of that")
        rules = self._rules
        audiences = [claims.aud] if isinstance(claims.aud, str) else claims.aud or []
        if rules.audience and rules.audience not in audiences:
            raise TokenInvalid("it is for another audience")
        if self._audience and not any(_matches(self._audience, audience) for audience in audiences):
            raise TokenInvalid("it is for another audience")
        if rules.issuer and rules.issuer != claims.iss:
            raise TokenInvalid("it is of another issuer")
        if self._issuer and (claims.iss is None or not _matches(self._issuer, claims.iss)):
            raise TokenInvalid("it is of another issuer")
        return claims

    def _user(self, claims: _Claims, payload: bytes) -> str:
        claim = self._rules.user_id_claim
        if claim == "sub":
            return claims.sub or ""
        value = decoded(payload, dict[str, Raw], "the payload is not a JSON object").get(claim)
        if value is None:
            return ""
        return decoded(bytes(value), str | None, "the claim of the user id is not a string") or ""


def _claims_of(payload: bytes, kind: type[_Decoded]) -> _Decoded:
    try:
        return msgspec.json.decode(payload, type=kind)
    except msgspec.ValidationError as error:
        # It names the claim and the types, never a value.
        raise TokenInvalid(f"a claim is of the wrong kind: {error}") from None
    except (msgspec.DecodeError, RecursionError):
        raise TokenInvalid("the payload is not JSON") from None


def _check_time(claims: _Claims, now: float) -> None:
    if claims.exp is not None and claims.exp <= now:
        raise TokenExpired("exp")
    if claims.nbf is not None and claims.nbf > now:
        raise TokenExpired("nbf")


def _expire_at(claims: _Claims) -> int | None:
    if claims.expire_at is not None:
        return claims.expire_at or None
    return None if claims.exp is None else int(claims.exp)


def _options(claims: _OptionClaims) -> dict[str, Any]:
    """Arguments for a ``SubscriptionOptions``."""
    override = claims.override or _OverrideClaims()
    switches = {name: getattr(override, name) for name in override.__struct_fields__}
    return {
        "info": _compact(claims.info),
        "b64info": _unbase64(claims.b64info, "b64info"),
        "data": _compact(claims.data),
        "b64data": _unbase64(claims.b64data, "b64data"),
        "overrides": Overrides(**{name: switch.value for name, switch in switches.items() if switch}),
    }


def _compact(claim: Raw) -> bytes | None:
    """The text of a claim without white space, since a line ending would end a frame of the protocol."""
    # Its nesting is no danger: check_object has gone as deep, from further down the stack.
    text = bytes(claim)
    return msgspec.json.format(text, indent=-1) if text else None


def _matches(pattern: re.Pattern[str], text: str) -> bool:
    # Python's $ also matches before a last line ending.
    return "\n" not in text and pattern.search(text) is not None


def _unbase64(text: str | None, name: str) -> bytes | None:
    """Bytes of a claim in ordinary, padded base64; None for an absent or empty one."""
    if not text:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise TokenInvalid(f"{name} is not base64") from None
