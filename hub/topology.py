"""From the address of a hub to the endpoint that a link connects to.

An endpoint is asked anew for each attempt, so whatever it looks up — the master that Sentinel names, the
embedded server that may have to be started again — is looked up again after each loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL.crypto import X509
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.protocol import Factory
from twisted.internet.ssl import Certificate, optionsForClientTLS, platformTrust, trustRootFromCertificates

from spread.hub.address import HubAddress
from spread.hub.errors import HubError, HubMisconfigured, HubUnavailable
from spread.hub.link import CommandProtocol, Handshake
from spread.hub.reactor import Endpoint

__all__ = ["TlsFiles", "endpoint_of", "server_endpoints"]

NEXT_ADDRESS_SECONDS = 0.05
"""A host with several addresses: how long after one the next is tried. It is also how long a refused
connection takes to be told, which at Twisted's 0.3 s would make every attempt to reconnect slow."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for the connection to the hub; "" where there is none."""

    ca: str = ""
    cert: str = ""
    key: str = ""


def endpoint_of(reactor: Any, address: HubAddress, tls: TlsFiles, connect_seconds: float) -> Endpoint:
    """The endpoint of a ``redis…`` address.

    :raises HubMisconfigured: a TLS file cannot be read or holds no PEM.
    """
    if address.scheme == "redis+unix":
        return UNIXClientEndpoint(reactor, address.path, timeout=round(connect_seconds + 0.5))

    server = server_endpoints(reactor, address, tls, connect_seconds)
    if address.service:
        return _SentinelEndpoint(reactor, address, connect_seconds, server)
    host, port = address.hosts[0]
    return server(host, port)


def server_endpoints(
    reactor: Any, address: HubAddress, tls: TlsFiles, connect_seconds: float
) -> Callable[[str, int], Endpoint]:
    """Makes the endpoint of a server by host and port; over TLS if the address says so.

    :raises HubMisconfigured: a TLS file cannot be read or holds no PEM.
    """
    secure = _secured(tls) if address.is_tls else None

    def server(host: str, port: int) -> Endpoint:
        plain = HostnameEndpoint(
            reactor, host, port, timeout=connect_seconds, attemptDelay=NEXT_ADDRESS_SECONDS
        )
        return plain if secure is None else secure(host, plain)

    return server


def _secured(tls: TlsFiles) -> Callable[[str, Endpoint], Endpoint]:
    """Wraps endpoints in TLS that verifies the server's chain and name."""
    trust: Any = platformTrust()
    identity: dict[str, Any] = {}
    if tls.ca:
        certificates = _certificates(tls.ca, "hub.tls_ca")
        trust = trustRootFromCertificates(
            [Certificate(X509.from_cryptography(each)) for each in certificates]
        )
    if tls.cert:
        shown, key = _certificates(tls.cert, "hub.tls_cert")[0], _key(tls.key or tls.cert)
        if key.public_key() != shown.public_key():
            raise HubMisconfigured(
                f"hub.tls_key: the key in {tls.key or tls.cert} does not fit the certificate in {tls.cert}"
            )
        identity = {"certificate": shown, "privateKey": key}

    def wrap(host: str, endpoint: Endpoint) -> Endpoint:
        options = optionsForClientTLS(host, trustRoot=trust, extraCertificateOptions=identity)
        return wrapClientTLS(options, cast(Any, endpoint))

    return wrap


def _certificates(path: str, setting: str) -> list[x509.Certificate]:
    text = _read(path, setting)
    if b"-----BEGIN CERTIFICATE-----" not in text:
        raise HubMisconfigured(f"{setting}: {path} holds no PEM certificate")
    try:
        return x509.load_pem_x509_certificates(text)
    except ValueError as error:
        raise HubMisconfigured(f"{setting}: {path} holds a certificate that cannot be read") from error


def _key(path: str) -> Any:
    try:
        return load_pem_private_key(_read(path, "hub.tls_key"), password=None)
    except TypeError as error:
        raise HubMisconfigured(f"hub.tls_key: the key in {path} must not be encrypted") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise HubMisconfigured(f"hub.tls_key: {path} holds no PEM key") from error


def _read(path: str, setting: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise HubMisconfigured(f"{setting}: cannot read {path}: {error.strerror}") from error


class _SentinelEndpoint:
    """Asks the Sentinels, one after the other, where the master is, and connects there.

    That the server found really is the master is checked by the link's handshake.
    """

    def __init__(
        self,
        reactor: Any,
        address: HubAddress,
        connect_seconds: float,
        server: Callable[[str, int], Endpoint],
    ) -> None:
        self._reactor = reactor
        self._address = address
        self._connect_seconds = connect_seconds
        self._server = server
        self._first = 0  # the Sentinel that answered last is asked first
        self._next = 0  # the one that is asked next whether the master is still the same
        self._led_to: tuple[str, int] | None = None

    def connect(self, factory: Factory) -> Deferred[Any]:
        """Connect ``factory`` to the present master."""
        return Deferred.fromCoroutine(self._connect(factory))

    async def _connect(self, factory: Factory) -> Any:
        hosts = self._address.hosts
        reasons = []
        for step in range(len(hosts)):
            index = (self._first + step) % len(hosts)
            host, port = hosts[index]
            try:
                master = await self._ask(host, port)
            except CancelledError:
                raise  # the link is being stopped
            except Exception as error:
                # Whatever is wrong with one Sentinel, the next may know; the reasons are all told below.
                reasons.append(f"{host}:{port}: {error}")
                continue
            self._first = index
            self._led_to = master
            return await self._server(*master).connect(factory)
        raise HubUnavailable(self._address.name, "no Sentinel knows the master: " + "; ".join(reasons))

    def elsewhere(self) -> Deferred[str]:
        """See ``lineage.Moving``. One Sentinel is asked, another each time; all, if it has another master."""
        return Deferred.fromCoroutine(self._find_elsewhere())

    async def _find_elsewhere(self) -> str:
        hosts, led_to = self._address.hosts, self._led_to
        self._next = (self._next + 1) % len(hosts)
        if await self._named_by(self._next) in (None, led_to):
            return ""
        # Sentinels learn of a failover one after the other, and one that is cut off does not learn of it.
        named = [await self._named_by(index) for index in range(len(hosts))]
        for index, master in enumerate(named):
            others = [each for each in named if each is not None]
            if master not in (None, led_to) and 2 * others.count(master) > len(others):
                self._first = index
                return f"{master[0]}:{master[1]}"
        return ""

    async def _named_by(self, index: int) -> tuple[str, int] | None:
        try:
            return await self._ask(*self._address.hosts[index])
        except CancelledError:
            raise
        except Exception:
            return None  # whatever is wrong with it, it does not tell of another master

    async def _ask(self, host: str, port: int) -> tuple[str, int]:
        handshake = Handshake(
            hub=self._address.name,
            client_name="spread-sentinel",
            reply_seconds=self._connect_seconds,
            username=self._address.sentinel_username,
            password=self._address.sentinel_password,
        )
        endpoint = HostnameEndpoint(
            self._reactor,
            host,
            port,
            timeout=self._connect_seconds,
            attemptDelay=NEXT_ADDRESS_SECONDS,
        )
        protocol: CommandProtocol = await connectProtocol(
            cast(Any, endpoint), cast(Any, CommandProtocol(self._reactor, handshake))
        )
        try:
            await protocol.introduce()
            found = await protocol.sentinel_get_master_addr_by_name(self._address.service)
        finally:
            protocol.cut("asked")
        if not found:
            raise HubError(f"knows no master named {self._address.service}")
        return found[0].decode(), int(found[1])
