"""Listening sockets, all of them real."""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, cast

import pytest
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from spread.node import listen
from spread.node.listen import CannotListen, bind, inherited, pass_on, start_listening, stop_listening

reactor = cast(Any, global_reactor)
LOOPBACK = "127.0.0.1"
HAS_IPV6 = os.path.exists("/proc/net/if_inet6")
ON_LINUX = sys.platform == "linux"


def listening(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def option(sock: socket.socket, level: int, name: str) -> int:
    return sock.getsockopt(level, getattr(socket, name))


# --- bind ---------------------------------------------------------------------------------------------


def test_a_bound_socket_has_a_port_and_does_not_listen() -> None:
    with bind(LOOPBACK, 0) as sock:
        assert sock.getsockname()[0] == LOOPBACK
        assert sock.getsockname()[1] > 0
        assert not listening(sock)
        assert sock.getblocking() is False
        assert sock.get_inheritable() is False
        assert option(sock, socket.SOL_SOCKET, "SO_REUSEADDR")


def test_a_connection_is_refused_until_the_socket_listens() -> None:
    with bind(LOOPBACK, 0) as sock, socket.socket() as client:
        assert client.connect_ex(sock.getsockname()) == errno.ECONNREFUSED


def test_shared_sockets_have_one_port() -> None:
    with bind(LOOPBACK, 0) as first, bind(LOOPBACK, first.getsockname()[1]) as second:
        assert first.getsockname() == second.getsockname()


def test_a_port_that_is_not_shared_is_taken() -> None:
    with bind(LOOPBACK, 0, shared=False) as first:
        first.listen()
        port = first.getsockname()[1]
        for shared in (False, True):
            with pytest.raises(CannotListen) as caught:
                bind(LOOPBACK, port, shared=shared)
            assert caught.value.address == f"{LOOPBACK}:{port}"
            assert "taken" in caught.value.reason
            assert f"ss -ltnp 'sport = :{port}'" in str(caught.value)


@pytest.mark.skipif(not ON_LINUX, reason="only Linux is known to copy these options to connections")
def test_an_accepted_connection_has_the_options_of_the_listening_socket() -> None:
    with bind(LOOPBACK, 0) as sock:
        sock.listen()
        with socket.create_connection(sock.getsockname()):
            accepted, _ = sock.accept()
            with accepted:
                assert option(accepted, socket.IPPROTO_TCP, "TCP_NODELAY")
                assert option(accepted, socket.SOL_SOCKET, "SO_KEEPALIVE")
                assert option(accepted, socket.IPPROTO_TCP, "TCP_KEEPIDLE") == 60
                assert option(accepted, socket.IPPROTO_TCP, "TCP_KEEPINTVL") == 15
                assert option(accepted, socket.IPPROTO_TCP, "TCP_KEEPCNT") == 4
                assert option(accepted, socket.IPPROTO_TCP, "TCP_NOTSENT_LOWAT") == 65536


def test_options_that_a_system_does_not_have_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "TCP_NOTSENT_LOWAT", raising=False)
    bind(LOOPBACK, 0).close()


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")
def test_ipv6_leaves_the_ipv4_port_alone() -> None:
    with bind("::", 0, shared=False) as six:
        six.listen()
        port = six.getsockname()[1]
        assert six.family == socket.AF_INET6
        with bind("0.0.0.0", port, shared=False) as four:
            four.listen()
            with socket.create_connection((LOOPBACK, port)):
                client, (peer, *_) = four.accept()
                client.close()
                assert peer == LOOPBACK


def test_of_the_addresses_of_a_name_ipv4_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (LOOPBACK, 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with bind("localhost", 0) as sock:
        assert sock.getsockname()[0] == LOOPBACK


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("203.0.113.7", 0, "no such address"),  # reserved for documentation
        ("no-such-host.invalid", 0, "not known here"),
        ("a" * 70 + ".example", 0, "not the name of a host"),
        (LOOPBACK, 65536, "from 0 to 65535"),
        (LOOPBACK, -1, "from 0 to 65535"),
    ],
)
def test_what_cannot_be_listened_on_is_said_in_one_sentence(host: str, port: int, reason: str) -> None:
    with pytest.raises(CannotListen, match=reason) as caught:
        bind(host, port)
    assert str(caught.value).startswith(f"cannot listen on {host}:{port}: ")
    assert "\n" not in str(caught.value)


