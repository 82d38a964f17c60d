"""A stage: hubs and shards as real processes, and the kinds of faults that can be done to them.

This is the contract, and what all stages share: the shards (each a ``spread-node`` process with an HTTP port
that it keeps, started again at once when it is gone, as a fleet or a supervisor does), a gate between some
clients and each shard, and the faults of both. A stage adds its hubs:

    class TwoValkeys(Stage):
        name = "two-valkeys"                        # for --stage

        def start_hub(self) -> None:                # start servers; self.stack ends them
            self.valkey = self.stack.enter_context(Valkey(...))
            self.links = [self.gates.open(self.valkey.port) for _ in range(self.size)]

        def hub_arguments(self, shard: int) -> list[str]:       # for the shard's command line
            return ["--hub", f"redis://127.0.0.1:{self.links[shard].port}"]

        def hub_kinds(self) -> list[Kind]:
            return [Kind("valkey-kill", "SIGKILL and restart of Valkey", self._kill, self._start,
                         seconds=(0.2, 2.0), limit_seconds=3.0)]

        def _kill(self, strike: Strike) -> Hurt:    # begin: does it, says who is hurt
            self.valkey.kill()
            return EVERYBODY

        def _start(self, strike: Strike) -> None:   # end, strike.seconds later
            self.valkey.start()                     # returns when the fault is over

and is registered by its module's name: ``--stage two-valkeys`` imports ``stage_two_valkeys`` and takes the
subclass of ``Stage`` of that name that it defines.

A stage is made without starting anything: ``kinds`` must work then, since plans are drawn from it. ``begin``
and ``end`` of a kind are called on the runner's thread, blocking, one fault at a time. Whatever a fault
draws, it draws from ``strike.rng()``, so that it does the same when it is replayed. After ``end`` everything
must be as healthy as before it, or become so by itself.

The recovery of a fault is counted from the moment its ``end`` has returned, or, if it has none, from the
moment its ``begin`` was called.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.live.faults.links import Gate, Gates
from tests.live.faults.plan import Offer, Strike
from tests.live.processes import home, reserved_port, resident_bytes, until

__all__ = ["API_KEY", "EVERYBODY", "Hurt", "Kind", "Shard", "Stage", "stage_class"]

API_KEY = "the-key-of-the-harness"

CONFIG = f"""
[client]
insecure = true
allowed_origins = ["*"]
ping_interval = "5s"
pong_timeout = "3s"

[http_api]
key = "{API_KEY}"

[http_stream]
enabled = true

[channel.without_namespace]
history_size = 5000
history_ttl = "600s"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_client = true
"""

WATCH_SECONDS = 0.03
"""How often the supervisor looks whether a shard is gone."""

START_SECONDS = 40.0


@dataclass(frozen=True)
class Hurt:
    """Whom a fault hurts: subscribers in these channels with connections to these shards; ``None`` is all."""

    shards: frozenset[int] | None = None
    channels: frozenset[str] | None = None
    only_gated: bool = False
    """Only clients that come through the gate of their shard."""
    destroys: bool = False
    """What these channels had kept may be gone by command: subscribers may be told so, and only now."""


EVERYBODY = Hurt()


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    name: str
    """As in ``Offer``."""
    says: str
    """For the table."""
    begin: Callable[[Strike], Hurt]
    end: Callable[[Strike], None] | None = None
    targets: int = 1
    seconds: tuple[float, float] = (0.0, 0.0)
    limit_seconds: float = 20.0
    """Recovery must not take longer, for any subscriber."""

    @property
    def offer(self) -> Offer:
        """What a plan must know of it."""
        return Offer(self.name, self.targets, self.seconds)


class Shard:
    """One shard of a stage: a number, a port, and the process that runs at present."""

    def __init__(self, number: int, directory: Path, arguments: Sequence[str], module: Sequence[str]) -> None:
        self.number = number
        self._reserved: socket.socket
        self._reserved, self.port = reserved_port()
        self._arguments = list(arguments)
        self._module = list(module)
        self._directory = directory
        self.environ: dict[str, str] = {}
        """Added to the environment of the next process."""
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.is_expected = True
        """The next exit is our doing."""

    @property
    def log(self) -> Path:
        """What all of its processes wrote to stderr."""
        return self._directory / f"shard-{self.number}.log"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start a process; does not wait for it."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SPREAD_")}
        environ["SPREAD_HOME"] = str(self._directory / "h")
        command = [
            *(sys.executable, "-m", *self._module, "--shard", str(self.number)),
            *("--text", "off", "--ops", "off", "--http", f"127.0.0.1:{self.port}"),
            *("--config", str(self._directory / "spread.toml"), *self._arguments),
        ]
        with open(self.log, "ab") as log, open(self._directory / f"shard-{self.number}.out", "ab") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=environ | self.environ
            )
        self.starts += 1
        self.is_expected = False

    def is_listening(self) -> bool:
        """Its port takes connections."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def has_ended(self) -> bool:
        """Its process has exited."""
        return self.process is not None and self.process.poll() is not None

    def signal(self, number: int) -> None:
        """Send it a signal; after SIGKILL and SIGTERM it is expected to go."""
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.is_expected = True
        if self.process is not None and not self.has_ended():
            self.process.send_signal(number)

    def resident_bytes(self) -> int:
        """0 if it is not there at the moment."""
        try:
            return resident_bytes(self.pid)
        except OSError:
            return 0

    def close(self) -> None:
        self.is_expected = True
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self._reserved.close()


