"""A signal that comes before a process can do what it asks for is kept, and ends nothing."""

from __future__ import annotations

import subprocess
import sys

SECONDS = 30.0

YOUNG = """
import os, signal, sys, types
here = types.ModuleType("spread.node.cli")
def command():
    # What comes next would be the imports, which take long.
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR1)
    from spread.node.early import take_over
    take_over(lambda: print("asked"))
    print("lives")
    os.kill(os.getpid(), signal.SIGUSR1)
    take_over(lambda: print("never"))
here.main = command
sys.modules["spread.node.cli"] = here
from spread.node.__main__ import main
assert "twisted" not in sys.modules and "click" not in sys.modules
main()
"""


def test_what_is_asked_of_a_young_process_is_done_once_when_it_can() -> None:
    done = subprocess.run(
        [sys.executable, "-c", YOUNG], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", ["asked", "lives", "asked"])
