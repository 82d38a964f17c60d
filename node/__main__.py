"""``python -m spread.node``: the same as the ``spread-node`` command."""

from spread.node.cli import main

if __name__ == "__main__":
    main()
