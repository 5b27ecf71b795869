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
    parts = dict(part.partition("=")[::2] for part in holder.split()[1:])
    if not parts.get("boot") or (parts["boot"], parts.get("namespace")) != (_boot(), _namespace()):
        return False
    pid, started = parts.get("pid", ""), parts.get("started")
    return bool(pid and started) and _start_of(int(pid)) != started


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
