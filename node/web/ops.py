"""The port for those who run the shard; never for the public.

GET /healthz     200 as long as the reactor turns
GET /readyz      200 while the shard should get clients; 503 with the reasons, one a line, otherwise
GET /metrics     Prometheus
POST /reload     the app is updated: see ``spread.node.web.reload``
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.web.resource import Resource
from twisted.web.server import Site

from spread.hub.reactor import Clock
from spread.node.app.reload import Reload
from spread.node.metrics import ShardMetrics
from spread.node.web.reload import ReloadResource
from spread.node.web.site import answering, quiet_site

__all__ = ["ops_site"]


def ops_site(
    reactor: Clock,
    metrics: ShardMetrics,
    not_ready: Callable[[], list[str]],
    reload: Reload | None = None,
) -> Site:
    """:param not_ready: why the shard should get no clients now; empty when it should."""

    def readyz() -> tuple[int, str, bytes]:
        reasons = not_ready()
        body = "".join(f"{reason}\n" for reason in reasons) or "ready\n"
        return (503 if reasons else 200, "text/plain; charset=utf-8", body.encode())

    resources: dict[str, Resource] = {
        "healthz": answering(lambda: (200, "text/plain; charset=utf-8", b"ok\n")),
        "readyz": answering(readyz),
        "metrics": answering(lambda: (200, "text/plain; version=0.0.4; charset=utf-8", metrics.text())),
    }
    if reload is not None:
        resources["reload"] = ReloadResource(reactor, reload)
    return quiet_site(reactor, resources)
