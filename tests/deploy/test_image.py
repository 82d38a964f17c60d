"""The image: what it is built from, what is in it, and whether its health check tells the truth."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from spread.node.config import load
from tests.deploy.files import ROOT, Instruction, build_context, dockerfile, health_check, the
from tests.live.processes import Node, home

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def copied() -> list[Instruction]:
    """What is copied from the checkout, not from another stage."""
    return [one for one in dockerfile() if one.name == "COPY" and "from" not in one.flags]


# -- what it is built from ---------------------------------------------------------------------------------


def test_everything_that_is_copied_is_there_and_reaches_the_builder() -> None:
    context = build_context()
    for instruction in copied():
        *sources, _ = instruction.words
        for source in sources:
            inside = source.removeprefix("./")
            assert (ROOT / inside).exists(), source
            assert any(name == inside or name.startswith(f"{inside}/") for name in context), source


def test_everything_that_reaches_the_builder_is_copied() -> None:
    sources = {source.removeprefix("./") for one in copied() for source in one.words[:-1]}
    assert {name.partition("/")[0] for name in build_context()} == sources


def test_no_secrets_caches_or_tests_reach_the_builder() -> None:
    odd = re.compile(r"(^|/)(\.|tests/|__pycache__/)|\.pyc$|\.env$|\.pem$")
    assert [name for name in build_context() if odd.search(name)] == []


def test_the_wheel_built_from_that_has_every_module_and_script(tmp_path: Path) -> None:
    context = build_context()
    for name in context:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", "dist", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    [wheel] = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        scripts = next(archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    inside = {name.removeprefix("spread/") for name in names if name.startswith("spread/")}
    assert inside == {name for name in context if "/" in name}
    assert {"hub/lua/lease_take.lua", "node/wire/text.py", "node/py.typed"} <= inside
    assert f"{the('ENTRYPOINT').words[0]} = " in scripts


def test_what_is_installed_first_are_the_dependencies_of_the_project(tmp_path: Path) -> None:
    [run] = [one.value for one in dockerfile() if one.name == "RUN" and "requirements.txt" in one.value]
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    command = run.split("&&")[0].replace("python -c", f"{sys.executable} -c", 1)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, timeout=30)
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    assert lines == PROJECT["project"]["dependencies"]


def test_what_the_package_imports_is_a_dependency_of_the_project() -> None:
    imported = set()
    for folder in ("client", "hub", "node"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    imported.add(node.module)
    tops = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names) - {"spread"}
    project = PROJECT["project"]
    # Who uses what an extra is for without it is told so.
    extras = [one for name, all_ in project["optional-dependencies"].items() if name != "dev" for one in all_]
    declared = {
        re.split(r"[^\w.-]", one)[0].lower().replace("_", "-") for one in (*project["dependencies"], *extras)
    }
    installed = packages_distributions()
    missing = {
        top
        for top in tops
        if not {name.lower().replace("_", "-") for name in installed.get(top, [top])} & declared
    }
    assert missing == set()


# -- what it says of itself --------------------------------------------------------------------------------


def test_labels_are_those_of_the_project() -> None:
    labels = the("LABEL").pairs
    project = PROJECT["project"]
    assert labels["org.opencontainers.image.title"] == project["name"]
    assert labels["org.opencontainers.image.description"] == project["description"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]


def test_it_runs_as_a_fixed_user_who_owns_the_home() -> None:
    user = the("USER").value
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    number = user.partition(":")[0]
    run = the("RUN").value
    assert f"--uid {number}" in run and f"-o {number}" in run
    assert the("ENV").pairs["SPREAD_HOME"] in run


def test_it_needs_a_python_the_project_supports() -> None:
    [argument] = [one for one in dockerfile() if one.name == "ARG"]
    version = re.fullmatch(r"PYTHON=python:3\.(\d+)-slim", argument.value)
    assert version
    least = PROJECT["project"]["requires-python"].removeprefix(">=3.")
    assert int(version[1]) >= int(least)


def environment() -> dict[str, str]:
    return {name: value for name, value in the("ENV").pairs.items() if name.startswith("SPREAD_")}


def test_it_listens_on_the_ports_it_exposes_once_somebody_allows_it() -> None:
    settings = load(file=None, environ={**environment(), "SPREAD_ALLOW_ANONYMOUS": "true"}, flags={})
    assert [settings.text.listen, settings.node.http] == [f"0.0.0.0:{port}" for port in the("EXPOSE").words]


def test_nobody_is_let_in_by_default() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "spread.node", "--check"],
        env={"PATH": os.environ["PATH"], **environment()},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert checked.returncode == 2
    assert "--allow-anonymous" in checked.stderr


# -- the health check --------------------------------------------------------------------------------------


def healthy(http: str) -> bool:
    """Run the health check as the container would, with the HTTP port of a shard."""
    program, *arguments = health_check()
    assert program == "python"
    checked = subprocess.run(
        [sys.executable, *arguments],
        env={"PATH": os.environ["PATH"], "SPREAD_HTTP": http, "http_proxy": "http://192.0.2.1:9"},
        stderr=subprocess.DEVNULL,
        timeout=30,
    )
    return checked.returncode == 0


@pytest.fixture
def node() -> Iterator[Node]:
    with home() as path:
        node = Node("--shard", "auto", "--hub", "memory:", home=path)
        try:
            node.wait_ready(1)
            yield node
        finally:
            node.close()


def http_address(node: Node) -> str:
    found = re.search(r" http=(\S+)", node.ready[-1][1])
    assert found
    return found[1]


@pytest.mark.live
def test_a_shard_is_healthy_while_it_turns(node: Node) -> None:
    http = http_address(node)
    assert healthy(http)
    node.process.send_signal(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        assert not healthy(http)
        limit = the("HEALTHCHECK").flags["timeout"]
        assert time.monotonic() - begun < float(limit.removesuffix("s")), "Docker would have killed it"
    finally:
        node.process.send_signal(signal.SIGCONT)
    assert healthy(http)
    assert node.stop() == 0
    assert not healthy(http)


def test_nothing_there_and_something_else_there_are_not_healthy() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        assert not healthy(f"127.0.0.1:{nobody.getsockname()[1]}")
    assert not healthy("off")
