"""Tables of a game, as typed, read-only dictionaries: ``tables.items["sword"].damage``.

They are read from a directory that ``spread tables build`` has written, and docs/tables.md describes:

    _tables.json    {"tables": {NAME: ETAG}}, written last
    NAME.json       {"table": NAME, "key": COLUMN, "columns": {COLUMN: {"type": …}}, "rows": {KEY: {…}}}

All of it is there and right, or none of it is taken. An ETAG is the beginning of a file's SHA-256, so that a
set of which only a part has been copied is seen as such. No Twisted.
"""

from __future__ import annotations

import hashlib
import keyword
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import GenericAlias, MappingProxyType
from typing import Annotated, Any, Literal

import msgspec

__all__ = [
    "MANIFEST",
    "MAX_BYTES",
    "MAX_TABLES",
    "TABLES_CHANNEL",
    "Tables",
    "TablesBroken",
    "etag_of",
    "signature_of",
]

TABLES_CHANNEL = "$tables"
"""Where changes are announced."""

MANIFEST = "_tables.json"
MAX_BYTES = 16 << 20
"""How large all files of a directory may be together, if nothing else is said."""
MAX_TABLES = 1000

_ETAG_CHARACTERS = 16
_DEEPEST_REFERENCE = 20
"""References may lead to references; more than so many in a row go in a circle."""

Table = Mapping[Any, Any]
"""The rows of a table, by their key."""


class TablesBroken(Exception):
    """The tables of a directory cannot be used; the text names the file and what is wrong with it."""


