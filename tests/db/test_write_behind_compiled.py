"""With `batch_writes`, a query that equals one of an earlier object is not compiled again; any other one is."""

import copy
import random
from contextvars import ContextVar
from functools import partial

import pytest
from django.db import models
from django.db.models import F, Prefetch, Q
from django.db.models.functions import Lower
from django.db.models.sql import compiler
from django.db.models.sql.constants import SINGLE
from django.db.models.sql.datastructures import BaseTable
from django.test.utils import isolate_apps

from tests.models import Person, Tag, Thing, ThingOfGroupOne
from tests.support.comparing import ALIAS, run, run_both

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


def setup():
    people = Person.objects.using(ALIAS).bulk_create([Person(name=name) for name in "ab"])
    Tag.objects.using(ALIAS).bulk_create([Tag(name=name) for name in ("a", "b", "c", "1", "B")])
    things = [Thing(visits=visits, group=visits % 2, owner=people[visits % 2]) for visits in range(4)]
    Thing.objects.using(ALIAS).bulk_create(things)


@pytest.fixture
def compiled(monkeypatch):
    """Give the list of tables for which Django composes the FROM of a SELECT."""
    tables = []
    as_sql = BaseTable.as_sql

    def noting(self, *args, **kwargs):
        tables.append(self.table_name)
        return as_sql(self, *args, **kwargs)

    monkeypatch.setattr(BaseTable, "as_sql", noting)
    return tables


def gets_a_tag(number):
    return Tag.objects.using(ALIAS).get(name="ab"[number % 2]).name


def test_an_equal_query_is_compiled_once_per_chunk(compiled):
    batching = run(gets_a_tag, range(60), setup=setup, batch_writes=True).batching
    assert compiled == ["tests_tag"] * 3 * 2
    assert (batching.undone, batching.spared) == (0, 60 - 2 * 3 * 2)


def test_the_first_by_a_column_is_compiled_once(compiled):
    def finds_the_first(_number):
        return Thing.objects.using(ALIAS).filter(group=1).first().visits

    run_both(finds_the_first, range(20), setup=setup)
    assert compiled == ["tests_thing"] * (20 + 1)


def tags(**lookups):
    return Tag.objects.using(ALIAS).filter(**lookups)


def things(model=Thing, **lookups):
    return model.objects.using(ALIAS).filter(**lookups)


def of_group(query):
    return query.filter(group=1)


QUERIES = [
    lambda: tags(name="a").get(),
    lambda: tags(name="b").get(),
    lambda: tags(name="B").get(),
    lambda: tags(name="a"),
    lambda: tags(name="a").query.get_compiler(ALIAS).execute_sql(SINGLE)[1:],
    lambda: tags(name__iexact="B").order_by("name"),
    lambda: tags(name__contains="b"),
    lambda: tags(name=1).get(),
    lambda: tags(name="1").get(),
    lambda: tags(name__in=["a"]).get(),
    lambda: tags(name__gt="b").order_by("name").first(),
    lambda: tags(name="nothing").first(),
    lambda: tags(name="a").only("id").get(),
    lambda: tags(name="a").defer("id").get(),
    lambda: tags(name="a").annotate(low=Lower("name")).get(),
    lambda: tags(name="a").extra(select={"low": "lower(name)"}).get(),
    lambda: tags(name="a").extra(where=["name = 'b'"]),
    lambda: tags(name="a").values("name").get(),
    lambda: tags(name="a").values_list("name").get(),
    lambda: tags(name="a").none(),
    lambda: tags(name="a").exclude(name="a"),
    lambda: tags(name="a").union(tags(name="c")).order_by("name"),
    lambda: Tag.objects.using(ALIAS).filter(Q(name="a") | Q(name="b")).order_by("name"),
    lambda: Tag.objects.using(ALIAS).filter(~Q(name="a")).order_by("name"),
    lambda: Tag.objects.using(ALIAS).filter(Q(name="a"), name="b"),
    lambda: (tags(name="a") & tags(name="b")).order_by("name"),
    lambda: (tags(name="a") | tags(name="b")).order_by("name"),
    lambda: of_group(things()).order_by("visits"),
    lambda: of_group(things()).order_by("-visits"),
    lambda: of_group(things()).order_by("visits").reverse(),
    lambda: of_group(things()).order_by("visits")[:1],
    lambda: of_group(things()).order_by("visits")[1:],
    lambda: of_group(things()).order_by("visits")[1:2],
    lambda: of_group(things()).order_by("-visits").first(),
    lambda: of_group(things()).order_by("visits").last(),
    lambda: of_group(things()).order_by("group").distinct("group").order_by("group", "visits"),
    lambda: of_group(things()).select_related("owner").order_by("visits"),
    lambda: of_group(things()).select_for_update().order_by("visits"),
    lambda: of_group(things()).prefetch_related(Prefetch("tags", Tag.objects.using(ALIAS))).order_by("visits"),
    lambda: of_group(things(ThingOfGroupOne)),
    lambda: of_group(things(ThingOfGroupOne)).order_by(),
    lambda: of_group(things(ThingOfGroupOne)).first(),
    lambda: things(visits=1).get(),
    lambda: things(ThingOfGroupOne, visits=1).get(),
    lambda: things(visits=1, group=1).get(),
    lambda: things(visits=1, group=0),
    lambda: things(visits=1).filter(group=1).get(),
    lambda: things(owner__name="a").order_by("visits"),
    lambda: things(owner__name="b").order_by("owner__name", "visits"),
    lambda: things(owner=Person.objects.using(ALIAS).get(name="a")).order_by("visits"),
    lambda: things(owner=Person.objects.using(ALIAS).get(name="b").pk).order_by("visits"),
    lambda: of_group(things()).order_by("owner__name", "visits"),
    lambda: things(owner=None),
    lambda: things(visits=True).get(),
]


