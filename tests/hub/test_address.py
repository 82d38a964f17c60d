"""What ``--hub`` may say, and what is said about what it may not; never with the password."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import FrozenInstanceError, replace
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spread.hub.address import HubAddress, parse_hub_address
from spread.hub.errors import HubMisconfigured

SECRET = "hunter2"
H = (("h", 6379),)
SENTINELS = (("h1", 26379), ("h2", 7))

GOOD = {
    "embedded:": HubAddress("embedded"),
    "EMBEDDED://": HubAddress("embedded"),
    "memory:": HubAddress("memory"),
    "redis://h": HubAddress("redis", H),
    "Redis://h/": HubAddress("redis", H),
    "redis://h:1/0": HubAddress("redis", (("h", 1),), db=0),
    "redis://127.0.0.1:65535/65535": HubAddress("redis", (("127.0.0.1", 65535),), db=65535),
    "redis://[::1]": HubAddress("redis", (("::1", 6379),)),
    "redis://[fe80::1]:7": HubAddress("redis", (("fe80::1", 7),)),
    "redis://u:p@h": HubAddress("redis", H, username="u", password="p"),
    "redis://:p@[::1]:7/3": HubAddress("redis", (("::1", 7),), db=3, password="p"),
    "redis://:@h": HubAddress("redis", H, password=""),
    "redis://u%3A:p%40%2F%3F%23%25%20@h": HubAddress("redis", H, username="u:", password="p@/?#% "),
    "redis://:a@b:c@h": HubAddress("redis", H, password="a@b:c"),
    "rediss://h": HubAddress("rediss", H),
    "redis+unix:///run/r.sock": HubAddress("redis+unix", path="/run/r.sock"),
    "redis+unix:///a%20b@c?db=2": HubAddress("redis+unix", path="/a b@c", db=2),
    "redis+unix:///s?username=u&password=p%26@&db=": HubAddress(
        "redis+unix", path="/s", username="u", password="p&@"
    ),
    "redis+unix://u:p@/s": HubAddress("redis+unix", path="/s", username="u", password="p"),
    "redis+unix:///" + "s" * 106: HubAddress("redis+unix", path="/" + "s" * 106),
    "redis+sentinel://h1,h2:7/name": HubAddress("redis+sentinel", SENTINELS, service="name"),
    "redis+sentinel://u:p@h1,h2:7/na%20me/5?sentinel_username=su&sentinel_password=s@p": HubAddress(
        "redis+sentinel",
        SENTINELS,
        service="na me",
        db=5,
        username="u",
        password="p",
        sentinel_username="su",
        sentinel_password="s@p",
    ),
    "rediss+sentinel://[::1]:5,h/name": HubAddress(
        "rediss+sentinel", (("::1", 5), ("h", 26379)), service="name"
    ),
    "redis+cluster://h": HubAddress("redis+cluster", H),
    "redis+cluster://u:p@h1:7,[::1]/": HubAddress(
        "redis+cluster", (("h1", 7), ("::1", 6379)), username="u", password="p"
    ),
    "rediss+cluster://h": HubAddress("rediss+cluster", H),
}

BAD = {
    "redis+cluster://h/1": "one database",
    "redis+cluster://h?db=1": "unknown parameter 'db'",
    "redis+cluster://": "names no host",
    "": "is no scheme",
    "localhost": "is no scheme",
    "http://h": "'http:' is no scheme of a hub URL; known are embedded:, memory:, redis://",
    "redis": "is no scheme",
    "redis:h": "redis: must be followed by //",
    "redis:": "must be followed by //",
    "embedded:x": "takes nothing after the colon",
    "memory://x": "takes nothing after the colon",
    "redis://": "names no host",
    "redis://:6379": "names no host",
    "redis://h:x": "what follows h: is no port",
    "redis://h:0": "is no port",
    "redis://h:65536": "is no port",
    "redis://h:" + "9" * 5000: "is no port",
    "redis://h:٣": "is no port",
    "redis://h1,h2": "takes one host",
    "redis://h/x": "must be a number, not 'x'",
    "redis://h/65536": "must be a number",
    "redis://h/" + "9" * 5000: "must be a number",
    "redis://h/-1": "must be a number",
    "redis://h/1/2": "must be a number",
    "redis://h?timeout=3": "unknown parameter 'timeout' in the URL; known are name",
    "redis+cluster://h?name=x": "unknown parameter 'name' in the URL; this scheme takes none",
    "redis://h?x": "cannot be read",
    "redis://[::1": "cannot be read",
    "redis://[::1]6379": "is no [IPv6 address]:port",
    "redis://u@h": "a user without a password",
    "redis://:p@h#x": "write %23",
    "redis+unix://run/r.sock": "an absolute path",
    "redis+unix://": "an absolute path",
    "redis+unix:///" + "s" * 107: "107 bytes",
    "redis+unix:///" + "é" * 60: "107 bytes",
    "redis+unix:///s?database=1": "known are db, username, password",
    "redis+unix:///s?db=x": "must be a number",
    "redis+sentinel://h1,h2": "needs the name of the master: redis+sentinel://host:26379/name",
    "redis+sentinel://h1,,h2/name": "names no host",
    "redis+sentinel://h1/name/x": "must be a number",
    "redis+sentinel://h1/name?db=1": "known are sentinel_username, sentinel_password",
}

LEAKS = [
    # A password that should have been percent-encoded, or stands where none belongs.
    f"redis://u:{SECRET}",
    f"redis://u:x/{SECRET}@h",
    f"redis://u:1/{SECRET}@h",
    f"redis://:x?{SECRET}@h",
    f"redis://:x?{SECRET}=y@h",
    f"redis://:x#{SECRET}@h",
    f"redis://u:a@b/{SECRET}@h",
    f"redis://:[{SECRET}]@h",
    f"redis://:[{SECRET}@h",
    f"redis://:\u2100{SECRET}@h",
    f"redis+sentinel://:x?{SECRET}=y@h/name",
    f"redis+sentinel://u:x/{SECRET}@h/name",
    f"redis+unix://:x?{SECRET}=y@/s",
    f"redis+unix://:x/{SECRET}",
    f"redis://:{SECRET}@h:x",
    f"redis://:{SECRET}@h1,h2",
    f"redis://:{SECRET}@h/x",
    f"redis://:{SECRET}@h?x=y",
    f"redis://:{SECRET}@[::1]x",
    f"redis+unix:///s?password={SECRET}&x=y",
    f"redis+sentinel://h?sentinel_password={SECRET}",
    f":{SECRET}@h",
]


@pytest.mark.parametrize(("text", "address"), GOOD.items())
def test_good(text: str, address: HubAddress) -> None:
    assert parse_hub_address(text) == address


@pytest.mark.parametrize(("text", "why"), BAD.items(), ids=[text[:40] for text in BAD])
def test_bad(text: str, why: str) -> None:
    with pytest.raises(HubMisconfigured) as caught:
        parse_hub_address(text)
    assert why in str(caught.value)
    assert str(caught.value).startswith("hub: ") and len(str(caught.value)) < 250


@pytest.mark.parametrize("text", LEAKS)
def test_no_error_shows_a_password(text: str) -> None:
    with pytest.raises(HubMisconfigured) as caught:
        parse_hub_address(text)
    assert SECRET not in str(caught.value) + repr(caught.value)
    # Nor does the traceback of what lies under it.
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize(
    "text",
    [
        f"redis://user:{SECRET}@h/1",
        f"redis+unix://user:{SECRET}@/s?db=3",
        f"redis+unix:///s?username=user&password={SECRET}",
        f"rediss+sentinel://user:{SECRET}@h/name?sentinel_password={SECRET}",
    ],
)
def test_no_form_of_an_address_shows_a_password(text: str) -> None:
    address = parse_hub_address(text)
    assert address.password == SECRET
    assert SECRET not in str(address) + repr(address) + address.name + f"{address}"
    assert "user" not in address.name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("embedded:", "embedded"),
        ("memory:", "memory"),
        ("redis://:p@h", "redis://h:6379"),
        ("rediss://[::1]/0", "rediss://[::1]:6379/0"),
        ("redis+unix:///s", "redis+unix:///s"),
        ("redis+unix:///s?db=3", "redis+unix:///s?db=3"),
        ("redis+sentinel://h1,[::1]:5/name/2", "redis+sentinel://h1:26379,[::1]:5/name/2"),
        ("redis+cluster://:p@h1,[::1]:5", "redis+cluster://h1:6379,[::1]:5"),
    ],
)
def test_the_name_for_people_is_an_address_again(text: str, name: str) -> None:
    address = parse_hub_address(text)
    assert address.name == name
    if "//" in name:
        again = parse_hub_address(name)
        assert again == replace(address, password=None)


def test_tls() -> None:
    tls = {
        text: parse_hub_address(text).is_tls for text in ("redis://h", "rediss://h", "rediss+sentinel://h/n")
    }
    assert list(tls.values()) == [False, True, True]
    assert (
        parse_hub_address("rediss+cluster://h").is_tls and parse_hub_address("rediss+cluster://h").is_cluster
    )
    assert not parse_hub_address("redis+cluster://h").is_tls and not parse_hub_address("redis://h").is_cluster


def test_it_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        parse_hub_address("memory:").scheme = "redis"  # type: ignore[misc]


@settings(deadline=None)
@given(username=st.text(min_size=1), password=st.text())
def test_credentials_of_any_characters(username: str, password: str) -> None:
    address = parse_hub_address(f"redis://{quote(username, safe='')}:{quote(password, safe='')}@h")
    assert (address.username, address.password) == (username, password)


@settings(deadline=None)
@given(text=st.text(alphabet="redis+unxtl:/@[]?#=&%,.h1a ") | st.text())
@example("redis://[")
def test_whatever_is_said_gives_an_address_or_our_error(text: str) -> None:
    for candidate in (text, f"redis://{text}", f"redis+sentinel://{text}", f"redis+unix://{text}"):
        with suppress(HubMisconfigured):
            parse_hub_address(candidate)
