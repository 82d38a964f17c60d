"""``spread tables``: its commands, and their help."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["tables"]

_PROBLEMS_SHOWN = 200


@click.group()
def tables() -> None:
    """Tables of a game, made of the sheets of a spreadsheet."""


@tables.command(short_help="Check the sheets of workbooks, and write them as JSON.")
@click.argument("workbooks", nargs=-1, required=True, metavar="FILE.xlsx...", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the tables go; made if it is not there.",
)
@click.option("--check", is_flag=True, help="Tell what is wrong, write nothing.")
def build(workbooks: tuple[Path, ...], output: Path, check: bool) -> int:
    """Check every sheet of workbooks, and write each as DIR/NAME.json.

    \b
    The first three rows of a sheet say what its columns are:
      row 1  name      id    damage   rarity               drops
      row 2  type      str   int      enum(common|rare)    list[ref(items)]
      row 3  rules     key   1..100   default common
      row 4  ...       rat   3        rare                 sword; shield

    \b
    Types: int, float, str, bool, enum(a|b), ref(SHEET), ref(SHEET.COLUMN), list[TYPE].
    Rules: key, unique, required, 1..100 (1.. and ..100 too), default VALUE (the last one);
    with commas between them. Sheets and columns whose names begin with # are notes.

    \b
    Examples:
      spread tables build items.xlsx -o tables/
      spread tables build items.xlsx maps.xlsx -o tables/     they may refer to each other
      spread-node --shard 0 --tables tables/                  serve them

    All that is wrong is told at once, each with its sheet, cell and rule, and nothing is written then. What
    did not change is not written either; a shard that runs takes the change by itself.

    Exit codes: 0 when all is right; 1 when something is wrong, or a file cannot be read or written; 2 for
    wrong usage.
    """
    from spread.client.tables.checking import tables_of
    from spread.client.tables.sheets import CannotRead, read_workbook
    from spread.client.tables.writing import write_tables

    try:
        sheets = [sheet for path in workbooks for sheet in read_workbook(path)]
        found, problems = tables_of(sheets)
        for problem in problems[:_PROBLEMS_SHOWN]:
            click.echo(f"spread: error: {problem}", err=True)
        if len(problems) > _PROBLEMS_SHOWN:
            click.echo(f"spread: error: and {len(problems) - _PROBLEMS_SHOWN} more", err=True)
        if problems:
            return 1
        if not found:
            raise CannotRead("there is no sheet with anything in it")
        changed = [] if check else write_tables(found, output)
    except CannotRead as error:
        click.echo(f"spread: error: {error}", err=True)
        return 1
    except OSError as error:
        click.echo(f"spread: error: {error.filename or output}: {error.strerror}", err=True)
        return 1
    for table in found:
        click.echo(f"{table.name}: {len(table.rows)} rows, {len(table.columns)} columns")
    if not check:
        click.echo(f"{output}: {' '.join(changed) if changed else 'nothing has changed'}")
    return 0
