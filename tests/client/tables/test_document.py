"""docs/tables.md: its sheet is built, and gives its file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spread.client import cli
from spread.node.tables import Tables
from tests.client.tables.workbooks import workbook

DOCUMENT = Path(__file__).parents[3] / "docs" / "tables.md"


def sheet() -> list[list[str | None]]:
    """The sheet of the document."""
    text = DOCUMENT.read_text().partition("<!-- the sheet items -->\n")[2].partition("<!--")[0]
    rows = [
        [cell.strip().replace("\\|", "|") or None for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.strip().splitlines()
    ]
    del rows[1]
    return rows


def test_the_sheet_gives_the_file(tmp_path: Path) -> None:
    file = workbook(tmp_path / "items.xlsx", items=sheet())
    assert cli.main(["tables", "build", str(file), "-o", str(tmp_path)]) == 0
    told = DOCUMENT.read_text().partition("```json\n")[2].partition("```")[0]
    assert (tmp_path / "items.json").read_text() == told
    assert Tables(tmp_path).items["rat"].drops == ("tail", "tooth")


def test_the_errors_are_those_that_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = sheet()
    rows[3][1], rows[3][3], rows[5][0] = "300", "tail; toth", "tail"
    file = workbook(tmp_path / "items.xlsx", items=rows)
    assert cli.main(["tables", "build", str(file), "-o", str(tmp_path)]) == 1
    assert capsys.readouterr().err in DOCUMENT.read_text()
