"""Real SDK clients in processes of their own, who write down what they see and what they are told.

Each process hosts many clients of one SDK. It is given the file to write to (the lines are those of
``ledger.py``, in batches), and takes commands as the drivers of ``tests/sdk`` do, one line of JSON each:

    {"n": 1, "do": "open", "clients": [{"who", "channel", "interval", "transport", "protobuf", "endpoints"}]}
    {"n": 2, "do": "publish"}      publishers begin: those with an interval, in seconds, above 0
    {"n": 3, "do": "cease"}        they stop; answered when all have got their last reply

A publisher awaits the reply before its next publication, whose payload is ``[who, sequence]``. Clients
connect again after 0.1 to 1 s, and give up a connection that is 3 s late with its ping: options of the SDKs.
A third of the clients come through a gate. Of the WebSocket clients in JavaScript every other one is told the
next shard when a connection cannot be made, as a load balancer would; all other clients have one shard.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.live.faults.stage import API_KEY, Stage
from tests.sdk.drivers import Driver, js_program

__all__ = ["Role", "Troupe", "cast"]

HERE = Path(__file__).parent

COMMAND_SECONDS = 90.0
"""A publisher over HTTP tries for a minute."""


@dataclass(frozen=True)
class Way:
    """How a client speaks."""

    sdk: str
    transport: str = "websocket"
    is_protobuf: bool = False

    def __str__(self) -> str:
        return f"{self.sdk} {self.transport} {'protobuf' if self.is_protobuf else 'json'}"


SUBSCRIBING = [
    Way("js"),
    Way("js", is_protobuf=True),
    Way("python"),
    Way("js"),
    Way("spread"),
    Way("js", "http_stream"),
    Way("js"),
    Way("js", is_protobuf=True),
    Way("python", is_protobuf=True),
    Way("js"),
    Way("spread", is_protobuf=True),
]
PUBLISHING = [
    Way("js"),
    Way("api", "http"),
    Way("js", is_protobuf=True),
    Way("python"),
    Way("js"),
    Way("spread"),
    Way("api", "http"),
    Way("js"),
    Way("js", is_protobuf=True),
]


@dataclass(frozen=True)
class Role:
    """One client."""

    who: str
    channel: str
    way: Way
    shards: tuple[int, ...]
    """It connects to the first, or to the next one where it can."""
    is_gated: bool
    interval: float
    """Mean seconds between two publications; 0 for subscribers."""


def cast(
    stage_size: int, channels: Sequence[str], subscribers: int, publishers: int, interval: float
) -> list[Role]:
    """Who there is: all ways to speak, on all shards, in all channels. The same for the same numbers."""
    roles = []
    for prefix, count, ways in (("s", subscribers, SUBSCRIBING), ("p", publishers, PUBLISHING)):
        for number in range(count):
            way = ways[number % len(ways)]
            row, column = divmod(number, len(channels))
            home = (row + column) % stage_size
            moves = way.sdk == "api" or (
                way.sdk == "js" and way.transport == "websocket" and number // stage_size % 2
            )
            roles.append(
                Role(
                    f"{prefix}{number}",
                    channels[number % len(channels)],
                    way,
                    tuple((home + step) % stage_size for step in range(stage_size if moves else 1)),
                    way.sdk != "api" and (2 * row + column) % 3 == 0,
                    interval if prefix == "p" else 0.0,
                )
            )
    return roles


class _Tail:
    """Whole lines of a file that grows."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open("rb")
        self._rest = b""

    def lines(self) -> list[str]:
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [line.decode() for line in lines]

    def close(self) -> None:
        self._file.close()


class Troupe:
    """All clients of a run, and the processes that host them."""

    def __init__(self, stage: Stage, roles: Sequence[Role], directory: Path, stack: ExitStack) -> None:
        """Start the processes.

        :param directory: where they write.
        :param stack: ends them.
        """
        self._stage = stage
        self._roles = list(roles)
        self._drivers: dict[str, Driver] = {}
        self._tails: list[_Tail] = []
        for sdk in sorted({role.way.sdk for role in roles}):
            path = directory / f"witness-{sdk}"
            tail = _Tail(path)
            stack.callback(tail.close)
            self._tails.append(tail)
            if sdk == "js":
                driver = js_program(HERE / "witness.js", str(path))
            else:
                module = f"tests.live.faults.witness_{sdk}"
                driver = Driver([sys.executable, "-m", module, str(path)], {})
            stack.callback(driver.close)
            self._drivers[sdk] = driver

    def open(self) -> None:
        """All clients begin to connect, and subscribers to subscribe."""
        by_sdk: dict[str, list[dict[str, Any]]] = {sdk: [] for sdk in self._drivers}
        for role in self._roles:
            gates, shards = self._stage.client_gates, self._stage.shards
            ports = [gates[each].port if role.is_gated else shards[each].port for each in role.shards]
            by_sdk[role.way.sdk].append(
                {
                    "who": role.who,
                    "channel": role.channel,
                    "interval": role.interval,
                    "transport": role.way.transport,
                    "protobuf": role.way.is_protobuf,
                    "endpoints": [f"http://127.0.0.1:{port}" for port in ports],
                    "key": API_KEY,
                }
            )
        for sdk, driver in self._drivers.items():
            driver.call("open", clients=by_sdk[sdk])

    def publish(self) -> None:
        """Publishers begin."""
        for driver in self._drivers.values():
            driver.call("publish")

    def cease(self) -> list[tuple[Driver, int]]:
        """Publishers stop; gives what ``ceased`` is to be asked with."""
        return [(driver, driver.begin("cease")) for driver in self._drivers.values()]

    @staticmethod
    def ceased(asked: list[tuple[Driver, int]]) -> None:
        """Returns when all have got their last reply."""
        for driver, number in asked:
            driver.result(number, COMMAND_SECONDS)

    def lines(self) -> list[str]:
        """What was written since it was last asked."""
        return [line for tail in self._tails for line in tail.lines()]

    def complaints(self) -> str:
        """What the processes wrote to stderr: nothing, as a rule."""
        return "".join(
            f"witness of {sdk}: {text}" for sdk, driver in self._drivers.items() if (text := driver.log())
        )
