"""Signed tokens and their keys: what is accepted, and the attacks that are not."""

from __future__ import annotations

import json
import pickle
import traceback
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from spread.node.auth.keys import (
    MAX_TOKEN_BYTES,
    KeyUnknown,
    TokenExpired,
    TokenHeader,
    TokenInvalid,
    TokenKeys,
    parts_of,
    sign,
    token_header,
)
from spread.node.auth.keyset import KeyUnusable, parse_key_set
from tests.node.minting import (
    CURVE_KEYS,
    ED_KEY,
    OTHER_RSA_KEY,
    OTHER_SECRET,
    RSA_KEY,
    SECRET,
    b64,
    hs256,
    jwk,
    key_set,
    private_pem,
    public_pem,
    signed,
)

NOW = 1_700_000_000.0
PEM = public_pem(RSA_KEY)
ALL_HMAC = TokenKeys(hmac_secret=SECRET)
EVERYTHING = TokenKeys(
    hmac_secret=SECRET, rsa_public_key=PEM, ecdsa_public_key=public_pem(CURVE_KEYS["ES256"])
)
SET = parse_key_set(
    key_set(
        jwk(RSA_KEY.public_key(), kid="r"),
        jwk(OTHER_RSA_KEY.public_key(), kid="r384", alg="RS384"),
        *(jwk(key.public_key(), kid=alg) for alg, key in CURVE_KEYS.items()),
        jwk(ED_KEY.public_key(), kid="d"),
    )
)
WITH_SET = TokenKeys(hmac_secret=SECRET, key_set=SET)


def accepted(keys: TokenKeys, token: str, now: float = NOW) -> bytes:
    header, message, payload, signature = parts_of(token)
    keys.check(header, message, signature, now)
    return payload


def refusal(keys: TokenKeys, token: str, now: float = NOW) -> str:
    with pytest.raises(TokenInvalid) as caught:
        accepted(keys, token, now)
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    for secret in (SECRET, OTHER_SECRET, *filter(None, token.split("."))):
        assert secret not in text or len(secret) < 8
    assert str(caught.value) == f"the token is invalid: {caught.value.reason}"
    return caught.value.reason


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_hmac(alg: Any) -> None:
    token = signed({"sub": "ann"}, alg, SECRET * 2)
    assert json.loads(accepted(TokenKeys(hmac_secret=SECRET * 2), token)) == {"sub": "ann"}
    assert "signature" in refusal(ALL_HMAC, token)
    ours = sign({"sub": "ann"}, SECRET, alg, kid="k")
    assert accepted(ALL_HMAC, ours) == b'{"sub":"ann"}'
    assert token_header(ours) == TokenHeader(alg, "k")
    assert token_header(ours).is_hmac
    assert token_header(sign({}, SECRET)) == TokenHeader("HS256", None)


@pytest.mark.parametrize("alg", ["RS256", "RS384", "RS512"])
def test_rsa(alg: str) -> None:
    token = signed({"sub": "ann"}, alg, RSA_KEY)
    assert accepted(EVERYTHING, token)
    assert not token_header(token).is_hmac
    assert refusal(EVERYTHING, signed({}, alg, OTHER_RSA_KEY)) == "the signature is wrong"
    assert refusal(ALL_HMAC, token) == f"there is no key for {alg}"
    assert accepted(WITH_SET, signed({}, alg, RSA_KEY, kid="r"))


@pytest.mark.parametrize("alg", ["ES256", "ES384", "ES512"])
def test_ecdsa(alg: str) -> None:
    token = signed({"sub": "ann"}, alg, CURVE_KEYS[alg], kid=alg)
    keys = TokenKeys(ecdsa_public_key=public_pem(CURVE_KEYS[alg]))
    assert accepted(keys, token)
    assert accepted(WITH_SET, token)
    for other in set(CURVE_KEYS) - {alg}:
        assert refusal(keys, signed({}, other, CURVE_KEYS[other])) == f"there is no key for {other}"
        assert refusal(WITH_SET, signed({}, alg, CURVE_KEYS[alg], kid=other)) == f"there is no key for {alg}"
    assert refusal(keys, hs256({})) == "there is no key for HS256"
    message = token.rpartition(".")[0]
    for size in (0, 1, 63, 64, 65, 96, 132):
        assert refusal(keys, f"{message}.{b64(bytes(size))}") == "the signature is wrong"


def test_eddsa_is_for_key_sets() -> None:
    token = signed({"sub": "ann"}, "EdDSA", ED_KEY, kid="d")
    assert accepted(WITH_SET, token)
    assert refusal(EVERYTHING, token) == "there is no key for EdDSA"
    assert refusal(WITH_SET, token.rpartition(".")[0] + "." + b64(bytes(64))) == "the signature is wrong"
    assert refusal(WITH_SET, token.rpartition(".")[0] + ".") == "the signature is wrong"


