"""With `batch_writes`, rows that meet by a key, a unique column or a conflict end as they would one after the other."""

from typing import Any

import pytest
from django.db import models
from django.test.utils import isolate_apps

from tests.models import Person, Tag, ThingByText
from tests.support.comparing import ALIAS, execute, run_both

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

with isolate_apps("tests"):

    class ThingByVisits(models.Model):
        """The same table with another key."""

        visits: Any = models.IntegerField(primary_key=True)
        group: Any = models.IntegerField()

        class Meta:
            app_label = "tests"
            managed = False
            db_table = "tests_thing"

    class ThingById(models.Model):
        visits: Any = models.IntegerField()
        group: Any = models.IntegerField()

        class Meta:
            app_label = "tests"
            managed = False
            db_table = "tests_thing"


def perform(step):
    return STEPS[step[0]](*step[1:])


def create_ignoring_conflicts(code, visits):
    ThingByText.objects.using(ALIAS).bulk_create([ThingByText(code=code, visits=visits)], ignore_conflicts=True)


STEPS = {
    "save": lambda code, visits: ThingByText(code=code, visits=visits).save(using=ALIAS),
    "create": lambda code, visits: ThingByText.objects.using(ALIAS).create(code=code, visits=visits).pk,
    "ignore": create_ignoring_conflicts,
}


@pytest.mark.parametrize("second", ["create", "ignore"])
def test_a_row_that_was_taken_to_be_there_is_not_inserted_later(second):
    batching = run_both(perform, [("save", "K", 1), (second, "K", 2)])
    assert batching.undone == 1


def test_rows_that_are_inserted_and_changed_still_go_together():
    def twice(code):
        thing = ThingByText.objects.using(ALIAS).create(code=code)
        for thing.visits in (1, 2):
            thing.save()

    batching = run_both(twice, [f"{number}" for number in range(20)])
    assert (batching.undone, batching.flushes, batching.rows) == (0, 1, 60)


@pytest.fixture
def unique_names():
    execute("CREATE UNIQUE INDEX one_name ON tests_tag (name)")
    yield
    execute("DROP INDEX one_name")


@pytest.mark.parametrize(
    "steps",
    [
        [("rename", "a", "b"), ("tag", "a")],
        [("tag", "b"), ("rename", "a", "b")],
        [("rename", "a", "b"), ("tag", "b")],
        [("rename", "a", "b"), ("ignore", "a"), ("rename", "b", "c")],
        [("ignore", "a"), ("rename", "a", "b"), ("tag", "a")],
    ],
)
def test_unique_values_change_hands_in_order(unique_names, steps):
    first = {}

    def setup():
        first["a"] = Tag.objects.using(ALIAS).create(name="a").pk

    actions = {
        "rename": lambda _former, name: Tag.objects.using(ALIAS).filter(pk=first["a"]).update(name=name),
        "tag": lambda name: Tag.objects.using(ALIAS).create(name=name).name,
        "ignore": lambda name: bool(Tag.objects.using(ALIAS).bulk_create([Tag(name=name)], ignore_conflicts=True)),
    }
    run_both(lambda step: actions[step[0]](*step[1:]), steps, setup=setup)


def test_a_row_that_only_a_refused_object_has_is_inserted(unique_names):
    def save(step):
        person, tag = step
        Person(name=person).save(using=ALIAS)
        Tag(name=tag).save(using=ALIAS)

    def setup():
        Tag(name="there").save(using=ALIAS)

    steps = [("a", "there"), ("a", "new"), ("a", "newer"), *((f"{number}", f"{number}") for number in range(20))]
    run_both(save, steps, setup=setup, chunksize=30)


def test_of_two_rows_that_ignore_conflicts_the_first_stays(unique_names):
    def ignore(tag):
        Tag.objects.using(ALIAS).bulk_create([Tag(**tag)], ignore_conflicts=True)

    def keys():
        return [*Tag.objects.using(ALIAS).filter(pk__lt=0).order_by("pk").values_list("pk", "name")]

    def read(tag):
        ignore(tag)
        return keys() if tag["name"] == "last" else None

    run_both(read, [{"pk": -1, "name": "a"}, {"name": "b"}, {"pk": -2, "name": "b"}, {"pk": -3, "name": "last"}])


def test_changes_of_one_row_by_two_keys_keep_their_order():
    def setup():
        ThingById.objects.using(ALIAS).bulk_create([ThingById(pk=-pk, visits=pk, group=0) for pk in (1, 2)])

    def change(step):
        model, pk, group = step
        return model.objects.using(ALIAS).filter(pk=pk).update(group=group)

    run_both(change, [(ThingByVisits, 1, 1), (ThingById, -2, 2), (ThingByVisits, 2, 3)], setup=setup)
    run_both(change, [(ThingById, -1, 1), (ThingByVisits, 2, 2), (ThingById, -2, 3)], setup=setup)
