"""The same case with ever more of something: how the cost of a delivery grows. Values only."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

from spread.client.bench.errors import BadRequest
from spread.client.bench.plan import Case, Format, Options, Workload

__all__ = ["Sweep", "points_of"]

CLIENTS = 1000
"""Connections of a sweep over channels; what an SDK may have many of are channels."""
TEXT_CLIENTS_MAX = 15_000


class Sweep(Enum):
    """What there is more and more of."""

    CHANNELS = "channels"
    IDLE = "idle"
    SHARDS = "shards"

    @property
    def title(self) -> str:
        return {"channels": "channels", "idle": "idle clients", "shards": "shards"}[self.value]

    @property
    def default_points(self) -> tuple[int, ...]:
        return {
            "channels": (250, 1000, 5000, 20_000, 100_000),
            "idle": (0, 1000, 5000, 10_000, 15_000),
            "shards": (1, 2, 4, 8),
        }[self.value]


def points_of(sweep: Sweep, points: tuple[int, ...], options: Options) -> tuple[tuple[int, Case], ...]:
    """What is measured: how many there are, and the case.

    :raises BadRequest: there cannot be so many.
    """
    return tuple(
        (point, _case(sweep, point, format, history, options))
        for format in options.formats
        for history in options.histories
        for point in points
    )


def _case(sweep: Sweep, point: int, format: Format, history: bool, options: Options) -> Case:
    if point < (sweep is not Sweep.IDLE):
        raise BadRequest(f"--points {point}: there are no {point} {sweep.title}")
    case = Case(
        workload=Workload.W2,
        format=format,
        history=history,
        shards=options.shards or 1,
        rooms=options.channels,
        groups=options.channels,
        members=options.members,
        payload=options.payload,
        in_flight=(options.in_flight or (64,))[0],
        token=options.token,
        label=f"{point:,} {sweep.title}",
    )
    if sweep is Sweep.SHARDS:
        return replace(case, shards=point)
    if sweep is Sweep.IDLE:
        return replace(
            case,
            workload=Workload.W1,
            rooms=1,
            groups=1,
            members=options.subscribers or 1000,
            in_flight=(options.in_flight or (1,))[0],
            idle_clients=point,
        )
    groups = min(point, max(1, CLIENTS // options.members))
    if format is Format.TEXT:
        groups = point
        if point * options.members > TEXT_CLIENTS_MAX:
            raise BadRequest(
                f"--points {point}: over the text protocol a client is in one channel, and {point:,} "
                f"channels of {options.members} members are more than {TEXT_CLIENTS_MAX:,} clients"
            )
    return replace(case, rooms=point, groups=groups)
