"""The suites that every hub passes, on two plain servers."""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import TestCase

from spread.hub.rendezvous import Rendezvous
from spread.hub.several import SeveralHub
from tests.hub.backends import OnSeveral
from tests.hub.conformance import AwayConformance, HubConformance
from tests.hub.shards import Shard, deafened, eventually
from tests.hub.stream_conformance import StreamAwayConformance, StreamConformance
from tests.hub.test_ownership import OwnershipConformance
from tests.hub.test_presence import PresenceAway, PresenceConformance
from tests.hub.test_questions import QuestionsAway


class SeveralConformance(OnSeveral, HubConformance, StreamConformance, TestCase):
    timeout = 60
    shard = HubConformance.shard
    servers = 2

    def deafen(self, shard: Shard) -> Callable[[], None]:
        return deafened(shard)

    def forget_everything(self) -> None:
        for server in self.valkeys:
            server.command("FLUSHALL")

    async def dropped(self, channel: str) -> None:
        await eventually(lambda: self.receivers(f"spread:ch:{{{channel}}}") == 0)


class SeveralAway(OnSeveral, AwayConformance, StreamAwayConformance, TestCase):
    timeout = 30
    shard = AwayConformance.shard

    async def back(self, *shards: Shard) -> None:
        self.give_back()
        for shard in shards:
            assert isinstance(shard.hub, SeveralHub)
            for hub in shard.hub.hubs:
                await eventually(lambda hub=hub: hub.is_live)

    @property
    def windows(self) -> int:
        place = Rendezvous([server.url for server in self.valkeys]).place
        return len({place(channel) for channel in ("a", "b", "idle")})


class Presence(OnSeveral, PresenceConformance, PresenceAway, TestCase):
    timeout = 30


class Questions(OnSeveral, QuestionsAway, TestCase):
    timeout = 60


class Owners(OnSeveral, OwnershipConformance, TestCase):
    timeout = 30
