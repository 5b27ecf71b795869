"""What well-known apps write beside an object is the same from a pool as from a loop: history, parents, permissions."""

import datetime as dt
import importlib.util
import os

import pytest
from django.apps import apps
from django.conf import settings as project
from django.contrib.auth.management import create_permissions
from django.contrib.auth.models import Group, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.db import IntegrityError, connections, models, transaction

from poolsave import concurrent_saves, pooled_operation

if not apps.is_installed("tests.third_party"):
    missing = [name for name in project.THIRD_PARTY if not importlib.util.find_spec(name)]
    if os.environ.get("CI"):
        raise RuntimeError(f"these are test dependencies, but not installed: {', '.join(missing)}")
    pytest.skip(f"not installed: {', '.join(missing)}", allow_module_level=True)

from guardian.models import GroupObjectPermission, UserObjectPermission
from guardian.shortcuts import assign_perm, get_objects_for_user, remove_perm

from tests.third_party.models import Article, Shape, Square, Strip

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

HistoricalArticle = Article.history.model
COUNT = 20
TAKEN = "taken"
WRITTEN = [UserObjectPermission, GroupObjectPermission, HistoricalArticle, Article, Square, Strip, Shape]
NAMES = {
    Article: "title",
    Shape: "name",
    User: "username",
    Group: "name",
    Permission: "codename",
    ContentType: "model",
}
"""What identifies a row of a table that others point to, whatever its key."""
KEYS_WITHOUT_A_CONSTRAINT = {
    "historicalarticle.id": Article,
    "userobjectpermission.object_pk": Article,
    "groupobjectpermission.object_pk": Article,
}


@pytest.fixture(autouse=True)
def _as_a_project_has_it(transactional_db, alias, settings):
    """These apps name no database in their queries, so a router chooses it, and they need what `migrate` fills."""
    settings.AUTHENTICATION_BACKENDS = [
        "django.contrib.auth.backends.ModelBackend",
        "guardian.backends.ObjectPermissionBackend",
    ]
    if alias != "default":
        settings.DATABASE_ROUTERS = [f"tests.third_party.routers.On{alias.capitalize()}"]
    create_permissions(apps.get_app_config("third_party"), verbosity=0, using=alias)
    yield
    ContentType.objects.clear_cache()


@pytest.fixture(params=["object", "chunk"])
def pool(request, alias):
    return {"start_method": "fork", "transaction": request.param, "databases": (alias,), "workers": 2, "chunksize": 3}


@pytest.fixture
def fresh_pool(alias):
    return {"start_method": "spawn", "transaction": "chunk", "databases": (alias,), "workers": 2, "chunksize": 3}


def all_tables(alias):
    """Every row of the whole database, with names for keys and without the times, in an order that both ways share."""
    every = {model._meta.label: table(model, alias) for model in apps.get_models(include_auto_created=True)}
    return {label: rows for label, rows in every.items() if rows}


def table(model, alias):
    rows = models.QuerySet(model, using=alias)  # not the managers of these apps, which would have a say in it
    fields = [field for field in model._meta.local_concrete_fields if not isinstance(field, models.AutoField)]
    found = [
        {field.attname: cell(field, getattr(row, field.attname), alias) for field in fields}
        for row in rows.order_by("pk")
    ]
    # What happened to one article stays in the order in which it happened.
    return sorted(found, key=(lambda row: row["title"]) if model is HistoricalArticle else repr)


def cell(field, value, alias):
    if isinstance(value, dt.datetime):
        return "a time"
    target = KEYS_WITHOUT_A_CONSTRAINT.get(f"{field.model._meta.model_name}.{field.attname}", field.related_model)
    if value is None or target is None:
        return value
    return name_of(target, value, alias)


def name_of(model, key, alias):
    names = models.QuerySet(model, using=alias).values_list(NAMES[model], flat=True)
    return next(iter(names.filter(pk=key)), "gone")


