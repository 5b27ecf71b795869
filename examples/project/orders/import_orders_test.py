"""How a command is tested with pytest and pytest-django: `cd examples/project && python -m pytest`."""

import csv

import pytest
from catalogue.models import Product
from django.core.management import CommandError, call_command

from orders.models import Delivery, Order


@pytest.fixture
def import_orders(tmp_path):
    def run(*rows, options=()):
        with open(tmp_path / "orders.csv", "w", newline="") as opened:
            csv.writer(opened).writerows([("number", "product", "quantity"), *rows])
        call_command("import_orders", tmp_path / "orders.csv", *options)

    return run


@pytest.mark.django_db
@pytest.mark.usefixtures("serial_saves")  # a fixture of poolsave: inline, in the test's own transaction
class TestInTheTestsTransaction:
    def test_order_is_priced_and_delivered(self, import_orders):
        Product.objects.create(name="Tea", price=3)
        import_orders(("A-1", "Tea", 2))
        assert Order.objects.get(number="A-1").total == 6
        assert Delivery.objects.count() == 1

    def test_dry_run_saves_nothing(self, import_orders, capsys):
        Product.objects.create(name="Tea", price=3)
        import_orders(("A-1", "Tea", 2), options=["--dry-run"])
        assert "would create 1 row of orders.Order" in capsys.readouterr().out
        assert not Order.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_failures_can_be_imported_again_by_a_real_pool(import_orders, tmp_path):
    Product.objects.create(name="Tea", price=3)
    failed = tmp_path / "failed.csv"
    with pytest.raises(CommandError, match="not every order"):
        import_orders(("A-1", "Tea", 2), ("A-2", "Coffee", 1), options=["--failures", failed])
    Product.objects.create(name="Coffee", price=4)
    call_command("import_orders", failed)
    assert sorted(Order.objects.values_list("number", "total")) == [("A-1", 6), ("A-2", 4)]
