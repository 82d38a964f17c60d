"""The ``spread-node`` command: reads the settings, runs a shard or a fleet, and gives an exit code.

    0  clean stop, or ``--check`` found nothing wrong
    1  the app cannot start, or something unforeseen; the traceback is told
    2  bad usage or configuration, a taken port and an unreadable file included
    3  the shard number is held by another live process
    4  the hub cannot be reached, or refuses

What goes wrong before the shard serves is one line on stderr. The global reactor is imported here and
nowhere else.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

import click
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from spread.hub.errors import HubError, HubMisconfigured, LeaseTaken
from spread.node.addresses import AutoShard, OneShard, ShardRange, parse_address, parse_shards
from spread.node.child import FLEET_LIFELINE
from spread.node.config import ConfigError, load
from spread.node.config.flags import SettingsCommand, example_toml, given, options
from spread.node.early import take_over
from spread.node.listen import CannotListen, bind, inherited, raise_file_limit
from spread.node.logs import start_logging
from spread.node.settings import Settings

__all__ = ["main"]

CLEAN, FAILED, USAGE, TAKEN, HUB = 0, 1, 2, 3, 4

FIRST_GENERATION = 0
"""Of the app that a shard starts with; updates count from 1."""

log = Logger("spread.node.cli")


class _Fault(Exception):
    """Ends the program with one line and an exit code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


