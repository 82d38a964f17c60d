"""The team's code, imported into a namespace of its own, so that a newer one can stand beside it.

Generation N of the team's modules is imported under the private package ``spread_app_N``: what the team
calls ``rules`` is ``spread_app_N.rules`` in ``sys.modules``. The team's modules are those in the directory of
the module that was named (of its top package), so ``import rules`` there, anywhere and at any time, gives the
one of the same generation; all other imports are ordinary ones, of modules that are there once. Of an
installed package, its own modules alone are the team's.

What is promised:

1.  *One moment.* Each source is read once, also of modules that the team imports only later, within a
    function: whatever happens to the files, a generation is what it was when it was loaded. A syntax error is
    found now.
2.  *No bytecode.* Modules are compiled from their source: a file that was saved twice in a second is
    read twice.
3.  *Nothing else is touched.* What fails leaves no module behind, and no other generation is affected.

``importlib.import_module("rules")`` is not known to be the team's, and gives the ordinary module; with a
leading dot (``import_module(".rules", __package__)``) it is. Classes have private names for ``pickle`` too:
what it writes cannot be read by the next generation.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib.machinery
import importlib.util
import logging
import os
import re
import sys
import traceback
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any
from weakref import WeakSet

__all__ = [
    "AppFails",
    "LoadError",
    "Loaded",
    "explain",
    "forget",
    "generations",
    "harmless",
    "load",
    "own_name",
    "team_frame",
]

PREFIX = "spread_app_"
VERSION_DIGITS = 12
VERSION_MAX_CHARACTERS = 64
"""Of a version that the team gives itself: it is in lines, labels and the roster."""

EXPLAINED_MAX_CHARACTERS = 32768
"""Of a traceback: it goes from shard to shard, and into the log."""

_PRIVATE = re.compile(rf"{PREFIX}[0-9]+\.")
_AWAITING = (os.path.join("twisted", "internet", "defer.py"), os.path.join("twisted", "python", "failure.py"))
_INSTALLED = {"site-packages", "dist-packages"}


class LoadError(Exception):
    """The app cannot be had by the name that was given; the text says why."""


class AppFails(Exception):
    """An app that was imported cannot start; its cause is what the team's code has raised."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An app that was imported."""

    app_class: type[Any]
    version: str
    """The class attribute ``version``, or 12 hex digits of a hash of all sources."""
    modules: tuple[str, ...]
    """The team's modules, by the names that the team gives them."""
    generation: int


def load(spec: str, generation: int, path: Sequence[str] | None = None) -> Loaded:
    """Import ``MODULE:CLASS``. Runs the team's code, on the thread that calls it.

    :param generation: a number that was never loaded before; ``forget`` takes it.
    :param path: directories to look in; ``None``: the working directory, then those of Python.
    :raises LoadError: there is no such module or class, or the import would end the process, or the version
        that the class declares is none.
    :raises Exception: whatever the import of the team's code raises.
    """
    name, colon, attribute = spec.partition(":")
    if not (colon and attribute.isidentifier() and all(part.isidentifier() for part in name.split("."))):
        raise LoadError(f"{spec!r} is not MODULE:CLASS, such as game:Game")
    if name.endswith(".py"):
        raise LoadError(f"{spec!r} names a file, not a module: {name.removesuffix('.py')}:{attribute}")
    top = name.partition(".")[0]
    team = _Team(generation, *_directory_of(top, [os.getcwd(), *sys.path] if path is None else path))
    sys.meta_path.insert(0, team)
    try:
        root = ModuleType(team.root, "The team's modules of one generation.")
        root.__path__ = [team.directory]
        sys.modules[team.root] = root
        module = team.import_(name, None, None, (attribute,), 0)
        app_class = getattr(module, attribute, None)
        if not isinstance(app_class, type):
            raise LoadError(_no_class(name, attribute, module, app_class))
        team.take_all()
        version = _declared(app_class) or team.digest()
    except SystemExit as error:
        forget(generation)
        raise LoadError(f"the import of {name} ends the program (SystemExit: {error})") from error
    except BaseException:
        forget(generation)
        raise
    return Loaded(app_class, version, tuple(sorted(team.taken)), generation)


