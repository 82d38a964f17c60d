"""A team brings the configuration of its Centrifugo: what is taken, what is refused, what is passed over."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from spread.node.config import ConfigError, load
from spread.node.settings import Settings
from tests.hub.certificates import Authority
from tests.node.minting import CURVE_KEYS, RSA_KEY, SECRET, private_pem, public_pem

TEAM: dict[str, Any] = {
    "client": {
        "allowed_origins": ["https://play.example", "https://*.play.example"],
        "token": {
            "hmac_secret_key": SECRET,
            "hmac_previous_secret_key": "the secret of last year",
            "hmac_previous_secret_key_valid_until": 1_800_000_000,
            "rsa_public_key": public_pem(RSA_KEY),
            "issuer_regex": "^https://id\\.play\\.example/",
            "user_id_claim": "uid",
        },
        "subscription_token": {"enabled": True, "ecdsa_public_key": public_pem(CURVE_KEYS["ES256"])},
        "ping_interval": "20s",
        "pong_timeout": "7500ms",
        "stale_close_delay": "5s",
        "expired_close_delay": "1m",
        "channel_limit": 64,
        "queue_max_size": 2097152,
        "user_connection_limit": 5,
        "concurrency": 8,
        "history_max_publication_limit": 100,
        "connect_include_server_time": True,
        "subscribe_to_user_personal_channel": {
            "enabled": True,
            "personal_channel_namespace": "personal",
            "single_connection": True,
        },
        "proxy": {"connect": {"enabled": False, "endpoint": "http://backend/connect", "timeout": "1s"}},
        "channel_position_max_time_lag": "0s",
        "insecure": False,
    },
    "channel": {
        "history_meta_ttl": "48h",
        "max_length": 128,
        "without_namespace": {"allow_subscribe_for_client": True, "subscription_type": "stream"},
        "namespaces": [
            {
                "name": "personal",
                "presence": True,
                "join_leave": False,
                "history_size": 20,
                "history_ttl": "300s",
                "force_recovery": True,
            },
            {
                "name": "match",
                "presence": True,
                "join_leave": True,
                "force_push_join_leave": True,
                "history_size": 500,
                "history_ttl": "1h30m",
                "history_meta_ttl": 86400,
                "force_positioning": True,
                "allow_recovery": True,
                "allowed_delta_types": ["fossil"],
                "delta_publish": True,
                "allow_subscribe_for_client": True,
                "allow_publish_for_subscriber": True,
                "allow_presence_for_subscriber": True,
                "allow_history_for_subscriber": True,
                "channel_regex": "^[a-z0-9]{8}$",
                "publication_data_format": "json_object",
                "subscribe_proxy_enabled": False,
                "subscribe_proxy_name": "default",
                "map": {"mode": "", "key_ttl": "0s", "ordered": False},
            },
            {
                "name": "score",
                "history_size": 1,
                "history_ttl": "720s",
                "force_recovery": True,
                "force_recovery_mode": "cache",
                "auto_cache_recovery": True,
            },
            {"name": "dialog", "allow_user_limited_channels": True},
        ],
    },
    "http_api": {"key": "the key of the backend", "error_mode": "transport", "external": True},
    "websocket": {"compression": True, "compression_min_size": 256, "message_size_limit": 131072},
    "http_stream": {"enabled": True},
    "sse": {"enabled": True, "handler_prefix": "/connection/sse/"},
    "emulation": {"max_request_body_size": 32768},
    "health": {"enabled": True},
    "engine": {"type": "memory"},
    "admin": {"enabled": False, "password": "nobody knows", "secret": "this"},
    "uni_sse": {"handler_prefix": "/connection/uni_sse"},
    "usage_stats": {"disabled": True},
    "proxies": [],
    "consumers": [],
    "rpc": {"ping": {"enabled": False, "method": "ping"}, "namespaces": []},
}
"""A whole configuration, as a team of a game might have it."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def from_json(tree: object, environ: Mapping[str, str] | None = None, **options: Any) -> Settings:
    Path("centrifugo.json").write_text(json.dumps(tree))
    return load(file="centrifugo.json", environ=environ or {}, flags={}, **options)


def problem(tree: object, environ: Mapping[str, str] | None = None) -> str:
    """The line that says what is wrong, without the name of the file."""
    with pytest.raises(ConfigError) as error:
        from_json(tree, environ)
    line = str(error.value)
    assert len(line.splitlines()) == 1
    assert SECRET not in line
    return line.removeprefix("centrifugo.json: ")


def with_namespace(**options: Any) -> dict[str, Any]:
    return {"channel": {"namespaces": [{"name": "first"}, {"name": "chat", **options}]}}


def with_client(**options: Any) -> dict[str, Any]:
    return {"client": options}


def with_token(**options: Any) -> dict[str, Any]:
    return {"client": {"token": options}}


# --- what is taken ----------------------------------------------------------------------------------


