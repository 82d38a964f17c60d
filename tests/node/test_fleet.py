"""Several shards on one machine: what the fleet decides, with processes that are not real, and then
all of it with real ones."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import EventLoggingObserver
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from spread.node import child as child_module
from spread.node.fleet import Fleet, State
from spread.node.listen import bind

reactor = cast(Any, global_reactor)
LOOPBACK = "127.0.0.1"
CHECK = -1
"""In place of its number: the process that checks before a roll."""
FAKE_SHARD = [sys.executable, "-I", "-S", str(Path(__file__).with_name("fake_shard.py"))]


def texts(observer: EventLoggingObserver) -> list[str]:
    """What the fleet and its children logged."""
    return [formatEvent(event) for event in observer if event["log_namespace"].startswith("spread.")]


# --- what the fleet decides ---------------------------------------------------------------------------


class FakeProcess:
    """``IProcessTransport`` of a process that does what a test says."""

    def __init__(self, protocol: Any, shard: int) -> None:
        self.protocol = protocol
        self.shard = shard
        self.signals: list[str | int] = []

    def signalProcess(self, name: str | int) -> None:
        self.signals.append(name)

    def loseConnection(self) -> None:
        raise AssertionError("its pipes end with it")

    def be_ready(self) -> None:
        self.protocol.childDataReceived(1, f"ready shard={self.shard}\n".encode())

    def exit(self, code: int | None = 0, number: int | None = None) -> None:
        reason = Failure(ProcessTerminated(code, number) if code or number else ProcessDone(0))
        self.protocol.processExited(reason)
        self.protocol.processEnded(reason)


class FakeReactor(Clock):
    """A clock that also starts processes."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[FakeProcess] = []
        self.broken: set[int] = set()
        """Shards that cannot be started."""

    def spawnProcess(self, protocol: Any, executable: Any, /, *, args: Any, env: Any, childFDs: Any) -> None:
        shard = CHECK if args == ("check",) else int(args[-1])
        if shard in self.broken:
            raise FileNotFoundError(executable)
        process = FakeProcess(protocol, shard)
        self.started.append(process)
        protocol.makeConnection(process)

    def process(self, shard: int) -> FakeProcess:
        """The latest of a shard."""
        return [process for process in self.started if process.shard == shard][-1]

    @property
    def shards_started(self) -> list[int]:
        return [process.shard for process in self.started]


