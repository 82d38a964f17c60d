"""How a hook is run: what comes of each way to answer, and of each way to fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from spread.node import codes
from spread.node.app.hooks import Hooks
from spread.node.app.values import Disconnect, Refuse
from spread.node.app.watch import Watch
from spread.node.session.shared import Ended, Refused
from tests.node.app.stage import KINDS, answered, log_of


class Stage:
    def __init__(self, max_waiting: int = 10) -> None:
        self.clock = Clock()
        self.hooks = Hooks(self.clock, Watch(1.0, 5.0), 5.0, max_waiting)
        self.outcomes: list[Any] = []

    def call(self, function: Callable[[], Any], convert: Any = None) -> Any:
        """What a call comes to, an error too; ``None``: nothing yet."""
        try:
            answer = self.hooks.call("hook", None, function, convert=convert)
        except (Refused, Ended) as error:
            return error
        if not isinstance(answer, Deferred):
            return answer
        got: list[Any] = []
        answer.addBoth(lambda value: got.append(value.value if isinstance(value, Failure) else value))
        self.pending = answer
        self.outcomes = got
        return got[0] if got else None


def raises(error: BaseException) -> Callable[[], Any]:
    def function() -> Any:
        raise error

    return function


@pytest.mark.parametrize("kind", KINDS)
def test_a_value(kind: str) -> None:
    stage = Stage()
    assert stage.call(lambda: answered(kind, lambda: 7)) == 7
    assert stage.call(lambda: answered(kind, lambda: 7), lambda value: value + 1) == 8
    stats = stage.hooks.stats["hook"]
    assert (stats.calls, stats.errors, stats.timeouts, sum(stats.counts)) == (2, 0, 0, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_refusals(kind: str) -> None:
    stage = Stage()
    with log_of() as lines:
        refused = stage.call(lambda: answered(kind, raises(Refuse(444, "not you", temporary=True))))
        assert isinstance(refused, Refused)
        assert refused.error == codes.Error(444, "not you", True)
        ended = stage.call(lambda: answered(kind, raises(Disconnect(4001, "out"))))
        assert isinstance(ended, Ended)
        assert ended.disconnect == codes.Disconnect(4001, "out")
    assert lines == [] and stage.hooks.stats["hook"].errors == 0


@pytest.mark.parametrize("kind", KINDS)
def test_errors(kind: str) -> None:
    stage = Stage()
    with log_of() as lines:
        refused = stage.call(lambda: answered(kind, raises(KeyError("sword"))))
        assert isinstance(refused, Refused) and refused.error is codes.INTERNAL_ERROR
        refused = stage.call(lambda: answered(kind, lambda: 7), raises_with_argument)
        assert isinstance(refused, Refused) and refused.error is codes.INTERNAL_ERROR
    assert "KeyError: 'sword'" in lines[0] and "test_hooks.py" in lines[0]
    assert "it is no 8" in lines[1]
    assert stage.hooks.stats["hook"].errors == 2


def raises_with_argument(value: Any) -> Any:
    raise ValueError("it is no 8")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Refuse(99),
        lambda: Refuse(5000),
        lambda: Refuse("103"),  # type: ignore[arg-type]
        lambda: Refuse(103.0),  # type: ignore[arg-type]
        lambda: Refuse(103, 5),  # type: ignore[arg-type]
        lambda: Disconnect(1000),
        lambda: Disconnect(4000.0),  # type: ignore[arg-type]
        lambda: Disconnect(4000, "x" * 124),
        lambda: Disconnect(4000, None),  # type: ignore[arg-type]
    ],
)
def test_what_no_client_could_be_told(make: Callable[[], Exception]) -> None:
    with pytest.raises(ValueError):
        make()


def test_what_comes_later() -> None:
    stage = Stage()
    later: Deferred[int] = Deferred()
    assert stage.call(lambda: later) is None
    assert stage.hooks.waiting == 1
    later.callback(3)
    assert stage.outcomes == [3] and stage.hooks.waiting == 0 and not stage.clock.calls


@pytest.mark.parametrize("is_async", [False, True])
def test_the_deadline(is_async: bool) -> None:
    stage = Stage()
    never: Deferred[int] = Deferred()

    async def hangs() -> Any:
        return await never

    with log_of() as lines:
        stage.call(hangs if is_async else lambda: never)
        stage.clock.advance(4.99)
        assert stage.outcomes == []
        stage.clock.advance(0.02)
    assert isinstance(stage.outcomes[0], Refused) and stage.outcomes[0].error is codes.INTERNAL_ERROR
    assert "has not answered after 5 s" in lines[0]
    assert never.called and stage.hooks.waiting == 0
    assert stage.hooks.stats["hook"].timeouts == 1


def test_one_that_goes_on_though_it_was_cancelled() -> None:
    """``except Exception`` catches a cancellation; nobody waits for what it does then."""
    stage = Stage()
    more: Deferred[int] = Deferred()

    async def stubborn() -> Any:
        try:
            await Deferred()
        except Exception:
            return await more

    with log_of() as lines:
        stage.call(stubborn)
        stage.pending.cancel()
        assert len(stage.outcomes) == 1 and stage.hooks.waiting == 1, "it still counts"
        stage.clock.advance(6)
        assert len(stage.outcomes) == 1 and stage.hooks.waiting == 0
        stage.call(stubborn)
        stage.clock.advance(6)
        assert len(stage.outcomes) == 1 and stage.hooks.waiting == 0
    assert len(lines) == 2


def test_too_many_wait() -> None:
    stage = Stage(max_waiting=1)
    first: Deferred[int] = Deferred()
    second: Deferred[int] = Deferred()
    stage.call(lambda: first)
    with log_of() as lines:
        refused = stage.call(lambda: second)
    assert isinstance(refused, Refused) and refused.error is codes.INTERNAL_ERROR
    assert "app.max_waiting_hooks" in lines[0] and second.called
    first.callback(1)
    assert stage.call(lambda: Deferred()) is None, "there is room again"


def test_errors_are_no_flood() -> None:
    stage = Stage()
    with log_of() as lines:
        for _ in range(100):
            stage.call(raises(KeyError("x")))
        assert len(lines) == 20
        stage.clock.advance(1)
        stage.call(raises(KeyError("x")))
    assert "80 more errors were left out" in lines[-1]
    assert stage.hooks.stats["hook"].errors == 101


def test_one_that_fails_all_the_time_does_not_hide_the_others() -> None:
    stage = Stage()
    with log_of() as lines:
        for _ in range(100):
            stage.call(raises(KeyError("x")))
        with pytest.raises(Refused):
            stage.hooks.call("other", None, raises(KeyError("y")))
    assert lines[-1].startswith("other: ")


def test_who_has_nothing_to_refuse() -> None:
    stage = Stage()

    class Gone:
        id, user = "a client", "ann"
        ended: Any = None

        def disconnect(self, code: int, reason: str) -> None:
            self.ended = (code, reason)

    client: Any = Gone()
    with log_of() as lines:
        stage.hooks.notify("connected", client, raises(Refuse()))
        stage.hooks.notify("connected", client, lambda: succeed(None).addCallback(raises_with_argument))
        later: Deferred[None] = Deferred()
        stage.hooks.notify("connected", client, lambda: later)
        later.errback(Disconnect(4100, "away"))
    assert client.ended == (4100, "away")
    assert "nothing to refuse" in lines[0] and "a client" in lines[0]
    assert "it is no 8" in lines[1] and len(lines) == 2
