"""Backfill a column of 2,000 rows in the workers of a Dask cluster: one that this script starts, or that of an address.

    python examples/on_dask.py
    python examples/on_dask.py --database postgres --workers 4
    python examples/on_dask.py --address tcp://scheduler:8786 --database postgres

The workers of an address need this folder on their PYTHONPATH, poolsave, and a database that they can reach: that of
DATABASE_URL. At the end SQL is asked whether every promise was kept; the exit status is 0 only if it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from _databases import CPUS, ask, choose_database, scratch_database, set_up


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--address", help="of a scheduler (default: start a LocalCluster)")
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--rows", type=int, default=2_000, help="how many rows the table has (default: 2000)")
    parser.add_argument("--workers", type=int, default=CPUS, help="how many workers (default: the number of CPUs)")
    return parser.parse_args()


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()
    choose_database(ARGUMENTS.database, "on_dask")

set_up(INSTALLED_APPS=["documents"])

from django.core.management import call_command  # noqa: E402
from documents.models import Document  # noqa: E402
from documents.steps import backfill  # noqa: E402

from poolsave import Report  # noqa: E402
from poolsave.executors import DaskExecutor  # noqa: E402


@contextmanager
def cluster(arguments: argparse.Namespace) -> Iterator[str]:
    """Give the address of a scheduler."""
    if arguments.address:
        yield arguments.address
        return
    from distributed import LocalCluster

    with LocalCluster(n_workers=arguments.workers, threads_per_worker=1, dashboard_address=":0") as started:
        yield started.scheduler_address


def broken_promises(report: Report[None], rows: int) -> list[str]:
    """Hold the report against the database; gives what does not agree."""
    filled = "FROM documents_document WHERE saves = 1 AND length(fingerprint) = 64"
    facts = {
        "successes in the report": (report.succeeded, rows),
        "rows saved exactly once": (ask(f"SELECT count(*) {filled}"), rows),
        "changes that a receiver wrote": (ask("SELECT count(*) FROM documents_change"), rows),
    }
    return [f"{name}: {found!r}, expected {wanted!r}" for name, (found, wanted) in facts.items() if found != wanted]


def main(arguments: argparse.Namespace) -> int:
    with scratch_database(), cluster(arguments) as address:
        call_command("migrate", run_syncdb=True, verbosity=0)
        Document.objects.bulk_create(Document(text=f"text {number}") for number in range(arguments.rows))
        operation = backfill.using(executor=DaskExecutor(address), workers=arguments.workers)
        report = operation.map(Document.objects.filter(fingerprint=""))
        problems = broken_promises(report, arguments.rows)
    print(report)
    print("\n".join(problems) or "Every promise was kept: one save and one change for every row.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(ARGUMENTS))
