"""Querysets as input: the caller reads primary keys, page by page, and workers fetch the rows, range by range."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from django.db import router
from django.db.models import QuerySet
from django.db.models.base import ModelState
from django.db.models.manager import BaseManager

from .._db.inspection import count_or_estimate
from .._engine.sources import IterableSource, RangeSource
from .._environment.warnings import warn
from ..errors import InvalidOperation

PAGE_SIZE = 5000
"""Keys that the caller reads with one query: enough to make its cost small, few enough to hold in memory."""
MAX_RANGE = 1000
"""The most rows that a worker fetches with one query and holds at once."""


class KeysetPages:
    """The primary keys of a queryset's rows in ascending order, each once, read page by page.

    It is a walk along the index (`pk > last ORDER BY pk LIMIT n`), so that it never skips rows when the work itself
    changes what the filter finds, and holds no cursor open between commits. Rows with keys above the largest one at
    the start are not visited, so a function that adds rows to the table comes to an end.
    """

    def __init__(self, queryset: QuerySet[Any]) -> None:
        """Read the first page at once, so that a query that cannot work is refused before anything starts."""
        self.read = 0
        """How many have been read."""
        self.all_read = False
        self._keys = queryset.order_by("pk").values_list("pk", flat=True)
        self._keys.query.standard_ordering = True  # whatever reverse() was called on
        self._keys.query.select_for_update = False  # the workers lock, in their own transactions
        self._first = self._first_page(queryset)

    def __iter__(self) -> Iterator[Any]:
        page = self._first
        while page:
            yield from page
            page = [] if self.all_read else self._page(self._keys.filter(pk__gt=page[-1]))

    def _first_page(self, queryset: QuerySet[Any]) -> list[Any]:
        # The largest key of the whole table, not of the filtered rows: one look at the index, whatever the filter.
        # No manager: it might leave rows out.
        newest: QuerySet[Any] = QuerySet(queryset.model, using=queryset.db).order_by("-pk")
        for upper in newest.values_list("pk", flat=True)[:1]:
            self._keys = self._keys.filter(pk__lte=upper)
            return self._page(self._keys)
        self.all_read = True
        return []

    def _page(self, keys: Any) -> list[Any]:
        rows = list(keys[:PAGE_SIZE])
        page = list(dict.fromkeys(rows))  # a filter across a to-many relation gives a row several times
        self.all_read = len(rows) < PAGE_SIZE
        self.read += len(page)
        return page


class QuerySetSource(IterableSource):
    """A source of the primary keys of a queryset."""

    def __init__(self, queryset: QuerySet[Any]) -> None:
        self._queryset = queryset
        self._keys = KeysetPages(queryset)
        super().__init__(self._keys, instant=True)
        self._ended = not self._keys.read

    @property
    def total(self) -> int | None:
        """The number of rows, which is an estimate if counting them would scan a large table."""
        return self._keys.read if self._keys.all_read else count_or_estimate(self._queryset)

    def remaining(self) -> int | None:
        return self._keys.read - self._handed_out if self._keys.all_read else None

    def gather(self, size: int, *, idle: bool) -> Sequence[Any] | None:
        return super().gather(min(size, MAX_RANGE), idle=idle)


def source_of(objects: Iterable[Any], queryset: QuerySet[Any] | None) -> IterableSource:
    """Make the source of a run: of `queryset`, if there is one, else of `objects`."""
    if queryset is not None:
        return QuerySetSource(queryset)
    return RangeSource(objects) if isinstance(objects, range) else IterableSource(objects)


def as_queryset(objects: object) -> QuerySet[Any] | None:
    """The queryset, if the objects are one (or a manager), on the database that a router chooses for it now."""
    queryset = objects.all() if isinstance(objects, BaseManager) else objects
    return queryset.using(queryset.db) if isinstance(queryset, QuerySet) else None


def check_queryset(queryset: QuerySet[Any], *, transaction: str | None, databases: Collection[str]) -> None:
    """Refuse querysets whose rows cannot be fetched range by range, and warn of what may be a mistake.

    Raises:
        InvalidOperation: saying what to use instead.
    """
    for unsuitable, what, way_out in (
        (queryset.query.combinator, "a union(), intersection() or difference()", _BY_KEYS),
        (queryset.query.is_sliced, "a sliced queryset", _BY_KEYS),
        (vars(queryset)["_fields"] is not None, "values(), values_list() or dates()", _BY_INSTANCE),
        (_has_window_function(queryset), "a queryset with a window function", _BY_KEYS),
        (queryset.query.distinct_fields, "distinct() on fields", _BY_KEYS),
        (queryset.query.select_for_update and transaction != "chunk", "select_for_update()", _IN_CHUNK),
    ):
        if unsuitable:
            raise InvalidOperation(f"{what} cannot be mapped over a pool range by range: {way_out}")
    if not _is_ordered_by_key(queryset):
        warn("the ordering of this queryset is ignored: a pool takes rows in the order of their primary keys")
    alias = _saved_on(queryset)
    if transaction is not None and not {alias, queryset.db} & {*databases}:
        warn(
            f"rows of {queryset.model._meta.label} would be saved on {alias!r}, which databases={tuple(databases)!r} "
            "does not cover: what is written there stays, also if its object fails"
        )


_BY_KEYS = (
    "select the same rows by their keys, for example\n\n"
    '    keys = list(queryset.values_list("pk", flat=True))\n'
    "    operation.map(Model.objects.filter(pk__in=keys))"
)
_BY_INSTANCE = (
    "map the queryset of instances (with only() for some columns), or pass queryset.iterator() to have the caller read "
    "the values and send them"
)
_IN_CHUNK = (
    "the rows would be fetched outside of the transaction of their object; lock inside the function, or use "
    'transaction="chunk", where the rows are fetched in the transaction of their chunk'
)


def _saved_on(queryset: QuerySet[Any]) -> str:
    model: Any = queryset.model
    row = model.__new__(model)
    row._state = ModelState()
    row._state.db = queryset.db
    alias: str = router.db_for_write(queryset.model, instance=row)
    return alias


def _has_window_function(queryset: QuerySet[Any]) -> bool:
    # Over a range of rows a window function sees another window.
    return any(annotation.contains_over_clause for annotation in queryset.query.annotations.values())


def _is_ordered_by_key(queryset: QuerySet[Any]) -> bool:
    ordering = (*queryset.query.order_by, *queryset.query.extra_order_by)
    return ordering in ((), ("pk",), (queryset.model._meta.pk.name,)) and queryset.query.standard_ordering