def compare(operation, pool, prepare, objects):
    """Do the same by a loop and by the pool; gives the report, and the tables that both have left."""
    alias = pool["databases"][0]
    values, failed = [], 0
    prepare()
    for one in objects():
        try:
            with transaction.atomic(using=alias):
                values.append(operation(one))
        except (IntegrityError, LookupError):
            failed += 1
    wanted = all_tables(alias)
    empty(alias)
    prepare()
    report = operation.using(**pool).map(objects())
    assert all_tables(alias) == wanted
    assert (report.values, report.failed) == (values, failed)
    assert report.total == report.succeeded + report.failed
    return report, wanted


def empty(alias):
    with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
        for model in WRITTEN:
            cursor.execute(f"DELETE FROM {model._meta.db_table}")


def numbers():
    return range(COUNT)


def people_and_a_taken_title():
    User.objects.get_or_create(username="author")
    Group.objects.get_or_create(name="editors")
    Article.objects.create(title=TAKEN)


@pooled_operation(progress=False)
def publish(number):
    """Write two or three rows of history, and fail with the second save of every sixth article."""
    article = Article(title=f"title {number}")
    article._history_user = User.objects.get(username="author")  # there is no request that would know it
    article._change_reason = f"reason {number}"
    article.save()
    article.title = TAKEN if number % 6 == 5 else f"new title {number}"
    article.save()
    if number % 4 == 0:
        article.delete()
    return HistoricalArticle.objects.filter(history_change_reason=f"reason {number}").count()


def test_simple_history(pool):
    report, tables = compare(publish, pool, people_and_a_taken_title, numbers)
    assert [failure.item for failure in report.failures] == [5, 11, 17]
    rows = [row for row in tables["third_party.HistoricalArticle"] if row["history_user_id"] == "author"]
    kinds = [row["history_type"] for row in rows]
    assert (kinds.count("+"), kinds.count("~"), kinds.count("-")) == (17, 17, 5)


def fifteen_articles():
    people_and_a_taken_title()
    for number in range(15):
        Article.objects.create(title=f"title {number}")


@pooled_operation(progress=False)
def write_text(article):
    article.text = article.title.upper()
    article.save()
    return article.history.count()


def test_simple_history_over_a_queryset(pool):
    report, _tables = compare(write_text, pool, fifteen_articles, lambda: Article.objects.order_by("pk"))
    assert report.values == [2] * 16


def test_simple_history_of_objects_that_a_block_saves(pool):
    """The user goes to the worker as an attribute of the instance."""
    people_and_a_taken_title()
    author = User.objects.get(username="author")
    options = {name: value for name, value in pool.items() if name != "chunksize"}
    with concurrent_saves(**options, progress=False) as saves:
        articles = [Article(title=f"title {number}") for number in range(COUNT)]
        for article in articles:
            article._history_user = author
            saves.save(article)
    assert [article.history.get().history_user for article in articles] == [author] * COUNT
    assert [article.history.get().title for article in articles] == [f"title {number}" for number in range(COUNT)]


@pooled_operation(progress=False)
def draw(number):
    """Write a parent and one of two children, and fail with a child whose parent is written."""
    shape = Square(name=f"shape {number}", side=number) if number % 2 else Strip(name=f"shape {number}", length=number)
    shape.save()
    if number % 6 == 5:
        raise LookupError(number)
    return type(Shape.objects.get(pk=shape.pk)).__name__


def test_polymorphic_children_are_saved_as_in_a_loop(pool):
    report, tables = compare(draw, pool, people_and_a_taken_title, numbers)
    assert report.failed == 3
    assert [row["polymorphic_ctype_id"] for row in tables["third_party.Shape"]].count("strip") == 10
    assert len(tables["third_party.Square"]) == 7


def shapes():
    for number in range(COUNT):
        draw.func(number) if number % 6 != 5 else Shape.objects.create(name=f"shape {number}")


