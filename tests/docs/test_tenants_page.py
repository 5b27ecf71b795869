"""The how-to page's carrier for django-tenants: what is mapped inside of a tenant is read and saved in that tenant."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from django.db import connections

from tests.models import Tag
from tests.support import tenants
from tests.support.operations import saving

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "tenants.md").read_text()


@saving
def create(name):
    if name == "fails":
        raise ValueError(name)
    return Tag.objects.using("tenants").create(name=name).pk


@saving
def rename(tag):
    tag.name += " renamed"
    tag.save()


@pytest.fixture
def schemas(transactional_db):
    with connections["postgres"].cursor() as cursor:
        cursor.execute("CREATE SCHEMA tenant; CREATE TABLE tenant.tests_tag (LIKE public.tests_tag INCLUDING ALL)")
    yield
    with connections["postgres"].cursor() as cursor:
        cursor.execute("DROP SCHEMA tenant CASCADE")


@pytest.fixture
def tenant(monkeypatch):
    """The class as the page shows it, with a stand-in for the package."""
    monkeypatch.setitem(sys.modules, "django_tenants", ModuleType("django_tenants"))
    monkeypatch.setitem(sys.modules, "django_tenants.utils", tenants)
    (block,) = [one for one in re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL) if "schema_context" in one]
    names = {"create_user": saving(len), "connection": None}
    exec(block, names)
    names["connection"] = connections["tenants"]
    return names["Tenant"]()


def tags(schema):
    with connections["postgres"].cursor() as cursor:
        cursor.execute(f"SELECT name FROM {schema}.tests_tag ORDER BY name")
        return [name for (name,) in cursor.fetchall()]


@pytest.mark.parametrize("transaction", ["object", "chunk"])
@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_tenants_rows_are_its_own(schemas, tenant, transaction, executor):
    options = {"executor": executor, "databases": ("tenants",), "transaction": transaction, "chunksize": 3}
    for schema in ("public", "tenant"):
        with tenants.schema_context(schema):
            Tag.objects.using("tenants").create(pk=10**6, name=f"of {schema}")
    with tenants.schema_context("tenant"):
        created = create.using(**options, carry=[tenant]).map(["a", "fails", "b", "c"])
        renamed = rename.using(**options, carry=[tenant]).map(Tag.objects.using("tenants"))
    assert (created.succeeded, renamed.succeeded) == (3, 4)
    assert tags("public") == ["of public"]
    assert tags("tenant") == ["a renamed", "b renamed", "c renamed", "of tenant renamed"]
