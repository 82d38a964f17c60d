"""README's run command, and the first things a reader does after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.live.processes import READY, Crowd, home, until
from tests.test_docs import ROOT, fenced

pytestmark = pytest.mark.live


def test_the_run_command_runs_a_cluster_that_chats() -> None:
    install, _, run = fenced((ROOT / "README.md").read_text())[0].partition(" && ")
    assert install == "pip install ."  # what this runs in has been installed
    scripts = Path(sys.executable).parent
    with home() as path:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SPREAD_")}
        environ |= {"PATH": f"{scripts}:{os.environ['PATH']}", "SPREAD_HOME": str(path)}
        # Only the ports differ from what a reader gets: others may use the default ones here.
        environ |= {"SPREAD_TEXT": "127.0.0.1:0", "SPREAD_HTTP": "127.0.0.1:0", "SPREAD_OPS": "127.0.0.1:0"}
        cluster = subprocess.Popen(run.split(), env=environ, stdout=subprocess.PIPE, text=True)
        lines: list[str] = []
        assert cluster.stdout is not None
        reader = threading.Thread(target=lambda: lines.extend(cluster.stdout or ()), daemon=True)
        reader.start()
        try:
            until(lambda: len(lines) == 2, 30, "two ready lines")
            found = [READY.fullmatch(line.strip()) for line in lines]
            assert all(found), lines
            port = int(found[0][2].rpartition(":")[2])  # type: ignore[index]
            crowd = Crowd(port, 1)
            crowd.greeted()
            crowd.forget()
            chat = subprocess.run(
                ["spread", "chat", "alice", "--port", str(port)],
                input=b"hi there\n",
                env=environ,
                capture_output=True,
                timeout=30,
            )
            assert chat.returncode == 0, chat.stderr
            assert "欢迎来到Spread Site".encode() in chat.stdout
            crowd.until(lambda: crowd.clients[0].lines, 10, "what alice said")
            assert bytes(crowd.clients[0].received) == b"alice: hi there\n"
            crowd.close()
            cluster.send_signal(signal.SIGINT)
            assert cluster.wait(20) == 0
        finally:
            cluster.kill()
            cluster.wait()
            reader.join(10)
            cluster.stdout.close()
