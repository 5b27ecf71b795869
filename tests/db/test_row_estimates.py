"""The rows of a small queryset are counted; of a large one the server's estimate is taken, which costs no scan."""

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext

from poolsave._db import inspection
from tests.models import Thing

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


def analyze(rows):
    """Let the server count the rows of its table."""
    connection = connections[rows.db]
    table = rows.model._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE {table}" if connection.vendor == "postgresql" else f"ANALYZE TABLE {table}")
        cursor.fetchall() if cursor.description else None


def test_the_total_of_a_large_table_is_estimated(server, monkeypatch):
    monkeypatch.setattr(inspection, "MAX_COUNTED", 10)
    rows = Thing.objects.using(server)
    rows.bulk_create(Thing(pk=3 * number + 1, group=number % 3) for number in range(500))
    analyze(rows)
    with CaptureQueriesContext(connections[server]) as queries:
        assert 400 <= inspection.count_or_estimate(rows.all()) <= 600
    for query in queries:
        assert "COUNT" not in query["sql"] or "LIMIT 11" in query["sql"]
    assert inspection.count_or_estimate(rows.filter(pk__lte=4)) == 2  # few enough to be counted
    # A locked queryset is not locked for it, which outside of a transaction would be refused.
    assert 400 <= inspection.count_or_estimate(rows.select_for_update()) <= 600
    filtered = inspection.count_or_estimate(rows.filter(group=1))
    assert filtered is None if connections[server].vendor == "mysql" else 100 <= filtered <= 300
