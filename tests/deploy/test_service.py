"""The systemd unit: read by systemd, and held against what ``spread-node`` does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spread.node.addresses import ShardRange, parse_shards
from spread.node.child import KILL_AFTER_SECONDS
from spread.node.cli import USAGE
from spread.node.listen import FILE_LIMIT
from spread.node.settings import NodeSettings
from tests.deploy.files import DEPLOY

PROGRAM = "/opt/spread/bin/spread-node"


def unit() -> dict[str, list[str]]:
    """The values of each key of the section Service."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (DEPLOY / "spread.service").read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#") and section == "Service":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / "spread.service"
    copy.write_text((DEPLOY / "spread.service").read_text().replace(PROGRAM, sys.executable))
    checked = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, timeout=30)
    # A value it cannot read is told, ignored, and no reason for another exit code.
    complaints = [line for line in checked.stderr.splitlines() if "spread.service" in line]
    assert (checked.returncode, complaints) == (0, []), checked.stderr


def test_its_command_and_environment_are_what_spread_node_takes(tmp_path: Path) -> None:
    [command] = unit()["ExecStart"]
    program, *arguments = command.split()
    assert program == PROGRAM
    environ = dict(pair.split("=", 1) for pair in unit()["Environment"])
    assert environ.keys() == {"SPREAD_HOME", "SPREAD_CONFIG"}
    # As the instructions at the top of the unit have it.
    run = [sys.executable, "-m", "spread.node"]
    example = subprocess.run([*run, "--print-config"], check=True, capture_output=True, timeout=30).stdout
    (tmp_path / "spread.toml").write_bytes(example)
    environ["SPREAD_CONFIG"] = str(tmp_path / "spread.toml")
    checked = subprocess.run(
        [*run, *arguments, "--check"],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert checked.stdout == "ok: shard 0-7, hub embedded\n", checked.stderr


def test_it_is_a_fleet_since_a_reload_is_of_no_use_to_one_shard() -> None:
    shards = parse_shards(unit()["ExecStart"][0].split("--shard ")[1])
    assert isinstance(shards, ShardRange)
    assert unit()["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


def test_a_stop_has_the_time_it_may_take() -> None:
    [seconds] = unit()["TimeoutStopSec"]
    assert float(seconds) > NodeSettings().stop_seconds + KILL_AFTER_SECONDS
    assert unit()["KillMode"] == ["mixed"]


def test_only_a_wrong_configuration_ends_the_attempts() -> None:
    assert unit()["RestartPreventExitStatus"] == [str(USAGE)]


def test_it_may_open_as_many_files_as_spread_asks_for() -> None:
    assert unit()["LimitNOFILE"] == [str(FILE_LIMIT)]
