"""`RunPooled`: historical rows in the workers of a migration, forwards and backwards, failing and run again."""

import io
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connections
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.recorder import MigrationRecorder
from django.db.migrations.state import ProjectState
from django.db.migrations.writer import OperationWriter

from poolsave import (
    DROP,
    InsideTransaction,
    InvalidOperation,
    InvalidOption,
    OperationsFailed,
    Status,
    concurrent_saves,
    pooled_operation,
)
from poolsave.migrations import RunPooled
from tests.conftest import needs_mariadb
from tests.models import Thing
from tests.support import projects

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


class History:
    """The app's history on one database."""

    def __init__(self, alias):
        self.alias = alias

    def migrate(self, name):
        call_command("migrate", "history", name, database=self.alias, verbosity=0)

    def put_at(self, name):
        """The same without what the command does around it, which takes longer."""
        MigrationExecutor(connections[self.alias]).migrate([("history", name)])

    def apps(self, name):
        return MigrationExecutor(connections[self.alias]).loader.project_state(("history", name)).apps

    def model(self, name, label):
        return self.apps(name).get_model("history", label).objects.using(self.alias)

    def applied(self):
        return {
            name for app, name in MigrationRecorder(connections[self.alias]).applied_migrations() if app == "history"
        }


@pytest.fixture
def history(transactional_db, alias):
    one = History(alias)
    one.put_at("0001_initial")
    yield one
    with connections[alias].cursor() as cursor:
        for table in ("history_order", "history_customer"):
            cursor.execute(f"DELETE FROM {table}")
    one.put_at("0004_drop_names")


@pytest.fixture
def pool(settings, start_method):
    settings.POOLSAVE = {"start_method": start_method, "workers": 2}


def make_customers(history, count):
    customers = history.model("0001_initial", "Customer")
    customers.bulk_create([customers.model(first_name=f"first{n}", last_name=f"last{n}") for n in range(count)])
    return customers


def test_workers_see_the_columns_of_that_moment(history, pool):
    """Today's model has neither name any more, and a worker that saw today's could not read them."""
    customers = make_customers(history, 10)
    history.migrate("0002")
    assert sorted(customers.values_list("full_name", flat=True)) == [f"first{n} last{n}" for n in range(10)]
    history.migrate("0004")
    from tests.history.models import Customer

    assert Customer.objects.using(history.alias).count() == 10
    history.migrate("0002")
    customers = history.model("0002_join_names", "Customer")
    customers.update(full_name="x y")
    history.migrate("0001")
    assert set(customers.values_list("first_name", "last_name", "full_name")) == {("x", "y", "")}


def test_historical_apps_joins_and_a_plain_runpython(history, pool):
    customers = make_customers(history, 4)
    orders = history.model("0001_initial", "Order")
    for customer in customers.order_by("pk"):
        orders.create(customer_id=customer.pk)
    history.migrate("0003")
    assert sorted(orders.values_list("label", flat=True)) == [f"last{n} first{n} of last{n}!" for n in range(4)]


def take_seller_s_name(customer):
    customer.full_name = customer.seller.username
    customer.save()


def test_rows_that_point_to_the_users_of_the_project(history, pool):
    """In a migration's state `settings.AUTH_USER_MODEL` is a string of a kind that pickle cannot restore."""
    seller = User.objects.using(history.alias).create(username="seller")
    customers = make_customers(history, 3)
    customers.update(seller_id=seller.pk)
    operation = pooled_operation(take_seller_s_name, progress=False, databases=(history.alias,))
    operation.map(customers.select_related("seller")).raise_if_failed()
    assert set(customers.values_list("full_name", flat=True)) == {"seller"}


