"""Listening sockets: made, started, stopped, and handed from a parent process to its children.

Three steps, because they happen at three moments:

1.  ``bind`` makes a socket and takes its port. A port that cannot be had is found out here, early.
2.  ``start_listening`` lets clients in. A socket with SO_REUSEPORT gets its share of the connections
    from the moment it listens, so a shard does this last, when it holds its lease.
3.  ``stop_listening`` lets nobody else in, without resetting those who already wait in the queue.

A socket is only ever *closed* by a process, never shut down: ``shutdown(2)`` would stop it for every
other process that holds a copy, and a fleet lives on such copies (``spread.node.fleet``). For that
reason every port here is adopted by the reactor, and none is made by ``listenTCP``.

How a child is told of its sockets: it inherits them as file descriptors, and the environment variable
``SPREAD_FLEET_SOCKETS=text=3,http=4`` says which is which.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IReadDescriptor

from spread.node.addresses import Address

__all__ = [
    "FLEET_SOCKETS",
    "CannotListen",
    "bind",
    "inherited",
    "pass_on",
    "raise_file_limit",
    "start_listening",
    "stop_listening",
]

FLEET_SOCKETS = "SPREAD_FLEET_SOCKETS"
"""The environment variable that names the inherited sockets."""

BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel caps it at ``net.core.somaxconn``."""

FILE_LIMIT = 1 << 20
"""Open files asked for where there is no limit; Linux refuses more than ``fs.nr_open``, by default this."""

_FILE_LIMIT_OF_MACOS = 10240
"""What macOS grants when it says that there is no limit."""

_FIRST_INHERITED_FD = 3

_ACCEPT_ROUNDS = 32
"""Twisted accepts at most some connections a round, 20 more in each round that was full. From 1 on, 32
rounds are 9 952 connections: above any backlog, and still an end when clients come without pause."""

_INHERITED_OPTIONS = (
    # A message is written whole and at once; waiting for more to send with it only delays it.
    ("IPPROTO_TCP", "TCP_NODELAY", 1),
    # A client whose machine vanished is noticed after 60 + 4 * 15 seconds.
    ("SOL_SOCKET", "SO_KEEPALIVE", 1),
    ("IPPROTO_TCP", "TCP_KEEPIDLE", 60),
    ("IPPROTO_TCP", "TCP_KEEPINTVL", 15),
    ("IPPROTO_TCP", "TCP_KEEPCNT", 4),
    # Without it the kernel takes 4 MB for a client that has stopped reading, and hides it for minutes.
    ("IPPROTO_TCP", "TCP_NOTSENT_LOWAT", 65536),
)
"""Set once on a listening socket: on Linux, every connection accepted from it has them from the start."""


class _SocketReactor(Protocol):
    """``IReactorSocket``, as far as it is called here."""

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any, /) -> IListeningPort: ...


class _Readable(Protocol):
    """``IReadDescriptor``."""

    def fileno(self) -> int: ...
    def doRead(self) -> object: ...


class CannotListen(Exception):
    """An address cannot be listened on; ``str`` is one sentence that says why and what to do.

    ``address`` is what was asked for, ``HOST:PORT``; ``reason`` is the sentence without it.
    """

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address = address
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot listen on {self.address}: {self.reason}"


def bind(host: str, port: int, *, shared: bool = True) -> socket.socket:
    """Take a TCP port of this machine. The socket does not listen yet, so it gets no connections.

    :param host: an IPv4 or IPv6 address, or a name, which is looked up, blocking. Of several addresses
        one is taken, an IPv4 address first, so that all shards of a machine take the same.
    :param port: 0 is any free port; ``getsockname`` tells which.
    :param shared: other sockets of this user may have the same port (SO_REUSEPORT); the kernel then
        spreads new connections over all that listen.
    :returns: a non-blocking socket that is closed on exec. The caller owns it.
    :raises CannotListen: the address cannot be had.
    """
    address = str(Address(host, port))
    family, where = _resolve(host, port, address)
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise CannotListen(address, _reason(error, port)) from error
    try:
        sock.setblocking(False)
        # Connections of the last process in TIME_WAIT must not keep the next one from its port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # An address means itself alone: 0.0.0.0 and :: can be had side by side, and a client has one
            # name, never ::ffff:192.0.2.1, under which the limits per address would count it a second time.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for level, option, value in _INHERITED_OPTIONS:
            if hasattr(socket, option):
                sock.setsockopt(getattr(socket, level), getattr(socket, option), value)
        sock.bind(where)
    except OSError as error:
        sock.close()
        raise CannotListen(address, _reason(error, port)) from error
    return sock


def start_listening(
    reactor: _SocketReactor, sock: socket.socket, factory: Any, backlog: int = BACKLOG
) -> IListeningPort:
    """Let clients in: from now on ``factory`` makes a protocol for each connection.

    :param sock: from ``bind`` or ``inherited``. It is taken over: the port has a copy of its own, and this
        one is closed, whatever happens. Copies in other processes are not touched, now or later.
    :param backlog: how many connections may wait to be accepted.
    :returns: the port; its ``getHost`` tells the real port number. End it with ``stop_listening``.
    :raises CannotListen: somebody else began to listen since the port was taken.
    """
    with sock:
        host, port = sock.getsockname()[:2]
        try:
            sock.listen(backlog)
        except OSError as error:
            raise CannotListen(str(Address(host, port)), _reason(error, port)) from error
        return reactor.adoptStreamPort(sock.fileno(), sock.family, factory)