def test_the_configuration_of_a_team(here: Path) -> None:
    settings = from_json(TEAM)
    client, channel = settings.client, settings.channel
    assert client.allowed_origins == ("https://play.example", "https://*.play.example")
    assert client.token.hmac_secret_key == SECRET
    assert client.token.hmac_previous_secret_key_valid_until == 1_800_000_000
    assert client.token.user_id_claim == "uid"
    assert client.subscription_token.enabled
    assert (client.ping_interval, client.pong_timeout) == (20.0, 7.5)
    assert (client.expired_close_delay, client.expired_sub_close_delay) == (60.0, 25.0)
    assert (client.channel_limit, client.user_connection_limit, client.concurrency) == (64, 5, 8)
    assert client.subscribe_to_user_personal_channel.single_connection
    assert (channel.history_meta_ttl, channel.max_length) == (172800.0, 128)
    assert channel.without_namespace.allow_subscribe_for_client
    assert [namespace.name for namespace in channel.namespaces] == ["personal", "match", "score", "dialog"]
    match = channel.namespaces[1]
    assert (match.history_size, match.history_ttl, match.history_meta_ttl) == (500, 5400.0, 86400.0)
    assert match.allowed_delta_types == ("fossil",)
    assert match.channel_regex == "^[a-z0-9]{8}$"
    assert channel.namespaces[2].force_recovery_mode == "cache"
    assert (settings.http_api.key, settings.http_api.error_mode) == ("the key of the backend", "transport")
    assert settings.websocket.compression and settings.websocket.compression_min_size == 256
    assert settings.http_stream.enabled and settings.sse.handler_prefix == "/connection/sse"
    assert settings.emulation.max_request_body_size == 32768


def test_its_secrets_are_not_shown(here: Path) -> None:
    shown = repr(from_json(TEAM))
    for secret in (SECRET, "the secret of last year", "the key of the backend"):
        assert secret not in shown


def test_it_opens_the_ports_for_clients_with_a_token(here: Path) -> None:
    tree = copy.deepcopy(TEAM)
    tree["node"] = {"http": "0.0.0.0:8000", "json": "0.0.0.0:8001"}
    assert from_json(tree).node.json == "0.0.0.0:8001"


def test_toml_says_the_same(here: Path) -> None:
    Path("spread.toml").write_text(
        '[client.token]\nhmac_secret_key = "s"\n[channel.without_namespace]\npresence = true\n'
        '[[channel.namespaces]]\nname = "chat"\nhistory_size = 10\nhistory_ttl = "60s"\n'
        '[[channel.namespaces]]\nname = "news"\n'
    )
    settings = load(file="spread.toml", environ={}, flags={})
    assert settings.client.token.hmac_secret_key == "s"
    assert settings.channel.without_namespace.presence
    assert [(each.name, each.history_ttl) for each in settings.channel.namespaces] == [
        ("chat", 60.0),
        ("news", 0.0),
    ]


def test_a_key_set_in_a_file(here: Path) -> None:
    Path("keys.json").write_text("{}")
    assert from_json(with_token(jwks_public_endpoint="keys.json"))
    assert from_json(with_token(jwks_public_endpoint=f"file://{here}/keys.json"))


def test_yaml_is_told_to_be_converted(here: Path) -> None:
    Path("config.yaml").write_text("client: {}\n")
    with pytest.raises(ConfigError, match=r"config.yaml: YAML is not read; convert it to JSON or TOML"):
        load(file="config.yaml", environ={}, flags={})


# --- the environment --------------------------------------------------------------------------------


def test_namespaces_from_the_environment() -> None:
    chat = {"name": "chat", "history_size": 3, "history_ttl": "5s", "map": {}, "allow_tags_filter": False}
    environ = {"SPREAD_CHANNEL_NAMESPACES": json.dumps([chat, {"name": "news"}])}
    settings = load(file=None, environ=environ, flags={})
    assert [(each.name, each.history_ttl) for each in settings.channel.namespaces] == [
        ("chat", 5.0),
        ("news", 0.0),
    ]
    flags = {"channel.namespaces": environ["SPREAD_CHANNEL_NAMESPACES"]}
    assert load(file=None, environ={}, flags=flags) == settings


