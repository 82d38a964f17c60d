"""The section ``channel``: namespaces, and what the channels of each can do. Values only.

Names, nesting and defaults are those of Centrifugo v6. ``spread.node.namespaces`` makes of it what a session
asks.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from spread.node.settings.kinds import YEAR_SECONDS, Duration, Section

__all__ = ["ChannelSettings", "Namespace", "NamespaceOptions"]

DataFormat = Literal["", "json", "json_object", "binary"]


class NamespaceOptions(Section, frozen=True, kw_only=True):
    """Channels without a namespace."""

    presence: Annotated[bool, Meta(description="Keep who is in a channel.")] = False
    join_leave: Annotated[bool, Meta(description="Tell of clients that come and go.")] = False
    force_push_join_leave: Annotated[
        bool, Meta(description="Tell it to all subscribers, not only to those that ask. Needs join_leave.")
    ] = False
    history_size: Annotated[
        int, Meta(ge=0, le=10_000_000, description="Publications that a channel keeps. 0: no history.")
    ] = 0
    history_ttl: Annotated[
        Duration,
        Meta(
            ge=0,
            le=100 * YEAR_SECONDS,
            description="The history is forgotten when nothing was published for this long. Whole seconds.",
        ),
    ] = 0.0
    history_meta_ttl: Annotated[
        Duration,
        Meta(
            ge=0,
            le=100 * YEAR_SECONDS,
            description="Epoch and offset of a channel are kept for this long after the last use. Whole "
            "seconds; 0: as channel.history_meta_ttl says.",
        ),
    ] = 0.0
    force_positioning: Annotated[
        bool, Meta(description="Follow the position of every subscriber. Needs history.")
    ] = False
    allow_positioning: Annotated[
        bool, Meta(description="Follow the position of subscribers that ask for it. Needs history.")
    ] = False
    force_recovery: Annotated[
        bool, Meta(description="Every subscriber gets what it missed when it comes back. Needs history.")
    ] = False
    allow_recovery: Annotated[
        bool, Meta(description="Subscribers that ask for it get what they missed. Needs history.")
    ] = False
    force_recovery_mode: Annotated[
        Literal["", "stream", "cache"],
        Meta(
            description="What is recovered: all that was missed (stream, the default), or the newest (cache)."
        ),
    ] = ""
    auto_cache_recovery: Annotated[
        bool,
        Meta(
            description="Every new subscriber gets the newest publication. Needs force_recovery and "
            "force_recovery_mode cache."
        ),
    ] = False
    allowed_delta_types: Annotated[
        tuple[Literal["fossil"], ...],
        Meta(description="Kinds of differences that subscribers may ask for. Needs positioning or recovery."),
    ] = ()
    delta_publish: Annotated[
        bool, Meta(description="Send differences without being asked by the publisher for each publication.")
    ] = False
    allow_subscribe_for_client: Annotated[
        bool, Meta(description="Users may subscribe without a subscription token.")
    ] = False
    allow_subscribe_for_anonymous: Annotated[
        bool, Meta(description="Anonymous users may do so too. Needs allow_subscribe_for_client.")
    ] = False
    allow_publish_for_client: Annotated[bool, Meta(description="Users may publish.")] = False
    allow_publish_for_anonymous: Annotated[
        bool, Meta(description="Anonymous users may do so too. Needs allow_publish_for_client.")
    ] = False
    allow_publish_for_subscriber: Annotated[bool, Meta(description="Subscribers may publish.")] = False
    allow_presence_for_client: Annotated[bool, Meta(description="Users may ask who is in a channel.")] = False
    allow_presence_for_anonymous: Annotated[
        bool, Meta(description="Anonymous users may do so too. Needs allow_presence_for_client.")
    ] = False
    allow_presence_for_subscriber: Annotated[
        bool, Meta(description="Subscribers may ask who is in the channel.")
    ] = False
    allow_history_for_client: Annotated[bool, Meta(description="Users may read the history.")] = False
    allow_history_for_anonymous: Annotated[
        bool, Meta(description="Anonymous users may do so too. Needs allow_history_for_client.")
    ] = False
    allow_history_for_subscriber: Annotated[bool, Meta(description="Subscribers may read the history.")] = (
        False
    )
    allow_user_limited_channels: Annotated[
        bool,
        Meta(description="Users named at the end of a channel, as in dialog#17,42, may subscribe to it."),
    ] = False
    channel_regex: Annotated[
        str,
        Meta(
            max_length=1024,
            description="A regular expression that must be found in the part after the namespace. Empty: any "
            "ASCII text.",
        ),
    ] = ""
    publication_data_format: Annotated[
        DataFormat,
        Meta(
            description="What clients and the API may publish: json, json_object, binary (also nothing at "
            "all). Empty: as channel.publication_data_format says."
        ),
    ] = ""


class Namespace(NamespaceOptions, frozen=True, kw_only=True):
    """A namespace: its name, and the options of its channels."""

    name: Annotated[
        str, Meta(description="What channels of the namespace begin with, before channel.namespace_boundary.")
    ]


class ChannelSettings(Section, frozen=True, kw_only=True):
    """Channels and their namespaces."""

    without_namespace: NamespaceOptions = NamespaceOptions()
    namespaces: Annotated[
        tuple[Namespace, ...],
        Meta(description="Each with a name and the options that channel.without_namespace has, too."),
    ] = ()
    history_meta_ttl: Annotated[
        Duration,
        Meta(
            gt=0,
            le=100 * YEAR_SECONDS,
            description="Epoch and offset of a channel are kept for this long after the last use. Whole "
            "seconds.",
        ),
    ] = 2_592_000.0
    publication_data_format: Annotated[
        DataFormat,
        Meta(
            description="What clients and the API may publish: json, json_object, binary (also nothing at "
            "all). Empty: anything but nothing."
        ),
    ] = ""
    max_length: Annotated[int, Meta(ge=1, le=65536, description="Bytes of the name of a channel.")] = 255
    private_prefix: Annotated[
        str,
        Meta(
            max_length=16,
            description="Channels that begin with it need a subscription token. Empty: there are none.",
        ),
    ] = "$"
    namespace_boundary: Annotated[
        str,
        Meta(
            max_length=16, description="Ends the namespace in the name of a channel. Empty: there are none."
        ),
    ] = ":"
    user_boundary: Annotated[
        str,
        Meta(max_length=16, description="Begins the users of a user-limited channel. Empty: there are none."),
    ] = "#"
    user_separator: Annotated[
        str,
        Meta(max_length=16, description="Between the users of a user-limited channel. Empty: one user only."),
    ] = ","
