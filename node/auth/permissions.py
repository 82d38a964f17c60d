"""Who may do what in a channel (sections 5, 7 and 12 of the protocol). Decisions only: no Twisted, no I/O.

A channel's options say what clients may do, once for those with a user, once for anonymous ones, and once for
whoever is subscribed. A subscription token stands above all of that, and is not the matter here.
"""

from __future__ import annotations

from spread.node.namespaces import ChannelOptions

__all__ = ["may_publish", "may_read_history", "may_see_presence", "may_subscribe", "may_use_text"]


def may_subscribe(options: ChannelOptions, user: str, limited_to: tuple[str, ...] | None) -> bool:
    """Without a token.

    :param limited_to: the users named in the channel's name, if it names any.
    """
    if limited_to is not None:
        return options.allow_user_limited_channels and bool(user) and user in limited_to
    return options.allow_subscribe_for_client and (bool(user) or options.allow_subscribe_for_anonymous)


def may_publish(options: ChannelOptions, user: str, is_subscribed: bool) -> bool:
    """As a client; the server API always may."""
    return (options.allow_publish_for_client and (bool(user) or options.allow_publish_for_anonymous)) or (
        options.allow_publish_for_subscriber and is_subscribed
    )


def may_see_presence(options: ChannelOptions, user: str, is_subscribed: bool) -> bool:
    """Who is there, and how many, and joins and leaves."""
    return (options.allow_presence_for_client and (bool(user) or options.allow_presence_for_anonymous)) or (
        options.allow_presence_for_subscriber and is_subscribed
    )


def may_read_history(options: ChannelOptions, user: str, is_subscribed: bool) -> bool:
    """What was published before."""
    return (options.allow_history_for_client and (bool(user) or options.allow_history_for_anonymous)) or (
        options.allow_history_for_subscriber and is_subscribed
    )


def may_use_text(options: ChannelOptions) -> bool:
    """Join, and talk, over the text protocol, which knows no users.

    Channels without a namespace are as open as the port. Those of a namespace have the rules of
    anonymous clients: joining is subscribing, and who joins talks.
    """
    return not options.namespace or (
        may_subscribe(options, "", None) and may_publish(options, "", is_subscribed=True)
    )
