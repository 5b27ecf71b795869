"""Backfill a column of a table of 20,000 rows, each by a save() of its own that a receiver listens to.

    python examples/backfill_table.py
    python examples/backfill_table.py --database postgres --rows 100000

The queryset selects what is left to do. So the work changes what it finds, and still leaves out no row.
"""

import os

import django
from _script import parse_options, scratch_database

if __name__ == "__main__":
    OPTIONS = parse_options(__doc__, rows=20_000)

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django.setup()

from documents.models import Document

from poolsave import pooled_operation


@pooled_operation(transaction="chunk", keep="failures")
def backfill(document):
    document.save()


def write_old_rows(count):
    """Rows from former times: without a fingerprint, and five of them without the text that one is made of."""
    textless = range(0, count, max(1, count // 5))[:5]
    documents = (Document(text="" if number in textless else f"text {number}") for number in range(count))
    Document.objects.bulk_create(documents, batch_size=1000)


def main(options):
    write_old_rows(options.rows)
    operation = backfill.using(workers=options.workers, start_method=options.start_method)
    report = operation.map(Document.objects.filter(fingerprint=""))
    print(report)
    print("Rows without a text:", [failure.item for failure in report.failures])  # the item of a row is its key


if __name__ == "__main__":
    with scratch_database():
        main(OPTIONS)
