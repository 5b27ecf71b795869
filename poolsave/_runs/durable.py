"""The engine of a durable run, after the checks that only such a run needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db.models import QuerySet

from .._durable.engine import DurableEngine
from .._durable.identity import identity_of
from .._durable.opening import check_promise, check_tables, ledger_alias
from .._durable.session import Session
from .._durable.sources import KeyedInput, QuerySetGaps
from .._worker.job import WorkerJob
from ..durable import Run, as_run
from ..errors import InvalidOption
from ..executors import Executor
from .preflight import check_aliases_exist, check_no_event_loop, check_no_open_transaction
from .preparation import OperationSpec


def durable_engine(
    spec: OperationSpec, executor: Executor, job: WorkerJob, objects: Iterable[Any]
) -> tuple[DurableEngine, QuerySetGaps | KeyedInput]:
    """Make the engine and its source. Nothing is written yet.

    Raises:
        PoolsaveError: what cannot work, or cannot go on.
    """
    assert spec.options.run is not None
    run = as_run(spec.options.run)
    _check_key(run, spec)
    alias = ledger_alias(run, spec.options, spec.queryset)
    check_aliases_exist([alias])
    check_no_event_loop()
    check_no_open_transaction({*spec.aliases, alias})
    exactly_once = check_promise(run, spec.options, alias)
    identity = identity_of(spec.function, spec.constants, spec.queryset, run.key)
    session = Session(run, alias, identity, exactly_once=exactly_once)
    check_tables(session)
    source = _source_of(run, spec.queryset, objects)
    records = spec.options.transaction is not None and alias in spec.options.databases
    return DurableEngine(executor, job, spec.options, source, session, records=records), source


def _source_of(run: Run, queryset: QuerySet[Any] | None, objects: Iterable[Any]) -> QuerySetGaps | KeyedInput:
    if queryset is not None:
        return QuerySetGaps(queryset)
    assert run.key is not None
    return KeyedInput(run.name, objects, run.key)


def _check_key(run: Run, spec: OperationSpec) -> None:
    if spec.queryset is not None and run.key is not None:
        raise InvalidOption("key", run.key, "rows of a queryset have their primary keys; leave it out")
    if spec.queryset is None and run.key is None:
        raise InvalidOption(
            "run",
            run.name,
            "an input that is not a queryset is told apart by keys; give poolsave.Run(name, key=...), with a callable "
            "that gives a text or a whole number which no other object has",
        )
