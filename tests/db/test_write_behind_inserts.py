"""With `batch_writes`, a new row has the keys and values of its field's and its table's own making, made once."""

from typing import Any

import pytest
from django.db import models
from django.db.models import Value
from django.db.models.functions import Upper
from django.test.utils import isolate_apps

from tests.support.comparing import ALIAS, execute, run

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


class Version(models.IntegerField):
    def pre_save(self, model_instance, add):
        model_instance.version += 1
        return model_instance.version


with isolate_apps("tests"):

    class Versioned(models.Model):
        version: Any = Version(default=0)
        text: Any = models.TextField()
        last: Any = Version(default=0)

        class Meta:
            app_label = "tests"
            managed = False
            db_table = "versioned"


@pytest.fixture
def table():
    execute(
        "CREATE SEQUENCE others START 1000; CREATE TABLE versioned (id bigserial PRIMARY KEY, version int, text text)"
    )
    execute("ALTER TABLE versioned ADD last int")
    yield
    execute("DROP TABLE versioned; DROP SEQUENCE others")


TEXTS = [lambda: "short", lambda: "x" * 20_000, lambda: Upper(Value("x"))]


def save_one(number):
    made = Versioned(text=TEXTS[number % 3]())
    made.save(using=ALIAS)
    return made.version


def save_several(number):
    made = [Versioned(text=TEXTS[each % 3]()) for each in range(number, number + 3)]
    Versioned.objects.using(ALIAS).bulk_create(made)
    return [each.version for each in made]


@pytest.mark.parametrize("function", [save_one, save_several])
def test_pre_save_is_called_once_for_each_row(table, function):
    ran = {}
    for batch_writes in (False, True):
        made = run(function, range(9), batch_writes=batch_writes, setup=lambda: execute("DELETE FROM versioned"))
        ran[batch_writes] = made.outcomes, execute("SELECT version, length(text), last FROM versioned ORDER BY 1, 2, 3")
    assert ran[True] == ran[False]
    assert made.batching.undone == 0


@pytest.mark.parametrize(
    ("default", "is_drawn"),
    [
        ("nextval('others')", True),
        ("nextval('others') * 2", False),
        ("nextval('others'::text)", False),
        ("nextval('versioned_id_seq')", True),
    ],
)
def test_keys_come_from_the_sequence_of_the_default(table, default, is_drawn):
    execute(f"ALTER TABLE versioned ALTER id SET DEFAULT {default}")
    setup = "DELETE FROM versioned; SELECT setval('others', 1000, false), setval('versioned_id_seq', 1, false)"
    keys = {}
    for batch_writes in (False, True):
        ran = run(
            lambda _number: Versioned.objects.using(ALIAS).create(text="x").pk,
            range(20),
            batch_writes=batch_writes,
            setup=lambda: execute(setup),
        )
        keys[batch_writes] = [value for _status, value, *_rest in ran.outcomes]
    assert keys[True] == keys[False]
    assert ran.batching.rows == (20 if is_drawn else 0)
