"""The ops port: alive, ready, and what is counted."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock

from spread.hub.api import HubCounters
from spread.node.metrics import ShardCounters, ShardMetrics
from spread.node.web.ops import ops_site
from tests.fakes import HttpAnswer, asked


def get(path: str, reasons: list[str] | None = None) -> HttpAnswer:
    metrics = ShardMetrics(ShardCounters(clients=7), HubCounters())
    site = ops_site(Clock(), metrics, lambda: reasons or [])
    return asked(site, f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())


def test_healthz() -> None:
    answer = get("/healthz", ["the hub is away"])
    assert (answer.status, answer.body) == (200, b"ok\n")


def test_readyz_when_ready() -> None:
    answer = get("/readyz")
    assert (answer.status, answer.body) == (200, b"ready\n")


def test_readyz_tells_each_reason_on_a_line() -> None:
    answer = get("/readyz", ["the hub is away", "voll: ja"])
    assert (answer.status, answer.body) == (503, b"the hub is away\nvoll: ja\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_metrics() -> None:
    answer = get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    assert families["spread_clients"].samples[0].value == 7


def test_everything_else_is_not_found() -> None:
    answer = get("/")
    assert answer.status == 404
    assert b"/healthz /readyz /metrics" in answer.body
