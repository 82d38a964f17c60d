"""What tokens say: their claims, their time, and what is refused."""

from __future__ import annotations

import json
import traceback
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spread.node.auth.keys import TokenExpired, TokenInvalid, TokenKeys, sign
from spread.node.auth.tokens import (
    Overrides,
    SubscriptionOptions,
    SubscriptionToken,
    TokenRules,
    TokenVerifier,
)
from tests.node.minting import OTHER_SECRET, RSA_KEY, SECRET, hs256, public_pem, signed

NOW = 1_700_000_000
KEYS = TokenKeys(hmac_secret=SECRET)
VERIFIER = TokenVerifier(KEYS)


def connection(claims: Any, now: float = NOW) -> Any:
    return VERIFIER.verify_connection(hs256(claims), now)


def subscription(claims: Any, now: float = NOW) -> SubscriptionToken:
    return VERIFIER.verify_subscription(hs256(claims), now)


def verified(claims: Any, **rules: str) -> Any:
    """A connection token, or if it has a channel, a subscription token."""
    verifier = TokenVerifier(KEYS, TokenRules(**rules))
    has_channel = "channel" in claims if isinstance(claims, dict) else '"channel"' in str(claims)
    return (verifier.verify_subscription if has_channel else verifier.verify_connection)(hs256(claims), NOW)


def reason(claims: Any, **rules: str) -> str:
    """Why a token is refused."""
    with pytest.raises(TokenInvalid) as caught:
        verified(claims, **rules)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return caught.value.reason


def test_a_connection_token() -> None:
    token = connection(
        '{"sub": "ann", "exp": 1700003600, "iat": 1699999999, "jti": "t1", "aud": "x", "iss": "y", "nbf": 1,'
        '"info": {"name" : "Ann\\u00e9\\/", "n":\n[1.10, 1e5, 123456789012345678901234567890]},'
        '"b64info": "AP8=", "channels": ["a", "b"], "meta": {"a" : 1}, "unknown": [true],'
        '"subs": {"news": {"info": {"x":  1}, "b64info": "aGk=", "data": "d d", "b64data": "aG8=",'
        '"override": {"presence": {"value": true}, "join_leave": {"value": false}, "force_recovery": {},'
        '"force_positioning": null, "future": {"value": 5}}}, "plain": {}}}'
    )
    assert token.user == "ann"
    assert token.expire_at == 1700003600
    assert token.issued_at == 1699999999
    assert token.token_id == "t1"
    # As it was written, numbers and escapes included, but for the white space outside of strings.
    assert token.info == b'{"name":"Ann\\u00e9\\/","n":[1.10,1e5,123456789012345678901234567890]}'
    assert token.b64info == b"\x00\xff"
    assert token.meta == b'{"a":1}'
    assert token.channels == ("a", "b")
    assert token.subs == token.subscriptions
    assert token.subs == {
        "news": SubscriptionOptions(
            info=b'{"x":1}',
            b64info=b"hi",
            data=b'"d d"',
            b64data=b"ho",
            overrides=Overrides(presence=True, join_leave=False, force_recovery=False),
        ),
        "plain": SubscriptionOptions(),
    }
    with pytest.raises(AttributeError):
        token.user = "eve"


def test_the_least_connection_token() -> None:
    for claims in ({}, {"iat": NOW}, {"sub": ""}, {"channel": ""}):
        token = connection(claims)
        assert (token.user, token.expire_at, token.info, token.b64info, token.meta) == (
            "",
            None,
            None,
            None,
            None,
        )
        assert token.subscriptions == {}
    nothing = dict.fromkeys(
        [
            "sub",
            "exp",
            "nbf",
            "iat",
            "aud",
            "iss",
            "jti",
            "channel",
            "expire_at",
            "b64info",
            "channels",
            "subs",
        ]
    )
    assert connection(nothing) == connection({})
    assert connection({"info": None, "meta": None}).info == b"null"
    assert connection({"channels": ["a"]}).subscriptions == {"a": SubscriptionOptions()}
    assert connection({"channels": ["a"], "subs": {}}).subscriptions == {"a": SubscriptionOptions()}
    assert connection({"b64info": ""}).b64info is None


