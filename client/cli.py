"""The ``spread`` command.

Exit codes: 0 done, 1 it could not be done, 2 it was asked for in a wrong way; then one line on standard
error says what is wrong.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import unicodedata
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import click

if TYPE_CHECKING:
    from spread.client.chat import ChatSettings

__all__ = ["main", "spread"]

CONNECT_SECONDS = 10.0
NAME_MAX_BYTES = 255
HELLO_MIN_SECONDS, HELLO_MAX_SECONDS = 0.01, 86400.0

Param = click.Parameter


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="spread-node", prog_name="spread", message="%(prog)s %(version)s")
@click.pass_context
def spread(context: click.Context) -> None:
    """Clients of Spread, the real-time broadcast server.

    \b
    Start a server and talk over it, in three terminals:
      spread-node --shard 0
      spread chat alice
      spread chat bob

    "spread COMMAND --help" tells more about a command.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _checked_name(_context: click.Context, _param: Param, value: str) -> str:
    """A name or channel that can stand in a line of the protocol and cannot be taken for a command."""
    if value and not value.strip():
        raise click.BadParameter("it is blank.")
    if any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in value):
        raise click.BadParameter("it holds a control character, or is not UTF-8.")
    if value != value.strip() or value.startswith("/"):
        raise click.BadParameter("it begins with '/' or a space, or ends in a space.")
    if len(value.encode()) > NAME_MAX_BYTES:
        raise click.BadParameter(f"it is longer than {NAME_MAX_BYTES} bytes.")
    return value


def _checked_seconds(_context: click.Context, _param: Param, value: float | None) -> float | None:
    # Not click.FloatRange: it lets nan pass.
    if value is None or (math.isfinite(value) and HELLO_MIN_SECONDS <= value <= HELLO_MAX_SECONDS):
        return value
    raise click.BadParameter(f"{value:g} is not from {HELLO_MIN_SECONDS:g} to {HELLO_MAX_SECONDS:g} seconds.")


def _not_empty(context: click.Context, param: Param, value: str) -> str:
    if not value:
        raise click.BadParameter("it is empty.")
    return _checked_name(context, param, value)


@spread.command()
@click.argument("name", callback=_not_empty)
@click.option("--host", default="127.0.0.1", show_default=True, callback=_not_empty, help="Name or address.")
@click.option("--port", default=8007, show_default=True, type=click.IntRange(1, 65535), help="TCP port.")
@click.option("--channel", default="", metavar="CHANNEL", callback=_checked_name, help="Join this channel.")
@click.option(
    "--hello",
    type=float,
    metavar="SECONDS",
    callback=_checked_seconds,
    help='Say "hello, I\'m NAME" and the time, on connecting and then every SECONDS.',
)
@click.option("--stay", is_flag=True, help="Listen on after the end of standard input.")
@click.option("--once", is_flag=True, help="Do not connect again: exit with 1 when there is no connection.")
def chat(name: str, host: str, port: int, channel: str, hello: float | None, stay: bool, once: bool) -> int:
    """Talk in a channel as NAME, over the text protocol.

    A line of standard input is sent as "NAME: line". What others say goes to standard output, what
    happens to the connection to standard error.

    \b
    Typed as a whole line, these are commands:
      /join CHANNEL   go to another channel
      close           end the connection, and the program

    \b
    Examples:
      spread chat alice                          talk; Ctrl-D or Ctrl-C ends
      spread chat bob --channel game-7           in a channel other than the lobby
      echo "server is back" | spread chat ops    say one thing, and leave
      spread chat log --stay </dev/null >log     write down what is said
      spread chat bot --hello 5                  say hello every five seconds

    When the connection is lost it is made again, and the channel joined again. Lines typed meanwhile
    are sent then: up to 1000 lines or 1 MiB; above that, the oldest is not sent, and you are told. A
    pipe or file is not read while there is no connection. A line sent just before a connection broke
    may be lost. A line above 64 KiB is not sent.

    To a pipe or file, what others say is written byte for byte. On a terminal, control characters are
    shown as ^[ or <9b>, so that nobody can send your terminal commands. While standard output takes
    nothing (a pipe that nobody reads), the program waits.

    Exit codes: 0 at the end of input, on close or Ctrl-C, or when standard output is no longer read;
    1 when what was sent last may be lost, or with --once no connection could be made or kept; 2 for
    wrong usage.
    """
    from spread.client.chat import ChatSettings

    bracketed = f"[{host}]" if ":" in host else host
    settings = ChatSettings(
        name=name,
        address=f"{bracketed}:{port}",
        channel=channel,
        hello_seconds=hello,
        once=once,
        stay=stay,
    )
    return _run_chat(host, port, settings)


def _run_chat(host: str, port: int, settings: ChatSettings) -> int:
    """Run the reactor until the chat ends; gives the exit code."""
    from twisted.internet import reactor as global_reactor
    from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
    from twisted.internet.posixbase import PosixReactorBase

    from spread.client.chat import ChatClient
    from spread.client.terminal import Screen, StdinReader

    reactor = cast(PosixReactorBase, global_reactor)
    exit_code = 0
    stopping = False

    def ended(code: int) -> None:
        nonlocal exit_code
        exit_code = code
        if not stopping:
            reactor.stop()

    def before_shutdown() -> object:
        nonlocal stopping
        stopping = True
        # A name that is being looked up can hold up the stop; the next Ctrl-C does not wait for it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        return client.stop()

    with open(1, "wb", buffering=0, closefd=False) as out, open(2, "wb", buffering=0, closefd=False) as err:
        screen = Screen(
            out,
            err,
            out_is_terminal=os.isatty(1),
            err_is_terminal=os.isatty(2),
            encoding=sys.stdout.encoding if sys.stdout is not None else "utf-8",
        )
        client = ChatClient(
            reactor,
            partial(connectProtocol, HostnameEndpoint(reactor, host, port, CONNECT_SECONDS)),
            screen,
            StdinReader(0, reactor.callFromThread, is_terminal=os.isatty(0)),
            settings,
        )
        client.done.addCallback(ended)
        reactor.addSystemEventTrigger("before", "shutdown", before_shutdown)
        reactor.callWhenRunning(client.start)
        reactor.run()
    return exit_code


def _open_standard_descriptors() -> None:
    """Give 0, 1 and 2 a file where the caller closed them; a socket would else get the number."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``spread`` command; gives the exit code."""
    _open_standard_descriptors()
    try:
        result: object = spread.main(args=arguments, prog_name="spread", standalone_mode=False)
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        path = context.command_path if context is not None else "spread"
        message = " ".join(error.format_message().split())
        click.echo(f"spread: error: {message} (see: {path} --help)", err=True)
        return 2
    except (KeyboardInterrupt, click.Abort):  # before the reactor took over
        return 0
    return result if isinstance(result, int) else 0
