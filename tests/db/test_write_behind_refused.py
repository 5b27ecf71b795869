"""Objects whose rows are there already: with `batch_writes` they, and all others, end as they do without it."""

import pytest
from django.db import IntegrityError
from django.utils.safestring import mark_safe

from tests.models import Person, Tag, ThingByText
from tests.support.comparing import ALIAS, atomic, run_both

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


def setup():
    Tag.objects.using(ALIAS).create(name="taken")
    Person.objects.using(ALIAS).create(name="old")
    ThingByText.objects.using(ALIAS).create(code="b")


def create_and_change(item):
    code, visits = item
    thing = ThingByText.objects.using(ALIAS).create(code=code, visits=visits)
    thing.visits += 100
    thing.save(using=ALIAS)


def create_by_a_marked_key(code):
    ThingByText.objects.using(ALIAS).create(code=mark_safe(code))
    Tag.objects.using(ALIAS).create(name=code)


def save_person_and_tag(item):
    person, tag, *rest = item
    Person(name=person).save(using=ALIAS)
    Tag(name=tag).save(using=ALIAS)
    if rest:
        raise ValueError(rest)


def save_both_or_get(item):
    if len(item) == 1:
        return Person.objects.using(ALIAS).get_or_create(name=item[0])[1]
    return save_person_and_tag(item)


def say_which_is_there(item):
    person, tag = item
    if person is not None:
        try:
            with atomic():
                Person(name=person).save(using=ALIAS)
        except IntegrityError as error:
            raise LookupError("the person") from error
    try:
        with atomic():
            Tag(name=tag).save(using=ALIAS)
    except IntegrityError as error:
        raise LookupError("the tag") from error


def look_and_save_or_delete(name):
    if name == "close":
        ThingByText.objects.using(ALIAS).filter(code="b").delete()
        return
    if not ThingByText.objects.using(ALIAS).filter(code="b").exists():
        raise LookupError(name)
    Person(name=name).save(using=ALIAS)


CASES = {
    "a given key twice": (create_and_change, [("x", 1), ("y", 2), ("x", 3), ("z", 4)]),
    "a given key that comes back in another form": (create_by_a_marked_key, ["a", "b", "c"]),
    "the place of one that is refused for another's row": (
        save_person_and_tag, [("u", "taken"), ("u", "one"), ("f", "two", "fails"), ("u", "three")],
    ),
    "what another gets instead of that row": (save_both_or_get, [("u", "taken"), ("u", "one"), ("u",)]),
    "which row is there": (say_which_is_there, [(None, "first"), ("u", "taken"), ("u", "one")]),
    "what a later one deletes": (look_and_save_or_delete, ["x", "old", "close"]),
}  # fmt: skip


@pytest.mark.parametrize(("function", "objects"), CASES.values(), ids=CASES)
def test_each_ends_as_it_does_without(function, objects):
    run_both(function, objects, chunksize=10, setup=setup)
