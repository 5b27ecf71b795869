"""What `poolsave.migrations.RequireRun` requires of a run, and how it is finished in a migration."""

from __future__ import annotations

from typing import Any

from django.db import router

from ..errors import RunUnfinished, UnknownRun
from ..options import INLINE
from . import _progress as progress
from . import control
from .models import Run
from .work import work_on


def require_run(name: str, connection: Any, *, finish: bool) -> None:
    """Look at a run, after it was finished if that is asked for.

    Raises:
        RunUnfinished: if it is not finished, or has unresolved failures.
    """
    alias = connection.alias if router.allow_migrate_model(connection.alias, Run) else router.db_for_write(Run)
    if finish:
        _finish(name, alias, connection)
    try:
        run = control.find_run(name, using=alias)
    except UnknownRun:
        raise RunUnfinished(name, "not started", "nothing is done", 0) from None
    unresolved = control.unresolved(run).count()
    if unresolved or run.status not in (Run.Status.FINISHED, Run.Status.FINISHED_WITH_FAILURES):
        figures = ", ".join(filter(None, [f"{progress.counts(run)} objects", progress.reason(run)]))
        raise RunUnfinished(name, run.status, figures, unresolved)


def _finish(name: str, alias: str, connection: Any) -> None:
    run = Run.objects.using(alias).filter(name=name).first() or control.start(name, by="migrate", using=alias)
    if run.status == Run.Status.PAUSED or run.status in Run.ACTIVE:
        control.resume(name, by="migrate", using=alias)
    if run.status in Run.ENDED:
        return
    is_in_memory = connection.vendor == "sqlite" and connection.is_in_memory_db()
    options: dict[str, Any] = dict(INLINE) if is_in_memory else {}  # as `RunPooled` does, in tests
    work_on(name, using=alias, **options)
