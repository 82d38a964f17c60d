"""``Owned``: what a team subclasses for channels that have a state, and one owner.

    @owns("match:*")
    class Match(Owned):
        def opened(self, channel): ...
        def tick(self, dt): ...

        @command("move")
        def move(self, member, params: Move): ...

For each channel there is one object at a time in the cluster, on the shard that owns the channel. It is made
when somebody comes into the channel, and goes ``linger_seconds`` after the last has left. When its shard dies
or stops, another shard makes a new one from the last snapshot.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

import msgspec
from twisted.internet.defer import Deferred

from spread.node.app.marks import MIN_SECONDS, calls_of
from spread.node.pattern import BadPattern, matching

__all__ = ["METHODS", "Bound", "Member", "NotOwnable", "Owned", "Shape", "command", "owns", "shapes_of"]

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound="type[Owned]")

COMMAND_MAX_CHARACTERS = 128

METHODS = ("opened", "closed", "joined", "left", "tick", "snapshot", "restore")
"""Of an object, which its class has or has not."""

_COMMAND = "__spread_command__"


class NotOwnable(TypeError):
    """A class cannot own channels as it is written; the text says why."""


class Member(msgspec.Struct, frozen=True):
    """A client in the channel, on whatever shard it is connected to."""

    id: str
    user: str
    """"" for an anonymous user."""
    info: Any = None
    """What its connection's token, or ``connecting``, says of it."""


class Bound(Protocol):
    """What an object is bound to: the one who runs it."""

    @property
    def epoch(self) -> int: ...
    def publish(self, data: Any, **how: Any) -> Deferred[bool]: ...
    def send(self, id: str, data: Any) -> Deferred[bool]: ...


class Owned:
    """The object of a channel; one for each.

    Methods are called one at a time, but for those that wait for something: while a command waits,
    others are done. What a method raises is logged and counted, and the object goes on.

    ``snapshot`` and ``restore`` must give and take their state at once, since an update hands it over in one
    turn; all other methods may return a Deferred or be ``async def``.
    """

    tick_seconds: float = 0.05
    """Between two calls of ``tick``."""
    snapshot_seconds: float = 1.0
    """Between two snapshots, which is how much of the state may be lost with the shard."""
    linger_seconds: float = 10.0
    """How long the object stays when the last member has left."""
    keep_seconds: float = 0.0
    """How long its state is kept when it has gone, for the channel's next object; 0: that begins anew."""

    patterns: tuple[str, ...] = ()
    """Of the channels; set by ``owns``."""

    app: Any
    """The app, in the version that runs."""
    channel: str
    """The name of the channel."""
    members: Mapping[str, Member]
    """Who is in the channel, by id. Not to be changed."""
    _bound: Bound

    @property
    def epoch(self) -> int:
        """Rises with each new owner of the channel, until nobody has owned it for an hour."""
        return self._bound.epoch

    # -- what a class has to say, all of it optional

    def opened(self, channel: str) -> Any:
        """It begins: there is no snapshot."""

    def closed(self) -> Any:
        """It ends: nobody has been in the channel for ``linger_seconds``."""

    def joined(self, member: Member) -> Any:
        """Somebody has come; ``members`` has it."""

    def left(self, member: Member) -> Any:
        """Somebody has left; ``members`` has not got it any more."""

    def tick(self, dt: float) -> Any:
        """Time goes on.

        :param dt: seconds since the last tick.
        """

    def snapshot(self) -> Any:
        """The state, as plain data: what ``restore`` of another object, also of the next version, takes."""

    def restore(self, state: Any) -> Any:
        """Go on from a snapshot; called instead of ``opened``."""

    # -- what it can do

    def publish(self, data: Any, **how: Any) -> Deferred[bool]:
        """Publish to the channel, as ``App.publish``.

        :returns: fires with ``True`` when it is taken; ``False`` when this shard does not own the channel any
            more, or the hub is away. Never fails.
        """
        return self._bound.publish(data, **how)

    def send(self, id: str, data: Any) -> Deferred[bool]:
        """Send to one member. Fires as ``publish`` does; ``False`` also when there is no such member.

        :raises TypeError: at once: ``id`` is no text.
        """
        return self._bound.send(id, data)


