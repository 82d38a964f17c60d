"""The witness of spread.client: see witnesses.py for its commands, ledger.py for its lines."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.stdio import StandardIO
from twisted.internet.task import LoopingCall
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from spread.client import Client
from spread.client.errors import ClientError
from spread.client.events import Subscribed
from spread.node.wire.messages import Publication
from tests.live.faults.record import FLUSH_SECONDS, Record, answer, value

reactor: Any = installed


class Witness:
    def __init__(self, record: Record, options: dict[str, Any]) -> None:
        self.record = record
        self.who: str = options["who"]
        self.channel: str = options["channel"]
        self.interval: float = options["interval"]
        self.sequence = 0
        self.is_on = False
        self.idle: Deferred[None] | None = None
        self.is_publishing = False
        self.sdk = Client(
            reactor,
            options["endpoints"][0].replace("http", "ws") + "/connection/websocket",
            protocol="protobuf" if options["protobuf"] else "json",
            min_reconnect_seconds=0.1,
            max_reconnect_seconds=1.0,
            max_ping_delay_seconds=3.0,
        )
        self.sdk.on_connected(lambda event: record.note("C", self.who, 0))
        self.sdk.on_connecting(lambda event: record.note("D", self.who, event.code))
        self.sdk.on_disconnected(lambda event: record.note("D", self.who, event.code))
        if not self.interval:
            self.subscribe()
        self.sdk.connect().addErrback(self.failed)

    def failed(self, failure: Failure) -> None:
        sys.stderr.write(f"{self.who}: {failure.getTraceback()}\n")

    def subscribe(self) -> None:
        subscription = self.sdk.new_subscription(self.channel, recoverable=True)

        @subscription.on_subscribed
        def _(event: Subscribed) -> None:
            at = event.position
            assert at is not None
            flags = int(event.was_recovering), int(event.recovered)
            self.record.note("S", self.who, *flags, at.epoch, at.offset)

        @subscription.on_publication
        def _(publication: Publication) -> None:
            publisher, sequence = value(publication.data)
            self.record.note("M", self.who, publication.offset, publisher, sequence)

        subscription.on_subscribing(lambda event: self.record.note("U", self.who, event.code))
        subscription.on_unsubscribed(lambda event: self.record.note("U", self.who, event.code))
        subscription.subscribe().addErrback(self.failed)

    def begin(self) -> None:
        """Publish until ``cease``."""
        self.is_on = True
        self.later()

    def later(self) -> None:
        reactor.callLater(self.interval * random.uniform(0.5, 1.5), self.publish)

    def publish(self) -> None:
        if not self.is_on:
            return
        self.sequence += 1
        self.is_publishing = True
        self.record.note("P", self.who, self.sequence)
        sent = self.sdk.publish(self.channel, [self.who, self.sequence])
        sent.addCallbacks(self.taken, self.refused).addErrback(self.failed)

    def taken(self, nothing: None) -> None:
        self.record.note("A", self.who, self.sequence)
        self.next()

    def refused(self, failure: Failure) -> None:
        failure.trap(ClientError)
        code = getattr(failure.value, "code", type(failure.value).__name__)
        self.record.note("F", self.who, self.sequence, code)
        self.next()

    def next(self) -> None:
        self.is_publishing = False
        if self.is_on:
            self.later()
        elif self.idle is not None:
            idle, self.idle = self.idle, None
            idle.callback(None)

    def cease(self) -> Deferred[None]:
        """Fires when nothing waits for an answer."""
        self.is_on = False
        ceased: Deferred[None] = Deferred()
        if self.is_publishing:
            self.idle = ceased
        else:
            ceased.callback(None)
        return ceased


class Witnesses(LineReceiver):
    """Commands from standard input; the methods with their names."""

    delimiter = b"\n"
    MAX_LENGTH = 1 << 24

    def __init__(self, record: Record) -> None:
        self.record = record
        self.clients: list[Witness] = []

    def lineReceived(self, line: bytes) -> None:
        command = json.loads(line)
        done: Deferred[None] = Deferred.fromCoroutine(self.run(command))
        done.addErrback(lambda failure: answer(command["n"], failure.value))

    async def run(self, command: dict[str, Any]) -> None:
        await getattr(self, command["do"])(command)
        self.record.flush()
        answer(command["n"])

    async def open(self, command: dict[str, Any]) -> None:
        self.clients += [Witness(self.record, options) for options in command["clients"]]

    async def publish(self, command: dict[str, Any]) -> None:
        for client in self.clients:
            if client.interval:
                client.begin()

    async def cease(self, command: dict[str, Any]) -> None:
        await gatherResults([client.cease() for client in self.clients])

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        reactor.stop()


def main(path: str) -> None:
    record = Record(path)
    LoopingCall(record.flush).start(FLUSH_SECONDS).addErrback(lambda failure: failure.printTraceback())
    witnesses: Any = Witnesses(record)
    StandardIO(witnesses)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1])
