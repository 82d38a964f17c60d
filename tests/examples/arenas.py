"""The example of docs/examples/arena, in a directory of its own, as somebody who tries it has it."""

from __future__ import annotations

import shutil
from pathlib import Path

from spread.client.tables.checking import tables_of
from spread.client.tables.sheets import read_workbook
from spread.client.tables.writing import write_tables

ARENA = Path(__file__).parents[2] / "docs" / "examples" / "arena"


def copied(directory: Path) -> Path:
    """A copy with its tables, as ``spread tables build`` makes them."""
    left_out = shutil.ignore_patterns("tables", "node_modules", "__pycache__")
    arena = shutil.copytree(ARENA, directory / "arena", ignore=left_out)
    tables, problems = tables_of(read_workbook(arena / "arena.xlsx"))
    assert not problems
    write_tables(tables, arena / "tables")
    return arena
