"""The owner of a channel is killed, or stands still: another goes on, and no two publish in one epoch.

The short form of ``takeover``.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from tests.live.takeover import Plan, Stage, table
from tests.live.takeover_judge import Judge

PLAN = Plan(
    kills=1,
    stops=1,
    channels=12,
    clients=1,
    rate=60,
    snapshot_seconds=0.4,
    # How quick it is on a busy machine is not what is tested here.
    takeover_seconds=15.0,
    slack_seconds=3.0,
)


@pytest.mark.live
def test_owners_that_die_and_stand_still(stack: ExitStack) -> None:
    told: list[str] = []
    stage = Stage(stack, PLAN, told.append)
    stage.kill(stage.richest(), is_back_at_once=True)
    woken = stage.richest()
    stage.stop(woken)
    outcome = stage.end()
    print(table(outcome))
    assert not outcome.wrong()
    # The same without a fence is found.
    stage.plant(woken)
    assert any("an owner that was over" in each for each in outcome.wrong())


def published(judge: Judge, epoch: int, writer: str, now: float, **more: Any) -> None:
    judge.published(1, "c", {"e": epoch, "w": writer, **more}, now)


def acknowledged(judge: Judge, number: int, now: float) -> None:
    judge.called(number, "c")
    judge.answered(number, {"rpc": {"data": {"e": 1, "w": "0.1"}}}, now)


def test_what_the_judge_finds() -> None:
    judge = Judge(takeover_seconds=3.0, snapshot_seconds=1.0)
    published(judge, 1, "0.1", 0.0, t=1, s=0.0, d=[1])
    for number, at in ((1, 0.5), (2, 8.0), (3, 9.8)):
        acknowledged(judge, number, at)
    judge.struck("0.1", 10.0, is_kill=True)
    published(judge, 2, "1.2", 11.5, t=1, s=9.5)
    judge.final["c"] = [1, 2]
    assert judge.undone() == {3} and not judge.wrong(), "what went with the last moments of a shard"
    judge.final["c"] = [1, 1]
    assert judge.wrong()[:2] == ["done twice: commands [1]", "lost: acknowledged commands [2]"]
    judge.final["c"] = [1, 2, 3]
    published(judge, 2, "1.2", 12.0, t=2, s=9.5, d=[1])
    assert judge.wrong() == ["done twice: commands [1]"]
    judge.doubled.clear()
    published(judge, 2, "2.3", 12.0)
    published(judge, 1, "0.1", 12.0)
    assert [each.partition(":")[0] for each in judge.wrong()] == [
        "two writers",
        "seen of an owner that was over",
    ]


@pytest.mark.parametrize(
    ("at", "saved_at", "what"),
    [
        (13.5, 9.5, "taken over after 3.50 s"),
        (11.5, 8.0, "the next owner had a state 2.00 s old"),
        (11.5, 0.0, "the next owner began anew"),
        (0.0, 0.0, "taken over after -1.00 s"),
    ],
)
def test_takeovers_that_the_judge_finds(at: float, saved_at: float, what: str) -> None:
    judge = Judge(takeover_seconds=3.0, snapshot_seconds=1.0)
    published(judge, 1, "0.1", 0.0, t=1, s=0.0)
    judge.struck("0.1", 10.0, is_kill=False)
    if at:
        published(judge, 2, "1.2", at, t=1, s=saved_at)
    assert judge.wrong() == [f"c, stopped 0.1: {what}"]