def owns(*patterns: str) -> Callable[[C], C]:
    """Say which channels a class is for.

    :param patterns: of their names; see ``spread.node.pattern``.
    :raises NotOwnable: none is given, or one cannot be read.
    """
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise NotOwnable('owns needs the pattern of the channels: @owns("match:*")')
        try:
            matching(pattern)
        except BadPattern as error:
            raise NotOwnable(f"owns({pattern!r}): {error}") from None
    if not patterns or "" in patterns:
        raise NotOwnable("owns() needs the pattern of the channels")

    def decorate(cls: C) -> C:
        cls.patterns = patterns
        return cls

    return decorate


def command(name: str) -> Callable[[F], F]:
    """Say that a method is a command of members: ``(self, member, params: SomeStruct) -> result``.

    Clients call it by RPC, with the method ``CHANNEL/NAME``. ``member`` is ``None`` when the app calls.

    :raises NotOwnable: the name is none.
    """
    if not isinstance(name, str):
        raise NotOwnable('command needs the name by which members call it: @command("move")')
    if not 0 < len(name) <= COMMAND_MAX_CHARACTERS or "/" in name:
        raise NotOwnable(f"{name!r} is no name of a command: 1 to {COMMAND_MAX_CHARACTERS} characters, no /")

    def decorate(method: F) -> F:
        setattr(method, _COMMAND, name)
        return method

    return decorate


class Shape:
    """What a class has, looked up once."""

    def __init__(self, cls: type[Owned]) -> None:
        """
        :raises NotOwnable: the class cannot own channels.
        """
        if not isinstance(cls, type) or not issubclass(cls, Owned):
            raise NotOwnable(f"{cls!r} is no subclass of spread.node.Owned")
        self.name = cls.__name__
        self.cls = cls
        if not cls.patterns:
            raise NotOwnable(f"{self.name} does not say which channels it owns: @owns is missing")
        for setting in ("tick_seconds", "linger_seconds", "keep_seconds", "snapshot_seconds"):
            value = getattr(cls, setting)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1e9:
                raise NotOwnable(f"{self.name}.{setting} is {value!r}, and must be seconds, 0 or more")
        for setting in ("tick_seconds", "snapshot_seconds"):
            if 0 < getattr(cls, setting) < MIN_SECONDS:
                raise NotOwnable(f"{self.name}.{setting} is less than a millisecond; 0 is never")
        if self.has("snapshot") != self.has("restore"):
            raise NotOwnable(f"{self.name} needs both snapshot() and restore(), or neither")
        for method in ("snapshot", "restore"):
            if inspect.iscoroutinefunction(getattr(cls, method)):
                raise NotOwnable(f"{self.name}.{method}() must not be async: it is done in one turn")
        self.ticks = self.has("tick") and cls.tick_seconds > 0
        self.keeps = self.has("snapshot")
        try:
            self.commands = calls_of(cls, _COMMAND)
        except TypeError as error:
            raise NotOwnable(str(error)) from error

    def has(self, method: str) -> bool:
        """The class has a method of its own."""
        return getattr(self.cls, method) is not getattr(Owned, method)

    def made(self, bound: Bound, app: Any, channel: str, members: Mapping[str, Member]) -> Owned:
        """A new object; its constructor can use what it is bound to.

        :raises Exception: what the constructor raises.
        """
        made = self.cls.__new__(self.cls)
        made._bound = bound
        made.app = app
        made.channel = channel
        made.members = members
        made.__init__()  # type: ignore[misc]
        return made


def shapes_of(app: Any) -> list[Shape]:
    """The classes that an app has for its channels.

    :raises NotOwnable: one cannot own channels.
    """
    classes = getattr(app, "objects", ())
    if not isinstance(classes, Iterable):
        name = getattr(classes, "__name__", "Match")
        raise NotOwnable(f"objects must be several classes, or one with a comma: ({name},)")
    return [Shape(cls) for cls in classes]
