"""`manage.py import_orders orders.csv --failures failed.csv`, and again what failed: `import_orders failed.csv`."""

import csv
from contextlib import contextmanager
from pathlib import Path

from catalogue.models import Product
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from orders.models import Order
from poolsave import PoolsaveError, load_items, pooled_operation


@pooled_operation(keep="failures")
def import_order(row):
    product = Product.objects.get(name=row["product"])
    Order(number=row["number"], product=product, quantity=int(row["quantity"])).save()


@contextmanager
def open_orders(path):
    """Give the orders of a CSV file, as they are read, or those of a file of failures."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        columns = rows.fieldnames or ()
        if "item_exact" in columns:
            yield load_items(path)
        elif missing := sorted({"number", "product", "quantity"} - {*columns}):
            raise CommandError(f"{path} has no column {', '.join(missing)}")
        else:
            yield rows


class Command(BaseCommand):
    help = "Import orders from a CSV file, or those of a file of failures once more."

    def add_arguments(self, parser):
        parser.add_argument("file", type=Path, help="a CSV file of orders, or one that --failures has written")
        parser.add_argument("--workers", type=int, help="a fixed number of workers, where connections are scarce")
        parser.add_argument("--dry-run", action="store_true", help="show what some orders would do, and save nothing")
        parser.add_argument("--failures", type=Path, metavar="FILE", help="write here what failed, to run it again")

    def handle(self, *, file, workers, dry_run, failures, verbosity, **_options):
        if failures and (failures.is_dir() or not failures.parent.is_dir()):
            raise CommandError(f"{failures} cannot be written")  # now, and not when all is done
        why, progress = f"not every order of {file} can be imported", None if verbosity else False  # no bar in a file
        try:
            operation = import_order.using(workers="auto" if workers is None else workers, progress=progress)
            with open_orders(file) as orders:
                result = operation.dry_run(orders) if dry_run else operation.map(orders)
        except (OSError, ValueError, csv.Error, DatabaseError, PoolsaveError, KeyboardInterrupt, SystemExit) as error:
            result, why = None if dry_run else getattr(error, "report", None), error  # what was done until then
        if result is not None and (verbosity or not result.ok):
            self.stdout.write(str(result))
        if result is not None and failures and not dry_run:
            result.to_csv(failures, only="failures")  # anew each time: without a row if nothing failed
        if result is None or not result.ok:  # exit status 1
            raise why if isinstance(why, (KeyboardInterrupt, SystemExit)) else CommandError(why)