@pooled_operation(progress=False)
def grow(shape):
    """Let each child's own save() compute the area."""
    if isinstance(shape, Square):
        shape.side += 1
    elif isinstance(shape, Strip):
        shape.length += 1
    else:
        raise LookupError(shape.pk)
    shape.save()
    return type(shape).__name__, shape.area


def test_polymorphic_queryset_gives_instances_of_the_children(pool):
    report, tables = compare(grow, pool, shapes, lambda: Shape.objects.order_by("pk"))
    assert report.values[:3] == [("Strip", 1), ("Square", 4), ("Strip", 3)]
    assert report.failed == 3
    assert sum(row["area"] for row in tables["third_party.Shape"]) == sum(area for _kind, area in report.values)


QUERYSETS = {
    "of one child": lambda: Square.objects.order_by("pk"),
    "instance_of": lambda: Shape.objects.instance_of(Square).order_by("pk"),
    "by a child's column": lambda: Shape.objects.filter(Square___side__gte=3).order_by("pk"),
}


@pytest.mark.parametrize("queryset", QUERYSETS)
def test_polymorphic_querysets_with_filters(pool, queryset):
    report, _tables = compare(grow, pool, shapes, QUERYSETS[queryset])
    assert report.ok
    assert {kind for kind, _area in report.values} == {"Square"}


@pooled_operation(progress=False)
def kind_of(shape):
    return type(shape).__name__


def test_a_queryset_that_is_to_give_parents_gives_parents(pool):
    shapes()
    assert set(kind_of.using(**pool).map(Shape.objects.non_polymorphic()).values) == {"Shape"}


@pooled_operation(progress=False)
def share(number):
    """Give permissions for an object to a user and a group, take some back, and fail with some after that."""
    author, editors = User.objects.get(username="author"), Group.objects.get(name="editors")
    article = Article.objects.create(title=f"title {number}")
    assign_perm("view_article", author, article)
    assign_perm("change_article", editors, article)
    if number % 3 == 0:
        remove_perm("view_article", author, article)
    if number % 6 == 5:
        raise LookupError(number)
    seen = get_objects_for_user(author, "third_party.view_article")
    return author.has_perm("view_article", article), author.has_perm("change_article", article), article in seen


def test_guardian(pool):
    report, tables = compare(share, pool, people_and_a_taken_title, numbers)
    assert report.failed == 3
    assert report.values[:3] == [(False, False, False), (True, False, True), (True, False, True)]
    assert len(tables["guardian.UserObjectPermission"]) == 10
    assert len(tables["guardian.GroupObjectPermission"]) == 17


WORKS = {
    "history": (publish, people_and_a_taken_title, numbers),
    "history of a queryset": (write_text, fifteen_articles, lambda: Article.objects.order_by("pk")),
    "parents": (draw, people_and_a_taken_title, numbers),
    "parents of a queryset": (grow, shapes, lambda: Shape.objects.order_by("pk")),
    "permissions": (share, people_and_a_taken_title, numbers),
}


@pytest.mark.parametrize("alias", ["postgres"])
@pytest.mark.parametrize("work", WORKS)
def test_batch_writes_leave_what_a_loop_leaves(alias, work):
    pool = {"start_method": "fork", "transaction": "chunk", "databases": (alias,), "workers": 2, "chunksize": 7}
    report, _tables = compare(WORKS[work][0], {**pool, "batch_writes": True}, *WORKS[work][1:])
    assert report.statistics.batching.batched + report.statistics.batching.undone > 0


@pytest.mark.programs
def test_third_party_apps_work_in_fresh_processes(fresh_pool):
    """Which have the settings that the test overrides, with its router."""
    for operation, prepare, objects in (
        (publish, people_and_a_taken_title, numbers),
        (grow, shapes, lambda: Shape.objects.order_by("pk")),
        (share, people_and_a_taken_title, numbers),
    ):
        report, _tables = compare(operation, fresh_pool, prepare, objects)
        assert report.failed == 3
        empty(fresh_pool["databases"][0])
