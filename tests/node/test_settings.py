"""What must hold for every setting, also for those that come later."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from spread.node.config.flags import FLAGS, Flag
from spread.node.settings import Namespace, Settings

every_setting = pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.key)


def test_no_setting_is_left_out() -> None:
    assert [flag.key for flag in FLAGS] == list(keys(Settings, ""))
    assert len(FLAGS) > 140


def keys(section: type[msgspec.Struct], table: str) -> Iterator[str]:
    for field in msgspec.structs.fields(section):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from keys(field.type, f"{table}{field.name}.")
        else:
            yield f"{table}{field.name}"


@every_setting
def test_it_is_described_in_sentences(flag: Flag) -> None:
    assert re.fullmatch(r"\S.*[.]", flag.help), "a description ends with a full stop"
    assert "\n" not in flag.help


@every_setting
def test_its_text_is_short_of_a_paragraph(flag: Flag) -> None:
    assert len(flag.help) < 200


@every_setting
def test_its_default_is_one_of_its_values(flag: Flag) -> None:
    assert msgspec.convert(flag.default, flag.type) == flag.default


@every_setting
def test_a_number_has_a_lower_bound(flag: Flag) -> None:
    if flag.kind in ("int", "float", "duration"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(-1 if flag.field not in ("ping_interval", "pong_timeout") else -2, flag.type)
        assert flag.bounds


@every_setting
def test_a_time_says_its_unit(flag: Flag) -> None:
    if flag.kind == "float":
        assert flag.unit, "a plain number with a fraction has a unit in its name"


@pytest.mark.parametrize("name", ["key", "flag", "variable", "parameter"])
def test_names_are_unique(name: str) -> None:
    names = [getattr(flag, name) for flag in FLAGS if getattr(flag, name)]
    assert len(set(names)) == len(names)


@every_setting
def test_its_names_are_well_formed(flag: Flag) -> None:
    assert re.fullmatch(r"--[a-z]+(-[a-z]+)*", flag.flag) or flag.kind == "tables"
    assert re.fullmatch(r"SPREAD(_[A-Z]+)+", flag.variable)
    assert flag.parameter.isidentifier()


@every_setting
def test_no_flag_looks_like_the_opposite_of_another(flag: Flag) -> None:
    assert not flag.flag.startswith("--no-")


def sections(section: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    yield section
    for field in msgspec.structs.fields(section):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from sections(field.type)


def test_sections_cannot_be_changed_or_misspelled() -> None:
    every: list[Any] = [*sections(Settings), Namespace]
    for section in every:
        config = section.__struct_config__
        assert config.frozen and config.forbid_unknown_fields


# -- what Centrifugo has --------------------------------------------------------------------------------


def test_defaults_are_those_of_centrifugo() -> None:
    client, channel = Settings().client, Settings().channel
    assert (client.ping_interval, client.pong_timeout) == (25, 8)
    assert (client.stale_close_delay, client.expired_close_delay) == (10, 25)
    assert (client.expired_sub_close_delay, client.presence_update_interval) == (25, 27)
    assert (client.channel_limit, client.queue_max_size) == (128, 1048576)
    assert client.channel_position_check_delay == 40
    assert (client.history_max_publication_limit, client.recovery_max_publication_limit) == (300, 300)
    assert (channel.max_length, channel.history_meta_ttl) == (255, 720 * 3600)
    boundaries = (channel.private_prefix, channel.namespace_boundary, channel.user_boundary)
    assert (*boundaries, channel.user_separator) == ("$", ":", "#", ",")
    assert Settings().http_api.handler_prefix == "/api"
    websocket = Settings().websocket
    assert (websocket.handler_prefix, websocket.write_timeout) == ("/connection/websocket", 1)
    assert (websocket.message_size_limit, websocket.compression_level) == (65536, 1)
    assert Settings().http_stream.handler_prefix == "/connection/http_stream"
    assert Settings().sse.handler_prefix == "/connection/sse"
    assert Settings().emulation.handler_prefix == "/emulation"
    off = [flag.key for flag in FLAGS if flag.kind == "bool" and flag.default]
    assert off == [], "a switch that is on by default"


def test_what_spread_adds_says_so() -> None:
    own = {"commands_per_second", "user_commands_per_second", "errors_limit", "max_unacknowledged_commands"}
    assert own == {flag.field for flag in FLAGS if flag.help.startswith("Spread's own. ")}


# -- secrets --------------------------------------------------------------------------------------------


def test_the_repr_of_settings_shows_no_secret() -> None:
    values = {
        "hub": {"url": "redis://u:s3cr3t@h"},
        "client": {"token": {"hmac_secret_key": "s3cr3t", "hmac_previous_secret_key": "s3cr3t"}},
        "http_api": {"key": "s3cr3t"},
    }
    shown = repr(msgspec.convert(values, Settings)) + f"{msgspec.convert(values, Settings)}"
    assert "s3cr3t" not in shown
    assert "hmac_secret_key='***'" in shown and "rsa_public_key=''" in shown
    assert "hmac_secret_key=''" in repr(Settings())


@every_setting
def test_a_key_that_must_not_be_known_is_a_secret(flag: Flag) -> None:
    secret = re.search(r"secret|password|_api\.key$", flag.key) is not None and flag.kind == "str"
    assert flag.is_secret == (secret or flag.key == "hub.url")
