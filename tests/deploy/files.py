"""The files of ``deploy/`` as values: just enough of each format to hold them against the project."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


# -- the Dockerfile ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """One instruction: ``COPY --from=build a b`` has the flag ``from`` and the value ``a b``."""

    stage: int
    """0 and 1 for the first and second FROM, -1 before them."""
    name: str
    flags: dict[str, str]
    value: str

    @property
    def words(self) -> list[str]:
        """The value in words, whether it is written as JSON or for a shell."""
        if self.value.startswith("["):
            words: list[str] = json.loads(self.value)
            return words
        return shlex.split(self.value)

    @property
    def pairs(self) -> dict[str, str]:
        """``A=1 B=2`` as a dict."""
        return dict(word.split("=", 1) for word in self.words)


def dockerfile() -> list[Instruction]:
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    found, stage = [], -1
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        name, _, rest = line.strip().partition(" ")
        flags = {}
        while flag := re.match(r"--([a-z-]+)=(\S+)\s+", rest):
            flags[flag[1]] = flag[2]
            rest = rest[flag.end() :]
        stage += name == "FROM"
        found.append(Instruction(stage, name, flags, rest.strip()))
    return found


def the(name: str) -> Instruction:
    """The one instruction of this name in the stage that is shipped."""
    instructions = dockerfile()
    last = instructions[-1].stage
    [one] = [found for found in instructions if found.name == name and found.stage == last]
    return one


def health_check() -> list[str]:
    """The command of HEALTHCHECK."""
    instruction = the("HEALTHCHECK")
    kind, _, command = instruction.value.partition(" ")
    assert kind == "CMD"
    words: list[str] = json.loads(command)
    return words


# -- .dockerignore -----------------------------------------------------------------------------------------


def build_context() -> list[str]:
    """The files of the checkout that reach the builder, by the rules of ``.dockerignore``."""
    patterns = []
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            patterns.append((_regex(line.removeprefix("!").strip("/")), not line.startswith("!")))
    return sorted(name for name in _files(ROOT) if not _is_ignored(name, patterns))


def _is_ignored(name: str, patterns: list[tuple[re.Pattern[str], bool]]) -> bool:
    # The last pattern that matches the file, or a folder it is in, decides.
    parts = name.split("/")
    itself_and_folders = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    ignored = False
    for pattern, ignores in patterns:
        if any(pattern.fullmatch(path) for path in itself_and_folders):
            ignored = ignores
    return ignored


def _regex(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*/?|\*|\?|\[[^]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(known.get(part, part if part.startswith("[") else re.escape(part)) for part in parts)
    )


def _files(root: Path) -> Iterator[str]:
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not name.startswith(".git/"):
            yield name


# -- compose.yaml ------------------------------------------------------------------------------------------


SECRETS = {
    "SPREAD_CLIENT_TOKEN_HMAC_SECRET_KEY": "a-secret-of-a-backend-as-long-as-it-should-be",
    "SPREAD_HTTP_API_KEY": "the-key-of-a-backend",
}
"""What the compose file does not do without."""


class Unset(Exception):
    """A variable that is needed has no value; the text is what compose says then."""


def compose(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The file with its variables filled in from ``environ`` and ``SECRETS`` alone.

    :raises Unset: one of them is needed and empty.
    """
    text = (DEPLOY / "compose.yaml").read_text()
    tree: dict[str, Any] = yaml.safe_load(text)
    filled: dict[str, Any] = _filled(tree, {**SECRETS, **(environ or {})})
    return filled


def _filled(value: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(one, environ) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, environ) for one in value]
    if not isinstance(value, str):
        return value

    def replacement(found: re.Match[str]) -> str:
        name, operator, word = found[1], found[2], found[3]
        given = environ.get(name, "")
        if operator == "+":
            return word if given else ""
        if operator == "?" and not given:
            raise Unset(f"{name}: {word}")
        return given or (word if operator == "-" else "")

    before = ""
    while before != value:  # the innermost first
        before, value = value, re.sub(r"\$\{(\w+)(?::([-+?])([^${}]*))?\}", replacement, value)
    assert "${" not in value, value
    return value


def seconds(duration: str) -> float:
    """``15s`` or ``1m30s``."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    assert re.fullmatch(r"(\d+[hms])+", duration), duration
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


# -- haproxy.cfg -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """``backend nodes`` and the words of its lines."""

    kind: str
    name: str
    lines: list[list[str]]

    def all(self, *start: str) -> list[list[str]]:
        """What follows ``start`` in each line that begins with it."""
        return [line[len(start) :] for line in self.lines if line[: len(start)] == list(start)]

    def one(self, *start: str) -> list[str]:
        [found] = self.all(*start)
        return found


def haproxy() -> list[Section]:
    sections: list[Section] = []
    for line in (DEPLOY / "haproxy.cfg").read_text().splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if line[0].isspace():
            sections[-1].lines.append(words)
        else:
            sections.append(Section(words[0], " ".join(words[1:]), []))
    return sections


def haproxy_sections(kind: str) -> dict[str, Section]:
    """The sections of a kind by their names."""
    return {section.name: section for section in haproxy() if section.kind == kind}
