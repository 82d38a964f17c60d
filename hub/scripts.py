"""The Lua scripts of ``hub/lua``: read once, sent by their hash, sent whole when Redis does not know it."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from spread.hub.errors import ReplyError
from spread.hub.link import CommandProtocol

__all__ = ["run", "run_script", "script"]


@cache
def script(name: str) -> tuple[bytes, bytes]:
    """``hub/lua/NAME.lua``: its source, and the hash by which EVALSHA knows it."""
    source = files("spread.hub.lua").joinpath(f"{name}.lua").read_bytes()
    return source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()


async def run_script(
    connection: CommandProtocol,
    name: str,
    keys: list[bytes],
    arguments: list[bytes | int],
    *,
    follow: bool = True,
) -> Any:
    """Run ``hub/lua/NAME.lua``; gives its reply.

    :param follow: in a cluster, go where the keys are served; else that they are elsewhere is an error.
    :raises ReplyError: the script, or Redis, failed.
    :raises LinkLost: the outcome is unknown.
    """
    source, digest = script(name)
    command = (len(keys), *keys, *arguments)
    try:
        return await _run(connection, follow, keys[0], b"EVALSHA", digest, *command)
    except ReplyError as error:
        if error.code != "NOSCRIPT":
            raise
    return await _run(connection, follow, keys[0], b"EVAL", source, *command)


async def run(connection: CommandProtocol, key: bytes, *command: bytes | str | int) -> Any:
    """Run a command on a key, in a cluster wherever it is served.

    :raises ReplyError: Redis answered with an error.
    :raises LinkLost: the outcome is unknown.
    :raises HubUnavailable: nobody serves the key.
    """
    return await _run(connection, True, key, *command)


async def _run(connection: CommandProtocol, follow: bool, key: bytes, *command: bytes | str | int) -> Any:
    if connection.redirects is None or not follow:
        return await connection.execute_command(*command)
    return await connection.redirects.run(connection, key, command)
