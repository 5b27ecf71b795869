"""Import customers from a CSV file: clean each line, ask a slow service about it, save it with its receivers.

    python examples/import_csv.py
    python examples/import_csv.py --database postgres --lines 5000
    python examples/import_csv.py --start-method spawn

A pipeline: bad lines are dropped in worker processes, the service is asked in 16 threads, which hold no transaction
while they wait, and processes save. Lines that failed are written to a CSV file of their own, which is mended here and
fed again. At the end SQL is asked whether every promise was kept; the exit status is 0 only if it was.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from _databases import CPUS, ask, choose_database, scratch_database, set_up


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--lines", type=int, default=1_000, help="lines of the file that is made (default: 1000)")
    parser.add_argument("--workers", type=int, default=CPUS, help="how many processes save (default: number of CPUs)")
    parser.add_argument("--start-method", choices=["fork", "forkserver", "spawn"], help="default: fork, if it is safe")
    return parser.parse_args()


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()
    choose_database(ARGUMENTS.database, "import_csv")

set_up(SECRET_KEY="only for this example", INSTALLED_APPS=[])

from django.db import connection, models  # noqa: E402
from django.db.models.signals import post_save  # noqa: E402
from django.dispatch import receiver  # noqa: E402

from poolsave import DROP, Pipeline, pooled_operation  # noqa: E402

FIELDS = ("name", "email", "city")
LATENCY = 0.02
"""Seconds that the service takes to answer; a thread that waits for it costs nothing."""
UNKNOWN = "Atlantis"
TAKEN = "customer1"


class Customer(models.Model):
    name = models.CharField(max_length=100, unique=True)
    email = models.EmailField()
    postcode = models.CharField(max_length=10)

    class Meta:
        app_label = "import_csv"


class Welcome(models.Model):
    customer = models.ForeignKey(Customer, on_delete=models.CASCADE)

    class Meta:
        app_label = "import_csv"


@receiver(post_save, sender=Customer)
def write_welcome(instance: Customer, created: bool, **_kwargs: object) -> None:
    if created:
        Welcome.objects.create(customer=instance)


def service(city: str) -> str:
    """Stands in for a web service."""
    time.sleep(LATENCY)
    if city == UNKNOWN:
        raise LookupError(f"there is no postcode for {city!r}")
    return f"{sum(map(ord, city)):05}"


Line = dict[str, str]


@pooled_operation(transaction=None)
def clean(line: Line) -> Line:
    line = {field: line[field].strip() for field in FIELDS}
    return line if "@" in line["email"] else DROP


@pooled_operation(executor="thread", workers=16, transaction=None)
def locate(line: Line) -> Line:
    return {**line, "postcode": service(line["city"])}


@pooled_operation
def create_customer(line: Line) -> int:
    customer = Customer(name=line["name"], email=line["email"], postcode=line["postcode"])
    customer.save()
    return customer.pk


def pipeline(arguments: argparse.Namespace) -> Pipeline[Line, int]:
    processes = {"start_method": arguments.start_method, "workers": arguments.workers}
    return clean.using(start_method=arguments.start_method, workers=1) | locate | create_customer.using(**processes)


def read(path: Path) -> Iterator[Line]:
    """The lines of a file, one by one: it may be longer than the memory."""
    with open(path, newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def write(path: Path, lines: Iterable[Line]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(lines)


def made_up(count: int) -> Iterator[Line]:
    """In every hundred lines, one has no address, one a city that nobody knows, and one a name that is taken."""
    for number in range(count):
        name, email, city = f"customer{number}", f"customer{number}@example.org", f"City {number % 7}"
        match number % 100:
            case 10:
                email = ""
            case 20:
                city = UNKNOWN
            case 30:
                name = TAKEN
        yield {"name": name, "email": f" {email} ", "city": city}


def mended(lines: Iterable[Line]) -> Iterator[Line]:
    """What somebody would do by hand to the lines that failed."""
    for number, line in enumerate(lines):
        if line["city"] == UNKNOWN:
            yield {**line, "city": "City 1"}
        else:
            yield {**line, "name": f"{line['name']} the {number}."}


def main(arguments: argparse.Namespace) -> int:
    with scratch_database(), tempfile.TemporaryDirectory(prefix="poolsave-") as folder:
        with connection.schema_editor() as editor:
            editor.create_model(Customer)
            editor.create_model(Welcome)
        source, failed = Path(folder, "customers.csv"), Path(folder, "failed.csv")
        write(source, made_up(arguments.lines))
        report = pipeline(arguments).map(read(source))
        print(report)
        lines = report.failed_items()  # as they were read, whichever stage they failed in
        write(failed, lines)
        again = pipeline(arguments).map(mended(read(failed)))
        print(f"\nThe {len(lines)} lines that failed, mended and fed again:\n{again}")
        planted = {
            "dropped": (report.dropped, len(range(10, arguments.lines, 100))),
            "not located": (report.stages[1].failed, len(range(20, arguments.lines, 100))),
            "not saved": (report.stages[2].failed, len(range(30, arguments.lines, 100))),
            "failed in the second run": (again.failed, 0),
            "customers": (ask("SELECT count(*) FROM import_csv_customer"), arguments.lines - report.dropped),
            "customers without exactly one welcome": (ask(WITHOUT_ONE), 0),
        }
    problems = [f"{name}: {found}, expected {wanted}" for name, (found, wanted) in planted.items() if found != wanted]
    print("\n".join(problems) or "Every promise was kept.")
    return 1 if problems else 0


WITHOUT_ONE = (
    "SELECT count(*) FROM import_csv_customer c "
    "WHERE (SELECT count(*) FROM import_csv_welcome w WHERE w.customer_id = c.id) <> 1"
)


if __name__ == "__main__":
    sys.exit(main(ARGUMENTS))
