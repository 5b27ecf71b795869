"""Which processes were started by this one, and by those, and which of them are workers."""

import os

_others = set()
"""Processes that were seen to be of others, and are not looked at again."""


def descendants(kept: set[int]) -> set[int]:
    """All but those that are kept, and what comes of them: what psutil tells as well, in a tenth of the time."""
    alive = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    _others.intersection_update(alive)
    parents = {pid: parent_of(pid) for pid in alive - _others}
    mine = {os.getpid()}
    while found := {pid for pid, parent in parents.items() if parent in mine} - mine - kept:
        mine |= found
    _others.update(parents.keys() - mine)
    return mine - {os.getpid()}


def workers_of(parent: int) -> list[int]:
    """Workers lead groups of their own, and no sessions as a server's keeper does; other children lead nothing."""
    import psutil  # here, since each test process imports this module

    found = []
    for child in psutil.Process(parent).children(recursive=True):
        try:
            leads_a_group = os.getpgid(child.pid) == child.pid != os.getsid(child.pid)
            if leads_a_group and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child.pid)
        except (psutil.Error, ProcessLookupError):
            continue
    return sorted(found)


def parent_of(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:  # it has ended meanwhile
        return None


def command_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").rstrip()
    except OSError:  # it has ended meanwhile
        return ""
