"""How much a client may say before it is answered: when it is read, and when it has to wait.

A client is not read while too many of its commands, or too many bytes of its publications, are on their way;
while a channel in which it has spoken is pressed (``spread.node.pressure``); and while it is connecting. TCP
tells it to wait. Frames of an emulated client come with requests of their own, which no pause stops: they are
kept, up to ``MAX_UNREAD_BYTES``, and done in order later.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from spread.node import codes
from spread.node.session.contract import Edge
from spread.node.session.shared import Shared

__all__ = ["MAX_UNACKNOWLEDGED_BYTES", "MAX_UNREAD_BYTES", "Intake"]

MAX_UNACKNOWLEDGED_BYTES = 131072
"""Data of a client's publications that may be on their way to the hub; above it the client is not read."""

MAX_UNREAD_BYTES = 131072
"""Frames that may wait for a client that cannot be told to wait (an emulated one); more end it with 3013."""

FRAME_BYTES = 200
"""What a waiting frame costs besides its bytes."""


class Speaker(Protocol):
    """The session, as its intake needs it."""

    @property
    def shared(self) -> Shared: ...
    @property
    def is_alive(self) -> bool: ...
    @property
    def is_connecting(self) -> bool: ...
    def received(self, frame: bytes) -> None: ...
    def end(self, disconnect: codes.Disconnect) -> None: ...
    def note(self, what: str, why: str) -> None: ...


class Intake:
    """What one client has said and is not done. A ``pressure.Publisher``."""

    __slots__ = (
        "_bytes",
        "_commands",
        "_edge",
        "_is_held",
        "_max_commands",
        "_session",
        "_unread",
        "_unread_bytes",
        "_was_shut",
        "is_open",
    )

    def __init__(self, session: Speaker, edge: Edge) -> None:
        self.is_open = True
        """The client is read."""
        self._was_shut = False
        self._session = session
        self._edge = edge
        self._max_commands = session.shared.client.max_unacknowledged_commands
        self._commands = 0
        self._bytes = 0
        self._is_held = False
        self._unread: deque[bytes] | None = None
        self._unread_bytes = 0

    def began(self, size: int = 0, count: int = 1) -> None:
        """Commands are on their way, or wait for one that is.

        :param size: bytes of a publication.
        """
        self._commands += count
        self._bytes += size

    def done(self, size: int = 0, count: int = 1) -> None:
        """They are not any more."""
        self._commands -= count
        self._bytes -= size

    def hold(self, channel: str) -> None:
        """It has published: do not read it for a moment if receivers of the channel can hardly keep up."""
        shared = self._session.shared
        if not self._is_held and shared.pressure.hold(channel, self):
            self._is_held = True
            shared.counters.held_publishers += 1

    def released(self) -> None:
        """See ``pressure.Publisher``."""
        self._is_held = False
        self.check()

    def check(self) -> None:
        """Read the client only while what it says can be worked on."""
        session = self._session
        if (
            self.is_open
            and self._commands < self._max_commands
            and self._bytes < MAX_UNACKNOWLEDGED_BYTES
            and not self._is_held
            and not session.is_connecting
        ):
            return  # as nearly always
        if not session.is_alive:
            return
        # Stop at the limit, go on at half of it: not one pause for each command.
        share = 1.0 if self.is_open else 0.5
        is_crowded = (
            self._commands >= self._max_commands * share or self._bytes >= MAX_UNACKNOWLEDGED_BYTES * share
        )
        wanted = not (is_crowded or self._is_held or session.is_connecting)
        if wanted is self.is_open:
            return
        self.is_open = wanted
        if wanted:
            self._edge.resume_reading()
            self._read_what_waits()
        else:
            self._was_shut = not session.is_connecting
            session.shared.counters.reading_pauses += is_crowded
            self._edge.pause_reading()

    def was_open(self) -> bool:
        """The client has been read all the time since this was asked before.

        If not, what it has said in answer to something may be behind all that waits to be read.
        """
        was_shut, self._was_shut = self._was_shut, not self.is_open
        return not was_shut

    def put_off(self, frame: bytes) -> None:
        """A frame has come that could not be stopped."""
        if self._unread_bytes >= MAX_UNREAD_BYTES:
            self._session.note(
                "3013 too many requests", f"{self._unread_bytes} bytes of commands wait already"
            )
            self._session.end(codes.TOO_MANY_COMMANDS)
            return
        if self._unread is None:
            self._unread = deque()
        self._unread.append(frame)
        self._unread_bytes += len(frame) + FRAME_BYTES

    def forget(self) -> None:
        """The session ends: what waits is not done any more."""
        self._unread = None

    def _read_what_waits(self) -> None:
        while self._unread and self.is_open and self._session.is_alive:
            frame = self._unread.popleft()
            self._unread_bytes -= len(frame) + FRAME_BYTES
            self._session.received(frame)
