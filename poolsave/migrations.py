"""`RunPooled`: a migration's data step, run over a pool."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from django.db import models, router
from django.db.migrations import RunPython
from django.db.migrations.operations.base import Operation, OperationCategory
from django.db.migrations.serializer import BaseSerializer
from django.db.migrations.writer import MigrationWriter
from django.db.models.signals import post_migrate, pre_migrate
from django.dispatch import receiver

from ._worker.job import call_with_object
from .errors import InsideTransaction, InvalidOperation
from .operations import PooledOperation
from .options import INLINE, Options, check
from .pipelines import Pipeline

__all__ = ["RunPooled"]

CORRECTED = """put the step into a migration of its own that is not atomic, so that what its workers save is committed:

    class Migration(migrations.Migration):
        atomic = False
        operations = [RunPooled(...)]

or run it in the transaction of the migration, one row after the other, by RunPooled(..., executor="serial")"""


class RunPooled(Operation):
    """Call a function once per row, over a pool, as a step of a migration.

    Rows are instances of the *historical* model, with the columns of this point in the history, under every start
    method. The migration must not be atomic (PostgreSQL and SQLite), since workers cannot see what it has not
    committed, and should hold nothing else: if a row fails, OperationsFailed is raised when all others are done, the
    migration is not recorded as applied, and the whole step runs again with the next `migrate`. So let the queryset
    select what is left to do, or let the function do no harm to rows that are done.

    Args:
        fn: takes one historical instance, or `(instance, apps)`; a plain or a pooled function, or a
            pipeline, that workers can import.
        queryset: a function of `apps` that gives the rows, or the name of a model: "app_label.Model", or "Model" of the
            migration's own app.
        reverse_fn: the same for the way back; without it the operation is irreversible, with `RunPooled.noop` the way
            back does nothing.
        hints: for the routers' `allow_migrate`.
        elidable: whether the operation goes when migrations are squashed.
        options: those of `@pooled_operation`. `databases` is the one that is migrated unless it is given. `progress` is
            a bar from `migrate -v1` on, and silence with `-v0`.

    A SQLite database in memory, which tests migrate, is worked on inline, whatever the executor.

    Raises:
        InvalidOption, InvalidOperation: when the migration is imported.
        InsideTransaction: when it is run in an atomic migration.
        OperationsFailed: at the end, if a row failed or was lost.
    """

    reduces_to_sql = False
    atomic = False
    category = OperationCategory.PYTHON

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        queryset: str | Callable[[Any], Any],
        reverse_fn: Callable[..., Any] | None = None,
        hints: Mapping[str, Any] | None = None,
        elidable: bool = False,
        **options: Any,
    ) -> None:
        check(options)
        for function in (fn, reverse_fn):
            if function is not None:
                _call_of(_operation(function))
        if not isinstance(queryset, str) and not callable(queryset):
            raise InvalidOperation(
                f"queryset={queryset!r} is neither a model's name nor a function of apps: a migration has no models "
                'before it runs; give "app_label.Model", or a function that returns apps.get_model(...).objects.all()'
            )
        self.fn = fn
        self.queryset = queryset
        self.reverse_fn = reverse_fn
        self.hints = dict(hints or {})
        self.elidable = elidable  # type: ignore[misc]
        self.options = options

    @staticmethod
    def noop(_row: Any) -> None:
        """For `reverse_fn`: there is nothing to take back."""

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        """Give the arguments that make this operation again, those left out that were left out."""
        kwargs: dict[str, Any] = {"fn": self.fn, "queryset": self.queryset}
        if self.reverse_fn is not None:
            kwargs["reverse_fn"] = self.reverse_fn
        if self.hints:
            kwargs["hints"] = self.hints
        if self.elidable:
            kwargs["elidable"] = True
        return type(self).__qualname__, [], {**kwargs, **self.options}

    @property
    def reversible(self) -> bool:  # type: ignore[override]
        """Whether there is a way back."""
        return self.reverse_fn is not None

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Rows change, and models do not."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Run `fn` over the rows."""
        self._run(self.fn, app_label, schema_editor, from_state)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Run `reverse_fn` over the rows."""
        if self.reverse_fn is None:
            raise NotImplementedError("you cannot reverse this operation: give it a reverse_fn, or RunPooled.noop")
        self._run(self.reverse_fn, app_label, schema_editor, from_state)

    def _run(self, fn: Callable[..., Any], app_label: str, schema_editor: Any, from_state: Any) -> None:
        connection = schema_editor.connection
        if fn in (RunPooled.noop, RunPython.noop) or not router.allow_migrate(
            connection.alias, app_label, **self.hints
        ):
            return
        from_state.clear_delayed_apps_cache()
        rows = self._rows(from_state.apps, app_label).using(connection.alias)
        operation = _operation(fn).using(**self._options(connection))
        try:
            run = operation._run(_call_of(operation), rows)
        except InsideTransaction as error:
            raise InsideTransaction(error.alias, CORRECTED) from None
        run.complete()

    def _rows(self, apps: Any, app_label: str) -> models.QuerySet[Any]:
        if isinstance(self.queryset, str):
            label = self.queryset if "." in self.queryset else f"{app_label}.{self.queryset}"
            return models.QuerySet(apps.get_model(label))  # by no manager, which might leave rows out
        given: Any = self.queryset(apps)
        rows: Any = given.all() if isinstance(given, models.Manager) else given
        if not isinstance(rows, models.QuerySet):
            raise InvalidOperation(f"the function {self.queryset!r} gave {rows!r}, which is no queryset")
        return rows

    def _options(self, connection: Any) -> dict[str, Any]:
        options = {"databases": (connection.alias,), "on_failure": "raise", "keep": "failures", **self.options}
        if connection.alias in _verbosity:
            options.setdefault("progress", _verbosity[connection.alias] > 0)
        if connection.vendor == "sqlite" and connection.is_in_memory_db():
            options |= INLINE
        return options

    def describe(self) -> str:
        """Say what it does, for `migrate --plan` and `sqlmigrate`."""
        rows = self.queryset if isinstance(self.queryset, str) else f"{_name(self.queryset)}()"
        return f"Run {_name(self.fn)} over {rows} in a pool"

    @property
    def migration_name_fragment(self) -> str:
        """A part of an automatic name for a migration."""
        name = "_".join(one.rpartition(".")[2].strip("<>") for one in _name(self.fn).split(" | "))
        return f"run_{name}"


def _with_options_by_name(function: Callable[..., Any]) -> inspect.Signature:
    """Django's writer of migrations writes only arguments that it finds in the signature."""
    plain = inspect.signature(function)
    named = [one for one in plain.parameters.values() if one.kind is not one.VAR_KEYWORD]
    options = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in sorted(Options.names())]
    return plain.replace(parameters=[*named, *options])


