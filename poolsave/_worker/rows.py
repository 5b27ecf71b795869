"""A queryset in a worker: rows by their primary keys, and a queryset as bytes on the way there."""

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
    """Gives the instances that belong to primary keys, with the queryset's own filters, joins and prefetches."""

    def __init__(self, queryset: QuerySet[Any]) -> None:
        self._queryset = queryset.order_by()
        self._found: dict[Any, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._packed,)

    @cached_property
    def _packed(self) -> bytes:
        return pack_queryset(self._queryset)

    def load(self, keys: Sequence[Any]) -> None:
        """Fetch the rows of a contiguous range by its two ends; newcomers in between wait for the next run."""
        self.forget()
        self._found = {row.pk: row for row in self._queryset.filter(pk__gte=keys[0], pk__lte=keys[-1])}

    def forget(self) -> None:
        """Let go of what was loaded: it was changed, or belongs to a transaction that was rolled back."""
        self._found = {}

    def try_to_load(self, keys: Sequence[Any]) -> None:
        """Like `load`, but leave an error to the objects: each looks for its own row again, and meets it there."""
        connection = connections[self._queryset.db]
        try:
            # Inside a transaction of the caller's (inline) an error must not doom that.
            with transaction.atomic(using=connection.alias) if connection.in_atomic_block else nullcontext():
                self.load(keys)
        except Exception:  # of the database, or of one row's own code
            if not connection.in_atomic_block:
                connection.close_if_unusable_or_obsolete()

    def take(self, key: Any) -> Any:
        """Give a row, once; when it is asked for again it is fetched again, since a first try may have changed it.

        Raises:
            RowGone: if there is no such row any more, or if it no longer matches.
        """
        row = self._found.pop(key, None)
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
    clone._hints = {}  # for routers, which have been asked
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
    found: QuerySet[Any] = queryset
    return found


@lru_cache(maxsize=1)
def _restored(packed: bytes) -> RowLoader:
    # The calls of a block bring it one by one, and nearly always the same.
    return RowLoader(unpack_queryset(packed))
