"""Figures, tables, JSON and charts of runs that never were."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import msgspec
import pytest

from spread.client.bench import charts, report
from spread.client.bench.errors import BadRequest
from spread.client.bench.figures import (
    BATCHED,
    ONE_BY_ONE,
    SERVER,
    Sample,
    figures_of,
    idle_sample,
    sample_of,
)
from spread.client.bench.measuring import Measured
from spread.client.bench.plan import Format, Options, Workload, cases
from spread.client.bench.processes import Server, Usage
from spread.client.bench.progress import Progress
from spread.client.bench.protocol import Opened, Quantiles, Result
from spread.client.bench.sweep import Sweep, points_of

QUANTILES = Quantiles(1_000_000, 2_000_000, 3_000_000, 4_000_000, 5_000_000, 1.5e6, 100)
SHARD, VALKEY = Server("shard 0", 1), Server("valkey", 2, is_redis=True)


def result(**changed: object) -> Result:
    counts = dict.fromkeys(("lost", "doubled", "reordered", "misrouted", "damaged", "stalls"), 0)
    plain = Result(
        seconds=2.0,
        messages=200,
        deliveries=200_000,
        bytes=25_800_000,
        reads=100_000,
        busy=0.5,
        late_ns=2_000_000,
        sent=300_000,
        latency_ns=QUANTILES,
        cpu=[(0.3, 0.08, 0.22), (0.02, 0.01, 0.01), (0.1, 0.02, 0.08)],
        machine_busy=1.82,
        machine_stolen=0.0,
        **counts,
    )
    return msgspec.structs.replace(plain, **changed)


def test_a_sample() -> None:
    sample = sample_of(result(), [SHARD, VALKEY, SHARD])
    assert sample.values["deliveries_per_second"] == 100_000
    assert sample.values["messages_per_second"] == 100
    assert sample.values["shard_us"] == pytest.approx(2.0)
    assert sample.values["shard_user_us"] == pytest.approx(0.5)
    assert sample.values["shard_system_us"] == pytest.approx(1.5)
    assert sample.values["redis_us"] == pytest.approx(0.1)
    assert sample.values["p999_ms"] == 4.0
    assert (sample.frame_bytes, sample.deliveries_per_read, sample.late_ms) == (129.0, 2.0, 2.0)
    assert sample.shard_cores == pytest.approx(0.2)
    # 1.82 s, of which 0.42 were the servers' and half of two the generator's.
    assert sample.other_cores == pytest.approx(0.2)
    assert sample.is_clean


def test_a_sample_of_processes_that_are_not_known() -> None:
    sample = sample_of(result(cpu=[], lost=3), [])
    assert "shard_us" not in sample.values
    assert "redis_us" not in sample.values
    assert not sample.is_clean


def test_a_sample_of_nothing() -> None:
    sample = sample_of(result(deliveries=0, messages=0, bytes=0, reads=0), [SHARD, VALKEY, SHARD])
    assert sample.values["deliveries_per_second"] == 0
    assert "shard_us" not in sample.values


def test_an_idle_sample() -> None:
    opened = Opened(1000, 0.5, QUANTILES)
    before, after = [Usage(1.0, 0.25, 0.75)], [Usage(1.2, 0.3, 0.9)]
    sample = idle_sample(opened, before, after, 4_000_000, [SHARD])
    assert sample.values == pytest.approx(
        {
            "connects_per_second": 2000.0,
            "connect_p50_ms": 1.0,
            "connect_p99_ms": 3.0,
            "shard_us": 200.0,
            "shard_user_us": 50.0,
            "shard_system_us": 150.0,
            "rss_bytes": 4000.0,
        }
    )
    assert "rss_bytes" not in idle_sample(opened, before, after, None, [SHARD]).values


def rounds(*pairs: tuple[float, float]) -> list[dict[str, Sample]]:
    return [
        {SERVER: Sample({"shard_us": mine}, {}), ONE_BY_ONE: Sample({"shard_us": theirs}, {})}
        for mine, theirs in pairs
    ]


def test_ratios_are_of_neighbours() -> None:
    # In the second round everything was twice as slow.
    figure = figures_of(rounds((3.0, 2.0), (6.0, 4.0), (3.2, 2.0)))["shard_us"]
    assert (figure.least, figure.median, figure.most) == (3.0, 3.2, 6.0)
    assert figure.ratios == {ONE_BY_ONE: 1.5}
    assert figure.loops == {ONE_BY_ONE: 2.0}
    assert figure.as_json()["times"] == {"loop": 1.5}


def test_a_loop_that_has_nothing_gives_no_ratio() -> None:
    assert figures_of(rounds((3.0, 0.0)))["shard_us"].ratios == {}


def sampled(scale: float, **faults: int) -> Sample:
    values = {
        "deliveries_per_second": 100_000 / scale,
        "messages_per_second": 100 / scale,
        "shard_us": 4 * scale,
        "shard_user_us": scale,
        "shard_system_us": 3 * scale,
        "redis_us": 0.1,
        "p50_ms": scale,
        "p90_ms": 2 * scale,
        "p99_ms": 3 * scale,
        "p999_ms": 4 * scale,
    }
    return Sample(values, faults)


def measured(workload: Workload, *runs: dict[str, Sample]) -> Measured:
    (case,) = cases(
        Options(workloads=(workload,), formats=(Format.JSON,), histories=(False,), in_flight=(16,))
    )
    return Measured(case, list(runs))


def some() -> list[Measured]:
    loops = {ONE_BY_ONE: sampled(1.0), BATCHED: sampled(0.5)}
    connected = Sample({"connects_per_second": 2500.0, "shard_us": 300.0, "rss_bytes": 3000.0}, {})
    return [
        measured(Workload.W1, {SERVER: sampled(1.5)} | loops, {SERVER: sampled(1.7, lost=3)} | loops),
        measured(Workload.W2, {SERVER: sampled(2.0)}),
        measured(Workload.W3, {SERVER: sampled(2.0), ONE_BY_ONE: sampled(1.0)}),
        measured(Workload.W4, {SERVER: connected, ONE_BY_ONE: connected}),
        measured(Workload.W5),
    ]


def test_tables() -> None:
    text = report.tables(some(), repeat=2)
    lines = text.splitlines()
    head = next(line for line in lines if "deliveries/s" in line)
    row = next(line for line in lines if line.startswith("W1"))
    assert head.split()[:3] == ["deliveries/s", "loop", "messages/s"]
    assert row.startswith("W1 json plain K=16  62,745 (58,824-66,667)  x0.63")
    assert "6.40 (6.00-6.80)  x1.60    x3.20  1.60" in row
    assert any(line.startswith("W3 json plain") and line.endswith("x2.00") for line in lines)
    assert any(line.startswith("W4 json plain") and "3,000" in line for line in lines)
    assert not any(line.startswith("W5") for line in lines)
    assert "medians of 2 rounds, (least-most); xN is N times the bare loop" in text
    assert report.tables([], 1) == ""


def test_what_is_not_known_has_no_column() -> None:
    text = report.tables([measured(Workload.W2, {SERVER: Sample({"deliveries_per_second": 7.0}, {})})], 1)
    assert "Redis" not in text
    assert "loop" not in text
    assert "one round." in text


def test_notes() -> None:
    noisy = Sample({"deliveries_per_second": 7.0}, {}, busy=0.99, other_cores=0.5, stolen=0.1)
    notes = report.notes_of([measured(Workload.W2, {SERVER: noisy})])
    assert [note.split(":")[0] for note in notes] == ["Noise", "Noise", "W2 json plain K=16"]
    assert report.notes_of([]) == []


def test_faults() -> None:
    assert report.faults_of(some()) == ["W1 json plain K=16: 3 lost"]


def test_json() -> None:
    told = json.loads(json.dumps(report.as_json(some())))
    assert told[0]["name"] == "W1 json plain K=16"
    assert told[0]["case"]["workload"] == "W1"
    assert told[0]["figures"]["shard_us"]["times"] == {"loop": 1.6, "batched loop": 3.2}
    assert told[0]["runs"][0]["server"]["values"]["p50_ms"] == 1.5
    assert told[0]["faults"] == {"lost": 3}


def test_numbers_have_three_digits_that_count() -> None:
    assert [report.number(value) for value in (0.1234, 1.5, 12.34, 123.4, 123456.7)] == [
        "0.12",
        "1.50",
        "12.3",
        "123",
        "123,457",
    ]


# -- progress ----------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_one_line() -> None:
    out = Terminal()
    progress = Progress(out, [each.case for each in some()], Options())
    progress.begin()
    progress.step("round 1 of 5, server")
    progress.begin()
    progress.step("round 1 of 5, loop")
    assert "\n" not in out.getvalue()
    assert "\r2 of 5: W2 json plain K=16: round 1 of 5, loop, about " in out.getvalue()
    progress.clear()
    assert out.getvalue().endswith("\r")


def test_progress_in_a_file_is_a_line_for_each_case() -> None:
    out = io.StringIO()
    progress = Progress(out, [each.case for each in some()], Options())
    for _ in range(5):
        progress.begin()
        progress.step("more")
    progress.clear()
    assert len(out.getvalue().splitlines()) == 5
    assert out.getvalue().startswith("spread: 1 of 5: W1 json plain K=16, about ")


# -- charts ------------------------------------------------------------------------------------------------


def test_charts_need_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> None:
        raise ModuleNotFoundError

    monkeypatch.setattr("spread.client.bench.charts.importlib.import_module", missing)
    with pytest.raises(BadRequest, match=r"pip install 'spread-node\[bench\]'"):
        charts.check()


needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed (extra: bench)"
)


@needs_matplotlib
@pytest.mark.filterwarnings("default")
def test_charts(tmp_path: Path) -> None:
    drawn = charts.draw(some(), tmp_path / "pictures")
    assert [path.name for path in drawn] == [
        "w1-broadcast.png",
        "w2-rooms.png",
        "w3-paced.png",
        "w4-idle.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


@needs_matplotlib
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("sweep", list(Sweep))
def test_charts_of_sweeps(sweep: Sweep, tmp_path: Path) -> None:
    options = Options(formats=(Format.JSON, Format.PROTOBUF), histories=(False,))
    runs = {SERVER: sampled(2.0), ONE_BY_ONE: sampled(1.0)}
    points = [(point, Measured(case, [runs])) for point, case in points_of(sweep, (10, 100), options)]
    assert charts.draw_sweep(sweep, points, tmp_path).read_bytes().startswith(b"\x89PNG")
