"""The suites that every hub passes, on a cluster of three primaries."""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import TestCase

from spread.hub.cluster import ClusterHub
from spread.hub.errors import HubRefused
from spread.hub.link import SubscriberProtocol
from tests.hub.backends import OnCluster
from tests.hub.clusters import ValkeyCluster
from tests.hub.conformance import AwayConformance, HubConformance
from tests.hub.shards import Shard, eventually
from tests.hub.stream_conformance import StreamAwayConformance, StreamConformance
from tests.hub.test_ownership import OwnershipConformance
from tests.hub.test_presence import PresenceAway, PresenceConformance
from tests.hub.test_questions import QuestionsAway

CLUSTER = ValkeyCluster(3)


def setUpModule() -> None:
    CLUSTER.start()


def tearDownModule() -> None:
    CLUSTER.close()


class ClusterConformance(OnCluster, HubConformance, StreamConformance, TestCase):
    timeout = 60
    cluster = CLUSTER
    shard = HubConformance.shard
    servers = 3

    def deafen(self, shard: Shard) -> Callable[[], None]:
        """It hears no message of its channels until what this gives is called."""
        assert isinstance(shard.hub, ClusterHub)
        before = []
        for group in shard.hub.groups:
            connection = group.server.hearing.protocol
            assert isinstance(connection, SubscriberProtocol)
            before.append((connection, connection.message))
            connection.message = lambda key, payload: None

        def again() -> None:
            for connection, hear in before:
                connection.message = hear

        return again

    def forget_everything(self) -> None:
        self.cluster.flush()

    async def dropped(self, channel: str) -> None:
        await eventually(lambda: self.receivers(f"spread:ch:{{{channel}}}") == 0)


class ClusterAway(OnCluster, AwayConformance, StreamAwayConformance, TestCase):
    timeout = 30
    cluster = CLUSTER
    shard = AwayConformance.shard
    windows = 3


class Presence(OnCluster, PresenceConformance, PresenceAway, TestCase):
    timeout = 30
    cluster = CLUSTER


class Questions(OnCluster, QuestionsAway, TestCase):
    timeout = 60
    cluster = CLUSTER


class Owners(OnCluster, OwnershipConformance, TestCase):
    timeout = 30
    cluster = CLUSTER

    async def test_a_name_that_no_channel_of_a_cluster_has(self) -> None:
        shard = await self.shard()
        await self.assertFailure(shard.hub.take("}x"), HubRefused)