def test_the_key_set_says_which_key() -> None:
    with pytest.raises(KeyUnknown):
        accepted(WITH_SET, signed({}, "RS256", RSA_KEY, kid="unknown"))
    assert "no kid" in refusal(WITH_SET, signed({}, "RS256", RSA_KEY))
    assert refusal(WITH_SET, signed({}, "RS384", RSA_KEY, kid="r384")) == "the signature is wrong"
    assert accepted(WITH_SET, signed({}, "RS384", OTHER_RSA_KEY, kid="r384"))
    # Rightly signed, but not with the algorithm that the set names for the key.
    assert refusal(WITH_SET, signed({}, "RS256", OTHER_RSA_KEY, kid="r384")) == "there is no key for RS256"
    one = TokenKeys(key_set=parse_key_set(key_set(jwk(RSA_KEY.public_key(), kid="only"))))
    assert accepted(one, signed({}, "RS256", RSA_KEY))
    with pytest.raises(KeyUnknown):
        accepted(one, signed({}, "RS256", RSA_KEY, kid="unknown"))
    # One name for two keys: either may have signed.
    twins = parse_key_set(key_set(*(jwk(k.public_key(), kid="t") for k in (RSA_KEY, OTHER_RSA_KEY))))
    for key in (RSA_KEY, OTHER_RSA_KEY):
        assert accepted(TokenKeys(key_set=twins), signed({}, "RS512", key, kid="t"))


def test_a_key_set_beside_a_secret() -> None:
    assert accepted(WITH_SET, hs256({}))
    # An HMAC token never asks the set, whatever its kid.
    assert accepted(WITH_SET, hs256({}, header={"alg": "HS256", "kid": "r"}))
    assert refusal(TokenKeys(key_set=SET), hs256({})) == "there is no key for HS256"
    joined = TokenKeys(hmac_secret="new", previous_hmac_secret=SECRET).with_key_set(SET)
    assert accepted(joined, hs256({}))
    assert accepted(joined, hs256({}, secret="new"))
    assert accepted(joined, signed({}, "RS256", RSA_KEY, kid="r"))


RSA_DER = b64(b"".join(line.encode() for line in PEM.splitlines()[1:-1]))
N = jwk(RSA_KEY.public_key())["n"]


@pytest.mark.parametrize(
    "secret",
    [PEM, PEM.strip(), PEM.encode(), b64(PEM), RSA_DER, N, "", json.dumps(jwk(RSA_KEY.public_key()))],
)
@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_an_rsa_public_key_is_no_hmac_secret(secret: str | bytes, alg: str) -> None:
    digest = alg.replace("HS", "sha")
    token = hs256({"sub": "admin"}, secret, header={"alg": alg}, digest=digest)
    for keys in (TokenKeys(rsa_public_key=PEM), TokenKeys(key_set=SET)):
        assert refusal(keys, token) == f"there is no key for {alg}"
    for keys in (EVERYTHING, WITH_SET):
        assert refusal(keys, token) == "the signature is wrong"


GOOD = hs256({"sub": "ann"})
HEADER, PAYLOAD, SIGNATURE = GOOD.split(".")