def test_namespaces_by_name_and_their_options_one_by_one(here: Path) -> None:
    environ = {
        "SPREAD_CHANNEL_NAMESPACES": "chat game-1.x",
        "SPREAD_CHANNEL_NAMESPACES_CHAT_PRESENCE": "true",
        "SPREAD_CHANNEL_NAMESPACES_GAME_1_X_HISTORY_SIZE": "7",
        "SPREAD_CHANNEL_NAMESPACES_GAME_1_X_HISTORY_TTL": "1m",
        "SPREAD_CHANNEL_NAMESPACES_GAME_1_X_ALLOWED_DELTA_TYPES": "fossil",
        "SPREAD_CHANNEL_NAMESPACES_GAME_1_X_FORCE_RECOVERY": "on",
        "SPREAD_CLIENT_TOKEN_HMAC_SECRET_KEY": SECRET,
    }
    settings = load(file=None, environ=environ, flags={})
    chat, game = settings.channel.namespaces
    assert (chat.name, chat.presence, game.presence) == ("chat", True, False)
    assert (game.name, game.history_size, game.history_ttl) == ("game-1.x", 7, 60.0)
    assert game.allowed_delta_types == ("fossil",)
    assert settings.client.token.hmac_secret_key == SECRET
    environ = {"SPREAD_CHANNEL_NAMESPACES_FIRST_PRESENCE": "1"}
    assert from_json(with_namespace(), environ).channel.namespaces[0].presence


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        (
            {"SPREAD_CHANNEL_NAMESPACES_CHAT_PRESENSE": "1"},
            "environment variable SPREAD_CHANNEL_NAMESPACES_CHAT_PRESENSE: unknown; "
            "did you mean SPREAD_CHANNEL_NAMESPACES_CHAT_PRESENCE?",
        ),
        (
            {"SPREAD_CHANNEL_NAMESPACES_CHAT_HISTORY_TTL": "soon"},
            "environment variable SPREAD_CHANNEL_NAMESPACES_CHAT_HISTORY_TTL: must be a duration such as "
            "25s, 1m30s or 300ms, or a number of seconds (0 to 876000h), not 'soon'",
        ),
        (
            {"SPREAD_CHANNEL_NAMESPACES": '[{"name": "chat", "histroy_size": 1}]'},
            "environment variable SPREAD_CHANNEL_NAMESPACES: "
            "unknown key channel.namespaces[0].histroy_size; did you mean history_size?",
        ),
        (
            {"SPREAD_CHANNEL_NAMESPACES": '[{"name": "chat", "allow_tags_filter": true}]'},
            "environment variable SPREAD_CHANNEL_NAMESPACES: Spread does not have "
            "channel.namespaces[0].allow_tags_filter; take this out, or pass over it with --lenient-config",
        ),
        (
            {"SPREAD_CHANNEL_NAMESPACES": '{"name": "chat"}'},
            "environment variable SPREAD_CHANNEL_NAMESPACES: must be a list of tables in JSON, "
            'not \'{"name": "chat"}\'',
        ),
        (
            {"SPREAD_CHANNEL_NAMESPACES": "[{]"},
            "environment variable SPREAD_CHANNEL_NAMESPACES: must be a list of tables in JSON, not '[{]'",
        ),
        (
            {"SPREAD_CHANNEL_NAMESPACES": "[1]"},
            "environment variable SPREAD_CHANNEL_NAMESPACES: channel.namespaces[0]: must be a table, not 1",
        ),
        (
            {"SPREAD_ADMIN_ENABLED": "true"},
            "environment variable SPREAD_ADMIN_ENABLED: Spread does not have admin; take this out, "
            "or pass over it with --lenient-config",
        ),
        (
            {"SPREAD_CLIENT_TOKEN_HMAC_SECRET": "x"},
            "environment variable SPREAD_CLIENT_TOKEN_HMAC_SECRET: unknown; "
            "did you mean SPREAD_CLIENT_TOKEN_HMAC_SECRET_KEY?",
        ),
        (
            {"SPREAD_HTTP_API_INSECURE": "perhaps"},
            "environment variable SPREAD_HTTP_API_INSECURE: must be true or false "
            "(or yes, no, on, off, 1, 0), not 'perhaps'",
        ),
    ],
)
def test_a_wrong_variable(here: Path, environ: dict[str, str], says: str) -> None:
    assert problem(with_namespace(), environ) == says


def test_a_variable_for_a_namespace_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="unknown; there is no such namespace"):
        load(file=None, environ={"SPREAD_CHANNEL_NAMESPACES_CHAT_PRESENCE": "1"}, flags={})


def test_a_variable_that_asks_for_nothing_is_taken() -> None:
    environ = {"SPREAD_ADMIN_ENABLED": "false", "SPREAD_PROXIES": "[]", "SPREAD_GRPC_API_ENABLED": "0"}
    assert load(file=None, environ=environ, flags={}) == Settings()


