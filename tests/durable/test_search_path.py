"""Where the function sets a search_path or a role, the ledger's row is written, or the run says why not."""

import pytest
from django.db import connections
from django.db.models import F

from poolsave import InvalidOperation, Run, pooled_operation
from tests.models import Thing
from tests.support.durable import ledger, make_things, visited

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@pooled_operation(progress=False, workers=2, start_method="fork", databases=("postgres",), chunksize=4)
def sets(row, statement=""):
    """Leaves the transaction with another search_path or role."""
    with connections["postgres"].cursor() as cursor:
        cursor.execute("SET LOCAL search_path TO public; SET LOCAL ROLE NONE")  # after an object of the same chunk
    failing = row.group == 5
    Thing.objects.using("postgres").filter(pk=row.pk).update(visits=F("visits") + 1)
    with connections["postgres"].cursor() as cursor:
        cursor.execute(statement)
    if failing:
        raise ValueError("not this one")


@pytest.mark.parametrize("mode", ["chunk", "object"])
def test_search_path_of_the_function_hides_no_ledger(mode):
    rows = make_things("postgres", 12)
    rows.filter(pk=11).update(group=5)
    operation = sets.using(transaction=mode).bind(statement="SET LOCAL search_path TO elsewhere")
    report = operation.map(rows.filter(pk__gt=0), run="paths")
    assert (report.succeeded, report.failed, report.run.status) == (11, 1, "finished with failures")
    assert [each.key for each in ledger("postgres", "paths")[2]] == ["11"]
    rows.update(group=0)
    again = operation.map(rows.filter(pk__gt=0), run=Run("paths", retry={}))
    assert (again.succeeded, again.run.status) == (1, "finished")
    assert visited("postgres") == dict.fromkeys(range(1, 13), 1)


@pytest.mark.parametrize("mode", ["chunk", "object"])
def test_role_without_rights_on_the_ledger_ends_the_run(mode):
    rows = make_things("postgres", 12)
    operation = sets.using(transaction=mode).bind(statement="SET LOCAL ROLE pg_monitor")  # each server has that role
    with pytest.raises(InvalidOperation, match=r"could not be written .* permission denied .*; grant the role"):
        operation.map(rows, run="roles")
    run, ranges, failures = ledger("postgres", "roles")
    assert (run.status, run.stop_code, ranges, failures) == ("paused", "error", [], [])
    assert sum(visited("postgres").values()) == 0