def test_a_subscription_token() -> None:
    token = subscription(
        {"sub": "ann", "channel": "$news:1", "client": "c-1", "exp": NOW + 60, "iat": NOW - 1.5, "jti": "t2"}
        | {"info": {"a": [1, 2]}, "b64info": "AA==", "data": None, "b64data": "AQ==", "meta": 5}
        | {"override": {"force_push_join_leave": {"value": True}, "force_positioning": {"value": True}}}
    )
    assert token == SubscriptionToken(
        user="ann",
        channel="$news:1",
        client="c-1",
        expire_at=NOW + 60,
        issued_at=NOW - 1.5,
        token_id="t2",
        info=b'{"a":[1,2]}',
        b64info=b"\x00",
        data=b"null",
        b64data=b"\x01",
        overrides=Overrides(force_push_join_leave=True, force_positioning=True),
    )
    assert subscription({"channel": "a"}) == SubscriptionToken(user="", channel="a")


def test_one_kind_is_not_the_other() -> None:
    with pytest.raises(TokenInvalid, match="it is a subscription token"):
        connection({"sub": "ann", "channel": "a"})
    for claims in ({"sub": "ann"}, {"channel": ""}, {"channel": None}):
        with pytest.raises(TokenInvalid, match="not a subscription token"):
            subscription(claims)


@pytest.mark.parametrize(
    ("claims", "now", "expired"),
    [
        ({"exp": NOW}, NOW - 1, None),
        ({"exp": NOW}, NOW - 0.001, None),
        ({"exp": NOW}, NOW, "exp"),
        ({"exp": NOW}, NOW + 1, "exp"),
        ({"exp": NOW + 0.5}, NOW + 0.25, None),
        ({"exp": NOW + 0.5}, NOW + 0.5, "exp"),
        ({"exp": 0}, NOW, "exp"),
        ({"exp": -1}, NOW, "exp"),
        ({"exp": 1e15}, NOW, None),
        ({"nbf": NOW}, NOW - 1, "nbf"),
        ({"nbf": NOW}, NOW - 0.001, "nbf"),
        ({"nbf": NOW}, NOW, None),
        ({"nbf": NOW}, NOW + 1, None),
        ({"nbf": NOW + 0.5}, NOW, "nbf"),
        ({"nbf": NOW + 2, "exp": NOW + 1}, NOW, "nbf"),
        ({"nbf": NOW + 2, "exp": NOW - 1}, NOW, "exp"),
        ({"exp": NOW, "expire_at": NOW + 99}, NOW, "exp"),
        ({"exp": NOW, "expire_at": 0}, NOW, "exp"),
        ({"iat": NOW + 99}, NOW, None),
    ],
)
def test_time_to_the_second(claims: dict[str, Any], now: float, expired: str | None) -> None:
    verifications: list[Any] = [
        lambda: connection(claims, now),
        lambda: subscription(claims | {"channel": "a"}, now),
    ]
    for verify in verifications:
        if expired is None:
            assert verify()
            continue
        with pytest.raises(TokenExpired) as caught:
            verify()
        assert caught.value.claim == expired


@pytest.mark.parametrize(
    ("claims", "expire_at"),
    [
        ({}, None),
        ({"exp": NOW + 9}, NOW + 9),
        ({"exp": NOW + 9.99}, NOW + 9),
        ({"exp": NOW + 9, "expire_at": NOW + 99}, NOW + 99),
        ({"exp": NOW + 9, "expire_at": NOW - 99}, NOW - 99),
        ({"exp": NOW + 9, "expire_at": 0}, None),
        ({"exp": NOW + 9, "expire_at": None}, NOW + 9),
        ({"expire_at": NOW + 99}, NOW + 99),
    ],
)
def test_expire_at_stands_in_for_exp(claims: dict[str, Any], expire_at: int | None) -> None:
    assert connection(claims).expire_at == expire_at
    assert subscription(claims | {"channel": "a"}).expire_at == expire_at