def stop_listening(port: IListeningPort, *, inherited: bool) -> Deferred[None]:
    """Let nobody else in. Connections that were accepted are not touched. Call it once for a port.

    :param port: from ``start_listening``.
    :param inherited: the parent keeps the socket open. Connections that wait to be accepted are then left
        to the successor. If not, nobody else would ever accept them and closing the socket would reset
        them: they are accepted first, so that they can be told good-bye like all others. When this
        returns, the factory has made their protocols.
    :returns: fires when the socket is closed, some time after this call.
    """
    if not inherited and IReadDescriptor.providedBy(port):
        _accept_waiting(cast(_Readable, port))
    stopping: Deferred[object] = maybeDeferred(cast(Any, port).stopListening)
    return stopping.addCallback(lambda _: None)


def raise_file_limit() -> int:
    """Let this process open as many files as it may; a client is an open file. Never raises an error.

    :returns: how many it may open now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILE_LIMIT if hard == resource.RLIM_INFINITY else min(hard, FILE_LIMIT)
    for limit in (most, _FILE_LIMIT_OF_MACOS):
        if soft == resource.RLIM_INFINITY or soft >= limit:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (OSError, ValueError):
            # The kernel has a limit of its own, below what it says is allowed.
            continue
        soft = limit
    return FILE_LIMIT if soft == resource.RLIM_INFINITY else soft


def pass_on(sockets: Mapping[str, socket.socket]) -> tuple[dict[int, int], str]:
    """How a child process inherits ``sockets``.

    :param sockets: by the name of their service: lower-case letters.
    :returns: for ``spawnProcess``, which descriptor of the child is which of ours; and the value of
        ``SPREAD_FLEET_SOCKETS`` for the environment of the child.
    :raises ValueError: a name that cannot be written down.
    """
    descriptors: dict[int, int] = {}
    names: list[str] = []
    for fd, (name, sock) in enumerate(sockets.items(), _FIRST_INHERITED_FD):
        if not _is_name(name):
            raise ValueError(f"{name!r} cannot name a socket: lower-case letters only")
        descriptors[fd] = sock.fileno()
        names.append(f"{name}={fd}")
    return descriptors, ",".join(names)


def inherited(environ: Mapping[str, str]) -> dict[str, socket.socket]:
    """The sockets that this process inherited from its parent; none if it was not started by one.

    :param environ: the variable is taken out of it, where it can be: our own children inherit nothing.
    :returns: bound TCP sockets by the name of their service, non-blocking and closed on exec. The
        caller owns them.
    :raises ValueError: the variable does not describe such sockets. Nothing was closed.
    """
    text = environ.get(FLEET_SOCKETS, "")
    if isinstance(environ, MutableMapping):
        environ.pop(FLEET_SOCKETS, None)
    sockets: dict[str, socket.socket] = {}
    try:
        for entry in text.split(",") if text else ():
            name, _, fd = entry.partition("=")
            if not _is_name(name) or not (fd.isascii() and fd.isdecimal()):
                raise ValueError(f"{entry!r} is not NAME=DESCRIPTOR")
            if name in sockets or any(sock.fileno() == int(fd) for sock in sockets.values()):
                raise ValueError(f"{entry!r} repeats what was there before")
            sockets[name] = _adopted(int(fd))
    except ValueError as error:
        for sock in sockets.values():
            sock.detach()
        raise ValueError(f"{FLEET_SOCKETS}={text!r}: {error}") from error
    for sock in sockets.values():
        sock.set_inheritable(False)
        sock.setblocking(False)
    return sockets


def _adopted(fd: int) -> socket.socket:
    """Descriptor ``fd`` as a socket, if it is a TCP socket that has a port and no peer."""
    if fd < _FIRST_INHERITED_FD:
        raise ValueError(f"descriptor {fd} is a standard stream")
    try:
        sock = socket.socket(fileno=fd)
    except (OSError, OverflowError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise ValueError(f"descriptor {fd} is not an open socket: {why}") from error
    is_tcp = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
    if is_tcp and sock.getsockname()[1] and not _has_peer(sock):
        return sock
    sock.detach()
    raise ValueError(f"descriptor {fd} is not a TCP socket that could listen")


def _has_peer(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _is_name(name: str) -> bool:
    return name.isascii() and name.isalpha() and name.islower()


def _accept_waiting(port: _Readable) -> None:
    """Accept what waits in the queue of a listening socket."""
    poll = select.poll()
    poll.register(port.fileno(), select.POLLIN)
    for _ in range(_ACCEPT_ROUNDS):
        if not poll.poll(0):
            return
        port.doRead()


def _resolve(host: str, port: int, address: str) -> tuple[socket.AddressFamily, Any]:
    """The family and the socket address to bind to."""
    if not 0 <= port <= 65535:
        raise CannotListen(address, "ports run from 0 to 65535")
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except socket.gaierror as error:
        reason = f"the host {host!r} is not known here ({error.strerror}); write an address of this machine"
        raise CannotListen(address, reason) from error
    except UnicodeError as error:
        raise CannotListen(address, f"{host!r} is not the name of a host") from error
    family, _, _, _, where = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, where


def _reason(error: OSError, port: int) -> str:
    """One sentence about what the kernel said."""
    match error.errno:
        case errno.EADDRINUSE:
            return f"the port is taken by another program; `ss -ltnp 'sport = :{port}'` shows by which"
        case errno.EACCES | errno.EPERM if port:
            return (
                "that port is not allowed to this user; take one from 1024 on, "
                "or give the program CAP_NET_BIND_SERVICE"
            )
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address; `ip address` shows those it has"
        case errno.EAFNOSUPPORT:
            return "this machine does not speak that version of IP"
        case _:
            return error.strerror or str(error)
