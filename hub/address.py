"""The address of a hub: what ``--hub`` may say. Values only: no Twisted, no I/O.

    embedded:                                          a private Valkey of this machine
    memory:                                            this process alone
    redis://[user:password@]host[:port][/db]           plain TCP
    rediss://...                                       the same over TLS, verified
    redis+unix:///path/to.sock[?db=N&username=&password=]
    redis+sentinel://[user:password@]h1[:p],h2[:p]/name[/db][?sentinel_username=&sentinel_password=]
    rediss+sentinel://...                              the same with TLS to the servers
    redis+cluster://[user:password@]h1[:p],h2[:p]      a cluster: some of its nodes; one must answer
    rediss+cluster://...                               the same over TLS, verified

Several, with spaces between them, are one hub (``several``): plain servers, or masters that Sentinels name.
Their names place channels on them; ``?name=NAME`` gives one that does not change with the address.

Credentials are percent-decoded, so that a password may hold any character.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from spread.hub.errors import HubMisconfigured

__all__ = ["MAX_SERVERS", "HubAddress", "parse_hub_address", "parse_hub_addresses"]

MAX_SERVERS = 64
"""Servers of one hub; each costs every shard two connections and a heartbeat every two seconds."""

_SCHEMES = (
    "embedded",
    "memory",
    "redis",
    "rediss",
    "redis+unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
_REDIS_PORT = 6379
_SENTINEL_PORT = 26379


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A parsed ``--hub`` URL. ``repr`` shows no password."""

    scheme: str
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    """The name under which Sentinel knows the master."""
    db: int | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    label: str = ""
    """What it is called among several, whatever its address."""

    @property
    def is_tls(self) -> bool:
        """The connection to the server is encrypted and verified."""
        return self.scheme.startswith("rediss")

    @property
    def is_cluster(self) -> bool:
        """The hosts are nodes of a cluster."""
        return self.scheme.endswith("+cluster")

    @property
    def name(self) -> str:
        """For people and logs: the URL without credentials; ``embedded`` and ``memory`` as they are."""
        if self.scheme in ("embedded", "memory"):
            return self.scheme
        database = "" if self.db is None else f"/{self.db}"
        if self.path:
            return f"{self.scheme}://{self.path}" + (f"?db={self.db}" if self.db is not None else "")
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        service = f"/{self.service}" if self.service else ""
        return f"{self.scheme}://{hosts}{service}{database}"


def parse_hub_addresses(text: str) -> tuple[HubAddress, ...]:
    """Parse all that ``--hub`` says; one or more.

    :raises HubMisconfigured: with a sentence that names the fault and never a password.
    """
    addresses = tuple(parse_hub_address(word) for word in text.split() or [text])
    if len(addresses) == 1:
        return addresses
    if len(addresses) > MAX_SERVERS:
        raise HubMisconfigured(f"hub: {len(addresses)} servers; {MAX_SERVERS} at most can be one hub")
    places: dict[object, str] = {}
    labels: set[str] = set()
    for address in addresses:
        if address.scheme in ("memory", "embedded"):
            raise HubMisconfigured(
                f"hub: {address.scheme}: is a hub by itself; several can be redis://, rediss://, "
                "redis+unix:// and redis+sentinel://"
            )
        if address.is_cluster:
            raise HubMisconfigured(
                f"hub: {address.scheme}:// spreads channels over its nodes itself, and is a hub by itself; "
                "name further nodes in the same URL, after a comma"
            )
        # Pub/sub knows no databases: two of one server would hear each other.
        place = address.path or (frozenset(address.hosts), address.service)
        if place in places:
            raise HubMisconfigured(f"hub: {places[place]} and {address.name} are one server; name it once")
        places[place] = address.name
        if (label := address.label or address.name) in labels:
            raise HubMisconfigured(f"hub: two servers have the name {label!r}")
        labels.add(label)
    return addresses