def forget(generation: int) -> None:
    """Take a generation out of Python's register of modules. Idempotent.

    What still runs of it runs on, but can import none of its modules any more.
    """
    root = f"{PREFIX}{generation}"
    for name in [name for name in sys.modules if name == root or name.startswith(root + ".")]:
        del sys.modules[name]
    for finder in [each for each in sys.meta_path if isinstance(each, _Team) and each.root == root]:
        sys.meta_path.remove(finder)
    # ``logging.getLogger(__name__)`` is kept for ever by that name.
    loggers = logging.Logger.manager.loggerDict
    for name in [name for name in loggers if name == root or name.startswith(root + ".")]:
        del loggers[name]
    # The caches of ``typing`` hold up to 128 types each, ``Optional[Move]``, and with a class of the team's
    # its module and all that is in it.
    for clear in getattr(typing, "_cleanups", ()):
        clear()


def generations() -> int:
    """How many generations are in memory: those that run, and those whose code something still holds."""
    return len(_alive)


def explain(error: BaseException) -> str:
    """The traceback as the team wants to see it: from its own code on, with its own names.

    Never fails, whatever the error is like; see also ``harmless``.
    """
    try:
        return harmless(_explained(error))
    # An error may be of the team's own kind, and its parts anything.
    except Exception as another:
        return f"{type(error).__name__}, of which nothing can be told ({type(another).__name__})"


def harmless(text: str) -> str:
    """``text``, so that it can be written as UTF-8; of a very long one the middle is left out."""
    text = text.encode("utf-8", "backslashreplace").decode()
    half = EXPLAINED_MAX_CHARACTERS // 2
    return text if len(text) <= 2 * half else f"{text[:half]}\n[...]\n{text[-half:]}"


def _explained(error: BaseException) -> str:
    told = traceback.TracebackException.from_exception(error)
    each: traceback.TracebackException | None = told
    while each is not None:
        first = next((at for at, frame in enumerate(each.stack) if _is_machinery(frame.filename)), 0)
        theirs = [frame for frame in each.stack[first:] if not _is_machinery(frame.filename)]
        each.stack = traceback.StackSummary.from_list(theirs)
        each = each.__cause__ or each.__context__
    return _PRIVATE.sub("", "".join(told.format())).rstrip()


def own_name(name: str) -> str:
    """The name of a module or class as the team gives it."""
    return _PRIVATE.sub("", name)


def team_frame(frame: FrameType | None, generation: int) -> FrameType | None:
    """The innermost frame of this generation's code in a stack; ``None``: there is none."""
    root = f"{PREFIX}{generation}."
    while frame is not None and not str(frame.f_globals.get("__name__", "")).startswith(root):
        frame = frame.f_back
    return frame


def _is_machinery(filename: str) -> bool:
    """That is nobody's: what imports, what awaits, and what of Spread lies here."""
    if filename.startswith("<frozen importlib") or filename.endswith(_AWAITING):
        return True
    return os.path.dirname(filename) == os.path.dirname(__file__)


def _declared(app_class: type[Any]) -> str:
    """The version that the class gives itself; "" if it gives none."""
    version = getattr(app_class, "version", "")
    if not isinstance(version, str):
        return ""
    if len(version) > VERSION_MAX_CHARACTERS or not version.isprintable():
        raise LoadError(
            f"the version of {app_class.__qualname__} is one line of {VERSION_MAX_CHARACTERS} characters at "
            f"most, not {version[: VERSION_MAX_CHARACTERS + 1]!r}"
        )
    return version


def _no_class(name: str, attribute: str, module: ModuleType, found: object) -> str:
    if found is not None:
        return f"{name}:{attribute} is no class, but {type(found).__name__}"
    own = [
        key
        for key, one in vars(module).items()
        if isinstance(one, type) and one.__module__ == module.__name__
    ]
    return f"module {name} has no class {attribute}; it has: {', '.join(own) or 'none'}"


def _directory_of(top: str, path: Sequence[str]) -> tuple[str, str]:
    """Where the top module is, and the name of the only module there that is the team's; "": all are."""
    places = list(dict.fromkeys(os.path.abspath(entry) for entry in path))
    for find in (_file_of, _folder_of):
        for place in places:
            if find(place, top) is not None:
                is_installed = _INSTALLED & set(Path(place).parts)
                return place, top if is_installed else ""
    raise LoadError(f"there is no module {top} in {os.getcwd()}, nor where Python looks")


def _file_of(directory: str, name: str) -> str | None:
    """The source of a module or package."""
    base = os.path.join(directory, *name.split("."))
    for path in (os.path.join(base, "__init__.py"), base + ".py"):
        if os.path.isfile(path):
            return path
    return None


def _folder_of(directory: str, name: str) -> str | None:
    """The directory of a package without ``__init__.py``."""
    folder = os.path.join(directory, *name.split("."))
    return folder if os.path.isdir(folder) else None