def test_a_step_that_fails_is_not_recorded_and_can_be_run_again(history, pool):
    customers = make_customers(history, 9)
    customers.filter(first_name="first4").update(last_name="")
    with pytest.raises(OperationsFailed, match="1 of 9 objects failed") as caught:
        history.migrate("0002")
    assert "has no last name" in str(caught.value.exceptions[0])
    assert "0002_join_names" not in history.applied()
    assert customers.exclude(full_name="").count() == 8
    customers.filter(last_name="").update(last_name="mended")
    history.migrate("0002")
    assert "0002_join_names" in history.applied()
    assert customers.filter(full_name="first4 mended").count() == 1


def test_two_databases_go_their_own_ways(transactional_db, settings):
    first, second = History("default"), History("second")
    try:
        for one in (first, second):
            one.migrate("0001")
            make_customers(one, 3)
        second.migrate("0002")
        assert first.model("0001_initial", "Customer").filter(full_name="").count() == 3
        assert second.model("0001_initial", "Customer").filter(full_name="").count() == 0
    finally:
        for one in (first, second):
            one.model("0001_initial", "Customer").all().delete()
            one.migrate("0004")


def run_in_an_editor(operation, alias, *, atomic, backwards=False, app_label="tests"):
    state = ProjectState.from_apps(Thing._meta.apps)
    with connections[alias].schema_editor(atomic=atomic) as editor:
        run = operation.database_backwards if backwards else operation.database_forwards
        run(app_label, editor, state, state)


def visit(row):
    row.visits += 1
    row.save()


def visit_by_apps(row, apps):
    apps.get_model("tests", "Thing").objects.using(row._state.db).filter(pk=row.pk).update(visits=7)


@pytest.mark.parametrize("alias", ["default", "postgres"])
def test_atomic_migration_is_refused_with_the_corrected_code(alias):
    Thing.objects.using(alias).create()
    with pytest.raises(InsideTransaction) as caught:
        run_in_an_editor(RunPooled(visit, queryset="Thing"), alias, atomic=True)
    assert "atomic = False\n        operations = [RunPooled(...)]" in str(caught.value)
    run_in_an_editor(RunPooled(visit, queryset="Thing", executor="serial"), alias, atomic=True)
    assert Thing.objects.using(alias).get().visits == 1


@needs_mariadb
def test_atomic_migration_runs_on_mariadb():
    """Django opens no transaction there, since its DDL cannot be rolled back."""
    Thing.objects.using("mariadb").create()
    run_in_an_editor(RunPooled(visit, queryset="Thing"), "mariadb", atomic=True)
    assert Thing.objects.using("mariadb").get().visits == 1


def test_router_can_keep_run_pooled_from_a_database(settings):
    Thing.objects.create()
    settings.DATABASE_ROUTERS = ["tests.api.test_migrations.OnlyWithHint"]
    run_in_an_editor(RunPooled(visit, queryset="tests.Thing"), "default", atomic=False)
    assert Thing.objects.get().visits == 0
    run_in_an_editor(RunPooled(visit, queryset="tests.Thing", hints={"wanted": True}), "default", atomic=False)
    assert Thing.objects.get().visits == 1


class OnlyWithHint:
    def allow_migrate(self, db, app_label, **hints):
        return hints.get("wanted", False)


def test_tables_can_be_remade_after_it(project, tmp_path):
    """On SQLite that drops a table, and with foreign keys enforced a cascade would take along what points to it."""
    files = {"migrations/0001_initial": WITH_PARTS, "migrations/0002_prices": AND_REMADE, "models": PARTS}
    projects.write(tmp_path, {f"shop/{name}.py": text for name, text in files.items()})
    project("migrate")
    with closing(sqlite3.connect(tmp_path / "db.sqlite3")) as database:
        assert database.execute("SELECT count(*) FROM shop_part").fetchall() == [(20,)]
        assert database.execute("SELECT DISTINCT price FROM shop_item").fetchall() == [(5,)]


