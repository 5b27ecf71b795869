"""How long PostgreSQL has computed for this thread's connections, if it runs on this machine.

Each session of PostgreSQL is a process. It competes with workers for the CPUs, so that more workers are no help for
what it does. A server on another machine, in another container or behind a pooler has no process here with the right
title.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.db import connections

from .._runtime.cpu_clock import SchedulerStatistics


class ServerClock:
    """Gives the seconds in which the sessions' processes were on a CPU, and those in which they stood in line for one.

    A session counts from the first call that finds it.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}
        """By alias."""
        self._on_cpu = self._in_line = 0.0

    def __call__(self) -> tuple[float, float]:
        for connection in connections.all(initialized_only=True):
            raw = connection.connection
            if connection.vendor == "postgresql" and raw is not None and not raw.closed:
                on_cpu, in_line = self._session(connection.alias, raw.info).since_last()
                self._on_cpu += on_cpu
                self._in_line += in_line
        return self._on_cpu, self._in_line

    def _session(self, alias: str, info: Any) -> _Session:
        session = self._sessions.get(alias)
        if session is None or session.process != info.backend_pid:
            if session is not None:
                session.close()
            session = self._sessions[alias] = _Session(info.backend_pid, info.dbname)
        return session

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()


class _Session:
    def __init__(self, process: int, database: str) -> None:
        self.process = process
        self._statistics = SchedulerStatistics(str(process))
        if not _is_session(process, database):
            self.close()
        self._last = self._statistics.read()

    def since_last(self) -> tuple[float, float]:
        before, self._last = self._last, self._statistics.read()
        return max(0.0, self._last[0] - before[0]), max(0.0, self._last[1] - before[1])

    def close(self) -> None:
        self._statistics.close()


def _is_session(process: int, database: str) -> bool:
    """Whether the process is a session of that database: its title is `postgres: user database client command`."""
    try:
        title = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return title.startswith("postgres: ") and f" {database} " in title