class _Team:
    """The modules of one generation; a finder of ``sys.meta_path``."""

    def __init__(self, generation: int, directory: str, only: str) -> None:
        self.root = f"{PREFIX}{generation}"
        self.directory = directory
        self.taken: dict[str, str] = {}
        """The path of each module that was read, by the team's name for it."""
        self.codes: dict[str, CodeType] = {}
        """By path."""
        # Each module gets this in place of the builtins, which makes ``import_`` what ``import`` calls there.
        self.builtins = {**vars(builtins), "__import__": self.import_}
        self._sources: dict[str, bytes] = {}
        self._only = only
        self._is_ours: dict[str, bool] = {}
        _alive.add(self)

    # -- what Python's import calls

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Part of the protocol of ``sys.meta_path``: the module of that private name."""
        if not fullname.startswith(self.root + "."):
            return None
        name = fullname.removeprefix(self.root + ".")
        file = self._file_of(name)
        if file is not None:
            self._take(name, file)
            is_package = os.path.basename(file) == "__init__.py"
            return importlib.util.spec_from_file_location(
                fullname,
                file,
                loader=_Loader(fullname, file, self),
                submodule_search_locations=[os.path.dirname(file)] if is_package else None,
            )
        folder = _folder_of(self.directory, name)
        if folder is None:
            return None
        spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = [folder]
        return spec

    def import_(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """What ``import`` calls in the team's modules: as the builtin ``__import__``."""
        top = name.partition(".")[0]
        if level or not self._has(top):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        module = builtins.__import__(f"{self.root}.{name}", globals, locals, fromlist or (), 0)
        return module if fromlist else sys.modules[f"{self.root}.{top}"]

    def _has(self, top: str) -> bool:
        """Whether a top module is the team's. An answer once given stays, whatever happens to the files."""
        known = self._is_ours.get(top)
        if known is None:
            known = self._is_ours[top] = self._finds(top)
        return known

    def _finds(self, top: str) -> bool:
        if self._only:
            return top == self._only
        if top == "spread":
            return False
        if _file_of(self.directory, top) is not None:
            return True
        if _folder_of(self.directory, top) is None:
            return False
        # A folder without __init__.py: of the team's if it is a module of nobody else. There may well be a
        # folder ``redis`` beside the sources.
        if top in sys.modules or top in sys.builtin_module_names:
            return False
        spec = importlib.util.find_spec(top)
        return spec is None or spec.loader is None or spec.origin is None

    # -- sources

    def _file_of(self, name: str) -> str | None:
        # One that was taken stays, though its file may be gone.
        return self.taken.get(name) or _file_of(self.directory, name)

    def _take(self, name: str, file: str) -> None:
        """Read and compile a source, once."""
        if file not in self.codes:
            source = Path(file).read_bytes()
            self.codes[file] = compile(source, file, "exec", dont_inherit=True)
            self._sources[file] = source
        self.taken[name] = file

    def take_all(self) -> None:
        """Read what the modules that were read may import later, and so on.

        :raises SyntaxError: one of them has an error.
        """
        waiting = list(self.taken)
        while waiting:
            name = waiting.pop()
            file = self.taken[name]
            package = name if os.path.basename(file) == "__init__.py" else name.rpartition(".")[0]
            for imported in _imports(ast.parse(self._sources[file]), package):
                if imported in self.taken or not self._has(imported.partition(".")[0]):
                    continue
                found = self._file_of(imported)
                if found is not None:
                    self._take(imported, found)
                    waiting.append(imported)

    def digest(self) -> str:
        """Of the names and sources of all modules."""
        total = hashlib.sha256()
        for name, file in sorted(self.taken.items()):
            for part in (name.encode(), self._sources[file]):
                total.update(len(part).to_bytes(8, "big") + part)
        return total.hexdigest()[:VERSION_DIGITS]


# Each module's builtins hold its team: it goes when the last function of them has gone.
_alive: WeakSet[_Team] = WeakSet()


class _Loader(importlib.machinery.SourceFileLoader):
    """Runs a module of the team's from the source that was taken."""

    def __init__(self, fullname: str, path: str, team: _Team) -> None:
        super().__init__(fullname, path)
        self._team = team

    def get_code(self, fullname: str) -> CodeType:
        return self._team.codes[self.path]

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = self._team.builtins
        exec(self._team.codes[self.path], vars(module))


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """What may be a module, of all that a source imports anywhere in it; with the packages it is in."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if package else []
                base = ".".join([*above, *([base] if base else [])])
            names = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: count + 1]) for count in range(len(parts)))
