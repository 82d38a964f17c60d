"""``spread bench``: its options, and their help."""

from __future__ import annotations

import math
import os
import re
import sys
from enum import Enum
from pathlib import Path
from typing import TypeVar

import click

from spread.client.bench.cpus import Cpus, parse_cpus
from spread.client.bench.errors import BadRequest
from spread.client.bench.payload import MIN_BYTES
from spread.client.bench.plan import Format, Options, Workload
from spread.client.bench.sweep import Sweep

__all__ = ["bench"]

Param = click.Parameter
AnEnum = TypeVar("AnEnum", bound=Enum)

_PAYLOAD_MAX = 60_000
_CLIENTS_MAX = 200_000
_CHANNELS_MAX = 1_000_000
_MEMBERS_MAX = 1024


def _list_of(kind: type[AnEnum], text: str) -> tuple[AnEnum, ...]:
    """Names or values, with commas; ``all`` of them."""
    if text == "all":
        return tuple(kind)
    known = {name.lower(): each for each in kind for name in (each.name, str(each.value))}
    found = []
    for word in text.split(","):
        if word.lower() not in known:
            raise click.BadParameter(f"{word!r} is not one of {', '.join(known)}, all.")
        found.append(known[word.lower()])
    return tuple(dict.fromkeys(found))


def _workloads(_context: click.Context, _param: Param, value: str) -> tuple[Workload, ...]:
    return _list_of(Workload, value)


def _formats(_context: click.Context, _param: Param, value: str | None) -> tuple[Format, ...] | None:
    return None if value is None else _list_of(Format, value)


