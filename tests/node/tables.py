"""Directories of tables, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spread.node.tables import MANIFEST, etag_of

__all__ = ["ITEMS", "put", "table"]


def table(name: str, key: str, columns: dict[str, Any], *rows: list[Any]) -> dict[str, Any]:
    """What a file holds; a type alone stands for a column that has nothing else."""
    described = {name: {"type": each} if isinstance(each, str) else each for name, each in columns.items()}
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    return {"table": name, "key": key, "columns": described, "rows": {str(row[key]): row for row in found}}


ITEMS = table(
    "items",
    "id",
    {"id": "str", "damage": {"type": "int", "min": 1, "max": 100}, "parts": "list[ref(items.id)]"},
    ["sword", 5, []],
    ["shield", 1, ["sword"]],
)


def put(directory: Path, *tables: dict[str, Any], manifest: dict[str, str] | None = None) -> Path:
    """Write a set of tables.

    :param manifest: etags that are not those of the files.
    """
    etags = {}
    for each in tables:
        text = json.dumps(each).encode()
        (directory / f"{each['table']}.json").write_bytes(text)
        etags[each["table"]] = etag_of(text)
    (directory / MANIFEST).write_text(json.dumps({"tables": etags if manifest is None else manifest}))
    return directory
