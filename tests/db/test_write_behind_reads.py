"""With `batch_writes`, a SELECT that cannot find a waiting row leaves it waiting; others find what they should."""

import uuid
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.db import connections, models
from django.db.models import Exists, F, OuterRef, Q
from django.test.utils import isolate_apps

from tests.models import Employee, Person, Tag, Thing, ThingByText, ThingByUuid
from tests.support.comparing import ALIAS, ALL, atomic, execute, run_both

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


def tags(**lookups):
    return Tag.objects.using(ALIAS).filter(**lookups)


def gets_or_creates(number):
    return Tag.objects.using(ALIAS).get_or_create(name=f"{number}")[1]


def validates(number):
    user = User(username=f"user{number}", password="!")
    user.full_clean()  # on the alias that the router names
    user.save(using=ALIAS)
    group, _created = Group.objects.using(ALIAS).get_or_create(name=f"group {number}")
    user.groups.add(group)


def asks_for_names(number):
    Tag(name=f"{number}").save(using=ALIAS)
    return (
        tags(name=f"not {number}").exists(),
        tags(name__in=[f"no {number}", "none"]).count(),
        tags(pk=-number).first(),
    )


def asks_beside_changes(thing):
    thing.group = 7
    thing.save()
    return Thing.objects.using(ALIAS).filter(pk=-1).exists()


def asks_for_others_keys(number):
    ThingByUuid.objects.using(ALIAS).create(visits=number)
    return ThingByUuid.objects.using(ALIAS).filter(pk=uuid.UUID(int=number)).exists()


@pytest.mark.parametrize("function", [gets_or_creates, validates, asks_for_names, asks_for_others_keys])
def test_a_look_for_what_is_not_there_sends_nothing(function, settings):
    settings.DATABASE_ROUTERS = ["tests.third_party.routers.OnPostgres"]
    batching = run_both(function, range(40), receivers=ALL)
    assert (batching.batched, batching.undone, batching.flushes) == (2, 0, 2), batching


def test_a_look_for_another_key_leaves_changes_waiting():
    def setup():
        Thing.objects.using(ALIAS).bulk_create([Thing(visits=number) for number in range(20)])

    batching = run_both(asks_beside_changes, Thing.objects.using(ALIAS).all, setup=setup)
    assert (batching.undone, batching.flushes) == (0, 1)


LOOKS = [
    lambda tag: tags(pk=tag.pk),
    lambda tag: tags(name=tag.name),
    lambda tag: tags(name__in=["x", tag.name]),
    lambda tag: tags(name__iexact=tag.name.upper()),
    lambda _tag: tags(name__gt="r"),
    lambda _tag: tags(name__in=Tag.objects.using(ALIAS).values("name")),
    lambda _tag: Tag.objects.using(ALIAS).filter(Q(name="x") | Q(name__contains="")),
    lambda tag: tags(name=tag.name) | tags(name="y") | tags(name="x"),
    lambda _tag: Tag.objects.using(ALIAS).exclude(name="x"),
    lambda _tag: tags(name=F("name")),
]


def found(number):
    """Whatever of these is true for a row that waits."""
    counts = []
    for index, look in enumerate(LOOKS):
        tag = Tag.objects.using(ALIAS).create(name=f"tag {number} {index}")
        counts.append(look(tag).count())
    return counts


def found_in_a_subquery(number):
    Tag(name=f"{number}").save(using=ALIAS)
    others = Tag.objects.using(ALIAS).exclude(pk=OuterRef("pk"))
    return tags(name="old").annotate(has_others=Exists(others)).get().has_others


def found_by_a_join(number):
    person = Person.objects.using(ALIAS).create(name=f"{number}")
    tag = Tag.objects.using(ALIAS).create(name=f"{number}")
    person.tags.add(tag)
    old = Person.objects.using(ALIAS).get(name="old")
    old.tags.add(tag)
    return old.tags.count(), Person.objects.using(ALIAS).filter(name="old", tags__name=tag.name).count()


with isolate_apps("tests"):

    class Child(models.Model):
        visits: Any = models.IntegerField()
        parent: Any = models.ForeignKey("self", models.DO_NOTHING, db_column="group", db_constraint=False)

        class Meta:
            app_label = "tests"
            managed = False
            db_table = "tests_thing"


def found_beside_its_child(number):
    children = Child.objects.using(ALIAS)
    parent = children.create(pk=-number - 1, visits=0, parent_id=0)
    child = children.create(visits=1, parent=parent)
    children.count()
    parent.visits = 2
    parent.save()
    return children.select_related("parent").get(pk=child.pk).parent.visits


