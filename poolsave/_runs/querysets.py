"""Querysets as input: the caller reads primary keys, page by page, and workers fetch the rows, range by range."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.db.models import QuerySet

from .._db.inspection import count_or_estimate
from .._db.reachability import reconnecting
from .._engine.sources import IterableSource

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
            page = [] if self.all_read else self._page_after(page[-1])

    def _page_after(self, key: Any) -> list[Any]:
        keys = self._keys.filter(pk__gt=key)
        return reconnecting(keys.db, lambda: self._page(keys))

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
