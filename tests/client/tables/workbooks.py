"""Workbooks, as a spreadsheet program would save them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openpyxl

__all__ = ["workbook"]


def workbook(path: Path, merged: Sequence[str] = (), **sheets: list[list[Any]]) -> Path:
    """Write a workbook: rows of cells for each sheet; ``merged`` are ranges of the first one."""
    book = openpyxl.Workbook()
    first = book.active
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.remove(first)
    for cells in merged:
        book.worksheets[0].merge_cells(cells)
    book.save(path)
    return path
