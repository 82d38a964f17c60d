"""Configuration: which source wins, what is refused, and whether the line that says so helps."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spread.node.config import FILE_MAX_BYTES, ConfigError, load
from spread.node.config.flags import FLAGS, example_toml
from spread.node.settings import Settings

SECRET = "s3cr3t"


def from_environment(**variables: str) -> Settings:
    return load(file=None, environ=variables, flags={})


def from_flags(flags: Mapping[str, str | bool]) -> Settings:
    return load(file=None, environ={}, flags=flags)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of its own, entered, so that files have short names in messages."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def from_toml(text: str) -> Settings:
    Path("spread.toml").write_text(text, encoding="utf-8")
    return load(file="spread.toml", environ={}, flags={})


def from_json(tree: object) -> Settings:
    Path("spread.json").write_text(json.dumps(tree), encoding="utf-8")
    return load(file="spread.json", environ={}, flags={})


def test_several_hubs_are_a_list_in_a_file_and_have_spaces_between_them_elsewhere(here: Path) -> None:
    several = "redis://a redis://b"
    assert from_json({"hub": {"url": ["redis://a", "redis://b"]}}).hub.url == several
    assert from_environment(SPREAD_HUB=several).hub.url == several
    with pytest.raises(ConfigError, match=r"hub.url: must be text"):
        from_json({"hub": {"url": []}})


# --- which source wins ------------------------------------------------------------------------------


def test_without_anything_all_is_default() -> None:
    assert load(file=None, environ={}, flags={}) == Settings()


def test_flag_over_environment_over_file_over_default(here: Path) -> None:
    Path("spread.toml").write_text(
        '[node]\nhttp = "127.0.0.1:1"\nops = "127.0.0.1:2"\n'
        '[text]\nlisten = "127.0.0.1:3"\nchannel = "hall"\n'
    )
    environ = {"SPREAD_OPS": "127.0.0.1:12", "SPREAD_TEXT": "127.0.0.1:13", "HOME": "/"}
    settings = load(file="spread.toml", environ=environ, flags={"text.listen": "127.0.0.1:23"})
    assert settings.node.http == "127.0.0.1:1"
    assert settings.node.ops == "127.0.0.1:12"
    assert settings.text.listen == "127.0.0.1:23"
    assert settings.text.channel == "hall"
    assert settings.hub == Settings().hub


def test_a_wrong_value_is_refused_even_if_another_would_win() -> None:
    with pytest.raises(ConfigError, match="environment variable SPREAD_STOP_SECONDS"):
        load(file=None, environ={"SPREAD_STOP_SECONDS": "soon"}, flags={"node.stop_seconds": "3"})


def test_toml_and_json_say_the_same(here: Path) -> None:
    toml = from_toml('[node]\nshard = "0-3"\nallow_anonymous = true\n[text]\nidle_flush_seconds = 1\n')
    tree = {"node": {"shard": "0-3", "allow_anonymous": True}, "text": {"idle_flush_seconds": 1}}
    assert toml == from_json(tree)
    assert toml.node.allow_anonymous is True
    assert isinstance(toml.text.idle_flush_seconds, float)


def test_the_example_configuration_is_the_default(here: Path) -> None:
    assert from_toml(example_toml()) == Settings()


@pytest.mark.parametrize("text", ['[hub]\nprefix = "game"\n', '{"hub": {"prefix": "game"}}'])
@pytest.mark.parametrize("name", ["spread.conf", "spread"])
def test_another_suffix_is_tried_as_both(here: Path, name: str, text: str) -> None:
    Path(name).write_text(text)
    assert load(file=name, environ={}, flags={}).hub.prefix == "game"


def test_a_byte_order_mark_is_no_matter(here: Path) -> None:
    Path("spread.toml").write_bytes(b'\xef\xbb\xbf[hub]\nprefix = "game"\n')
    assert load(file="spread.toml", environ={}, flags={}).hub.prefix == "game"


def test_every_setting_can_be_given_as_text() -> None:
    values = {
        flag.key: ",".join(flag.default) if isinstance(flag.default, tuple) else str(flag.default)
        for flag in FLAGS
    }
    environ = {flag.variable: values[flag.key] for flag in FLAGS}
    assert from_flags(values) == from_environment(**environ) == Settings()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("client.ping_interval", "1m30s", 90.0),
        ("client.ping_interval", " 300 ", 300.0),
        ("client.ping_interval", "-1", -1.0),
        ("channel.history_meta_ttl", "1h", 3600.0),
        (
            "client.allowed_origins",
            "https://a.example, https://b.example",
            ("https://a.example", "https://b.example"),
        ),
        ("client.allowed_origins", "*", ("*",)),
        ("client.allowed_origins", "a b\tc", ("a", "b", "c")),
        ("client.allowed_origins", '["a, b"]', ("a, b",)),
        ("client.allowed_origins", " ", ()),
        ("websocket.handler_prefix", "/ws/", "/ws"),
        ("websocket.handler_prefix", "/", "/"),
        ("node.json", "127.0.0.1:0", "127.0.0.1:0"),
        ("node.max_clients", "1_000", 1000),
        ("node.max_clients", " 7 ", 7),
        ("node.stop_seconds", "3", 3.0),
        ("node.stop_seconds", "1e-3", 0.001),
        ("node.log_format", "json", "json"),
        ("node.allow_anonymous", "true", True),
        ("node.allow_anonymous", "Yes", True),
        ("node.allow_anonymous", "on", True),
        ("node.allow_anonymous", "1", True),
        ("node.allow_anonymous", "false", False),
        ("node.allow_anonymous", "no", False),
        ("node.allow_anonymous", "OFF", False),
        ("node.allow_anonymous", "0", False),
        ("node.allow_anonymous", True, True),
        ("text.channel", "大厅", "大厅"),
        ("text.greeting", "", ""),
        ("text.greeting", "{{{number}}}", "{{{number}}}"),
        ("text.goodbye", "{shard}{shard}", "{shard}{shard}"),
        ("hub.prefix", "a:b.c_d-0", "a:b.c_d-0"),
        ("node.shard", "3-3", "3-3"),
        ("node.ops", "off", "off"),
        ("node.ops", "0.0.0.0:8100", "0.0.0.0:8100"),
    ],
)
def test_what_a_text_stands_for(key: str, text: str | bool, value: object) -> None:
    section, _, field = key.partition(".")
    got = getattr(getattr(from_flags({key: text}), section), field)
    assert got == value
    assert type(got) is type(value)


# --- files that cannot be used ----------------------------------------------------------------------


def said(error: pytest.ExceptionInfo[ConfigError]) -> str:
    text = str(error.value)
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "[text]\nlissten = 'off'\n",
            "spread.toml: unknown key text.lissten; did you mean text.listen?",
        ),
        (
            "[text]\nmax_clients = 1\n",
            "spread.toml: unknown key text.max_clients; did you mean node.max_clients?",
        ),
        (
            "[text]\nqqqqqqq = 1\n",
            "spread.toml: unknown key text.qqqqqqq; spread-node --print-config shows all keys",
        ),
        ("[txt]\n", "spread.toml: unknown section txt; did you mean text?"),
        (
            "[game]\n",
            "spread.toml: unknown section game; the sections are node, hub, text, app, client, channel, "
            "http_api, websocket, http_stream, sse, emulation",
        ),
        ("shard = '1'\n", "spread.toml: unknown section shard; did you mean node.shard?"),
        (
            "'text.listen' = 'off'\n",
            "spread.toml: unknown section text.listen; write listen inside of the table text",
        ),
        ("node = 3\n", "spread.toml: node must be a table, not 3"),
        ("hub = 'memory:'\n", "spread.toml: hub must be a table, not 'memory:'; did you mean hub.url?"),
        ("[text]\nlisten = 8007\n", "spread.toml: text.listen: must be text, not 8007"),
        ("[text]\nlisten = ['off']\n", "spread.toml: text.listen: must be text, not a list"),
        ("[text.listen]\n", "spread.toml: text.listen: must be text, not a table"),
        ("[text]\nlisten = 2026-01-31\n", "spread.toml: text.listen: must be text, not a date"),
        (
            "[text]\nmessage_max_bytes = 0\n",
            "spread.toml: text.message_max_bytes: must be a whole number (1 to 16777216 bytes), not 0",
        ),
        (
            "[text]\nmessage_max_bytes = '9'\n",
            "spread.toml: text.message_max_bytes: must be a whole number (1 to 16777216 bytes), not '9'",
        ),
        (
            "[text]\nmessage_max_bytes = 1.5\n",
            "spread.toml: text.message_max_bytes: must be a whole number (1 to 16777216 bytes), not 1.5",
        ),
        (
            f"[node]\noutbox_max_bytes = 0x{'f' * 6000}\n",
            "spread.toml: node.outbox_max_bytes: must be a whole number (65536 to 1073741824 bytes), "
            "not a number of more than 38 digits",
        ),
        (
            "[node]\nstop_seconds = nan\n",
            "spread.toml: node.stop_seconds: must be a number (above 0, up to 3600 seconds), not nan",
        ),
        (
            "[text]\nmax_messages_per_second = inf\n",
            "spread.toml: text.max_messages_per_second: must be a number (0 or more per second), not inf",
        ),
        (
            "[node]\nallow_anonymous = 'yes'\n",
            "spread.toml: node.allow_anonymous: must be true or false, not 'yes'",
        ),
        ("[node]\nlog_format = 'xml'\n", "spread.toml: node.log_format: must be text or json, not 'xml'"),
        (
            "[node]\nmax_clients = true\n",
            "spread.toml: node.max_clients: must be a whole number (0 or more), not true",
        ),
        ("[text]\nchannel = ''\n", "spread.toml: text.channel: must be text of 1 to 255 characters, not ''"),
        ("[node]\nshard = '7-0'\n", "spread.toml: node.shard: '7-0': 7-0 counts backwards; write 0-7"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(here: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_toml(text)
    assert said(error) == says


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[text\n", "not valid TOML: .*line 1"),
        ("[node]\nstop_seconds = \n", "not valid TOML: .*line 2"),
        ("[text]\nlisten = 'off'\nlisten = 'off'\n", "not valid TOML: .*line 3"),
        ("a = " + "[" * 100_000, "not valid TOML: nested too deeply"),
        ("a = " + "9" * 5000, "not valid TOML: Exceeds the limit"),
    ],
)
def test_invalid_toml_is_told_with_its_line(here: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"^spread.toml: {says}") as error:
        from_toml(text)
    said(error)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{\n'a': 1}", "not valid JSON: .*line 2 column 1"),
        ("", "not valid JSON: "),
        ("[]", "it must hold one table for each section, not a list"),
        ("null", "it must hold one table for each section, not nothing"),
        ("true", "it must hold one table for each section, not true"),
        ("[" * 100_000, "not valid JSON: nested too deeply"),
        ('{"hub": {}, "hub": {}}', "not valid JSON: hub is there twice"),
        ('{"node": {"stop_seconds": NaN}}', "node.stop_seconds: must be a number"),
        ('{"text": {"max_messages_per_second": 1e999}}', "text.max_messages_per_second: must be a number"),
        (
            '{"text": {"max_messages_per_second": 1' + "0" * 400 + "}}",
            "text.max_messages_per_second: must be a number .*, not a number of more than 38 digits",
        ),
        ('{"text": {"greeting": "\\ud800"}}', "text.greeting: is not valid UTF-8 text"),
        ('{"text": {"a\\nb\\u001b[0m\\u2028": 1}}', r"unknown key text\.a\\nb\\x1b\[0m\\u2028; "),
    ],
)
def test_invalid_json_is_told(here: Path, text: str, says: str) -> None:
    Path("spread.json").write_text(text)
    with pytest.raises(ConfigError, match=f"^spread.json: {says}") as error:
        load(file="spread.json", environ={}, flags={})
    said(error)


def test_neither_toml_nor_json(here: Path) -> None:
    Path("spread.conf").write_text("hello")
    with pytest.raises(ConfigError) as error:
        load(file="spread.conf", environ={}, flags={})
    assert said(error).startswith("spread.conf: not valid TOML: ")
    assert "; not valid JSON: " in said(error)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("absent.toml", "absent.toml: cannot be read: No such file or directory"),
        (".", ".: cannot be read: Is a directory"),
        ("", ": cannot be read: No such file or directory"),
        ("a\0b", r"a\x00b: cannot be read: embedded null byte"),
    ],
)
def test_a_file_that_cannot_be_read(here: Path, name: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(file=name, environ={}, flags={})
    assert said(error) == says


def test_a_file_that_is_not_utf_8_is_told_with_its_line(here: Path) -> None:
    Path("spread.toml").write_bytes(b"[text]\n# fine\ngreeting = 'gr\xfc\xdf'\n")
    with pytest.raises(ConfigError, match=r"spread.toml: not UTF-8 text \(at line 3\)"):
        load(file="spread.toml", environ={}, flags={})


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match=f"/dev/zero: larger than {FILE_MAX_BYTES} bytes"):
        load(file="/dev/zero", environ={}, flags={})


# --- environment and flags --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("SPREAD_TEXXT", "; did you mean SPREAD_TEXT?"),
        ("SPREAD_TEXT_LISTEN", "; did you mean SPREAD_TEXT?"),
        ("SPREAD_HUB_URL", "; did you mean SPREAD_HUB?"),
        ("SPREAD_NODE_STOP_SECONDS", "; did you mean SPREAD_STOP_SECONDS?"),
        ("SPREAD_CONFI", "; did you mean SPREAD_CONFIG?"),
        ("SPREAD_", "; unset it, spread-node --help shows all variables"),
        ("SPREAD_QQQQQQQQ", "; unset it, spread-node --help shows all variables"),
        ("SPREAD_FLEET", ""),
        ("SPREAD_PORT", ""),
        ("SPREAD_PORT_X_TCP", ""),
        ("SPREAD_SERVICE_HOSTS", ""),
    ],
)
def test_an_unknown_variable_is_refused(variable: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_environment(**{variable: "8007"})
    assert said(error).startswith(f"environment variable {variable}: unknown; ")
    assert said(error).endswith(says)


def test_what_is_read_elsewhere_is_left_alone() -> None:
    others = ["SPREAD_HOME", "SPREAD_CONFIG", "SPREAD_CHECK", "SPREAD_FLEET_FDS", "SPREAD", "SPREADER_TEXT"]
    assert from_environment(**dict.fromkeys(others, "?")) == Settings()


def test_what_kubernetes_sets_for_services_is_left_alone() -> None:
    settings = from_environment(
        SPREAD_SERVICE_HOST="10.0.0.11",
        SPREAD_SERVICE_PORT="8007",
        SPREAD_SERVICE_PORT_TEXT="8007",
        SPREAD_PORT="tcp://10.0.0.11:8007",
        SPREAD_PORT_8007_TCP="tcp://10.0.0.11:8007",
        SPREAD_PORT_8007_TCP_PROTO="tcp",
        SPREAD_PORT_8007_TCP_PORT="8007",
        SPREAD_PORT_8007_TCP_ADDR="10.0.0.11",
        SPREAD_TEXT_SERVICE_HOST="10.0.0.12",
        SPREAD_TEXT_PORT="udp://10.0.0.12:8007",
        SPREAD_TEXT_PORT_53_UDP_ADDR="10.0.0.12",
    )
    assert settings == Settings()


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        (
            {"SPREAD_TEXT": "8007"},
            "environment variable SPREAD_TEXT: '8007': the host is missing; write HOST:PORT, "
            "for example 127.0.0.1:8007",
        ),
        (
            {"SPREAD_MAX_CLIENTS": "many"},
            "environment variable SPREAD_MAX_CLIENTS: must be a whole number (0 or more), not 'many'",
        ),
        (
            {"SPREAD_STOP_SECONDS": "inf"},
            "environment variable SPREAD_STOP_SECONDS: must be a number "
            "(above 0, up to 3600 seconds), not 'inf'",
        ),
        (
            {"SPREAD_STOP_SECONDS": ""},
            "environment variable SPREAD_STOP_SECONDS: must be a number "
            "(above 0, up to 3600 seconds), not ''",
        ),
        (
            {"SPREAD_MAX_CLIENTS": "9" * 5000},
            f"environment variable SPREAD_MAX_CLIENTS: must be a whole number (0 or more), "
            f"not '{'9' * 80}...'",
        ),
        (
            {"SPREAD_ALLOW_ANONYMOUS": "ja"},
            "environment variable SPREAD_ALLOW_ANONYMOUS: must be true or false "
            "(or yes, no, on, off, 1, 0), not 'ja'",
        ),
        (
            {"SPREAD_LOG_LEVEL": "loud\n"},
            r"environment variable SPREAD_LOG_LEVEL: must be debug or info or warn or error, not 'loud\n'",
        ),
    ],
)
def test_a_wrong_variable_is_told_in_one_line(variables: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_environment(**variables)
    assert said(error) == says


def test_a_variable_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(ConfigError, match="SPREAD_TEXT_GREETING: is not valid UTF-8 text"):
        from_environment(SPREAD_TEXT_GREETING=os.fsdecode(b"gr\xfc\xdf"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"node.shard": "1024"}, "flag --shard: '1024': shard numbers run from 0 to 1023"),
        ({"text.listen": True}, "flag --text: must be text, not true"),
        ({"text.lissten": "off"}, "flags: unknown key text.lissten; did you mean text.listen?"),
        (
            {"node.log_level": "trace"},
            "flag --log-level: must be debug or info or warn or error, not 'trace'",
        ),
    ],
)
def test_a_wrong_flag_is_told_in_one_line(flags: dict[str, str | bool], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_flags(flags)
    assert said(error) == says


# --- values together --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            {"text.listen": "0.0.0.0:8007"},
            "flag --text: 0.0.0.0:8007 can be reached from other machines and clients are not authenticated; "
            "add --allow-anonymous to let anyone in, or listen on 127.0.0.1",
        ),
        ({"node.http": "[::]:80"}, "flag --http: [::]:80 can be reached from other machines"),
        ({"node.http": "game.example:80"}, "flag --http: game.example:80 can be reached from other machines"),
        (
            {"text.listen": "10.0.0.1:0", "node.allow_anonymous": False},
            "flag --text: 10.0.0.1:0 can be reached",
        ),
        (
            {"node.http": "127.0.0.1:8007"},
            "flag --http: 127.0.0.1:8007 is taken by text.listen; take another port",
        ),
        (
            {"text.listen": "localhost:8000"},
            "the default of --http: 127.0.0.1:8000 is taken by text.listen; take another port",
        ),
        (
            {"text.listen": "0.0.0.0:8000", "node.allow_anonymous": True},
            "the default of --http: 127.0.0.1:8000 is taken by text.listen; take another port",
        ),
        (
            {"node.ops": "127.0.0.1:8000"},
            "flag --ops: shard 0 adds its number to the port and meets 127.0.0.1:8000 of node.http; "
            "take another",
        ),
        (
            {"node.ops": "[::]:8000", "node.shard": "5-9"},
            "flag --ops: shard 7 adds its number to the port and meets 127.0.0.1:8007 of text.listen; "
            "take another",
        ),
        (
            {"node.ops": "127.0.0.1:65535", "node.shard": "0-1"},
            "flag --ops: port 65535 plus 1 is above the last port, 65535; "
            "a shard adds its number to this port",
        ),
        ({"node.ops": "127.0.0.1:65535", "node.shard": "7"}, "flag --ops: port 65535 plus 7 is above"),
        ({"node.ops": "nowhere"}, "flag --ops: 'nowhere': the port is missing"),
        ({"text.greeting": "hi\n"}, "flag --text-greeting: must be one line; take out the line break"),
        ({"text.goodbye": "a\rb"}, "flag --text-goodbye: must be one line; take out the line break"),
        (
            {"text.greeting": "{shard}"},
            "flag --text-greeting: '{shard}': only {number} is filled in, "
            "and other braces are written twice: {{ and }}",
        ),
        ({"text.goodbye": "{number}"}, "flag --text-goodbye: '{number}': only {shard} is filled in"),
        ({"text.greeting": "{}"}, "flag --text-greeting: '{}': only {number} is filled in"),
        (
            {"text.greeting": "{number:99999}"},
            "flag --text-greeting: '{number:99999}': only {number} is filled in",
        ),
        ({"text.greeting": "{number!r}"}, "flag --text-greeting: '{number!r}': only {number} is filled in"),
        (
            {"text.greeting": "{number.real}"},
            "flag --text-greeting: '{number.real}': only {number} is filled in",
        ),
        (
            {"text.greeting": "}"},
            "flag --text-greeting: '}': Single '}' encountered in format string; only {number}",
        ),
        ({"text.greeting": "{number"}, "flag --text-greeting: '{number': expected '}' before end of string"),
        (
            {"text.channel": "a b"},
            "flag --text-channel: 'a b': a channel name holds no spaces or control characters",
        ),
        ({"text.channel": "a\x07"}, r"flag --text-channel: 'a\x07': a channel name holds no spaces"),
        ({"text.channel": "a\u3000"}, "flag --text-channel: 'a\u3000': a channel name holds no spaces"),
        ({"hub.prefix": "a b"}, "flag --hub-prefix: 'a b': only letters, digits and _ - . : may be in it"),
        ({"hub.prefix": "{a}"}, "flag --hub-prefix: '{a}': only letters, digits"),
        ({"hub.prefix": "大"}, "flag --hub-prefix: '大': only letters, digits"),
        (
            {"hub.tls_cert": "cert.pem"},
            "flag --hub-tls-cert: hub.tls_cert is given without hub.tls_key; give both, or neither",
        ),
        (
            {"hub.tls_key": "key.pem"},
            "flag --hub-tls-key: hub.tls_key is given without hub.tls_cert; give both, or neither",
        ),
        (
            {"hub.tls_ca": "absent.pem"},
            "flag --hub-tls-ca: 'absent.pem' cannot be read: No such file or directory",
        ),
        ({"hub.tls_ca": "."}, "flag --hub-tls-ca: '.' is not a file"),
        ({"hub.tls_ca": "a\0b"}, r"flag --hub-tls-ca: 'a\x00b' cannot be read: embedded null byte"),
    ],
)
def test_what_does_not_go_together_is_told_in_one_line(
    here: Path, flags: dict[str, str | bool], says: str
) -> None:
    with pytest.raises(ConfigError) as error:
        from_flags(flags)
    assert said(error).startswith(says)


@pytest.mark.parametrize(
    "flags",
    [
        {"text.listen": "0.0.0.0:8007", "node.http": "[::]:80", "node.allow_anonymous": True},
        {"text.listen": "[::1]:8000"},
        {
            "text.listen": "127.0.0.1:0",
            "node.http": "127.0.0.1:0",
            "node.ops": "127.0.0.1:0",
            "node.shard": "1023",
        },
        {"text.listen": "off", "node.http": "off", "node.ops": "off"},
        {"node.ops": "127.0.0.1:8000", "node.shard": "1"},
        {"node.ops": "127.0.0.2:8000"},
        {"node.ops": "127.0.0.1:64512", "node.shard": "0-1023"},
    ],
)
def test_what_goes_together(flags: dict[str, str | bool]) -> None:
    assert isinstance(from_flags(flags), Settings)


def test_readable_tls_files_are_taken(here: Path) -> None:
    for name in ["ca.pem", "cert.pem", "key.pem"]:
        Path(name).touch()
    hub = from_flags({"hub.tls_ca": "ca.pem", "hub.tls_cert": "cert.pem", "hub.tls_key": "key.pem"}).hub
    assert (hub.tls_ca, hub.tls_cert, hub.tls_key) == ("ca.pem", "cert.pem", "key.pem")


def test_a_pipe_is_not_waited_for(here: Path) -> None:
    os.mkfifo("pipe")
    with pytest.raises(ConfigError, match="'pipe' is not a file"):
        from_flags({"hub.tls_ca": "pipe"})


def test_an_error_carries_its_facts() -> None:
    with pytest.raises(ConfigError) as error:
        from_flags({"node.shard": "x"})
    assert isinstance(error.value, ValueError)
    assert error.value.source == "flag --shard"
    assert error.value.problem.startswith("'x': ")


def test_a_long_value_is_cut() -> None:
    with pytest.raises(ConfigError) as error:
        from_flags({"node.log_level": "x" * 5000})
    assert len(said(error)) < 200


# --- passwords --------------------------------------------------------------------------------------

URL = f"redis://user:{SECRET}@10.0.0.5:6379/0"


@pytest.mark.parametrize(
    "url",
    [
        URL,
        f"redis://:{SECRET}@h",
        f"redis://user:a@{SECRET}/@h",
        f"redis://user:a {SECRET}@h",
        f"redis://{'u' * 90}:{SECRET}@h",
        f"redis://user:{'p' * 90}{SECRET}@h",
        f"user:{SECRET}@h:6379",
    ],
)
@pytest.mark.parametrize(
    "key", ["text.listen", "node.shard", "node.log_level", "node.max_clients", "hub.prefix"]
)
def test_a_password_in_the_wrong_place_is_not_shown(key: str, url: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_flags({key: url})
    assert SECRET not in said(error)


def test_what_is_left_of_a_url_is_shown() -> None:
    with pytest.raises(ConfigError, match=r"'redis://user:\*\*\*@10.0.0.5:6379/0'"):
        from_flags({"text.listen": URL})
    with pytest.raises(ConfigError, match="'http://h:80/x'"):
        from_flags({"text.listen": "http://h:80/x"})


@pytest.mark.parametrize(
    "tree",
    [
        {"hub": URL},
        {"hub": {"url": [URL, 1]}},
        {"hub": {"url": [[URL]]}},
        {"hub": {"url": {"a": URL}}},
        {"hub": {URL: 1}},
        {URL: {}},
        [URL],
        URL,
        {"hub": {"urls": URL}},
    ],
)
def test_a_password_in_a_wrong_file_is_not_shown(here: Path, tree: object) -> None:
    with pytest.raises(ConfigError) as error:
        from_json(tree)
    assert SECRET not in said(error)


def test_a_password_in_the_name_of_a_variable_is_not_shown() -> None:
    with pytest.raises(ConfigError) as error:
        from_environment(**{f"SPREAD_HUB {URL}": "1"})
    assert SECRET not in said(error)


# --- anything at all --------------------------------------------------------------------------------

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # tests share machines

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.sampled_from(["off", "127.0.0.1:0", "[::]:1", "auto", "0-7", "json", "{number}", "{shard}"]),
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
sections = st.fixed_dictionaries(
    {},
    optional={
        section: st.one_of(
            trees,
            st.dictionaries(
                st.sampled_from([flag.key.split(".")[1] for flag in FLAGS if flag.section == section])
                | st.text(max_size=3),
                scalars | trees,
                max_size=4,
            ),
        )
        for section in dict.fromkeys(flag.section for flag in FLAGS)
    },
)


@unhurried
@given(trees | sections)
@example({"text": {"greeting": "\ud800"}})
def test_any_json_gives_settings_or_a_config_error(tree: Any) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(tree, file)
        file.flush()
        try:
            loaded = load(file=file.name, environ={}, flags={})
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1
            str(error).encode()
        else:
            assert loaded.text.greeting.format(number=1).encode() is not None


@unhurried
@given(st.binary(max_size=200), st.sampled_from([".toml", ".json", ""]))
def test_any_bytes_give_settings_or_a_config_error(content: bytes, suffix: str) -> None:
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(content)
        file.flush()
        try:
            load(file=file.name, environ={}, flags={})
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1


any_text = st.text() | scalars.map(str)


@unhurried
@given(st.dictionaries(st.sampled_from([flag.key for flag in FLAGS]), any_text | st.booleans()))
def test_any_flags_give_settings_or_a_config_error(flags: dict[str, str | bool]) -> None:
    try:
        from_flags(flags)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1


@unhurried
@given(st.text())
def test_a_greeting_that_is_accepted_can_be_filled_in(greeting: str) -> None:
    try:
        loaded = from_flags({"text.greeting": greeting})
    except ConfigError:
        return
    assert "\n" not in loaded.text.greeting.format(number=7)


def test_an_outbox_holds_two_messages_at_least() -> None:
    flags = {"node.outbox_max_bytes": "131071"}
    with pytest.raises(ConfigError, match=r"flag --outbox-max-bytes: 131071 bytes hold no two messages"):
        load(file=None, environ={}, flags=flags)
    assert load(file=None, environ={}, flags={"node.outbox_max_bytes": "131072"})
    with pytest.raises(ConfigError, match="the default of --outbox-max-bytes"):
        load(file=None, environ={}, flags={"text.message_max_bytes": "600000"})