BIG = "9" * 5000


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        *((f'{{"sub":{value}}}', "sub") for value in ("1", "true", "[]", "{}", '["ann"]', "1.5")),
        *(
            (f'{{"{claim}":{value}}}', claim)
            for claim in ("exp", "nbf", "iat")
            for value in ('"1700000001"', "true", "[]", "{}", "1e30", "-1e30", "9007199254740993", "9" * 30)
        ),
        *(
            (f'{{"{claim}":{value}}}', "wrong kind|not JSON")
            for claim in ("exp", "nbf", "iat", "expire_at")
            for value in ("NaN", "Infinity", "-Infinity", "1e400", "01", "+1", ".5", "0x10", BIG)
        ),
        *(
            (f'{{"expire_at":{value}}}', "expire_at")
            for value in ("-1", "1.5", '"0"', "true", "9007199254740993", "9" * 30)
        ),
        *((f'{{"aud":{value}}}', "aud") for value in ("1", "{}", "[1]", "[null]", "[[]]")),
        *(
            (f'{{"{claim}":{value}}}', claim)
            for claim in ("iss", "jti", "b64info")
            for value in ("1", "[]", "{}")
        ),
        *((f'{{"channels":{value}}}', "channels") for value in ('"a"', "[1]", "{}", '{"a":1}', "[null]")),
        *((f'{{"subs":{value}}}', "subs") for value in ('["a"]', '{"a":1}', '{"a":null}', '{"a":[]}')),
        *(
            (f'{{"subs":{{"a":{value}}}}}', "wrong kind")
            for value in ('{"override":1}', '{"override":{"presence":true}}', '{"b64data":1}')
        ),
        ('{"subs":{"a":{"override":{"presence":{"value":1}}}}}', "value"),
        ('{"channel":1}', "channel"),
        ('{"channel":["a"]}', "channel"),
        ('{"channel":"a","client":7}', "client"),
        ('{"channel":"a","override":[]}', "override"),
        ('{"channel":"a","b64data":[]}', "b64data"),
        ('{"channel":"a","b64data":"A"}', "b64data is not base64"),
        ('{"b64info":"A"}', "b64info is not base64"),
        ('{"b64info":"AA"}', "b64info is not base64"),
        ('{"b64info":"A-8="}', "b64info is not base64"),
        ('{"b64info":"A A="}', "b64info is not base64"),
        ('{"b64info":"é"}', "b64info is not base64"),
        ('{"subs":{"a":{"b64info":"A"}}}', "b64info is not base64"),
        ("", "payload is not JSON"),
        ("ann", "payload is not JSON"),
        ("{", "payload is not JSON"),
        ("{}{}", "payload is not JSON"),
        ("{'sub':'ann'}", "payload is not JSON"),
        ('{"sub":"ann",}', "payload is not JSON"),
        (b'{"sub":"\xff"}', "payload is not JSON"),
        (b'{"info":"\xff"}', "payload is not JSON"),
        ("\ufeff{}", "payload is not JSON"),
        ('{"sub":"a\nb"}', "payload is not JSON"),
        ('{"sub":"\\ud800"}', "payload is not JSON"),
        ('{"info":NaN}', "payload is not JSON"),
        ("[" * 9000, "payload is not JSON"),
        ('{"info":' + "[" * 4000 + "]" * 4000 + "}", "payload is not JSON"),
        ("[]", "not a JSON object"),
        ('"ann"', "not a JSON object"),
        ("null", "not a JSON object"),
        ("1", "not a JSON object"),
        ('[{"sub":"ann"}]', "not a JSON object"),
        ('{"sub":"ann","sub":"eve"}', "repeats a name"),
        ('{"sub":"ann","\\u0073ub":"eve"}', "repeats a name"),
        ('{"exp":1,"exp":9999999999}', "repeats a name"),
    ],
)
def test_payloads_that_are_refused(payload: str | bytes, says: str) -> None:
    why = reason(payload)
    assert any(word in why for word in says.split("|")), why