class Stage:
    """See the module.

    :param size: shards.
    :param channels: the channels of the run.
    :param module: what is run as a shard: a module's name, and arguments before the usual ones.
    """

    name = ""

    def __init__(self, size: int, channels: Sequence[str], module: Sequence[str] = ("spread.node",)) -> None:
        self.size = size
        self.channels = list(channels)
        self.stack = ExitStack()
        """Ends, the last first, what the stage has started."""
        self.shards: list[Shard] = []
        self.client_gates: list[Gate] = []
        """Between some clients and each shard."""
        self.gates: Gates
        self.directory: Path
        """Of this run; gone in the end."""
        self.exits: list[tuple[float, int, int]] = []
        """Exits of shards that nobody had asked for: ``time.monotonic()``, shard, exit code."""
        self._module = tuple(module)
        self._is_closing = threading.Event()

    # -- what a stage adds -----------------------------------------------------------------------------

    def start_hub(self) -> None:
        """Start the servers, and gates before them as needed."""
        raise NotImplementedError

    def hub_arguments(self, shard: int) -> list[str]:
        """For the command line of a shard: ``--hub`` and what else it needs."""
        raise NotImplementedError

    def hub_kinds(self) -> list[Kind]:
        """The faults of the hubs and of the way to them."""
        raise NotImplementedError

    def hub_is_whole(self) -> bool:
        """Servers run as they should: asked before the next fault."""
        return True

    def config(self) -> str:
        """The configuration file of all shards."""
        return CONFIG

    def shard_environ(self, shard: int) -> dict[str, str]:
        """Added to the environment of each of its processes."""
        return {}

    def hub_bystanders(self) -> list[str]:
        """Lines for the report, of what else the stage has noticed."""
        return []

    # -- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything; returns when all shards take clients."""
        path = self.stack.enter_context(home())
        self.directory = path.parent
        (self.directory / "spread.toml").write_text(self.config())
        self.gates = self.stack.enter_context(Gates())
        self.start_hub()
        for number in range(self.size):
            shard = Shard(number, self.directory, self.hub_arguments(number), self._module)
            shard.environ = self.shard_environ(number)
            self.stack.callback(shard.close)
            self.shards.append(shard)
            shard.start()
        for shard in self.shards:
            until(lambda s=shard: s.is_listening() or s.has_ended(), START_SECONDS, f"shard {shard.number}")
            assert not shard.has_ended(), self._tail(shard)
            self.client_gates.append(self.gates.open(shard.port))
        supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        supervisor.start()
        self.stack.callback(supervisor.join, 10)
        self.stack.callback(self._is_closing.set)

    def close(self) -> None:
        """End everything. Idempotent."""
        self.stack.close()

    def _supervise(self) -> None:
        while not self._is_closing.wait(WATCH_SECONDS):
            for shard in self.shards:
                if shard.has_ended() and not self._is_closing.is_set():
                    if not shard.is_expected and shard.process is not None:
                        self.exits.append((time.monotonic(), shard.number, shard.process.returncode))
                        time.sleep(0.2)
                    shard.start()

    def is_whole(self) -> bool:
        """All shards take clients, and the hubs are well."""
        return self.hub_is_whole() and all(shard.is_listening() for shard in self.shards)

    def _tail(self, shard: Shard) -> str:
        try:
            return shard.log.read_text(errors="replace")[-2_000:]
        except OSError:
            return ""

    # -- faults ----------------------------------------------------------------------------------------

    def kinds(self) -> list[Kind]:
        """All that this stage offers. Works before ``start``."""
        return [*self._shard_kinds(), *self._client_kinds(), *self.hub_kinds()]

    def _shard_kinds(self) -> list[Kind]:
        return [
            Kind("shard-kill", "SIGKILL of a shard", self._kill_shard, targets=self.size, limit_seconds=3.0),
            Kind("shard-term", "SIGTERM of a shard", self._stop_shard, targets=self.size, limit_seconds=5.0),
            Kind(
                "shard-freeze",
                "SIGSTOP of a shard",
                self._freeze_shard,
                self._thaw_shard,
                targets=self.size,
                seconds=(1.0, 6.0),
            ),
        ]

    def _kill_shard(self, strike: Strike) -> Hurt:
        self.shards[strike.target].signal(signal.SIGKILL)
        return of_shard(strike.target)

    def _stop_shard(self, strike: Strike) -> Hurt:
        self.shards[strike.target].signal(signal.SIGTERM)
        return of_shard(strike.target)

    def _freeze_shard(self, strike: Strike) -> Hurt:
        self.shards[strike.target].signal(signal.SIGSTOP)
        return of_shard(strike.target)

    def _thaw_shard(self, strike: Strike) -> None:
        self.shards[strike.target].signal(signal.SIGCONT)

    def _client_kinds(self) -> list[Kind]:
        size = self.size
        return [
            Kind(
                "client-cut", "connections of clients cut", self._cut_clients, targets=size, limit_seconds=3.0
            ),
            Kind(
                "client-tear",
                "connections of clients cut in the middle of a frame",
                self._tear_clients,
                targets=size,
                limit_seconds=5.0,
            ),
            Kind(
                "client-stall",
                "black hole between clients and a shard",
                self._stall_clients,
                self._end_stall_of_clients,
                targets=size,
                seconds=(1.0, 8.0),
            ),
            Kind(
                "client-delay",
                "50-300 ms of delay between clients and a shard",
                self._delay_clients,
                self._heal_clients,
                targets=size,
                seconds=(1.0, 4.0),
                limit_seconds=3.0,
            ),
        ]

    def _gated(self, strike: Strike) -> Hurt:
        return Hurt(shards=frozenset([strike.target]), only_gated=True)

    def _cut_clients(self, strike: Strike) -> Hurt:
        self.client_gates[strike.target].cut()
        return self._gated(strike)

    def _tear_clients(self, strike: Strike) -> Hurt:
        # Clients send something every few seconds only, so mostly it is the shard's frames that are torn.
        self.client_gates[strike.target].tear(up=strike.rng().random() < 0.25)
        return self._gated(strike)

    def _stall_clients(self, strike: Strike) -> Hurt:
        up, down = strike.rng().choice([(True, True), (False, True), (True, False)])
        self.client_gates[strike.target].stall(up=up, down=down)
        return self._gated(strike)

    def _end_stall_of_clients(self, strike: Strike) -> None:
        gate = self.client_gates[strike.target]
        if strike.seed % 2:  # a middlebox that has forgotten the connections
            gate.cut()
        gate.heal()

    def _delay_clients(self, strike: Strike) -> Hurt:
        self.client_gates[strike.target].delay(strike.rng().uniform(0.05, 0.3))
        return self._gated(strike)

    def _heal_clients(self, strike: Strike) -> None:
        self.client_gates[strike.target].heal()


def of_shard(shard: int) -> Hurt:
    """All subscribers of one shard."""
    return Hurt(shards=frozenset([shard]))


def stage_class(name: str) -> type[Stage]:
    """The stage of that name: the subclass of ``Stage`` in ``stage_NAME``.

    :raises ModuleNotFoundError: there is none.
    """
    module = importlib.import_module(f"tests.live.faults.stage_{name.replace('-', '_')}")
    for found in vars(module).values():
        if (
            isinstance(found, type)
            and issubclass(found, Stage)
            and found is not Stage
            and found.__module__ == module.__name__
            and found.name == name
        ):
            return found
    raise ModuleNotFoundError(f"no stage {name!r} in {module.__name__}")
