"""Works on what is due, here and now: the loop of `manage.py poolsave work`, and what a task of a queue does.

Any number of processes may do so at once. The lease sees to it that one of them takes each run, and the others go on to
the next. A queue may start a session, and is never asked what has become of it: that stands in the ledger.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from django.db import close_old_connections
from django.db.models import F

from .._runtime.foreign_exceptions import text_of
from ..errors import LeaseLost, RunBusy, StatusConflict
from . import control
from .models import Run
from .registry import find_backfill

__all__ = ["work", "work_on"]

POLL = 1.0
"""Seconds between two looks for what is due."""
LONGEST_REASON = 2000
logger = logging.getLogger("poolsave")


def work_on(name: str, *, seconds: float | None = None, using: str | None = None, **options: Any) -> Run | None:
    """Work on a run if it is due, and give its row as it is afterwards.

    A run that is not due, or that another process works on, is left as it is: None. What ends a session early stands in
    the row, as its `stop_code` and `stop_reason`.

    Args:
        seconds: after so long the session ends, and the run is due again; None for one that ends with the run.
        options: of the operation, in place of its own.

    Raises:
        UnknownRun
        KeyboardInterrupt, SystemExit: by a signal, after what had begun. The run is due then, for another process.
    """
    run = control.find_run(name, using=using)
    try:
        find_backfill(name).run(run, slice=seconds, only_due=True, **options)
    except (RunBusy, StatusConflict):
        return None
    except LeaseLost as error:
        logger.warning("%s", error)
    except (KeyboardInterrupt, SystemExit):
        _stopped(run, "signal").update(status=Run.Status.DUE)
        raise
    except Exception as error:
        logger.exception("the run %r has ended early", name)
        _refused(run, error)
    if _stopped(run, "slice").update(status=Run.Status.DUE):
        run.refresh_from_db()
        control.hand_over(run)
    return control.find_run(name, using=run._state.db)


def _stopped(run: Run, code: str) -> Any:
    """Give the row of a run that a session has paused with this stop code; no row if someone has changed it since."""
    return Run.objects.using(run._state.db).filter(pk=run.pk, status=Run.Status.PAUSED, stop_code=code)


def _refused(run: Run, error: Exception) -> None:
    """Pause a run that could not even begin, or it would be due for ever."""
    reason = f"{type(error).__name__}: {text_of(error)}"[:LONGEST_REASON]
    values = {"status": Run.Status.PAUSED, "stop_code": "error", "stop_reason": reason}
    control.due(using=run._state.db).filter(pk=run.pk).update(**values)


def work(
    *,
    once: bool = False,
    seconds: float | None = None,
    using: str | None = None,
    ended: Callable[[Run], object] = lambda run: None,
    **options: Any,
) -> None:
    """Work on what is due, one run after the other, for ever. Runs whose process has died are due, too.

    Args:
        once: end when nothing is due.
        seconds: as in `work_on`. With it several runs take turns.
        ended: called with a run's row after each session.
    """
    while True:
        close_old_connections()  # as between two requests: a server may have been started again
        control.recover(using=using)
        run = next_due(using=using)
        if run is None:
            if once:
                return
            time.sleep(POLL)
            continue
        after = work_on(run.name, seconds=seconds, using=run._state.db, **options)
        if after is None:  # another process was first
            time.sleep(POLL / 10)
        else:
            ended(after)


def next_due(*, using: str | None = None) -> Run | None:
    """Give the run that has waited longest: one that has not begun, or whose last session began first."""
    return control.due(using=using).order_by(F("started_at").asc(nulls_first=True), "pk").first()