def test_json_that_is_nested_deeply_passes_or_is_refused() -> None:
    outcomes = set()
    for depth in (100, *range(300, 1100, 10)):
        info = "[" * depth + "]" * depth
        try:
            outcomes.add(connection(f'{{"info":{info}}}').info == info.encode())
        except TokenInvalid:
            outcomes.add(None)
    assert outcomes == {True, None}


def test_names_may_repeat_where_they_are_not_ours() -> None:
    assert connection('{"info":{"a":1,"a":2}}').info == b'{"a":1,"a":2}'


def test_expired_is_said_of_good_tokens_only() -> None:
    for token in (
        hs256({"exp": 1}, OTHER_SECRET),
        hs256({"exp": 1, "sub": 5}),
        hs256({"exp": 1, "channel": "a"}),
        hs256({"exp": 1, "b64info": "A"}),
        hs256({"exp": 1, "subs": {"a": {"b64data": "A"}}}),
    ):
        with pytest.raises(TokenInvalid):
            VERIFIER.verify_connection(token, NOW)
    with pytest.raises(TokenInvalid):
        VERIFIER.verify_subscription(hs256({"exp": 1}), NOW)
    with pytest.raises(TokenInvalid):
        verified({"exp": 1, "aud": "other"}, audience="game")


@pytest.mark.parametrize(
    ("aud", "rules", "good"),
    [
        ("game", {"audience": "game"}, True),
        (["web", "game"], {"audience": "game"}, True),
        ("games", {"audience": "game"}, False),
        ("Game", {"audience": "game"}, False),
        (["web"], {"audience": "game"}, False),
        ([], {"audience": "game"}, False),
        (None, {"audience": "game"}, False),
        ("", {"audience": "game"}, False),
        ("game-7", {"audience_regex": "^game-[0-9]$"}, True),
        (["web", "game-7"], {"audience_regex": "^game-[0-9]$"}, True),
        ("game-7\n", {"audience_regex": "^game-[0-9]$"}, False),
        ("my game-77", {"audience_regex": "^game-[0-9]$"}, False),
        ("my game-77", {"audience_regex": "game-[0-9]"}, True),
        (None, {"audience_regex": ".*"}, False),
        ("any", {}, True),
    ],
)
def test_audience(aud: Any, rules: dict[str, str], good: bool) -> None:
    for claims in ({"aud": aud}, {"aud": aud, "channel": "a"}):
        if good:
            assert verified(claims, **rules)
        else:
            assert reason(claims, **rules) == "it is for another audience"


@pytest.mark.parametrize(
    ("iss", "rules", "good"),
    [
        ("https://id", {"issuer": "https://id"}, True),
        ("https://id/", {"issuer": "https://id"}, False),
        (None, {"issuer": "https://id"}, False),
        ("https://id/realm", {"issuer_regex": "^https://id/(?P<realm>[a-z]+)$"}, True),
        ("https://id/realm\n", {"issuer_regex": "^https://id/(?P<realm>[a-z]+)$"}, False),
        ("https://evil/?https://id/realm", {"issuer_regex": "^https://id/(?P<realm>[a-z]+)$"}, False),
        (None, {"issuer_regex": ".*"}, False),
        ("any", {}, True),
    ],
)
def test_issuer(iss: Any, rules: dict[str, str], good: bool) -> None:
    for claims in ({"iss": iss}, {"iss": iss, "channel": "a"}):
        if good:
            assert verified(claims, **rules)
        else:
            assert reason(claims, **rules) == "it is of another issuer"


