"""With `batch_writes`, a change is assigned to its column as a single UPDATE assigns it, whatever the column's type."""

from typing import Any

import pytest
from django.db import models
from django.test.utils import isolate_apps

from tests.support.comparing import ALIAS, execute, run

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

with isolate_apps("tests"):

    class Keyed(models.Model):
        key: Any = models.TextField(primary_key=True)
        n: Any = models.IntegerField(default=0)
        m: Any = models.IntegerField(default=0)

        class Meta:
            app_label = "tests"
            managed = False
            db_table = "keyed"


DROP = """
DROP TABLE IF EXISTS public."date", keyed; DROP DOMAIN IF EXISTS short, few; DROP TYPE IF EXISTS "Odd mood", pair;
DROP SCHEMA IF EXISTS aside CASCADE
"""
CREATE = """
CREATE SCHEMA aside; CREATE TYPE aside.level AS ENUM ('low', 'high'); CREATE TYPE "Odd mood" AS ENUM ('sad', 'glad');
CREATE DOMAIN short AS varchar(3); CREATE DOMAIN few AS interval minute; CREATE TYPE pair AS (a char(3), b int)
"""


@pytest.fixture(autouse=True)
def types():
    execute(DROP)
    execute(CREATE)
    yield
    execute(DROP)


def model_with(field):
    with isolate_apps("tests"):

        class Legacy(models.Model):
            value: Any = field

            class Meta:
                app_label = "tests"
                managed = False
                db_table = "date"  # a type's name, too

    return Legacy


def changes_by(batch_writes, field, kind, values):
    """Give the outcomes and rows of changes of a column with this type."""

    model = model_with(field)

    def setup():
        execute(f'DROP TABLE IF EXISTS public."date"; CREATE TABLE public."date" (id serial PRIMARY KEY, value {kind})')
        execute(f'INSERT INTO public."date" (value) SELECT NULL FROM generate_series(1, {len(values)})')

    def change(pair):
        pk, value = pair
        model(pk=pk, value=value).save(using=ALIAS, force_update=True)

    ran = run(change, [*enumerate(values, 1)], batch_writes=batch_writes, setup=setup, retries=0)
    return ran, execute('SELECT id, value::text FROM public."date" ORDER BY id')


TEXTS = [
    ("char(5)", ["abcde", "ab", "a", "", None], 0),
    ("char(5)", ["abcde", "abcdef"], 1),
    ("bit(4)", ["1010", "0001"], 0),
    ("bit varying(4)", ["1010", "1"], 0),
    ("varchar(3)", ["abc", "abcd"], 1),
    ("varchar(3)[]", ["{abc}", "{}"], 0),
    ("varchar(3)[]", ["{abc}", "{abcd}"], 1),
    ("char(3)[]", ["{abc}", "{b}"], 0),
    ("short", ["abc", "a"], 0),
    ("short", ["abc", "abcd"], 1),
    ("short[]", ["{abc}", "{abcd}"], 1),
    ("pair", ["(abc,1)", "(b,2)"], 0),
    ("numeric(5,2)", ["1.005", "2.675", "-0.125"], 0),
    ("timestamp(0)", ["2020-01-01 00:00:00.6", "2020-01-01"], 0),
    ("time(0)", ["10:00:00.6", "11:00"], 0),
    ("interval", ["5", "1 day"], 0),
    ("interval minute", ["5", "90"], 0),
    ("few", ["5", "90"], 0),
    ('"Odd mood"', ["sad", "glad"], 0),
    ("aside.level[]", ["{low}", "{high,low}"], 0),
    ('"char"', ["a", "b"], 0),
    ("inet", ["10.0.0.1/8", "::1"], 0),
    ("json", ['{"a":  1}', "[]"], 0),
]


@pytest.mark.parametrize(("kind", "values", "undone"), TEXTS)
def test_a_text_is_assigned_and_never_cast(kind, values, undone):
    plain, rows = changes_by(False, models.TextField(null=True), kind, values)
    batched, batched_rows = changes_by(True, models.TextField(null=True), kind, values)
    assert (batched.outcomes, batched_rows) == (plain.outcomes, rows)
    assert batched.batching.undone == undone


NUMBERS = [
    (models.IntegerField, "smallint", [-32768, 32767], 0),
    (models.IntegerField, "boolean", [1, 0], 1),
    (models.BooleanField, "integer", [True, False], 1),
    (models.IntegerField, "varchar(9)", [1, -2], 1),
    (models.IntegerField, "numeric(5,2)", [1, 99999], 1),
    (models.FloatField, "real", [0.1, float("nan"), float("-inf")], 0),
    (models.FloatField, "numeric", [0.12345678901234567, float("nan")], 0),
    (models.JSONField, "json", [{"a": 1}, [2]], 1),
    (models.JSONField, "jsonb", [{"a": 1}, [2]], 0),
]


@pytest.mark.parametrize(("field", "kind", "values", "undone"), NUMBERS)
def test_a_value_of_another_type_is_assigned_or_refused(field, kind, values, undone):
    plain, rows = changes_by(False, field(), kind, values)
    batched, batched_rows = changes_by(True, field(), kind, values)
    assert (batched.outcomes, batched_rows) == (plain.outcomes, rows)
    assert batched.batching.undone == undone


def change_by_several_spellings(step):
    key, values = step
    return Keyed.objects.using(ALIAS).filter(pk=key).update(**values)


@pytest.mark.parametrize("kind", ["char(3)", "text", "integer"])
def test_changes_of_a_row_keep_their_order_by_any_spelling(kind):
    one, same = ("5", "05") if kind == "integer" else ("b", "b ")
    steps = [("1", {"n": 1}), (one, {"n": 2, "m": 2}), (same, {"n": 3})]

    def setup():
        execute(f"DROP TABLE IF EXISTS keyed; CREATE TABLE keyed (key {kind} PRIMARY KEY, n int, m int)")
        execute(f"INSERT INTO keyed VALUES ('1', 0, 0), ('{one}', 0, 0)")

    ran = {}
    for batch_writes in (False, True):
        outcomes = run(change_by_several_spellings, steps, batch_writes=batch_writes, setup=setup).outcomes
        ran[batch_writes] = outcomes, execute("SELECT * FROM keyed ORDER BY key")
    assert ran[True] == ran[False]
