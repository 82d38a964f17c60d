"""The commands in which publications leave for Redis.

A plain publication is a bare PUBLISH. One that is kept, has an idempotency key or a fence is a script that
leaves in the same order on the same connection: by its hash, but the first of a connection whole. The server
may forget scripts (SCRIPT FLUSH); it then answers NOSCRIPT, and ``forget`` has them sent whole again.

What is submitted is numbered and ordered by the journal (``publish``); here nothing is decided.
"""

from __future__ import annotations

from typing import Any

from spread.hub.entry import Entry
from spread.hub.envelope import pack, pack_parts
from spread.hub.epochs import drawn_epoch
from spread.hub.link import CommandProtocol
from spread.hub.owners import fence_arguments
from spread.hub.scripts import script

__all__ = ["MAY_BE_LOST", "Commands"]

RESULT_SECONDS = 300
"""How long the result of a publication with an idempotency key is remembered."""

MAY_BE_LOST = b"l"
"""After a failover: some of what was acknowledged may be missing in the promoted replica. Also with
``min_replicas``: it tells how many had it, and not which, and another one may have been promoted."""


class Commands:
    """:param publish_command: PUBLISH, or SPUBLISH.
    :param incarnation: that of this shard, which the publications carry.
    """

    __slots__ = ("_incarnation", "_known_scripts", "_publish_command", "_script_command")

    def __init__(self, publish_command: bytes, incarnation: bytes) -> None:
        self._publish_command = publish_command
        # Scripts do without the usual one.
        self._script_command = () if publish_command == b"PUBLISH" else (publish_command,)
        self._incarnation = incarnation
        # Scripts that this connection has been sent whole.
        self._known_scripts: set[str] = set()

    def forget(self) -> None:
        """The connection is a new one, or its server has forgotten the scripts."""
        self._known_scripts.clear()

    def submit(self, connection: CommandProtocol, entry: Entry) -> None:
        """One that is not kept, or an announcement; the entry waits for the reply."""
        options = entry.options
        message = pack(
            entry.kind,
            entry.format,
            self._incarnation,
            entry.sequence,
            entry.session,
            entry.data,
            entry.meta,
            options.delta,
        )
        if options.fence is not None:
            run = self._script("publish_fenced")
            rest = RESULT_SECONDS, self._publish_command, *fence_arguments(options.fence)
            connection.submit(entry, *run, len(entry.keys), *entry.keys, entry.key, message, *rest)
        elif entry.keys:
            run = self._script("publish_once")
            arguments = entry.key, message, RESULT_SECONDS, *self._script_command
            connection.submit(entry, *run, 1, *entry.keys, *arguments)
        else:
            connection.submit(entry, self._publish_command, entry.key, message)

    def submit_kept(self, connection: CommandProtocol, entry: Entry, before: Entry | None) -> None:
        """One with a history.

        :param before: the kept one of its channel that is on this connection before it.
        """
        self._keep(connection, entry, self._script("publish"), before)

    def ask(self, target: CommandProtocol, entry: Entry, before: Entry | None) -> None:
        """One with a history, once, on the connection of another group that was named in an ASK."""
        target.submit(_Nobody(), b"ASKING")
        self._keep(target, entry, (b"EVAL", script("publish")[0]), before)

    def _keep(
        self, connection: CommandProtocol, entry: Entry, run: tuple[bytes, bytes], before: Entry | None
    ) -> None:
        options = entry.options
        history, fence = options.history, options.fence
        assert history is not None
        head, tail = pack_parts(
            entry.format,
            self._incarnation,
            entry.sequence,
            entry.session,
            entry.data,
            entry.meta,
            options.delta,
        )
        connection.submit(
            entry,
            *run,
            len(entry.keys),
            *entry.keys,
            entry.key,
            head,
            tail,
            history.size,
            history.ttl_seconds,
            history.meta_ttl_seconds,
            entry.sequence,
            (b"2" if entry.is_moved else b"1") if entry.is_unsure else b"0",
            b"%020d" % options.version if options.version else b"",
            options.version_epoch,
            RESULT_SECONDS,
            drawn_epoch(),
            connection.generation,
            MAY_BE_LOST,
            0 if before is None else before.sequence,
            *(self._script_command if fence is None else (self._publish_command, *fence_arguments(fence))),
        )

    def _script(self, name: str) -> tuple[bytes, bytes]:
        source, digest = script(name)
        if name in self._known_scripts:
            return b"EVALSHA", digest
        self._known_scripts.add(name)
        return b"EVAL", source


class _Nobody:
    """Waits for the reply to ASKING: the command behind it tells the same."""

    def callback(self, reply: Any) -> None:
        pass

    def errback(self, failure: Any) -> None:
        pass