class TestDecisions(SynchronousTestCase):
    def setUp(self) -> None:
        self.logged = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)
        self.reactor = FakeReactor()
        self.lines: list[str] = []
        self.out_error: OSError | None = None
        self.socket = bind(LOOPBACK, 0)
        self.addCleanup(self.socket.close)

    def make(self, shards: Sequence[int] = (4, 5, 6), check: Sequence[str] = ()) -> Fleet:
        return Fleet(
            self.reactor,
            shards=shards,
            command=["shard"],
            sockets={4: {"text": self.socket}},
            environ={},
            out=self.out,
            stop_seconds=10,
            random=lambda: 0.0,
            check=check,
        )

    def out(self, line: str) -> None:
        self.lines.append(line)
        if self.out_error is not None:
            raise self.out_error

    def start(self, *, ready: bool = True, check: Sequence[str] = ()) -> None:
        self.fleet = self.make(check=check)
        self.done = self.fleet.start()
        if ready:
            for shard in (4, 5, 6):
                self.reactor.process(shard).be_ready()
            self.assertEqual(set(self.fleet.states.values()), {State.READY})

    def process(self, shard: int) -> FakeProcess:
        return self.reactor.process(shard)

    def finish(self, code: int) -> None:
        """All is over, with an exit code; nothing is left behind."""
        self.assertEqual(self.successResultOf(self.done), code)
        self.assertEqual(set(self.fleet.states.values()), {State.GONE})
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.socket.fileno(), -1)

    def stop(self, code: int = 0) -> None:
        self.fleet.stop()
        for shard, state in self.fleet.states.items():
            if state is State.STOPPING:
                self.process(shard).exit()
        self.finish(code)

    def test_a_fleet_needs_a_shard(self) -> None:
        with self.assertRaises(ValueError):
            self.make([])

    # start

    def test_the_first_shard_starts_alone(self) -> None:
        self.start(ready=False)
        self.assertEqual(self.reactor.shards_started, [4])
        self.assertEqual(self.fleet.states, {4: State.STARTING, 5: State.WAITING, 6: State.WAITING})
        self.process(4).be_ready()
        self.assertEqual(self.reactor.shards_started, [4, 5, 6])
        self.stop()

    def test_the_others_start_when_the_first_one_dies(self) -> None:
        self.start(ready=False)
        self.process(4).exit(1)
        self.assertEqual(self.reactor.shards_started, [4, 5, 6])
        self.reactor.advance(0.1)
        self.process(4).be_ready()
        self.assertEqual(self.reactor.shards_started, [4, 5, 6, 4])
        self.stop()

    def test_exit_codes_that_end_the_fleet(self) -> None:
        for code in (2, 3, 4):
            self.socket = bind(LOOPBACK, 0)
            self.reactor = FakeReactor()
            self.start(ready=False)
            self.process(4).be_ready()
            self.process(5).exit(code)
            self.assertNoResult(self.done)
            self.assertEqual(self.process(4).signals, ["TERM"])
            self.assertEqual(self.process(6).signals, ["TERM"])
            self.process(4).exit()
            # Too young to have a handler.
            self.process(6).exit(None, signal.SIGTERM)
            self.finish(code)
            self.assertIn(
                f"shard 5 has ended (exit code {code}) before it was ready: the fleet stops",
                texts(self.logged),
            )

    def test_a_first_shard_that_cannot_start_ends_the_fleet_at_once(self) -> None:
        self.start(ready=False)
        self.process(4).exit(2)
        self.assertEqual(self.reactor.shards_started, [4])
        self.finish(2)

    def test_five_early_deaths_end_the_fleet(self) -> None:
        self.start(ready=False)
        for count in range(4):
            self.process(4).exit(1)
            self.assertEqual(self.fleet.states[4], State.WAITING)
            self.reactor.advance(5)
            self.assertEqual(self.reactor.shards_started.count(4), count + 2)
        self.process(4).exit(None, signal.SIGSEGV)
        self.assertEqual(self.process(5).signals, ["TERM"])
        self.process(5).exit()
        self.process(6).exit()
        self.finish(1)
        self.assertIn(
            "shard 4 has died 5 times before it was ready, the last time by signal SIGSEGV: the fleet stops",
            texts(self.logged),
        )

    def test_early_deaths_count_for_each_shard_alone(self) -> None:
        self.start(ready=False)
        for _ in range(3):
            for shard in (4, 5, 6):
                self.process(shard).exit(1)
            self.reactor.advance(5)
        self.assertNoResult(self.done)
        self.stop()

    def test_a_command_that_does_not_exist_ends_the_fleet(self) -> None:
        self.reactor.broken = {4, 5, 6}
        self.start(ready=False)
        self.reactor.pump([0.2] * 20)
        self.finish(1)

    # deaths

    def test_a_death_touches_no_other_shard(self) -> None:
        self.start()
        self.process(5).exit(None, signal.SIGKILL)
        self.assertEqual(self.fleet.states, {4: State.READY, 5: State.WAITING, 6: State.READY})
        self.assertIn("shard 5 has ended (signal SIGKILL); it starts again in 0.1 s", texts(self.logged))
        self.reactor.advance(0.1)
        self.assertEqual(self.reactor.shards_started, [4, 5, 6, 5])
        self.process(5).be_ready()
        self.assertEqual(self.process(4).signals + self.process(6).signals, [])
        self.stop()

    def test_a_shard_that_was_ready_is_never_given_up(self) -> None:
        self.start()
        for code in (3, 4, 2, 0, 1, 1, 1, 1, 1, 1):
            self.process(5).exit(code)
            self.assertEqual(self.fleet.states[5], State.WAITING)
            self.reactor.advance(5)
            self.assertEqual(self.fleet.states[5], State.STARTING)
        self.assertNoResult(self.done)
        self.process(5).be_ready()
        self.stop()

    # stop

    def test_a_stop_ends_with_0_when_all_ended_with_0(self) -> None:
        self.start()
        self.fleet.stop()
        for shard in (4, 5, 6):
            self.assertEqual(self.process(shard).signals, ["TERM"])
            self.assertNoResult(self.done)
            self.process(shard).exit()
        self.finish(0)

    def test_a_stop_ends_with_1_when_one_did_not(self) -> None:
        self.start()
        self.fleet.stop()
        self.process(4).exit()
        self.process(5).exit(7)
        self.process(6).exit()
        self.finish(1)

    def test_the_sockets_are_closed_before_the_shards_stop(self) -> None:
        """So that nobody queues up any more for a shard that has no successor."""
        self.start()
        closed: list[bool] = []
        self.process(4).signalProcess = lambda _: closed.append(self.socket.fileno() == -1)  # type: ignore[method-assign]
        self.stop()
        self.assertEqual(closed, [True])

    def test_the_second_stop_kills(self) -> None:
        self.start()
        self.fleet.stop()
        self.process(4).exit()
        self.fleet.stop()
        self.assertEqual(self.process(4).signals, ["TERM"])
        self.assertEqual(self.process(5).signals, ["TERM", "KILL"])
        self.process(5).exit(None, signal.SIGKILL)
        self.process(6).exit(None, signal.SIGKILL)
        self.finish(1)
        self.fleet.stop()

    def test_a_stop_while_the_fleet_gives_up_is_the_first_one(self) -> None:
        self.start(ready=False)
        self.process(4).be_ready()
        self.process(5).exit(3)
        self.fleet.stop()
        self.assertEqual(self.process(4).signals, ["TERM"])
        self.fleet.stop()
        self.assertEqual(self.process(4).signals, ["TERM", "KILL"])
        self.process(4).exit(None, signal.SIGKILL)
        self.process(6).exit()
        self.finish(3)

    def test_what_does_not_stop_is_killed(self) -> None:
        self.start()
        self.fleet.stop()
        self.process(4).exit()
        self.process(6).exit()
        self.reactor.advance(12)
        self.assertEqual(self.process(5).signals, ["TERM", "KILL"])
        self.process(5).exit(None, signal.SIGKILL)
        self.finish(1)

    def test_nothing_is_started_while_the_fleet_stops(self) -> None:
        self.start(ready=False)
        self.fleet.stop()
        self.fleet.roll()
        self.process(4).be_ready()
        self.process(4).exit()
        self.assertEqual(self.reactor.shards_started, [4])
        self.finish(0)

    def test_a_shard_that_waits_is_not_waited_for(self) -> None:
        self.start()
        self.process(4).exit(1)
        self.fleet.stop()
        self.assertEqual(self.fleet.states[4], State.GONE)
        self.process(5).exit()
        self.process(6).exit()
        self.finish(0)

    def test_a_fleet_that_was_stopped_does_not_start(self) -> None:
        self.fleet = self.make()
        self.fleet.stop()
        self.done = self.fleet.start()
        self.assertEqual(self.reactor.started, [])
        self.finish(0)

    # roll

    def roll_one(self, shard: int) -> None:
        self.assertEqual(self.process(shard).signals, ["TERM"])
        self.process(shard).exit()
        self.assertEqual(self.fleet.states[shard], State.STARTING)
        self.process(shard).be_ready()

    def test_a_roll_replaces_one_after_the_other(self) -> None:
        self.start()
        self.fleet.roll()
        self.assertEqual(self.fleet.states, {4: State.STOPPING, 5: State.READY, 6: State.READY})
        self.process(4).exit()
        self.assertEqual(self.fleet.states, {4: State.STARTING, 5: State.READY, 6: State.READY})
        self.process(4).be_ready()
        self.assertEqual(self.fleet.states, {4: State.READY, 5: State.STOPPING, 6: State.READY})
        self.roll_one(5)
        self.roll_one(6)
        self.assertEqual(self.reactor.shards_started, [4, 5, 6, 4, 5, 6])
        rolling = [text for text in texts(self.logged) if text.startswith("roll")]
        self.assertEqual(
            rolling,
            [
                "rolling shard 4 (1 of 3)",
                "rolling shard 5 (2 of 3)",
                "rolling shard 6 (3 of 3)",
                "rolled 3 shards",
            ],
        )
        self.stop()

    def test_a_roll_kills_what_does_not_stop(self) -> None:
        self.start()
        self.fleet.roll()
        self.reactor.advance(12)
        self.assertEqual(self.process(4).signals, ["TERM", "KILL"])
        self.process(4).exit(None, signal.SIGKILL)
        self.assertIn("shard 4 did not stop cleanly (signal SIGKILL)", texts(self.logged))
        self.process(4).be_ready()
        self.roll_one(5)
        self.roll_one(6)
        self.stop()

    def test_a_replacement_that_fails_ends_the_roll_and_nothing_else(self) -> None:
        self.start()
        self.fleet.roll()
        self.process(4).exit()
        self.process(4).exit(2)
        self.assertEqual(self.fleet.states, {4: State.WAITING, 5: State.READY, 6: State.READY})
        self.assertEqual(len([text for text in texts(self.logged) if "the roll ends here" in text]), 1)
        self.reactor.advance(0.1)
        self.process(4).be_ready()
        self.assertEqual(self.fleet.states, {4: State.READY, 5: State.READY, 6: State.READY})
        self.stop()

    def test_a_new_roll_tries_again_at_once(self) -> None:
        self.start()
        for _ in range(6):
            self.process(4).exit(1)
            self.reactor.advance(5)
        self.process(4).exit(1)
        started = len(self.reactor.started)
        self.fleet.roll()
        self.assertEqual(len(self.reactor.started), started + 1)
        self.process(4).be_ready()
        self.roll_one(5)
        self.roll_one(6)
        self.stop()

    def test_rolls_asked_for_during_a_roll_are_one_more(self) -> None:
        self.start()
        self.fleet.roll()
        for shard in (4, 5, 6):
            self.fleet.roll()
            self.roll_one(shard)
        self.assertEqual(self.fleet.states, {4: State.STOPPING, 5: State.READY, 6: State.READY})
        for shard in (4, 5, 6):
            self.roll_one(shard)
        self.assertEqual(len(self.reactor.started), 9)
        self.assertEqual(set(self.fleet.states.values()), {State.READY})
        self.stop()

    def test_a_roll_asked_for_during_the_start_comes_after_it(self) -> None:
        self.start(ready=False)
        self.fleet.roll()
        self.process(4).be_ready()
        self.process(6).be_ready()
        self.assertEqual(self.process(4).signals, [])
        self.process(5).be_ready()
        for shard in (4, 5, 6):
            self.roll_one(shard)
        self.stop()

    def test_a_roll_begins_when_the_check_has_found_nothing_wrong(self) -> None:
        self.start(check=["check"])
        self.fleet.roll()
        self.assertEqual(set(self.fleet.states.values()), {State.READY})
        self.process(CHECK).protocol.childDataReceived(1, b"ready shard=4\n")
        self.process(CHECK).exit()
        for shard in (4, 5, 6):
            self.roll_one(shard)
        self.assertIn("rolled 3 shards", texts(self.logged))
        self.assertEqual(self.lines, [f"ready shard={shard}\n" for shard in (4, 5, 6, 4, 5, 6)])
        self.stop()

    def test_no_shard_is_replaced_when_none_could_start(self) -> None:
        self.start(check=["check"])
        self.fleet.roll()
        self.process(CHECK).exit(2)
        self.fleet.roll()
        self.reactor.advance(30)
        self.assertEqual(self.process(CHECK).signals, ["KILL"])
        self.process(CHECK).exit(None, signal.SIGKILL)
        self.reactor.broken.add(CHECK)
        self.fleet.roll()
        self.assertEqual(set(self.fleet.states.values()), {State.READY})
        refused = [text for text in texts(self.logged) if text.endswith("no shard is replaced")]
        self.assertEqual(len(refused), 3)
        self.assertIn("(exit code 2)", refused[0])
        self.assertIn("(signal SIGKILL)", refused[1])
        self.assertIn("(it could not be started: ", refused[2])
        self.assertEqual([self.process(shard).signals for shard in (4, 5, 6)], [[], [], []])
        self.stop()

    def test_rolls_asked_for_during_a_check_are_one_more(self) -> None:
        self.start(check=["check"])
        self.fleet.roll()
        first = self.process(CHECK)
        self.fleet.roll()
        self.fleet.roll()
        self.assertIs(self.process(CHECK), first)
        first.exit(2)
        self.assertIsNot(self.process(CHECK), first)
        self.process(CHECK).exit(2)
        self.assertEqual(self.reactor.shards_started, [4, 5, 6, CHECK, CHECK])
        self.stop()

    def test_a_stop_ends_a_check(self) -> None:
        self.start(check=["check"])
        self.fleet.roll()
        self.fleet.stop()
        self.assertEqual(self.process(CHECK).signals, ["KILL"])
        self.process(CHECK).exit(None, signal.SIGKILL)
        for shard in (4, 5, 6):
            self.process(shard).exit()
        self.assertEqual([text for text in texts(self.logged) if "no shard is replaced" in text], [])
        self.assertEqual(len(self.reactor.started), 4)
        self.finish(0)

    def test_a_stop_ends_a_roll(self) -> None:
        self.start()
        self.fleet.roll()
        self.fleet.stop()
        self.assertEqual(self.process(4).signals, ["TERM"])
        for shard in (4, 5, 6):
            self.process(shard).exit()
        self.assertEqual(len(self.reactor.started), 3)
        self.assertEqual([text for text in texts(self.logged) if "the roll ends here" in text], [])
        self.finish(0)

    # output

    def test_lines_are_passed_on_with_their_ends(self) -> None:
        self.start()
        self.assertEqual(self.lines, ["ready shard=4\n", "ready shard=5\n", "ready shard=6\n"])
        self.stop()

    def test_an_output_that_is_closed_stops_no_shard(self) -> None:
        self.out_error = BrokenPipeError(32, "Broken pipe")
        self.start()
        self.assertEqual(self.lines, ["ready shard=4\n"])
        complaints = [text for text in texts(self.logged) if "no longer passed on" in text]
        self.assertEqual(len(complaints), 1)
        self.stop()


