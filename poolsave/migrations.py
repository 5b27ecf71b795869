"""`RunPooled`: a migration operation that calls a function for each row, over a pool. `RequireRun` waits for a run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from django.db import models, router
from django.db.migrations import RunPython
from django.db.migrations.operations.base import Operation, OperationCategory
from django.db.migrations.serializer import BaseSerializer
from django.db.migrations.writer import MigrationWriter
from django.db.models.signals import post_migrate, pre_migrate
from django.dispatch import receiver

from ._pipelines.planning import pipeline_run_of
from ._runs.functions import name_of
from ._runs.progress import end_line_before_bar
from ._runs.run import Run, complete_run, run_of
from ._worker.job import call_with_object
from .errors import InsideTransaction, InvalidOperation
from .operations import PooledOperation
from .options import INLINE, Options, check
from .pipelines import Pipeline

__all__ = ["RequireRun", "RunPooled"]

CORRECTED = """put the step into a migration of its own that is not atomic, so that what its workers save is committed:

    class Migration(migrations.Migration):
        atomic = False
        operations = [RunPooled(...)]

or run it in the transaction of the migration, one row after the other, by RunPooled(..., executor="serial")"""

CORRECTED_REQUIREMENT = """put it into a migration of its own that is not atomic, so that the run can commit:

    class Migration(migrations.Migration):
        atomic = False
        operations = [RequireRun(..., finish=True)]"""


class RunPooled(Operation):
    """Call a function once per row, over a pool, as a step of a migration.

    Rows are instances of the *historical* model, with the columns of this point in the history, under every start
    method. The migration must not be atomic (PostgreSQL and SQLite), since workers cannot see what it has not
    committed. It should contain no other operation: if a row fails, OperationsFailed is raised when all other rows are
    done, the migration is not recorded as applied, and the next `migrate` runs the whole operation again. So let the
    queryset select the rows that are left, or let the function leave rows that are done unchanged.

    Args:
        fn: takes one historical instance, or `(instance, apps)`; a plain or a pooled function, or a
            pipeline, that workers can import.
        queryset: a function of `apps` that gives the rows, or the name of a model: "app_label.Model", or "Model" of the
            migration's own app.
        reverse_fn: the function for reversing. Without it the operation is irreversible; with `RunPooled.noop`
            reversing does nothing.
        hints: passed to the routers' `allow_migrate`.
        elidable: whether the operation is removed when migrations are squashed.
        options: those of `@pooled_operation`. `databases` defaults to the one that is migrated. `progress` defaults to
            a bar, and with `migrate -v0` to none.

    On a SQLite database in memory, as in tests, it runs inline with any executor.

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
        """Do nothing, as `reverse_fn`."""

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        """Give the arguments that recreate this operation, without those that were left out."""
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
        """Whether there is a `reverse_fn`."""
        return self.reverse_fn is not None

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change nothing: the operation changes rows, not models."""

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
        options = self._options(connection)
        operation = _operation(fn).using(**options)
        end_line_before_bar(options.get("progress"))
        complete_run(lambda: _checked_run_of(operation, rows))

    def _rows(self, apps: Any, app_label: str) -> models.QuerySet[Any]:
        if isinstance(self.queryset, str):
            label = self.queryset if "." in self.queryset else f"{app_label}.{self.queryset}"
            return models.QuerySet(apps.get_model(label))  # without a manager, which might exclude rows
        result: Any = self.queryset(apps)
        rows: Any = result.all() if isinstance(result, models.Manager) else result
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
        """Describe the operation, for `migrate --plan` and `sqlmigrate`."""
        rows = self.queryset if isinstance(self.queryset, str) else f"{name_of(self.queryset)}()"
        return f"Run {name_of(self.fn)} over {rows} in a pool"

    @property
    def migration_name_fragment(self) -> str:
        """The operation's part of an automatic migration name."""
        name = "_".join(path.rpartition(".")[2].strip("<>") for path in name_of(self.fn).split(" | "))
        return f"run_{name}"


def _with_options_by_name(function: Callable[..., Any]) -> inspect.Signature:
    """Add the options to the signature: Django's migration writer writes only arguments that it finds there."""
    plain = inspect.signature(function)
    named = [parameter for parameter in plain.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    options = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in sorted(Options.names())]
    return plain.replace(parameters=[*named, *options])


RunPooled.__init__.__signature__ = _with_options_by_name(RunPooled.__init__)  # type: ignore[attr-defined]


def _operation(fn: Callable[..., Any]) -> PooledOperation[..., Any] | Pipeline[Any, Any]:
    return fn if isinstance(fn, PooledOperation | Pipeline) else PooledOperation(fn)


def _checked_run_of(operation: PooledOperation[..., Any] | Pipeline[Any, Any], rows: models.QuerySet[Any]) -> Run[Any]:
    try:
        return _run_of(operation, rows)
    except InsideTransaction as error:
        raise InsideTransaction(error.alias, CORRECTED) from None


def _run_of(operation: PooledOperation[..., Any] | Pipeline[Any, Any], rows: models.QuerySet[Any]) -> Run[Any]:
    first, *others = [stage.__poolsave_spec__() for stage in operation.__poolsave_stages__]
    first = replace(first, call=_call_of(operation))
    if isinstance(operation, Pipeline):
        return pipeline_run_of([first, *others], rows, operation.__name__)
    return run_of(first, rows)


