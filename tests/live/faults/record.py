"""What the witnesses in Python share: the file of lines, and commands from standard input."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

__all__ = ["FLUSH_SECONDS", "Record", "answer", "value"]

FLUSH_SECONDS = 0.05


class Record:
    """Collects lines; whoever has the loop calls ``flush`` every ``FLUSH_SECONDS``."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "a", buffering=1 << 20)  # noqa: SIM115 - open as long as the process lives
        self._lines: list[str] = []

    def note(self, kind: str, *rest: object) -> None:
        """One line of ``ledger.py``, now."""
        self._lines.append(f"{kind} {time.monotonic():.6f} {' '.join(map(str, rest))}\n")

    def flush(self) -> None:
        """Whole lines only, so that a reader sees no half ones for longer than a moment."""
        lines, self._lines = self._lines, []
        self._file.write("".join(lines))
        self._file.flush()


def answer(number: int, error: BaseException | None = None) -> None:
    """To a command."""
    message: dict[str, Any] = {"n": number, "ok": None}
    if error is not None:
        message = {"n": number, "error": {"code": 0, "message": repr(error)}}
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def value(data: Any) -> Any:
    """The payload of a publication: what an SDK has parsed, or bytes of JSON."""
    return json.loads(data) if isinstance(data, bytes) else data
