"""Has runs worked on by `django.tasks` (Django 6.0 and later; on 5.2 the package django-tasks), a slice at a time.

    POOLSAVE = {"runner": "poolsave.ledger.tasks.enqueue", "slice": 120}

    control: due -> enqueue -> work_slice: 120 s of work -> due -> enqueue -> work_slice ...
                                   `--> watch, later: if that process has died, the run is due again

A queue may deliver a task twice, late or never. So a task carries the number of the turn that it is for, and does
nothing in another one; what has been done stands in the ledger. Only a session whose slice is over enqueues the next.
"""

from __future__ import annotations

from datetime import timedelta
from importlib import import_module
from typing import Any

import django
from django.utils import timezone

from .._environment.project_settings import operating_settings
from . import control
from .models import Lease, Run
from .work import work_on

__all__ = ["enqueue", "watch", "work_slice"]

WATCH_AFTER = 1.5
"""Slices after which a slice's process is looked for: by then it has ended, or it is late."""
PACKAGE = "django.tasks" if django.VERSION >= (6,) else "django_tasks"
tasks: Any = import_module(PACKAGE)
ImmediateBackend: Any = import_module(f"{PACKAGE}.backends.immediate").ImmediateBackend


def enqueue(name: str, using: str) -> None:
    """Enqueue the next slice of a run that is due: what `settings.POOLSAVE["runner"]` names."""
    work_slice.enqueue(name, using, _turn(name, using))


@tasks.task()  # type: ignore[untyped-decorator]
def work_slice(name: str, using: str, turn: int) -> None:
    """Work on a run for a slice, if it is due and still that turn's.

    A backend that runs tasks at once, in the process that enqueues them, has the run worked on to its end.
    """
    control.recover(using=using)  # it may be this very task that died, and is delivered again
    if _turn(name, using) != turn:
        return
    at_once = isinstance(work_slice.get_backend(), ImmediateBackend)
    _watch_later(name, using, turn + 1)
    work_on(name, seconds=None if at_once else operating_settings()["slice"], using=using, progress=False)


@tasks.task()  # type: ignore[untyped-decorator]
def watch(name: str, using: str, turn: int) -> None:
    """Look whether the process of a turn has died, which makes the run due; look again while it works."""
    control.recover(using=using)
    if _turn(name, using) == turn:
        _watch_later(name, using, turn)


def _watch_later(name: str, using: str, turn: int) -> None:
    """Without a backend that can wait, `manage.py poolsave recover` has to be called from time to time."""
    if watch.get_backend().supports_defer:
        wait = WATCH_AFTER * timedelta(seconds=operating_settings()["slice"])
        watch.using(run_after=timezone.now() + wait).enqueue(name, using, turn)


def _turn(name: str, using: str) -> int | None:
    """The number of sessions so far; None without that run."""
    leases = Lease.objects.using(using).filter(run__in=Run.objects.using(using).filter(name=name))
    return leases.values_list("generation", flat=True).first()
