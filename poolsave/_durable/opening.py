"""Where a run's ledger is, and whether it can promise exactly once. All is refused before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, router
from django.db.models import QuerySet

from ..durable import Run
from ..errors import InvalidOperation, InvalidOption
from ..options import Options
from .session import Session

APP = "poolsave.ledger"


def ledger_alias(run: Run, options: Options, queryset: QuerySet[Any] | None) -> str:
    """Choose the database of the ledger: that of the data, if routers allow it there.

    Raises:
        InvalidOperation: if the app is not installed.
    """
    if not apps.is_installed(APP):
        raise InvalidOperation(
            f"the durable run {run.name!r} needs tables of its own: add {APP!r} to INSTALLED_APPS, and run "
            "`manage.py migrate poolsave_ledger`"
        )
    from ..ledger.models import Run as Row

    if run.using is not None:
        return run.using
    data = _alias_of_data(options, queryset)
    return data if router.allow_migrate_model(data, Row) else router.db_for_write(Row)


def _alias_of_data(options: Options, queryset: QuerySet[Any] | None) -> str:
    covered: Sequence[str] = options.databases if options.transaction is not None else ()
    if queryset is not None and (not covered or queryset.db in covered):
        return str(queryset.db)
    return covered[0] if covered else DEFAULT_DB_ALIAS


def check_promise(run: Run, options: Options, alias: str) -> bool:
    """Say whether it is exactly once.

    Raises:
        InvalidOption: if `exactly_once=True` cannot be kept.
    """
    why = _why_not(options, alias)
    if why is not None and run.exactly_once:
        raise InvalidOption("exactly_once", True, why)
    return why is None


def _why_not(options: Options, alias: str) -> str | None:
    if options.transaction is None:
        return 'with transaction=None the ledger\'s row is in no transaction of the work; set "object" or "chunk"'
    if alias not in options.databases:
        return f"the ledger is in {alias!r}, and the work in {options.databases!r}; have the ledger in the same one"
    if len(options.databases) > 1:
        return f"no COMMIT comprises all of {options.databases!r}; name the ledger's alone"
    return None


def check_tables(session: Session) -> None:
    """Look at the run, and refuse what cannot go on.

    Raises:
        RunConflict: see `Session.look`.
        InvalidOperation: if there are no tables.
    """
    try:
        session.look()
    except DatabaseError as error:
        from ..ledger.models import Run as Row

        if Row._meta.db_table in connections[session.alias].introspection.table_names():
            raise
        raise InvalidOperation(
            f"the database {session.alias!r} has no tables of the ledger: run `manage.py migrate poolsave_ledger "
            f"--database={session.alias}`"
        ) from error