# --- what Spread does not have ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "keys"),
    [
        ({"admin": {"enabled": True, "password": "x"}}, "admin"),
        ({"http_server": {"port": 9000}}, "http_server.port (node.http instead)"),
        (
            {"http_server": {"tls": {"enabled": True}}},
            "http_server.tls (node.tls_cert and node.tls_key instead)",
        ),
        (
            {"engine": {"type": "redis", "redis": {"address": "r"}}},
            "engine.type (hub.url instead), engine.redis",
        ),
        ({"log": {"level": "debug"}}, "log.level (node.log_level instead)"),
        ({"prometheus": {"enabled": True}}, "prometheus (node.ops instead)"),
        (
            {"health": {"enabled": True, "handler_prefix": "/ok"}},
            "health.handler_prefix (/health of node.http",
        ),
        ({"uni_websocket": {"enabled": True}}, "uni_websocket"),
        ({"webtransport": {"enabled": True}}, "webtransport"),
        ({"proxies": [{"name": "x"}]}, "proxies"),
        ({"consumers": [{"name": "x"}]}, "consumers"),
        ({"rpc": {"namespaces": [{"name": "x"}]}}, "rpc.namespaces"),
        ({"shutdown": {"timeout": "30s"}}, "shutdown.timeout (node.stop_seconds instead)"),
        ({"clickhouse_analytics": {"enabled": True}}, "clickhouse_analytics"),
        ({"node": {"name": "a"}}, "node.name"),
        ({"pid_file": "/run/x"}, "pid_file"),
        (with_client(proxy={"connect": {"enabled": True}}), "client.proxy.connect"),
        (with_client(channel_position_max_time_lag="5s"), "client.channel_position_max_time_lag"),
        (with_client(write_delay="5s"), "client.write_delay"),
        (
            with_token(insecure_skip_jwks_endpoint_safety_check=True),
            "client.token.insecure_skip_jwks_endpoint_",
        ),
        ({"websocket": {"read_buffer_size": 512}}, "websocket.read_buffer_size"),
        ({"channel": {"proxy": {"subscribe": {"endpoint": "x"}}}}, "channel.proxy.subscribe"),
        (
            {"channel": {"without_namespace": {"subscription_type": "map"}}},
            "channel.without_namespace.subscr",
        ),
        (with_namespace(subscribe_proxy_enabled=True), "channel.namespaces[1].subscribe_proxy_enabled"),
        (with_namespace(subscribe_proxy_name="mine"), "channel.namespaces[1].subscribe_proxy_name"),
        (with_namespace(allow_tags_filter=True), "channel.namespaces[1].allow_tags_filter"),
        (with_namespace(map={"mode": "ephemeral"}), "channel.namespaces[1].map.mode"),
        (
            with_namespace(shared_poll={"publish_enabled": True}),
            "channel.namespaces[1].shared_poll.publish_en",
        ),
        (with_namespace(batch_max_size=10), "channel.namespaces[1].batch_max_size"),
    ],
)
def test_what_spread_does_not_have_is_named(here: Path, tree: dict[str, Any], keys: str) -> None:
    line = problem(tree)
    assert line.startswith(f"Spread does not have {keys}"), line
    assert line.endswith("; take this out, or pass over it with --lenient-config")
    warnings: list[str] = []
    assert isinstance(from_json(tree, warn=warnings.append), Settings)
    assert warnings == [f"centrifugo.json: {line}"]


def test_what_is_wrong_in_a_file_is_told_with_it(here: Path) -> None:
    tree = {
        "admin": {"enabled": True},
        "client": {"ping_interval": "soon", "chanel_limit": 1},
        **with_namespace(histroy_size=1, history_ttl="never"),
        "portal": 1,
    }
    with pytest.raises(ConfigError) as caught:
        from_json(tree)
    lines = [str(error) for error in (caught.value, *caught.value.more)]
    for words in (
        "client.ping_interval: must be a duration",
        "unknown key client.chanel_limit; did you mean client.channel_limit?",
        "unknown key channel.namespaces[1].histroy_size; did you mean history_size?",
        "channel.namespaces[1].history_ttl: must be a duration",
        "unknown section portal",
        "Spread does not have admin; take this out",
    ):
        assert sum(words in line for line in lines) == 1, words
    assert len(lines) == 6
    with pytest.raises(ConfigError) as caught:
        from_json(tree, warn=lambda line: None)
    assert len(caught.value.more) == 4, "lenient is not careless"


def test_a_file_of_before_v6_is_told_to_be_one(here: Path) -> None:
    assert "Centrifugo before v6" in problem({"port": 8000, "namespaces": []})


def test_all_of_it_is_named_at_once(here: Path) -> None:
    tree = {**with_namespace(map={"mode": "x"}), "admin": {"enabled": True}, "dev": {"enabled": True}}
    assert problem(tree).startswith("Spread does not have channel.namespaces[1].map.mode, admin, dev; ")


@pytest.mark.parametrize(
    "tree",
    [
        {"admin": {}, "grpc_api": {"enabled": False, "port": 10000}, "debug": False},
        {"engine": {"type": "memory"}, "broker": {"enabled": False, "type": "redis"}},
        {"opentelemetry": {"api": True}},
        {"proxies": [], "consumers": None, "pid_file": "", "enable_unreleased_features": False},
        {"rpc": {"without_namespace": {"proxy_enabled": False}, "namespace_boundary": ":"}},
        {"http_server": {"port": 8000, "address": "", "tls": {"enabled": False, "cert_pem": "x"}}},
        with_client(proxy={}, allowed_delta_types=[], rate_limit={"client_command": {"enabled": False}}),
        with_namespace(subscription_type="stream", shared_poll={}, publish_proxy_name="default"),
        with_namespace(map={"allow_publish_for_client": False, "client_key": ""}),
    ],
)
def test_what_is_off_is_passed_over(here: Path, tree: dict[str, Any]) -> None:
    settings = from_json(tree)
    assert settings.client == Settings().client


