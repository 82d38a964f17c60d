"""The load generators, in C and in Python, against the bare loop, a faulty server and real shards."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from spread.client.bench.cluster import HISTORY, Cluster
from spread.client.bench.engine import Generator, Loop, Programs
from spread.client.bench.errors import CutShort
from spread.client.bench.processes import Watch
from spread.client.bench.protocol import Opening, Result, Run
from tests.client.bench.conftest import NOBODY
from tests.client.bench.faulty import faulty

SHORT = Run(in_flight=2, warm=0.0, seconds=0.1, drain=5.0, stall=0.5)


def opening(*at: str, **changed: object) -> Opening:
    plain = Opening(
        format="text",
        rooms=1,
        members=3,
        groups=1,
        members_publish=False,
        echo=False,
        probes=True,
        payload=64,
        at=at,
        publish_at=at[:1],
        timeout=20.0,
    )
    return replace(plain, **changed)  # type: ignore[arg-type]


def measured(generator: Generator, run: Run = SHORT) -> Result:
    return generator.run(run)


def faults(result: Result) -> tuple[int, ...]:
    return result.lost, result.doubled, result.reordered, result.misrouted, result.damaged


CLEAN = (0, 0, 0, 0, 0)


@pytest.mark.parametrize("is_batched", [False, True])
@pytest.mark.parametrize("has_echo", [False, True])
def test_members_who_publish_hear_each_other_through_the_loop(
    c_programs: Programs, watch: Watch, is_batched: bool, has_echo: bool
) -> None:
    with (
        Loop(c_programs.loop, NOBODY, watch, batched=is_batched, echo=has_echo) as loop,
        Generator(c_programs.generator, NOBODY, watch) as generator,
    ):
        opened, heard = generator.open(
            opening(loop.address, format="lines", rooms=5, groups=5, members_publish=True, echo=has_echo)
        )
        assert opened.clients == 15
        assert heard is not None and heard.frame_bytes == 65
        result = measured(generator)
    assert faults(result) == CLEAN
    assert result.deliveries > 0
    assert result.sent % (3 if has_echo else 2) == 0
    assert result.bytes == 65 * result.deliveries


def test_clients_of_the_loop_have_many_rooms(c_programs: Programs, watch: Watch) -> None:
    with (
        Loop(c_programs.loop, NOBODY, watch, batched=False, echo=True) as loop,
        Generator(c_programs.generator, NOBODY, watch) as generator,
    ):
        many = opening(loop.address, format="lines", rooms=1000, groups=3, members_publish=True, echo=True)
        opened, _ = generator.open(many)
        assert opened.clients == many.clients == 9
        assert faults(measured(generator, replace(SHORT, in_flight=2000))) == CLEAN


def test_a_batch_goes_out_at_once(c_programs: Programs, watch: Watch) -> None:
    with (
        Loop(c_programs.loop, NOBODY, watch, batched=True, echo=False) as loop,
        Generator(c_programs.generator, NOBODY, watch) as generator,
    ):
        generator.open(opening(loop.address, format="lines"))
        result = measured(generator, replace(SHORT, in_flight=50))
    assert faults(result) == CLEAN
    assert result.reads < result.deliveries / 2


def test_a_pace_is_kept(generator: Generator) -> None:
    with faulty() as server:
        generator.open(opening(server.address))
        result = measured(generator, replace(SHORT, per_second=50.0, seconds=0.4))
    assert faults(result) == CLEAN
    assert 15 <= result.messages <= 25
    assert result.latency_ns.count == result.deliveries
    assert 0 < result.latency_ns.p50 <= result.latency_ns.p99 <= result.latency_ns.max


def test_cpu_is_read(generator: Generator) -> None:
    with faulty() as server:  # it is in this process
        generator.open(opening(server.address))
        result = measured(generator, replace(SHORT, pids=(os.getpid(), os.getppid())))
    ours, parents = result.cpu
    assert 0 < ours[0] < 1.0
    assert ours[0] == pytest.approx(ours[1] + ours[2], abs=0.04)
    assert parents[0] >= 0
    assert result.machine_busy > 0


def test_a_process_that_is_not_there(generator: Generator) -> None:
    with faulty() as server:
        generator.open(opening(server.address))
        with pytest.raises(CutShort, match="there is no process 4194304"):
            measured(generator, replace(SHORT, pids=(2**22,)))


def test_clients_stay_for_another_run(generator: Generator) -> None:
    with faulty() as server:
        generator.open(opening(server.address))
        assert faults(measured(generator)) == CLEAN
        assert faults(measured(generator)) == CLEAN
        generator.close()
        generator.open(opening(server.address))
        assert faults(measured(generator)) == CLEAN


def test_lost_messages_are_counted(generator: Generator) -> None:
    with faulty(lambda number, line: [] if number == 5 else [line]) as server:
        generator.open(opening(server.address))
        result = measured(generator, replace(SHORT, per_second=100.0, drain=0.3))
    assert faults(result) == (3, 0, 0, 0, 0)


def test_lost_messages_do_not_stop_a_closed_loop(generator: Generator) -> None:
    with faulty(lambda number, line: [] if number == 5 else [line]) as server:
        generator.open(opening(server.address))
        result = measured(generator, replace(SHORT, in_flight=1, seconds=0.5, drain=0.1, stall=0.2))
    assert faults(result) == (3, 0, 0, 0, 0)
    assert result.stalls == 1
    assert result.messages > 5


def test_doubled_messages_are_counted(generator: Generator) -> None:
    with faulty(lambda number, line: [line, line] if number == 5 else [line]) as server:
        generator.open(opening(server.address))
        result = measured(generator, replace(SHORT, per_second=100.0))
    assert faults(result) == (0, 3, 0, 0, 0)


def test_messages_out_of_order_are_counted(generator: Generator) -> None:
    kept: list[bytes] = []

    def swap(number: int, line: bytes) -> list[bytes]:
        if number == 5:
            kept.append(line)
            return []
        return [line, kept.pop()] if kept else [line]

    with faulty(swap) as server:
        generator.open(opening(server.address))
        result = measured(generator, replace(SHORT, per_second=100.0))
    assert faults(result) == (0, 0, 3, 0, 0)


def test_damaged_and_misrouted_messages_are_counted(generator: Generator) -> None:
    def spoil(number: int, line: bytes) -> list[bytes]:
        if number == 5:
            return [line.replace(b"abc", b"abd", 1)]
        # Digits 2 to 5 are the room.
        return [line[:5] + b"1" + line[6:]] if number == 6 else [line]

    with faulty(spoil) as server:
        generator.open(opening(server.address))
        result = measured(generator, replace(SHORT, per_second=100.0, drain=0.3))
    assert faults(result) == (6, 0, 0, 3, 3)


def test_what_nobody_said_ends_the_run(generator: Generator) -> None:
    with faulty(lambda number, line: [b"error: something\n"] if number == 2 else [line]) as server:
        generator.open(opening(server.address))
        with pytest.raises(CutShort, match="error: something"):
            measured(generator)


def test_a_server_that_hangs_up_ends_the_run(generator: Generator) -> None:
    with faulty() as server:
        generator.open(opening(server.address))
        with pytest.raises(CutShort, match="lost: "):
            generator.run(replace(SHORT, seconds=20), server.hang_up)


def test_members_who_hear_nothing_are_noticed(generator: Generator) -> None:
    with faulty() as server:
        server._spread = lambda speaker, line: None  # type: ignore[method-assign]
        with pytest.raises(CutShort, match="1 of 1 channels have members that hear nothing"):
            generator.open(opening(server.address, timeout=0.2))


def test_nobody_there(generator: Generator) -> None:
    with faulty() as server:
        gone = server.address
    with pytest.raises(CutShort, match="not let in: Connection refused"):
        generator.open(opening(gone))


def test_a_server_that_lets_nobody_in_is_given_up(generator: Generator) -> None:
    # It speaks the text protocol, which is no HTTP.
    with faulty() as server, pytest.raises(CutShort):
        generator.open(opening(server.address, format="json", timeout=0.2))


@pytest.mark.parametrize("format", ["text", "json", "protobuf"])
@pytest.mark.parametrize("channel", ["bench-test-", HISTORY])
def test_real_shards(generator: Generator, cluster: Cluster, format: str, channel: str) -> None:
    is_text = format == "text"
    at = cluster.addresses(is_text)
    rooms = opening(
        *at,
        format=format,
        rooms=6,
        groups=6,
        members_publish=True,
        echo=not is_text,
        channel=f"{channel}{format}-",
        payload=200,
    )
    opened, heard = generator.open(rooms)
    assert opened.clients == 18
    assert heard is not None and heard.frame_bytes > 200
    result = measured(generator)
    assert faults(result) == CLEAN
    assert result.messages > 0
    assert result.sent % rooms.fan_out == 0


@pytest.mark.parametrize("format", ["text", "json", "protobuf"])
def test_from_one_shard_to_the_other(generator: Generator, cluster: Cluster, format: str) -> None:
    at = cluster.addresses(format == "text")
    across = replace(opening(at[1], format=format, members=10), publish_at=at[:1])
    generator.open(across)
    result = measured(generator, replace(SHORT, in_flight=16))
    assert faults(result) == CLEAN
    assert result.sent % 10 == 0
    assert result.deliveries > 0


def test_many_channels_for_a_client_of_a_real_shard(generator: Generator, cluster: Cluster) -> None:
    many = opening(
        *cluster.http, format="json", rooms=200, groups=2, members=2, members_publish=True, echo=True
    )
    opened, _ = generator.open(many)
    assert opened.clients == 4
    assert faults(measured(generator)) == CLEAN


def test_a_namespace_that_is_not_there(generator: Generator, cluster: Cluster) -> None:
    with pytest.raises(CutShort, match="unknown channel"):
        generator.open(opening(*cluster.http, format="json", channel="nowhere:"))


def test_idle_clients_from_several_addresses(generator: Generator, cluster: Cluster) -> None:
    idle = opening(*cluster.http, format="json", members=20, members_publish=True, probes=False, sources=3)
    opened, heard = generator.open(idle)
    assert (opened.clients, heard) == (20, None)
    assert opened.connect_ns.count == 20
