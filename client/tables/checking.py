"""From sheets to tables, or to all that is wrong with them.

The first three rows of a sheet are its header: the names of the columns, their types (``kinds``) and their
rules (``rules``); each row below is a row of the table. A column whose name begins with ``#`` is a note.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from spread.client.tables.kinds import Kind, List, NoKind, Ref, Unfit, Value, parse_kind, shown
from spread.client.tables.rules import BadRule, Rules, default_of, parse_rules, violated
from spread.client.tables.sheets import Cell, Sheet, cell_name, column_name

__all__ = ["Problem", "Table", "tables_of"]

NAMES, TYPES, RULES = 1, 2, 3
FIRST_ROW = 4
_DEEPEST_REFERENCE = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    file: str
    sheet: str
    cell: str
    """"" for the sheet as a whole."""
    text: str
    rule: str = ""
    """Which rule or type is broken, as it stands in the header."""

    def __str__(self) -> str:
        at = f"{self.file}: {self.sheet}{'!' if self.cell else ''}{self.cell}"
        return f"{at}: {self.text}{f' (rule: {self.rule})' if self.rule else ''}"


@dataclass(slots=True)
class Column:
    """One column of a table."""

    name: str
    number: int
    kind: Kind
    rules: Rules = field(default_factory=Rules)
    default: Value = None
    values: dict[int, Value] = field(default_factory=dict)
    """By row."""
    is_whole: bool = True
    """Every cell could be read."""

    @property
    def may_be_null(self) -> bool:
        """A blank cell has no value."""
        rules = self.rules
        wants = rules.key or rules.required or rules.default is not None
        return not (wants or self.kind.is_blankable)


@dataclass(slots=True)
class Table:
    """One sheet that is right."""

    sheet: Sheet
    columns: list[Column]
    rows: list[int]
    """The numbers of the rows that hold something."""

    @property
    def name(self) -> str:
        """That of the sheet."""
        return self.sheet.name

    @property
    def key(self) -> Column | None:
        """The column whose values name the rows."""
        return next((column for column in self.columns if column.rules.key), None)

    def column(self, name: str) -> Column | None:
        """The column of that name; "" is the key."""
        if not name:
            return self.key
        return next((column for column in self.columns if column.name == name), None)


def tables_of(sheets: Iterable[Sheet]) -> tuple[list[Table], list[Problem]]:
    """The tables of all sheets of all files, and all that is wrong; blank sheets are passed over."""
    check = _Check()
    for sheet in sheets:
        if sheet.cells:
            check.head(sheet)
    check.resolve()
    for table in check.tables.values():
        check.body(table)
    for table in check.tables.values():
        check.references(table)
    return list(check.tables.values()), check.problems


class _Check:
    def __init__(self) -> None:
        self.tables: dict[str, Table] = {}
        self._order: dict[tuple[str, str], int] = {}
        self._found: list[tuple[int, tuple[int, int], Problem]] = []

    @property
    def problems(self) -> list[Problem]:
        """All that is wrong, by sheet, row and column."""
        return [problem for *_, problem in sorted(self._found, key=lambda found: found[:2])]

    def wrong(
        self, sheet: Sheet, at: tuple[int, int] | None, text: str, rule: str = "", cell: str = ""
    ) -> None:
        """Note a problem.

        :param at: row and column; ``None`` is the sheet as a whole.
        :param cell: what is named instead of one cell.
        """
        problem = Problem(sheet.file, sheet.name, cell or ("" if at is None else cell_name(*at)), text, rule)
        self._found.append((self._order[sheet.file, sheet.name], at or (0, 0), problem))

    # -- the header --------------------------------------------------------------------------------------

    def head(self, sheet: Sheet) -> None:
        """Read the first three rows."""
        self._order.setdefault((sheet.file, sheet.name), len(self._order))
        other = {name.lower(): table for name, table in self.tables.items()}.get(sheet.name.lower())
        if why := _why_no_name(sheet.name):
            self.wrong(sheet, None, f"a sheet's name {why}, or begins with # if it is a note")
        elif other is not None:
            self.wrong(sheet, None, f"{other.sheet.file} has a sheet {other.name} too")
            return
        table = Table(sheet, [], [])
        for number in range(1, sheet.last_column + 1):
            column = self._column(sheet, number, {column.name for column in table.columns})
            if column is not None:
                table.columns.append(column)
        keys = [column for column in table.columns if column.rules.key]
        for column in keys[1:]:
            self.wrong(sheet, (RULES, column.number), f"the key is {keys[0].name} already", "key")
        if not keys and table.columns:
            self.wrong(
                sheet, (RULES, table.columns[0].number), "no column names the rows: write key below its type"
            )
        numbers = {column.number for column in table.columns}
        for merged in sheet.merged:
            if numbers & set(range(merged.first_column, merged.last_column + 1)):
                at = merged.first_row, merged.first_column
                self.wrong(sheet, at, "these cells are merged; split them", cell=merged.name)
        self.tables[sheet.name] = table

    def _column(self, sheet: Sheet, number: int, others: set[str]) -> Column | None:
        name = self._text(sheet, NAMES, number)
        if name is None or name.startswith("#"):
            return None
        if not name:
            below = min((row for row, column in sheet.cells if column == number), default=0)
            if below:
                self.wrong(
                    sheet,
                    (below, number),
                    f"column {column_name(number)} has no name in row 1; one of a note begins with #",
                )
            return None
        if why := _why_no_name(name):
            self.wrong(sheet, (NAMES, number), f"{shown(name)}: a column's name {why}, or begins with #")
        elif name in others:
            self.wrong(sheet, (NAMES, number), f"there are two columns {name}")
        type_text, rules_text = self._text(sheet, TYPES, number), self._text(sheet, RULES, number)
        try:
            kind = parse_kind(type_text or "")
        except NoKind as error:
            if type_text is not None:
                self.wrong(sheet, (TYPES, number), str(error))
            return None
        column = Column(name, number, kind)
        try:
            column.rules = parse_rules(rules_text or "", kind)
        except BadRule as error:
            self.wrong(sheet, (RULES, number), str(error))
        return column

    def _text(self, sheet: Sheet, row: int, column: int) -> str | None:
        """A cell of the header as a text, "" if it is blank; ``None`` if it is broken, which is told."""
        cell = sheet.cells.get((row, column))
        if cell is None:
            return ""
        if cell.problem:
            self.wrong(sheet, (row, column), cell.problem)
            return None
        return str(cell.value)

    # -- references --------------------------------------------------------------------------------------

    def resolve(self) -> None:
        """Find what the columns refer to, and then what their blank cells mean."""
        for table in self.tables.values():
            for column in table.columns:
                ref = _ref_of(column.kind)
                if ref is not None and not self._resolve(ref, 0):
                    self.wrong(
                        table.sheet,
                        (TYPES, column.number),
                        f"there is no such column, or it refers back to this one: {column.kind.spelled}",
                    )
                elif ref is not None:
                    target = self._target(ref)
                    assert target is not None
                    if not target.rules.is_unique:
                        text = f"{ref.table}.{target.name} is neither key nor unique"
                        self.wrong(table.sheet, (TYPES, column.number), text, column.kind.spelled)
        for table in self.tables.values():
            for column in table.columns:
                try:
                    column.default = default_of(column.rules, column.kind)
                except BadRule as error:
                    self.wrong(table.sheet, (RULES, column.number), str(error))

    def _target(self, ref: Ref) -> Column | None:
        table = self.tables.get(ref.table)
        return None if table is None else table.column(ref.column)

    def _resolve(self, ref: Ref, depth: int) -> bool:
        target = self._target(ref)
        if target is None or isinstance(target.kind, List) or depth > _DEEPEST_REFERENCE:
            return False
        if isinstance(target.kind, Ref) and not self._resolve(target.kind, depth + 1):
            return False
        ref.column = target.name
        ref.target = target.kind
        return True

    def references(self, table: Table) -> None:
        """Every value of a column that refers to another one is there."""
        for column in table.columns:
            ref = _ref_of(column.kind)
            target = None if ref is None or ref.target is None else self._target(ref)
            if target is None or not target.is_whole:  # told already, and more would follow from it
                continue
            there = set(_hashable(target.values.values()))
            for row, value in column.values.items():
                for each in value if isinstance(value, list) else [value]:
                    if each is not None and each not in there:
                        text = f"{shown(each)} is not there"
                        self.wrong(table.sheet, (row, column.number), text, column.kind.spelled)

    # -- rows --------------------------------------------------------------------------------------------

    def body(self, table: Table) -> None:
        """Read the rows."""
        sheet = table.sheet
        numbers = {column.number for column in table.columns}
        table.rows = sorted({row for row, number in sheet.cells if row >= FIRST_ROW and number in numbers})
        for column in table.columns:
            for row in table.rows:
                self._read(sheet, column, row, sheet.cells.get((row, column.number)))
            if column.rules.is_unique:
                self._check_unique(sheet, column)

    def _read(self, sheet: Sheet, column: Column, row: int, cell: Cell | None) -> None:
        at, rules = (row, column.number), column.rules
        ref = _ref_of(column.kind)
        if ref is not None and ref.target is None:  # told at its type
            return
        if cell is None:
            if rules.key or rules.required:
                self.wrong(sheet, at, "the cell is blank", "key" if rules.key else "required")
                column.is_whole = False
            else:
                column.values[row] = column.default
            return
        text, rule = cell.problem, ""
        if not text:
            try:
                value = column.kind.read(cell.value)
                text, rule = violated(rules, column.kind, value), rules.bounds
                column.values[row] = value
            except Unfit as error:
                text, rule = str(error), column.kind.spelled
        if text:
            self.wrong(sheet, at, text, rule)
            column.is_whole = row in column.values and column.is_whole

    def _check_unique(self, sheet: Sheet, column: Column) -> None:
        seen: dict[Value, int] = {}
        for row, value in column.values.items():
            if value is None or (value == "" and sheet.value(row, column.number) is None):
                continue
            assert not isinstance(value, list)
            first = seen.setdefault(value, row)
            if first != row:
                rule = "key" if column.rules.key else "unique"
                text = f"{shown(value)} is in {cell_name(first, column.number)} already"
                self.wrong(sheet, (row, column.number), text, rule)


def _ref_of(kind: Kind) -> Ref | None:
    inner = kind.inner if isinstance(kind, List) else kind
    return inner if isinstance(inner, Ref) else None


def _hashable(values: Iterable[Value]) -> Sequence[Value]:
    return [value for value in values if not isinstance(value, list)]


def _why_no_name(name: str) -> str:
    if not (name.isascii() and name.isidentifier()) or name.startswith("_"):
        return "has letters a to z, digits and _ only, and begins with a letter"
    return "cannot be a word of Python" if keyword.iskeyword(name) else ""
