"""What the documents say is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spread.node.config.flags import FLAGS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHER_FLAGS = {
    *("--check", "--config", "--lenient-config", "--print-config", "--help", "--version"),  # spread-node
    *("--channel", "--hello", "--host", "--once", "--port", "--stay"),  # spread chat
    *("--api", "--json", "--key", "--since", "--token", "--url"),  # spread tail, spread publish
    *("--secret-file", "--ttl", "--user"),  # spread token
    "--one",  # spread reload
    *(
        "--quick",
        "--workload",
        "--format",
        "--history",
        "--charts",
        "--sweep",
        "--points",
        "--no-history",
    ),  # spread bench
    *("--connect", "--pids", "--payload", "--cpu-load", "--cpu-servers"),
}
OTHER_COMMANDS = re.compile(
    r"--(scale|cov|user|requirepass|rm|build|sentinel|now|appendonly"  # of other programs
    r"|clients|transport|protocol|subscribe|frames|seed|target|faults|seconds|rate"  # python -m tests.…
    r"|kills|stops|updates|bots|channels|tick-seconds"
    r"|kill-whom)\b"
)


def fenced(text: str) -> list[str]:
    """The lines of the fenced blocks of a document."""
    lines, inside = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = not inside
        elif inside and line.strip():
            lines.append(line)
    return lines


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
        assert "://" in target or (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_flags_exist(document: Path) -> None:
    known = {flag.flag for flag in FLAGS} | OTHER_FLAGS
    known |= {f"--no-{flag.flag.removeprefix('--')}" for flag in FLAGS if flag.kind == "bool"}
    for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", document.read_text()):
        assert flag in known or OTHER_COMMANDS.match(flag), flag


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_variables_exist(document: Path) -> None:
    known = {flag.variable for flag in FLAGS} | {"SPREAD_HOME", "SPREAD_CONFIG", "SPREAD_CHECK"}
    known |= {"SPREAD_LENIENT_CONFIG", "SPREAD_TOKEN", "SPREAD_API_KEY"}
    known |= {"SPREAD_MODEL_EXAMPLES", "SPREAD_MODEL_SEED", "SPREAD_TEST_HUB"}  # of the tests
    for variable in re.findall(r"\bSPREAD_[A-Z_]+\b", document.read_text()):
        # An option of a namespace, whose name is the user's.
        assert variable in known or variable.startswith("SPREAD_CHANNEL_NAMESPACES_"), variable


@pytest.mark.parametrize("name", ["architecture.md"])
def test_modules_exist(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    for path in re.findall(r"\b((?:node|hub|client)/[\w/]+\.(?:py|lua))\b", text):
        assert (ROOT / path).exists(), path


def test_readme_opens_with_the_two_commands() -> None:
    run, check, *_ = fenced((ROOT / "README.md").read_text())
    assert run == "pip install . && spread-node --shard 0-1"
    assert check.startswith("pip install ") and check.endswith("pytest --cov")
