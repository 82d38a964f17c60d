"""A corpus of bad tokens, through whole sessions: each ends with the code that the protocol has for it.

connection token    expired: error 109      anything else: the connection ends with 3500
subscription token  expired: error 109      anything else: error 103, but 3500 if it is good and another's
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spread.node.auth.keys import MAX_TOKEN_BYTES, TokenKeys
from spread.node.auth.tokens import TokenVerifier
from spread.node.settings import NamespaceOptions
from tests.fuzz.mutate import chance, mutated
from tests.node.minting import (
    OTHER_RSA_KEY,
    OTHER_SECRET,
    RSA_KEY,
    SECRET,
    b64,
    hs256,
    private_pem,
    public_pem,
    signed,
)
from tests.node.people import NOW, City, Person, namespaces

NOW_SECONDS = int(NOW)
GOOD = {"sub": "ann"}
CHANNEL = "room"
SUBSCRIPTION = {"sub": "ann", "channel": CHANNEL}


class Desk:
    """A city whose keys are an HMAC secret and an RSA key, and whose channels all need tokens."""

    def __init__(self, **keys: Any) -> None:
        self.city = City(namespaces(NamespaceOptions()))
        keys = keys or {"hmac_secret": SECRET, "rsa_public_key": public_pem(RSA_KEY)}
        self.city.tokens._verifier = TokenVerifier(TokenKeys(**keys))

    def connect(self, token: str) -> int:
        """The code of an error or a disconnect; 0: connected."""
        return self._code(self.city.person(), {"connect": {"token": token}})

    def subscribe(self, token: str, channel: str = CHANNEL) -> int:
        """The same for a subscription of the user ann."""
        ann = self.city.guest(token=hs256(GOOD))
        return self._code(ann, {"subscribe": {"channel": channel, "token": token}})

    def _code(self, person: Person, command: dict[str, Any]) -> int:
        person.says({"id": 7, **command})
        self.city.turn()
        told = [reply for reply in person.told if reply.get("id") == 7]
        if person.closed is not None:
            assert told == []
            return person.closed[0]
        code: int = told[0].get("error", {"code": 0})["code"]
        person.leaves()
        return code


def both(claims: dict[str, Any] | str | bytes, header: Any = None, **options: Any) -> tuple[int, int]:
    """The codes of a payload as a connection token, and with a channel as a subscription token."""
    desk = Desk()
    of_channel: Any = claims | SUBSCRIPTION if isinstance(claims, dict) else claims
    return (
        desk.connect(hs256(claims, header=header, **options)),
        desk.subscribe(hs256(of_channel, header=header, **options)),
    )


def test_good_tokens() -> None:
    desk = Desk()
    assert both(GOOD) == (0, 0)
    assert desk.connect(signed(GOOD, "RS256", RSA_KEY)) == 0
    assert desk.subscribe(signed(SUBSCRIPTION, "RS512", RSA_KEY)) == 0


# --- whose signature? ----------------------------------------------------------------------------------


def hmac_of(message: str, key: bytes) -> str:
    return b64(hmac.digest(key, message.encode(), hashlib.sha256))


PEM = public_pem(RSA_KEY)
CONFUSED_KEYS = {
    "the public key as a secret": PEM.encode(),
    "without its last line ending": PEM.strip().encode(),
    "with other line endings": PEM.replace("\n", "\r\n").encode(),
    "its lines alone": "".join(PEM.splitlines()[1:-1]).encode(),
    "nothing": b"",
    "another secret": OTHER_SECRET.encode(),
    "the secret and a space": SECRET.encode() + b" ",
}


@pytest.mark.parametrize("key", CONFUSED_KEYS.values(), ids=list(CONFUSED_KEYS))
@pytest.mark.parametrize("alg", ["HS256", "RS256"])
def test_a_secret_that_is_none(alg: str, key: bytes) -> None:
    assert both(GOOD, {"alg": alg}, secret=key) == (3500, 103)
    # The same where there is nothing but the public key.
    desk = Desk(rsa_public_key=PEM)
    assert desk.connect(hs256(GOOD, key, {"alg": alg})) == 3500


def claims_of(name: str, *values: Any) -> list[dict[str, Any]]:
    """One claim with each of these values."""
    return [{name: value} for value in values]


HEADERS: list[Any] = [
    *claims_of("alg", "none", "None", "NONE", "", "hs256", "HS257", "HS256 ", "ES256", "EdDSA", "PS256"),
    *claims_of("alg", None, 1, True, [], ["HS256"], {}),
    {},
    {"typ": "JWT"},
    {"alg": "HS384"},  # signed with SHA-256
    {"alg": "HS256", "crit": ["exp"], "exp": 1},
    {"alg": "HS256", "b64": False, "crit": ["b64"]},
    '{"alg":"none","alg":"HS256"}',
    '{"alg":"HS256","alg":"HS256"}',
    "",
    "[]",
    "null",
    '"HS256"',
    "not JSON",
    '{"alg":"HS256"',
    '{"alg":"HS256"}x',
    "[" * 3000,
    '{"alg":"HS256","x":' + "[" * 3000 + "]" * 3000 + "}",
]


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: repr(header)[:40])
def test_headers(header: Any) -> None:
    assert both(GOOD, header) == (3500, 103)


@pytest.mark.parametrize("signature", ["", "AA", "x" * 43, "=", "AA==", "é", "A" * 100_000])
@pytest.mark.parametrize("alg", ["none", "HS256", "RS256"])
def test_no_signature(alg: str, signature: str) -> None:
    desk = Desk()
    head = b64(json.dumps({"alg": alg}))
    assert desk.connect(f"{head}.{b64(json.dumps(GOOD))}.{signature}") == 3500
    assert desk.subscribe(f"{head}.{b64(json.dumps(SUBSCRIPTION))}.{signature}") == 103


def test_keys_that_are_swapped() -> None:
    desk = Desk()
    own_key = {"kty": "oct", "k": b64(OTHER_SECRET)}
    for token in (
        signed(GOOD, "RS256", OTHER_RSA_KEY),
        signed(GOOD, "RS256", OTHER_RSA_KEY, jwk=own_key, jku="https://evil.example/keys", kid="x"),
        hs256(GOOD, private_pem(RSA_KEY)),
        hs256(GOOD, OTHER_SECRET, {"alg": "HS256", "jwk": own_key}),
    ):
        assert desk.connect(token) == 3500
    assert desk.connect(signed(GOOD, "RS256", RSA_KEY, jwk=own_key)) == 0, "it is not even read"


# --- what it is made of --------------------------------------------------------------------------------


def test_shapes() -> None:
    good = hs256(GOOD)
    head, payload, signature = good.split(".")
    desk = Desk()
    for token in (
        *(".", "..", "...", "a.b.c", head, f"{head}.{payload}", f"{head}.{payload}.", f"{good}.", f".{good}"),
        *(
            f" {good}",
            f"{good} ",
            f"{good}\n",
            f"{head}.{payload}=.{signature}",
            f"{good}=",
            f"{head}..{signature}",
        ),
        *(f"{head}.{payload}.{signature}.{payload}", f"{head},{payload},{signature}", f"Bearer {good}"),
        *(good.replace(".", ". "), good + "é", good + "\0", good[:-1], good.upper(), good[::-1]),
        *("x" * MAX_TOKEN_BYTES, "." * 60_000, good + "A" * MAX_TOKEN_BYTES, "\ud83d\ude00"),
    ):
        assert desk.connect(token) == 3500, token
        assert desk.subscribe(token) == 103, token


def test_a_huge_payload() -> None:
    assert both({"sub": "ann", "info": "x" * 11_000}) == (0, 0)
    assert both({"sub": "ann", "info": "x" * MAX_TOKEN_BYTES}) == (3500, 103)


PAYLOADS = [
    *("", "ann", "[]", "null", "1", '"ann"', "{", '{"sub":"ann"}{}', "{'sub':'ann'}", "\ufeff{}", "[" * 3000),
    b'{"sub":"\xff"}',
    '{"sub":"ann","channel":"room","sub":"eve"}',
    '{"sub":"ann","channel":"room","exp":1,"exp":99999999999}',
    '{"sub":"ann","channel":"room","\\u0073ub":"ann"}',
    '{"sub":"ann","channel":"room","info":NaN}',
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: repr(payload)[:40])
def test_payloads(payload: str | bytes) -> None:
    assert both(payload) == (3500, 103)


WRONG_TYPES = [
    *claims_of("sub", 1, True, [], {}, 1.5, ["ann"]),
    *claims_of("exp", "1", True, [], {}, 1e300, "now", 10**400),
    *claims_of("nbf", "1", True, [], {}, 1e300, "now", 10**400),
    *claims_of("iat", "1", True, [], {}, 1e300, "now", 10**400),
    *claims_of("expire_at", -1, 1.5, "0", True, [], 10**30),
    *claims_of("iss", 1, [], {}),
    *claims_of("jti", 1, [], {}),
    *claims_of("aud", 1, {}, [1], [None]),
]
OF_CONNECTIONS = [
    *claims_of("channels", "a", [1], {}, [None], [["a"]]),
    *claims_of("subs", [], "a", {"a": 1}, {"a": {"override": 1}}, {"a": {"b64info": "*"}}),
    *claims_of("b64info", 1, "*", "A", "AA", []),
    *claims_of("channel", "room", 1),
]
OF_SUBSCRIPTIONS = [
    *claims_of("channel", 1, ["room"], {}, True),
    *claims_of("client", 1),
    *claims_of("override", [], {"presence": True}, {"presence": {"value": 1}}),
    *claims_of("b64info", 1, "*", "A"),
    *claims_of("b64data", 1, "*", "A"),
]


@pytest.mark.parametrize("claims", WRONG_TYPES, ids=lambda claims: repr(claims)[:40])
def test_claims_of_the_wrong_kind(claims: dict[str, Any]) -> None:
    desk = Desk()
    assert desk.connect(hs256(GOOD | claims)) == 3500
    assert desk.subscribe(hs256(SUBSCRIPTION | claims)) == 103


def test_claims_of_the_wrong_kind_of_one_kind_of_token() -> None:
    desk = Desk()
    for claims in OF_CONNECTIONS:
        assert desk.connect(hs256(GOOD | claims)) == 3500, claims
    for claims in OF_SUBSCRIPTIONS:
        assert desk.subscribe(hs256(SUBSCRIPTION | claims)) == 103, claims


# --- when, and for whom --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "is_expired"),
    [
        ({"exp": NOW_SECONDS - 1}, True),
        ({"exp": NOW_SECONDS}, True),
        ({"exp": NOW_SECONDS + 1}, False),
        ({"exp": NOW_SECONDS - 0.001}, True),
        ({"exp": NOW_SECONDS + 0.001}, False),
        ({"exp": 0}, True),
        ({"exp": -1}, True),
        ({"exp": 1 << 53}, False),
        ({"exp": NOW_SECONDS * 1000}, False),
        ({"nbf": NOW_SECONDS - 1}, False),
        ({"nbf": NOW_SECONDS}, False),
        ({"nbf": NOW_SECONDS + 1}, True),
        ({"nbf": NOW_SECONDS + 0.001}, True),
        ({"nbf": NOW_SECONDS - 0.001}, False),
        ({"nbf": NOW_SECONDS + 5, "exp": NOW_SECONDS + 1}, True),
        ({"exp": NOW_SECONDS - 1, "expire_at": NOW_SECONDS + 99}, True),
        ({"exp": NOW_SECONDS - 1, "expire_at": 0}, True),
        ({"exp": None, "nbf": None}, False),
        ({"iat": NOW_SECONDS + 99}, False),
    ],
)
def test_the_edges_of_time(claims: dict[str, Any], is_expired: bool) -> None:
    expected = 109 if is_expired else 0
    assert both(GOOD | claims) == (expected, expected)


def test_expired_and_something_else_is_invalid() -> None:
    desk = Desk()
    for claims in ({"sub": 1}, {"channel": "room"}, {"b64info": "*"}, {"channels": 1}):
        assert desk.connect(hs256({"exp": 1} | claims)) == 3500, claims
    assert desk.connect(hs256(GOOD | {"exp": 1}, OTHER_SECRET)) == 3500
    assert desk.subscribe(hs256(SUBSCRIPTION | {"exp": 1}, OTHER_SECRET)) == 103
    assert desk.subscribe(hs256({"sub": "ann", "exp": 1})) == 103


def test_tokens_in_each_others_place() -> None:
    desk = Desk()
    assert desk.connect(hs256(SUBSCRIPTION)) == 3500
    assert desk.subscribe(hs256(GOOD)) == 103
    assert desk.subscribe(hs256(SUBSCRIPTION | {"channel": ""})) == 103
    assert desk.connect(hs256(GOOD | {"channel": ""})) == 0, "an empty claim is none"


@pytest.mark.parametrize("claims", [{"sub": "bob"}, {"sub": ""}, {"channel": "other"}, {"client": "another"}])
def test_good_tokens_of_others(claims: dict[str, Any]) -> None:
    assert Desk().subscribe(hs256(SUBSCRIPTION | claims)) == 3500


# --- any change at all ---------------------------------------------------------------------------------


@given(st.integers(0, 1 << 40))
@settings(max_examples=150, deadline=None)
def test_no_changed_token_is_good(seed: int) -> None:
    random = chance(seed, "token", 0)
    good = hs256(GOOD | {"exp": NOW_SECONDS + 60})
    token = mutated(
        random, good.encode(), [hs256(SUBSCRIPTION).encode(), signed(GOOD, "RS256", RSA_KEY).encode()]
    )
    text = token.decode("latin-1")
    if text not in (good, "", hs256(GOOD), signed(GOOD, "RS256", RSA_KEY)):
        assert Desk().connect(text) == 3500, text
