"""``spread tables build``: from workbooks to files that a shard reads, or to all that is wrong."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from spread.client import cli
from spread.node.tables import Tables, etag_of
from tests.client.tables.workbooks import workbook

ITEMS: list[list[Any]] = [
    ["id", "damage", "rarity", "drops", "boss", "#note"],
    ["str", "int", "enum(common|rare)", "list[ref(items)]", "ref(mobs)", None],
    ["key", "required, 1..100", "default common", None, None, None],
    ["sword", 5, "rare", None, "rat", "the first"],
    [],
    [" shield ", "7", None, "sword", None, 3],
    [1001, 9.0, None, "sword; shield;", None, None],
]
MOBS: list[list[Any]] = [["name", "speed", "fast"], ["str", "float", "bool"], ["key"], ["rat", 1, True]]

Build = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Build:
    """Runs the command; gives exit code, standard output and the lines of standard error."""

    def run(*workbooks: Path, output: Path | None = None) -> tuple[int, str, list[str]]:
        capsys.readouterr()
        code = cli.main(["tables", "build", *map(str, workbooks), "-o", str(output or tmp_path / "out")])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    return run


def test_sheets_become_tables(build: Build, tmp_path: Path) -> None:
    file = workbook(tmp_path / "game.xlsx", items=ITEMS, mobs=MOBS, _notes=[["anything"]], Sheet1=[])
    code, out, err = build(file)
    assert (code, err) == (0, [])
    assert out == (
        "items: 3 rows, 5 columns\nmobs: 1 rows, 3 columns\n"
        f"{tmp_path / 'out'}: items.json mobs.json _tables.json\n"
    )
    tables = Tables(tmp_path / "out")
    assert list(tables.items) == ["sword", "shield", "1001"]
    sword, shield, third = tables.items.values()
    assert (sword.damage, sword.rarity, sword.drops, sword.boss) == (5, "rare", (), "rat")
    assert (shield.damage, shield.rarity, shield.drops, shield.boss) == (7, "common", ("sword",), None)
    assert third.drops == ("sword", "shield")
    assert (tables.mobs["rat"].speed, tables.mobs["rat"].fast) == (1.0, True)


def test_a_file_is_made_to_be_read_and_compared(build: Build, tmp_path: Path) -> None:
    assert build(workbook(tmp_path / "game.xlsx", mobs=MOBS))[0] == 0
    text = (tmp_path / "out" / "mobs.json").read_text()
    assert text == (
        '{\n"table": "mobs",\n"key": "name",\n"columns": {\n"name": {"type": "str"},\n'
        '"speed": {"type": "float", "null": true},\n"fast": {"type": "bool", "null": true}\n},\n'
        '"rows": {\n"rat": {"name": "rat", "speed": 1.0, "fast": true}\n}\n}\n'
    )
    manifest = json.loads((tmp_path / "out" / "_tables.json").read_text())
    assert manifest == {"tables": {"mobs": etag_of(text.encode())}}


def test_the_same_sheets_give_the_same_bytes(build: Build, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert (
            build(workbook(tmp_path / f"{name}.xlsx", items=ITEMS, mobs=MOBS), output=tmp_path / name)[0] == 0
        )
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "a").iterdir()}
    code, out, _ = build(tmp_path / "b.xlsx", output=tmp_path / "a")
    assert code == 0 and out.endswith("nothing has changed\n")
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "a").iterdir()}


def test_sheets_of_several_files_refer_to_each_other(build: Build, tmp_path: Path) -> None:
    files = workbook(tmp_path / "a.xlsx", items=ITEMS), workbook(tmp_path / "b.xlsx", mobs=MOBS)
    assert build(*files)[0] == 0
    code, _, err = build(files[0])
    assert (code, len(err)) == (1, 1)
    assert "a.xlsx: items!E2: there is no such column" in err[0]
    code, _, err = build(*files, workbook(tmp_path / "c.xlsx", MOBS=MOBS))
    assert (code, err) == (1, ["spread: error: c.xlsx: MOBS: b.xlsx has a sheet mobs too"])


def test_everything_that_is_wrong_is_told_at_once(build: Build, tmp_path: Path) -> None:
    rows = [list(row) for row in ITEMS]
    rows[0] += ["class", "colour", None, "damage"]
    rows[1] += ["int", "paint", None, "int"]
    rows[2] += ["big", None, None, None]
    rows[3][:5] = ["sword", 500, "epic", "swrod", "cat"]
    rows[3] += [None, None, "loose"]
    rows[5][:2] = ["sword", None]
    rows[6][1:3] = [datetime(2026, 1, 2), "=A4"]
    rows.append([None, "x"])
    mobs = [["name"], ["str"], [], ["rat"]]
    file = workbook(
        tmp_path / "game.xlsx", ["B9:B10"], items=rows, mobs=mobs, **{"the end": [["a"], ["int"]]}
    )
    code, out, err = build(file)
    assert (code, out) == (1, "")
    assert [line.removeprefix("spread: error: game.xlsx: ") for line in err] == [
        "items!G1: 'class': a column's name cannot be a word of Python, or begins with #",
        "items!J1: there are two columns damage",
        "items!E2: there is no such column, or it refers back to this one: ref(mobs)",
        "items!H2: 'paint' is no type; there are int, float, str, bool, enum(a|b), ref(SHEET.COLUMN), "
        "list[TYPE]",
        "items!G3: 'big' is no rule; there are key, unique, required, 1..100 and default VALUE",
        "items!B4: 500 is more than 100 (rule: 1..100)",
        "items!C4: 'epic' is none of common, rare (rule: enum(common|rare))",
        "items!I4: column I has no name in row 1; one of a note begins with #",
        "items!A6: 'sword' is in A4 already (rule: key)",
        "items!B6: the cell is blank (rule: required)",
        "items!B7: 2026-01-02 00:00:00 (a date or time) is no whole number (rule: int)",
        "items!C7: its formula has no result: open the file in a spreadsheet program, and save it",
        "items!A8: the cell is blank (rule: key)",
        "items!B8: 'x' is no whole number (rule: int)",
        "items!B9:B10: these cells are merged; split them",
        "mobs!A3: no column names the rows: write key below its type",
        "the end: a sheet's name has letters a to z, digits and _ only, and begins with a letter, or begins "
        "with # if it is a note",
        "the end!A3: no column names the rows: write key below its type",
    ]
    assert not (tmp_path / "out").exists()


def test_references_that_lead_nowhere(build: Build, tmp_path: Path) -> None:
    items = [
        ["id", "boss", "next", "round", "twice"],
        ["int", "ref(mobs.name)", "list[ref(items)]", "ref(items.round)", "ref(mobs.kind)"],
        ["key", None, None, None, None],
        [1, "cat", "1; 2", None, None],
    ]
    mobs = [["name", "kind"], ["str", "str"], ["key"], ["rat", "a"], ["dog", "a"]]
    code, _, err = build(workbook(tmp_path / "game.xlsx", items=items, mobs=mobs))
    assert code == 1
    assert [line.removeprefix("spread: error: game.xlsx: ") for line in err] == [
        "items!D2: there is no such column, or it refers back to this one: ref(items.round)",
        "items!E2: mobs.kind is neither key nor unique (rule: ref(mobs.kind))",
        "items!B4: 'cat' is not there (rule: ref(mobs.name))",
        "items!C4: 2 is not there (rule: list[ref(items.id)])",
    ]


def test_unique_columns_may_have_blanks(build: Build, tmp_path: Path) -> None:
    rows = [["id", "nick"], ["int", "str"], ["key", "unique"], [1, None], [2, None], [3, "x"]]
    assert build(workbook(tmp_path / "a.xlsx", t=rows))[0] == 0
    code, _, err = build(workbook(tmp_path / "a.xlsx", t=[*rows, [4, "x"]]))
    assert (code, err) == (1, ["spread: error: a.xlsx: t!B7: 'x' is in B6 already (rule: unique)"])


def test_what_was_there_stays_when_something_is_wrong(build: Build, tmp_path: Path) -> None:
    build(workbook(tmp_path / "a.xlsx", mobs=MOBS))
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    broken = workbook(tmp_path / "b.xlsx", mobs=[*MOBS, ["rat", 2, False]])
    assert build(broken)[0] == 1
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}


def test_what_cannot_be_written_leaves_nothing(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spread.client.tables import writing

    build(workbook(tmp_path / "a.xlsx", mobs=MOBS))
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    real = writing._write

    def full(path: Path, text: bytes) -> None:
        if "_tables" in path.name:
            raise OSError(28, "No space left on device", str(path))
        real(path, text)

    monkeypatch.setattr(writing, "_write", full)
    code, _, err = build(workbook(tmp_path / "b.xlsx", mobs=[*MOBS, ["cat", 2, False]]))
    assert code == 1 and "No space left on device" in err[0]
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}


def test_sheets_that_are_gone_take_their_files_with_them(build: Build, tmp_path: Path) -> None:
    build(workbook(tmp_path / "a.xlsx", mobs=MOBS, more=MOBS))
    (tmp_path / "out" / "mine.json").write_text("{}")
    _, out, _ = build(workbook(tmp_path / "a.xlsx", mobs=MOBS))
    assert out.endswith("out: _tables.json -more.json\n")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"_tables.json", "mobs.json", "mine.json"}
    assert list(Tables(tmp_path / "out")) == ["mobs"]


def test_formulas_count_as_what_they_gave(build: Build, tmp_path: Path) -> None:
    file = workbook(tmp_path / "a.xlsx", t=[["id", "x"], ["int", "int"], ["key"], [1, "=1+1"], [2, "=1/0"]])
    saved = tmp_path / "saved.xlsx"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(saved, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            if name.endswith("sheet1.xml"):
                text = text.replace(b"<f>1+1</f><v></v>", b"<f>1+1</f><v>2</v>").replace(
                    b"<f>1+1</f><v />", b"<f>1+1</f><v>2</v>"
                )
                text = text.replace(b'<c r="B5">', b'<c r="B5" t="e">')
                text = text.replace(b"<f>1/0</f><v></v>", b"<f>1/0</f><v>#DIV/0!</v>").replace(
                    b"<f>1/0</f><v />", b"<f>1/0</f><v>#DIV/0!</v>"
                )
            new.writestr(name, text)
    code, _, err = build(saved)
    assert (code, err) == (1, ["spread: error: saved.xlsx: t!B5: its formula gives #DIV/0!"])


def test_what_is_no_workbook(build: Build, tmp_path: Path) -> None:
    assert build(tmp_path / "none.xlsx")[2] == [
        f"spread: error: {tmp_path}/none.xlsx: No such file or directory"
    ]
    (tmp_path / "a.xlsx").write_text("id;name")
    code, _, err = build(tmp_path / "a.xlsx")
    assert code == 1 and "a.xlsx is no .xlsx workbook" in err[0]
    assert "nothing in it" not in build(workbook(tmp_path / "b.xlsx", a=[]))[2][0]


def test_without_openpyxl_it_says_what_to_install(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    code, _, err = build(tmp_path / "a.xlsx")
    assert (code, err) == (
        1,
        ["spread: error: spread tables needs openpyxl: pip install 'spread-node[tables]'"],
    )


def test_many_problems_are_cut_short(build: Build, tmp_path: Path) -> None:
    rows = [["id"], ["int"], ["key"], *(["x"] for _ in range(300))]
    code, _, err = build(workbook(tmp_path / "a.xlsx", t=rows))
    assert (code, len(err), err[-1]) == (1, 201, "spread: error: and 100 more")


def test_a_check_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = workbook(tmp_path / "a.xlsx", mobs=MOBS)
    assert cli.main(["tables", "build", str(file), "-o", str(tmp_path / "out"), "--check"]) == 0
    assert capsys.readouterr().out == "mobs: 1 rows, 3 columns\n"
    assert not (tmp_path / "out").exists()