RunPooled.__init__.__signature__ = _with_options_by_name(RunPooled.__init__)  # type: ignore[attr-defined]


def _operation(fn: Callable[..., Any]) -> PooledOperation[..., Any] | Pipeline[Any, Any]:
    return fn if isinstance(fn, PooledOperation | Pipeline) else PooledOperation(fn)


def _call_of(
    fed: PooledOperation[..., Any] | Pipeline[Any, Any],
) -> Callable[[Callable[..., Any], Mapping[str, Any], Any], Any]:
    """Whether the function takes a row, or a row and the historical apps."""
    operation = fed._stages[0]
    given = [
        one
        for one in inspect.signature(operation.func).parameters.values()
        if one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    names = [one.name for one in given if one.name not in operation._constants]
    if len(names) not in (1, 2):
        raise InvalidOperation(
            f"{_name(operation)} takes {len(names)} arguments: a migration's function takes (row) or (row, apps)"
        )
    return call_with_object if len(names) == 1 else call_with_row_and_apps


def call_with_row_and_apps(function: Callable[..., Any], constants: Mapping[str, Any], row: Any) -> Any:
    """The historical apps are those that the row's own model belongs to."""
    return function(row, row._meta.apps, **constants)


def _name(fn: Any) -> str:
    name: str = getattr(fn, "__qualname__", None) or repr(fn)
    return name


class _OperationSerializer(BaseSerializer):
    """For `makemigrations` and `squashmigrations`: a pooled function is written by its name, as a function is."""

    def serialize(self) -> tuple[str, set[str]]:
        names, imports = [], set()
        for operation in self.value._stages:
            name = operation.__reduce__()
            if not isinstance(name, str):
                raise ValueError(f"cannot write {operation!r}: give options to RunPooled and not by using() or bind()")  # noqa: TRY004
            module = operation.func.__module__
            names.append(f"{module}.{name}")
            imports.add(f"import {module}")
        return " | ".join(names), imports


MigrationWriter.register_serializer(PooledOperation, _OperationSerializer)
MigrationWriter.register_serializer(Pipeline, _OperationSerializer)

_verbosity: dict[str, int] = {}


@receiver(pre_migrate, dispatch_uid="poolsave.migrations")
def _note_verbosity(*, using: str, verbosity: int, **_more: Any) -> None:
    """An operation is not told how much `migrate` is to say, but this signal is, after migrations are imported."""
    _verbosity[using] = verbosity


@receiver(post_migrate, dispatch_uid="poolsave.migrations")
def _forget_verbosity(*, using: str, **_more: Any) -> None:
    _verbosity.pop(using, None)
