"""Where a link connects to: TLS as it is verified, and PEM files that cannot work."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from twisted.trial.unittest import TestCase

from spread.hub.address import parse_hub_address
from spread.hub.errors import HubMisconfigured, HubUnavailable
from spread.hub.topology import TlsFiles, endpoint_of
from tests.hub.certificates import Authority, Issued
from tests.hub.proxy import Proxied, Proxy
from tests.hub.servers import Sentinel, Valkey
from tests.hub.shards import Shard, eventually, reactor, redis_shard


class Tls(TestCase):
    """A real server behind a proxy that ends TLS."""

    timeout = 60
    server: Valkey
    authority: Authority
    issued: Issued
    _directory: tempfile.TemporaryDirectory[str]

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Valkey().start()
        cls._directory = tempfile.TemporaryDirectory()
        cls.directory = Path(cls._directory.name)
        cls.authority = Authority(cls.directory)
        cls.issued = cls.authority.issue("localhost", "127.0.0.1")

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.close()
        cls._directory.cleanup()

    def proxy(self, issued: Issued | None = None, client_ca: str = "") -> Proxy:
        proxy = Proxy(reactor, self.server.port, certificate=issued or self.issued, client_ca=client_ca)
        self.addCleanup(proxy.stop)
        return proxy

    def shard(self, proxy: Proxy, tls: TlsFiles, host: str = "127.0.0.1", **settings: Any) -> Shard:
        shard = redis_shard(f"rediss://{host}:{proxy.port}", tls=tls, **settings)
        self.addCleanup(shard.hub.stop)
        return shard

    async def refused(self, proxy: Proxy, tls: TlsFiles, host: str = "127.0.0.1") -> str:
        """What a start says that fails; nothing was sent to the server."""
        shard = self.shard(proxy, tls, host, start_seconds=0.4)
        error = await self.assertFailure(shard.hub.start(shard.receiver), HubUnavailable)
        for connection in proxy.connections:
            self.assertEqual(connection.seen, b"")
        return str(error)

    async def test_a_verified_server(self) -> None:
        proxy = self.proxy()
        for host in ("127.0.0.1", "localhost"):
            shard = self.shard(proxy, TlsFiles(ca=self.authority.ca), host)
            await shard.hub.start(shard.receiver)
            await shard.hub.subscribe("a")
            await shard.publish("a", b"x" * 100_000)
            await shard.hears("a", [b"x" * 100_000])
        # And again after a loss.
        proxy.each(Proxied.cut)
        await eventually(lambda: shard.receiver.windows)
        await shard.publish("a", b"y")
        await eventually(lambda: b"y" in shard.receiver.on("a"))

    async def test_several_authorities_in_one_file(self) -> None:
        other = Authority(self.directory, "Other")
        both = self.directory / "both.pem"
        both.write_text(Path(other.ca).read_text() + "\n# and\n" + Path(self.authority.ca).read_text())
        shard = self.shard(self.proxy(), TlsFiles(ca=str(both)))
        await shard.hub.start(shard.receiver)
        self.assertTrue(shard.hub.is_live)

    async def test_another_name(self) -> None:
        proxy = self.proxy(self.authority.issue("elsewhere.example"))
        for host in ("127.0.0.1", "localhost"):
            told = await self.refused(proxy, TlsFiles(ca=self.authority.ca), host)
            self.assertIn("Mismatch", told)

    async def test_an_unknown_authority(self) -> None:
        stranger = Authority(self.directory, "Stranger")
        proxy = self.proxy(stranger.issue("127.0.0.1"))
        # Neither by the file, nor, without one, by what the system trusts.
        for tls in (TlsFiles(ca=self.authority.ca), TlsFiles()):
            self.assertIn("certificate verify failed", await self.refused(proxy, tls))

    async def test_a_server_without_tls(self) -> None:
        shard = redis_shard(
            f"rediss://127.0.0.1:{self.server.port}", tls=TlsFiles(ca=self.authority.ca), start_seconds=0.4
        )
        self.addCleanup(shard.hub.stop)
        error = await self.assertFailure(shard.hub.start(shard.receiver), HubUnavailable)
        self.assertIn("tried for 0.4 s", str(error))

    async def test_tls_without_saying_so(self) -> None:
        proxy = self.proxy()
        shard = redis_shard(f"redis://127.0.0.1:{proxy.port}", start_seconds=0.4)
        self.addCleanup(shard.hub.stop)
        await self.assertFailure(shard.hub.start(shard.receiver), HubUnavailable)

    async def test_a_client_certificate(self) -> None:
        proxy = self.proxy(client_ca=self.authority.ca)
        client = self.authority.issue("client.example")
        joined = self.directory / "client and key.pem"
        joined.write_text(Path(client.key).read_text() + Path(client.cert).read_text())
        for tls in (
            TlsFiles(ca=self.authority.ca, cert=client.cert, key=client.key),
            TlsFiles(ca=self.authority.ca, cert=str(joined)),
        ):
            shard = self.shard(proxy, tls)
            await shard.hub.start(shard.receiver)
            self.assertEqual(await shard.hub.claim(None, shard.identity), 0)
            await shard.hub.stop()

    async def test_a_client_certificate_that_is_missing_or_wrong(self) -> None:
        proxy = self.proxy(client_ca=self.authority.ca)
        stranger = Authority(self.directory, "Stranger").issue("client.example")
        self.assertIn("certificate required", await self.refused(proxy, TlsFiles(ca=self.authority.ca)))
        told = await self.refused(proxy, TlsFiles(self.authority.ca, stranger.cert, stranger.key))
        self.assertIn("alert", told)

    async def test_the_master_that_a_sentinel_names(self) -> None:
        # A Sentinel would name the server itself; it is told that the proxy is the master.
        proxy = self.proxy()
        master = Valkey()
        master.port = proxy.port
        sentinel = Sentinel(master, "game")
        self.addCleanup(sentinel.close)
        self.addCleanup(master.close)
        sentinel.start()
        shard = redis_shard(
            f"rediss+sentinel://127.0.0.1:{sentinel.port}/game", tls=TlsFiles(ca=self.authority.ca)
        )
        self.addCleanup(shard.hub.stop)
        await shard.hub.start(shard.receiver)
        await shard.hub.subscribe("a")
        await shard.publish("a", b"x")
        await shard.hears("a", [b"x"])


def _misconfigured(ca: object = "", cert: object = "", key: object = "") -> str:
    address = parse_hub_address("rediss://localhost")
    with pytest.raises(HubMisconfigured) as caught:
        endpoint_of(reactor, address, TlsFiles(str(ca), str(cert), str(key)), 1.0)
    return str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("a")
    missing = tmp_path / "missing.pem"
    told = _misconfigured(ca=missing)
    assert "hub.tls_ca" in told and str(missing) in told and "No such file" in told
    told = _misconfigured(cert=missing, key=issued.key)
    assert "hub.tls_cert" in told and str(missing) in told and "No such file" in told
    told = _misconfigured(cert=issued.cert, key=missing)
    assert "hub.tls_key" in told and str(missing) in told and "No such file" in told
    told = _misconfigured(ca=tmp_path)
    assert "hub.tls_ca" in told and str(tmp_path) in told and "directory" in told


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no PEM at all",
        b"\x00\xff\xfe",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\n",
    ],
)
def test_files_that_hold_something_else(tmp_path: Path, content: bytes) -> None:
    issued = Authority(tmp_path).issue("a")
    bad = tmp_path / "bad.pem"
    bad.write_bytes(content)
    told = _misconfigured(ca=bad)
    assert "hub.tls_ca" in told and str(bad) in told
    told = _misconfigured(cert=bad, key=issued.key)
    assert "hub.tls_cert" in told and str(bad) in told
    told = _misconfigured(cert=issued.cert, key=bad)
    assert "hub.tls_key" in told and str(bad) in told


def test_a_certificate_without_its_key(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("a")
    told = _misconfigured(cert=issued.cert)
    assert "hub.tls_key" in told and issued.cert in told


def test_a_key_of_another_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    mine, other = authority.issue("a"), authority.issue("b")
    told = _misconfigured(cert=mine.cert, key=other.key)
    assert "hub.tls_key" in told and other.key in told and mine.cert in told


def test_an_encrypted_key(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("a")
    key = serialization.load_pem_private_key(Path(issued.key).read_bytes(), None)
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"x"),
        )
    )
    told = _misconfigured(cert=issued.cert, key=encrypted)
    assert "hub.tls_key" in told and str(encrypted) in told and "encrypted" in told
