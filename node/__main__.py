"""``python -m spread.node``: the same as the ``spread-node`` command."""

from __future__ import annotations

from spread.node.early import hold

__all__ = ["main"]


def main() -> None:
    """Run the command. Before anything that takes time, signals are seen to."""
    hold()
    from spread.node.cli import main as command

    command()


if __name__ == "__main__":
    main()
