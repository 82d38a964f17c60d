"""Tables as a game reads them, and what is no such directory."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

from spread.node.tables import MANIFEST, MAX_TABLES, Tables, TablesBroken, signature_of
from tests.node.tables import ITEMS, put, table


def test_a_table_is_a_dictionary_of_rows_with_attributes(tmp_path: Path) -> None:
    tables = Tables(put(tmp_path, ITEMS))
    assert tables.items["sword"].damage == 5
    assert tables["items"]["shield"].parts == ("sword",)
    assert list(tables.items) == ["sword", "shield"], "in the order of the sheet"
    assert ("items" in tables, "mobs" in tables, list(tables), len(tables)) == (True, False, ["items"], 1)
    assert repr(tables) == "<Tables items(2)>"


def test_every_type_is_read_as_what_it_is(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "level": "int",
        "rate": {"type": "float", "min": 0.5, "max": 2},
        "name": {"type": "str", "min": 1, "max": 4},
        "open": "bool",
        "kind": "enum(a|b c)",
        "below": {"type": "ref(levels.level)", "null": True},
        "scores": {"type": "list[float]", "max": 9},
        "all": "list[ref(levels.level)]",
    }
    rows = [[1, 1.5, "one", True, "a", None, [], []], [2, 2, "two", False, "b c", 1, [0.5, 9], [1, 2]]]
    tables = Tables(put(tmp_path, table("levels", "level", columns, *rows)))
    assert list(tables.levels) == [1, 2]
    second = tables.levels[2]
    assert (second.rate, second.name, second.open, second.kind) == (2.0, "two", False, "b c")
    assert isinstance(second.rate, float)
    assert (second.below, second.scores, second.all) == (1, (0.5, 9.0), (1, 2))
    assert tables.levels[1].below is None


def test_nothing_of_it_can_be_changed(tmp_path: Path) -> None:
    tables: Any = Tables(put(tmp_path, ITEMS))
    with pytest.raises(TypeError):
        tables.items["axe"] = tables.items["sword"]
    with pytest.raises(TypeError):
        del tables.items["sword"]
    with pytest.raises(AttributeError):
        tables.items["sword"].damage = 6
    with pytest.raises(AttributeError):
        tables.mobs = {}


def test_a_table_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    tables = Tables(put(tmp_path, ITEMS))
    with pytest.raises(AttributeError, match="no table 'mobs'; there are: items"):
        _ = tables.mobs
    with pytest.raises(KeyError):
        _ = tables["mobs"]
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        copy.deepcopy(tables)


def changed(**changes: Any) -> dict[str, Any]:
    return {**ITEMS, **changes}


def with_row(*row: Any) -> dict[str, Any]:
    columns = {name: each for name, each in ITEMS["columns"].items()}
    return table("items", "id", columns, list(row))


def with_type(text: str) -> dict[str, Any]:
    return table("items", "id", {"id": "str", "x": text}, ["a", None])


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (with_row("sword", "5", []), r"row 'sword': Expected `int`, got `str` - at `\$\.damage`"),
        (with_row("sword", None, []), "Expected `int`, got `null`"),
        (with_row("sword", 0, []), "Expected `int` >= 1"),
        (with_row("sword", 101, []), "Expected `int` <= 100"),
        (with_row("sword", 5, ["axe"]), r"parts of 'sword' is 'axe', which ref\(items.id\) has not"),
        (changed(table="mobs", rows={}), "not the one|another table"),
        (changed(key="name"), "has no column 'name'"),
        (changed(rows={"axe": ITEMS["rows"]["sword"]}), "the key of row 'axe' is 'sword'"),
        (changed(rows={"sword": {**ITEMS["rows"]["sword"], "x": 1}}), "unknown field `x`"),
        (changed(rows=[]), "Expected `object`"),
        (changed(columns={"id": {"type": "str", "colour": "red"}}), "unknown field `colour`"),
        (changed(columns={"id": {"type": "str"}, "_x": {"type": "int"}}, rows={}), "'_x' cannot be a name"),
        (with_type("decimal"), "there is no type decimal"),
        (with_type("ref(mobs.id)"), r"there is no type ref\(mobs.id\)"),
        (with_type("ref(items.colour)"), "refers to nothing"),
        (with_type("ref(items.x)"), "refers to nothing"),
        (with_type("list[list[int]]"), "there is no type"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, wrong: dict[str, Any], why: str) -> None:
    put(tmp_path, wrong)
    if wrong["table"] != "items":
        (tmp_path / "mobs.json").rename(tmp_path / "items.json")
        manifest = (tmp_path / MANIFEST).read_text()
        (tmp_path / MANIFEST).write_text(manifest.replace("mobs", "items"))
    with pytest.raises(TablesBroken, match=why) as error:
        Tables(tmp_path)
    assert "items.json" in str(error.value)


def test_a_set_that_is_not_complete_is_told(tmp_path: Path) -> None:
    with pytest.raises(TablesBroken, match=r"_tables.json: No such file.*spread tables build writes it"):
        Tables(tmp_path)
    put(tmp_path, ITEMS)
    (tmp_path / "items.json").write_bytes((tmp_path / "items.json").read_bytes() + b" ")
    with pytest.raises(TablesBroken, match=r"items.json is not the one that _tables.json names"):
        Tables(tmp_path)
    (tmp_path / "items.json").unlink()
    with pytest.raises(TablesBroken, match=r"items\.json: No such file"):
        Tables(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(TablesBroken, match=r"_tables\.json"):
        Tables(tmp_path)
    (tmp_path / MANIFEST).write_bytes(b'{"tables": {"\xff": ""}}')
    with pytest.raises(TablesBroken, match=r"_tables\.json"):
        Tables(tmp_path)


def test_no_name_leads_out_of_the_directory(tmp_path: Path) -> None:
    put(tmp_path, manifest={"../secret": "0"})
    with pytest.raises(TablesBroken, match="cannot be a name"):
        Tables(tmp_path)


def test_how_much_is_read_is_bounded(tmp_path: Path) -> None:
    put(tmp_path, ITEMS)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert Tables(tmp_path, max_bytes=size)
    with pytest.raises(TablesBroken, match=r"items.json: all tables .* larger than app.tables_max_bytes"):
        Tables(tmp_path, max_bytes=size - 1)
    put(tmp_path, manifest={f"t{number}": "" for number in range(MAX_TABLES + 1)})
    with pytest.raises(TablesBroken, match=f"more than {MAX_TABLES} tables"):
        Tables(tmp_path)


def test_a_change_shows_in_the_signature(tmp_path: Path) -> None:
    missing = signature_of(tmp_path / "nowhere")
    put(tmp_path, ITEMS)
    first = signature_of(tmp_path)
    assert first == signature_of(tmp_path) != missing
    put(tmp_path, with_row("sword", 6, []))
    assert signature_of(tmp_path) != first