def parse_hub_address(text: str) -> HubAddress:
    """Parse what ``--hub`` says.

    :raises HubMisconfigured: with a sentence that names the fault and never the password.
    """
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    if not colon or scheme not in _SCHEMES:
        known = ", ".join(f"{name}:" if name in ("embedded", "memory") else f"{name}://" for name in _SCHEMES)
        shown = scheme[:32] + colon if colon else "it"
        raise HubMisconfigured(f"hub: {shown!r} is no scheme of a hub URL; known are {known}")
    if scheme in ("embedded", "memory"):
        if rest.strip("/"):
            raise HubMisconfigured(f"hub: {scheme}: takes nothing after the colon")
        return HubAddress(scheme)
    if not rest.startswith("//"):
        raise HubMisconfigured(f"hub: {scheme}: must be followed by //")
    try:
        parts = urlsplit(text)
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        # Not why: Python's sentence quotes the part it stumbled over, which may hold the password.
        raise HubMisconfigured(
            f"hub: the {scheme}:// URL cannot be read: IPv6 addresses stand in [brackets], and what "
            "follows '?' is name=value"
        ) from None
    if parts.fragment:
        raise HubMisconfigured("hub: '#' in a URL starts a fragment; write %23 if the password holds one")
    if "@" in parts.path and scheme != "redis+unix":
        # A '/' or '?' in a password ended the host too early; what follows must not be shown.
        raise HubMisconfigured(
            "hub: '@' after the host; in a user or password write %40 for '@', %2F for '/', %3F for '?'"
        )
    credentials, _, location = parts.netloc.rpartition("@")
    username, separator, password = credentials.partition(":")
    user = unquote(username) or None
    secret = unquote(password) if separator else None
    if user is not None and secret is None:
        raise HubMisconfigured("hub: a user without a password; write user:password@, or :password@ alone")
    if scheme == "redis+unix":
        return _unix(unquote(parts.path), location, query, user, secret)
    if scheme.endswith("+sentinel"):
        return _sentinel(scheme, location, parts.path, query, user, secret)
    _no_other(query, () if scheme.endswith("+cluster") else ("name",))
    hosts = _hosts(location, _REDIS_PORT)
    if scheme.endswith("+cluster"):
        if parts.path.removeprefix("/"):
            raise HubMisconfigured(
                f"hub: {scheme}:// takes nothing after the hosts: a cluster has one database"
            )
        return HubAddress(scheme, hosts, username=user, password=secret)
    if len(hosts) != 1:
        raise HubMisconfigured(
            f"hub: {scheme}:// takes one host; several are for redis+sentinel:// and redis+cluster://"
        )
    return HubAddress(
        scheme,
        hosts,
        db=_database(parts.path.removeprefix("/")),
        username=user,
        password=secret,
        label=query.get("name", ""),
    )


def _unix(
    path: str, location: str, query: Mapping[str, str], user: str | None, secret: str | None
) -> HubAddress:
    _no_other(query, ("db", "username", "password", "name"))
    if location or not path.startswith("/"):
        raise HubMisconfigured("hub: redis+unix:// takes an absolute path: redis+unix:///run/redis.sock")
    if len(path.encode()) > 107:
        raise HubMisconfigured("hub: the path of a Unix socket may have 107 bytes at most")
    return HubAddress(
        "redis+unix",
        path=path,
        db=_database(query.get("db", "")),
        username=user or query.get("username"),
        password=secret if secret is not None else query.get("password"),
        label=query.get("name", ""),
    )


def _sentinel(
    scheme: str, location: str, path: str, query: Mapping[str, str], user: str | None, secret: str | None
) -> HubAddress:
    _no_other(query, ("sentinel_username", "sentinel_password", "name"))
    service, _, database = path.removeprefix("/").partition("/")
    if not service:
        raise HubMisconfigured(f"hub: {scheme}:// needs the name of the master: {scheme}://host:26379/name")
    return HubAddress(
        scheme,
        _hosts(location, _SENTINEL_PORT),
        service=unquote(service),
        db=_database(database),
        username=user,
        password=secret,
        sentinel_username=query.get("sentinel_username"),
        sentinel_password=query.get("sentinel_password"),
        label=query.get("name", ""),
    )


def _no_other(query: Mapping[str, str], known: tuple[str, ...]) -> None:
    for name in query:
        if name not in known:
            what = f"known are {', '.join(known)}" if known else "this scheme takes none"
            # An '@' tells that this may be the rest of a password with a '?'.
            shown = "" if "@" in "".join((*query, *query.values())) else f" {name!r}"
            raise HubMisconfigured(f"hub: unknown parameter{shown} in the URL; {what}")


def _database(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 5) or int(text) > 65535:
        raise HubMisconfigured(f"hub: the database in the URL must be a number, not {text[:32]!r}")
    return int(text)


def _hosts(text: str, default_port: int) -> tuple[tuple[str, int], ...]:
    hosts = []
    for part in text.split(","):
        if part.startswith("["):
            host, bracket, port = part[1:].partition("]")
            if not bracket or (port and not port.startswith(":")):
                raise HubMisconfigured(f"hub: {part!r} is no [IPv6 address]:port")
            port = port.removeprefix(":")
        else:
            host, _, port = part.partition(":")
        if not host:
            raise HubMisconfigured("hub: the URL names no host")
        is_number = port.isascii() and port.isdigit() and len(port) <= 5
        if port and not (is_number and 0 < int(port) < 65536):
            # Not shown: in redis://user:password the password stands where a port belongs.
            raise HubMisconfigured(
                f"hub: what follows {host}: is no port; is it a password, and @HOST is missing?"
            )
        hosts.append((host, int(port) if port else default_port))
    return tuple(hosts)
