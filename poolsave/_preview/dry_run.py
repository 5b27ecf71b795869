"""Runs a few objects in the caller's thread, inside a transaction that is always rolled back, and tells what they did.

A dry run is a run with the serial executor inside of that transaction: each sample has a savepoint, as with
`executor="serial"` inside `atomic()`. Recorders on the connections tell the rest.

    choose_samples -> begin_on -> map(executor="serial") -> Recorder.changes -> rollback -> Preview
                                    |
                  Recorder per alias, UncoveredDatabases, catch_mail_and_tasks
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from django.apps import apps
from django.db import connections
from django.db.transaction import TransactionManagementError

from .._db.error_codes import is_transient
from .._db.transactions import OpenTransactions, begin_on, roll_back
from .._runs.preflight import check_aliases_exist, check_databases_answer, check_key
from .._runs.preparation import OperationSpec
from .._runtime.foreign_exceptions import add_note, is_a
from ..errors import InvalidOption
from ..options import Options, worker_range
from ..previews import Preview
from ..reports import Report
from .outside import catch_mail_and_tasks
from .recorder import Recorder
from .refusals import Refusals
from .replacing import replaced
from .samples import Samples, check_samples, choose_samples
from .uncovered import UncoveredDatabases


class Mappable(Protocol):
    """An operation or a pipeline."""

    def using(self, **options: Any) -> Any: ...


def dry_run(operation: Mappable, stages: Sequence[OperationSpec], objects: Iterable[Any], samples: int) -> Preview:
    """Try the first objects. `stages` are those of the pipeline, or the operation itself.

    Raises: as `PooledOperation.dry_run`.
    """
    check_samples(samples)
    aliases = _covered_aliases(stages)
    check_aliases_exist(aliases)
    first, *others = stages
    for stage in (first.over(objects), *others):
        check_key(stage)
        check_databases_answer(stage.needed)
    chosen = choose_samples(objects, samples, first)
    with catch_mail_and_tasks() as caught, _rolled_back(aliases) as opened:
        recorders, uncovered_callbacks, report = _recorded_run(operation, chosen, opened)
        changes = [change for recorder in recorders for change in recorder.changes()]
        callbacks = sum(recorder.callbacks for recorder in recorders) + uncovered_callbacks
    other_writes = sum((recorder.other_writes for recorder in recorders), Counter())
    seconds, workers = _seconds_per_object(report, recorders), _workers(stages, opened, chosen.total)
    return Preview(
        changes=changes,
        other_writes=dict(other_writes),
        callbacks=callbacks,
        mail=caught.mail,
        tasks=caught.tasks,
        errors=report.by_cause(),
        samples=chosen.size,
        succeeded=report.succeeded,
        dropped=report.dropped,
        skipped=report.skipped,
        total=chosen.total,
        seconds_per_object=seconds,
        estimate=None if chosen.total is None else chosen.total * seconds / workers,
        workers=workers,
        chosen=chosen.description,
        of_rows=chosen.of_rows,
        sequences_moved=any(recorder.moves_sequences for recorder in recorders),
    )


def _covered_aliases(stages: Sequence[OperationSpec]) -> tuple[str, ...]:
    aliases = dict.fromkeys(alias for stage in stages for alias in stage.covered)
    if not aliases:
        raise InvalidOption(
            "transaction",
            None,
            "a dry run could not undo what functions commit by themselves: use "
            'operation.using(transaction="object").dry_run(...) for one that can run inside a transaction',
        )
    return tuple(aliases)


def _recorded_run(
    operation: Mappable, chosen: Samples, opened: OpenTransactions
) -> tuple[list[Recorder], int, Report[Any]]:
    refusals = Refusals(opened.guards)
    recorders = [Recorder(guard.connection, refusals) for guard in opened.guards]
    aliases = tuple(recorder.connection.alias for recorder in recorders)
    uncovered = UncoveredDatabases(aliases, refusals)
    with ExitStack() as stack:
        stack.enter_context(uncovered.watched())
        for recorder in recorders:
            stack.enter_context(recorder.active())
        report = operation.using(**_inline(aliases)).map(chosen.objects)
    refusals.raise_first()
    _check_alive(opened, report)
    return recorders, uncovered.callbacks, report


def _inline(aliases: tuple[str, ...]) -> dict[str, Any]:
    """Options for the caller's thread. Those that are for pools and long runs have their defaults."""
    own = {"executor": "serial", "databases": aliases, "retries": 0, "keep": "all", "progress": False}
    return {**Options().as_dict(), **own}


def _check_alive(opened: OpenTransactions, report: Report[Any]) -> None:
    if not any(guard.is_doomed() for guard in opened.guards):
        return
    last_success = max((outcome.index for outcome in report if outcome.ok), default=-1)
    errors = [
        failure.error for failure in report.failures if failure.index > last_success and failure.error is not None
    ]
    error = next(filter(_ends_transaction, errors), errors[0])
    add_note(error, "poolsave: it has ended the transaction of the dry run, of which nothing is left")
    raise error


def _ends_transaction(error: BaseException) -> bool:
    return is_transient(error) or is_a(error, TransactionManagementError)


class _Over(Exception):  # leaves the transaction; not an error
    pass


@contextmanager
def _rolled_back(aliases: Sequence[str]) -> Iterator[OpenTransactions]:
    with ExitStack() as stack:
        for alias in aliases:
            _lock_sqlite_at_begin(connections[alias], stack)
        opened = begin_on(aliases)
    try:
        if opened.error is not None:
            raise opened.error
        yield opened
    finally:
        opened.disarm()
        roll_back(opened, _Over())
        _forget_content_types()


def _lock_sqlite_at_begin(connection: Any, stack: ExitStack) -> None:
    # Rows are read before they are written. If another process wrote in between, SQLite would refuse to write at once.
    if connection.vendor == "sqlite" and not connection.in_atomic_block:
        connection.ensure_connection()  # sets what is replaced here
        mode = connection.transaction_mode or "IMMEDIATE"
        stack.enter_context(replaced(connection, "transaction_mode", mode))


def _forget_content_types() -> None:
    # Django remembers the keys of those that were read, and of those that were created and are gone.
    if apps.is_installed("django.contrib.contenttypes"):
        from django.contrib.contenttypes.models import ContentType

        ContentType.objects.clear_cache()


def _seconds_per_object(report: Report[Any], recorders: Sequence[Recorder]) -> float:
    seconds = sum(outcome.seconds for outcome in report) - sum(recorder.seconds for recorder in recorders)
    return max(0.0, seconds) / max(1, report.total)


def _workers(stages: Sequence[OperationSpec], opened: OpenTransactions, total: int | None) -> int:
    if any(guard.connection.vendor == "sqlite" for guard in opened.guards):  # which has one writer at a time
        return 1
    most = min(
        1 if stage.options.executor == "serial" else worker_range(stage.options.workers).least for stage in stages
    )
    return most if total is None else max(1, min(most, total))
