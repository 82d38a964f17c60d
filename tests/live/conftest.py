"""What the live tests share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Whatever a test starts ends with it, the last first."""
    with ExitStack() as stack:
        yield stack
