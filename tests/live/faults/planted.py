"""A shard with one safety switched off, so that the harness can show that it would find the bug.

``python -m tests.live.faults.planted PLANT ARGUMENTS`` patches a class and runs ``spread-node ARGUMENTS``:

- ``no-gap-check``: what is heard of a channel that keeps history is passed on as it comes;
- ``no-idempotency``: a publication that is sent again after its connection broke is a new one, and keys of
  publishers count for nothing;
- ``no-probe``: nobody asks whether a silent subscriber connection is deaf;
- ``no-generation``: nobody asks whether the server has become another, or has gone back.

Nothing in the product knows of this module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import msgspec

from spread.hub.api import PLAIN, Event, Publication
from spread.hub.history import Histories
from spread.hub.lineage import Lineage
from spread.hub.probe import Probe
from spread.hub.publish import Journal
from spread.hub.repair import Follower, Repair
from spread.node.cli import main

__all__ = ["PLANTS"]


def no_gap_check() -> None:
    """Whatever is heard is right, and nothing has to be read after a reconnect."""

    def heard(self: Any, event: Event) -> None:
        if type(event) is Publication and event.offset:
            self.epoch, self.offset = event.epoch, event.offset
        self._repair.receiver.received(self.channel, event)

    confirmed: Any = Repair.confirmed

    def believed(self: Any, follower: Any, is_heard: bool = False) -> None:
        if follower.epoch:
            follower.state = type(follower.state).LIVE
            self.became_live(follower)
        else:
            confirmed(self, follower, is_heard)

    patch(Follower, "heard", heard)
    patch(Repair, "confirmed", believed)


def no_idempotency() -> None:
    """A second try is a publication of its own, and so is a second request with the same key."""
    send: Any = Journal._send  # pyright: ignore[reportPrivateUsage]
    publish: Any = Journal.publish

    def sent(self: Any, connection: Any, entry: Any) -> None:
        if entry.is_unsure:
            entry.is_unsure, entry.sequence = False, 0
        send(self, connection, entry)

    def published(
        self: Any,
        key: bytes,
        data: bytes,
        format: Any,
        session: int,
        options: Any = PLAIN,
        keys: tuple[bytes, ...] = (),
        *rest: Any,
    ) -> Any:
        if options.idempotency_key:
            options = msgspec.structs.replace(options, idempotency_key="")
            keys = keys[:2] if options.history is not None else ()
        return publish(self, key, data, format, session, options, keys, *rest)

    patch(Journal, "_send", sent)
    patch(Journal, "publish", published)


def no_probe() -> None:
    """Silence is taken for peace."""
    patch(Probe, "watch", lambda self, connection: None)


def no_generation() -> None:
    """One copy of the data is as good as another."""
    read: Any = Histories.read

    def read_anyhow(self: Any, *which: Any, seen: Any = None, **how: Any) -> Any:
        return read(self, *which, **how)

    async def introduced(self: Any, connection: Any) -> None:
        pass

    patch(Histories, "read", read_anyhow)
    patch(Lineage, "introduce", introduced)
    patch(Lineage, "watch", lambda self: None)


def patch(owner: type, name: str, replacement: object) -> None:
    """Fails when there is nothing of that name: then the plant has to follow the code."""
    getattr(owner, name)
    setattr(owner, name, replacement)


PLANTS: dict[str, Callable[[], None]] = {
    "no-gap-check": no_gap_check,
    "no-idempotency": no_idempotency,
    "no-probe": no_probe,
    "no-generation": no_generation,
}


if __name__ == "__main__":
    PLANTS[sys.argv.pop(1)]()
    main()