def test_the_claim_of_the_user() -> None:
    claims = {"sub": "ann", "player": "p-7"}
    assert connection(claims).user == "ann"
    assert verified(claims, user_id_claim="player").user == "p-7"
    assert verified(claims | {"channel": "a"}, user_id_claim="player").user == "p-7"
    assert verified({"sub": "ann"}, user_id_claim="player").user == ""
    assert verified({"sub": "ann", "player": None}, user_id_claim="player").user == ""
    values: tuple[object, ...] = (7, True, ["p"], {})
    for value in values:
        assert "user id" in reason({"player": value}, user_id_claim="player")
    assert "sub" in reason({"sub": 7, "player": "p"}, user_id_claim="player")


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"audience": "a", "audience_regex": "a"}, "audience and audience_regex"),
        ({"issuer": "a", "issuer_regex": "a"}, "issuer and issuer_regex"),
        ({"audience_regex": "("}, "audience_regex is no regular expression"),
        ({"issuer_regex": "["}, "issuer_regex is no regular expression"),
        ({"user_id_claim": ""}, "user_id_claim"),
    ],
)
def test_rules_that_cannot_be(rules: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TokenRules(**rules)


def test_rotation_ends_by_the_clock_and_by_iat() -> None:
    until = NOW + 100
    keys = TokenKeys(hmac_secret=SECRET, previous_hmac_secret=OTHER_SECRET, previous_hmac_until=until)
    verifier = TokenVerifier(keys)

    def user(claims: dict[str, Any], now: float, secret: str = OTHER_SECRET) -> str:
        return verifier.verify_connection(hs256({"sub": "ann"} | claims, secret), now).user

    for claims in ({}, {"iat": NOW}, {"iat": until}):
        assert user(claims, NOW) == user(claims, until) == "ann"
        with pytest.raises(TokenInvalid, match="signature"):
            user(claims, until + 1)
    with pytest.raises(TokenInvalid, match="previous secret"):
        user({"iat": until + 1}, NOW)
    assert user({"iat": until + 1}, until + 1, SECRET) == "ann"
    # Without an end, both are good at any time.
    forever = TokenVerifier(TokenKeys(hmac_secret=SECRET, previous_hmac_secret=OTHER_SECRET))
    assert forever.verify_connection(hs256({"iat": NOW * 2}, OTHER_SECRET), NOW * 3).user == ""


def test_the_tokens_of_the_javascript_suite() -> None:
    verifier = TokenVerifier(TokenKeys(hmac_secret="secret"))
    assert verifier.verify_connection(hs256({"iat": NOW}, "secret"), NOW).user == ""
    assert (
        verifier.verify_subscription(hs256({"iat": NOW, "channel": "test1"}, "secret"), NOW).channel
        == "test1"
    )


def test_our_own_tokens() -> None:
    token = sign({"sub": "ann", "info": msgspec.Raw(b'{"a":1.0}'), "exp": NOW + 1}, SECRET, "HS512")
    assert VERIFIER.verify_connection(token, NOW).info == b'{"a":1.0}'


def test_with_a_public_key() -> None:
    verifier = TokenVerifier(TokenKeys(rsa_public_key=public_pem(RSA_KEY)))
    assert verifier.verify_connection(signed({"sub": "ann"}, "RS256", RSA_KEY), NOW).user == "ann"
    assert repr(verifier) == "<TokenVerifier <TokenKeys: RS256, RS384, RS512>>"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CLAIMS = st.sampled_from(
    [
        "sub",
        "exp",
        "nbf",
        "iat",
        "aud",
        "iss",
        "channel",
        "client",
        "expire_at",
        "info",
        "b64info",
        "channels",
        "subs",
        "meta",
        "data",
        "b64data",
        "override",
        "other",
    ]
)


@given(st.dictionaries(CLAIMS, JSON, max_size=6).map(json.dumps) | st.text())
def test_any_rightly_signed_payload(payload: str) -> None:
    token = hs256(payload)
    for verify in (VERIFIER.verify_connection, VERIFIER.verify_subscription):
        try:
            good = verify(token, NOW)
        except (TokenInvalid, TokenExpired):
            continue
        assert isinstance(good.user, str)
        for text in (good.info, getattr(good, "meta", None), getattr(good, "data", None)):
            assert text is None or b"\n" not in text
            assert text is None or json.loads(text) is not ...


@given(st.text())
def test_any_text(token: str) -> None:
    for verify in (VERIFIER.verify_connection, VERIFIER.verify_subscription):
        with pytest.raises(TokenInvalid):
            verify(token, NOW)
