"""Code that uses poolsave can be tested: in a TestCase inline, elsewhere over real pools, under every runner."""

import os
import subprocess
import sys

import pytest

from poolsave import InsideTransaction, pooled_operation
from poolsave.testing import serial_saves as inline
from tests.support import projects

PROJECT = {
    **projects.MANAGE,
    "conf.py": """
        import json, os
        SECRET_KEY = "x"
        INSTALLED_APPS = ["shop"]
        DATABASES = {"default": json.loads(os.environ["TEST_DATABASE"])}
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
        USE_TZ = True
    """,
    "pytest.ini": """
        [pytest]
        DJANGO_SETTINGS_MODULE = conf
        python_files = tests.py test_*.py
        addopts = -p no:randomly -W error
    """,
    "shop/__init__.py": "",
    "shop/models.py": """
        from django.db import models

        class Item(models.Model):
            name = models.CharField(max_length=20, unique=True)
            price = models.IntegerField(default=0)
    """,
    "shop/pricing.py": """
        import os
        from poolsave import pooled_operation
        from shop.models import Item

        @pooled_operation(workers=2, chunksize=3, progress=False, timeout=30)
        def price(item):
            item.price = 5
            item.save()
            return os.getpid()

        def price_all():
            return price.map(Item.objects.all())
    """,
    "shop/tests.py": """
        import multiprocessing, os, unittest, warnings
        from django.test import TestCase, TransactionTestCase
        from poolsave import InsideTransaction
        from poolsave.testing import serial_saves
        from shop.models import Item
        from shop.pricing import price, price_all

        def fill():
            Item.objects.bulk_create([Item(name=str(number)) for number in range(8)])

        def prices():
            return set(Item.objects.values_list("price", flat=True))

        class InATransaction(TestCase):
            def setUp(self):
                fill()

            def test_pool_in_a_test_case_is_refused(self):
                with self.assertRaisesRegex(InsideTransaction, "serial_saves"):
                    price_all()

            @serial_saves()
            def test_serial_saves_decorates_a_function(self):
                self.assertEqual(set(price_all().values), {os.getpid()})
                self.assertEqual(prices(), {5})

        @serial_saves()
        class AllOfThem(TestCase):
            def test_serial_saves_decorates_a_class(self):
                fill()
                self.assertTrue(price_all().ok)
                self.assertEqual(prices(), {5})

        class WithRealPools(TransactionTestCase):
            def run_it(self):
                fill()
                daemonic = multiprocessing.current_process().daemon
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore" if daemonic else "error")
                    report = price.using(timeout=None if daemonic else 30).map(Item.objects.all())
                self.assertTrue(report.ok, report)
                self.assertEqual(os.getpid() in report.values, daemonic)
                self.assertEqual(prices(), {5})

            def test_one(self):
                self.run_it()

            def test_two(self):
                self.run_it()

        class WithRealPoolsToo(WithRealPools):
            pass
    """,
    "shop/test_by_fixture.py": """
        import os
        import pytest
        from poolsave import concurrent_saves
        from shop.models import Item
        from shop.pricing import price_all

        @pytest.mark.django_db
        def test_pytest_fixture_comes_with_the_package(serial_saves):
            with concurrent_saves(executor="thread", workers=2) as saves:
                saves.save(Item(name="here"))
            assert set(price_all().values) == {os.getpid()}
            assert Item.objects.get().price == 5
    """,
}
RUNNERS = {
    "manage.py test": ["manage.py", "test", "-v0"],
    "manage.py test --parallel": ["manage.py", "test", "-v0", "--parallel", "2"],
    "pytest": ["-m", "pytest", "-q"],
    "pytest-xdist": ["-m", "pytest", "-q", "-n", "2"],
}


@pytest.fixture
def database(request, tmp_path, postgres_url):
    return projects.database(request.param, tmp_path)


@pytest.mark.programs
@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize("runner", RUNNERS)
def test_a_project_s_test_suite(tmp_path, database, runner):
    """Afterwards the test database is dropped, which fails on PostgreSQL while a session is connected."""
    projects.write(tmp_path, PROJECT)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DJANGO_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, *RUNNERS[runner]],
        cwd=tmp_path,
        env={**environment, "TEST_DATABASE": database, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout or "Ran 7 tests" in done.stderr


@pooled_operation(progress=False, transaction=None)
def pid(_item):
    return os.getpid()


@pytest.mark.django_db
def test_serial_saves_nests_and_ends_with_its_block():
    with inline():
        with inline():
            assert pid.map([1]).values == [os.getpid()]
        assert pid.map([1]).values == [os.getpid()]
    with pytest.raises(InsideTransaction):
        pid.map([1])


def test_serial_saves_without_parentheses_is_refused():
    with pytest.raises(TypeError):

        @inline
        def test():
            pass
