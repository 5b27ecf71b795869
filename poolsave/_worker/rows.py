"""Querysets in workers: rows by primary key, and the queryset as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property, lru_cache
from typing import Any

from django.db import connections, transaction
from django.db.models import QuerySet

from .._pickling.models import dumps, loads
from .._runtime.foreign_exceptions import text_of
from ..errors import InvalidOperation, RowGone


class RowLoader:
    """Fetches instances by primary key, with the queryset's own filters, joins and prefetches."""

    def __init__(self, queryset: QuerySet[Any], *, sparse: bool = False) -> None:
        """`sparse`: keys are few of those in their range."""
        self._queryset = queryset.order_by()
        self._sparse = sparse
        self._loaded: dict[Any, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle_loader, (self._pickled,)

    @cached_property
    def _pickled(self) -> bytes:
        return pack_queryset(self._queryset)

    @property
    def alias(self) -> str:
        """The alias of the database that the rows come from."""
        return self._queryset.db

    def load(self, keys: Sequence[Any]) -> None:
        """Fetch the rows of a contiguous range by its two ends. New rows in between wait for the next run."""
        self.discard()
        wanted = {"pk__in": keys} if self._sparse else {"pk__gte": keys[0], "pk__lte": keys[-1]}
        self._loaded = {row.pk: row for row in self._queryset.filter(**wanted)}

    def discard(self) -> None:
        """Drop the loaded rows: they were changed, or belong to a transaction that was rolled back."""
        self._loaded = {}

    def try_to_load(self, keys: Sequence[Any]) -> None:
        """Like `load`, but ignore errors: each object then fetches its own row and gets the error itself."""
        connection = connections[self._queryset.db]
        try:
            # Inline, an error must not doom the caller's open transaction.
            with transaction.atomic(using=connection.alias) if connection.in_atomic_block else nullcontext():
                self.load(keys)
        except Exception:  # from the database, or from a row's own code
            if not connection.in_atomic_block:
                connection.close_if_unusable_or_obsolete()

    def get(self, key: Any) -> Any:
        """Return a row, loaded or fetched. A second call fetches it anew, since a first try may have changed it.

        Raises:
            RowGone: if the row is gone or no longer matches.
        """
        row = self._loaded.pop(key, None)
        if row is not None:
            return row
        for row in self._queryset.filter(pk=key):
            return row
        raise RowGone(self._queryset.model._meta.label, key)


def pack_queryset(queryset: QuerySet[Any]) -> bytes:
    """Pickle a queryset without evaluating it.

    Raises:
        InvalidOperation: if something in it cannot be pickled.
    """
    clone: Any = queryset._chain()  # type: ignore[attr-defined]
    clone._result_cache = []  # pickling would fetch all rows
    clone._prefetch_done = True
    clone._hints = {}  # only for routers, which have chosen by now
    clone._known_related_objects = {}
    try:
        return dumps(clone, queryset.model)
    except Exception as error:
        raise InvalidOperation(
            f"the queryset of {queryset.model._meta.label} cannot be pickled for workers that do not share the "
            f'caller\'s memory ({text_of(error)}): filter by plain values, or use start_method="fork"'
        ) from error


def unpack_queryset(data: bytes) -> QuerySet[Any]:
    """Undo `pack_queryset`; nothing is fetched."""
    queryset: Any = loads(data)
    queryset._result_cache = None
    queryset._prefetch_done = False
    unpickled: QuerySet[Any] = queryset
    return unpickled


@lru_cache(maxsize=1)
def _unpickle_loader(pickled: bytes) -> RowLoader:
    # Each call of a block brings its loader, nearly always the same one.
    return RowLoader(unpack_queryset(pickled))