def found_by_a_wrapper(number):
    """What a project puts around statements has statements of its own."""
    counts = []

    def count_first(execute, *arguments):
        with connections[ALIAS].connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM tests_tag")
            counts.append(cursor.fetchone()[0])
        return execute(*arguments)

    Tag(name=f"{number}").save(using=ALIAS)
    with connections[ALIAS].execute_wrapper(count_first):
        tags(name="none").exists()
    return counts[-1]  # that of sending comes before it


def found_in_a_parent(number):
    Employee(name=f"{number}", salary=number).save(using=ALIAS)
    return [Employee.objects.using(ALIAS).filter(salary=each).count() for each in (number, -1)]


def found_by_text(number):
    Tag(name=f"{number}").save(using=ALIAS)
    return (
        tags(name="old")
        .extra(where=["EXISTS (SELECT 1 FROM tests_tag t WHERE t.name = %s)"], params=[f"{number}"])
        .count()
    )


def found_after_a_block(number):
    Tag(name=f"kept {number}").save(using=ALIAS)
    before = tags(name="none").exists()
    try:
        with atomic():
            Tag(name=f"{number}").save(using=ALIAS)
            tags(name="none").exists()
            raise KeyError
    except KeyError:
        pass
    Tag(name=f"after {number}").save(using=ALIAS)
    return before, tags(name=f"{number}").count(), tags(name=f"after {number}").count(), tags(name="none").exists()


def found_by_what_was_changed(number):
    thing = Thing.objects.using(ALIAS).create(visits=-1)
    thing.visits = number + 1
    thing.save()
    things = Thing.objects.using(ALIAS)
    return [things.filter(visits=each).count() for each in (-1, number + 1, -2)]


def found_by_a_former_value(number):
    for thing in ThingByText.objects.using(ALIAS).filter(visits=number):
        thing.visits = -1
        thing.save()
    return ThingByText.objects.using(ALIAS).filter(visits=number).count()


def old_ones():
    old = Person.objects.using(ALIAS).create(name="old")
    old.tags.add(Tag.objects.using(ALIAS).create(name="old"))
    for number in range(8):
        ThingByText.objects.using(ALIAS).create(code=f"{number}", visits=number)


FINDING = [found, found_in_a_subquery, found_by_a_join, found_in_a_parent, found_by_text, found_after_a_block]
FINDING += [found_beside_its_child, found_by_a_wrapper, found_by_what_was_changed, found_by_a_former_value]


@pytest.mark.parametrize("function", FINDING)
def test_a_look_for_what_may_be_there_finds_it(function):
    assert run_both(function, range(8), setup=old_ones).undone == 0


def model_of(field):
    meta = type("Meta", (), {"app_label": "tests", "managed": False, "db_table": "looked_at"})
    members: dict[str, Any] = {"__module__": __name__, "Meta": meta, "value": field}
    with isolate_apps("tests"):
        return type("LookedAt", (models.Model,), members)


COLUMNS = {
    "char(5)": ("char(5)", models.TextField(), "ab", "ab  "),
    "varchar(3)": ("varchar(3)", models.TextField(), "ab    ", "ab "),
    "numbers as text": ("numeric", models.TextField(), "1.50", "1.5"),
    "a domain of numbers": ("few", models.TextField(), "1.50", "1.5"),
    "numeric": ("numeric(6,2)", models.DecimalField(max_digits=6, decimal_places=2), "1.5", "1.50"),
    "float": ("real", models.FloatField(), 0.1, 0.1),
    "text in integer": ("text", models.IntegerField(), 7, 7),
}


@pytest.mark.parametrize("column", COLUMNS)
def test_values_that_only_the_server_calls_equal_are_found(column):
    kind, field, value, equal = COLUMNS[column]
    execute("CREATE DOMAIN few AS numeric")
    execute(f"CREATE TABLE looked_at (id serial PRIMARY KEY, value {kind})")
    model = model_of(field)

    def save_and_look(_number):
        model(value=value).save(using=ALIAS)
        return model.objects.using(ALIAS).filter(value=equal).count()

    try:
        run_both(save_and_look, range(4), setup=lambda: execute("DELETE FROM looked_at"))
    finally:
        execute("DROP TABLE looked_at; DROP DOMAIN few")


def test_a_value_that_the_table_gives_is_found():
    execute("CREATE TABLE looked_at (id serial PRIMARY KEY, value text DEFAULT 'given', other text)")
    writing, reading = model_of(models.TextField(db_column="other")), model_of(models.TextField())

    def save_and_look(_number):
        writing(value="x").save(using=ALIAS)
        return reading.objects.using(ALIAS).filter(value="given").count()

    try:
        run_both(save_and_look, range(4), setup=lambda: execute("DELETE FROM looked_at"))
    finally:
        execute("DROP TABLE looked_at")
