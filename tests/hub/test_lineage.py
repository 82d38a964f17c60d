"""Which copy of the data a server has: what the script decides, and what follows when it is another one."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from spread.hub.errors import HubUnavailable
from spread.hub.lineage import CHECK_SECONDS, Lineage
from spread.hub.scripts import script
from tests.hub.scripted import Outcome, Wire, answer, captured, command_wire, noperm
from tests.hub.servers import Valkey, free_port, until

ONE, OTHER = b"a" * 40, b"b" * 40


class Stage:
    """A lineage with a commands connection and a hearing one that the test answers."""

    class Link:
        name = "there"
        protocol: Any = None

    def __init__(self, elsewhere: Any = None) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000.0)
        self.commands, self.hearing = self.Link(), self.Link()
        endpoint: Any = object()
        if elsewhere is not None:
            endpoint = type("Endpoint", (), {"elsewhere": staticmethod(elsewhere)})()
        links: Any = (self.commands, self.hearing)
        self.lineage = Lineage(self.clock, lambda: b"spread:lineage", *links, endpoint)

    def introduce(self, *told: Any, hearing: bool = False) -> tuple[Wire, Outcome]:
        """A connection whose handshake ends with this answer."""
        connection, wire = command_wire(self.clock)
        step = self.lineage.introduce_hearing if hearing else self.lineage.introduce
        done = Outcome(Deferred.fromCoroutine(step(connection)))
        assert wire.command()[:4] == [b"EVALSHA", script("lineage")[1], b"1", b"spread:lineage"]
        wire.says(answer(list(told) if len(told) > 1 else told[0]))
        (self.hearing if hearing else self.commands).protocol = connection
        return wire, done

    def check(self, wire: Wire, *told: Any) -> list[bytes]:
        """Time for a check passes, which is answered; gives what it asked."""
        self.clock.advance(CHECK_SECONDS)
        asked = wire.command()
        wire.says(answer(list(told) if len(told) > 1 else told[0]))
        self.clock.advance(0)
        return asked


def test_the_generation_is_kept_on_the_connection() -> None:
    stage = Stage()
    wire, done = stage.introduce(b"0", ONE, b"run1", b"master")
    assert done.value is None
    connection = stage.commands.protocol
    assert (connection.generation, connection.server_run) == (b"0", b"run1")
    stage.lineage.watch()
    asked = stage.check(wire, b"new", OTHER, b"run1", b"master")
    assert asked[5:] == [ONE, b"0"], "what was known goes with it"
    assert connection.generation == b"new"
    assert stage.check(wire, b"new", OTHER, b"run1", b"master")[5:] == [OTHER, b"new"]
    stage.lineage.stop()
    stage.lineage.stop()
    assert not wire.is_cut
    stage.clock.advance(2 * CHECK_SECONDS)
    assert wire.commands() == []


def test_a_replica_gives_what_no_channel_has() -> None:
    stage = Stage()
    wire, done = stage.introduce(b"", ONE, b"run1", b"slave")
    assert done.value is None
    assert len(stage.commands.protocol.generation) == 8
    stage.lineage.watch()
    stage.check(wire, b"", ONE, b"run1", b"slave")
    assert wire.is_cut
    stage.lineage.stop()


@pytest.mark.parametrize("told", [(b"", b"", b"", b""), (noperm("command"),)])
def test_what_may_not_be_known_is_told_once(told: Any) -> None:
    stage = Stage()
    with captured() as lines:
        wire, done = stage.introduce(*told)
        assert done.value is None and stage.commands.protocol.generation == b""
        stage.lineage.watch()
        stage.check(wire, *told)
    assert not wire.is_cut
    assert len(lines) == 1 and lines[0].startswith("there may not be asked with INFO")
    stage.lineage.stop()


@pytest.mark.parametrize("error", ["MOVED 1 127.0.0.1:1", "LOADING it is"])
def test_who_cannot_tell_now_is_not_up(error: str) -> None:
    stage = Stage()
    _, done = stage.introduce(error)
    assert error.split()[0] in str(done.value)
    assert stage.commands.protocol.generation == b""


def test_a_check_that_fails_is_one_less() -> None:
    stage = Stage()
    wire, _ = stage.introduce(b"0", ONE, b"run1", b"master")
    stage.lineage.watch()
    stage.check(wire, "LOADING it is")
    assert not wire.is_cut and stage.commands.protocol.generation == b"0"
    stage.commands.protocol = None
    stage.clock.advance(CHECK_SECONDS)
    assert wire.commands() == []
    stage.lineage.stop()


def test_two_links_to_two_servers_are_cut_once() -> None:
    stage = Stage()
    wire, _ = stage.introduce(b"0", ONE, b"run1", b"master")
    hearing, done = stage.introduce(b"0", OTHER, b"run2", b"master", hearing=True)
    assert done.value is None
    stage.lineage.watch()
    stage.check(wire, b"0", ONE, b"run1", b"master")
    assert wire.is_cut and hearing.is_cut
    # Not again, if it is no better afterwards.
    wire, _ = stage.introduce(b"0", ONE, b"run1", b"master")
    hearing, _ = stage.introduce(b"0", OTHER, b"run2", b"master", hearing=True)
    stage.lineage.watch()
    stage.check(wire, b"0", ONE, b"run1", b"master")
    assert not wire.is_cut and not hearing.is_cut
    stage.lineage.stop()


def test_an_endpoint_that_leads_elsewhere() -> None:
    places = [succeed(""), fail(HubUnavailable("there", "no answer")), succeed("127.0.0.1:7")]
    stage = Stage(elsewhere=lambda: places.pop(0))
    wire, _ = stage.introduce(b"0", ONE, b"run1", b"master")
    stage.lineage.watch()
    for left in (2, 1):
        stage.check(wire, b"0", ONE, b"run1", b"master")
        assert len(places) == left and not wire.is_cut
    stage.check(wire, b"0", ONE, b"run1", b"master")
    assert wire.is_cut
    stage.lineage.stop()


def test_a_fault_of_ours_is_logged() -> None:
    stage = Stage(elsewhere=lambda: fail(ZeroDivisionError("a fault")))
    wire, _ = stage.introduce(b"0", ONE, b"run1", b"master")
    stage.lineage.watch()
    with captured() as lines:
        stage.check(wire, b"0", ONE, b"run1", b"master")
    assert lines == ["who the server is"]
    stage.lineage.stop()


class Real(TestCase):
    """What the script decides on a real server."""

    timeout = 60

    def server(self, *extra: str, **how: Any) -> Valkey:
        server = Valkey(extra=extra, **how)
        self.addCleanup(server.close)
        return server.start()

    def ask(self, server: Valkey, fresh: str = "fresh", replication: str = "", own: str = "") -> list[bytes]:
        arguments = [fresh, replication, own]
        told: list[bytes] = server.command("EVAL", script("lineage")[0], 1, "spread:lineage", *arguments)
        return told

    def test_the_first_one_and_every_restart_from_the_file(self) -> None:
        server = self.server("appendonly yes", "appendfsync always")
        generation, replication, run, role = self.ask(server)
        self.assertEqual((generation, role), (b"0", b"master"))
        self.assertEqual(run.decode(), server.info("server")["run_id"])
        server.restart()
        again = self.ask(server)
        self.assertEqual(again[0], b"0")
        self.assertNotEqual(again[1], replication)
        self.assertNotEqual(again[2], run)

    def test_a_server_without_a_file(self) -> None:
        server = self.server("save 3600 1")
        self.ask(server)
        server.command("SAVE")
        server.restart()
        self.assertEqual(self.ask(server, "two")[0], b"two")
        self.assertEqual(self.ask(server, "three")[0], b"two")

    def test_a_promotion_and_the_way_back(self) -> None:
        master = self.server("appendonly yes")
        self.assertEqual(self.ask(master)[0], b"0")
        replica = self.server("appendonly yes", replica_of=master)
        until(lambda: replica.command("EXISTS", "spread:lineage"), what="replication")
        generation, _, _, role = self.ask(replica)
        self.assertEqual((generation, role), (b"", b"slave"))
        replica.command("REPLICAOF", "NO", "ONE")
        self.assertEqual(self.ask(replica, "two")[0], b"two")
        master.command("REPLICAOF", "127.0.0.1", replica.port)
        until(lambda: master.command("HGET", "spread:lineage", "g") == b"two", what="replication")
        master.command("REPLICAOF", "NO", "ONE")
        self.assertEqual(self.ask(master, "three")[0], b"three")
        # It starts as a master from its file: nothing has changed.
        master.restart()
        self.assertEqual(self.ask(master, "four")[0], b"three")

    def test_a_key_that_is_lost(self) -> None:
        server = self.server("appendonly yes")
        _, replication, _, _ = self.ask(server)
        server.command("FLUSHALL")
        self.assertEqual(self.ask(server, "two", replication.decode(), "own")[0], b"own")
        server.command("FLUSHALL")
        self.assertEqual(self.ask(server, "two", "another", "own")[0], b"0")
        server.command("REPLICAOF", "127.0.0.1", free_port())
        server.command("REPLICAOF", "NO", "ONE")
        server.command("FLUSHALL")
        self.assertEqual(self.ask(server, "two", "another", "own")[0], b"two")
