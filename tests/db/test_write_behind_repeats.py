"""With `batch_writes`, a SELECT that an earlier object has sent is not sent again, and its answer is never wrong."""

import re
import time
import uuid
from contextlib import closing

import pytest
from django.contrib.auth.models import Group
from django.db import OperationalError, connections, models
from django.db.backends.utils import CursorWrapper
from django.db.models import F, Value
from django.db.models.functions import Now
from django.test.utils import isolate_apps

from poolsave._db.write_behind.channel import Channel
from tests.models import Person, Sample, Stamped, Tag, Thing
from tests.support import postgres
from tests.support.comparing import ALIAS, ALL, execute, run, run_both, user

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

sent: list = []


@pytest.fixture
def spy(monkeypatch):
    """Note what Django's cursors send."""
    sent.clear()
    execute_of_django = CursorWrapper.execute

    def noting(cursor, sql, params=None):
        sent.append(str(sql))
        return execute_of_django(cursor, sql, params)

    monkeypatch.setattr(CursorWrapper, "execute", noting)


def selects(table):
    return [text for text in sent if text.startswith("SELECT") and f'FROM "{table}"' in text]


def joins_the_customers(number):
    user(f"user{number}")


def test_the_same_select_is_sent_twice_per_chunk(spy):
    batching = run_both(joins_the_customers, range(60), receivers=ALL)
    assert (batching.batched, batching.undone, batching.flushes) == (3, 0, 3)
    sent.clear()
    run(joins_the_customers, range(60), batch_writes=True)
    assert len(selects("auth_group")) == 3 * 2


def test_the_report_counts_what_was_not_sent():
    batching = run(joins_the_customers, range(60), batch_writes=True).batching
    assert batching.spared == 60 - 2 * 3
    assert "54 SELECTs were not sent again" in str(batching)


def test_chunks_of_one_object_are_not_batched():
    assert run(joins_the_customers, range(3), batch_writes=True, chunksize=1).batching is None


def test_answers_of_many_rows_are_asked_for_each_time():
    def setup():
        Tag.objects.using(ALIAS).bulk_create([Tag(name=f"tag {number}") for number in range(30)])

    few = run_both(lambda _number: len(tags()[:20]), range(20), setup=setup)
    many = run_both(lambda _number: len(tags()[:21]), range(20), setup=setup)
    assert (few.spared, many.spared) == (18, 0)


ASKS = [
    lambda _number: tags().count(),
    lambda number: tags(name="a").exists() or number,
    lambda number: list(tags(name__lte="abc"[number % 3]).order_by("name").values_list("name", flat=True)),
    lambda number: tags(name__in=["a", number % 2]).order_by("-name").first(),
    lambda _number: tags(name="nothing").first(),
    lambda number: tags().aggregate(number=Value(number % 2 == 0))["number"],
    lambda _number: [tag.name for tag in tags().order_by("name").iterator()],
    lambda _number: list(tags().union(tags(name="a")).order_by("name").values_list("name", flat=True)),
    lambda _number: list(tags().extra(select={"one": "1"}).order_by("name").values_list("one", "name")),
    lambda number: tags(name=f"{number}").get_or_create(name=f"{number % 4}")[1],
]


def tags(**lookups):
    return Tag.objects.using(ALIAS).filter(**lookups)


