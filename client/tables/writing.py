"""Tables as files: ``NAME.json`` for each, and ``_tables.json``, which names them with their contents.

The same tables give the same bytes. Everything is written beside the old files first and then takes their
places, ``_tables.json`` last; whoever reads in between sees that the files and ``_tables.json`` differ.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from spread.client.tables.checking import Column, Table

__all__ = ["MANIFEST", "file_of", "write_tables"]

MANIFEST = "_tables.json"
_ETAG_CHARACTERS = 16


def file_of(table: Table) -> bytes:
    """The file of a table that is right: a line for each column and each row, so that changes are seen."""
    key = table.key
    assert key is not None
    columns = [f"{_json(column.name)}: {_json(_described(column))}" for column in table.columns]
    rows = []
    for row in table.rows:
        values = {column.name: column.values[row] for column in table.columns}
        rows.append(f"{_json(str(key.values[row]))}: {_json(values)}")
    text = (
        f'{{\n"table": {_json(table.name)},\n"key": {_json(key.name)},\n'
        f'"columns": {{{_lines(columns)}}},\n"rows": {{{_lines(rows)}}}\n}}\n'
    )
    return text.encode()


def _lines(entries: list[str]) -> str:
    return "\n" + ",\n".join(entries) + "\n" if entries else ""


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _described(column: Column) -> dict[str, Any]:
    found: dict[str, Any] = {"type": column.kind.spelled}
    for name, bound in (("min", column.rules.least), ("max", column.rules.most)):
        if bound is not None:
            found[name] = int(bound) if bound == int(bound) else bound
    if column.may_be_null:
        found["null"] = True
    return found


def write_tables(tables: Iterable[Table], directory: Path) -> list[str]:
    """Put tables into a directory, and take away those that were written there before and are no more.

    :returns: what was changed: names of files, those taken away with a ``-`` before.
    :raises OSError: a file cannot be written; then the old ones are as they were.
    """
    files = {f"{table.name}.json": file_of(table) for table in tables}
    etags = {name.removesuffix(".json"): _etag(text) for name, text in files.items()}
    manifest = json.dumps({"tables": dict(sorted(etags.items()))}, indent=0).encode() + b"\n"
    directory.mkdir(parents=True, exist_ok=True)
    gone = [name for name in _names_of(directory) if f"{name}.json" not in files]
    changed = {
        name: text for name, text in {**files, MANIFEST: manifest}.items() if not _has(directory / name, text)
    }
    try:
        for name, text in changed.items():
            _write(_beside(directory, name), text)
    except OSError:
        for name in changed:
            with suppress(OSError):
                _beside(directory, name).unlink()
        raise
    for name in changed:  # the manifest is the last of them
        _beside(directory, name).replace(directory / name)
    for name in gone:
        (directory / f"{name}.json").unlink(missing_ok=True)
    return [*changed, *(f"-{name}.json" for name in gone)]


def _beside(directory: Path, name: str) -> Path:
    return directory / f".{name}.new"


def _write(path: Path, text: bytes) -> None:
    with path.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _has(path: Path, text: bytes) -> bool:
    try:
        return path.read_bytes() == text
    except OSError:
        return False


def _names_of(directory: Path) -> list[str]:
    """The tables that were written there before. Other files are not ours."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return []
    tables = manifest.get("tables") if isinstance(manifest, Mapping) else None
    return [name for name in tables if str(name).isidentifier()] if isinstance(tables, Mapping) else []


def _etag(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:_ETAG_CHARACTERS]
