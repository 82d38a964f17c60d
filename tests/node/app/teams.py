"""A team's directory of sources, as apps are loaded from."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from spread.node.app.load import Loaded, forget, load

__all__ = ["Team"]

_generations = count(9000)


class Team:
    """A directory with sources, and what was loaded from it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.generations: list[int] = []

    def write(self, **sources: str) -> None:
        """By module name, with ``__`` for a dot."""
        for name, source in sources.items():
            path = self.directory.joinpath(*name.split("__")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)

    def package(self, name: str, source: str = "") -> None:
        """A directory with an ``__init__.py``."""
        (self.directory / name).mkdir(exist_ok=True)
        (self.directory / name / "__init__.py").write_text(source)

    def number(self) -> int:
        """A generation that ``forget`` will be called for."""
        self.generations.append(next(_generations))
        return self.generations[-1]

    def load(self, spec: str = "game:Game") -> Loaded:
        """Load it as a generation of its own."""
        return load(spec, self.number(), [str(self.directory)])

    def forget(self) -> None:
        """All that was loaded."""
        for generation in self.generations:
            forget(generation)
