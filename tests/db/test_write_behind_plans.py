"""With `batch_writes`, a load into tables that were empty does not read them once for each of its rows."""

import pytest
from django.db import connections

from tests.models import Employee
from tests.support.comparing import ALIAS, empty, execute, run

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
OBJECTS = 3_000


def hires(number):
    """The row of the employee has a foreign key to that of the person."""
    Employee(name=f"{number}").save(using=ALIAS)


def test_checks_of_foreign_keys_do_not_read_whole_tables():
    empty()
    execute("VACUUM ANALYZE tests_person")  # only now the server knows that it is empty
    connections[ALIAS].close()  # sessions count what they have read at their end
    before = rows_read()
    run(hires, range(OBJECTS), batch_writes=True, chunksize=50)
    all_rows_before_each = OBJECTS**2 / 2
    assert rows_read() - before < all_rows_before_each / 3


def rows_read():
    [(count,)] = execute("SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'tests_person'")
    return count
