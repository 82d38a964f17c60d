"""The C programs of the benchmark, compiled when they are needed.

They are kept in a directory of the user, under a name that holds a hash of their sources: a changed source is
compiled anew, and two versions of Spread do not get into each other's way.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from spread.client.bench.errors import BenchError

__all__ = ["GENERATOR", "LOOP", "CannotCompile", "cache_directory", "compiled", "find_compiler"]

GENERATOR = ("generator.c", "clients.c", "formats.c")
LOOP = ("loop.c",)
_HEADERS = ("generator.h", "histogram.h", "payload.h", "usage.h")
_FLAGS = ("-std=gnu11", "-O2")
_SECONDS = 60.0


class CannotCompile(BenchError):
    """There is no compiler, or it does not take our sources."""


def find_compiler(environ: Mapping[str, str]) -> str:
    """The C compiler: ``CC``, else cc, gcc or clang.

    :raises CannotCompile: there is none.
    """
    names = [environ["CC"]] if environ.get("CC") else ["cc", "gcc", "clang"]
    for name in names:
        if found := shutil.which(name, path=environ.get("PATH")):
            return found
    raise CannotCompile(f"there is no C compiler ({', '.join(names)})")


def cache_directory(environ: Mapping[str, str]) -> Path:
    """Where compiled programs are kept."""
    cache = environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # the specification has relative ones ignored
        cache = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".cache")
    return Path(cache, "spread", "bench")


def compiled(sources: tuple[str, ...], environ: Mapping[str, str], directory: Path | None = None) -> Path:
    """The program made of some sources of this directory.

    :param directory: where it is kept; else ``cache_directory``.
    :raises CannotCompile: it cannot be had.
    """
    compiler = find_compiler(environ)
    here = Path(__file__).parent
    told = hashlib.sha256("\0".join((compiler, *_FLAGS)).encode())
    for name in (*sources, *_HEADERS):
        told.update((here / name).read_bytes())
    directory = directory or cache_directory(environ)
    program = directory / f"{Path(sources[0]).stem}-{told.hexdigest()[:16]}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(directory)
        if not os.access(program, os.X_OK):
            _compile(compiler, [here / name for name in sources], program)
    except OSError as error:
        raise CannotCompile(f"{directory}: {error.strerror}") from error
    return program


def _check_owner(directory: Path) -> None:
    """What lies there is run: nobody else may put it there."""
    status = directory.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise CannotCompile(f"{directory} can be written by others")


def _compile(compiler: str, sources: list[Path], program: Path) -> None:
    handle, unfinished = tempfile.mkstemp(prefix=f"{program.name}.", dir=program.parent)
    os.close(handle)
    try:
        done = subprocess.run(
            [compiler, *_FLAGS, "-o", unfinished, *map(str, sources)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise CannotCompile(f"{compiler} does not compile it: {lines[0] if lines else 'no reason given'}")
        os.replace(unfinished, program)  # whole or not at all, whoever else compiles
    except subprocess.TimeoutExpired:
        raise CannotCompile(f"{compiler} takes longer than {_SECONDS:g} s") from None
    finally:
        Path(unfinished).unlink(missing_ok=True)
