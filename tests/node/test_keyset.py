"""Public keys and key sets."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, rsa
from hypothesis import given
from hypothesis import strategies as st

from spread.node.auth.keyset import (
    MAX_KEYS,
    MAX_SET_BYTES,
    KeySet,
    KeySetInvalid,
    KeyUnusable,
    PublicKey,
    parse_key_set,
)
from tests.node.minting import CURVE_KEYS, ED_KEY, RSA_KEY, jwk, key_set

RSA_JWK = jwk(RSA_KEY.public_key(), kid="r")
P256_JWK = jwk(CURVE_KEYS["ES256"].public_key(), kid="e")
ED_JWK = jwk(ED_KEY.public_key(), kid="d")


def kids(found: KeySet) -> list[str | None]:
    return [key.kid for key in found.keys]


@pytest.mark.parametrize(
    ("key", "algorithms"),
    [
        (RSA_KEY, {"RS256", "RS384", "RS512"}),
        *((key, {alg}) for alg, key in CURVE_KEYS.items()),
        (ED_KEY, {"EdDSA"}),
    ],
)
def test_a_key_verifies_what_its_kind_allows(key: Any, algorithms: set[str]) -> None:
    public = PublicKey(key.public_key())
    assert public.algorithms == algorithms
    assert repr(public) == f"<PublicKey {' '.join(sorted(algorithms))}>"
    (parsed,) = parse_key_set(key_set(jwk(key.public_key()))).keys
    assert parsed.algorithms == algorithms
    one = min(algorithms)
    (parsed,) = parse_key_set(key_set(jwk(key.public_key(), alg=one, use="sig", key_ops=["verify"]))).keys
    assert parsed.algorithms == {one}


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key(), "1024 bits"),
        (ec.generate_private_key(ec.SECP256K1()).public_key(), "curve"),
        (ed448.Ed448PrivateKey.generate().public_key(), "neither"),
        (dsa.generate_private_key(1024).public_key(), "neither"),
        (RSA_KEY, "neither"),
        (b"secret", "neither"),
        (None, "neither"),
    ],
)
def test_keys_that_are_refused(key: object, says: str) -> None:
    with pytest.raises(KeyUnusable, match=says):
        PublicKey(key)


def test_an_algorithm_that_does_not_fit_the_key() -> None:
    for alg in ("HS256", "ES256", "PS256", "none", ""):
        with pytest.raises(KeyUnusable, match="algorithm"):
            PublicKey(RSA_KEY.public_key(), algorithm=alg)


@pytest.mark.parametrize(
    "bad",
    [
        jwk(RSA_KEY, kid="private"),
        jwk(ED_KEY, kid="private"),
        jwk(CURVE_KEYS["ES256"], kid="private"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "symmetric"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "symmetric", "alg": "HS256"},
        RSA_JWK | {"use": "enc"},
        RSA_JWK | {"key_ops": ["encrypt"]},
        RSA_JWK | {"key_ops": "verify"},
        RSA_JWK | {"alg": "HS256"},
        RSA_JWK | {"alg": "RSA-OAEP"},
        RSA_JWK | {"alg": "PS256"},
        P256_JWK | {"alg": "ES384"},
        {key: value for key, value in RSA_JWK.items() if key != "n"},
        RSA_JWK | {"n": 5},
        RSA_JWK | {"n": "é"},
        RSA_JWK | {"e": "AA"},
        RSA_JWK | {"kid": 7},
        jwk(rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key(), kid="weak"),
        P256_JWK | {"x": P256_JWK["y"]},
        P256_JWK | {"x": "AAAA"},
        P256_JWK | {"crv": "P-384"},
        P256_JWK | {"crv": "secp256k1"},
        ED_JWK | {"crv": "Ed448"},
        ED_JWK | {"crv": "X25519"},
        ED_JWK | {"x": "AAAA"},
        {"kid": "no kind"},
        {"kty": "SPHINX"},
        "a string",
        None,
        [[]],
    ],
)
def test_unusable_keys_are_left_out(bad: Any) -> None:
    assert kids(parse_key_set(key_set(bad, ED_JWK))) == ["d"]
    with pytest.raises(KeySetInvalid, match="none of its 1 keys"):
        parse_key_set(key_set(bad))


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (b"", "not a JSON object"),
        (b"<html>", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b"{}", "not a JSON object"),
        (b'{"keys":{}}', "not a JSON object"),
        (b'{"keys":[' + b"[" * 50_000, "not a JSON object"),
        (b'{"keys":[]}', "none of its 0 keys"),
        (b"\xff\xfe", "not a JSON object"),
        (key_set(*[RSA_JWK] * (MAX_KEYS + 1)), "more than"),
        (key_set(RSA_JWK) + b" " * MAX_SET_BYTES, "larger"),
    ],
)
def test_documents_that_are_no_key_set(document: bytes, says: str) -> None:
    with pytest.raises(KeySetInvalid, match=says):
        parse_key_set(document)


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes(document: bytes) -> None:
    with pytest.raises(KeySetInvalid):
        parse_key_set(document)


def test_which_key_is_meant() -> None:
    several = parse_key_set(key_set(RSA_JWK, P256_JWK, ED_JWK | {"kid": "e"}, jwk(RSA_KEY.public_key())))
    assert repr(several) == "<KeySet of 4>"
    assert several.find("r") == several.keys[:1]
    assert several.find("e") == several.keys[1:3]
    for kid in (None, "", "R", "r "):
        assert several.find(kid) == ()
    one = parse_key_set(key_set(RSA_JWK))
    assert one.find(None) == one.find("r") == one.keys
    assert one.find("other") == ()
    nameless = parse_key_set(key_set(jwk(RSA_KEY.public_key())))
    assert nameless.find(None) == nameless.find("any") == nameless.keys
    assert KeySet(()).find(None) == ()
