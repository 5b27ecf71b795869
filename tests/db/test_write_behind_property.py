"""For any program of saves, reads, updates, blocks and failures, a run with `batch_writes` gives what one without it
gives: outcomes, values, tables, callbacks and signals."""

from contextlib import suppress

import pytest
from django.db import IntegrityError, connections, transaction
from django.db.models import F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.models import Badge, Employee, Person, Sample, Stamped, Tag, Thing, ThingByText, ThingByUuid
from tests.support.comparing import ALIAS, ALL, LOOKING, SAVES, atomic, called, run_both, user
from tests.support.selection import examples

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

# Few names, so that rows collide now and then; many more in most programs, so that most chunks are not refused.
few_names = st.sampled_from("abcdef")
names = st.integers(0, 10_000).map(str) | few_names
numbers = st.integers(0, 5)


def step(name, *arguments):
    return st.tuples(st.just(name), st.tuples(*arguments))


saves = st.one_of(
    step("person", names),
    step("employee", names, numbers),
    step("tag", names),
    step("user", names),
    step("thing", numbers),
    step("thing by uuid", numbers),
    step("sample", names, numbers),
    step("person with tags", names, st.lists(names, max_size=3)),
)
others = st.one_of(
    step("get or create", names),
    step("update or create", few_names, numbers),
    step("save by text", few_names, numbers),
    step("save twice", numbers),
    step("change", few_names, numbers),
    step("add", numbers),
    step("delete", few_names),
    step("count", names),
    step("count by raw SQL"),
    step("tags of", names),
    step("look for tags", st.lists(names, max_size=2)),
    step("look by key", numbers),
    step("validate", names),
    step("number of group", numbers),
    step("lock", numbers),
    step("bulk create", st.lists(names, max_size=3)),
    step("stamp", names),
    step("expression", names),
    step("call back", names),
)
failures = st.just(("fail", ()))
blocks = st.deferred(
    lambda: st.one_of(
        step("block", st.lists(steps, max_size=3), st.booleans()),
        step("savepoint", st.lists(steps, max_size=3), st.booleans()),
        step("swallow", st.lists(steps, max_size=2)),
    )
)
steps = st.one_of(saves, saves, saves, others, blocks)
objects = st.lists(st.one_of(saves, saves, steps), max_size=4) | st.lists(st.one_of(steps, failures), max_size=4)
programs = st.lists(objects, min_size=1, max_size=12)


def perform(program):
    """Run the steps of one object, and give what each has seen."""
    return [STEPS[name](*arguments) for name, arguments in program]


def person_with_tags(name, tags):
    person = Person.objects.using(ALIAS).create(name=name)
    person.tags.add(*Tag.objects.using(ALIAS).filter(name__in=tags))


def update_or_create(name, number):
    return ThingByText.objects.using(ALIAS).update_or_create(code=name, defaults={"visits": number})[1]


def save_by_text(name, number):
    ThingByText(code=name, visits=number).save(using=ALIAS)


def save_twice(number):
    thing = Thing(visits=number)
    thing.save(using=ALIAS)
    thing.group = number
    thing.save()


def change(name, number):
    for thing in ThingByText.objects.using(ALIAS).filter(code=name):
        thing.visits += number
        thing.save()


def count(name):
    return Tag.objects.using(ALIAS).filter(name=name).count(), Badge.objects.using(ALIAS).count()


def count_by_raw_sql():
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM tests_person, tests_thing")
        return cursor.fetchone()


def tags_of(name):
    person = Person.objects.using(ALIAS).filter(name=name).first()
    return person and sorted(person.tags.values_list("name", flat=True))


def look_for_tags(tags):
    found = Tag.objects.using(ALIAS)
    return found.filter(name__in=tags).count(), [found.filter(name=name).exists() for name in tags]


def look_by_key(number):
    """Look for the rows that were made last, and for one that is not there."""
    things = Thing.objects.using(ALIAS)
    last = things.order_by("-pk").values_list("pk", "visits")[:number]
    return [things.filter(pk=pk, visits=visits).exists() for pk, visits in last], things.filter(pk=-number).first()


def validate(name):
    tag = Tag(name=name)
    known = Tag.objects.using(ALIAS).filter(name=tag.name).exclude(pk=tag.pk).exists()
    if not known:
        tag.save(using=ALIAS)
    return known


def number_of_group(number):
    return [Thing.objects.using(ALIAS).filter(**{field: number}).count() for field in ("visits", "group")]


def lock(number):
    thing, created = Thing.objects.using(ALIAS).select_for_update().get_or_create(visits=number)
    thing.group += 1
    thing.save(update_fields=["group"])
    return created


def bulk_create(tags):
    Tag.objects.using(ALIAS).bulk_create([Tag(name=name) for name in tags], ignore_conflicts=True)


def expression(name):
    thing = Thing.objects.using(ALIAS).create(visits=1)
    thing.group = F("visits") + len(name)
    thing.save(using=ALIAS)


def block(program, is_to_fail):
    with suppress(KeyError), atomic():
        seen = perform(program)
        if is_to_fail:
            raise KeyError
        return seen


def savepoint(program, is_to_fail):
    mark = connections[ALIAS].savepoint()
    seen = perform(program)
    end = transaction.savepoint_rollback if is_to_fail else transaction.savepoint_commit
    end(mark, using=ALIAS)
    return seen


def swallow(program):
    try:
        with atomic():
            return perform(program)
    except IntegrityError:
        return "refused"


def fail():
    raise ValueError("by plan")


STEPS = {
    "person": lambda name: Person(name=name).save(using=ALIAS),
    "employee": lambda name, number: Employee(name=name, salary=number).save(using=ALIAS),
    "tag": lambda name: Tag(name=name).save(using=ALIAS),
    "user": user,
    "thing": lambda number: Thing(visits=number).save(using=ALIAS),
    "thing by uuid": lambda number: ThingByUuid(visits=number).save(using=ALIAS),
    "sample": lambda name, number: Sample(text=name, data={"a": [number]}, raw=b"\\0").save(using=ALIAS),
    "person with tags": person_with_tags,
    "get or create": lambda name: Tag.objects.using(ALIAS).get_or_create(name=name)[1],
    "update or create": update_or_create,
    "save by text": save_by_text,
    "save twice": save_twice,
    "change": change,
    "add": lambda number: Thing.objects.using(ALIAS).filter(visits=number).update(visits=F("visits") + 1),
    "delete": lambda name: ThingByText.objects.using(ALIAS).filter(code=name).delete()[0],
    "count": count,
    "count by raw SQL": count_by_raw_sql,
    "tags of": tags_of,
    "look for tags": look_for_tags,
    "look by key": look_by_key,
    "validate": validate,
    "number of group": number_of_group,
    "lock": lock,
    "bulk create": bulk_create,
    "stamp": lambda name: Stamped.objects.using(ALIAS).create(name=name).created is not None,
    "expression": expression,
    "call back": lambda name: transaction.on_commit(lambda: called.append(name), using=ALIAS),
    "block": block,
    "savepoint": savepoint,
    "swallow": swallow,
    "fail": fail,
}


@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(programs, st.integers(2, 12), st.sampled_from([SAVES, ALL, LOOKING]))
def test_any_program_gives_what_it_gives_without(program, chunksize, receivers):
    run_both(perform, program, chunksize=chunksize, receivers=receivers)
