"""How a command is tested with unittest: `python examples/project/manage.py test orders`."""

import csv
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from catalogue.models import Product
from django.core.management import CommandError, call_command
from django.test import TestCase, TransactionTestCase

from orders.models import Delivery, Order
from poolsave.testing import serial_saves


class ImportTests:
    """What both have: products, a file, and the command."""

    def setUp(self):
        Product.objects.create(name="Tea", price=3)
        self.folder = Path(self.enterContext(TemporaryDirectory()))

    def import_orders(self, *rows, options=()):
        file, output = self.folder / "orders.csv", StringIO()
        with open(file, "w", newline="") as opened:
            csv.writer(opened).writerows([("number", "product", "quantity"), *rows])
        call_command("import_orders", file, *options, stdout=output)
        return output.getvalue()


@serial_saves()
class InTheTestsTransaction(ImportTests, TestCase):
    """Most tests: quick, and rolled back."""

    def test_an_order_is_priced_and_delivered(self):
        self.import_orders(("A-1", "Tea", 2))
        self.assertEqual(Order.objects.get(number="A-1").total, 6)
        self.assertEqual(Delivery.objects.count(), 1)

    def test_a_dry_run_saves_nothing(self):
        output = self.import_orders(("A-1", "Tea", 2), options=["--dry-run"])
        self.assertIn("would create 1 row of orders.Order", output)
        self.assertFalse(Order.objects.exists())


class OverARealPool(ImportTests, TransactionTestCase):
    """One test: with processes, which use the test database."""

    def test_failures_can_be_imported_again(self):
        failed = self.folder / "failed.csv"
        with self.assertRaisesMessage(CommandError, "not every order"):
            self.import_orders(("A-1", "Tea", 2), ("A-2", "Coffee", 1), options=["--failures", failed])
        Product.objects.create(name="Coffee", price=4)
        call_command("import_orders", failed, stdout=StringIO())
        self.assertEqual(sorted(Order.objects.values_list("number", "total")), [("A-1", 6), ("A-2", 4)])
