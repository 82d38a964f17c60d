"""docs/configuration.md, against the settings: its tables are made from them, its examples are loaded.

When a setting was changed, ``python -m tests.test_configuration`` writes the tables anew.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import fields

from spread.node.config import ConfigError, load
from spread.node.config.absent import ABSENT
from spread.node.config.flags import FLAGS, Flag, flags_of, shown_default
from spread.node.settings import Namespace, NamespaceOptions, Settings

DOCUMENT = Path(__file__).parent.parent / "docs" / "configuration.md"
BEGIN, END = "<!-- the tables: made from the settings -->", "<!-- end of the tables -->"


def tables() -> str:
    """The part of the document that lists every setting."""
    parts = []
    for section in fields(Settings):
        keys = dict.fromkeys(flag.table for flag in FLAGS if flag.section == section.name)
        for table in sorted(keys, key=lambda key: key != section.name):
            flags = [flag for flag in FLAGS if flag.table == table]
            parts.append(f"### `{table}`\n\n{_heading(table)}.\n\n{_rows(flags)}")
    options = [flag for flag in flags_of(Namespace, "") if flag.key not in _OPTIONS]
    parts.append(
        "### A namespace\n\nAn entry of `channel.namespaces` has all options of `channel.without_namespace`, "
        f"with the same defaults, and\n\n{_rows(options)}"
    )
    return "\n\n".join(parts)


_OPTIONS = NamespaceOptions.__struct_fields__


def _heading(table: str) -> str:
    struct: Any = Settings
    for name in table.split("."):
        struct = next(field.type for field in fields(struct) if field.name == name)
    return (struct.__doc__ or "").splitlines()[0].removesuffix(".")


def _rows(flags: list[Flag]) -> str:
    rows = ["| setting | default | values | variable | meaning |", "|---|---|---|---|---|"]
    for flag in flags:
        default = "required" if flag.key == "name" else f"`{shown_default(flag)}`"
        default = "none" if default == "`none`" else default
        values = {"bool": "yes or no", "list": "list", "tables": "list of tables"}.get(flag.kind, flag.bounds)
        values = ", ".join(f"`{choice}`" for choice in flag.choices if choice) or values or "text"
        variable = f"`{flag.variable}`" if "." in flag.key else "see above"
        help = (
            flag.help.replace("Spread's own.", "**Spread's own.**").replace("|", "\\|").replace("*.", "\\*.")
        )
        rows.append(f"| `{flag.key}` | {default} | {values} | {variable} | {help} |")
    return "\n".join(rows)


def test_every_setting_is_there_as_it_is() -> None:
    text = DOCUMENT.read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    written = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert written.splitlines() == tables().splitlines(), "run python -m tests.test_configuration"


def test_what_spread_does_not_have_is_there() -> None:
    text = DOCUMENT.read_text().partition("## What Spread does not have")[2]
    for key in ABSENT:
        name = key.removeprefix("channel.without_namespace.").removeprefix("channel.namespaces[].")
        name = name.replace("client.subscription_token.", "client.token.")
        assert f"`{name}`" in text, key


@pytest.mark.parametrize("language", ["toml", "json"])
def test_the_examples_can_be_used(language: str, tmp_path: Path) -> None:
    examples = re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert examples
    for number, example in enumerate(examples):
        file = tmp_path / f"{number}.{language}"
        file.write_text(example)
        warnings: list[str] = []
        if "lenient" in example:
            with pytest.raises(ConfigError, match="Spread does not have"):
                load(file=str(file), environ={}, flags={})
        assert load(file=str(file), environ={}, flags={}, warn=warnings.append) != Settings()
        assert bool(warnings) == ("lenient" in example)


def test_what_is_said_when_something_is_wrong_is_said(tmp_path: Path) -> None:
    text = DOCUMENT.read_text()
    wrong = {
        '{"channel": {"namespaces": [{"name": "chat", "histroy_size": 1}]}}': "did you mean history_size",
        '{"client": {"ping_interval": "soon"}}': "must be a duration",
        '{"channel": {"namespaces": [{"name": "chat", "force_recovery": true}]}}': "needs history",
    }
    file = tmp_path / "centrifugo.json"
    for example, words in wrong.items():
        file.write_text(example)
        with pytest.raises(ConfigError, match=words) as error:
            load(file=str(file), environ={}, flags={})
        assert f"spread-node: error: {error.value}".replace(f"{tmp_path}/", "") in text


if __name__ == "__main__":
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.partition(END)[2]}")