PARTS = """
    from django.db import models

    class Item(models.Model):
        price = models.BigIntegerField(default=0)

    class Part(models.Model):
        item = models.ForeignKey(Item, on_delete=models.CASCADE)
"""
WITH_PARTS = """
    from django.db import migrations, models

    def fill(apps, schema_editor):
        for _ in range(20):
            item = apps.get_model("shop", "Item").objects.create()
            apps.get_model("shop", "Part").objects.create(item=item)

    class Migration(migrations.Migration):
        operations = [
            migrations.CreateModel("Item", [
                ("id", models.BigAutoField(primary_key=True)),
                ("price", models.IntegerField(default=0)),
            ]),
            migrations.CreateModel("Part", [
                ("id", models.BigAutoField(primary_key=True)),
                ("item", models.ForeignKey("shop.Item", on_delete=models.CASCADE)),
            ]),
            migrations.RunSQL("DROP TABLE shop_part"),
            migrations.RunSQL(
                "CREATE TABLE shop_part (id integer PRIMARY KEY AUTOINCREMENT, "
                "item_id bigint NOT NULL REFERENCES shop_item (id) ON DELETE CASCADE)"
            ),
            migrations.RunPython(fill),
        ]
"""
AND_REMADE = """
    from django.db import migrations, models
    from poolsave.migrations import RunPooled

    def price(item):
        item.price = 5
        item.save()

    class Migration(migrations.Migration):
        atomic = False
        dependencies = [("shop", "0001_initial")]
        operations = [
            RunPooled(price, queryset="Item"),
            migrations.AlterField("Item", "price", models.BigIntegerField(default=0)),
        ]
"""


@pooled_operation(progress=False)
def visit_pooled(row):
    visit(row)


def test_a_pooled_function_is_written_by_its_name():
    written, imports = OperationWriter(RunPooled(visit_pooled, queryset="Thing")).serialize()
    assert "fn=tests.api.test_migrations.visit_pooled" in written
    assert "import tests.api.test_migrations" in imports
    with pytest.raises(ValueError, match="give options to RunPooled"):
        OperationWriter(RunPooled(visit_pooled.using(workers=3), queryset="Thing")).serialize()


@pooled_operation(transaction=None, progress=False)
def keeps_unvisited(row, apps):
    assert row._meta.apps is apps
    return DROP if row.visits else row


def test_pipeline_in_a_migration_is_written_by_its_stages_names():
    """It also takes historical rows, and is refused in an atomic migration as an operation is."""
    Thing.objects.create(visits=5)
    Thing.objects.create()
    step = RunPooled(keeps_unvisited | visit_pooled, queryset="Thing", workers=2)
    run_in_an_editor(step, "default", atomic=False)
    assert sorted(Thing.objects.values_list("visits", flat=True)) == [1, 5]
    assert step.describe() == "Run keeps_unvisited | visit_pooled over Thing in a pool"
    assert step.migration_name_fragment == "run_keeps_unvisited_visit_pooled"
    written, imports = OperationWriter(step).serialize()
    assert "fn=tests.api.test_migrations.keeps_unvisited | tests.api.test_migrations.visit_pooled," in written
    assert "import tests.api.test_migrations" in imports
    with pytest.raises(InsideTransaction, match="RunPooled"):
        run_in_an_editor(step, "default", atomic=True)


def test_lookups_that_hold_a_historical_instance(history, pool):
    customers = make_customers(history, 3)
    orders = history.model("0001_initial", "Order")
    first = customers.order_by("pk").first()
    for customer in customers.all():
        orders.create(customer=orders.model._meta.apps.get_model("history", "Customer")(pk=customer.pk))
    wanted = orders.model._meta.apps.get_model("history", "Customer")(pk=first.pk)
    report = label_of.using(databases=(history.alias,)).map(orders.filter(customer=wanted))
    assert report.values == [first.pk]


@pooled_operation(progress=False)
def label_of(order):
    return order.customer_id


