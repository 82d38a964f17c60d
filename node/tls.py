"""TLS for the public ports: a certificate that can be replaced while clients are connected.

``TlsContext`` reads the files; ``reload`` reads them again, for connections that come from then on. Those
that are there keep what they have. A shard reads again at SIGHUP; the shards of a fleet read as they start,
and SIGHUP replaces them one by one.

TLS 1.2 and 1.3; the ciphers are those of OpenSSL. No client certificates, no renegotiation, no compression.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer

from spread.hub.reactor import Clock

__all__ = ["BadCertificate", "TlsContext", "over_tls"]


class BadCertificate(Exception):
    """The files cannot be used; ``str`` is one sentence that says which and why."""


@implementer(IOpenSSLServerConnectionCreator)
class TlsContext:
    """The certificate of this server, and how it speaks TLS.

    :param cert: PEM file of the certificate, followed by those of the authorities between it and a root.
    :param key: PEM file of its private key, without a passphrase.
    :raises BadCertificate: they cannot be used.
    """

    log = Logger("spread.node.tls")

    def __init__(self, cert: str | Path, key: str | Path) -> None:
        self._cert = str(cert)
        self._key = str(key)
        self._context = _load(self._cert, self._key)

    def reload(self) -> bool:
        """Read the files again. If they cannot be used, that is logged, and what was read before stays.

        :returns: whether new connections get what is in the files now.
        """
        try:
            self._context = _load(self._cert, self._key)
        except BadCertificate as error:
            self.log.error("{error}; the certificate read before stays in use", error=error)
            return False
        self.log.info("read the certificate {cert} again", cert=self._cert)
        return True

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """See ``IOpenSSLServerConnectionCreator``."""
        return SSL.Connection(self._context, None)


def _load(cert: str, key: str) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    # The buffers of a connection that is silent are given back: 34 kB for each.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    _read(cert)  # OpenSSL does not tell why it cannot
    try:
        context.use_certificate_chain_file(cert)
    except SSL.Error as error:
        raise BadCertificate(f"{cert} is no certificate in PEM: {_reason(error)}") from error
    try:
        # OpenSSL would ask the terminal for a passphrase.
        private: Any = load_pem_private_key(_read(key), None)
        context.use_privatekey(private)
        context.check_privatekey()
    except (SSL.Error, TypeError, ValueError, UnsupportedAlgorithm) as error:
        why = _reason(error) if isinstance(error, SSL.Error) else str(error).partition(".")[0]
        raise BadCertificate(
            f"{key} is not the private key, without a passphrase, of {cert}: {why}"
        ) from error
    return context


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadCertificate(f"the TLS file {path} cannot be read: {error.strerror}") from error


def _reason(error: SSL.Error) -> str:
    """What OpenSSL says, without its numbers."""
    queue = error.args[0] if error.args else ()
    return "; ".join(str(entry[-1]) for entry in queue if entry) or "no reason given"


class _Factory(TLSMemoryBIOFactory):
    # The outbox joins what is written in one turn; a second buffer would cost a timer each time.
    protocol = TLSMemoryBIOProtocol

    def buildProtocol(self, addr: Any) -> Any:
        protocol = self.wrappedFactory.buildProtocol(addr)
        return None if protocol is None else TLSMemoryBIOProtocol(self, protocol)

    def registerProtocol(self, p: Any) -> None:
        """Nobody asks for a list of them."""

    def unregisterProtocol(self, p: Any) -> None:
        """See ``registerProtocol``."""


def over_tls(context: TlsContext | None, factory: Any, clock: Clock) -> Any:
    """The factory for a listening port: ``factory`` over TLS, or as it is without a context.

    Goes around a ``BoundedFactory``, not into it, so that a connection can be taken over.
    """
    if context is None:
        return factory
    return _Factory(context, False, factory, clock)  # type: ignore[arg-type]
