"""Who owns a channel, what its owner has saved, and which shards live by their pulses, in Redis.

    PREFIX:owner:{CHANNEL}   hash: ``h`` incarnation of the owner, if there is one, ``e`` its epoch, or that
                             of the last; for a day after the last use, an hour if it was given up
    PREFIX:state:{CHANNEL}   string: what an owner has saved
    PREFIX:pulses            sorted set: incarnation by the millisecond until which it lives

Each call is one round trip. Whoever does something as the owner of a channel says so with a *fence*, holder
and epoch, which a script compares in the step in which it does it. The epoch alone would not do: a replica
that was promoted before it knew of a take gives its epoch a second time.

Times are the server's, so the clocks of the machines do not matter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail

from spread.hub.errors import Fenced, HubRefused, HubUnavailable, MessageTooLarge, ReplyError
from spread.hub.keys import Keys, ShardKeys
from spread.hub.link import CommandProtocol, Link
from spread.hub.ownership import (
    GIVEN_UP_SECONDS,
    MAX_PULSE_SECONDS,
    MAX_STATE_BYTES,
    OWNER_SECONDS,
    Ownership,
)
from spread.hub.scripts import run, run_script

__all__ = ["REFUSED", "Owners", "Pulses", "fence_arguments", "fenced"]

REFUSED = b"!"
"""How a script's reply begins, instead of with a position, when the fence is not that of the owner.

No error reply: it is no fault of the connection, and Redis would count it as one of its own.
"""

T = TypeVar("T")


def fence_arguments(fence: Ownership) -> tuple[bytes, int]:
    """What a script is told: who must own the channel, and for how many seconds it does from now on."""
    return _written(fence), OWNER_SECONDS


def fenced(key: bytes, reply: bytes, is_unsure: bool = False) -> Fenced:
    """What a reply says that begins with ``REFUSED``.

    :param key: one of the channel's.
    :param is_unsure: of an earlier try nothing is known.
    """
    channel = key.partition(b":{")[2][:-1].decode()
    holder, _, epoch = reply[len(REFUSED) :].decode().partition(" ")
    return Fenced(channel, holder, int(epoch), is_unsure)


class Owners:
    """Of the channels of one server. See ``ownership.Owned`` for the promises.

    :param shard: the incarnation (8 bytes) of this one.
    """

    def __init__(self, link: Link, keys: Keys, shard: bytes) -> None:
        self._link = link
        self._keys = keys
        self._holder = shard.hex().encode()

    def owner_of(self, channel: str) -> Deferred[Ownership | None]:
        """See ``Owned``, here and below.

        :raises HubRefused: (as a failure, here and below) an ACL forbids it.
        """
        key = self._keys.owner(channel)
        return _ask(
            self._link, lambda connection: run(connection, key, b"HMGET", key, b"h", b"e")
        ).addCallback(_ownership)

    def take(self, channel: str, over: Ownership | None = None) -> Deferred[Ownership]:
        """See ``Owned``."""
        known = (b"", 0) if over is None else (_written(over), over.epoch)
        taken = self._run_owner(channel, OWNER_SECONDS, b"take", self._holder, *known)
        return taken.addCallback(lambda reply: Ownership(reply[0].decode(), int(reply[1])))

    def give_up(self, channel: str, ownership: Ownership) -> Deferred[None]:
        """See ``Owned``."""
        given_up = self._run_owner(channel, GIVEN_UP_SECONDS, b"give_up", _written(ownership))
        return given_up.addCallback(_nothing)

    def save_state(
        self, channel: str, ownership: Ownership, state: bytes, ttl_seconds: int
    ) -> Deferred[None]:
        """See ``Owned``."""
        if len(state) > MAX_STATE_BYTES:
            return fail(MessageTooLarge(len(state), MAX_STATE_BYTES))
        keys = [self._keys.owner(channel), self._keys.state(channel)]
        arguments: list[bytes | int] = [*fence_arguments(ownership), state, ttl_seconds]
        saved = _ask(self._link, lambda connection: run_script(connection, "save_state", keys, arguments))
        return saved.addCallback(_check_saved, keys[0])

    def load_state(self, channel: str) -> Deferred[bytes | None]:
        """See ``Owned``."""
        key = self._keys.state(channel)
        return _ask(self._link, lambda connection: run(connection, key, b"GET", key))

    def _run_owner(self, channel: str, seconds: int, *arguments: bytes | int) -> Deferred[Any]:
        keys = [self._keys.owner(channel)]
        told = [seconds, *arguments]
        return _ask(self._link, lambda connection: run_script(connection, "owner", keys, told))


class Pulses:
    """Of one hub. See ``ownership.Pulsing`` for the promises.

    :param link: to the server that has the keys of shards.
    """

    def __init__(self, link: Link, prefix: str, incarnation: str) -> None:
        self._link = link
        self._key = ShardKeys(prefix).pulses
        self._incarnation = incarnation.encode()

    def pulse(self, seconds: float) -> Deferred[frozenset[str]]:
        """See ``Pulsing``, here and below.

        :raises HubRefused: (as a failure, here and below) an ACL forbids it.
        """
        arguments: list[bytes | int] = [self._incarnation, int(seconds * 1000), int(MAX_PULSE_SECONDS * 1000)]
        alive = _ask(self._link, lambda connection: run_script(connection, "pulse", [self._key], arguments))
        return alive.addCallback(lambda reply: frozenset(each.decode() for each in reply))

    def end_pulse(self) -> Deferred[None]:
        """See ``Pulsing``."""
        ended = _ask(
            self._link, lambda connection: run(connection, self._key, b"ZREM", self._key, self._incarnation)
        )
        return ended.addCallback(_nothing)


def _ask(link: Link, use: Callable[[CommandProtocol], Awaitable[T]]) -> Deferred[T]:
    async def asked() -> T:
        connection = link.protocol
        if connection is None:
            raise HubUnavailable(link.name, str(link.last_error or "not connected"))
        try:
            return await use(connection)
        except ReplyError as error:
            if error.is_refusal:
                raise HubRefused(link.name, str(error)) from error
            raise HubUnavailable(link.name, str(error)) from error

    return Deferred.fromCoroutine(asked())


def _written(ownership: Ownership) -> bytes:
    return f"{ownership.holder} {ownership.epoch}".encode()


def _ownership(reply: list[bytes | None]) -> Ownership | None:
    holder, epoch = reply
    return None if holder is None or epoch is None else Ownership(holder.decode(), int(epoch))


def _check_saved(reply: bytes, key: bytes) -> None:
    if reply.startswith(REFUSED):
        raise fenced(key, reply)


def _nothing(_: Any) -> None:
    return None