def test_function_may_take_a_row_and_the_apps():
    Thing.objects.create()
    run_in_an_editor(RunPooled(visit_by_apps, queryset="Thing", start_method="spawn"), "default", atomic=False)
    assert Thing.objects.get().visits == 7


def test_reverse_fn_runs_backwards_and_is_required_for_it():
    Thing.objects.create()
    assert not RunPooled(visit, queryset="Thing").reversible
    with pytest.raises(NotImplementedError, match="reverse_fn"):
        run_in_an_editor(RunPooled(visit, queryset="Thing"), "default", atomic=False, backwards=True)
    there_and_back = RunPooled(visit, queryset="Thing", reverse_fn=visit)
    assert there_and_back.reversible
    run_in_an_editor(there_and_back, "default", atomic=False, backwards=True)
    run_in_an_editor(
        RunPooled(visit, queryset="Thing", reverse_fn=RunPooled.noop), "default", atomic=False, backwards=True
    )
    assert Thing.objects.get().visits == 1


def things(apps):
    return apps.get_model("tests", "Thing").objects.all()


def test_run_pooled_can_be_written_into_a_migration():
    operation = RunPooled(visit, queryset=things, reverse_fn=RunPooled.noop, hints={"a": 1}, elidable=True, workers=3)
    name, args, kwargs = operation.deconstruct()
    assert (name, args) == ("RunPooled", [])
    again = RunPooled(**kwargs)
    assert again.deconstruct() == operation.deconstruct()
    assert RunPooled(visit, queryset="Thing").deconstruct()[2] == {"fn": visit, "queryset": "Thing"}
    written, imports = OperationWriter(operation).serialize()
    assert "poolsave.migrations.RunPooled(" in written
    assert "import poolsave.migrations" in imports
    scope = {}
    exec("\n".join(imports) + f"\nmade = {written.strip().rstrip(',')}", scope)
    assert scope["made"].deconstruct() == operation.deconstruct()


def test_run_pooled_describes_itself():
    assert RunPooled(visit, queryset="Thing").describe() == "Run visit over Thing in a pool"
    assert RunPooled(visit, queryset=things).describe() == "Run visit over things() in a pool"
    assert RunPooled(visit, queryset="Thing").migration_name_fragment == "run_visit"


def takes_nothing():
    return None


def takes_one(_one):
    return None


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"fn": visit, "queryset": "Thing", "wrokers": 2}, InvalidOption, "wrokers"),
        ({"fn": visit, "queryset": Thing.objects}, InvalidOperation, "neither a model's name"),
        ({"fn": takes_nothing, "queryset": "Thing"}, InvalidOperation, "takes 0 arguments"),
        ({"fn": 5, "queryset": "Thing"}, InvalidOperation, "not a function"),
        ({"fn": visit, "queryset": "Thing", "reverse_fn": takes_nothing}, InvalidOperation, "takes 0 arguments"),
    ],
)
def test_mistake_is_reported_when_the_migration_is_imported(arguments, error, told):
    with pytest.raises(error, match=told):
        RunPooled(**arguments)


def test_queryset_function_without_a_queryset_is_refused():
    with pytest.raises(InvalidOperation, match="no queryset"):
        run_in_an_editor(RunPooled(visit, queryset=takes_one), "default", atomic=False)


@pooled_operation(progress=False)
def name_of(row):
    return row.full_name


def test_historical_instance_outside_a_queryset_is_refused(history):
    """Pickle finds a model by its name only: the worker would see today's model."""
    customers = make_customers(history, 2)
    report = name_of.using(databases=(history.alias,), start_method="fork").map(list(customers))
    assert [outcome.status for outcome in report.failures] == [Status.FAILED] * 2
    assert "historical model" in str(report.failures[0].error)
    inside = name_of.using(databases=(history.alias,)).map([{"nested": customers.first()}])
    assert "historical model" in str(inside.failures[0].error)
    with concurrent_saves(databases=(history.alias,), on_failure="collect") as saves:
        saved = saves.save(customers.first())
        submitted = saves.submit(name_of, customers.first())
    for future in (saved, submitted):
        with pytest.raises(InvalidOperation, match="historical model"):
            future.result()


