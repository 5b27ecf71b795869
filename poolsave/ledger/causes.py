"""Why objects failed, without their values: failures that have one cause are one line for people, and one retry.

A cause is the class of the error, its SQLSTATE, the constraint, and the innermost line of the user's code. The text of
a message is never part of it, since values stand in it.
"""

from __future__ import annotations

import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from django.conf import settings
from django.db.models import Count, Max, Min, Q
from django.utils import timezone

from .._db.error_codes import constraint_of, sqlstate_of
from .._runtime.foreign_exceptions import args_of, class_path_of, is_a, module_of, text_of
from ..errors import RemoteError

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from .models import Failure, Run

LONGEST = 300
"""Characters of a cause, as its column has them."""
POOLSAVE = str(Path(__file__).parents[1])
FOREIGN = (POOLSAVE, sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
"""Folders whose lines are not the user's, besides those in which packages are installed."""
CHAINED = re.compile(
    r"\n(?:The above exception was the direct cause of the following exception:"
    r"|During handling of the above exception, another exception occurred:)\n\n(?=Traceback|  \+ Exception Group)"
)
FRAME = re.compile(r'File "(?P<file>.*)", line (?P<line>\d+), in (?P<function>.*)')
CONSTRAINTS = (
    re.compile(r"for key '(?P<name>[^']*)'\Z"),  # MySQL and MariaDB: a row that is there twice, after its values
    re.compile(r"CONSTRAINT `(?P<name>[^`\n]*)` "),  # the same: a foreign key, or a check
    re.compile(r"\A(?:UNIQUE|NOT NULL|CHECK) constraint failed: (?P<name>.+)"),  # SQLite
    re.compile(r'\A.*constraint "(?P<name>[^"\n]*)"'),  # PostgreSQL, where the driver's own error is not at hand
)


class Cause(NamedTuple):
    """What failures have in common."""

    error_class: str
    sqlstate: str
    """Five characters of PostgreSQL's; the number of MySQL and MariaDB, such as "1062"; or empty."""
    constraint: str
    frame: str
    """"shop/backfills.py:12 in fill_slug": relative to the import path, so that it is the same on each machine."""
    text: str
    """All of it in one line, by which failures are grouped."""


class CauseCount(NamedTuple):
    """A cause in a run: how many failures of it are unresolved, when the last one came, and the key of one of them."""

    cause: str
    error_class: str
    sqlstate: str
    constraint: str
    frame: str
    failures: int
    last: datetime
    key: str


def cause_of(error: BaseException, traceback_text: str) -> Cause:
    """Find the cause of an error. It reads errors of any class, also broken ones, and raises nothing.

    Args:
        error: as it was raised, or as it came back from a worker.
        traceback_text: as Python formats it, from the process that raised the error.
    """
    error_class = error.class_path if is_a(error, RemoteError) else class_path_of(error)
    sqlstate = (error.sqlstate or "") if is_a(error, RemoteError) else _code_of(error)
    constraint, frame = _constraint_of(error), _frame_of(traceback_text)
    text = _line(error_class, sqlstate, constraint, frame)
    return Cause(error_class[:200], sqlstate, constraint[:200], frame[-300:], text)


def _line(error_class: str, sqlstate: str, constraint: str, frame: str) -> str:
    state = f"[{sqlstate}]" if sqlstate else ""
    text = " ".join(part for part in (error_class, state, constraint, f"at {frame}" if frame else "") if part)
    if len(text) <= LONGEST:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]
    return f"{text[: LONGEST - 13]} {digest}"  # what is cut off may be all that differs


def _code_of(error: BaseException) -> str:
    state = sqlstate_of(error)
    if state is not None:
        return state
    args = args_of(error)
    is_database = module_of(error).partition(".")[0] in {"django", "MySQLdb", "pymysql"}
    return str(args[0]) if is_database and args and type(args[0]) is int else ""


def _constraint_of(error: BaseException) -> str:
    name = constraint_of(error)
    if name is not None:
        return name
    if module_of(error) != "django.db.utils" and not sqlstate_of(error):
        return ""
    args = (error.message,) if is_a(error, RemoteError) else args_of(error)
    text = text_of(args[-1]) if args else ""
    found = next((match for pattern in CONSTRAINTS if (match := pattern.search(text))), None)
    return found["name"] if found else ""


