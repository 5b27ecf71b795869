"""Querysets as input: the caller reads primary keys, page by page, and workers fetch the rows, range by range."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.db.models import QuerySet
from django.db.models.base import ModelBase
from django.db.models.manager import BaseManager

from .._db.inspection import PrimaryKeys, count_or_estimate, reconnecting
from .._engine.sources import IterableSource
from ..errors import InvalidOperation

MAX_RANGE = 1000
"""The most rows that a worker fetches with one query and holds at once."""


def as_queryset(objects: object) -> QuerySet[Any] | None:
    """The queryset, if the objects are one (or a manager), on the database that a router chooses for it now.

    Raises:
        InvalidOperation: if they are a model class, whose rows are meant.
    """
    if isinstance(objects, ModelBase):
        name = objects.__name__
        raise InvalidOperation(f"the model {name} itself cannot be mapped: give its rows, such as {name}.objects.all()")
    queryset = objects.all() if isinstance(objects, BaseManager) else objects
    return queryset.using(queryset.db) if isinstance(queryset, QuerySet) else None


class KeysetPages:
    """The primary keys of a queryset's rows in ascending order, each once.

    Rows with keys above the largest one at the start are not visited, so a function that adds rows to the table comes
    to an end.
    """

    def __init__(self, queryset: QuerySet[Any]) -> None:
        """Read the first page at once, so that a query that cannot work is refused before anything starts."""
        self.read = 0
        """How many have been read."""
        self._keys = PrimaryKeys(queryset)
        self._upto = self._keys.largest()
        self.all_read = self._upto is None
        self._first = [] if self.all_read else self._page(above=None)

    def __iter__(self) -> Iterator[Any]:
        page = self._first
        while page:
            yield from page
            page = [] if self.all_read else self._page_after(page[-1])

    def _page_after(self, key: Any) -> list[Any]:
        return reconnecting(self._keys.alias, lambda: self._page(above=key))

    def _page(self, *, above: Any) -> list[Any]:
        page, self.all_read = self._keys.page(above=above, upto=self._upto)
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