class RefusingSocket(socket.socket):
    """A socket that is refused its address by a kernel in another mood."""

    error = 0

    def bind(self, *_: Any) -> None:
        raise OSError(self.error, os.strerror(self.error))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errno.EACCES, "from 1024 on"),
        (errno.EPERM, "from 1024 on"),
        (errno.ENOBUFS, os.strerror(errno.ENOBUFS)),
    ],
)
def test_what_the_kernel_refuses(error: int, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RefusingSocket, "error", error)
    monkeypatch.setattr(socket, "socket", RefusingSocket)
    with pytest.raises(CannotListen, match=reason):
        bind(LOOPBACK, 80)


def test_a_machine_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_ipv6(*_: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(socket, "socket", no_ipv6)
    with pytest.raises(CannotListen, match="version of IP") as caught:
        bind("::1", 8007)
    assert caught.value.address == "[::1]:8007"


# --- listening and stopping ---------------------------------------------------------------------------


class Greeting(Protocol):
    """Says a line and leaves."""

    def connectionMade(self) -> None:
        wire = cast(Any, self.transport)
        cast(Any, self.factory).made.append(self)
        wire.write(b"good-bye\n")
        wire.loseConnection()


class Greeter(Factory[Greeting]):
    noisy = False
    protocol = Greeting

    def __init__(self) -> None:
        self.made: list[Greeting] = []


class TestListening(TestCase):
    def setUp(self) -> None:
        self.factory = Greeter()
        self.clients: list[socket.socket] = []

    def tearDown(self) -> None:
        for client in self.clients:
            client.close()

    def client(self, port: int) -> socket.socket:
        """A connected client; until the reactor runs, its connection waits to be accepted."""
        client = socket.create_connection((LOOPBACK, port))
        self.clients.append(client)
        return client

    async def turn_until(self, condition: Callable[[], bool]) -> None:
        deadline = reactor.seconds() + 5
        while not condition():
            assert reactor.seconds() < deadline, "it did not come true"
            await deferLater(reactor, 0.002)

    async def received(self, client: socket.socket) -> bytes:
        """All that comes until the end of the connection."""
        client.setblocking(False)
        heard: list[bytes] = []

        def at_end() -> bool:
            try:
                heard.append(client.recv(100))
            except BlockingIOError:
                return False
            return heard[-1] == b""

        await self.turn_until(at_end)
        return b"".join(heard)

    async def test_clients_are_served(self) -> None:
        port = start_listening(reactor, bind(LOOPBACK, 0), self.factory)
        client = self.client(port.getHost().port)
        self.assertEqual(await self.received(client), b"good-bye\n")
        await stop_listening(port, inherited=False)
        with socket.socket() as late:
            self.assertEqual(late.connect_ex(client.getpeername()), errno.ECONNREFUSED)

    async def test_ipv6_clients_are_served(self) -> None:
        if not HAS_IPV6:
            self.skipTest("this machine has no IPv6")
        port = start_listening(reactor, bind("::1", 0), self.factory)
        self.assertEqual(port.getHost().host, "::1")
        client = socket.create_connection(("::1", port.getHost().port))
        self.clients.append(client)
        self.assertEqual(await self.received(client), b"good-bye\n")
        await stop_listening(port, inherited=False)

    async def test_the_socket_is_taken_over(self) -> None:
        sock = bind(LOOPBACK, 0)
        port = start_listening(reactor, sock, self.factory)
        self.assertEqual(sock.fileno(), -1)
        await stop_listening(port, inherited=False)

    def test_a_port_lost_between_bind_and_listen(self) -> None:
        first = bind(LOOPBACK, 0, shared=False)
        second = bind(LOOPBACK, first.getsockname()[1], shared=False)  # neither listens: both may bind
        with first:
            first.listen()
            with self.assertRaises(CannotListen) as caught:
                start_listening(reactor, second, self.factory)
        self.assertIn("taken", caught.exception.reason)
        self.assertEqual(second.fileno(), -1)

    async def test_a_lone_shard_says_good_bye_to_those_who_waited(self) -> None:
        port = start_listening(reactor, bind(LOOPBACK, 0), self.factory)
        # More than the 100 that Twisted accepts in one round.
        clients = [self.client(port.getHost().port) for _ in range(230)]
        stopped = stop_listening(port, inherited=False)
        self.assertEqual(len(self.factory.made), 230)
        await stopped
        for client in clients:
            self.assertEqual(await self.received(client), b"good-bye\n")

    async def test_without_that_they_would_be_reset(self) -> None:
        """The reason for accepting them: this is what closing the socket does to them."""
        port = start_listening(reactor, bind(LOOPBACK, 0), self.factory)
        client = self.client(port.getHost().port)
        await stop_listening(port, inherited=True)
        self.assertEqual(self.factory.made, [])
        with self.assertRaises(ConnectionResetError):
            await self.received(client)

    async def test_those_who_wait_on_an_inherited_socket_go_to_the_successor(self) -> None:
        ours = bind(LOOPBACK, 0)
        self.addCleanup(ours.close)
        first = start_listening(reactor, ours.dup(), self.factory)
        number = first.getHost().port
        waiting = self.client(number)
        await stop_listening(first, inherited=True)
        late = self.client(number)
        self.assertEqual(self.factory.made, [])
        self.assertTrue(listening(ours))

        second = start_listening(reactor, ours.dup(), self.factory)
        for client in (waiting, late):
            self.assertEqual(await self.received(client), b"good-bye\n")
        await stop_listening(second, inherited=True)

    async def test_clients_that_come_without_pause_do_not_keep_a_shard_from_stopping(self) -> None:
        """Each connection that is accepted brings the next one."""
        port = start_listening(reactor, bind(LOOPBACK, 0), self.factory)
        number = port.getHost().port
        build = self.factory.buildProtocol

        def build_and_bring_another(address: Any) -> Greeting | None:
            if len(self.clients) < 2000:
                self.client(number)
            return build(address)

        self.factory.buildProtocol = build_and_bring_another  # type: ignore[method-assign]
        cast(Any, port).numberAccepts = 1
        self.patch(listen, "_ACCEPT_ROUNDS", 4)
        self.client(number)
        stopped = stop_listening(port, inherited=False)
        self.assertEqual(len(self.factory.made), 1 + 21 + 41 + 61)
        await stopped

    async def test_a_port_of_another_make_is_only_stopped(self) -> None:
        class OtherPort:
            stopped = 0

            def stopListening(self) -> Deferred[None]:
                self.stopped += 1
                return succeed(None)

        port = OtherPort()
        self.assertIsNone(await stop_listening(cast(IListeningPort, port), inherited=False))
        self.assertEqual(port.stopped, 1)


# --- the limit of open files --------------------------------------------------------------------------


class FakeLimit:
    """The limit of open files of a process that is not this one."""

    def __init__(self, soft: int, hard: int, granted: int = 1 << 30) -> None:
        self.limits = (soft, hard)
        self.granted = granted

    def get(self, _: int) -> tuple[int, int]:
        return self.limits

    def set(self, _: int, limits: tuple[int, int]) -> None:
        if limits[0] > self.granted:
            raise ValueError("current limit exceeds maximum limit")
        self.limits = limits


@pytest.mark.parametrize(
    ("soft", "hard", "granted", "result"),
    [
        (1024, 4096, 4096, 4096),
        (1024, resource.RLIM_INFINITY, 1 << 30, 1 << 20),
        (1024, 1 << 25, 1 << 30, 1 << 20),
        (256, resource.RLIM_INFINITY, 12288, 10240),  # macOS
        (256, resource.RLIM_INFINITY, 256, 256),
        (20000, resource.RLIM_INFINITY, 100, 20000),
        (1 << 21, 1 << 21, 100, 1 << 21),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 100, 1 << 20),
        (4096, 4096, 100, 4096),
    ],
)
def test_the_file_limit_is_raised_as_far_as_it_goes(
    soft: int, hard: int, granted: int, result: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = FakeLimit(soft, hard, granted)
    monkeypatch.setattr(resource, "getrlimit", limit.get)
    monkeypatch.setattr(resource, "setrlimit", limit.set)
    assert listen.raise_file_limit() == result
    assert limit.limits[1] == hard
    assert limit.limits[0] == (soft if soft == resource.RLIM_INFINITY else result)


def test_the_file_limit_of_this_process() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert listen.raise_file_limit() >= before[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# --- inheritance --------------------------------------------------------------------------------------


def test_sockets_are_passed_on_from_descriptor_3() -> None:
    with bind(LOOPBACK, 0) as text, bind(LOOPBACK, 0) as http:
        descriptors, names = pass_on({"text": text, "http": http})
        assert descriptors == {3: text.fileno(), 4: http.fileno()}
        assert names == "text=3,http=4"


def test_no_sockets_can_be_passed_on() -> None:
    assert pass_on({}) == ({}, "")
    assert inherited({listen.FLEET_SOCKETS: ""}) == {}


@pytest.mark.parametrize("name", ["", "a=b", "a,b", "Text", "text2", "ß"])
def test_a_socket_needs_a_name_that_can_be_written_down(name: str) -> None:
    with bind(LOOPBACK, 0) as sock, pytest.raises(ValueError, match="cannot name a socket"):
        pass_on({name: sock})


def test_nothing_is_inherited_by_a_process_without_a_parent() -> None:
    assert inherited({"PATH": "/bin"}) == {}


def test_inherited_sockets_are_the_same_sockets() -> None:
    with bind(LOOPBACK, 0) as bound, bind(LOOPBACK, 0) as at_work:
        at_work.listen()
        first, second = os.dup(bound.fileno()), os.dup(at_work.fileno())
        for fd in (first, second):
            os.set_inheritable(fd, True)
            os.set_blocking(fd, True)
        environ = {listen.FLEET_SOCKETS: f"text={first},http={second}", "PATH": "/bin"}
        sockets = inherited(environ)
        assert environ == {"PATH": "/bin"}
        assert list(sockets) == ["text", "http"]
        with sockets["text"] as text, sockets["http"] as http:
            assert (text.fileno(), http.fileno()) == (first, second)
            assert text.getsockname() == bound.getsockname()
            assert listening(http) and not listening(text)
            for sock in (text, http):
                assert sock.get_inheritable() is False
                assert sock.getblocking() is False


def test_the_variable_stays_where_it_cannot_be_removed() -> None:
    environ = MappingProxyType({listen.FLEET_SOCKETS: ""})
    assert inherited(environ) == {}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("text", "is not NAME=DESCRIPTOR"),
        ("text=", "is not NAME=DESCRIPTOR"),
        ("=3", "is not NAME=DESCRIPTOR"),
        ("text=-3", "is not NAME=DESCRIPTOR"),
        ("text=three", "is not NAME=DESCRIPTOR"),
        ("text={bound},", "is not NAME=DESCRIPTOR"),
        ("text={bound},text={bound}", "repeats"),
        ("text={bound},http={bound}", "repeats"),
        ("text=2", "standard stream"),
        ("text=999999", "not an open socket: Bad file descriptor"),
        ("text=99999999999999999999", "not an open socket"),
        ("text={file}", "not an open socket: Socket operation on non-socket"),
        ("text={unix}", "not a TCP socket that could listen"),
        ("text={udp}", "not a TCP socket that could listen"),
        ("text={unbound}", "not a TCP socket that could listen"),
        ("text={connected}", "not a TCP socket that could listen"),
    ],
)
def test_nonsense_is_refused_and_nothing_closed(value: str, reason: str) -> None:
    with (
        bind(LOOPBACK, 0) as bound,
        open(os.devnull) as file,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket() as unbound,
        socket.create_server((LOOPBACK, 0)) as server,
        socket.create_connection(server.getsockname()) as connected,
    ):
        udp.bind((LOOPBACK, 0))
        things = {
            "bound": bound,
            "file": file,
            "unix": unix,
            "udp": udp,
            "unbound": unbound,
            "connected": connected,
        }
        text = value.format(**{name: thing.fileno() for name, thing in things.items()})
        environ = {listen.FLEET_SOCKETS: text}
        with pytest.raises(ValueError, match=reason) as caught:
            inherited(environ)
        assert str(caught.value).startswith(f"SPREAD_FLEET_SOCKETS='{text}': ")
        assert environ == {}
        for thing in things.values():
            os.fstat(thing.fileno())
