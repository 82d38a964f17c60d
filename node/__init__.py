"""One shard: sockets, sessions and channels of one worker process.

For those who write an app, everything they need is here: ``from spread.node import App, Refuse, rpc``.

    App                                       what you subclass; begin with ``help(spread.node.App)``
    rpc, remote, every                        decorators of its methods
    Client                                    a connection, as hooks get it
    Identity, Subscribing, DROP               what hooks answer
    Refuse, Disconnect, RemoteError           what they raise, and what calls fail with
    Page, Published, Present                  what ``App.history`` and ``App.presence`` give
    Owned, owns, command, Member              stateful channels
    Tables                                    what a game is balanced with

Tests of apps use ``spread.node.testing``; docs/apps.md has a tutorial.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "spread.node":
    raise ImportError(
        f"this package is spread.node; it was imported as {__name__}, which would make a second copy of it"
    )

if TYPE_CHECKING:
    from spread.node.app.app import App
    from spread.node.app.client import Client
    from spread.node.app.marks import every, remote, rpc
    from spread.node.app.values import (
        DROP,
        Disconnect,
        Identity,
        Page,
        Present,
        Published,
        Refuse,
        RemoteError,
        Subscribing,
    )
    from spread.node.owners.owned import Member, Owned, command, owns
    from spread.node.tables import Tables

__all__ = [
    "DROP",
    "App",
    "Client",
    "Disconnect",
    "Identity",
    "Member",
    "Owned",
    "Page",
    "Present",
    "Published",
    "Refuse",
    "RemoteError",
    "Subscribing",
    "Tables",
    "command",
    "every",
    "owns",
    "remote",
    "rpc",
]

_MODULES = {
    "app.app": ("App",),
    "app.client": ("Client",),
    "app.marks": ("every", "remote", "rpc"),
    "app.values": (
        *("DROP", "Disconnect", "Identity", "Page", "Present", "Published", "Refuse", "RemoteError"),
        "Subscribing",
    ),
    "owners.owned": ("Member", "Owned", "command", "owns"),
    "tables": ("Tables",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Only when asked for: who wants a codec, or the client, loads no app and no Twisted.
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