def described(found):
    """Say all that can be seen of the rows, without their keys."""
    if isinstance(found, (dict, tuple)) or found is None:
        return repr(found)
    if not hasattr(found, "_meta"):
        return [described(each) for each in found]
    shown = {
        name: value
        for name, value in vars(found).items()
        if name not in ("id", "owner_id", "_state", "_prefetched_objects_cache")
    }
    owner = found._state.fields_cache.get("owner")
    deferred = sorted(found.get_deferred_fields())
    return type(found).__name__, shown, deferred, found._state.db, getattr(owner, "name", None)


@pytest.mark.parametrize("seed", range(3))
def test_each_query_is_answered_as_without(seed):
    chosen = random.Random(seed).choices(QUERIES, k=200 * 3)

    def asks_some(number):
        return [described(query()) for query in {*chosen[3 * number :][:3]}]

    assert run_both(asks_some, range(200), setup=setup, chunksize=100).spared > 0


factor = ContextVar("factor")
"""What a field or an order of a project's own may depend on."""


def by_factor(query, **lookups):
    """Give a function that asks for things, in one of four contexts."""

    def asks(number):
        token = factor.set(number % 4 - 1)
        try:
            found = query.objects.using(ALIAS).filter(**lookups or {("visits", "group")[number % 2]: 1}).first()
            return found.visits, found.group
        finally:
            factor.reset(token)

    return asks


class OfThings:
    app_label, db_table, managed = "tests", "tests_thing", False


class Selected(models.IntegerField):
    def select_format(self, compiler, sql, params):
        return f"{sql} + %s", [*params, factor.get()]


class Converted(models.IntegerField):
    def get_db_converters(self, connection):
        added = factor.get()
        return [lambda value, *_rest: value + added]


@isolate_apps("tests")
@pytest.mark.parametrize("kind", [Selected, Converted])
def test_a_field_is_read_in_its_own_way_each_time(kind):
    class Custom(models.Model):
        visits = kind()
        group = models.IntegerField()
        Meta = type("Meta", (OfThings,), {})

    run_both(by_factor(Custom, group=1), range(40), setup=setup)


@isolate_apps("tests")
def test_an_order_by_an_expression_is_composed_each_time():
    class ByFactor(F):
        def resolve_expression(self, *args, **kwargs):
            return (F("visits") * factor.get()).resolve_expression(*args, **kwargs)

    class Ordered(models.Model):
        visits = models.IntegerField()
        group = models.IntegerField()
        Meta = type("Meta", (OfThings,), {"ordering": [ByFactor("visits"), "visits"]})

    run_both(by_factor(Ordered, group=1), range(40), setup=setup)


@isolate_apps("tests")
def test_copies_of_a_field_are_told_apart():
    """By the way of those who add a field per language. Django takes such copies for equal."""

    class Copied(models.Model):
        visits = models.IntegerField()
        group = copy.copy(visits)
        Meta = type("Meta", (OfThings,), {"ordering": ["-visits"]})

    run_both(by_factor(Copied), range(40), setup=setup)


tenant = ContextVar("tenant")


class Proxy:
    """Looks like the method that it wraps, by the way of monitoring libraries."""

    def __init__(self, method):
        self.method, self.__code__ = method, compiler.SQLCompiler.get_select.__code__

    def __get__(self, instance, owner):
        return self if instance is None else partial(self.method, instance)

    def __call__(self, *args, **kwargs):
        return self.method(*args, **kwargs)


@pytest.mark.parametrize("wrapped", [lambda method: method, Proxy])
@pytest.mark.parametrize("name", ["as_sql", "get_from_clause"])
def test_a_compiler_that_adds_a_condition_is_asked(monkeypatch, name, wrapped):
    """By the way of those who keep the rows of tenants apart."""
    ordinary = getattr(compiler.SQLCompiler, name)

    def of_the_tenant(self, *args, **kwargs):
        result, params = ordinary(self, *args, **kwargs)
        if name == "as_sql" and "WHERE" in result:
            result = result.replace("WHERE", f"WHERE visits = {tenant.get()} AND")
        elif name == "get_from_clause":
            result = [f'(SELECT * FROM tests_thing WHERE visits = {tenant.get()}) "tests_thing"']
        return result, params

    monkeypatch.setattr(compiler.SQLCompiler, name, wrapped(of_the_tenant))

    def reads_as_a_tenant(number):
        token = tenant.set(number % 4)
        try:
            return [thing.visits for thing in things(group=number % 2)]
        finally:
            tenant.reset(token)

    run_both(reads_as_a_tenant, range(40), setup=setup)
