"""An app whose start takes its time: it has so much, and ends with the shard that is stopped meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from spread.node import App
from spread.node.app.update import UpdateRefused, within
from spread.node.testing import Stage

ended: list[str] = []


class Endless(App):
    which = ""

    def check(self) -> Any:
        return self.waits("check")

    def starting(self) -> Any:
        return self.waits("starting")

    async def waits(self, name: str) -> None:
        if name == self.which:
            try:
                await Deferred()
            finally:
                ended.append(name)


@pytest.mark.parametrize("name", ["check", "starting"])
def test_a_start_has_its_time(name: str) -> None:
    ended.clear()
    stage = Stage(type("Kind", (Endless,), {"which": name}))
    with pytest.raises(UpdateRefused, match=rf"{name}\(\) has not answered after 5 s"), stage:
        raise AssertionError("it has started")
    assert ended == [name] and not stage.clock.getDelayedCalls()


def test_a_start_that_is_given_up_leaves_nothing_behind() -> None:
    clock, cancelled = Clock(), list[Any]()
    waiting = within(clock, Deferred(cancelled.append), 5.0, "starting()")
    waiting.cancel()
    failed: list[Any] = []
    waiting.addErrback(failed.append)
    assert failed[0].check(CancelledError) and cancelled and not clock.getDelayedCalls()
