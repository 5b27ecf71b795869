"""Import customers from a CSV file by a pipeline: clean each line, ask a slow service about it, save it.

    python examples/import_csv.py
    python examples/import_csv.py --database postgres --file customers.csv

16 threads ask the service, and hold no transaction while they wait; processes clean and save.
"""

import csv
import os
import sys
import time
from pathlib import Path

import django
from _script import parse_options, scratch_database

if __name__ == "__main__":
    OPTIONS = parse_options(__doc__, file=str(Path(__file__).with_name("customers.csv")))

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django.setup()

from customers.models import Customer

from poolsave import DROP, pooled_operation


@pooled_operation(transaction=None, workers=1)
def clean(line):
    line = {field: text.strip() for field, text in line.items()}
    return line if "@" in line["email"] else DROP


@pooled_operation(transaction=None, executor="thread", workers=16)
def add_postcode(line):
    time.sleep(0.02)  # stands in for a web service
    if line["city"] == "Atlantis":
        raise LookupError(f"there is no postcode for {line['city']!r}")
    return {**line, "postcode": f"{sum(map(ord, line['city'])):05}"}


@pooled_operation
def create_customer(line):
    Customer(name=line["name"], email=line["email"], postcode=line["postcode"]).save()  # a receiver writes a welcome


def main(options):
    save = create_customer.using(workers=options.workers, start_method=options.start_method)
    with open(options.file, newline="", encoding="utf-8") as file:
        report = (clean.using(start_method=options.start_method) | add_postcode | save).map(csv.DictReader(file))
    print(f"{report}\n\nThe lines that failed, as they were read, to be mended and imported again:")
    csv.DictWriter(sys.stdout, ["name", "email", "city"]).writerows(report.failed_items())


if __name__ == "__main__":
    with scratch_database():
        main(OPTIONS)
