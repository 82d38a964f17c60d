"""What a channel can do, by its name: namespaces, private and user-limited channels, as in Centrifugo.

    $chat:room:1        $ is the private prefix; chat is the namespace, which ends at the first boundary
    dialog#17,42        the users 17 and 42

Nothing is kept for a channel: one object for each namespace is made at the start, and found by name. Whether
a channel exists is not known here. No Twisted, no I/O.
"""

from __future__ import annotations

import re
from typing import Any

from spread.hub.api import History
from spread.node.settings import ChannelSettings, NamespaceOptions
from spread.node.tables import TABLES_CHANNEL

__all__ = ["ChannelOptions", "Namespaces"]


class ChannelOptions(NamespaceOptions, frozen=True, kw_only=True):
    """The options of all channels of a namespace, as the configuration has them, and what follows from them.

    ``history_ttl`` and ``history_meta_ttl`` are whole seconds; where the namespace leaves
    ``history_meta_ttl`` or ``publication_data_format`` open, those of all channels stand here.
    """

    namespace: str
    """Its name; "" for channels without one."""
    history: History | None
    """How publications are kept; ``None``: they are not, and have no positions."""
    pattern: re.Pattern[str] | None
    """``channel_regex``."""

    @property
    def has_positions(self) -> bool:
        """Publications have offsets, so that subscriptions can follow positions and recover."""
        return self.history is not None


class Namespaces:
    """All namespaces of a configuration.

    :param channel: valid settings.
    :param personal_channel_namespace: that of ``client.subscribe_to_user_personal_channel``.
    :raises re.error: a ``channel_regex`` is none.
    """

    __slots__ = ("_boundary", "_by_name", "_channel", "_personal", "_private", "_user_boundary")

    def __init__(self, channel: ChannelSettings, personal_channel_namespace: str = "") -> None:
        self._channel = channel
        self._private = channel.private_prefix
        self._boundary = channel.namespace_boundary
        self._user_boundary = channel.user_boundary
        self._personal = personal_channel_namespace
        self._by_name = {"": _options("", channel.without_namespace, channel)}
        for namespace in channel.namespaces:
            self._by_name[namespace.name] = _options(namespace.name, namespace, channel)

    def options(self, channel: str) -> ChannelOptions | None:
        """The options of a channel; ``None`` if its namespace is not configured (error 102).

        Any text will do, also the names of the text protocol, which need not be ASCII. There, too, a channel
        of an unknown namespace is to be refused: it would fall back to other rules than its name says.
        """
        return self._by_name.get(self._split(channel)[0])

    def is_too_long(self, channel: str) -> bool:
        """Whether a name has more bytes than ``channel.max_length``: error 107, before anything else."""
        most = self._channel.max_length
        return len(channel) > most or (
            not channel.isascii() and len(channel.encode("utf-8", "surrogatepass")) > most
        )

    def why_invalid(self, channel: str) -> str:
        """What is wrong with the name of a channel (error 107), in words for a log; "" if nothing is.

        It may be too long; it must be ASCII, or in a namespace with a ``channel_regex`` match that, which is
        searched for in the part after the namespace. An unknown namespace is none of its business.
        """
        if self.is_too_long(channel):
            return f"it is longer than {self._channel.max_length} bytes"
        name, rest = self._split(channel)
        options = self._by_name.get(name)
        if channel == TABLES_CHANNEL:
            return ""
        if options is not None and options.pattern is not None:
            # Python's $ also matches before a line ending at the end, which Centrifugo's does not.
            if "\n" in rest or options.pattern.search(rest) is None:
                return "it does not match channel_regex of its namespace"
        elif not channel.isascii():
            return "it has characters that are not ASCII"
        return ""

    def is_private(self, channel: str) -> bool:
        """Whether it is for holders of a subscription token alone."""
        return bool(self._private) and channel.startswith(self._private)

    def users_of(self, channel: str) -> tuple[str, ...] | None:
        """The users in the name of a user-limited channel; ``None`` if it is no such channel."""
        if not self._user_boundary or self._user_boundary not in channel:
            return None
        users = channel.rpartition(self._user_boundary)[2]
        separator = self._channel.user_separator
        return tuple(users.split(separator)) if separator else (users,)

    def personal_channel(self, user: str) -> str:
        """The channel of one user, to which the server subscribes it."""
        name = f"{self._user_boundary}{user}"
        return f"{self._personal}{self._boundary}{name}" if self._personal else name

    def _split(self, channel: str) -> tuple[str, str]:
        """Namespace, and what comes after it; without a namespace that is the whole name, prefix included."""
        if self._boundary and self._boundary in channel:
            name, boundary, rest = channel.removeprefix(self._private).partition(self._boundary)
            if boundary:
                return name, rest
        return "", channel


def _options(name: str, options: NamespaceOptions, channel: ChannelSettings) -> ChannelOptions:
    values: dict[str, Any] = {field: getattr(options, field) for field in NamespaceOptions.__struct_fields__}
    values["history_meta_ttl"] = options.history_meta_ttl or channel.history_meta_ttl
    values["publication_data_format"] = options.publication_data_format or channel.publication_data_format
    history = None
    if options.history_size and options.history_ttl:
        history = History(
            size=options.history_size,
            ttl_seconds=int(options.history_ttl),
            meta_ttl_seconds=int(values["history_meta_ttl"]),
        )
    pattern = re.compile(options.channel_regex) if options.channel_regex else None
    return ChannelOptions(namespace=name, history=history, pattern=pattern, **values)
