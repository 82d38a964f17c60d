"""What can go wrong between a shard and its hub.

    HubError
    ├── HubUnavailable      temporary: the hub is away, or did not answer within the deadline
    │   ├── JournalFull     temporary: too much is already waiting for the hub to come back
    │   └── LinkLost        a connection broke; whether its unanswered commands were done is unknown
    ├── HubRefused          the hub answers and says no: wrong password, missing ACL permission
    ├── HubMisconfigured    the URL, the environment or a file named by it cannot work
    ├── ReplyError          Redis answered one command with an error
    ├── MessageTooLarge     a publication above the hub's own maximum; it never reached Redis
    ├── Fenced              the ownership under which it was asked for is over; nothing was done
    ├── LeaseTaken          the shard number is held by another live process
    └── ShardUnknown        no live shard has the incarnation that was asked for

Every error is raised with its facts as attributes; the sentence is made in ``__str__``.
"""

from __future__ import annotations

__all__ = [
    "Fenced",
    "HubError",
    "HubMisconfigured",
    "HubRefused",
    "HubUnavailable",
    "JournalFull",
    "LeaseTaken",
    "LinkLost",
    "MessageTooLarge",
    "ReplyError",
    "ShardUnknown",
]


class HubError(Exception):
    """Base of all errors a hub raises."""


class HubUnavailable(HubError):
    """The hub is away or silent; the same call may succeed later."""

    def __init__(self, hub: str, reason: str) -> None:
        super().__init__(hub, reason)
        self.hub = hub
        self.reason = reason

    def __str__(self) -> str:
        return f"the hub {self.hub} is not available: {self.reason}"


class JournalFull(HubUnavailable):
    """The bounded journal of publications that wait for the hub has no room."""

    def __init__(self, hub: str, waiting: int, waiting_bytes: int) -> None:
        super().__init__(hub, f"{waiting} publications ({waiting_bytes} bytes) already wait for it")
        self.waiting = waiting
        self.waiting_bytes = waiting_bytes


class LinkLost(HubUnavailable):
    """A connection to the hub broke. Commands it had not answered may or may not have been done."""


class HubRefused(HubError):
    """The hub answered, and refused. Waiting does not help; a changed password or ACL does."""

    def __init__(self, hub: str, reason: str) -> None:
        super().__init__(hub, reason)
        self.hub = hub
        self.reason = reason

    def __str__(self) -> str:
        return f"the hub {self.hub} refused: {self.reason}"


class HubMisconfigured(HubError):
    """What was configured for the hub cannot work; the message names it and the remedy."""


class ReplyError(HubError):
    """Redis answered a command with an error."""

    LATER = frozenset(
        {
            "LOADING",
            "READONLY",
            "MASTERDOWN",
            "CLUSTERDOWN",
            "TRYAGAIN",
            "NOREPLICAS",
            "BUSY",
            "MAXCLIENTS",
        }
    )
    """Codes that mean: not done, ask again in a moment."""
    REFUSALS = frozenset({"WRONGPASS", "NOAUTH", "NOPERM"})
    """Codes that mean: not with these credentials."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = message.split(" ", 1)[0]
        # Servers before 6.2 answer a wrong password with a plain ERR.
        if message.startswith(("ERR invalid password", "ERR AUTH", "ERR Client sent AUTH")):
            self.code = "WRONGPASS"
        elif message.startswith("ERR max number of clients"):
            self.code = "MAXCLIENTS"
        elif message.startswith(("ERR ACL failure in script", "ERR The user executing the script")):
            self.code = "NOPERM"  # of a command inside a script that may itself be run

    @property
    def is_later(self) -> bool:
        """Nothing was done, and the same command may succeed in a moment."""
        return self.code in self.LATER

    @property
    def is_refusal(self) -> bool:
        """The credentials do not allow it."""
        return self.code in self.REFUSALS


class MessageTooLarge(HubError):
    """A publication is larger than the hub carries."""

    def __init__(self, size: int, maximum: int) -> None:
        super().__init__(size, maximum)
        self.size = size
        self.maximum = maximum

    def __str__(self) -> str:
        return f"a publication of {self.size} bytes is above the maximum of {self.maximum}"


class Fenced(HubError):
    """Something was asked for as the owner of a channel, which the asking shard is not any more.

    :param holder: the incarnation of who owns it now; "" if nobody does.
    :param epoch: of that owner, or of the last one.
    :param is_unsure: an earlier try of the same publication may have been taken in time.
    """

    def __init__(self, channel: str, holder: str, epoch: int, is_unsure: bool = False) -> None:
        super().__init__(channel, holder, epoch, is_unsure)
        self.channel = channel
        self.holder = holder
        self.epoch = epoch
        self.is_unsure = is_unsure

    def __str__(self) -> str:
        owner = (
            f"shard {self.holder} owns {self.channel!r}" if self.holder else f"nobody owns {self.channel!r}"
        )
        unsure = "; an earlier try may have been taken" if self.is_unsure else ""
        return f"{owner} now, epoch {self.epoch}{unsure}"


class LeaseTaken(HubError):
    """The number of a shard is held by another live process."""

    def __init__(self, shard: int, host: str, pid: int) -> None:
        super().__init__(shard, host, pid)
        self.shard = shard
        self.host = host
        self.pid = pid

    def __str__(self) -> str:
        return f"shard {self.shard} is already running: process {self.pid} on host {self.host}"


class ShardUnknown(HubError):
    """No live shard has the incarnation that was asked for.

    :param is_unheard: nobody heard the question, so nothing was done; else it died while it was asked.
    """

    def __init__(self, incarnation: str, is_unheard: bool = False) -> None:
        super().__init__(incarnation)
        self.incarnation = incarnation
        self.is_unheard = is_unheard

    def __str__(self) -> str:
        return f"no live shard is {self.incarnation!r}"
