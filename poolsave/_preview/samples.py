"""The objects of a dry run: the first of any iterable, as copies, or of a queryset, by their keys."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

from django.db.models import QuerySet

from .._db.inspection import count_or_estimate
from .._runs.preflight import check_queryset
from .._runs.preparation import OperationSpec
from .._runs.querysets import KeysetPages
from ..errors import InvalidOption


class Samples(NamedTuple):
    """What is tried, and what it was taken from."""

    objects: Any
    size: int
    total: int | None
    description: str
    of_rows: bool


def check_samples(samples: object) -> None:
    """Refuse what is no number of objects.

    Raises:
        InvalidOption: naming the value.
    """
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise InvalidOption("samples", samples, "give a whole number from 1")


def choose_samples(objects: Iterable[Any], samples: int, spec: OperationSpec) -> Samples:
    """Take the first objects; of a queryset the rows with the lowest keys, with which a run begins, too.

    Raises:
        InvalidOperation: if a queryset cannot be mapped.
    """
    queryset = spec.over(objects).queryset
    if queryset is None:
        return _first_objects(objects, samples)
    check_queryset(queryset, spec.options)
    return _first_rows(queryset, samples)


def _first_objects(objects: Iterable[Any], samples: int) -> Samples:
    chosen = [_copied(item) for item in islice(objects, samples)]
    total = _length(objects, len(chosen), samples)
    return Samples(chosen, len(chosen), total, _described(len(chosen), total, "objects"), of_rows=False)


def _described(size: int, total: int | None, what: str, order: str = "") -> str:
    if size == total:
        return f"all {total:,} {what}"
    return f"the first {size:,} {what}{order}" if total is None else f"the first {size:,} of {total:,} {what}{order}"


def _copied(item: Any) -> Any:
    # A run sends copies to its workers, so the caller's own objects are not changed. What cannot be copied is used
    # itself, as by threads.
    try:
        return copy.deepcopy(item)
    except Exception:  # whatever the object's own code raises
        return item


def _length(objects: Any, taken: int, samples: int) -> int | None:
    try:
        return len(objects)
    except (TypeError, OverflowError):
        return taken if taken < samples else None


def _first_rows(queryset: QuerySet[Any], samples: int) -> Samples:
    keys = KeysetPages(queryset)
    chosen = list(islice(keys, samples))
    rows: QuerySet[Any] = queryset.order_by().filter(pk__in=chosen)
    rows.query.select_for_update = False  # rows are fetched one by one, in a transaction that is there anyway
    total = keys.read if keys.all_read else count_or_estimate(queryset)
    description = _described(len(chosen), total, "rows", " in the order of their keys")
    return Samples(rows, len(chosen), total, description, of_rows=True)
