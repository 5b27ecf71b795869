"""What the ends of calls mean for those who wait for them: values for the report, results for the futures."""

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
    """The batch as the caller knows it, and what the futures are to give."""
    values = list(batch.values)
    results: list[Any] = [None] * len(calls)
    notable: dict[int, Outcome[Any]] = {}
    for place, call in enumerate(calls):
        outcome = batch.notable.get(place)
        if call.cancelled:
            index = batch.first + place
            outcome = Outcome(index=index, status=Status.SKIPPED, item=call.request.item, attempts=0)
        elif outcome is None or _has_value(outcome):
            try:
                values[place], results[place] = call.request.arrive(values[place])
            except BaseException as error:  # a model whose attributes refuse the key; the row is saved all the same
                outcome = _not_taken(batch.first + place, error)
        if outcome is not None:
            _name_item(outcome.error, call)
            value = values[place] if _has_value(outcome) else None
            notable[place] = replace(outcome, item=call.request.item, value=value)
    return batch._replace(values=values, objects=[call.request.item for call in calls], notable=notable), results


def _not_taken(index: int, cause: BaseException) -> Outcome[Any]:
    error = ValueLost(index)
    set_cause(error, cause)
    return Outcome(index=index, status=Status.SUCCEEDED, error=error)


def _name_item(error: BaseException | None, call: PendingCall) -> None:
    # The engine knows calls only; the user knows what is in them.
    for one in exception_chain(error):
        if (is_a(one, WorkerDied) or is_a(one, TimedOut)) and one.item is call:
            one.item = call.request.item


def _has_value(outcome: Outcome[Any]) -> bool:
    return outcome.ok and not is_a(outcome.error, ValueLost)


def resolve_future(future: concurrent.futures.Future[Any], result: Any, outcome: Outcome[Any] | None) -> None:
    """Give a future what its call came to."""
    if outcome is None or _has_value(outcome):
        future.set_result(result)
    elif outcome.status is Status.SKIPPED:
        never = concurrent.futures.CancelledError("it was never started")
        future.set_exception(never if outcome.error is None else _truthy(outcome.error))
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