PROJECT = {
    **projects.MANAGE,
    "conf.py": """
        SECRET_KEY = "x"
        INSTALLED_APPS = ["shop"]
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
        USE_TZ = True
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
    """,
    "shop/__init__.py": "",
    "shop/models.py": """
        from django.db import models

        class Item(models.Model):
            price = models.IntegerField(default=0)
    """,
    "shop/tests.py": """
        from django.test import TestCase
        from shop.models import Item

        class ItemTests(TestCase):
            def test_that_migrations_have_run(self):
                self.assertEqual(set(Item.objects.values_list("price", flat=True)), {5})
    """,
    "shop/migrations/__init__.py": "",
    "shop/migrations/0001_initial.py": """
        from django.db import migrations, models

        def fill(apps, schema_editor):
            Item = apps.get_model("shop", "Item")
            Item.objects.bulk_create([Item() for _ in range(20)])

        class Migration(migrations.Migration):
            operations = [
                migrations.CreateModel("Item", [
                    ("id", models.BigAutoField(primary_key=True)),
                    ("price", models.IntegerField(default=0)),
                ]),
                migrations.RunPython(fill, migrations.RunPython.noop),
            ]
    """,
    "shop/migrations/0002_prices.py": """
        from django.db import migrations
        from poolsave.migrations import RunPooled

        def price(item):
            item.price = 5
            item.save()

        class Migration(migrations.Migration):
            atomic = False
            dependencies = [("shop", "0001_initial")]
            operations = [RunPooled(price, queryset="Item", reverse_fn=RunPooled.noop, timeout=30)]
    """,
}


@pytest.fixture
def project(tmp_path):
    projects.write(tmp_path, PROJECT)

    def manage(*arguments, status=0):
        environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=50,
        )
        assert done.returncode == status, done.stderr
        return done

    return manage


def test_migrate_shows_a_bar_unless_it_is_to_be_silent(project):
    shown = project("migrate", "-v1")
    assert "20 of 20 objects done" in shown.stderr
    assert "Applying shop.0002_prices... OK" in shown.stdout
    project("migrate", "shop", "0001", "-v0")
    silent = project("migrate", "-v0")
    assert (silent.stdout, silent.stderr) == ("", "")
    assert "Run price over Item in a pool" in project("migrate", "shop", "zero", "--plan").stdout


def test_migration_runs_inline_for_tests_on_sqlite_in_memory(project):
    assert "OK" in project("test").stderr


def test_run_pooled_can_be_squashed(project, tmp_path):
    """As with RunPython, functions are taken over by hand, and so is `atomic = False`, or else it is refused."""
    project("squashmigrations", "shop", "0001", "0002", "--noinput")
    (path,) = (tmp_path / "shop" / "migrations").glob("*squashed*.py")
    text = path.read_text()
    for name in ("0001_initial", "0002_prices"):
        text = text.replace(f"import shop.migrations.{name}\n", "")
        text = text.replace(f"shop.migrations.{name}.", f"import_module('shop.migrations.{name}').")
    path.write_text("from importlib import import_module\n" + text)
    assert "InsideTransaction" in project("migrate", status=1).stderr
    path.write_text(path.read_text().replace("replaces =", "atomic = False\n\n    replaces ="))
    (tmp_path / "db.sqlite3").unlink()
    assert "20 of 20 objects done" in project("migrate").stderr


def test_verbosity_does_not_outlive_its_migrate(history):
    """The verbosity of one `migrate` does not outlive it."""
    from poolsave import migrations as module

    out = io.StringIO()
    call_command("migrate", "history", "0001", database=history.alias, verbosity=2, stdout=out, stderr=out)
    assert module._verbosity == {}
