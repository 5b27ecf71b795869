"""Backfill a column of 2,000 rows in the workers of a Dask cluster: one that this script starts, or that of an address.

    python examples/on_dask.py
    python examples/on_dask.py --address tcp://scheduler:8786 --database postgres

The run is durable: after a kill of workers, cluster or script, the script goes on where it was, if its database
is still there.
The workers of an address need poolsave, PYTHONPATH=examples, DJANGO_SETTINGS_MODULE=settings, and a database that they
can reach: that of DATABASE_URL.
"""

import os
from contextlib import ExitStack

import django
from _script import parse_options, scratch_database

if __name__ == "__main__":
    OPTIONS = parse_options(__doc__, rows=2_000, address="")

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django.setup()

from distributed import LocalCluster
from documents.models import Document
from documents.steps import backfill

from poolsave.executors import DaskExecutor


def main(options):
    if not Document.objects.exists():
        Document.objects.bulk_create(Document(text=f"text {number}") for number in range(options.rows))
    with ExitStack() as stack:
        if not options.address:
            cluster = LocalCluster(n_workers=options.workers, threads_per_worker=1, dashboard_address=":0")
            options.address = stack.enter_context(cluster).scheduler_address
        operation = backfill.using(executor=DaskExecutor(options.address), workers=options.workers)
        report = operation.map(Document.objects.filter(fingerprint=""), run="fingerprints")
    print(report)


if __name__ == "__main__":
    with scratch_database():
        main(OPTIONS)
