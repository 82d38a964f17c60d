"""``python -m spread.client`` is the ``spread`` command."""

import sys

from spread.client.cli import main

if __name__ == "__main__":
    sys.exit(main())
