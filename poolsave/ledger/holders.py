"""Which process works on a run: as a line for people, from which another process can tell whether it lives."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path

ENDED = frozenset("ZX")
"""States of a process that runs no more, though its parent has not waited for it."""
STOPPED = frozenset("Tt")
"""States of a process that a signal or a debugger has stopped."""
STALE_AFTER = timedelta(seconds=60)
"""Without a heartbeat for so long a process counts as dead, unless another time is given. It writes one each second."""
PATIENCE = 10
"""How many times longer a process may be silent that is seen to run: its own code may be at one object for so long."""


def holder_here(generation: int) -> str:
    """Identify this process, and its session, in one line."""
    pid = os.getpid()
    where = f"boot={_boot()} namespace={_namespace()}"
    return f"{socket.gethostname()[:80]} pid={pid} {where} started={_start_of(pid)} session={generation}"


def counts_as_dead(holder: str, silent: timedelta | None, stale_after: timedelta) -> bool:
    """Whether a run may be taken over from that process, which was last heard of so long ago; None: never.

    One of this machine is looked for. If it is there and not stopped, it may be silent for longer.
    """
    if silent is None or is_gone(holder):
        return True
    return silent > (stale_after * PATIENCE if _is_running(holder) else stale_after)


def is_gone(holder: str) -> bool:
    """Whether that process has certainly ended: it ran on this machine, where there is none by its number and start."""
    here = _process_here(holder)
    return here is not None and _start_of(here[0]) != here[1]


def _is_running(holder: str) -> bool:
    here = _process_here(holder)
    return here is not None and _start_of(here[0]) == here[1] and _state_of(here[0]) not in STOPPED


def is_this_process(holder: str) -> bool:
    """Whether it is the one that asks."""
    return _process_here(holder) == (os.getpid(), _start_of(os.getpid()))


def _process_here(holder: str) -> tuple[int, str] | None:
    """Give number and start of a process of this machine and namespace; None of any other."""
    parts: dict[str, str] = {}
    for part in holder.split()[1:]:
        name, _, value = part.partition("=")
        parts[name] = value
    if not parts.get("boot") or (parts["boot"], parts.get("namespace")) != (_boot(), _namespace()):
        return None
    pid, started = parts.get("pid"), parts.get("started")
    return (int(pid), started) if pid and started else None


def describe(holder: str) -> str:
    """Give the part that people look for."""
    host, *parts = holder.split() or ["another process"]
    return f"{host}, process {parts[0].partition('=')[2]}" if parts else holder


def _start_of(pid: int) -> str:
    """When a process has started, in ticks since the machine did; empty if it has ended."""
    fields = _fields_of(pid)
    return fields[19] if fields and fields[0] not in ENDED else ""


def _state_of(pid: int) -> str:
    fields = _fields_of(pid)
    return fields[0] if fields else ""


def _fields_of(pid: int) -> list[str]:
    """What Linux says of a process, from its state on; empty if it is not there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


@cache
def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


@cache
def _namespace() -> str:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid").strip("pid:[]")
    return ""
