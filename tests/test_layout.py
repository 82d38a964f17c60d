"""The layout of the project: who may import whom, what is packaged, what lies where.

The rules are told in docs/architecture.md; here the imports are read, not run, except where running is
the point.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("client", "hub", "node")

AGREED = {
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "client",
    "deploy",
    "docs",
    "hub",
    "node",
    "pyproject.toml",
    "tests",
}
"""What may lie at the top, besides names that begin with a dot."""

LEFT_BEHIND = {"build", "dist", "htmlcov", "spread_node.egg-info", "_trial_temp", "__pycache__"}
"""What tools leave there; never committed."""

COMPOSITION = {"node/cli.py", "node/shard.py", "node/hubs.py", "node/testing/stage.py"}
"""Where the parts of a shard are put together, and implementations may be named."""

PROMISES = {"spread.hub.api", "spread.hub.errors", "spread.hub.reactor", "spread.hub.rendezvous"}
"""What the rest of a shard knows of the hub; the last is pure, and all shards agree on it."""

SANS_IO = [
    "spread.hub.address",
    "spread.hub.envelope",
    "spread.hub.errors",
    "spread.node.addresses",
    "spread.node.codes",
    "spread.node.limits",
    "spread.node.settings",
]


def _sources() -> list[str]:
    return sorted(
        str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")
    )


SOURCES = _sources()


def _module(source: str) -> str:
    """The module that a file is: ``node/wire/text.py`` is ``spread.node.wire.text``."""
    parts = Path(source).with_suffix("").parts
    return ".".join(("spread", *parts)).removesuffix(".__init__")


def _imports(text: str, module: str) -> Iterator[tuple[str, bool]]:
    """The modules that a source imports, anywhere in it, and whether for types alone.

    ``from a.b import c`` gives ``a.b`` and ``a.b.c``, since ``c`` may be a module.
    """
    tree = ast.parse(text)
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in for_types
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively; here every import is absolute"
            assert node.module is not None
            yield node.module, node in for_types
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node in for_types


@cache
def _imports_of(source: str) -> frozenset[str]:
    return frozenset(name for name, _ in _imports((ROOT / source).read_text(), _module(source)))


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_the_reader_of_imports_reads_them_all() -> None:
    text = (
        "import a\nfrom b import c as d\nif TYPE_CHECKING:\n    import e\n"
        "def f():\n    import g.h\n    from i.j import k\n"
    )
    assert set(_imports(text, "m")) == {
        ("a", False),
        ("b", False),
        ("b.c", False),
        ("e", True),
        ("g.h", False),
        ("i.j", False),
        ("i.j.k", False),
    }
    with pytest.raises(AssertionError):
        list(_imports("from . import x", "m"))
    assert len(SOURCES) > 40


@pytest.mark.parametrize("source", [source for source in SOURCES if source.startswith("hub/")])
def test_the_hub_knows_neither_node_nor_client(source: str) -> None:
    wrong = {name for name in _imports_of(source) if _within(name, "spread.node")}
    wrong |= {name for name in _imports_of(source) if _within(name, "spread.client")}
    assert not wrong


@pytest.mark.parametrize("source", [source for source in SOURCES if source.startswith("node/")])
def test_the_node_knows_only_what_the_hub_promises(source: str) -> None:
    imports = _imports_of(source)
    assert not {name for name in imports if _within(name, "spread.client")}
    if source in COMPOSITION:
        return
    hub = {name for name in imports if _within(name, "spread.hub")} - {"spread.hub"}
    assert not {name for name in hub if not any(_within(name, promise) for promise in PROMISES)}


@pytest.mark.parametrize("source", [source for source in SOURCES if source.startswith("client/")])
def test_the_client_knows_only_the_wire(source: str) -> None:
    ours = {name for name in _imports_of(source) if _within(name, "spread")} - {"spread", "spread.node"}
    allowed = ("spread.client", "spread.node.wire")
    assert not {name for name in ours if not any(_within(name, package) for package in allowed)}


@pytest.mark.parametrize("source", SOURCES)
def test_the_global_reactor_is_for_command_lines(source: str) -> None:
    wrong = {"twisted.internet.reactor", "twisted.internet.task.react"} & _imports_of(source)
    assert not wrong or Path(source).name == "cli.py"


@pytest.mark.parametrize("source", SOURCES)
def test_txredisapi_is_for_links(source: str) -> None:
    wrong = {name for name in _imports_of(source) if _within(name, "txredisapi")}
    assert not wrong or source == "hub/link.py"


@pytest.mark.parametrize(
    "source",
    [
        *(
            f"node/{name}.py"
            for name in ("channel", "channels", "clients", "fanout", "outbox", "pressure", "recovery")
        ),
        *(source for source in SOURCES if source.startswith("node/session/")),
    ],
)
def test_sessions_do_not_know_their_sockets(source: str) -> None:
    imports = _imports_of(source)
    for edge in ("spread.node.edge", "spread.node.listen"):
        assert not {each for each in imports if _within(each, edge)}


@pytest.mark.parametrize(
    "source",
    [source for source in SOURCES if source.startswith("node/wire/") or _module(source) in SANS_IO],
)
def test_values_and_codecs_import_no_twisted(source: str) -> None:
    text = (ROOT / source).read_text()
    wrong = {
        name
        for name, for_types in _imports(text, _module(source))
        if not for_types and (_within(name, "twisted") or _within(name, "txredisapi"))
    }
    assert not wrong


def test_values_and_codecs_load_no_twisted() -> None:
    # Not by way of what they import either.
    modules = [*SANS_IO, *(_module(source) for source in SOURCES if source.startswith("node/wire/"))]
    program = (
        f"import sys, {', '.join(modules)}\n"
        "print(*sorted(name for name in sys.modules if name.split('.')[0] in ('twisted', 'txredisapi')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_the_hub_reactor_holds_types_alone() -> None:
    tree = ast.parse((ROOT / "hub" / "reactor.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            assert [ast.unparse(base) for base in node.bases] == ["Protocol"], node.name
            for inner in node.body:
                is_docstring = isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant)
                is_stub = isinstance(inner, ast.FunctionDef) and ast.unparse(inner.body[-1]) == "..."
                assert is_docstring or is_stub, f"{node.name}: {ast.unparse(inner)}"
        else:
            assert isinstance(node, ast.Import | ast.ImportFrom | ast.Expr | ast.Assign), ast.unparse(node)


# -- packages --------------------------------------------------------------------------------------------


def _setuptools() -> dict[str, object]:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert isinstance(found, dict)
    return found


def test_every_package_is_listed() -> None:
    found = {_module(source) for source in SOURCES if Path(source).name == "__init__.py"}
    assert _setuptools()["packages"] == sorted(found)
    assert _setuptools()["package-dir"] == {f"spread.{package}": package for package in PACKAGES}


def test_every_directory_with_code_is_a_package() -> None:
    for source in SOURCES:
        assert (ROOT / source).with_name("__init__.py").exists(), source


def test_every_file_that_is_no_code_is_packaged() -> None:
    data = _setuptools()["package-data"]
    assert isinstance(data, dict)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            # A .proto is read by who changes it; what runs is the module made of it.
            if path.is_dir() or path.suffix in (".py", ".pyc", ".proto"):
                continue
            owner = ".".join(("spread", *path.parent.relative_to(ROOT).parts))
            patterns = data.get(owner, [])
            assert any(path.match(pattern) for pattern in patterns), f"{path} is not in package-data"


def test_every_script_is_code() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for target in scripts.values():
        module, _, function = target.partition(":")
        source = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
        names = {node.name for node in ast.parse(source.read_text()).body if hasattr(node, "name")}
        assert function in names, target


def test_the_top_level_holds_what_was_agreed() -> None:
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert not found - LEFT_BEHIND - AGREED


def test_nothing_else_is_committed_at_the_top_level() -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a checkout, or no git")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert listed.returncode == 0, listed.stderr
    top = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    assert not {name for name in top if not name.startswith(".")} - AGREED


@pytest.mark.parametrize("package", PACKAGES)
def test_a_second_copy_of_a_package_is_refused(package: str) -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {package}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"ImportError: this package is spread.{package}" in done.stderr


@pytest.mark.parametrize("source", [source for source in SOURCES if not source.endswith("_pb2.py")])
def test_modules_are_short_and_say_what_they_are(source: str) -> None:
    text = (ROOT / source).read_text()
    assert text.count("\n") <= 600
    assert ast.get_docstring(ast.parse(text)), "no docstring"