# --- real processes -----------------------------------------------------------------------------------


class Client:
    """One connection to the fleet, made at once; the kernel queues it when no process accepts it."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((LOOPBACK, port), timeout=5)
        self.socket.setblocking(False)
        self.socket.send(b"who?\n")

    async def answer(self) -> tuple[str, int, int]:
        """Service, shard and process that answered. An error if the connection was reset."""
        deadline = reactor.seconds() + 10
        while True:
            try:
                data = self.socket.recv(100)
            except BlockingIOError:
                assert reactor.seconds() < deadline, "no answer"
                await deferLater(reactor, 0.001)
                continue
            assert data.endswith(b"\n"), "closed without an answer"
            self.socket.close()
            service, shard, pid = data.decode().split()
            return service, int(shard), int(pid)


class TestProcesses(TestCase):
    timeout = 20

    def setUp(self) -> None:
        self.logged = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)
        orders = tempfile.TemporaryDirectory()
        self.addCleanup(orders.cleanup)
        self.orders = Path(orders.name)
        self.lines: list[str] = []
        self.fleet: Fleet | None = None
        self.done: Deferred[int] | None = None

    async def tearDown(self) -> None:
        if self.fleet is not None and self.done is not None and not self.done.called:
            self.fleet.stop()
            self.fleet.stop()
            await self.done

    def order(self, shard: int, order: str) -> None:
        """What a shard does from its next start on."""
        (self.orders / str(shard)).write_text(order)

    def start(self, shards: Sequence[int] = (0, 1), stop_seconds: float = 5) -> None:
        first = {"text": bind(LOOPBACK, 0), "http": bind(LOOPBACK, 0)}
        self.text, self.http = (sock.getsockname()[1] for sock in first.values())
        sockets = {
            shard: {"text": bind(LOOPBACK, self.text), "http": bind(LOOPBACK, self.http)} for shard in shards
        }
        for sock in first.values():
            sock.close()
        self.fleet = Fleet(
            reactor,
            shards=shards,
            command=FAKE_SHARD,
            sockets=sockets,
            environ={**os.environ, "FAKE_ORDERS": str(self.orders)},
            out=self.lines.append,
            stop_seconds=stop_seconds,
        )
        self.done = self.fleet.start()

    async def turn_until(self, condition: Callable[[], bool]) -> None:
        deadline = reactor.seconds() + 10
        while not condition():
            assert reactor.seconds() < deadline, f"it did not come true; logged: {texts(self.logged)}"
            await deferLater(reactor, 0.002)

    async def until_ready(self) -> None:
        assert self.fleet is not None
        fleet = self.fleet
        await self.turn_until(lambda: set(fleet.states.values()) == {State.READY})

    async def stop(self) -> int:
        assert self.fleet is not None and self.done is not None
        self.fleet.stop()
        return await self.done

    async def who(self, count: int = 20) -> dict[int, int]:
        """The process of every shard that answers one of ``count`` clients."""
        answers = await gatherResults(
            [Deferred.fromCoroutine(Client(self.text).answer()) for _ in range(count)], consumeErrors=True
        )
        return {shard: pid for _, shard, pid in answers}

    async def test_two_shards_serve_on_one_port(self) -> None:
        self.start()
        await self.until_ready()
        # That 40 clients all go to the same shard happens once in 2 ** 39 times.
        pids = await self.who(40)
        self.assertEqual(set(pids), {0, 1})
        self.assertEqual(len(set(pids.values())), 2)
        self.assertNotIn(os.getpid(), pids.values())
        self.assertEqual((await Client(self.http).answer())[0], "http")
        self.assertEqual(sorted(line.split()[1] for line in self.lines), ["shard=0", "shard=1"])
        self.assertEqual(await self.stop(), 0)
        with socket.socket() as late:
            self.assertNotEqual(late.connect_ex((LOOPBACK, self.text)), 0)

    async def test_a_killed_shard_is_replaced_and_its_queue_kept(self) -> None:
        self.start()
        await self.until_ready()
        before = await self.who(40)
        os.kill(before[1], signal.SIGKILL)
        assert self.fleet is not None
        fleet = self.fleet
        await self.turn_until(lambda: fleet.states[1] is State.WAITING)
        # Made before the reactor turns again, so nobody has the sockets of shard 1 now but the parent.
        clients = [Client(self.text) for _ in range(40)]
        answers = [await client.answer() for client in clients]
        after = {shard: pid for _, shard, pid in answers}
        self.assertEqual(set(after), {0, 1})
        self.assertEqual(after[0], before[0])
        self.assertNotEqual(after[1], before[1])
        self.assertEqual(len(self.lines), 3)
        self.assertEqual(await self.stop(), 0)

    async def test_no_client_notices_a_roll(self) -> None:
        self.start()
        await self.until_ready()
        before = await self.who(40)
        assert self.fleet is not None
        fleet = self.fleet
        answers: list[Deferred[tuple[str, int, int]]] = []
        while_one_was_away = 0
        fleet.roll()
        fleet.roll()
        while texts(self.logged).count("rolled 2 shards") < 2:
            assert len(answers) < 5000, "the rolls take too long"
            while_one_was_away += set(fleet.states.values()) != {State.READY}
            answers.append(Deferred.fromCoroutine(Client(self.text).answer()))
            await deferLater(reactor, 0.002)
        # Each of them got its answer; a single refusal or reset would be an error here.
        await gatherResults(answers, consumeErrors=True)
        self.assertGreater(while_one_was_away, 10)
        after = await self.who(40)
        self.assertEqual(set(after), {0, 1})
        self.assertEqual(set(after.values()) & set(before.values()), set())
        self.assertEqual(await self.stop(), 0)

    async def test_a_taken_number_ends_the_fleet(self) -> None:
        self.order(1, "exit 3")
        self.start()
        assert self.done is not None
        self.assertEqual(await self.done, 3)
        self.assertEqual(len(self.lines), 1)

    async def test_a_shard_that_fails_to_stop_is_told_by_the_exit_code(self) -> None:
        self.order(1, "fail 7")
        self.start()
        await self.until_ready()
        self.assertEqual(await self.stop(), 1)
        self.assertIn("shard 1 has ended (exit code 7)", texts(self.logged))

    async def test_a_shard_that_ignores_sigterm_is_killed(self) -> None:
        self.patch(child_module, "KILL_AFTER_SECONDS", 0.1)
        self.order(1, "deaf")
        self.start(stop_seconds=0.1)
        await self.until_ready()
        self.assertEqual(await self.stop(), 1)
        self.assertIn("shard 1 has ended (signal SIGKILL)", texts(self.logged))
        self.assertIn("shard 0 has ended (exit code 0)", texts(self.logged))

    async def test_the_second_stop_does_not_wait(self) -> None:
        self.order(0, "deaf")
        self.start([0], stop_seconds=600)
        await self.until_ready()
        assert self.fleet is not None
        self.fleet.stop()
        self.assertEqual(await self.stop(), 1)

    async def test_output_that_is_too_long_or_unfinished(self) -> None:
        self.order(0, "chatter")
        self.start([0])
        await self.until_ready()
        self.assertEqual(await self.stop(), 0)
        self.assertEqual(self.lines[0], "x" * 65536 + "\n")
        self.assertTrue(self.lines[1].startswith("ready shard=0 "))
        self.assertEqual(self.lines[2:], ["the end\n"])

    async def test_a_process_left_behind_does_not_hide_the_death(self) -> None:
        self.patch(child_module, "OUTPUT_SECONDS", 0.05)
        self.order(0, "leave")
        self.start([0])
        await self.turn_until(lambda: any("exit code 1" in text for text in texts(self.logged)))
        self.order(0, "serve")
        await self.until_ready()
        self.assertEqual(await self.stop(), 0)

    async def test_shards_do_not_outlive_their_parent(self) -> None:
        """The parent is killed, and can tell nobody. Its standard error ends when all have ended."""
        parent = Parent()
        program = PARENT.format(command=FAKE_SHARD)
        environ = {**os.environ, "FAKE_ORDERS": str(self.orders)}
        reactor.spawnProcess(parent, sys.executable, [sys.executable, "-c", program], env=environ)
        await parent.ready
        for shard, addresses in parent.addresses.items():
            for service, port in addresses.items():
                self.assertEqual((await Client(port).answer())[:2], (service, shard))
        os.kill(parent.pid, signal.SIGKILL)
        await parent.ended
        self.assertEqual(parent.errors, b"")


PARENT = """
import os
from spread.node.fleet import Fleet
from spread.node.listen import bind
# Taken first, these have descriptors from 3 on, as in the children; those of shard 1 must change places.
one, two, three, four = (bind("127.0.0.1", 0) for _ in range(4))
from twisted.internet import reactor
fleet = Fleet(
    reactor,
    shards=[0, 1],
    command={command!r},
    sockets={{1: {{"text": two, "http": one}}, 0: {{"text": three, "http": four}}}},
    environ=os.environ,
    out=lambda line: print(line, end="", flush=True),
    stop_seconds=5,
)
reactor.callWhenRunning(fleet.start)
reactor.run()
"""


class Parent(ProcessProtocol):
    """A fleet in a process of its own."""

    def __init__(self) -> None:
        self.ready: Deferred[None] = Deferred()
        self.ended: Deferred[None] = Deferred()
        self.output = b""
        self.errors = b""

    @property
    def pid(self) -> int:
        return cast(Any, self.transport).pid

    @property
    def addresses(self) -> dict[int, dict[str, int]]:
        """The ports of every shard, by service."""
        found = {}
        for line in self.output.decode().splitlines():
            _, shard, *services = line.split()
            ports = dict(service.split("=") for service in services)
            found[int(shard.removeprefix("shard="))] = {
                name: int(address.rpartition(":")[2]) for name, address in ports.items()
            }
        return found

    def outReceived(self, data: bytes) -> None:
        self.output += data
        if self.output.count(b"ready shard=") == 2 and not self.ready.called:
            self.ready.callback(None)

    def errReceived(self, data: bytes) -> None:
        self.errors += data

    def processEnded(self, reason: Failure) -> None:
        if not self.ready.called:
            self.ready.errback(AssertionError(self.errors.decode()))
        self.ended.callback(None)
