"""Who verifies tokens, by the settings; how they verify is the matter of the tests of tokens and key sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from spread.node.auth.jwks import FileJwks, JwksUnavailable, UrlJwks
from spread.node.auth.keys import TokenExpired, TokenInvalid
from spread.node.auth.keyset import KeyUnusable
from spread.node.auth.verifiers import Verifier, key_source, token_verifier, token_verifiers
from spread.node.settings import ClientSettings, SubscriptionTokenSettings, TokenSettings
from tests.node.minting import (
    CURVE_KEYS,
    OTHER_SECRET,
    RSA_KEY,
    SECRET,
    hs256,
    jwk,
    key_set,
    private_pem,
    public_pem,
    signed,
)

NOW = 1_700_000_000.0
HMAC = TokenSettings(hmac_secret_key=SECRET)


def result(deferred: Deferred[Any]) -> Any:
    """What a Deferred that must have fired has fired with; failures are raised."""
    results: list[Any] = []
    failures: list[Any] = []
    deferred.addCallbacks(results.append, failures.append)
    if failures:
        failures[0].raiseException()
    return results[0]


def verifier(token: TokenSettings, **options: Any) -> Verifier:
    made = token_verifier(token, Clock(), now=lambda: NOW, **options)
    assert made is not None
    return made


def test_without_a_key_there_is_none() -> None:
    assert token_verifier(TokenSettings(audience="game", user_id_claim="uid"), Clock()) is None


def test_an_hmac_secret() -> None:
    made = verifier(HMAC)
    assert result(made.verify_connection(hs256({"sub": "17"}))).user == "17"
    assert result(made.verify_subscription(hs256({"sub": "17", "channel": "a"}))).channel == "a"
    with pytest.raises(TokenInvalid):
        result(made.verify_connection(hs256({"sub": "17"}, OTHER_SECRET)))
    with pytest.raises(TokenExpired):
        result(made.verify_subscription(hs256({"channel": "a", "exp": NOW - 1})))
    made.stop()


def test_the_previous_secret_until_its_end() -> None:
    old = hs256({"sub": "17"}, OTHER_SECRET)
    for until, is_good in ((0, True), (int(NOW) + 1, True), (int(NOW) - 1, False)):
        made = verifier(
            TokenSettings(
                hmac_secret_key=SECRET,
                hmac_previous_secret_key=OTHER_SECRET,
                hmac_previous_secret_key_valid_until=until,
            )
        )
        if is_good:
            assert result(made.verify_connection(old)).user == "17"
        else:
            with pytest.raises(TokenInvalid):
                result(made.verify_connection(old))


def test_pem_keys() -> None:
    made = verifier(
        TokenSettings(rsa_public_key=public_pem(RSA_KEY), ecdsa_public_key=public_pem(CURVE_KEYS["ES256"]))
    )
    assert result(made.verify_connection(signed({"sub": "1"}, "RS256", RSA_KEY))).user == "1"
    assert result(made.verify_connection(signed({"sub": "2"}, "ES256", CURVE_KEYS["ES256"]))).user == "2"


def test_rules() -> None:
    made = verifier(
        TokenSettings(
            hmac_secret_key=SECRET, audience="game", issuer_regex="^https://id", user_id_claim="uid"
        )
    )
    claims = {"uid": "17", "aud": "game", "iss": "https://id.example"}
    assert result(made.verify_connection(hs256(claims))).user == "17"
    with pytest.raises(TokenInvalid):
        result(made.verify_connection(hs256({**claims, "aud": "other"})))
    with pytest.raises(TokenInvalid):
        result(made.verify_connection(hs256({**claims, "iss": "x"})))


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}", "FILE://{}"])
def test_a_key_set_in_a_file(tmp_path: Path, form: str) -> None:
    file = tmp_path / "keys of ours.json"
    file.write_bytes(key_set(jwk(RSA_KEY.public_key(), kid="a")))
    path = str(file) if form == "{}" else str(file).replace(" ", "%20")
    made = verifier(TokenSettings(jwks_public_endpoint=form.format(path), hmac_secret_key=SECRET))
    assert result(made.verify_connection(signed({"sub": "1"}, "RS256", RSA_KEY, kid="a"))).user == "1"
    assert result(made.verify_connection(hs256({"sub": "2"}))).user == "2"
    made.stop()


def test_a_key_set_behind_a_url_is_stopped() -> None:
    made = verifier(TokenSettings(jwks_public_endpoint="https://id.example/keys"))
    made.stop()
    with pytest.raises(JwksUnavailable):
        result(made.verify_connection(signed({"sub": "1"}, "RS256", RSA_KEY, kid="a")))


def test_where_key_sets_come_from() -> None:
    assert isinstance(key_source("https://id.example/keys", None), UrlJwks)
    assert isinstance(key_source("http://127.0.0.1:1/keys", None), UrlJwks)
    assert isinstance(key_source("keys.json", None), FileJwks)


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("http://id.example/keys", "use https"),
        ("ftp://id.example/keys", "neither https nor http"),
        ("https://id.example/{{realm}}/keys", "placeholders"),
        ("file://elsewhere/keys", "three slashes"),
        ("file://", "three slashes"),
    ],
)
def test_a_key_set_from_nowhere(endpoint: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        token_verifier(TokenSettings(jwks_public_endpoint=endpoint), Clock())


@pytest.mark.parametrize(
    "token",
    [
        TokenSettings(rsa_public_key="nothing of the kind"),
        TokenSettings(rsa_public_key=public_pem(CURVE_KEYS["ES256"])),
        TokenSettings(ecdsa_public_key=private_pem(CURVE_KEYS["ES256"])),
        TokenSettings(hmac_previous_secret_key=SECRET),
        TokenSettings(hmac_secret_key=public_pem(RSA_KEY)),
        TokenSettings(jwks_public_endpoint="keys.json", rsa_public_key=public_pem(RSA_KEY)),
    ],
)
def test_keys_that_cannot_be_used(token: TokenSettings) -> None:
    with pytest.raises(KeyUnusable):
        token_verifier(token, Clock())


def test_any_signature_will_do_for_development() -> None:
    made = verifier(TokenSettings(audience="game"), skip_signature=True)
    assert result(made.verify_connection(hs256({"sub": "17", "aud": "game"}, "wrong"))).user == "17"
    with pytest.raises(TokenInvalid):
        result(made.verify_connection(hs256({"sub": "17"})))
    with pytest.raises(TokenExpired):
        result(made.verify_connection(hs256({"sub": "17", "aud": "game", "exp": NOW - 1})))
    assert "any keys" in repr(made)


def test_both_kinds_of_tokens_have_one_verifier_unless_told_otherwise() -> None:
    verifiers = token_verifiers(ClientSettings(token=HMAC), Clock())
    assert verifiers.connection is verifiers.subscription is not None
    other = SubscriptionTokenSettings(enabled=True, hmac_secret_key=OTHER_SECRET)
    verifiers = token_verifiers(ClientSettings(token=HMAC, subscription_token=other), Clock())
    assert verifiers.connection is not None and verifiers.subscription is not None
    assert result(verifiers.connection.verify_connection(hs256({"sub": "1"}))).user == "1"
    token = hs256({"sub": "1", "channel": "a"}, OTHER_SECRET)
    assert result(verifiers.subscription.verify_subscription(token)).channel == "a"
    with pytest.raises(TokenInvalid):
        result(verifiers.connection.verify_subscription(token))
    verifiers.stop()


def test_own_keys_of_subscriptions_may_be_none() -> None:
    client = ClientSettings(token=HMAC, subscription_token=SubscriptionTokenSettings(enabled=True))
    verifiers = token_verifiers(client, Clock())
    assert verifiers.connection is not None and verifiers.subscription is None
    verifiers.stop()
    client = ClientSettings(insecure_skip_token_signature_verify=True)
    assert None not in token_verifiers(client, Clock())


def test_nothing_tells_a_secret() -> None:
    made = verifier(HMAC)
    assert SECRET not in repr(made) + repr(HMAC) + repr(ClientSettings(token=HMAC))
