"""Workbooks, as ``checking`` reads them: cells that are not blank, by row and column. openpyxl is imported
here only, and when it is needed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["CannotRead", "Cell", "Merged", "Sheet", "cell_name", "column_name", "read_workbook"]


class CannotRead(Exception):
    """A file is no workbook that can be read, or what reads it is not installed."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell that is not blank."""

    value: object
    """As the spreadsheet program has computed it; texts without white space around them."""
    problem: str = ""
    """Why there is no value."""


@dataclass(frozen=True, slots=True)
class Merged:
    """Cells that were made one."""

    name: str
    """``B4:B6``."""
    first_row: int
    first_column: int
    last_column: int


@dataclass(frozen=True, slots=True)
class Sheet:
    """One sheet of a workbook. Rows and columns are counted from 1."""

    file: str
    name: str
    cells: dict[tuple[int, int], Cell] = field(default_factory=dict)
    merged: list[Merged] = field(default_factory=list)

    def value(self, row: int, column: int) -> object:
        """That of a cell; ``None`` if it is blank or has none."""
        cell = self.cells.get((row, column))
        return None if cell is None else cell.value

    @property
    def last_row(self) -> int:
        """The last one that has a cell; 0 if the sheet is blank."""
        return max((row for row, _ in self.cells), default=0)

    @property
    def last_column(self) -> int:
        """The last one that has a cell; 0 if the sheet is blank."""
        return max((column for _, column in self.cells), default=0)


def column_name(column: int) -> str:
    """``A`` for 1."""
    letters = ""
    while column:
        column, letter = divmod(column - 1, 26)
        letters = chr(65 + letter) + letters
    return letters


def cell_name(row: int, column: int) -> str:
    """``B4`` for row 4, column 2."""
    return f"{column_name(column)}{row}"


def read_workbook(path: Path) -> list[Sheet]:
    """The sheets of a workbook, in their order. Those that begin with ``_`` or ``#`` are notes: left out.

    :raises CannotRead: see there.
    """
    try:
        import openpyxl
    except ImportError:
        raise CannotRead("spread tables needs openpyxl: pip install 'spread-node[tables]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parts of the file that it does not know, such as drop-downs
            # A file has formulas and, if a spreadsheet program wrote it, what they gave; one load gives one.
            results = openpyxl.load_workbook(path, data_only=True)
            formulas = openpyxl.load_workbook(path)
    except OSError as error:
        raise CannotRead(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # it has many, of many modules
        raise CannotRead(f"{path} is no .xlsx workbook: {error}") from None
    sheets = []
    for result in results.worksheets:
        if result.title[:1] not in ("_", "#"):
            sheets.append(_sheet(path.name, result, formulas[result.title]))
    return sheets


def _sheet(file: str, results: Any, formulas: Any) -> Sheet:
    merged = [
        Merged(str(cells), int(cells.min_row), int(cells.min_col), int(cells.max_col))
        for cells in formulas.merged_cells.ranges
    ]
    sheet = Sheet(file, results.title.strip(), {}, merged)
    # Not iter_rows(): a column that is coloured down to its end has a million rows.
    for at, written in sorted(formulas._cells.items()):
        if written.value is None:
            continue
        cell = results._cells.get(at)
        value = None if cell is None else cell.value
        if isinstance(value, str):
            value = value.strip()
        if written.data_type == "f" and value is None:
            sheet.cells[at] = Cell(
                None, "its formula has no result: open the file in a spreadsheet program, and save it"
            )
        elif cell is not None and cell.data_type == "e":
            sheet.cells[at] = Cell(None, f"its formula gives {value}")
        elif value not in (None, ""):
            sheet.cells[at] = Cell(value)
    return sheet
