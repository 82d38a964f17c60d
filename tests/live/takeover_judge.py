"""What was seen of owned channels while their owners died and stood still, and what of it must not be.

Pure: witnesses write down what they saw, with the second at which they saw it, by one clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Judge", "Takeover"]


@dataclass(slots=True)
class Takeover:
    """Of one channel, when its owner was killed or stopped."""

    channel: str
    old: str
    """Who owned it: shard and process."""
    epoch: int
    """In which."""
    at: float
    """When it was killed, or stopped."""
    is_kill: bool
    after: float = -1.0
    """Seconds until a publication of the next owner was seen; -1: none was."""
    age: float = -1.0
    """Of the state from which the next owner went on, in seconds before ``at``; -1: it had none."""


@dataclass(slots=True)
class _Command:
    channel: str
    acknowledged_at: float = 0.0
    """0: it was not."""
    by: str = ""
    """In which epoch, by whom."""
    is_refused: bool = False
    """Said not to be done; an error 100 says nothing."""


@dataclass(slots=True)
class Judge:
    """Takes down and judges.

    :param takeover_seconds: within which another owner must be heard.
    :param snapshot_seconds: which an object's state may be older than at the death of its owner.
    :param slack_seconds: for the time that a snapshot is on its way.
    """

    takeover_seconds: float
    snapshot_seconds: float
    slack_seconds: float = 0.3
    takeovers: list[Takeover] = field(default_factory=list)
    writers: dict[tuple[str, int], set[str]] = field(default_factory=dict)
    """Who was seen to speak in a channel and epoch."""
    newest: dict[str, tuple[int, str, float]] = field(default_factory=dict)
    """Of each channel: the highest epoch seen, its owner, and since when."""
    epochs: dict[str, list[tuple[int, str, float]]] = field(default_factory=dict)
    """All of them, likewise."""
    heard_at: dict[str, float] = field(default_factory=dict)
    publications: int = 0
    stale: list[str] = field(default_factory=list)
    """What a witness saw of an epoch after a later one."""
    commands: dict[int, _Command] = field(default_factory=dict)
    executions: dict[int, set[tuple[int, str]]] = field(default_factory=dict)
    """In which epochs, and by whom, a command was done."""
    doubled: set[int] = field(default_factory=set)
    final: dict[str, list[int]] = field(default_factory=dict)
    """What the object of a channel had done in the end."""
    refused: int = 0
    """Publications of owners that were woken, which the hub refused."""
    _seen: dict[tuple[int, str], int] = field(default_factory=dict)
    _waiting: dict[str, list[Takeover]] = field(default_factory=dict)

    # -- what is seen ------------------------------------------------------------------------------------

    def published(self, witness: int, channel: str, data: Any, now: float) -> None:
        """A witness has got a publication."""
        epoch, writer = data["e"], data["w"]
        self.publications += 1
        self._spoke(channel, epoch, writer)
        before = self._seen.get((witness, channel), 0)
        if epoch < before:
            self.stale.append(f"{channel}: {writer} in epoch {epoch} after {before}")
        else:
            self._seen[witness, channel] = epoch
        self.heard_at[channel] = now
        if epoch > self.newest.get(channel, (0, "", 0.0))[0]:
            self.newest[channel] = (epoch, writer, now)
            self.epochs.setdefault(channel, []).append((epoch, writer, now))
        for number in data.get("d", ()):
            done = self.executions.setdefault(number, set())
            done.add((epoch, writer))
            if len(done) > 1:
                self.doubled.add(number)
        if "t" in data and channel in self._waiting:
            self._went_on(channel, epoch, data["s"], now)

    def _spoke(self, channel: str, epoch: int, writer: str) -> None:
        self.writers.setdefault((channel, epoch), set()).add(writer)

    def _went_on(self, channel: str, epoch: int, saved_at: float, now: float) -> None:
        waiting = self._waiting.pop(channel)
        for takeover in waiting:
            if epoch > takeover.epoch:
                takeover.after = now - takeover.at
                takeover.age = max(0.0, takeover.at - saved_at) if saved_at else -1.0
        if left := [takeover for takeover in waiting if takeover.after < 0]:
            self._waiting[channel] = left

    def struck(self, writer: str, now: float, *, is_kill: bool) -> list[Takeover]:
        """An owner is killed, or stopped; gives what has to be taken over from it."""
        begun = [
            Takeover(channel, writer, epoch, now, is_kill)
            for channel, (epoch, owner, _) in self.newest.items()
            if owner == writer
        ]
        for takeover in begun:
            self._waiting.setdefault(takeover.channel, []).append(takeover)
        self.takeovers += begun
        return begun

    def called(self, number: int, channel: str) -> None:
        """A command is on its way."""
        self.commands[number] = _Command(channel)

    def answered(self, number: int, reply: Any, now: float) -> None:
        """What was answered."""
        command = self.commands[number]
        if "rpc" in reply:
            command.acknowledged_at = now
            stamp = reply["rpc"]["data"]
            command.by = f"epoch {stamp['e']} of {stamp['w']}"
            self._spoke(command.channel, stamp["e"], stamp["w"])
        elif reply["error"]["code"] != 100:
            command.is_refused = True

    # -- what comes of it --------------------------------------------------------------------------------

    @property
    def two_writers(self) -> list[str]:
        """Channels and epochs in which more than one has spoken."""
        return [
            f"{channel} in epoch {epoch}: {', '.join(sorted(writers))}"
            for (channel, epoch), writers in self.writers.items()
            if len(writers) > 1
        ]

    def twice(self) -> set[int]:
        """Commands that were done twice: in one state, or by two owners."""
        again = (
            {number for done in self.final.values() for number in done if done.count(number) > 1}
            if any(len(set(done)) < len(done) for done in self.final.values())
            else set()
        )
        return again | self.doubled

    def undone(self) -> set[int]:
        """Acknowledged ones that are not in the state in the end: those of the last moments of an owner."""
        there = {number for done in self.final.values() for number in done}
        return {
            number
            for number, each in self.commands.items()
            if each.acknowledged_at and each.channel in self.final and number not in there
        }

    def lost(self) -> set[int]:
        """Of the undone ones, those that no death excuses: a snapshot should have had them."""
        most = self.snapshot_seconds + self.slack_seconds
        strikes: dict[str, list[float]] = {}
        for takeover in self.takeovers:
            strikes.setdefault(takeover.channel, []).append(takeover.at)
        found = set()
        for number in self.undone():
            each = self.commands[number]
            # An answer may be read here a moment after the owner's death.
            if not any(
                at - most < each.acknowledged_at < at + self.slack_seconds
                for at in strikes.get(each.channel, ())
            ):
                found.add(number)
        return found

    def _how_lost(self, number: int) -> str:
        each = self.commands[number]
        strikes = [
            at - each.acknowledged_at for at in (t.at for t in self.takeovers if t.channel == each.channel)
        ]
        later = ", ".join(f"{after:+.2f}" for after in strikes)
        epochs = ", ".join(
            f"{epoch} of {writer} {at - each.acknowledged_at:+.2f}"
            for epoch, writer, at in self.epochs.get(each.channel, ())
        )
        return (
            f"  {number}, {each.channel}, acknowledged in {each.by}; seconds from then to each strike: "
            f"{later}; and to each epoch: {epochs}"
        )

    def wrong(self) -> list[str]:
        """What must not be, in words."""
        found = [f"two writers: {each}" for each in self.two_writers]
        found += [f"seen of an owner that was over: {each}" for each in self.stale]
        most = self.snapshot_seconds + self.slack_seconds
        for each in self.takeovers:
            what = f"{each.channel}, {'killed' if each.is_kill else 'stopped'} {each.old}"
            if not 0 <= each.after < self.takeover_seconds:
                found.append(f"{what}: taken over after {each.after:.2f} s")
            if each.age > most:
                found.append(f"{what}: the next owner had a state {each.age:.2f} s old")
            if each.after >= 0 and each.age < 0:
                found.append(f"{what}: the next owner began anew")
        there = {number for done in self.final.values() for number in done}
        if twice := self.twice():
            found.append(f"done twice: commands {sorted(twice)[:10]}")
        if lost := self.lost():
            found.append(f"lost: acknowledged commands {sorted(lost)[:10]}")
            found += [self._how_lost(number) for number in sorted(lost)[:10]]
        denied = [number for number, each in self.commands.items() if each.is_refused and number in there]
        if denied:
            found.append(f"refused, and done: commands {denied[:10]}")
        return found
