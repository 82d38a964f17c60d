"""What some options ask for."""

from __future__ import annotations

import os

import pytest

from spread.client.bench.cluster import Cluster
from spread.client.bench.cpus import parse_cpus, pinning
from spread.client.bench.errors import BadRequest
from spread.client.bench.plan import Case, Format, Options, Workload, cases
from spread.client.bench.progress import seconds_of
from spread.client.bench.protocol import Opening, Result, Run, event_of, words_of
from spread.client.bench.sweep import Sweep, points_of
from spread.client.bench.where import Where, parse_connect, parse_pids, servers_of

CLUSTER = Cluster(text=("1.1.1.1:1", "1.1.1.1:2"), http=("1.1.1.1:3", "1.1.1.1:4"))


def one(**options: object) -> Case:
    (case,) = cases(Options(histories=(False,), **options))  # type: ignore[arg-type]
    return case


def test_everything() -> None:
    all_cases = cases(Options())
    assert len(all_cases) == 3 * 2 * (2 + 1 + 1 + 1 + 2)
    assert len({case.name for case in all_cases}) == len(all_cases)
    assert [case.name for case in all_cases][:3] == [
        "W1 text plain K=1",
        "W1 text plain K=16",
        "W1 text history K=1",
    ]
    shards = {case.workload: case.shards for case in all_cases}
    assert shards == {
        Workload.W1: 1,
        Workload.W2: 2,
        Workload.W3: 1,
        Workload.W4: 1,
        Workload.W5: 2,
    }
    assert 600 < sum(seconds_of(case, Options()) for case in all_cases) < 7200


def test_rooms() -> None:
    case = one(workloads=(Workload.W2,), formats=(Format.JSON,))
    opening = case.opening(CLUSTER)
    assert (opening.rooms, opening.members, opening.groups, opening.clients) == (500, 4, 500, 2000)
    assert opening.members_publish and opening.echo and opening.probes
    assert opening.at == ("1.1.1.1:3", "1.1.1.1:4")
    assert case.run(Options(), [1, 2]).pids == (1, 2)
    assert case.run(Options(), ()).in_flight == 64
    assert opening.fan_out == case.fan_out == 4
    assert not case.batching_matters
    assert one(workloads=(Workload.W2,), formats=(Format.TEXT,)).fan_out == 3


def test_across_shards() -> None:
    case = one(workloads=(Workload.W5,), formats=(Format.TEXT,), in_flight=(16,))
    opening = case.opening(CLUSTER)
    assert (opening.publish_at, opening.at) == (("1.1.1.1:1",), ("1.1.1.1:2",))
    assert case.batching_matters
    with pytest.raises(BadRequest, match="two shards"):
        cases(Options(workloads=(Workload.W5,), shards=1))


def test_a_pace() -> None:
    case = one(workloads=(Workload.W3,), formats=(Format.TEXT,), subscribers=500)
    run = case.run(Options(seconds=3.0), ())
    assert (run.per_second, run.seconds) == (40.0, 3.0)


def test_idle() -> None:
    case = one(workloads=(Workload.W4,), formats=(Format.TEXT,))
    opening = case.opening(CLUSTER)
    assert (opening.clients, opening.probes, opening.channel) == (5000, False, "")
    kept = cases(Options(workloads=(Workload.W4,), formats=(Format.TEXT,), histories=(True,)))[0]
    assert kept.opening(CLUSTER).channel == "bench:"
    crowd = one(workloads=(Workload.W4,), formats=(Format.JSON,), subscribers=100_000)
    assert crowd.opening(CLUSTER).sources == 3
    assert crowd.files > 100_000


def test_the_bare_loop_sends_as_many_bytes() -> None:
    case = one(workloads=(Workload.W1,), formats=(Format.JSON,), in_flight=(1,))
    opening = case.loop_opening("127.0.0.1:9", 192.4)
    assert (opening.format, opening.payload, opening.at) == ("lines", 191, ("127.0.0.1:9",))
    across = one(workloads=(Workload.W5,), formats=(Format.JSON,), in_flight=(1,))
    assert across.loop_opening("127.0.0.1:9", 1).at == ("127.0.0.1:9",)


def test_nobody_would_hear() -> None:
    with pytest.raises(BadRequest, match="nobody would hear"):
        cases(Options(workloads=(Workload.W2,), members=1))


def test_commands_are_lines() -> None:
    opening = one(workloads=(Workload.W1,), formats=(Format.JSON,), in_flight=(1,)).opening(CLUSTER)
    word, pairs = words_of(opening.line())
    assert word == "open"
    assert set(pairs) == set(Opening.__dataclass_fields__)
    assert pairs["at"] == "1.1.1.1:3,1.1.1.1:4"
    assert pairs["echo"] == "1"
    assert pairs["token"] == ""
    assert words_of(Run(warm=0.5, seconds=2.0).line())[1]["warm"] == "0.5"


def test_answers_are_json() -> None:
    quantiles = b'{"p50":1,"p90":2,"p99":3,"p999":4,"max":5,"mean":1.5,"count":9}'
    result = event_of(
        b'{"event":"result","seconds":1.0,"messages":3,"deliveries":9,"bytes":90,"reads":9,"busy":0.1,"lost":0,'
        b'"doubled":0,"reordered":0,"misrouted":0,"damaged":0,"stalls":0,"late_ns":7,"sent":9,'
        b'"cpu":[[0.3,0.1,0.2]],"machine_busy":1.5,"machine_stolen":0.0,"latency_ns":%b}' % quantiles
    )
    assert isinstance(result, Result)
    assert result.latency_ns.p999 == 4
    assert result.cpu == [(0.3, 0.1, 0.2)]


