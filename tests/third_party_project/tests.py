"""Each function leaves by pools what it leaves by a loop.

TEST_DATABASE='{"ENGINE": ...}' DJANGO_SETTINGS_MODULE=tests.third_party_project.settings \
    python -m django test tests.third_party_project
"""

import re
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import skipUnless

import reversion
from auditlog.context import set_actor
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management.color import no_style
from django.db import DatabaseError, connection, transaction
from django.test import SimpleTestCase
from reversion.models import Revision

from poolsave import pooled_operation
from tests.third_party_project import records, trees
from tests.third_party_project.work import OBJECTS

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "tenants.md"
WORKS = {**records.WORKS, **trees.WORKS}

if settings.ON_POSTGRES:
    import pghistory
    from pghistory.runtime import _tracker

    from tests.third_party_project import events

    WORKS |= events.WORKS


class ThirdPartyApps(SimpleTestCase):
    """Not in a transaction, which workers could not see."""

    databases = {"default"}

    def test_tables_are_those_of_a_loop(self):
        for name, work in WORKS.items():
            wanted = run(work, by_a_loop)
            self.assertEqual({table: len(rows) for table, rows in wanted[2].items()}, work.rows, name)
            for mode, way in WAYS.items():
                with self.subTest(name, mode=mode):
                    self.assertEqual(run(work, way), wanted)

    @skipUnless(settings.ON_POSTGRES, "the page uses django-pghistory, too")
    def test_the_code_of_the_page_about_context_runs(self):
        empty_tables()
        keys = [User.objects.create(username=name).pk for name in ("ann", "bob", "eve")]
        page = sys.modules["page"] = ModuleType("page")
        vars(page).update(pooled_operation=pooled_operation, User=User, created=SimpleNamespace(values=keys))
        for code in re.findall(r"```py\n(.*?)```", PAGE.read_text().partition("## Audit rows")[2], re.DOTALL):
            exec(code, vars(page))
        self.assertEqual(list(Revision.objects.values_list("user__username", flat=True)), 3 * ["ann"])
        self.assertFalse(User.objects.filter(is_active=True).exists())


def run(work, way):
    """Do it on empty tables, and give what came of the objects, and all rows."""
    empty_tables()
    work.prepare()
    return *way(work), work.tables()


def empty_tables():
    tables = set(connection.introspection.django_table_names(only_existing=True, include_views=False))
    filled_by_migrate = {"django_content_type", "auth_permission"}
    connection.ops.execute_sql_flush(connection.ops.sql_flush(no_style(), sorted(tables - filled_by_migrate)))


def by_a_loop(work):
    values, failed = [], set()
    for number in OBJECTS:
        try:
            with transaction.atomic():
                values.append(work.operation(number))
        except (DatabaseError, LookupError):
            failed.add(number)
    return values, failed


def by_a_pool(work, **options):
    report = work.operation.using(workers=2, chunksize=4, **options).map(OBJECTS)
    batching = report.statistics.batching
    assert batching is None or batching.batched >= 1, report
    return report.values, {failure.item for failure in report.failures}


def by_a_pool_in_contexts(work, **options):
    """With an actor, a revision and a context of history around the run, which no worker joins."""
    with ExitStack() as opened:
        opened.enter_context(set_actor(User(username="caller")))
        opened.enter_context(reversion.create_revision(atomic=False))
        if not settings.ON_POSTGRES:
            return by_a_pool(work, **options)
        opened.enter_context(pghistory.context(actor="caller"))
        return by_a_pool(work, **options, after_fork=forget_history)


def forget_history():
    """A forked worker has the caller's threading.local, whose context would keep it from opening one of its own."""
    vars(_tracker).clear()


WAYS = {
    'transaction="object"': partial(by_a_pool, transaction="object"),
    'transaction="chunk", in contexts of the caller': partial(by_a_pool_in_contexts, transaction="chunk"),
}
if settings.ON_POSTGRES:
    WAYS["batch_writes=True"] = partial(by_a_pool, transaction="chunk", batch_writes=True)
