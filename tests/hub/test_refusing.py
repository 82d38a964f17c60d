"""Channels that no cluster can have are refused, whatever is asked of them."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from spread.hub.api import ClientInfo, Format, History, Joined
from spread.hub.errors import HubRefused
from spread.hub.refusing import Refusing

ANN = ClientInfo("ann", "c1")
KEPT = History(10, 60, 600)


class RefusingCase(SynchronousTestCase):
    def test_all_is_refused(self) -> None:
        refusing = Refusing("the hub", "it cannot be")
        for asked in (
            refusing.publish("}", b"x", Format.TEXT, 0),
            refusing.subscribe("}"),
            refusing.history("}", KEPT),
            refusing.remove_history("}"),
            refusing.add_presence("}", ANN, 60),
            refusing.remove_presence("}", "c1"),
            refusing.presence("}"),
            refusing.presence_stats("}"),
            refusing.announce("}", Joined(ANN)),
        ):
            error = self.failureResultOf(asked, HubRefused).value
            self.assertEqual(str(error), "the hub the hub refused: it cannot be")
        refusing.unsubscribe("}")
        refusing.press("}")
