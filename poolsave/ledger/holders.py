"""Which process works on a run: as a line for people, from which another process can tell whether it lives."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path

ENDED = frozenset("ZX")
"""States of a process that runs no more, though its parent has not waited for it."""


def holder_here(generation: int) -> str:
    """Identify this process, and its session, in one line."""
    pid = os.getpid()
    where = f"boot={_boot()} namespace={_namespace()}"
    return f"{socket.gethostname()[:80]} pid={pid} {where} started={_start_of(pid)} session={generation}"


def is_gone(holder: str) -> bool:
    """Whether that process has certainly ended: it ran on this machine, where there is none by its number and start."""
    here = _process_here(holder)
    return here is not None and _start_of(here[0]) != here[1]


def is_this_process(holder: str) -> bool:
    """Whether it is the one that asks."""
    return _process_here(holder) == (os.getpid(), _start_of(os.getpid()))


def _process_here(holder: str) -> tuple[int, str] | None:
    """Give number and start of a process of this machine and namespace; None of any other."""
    parts = dict(part.partition("=")[::2] for part in holder.split()[1:])
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
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ENDED else fields[19]


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