def test_a_misspelled_key_is_an_error_for_the_lenient_too(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean client\.channel_limit"):
        from_json({"client": {"chanel_limit": 1}}, warn=lambda line: None)


# --- misspelled -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (
            with_namespace(histroy_size=1),
            "unknown key channel.namespaces[1].histroy_size; did you mean history_size?",
        ),
        (
            with_namespace(zzz=1),
            "unknown key channel.namespaces[1].zzz; spread-node --print-config shows all options",
        ),
        (
            {"channel": {"without_namespace": {"presense": True}}},
            "unknown key channel.without_namespace.presense; "
            "did you mean channel.without_namespace.presence?",
        ),
        (
            {"client": {"tokn": {"hmac_secret_key": "x"}}},
            "unknown key client.tokn; did you mean client.token?",
        ),
        (
            with_token(hmac_secret="x"),
            "unknown key client.token.hmac_secret; did you mean client.token.hmac_secret_key?",
        ),
        (
            with_client(hmac_secret_key="x"),
            "unknown key client.hmac_secret_key; did you mean client.token.hmac_secret_key?",
        ),
        (
            {"token_hmac_secret_key": "x"},
            "unknown section token_hmac_secret_key; did you mean client.token.hmac_secret_key?",
        ),
        ({"api_key": "x"}, "unknown section api_key; did you mean http_api.key?"),
        ({"namespaces": []}, "unknown section namespaces; did you mean channel.namespaces?"),
        ({"allowed_origins": []}, "unknown section allowed_origins; did you mean client.allowed_origins?"),
        ({"channels": {}}, "unknown section channels; did you mean channel?"),
        (
            {"client": {"token.audience": "x"}},
            "unknown key client.token.audience; write audience inside of the table client.token",
        ),
        ({"a.b": 1}, "unknown section a.b; spread-node --print-config shows all keys"),
        ({"client": []}, "client must be a table, not a list"),
        (with_client(token="x"), "client.token must be a table, not 'x'"),
        (
            {"channel": {"namespaces": {"name": "x"}}},
            "channel.namespaces: must be a list of tables, not a table",
        ),
        ({"channel": {"namespaces": ["x"]}}, "channel.namespaces[0]: must be a table, not 'x'"),
        ({"channel": {"namespaces": [{"presence": True}]}}, "channel.namespaces[0]: has no name"),
        ({"channel": {"namespaces": [{"name": 5}]}}, "channel.namespaces[0].name: must be text, not 5"),
    ],
)
def test_a_misspelled_key_is_told_at_every_depth(here: Path, tree: dict[str, Any], says: str) -> None:
    assert problem(tree) == says


# --- wrong values -----------------------------------------------------------------------------------

