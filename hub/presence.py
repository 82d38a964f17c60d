"""Who is present in a channel, in Redis: three keys a channel, and one script that knows them.

    PREFIX:presence:{CHANNEL}         hash, client id → its user id with length, the rest as msgpack
    PREFIX:presence_expiry:{CHANNEL}  sorted set, client id by the millisecond in which it expires
    PREFIX:presence_users:{CHANNEL}   hash, user id → how many of its clients are present

Each call is one round trip. Times are the server's, so the clocks of the machines do not matter. Who has
expired is dropped at every call but a removal, and the keys expire with the last client, so that nothing is
left of a shard that was killed. The user stands in front of an entry where the script can cut it out: that is
how the users are counted without an entry being sent or decoded.
"""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from spread.hub.api import ClientInfo, HubCounters, PresenceStats
from spread.hub.errors import HubRefused, HubUnavailable, ReplyError
from spread.hub.link import Link
from spread.hub.reactor import Clock
from spread.hub.scripts import run_script

__all__ = ["Presence"]

TELL_SECONDS = 60.0
"""Entries that cannot be read are counted, and logged once in so long."""


class _Rest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An entry without client and user. A later release may append fields."""

    conn_info: bytes = b""
    chan_info: bytes = b""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Rest).decode


class Presence:
    """See ``api.Hub`` for the promises."""

    log = Logger("spread.hub.presence")

    def __init__(self, clock: Clock, link: Link, prefix: str, counters: HubCounters) -> None:
        self._clock = clock
        self._link = link
        self._before = [f"{prefix}:{name}:{{" for name in ("presence", "presence_expiry", "presence_users")]
        self._counters = counters
        self._told_at = float("-inf")

    def add(self, channel: str, info: ClientInfo, ttl_seconds: float) -> Deferred[None]:
        """See ``Hub.add_presence``.

        :raises HubRefused: (as a failure, here and below) an ACL forbids it.
        """
        user = info.user.encode()
        value = b"%d:%b%b" % (len(user), user, _encode(_Rest(info.conn_info, info.chan_info)))
        done = self._run(channel, b"add", info.client.encode(), value, round(ttl_seconds * 1000))
        return done.addCallback(lambda _: None)

    def remove(self, channel: str, client: str) -> Deferred[None]:
        """See ``Hub.remove_presence``."""
        return self._run(channel, b"remove", client.encode()).addCallback(lambda _: None)

    def read(self, channel: str) -> Deferred[dict[str, ClientInfo]]:
        """See ``Hub.presence``. An entry that cannot be read, of a later release, is left out."""
        return self._run(channel, b"read").addCallback(self._infos, channel)

    def stats(self, channel: str) -> Deferred[PresenceStats]:
        """See ``Hub.presence_stats``. Takes the same time however many are present."""
        return self._run(channel, b"count").addCallback(lambda counts: PresenceStats(*counts))

    def _infos(self, reply: list[bytes], channel: str) -> dict[str, ClientInfo]:
        infos = {}
        for packed, value in zip(reply[::2], reply[1::2], strict=True):
            try:
                client = packed.decode()
                infos[client] = _info_of(client, value)
            except (msgspec.DecodeError, ValueError) as error:
                self._counters.malformed += 1
                now = self._clock.seconds()
                if now - self._told_at >= TELL_SECONDS:
                    self._told_at = now
                    self.log.warn(
                        "an entry of the presence of {channel} cannot be read: {error}",
                        channel=channel,
                        error=error,
                    )
        return infos

    def _run(self, channel: str, *arguments: bytes | int) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._ask(channel, arguments))

    async def _ask(self, channel: str, arguments: tuple[bytes | int, ...]) -> Any:
        connection = self._link.protocol
        if connection is None:
            reason = str(self._link.last_error) if self._link.last_error else "not connected"
            raise HubUnavailable(self._link.name, reason)
        keys = [(before + channel + "}").encode() for before in self._before]
        try:
            return await run_script(connection, "presence", keys, list(arguments))
        except ReplyError as error:
            if error.is_refusal:
                raise HubRefused(self._link.name, str(error)) from error
            raise HubUnavailable(self._link.name, str(error)) from error


def _info_of(client: str, value: bytes) -> ClientInfo:
    """
    :raises ValueError: no release that we know wrote it.
    """
    length, colon, rest = value.partition(b":")
    if not colon:
        raise ValueError("no length of the user")
    end = int(length)
    if not 0 <= end <= len(rest):
        raise ValueError(f"a user of {end} bytes in an entry of {len(rest)}")
    more = _decode(rest[end:])
    return ClientInfo(rest[:end].decode(), client, more.conn_info, more.chan_info)
