"""A failure as a row of the ledger: by workers in the transaction of a chunk, else by the caller.

The text of a failure never decides what becomes of its chunk or its run. What the database cannot store, such as "€" in
LATIN1 or an emoji in utf8mb3, is stored in ASCII, with escapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from django.db import Error, models, transaction

from .._db.error_codes import connection_lost, is_transient
from .._pickling.tracebacks import format_traceback
from .._runtime.foreign_exceptions import text_of
from ..ledger.causes import cause_of
from .values import storable

if TYPE_CHECKING:
    from ..ledger.models import Failure

LONGEST_TEXT = 20_000
"""Characters of a message, and of a traceback, that are kept."""
BATCH = 100
"""Rows in one statement: with 40,000 characters each they stay below the 16 MB that MariaDB takes by default."""
UNSTORABLE = "the database cannot store what is known of this failure"


def failure_of(
    run_id: int, key: str, error: BaseException | None, *, traceback: str | None = None, **fields: Any
) -> Failure:
    """Make the row, which is not saved. `traceback`: as text, from the worker; None: take that of the error."""
    from ..ledger.models import Failure

    return Failure(run_id=run_id, key=key, **_described(error, traceback), **fields)


def insert_failures(failures: Sequence[Failure], alias: str) -> None:
    """Insert rows, with such texts as the database stores."""
    from ..ledger.models import Failure

    def insert(changed: Callable[[dict[str, str]], dict[str, str]]) -> None:
        for failure in failures:
            failure.pk = None  # of an insert that was rolled back
            vars(failure).update(changed({column: getattr(failure, column) for column in _lengths()}))
        Failure.objects.using(alias).bulk_create(failures, batch_size=BATCH)

    if failures:
        _write(insert, alias)


def update_failure(
    row: models.QuerySet[Failure], error: BaseException | None, traceback: str | None, **columns: Any
) -> None:
    """Have a row tell of another error, with such texts as the database stores."""
    texts = _described(error, traceback)
    _write(lambda changed: row.update(**columns, **changed(texts)), row.db)


def _write(write: Callable[[Callable[[dict[str, str]], dict[str, str]]], object], alias: str) -> None:
    *attempts, last = _unchanged, _in_ascii, _without_text
    for changed in attempts:
        try:
            # A refused text must not end the transaction around this, which may be that of the work.
            with transaction.atomic(using=alias):
                write(changed)
            return
        except Error as error:
            if is_transient(error) or connection_lost(error):
                raise
        except UnicodeError:  # of a driver
            pass
    # No database refuses this one, which has nothing of the user's text.
    write(last)


def _unchanged(texts: dict[str, str]) -> dict[str, str]:
    return texts


def _in_ascii(texts: dict[str, str]) -> dict[str, str]:
    return _cut({name: in_ascii(text) for name, text in texts.items()})


def _without_text(texts: dict[str, str]) -> dict[str, str]:
    return {**dict.fromkeys(texts, ""), "cause": UNSTORABLE, "message": UNSTORABLE}


def _described(error: BaseException | None, traceback: str | None) -> dict[str, str]:
    """Give the columns that tell of an error."""
    if error is None:
        error = RuntimeError("no reason is known")
    text = storable(traceback or format_traceback(error))
    cause = cause_of(error, text)
    texts = {
        "cause": cause.text,
        "error_class": cause.error_class,
        "sqlstate": cause.sqlstate,
        "constraint": cause.constraint,
        "frame": cause.frame,
        "message": text_of(error),
        "traceback": text,
    }
    return _cut({column: storable(value) for column, value in texts.items()})


def in_ascii(text: str) -> str:
    """Escape what a database may not store, whatever its encoding is."""
    return storable(text).encode("ascii", "backslashreplace").decode()


def _cut(texts: dict[str, str]) -> dict[str, str]:
    """Cut texts to the lengths of their columns, after all that makes them longer."""
    cut = {column: texts[column][:length] for column, length in _lengths().items()}
    if cut["cause"] != texts["cause"]:  # what is cut off may be all that differs
        digest = blake2b(texts["cause"].encode(), digest_size=6).hexdigest()
        cut["cause"] = f"{cut['cause'][: -len(digest) - 1]} {digest}"
    return cut


def _lengths() -> dict[str, int]:
    from ..ledger.models import Failure

    columns = ("cause", "error_class", "sqlstate", "constraint", "frame", "message", "traceback")
    return {column: getattr(Failure, column).field.max_length or LONGEST_TEXT for column in columns}