DURATION = "must be a duration such as 25s, 1m30s or 300ms, or a number of seconds"


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (with_client(ping_interval="25"), ""),
        (with_client(ping_interval=20.5), ""),
        (with_client(ping_interval="-1s"), ""),
        (with_client(ping_interval="soon"), f"client.ping_interval: {DURATION} (-1s to 1h), not 'soon'"),
        (with_client(ping_interval=True), f"client.ping_interval: {DURATION} (-1s to 1h), not true"),
        (with_client(ping_interval="2h"), f"client.ping_interval: {DURATION} (-1s to 1h), not '2h'"),
        (with_client(ping_interval=[1]), f"client.ping_interval: {DURATION} (-1s to 1h), not a list"),
        (with_client(ping_interval="300ms"), "client.ping_interval: 300ms: 1s or more, or -1 for no pings"),
        (with_client(ping_interval=0), "client.ping_interval: 0s: 1s or more, or -1 for no pings"),
        (with_client(ping_interval=-1, pong_timeout="30s"), ""),
        (with_client(pong_timeout=0), "client.pong_timeout: 0s: more than 0, or -1 to wait for ever"),
        (
            with_client(pong_timeout="25s"),
            "client.pong_timeout: 25s is not shorter than client.ping_interval, 25s",
        ),
        (
            with_client(stale_close_delay=0),
            f"client.stale_close_delay: {DURATION} (above 0, up to 1h), not 0",
        ),
        (with_client(allowed_origins="*"), "client.allowed_origins: must be a list of texts, not '*'"),
        (with_client(allowed_origins=["*", 5]), "client.allowed_origins: must be a list of texts, not 5"),
        (
            with_client(user_id_http_header="X User"),
            "client.user_id_http_header: 'X User' is no header's name",
        ),
        (with_client(user_id_http_header="X-User-Id"), ""),
        (
            with_namespace(allowed_delta_types=["fossil", "xdelta"]),
            "channel.namespaces[1].allowed_delta_types: must be a list of these: fossil, not 'xdelta'",
        ),
        (
            with_namespace(force_recovery_mode="map"),
            "channel.namespaces[1].force_recovery_mode: must be empty or stream or cache, not 'map'",
        ),
        (
            with_namespace(publication_data_format="xml"),
            "channel.namespaces[1].publication_data_format: must be empty or json or json_object or binary, "
            "not 'xml'",
        ),
        (with_token(hmac_secret_key=5), "client.token.hmac_secret_key: must be text, not this"),
        (with_token(hmac_secret_key=[SECRET]), "client.token.hmac_secret_key: must be text, not this"),
        (
            with_token(hmac_secret_key=f"{SECRET}\ud800"),
            "client.token.hmac_secret_key: is not valid UTF-8 text",
        ),
        (
            with_token(hmac_secret_key=public_pem(RSA_KEY)),
            "client.token.hmac_secret_key: the HMAC secret is empty, or is a key of another kind",
        ),
        (
            with_token(hmac_previous_secret_key=SECRET),
            "client.token.hmac_previous_secret_key: a previous secret without hmac_secret_key; "
            "give that, too",
        ),
        (
            with_token(hmac_secret_key=SECRET, hmac_previous_secret_key=public_pem(RSA_KEY)),
            "client.token.hmac_previous_secret_key: the HMAC secret is empty, or is a key of another kind",
        ),
        (
            with_token(rsa_public_key=private_pem(RSA_KEY)),
            "client.token.rsa_public_key: the RSA public key is not a public key in PEM",
        ),
        (
            with_token(ecdsa_public_key=public_pem(RSA_KEY)),
            "client.token.ecdsa_public_key: the ECDSA public key is a key of another kind",
        ),
        (
            with_client(subscription_token={"rsa_public_key": "x"}),
            "client.subscription_token.rsa_public_key: the RSA public key is not a public key in PEM",
        ),
        (with_token(jwks_public_endpoint="https://id.example/keys"), ""),
        (
            with_token(jwks_public_endpoint="http://id.example/keys"),
            "client.token.jwks_public_endpoint: the URL of the key set is http, which is allowed for this "
            "machine only: use https",
        ),
        (
            with_token(jwks_public_endpoint="keys.json"),
            "client.token.jwks_public_endpoint: 'keys.json' cannot be read: No such file or directory",
        ),
        (
            with_token(jwks_public_endpoint="https://id.example/{{tenant}}"),
            "client.token.jwks_public_endpoint: placeholders ({{...}}) are not filled in; name one key set",
        ),
        (
            with_token(jwks_public_endpoint="https://a", rsa_public_key=public_pem(RSA_KEY)),
            "client.token.jwks_public_endpoint: is given together with rsa_public_key or ecdsa_public_key; "
            "give either",
        ),
        (
            with_token(user_id_claim="a.b"),
            "client.token.user_id_claim: 'a.b': only letters and _ may be in it",
        ),
        (
            with_token(audience="a", audience_regex="b"),
            "client.token.audience_regex: is given together with audience; give one of them",
        ),
        (
            with_token(issuer_regex="("),
            "client.token.issuer_regex: '(' is no regular expression: missing ), unterminated subpattern at "
            "position 0",
        ),
    ],
)
def test_values_of_clients(here: Path, tree: dict[str, Any], says: str) -> None:
    if says:
        assert problem(tree) == says
    else:
        assert isinstance(from_json(tree), Settings)