def with_header(header: Any) -> str:
    return hs256({"sub": "ann"}, header=header)


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("", "three parts"),
        (".", "three parts"),
        ("..", "header is not JSON"),
        ("a", "three parts"),
        (f"{HEADER}.{PAYLOAD}", "three parts"),
        (f"{GOOD}.", "three parts"),
        (f"{GOOD}.{SIGNATURE}", "three parts"),
        (f"{HEADER}.{PAYLOAD}.{PAYLOAD}.{SIGNATURE}.{SIGNATURE}", "three parts"),
        (f"{HEADER}..{SIGNATURE}", "signature"),
        (f"{HEADER}.{PAYLOAD}.", "signature"),
        (f".{PAYLOAD}.{SIGNATURE}", "header is not JSON"),
        (f"{GOOD}=", "base64url"),
        (f"{HEADER}=.{PAYLOAD}.{SIGNATURE}", "base64url"),
        (f"{HEADER}.{PAYLOAD}==.{SIGNATURE}", "base64url"),
        (f" {GOOD}", "base64url"),
        (f"{GOOD}\n", "base64url"),
        (f"{HEADER}.{PAYLOAD[:4]}\n{PAYLOAD[4:]}.{SIGNATURE}", "base64url"),
        (f"{HEADER}.{PAYLOAD}.{SIGNATURE[:-1]}", "base64url|signature"),
        (f"{HEADER}.{PAYLOAD}.A", "base64url"),
        # The last two bits of 43 characters stand for nothing: only one of four spellings is taken.
        (f"{HEADER}.{PAYLOAD}.{'A' * 42}B", "base64url"),
        (f"{HEADER}.{PAYLOAD}.{'/+' * 16}", "base64url"),
        (f"{HEADER}.{PAYLOAD}.{'!' * 43}", "base64url"),
        (f"{HEADER}.{PAYLOAD}.{'é' * 43}", "base64url"),
        ("\ud800", "base64url"),
        ("\x00" * 10, "three parts"),
        (f"{HEADER}.{b64('{}')}.{SIGNATURE}", "signature is wrong"),
        (f"{HEADER}.{PAYLOAD}.{b64(bytes(32))}", "signature is wrong"),
        (hs256({"sub": "ann"}, OTHER_SECRET), "signature is wrong"),
        (hs256({"sub": "ann"}, ""), "signature is wrong"),
        (hs256({"sub": "ann"}, digest="sha512"), "signature is wrong"),
        (f"{b64(json.dumps({'alg': 'none'}))}.{PAYLOAD}.", "alg"),
        (with_header({"alg": "none"}), "alg"),
        (with_header({"alg": "None"}), "alg"),
        (with_header({"alg": "hs256"}), "alg"),
        (with_header({"alg": "HS256 "}), "alg"),
        (with_header({"alg": ""}), "alg"),
        (with_header({"alg": "PS256"}), "alg"),
        (with_header({"alg": "ES256K"}), "alg"),
        (with_header({"alg": "ES521"}), "alg"),
        (with_header({"alg": "dir"}), "alg"),
        (with_header({"alg": SECRET}), "alg"),
        (with_header({"alg": None}), "header"),
        (with_header({"alg": ["HS256"]}), "header"),
        (with_header({"alg": 256}), "header"),
        (with_header({"typ": "JWT"}), "header"),
        (with_header("[]"), "header"),
        (with_header('"HS256"'), "header"),
        (with_header("true"), "header"),
        (with_header("null"), "header"),
        (with_header("{"), "header is not JSON"),
        (with_header(b"\xff"), "header is not JSON"),
        (with_header('{"alg":"HS256"}{}'), "header is not JSON"),
        (with_header('{"alg":"none","alg":"HS256"}'), "repeats"),
        (with_header('{"alg":"HS256","\\u0061lg":"none"}'), "repeats"),
        (with_header('{"alg":"HS256","x":NaN}'), "header"),
        (with_header("[" * 9000), "header"),
        (with_header('{"x":' * 1500 + "1" + "}" * 1500), "header"),
        (with_header({"alg": "HS256", "kid": 1}), "header"),
        (with_header({"alg": "HS256", "kid": ["r"]}), "header"),
        (with_header({"alg": "HS256", "crit": ["exp"]}), "extension"),
        (with_header({"alg": "HS256", "crit": []}), "extension"),
        (with_header({"alg": "HS256", "crit": None}), "extension"),
        (with_header({"alg": "HS256", "b64": False}), "extension"),
        (with_header({"alg": "HS256", "b64": False, "crit": ["b64"]}), "extension"),
        (with_header({"alg": "HS256", "b64": True}), "extension"),
        ("a" * (MAX_TOKEN_BYTES + 1), "longer"),
        ("." * (MAX_TOKEN_BYTES + 1), "longer"),
        (hs256({"sub": "a" * MAX_TOKEN_BYTES}), "longer"),
    ],
)
def test_attacks(token: str, says: str) -> None:
    reason = refusal(EVERYTHING, token)
    assert any(word in reason for word in says.split("|")), reason


