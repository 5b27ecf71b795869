"""Methods of Django's that ask the buffer first, in place of those between `save()` or `add()` and a compiler.

On their way to it they make a manager, a queryset and a query anew for each row. That takes more time than to buffer
the row. So the methods at the beginning of that way go straight to the buffer, if all of it is Django's own.
"""

from __future__ import annotations

import sys
from inspect import isfunction
from typing import Any

import django
from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.constants import OnConflict
from django.db.models.sql import InsertQuery
from django.db.transaction import Atomic
from django.utils.asyncio import async_unsafe

from .buffer import WriteBuffer
from .inserts import MAX_OBJECTS, InsertKind

_buffers: dict[int, WriteBuffer] = {}
"""Those in use, by the id of their connection's `ops`."""


def open_for(ops: Any, buffer: WriteBuffer) -> None:
    """Have the methods ask this buffer for the connection with these `ops`."""
    _buffers[id(ops)] = buffer
    if all(is_djangos_own(owner, name) for owner, names in DJANGOS_WAY.items() for name in names):
        _replace(ORDINARY, SHORT)


def close_for(ops: Any) -> None:
    """Put Django's methods back, if no other connection has a buffer."""
    del _buffers[id(ops)]
    if not _buffers:
        _replace(SHORT, ORDINARY)


def _buffer_of(using: str) -> WriteBuffer | None:
    return _buffers.get(id(connections[using].ops))


def _do_insert(instance: Any, manager: Any, using: str, *arguments: Any) -> Any:
    fields, returning_fields, raw = arguments
    buffer = _buffer_of(using)
    if buffer is None or raw or type(manager) is not models.Manager:
        return ORDINARY[models.Model, "_do_insert"](instance, manager, using, *arguments)
    return _insert(buffer, InsertKind(manager.model, fields, [*returning_fields]), [instance], using)


def _insert(buffer: WriteBuffer, kind: InsertKind, instances: list[Any], using: str) -> Any:
    """Insert them, now or later, and give what is returned."""
    pre_saved: list[Any] = []
    rows = buffer.hold_insert(kind, instances, pre_saved)
    if rows is not None:
        return rows
    query = InsertQuery(kind.model, on_conflict=kind.on_conflict)
    query.insert_values(kind.fields, instances)
    return query.get_compiler(using).send(kind.returning, pre_saved)


def _do_update(instance: Any, base_qs: Any, using: str, *arguments: Any) -> Any:
    key, values, _update_fields, _forced_update, *returning = arguments  # Django 6 has `returning_fields`
    if values and not any(returning) and _is_of_all_rows(base_qs):
        buffer = _buffer_of(using)
        if buffer is not None and buffer.hold_update(base_qs.model, key, values, as_is=True):
            return [()] if returning else True
    return ORDINARY[models.Model, "_do_update"](instance, base_qs, using, *arguments)


def _is_of_all_rows(queryset: Any) -> bool:
    return type(queryset) is models.QuerySet and type(queryset.model._base_manager) is models.Manager


def _bulk_create(
    queryset: Any, objs: Any, batch_size: Any = None, ignore_conflicts: bool = False, *args: Any, **kwargs: Any
) -> Any:
    is_plain = batch_size is None and not args and not any(kwargs.values()) and _are_new_and_few(queryset, objs)
    queryset._for_write |= is_plain
    buffer = _buffer_of(queryset.db) if is_plain else None
    if buffer is None:
        create = ORDINARY[models.QuerySet, "bulk_create"]
        return create(queryset, objs, batch_size, ignore_conflicts, *args, **kwargs)
    for instance in objs:
        instance._prepare_related_fields_for_save(operation_name="bulk_create")
    try:
        rows = _insert(buffer, _kind_of_new(queryset.model, ignore_conflicts), objs, queryset.db)
    except BaseException:
        connections[queryset.db].needs_rollback |= MARKS_ERRORS
        raise
    return _with_keys(objs, rows, queryset.db)


_bulk_create.alters_data = True  # type: ignore[attr-defined]  # as for Django's, for templates
MARKS_ERRORS = django.VERSION < (6,)
"""Whether `bulk_create()` has a block around the INSERT of objects without keys, which an error leaves broken."""


def _are_new_and_few(queryset: Any, instances: Any) -> bool:
    """Whether the objects are of one table, and all of their keys come from its sequence."""
    model = queryset.model
    meta = model._meta
    return (
        type(queryset) is models.QuerySet
        and type(instances) is list
        and 0 < len(instances) <= MAX_OBJECTS
        and not meta.all_parents
        and not meta.order_with_respect_to
        and isinstance(meta.pk, models.AutoField)
        and not (meta.pk.has_default() or meta.pk.has_db_default())
        and all(type(instance) is model and getattr(instance, meta.pk.attname) is None for instance in instances)
    )


def _kind_of_new(model: Any, ignore_conflicts: bool) -> InsertKind:
    meta = model._meta
    fields = [field for field in meta.concrete_fields if not field.generated and field is not meta.pk]
    if ignore_conflicts:
        return InsertKind(model, fields, [], OnConflict.IGNORE)
    return InsertKind(model, fields, [*meta.db_returning_fields])


def _with_keys(instances: list[Any], rows: Any, using: str) -> list[Any]:
    for instance, row in zip(instances, rows or (), strict=False):  # of ignored conflicts nothing is returned
        for value, field in zip(row, instance._meta.db_returning_fields, strict=True):
            setattr(instance, field.attname, value)
        instance._state.adding, instance._state.db = False, using
    return [*instances]


SHORT: dict[tuple[Any, str], Any] = {
    (models.Model, "_do_insert"): _do_insert,
    (models.Model, "_do_update"): _do_update,
    (models.QuerySet, "bulk_create"): _bulk_create,
}
"""What stands in for Django's methods while there is a buffer."""
ORDINARY = {(owner, name): getattr(owner, name) for owner, name in SHORT}
DJANGOS_WAY = {
    models.Model: ("save_base", "_save_table", "_do_insert", "_do_update", "_prepare_related_fields_for_save"),
    models.QuerySet: ("_insert", "_batched_insert", "bulk_create", "_update", "filter"),
    models.Manager: ("get_queryset",),
}
"""The methods between `save()` or `bulk_create()` and a compiler."""
BLOCKS = {Atomic: ("__enter__", "__exit__"), BaseDatabaseWrapper: ("savepoint", "savepoint_commit")}
"""The methods between `atomic()` and the savepoints of a connection."""


def blocks_are_djangos_own() -> bool:
    """Whether no third party has patched how blocks of `atomic()` begin and end."""
    return all(is_djangos_own(owner, name) for owner, names in BLOCKS.items() for name in names)


def is_djangos_own(owner: Any, name: str) -> bool:
    """Whether no third party has patched or wrapped a method of a class of Django's."""
    method = getattr(owner, name)
    if getattr(method, "__code__", None) is _ASYNC_UNSAFE:
        method = method.__wrapped__
    return isfunction(method) and method.__code__.co_filename == sys.modules[owner.__module__].__file__


_ASYNC_UNSAFE = async_unsafe(lambda: None).__code__
"""Of what Django's decorator makes of a method."""


def _replace(there: dict[tuple[Any, str], Any], wanted: dict[tuple[Any, str], Any]) -> None:
    # Other threads may come in between: then a chunk goes the longer way.
    if all(getattr(owner, name) is method for (owner, name), method in there.items()):
        for (owner, name), method in wanted.items():
            setattr(owner, name, method)