HISTORY = {"history_size": 10, "history_ttl": "60s"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "x"}, "name: 'x': two or more of letters, digits and - _ . make a name"),
        ({"name": "a:b"}, "name: 'a:b': two or more of letters"),
        ({"name": "ab\n"}, "name: 'ab\\n': two or more of letters"),
        ({"name": "大厅"}, "name: '大厅': two or more of letters"),
        ({"name": "first"}, "name: 'first' is there twice"),
        ({"history_size": 1}, "history_size: is given without history_ttl; give both, or neither"),
        ({"history_ttl": 1}, "history_ttl: is given without history_size; give both, or neither"),
        (
            {**HISTORY, "history_ttl": "1500ms"},
            "history_ttl: 1s500ms is not a number of whole seconds; write 2s",
        ),
        ({"history_meta_ttl": 0.5}, "history_meta_ttl: 500ms is not a number of whole seconds; write 1s"),
        ({**HISTORY, "history_ttl": "721h"}, "history_ttl: 721h is longer than history_meta_ttl, 720h"),
        ({**HISTORY, "history_meta_ttl": "59s"}, "history_ttl: 1m is longer than history_meta_ttl, 59s"),
        ({**HISTORY, "history_ttl": "721h", "history_meta_ttl": "721h"}, ""),
        ({"force_recovery": True}, "force_recovery: needs history; give history_size and history_ttl"),
        ({"channel_regex": "[a"}, "channel_regex: '[a' is no regular expression: unterminated character set"),
        ({"channel_regex": "[[:alpha:]]"}, "channel_regex: '[[:alpha:]]' is no regular expression: Possible"),
        ({"history_size": -1}, "history_size: must be a whole number (0 to 10000000), not -1"),
    ],
)
def test_options_of_namespaces(here: Path, options: dict[str, Any], says: str) -> None:
    if not says:
        assert isinstance(from_json(with_namespace(**options)), Settings)
        return
    assert problem(with_namespace(**options)).startswith(f"channel.namespaces[1].{says}")
    if "name" not in options:
        tree = {"channel": {"without_namespace": options}}
        assert problem(tree).startswith(f"channel.without_namespace.{says}")


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (
            with_namespace(force_positioning=True),
            "channel.namespaces[1].force_positioning: needs history; give history_size and history_ttl",
        ),
        (
            with_namespace(allow_positioning=True),
            "channel.namespaces[1].allow_positioning: needs history; give history_size and history_ttl",
        ),
        (
            {"channel": {"without_namespace": {"allow_recovery": True}}},
            "channel.without_namespace.allow_recovery: needs history; give history_size and history_ttl",
        ),
        (
            with_namespace(force_push_join_leave=True),
            "channel.namespaces[1].force_push_join_leave: needs join_leave; turn that on, too",
        ),
        (
            with_namespace(**HISTORY, allowed_delta_types=["fossil"]),
            "channel.namespaces[1].allowed_delta_types: needs positions to be followed; "
            "turn on positioning or recovery, forced or allowed",
        ),
        (
            with_namespace(**HISTORY, force_recovery=True, auto_cache_recovery=True),
            "channel.namespaces[1].auto_cache_recovery: needs force_recovery, "
            "and force_recovery_mode set to cache",
        ),
        (
            with_client(queue_max_size=100_000),
            "client.queue_max_size: 100000 bytes hold no two messages of websocket.message_size_limit, "
            "65536; give it 131072 or more, or make messages smaller",
        ),
    ],
)
def test_what_is_without_effect_is_passed_over_by_the_lenient(
    here: Path, tree: dict[str, Any], says: str
) -> None:
    assert problem(tree) == says
    warnings: list[str] = []
    assert isinstance(from_json(tree, warn=warnings.append), Settings)
    assert warnings == [f"centrifugo.json: {says}"]


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (
            {"channel": {"history_meta_ttl": "1.5s"}},
            "channel.history_meta_ttl: 1s500ms is not a number of whole seconds; write 2s",
        ),
        (
            {"channel": {"namespace_boundary": "-", "namespaces": [{"name": "a-b"}]}},
            "channel.namespaces[0].name: 'a-b' has channel.namespace_boundary in it, "
            "so no channel is ever in it",
        ),
        (
            with_client(
                subscribe_to_user_personal_channel={"enabled": True, "personal_channel_namespace": "own"}
            ),
            "client.subscribe_to_user_personal_channel.personal_channel_namespace: "
            "there is no namespace 'own' in channel.namespaces",
        ),
        (
            with_client(subscribe_to_user_personal_channel={"enabled": True, "single_connection": True}),
            "client.subscribe_to_user_personal_channel.single_connection: needs presence in "
            "channel.without_namespace",
        ),
        (
            {
                **with_client(
                    subscribe_to_user_personal_channel={
                        "enabled": True,
                        "single_connection": True,
                        "personal_channel_namespace": "chat",
                    }
                ),
                **with_namespace(),
            },
            "client.subscribe_to_user_personal_channel.single_connection: "
            "needs presence in the namespace 'chat'",
        ),
        ({"text": {"channel": "hall:1"}}, "text.channel: 'hall:1' is in none of channel.namespaces"),
        (
            {"websocket": {"handler_prefix": "ws"}},
            "websocket.handler_prefix: 'ws' is no path; it begins with /, as /connection does",
        ),
        (
            {"websocket": {"handler_prefix": "/api/"}},
            "websocket.handler_prefix: '/api' is taken by http_api; take another path",
        ),
        (
            {"http_api": {"handler_prefix": "/health"}},
            "http_api.handler_prefix: '/health' is taken by the health check; take another path",
        ),
        (
            {"sse": {"enabled": True, "handler_prefix": "/emulation"}},
            "the default of --emulation-handler-prefix: '/emulation' is taken by sse; take another path",
        ),
    ],
)
def test_what_does_not_go_together(here: Path, tree: dict[str, Any], says: str) -> None:
    assert problem(tree) == says