# -- sweeps ------------------------------------------------------------------------------------------------

SWEPT = Options(formats=(Format.JSON,), histories=(False,))


def test_more_and_more_channels() -> None:
    points = points_of(Sweep.CHANNELS, (10, 1000, 100_000), SWEPT)
    assert [point for point, _ in points] == [10, 1000, 100_000]
    assert [case.opening(CLUSTER).clients for _, case in points] == [40, 1000, 1000]
    assert points[2][1].name == "W2 json plain K=64 100,000 channels"
    text = Options(formats=(Format.TEXT,), histories=(False,))
    assert points_of(Sweep.CHANNELS, (3000,), text)[0][1].opening(CLUSTER).clients == 12_000
    with pytest.raises(BadRequest, match="a client is in one channel"):
        points_of(Sweep.CHANNELS, (100_000,), text)
    with pytest.raises(BadRequest, match="there are no 0 channels"):
        points_of(Sweep.CHANNELS, (0,), SWEPT)


def test_more_and_more_idle_clients() -> None:
    points = points_of(Sweep.IDLE, Sweep.IDLE.default_points, SWEPT)
    assert [case.idle_clients for _, case in points] == [0, 1000, 5000, 10_000, 15_000]
    case = points[-1][1]
    assert case.opening(CLUSTER).clients == 1001
    assert (case.idle_opening(CLUSTER).clients, case.idle_opening(CLUSTER).probes) == (15_000, False)
    assert case.idle_opening(CLUSTER).channel != case.opening(CLUSTER).channel
    assert case.files >= 16_000


def test_idle_clients_hear_nothing() -> None:
    for format in Format:
        options = Options(formats=(format,), histories=(False, True))
        for _, case in points_of(Sweep.IDLE, (10,), options):
            assert case.idle_opening(CLUSTER).channel not in ("", case.opening(CLUSTER).channel)


def test_more_and_more_shards() -> None:
    points = points_of(Sweep.SHARDS, (1, 2, 4, 8), SWEPT)
    assert [case.shards for _, case in points] == [1, 2, 4, 8]


# -- CPUs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "servers", "load", "expected"),
    [
        ({0, 1}, None, None, ({0}, {1})),
        ({0, 1, 2, 3}, None, None, ({0, 1, 2}, {3})),
        ({5}, None, None, (set(), set())),
        ({0, 1, 2}, {2}, None, ({2}, {1})),
        ({0, 1, 2}, None, {0}, ({1, 2}, {0})),
        ({0, 1}, {0, 1}, None, ({0, 1}, {1})),
        ({3}, {3}, None, ({3}, {3})),
    ],
)
def test_who_runs_where(
    allowed: set[int], servers: set[int] | None, load: set[int] | None, expected: tuple[set[int], set[int]]
) -> None:
    found = pinning(
        allowed,
        None if servers is None else frozenset(servers),
        None if load is None else frozenset(load),
    )
    assert (set(found.servers), set(found.load)) == expected
    assert str(found)


def test_a_cpu_that_is_not_there() -> None:
    with pytest.raises(BadRequest, match="CPU 7 is not among those this process may use: 0,1"):
        pinning({0, 1}, frozenset({1, 7}), None)


def test_lists_of_cpus() -> None:
    assert parse_cpus("0-2,5") == {0, 1, 2, 5}
    for wrong in ("", "a", "2-1", "-1", "1,", "0-9999"):
        with pytest.raises(ValueError):
            parse_cpus(wrong)


# -- a cluster that runs already ---------------------------------------------------------------------------


def test_where_it_is() -> None:
    assert parse_connect("127.0.0.1:8000,[::1]:8001", False, True) == Where(
        (), ("127.0.0.1:8000", "[::1]:8001")
    )
    assert parse_connect("127.0.0.1:8007", True, False) == Where(("127.0.0.1:8007",), ())
    both = parse_connect("text=127.0.0.1:8007,http=127.0.0.1:8000", True, True)
    assert both == Where(("127.0.0.1:8007",), ("127.0.0.1:8000",))
    assert both.is_here
    assert both.shards == 1
    assert Where((), ("127.0.0.1:1", "127.0.0.1:2")).shards == 2
    assert not parse_connect("http=192.0.2.1:8000", False, True).is_here
    assert parse_connect("localhost:8000", False, True).is_here


@pytest.mark.parametrize(
    "wrong", ["", "8000", "host", "a:b", "h:0", "h:99999", "udp=h:1", "1.1.1.1:1,,", "::1:80"]
)
def test_where_it_cannot_be(wrong: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        parse_connect(wrong, False, True)


def test_which_port_is_which_must_be_said() -> None:
    with pytest.raises(ValueError, match=r"say text=127\.0\.0\.1:1 or http=127\.0\.0\.1:1"):
        parse_connect("127.0.0.1:1", True, True)
    with pytest.raises(BadRequest, match="no text="):
        parse_connect("http=127.0.0.1:1", True, True).check(True, True)
    with pytest.raises(BadRequest, match="no http="):
        parse_connect("text=127.0.0.1:1", True, True).check(True, True)
    with pytest.raises(ValueError, match="invalid"):
        parse_connect("no-such-name.invalid:1", False, True)


def test_which_processes() -> None:
    assert parse_pids("1,22") == (1, 22)
    for wrong in ("", "a", "1,", "-1"):
        with pytest.raises(ValueError):
            parse_pids(wrong)
    (server,) = servers_of([os.getpid()])
    assert not server.is_redis
    with pytest.raises(BadRequest, match="--pids: there is no process"):
        servers_of([2**22])