def _numbers(_context: click.Context, param: Param, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    least = 0 if param.name == "points" else 1
    if not re.fullmatch("[0-9]{1,7}(,[0-9]{1,7})*", value):
        raise click.BadParameter(f"{value!r} is not a number, nor several with commas.")
    numbers = tuple(map(int, value.split(",")))
    if min(numbers) < least or max(numbers) > _CHANNELS_MAX:
        raise click.BadParameter(f"{value!r}: each is from {least} to {_CHANNELS_MAX:,}.")
    return numbers


def _seconds(_context: click.Context, param: Param, value: float) -> float:
    # Not click.FloatRange: it lets nan pass.
    least = 0.0 if param.name == "warm" else 0.05
    if not math.isfinite(value) or not least <= value <= 3600:
        raise click.BadParameter(f"{value:g} is not from {least:g} to 3600 seconds.")
    return value


def _rate(_context: click.Context, _param: Param, value: float) -> float:
    if not math.isfinite(value) or not 1 <= value <= 1e9:
        raise click.BadParameter(f"{value:g} is not from 1 to 1,000,000,000.")
    return value


def _cpus(_context: click.Context, _param: Param, value: str | None) -> Cpus | None:
    if value is None:
        return None
    try:
        return parse_cpus(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of CPUs, such as 0-2,5.") from None


def _pids(_context: click.Context, _param: Param, value: str | None) -> tuple[int, ...]:
    from spread.client.bench.where import parse_pids

    try:
        return () if value is None else parse_pids(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


@click.command(short_help="Measure a cluster, and compare it with a bare loop of send().")
@click.option(
    "--workload",
    default="all",
    show_default=True,
    callback=_workloads,
    metavar="LIST",
    help="Which of W1 to W5, by number or name, with commas.",
)
@click.option(
    "--format",
    callback=_formats,
    metavar="LIST",
    help="Of text, json and protobuf.  [default: all; in a sweep json]",
)
@click.option("--history", "kind", flag_value="history", help="Channels that keep history, alone.")
@click.option("--no-history", "kind", flag_value="plain", help="Plain channels alone.")
@click.option(
    "--both", "kind", flag_value="both", help="One after the other.  [default, but in a sweep plain]"
)
@click.option(
    "--shards",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Shards to start.  [default: 2 for W2 and W5, else 1]",
)
@click.option(
    "--hub", default="", metavar="URL", help="The hub of these shards.  [default: a Valkey of their own]"
)
@click.option(
    "--connect",
    metavar="HOST:PORT,...",
    help="Start nothing: measure the cluster there, one address for each shard. With text= or http= before "
    "it, where formats of both kinds are asked for.",
)
@click.option(
    "--pids",
    callback=_pids,
    metavar="PID,...",
    help="Processes whose CPU and memory count; those named redis or valkey apart. For --connect and --hub.",
)
@click.option(
    "--token", default="", envvar="SPREAD_TOKEN", metavar="JWT", help="Connection token, for --connect."
)
@click.option(
    "--payload",
    default=128,
    show_default=True,
    type=click.IntRange(MIN_BYTES, _PAYLOAD_MAX),
    metavar="BYTES",
    help="Bytes of a message.",
)
@click.option(
    "--subscribers",
    type=click.IntRange(1, _CLIENTS_MAX),
    metavar="N",
    help="Clients of W1, W3 and W5 [default: 1000], and of W4 [default: 5000].",
)
@click.option(
    "--channels",
    default=500,
    show_default=True,
    type=click.IntRange(1, _CHANNELS_MAX),
    metavar="N",
    help="Channels of W2.",
)
@click.option(
    "--members",
    default=4,
    show_default=True,
    type=click.IntRange(1, _MEMBERS_MAX),
    metavar="N",
    help="Clients in each channel of W2.",
)
@click.option(
    "--in-flight",
    callback=_numbers,
    metavar="K,...",
    help="Messages in flight.  [default: 1,16 for W1 and W5, 64 for W2]",
)
@click.option(
    "--rate",
    default=20000.0,
    show_default=True,
    callback=_rate,
    metavar="N",
    help="Deliveries a second of W3.",
)
@click.option(
    "--secs",
    default=2.0,
    show_default=True,
    callback=_seconds,
    metavar="S",
    help="Seconds of one measurement.",
)
@click.option(
    "--warm", default=0.5, show_default=True, callback=_seconds, metavar="S", help="Seconds before it."
)
@click.option(
    "--repeat",
    default=5,
    show_default=True,
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Rounds of each case; medians are told.",
)
@click.option("--quick", is_flag=True, help="One short round of everything, to see that it works.")
@click.option("--cpu-servers", callback=_cpus, metavar="CPUS", help="Where the shards run, such as 0-2,5.")
@click.option("--cpu-load", callback=_cpus, metavar="CPUS", help="Where the generator and Redis run.")
@click.option(
    "--sweep",
    type=click.Choice([sweep.value for sweep in Sweep]),
    help="Instead of the workloads: how the cost of a delivery grows with them.",
)
@click.option("--points", callback=_numbers, metavar="N,...", help="How many of them, in a sweep.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write all that was measured.",
)
@click.option(
    "--charts",
    "charts_directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Draw pictures (PNG). Needs matplotlib: pip install 'spread-node[bench]'.",
)
@click.pass_context
def bench(
    context: click.Context,
    workload: tuple[Workload, ...],
    format: tuple[Format, ...] | None,
    kind: str | None,
    shards: int | None,
    hub: str,
    connect: str | None,
    pids: tuple[int, ...],
    token: str,
    payload: int,
    subscribers: int | None,
    channels: int,
    members: int,
    in_flight: tuple[int, ...] | None,
    rate: float,
    secs: float,
    warm: float,
    repeat: int,
    quick: bool,
    cpu_servers: Cpus | None,
    cpu_load: Cpus | None,
    sweep: str | None,
    points: tuple[int, ...] | None,
    json_file: Path | None,
    charts_directory: Path | None,
) -> int:
    """Measure a cluster of this machine, and compare it with a bare loop of send().

    \b
    Workloads:
      W1 broadcast  one channel with 1,000 subscribers, one publisher
      W2 rooms      500 channels with 4 members each, who publish in turn
      W3 paced      W1 at 20,000 deliveries a second, for latency
      W4 idle       5,000 clients connect, subscribe, and say nothing
      W5 across     W1, the publisher on one shard and the subscribers on the others

    Each is measured for clients of the text protocol, of JSON and of Protobuf over WebSocket, in channels
    that keep history and in channels that do not. A cluster is started for it and stopped afterwards.

    \b
    Examples:
      spread bench --quick                       is everything in order? (about 3 minutes)
      spread bench --workload W1 --format json   one workload, as the clients of a web page speak
      spread bench --workload W1,W2 --no-history --in-flight 1,16,64
      spread bench --json all.json --charts pictures     everything (about 25 minutes)
      spread bench --sweep channels --charts pictures    cost of a delivery, up to 100,000 channels
      spread bench --hub redis://127.0.0.1:6379 --pids $(pgrep redis-server)

    \b
    A cluster that runs already, which must let anybody connect, subscribe and publish, and for
    --history needs a namespace "bench" with history:
      spread bench --connect 127.0.0.1:8000 --format json --no-history \\
        --pids $(pgrep -d, -f spread.node)

    Beside the server runs a bare loop, a C program that reads a message and calls send() for each
    subscriber, with as many bytes as the server sends: x1.50 is half as much again. For W1 and W5 with
    several messages in flight there is a second one, "batched", which sends what one read brought at once.
    Both and the load generator are compiled when they are first needed; without a C compiler the generator
    is in Python, coarser, and there are no ratios. docs/performance.md says what each column means.

    Exit codes: 0; 1 when a server died, the run was stopped, or deliveries were lost, doubled or out of
    order (the table has what was measured until then); 2 for wrong usage.
    """
    from spread.client.bench.session import Request, run
    from spread.client.bench.where import parse_connect

    formats = format or ((Format.JSON,) if sweep else tuple(Format))
    kinds = {"history": (True,), "plain": (False,), "both": (False, True)}
    options = Options(
        workloads=workload,
        formats=formats,
        histories=kinds[kind or ("plain" if sweep else "both")],
        shards=shards,
        payload=payload,
        seconds=secs,
        warm=warm,
        repeat=repeat,
        subscribers=subscribers,
        channels=channels,
        members=members,
        in_flight=in_flight,
        rate=rate,
        token=token,
    )
    if quick:
        options = _shortened(context, options)
    where = None
    if connect is not None:
        for name, value in (("--hub", hub), ("--shards", shards), ("--sweep shards", sweep == "shards")):
            if value:
                raise click.UsageError(
                    f"{name} is for a cluster that is started here, --connect for one that runs."
                )
        try:
            where = parse_connect(connect, Format.TEXT in formats, set(formats) != {Format.TEXT})
            where.check(Format.TEXT in formats, set(formats) != {Format.TEXT})
        except (ValueError, BadRequest) as error:
            raise click.BadParameter(
                f"{str(error).removeprefix('--connect: ')}.", param_hint="'--connect'"
            ) from None
    elif pids and not hub:
        raise click.UsageError("--pids is for --connect or --hub.")
    if points is not None and sweep is None:
        raise click.UsageError("--points is for --sweep.")
    request = Request(
        options=options,
        sweep=None if sweep is None else Sweep(sweep),
        points=points or (),
        hub=hub,
        where=where,
        pids=pids,
        cpu_servers=cpu_servers,
        cpu_load=cpu_load,
        json_file=json_file,
        charts_directory=charts_directory,
    )
    try:
        return run(request, sys.stdout, sys.stderr, os.environ)
    except BadRequest as error:
        raise click.UsageError(f"{error}.") from None


def _shortened(context: click.Context, options: Options) -> Options:
    """What was not asked for by itself is made short."""
    from dataclasses import replace

    from click.core import ParameterSource

    def is_free(name: str) -> bool:
        return context.get_parameter_source(name) is ParameterSource.DEFAULT

    return replace(
        options,
        seconds=0.5 if is_free("secs") else options.seconds,
        warm=0.2 if is_free("warm") else options.warm,
        repeat=1 if is_free("repeat") else options.repeat,
    )
