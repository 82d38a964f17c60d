"""Processes of this machine: who we are, and whether another one is gone.

A pid says nothing by itself: it may belong to another machine or container, or may have been given to a
new process since. So an identity also carries the boot and pid namespace it is valid in, and the start
time of the process. Only Linux tells both; elsewhere nothing is ever held to be gone, and the lease
decides.
"""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

from spread.hub.api import ShardIdentity

__all__ = ["is_gone", "this_process"]


def this_process(version: str) -> ShardIdentity:
    """A new identity of this process: each call draws a new incarnation."""
    pid = os.getpid()
    return ShardIdentity(
        incarnation=secrets.token_hex(8),
        host=socket.gethostname(),
        pid=pid,
        machine=_machine(),
        started=_started(pid) or "",
        version=version,
    )


def is_gone(identity: ShardIdentity) -> bool:
    """The process certainly does not run any more. ``False`` also when that cannot be told from here."""
    if not identity.machine or not identity.started or identity.machine != _machine():
        return False
    started = _started(identity.pid)
    if started is not None:
        return started != identity.started
    try:
        os.kill(identity.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # it is there, and belongs to somebody else
    return False


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Start time in clock ticks since boot; "" if it has ended; ``None`` if that cannot be read."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may hold anything, so count from its end: state is field 3, start time 22.
    fields = stat[stat.rindex(")") + 2 :].split()
    return "" if fields[0] in "ZX" else fields[19]