@click.command(cls=SettingsCommand)
@click.option(
    "--config",
    "config_file",
    envvar="SPREAD_CONFIG",
    metavar="FILE",
    help="TOML or JSON file with any of the settings below, as section.key.  [SPREAD_CONFIG]",
)
@click.option(
    "--check",
    is_flag=True,
    envvar="SPREAD_CHECK",
    help="Validate everything, and start nothing; an application is imported and asked, too.",
)
@click.option(
    "--lenient-config",
    is_flag=True,
    envvar="SPREAD_LENIENT_CONFIG",
    help="Warn of what Spread does not have of a Centrifugo configuration, and pass over it; without this "
    "flag that is an error.  [SPREAD_LENIENT_CONFIG]",
)
@click.option("--print-config", is_flag=True, help="Print a configuration file with all defaults.")
@click.version_option(version("spread-node"), prog_name="spread-node")
@options
def command(
    config_file: str | None, check: bool, lenient_config: bool, print_config: bool, **parameters: object
) -> int:
    """Run a shard of a Spread cluster, or several.

    Shards meet in a hub (Redis, Valkey, or a private one that needs no set-up) and pass on what their
    clients say: whoever is in a channel hears it, whichever shard they are connected to.
    """
    if print_config:
        click.echo(example_toml(), nl=False)
        return CLEAN
    warn = _warn if lenient_config else None
    settings = load(file=config_file, environ=os.environ, flags=given(parameters), warn=warn)
    shards = parse_shards(settings.node.shard)

    from spread.node.reactor import install

    install()
    from twisted.internet import reactor

    from spread.node.hubs import check_hub

    try:
        is_fleet = isinstance(shards, ShardRange) and shards.first < shards.last
        hub = check_hub(reactor, settings.hub, is_fleet, os.environ)
    except HubMisconfigured as error:
        raise _Fault(USAGE, str(error)) from error
    tls = _tls(settings)
    tables = _tables(settings)
    app = _app(settings)
    if check:
        if app is not None:
            _look_at(settings, app, tables)
        runs = "" if app is None else f", app {settings.app.app} {app.version}"
        click.echo(f"ok: shard {settings.node.shard}, hub {hub}{runs}")
        return CLEAN
    if isinstance(shards, ShardRange):
        return _run_fleet(reactor, settings, range(shards.first, shards.last + 1))
    return _run_shard(reactor, settings, shards, tls, tables, app)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point of ``spread-node``."""
    try:
        code = command.main(arguments, prog_name="spread-node", standalone_mode=False)
    except click.exceptions.Abort:
        code = FAILED
    except click.ClickException as error:
        code = _complain(USAGE, error.format_message())
    except ConfigError as error:
        for each in (error, *error.more):
            code = _complain(USAGE, str(each))
    except CannotListen as error:
        code = _complain(USAGE, str(error))
    except _Fault as fault:
        code = _complain(fault.code, fault.text)
    sys.exit(code)


def _warn(text: str) -> None:
    line = " ".join(text.split())
    click.echo(f"spread-node: warning: {line}", err=True)


def _complain(code: int, text: str) -> int:
    line = " ".join(text.split())
    click.echo(f"spread-node: error: {line}", err=True)
    return code


# -- one shard ---------------------------------------------------------------------------------------------


def _run_shard(
    reactor: Any, settings: Settings, shards: OneShard | AutoShard, tls: Any, tables: Any, app: Any
) -> int:
    from spread.hub.process import this_process
    from spread.node.hubs import open_hub
    from spread.node.shard import Shard

    file_limit = raise_file_limit()
    try:
        sockets = inherited(os.environ)
    except ValueError as error:
        raise _Fault(USAGE, str(error)) from error
    is_inherited = bool(sockets)
    if not is_inherited:
        sockets = _bind_all(settings)
    identity = this_process(version("spread-node"))
    shard = Shard(
        reactor,
        settings,
        number=shards.number if isinstance(shards, OneShard) else None,
        identity=identity,
        opened=open_hub(
            reactor,
            settings.hub,
            identity.incarnation,
            os.environ,
            position_check_seconds=settings.client.channel_position_check_delay,
        ),
        sockets=sockets,
        is_inherited=is_inherited,
        file_limit=file_limit,
        tls=tls,
        tables=tables,
        app=app,
    )
    start_logging(settings.node.log_format, settings.node.log_level, sys.stderr, shard=lambda: shard.number)
    _warn_of_public_ops(settings)

    async def serve() -> int:
        stop: Deferred[None] = Deferred()

        def ask_to_stop() -> None:
            if not stop.called:
                stop.callback(None)
                starting.cancel()

        early: list[bool] = []
        is_ready = False

        def reload() -> None:
            if not is_ready:
                early.append(True)  # the app was imported before that, and may have changed since
                return
            # Two lines, so that what is said of one update is not taken for what is said of the next.
            _say(f"reloading shard={shard.number}")
            shard.reload().addCallback(_say)

        starting = Deferred.fromCoroutine(shard.start(ask_to_stop))
        is_child = _watch_lifeline(reactor, os.environ, ask_to_stop)
        # Whoever signals a whole process group (a terminal, systemd) reaches the parent as well, which then
        # sends SIGTERM itself: a second one is no impatience, and the parent kills who takes too long.
        _on_signals(
            reactor,
            ask_to_stop,
            tls.reload if tls else lambda: log.info("SIGHUP: this shard has nothing to read again"),
            is_patient=is_child,
            reload=reload,
        )
        try:
            ready = await starting
        except Exception as error:
            if stop.called:  # while it waited for its hub
                _exit_after(settings.node.stop_seconds)
            await shard.stop()
            if stop.called:
                return CLEAN
            raise _as_fault(error) from error
        # What was made so far stays: a full collection need not look at it, which took 15 ms.
        gc.collect()
        gc.freeze()
        print(ready, flush=True)
        is_ready = True
        if early:
            reload()
        await stop
        _exit_after(settings.node.stop_seconds)
        await shard.stop()
        if shard.lost_to is not None:
            holder = shard.lost_to
            raise _Fault(TAKEN, str(LeaseTaken(holder.shard, holder.identity.host, holder.identity.pid)))
        return CLEAN

    return _run(reactor, serve)


_SERVICES = {"text": ("text", "listen"), "http": ("node", "http"), "json": ("node", "json")}
"""Where the settings have the addresses of what clients connect to."""


def _at(settings: Settings, key: tuple[str, str]) -> str:
    address: str = getattr(getattr(settings, key[0]), key[1])
    return address


def _tls(settings: Settings) -> Any:
    """What the public ports show; ``None`` without a certificate."""
    if not settings.node.tls_cert:
        return None
    from spread.node.tls import BadCertificate, TlsContext

    try:
        return TlsContext(settings.node.tls_cert, settings.node.tls_key)
    except BadCertificate as error:
        raise _Fault(USAGE, str(error)) from error


def _tables(settings: Settings) -> Any:
    """What ``app.tables`` holds; ``None`` if it is not set."""
    if not settings.app.tables:
        return None
    from spread.node.tables import Tables, TablesBroken

    try:
        return Tables(settings.app.tables, settings.app.tables_max_bytes)
    except TablesBroken as error:
        raise _Fault(USAGE, f"app.tables: {error}") from error


def _app(settings: Settings) -> Any:
    """What ``app.app`` names, imported; ``None`` if it is not set."""
    if not settings.app.app:
        return None
    from spread.node.app.load import LoadError, explain, load, own_name

    try:
        return load(settings.app.app, FIRST_GENERATION)
    except LoadError as error:
        raise _Fault(USAGE, f"app.app: {error}") from error
    except Exception as error:
        click.echo(explain(error), err=True)
        raise _Fault(
            USAGE, f"app.app: the import of {settings.app.app} fails: {own_name(repr(error))}"
        ) from error


def _look_at(settings: Settings, app: Any, tables: Any) -> None:
    """With ``--check``: the app can be made, and says that it may run."""
    from spread.node.app.load import explain, own_name
    from spread.node.app.making import look_at

    try:
        for suspicion in look_at(app, tables):
            click.echo(f"warning: {suspicion}", err=True)
    except Exception as error:
        click.echo(explain(error), err=True)
        raise _Fault(USAGE, f"app.app: {settings.app.app} must not run: {own_name(repr(error))}") from error


def _bind_all(settings: Settings) -> dict[str, Any]:
    sockets = {}
    for service, key in _SERVICES.items():
        address = parse_address(_at(settings, key))
        if address is not None:
            sockets[service] = bind(address.host, address.port)
    return sockets


def _as_fault(error: Exception) -> Exception:
    """Which exit code an error of the start stands for; the error itself if it was not foreseen."""
    if isinstance(error, LeaseTaken):
        return _Fault(TAKEN, str(error))
    if isinstance(error, HubMisconfigured | CannotListen):
        return _Fault(USAGE, str(error))
    if isinstance(error, HubError):
        return _Fault(HUB, str(error))
    from spread.node.app.load import AppFails, explain, own_name

    if isinstance(error, AppFails) and error.__cause__ is not None:
        click.echo(explain(error.__cause__), err=True)
        return _Fault(FAILED, f"app.app: {error}: {own_name(repr(error.__cause__))}")
    return error


def _warn_of_public_ops(settings: Settings) -> None:
    address = parse_address(settings.node.ops)
    if address is not None and not address.is_loopback:
        log.warn(
            "the ops port {address} can be reached from outside; see to it that only you can", address=address
        )


def _say(line: str) -> None:
    """Tell on standard output what was asked for by a signal: the parent of a fleet waits for it."""
    try:
        print(line, flush=True)
    except OSError as error:
        log.warn("nobody hears {line}: {error}", line=line, error=error)


# -- several shards ----------------------------------------------------------------------------------------


def _run_fleet(reactor: Any, settings: Settings, numbers: range) -> int:
    from spread.node.app.reload import longest_seconds
    from spread.node.fleet import Fleet
    from spread.node.hubs import embedded_server

    raise_file_limit()
    start_logging(settings.node.log_format, settings.node.log_level, sys.stderr)
    _warn_of_public_ops(settings)
    sockets: dict[int, dict[str, Any]] = {}
    for number in numbers:
        sockets[number] = _bind_all(_at_ports_of(sockets, settings))
    # A user of the hub as well, so that it stays while the only shard of a fleet is replaced.
    server = embedded_server(settings.hub, os.environ)
    if server is not None:
        try:
            server.enter()
        except HubError as error:
            raise _as_fault(error) from error
    fleet = Fleet(
        reactor,
        shards=numbers,
        command=[sys.executable, "-P", "-m", "spread.node", *sys.argv[1:]],
        sockets=sockets,
        environ=os.environ,
        out=_print_line,
        stop_seconds=settings.node.stop_seconds,
        # The embedded server may take 30 s to load what it had kept.
        start_seconds=settings.hub.start_seconds + 30,
        check=[sys.executable, "-P", "-m", "spread.node", *sys.argv[1:], "--check"],
        reload_seconds=longest_seconds(settings.app.load_seconds),
    )

    async def serve() -> int:
        _on_signals(reactor, fleet.stop, fleet.roll, again=fleet.stop, reload=fleet.reload)
        code: int = await fleet.start()
        return code

    try:
        return _run(reactor, serve)
    finally:
        if server is not None:
            try:
                server.leave()
            except HubError as error:
                log.warn("leaving the hub: {error}", error=error)


def _at_ports_of(sockets: Mapping[int, Mapping[str, Any]], settings: Settings) -> Settings:
    """The settings with the ports the first shard has got: they differ where any free port was asked for."""
    if not sockets:
        return settings
    first = next(iter(sockets.values()))
    import msgspec

    for service, (section, field) in _SERVICES.items():
        if service in first:
            host = _at(settings, (section, field)).rpartition(":")[0]
            at = {field: f"{host}:{first[service].getsockname()[1]}"}
            changed = {section: msgspec.structs.replace(getattr(settings, section), **at)}
            settings = msgspec.structs.replace(settings, **changed)
    return settings


def _print_line(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


# -- the reactor -------------------------------------------------------------------------------------------


def _run(reactor: Any, serve: Callable[[], Any]) -> int:
    """Run the reactor until ``serve`` is done; its exit code."""
    codes: list[int] = []
    faults: list[BaseException] = []

    def begin() -> None:
        serving = Deferred.fromCoroutine(serve())
        serving.addCallbacks(codes.append, lambda failure: faults.append(failure.value))
        serving.addBoth(lambda _: reactor.stop() if reactor.running else None)

    reactor.callWhenRunning(begin)
    reactor.run()
    if faults:
        if isinstance(faults[0], _Fault):
            raise faults[0]
        log.failure("unforeseen", _failure_of(faults[0]))
        return _complain(FAILED, f"{type(faults[0]).__name__}: {faults[0]}")
    return codes[0] if codes else FAILED


def _exit_after(seconds: float) -> None:
    """End the process when a clean stop takes longer than it may, whatever it is that hangs.

    The stop keeps to its time by itself; what it cannot cut short is a thread in a system call, such as one
    that waits for the embedded server to write its data to a slow disk.
    """
    timer = threading.Timer(seconds, os._exit, [CLEAN])
    timer.daemon = True
    timer.start()


def _failure_of(error: BaseException) -> Any:
    from twisted.python.failure import Failure

    return Failure(error)


def _on_signals(
    reactor: Any,
    stop: Callable[[], None],
    hang_up: Callable[[], None],
    again: Callable[[], None] | None = None,
    is_patient: bool = False,
    reload: Callable[[], object] = lambda: None,
) -> None:
    """SIGTERM and SIGINT ask to stop; the second of them ends the process at once. SIGHUP and SIGUSR1 do what
    they are given here.

    :param again: called at the second signal instead; the third ends the process.
    :param is_patient: SIGINT is left to the parent, and nothing but ``stop`` ends the process.

    Set after Twisted has set its own, so that the first signal is a request and not ``reactor.stop``.
    """
    asked: list[int] = []

    def stop_or_exit(number: int, _: object) -> None:
        asked.append(number)
        if len(asked) == 1:
            reactor.callFromThread(stop)
        elif is_patient:
            pass
        elif again is not None and len(asked) == 2:
            reactor.callFromThread(again)
        else:
            os._exit(128 + number)

    signal.signal(signal.SIGTERM, stop_or_exit)
    signal.signal(signal.SIGINT, signal.SIG_IGN if is_patient else stop_or_exit)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda number, frame: reactor.callFromThread(hang_up))
    take_over(lambda: reactor.callFromThread(reload))


def _watch_lifeline(reactor: Any, environ: Mapping[str, str], gone: Callable[[], None]) -> bool:
    """Notice that the parent of the fleet is gone: its end of a pipe is closed then, however it died.

    ``False`` if this shard has no parent.
    """
    descriptor = environ.get(FLEET_LIFELINE, "")
    if not descriptor.isdigit():
        return False

    from twisted.internet.abstract import FileDescriptor
    from twisted.internet.error import ConnectionDone
    from twisted.internet.main import CONNECTION_DONE

    class Lifeline(FileDescriptor):
        def fileno(self) -> int:
            return int(descriptor)

        def doRead(self) -> Any:
            try:
                return None if os.read(int(descriptor), 4096) else CONNECTION_DONE
            except BlockingIOError:
                return None

        def connectionLost(self, reason: Any) -> None:
            # The end of a pipe is a hang-up to epoll, and comes here without any doRead; so does the end
            # of the reactor, as another kind of loss.
            if reason.check(ConnectionDone):
                log.warn("the parent of this shard is gone; stopping")
                gone()

    reactor.addReader(Lifeline(reactor))
    return True