class Tables:
    """The tables of a directory, as they were when this was made.

    ``tables.NAME`` and ``tables["NAME"]`` are read-only mappings from key to row; ``"NAME" in tables``,
    ``len`` and iteration are by name. A row has an attribute for each column and cannot be changed; lists are
    tuples, blank cells ``None``. There are no other public names, so that a table may have any.

    :param max_bytes: how large all files may be together.
    :raises TablesBroken: something is missing or wrong.
    """

    __slots__ = ("_etags", "_files", "_signature", "_tables")

    def __init__(self, directory: str | Path, max_bytes: int = MAX_BYTES) -> None:
        root = Path(directory)
        # Before anything is read: what is written meanwhile will be seen as a change.
        self._signature = signature_of(root)
        self._files = _read(root, max_bytes)
        self._etags = {name: etag_of(text) for name, text in self._files.items()}
        self._tables = _decoded(self._files)

    def __getattr__(self, name: str) -> Table:
        if name.startswith("_"):  # one of our own, of a copy that is not filled yet
            raise AttributeError(name)
        try:
            return self._tables[name]
        except KeyError:
            raise AttributeError(f"there is no table {name!r}; there are: {', '.join(self)}") from None

    def __getitem__(self, name: str) -> Table:
        return self._tables[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tables

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def __repr__(self) -> str:
        return f"<Tables {' '.join(f'{name}({len(table)})' for name, table in self._tables.items())}>"


def etag_of(text: bytes) -> str:
    """What names the contents of a file, without the quotes that HTTP puts around it."""
    return hashlib.sha256(text).hexdigest()[:_ETAG_CHARACTERS]


def signature_of(directory: Path) -> object:
    """Something that is equal as long as no file of a directory has changed. Never raises."""
    seen = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.endswith(".json"):
                    state = entry.stat()
                    seen.append((entry.name, state.st_mtime_ns, state.st_size, state.st_ino))
    except OSError as error:
        return error.errno
    return sorted(seen)


# -- files -------------------------------------------------------------------------------------------------


class _Manifest(msgspec.Struct, forbid_unknown_fields=True):
    tables: dict[str, str]


def _read(root: Path, max_bytes: int) -> dict[str, bytes]:
    """The files by the names of their tables, all as the manifest has them."""
    left = max_bytes
    text = _read_file(root / MANIFEST, left)
    try:
        manifest = msgspec.json.decode(text, type=_Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TablesBroken(f"{root / MANIFEST}: {error}") from None
    if len(manifest.tables) > MAX_TABLES:
        raise TablesBroken(f"{root / MANIFEST}: it names more than {MAX_TABLES} tables")
    files = {}
    for name, etag in sorted(manifest.tables.items()):
        _check_name(name, str(root / MANIFEST))
        left -= len(text)
        text = _read_file(root / f"{name}.json", left)
        if etag_of(text) != etag:
            raise TablesBroken(
                f"{root / name}.json is not the one that {MANIFEST} names: not all files were copied, or one "
                "was changed by hand; run spread tables build"
            )
        files[name] = text
    return files


def _read_file(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(max_bytes + 1)
    except OSError as error:
        hint = "; spread tables build writes it" if path.name == MANIFEST else ""
        raise TablesBroken(f"{path}: {error.strerror}{hint}") from None
    if len(text) > max_bytes:
        raise TablesBroken(f"{path}: all tables together are larger than app.tables_max_bytes")
    return text


def _check_name(name: str, where: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name) or not name.isascii() or name.startswith("_"):
        raise TablesBroken(f"{where}: {name!r} cannot be a name in Python")


# -- rows --------------------------------------------------------------------------------------------------


class _Column(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    min: float | None = None
    max: float | None = None
    """Of a text: how many characters; of a list: each of its values."""
    null: bool = False


class _File(msgspec.Struct):
    table: str
    key: str
    columns: dict[str, _Column]
    rows: dict[str, msgspec.Raw]


_LIST = re.compile(r"list\[(.+)\]")
_ENUM = re.compile(r"enum\((.+)\)")
_REF = re.compile(r"ref\((\w+)\.(\w+)\)")
_PLAIN: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool}


def _decoded(texts: Mapping[str, bytes]) -> dict[str, Table]:
    files = {}
    for name, text in texts.items():
        try:
            file = msgspec.json.decode(text, type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TablesBroken(f"{name}.json: {error}") from None
        if file.table != name or file.key not in file.columns:
            raise TablesBroken(f"{name}.json: it is another table, or has no column {file.key!r}")
        for column in file.columns:
            _check_name(column, f"{name}.json")
        files[name] = file
    tables = {name: _rows(name, files) for name in files}
    for name, file in files.items():
        for column, described in file.columns.items():
            _check_references(name, column, described.type, tables)
    return tables


def _rows(name: str, files: Mapping[str, _File]) -> Table:
    file = files[name]
    fields = [(column, _typed(described, files, name)) for column, described in file.columns.items()]
    # gc=False: a row holds numbers, texts and tuples of these, and so is part of no circle.
    row: Any = msgspec.defstruct(
        name, fields, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False
    )
    decoder = msgspec.json.Decoder(row)
    by_key = {}
    # One by one, since a thread that is in msgspec's code holds up the reactor's until it comes out of it.
    for written, text in file.rows.items():
        try:
            each = decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TablesBroken(f"{name}.json: row {written!r}: {error}") from None
        key = getattr(each, file.key)
        if str(key) != written:
            raise TablesBroken(f"{name}.json: the key of row {written!r} is {key!r}")
        by_key[key] = each
    return MappingProxyType(by_key)


def _typed(column: _Column, files: Mapping[str, _File], table: str) -> Any:
    """What msgspec knows the values of a column as."""
    inner = _LIST.fullmatch(column.type)
    kind = _plain_type(inner[1] if inner else column.type, files, table, 0)
    bounds: dict[str, Any] = {}
    least, most = ("min_length", "max_length") if kind is str else ("ge", "le")
    for name, bound in ((least, column.min), (most, column.max)):
        if bound is not None:
            bounds[name] = int(bound) if kind in (int, str) else bound
    try:
        if bounds:
            kind = Annotated[kind, msgspec.Meta(**bounds)]
    except (TypeError, ValueError) as error:
        raise TablesBroken(f"{table}.json: {error}") from None
    if inner:
        kind = GenericAlias(tuple, (kind, ...))
    return kind | None if column.null else kind


def _plain_type(text: str, files: Mapping[str, _File], table: str, depth: int) -> Any:
    if text in _PLAIN:
        return _PLAIN[text]
    enum = _ENUM.fullmatch(text)
    if enum:
        return Literal[tuple(enum[1].split("|"))]
    ref = _REF.fullmatch(text)
    target = files[ref[1]].columns.get(ref[2]) if ref and ref[1] in files else None
    if target is None or depth > _DEEPEST_REFERENCE:
        raise TablesBroken(f"{table}.json: there is no type {text}, or it refers to nothing")
    return _plain_type(target.type, files, table, depth + 1)


def _check_references(table: str, column: str, type_text: str, tables: Mapping[str, Table]) -> None:
    inner = _LIST.fullmatch(type_text)
    ref = _REF.fullmatch(inner[1] if inner else type_text)
    if ref is None:
        return
    there = {getattr(row, ref[2]) for row in tables[ref[1]].values()}
    for key, row in tables[table].items():
        value = getattr(row, column)
        for one in value if inner else (value,):
            if one is not None and one not in there:
                raise TablesBroken(f"{table}.json: {column} of {key!r} is {one!r}, which {ref[0]} has not")
