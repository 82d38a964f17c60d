"""docs/operations.md, against what is really exported, set, answered and allowed."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from spread.hub.roster import HEARTBEAT_SECONDS, LEASE_SECONDS
from spread.hub.server import MAX_PUBLICATION_BYTES
from spread.node import cli
from spread.node.addresses import LAST_SHARD
from spread.node.child import KILL_AFTER_SECONDS
from spread.node.config.flags import FLAGS
from spread.node.listen import BACKLOG
from spread.node.owners.counters import OwnersCounters
from spread.node.owners.metrics import families
from spread.node.owners.surroundings import Limits
from spread.node.settings import NodeSettings
from spread.node.shard import RESERVED_FILES
from spread.node.web.site import IDLE_SECONDS
from tests.deploy.files import ROOT
from tests.hub.servers import Sentinel, Valkey
from tests.live.processes import READY, Crowd, Node, crowd_of, home, until
from tests.live.raw import HttpStream, JsonClient, requested

DOCUMENT = (ROOT / "docs" / "operations.md").read_text()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def table(*head: str) -> list[list[str]]:
    """The cells of the rows of the table with this head."""
    rows: list[list[str]] = []
    inside = False
    for line in DOCUMENT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        if cells == list(head):
            inside = True
        elif inside and not cells:
            break
        elif inside and not line.startswith("|---"):
            assert len(cells) == len(head), line
            rows.append(cells)
    assert rows, head
    return rows


def keys(rows: list[list[str]]) -> list[str]:
    return [row[0].strip("`") for row in rows]


# -- the tables --------------------------------------------------------------------------------------------


def test_the_limits_are_those_of_the_settings() -> None:
    rows = table("setting", "default", "bounds", "what happens there")
    written = {key: (float(row[1]), row[2]) for key, row in zip(keys(rows), rows, strict=True)}
    # The sections that are Centrifugo's stand in configuration.md: see test_configuration.py.
    assert written == {
        flag.key: (float(flag.default), flag.bounds)
        for flag in FLAGS
        if isinstance(flag.default, int | float)
        and flag.kind in ("int", "float")
        and flag.section in ("node", "hub", "text")
    }


def test_those_of_stateful_channels_too() -> None:
    rows = table("setting of stateful channels", "default", "bounds", "what happens there")
    written = {key: (float(row[1]), row[2]) for key, row in zip(keys(rows), rows, strict=True)}
    known = {f"app.{name}" for name in Limits.__dataclass_fields__}
    assert written == {
        flag.key: (float(cast(float, flag.default)), flag.bounds) for flag in FLAGS if flag.key in known
    }
    metrics = [(family.name, family.type) for family in families(OwnersCounters(), 1)]
    assert sorted(
        (row[0].strip("`").removesuffix("_total"), row[1])
        for row in table("metric of stateful channels", "type", "meaning")
    ) == sorted(metrics)


def test_those_of_an_app_too() -> None:
    rows = table("setting of an app", "default", "bounds", "what happens there")
    written = {key: (float(row[1]), row[2]) for key, row in zip(keys(rows), rows, strict=True)}
    of_channels = {f"app.{name}" for name in Limits.__dataclass_fields__}
    assert written == {
        flag.key: (float(cast(float, flag.default)), flag.bounds)
        for flag in FLAGS
        if flag.section == "app" and flag.kind in ("int", "float") and flag.key not in of_channels
    }


def test_what_cannot_be_set_is_what_the_code_has() -> None:
    values = [row[1] for row in table("what", "value")]
    assert values == [
        f"{MAX_PUBLICATION_BYTES >> 20} MiB",
        f"{LEASE_SECONDS:g} s",
        f"{HEARTBEAT_SECONDS:g} s",
        str(BACKLOG),
        str(LAST_SHARD),
        str(RESERVED_FILES),
        f"{IDLE_SECONDS:g} s",
    ]


def test_the_ports_are_the_defaults() -> None:
    defaults = {flag.key: str(flag.default) for flag in FLAGS}
    for port, key, _ in table("port", "setting", "who may reach it"):
        assert defaults[key.strip("`")].endswith(f":{port.removesuffix(' + N')}")


def test_the_exit_codes_are_those_of_the_command() -> None:
    codes = [int(row[0]) for row in table("code", "meaning")]
    assert codes == [cli.CLEAN, cli.FAILED, cli.USAGE, cli.TAKEN, cli.HUB]


def test_every_setting_that_is_named_exists() -> None:
    sections = "|".join(sorted({flag.section for flag in FLAGS}))
    named = set(re.findall(rf"`((?:{sections})(?:\.[a-z_]+)+)`", DOCUMENT))
    every = (ROOT / "docs" / "configuration.md").read_text()  # which is made of the settings, flags or none
    known = {flag.key for flag in FLAGS} | set(re.findall(r"^\| `([a-z_.]+)` \|", every, re.MULTILINE))
    tables = {key.rpartition(".")[0] for key in known}
    assert named <= known | tables


# -- what a shard answers ----------------------------------------------------------------------------------


@pytest.mark.live
def test_the_metrics_and_paths_are_those_of_a_real_shard(stack: ExitStack) -> None:
    path = stack.enter_context(home())
    node = Node("--shard", "auto", "--hub", "memory:", "--ops", "127.0.0.1:0", home=path)
    stack.callback(node.close)
    node.wait_ready(1)
    found = re.search(r" ops=(\S+)", node.ready[0][1])
    assert found
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    answers = {}
    for name in keys(table("path of the ops port", "answer")):
        with opener.open(f"http://{found[1]}{name}", timeout=10) as answer:
            answers[name] = answer.read().decode()
    text = answers["/metrics"]
    types = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    labels: dict[str, set[str]] = {name: set() for name, _ in types}
    for name, given in re.findall(r"^(\w+)\{(.*)\} ", text, re.MULTILINE):
        labels[name] |= set(re.findall(r'(\w+)="', given))
    exported = {(name + "".join(f"{{{label}}}" for label in labels[name]), kind) for name, kind in types}
    rows = table("metric", "type", "meaning")
    written = {(row[0].strip("`"), row[1]) for row in rows}
    assert len(written) == len(rows)
    if not any(name.startswith("process_") for name, _ in exported):
        written = {(name, kind) for name, kind in written if not name.startswith("process_")}
    assert written == exported
    limits = set(re.findall(r'^spread_limit\{setting="(\S+)"\}', text, re.MULTILINE))
    bounded = set(keys(table("setting", "default", "bounds", "what happens there")))
    assert limits <= bounded | {flag.key for flag in FLAGS if flag.section not in ("node", "hub", "text")}


@pytest.mark.live
def test_the_metrics_of_an_app_are_those_of_a_real_shard(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "game.py").write_text(
        "from spread.node import App\n\nclass Game(App):\n    def starting(self):\n"
        "        self.every(60, self.check)\n    def connected(self, client): pass\n"
    )
    monkeypatch.chdir(tmp_path)
    path = stack.enter_context(home())
    node = Node("--hub", "memory:", "--ops", "127.0.0.1:0", "--app", "game:Game", home=path)
    stack.callback(node.close)
    crowd_of(stack, node.wait_ready(1), 1)
    found = re.search(r" ops=(\S+)", node.ready[0][1])
    assert found
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{found[1]}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    types = re.findall(r"^# TYPE (spread_app_\S+) (\S+)$", text, re.MULTILINE)
    labels = {
        name: {
            label
            for given in re.findall(rf"^{name}(?:_bucket)?\{{(.*)\}} ", text, re.MULTILINE)
            for label in re.findall(r'(\w+)="', given)
        }
        - {"le"}
        for name, _ in types
    }
    exported = {(name, kind, frozenset(labels[name])) for name, kind in types}
    written = set()
    for name, kind, _ in table("metric of an app", "type", "meaning"):
        plain, _, given = name.strip("`}").partition("{")
        written.add((plain, kind, frozenset(given.split(",")) - {""}))
    assert written == exported
    assert 'spread_app_hook_calls_total{hook="connected"} 1.0' in text
    assert "spread_app_timers 1.0" in text


# -- the ACL rule ------------------------------------------------------------------------------------------


PRESENCE_COMMANDS = {
    *("hget", "hgetall", "hlen", "hincrby", "hscan"),
    *("zadd", "zrem", "zrangebyscore", "zrevrange", "pexpireat"),
}


STREAM_COMMANDS = {"hmget", "expire", "xadd", "xrange", "xrevrange"}


def acl_rule() -> list[str]:
    [line] = [line for line in DOCUMENT.splitlines() if line.startswith("ACL SETUSER")]
    return line.replace("PASSWORD", "s3cret").split()


@pytest.mark.live
@pytest.mark.parametrize("database", [False, True], ids=["plain", "with a database"])
def test_the_acl_rule_allows_all_that_shards_do_and_nothing_they_do_not(
    stack: ExitStack, database: bool
) -> None:
    server = stack.enter_context(Valkey())
    rule = [*acl_rule(), *(["+select"] if database else [])]
    assert server.command(*rule) == b"OK"
    server.command("CONFIG", "RESETSTAT")
    path = stack.enter_context(home())
    hub = f"redis://spread:s3cret@127.0.0.1:{server.port}{'/3' if database else ''}"
    quick = ("--hub", hub, "--hub-linger-seconds", "0.1", "--hub-probe-seconds", "0.1")
    nodes, crowds = [], []
    for _ in range(2):
        node = Node("--shard", "auto", *quick, home=path)
        stack.callback(node.close)
        crowd = Crowd(node.wait_ready(1), 1)
        stack.callback(crowd.close)
        crowd.greeted()
        crowd.clients[0].say(b"/join room\n")
        nodes.append(node)
        crowds.append(crowd)
    speaker, listener = crowds

    def heard(message: bytes) -> bool:
        listener.pump()
        if message in listener.clients[0].received:
            return True
        speaker.clients[0].say(message)
        return False

    until(lambda: heard(b"before\n"), 20, "a message")
    # An outage, after which the shards look for each other.
    server.command("CLIENT", "KILL", "USER", "spread")
    until(lambda: heard(b"after\n"), 20, "a message after the outage")
    granted = [word.removeprefix("+") for word in rule if word.startswith("+")]
    at_the_end = {"del", "hdel"}
    # Clients of the text protocol use no presence and no history; tests/hub/test_presence.py and
    # tests/hub/test_streams_real.py do, under this rule.
    granted = [command for command in granted if command not in PRESENCE_COMMANDS | STREAM_COMMANDS]
    unused = set(granted) - at_the_end

    def all_are_used() -> bool:
        unused.difference_update([command for command in unused if server.calls(command)])
        return not unused

    try:
        until(all_are_used, 20, "every command that is allowed to be used")
    except AssertionError as error:
        raise AssertionError(f"{error}: {unused}") from error
    for crowd in crowds:
        crowd.close()
    assert [node.stop() for node in nodes] == [0, 0]
    assert all(server.calls(command) for command in granted)
    assert server.command("ACL", "LOG") == [], "something was refused"
    assert "refused" not in nodes[0].stderr()


CLIENTS = """
[http_api]
insecure = true

