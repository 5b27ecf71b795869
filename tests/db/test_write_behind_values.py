"""With `batch_writes`, rows have the values that Django would send, and their objects the state that it would leave."""

import datetime as dt
from typing import Any

import pytest
from django.db import connections, models
from django.db.models.query_utils import DeferredAttribute
from django.db.transaction import Atomic
from django.test.utils import isolate_apps

from tests.models import Badge, Person, Tag, Thing
from tests.support.comparing import ALIAS, execute, run, run_both

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

NOON = dt.datetime(2026, 3, 29, 12, 0, 0, 5)  # noqa: DTZ001  one of the values is without a zone


class Shouted(DeferredAttribute):
    def __get__(self, instance, cls=None):
        value = super().__get__(instance, cls)
        return value.upper() if isinstance(value, str) else value

    def __set__(self, instance, value):
        instance.__dict__[self.field.attname] = value


class Answering(models.Model):
    def __getattribute__(self, name):
        return "answered" if name == "text" else super().__getattribute__(name)

    class Meta:
        abstract = True


def written(base=models.Model, **fields):
    """A model of the table `written`, whose columns are texts, a number and moments."""
    meta = type("Meta", (), {"app_label": "tests", "managed": False, "db_table": "written"})
    members: dict[str, Any] = {"__module__": __name__, "Meta": meta, "text": models.TextField(null=True), **fields}
    with isolate_apps("tests"):
        return type("Written", (base,), members)


@pytest.fixture
def table():
    execute(
        "CREATE TABLE written (id bigserial PRIMARY KEY, text text, number int, moment timestamptz, day date, "
        "share float8)"
    )
    yield
    execute("DROP TABLE written")


def shouted():
    model: Any = written()
    model.text = Shouted(model._meta.get_field("text"))
    return model


def own_attribute(instance):
    instance.__dict__["text"] = 7
    return instance


def lacks_attribute(instance):
    del instance.__dict__["text"]
    return instance


MOMENT = {"moment": models.DateTimeField(null=True)}
ROWS = {
    "a descriptor of the project's own": (shouted(), lambda made: made(text="quiet")),
    "a class that answers itself": (written(Answering), lambda made: made(text="not this")),
    "a value of another type": (written(), lambda made: own_attribute(made())),
    "a deferred value": (written(), lambda made: lacks_attribute(made(pk=5))),
    "a value that is no number": (written(number=models.IntegerField()), lambda made: made(number="many")),
    "a text that is a number": (written(number=models.IntegerField()), lambda made: made(number="12")),
    "no value": (written(**MOMENT), lambda made: made(moment=None)),
    "a moment without a zone": (written(**MOMENT), lambda made: made(moment=NOON)),
    "a moment": (written(**MOMENT), lambda made: made(moment=NOON.replace(tzinfo=dt.UTC))),
    "a moment elsewhere": (
        written(**MOMENT),
        lambda made: made(moment=NOON.replace(tzinfo=dt.timezone(dt.timedelta(hours=-5, seconds=7)))),
    ),
    "a moment for a day": (written(day=models.DateField()), lambda made: made(day=NOON)),
    "a day for a moment": (written(**MOMENT), lambda made: made(moment=NOON.date())),
    "a day": (written(day=models.DateField()), lambda made: made(day=NOON.date())),
    "a share that is a text": (written(share=models.FloatField()), lambda made: made(share="0.1")),
    "no share": (written(share=models.FloatField()), lambda made: made(share=float("nan"))),
    "a small share": (written(share=models.FloatField()), lambda made: made(share=1e-300)),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.filterwarnings("ignore:DateTimeField .* received a naive datetime")
def test_a_row_has_the_values_that_save_would_send(table, name):
    model, make = ROWS[name]

    def save(_number):
        instance = make(model)
        instance.save(using=ALIAS, force_insert=True)

    ran = {}
    for batch_writes in (False, True):
        made = run(save, range(4), batch_writes=batch_writes, setup=lambda: execute("DELETE FROM written"))
        columns = "text, number, moment, day, share::text"
        ran[batch_writes] = made.outcomes, execute(f"SELECT {columns} FROM written ORDER BY id")
    assert ran[True] == ran[False]
    assert made.batching.batched == 1 or name == "a deferred value"  # whose chunk is refused by its keys


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_moment_that_is_set_by_itself_is_the_rows(table, is_kept):
    field: Any = models.DateTimeField(auto_now_add=True) if is_kept else models.DateTimeField(auto_now=True)
    model: Any = written(moment=field)

    def save(_number):
        instance = model()
        instance.save(using=ALIAS)
        return instance.moment

    ran = run(save, range(5), batch_writes=True)
    moments = [value for _status, value, *_rest in ran.outcomes]
    assert [(moment,) for moment in moments] == execute("SELECT moment FROM written ORDER BY id")
    assert None not in moments
    assert ran.batching.rows == 5


def state(instances):
    return [(each.pk is not None, each._state.adding, each._state.db) for each in instances]


def creates_some(number):
    given = [Tag(name=f"{number} {each}") for each in range(3)]
    made = Tag.objects.using(ALIAS).bulk_create(given)
    return made == given and made is not given, state(made), len({each.pk for each in made})


def creates_where_none_is(number):
    made = Tag.objects.using(ALIAS).bulk_create([Tag(name=f"{number % 3}")], ignore_conflicts=True)
    return state(made)


def creates_by_a_tuple_and_a_batch(number):
    made = Tag.objects.using(ALIAS).bulk_create((Tag(name=f"{number}"),), 1)
    return state([*made, *Tag.objects.using(ALIAS).bulk_create(iter([Tag(name=f"{number}, too")]))])


def creates_none(_number):
    return Tag.objects.using(ALIAS).bulk_create([])


def creates_of_an_unsaved_one(_number):
    Badge.objects.using(ALIAS).bulk_create([Badge(person=Person(name="unsaved"))])


def creates_with_keys(number):
    return state(Tag.objects.using(ALIAS).bulk_create([Tag(pk=number + 10**6, name=f"{number}"), Tag(name="-" * 9)]))


def creates_children(number):
    Thing.objects.using(ALIAS).bulk_create([Thing(visits="many" if number % 4 == 3 else number)])


def goes_on_after_an_error(number):
    try:
        Thing.objects.using(ALIAS).bulk_create([Thing(visits="many")])
    except ValueError:
        return connections[ALIAS].needs_rollback or Thing.objects.using(ALIAS).create(visits=number).visits


CREATING = [
    *(creates_some, creates_where_none_is, creates_by_a_tuple_and_a_batch, creates_none, creates_of_an_unsaved_one),
    *(creates_with_keys, creates_children, goes_on_after_an_error),
]


@pytest.mark.parametrize("function", CREATING)
def test_bulk_create_leaves_what_djangos_leaves(function):
    run_both(function, range(10))


def test_a_block_that_a_third_party_has_patched_is_entered(monkeypatch):
    entered = []

    def patched(block, enter=Atomic.__enter__):
        entered.append(connections[block.using or "default"].in_atomic_block)
        return enter(block)

    monkeypatch.setattr(Atomic, "__enter__", patched)
    ran = run(lambda number: Thing.objects.using(ALIAS).create(visits=number).visits, range(10), batch_writes=True)
    assert [value for _status, value, *_rest in ran.outcomes] == [*range(10)]
    assert entered.count(True) == 10  # each object's
    assert ran.batching.rows == 10
