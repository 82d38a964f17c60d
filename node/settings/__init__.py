"""Everything that can be set, with its unit, bounds and default. Values only: no Twisted, no I/O.

``node``, ``hub``, ``text`` and ``app`` are Spread's own sections. The others have the names, nesting and
defaults of a Centrifugo v6 configuration, so that a team can bring its own; fields that Spread adds to them
say so.

Each field is one setting. Its key in the configuration file is the way to it, ``client.token.issuer``; its
flag and environment variable are made from that by ``spread.node.config.flags`` (a few have shorter names,
given in its ``SHORT``). The description is what ``--help`` shows.
"""

from __future__ import annotations

from spread.node.settings.app import AppSettings
from spread.node.settings.channel import ChannelSettings, Namespace, NamespaceOptions
from spread.node.settings.client import (
    ClientSettings,
    PersonalChannel,
    SubscriptionTokenSettings,
    TokenSettings,
)
from spread.node.settings.kinds import Section
from spread.node.settings.shard import HubSettings, NodeSettings, TextSettings
from spread.node.settings.transports import (
    EmulationSettings,
    HttpApiSettings,
    HttpStreamSettings,
    SseSettings,
    WebSocketSettings,
)

__all__ = [
    "AppSettings",
    "ChannelSettings",
    "ClientSettings",
    "EmulationSettings",
    "HttpApiSettings",
    "HttpStreamSettings",
    "HubSettings",
    "Namespace",
    "NamespaceOptions",
    "NodeSettings",
    "PersonalChannel",
    "Settings",
    "SseSettings",
    "SubscriptionTokenSettings",
    "TextSettings",
    "TokenSettings",
    "WebSocketSettings",
]


class Settings(Section, frozen=True, kw_only=True):
    """All sections of the configuration."""

    node: NodeSettings = NodeSettings()
    hub: HubSettings = HubSettings()
    text: TextSettings = TextSettings()
    app: AppSettings = AppSettings()
    client: ClientSettings = ClientSettings()
    channel: ChannelSettings = ChannelSettings()
    http_api: HttpApiSettings = HttpApiSettings()
    websocket: WebSocketSettings = WebSocketSettings()
    http_stream: HttpStreamSettings = HttpStreamSettings()
    sse: SseSettings = SseSettings()
    emulation: EmulationSettings = EmulationSettings()