[client]
insecure = true

[client.subscribe_to_user_personal_channel]
enabled = true
single_connection = true

[channel.without_namespace]
presence = true
join_leave = true
force_push_join_leave = true
history_size = 10
history_ttl = "60s"
force_recovery = true

[http_stream]
enabled = true
"""


@pytest.mark.live
def test_the_acl_rule_allows_all_that_clients_of_the_protocol_and_backends_do(stack: ExitStack) -> None:
    server = stack.enter_context(Valkey())
    assert server.command(*acl_rule()) == b"OK"
    server.command("CONFIG", "RESETSTAT")
    path = stack.enter_context(home())
    config = path.parent / "spread.toml"
    config.write_text(CLIENTS)
    hub = f"redis://spread:s3cret@127.0.0.1:{server.port}"
    ports = []
    nodes = [Node("--shard", "auto", "--hub", hub, "--config", str(config), home=path) for _ in range(2)]
    for node in nodes:
        stack.callback(node.close)
        node.wait_ready(1)
        found = READY.fullmatch(node.ready[0][1])
        assert found
        ports.append(int(found[3].rpartition(":")[2]))

    def api(method: str, **params: object) -> Any:
        answer = json.loads(requested(ports[1], "POST", f"/api/{method}", json.dumps(params)).body)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    clients = [JsonClient(f"ws://127.0.0.1:{port}") for port in ports]
    for client in clients:
        stack.callback(client.close)
        client.connected()
    one, other = clients
    position = one.ask("subscribe", channel="room")["subscribe"]
    other.ask("subscribe", channel="room")
    assert one.push("join", "room")
    for number in range(3):
        other.ask("publish", channel="room", data=number)
    assert one.heard("room", 3) == [0, 1, 2]
    one.ask("unsubscribe", channel="room")
    assert other.push("leave", "room")
    back = one.ask(
        "subscribe", channel="room", recover=True, epoch=position["epoch"], offset=position.get("offset", 0)
    )
    assert [each["data"] for each in back["subscribe"]["publications"]] == [0, 1, 2]
    assert len(one.ask("presence", channel="room")["presence"]["presence"]) == 2
    assert one.ask("presence_stats", channel="room")["presence_stats"]["num_clients"] == 2
    assert len(one.ask("history", channel="room", limit=10, reverse=True)["history"]["publications"]) == 3
    # Emulated, through the other shard.
    stream = HttpStream(ports[0], "http_stream", {})
    stack.callback(stream.close)
    stream.connected()
    assert "subscribe" in stream.ask(ports[1], "subscribe", channel="elsewhere")

    once = [api("publish", channel="room", data=4, idempotency_key="4") for _ in range(2)]
    assert once[0] == once[1]
    api("broadcast", channels=["room", "elsewhere"], data=5)
    assert len(api("presence", channel="room")["presence"]) == 2
    api("presence_stats", channel="room")
    assert len(api("history", channel="room", limit=10)["publications"]) == 5
    api("history_remove", channel="room")
    assert set(api("channels")["channels"]) >= {"room", "elsewhere"}
    assert len(api("info")["nodes"]) == 2
    for method in ("subscribe", "unsubscribe"):
        api(method, user="nobody", channel="room")
    for method in ("refresh", "disconnect"):
        api(method, user="nobody")
    # A shard dies; its heir sees that, and somebody clears up after it.
    number = int(READY.fullmatch(nodes[0].ready[0][1])[1])
    nodes[0].process.kill()
    nodes[0].process.wait()
    nodes[0] = Node("--shard", str(number), "--hub", hub, "--config", str(config), home=path)
    stack.callback(nodes[0].close)
    nodes[0].wait_ready(1)
    assert other.push("leave", "room")
    used = PRESENCE_COMMANDS | STREAM_COMMANDS
    assert {command for command in used if not server.calls(command)} <= {"hincrby", "xrevrange"}
    assert [node.stop() for node in nodes] == [0, 0]
    assert server.command("ACL", "LOG") == [], "something was refused"


def started(stack: ExitStack, *hub: str) -> Node:
    node = Node("--shard", "auto", *hub, home=stack.enter_context(home()))
    stack.callback(node.close)
    return node


@pytest.mark.live
@pytest.mark.parametrize("missing", ["+subscribe", "~spread:*", "&spread:*"])
def test_with_less_than_the_rule_a_shard_says_that_it_is_refused(stack: ExitStack, missing: str) -> None:
    server = stack.enter_context(Valkey())
    server.command(*[word for word in acl_rule() if word != missing])
    node = started(stack, "--hub", f"redis://spread:s3cret@127.0.0.1:{server.port}")
    assert node.process.wait(20) == cli.HUB
    assert "refused: " in node.stderr()


@pytest.mark.live
def test_without_what_is_said_to_be_of_convenience_messages_are_heard_also_after_an_outage(
    stack: ExitStack,
) -> None:
    server = stack.enter_context(Valkey())
    rule = [word for word in acl_rule() if word not in ("+client|setname", "+pubsub|numsub")]
    assert len(rule) == len(acl_rule()) - 2
    server.command(*rule)
    node = started(stack, "--hub", f"redis://spread:s3cret@127.0.0.1:{server.port}")
    crowd = Crowd(node.wait_ready(1), 2)
    stack.callback(crowd.close)
    crowd.greeted()
    server.command("CLIENT", "KILL", "USER", "spread")
    speaker, listener = crowd.clients

    def heard() -> bool:
        crowd.pump()
        speaker.say(b"hello\n")
        return b"hello" in listener.received

    until(heard, 20, "a message after the outage")


@pytest.mark.live
def test_sentinel_needs_the_role_as_well(stack: ExitStack) -> None:
    server = stack.enter_context(Valkey())
    sentinel = stack.enter_context(Sentinel(server, "spread-hub"))
    server.command(*acl_rule())
    hub = f"redis+sentinel://spread:s3cret@127.0.0.1:{sentinel.port}/spread-hub"
    refused = started(stack, "--hub", hub)
    assert refused.process.wait(20) == cli.HUB
    assert "role" in refused.stderr()
    server.command("ACL", "SETUSER", "spread", "+role")
    allowed = started(stack, "--hub", hub)
    allowed.wait_ready(1)
    assert allowed.stop() == 0


# -- what is said in passing -------------------------------------------------------------------------------


def test_what_the_text_says_of_stopping_is_so() -> None:
    assert "takes 2 s longer than that is killed" in " ".join(DOCUMENT.split())
    assert KILL_AFTER_SECONDS == 2
    assert NodeSettings().stop_seconds == 10
