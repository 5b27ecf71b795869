"""Fresh processes write to the test database, although the settings file names the real one."""

import sqlite3
from contextlib import closing

import pytest
from django.conf import settings as django_settings
from django.db import connections

from tests import settings
from tests.models import Person
from tests.support import operations

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


def test_workers_use_the_test_database(pool, alias):
    found = operations.database_name.using(**pool, databases=(alias,)).bind(alias=alias).map(range(4)).values
    assert set(found) == {str(connections[alias].settings_dict["NAME"])}
    assert all("test_" in name for name in found)


def test_nothing_is_written_to_the_real_database(start_method):
    operations.save_person.using(start_method=start_method).map(["a", "b"]).raise_if_failed()
    assert Person.objects.count() == 2
    with closing(sqlite3.connect(f"{settings.FOLDER}/real_default.sqlite3")) as real:
        assert real.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def test_overridden_settings_reach_fresh_workers(settings, start_method):
    settings.GREETING = "hello"
    assert operations.greeting.using(start_method=start_method).map([1]).values == ["hello"]
    assert django_settings.GREETING == "hello"
