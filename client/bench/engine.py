"""The processes that make the load: the generator, and the bare loop that a server is compared with."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

from spread.client.bench.compiler import GENERATOR, LOOP, CannotCompile, compiled
from spread.client.bench.cpus import Cpus, pinned_to
from spread.client.bench.errors import CutShort
from spread.client.bench.processes import Server, Watch
from spread.client.bench.protocol import (
    Begin,
    Closed,
    Event,
    Failed,
    Heard,
    Opened,
    Opening,
    Result,
    Run,
    event_of,
)

__all__ = ["Generator", "Loop", "Programs", "programs"]

_SPARE_SECONDS = 15.0
"""On top of the time that something takes by its own account."""

_STOP_SECONDS = 3.0
_DYING_SECONDS = 0.5
"""Between the end of its connections and the end of a process that was killed."""

AnEvent = TypeVar("AnEvent", bound=Event)


@dataclass(frozen=True, slots=True)
class Programs:
    """What there is to run."""

    generator: tuple[str, ...]
    loop: str
    """Empty: there is none, and so there are no ratios."""
    coarse_because: str = ""
    """Why the generator is the slow one."""


def programs(environ: Mapping[str, str], directory: Path | None = None) -> Programs:
    """The C programs; without a compiler, the generator in Python."""
    try:
        generator = compiled(GENERATOR, environ, directory)
        loop = compiled(LOOP, environ, directory)
    except CannotCompile as error:
        python = (sys.executable, "-P", "-m", "spread.client.bench.generator")
        return Programs(python, "", str(error))
    return Programs((str(generator),), str(loop))


class _Process:
    """A child that ends with its standard input, and is not told of the terminal's Ctrl-C."""

    def __init__(self, name: str, command: Sequence[str], cpus: Cpus, watch: Watch) -> None:
        self._name = name
        self._watch = watch
        self._came = b""
        with pinned_to(cpus):
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
        except BrokenPipeError:
            raise self._ended() from None

    def _line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        while b"\n" not in self._came:
            if not self._watch.wait(out, deadline - time.monotonic()):
                raise CutShort(f"the {self._name} does not answer")
            more = os.read(out, 65536)
            if not more:
                raise self._ended()
            self._came += more
        line, _, self._came = self._came.partition(b"\n")
        return line

    def _ended(self) -> CutShort:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        return CutShort(f"the {self._name} has ended with code {self._process.poll()}")

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> _Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Generator(_Process):
    """A load generator; see ``protocol``. Every method raises ``CutShort``, or ``ServerDied``."""

    def __init__(self, command: Sequence[str], cpus: Cpus, watch: Watch) -> None:
        super().__init__("load generator", command, cpus, watch)

    def __enter__(self) -> Generator:
        return self

    def open(self, opening: Opening) -> tuple[Opened, Heard | None]:
        """Connect all clients, and wait until all hear their rooms."""
        self._say(opening.line())
        opened = self._expect(Opened, opening.timeout + _SPARE_SECONDS)
        if not opening.probes:
            return opened, None
        return opened, self._expect(Heard, opening.timeout + _SPARE_SECONDS)

    def run(self, run: Run, begun: Callable[[], None] = lambda: None) -> Result:
        """Publish, and measure.

        :param begun: called when the measuring begins.
        """
        self._say(run.line())
        self._expect(Begin, run.warm + _SPARE_SECONDS)
        begun()
        return self._expect(Result, run.seconds + run.drain + _SPARE_SECONDS)

    def close(self) -> None:
        """Close all connections. That something has failed before is no matter any more."""
        self._say("close\n")
        deadline = time.monotonic() + _SPARE_SECONDS
        while not isinstance(self._event(deadline), Closed):
            pass

    def _event(self, deadline: float) -> Event:
        line = self._line(deadline)
        try:
            return event_of(line)
        except msgspec.MsgspecError:
            raise CutShort(f"the load generator says {line[:200]!r}") from None

    def _expect(self, kind: type[AnEvent], seconds: float) -> AnEvent:
        event = self._event(time.monotonic() + seconds)
        if isinstance(event, Failed):
            self._watch.check(_DYING_SECONDS)  # a server that has died explains more
            raise CutShort(event.why)
        if not isinstance(event, kind):
            raise CutShort(f"the load generator says {type(event).__name__}, not {kind.__name__}")
        return event


class Loop(_Process):
    """The bare loop; see ``loop.c``."""

    def __init__(self, program: str, cpus: Cpus, watch: Watch, *, batched: bool, echo: bool) -> None:
        options = [*(["--batched"] if batched else []), *(["--echo"] if echo else [])]
        super().__init__("bare loop", [program, *options], cpus, watch)
        try:
            self.port = int(self._line(time.monotonic() + _SPARE_SECONDS).removeprefix(b"ready "))
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Loop:
        return self

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def server(self) -> Server:
        return Server("bare loop", self.pid)