@pytest.mark.parametrize("number", range(len(ASKS)))
@pytest.mark.parametrize("writes", ["nothing", "another table", "its table", "by SQL", "at times"])
def test_answers_are_those_of_a_run_without(number, writes):
    def setup():
        Tag.objects.using(ALIAS).bulk_create([Tag(name=name) for name in "abc"])

    def asks(index):
        found = str(ASKS[number](index))
        if writes == "another table":
            Thing(visits=index).save(using=ALIAS)
        elif writes == "its table" or (writes == "at times" and index % 7 == 3):
            Tag(name=f"tag {index}").save(using=ALIAS)
        elif writes == "by SQL":
            execute(f"UPDATE tests_tag SET name = 'new {index}' WHERE name IN ('a', 'new {index - 1}')")
        return found.replace(" object", ""), str(ASKS[number](index)).replace(" object", "")

    def without_keys(outcomes):
        return [(status, re.sub(r"\(\d+\)", "(key)", str(value)), *rest) for status, value, *rest in outcomes]

    plain = run(asks, range(40), setup=setup)
    batched = run(asks, range(40), setup=setup, batch_writes=True)
    assert without_keys(batched.outcomes) == without_keys(plain.outcomes)
    assert batched.tables == plain.tables
    assert "another session" not in str(batched.batching)


def by_another_session(statement):
    with closing(postgres.connect(dbname=postgres.TEST_DATABASE)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)


calls: list = []


def changes_what_it_read(number):
    calls.append(number)
    before = Tag.objects.using(ALIAS).get(name__startswith="a").name
    Thing(visits=number).save(using=ALIAS)
    if number == 5:
        by_another_session("UPDATE tests_tag SET name = 'after' WHERE name = 'at first'")
    return before


def test_a_change_by_another_session_is_found_out():
    calls.clear()
    setup = Tag(name="at first").save
    ran = run(changes_what_it_read, range(20), setup=lambda: setup(using=ALIAS), batch_writes=True)
    names = [value for _status, value, *_rest in ran.outcomes]
    assert names == ["after"] * 20  # all run again, and none has read what was not true any more
    assert (ran.batching.batched, ran.batching.undone) == (0, 1)
    assert len(calls) == 40
    [reason] = ran.batching.reasons
    assert reason.startswith("another session has changed what a chunk had read: SELECT")


def changes_once_per_chunk(number):
    found = Tag.objects.using(ALIAS).get(name__startswith="a").name
    Thing(visits=number).save(using=ALIAS)
    if number % 20 == 10:
        by_another_session(f"UPDATE tests_tag SET name = 'a{number}'")
    return found[0]


def test_an_answer_that_others_change_is_not_kept_again():
    batching = run_both(changes_once_per_chunk, range(200), setup=lambda: Tag(name="a").save(using=ALIAS))
    assert (batching.undone, batching.rested, batching.batched) == (1, 1, 8)


def test_an_error_of_asking_once_more_undoes_the_chunk(monkeypatch):
    def fail(_channel, text, values=None):
        if text.startswith("SELECT") and "auth_group" in text:
            raise OperationalError("the server has no time")
        return send(_channel, text, values)

    send = Channel.send
    monkeypatch.setattr(Channel, "send", fail)
    batching = run_both(joins_the_customers, range(20), receivers=ALL)
    assert (batching.undone, batching.spared) == (1, 0)
    [reason] = batching.reasons
    assert reason.startswith("OperationalError while a SELECT was sent once more: SELECT")


def audits_on_another_connection(number):
    """By the way of those who want the row to stay whatever becomes of the object."""
    own = connections[ALIAS]
    other = connections[ALIAS] = own.copy()
    try:
        Tag(name=f"audit {number}").save(using=ALIAS)
        Stamped(name=f"audit {number}").save(using=ALIAS)
    finally:
        other.close()
        connections[ALIAS] = own
    Thing(visits=number).save(using=ALIAS)
    if number % 2:
        raise ValueError(number)


def test_rows_that_are_saved_on_another_connection_stay():
    run_both(audits_on_another_connection, range(20))
    assert execute("SELECT count(*) FROM tests_tag") == [(20,)]


