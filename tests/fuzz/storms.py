"""Several clients at a time, whose commands, ends and orders of the backend cross; the hub comes and goes.

What is said is mostly good here: it is the order that is not.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from spread.node.api.methods import ApiError
from spread.node.edge.codecs import JSON_LINES
from tests.fuzz.corpus import REQUESTS
from tests.fuzz.messages import connect_frame, json_frame, protobuf_frame, still_command
from tests.fuzz.targets import Target, note_code, note_replies
from tests.fuzz.town import PROTOBUF, Caller, Town

__all__ = ["StormTarget"]

_ORDERS = tuple(
    (target.decode().rpartition("/")[2], body)
    for _, target, _, body in REQUESTS
    if target.startswith(b"/api/")
)
MAX_CALLERS = 5


class StormTarget(Target):
    """See the top of this module."""

    name = "storm"

    def play(self, random: Random, town: Town) -> int:
        """See ``Target``."""
        self.sent = []
        self._said = 0
        self._callers: list[Caller] = []
        self._is_cut = False
        self._came(random, town)
        actions: list[tuple[float, Callable[[Random, Town], None]]] = [
            *((14.0, self._says), (4.0, self._turns), (1.0, self._came), (1.0, self._vanishes)),
            *((2.0, self._orders), (0.3, self._cuts), (0.3, self._restores)),
        ]
        weights, doings = zip(*actions, strict=True)
        for doing in random.choices(doings, weights, k=random.choice((5, 15, 40))):
            doing(random, town)
        if self._is_cut:
            self._restores(random, town)
        town.turn(random.choice((0.0, 0.0, 6.0)))
        for caller in self._callers:
            caller.wire.drain()
            note_replies(self.told, caller.replies(), is_hub_there=not town.was_cut)
            if caller.closed is not None:
                note_code(self.told, caller.closed.code)
            caller.wire.lose()
        if town.was_cut:
            town.turn(10.0)
            town.was_cut = False
        return max(1, self._said)

    def _came(self, random: Random, town: Town) -> None:
        if len(self._callers) >= MAX_CALLERS:
            return
        is_protobuf = random.random() < 0.5
        codec = PROTOBUF if is_protobuf else JSON_LINES
        caller = Caller(random.choice(town.shards), codec, 2000 if random.random() < 0.02 else None)
        self._callers.append(caller)
        self._sends(caller, connect_frame(random, is_protobuf))

    def _sends(self, caller: Caller, frame: bytes) -> None:
        self.sent.append(frame)
        self._said += caller.say(frame)

    def _says(self, random: Random, town: Town) -> None:
        caller = random.choice(self._callers)
        if random.random() < 0.97:
            several = [still_command(random, caller.is_protobuf) for _ in range(random.choice((1, 1, 2, 8)))]
            self._sends(caller, (b"" if caller.is_protobuf else b"\n").join(several))
        else:
            self._sends(caller, protobuf_frame(random) if caller.is_protobuf else json_frame(random))

    def _turns(self, random: Random, town: Town) -> None:
        town.turn(random.choice((0.0, 0.0, 0.0, 0.1, 1.0, 4.0, 30.0)))
        for caller in self._callers:
            if random.random() < 0.9:
                caller.say(b"\0" if caller.is_protobuf else b"{}")  # a pong

    def _vanishes(self, random: Random, town: Town) -> None:
        random.choice(self._callers).wire.lose()

    def _orders(self, random: Random, town: Town) -> None:
        """The backend wants something."""
        method, body = random.choice(_ORDERS)
        self.sent.append(method.encode() + b" " + body)
        done: Deferred[bytes] = random.choice(town.shards).gateway._methods.call(method, body)
        done.addCallbacks(lambda _: None, self._refused)

    def _refused(self, failure: Failure) -> None:
        failure.trap(ApiError)
        self.told["order refused"] += 1

    def _cuts(self, random: Random, town: Town) -> None:
        if not self._is_cut:
            self.sent.append(b"(the hub is cut)")
            self._is_cut = town.was_cut = True
            town.exchange.cut()

    def _restores(self, random: Random, town: Town) -> None:
        if self._is_cut:
            self.sent.append(b"(the hub is back)")
            self._is_cut = False
            town.exchange.restore()
