"""A failure as a row of the ledger: by workers in the transaction of a chunk, else by the caller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._pickling.exceptions import format_traceback
from .._reports.causes import printable
from .._runtime.foreign_exceptions import text_of
from ..ledger.causes import cause_of

if TYPE_CHECKING:
    from ..ledger.models import Failure

LONGEST_TEXT = 20_000
"""Characters of a message, and of a traceback, that are kept."""


def failure_of(
    run_id: int, key: str, error: BaseException | None, *, traceback: str | None = None, **fields: Any
) -> Failure:
    """Make the row, which is not saved. `traceback`: as text, from the worker; None: take that of the error."""
    from ..ledger.models import Failure

    return Failure(run_id=run_id, key=key, **described(error, traceback), **fields)


def described(error: BaseException | None, traceback: str | None = None) -> dict[str, str]:
    """Give the columns that tell of an error."""
    if error is None:
        error = RuntimeError("no reason is known")
    text = traceback or format_traceback(error)
    cause = cause_of(error, text)
    return {
        "cause": _stored(cause.text),
        "error_class": _stored(cause.error_class),
        "sqlstate": _stored(cause.sqlstate[:10]),
        "constraint": _stored(cause.constraint),
        "frame": _stored(cause.frame),
        "message": _stored(text_of(error)),
        "traceback": _stored(text),
    }


def _stored(text: str) -> str:
    return printable(text).replace("\x00", "\\x00")[:LONGEST_TEXT]  # PostgreSQL stores no NUL