@pytest.mark.parametrize(
    "tree",
    [
        {"sse": {"handler_prefix": "/emulation"}},
        {"http_api": {"disabled": True, "handler_prefix": "/health"}},
        {"websocket": {"disabled": True, "handler_prefix": "/api"}},
        {"text": {"channel": "chat:1"}, **with_namespace()},
        with_client(subscribe_to_user_personal_channel={"single_connection": True}),
    ],
)
def test_what_goes_together(here: Path, tree: dict[str, Any]) -> None:
    assert isinstance(from_json(tree), Settings)


# --- public addresses -------------------------------------------------------------------------------

PUBLIC = {"http": "0.0.0.0:8000", "json": "0.0.0.0:8001", "ops": "off"}
LET_IN = "add --allow-anonymous to let anyone in, or listen on 127.0.0.1"


@pytest.mark.parametrize(
    ("client", "why"),
    [
        ({}, f"clients are not authenticated; set a key in client.token, {LET_IN}"),
        ({"insecure": True}, f"client.insecure lets anyone in; {LET_IN}"),
        (
            {"insecure_skip_token_signature_verify": True},
            f"client.insecure_skip_token_signature_verify lets anyone in; {LET_IN}",
        ),
        (
            {"allow_anonymous_connect_without_token": True},
            f"client.allow_anonymous_connect_without_token lets anyone in; {LET_IN}",
        ),
        (
            {"user_id_http_header": "X-User"},
            f"client.user_id_http_header lets anyone in who does not come through your proxy; {LET_IN}",
        ),
    ],
)
@pytest.mark.parametrize("key", ["http", "json"])
def test_a_public_address_needs_tokens(here: Path, client: dict[str, Any], why: str, key: str) -> None:
    token = {"token": {"hmac_secret_key": SECRET}} if client else {}
    tree = {"node": {key: PUBLIC[key]}, "client": {**client, **token}}
    assert problem(tree) == f"node.{key}: {PUBLIC[key]} can be reached from other machines and {why}"
    tree["node"]["allow_anonymous"] = True
    assert isinstance(from_json(tree), Settings)


@pytest.mark.parametrize(
    "token",
    [
        {"hmac_secret_key": SECRET},
        {"rsa_public_key": public_pem(RSA_KEY)},
        {"ecdsa_public_key": public_pem(CURVE_KEYS["ES384"])},
        {"jwks_public_endpoint": "https://id.example/keys"},
    ],
)
def test_with_tokens_it_may_be_public(here: Path, token: dict[str, Any]) -> None:
    assert isinstance(from_json({"node": PUBLIC, "client": {"token": token}}), Settings)
    tree = {"node": PUBLIC, "client": {"token": token}, "text": {"listen": "0.0.0.0:8007"}}
    assert problem(tree) == (
        "text.listen: 0.0.0.0:8007 can be reached from other machines and clients are not authenticated; "
        + LET_IN
    )


def test_the_api_is_never_public_without_a_key(here: Path) -> None:
    tree: dict[str, Any] = {
        "node": {**PUBLIC, "allow_anonymous": True},
        "http_api": {"insecure": True},
    }
    assert problem(tree).startswith("http_api.insecure: anybody who can reach 0.0.0.0:8000 could publish")
    tree["http_api"]["disabled"] = True
    assert isinstance(from_json(tree), Settings)
    assert isinstance(from_json({"http_api": {"insecure": True}}), Settings)


def test_the_ports_are_distinct(here: Path) -> None:
    assert problem({"node": {"json": "127.0.0.1:8000"}}) == (
        "node.json: 127.0.0.1:8000 is taken by node.http; take another port"
    )
    assert "meets 127.0.0.1:8100 of node.json" in problem({"node": {"json": "127.0.0.1:8100"}})


# --- certificates -----------------------------------------------------------------------------------


def test_a_certificate_and_its_key(here: Path) -> None:
    authority = Authority(here)
    one, two = authority.issue("one"), authority.issue("two")
    assert from_json({"node": {"tls_cert": one.cert, "tls_key": one.key}}).node.tls_cert == one.cert
    line = problem({"node": {"tls_cert": one.cert, "tls_key": two.key}})
    assert line.startswith("node.tls_key: ") and "is not the key of the certificate in" in line


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (
            {"tls_cert": "a.pem"},
            "node.tls_cert: node.tls_cert is given without node.tls_key; give both, or neither",
        ),
        (
            {"tls_key": "a.pem"},
            "node.tls_key: node.tls_key is given without node.tls_cert; give both, or neither",
        ),
        ({"tls_cert": "no.pem", "tls_key": "a.pem"}, "node.tls_cert: 'no.pem' cannot be read: No such file"),
        (
            {"tls_cert": "a.pem", "tls_key": "a.pem"},
            "node.tls_key: 'a.pem' and 'a.pem' are not a certificate and its key in PEM, without a password",
        ),
    ],
)
def test_files_that_are_no_certificate(here: Path, node: dict[str, str], says: str) -> None:
    Path("a.pem").write_text("nothing of the kind")
    assert problem({"node": node}).startswith(says)
