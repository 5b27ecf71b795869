"""Backfill a column of a table of 20,000 rows, each by a save() of its own that a receiver listens to.

    python examples/backfill_table.py
    python examples/backfill_table.py --database postgres --start-method spawn
    python examples/backfill_table.py --rows 100000 --compare

The queryset selects what is left to do, so the work itself changes what it finds, and still no row is left out.
At the end SQL is asked whether every promise was kept; the exit status is 0 only if it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from _databases import CPUS, ask, choose_database, scratch_database, set_up


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--rows", type=int, default=20_000, help="how many rows the table has (default: 20000)")
    parser.add_argument("--workers", type=int, default=CPUS, help="how many workers (default: the number of CPUs)")
    parser.add_argument("--start-method", choices=["fork", "forkserver", "spawn"], help="default: fork, if it is safe")
    parser.add_argument("--compare", action="store_true", help="also run a plain loop over iterator()")
    return parser.parse_args()


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()
    choose_database(ARGUMENTS.database, "backfill_table")

set_up(INSTALLED_APPS=["documents"])

from django.core.management import call_command  # noqa: E402
from django.db.models import QuerySet  # noqa: E402
from documents.models import Change, Document  # noqa: E402

from poolsave import Report, pooled_operation  # noqa: E402

UNREADABLE = 5
"""Rows, spread over the table, whose text no fingerprint can be made of."""


@pooled_operation(transaction="chunk", keep="failures")
def backfill(document: Document) -> None:
    document.save()


def left_to_do() -> QuerySet[Document]:
    return Document.objects.filter(fingerprint="")


def pooled(arguments: argparse.Namespace) -> Report[None]:
    return backfill.using(workers=arguments.workers, start_method=arguments.start_method).map(left_to_do())


def with_poolsave(arguments: argparse.Namespace) -> int:
    return pooled(arguments).failed


def plain_loop(_arguments: argparse.Namespace) -> int:
    """What most people write first; on PostgreSQL its cursor is open from the first row to the last."""
    failed = 0
    for document in left_to_do().iterator():
        try:
            document.save()
        except ValueError:
            failed += 1
    return failed


def broken_promises(report: Report[None], count: int) -> list[str]:
    """Hold the report against the database; gives what does not agree."""
    unreadable = len(unreadable_numbers(count))
    failed = {failure.item for failure in report.failures}
    facts = {
        "rows in the report": (report.total, count),
        "failures in the report": (report.failed, unreadable),
        "keys of those that failed": (failed, set(left_to_do().values_list("pk", flat=True))),
        "lost or skipped": (report.lost + report.skipped, 0),
        "rows that failed and were changed": (ask(f"SELECT count(*) {DOCUMENTS} WHERE text = '' AND {CHANGED}"), 0),
        "rows not saved exactly once": (ask(f"SELECT count(*) {DOCUMENTS} WHERE text <> '' AND NOT {SAVED_ONCE}"), 0),
        "changes": (ask("SELECT count(*) FROM documents_change"), count - unreadable),
        "different fingerprints": (
            ask(f"SELECT count(DISTINCT fingerprint) {DOCUMENTS} WHERE text <> ''"),
            count - unreadable,
        ),
    }
    return [f"{name}: {found!r}, expected {wanted!r}" for name, (found, wanted) in facts.items() if found != wanted]


DOCUMENTS = "FROM documents_document d"
CHANGES = "(SELECT count(*) FROM documents_change c WHERE c.document_id = d.id)"
CHANGED = f"(saves <> 0 OR fingerprint <> '' OR {CHANGES} <> 0)"
SAVED_ONCE = f"(saves = 1 AND length(fingerprint) = 64 AND {CHANGES} = 1)"


def unreadable_numbers(count: int) -> set[int]:
    return set(range(0, count, max(1, count // UNREADABLE))[:UNREADABLE])


def start_over(count: int) -> None:
    """Empty the tables, and write rows whose column is empty: without save(), as rows from former times."""
    Change.objects.all().delete()
    Document.objects.all().delete()
    unreadable = unreadable_numbers(count)
    for first in range(0, count, 1000):
        numbers = range(first, min(first + 1000, count))
        Document.objects.bulk_create(Document(text="" if n in unreadable else f"text {n}") for n in numbers)


def compare(arguments: argparse.Namespace) -> None:
    contenders: dict[str, Callable[[argparse.Namespace], int]] = {
        "plain loop over iterator()": plain_loop,
        "poolsave": with_poolsave,
    }
    print(f"{'':40} {'seconds':>8} {'x loop':>7} {'failed':>7} {'saved':>7}")
    loop = 0.0
    for name, contender in contenders.items():
        start_over(arguments.rows)
        began = time.perf_counter()
        failed = contender(arguments)
        seconds = time.perf_counter() - began
        loop = loop or seconds
        print(f"{name:40} {seconds:>8.2f} {loop / seconds:>7.2f} {failed:>7} {Change.objects.count():>7}")


def main(arguments: argparse.Namespace) -> int:
    with scratch_database():
        call_command("migrate", run_syncdb=True, verbosity=0)
        if arguments.compare:
            compare(arguments)
        start_over(arguments.rows)
        report = pooled(arguments)
        problems = broken_promises(report, arguments.rows)
    print(f"{report}\nThe {report.failed} failures were planted: rows without a text.")
    print("\n".join(problems) or "Every promise was kept: one save and one change for every row that could be filled.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(ARGUMENTS))
