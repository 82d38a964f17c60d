"""A run: many cases of one target, what came of them, and what must hold meanwhile and at the end.

1.  Nothing is raised and no fault is logged, whatever was sent.
2.  The witnesses get all their messages and pings.
3.  No case takes long.
4.  At the end nothing is left: no session, no subscription, no timer, no object, no memory, within bounds.
"""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from spread.node.wire import client_json, client_protobuf, json, protobuf
from tests.fuzz.messages import json_frame, protobuf_frame
from tests.fuzz.mutate import chance
from tests.fuzz.storms import StormTarget
from tests.fuzz.targets import CodecTarget, HttpTarget, SessionTarget, Target, WebSocketTarget
from tests.fuzz.town import Faults, Town

__all__ = ["OBJECTS_MAX", "RESIDENT_MAX_BYTES", "TARGETS", "Failure", "Outcome", "play", "resident_bytes"]


def _targets() -> dict[str, Callable[[], Target]]:
    return {
        "json": lambda: CodecTarget(
            "json",
            json_frame,
            json.decode,
            client_json.encode_command,
            (json.decode_emulation, json.embeddable, client_json.decode_replies),
        ),
        "protobuf": lambda: CodecTarget(
            "protobuf",
            protobuf_frame,
            protobuf.decode,
            client_protobuf.encode_command,
            (protobuf.decode_emulation, client_protobuf.decode_replies),
        ),
        "session": SessionTarget,
        "websocket": WebSocketTarget,
        "http": HttpTarget,
        "storm": StormTarget,
    }


TARGETS = _targets()
"""Makes each target, by its name."""

CASES_PER_CHECK = 200
WARM_SHARE = 0.1
"""The share of a run after which growth is measured: caches and pools are full by then."""
OBJECTS_MAX = 5_000
"""By how many objects a run may grow after that."""
RESIDENT_MAX_BYTES = 48 << 20
"""And by how much memory. An allocator keeps some of what single large frames have taken."""
CASE_MAX_SECONDS = 2.0
"""Of processor time for one case, its mutation included: no client may stop a shard for long."""
MAX_FAILURES = 5


@dataclass
class Failure:
    """A case that did harm, with what it takes to repeat it."""

    seed: int
    target: str
    case: int
    frames: list[bytes]
    why: str

    def __str__(self) -> str:
        shown = "\n".join(f"  {frame[:2000]!r}" for frame in self.frames)
        return (
            f"{self.why}\nreproduce with: python -m tests.fuzz.run --target {self.target} --seed {self.seed} "
            f"--first {self.case} --frames 1\nframes:\n{shown}"
        )


@dataclass
class Outcome:
    """What a run came to."""

    target: str
    seed: int
    cases: int = 0
    frames: int = 0
    sent_bytes: int = 0
    seconds: float = 0.0
    told: Counter[str] = field(default_factory=Counter)
    objects: tuple[int, int] = (0, 0)
    """After the warm-up and at the end."""
    resident: tuple[int, int] = (0, 0)
    slowest: float = 0.0
    """Seconds of processor time of the slowest case."""
    failures: list[Failure] = field(default_factory=list)

    @property
    def grown_objects(self) -> int:
        return self.objects[1] - self.objects[0]

    @property
    def grown_bytes(self) -> int:
        return self.resident[1] - self.resident[0]

    def check(self) -> None:
        """:raises AssertionError: something is not as it should be."""
        assert not self.failures, "\n\n".join(map(str, self.failures))
        assert self.grown_objects < OBJECTS_MAX, f"{self.grown_objects} objects more"
        assert self.grown_bytes < RESIDENT_MAX_BYTES, f"{self.grown_bytes} bytes more"


def resident_bytes(pid: int | None = None) -> int:
    """Resident memory of a process, of this one by default."""
    pages = Path(f"/proc/{pid or os.getpid()}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _measured() -> tuple[int, int]:
    gc.collect()
    return len(gc.get_objects()), resident_bytes()


def play(
    target_name: str,
    seed: int,
    frames: int,
    first: int = 0,
    progress: Callable[[Outcome], None] | None = None,
) -> Outcome:
    """Send at least so many mutated frames to a target.

    :param first: the number of the first case.
    :param progress: called every ``CASES_PER_CHECK`` cases.
    """
    outcome = Outcome(target_name, seed)
    target = TARGETS[target_name]()
    began = time.monotonic()
    measured: tuple[int, int] | None = None
    with Faults() as faults:
        town = Town()

        def failed(case: int, why: str) -> None:
            outcome.failures.append(Failure(seed, target_name, case, target.sent, why))

        def rest() -> tuple[int, int]:
            if isinstance(target, HttpTarget):
                target.close()
            try:
                town.rest()
            except AssertionError as error:
                failed(case, f"after all: {error}")
            return _measured()

        case = first
        while outcome.frames < frames and len(outcome.failures) < MAX_FAILURES:
            is_harmed = False
            case_began = time.process_time()
            try:
                outcome.frames += target.play(chance(seed, target_name, case), town)
                town.turn(0.05)
                if case % CASES_PER_CHECK == 0:
                    town.check()
            except Exception as error:  # whatever it is, it is what is looked for
                failed(case, _told(error))
                is_harmed = True
                outcome.frames += 1
            took = time.process_time() - case_began
            outcome.slowest = max(outcome.slowest, took)
            if took > CASE_MAX_SECONDS:
                failed(case, f"it took {took:.1f} s of processor time")
            found = faults.take()
            if found:
                failed(case, "logged: " + "\n".join(found))
                is_harmed = True
            if is_harmed:
                town.stop()
                town = Town()
            outcome.cases += 1
            outcome.sent_bytes += sum(map(len, target.sent))
            if outcome.cases % CASES_PER_CHECK == 0:
                outcome.told = target.told
                outcome.seconds = time.monotonic() - began
                if progress is not None:
                    progress(outcome)
            if measured is None and outcome.frames >= frames * WARM_SHARE:
                measured = rest()
            case += 1
        ended = rest()
        gc.collect()
        for text in faults.take():  # such as a Deferred that failed, and that nobody looked at
            failed(case, f"logged at the end: {text}")
        town.stop()
    measured = measured or ended
    outcome.objects = (measured[0], ended[0])
    outcome.resident = (measured[1], ended[1])
    outcome.told = target.told
    outcome.seconds = time.monotonic() - began
    return outcome


def _told(error: Exception) -> str:

    return "".join(traceback.format_exception(error))
