"""The ``spread`` command.

Exit codes: 0 done, 1 it could not be done, 2 it was asked for in a wrong way; then one line on standard
error says what is wrong.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import time
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from spread.client.bench.command import bench
from spread.client.reload import reload
from spread.client.tables.command import tables

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.posixbase import PosixReactorBase

    from spread.client.chat import ChatSettings
    from spread.client.terminal import Screen

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

    \b
    Or over the Centrifuge protocol, which browsers and games speak too; without
    tokens, which is for a first try only:
      spread-node --shard 0 --client-insecure
      spread tail news
      spread publish news '{"text": "hello"}'

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

    def started(reactor: PosixReactorBase, screen: Screen) -> _Running:
        from twisted.internet.endpoints import HostnameEndpoint, connectProtocol

        from spread.client.chat import ChatClient
        from spread.client.terminal import StdinReader

        client = ChatClient(
            reactor,
            partial(connectProtocol, HostnameEndpoint(reactor, host, port, CONNECT_SECONDS)),
            screen,
            StdinReader(0, reactor.callFromThread, is_terminal=os.isatty(0)),
            settings,
        )
        return client.start, client.stop, client.done

    return _run(started)


_Running = tuple[Callable[[], None], "Callable[[], Deferred[None]]", "Deferred[int]"]
"""How to start, how to stop, and what fires with the exit code."""


def _run(started: Callable[[PosixReactorBase, Screen], _Running]) -> int:
    """Run the reactor until what was started is done; gives the exit code."""
    from twisted.internet import reactor as global_reactor
    from twisted.internet.posixbase import PosixReactorBase

    from spread.client.terminal import Screen

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
        return stop()

    with open(1, "wb", buffering=0, closefd=False) as out, open(2, "wb", buffering=0, closefd=False) as err:
        screen = Screen(
            out,
            err,
            out_is_terminal=os.isatty(1),
            err_is_terminal=os.isatty(2),
            encoding=sys.stdout.encoding if sys.stdout is not None else "utf-8",
        )
        start, stop, done = started(reactor, screen)
        done.addCallback(ended)
        reactor.addSystemEventTrigger("before", "shutdown", before_shutdown)
        reactor.callWhenRunning(start)
        reactor.run()
    return exit_code


# Over the Centrifuge protocol.

_url_option = click.option(
    "--url",
    default="ws://127.0.0.1:8000/connection/websocket",
    show_default=True,
    help="The server: ws://, wss://, or tcp://HOST:PORT.",
)
_token_option = click.option(
    "--token", default="", envvar="SPREAD_TOKEN", metavar="JWT", help="Connection token.  [env: SPREAD_TOKEN]"
)
_protobuf_option = click.option("--protobuf", is_flag=True, help="Speak Protobuf instead of JSON.")


def _client(reactor: Any, url: str, token: str, protobuf: bool) -> Any:
    """:raises click.BadParameter: the URL or the token makes no sense."""
    from spread.client.client import Client

    try:
        return Client(
            reactor, url, token=token, protocol="protobuf" if protobuf else "json", name="spread-cli"
        )
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="'--url' or '--token'") from None


def _channel(_context: click.Context, _param: Param, value: str) -> str:
    if not value:
        raise click.BadParameter("a channel is empty.")
    try:
        value.encode()
    except UnicodeError:
        raise click.BadParameter("a channel is not UTF-8.") from None
    return value


def _channels(context: click.Context, param: Param, value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_channel(context, param, each) for each in value))


def _position(_context: click.Context, _param: Param, value: str | None) -> tuple[str, int] | None:
    """``EPOCH:OFFSET``, or ``all``, which is offset 0 of whatever epoch."""
    if value is None:
        return None
    if value == "all":
        return "", 0
    epoch, colon, offset = value.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,20}", offset) or int(offset) >= 2**64:
        raise click.BadParameter(f"{value!r} is neither EPOCH:OFFSET nor all.")
    return epoch, int(offset)


@spread.command()
@click.argument("channels", nargs=-1, required=True, metavar="CHANNEL...", callback=_channels)
@_url_option
@_token_option
@_protobuf_option
@click.option(
    "--since",
    metavar="EPOCH:OFFSET|all",
    callback=_position,
    help="Begin after this position of the history, or with all there is.",
)
@click.option("--json", "as_json", is_flag=True, help="Show whole events, not only their data.")
@click.option("--join-leave", is_flag=True, help="Tell who comes and goes.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N publications.")
def tail(
    channels: tuple[str, ...],
    url: str,
    token: str,
    protobuf: bool,
    since: tuple[str, int] | None,
    as_json: bool,
    join_leave: bool,
    count: int | None,
) -> int:
    """Show what is published in channels.

    Each publication is one line of JSON on standard output: its data as it was published. What happens to
    the connection goes to standard error. Ctrl-C ends.

    \b
    Examples:
      spread tail news                          data, as it comes
      spread tail news sport --json             events: channel, offset, data, info, tags
      spread tail news --since all              what the server has kept, then what comes
      spread tail news --since qWvNaRtx:41      from where another run ended
      spread tail news --count 1                the next one
      spread tail lobby --join-leave            and who comes and goes
      spread tail news --json | jq .data.text   with other tools
      SPREAD_TOKEN=$(spread token --user me) spread tail '#me'

    When the connection is lost it is made again; what was published meanwhile is shown then, if the
    server keeps a history of the channel, and if not all of it can be had, you are told.

    Data that is no JSON (over Protobuf) is shown as a string, or as {"base64": ...} if it is no text. On
    a terminal, control characters are shown as ^[ or <9b>.

    Exit codes: 0 on Ctrl-C, after --count, or when standard output is no longer read; 1 when the server
    refuses, with its code and what to do; 2 for wrong usage.
    """
    if since is not None and since[0] and len(channels) > 1:
        raise click.UsageError("--since EPOCH:OFFSET is a position of one channel; several take --since all.")

    def started(reactor: PosixReactorBase, screen: Screen) -> _Running:
        from spread.client.tail import Tail, TailSettings, place_of
        from spread.node.wire.messages import StreamPosition

        settings = TailSettings(
            channels=channels,
            since=None if since is None else StreamPosition(since[1], since[0]),
            json=as_json,
            join_leave=join_leave,
            count=count,
            place=place_of(url),
        )
        shown = Tail(_client(reactor, url, token, protobuf), screen, settings)
        return shown.start, shown.stop, shown.done

    return _run(started)


@spread.command()
@click.argument("channel", callback=_channel)
@click.argument("data")
@_url_option
@_token_option
@_protobuf_option
@click.option("--api", metavar="URL", help="Publish through the server API at URL instead.")
@click.option(
    "--key", default="", envvar="SPREAD_API_KEY", metavar="KEY", help="Of the API.  [env: SPREAD_API_KEY]"
)
def publish(channel: str, data: str, url: str, token: str, protobuf: bool, api: str | None, key: str) -> int:
    """Publish DATA in CHANNEL, and wait until the server has taken it.

    DATA is published as it is if it is JSON, and else as a JSON string. "-" reads lines of standard
    input and publishes each, in order; empty ones are skipped.

    \b
    Examples:
      spread publish news '{"text": "hello"}'   an object
      spread publish news 42                    a number
      spread publish news hello                 the string "hello"
      ./measure | spread publish load -         a line at a time
      spread publish news hi --api http://127.0.0.1:8000/api --key KEY

    As a client (--url) you need the server's permission to publish in the channel; with the key of the
    server API (--api) you may publish in any.

    Exit codes: 0 when all was published; 1 when something was not, or may not have been: that ends it;
    2 for wrong usage.
    """
    from spread.client.payloads import payload_of

    first: list[bytes] = []
    if data != "-":
        try:
            first.append(payload_of(data.encode()))
        except UnicodeError:
            raise click.BadParameter("it is not UTF-8.", param_hint="'DATA'") from None
    if api is not None and not re.match(r"https?://[^/\s]", api):
        raise click.BadParameter(f"{api!r} begins with neither http:// nor https://.", param_hint="'--api'")
    if not key.isascii() or not key.isprintable():
        raise click.BadParameter("a key is printable ASCII.", param_hint="'--key'")

    def started(reactor: PosixReactorBase, screen: Screen) -> _Running:
        from spread.client.publishing import Publishing, Sink
        from spread.client.sinks import ApiSink, ClientSink
        from spread.client.terminal import StdinReader

        sink: Sink
        if api is not None:
            sink = ApiSink(reactor, api, key, channel)
        else:
            sink = ClientSink(_client(reactor, url, token, protobuf), channel)
        source = None if first else StdinReader(0, reactor.callFromThread, is_terminal=os.isatty(0))
        publishing = Publishing(sink, source, first, lambda text: screen.status(f"spread: error: {text}"))
        return publishing.start, publishing.stop, publishing.done

    return _run(started)


def _json_value(_context: click.Context, _param: Param, value: str | None) -> Any:
    if value is None:
        return None
    try:
        return json.loads(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no JSON.") from None


def _utf8(_context: click.Context, _param: Param, value: str) -> str:
    try:
        value.encode()
    except UnicodeError:
        raise click.BadParameter("it is not UTF-8.") from None
    return value


@spread.command(short_help="Make a token (JWT, HS256).")
@click.option("--user", required=True, callback=_utf8, metavar="USER", help='Whose token; "" is nobody\'s.')
@click.option("--channel", default="", callback=_utf8, help="A subscription token, for this channel.")
@click.option(
    "--ttl",
    default=3600,
    show_default=True,
    type=click.IntRange(0, 10**10),
    metavar="SECONDS",
    help="How long it is good for; 0 is for ever.",
)
@click.option("--info", callback=_json_value, metavar="JSON", help="What others are shown of the user.")
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Holds nothing but the secret.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The server's configuration, TOML or JSON: client.token.hmac_secret_key.",
)
def token(user: str, channel: str, ttl: int, info: Any, secret_file: Path | None, config: Path | None) -> int:
    """Make a token (JWT, HS256) for a connection, or for a subscription.

    The secret is that of the server, client.token.hmac_secret_key. It comes from --secret-file, else from
    --config, else from the environment variable SPREAD_CLIENT_TOKEN_HMAC_SECRET_KEY; not from the command
    line, where everybody on this machine could read it.

    \b
    Examples:
      spread token --user 17                                 a connection token, for an hour
      spread token --user 17 --config spread.toml            with the secret of the server's file
      spread token --user 17 --channel '$chat:7'             a subscription token
      spread token --user 17 --info '{"name": "Ann"}'        others see the name
      spread tail news --token "$(spread token --user 17)"   used at once

    Whoever has the token can connect as that user until it expires.
    """
    from spread.client.minting import SecretError, secret_from, signed_token

    try:
        secret = secret_from(os.environ, secret_file=secret_file, config=config)
    except SecretError as error:
        click.echo(f"spread: error: {error}", err=True)
        return 1
    issued_at = int(time.time())
    made = signed_token(secret, user=user, channel=channel, info=info, issued_at=issued_at, ttl_seconds=ttl)
    click.echo(made)
    return 0


spread.add_command(bench)
spread.add_command(reload)
spread.add_command(tables)


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
