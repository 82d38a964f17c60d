"""The C programs are compiled once, and never half."""

from __future__ import annotations

from pathlib import Path

import pytest

from spread.client.bench.compiler import GENERATOR, LOOP, CannotCompile, cache_directory, compiled
from spread.client.bench.engine import programs


def test_where_they_are_kept() -> None:
    assert cache_directory({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c/spread/bench")
    assert cache_directory({"XDG_CACHE_HOME": "c", "HOME": "/h"}) == Path("/h/.cache/spread/bench")


def test_compiled_once(private_cache: dict[str, str]) -> None:
    program = compiled(LOOP, private_cache)
    made = program.stat().st_mtime_ns
    assert compiled(LOOP, private_cache) == program
    assert program.stat().st_mtime_ns == made
    assert list(program.parent.iterdir()) == [program]
    assert program.parent.stat().st_mode & 0o777 == 0o700


def test_other_flags_or_sources_are_another_program(
    private_cache: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compiled(LOOP, private_cache)
    monkeypatch.setattr("spread.client.bench.compiler._FLAGS", ("-std=gnu11", "-O1"))
    second = compiled(LOOP, private_cache)
    assert first != second
    assert first.exists()


def test_no_compiler(private_cache: dict[str, str]) -> None:
    with pytest.raises(CannotCompile, match=r"there is no C compiler \(cc, gcc, clang\)"):
        compiled(LOOP, private_cache | {"PATH": "/nowhere"})
    found = programs(private_cache | {"CC": "no-such-compiler"})
    assert found.coarse_because == "there is no C compiler (no-such-compiler)"
    assert not found.loop
    assert "spread.client.bench.generator" in found.generator


def test_a_compiler_that_fails(private_cache: dict[str, str], tmp_path: Path) -> None:
    fake = tmp_path / "fakecc"
    fake.write_text("#!/bin/sh\necho 'generator.c:1: error: no such header' >&2\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(CannotCompile, match=r"fakecc does not compile it: generator\.c:1: error: no such"):
        compiled(GENERATOR, private_cache | {"CC": str(fake)})
    assert not list(cache_directory(private_cache).iterdir())


def test_a_directory_of_others(private_cache: dict[str, str]) -> None:
    directory = cache_directory(private_cache)
    directory.mkdir(parents=True)
    directory.chmod(0o777)
    with pytest.raises(CannotCompile, match="can be written by others"):
        compiled(LOOP, private_cache)


def test_no_directory(private_cache: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / ".cache").write_text("a file")
    with pytest.raises(CannotCompile, match="Not a directory"):
        compiled(LOOP, private_cache)