def test_the_largest_token() -> None:
    token = hs256({"sub": "a" * 12_000})
    spare = MAX_TOKEN_BYTES - len(token)
    token = hs256({"sub": "a" * (12_000 + spare * 3 // 4)})
    assert MAX_TOKEN_BYTES - 2 <= len(token) <= MAX_TOKEN_BYTES
    assert accepted(ALL_HMAC, token)


def test_a_token_does_not_bring_its_own_key() -> None:
    mine = OTHER_RSA_KEY
    for header in (
        {"jwk": jwk(mine.public_key(), kid="r")},
        {"jku": "https://attacker.example/jwks.json"},
        {"x5u": "https://attacker.example/key.pem"},
        {"x5c": ["MIIB"]},
    ):
        token = signed({}, "RS256", mine, kid="r", **header)
        assert refusal(WITH_SET, token) == "the signature is wrong"
        assert refusal(EVERYTHING, token) == "the signature is wrong"


@pytest.mark.parametrize("keys", [EVERYTHING, WITH_SET, TokenKeys()])
def test_any_text(keys: TokenKeys) -> None:
    base64ish = st.text("AZaz09-_.=+/{}\"' \n", max_size=200)
    header = st.sampled_from(["HS256", "RS256", "ES256", "EdDSA", "none"]).map(
        lambda alg: b64(json.dumps({"alg": alg}))
    )

    @given(
        st.text()
        | base64ish
        | st.builds(
            lambda alg, payload, signature: (
                f"{b64(json.dumps({'alg': alg}))}.{b64(payload)}.{b64(signature)}"
            ),
            header,
            st.binary(),
            st.binary() | st.binary(min_size=64, max_size=64) | st.binary(min_size=256, max_size=256),
        )
    )
    def run(token: str) -> None:
        with pytest.raises(TokenInvalid):
            accepted(keys, token)

    run()


def test_rotation() -> None:
    old, new = hs256({}, OTHER_SECRET), hs256({})
    for keys in (
        TokenKeys(hmac_secret=SECRET, previous_hmac_secret=OTHER_SECRET),
        TokenKeys(hmac_secret=SECRET, previous_hmac_secret=OTHER_SECRET, previous_hmac_until=NOW),
    ):
        assert accepted(keys, old)
        assert accepted(keys, new)
        assert refusal(keys, hs256({}, "third")) == "the signature is wrong"
    until = TokenKeys(hmac_secret=SECRET, previous_hmac_secret=OTHER_SECRET, previous_hmac_until=NOW)
    assert refusal(until, old, now=NOW + 0.001) == "the signature is wrong"
    assert accepted(until, new, now=NOW + 1e9)

    def issued_until(token: str) -> float | None:
        header, message, _, signature = parts_of(token)
        return until.check(header, message, signature, NOW)

    assert issued_until(new) is None
    assert issued_until(old) == NOW


@pytest.mark.parametrize(
    ("given_keys", "says"),
    [
        ({"previous_hmac_secret": SECRET}, "without a current"),
        ({"hmac_secret": PEM}, "HMAC secret"),
        ({"hmac_secret": private_pem(RSA_KEY)}, "HMAC secret"),
        ({"hmac_secret": SECRET, "previous_hmac_secret": PEM}, "HMAC secret"),
        ({"rsa_public_key": SECRET}, "not a public key in PEM"),
        ({"rsa_public_key": private_pem(RSA_KEY)}, "not a public key in PEM"),
        ({"rsa_public_key": public_pem(CURVE_KEYS["ES256"])}, "RSA public key is a key of another kind"),
        ({"rsa_public_key": public_pem(ED_KEY)}, "RSA public key is a key of another kind"),
        ({"ecdsa_public_key": PEM}, "ECDSA public key is a key of another kind"),
        ({"rsa_public_key": PEM, "key_set": SET}, "which of them"),
        ({"ecdsa_public_key": public_pem(CURVE_KEYS["ES256"]), "key_set": SET}, "which of them"),
    ],
)
def test_keys_that_cannot_be_used(given_keys: dict[str, Any], says: str) -> None:
    with pytest.raises(KeyUnusable, match=says) as caught:
        TokenKeys(**given_keys)
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    for key in given_keys.values():
        assert not isinstance(key, str) or key.strip() not in text


def test_a_pem_key_that_is_too_weak_is_named() -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.raises(KeyUnusable, match="the RSA public key is an RSA key of 1024 bits"):
        TokenKeys(rsa_public_key=public_pem(weak))


def test_a_key_set_is_not_added_to_pem_keys() -> None:
    with pytest.raises(KeyUnusable, match="which of them"):
        EVERYTHING.with_key_set(SET)


def test_nothing_shows_a_key() -> None:
    keys = TokenKeys(
        hmac_secret=SECRET, previous_hmac_secret=OTHER_SECRET, rsa_public_key=PEM, ecdsa_public_key=""
    )
    assert repr(keys) == str(keys) == "<TokenKeys: hmac, previous hmac, RS256, RS384, RS512>"
    assert repr(WITH_SET) == "<TokenKeys: hmac, key set>"
    assert repr(TokenKeys()) == "<TokenKeys: none>"
    assert not hasattr(keys, "__dict__")
    with pytest.raises(TypeError):
        pickle.dumps(EVERYTHING)


def test_signing_needs_a_secret() -> None:
    for secret in ("", PEM):
        with pytest.raises(KeyUnusable):
            sign({}, secret)


def test_expired_in_words() -> None:
    assert str(TokenExpired("exp")) == "the token has expired"
    assert str(TokenExpired("nbf")) == "the token is not valid yet"