def _call_of(
    operation: PooledOperation[..., Any] | Pipeline[Any, Any],
) -> Callable[[Callable[..., Any], Mapping[str, Any], Any], Any]:
    """Choose the call for a function that takes a row, or a row and the historical apps."""
    first = operation.__poolsave_stages__[0]
    required = [
        parameter.name
        for parameter in inspect.signature(first.func).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    names = [name for name in required if name not in first.__poolsave_spec__().constants]
    if len(names) not in (1, 2):
        raise InvalidOperation(
            f"{name_of(first)} takes {len(names)} arguments: a migration's function takes (row) or (row, apps)"
        )
    return call_with_object if len(names) == 1 else call_with_row_and_apps


def call_with_row_and_apps(function: Callable[..., Any], constants: Mapping[str, Any], row: Any) -> Any:
    """Call the function with a row and the historical apps of the row's model."""
    return function(row, row._meta.apps, **constants)


class RequireRun(Operation):
    """Require that a durable run is finished and has no unresolved failures, before the migration that needs it.

    A migration that makes a column unique, for instance, comes long after the one that has added it, and a backfill
    fills the column in between. Where the table has no rows, as in the database of a test, nothing is required::

        operations = [
            RequireRun("articles-slug"),
            migrations.AlterField("article", "slug", models.SlugField(unique=True)),
        ]

    Args:
        name: of the run.
        finish: run what is left, here and now, by the backfill that is registered under the name. The migration must
            not be atomic then. Failures have to be resolved by someone all the same.
        model: whose rows it is about: "app_label.Model", or "Model" of the migration's own app. By default that of the
            backfill; it has to be there when the backfill is no longer registered.
        hints: passed to the routers' `allow_migrate`.
        elidable: whether the operation is removed when migrations are squashed.

    The migration depends on ("poolsave_ledger", "0001_initial").

    Raises:
        RunUnfinished: when it is migrated, with the figures of the run.
        InsideTransaction: with `finish` in an atomic migration.
        UnknownBackfill: if it is not known whose rows it is about, or what to run.
    """

    reduces_to_sql = False
    reversible = True
    category = OperationCategory.PYTHON

    def __init__(
        self,
        name: str,
        *,
        finish: bool = False,
        model: str | None = None,
        hints: Mapping[str, Any] | None = None,
        elidable: bool = True,
    ) -> None:
        self.name = name
        self.finish = finish
        self.model = model
        self.hints = dict(hints or {})
        self.elidable = elidable  # type: ignore[misc]

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        """Give the arguments that recreate this operation, without those that were left out."""
        given = {"finish": self.finish, "model": self.model, "hints": self.hints}
        kwargs = {name: value for name, value in given.items() if value}
        return type(self).__qualname__, [self.name], kwargs if self.elidable else {**kwargs, "elidable": False}

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change nothing."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Look at the run, and finish it if that is asked for."""
        connection = schema_editor.connection
        if not router.allow_migrate(connection.alias, app_label, **self.hints):
            return
        if self.finish and connection.in_atomic_block:
            raise InsideTransaction(connection.alias, CORRECTED_REQUIREMENT)
        if self._has_rows(app_label, connection, from_state):
            from .ledger.requirements import require_run  # its models: the app must be installed only here

            require_run(self.name, connection, finish=self.finish)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Do nothing: what the run has done stays."""

    def _has_rows(self, app_label: str, connection: Any, from_state: Any) -> bool:
        label = self.model if self.model is not None else _label_of_backfill(self.name)
        model = from_state.apps.get_model(label if "." in label else f"{app_label}.{label}")
        return models.QuerySet(model).using(connection.alias).exists()

    def describe(self) -> str:
        """Describe the operation, for `migrate --plan` and `sqlmigrate`."""
        return f"{'Finish' if self.finish else 'Require'} the durable run {self.name}"

    @property
    def migration_name_fragment(self) -> str:
        """The operation's part of an automatic migration name."""
        return f"require_{re.sub(r'[^0-9a-z]+', '_', self.name.lower())}"


def _label_of_backfill(name: str) -> str:
    from .ledger.registry import find_backfill

    label: str = find_backfill(name).model._meta.label
    return label


class _OperationSerializer(BaseSerializer):
    """Writes a pooled function by its name, as a function, for `makemigrations` and `squashmigrations`."""

    def serialize(self) -> tuple[str, set[str]]:
        names, imports = [], set()
        for operation in self.value.__poolsave_stages__:
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
"""The verbosity of a running `migrate`, by database alias."""


@receiver(pre_migrate, dispatch_uid="poolsave.migrations")
def _note_verbosity(*, using: str, verbosity: int, **_more: Any) -> None:
    """Store the verbosity of `migrate`, which this signal gets and an operation does not."""
    _verbosity[using] = verbosity


@receiver(post_migrate, dispatch_uid="poolsave.migrations")
def _forget_verbosity(*, using: str, **_more: Any) -> None:
    _verbosity.pop(using, None)
