"""What idle clients may cost."""

from __future__ import annotations

import pytest

from tests.budget.idle import main

pytestmark = pytest.mark.live


@pytest.mark.parametrize(
    "arguments",
    [
        ["--transport", "websocket", "--protocol", "json", "--subscribe"],
        ["--transport", "websocket", "--protocol", "protobuf"],
        ["--transport", "json", "--subscribe"],
        ["--transport", "text", "--budget", "5000"],
    ],
    ids=" ".join,
)
def test_the_budget_is_kept(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    # With so few clients the memory that a shard takes for other things shows; the figures proper are in
    # docs/performance.md.
    code = main(["--clients", "1500", *arguments])
    told = capsys.readouterr().out
    assert code == 0, told
    assert "bytes per client" in told
