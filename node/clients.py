"""All clients of the Centrifuge protocol on this shard: opened for edges, found for the server API.

It is what edges open sessions with (``session.contract.Sessions``), what sessions know of each other
(``session.shared.Registry``), and what other shards' questions are answered from (``control.Clients``).
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.api import Position
from spread.node import codes
from spread.node.auth.tokens import Overrides
from spread.node.codec import Codec
from spread.node.control import Control, SubscribeOptions
from spread.node.cork import Cork
from spread.node.limits import Admission, Rate
from spread.node.namespaces import ChannelOptions
from spread.node.outbox import Outbox
from spread.node.pattern import matching
from spread.node.session.centrifuge import CentrifugeSession, SessionState
from spread.node.session.commands import run
from spread.node.session.contract import Edge, Visit
from spread.node.session.logic import Party
from spread.node.session.shared import Account, Refused, Shared
from spread.node.session.subscribing import Grant, announce_join, prepare
from spread.node.wire.messages import Refresh, Subscribe, SubscribeRequest

if TYPE_CHECKING:
    from spread.hub.reactor import Clock

__all__ = ["Clients"]

NOTES_PER_SECOND = 20.0
"""Lines about single clients in the log; what is above is counted, and the count is told with the next."""

MAX_USER_RATES = 100_000
"""Users whose rate is remembered after their last connection has gone."""


class Clients:
    """See the line at the top.

    :param admission: who may connect; shared with the shard's other clients.
    :param numbers: gives the numbers of sessions; shared with the shard's other clients.
    """

    log = Logger("spread.node.clients")

    def __init__(
        self, clock: Clock, admission: Admission, cork: Cork, numbers: Iterator[int], outbox_max_bytes: int
    ) -> None:
        self.cork = cork
        self.outbox_max_bytes = outbox_max_bytes
        self.shared: Shared = cast(Shared, None)
        """Set once, before the first client: it holds this registry itself."""
        self.control: Control = cast(Control, None)
        """Set once, likewise."""
        self.sessions: dict[int, CentrifugeSession] = {}
        self._clock = clock
        self._admission = admission
        self._numbers = numbers
        self._by_user: dict[str, dict[int, CentrifugeSession]] = {}
        self.by_client: dict[str, CentrifugeSession] = {}
        """By the client's id."""
        # Clients of other protocols that the team's code knows, by id, and by user.
        self._others: dict[str, Party] = {}
        self._others_by_user: dict[str, dict[str, Party]] = {}
        self._by_secret: dict[str, CentrifugeSession] = {}
        self._user_rates: dict[str, Rate] = {}
        self._connect_rate: Rate | None = None
        self._notes = Rate(NOTES_PER_SECOND, clock.seconds())
        self._unnoted = 0
        self._is_stopping = False

    @property
    def users(self) -> int:
        """Different users, all anonymous ones being one."""
        return len(self._by_user)

    # -- for edges: session.contract.Sessions ------------------------------------------------------------

    def admit(self, address: str) -> str:
        """See ``contract.Sessions``."""
        counters, client = self.shared.counters, self.shared.client
        counters.connects += 1
        if self._is_stopping:
            return "the shard is stopping"
        if client.connection_limit and len(self.sessions) >= client.connection_limit:
            counters.refused_full += 1
            return f"this shard has {client.connection_limit} clients, which is client.connection_limit"
        if client.connection_rate_limit:
            if self._connect_rate is None:
                self._connect_rate = Rate(client.connection_rate_limit, self._clock.seconds())
            if not self._connect_rate.take(self._clock.seconds()):
                counters.refused_rate += 1
                return f"more than {client.connection_rate_limit} connections a second"
        refused = self._admission.enter(address)
        if refused == "full":
            counters.refused_full += 1
            return codes.SHARD_FULL.format(limit=self._admission.max_clients)
        if refused == "address":
            counters.refused_address += 1
            return codes.ADDRESS_FULL.format(limit=self._admission.max_per_address)
        return ""

    def release(self, address: str) -> None:
        """See ``contract.Sessions``."""
        self._admission.leave(address)

    def open(self, edge: Edge, outbox: Outbox, codec: Codec, visit: Visit) -> CentrifugeSession:
        """See ``contract.Sessions``."""
        secret = secrets.token_hex(16) if visit.is_emulated else ""
        session = CentrifugeSession(
            next(self._numbers), str(uuid.uuid4()), secret, edge, outbox, codec, visit, self.shared, run
        )
        self.sessions[session.number] = session
        self.by_client[session.client] = session
        if secret:
            self._by_secret[secret] = session
        self.shared.counters.clients += 1
        return session

    # -- for sessions: session.shared.Registry -----------------------------------------------------------

    def connected(self, session: Account) -> bool:
        """See ``shared.Registry``."""
        assert isinstance(session, CentrifugeSession)
        of_user = self._by_user.setdefault(session.user, {})
        limit = self.shared.client.user_connection_limit
        # One that was told to go, and is still sending, must not stand in the way of its successor.
        if limit and session.user and sum(one.is_alive for one in of_user.values()) >= limit:
            return False
        of_user[session.number] = session
        return True

    def gone(self, session: Account, address: str) -> None:
        """See ``shared.Registry``."""
        assert isinstance(session, CentrifugeSession)
        if self.sessions.pop(session.number, None) is None:
            return
        del self.by_client[session.client]
        if session.secret:
            del self._by_secret[session.secret]
        of_user = self._by_user.get(session.user)
        if of_user is not None:
            of_user.pop(session.number, None)
            if not of_user:
                del self._by_user[session.user]
        self._admission.leave(address)
        self.shared.counters.clients -= 1

    def rate_of(self, user: str) -> Rate | None:
        """See ``shared.Registry``."""
        limit = self.shared.client.user_commands_per_second
        if not limit or not user:
            return None
        rate = self._user_rates.get(user)
        if rate is None:
            if len(self._user_rates) >= MAX_USER_RATES:
                # Those who are here keep theirs: whoever has gone starts anew.
                self._user_rates = {
                    name: kept for name, kept in self._user_rates.items() if name in self._by_user
                }
            rate = self._user_rates[user] = Rate(limit, self._clock.seconds())
        return rate

    def alone(self, session: Account) -> None:
        """See ``shared.Registry``."""
        ended = self.control.ask_disconnect(
            session.user, whitelist=[session.client], disconnect=codes.CONNECTION_LIMIT
        )
        ended.addErrback(self._not_ended, session.user)

    def _not_ended(self, failure: Failure, user: str) -> None:
        self.log.warn(
            "other connections of user {user} may live on: {why}", user=user, why=failure.getErrorMessage()
        )

    def note(self, session: Account, what: str, why: str) -> None:
        """See ``shared.Registry``."""
        if not self._notes.take(self._clock.seconds()):
            self._unnoted += 1
            return
        assert isinstance(session, CentrifugeSession)
        unnoted, self._unnoted = self._unnoted, 0
        self.log.info(
            "client {client} of user {user!r} from {address} over {transport}: {what} ({why}){unnoted}",
            client=session.client,
            user=session.user,
            address=session.visit.address,
            transport=session.visit.transport,
            what=what,
            why=why,
            unnoted=f"; {unnoted} more lines like this were left out" if unnoted else "",
        )

    # -- clients of other protocols, where there is a team's own code --------------------------------------

    def enter(self, party: Party) -> None:
        """It can be reached now, as those here. Its user stays."""
        self._others[party.client] = party
        self._others_by_user.setdefault(party.user, {})[party.client] = party

    def leave(self, party: Party) -> None:
        """It cannot any more. Idempotent."""
        if self._others.pop(party.client, None) is not None:
            of_user = self._others_by_user[party.user]
            del of_user[party.client]
            if not of_user:
                del self._others_by_user[party.user]

    def _others_of(self, user: str, client: str, session: str) -> list[Party]:
        if session:  # none of them has such
            return []
        of_user = self._others_by_user.get(user, {})
        if client:
            return [of_user[client]] if client in of_user else []
        return list(of_user.values())

    # -- for the server API: control.Clients -------------------------------------------------------------

    def _of(self, user: str, client: str, session: str) -> list[CentrifugeSession]:
        """The connected sessions of a user; ``client`` and ``session`` narrow it down."""
        return [
            one
            for one in self._by_user.get(user, {}).values()
            if one.state is SessionState.CONNECTED
            and client in ("", one.client)
            and session in ("", one.secret)
        ]

    def disconnect(
        self, user: str, *, client: str, session: str, whitelist: list[str], disconnect: codes.Disconnect
    ) -> int:
        """See ``control.Clients``."""
        ended = [one for one in self._of(user, client, session) if one.client not in whitelist]
        if not whitelist:
            # Those, too, that were let in and wait for their first subscriptions. Not if somebody is to
            # stay: of two that come at the same time, each as the only one, one must be left.
            ended += [
                one
                for one in self._by_user.get(user, {}).values()
                if one.state is SessionState.CONNECTING
                and client in ("", one.client)
                and session in ("", one.secret)
            ]
        for one in ended:
            one.end(disconnect)
        others = [each for each in self._others_of(user, client, session) if each.client not in whitelist]
        for other in others:
            other.dismiss(disconnect)
        return len(ended) + len(others)

    def unsubscribe(self, user: str, channel: str, *, client: str, session: str) -> int:
        """See ``control.Clients``."""
        count = 0
        for one in self._of(user, client, session):
            ending = [one.subscriptions.get(channel)] if channel else list(one.subscriptions.values())
            ended = [subscription for subscription in ending if subscription is not None]
            for subscription in ended:
                one.unsubscribe(subscription, codes.SERVER_UNSUBSCRIBE)
            on_their_way = [name for name in one.subscribing if channel in ("", name)]
            for name in on_their_way:
                one.subscribing[name] = False
            count += bool(ended or on_their_way)
        return count

    def subscribe(
        self, user: str, channel: str, *, client: str, session: str, options: SubscribeOptions
    ) -> Deferred[int]:
        """See ``control.Clients``."""
        of_channel = self.shared.namespaces.options(channel)
        if of_channel is None:
            return succeed(0)
        limit = self.shared.client.channel_limit
        override = options.override
        grant = Grant(
            overrides=Overrides(
                presence=override.presence,
                join_leave=override.join_leave,
                force_push_join_leave=override.force_push_join_leave,
                force_recovery=override.force_recovery,
                force_positioning=override.force_positioning,
            ),
            info=options.info,
            data=options.data,
            expire_at=options.expire_at,
        )
        working = [
            self._begin(one, channel, of_channel, grant, options.recover_since)
            for one in self._of(user, client, session)
            if channel not in one.subscriptions
            and channel not in one.subscribing
            and len(one.subscriptions) + len(one.subscribing) < limit
        ]
        working += [each.subscribe(channel, grant) for each in self._others_of(user, client, session)]
        return gatherResults(working, consumeErrors=True).addCallbacks(sum, _first_reason)

    def bring(self, session: Account, channel: str, grant: Grant) -> Deferred[int]:
        """See ``shared.Registry``."""
        assert isinstance(session, CentrifugeSession)
        namespaces = self.shared.namespaces
        of_channel = None if namespaces.is_too_long(channel) else namespaces.options(channel)
        if (
            of_channel is None
            or not session.is_connected
            or channel in session.subscriptions
            or channel in session.subscribing
            or len(session.subscriptions) + len(session.subscribing) >= self.shared.client.channel_limit
        ):
            return succeed(0)
        return self._begin(session, channel, of_channel, grant, None)

    def _begin(
        self,
        session: CentrifugeSession,
        channel: str,
        of_channel: ChannelOptions,
        grant: Grant,
        since: Position | None,
    ) -> Deferred[int]:
        session.subscribing[channel] = True

        def over(outcome: Any) -> Any:
            del session.subscribing[channel]
            return outcome

        working = Deferred.fromCoroutine(self._subscribe(session, channel, of_channel, grant, since))
        return session.with_deadline(working).addBoth(over)

    async def _subscribe(
        self,
        session: CentrifugeSession,
        channel: str,
        of_channel: ChannelOptions,
        grant: Grant,
        since: Position | None,
    ) -> int:
        shared = self.shared
        request = SubscribeRequest(
            channel=channel,
            recover=since is not None,
            epoch=since.epoch if since else "",
            offset=since.offset if since else 0,
        )
        arrival = await prepare(shared, session, request, of_channel, grant, is_server_side=True)
        if session.state is not SessionState.CONNECTED or not session.subscribing[channel]:
            arrival.abandon()
            return 0
        try:
            subscription, result = arrival.settle()
        except Refused:
            return 0
        session.subscribed(subscription)
        session.push(
            channel,
            Subscribe(
                recoverable=result.recoverable,
                positioned=result.positioned,
                epoch=result.epoch,
                offset=result.offset,
                data=result.data,
            ),
        )
        for publication in result.publications:
            session.push(channel, publication)
        announce_join(shared, subscription)
        if shared.logic is not None:
            shared.logic.subscribed(session, channel)
        return 1

    def refresh(
        self, user: str, *, client: str, session: str, expired: bool, expire_at: int, info: bytes
    ) -> int:
        """See ``control.Clients``."""
        now = self.shared.now()
        refreshed = self._of(user, client, session)
        for one in refreshed:
            if expired or 0 < expire_at <= now:
                one.end(codes.CONNECTION_EXPIRED)
                continue
            one.expire_at = expire_at
            one.conn_info = info or one.conn_info
            one.times.changed()
            one.push("", Refresh(bool(expire_at), self.shared.ttl(expire_at)))
        return len(refreshed)

    def channels(self, pattern: str) -> dict[str, int]:
        """See ``control.Clients``."""
        fits = matching(pattern)
        return {
            channel.name: len(channel.members)
            for channel in self.shared.channels
            if channel.members and fits(channel.name)
        }

    def emulate(self, session: str, data: bytes) -> bool:
        """See ``control.Clients``."""
        found = self._by_secret.get(session)
        if found is None:
            return False
        found.received(data)
        return True

    def send(self, user: str, client: str, data: bytes) -> int:
        """See ``control.Clients``."""
        if not client:
            reached = [*self._of(user, "", ""), *self._others_of(user, "", "")]
            return sum(one.tell(data) for one in reached)
        found = self.by_client.get(client) or self._others.get(client)
        return 0 if found is None else int(found.tell(data))

    def send_all(self, data: bytes) -> int:
        """See ``control.Clients``."""
        return sum(one.tell(data) for one in [*self.sessions.values(), *self._others.values()])

    # -- the shard ---------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Admit nobody any more."""
        self._is_stopping = True

    def end_all(self, disconnect: codes.Disconnect) -> None:
        """End all sessions."""
        for session in list(self.sessions.values()):
            session.end(disconnect)

    def cut_all(self) -> None:
        """Drop what is left."""
        for session in list(self.sessions.values()):
            session.cut()


def _first_reason(failure: Failure) -> Failure:
    """The failure itself, not that one of several failed."""
    reason = getattr(failure.value, "subFailure", failure)
    assert isinstance(reason, Failure)
    return reason