def _frame_of(traceback_text: str) -> str:
    """Give the innermost line of the user's code; that of a library if there is none."""
    last = CHAINED.split(traceback_text)[-1]
    frames = list(_frames_in(last))
    own = [frame for frame in frames if _is_users(frame[0])] or frames
    if not own:
        return ""
    file, line, function = own[-1]
    return f"{_shortened(file)}:{line} in {function}"


def _frames_in(section: str) -> Iterator[tuple[str | Any, ...]]:
    """Give file, line and function of each frame. The text of a message, which follows them, may look like more."""
    _heading, *lines = section.split("\n")
    for line in lines:
        text = re.sub(r"^  [|+]", "", line)  # of a group of exceptions
        if not text.startswith("  "):
            return
        match = FRAME.match(text.strip())
        if match:
            yield match.groups()


@lru_cache(maxsize=1000)
def _is_users(file: str) -> bool:
    if file.startswith("<frozen") or "/site-packages/" in file or "/dist-packages/" in file:
        return False
    return not any(file.startswith(f"{folder}/") for folder in FOREIGN)


@lru_cache(maxsize=1000)
def _shortened(file: str) -> str:
    folders = [folder for folder in sys.path if folder and file.startswith(f"{folder.rstrip('/')}/")]
    return file[len(max(folders, key=len).rstrip("/")) + 1 :] if folders else file


def grouped(run: Run, *, using: str | None = None) -> list[CauseCount]:
    """Give the causes of a run's failures that are not resolved, the most frequent first. One query."""
    from .models import Failure

    rows = Failure.objects.using(using or run._state.db).filter(run_id=run.pk, resolved_at=None)
    columns = ("cause", "error_class", "sqlstate", "constraint", "frame")
    counted = rows.values_list(*columns).annotate(failures=Count("pk"), last=Max("created_at"), key=Min("key"))
    return [CauseCount(*row) for row in counted.order_by("-failures", "cause")]


RETRIED = ("error",)
"""Kinds of failures that are tried again. The others' objects are saved, or may be, so that these would run twice."""


def failures_of(run: Run, retry: Mapping[str, Any], *, kinds: Sequence[str] = RETRIED) -> QuerySet[Failure]:
    """Give the failures that wait and that a retry is about, in the order in which they came.

    Args:
        run: as it was read from a database.
        retry: what `Run.retry` holds. "cause": a SQLSTATE, a class, a constraint or the whole line. "since": when the
            first of them came, in ISO format. "upto": the primary key of the last one. "keys": a list. All may be
            missing.
        kinds: of `Failure.Kind`.
    """
    from .models import Failure

    rows = Failure.objects.using(run._state.db).filter(run_id=run.pk, resolved_at=None, kind__in=kinds)
    if retry.get("cause"):
        rows = rows.filter(matching(retry["cause"]))
    if retry.get("since"):
        rows = rows.filter(created_at__gte=_as_stored(datetime.fromisoformat(retry["since"])))
    if retry.get("upto") is not None:
        rows = rows.filter(pk__lte=retry["upto"])
    if retry.get("keys") is not None:
        keys = {str(key) for key in retry["keys"]}
        named = rows.filter(key__in=keys).values_list("pk", "key")
        rows = rows.filter(pk__in=[pk for pk, key in named if key in keys])  # some collations tell no case apart
    return rows.order_by("pk")


def _as_stored(moment: datetime) -> datetime:
    """Give a time with a time zone, or without one in the default one, as the settings have times."""
    if timezone.is_aware(moment) == settings.USE_TZ:
        return moment
    return timezone.make_aware(moment) if settings.USE_TZ else timezone.make_naive(moment)


def matching(cause: str) -> Q:
    """Say which failures a cause means, as people write it: "23505", "IntegrityError", a constraint or the line."""
    return (
        Q(cause=cause)
        | Q(sqlstate=cause)
        | Q(constraint=cause)
        | Q(error_class=cause)
        | Q(error_class__endswith=f".{cause}")
    )
