"""Ended calls of a block: values for the report, results for the futures. `BlockDriver` calls it."""

from __future__ import annotations

import concurrent.futures
from dataclasses import replace
from typing import Any

from .._reports.batches import OutcomeBatch
from .._reports.causes import exception_chain
from .._runtime.foreign_exceptions import is_a, set_cause
from .._worker.requests import PendingCall
from ..errors import TimedOut, ValueLost, WorkerDied, stand_in_for
from ..outcomes import Outcome, Status


def receive_values(batch: OutcomeBatch, calls: list[PendingCall]) -> tuple[OutcomeBatch, list[Any]]:
    """Give the batch with the caller's objects in place of calls, and the results for the futures."""
    values = list(batch.values)
    results: list[Any] = [None] * len(calls)
    notable: dict[int, Outcome[Any]] = {}
    for offset, call in enumerate(calls):
        outcome = batch.notable.get(offset)
        if call.cancelled:
            index = batch.first + offset
            outcome = Outcome(index=index, status=Status.SKIPPED, item=call.request.item, attempts=0)
        elif outcome is None or _has_value(outcome):
            try:
                values[offset], results[offset] = call.request.receive(values[offset])
            except BaseException as error:  # a model attribute that refuses the key; the row is saved
                outcome = _value_lost(batch.first + offset, error)
        if outcome is not None:
            _unwrap_item(outcome.error, call)
            value = values[offset] if _has_value(outcome) else None
            notable[offset] = replace(outcome, item=call.request.item, value=value)
    return batch._replace(values=values, objects=[call.request.item for call in calls], notable=notable), results


def _value_lost(index: int, cause: BaseException) -> Outcome[Any]:
    error = ValueLost(index)
    set_cause(error, cause)
    return Outcome(index=index, status=Status.SUCCEEDED, error=error)


def _unwrap_item(error: BaseException | None, call: PendingCall) -> None:
    # The engine names the call as item; the user knows the object in it.
    for cause in exception_chain(error):
        if (is_a(cause, WorkerDied) or is_a(cause, TimedOut)) and cause.item is call:
            cause.item = call.request.item


def _has_value(outcome: Outcome[Any]) -> bool:
    return outcome.ok and not is_a(outcome.error, ValueLost)


def resolve_future(future: concurrent.futures.Future[Any], result: Any, outcome: Outcome[Any] | None) -> None:
    """Set the result or exception of a call's future."""
    if outcome is None or _has_value(outcome):
        future.set_result(result)
    elif outcome.status is Status.SKIPPED:
        cancelled = concurrent.futures.CancelledError("it was never started")
        future.set_exception(cancelled if outcome.error is None else _truthy(outcome.error))
    else:
        future.set_exception(_truthy(outcome.error))


def _truthy(error: BaseException | None) -> BaseException | None:
    """Futures take a falsy exception for none, and give None as their result (CPython issue 132063)."""
    if error is None or _is_true(error):
        return error
    return stand_in_for(error)


def _is_true(error: BaseException) -> bool:
    try:
        return bool(error)
    except BaseException:  # a broken __bool__ would break the future, too
        return False
