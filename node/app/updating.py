"""What updates the app of a shard, put together: see ``update``, ``loading`` and ``reload``."""

from __future__ import annotations

import gc
from collections.abc import Iterable

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from twisted.internet.defer import Deferred

from spread.hub.api import Hub
from spread.node.app.load import Loaded, generations
from spread.node.app.loading import Apart, LoadReactor
from spread.node.app.reload import Relays, Reload
from spread.node.app.update import Host, Outcome, Updater, UpdateRefused, within
from spread.node.live_tables import LiveTables
from spread.node.settings import AppSettings
from spread.node.tables import TablesBroken

__all__ = ["Updating", "line_of"]


class Updating:
    """All that a shard needs to be updated, whether it runs an app or not.

    :param incarnation: of this shard.
    :param host: runs the app; it has it when the shard is ready.
    :param loaded: the app that it runs first; ``None``: there is none.
    :param tables: are read again before each update.
    """

    def __init__(
        self,
        reactor: LoadReactor,
        settings: AppSettings,
        *,
        hub: Hub,
        relays: Relays,
        incarnation: str,
        host: Host | None,
        loaded: Loaded | None,
        tables: LiveTables | None,
    ) -> None:
        self.updater: Updater | None = None
        """``None``: the shard runs no app."""
        self._tables = tables
        if host is not None and loaded is not None:
            self.updater = Updater(
                reactor,
                host,
                Apart(reactor, settings.load_seconds),
                loaded,
                settings.app,
                settings.load_seconds,
                first=lambda: within(
                    reactor,
                    Deferred.fromCoroutine(self._read_tables()),
                    settings.load_seconds,
                    "reading the tables",
                ),
                state_max_bytes=settings.state_max_bytes,
                # Code is full of cycles, and what is old is looked at seldom: versions would pile up.
                last=gc.collect,
            )
        self.reload = Reload(reactor, hub, relays, incarnation, self.updater, settings.load_seconds)

    @property
    def title(self) -> str:
        """What runs, for people: ``game:Game 3f2a90c41b7d``; "" for nothing."""
        return "" if self.updater is None else self.updater.title

    def stop(self) -> None:
        """The shard stops: what runs now runs to its end. Idempotent."""
        if self.updater is not None:
            self.updater.stop()

    def metrics(self) -> Iterable[Metric]:
        """For Prometheus; nothing without an app."""
        updater = self.updater
        if updater is None:
            return
        yield InfoMetricFamily(
            "spread_app",
            "The team's app that runs, and its version.",
            value={"app": updater.spec, "version": updater.version},
        )
        yield CounterMetricFamily(
            "spread_app_updates", "Times the app was replaced by a newer one.", value=updater.updates
        )
        yield CounterMetricFamily(
            "spread_app_updates_refused",
            "Times an update failed, so that the old app ran on.",
            value=updater.refused,
        )
        yield GaugeMetricFamily(
            "spread_app_generations",
            "Versions of the app's code in memory: which runs, which ran before, and which something holds.",
            value=generations(),
        )

    async def _read_tables(self) -> None:
        if self._tables is None:
            return
        try:
            await self._tables.reload()
        except TablesBroken as error:
            raise UpdateRefused(
                f"the tables are broken, so they stay, and so does the app: {error}"
            ) from None


def line_of(outcome: Outcome, shard: int | None) -> str:
    """What a shard prints when it was updated by a signal: ``reloaded shard=0 app=game:Game …`` or ``refused
    shard=0 …``, with the last line of the error."""
    if outcome.ok:
        return f"reloaded shard={shard} app={outcome.app} version={outcome.version}"
    why = outcome.error.strip().splitlines()[-1:] or ["unknown"]
    return f"refused shard={shard} {why[0].strip()}"
