"""``spread reload``: the app on all shards is updated, while everybody stays connected.

One shard is asked, at its ops port, and asks the others; this shows what it tells, line by line.
"""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Iterator

import click
import msgspec

__all__ = ["reload"]

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 30.0
"""A shard that updates all says every few seconds that it is still at it."""
LINE_MAX_BYTES = 1 << 20

_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\s/@\[\]]+)):([0-9]{1,5})")


class _Failed(Exception):
    """It could not be done; the text says why."""


class _Told(msgspec.Struct):
    """A line: what became of one shard, or, with ``done``, the end."""

    ok: bool = False
    shard: int | None = None
    app: str = ""
    version: str = ""
    before: str = ""
    seconds: float = 0.0
    error: str = ""
    was_asked: bool = True
    done: bool | None = None


def _address(_context: click.Context, _param: click.Parameter, value: str) -> tuple[str, int]:
    found = _ADDRESS.fullmatch(value)
    if found is None or not 0 < int(found[3]) < 65536:
        raise click.BadParameter(f"{value!r} is not HOST:PORT.")
    return found[1] or found[2], int(found[3])


@click.command()
@click.option(
    "--ops",
    default="127.0.0.1:8100",
    show_default=True,
    envvar="SPREAD_OPS",
    metavar="HOST:PORT",
    callback=_address,
    help="The ops port of any shard.  [env: SPREAD_OPS]",
)
@click.option("--one", is_flag=True, help="Only the shard that is asked, not all.")
def reload(ops: tuple[str, int], one: bool) -> int:
    """Load the app anew on all shards, one after the other.

    Each shard imports the new code, constructs the app and asks it check(); only then it takes over, with the
    state of the old one, and nobody is disconnected. Whatever fails on a shard, its old code runs on, and the
    shards after it are left as they are.

    \b
    Examples:
      spread reload                         all shards of the cluster
      spread reload --ops 10.0.0.7:8100     all, asked for at a shard elsewhere
      spread reload --one                   one of them first

    A line for each shard that runs the new code goes to standard output; what refused, with its traceback,
    and which shards were left as they are, to standard error. Mend it and reload again: all are asked anew.

    Exit codes: 0 when all run the new code; 1 when one refused, or it is not known; 2 for wrong usage.
    """
    place = f"{ops[0]}:{ops[1]}"
    shards: list[_Told] = []
    try:
        for told in _asked(ops, "/reload" if one else "/reload?all=1"):
            _show(told)
            if told.done is not None or one:
                _sum_up(shards)
                return 0 if told.done or told.ok else 1
            shards.append(told)
        raise _Failed("the answer broke off; what the shards run now is not known")
    except _Failed as error:
        click.echo(f"spread: error: {place}: {error}", err=True)
    except (OSError, http.client.HTTPException) as error:
        what = str(error) or type(error).__name__
        click.echo(f"spread: error: {place}: {what}; give a shard's ops port with --ops", err=True)
    except KeyboardInterrupt:
        click.echo("spread: interrupted; the shards that were not named stay as they are", err=True)
    return 1


def _asked(ops: tuple[str, int], path: str) -> Iterator[_Told]:
    """What the shard tells, as it tells it."""
    connection = http.client.HTTPConnection(*ops, timeout=CONNECT_SECONDS)
    connection.connect()
    try:
        # An update of one takes as long as the shard lets it, and nothing is said meanwhile.
        connection.sock.settimeout(SILENCE_SECONDS if "?" in path else None)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.request("POST", path)
        answer = connection.getresponse()
        if answer.status not in (200, 409):
            hint = ": it runs a release that cannot reload, or is no ops port" if answer.status == 404 else ""
            raise _Failed(f"it answers {answer.status} {answer.reason}{hint}")
        while line := answer.readline(LINE_MAX_BYTES):
            if not line.isspace():
                yield _read(line)
    except TimeoutError:
        raise _Failed("it says nothing any more; what the shards run now is not known") from None
    finally:
        connection.close()


def _read(line: bytes) -> _Told:
    try:
        return msgspec.json.decode(line, type=_Told)
    except msgspec.DecodeError:
        raise _Failed("its answer is none of a shard") from None


def _sum_up(shards: list[_Told]) -> None:
    """After a failure that leaves several versions: what runs where, in a line."""
    new = [told.shard for told in shards if told.ok and told.shard is not None]
    old = [told.shard for told in shards if not told.ok and told.shard is not None]
    if new and old:
        click.echo(
            f"spread: of the shards, {_several(new)} run the new code, {_several(old)} do not; mend it, or "
            "put the old sources back, and reload again",
            err=True,
        )


def _several(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _show(told: _Told) -> None:
    if told.done is not None:
        return
    who = "this shard" if told.shard is None else f"shard {told.shard}"
    if told.ok:
        change = "the same version as before" if told.version == told.before else f"before: {told.before}"
        click.echo(_harmless(f"{who}: {told.app} {told.version} ({change}), {told.seconds:.2f} s"))
        return
    runs = f"{told.app} {told.version} runs on" if told.app else ""
    if not told.was_asked:
        click.echo(_harmless(f"spread: {who}: {told.error}; {runs}"), err=True)
    elif told.shard is None and not told.app:
        click.echo(_harmless(f"spread: error: {told.error}"), err=True)
    elif "\n" in told.error:
        click.echo(_harmless(f"spread: error: {who} refuses; {runs}\n{told.error}"), err=True)
    else:
        click.echo(_harmless(f"spread: error: {who}: {told.error}{f'; {runs}' if runs else ''}"), err=True)


def _harmless(text: str) -> str:
    """Without what could give a terminal commands."""
    return "".join(each if each == "\n" or each.isprintable() else "�" for each in text)
