"""Flags: their names, what click passes on, the help, and the example configuration."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import click
import pytest
from click.testing import CliRunner, Result
from msgspec import Meta

from spread.node.config import flags
from spread.node.config.flags import FLAGS, SettingsCommand, example_toml, given, options

BY_KEY = {flag.key: flag for flag in FLAGS}


@pytest.mark.parametrize(
    ("key", "flag", "variable"),
    [
        ("node.shard", "--shard", "SPREAD_SHARD"),
        ("hub.url", "--hub", "SPREAD_HUB"),
        ("text.listen", "--text", "SPREAD_TEXT"),
        ("node.http", "--http", "SPREAD_HTTP"),
        ("node.ops", "--ops", "SPREAD_OPS"),
        ("node.log_format", "--log-format", "SPREAD_LOG_FORMAT"),
        ("node.log_level", "--log-level", "SPREAD_LOG_LEVEL"),
        ("node.allow_anonymous", "--allow-anonymous", "SPREAD_ALLOW_ANONYMOUS"),
        ("node.outbox_max_bytes", "--outbox-max-bytes", "SPREAD_OUTBOX_MAX_BYTES"),
        ("hub.tls_ca", "--hub-tls-ca", "SPREAD_HUB_TLS_CA"),
        ("text.message_max_bytes", "--text-message-max-bytes", "SPREAD_TEXT_MESSAGE_MAX_BYTES"),
        ("node.json", "--json", "SPREAD_JSON"),
        ("node.tls_cert", "--tls-cert", "SPREAD_TLS_CERT"),
        ("http_api.key", "--http-api-key", "SPREAD_HTTP_API_KEY"),
        (
            "client.token.hmac_secret_key",
            "--client-token-hmac-secret-key",
            "SPREAD_CLIENT_TOKEN_HMAC_SECRET_KEY",
        ),
        (
            "channel.without_namespace.history_size",
            "--channel-without-namespace-history-size",
            "SPREAD_CHANNEL_WITHOUT_NAMESPACE_HISTORY_SIZE",
        ),
        ("channel.namespaces", "", "SPREAD_CHANNEL_NAMESPACES"),
    ],
)
def test_names(key: str, flag: str, variable: str) -> None:
    assert (BY_KEY[key].flag, BY_KEY[key].variable) == (flag, variable)


def test_what_is_known_of_a_setting() -> None:
    flag = BY_KEY["text.message_max_bytes"]
    assert (flag.section, flag.field, flag.kind, flag.default) == ("text", "message_max_bytes", "int", 65536)
    assert (flag.unit, flag.bounds) == ("bytes", "1 to 16777216 bytes")
    assert flag.expected == "a whole number (1 to 16777216 bytes)"
    assert flag.table == "text" and not flag.is_secret
    flag = BY_KEY["client.token.hmac_secret_key"]
    assert (flag.section, flag.table, flag.field) == ("client", "client.token", "hmac_secret_key")
    assert flag.is_secret and BY_KEY["http_api.key"].is_secret and BY_KEY["hub.url"].is_secret


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("node.stop_seconds", "a number (above 0, up to 3600 seconds)"),
        ("text.max_messages_per_second", "a number (0 or more per second)"),
        ("node.allow_anonymous", "true or false"),
        ("node.log_format", "text or json"),
        ("hub.prefix", "text of 1 to 64 characters"),
        ("text.greeting", "text of up to 4096 characters"),
        ("hub.url", "text"),
        ("client.allowed_origins", "a list of texts"),
        ("channel.namespaces", "a list of tables"),
        ("channel.without_namespace.allowed_delta_types", "a list of these: fossil"),
        ("channel.without_namespace.force_recovery_mode", "empty or stream or cache"),
        (
            "client.stale_close_delay",
            "a duration such as 25s, 1m30s or 300ms, or a number of seconds (above 0, up to 1h)",
        ),
    ],
)
def test_what_a_value_must_be(key: str, expected: str) -> None:
    assert BY_KEY[key].expected == expected


@pytest.mark.parametrize(
    ("meta", "bounds"),
    [
        ({}, ""),
        ({"le": 5}, "up to 5 seconds"),
        ({"gt": 0.5}, "above 0.5 seconds"),
        ({"min_length": 2}, "2 or more characters"),
        ({"ge": 1, "le": 2}, "1 to 2 seconds"),
    ],
)
def test_bounds_that_no_setting_has_yet(meta: Mapping[str, float], bounds: str) -> None:
    unit = "" if "min_length" in meta else "seconds"
    assert flags._bounds(meta, unit) == bounds  # pyright: ignore[reportPrivateUsage]


def test_the_last_annotation_wins_and_others_are_passed_over() -> None:
    annotated = Annotated[Literal["a", "b"], Meta(description="x"), "a note", Meta(description="y")]
    assert flags._described(annotated) == (  # pyright: ignore[reportPrivateUsage]
        "choice",
        ("a", "b"),
        {"description": "y"},
    )


@click.command(cls=SettingsCommand)
@click.option("--config", help="Configuration file.")
@options
def command(config: str | None, **parameters: Any) -> None:
    """Run a shard."""
    for key, value in given(parameters).items():
        click.echo(f"{key}={value!r}")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def test_without_flags_nothing_is_given() -> None:
    result = run()
    assert (result.exit_code, result.output) == (0, "")


def test_values_are_passed_on_as_they_were_written() -> None:
    result = run("--stop-seconds", "soon", "--text", "", "--shard=0-1", "--hub", "redis://a b")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "node.shard='0-1'",
        "node.stop_seconds='soon'",
        "hub.url='redis://a b'",
        "text.listen=''",
    ]


def test_the_hub_may_be_given_several_times() -> None:
    assert run("--hub", "redis://a", "--hub=redis://b").output == "hub.url='redis://a redis://b'\n"


def test_a_choice_is_left_to_the_configuration() -> None:
    assert run("--log-level", "loud").output == "node.log_level='loud'\n"


@pytest.mark.parametrize(("flag", "value"), [("--allow-anonymous", True), ("--no-allow-anonymous", False)])
def test_a_switch_has_two_flags(flag: str, value: bool) -> None:
    assert run(flag).output == f"node.allow_anonymous={value}\n"


def test_an_unknown_flag_is_bad_usage() -> None:
    result = run("--shart", "1")
    assert result.exit_code == 2
    assert "--shard" in result.output


def test_help_has_every_setting_in_its_section() -> None:
    result = CliRunner().invoke(command, ["--help"], terminal_width=200)
    assert result.exit_code == 0
    heads = [line for line in result.output.splitlines() if re.fullmatch(r"\w.*:", line)]
    assert heads == [
        "This command:",
        "The shard itself:",
        "The hub: Redis or Valkey, where shards meet:",
        "The text protocol:",
        "A team's own code in the shard:",
        "Clients of the Centrifuge protocol: who may connect, and what one may do:",
        "Channels and their namespaces:",
        "The HTTP API for backends:",
        "WebSocket:",
        "HTTP streaming, for clients that cannot use WebSocket:",
        "Server-sent events, for browsers that cannot use WebSocket:",
        "Where clients of HTTP streaming and server-sent events send their commands:",
    ]
    sections = list(dict.fromkeys(flag.section for flag in FLAGS))
    parts = re.split(r"^\w.*:\n", result.output, flags=re.MULTILINE)[-len(sections) :]
    for part, section in zip(parts, sections, strict=True):
        for flag in FLAGS:
            if flag.flag:
                assert (f"  {flag.flag} " in part) == (flag.section == section), flag.key


def test_help_tells_default_bounds_and_variable() -> None:
    words = " ".join(run("--help").output.split())
    assert "[default: 65536; 1 to 16777216 bytes; SPREAD_TEXT_MESSAGE_MAX_BYTES]" in words
    assert "[default: 10; above 0, up to 3600 seconds; SPREAD_STOP_SECONDS]" in words
    assert "[default: no; SPREAD_ALLOW_ANONYMOUS]" in words
    assert "[default: none; SPREAD_HUB_TLS_CA]" in words
    assert "[default: 25s; -1s to 1h; SPREAD_CLIENT_PING_INTERVAL]" in words
    assert "[default: none; SPREAD_CLIENT_ALLOWED_ORIGINS]" in words
    for flag in FLAGS:
        # One that does not fit a line would be cut in two.
        assert flag.variable in words or not flag.flag or len(flag.variable) > 64


def test_help_begins_with_examples_and_ends_with_exit_codes() -> None:
    output = run("--help").output
    assert output.index("Examples:") < output.index("This command:") < output.index("Exit codes:")
    for example in ["--shard 0-1\n", "--shard 0\n", "--shard 1\n", "--config spread.toml --check\n"]:
        assert f"    spread-node {example}" in output, example
    codes = re.findall(r"^    (\d)  \w", output, flags=re.MULTILINE)
    assert codes == ["0", "2", "3", "4"]


def test_help_fits_a_terminal() -> None:
    assert [line for line in run("--help").output.splitlines() if len(line) > 80] == []


def test_help_without_other_options() -> None:
    bare = SettingsCommand("bare", params=[], add_help_option=False)
    assert "This command" not in bare.get_help(click.Context(bare))


def leaves(tree: Mapping[str, Any], table: str) -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{table}{name}.")
        else:
            yield f"{table}{name}"


def test_the_example_is_complete_and_changes_nothing() -> None:
    tree = tomllib.loads(example_toml())
    assert sorted(leaves(tree, "")) == sorted(BY_KEY)
    assert tree["client"]["ping_interval"] == "25s" and tree["channel"]["history_meta_ttl"] == "720h"


def test_the_example_explains() -> None:
    lines = example_toml().splitlines()
    assert max(map(len, lines)) <= 110
    for flag in FLAGS:
        assert any(line.startswith("#   ") and f" {flag.variable}" in line for line in lines), flag.key
    assert "#   --log-format, SPREAD_LOG_FORMAT; text or json" in lines