@isolate_apps("tests")
def test_a_table_that_the_chunk_has_made_is_read_each_time():
    class Scratch(models.Model):
        visits = models.IntegerField()

        class Meta:
            app_label, db_table, managed = "tests", "tests_scratch", False

    def changes_a_table_of_its_own(number):
        scratch = Scratch.objects.using(ALIAS)
        if number % 20 == 0:
            execute("CREATE TEMP TABLE tests_scratch (id bigint PRIMARY KEY, visits int) ON COMMIT DROP")
            execute("INSERT INTO tests_scratch VALUES (1, 0)")
        unknown = scratch.filter(visits__gte=0).exclude(pk__in=Tag.objects.using(ALIAS).values("pk"))
        unknown.update(visits=min(number % 20, 19 - number % 20))  # in the end what it was at first
        return scratch.get(id=1).visits

    run_both(changes_a_table_of_its_own, range(40))


def is_refused_by_a_wrapper(number):
    def refuse(*_arguments):
        raise ValueError("no queries here")

    if number % 3 == 2:
        with connections[ALIAS].execute_wrapper(refuse):
            return Tag.objects.using(ALIAS).count()
    return Tag.objects.using(ALIAS).count()


def test_a_wrapper_sees_each_statement():
    run_both(is_refused_by_a_wrapper, range(20))


def waits_for_a_change(number):
    name = Tag.objects.using(ALIAS).get(name__startswith="a").name
    if number == 3:
        by_another_session("UPDATE tests_tag SET name = 'after' WHERE name = 'at first'")
        deadline = time.monotonic() + 30
        while name == "at first" and time.monotonic() < deadline:
            calls.append(number)
            name = Tag.objects.using(ALIAS).get(name__startswith="a").name
    return name


def test_an_object_that_asks_again_asks_the_server():
    calls.clear()
    ran = run(waits_for_a_change, range(20), setup=lambda: Tag(name="at first").save(using=ALIAS), batch_writes=True)
    assert [value for _status, value, *_rest in ran.outcomes][3:] == ["after"] * 17
    assert calls == [3]


def asks_for_the_time(_number):
    return Tag.objects.using(ALIAS).annotate(now=Now()).values_list("now", flat=True)[0]


def test_the_time_is_asked_for_each_time():
    ran = run(asks_for_the_time, range(20), setup=lambda: Tag(name="a").save(using=ALIAS), batch_writes=True)
    assert len({value for _status, value, *_rest in ran.outcomes}) == 20
    assert ran.batching.undone == 0


def asks_for_one_and_true(number):
    value = Value(True) if number % 2 else Value(1)
    return repr(Tag.objects.using(ALIAS).values_list(value).first())


def test_values_that_only_python_calls_equal_are_told_apart():
    run_both(asks_for_one_and_true, range(20), setup=lambda: Tag(name="a").save(using=ALIAS))


def asks_for_nan(number):
    return repr(Sample.objects.using(ALIAS).values_list("share", flat=True).get())


def test_an_answer_that_equals_nothing_is_asked_for_each_time():
    def setup():
        Sample(share=float("nan")).save(using=ALIAS)

    batching = run_both(asks_for_nan, range(20), setup=setup)
    assert (batching.undone, batching.spared) == (0, 0)


def counts_with_others(number):
    tag = Tag.objects.using(ALIAS).get(name="a")
    Thing.objects.using(ALIAS).filter(visits=0).update(group=F("group") + 1)
    person = Person(name=f"{tag.name} {number}")
    person.save(using=ALIAS)
    person.tags.add(tag)
    return Thing.objects.using(ALIAS).get(visits=0).group


def test_a_row_that_is_changed_by_an_expression_is_read_anew():
    def setup():
        Tag(name="a").save(using=ALIAS)
        Thing(visits=0, group=0).save(using=ALIAS)

    assert run_both(counts_with_others, range(40), setup=setup, receivers=ALL).undone == 0


def fails_at_times(number):
    Group.objects.using(ALIAS).get(name="customers")
    Tag(name=f"{uuid.UUID(int=number)}").save(using=ALIAS)
    if number % 7 == 2:
        raise ValueError(Tag.objects.using(ALIAS).filter(name="nothing").count())


def test_objects_that_fail_leave_answers_to_others():
    batching = run_both(fails_at_times, range(40))
    assert (batching.batched, batching.undone) == (2, 0)
