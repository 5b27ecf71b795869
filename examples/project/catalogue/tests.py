"""How a project tests code that uses poolsave: `python examples/project/manage.py test`."""

from decimal import Decimal

from django.test import TestCase, TransactionTestCase

from catalogue.models import Change, Product
from catalogue.pricing import reprice_all
from poolsave import InsideTransaction
from poolsave.testing import serial_saves


class InTheTestsTransaction(TestCase):
    """Most tests: quick, rolled back, and with the products of the migrations, which workers could not see."""

    def test_the_migration_has_filled_all_search_keys(self):
        self.assertFalse(Product.objects.filter(search_key="").exists())
        self.assertEqual(Product.objects.get(name="Smørrebrød 3").search_key, "smørrebrød 3")
        self.assertEqual(Product.objects.get(name="Crème brûlée 1").search_key, "creme brulee 1")

    @serial_saves()
    def test_all_prices_rise(self):
        report = reprice_all(10, above=Decimal(5))
        self.assertTrue(report.ok)
        self.assertEqual(Change.objects.count(), report.total)
        self.assertEqual(Product.objects.get(name="Żubrówka 4").price, Decimal("5.50"))
        self.assertEqual(Product.objects.get(name="Smørrebrød 3").price, Decimal(4))

    def test_a_real_pool_is_refused_here(self):
        with self.assertRaises(InsideTransaction):
            reprice_all(10)


class OverARealPool(TransactionTestCase):
    """A few tests: with processes, which use the test database. It is emptied after each of them."""

    def setUp(self):
        Product.objects.all().delete()  # the first of these tests still finds what the migrations wrote

    def test_what_fails_is_told_and_the_rest_is_done(self):
        for price in (1, 2, 3):
            Product.objects.create(name=f"product {price}", price=price)
        Product.objects.create(name="free already", price=0)
        report = reprice_all(50)
        self.assertEqual((report.succeeded, report.failed), (3, 1))
        self.assertIn("would be free", str(report.failures[0].error))
        self.assertEqual(
            set(Product.objects.values_list("price", flat=True)), {Decimal(p) for p in (0, "1.5", 3, "4.5")}
        )
        self.assertEqual(Change.objects.count(), 4 + 3)
