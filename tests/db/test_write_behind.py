"""With `batch_writes`, rows go together, and outcomes, tables, signals and callbacks are those of a run without it."""

import datetime as dt
import decimal
import re
import time
import uuid
from collections import Counter
from contextlib import suppress

import pytest
from django.conf import settings
from django.contrib.auth.models import Group
from django.db import IntegrityError, connections, models, transaction
from django.db.models import F
from django.utils.safestring import mark_safe

from poolsave import InvalidOption, Status, pooled_operation
from tests.conftest import needs_mariadb
from tests.models import Badge, Employee, Person, Sample, Stamped, Tag, Thing, ThingByText, ThingByUuid, Visit
from tests.support.comparing import ALIAS, ALL, OPTIONS, atomic, called, execute, rows, run, run_both, user

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

NAMES = [f"it's {number}% \\ 'n'" for number in range(20)]


def save_person(name):
    Person(name=name).save(using=ALIAS)  # a receiver writes a badge


def save_user(name):
    user(name)


def save_employee_with_tags(name):
    employee = Employee(name=name, salary=len(name))
    employee.save(using=ALIAS)
    tags = [Tag(name=f"{name} {number}") for number in range(2)]
    for tag in tags:
        tag.save(using=ALIAS)
    employee.tags.add(*tags)


def save_by_uuid(number):
    ThingByUuid(visits=number).save(using=ALIAS)


class Colour(models.TextChoices):
    RED = "red"


def save_sample(number):
    data, day = {"number": number, "text": "it's \\ % \n"}, dt.date(2020, 1, 1 + number)
    Sample(
        text=[Colour.RED, mark_safe("a'b"), "\\x27", "%s %% \u20ac"][number % 4],
        number=-number,
        share=[float("nan"), float("inf"), -1 / 7, 1e300][number % 4],
        price=decimal.Decimal(number) / -4,
        is_new=number % 2 == 0,
        moment=dt.datetime(2020, 1, 1, 2, 3, 4, number, tzinfo=dt.UTC) if number % 3 else None,
        day=day,
        clock=dt.time(number, 1),
        span=dt.timedelta(days=-number, microseconds=7),
        data=data,
        raw=bytes([number, 0, 39, 92]),
        token=uuid.UUID(int=number),
    ).save(using=ALIAS)
    data["text"] = "changed afterwards"


@pytest.mark.parametrize(
    ("function", "objects", "rows_each"),
    [
        (save_person, NAMES, 2),
        (save_user, NAMES, 2),
        (save_employee_with_tags, NAMES, 7),
        (save_by_uuid, range(20), 1),
        (save_sample, range(20), 1),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_rows_go_together_and_are_those_of_a_run_without(function, objects, rows_each):
    batching = run_both(function, objects, chunksize=10)
    assert (batching.batched, batching.undone, batching.rows) == (2, 0, 20 * rows_each)
    assert batching.flushes == 2, batching


def save_many_tags(number):
    for tag in range(25):
        Tag(name=f"{number} {tag}").save(using=ALIAS)


def in_transaction(seconds):
    time.sleep(seconds)
    return execute("SELECT pg_current_xact_id()::text")


def automatic_chunks(objects, **options):
    """Give the numbers of objects in them."""
    ran = run(in_transaction, objects, chunksize="auto", **options)
    return [*Counter(str(value) for _status, value, *_rest in ran.outcomes).values()]


def test_automatic_chunks_are_longer_than_without():
    objects = [0.005] * 150
    assert len(automatic_chunks(objects, batch_writes=True)) < len(automatic_chunks(objects))


def test_automatic_chunks_have_a_bounded_number_of_objects():
    batching = run(lambda _number: None, range(6000), chunksize="auto", batch_writes=True).batching
    assert 6000 - 1 <= 500 * batching.batched  # the first object is a chunk of its own, which is not batched


def saves_twenty(number):
    for index in range(20):
        Thing(visits=number, group=index).save(using=ALIAS)


def test_rows_of_an_automatic_chunk_wait_for_its_end():
    batching = run(saves_twenty, range(600), chunksize="auto", batch_writes=True).batching
    assert batching.rows == 20 * 599  # the first object is a chunk of its own
    assert batching.flushes == batching.batched


def test_rows_of_a_large_chunk_go_before_memory_is_full():
    batching = run_both(save_many_tags, range(100), chunksize=100)
    assert (batching.batched, batching.undone, batching.rows) == (1, 0, 2500)
    assert batching.flushes == 2


def reads_its_tag(name):
    Tag(name=name).save(using=ALIAS)
    return Tag.objects.using(ALIAS).filter(name=name).count()


def reads_through_a_join(name):
    person = Person.objects.using(ALIAS).create(name=name)
    return Badge.objects.using(ALIAS).filter(person__name=name).count(), person.badge_set.count()


def reads_in_a_subquery(name):
    Tag(name=name).save(using=ALIAS)
    return Group.objects.using(ALIAS).filter(name__in=Tag.objects.using(ALIAS).values("name")).count()


def reads_raw(name):
    Tag(name=name).save(using=ALIAS)
    return execute("SELECT count(*) FROM Tests_Tag -- by another name")


def reads_past_django(name):
    Tag(name=name).save(using=ALIAS)
    with connections[ALIAS].connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM tests_tag")
        return cursor.fetchone()[0]


def reads_a_view(name):
    Tag(name=name).save(using=ALIAS)
    return execute("SELECT count(*) FROM names_of_tags")


def reads_by_a_function(name):
    Tag(name=name).save(using=ALIAS)
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT tags()")
        return cursor.fetchone()


def reads_page_by_page(name):
    Tag(name=name).save(using=ALIAS)
    return sum(1 for _tag in Tag.objects.using(ALIAS).iterator(chunk_size=2))


def saves_while_it_reads_pages(name):
    for tag in Tag.objects.using(ALIAS).filter(name__startswith="first").iterator(chunk_size=2):
        Thing(visits=len(tag.name)).save(using=ALIAS)
    Tag(name=f"first {name}").save(using=ALIAS)


def copies_out(name):
    Tag(name=name).save(using=ALIAS)
    raw = connections[ALIAS].connection
    with connections[ALIAS].cursor() as cursor:
        if hasattr(raw, "pgconn"):
            with cursor.copy("COPY tests_tag TO STDOUT") as copy:
                return sum(1 for _row in copy.rows())
        import io

        cursor.copy_expert("COPY tests_tag TO STDOUT", out := io.StringIO())
        return out.getvalue().count("\n")


def executes_many(name):
    Thing(visits=1).save(using=ALIAS)
    with connections[ALIAS].cursor() as cursor:
        cursor.executemany("UPDATE tests_thing SET visits = visits + %s", [(1,), (len(name),)])


def runs_a_block_of_code(name):
    Thing(visits=1).save(using=ALIAS)
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("DO $$ BEGIN UPDATE tests_thing SET visits = visits + 1; END $$")


def updates_by_an_expression(name):
    thing = Thing(visits=len(name))
    thing.save(using=ALIAS)
    Thing.objects.using(ALIAS).filter(visits__gt=3).update(visits=F("visits") + 1)
    thing.refresh_from_db()
    return thing.visits


def saves_twice(name):
    thing = Thing(visits=1)
    thing.save(using=ALIAS)
    thing.visits = 2
    thing.save()
    thing.group = 7
    thing.save(update_fields=["group"])


def deletes_some(name):
    tag = Tag.objects.using(ALIAS).create(name=name)
    if len(name) % 2:
        tag.delete()


def gets_or_creates(number):
    tag, created = Tag.objects.using(ALIAS).get_or_create(name=f"tag {number % 7}")
    return tag.name, created


def updates_or_creates(number):
    return ThingByText.objects.using(ALIAS).update_or_create(code=f"{number % 7}", defaults={"visits": number})[1]


def saves_under_its_own_key(number):
    thing = ThingByText(code=f"{number % 7}", visits=number)
    thing.save(using=ALIAS)  # an UPDATE, and an INSERT if it has changed nothing
    thing.group = 3
    thing.save()


def takes_what_the_database_gives(name):
    stamped = Stamped.objects.using(ALIAS).create(name=name)
    return stamped.created.year >= 2025


def locks_and_counts(name):
    thing, _created = Thing.objects.using(ALIAS).select_for_update().get_or_create(group=1)
    thing.visits += 1
    thing.save()
    Tag(name=f"{thing.visits}").save(using=ALIAS)


def saves_an_expression(name):
    thing = Thing(visits=1)
    thing.save(using=ALIAS)
    thing.visits = F("visits") + len(name)
    thing.save()


def bulk_creates(name):
    people = Person.objects.using(ALIAS).bulk_create([Person(name=f"{name} {number}") for number in range(3)])
    Badge.objects.using(ALIAS).bulk_create([Badge(person_id=person.pk) for person in people])
    Tag.objects.using(ALIAS).bulk_create([Tag(name=name), Tag(name="shared")], ignore_conflicts=True)


def adds_and_removes_tags(name):
    person = Person.objects.using(ALIAS).create(name=name)
    tags = [Tag.objects.using(ALIAS).get_or_create(name=f"tag {number}")[0] for number in range(3)]
    person.tags.add(*tags)
    person.tags.add(*tags)
    person.tags.remove(tags[0])
    person.tags.set(tags[:2])
    return person.tags.count()


FLUSHING = [
    *(reads_its_tag, reads_through_a_join, reads_in_a_subquery, reads_raw, reads_past_django, reads_page_by_page),
    *(saves_while_it_reads_pages, copies_out, executes_many, runs_a_block_of_code, updates_by_an_expression),
    *(saves_twice, deletes_some, takes_what_the_database_gives, locks_and_counts, saves_an_expression, bulk_creates),
    adds_and_removes_tags,
]


@pytest.mark.parametrize("function", FLUSHING)
def test_whatever_may_see_a_row_finds_it_sent(function):
    batching = run_both(function, NAMES[:6], receivers=ALL)
    assert batching.undone == 0, batching


@pytest.mark.parametrize("function", [gets_or_creates, updates_or_creates, saves_under_its_own_key])
def test_rows_that_may_be_there_are_found(function):
    run_both(function, range(20))


@pytest.fixture
def view_and_function():
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("CREATE VIEW names_of_tags AS SELECT name FROM tests_tag")
        cursor.execute("CREATE FUNCTION tags() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM tests_tag'")
    yield
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("DROP VIEW names_of_tags")
        cursor.execute("DROP FUNCTION tags()")


@pytest.mark.parametrize("function", [reads_a_view, reads_by_a_function])
def test_a_view_or_function_finds_rows_sent(view_and_function, function):
    assert run_both(function, NAMES[:6]).undone == 0


def fails_after_saving(name):
    save_person(name)
    if len(name) == len(NAMES[5]) and name in NAMES[3:8:2]:
        raise ValueError(name)


def fails_in_an_inner_block(name):
    with suppress(KeyError), atomic():
        save_person(f"undone {name}")
        with atomic():
            save_person(f"deeper {name}")
        transaction.on_commit(lambda: called.append(("never", name)), using=ALIAS)
        raise KeyError
    with atomic():
        save_person(name)
        transaction.on_commit(lambda: called.append(name), using=ALIAS)


def rolls_back_by_a_savepoint(name):
    mark = connections[ALIAS].savepoint()
    save_person(name)
    if name in NAMES[:3]:
        transaction.savepoint_rollback(mark, using=ALIAS)
    else:
        transaction.savepoint_commit(mark, using=ALIAS)


@pytest.mark.parametrize("function", [fails_after_saving, fails_in_an_inner_block, rolls_back_by_a_savepoint])
def test_what_fails_takes_its_rows_out_of_the_buffer(function):
    batching = run_both(function, NAMES)
    assert (batching.batched, batching.undone) == (1, 0)
    assert batching.rows >= 34


def refused_in_a_block_that_fails(number):
    with suppress(KeyError), atomic():
        save_twin(number)
        raise KeyError


def refused_in_an_object_that_fails(number):
    save_twin(number)
    if number > 10:
        raise KeyError


@pytest.mark.parametrize("function", [refused_in_a_block_that_fails, refused_in_an_object_that_fails])
def test_a_refused_row_is_found_though_it_is_taken_back(function):
    batching = run_both(function, range(20), setup=lambda: save_person("person 4"))
    assert batching.undone == 1


def save_twin(number):
    save_person(f"person {number % 15}")


def swallow_refusal(number):
    with suppress(IntegrityError):
        save_twin(number)


def catch_refusal(number):
    try:
        with atomic():
            save_twin(number)
    except IntegrityError:
        return "refused"
    return "saved"


def save_too_long(number):
    Tag(name="x" * (101 if number == 3 else 9) + f"{number}").save(using=ALIAS)


def save_nul(number):
    Tag(name=f"{number}" + "\0" * (number == 3)).save(using=ALIAS)


def save_null(number):
    Tag(name=None if number == 3 else f"{number}").save(using=ALIAS)


def save_unpicklable_json(number):
    Sample(data={"set": {1}} if number == 3 else {}).save(using=ALIAS)


def visit_nobody(number):
    Visit(person_id=-1 if number == 3 else Person.objects.using(ALIAS).create(name=f"{number}").pk).save(using=ALIAS)


def fail_after_reading(number):
    save_person(f"{number}")
    Person.objects.using(ALIAS).count()
    if number == 3:
        raise ValueError(number)


def ask_for_the_last_key(number):
    tag = Tag.objects.using(ALIAS).create(name=f"{number}")
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT currval(pg_get_serial_sequence('tests_tag', 'id'))")
        return cursor.fetchone()[0] == tag.pk


def set_savepoint_by_sql(number):
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SAVEPOINT mine")
        save_person(f"{number}")
        cursor.execute("ROLLBACK TO SAVEPOINT mine")


THERE = [save_twin, swallow_refusal, catch_refusal]


@pytest.mark.parametrize("function", THERE)
def test_only_objects_whose_rows_are_there_run_as_without(function):
    batching = run_both(function, range(20), chunksize=20)
    assert (batching.batched, batching.undone, batching.repeated) == (1, 0, 1)
    assert batching.rows == 30  # of the first fifteen


def save_numbered(number):
    save_person(f"person {number}")


def test_neighbours_of_refused_rows_run_once():
    def setup():
        for number in (4, 9):
            save_numbered(number)

    def of_people(ran, *, refused):
        names = ("'person 4'", "'person 9'")
        return [it for it in ran.signals if it[1] == "Person" and any(name in str(it) for name in names) == refused]

    plain, again = (run(save_numbered, range(20), batch_writes=batch, setup=setup) for batch in (False, True))
    assert again.outcomes == plain.outcomes
    assert of_people(again, refused=False) == of_people(plain, refused=False)
    assert again.signals[-2:] == of_people(plain, refused=True)


def tag_and_save_twin(number):
    Tag(name=f"{number}").save(using=ALIAS)
    save_twin(number)


def change_and_save_twin(number):
    thing = Thing.objects.using(ALIAS).create(visits=number)
    thing.visits += 1
    thing.save()
    save_twin(number)


def save_twin_or_fail(number):
    save_twin(number)
    if number in (3, 7, 14):
        raise ValueError(number)


def call_back_and_save_twin(number):
    transaction.on_commit(lambda: called.append(number), using=ALIAS)
    save_twin(number)


def raise_another_error(number):
    try:
        with atomic():
            Tag(name=f"{number}").save(using=ALIAS)
            save_twin(number)
    except IntegrityError as error:
        raise LookupError(number) from error


AT_THE_END = [tag_and_save_twin, change_and_save_twin, save_twin_or_fail, call_back_and_save_twin, raise_another_error]


@pytest.mark.parametrize("function", AT_THE_END)
def test_whatever_a_refused_object_has_saved_is_left_out(function):
    batching = run_both(function, range(20), chunksize=20)
    assert (batching.batched, batching.undone, batching.repeated) == (1, 0, 1)


def save_fifth_twin(number):
    save_person(f"person {number - (number % 5 == 4)}")


def count_before_it_is_refused(number):
    count = Tag.objects.using(ALIAS).count()
    Tag(name=f"{number}").save(using=ALIAS)
    try:
        with atomic():
            save_fifth_twin(number)
    except IntegrityError as error:
        raise LookupError(count) from error


def take_the_next_name(number):
    try:
        with atomic():
            save_fifth_twin(number)
    except IntegrityError:
        if number != 9:
            raise
        save_person(f"person {number + 1}")


def read_and_save_twin(number):
    tag_and_save_twin(number + 100)
    Person.objects.using(ALIAS).count()
    save_twin(number)


def write_and_save_twin(number):
    Thing.objects.using(ALIAS).filter(visits=number).update(visits=F("visits") + 1)
    save_twin(number)


def swallow_and_save_another(number):
    with suppress(IntegrityError), atomic():
        save_fifth_twin(number)
    Tag(name=f"{number - (number % 5 == 0)}").save(using=ALIAS)


def catch_it_where_another_counts(number):
    Tag(name=f"{number}").save(using=ALIAS)
    with suppress(IntegrityError), atomic():
        save_person(f"person {number - (number == 9)}")
    return Tag.objects.using(ALIAS).count() if number == 10 else None


def send_in_the_middle_and_save_twin(number):
    Tag(name=f"{number}").save(using=ALIAS)
    Tag.objects.using(ALIAS).bulk_create([Tag(name=f"{number}, too")], ignore_conflicts=True)
    save_twin(number)


def save_by_two_inserts(number):
    Person(name=f"{min(number, 18)}", pk=-1 if number == 18 else None).save(using=ALIAS, force_insert=True)


AT_THEIR_PLACE = [
    *(count_before_it_is_refused, read_and_save_twin, write_and_save_twin, send_in_the_middle_and_save_twin),
    *(save_by_two_inserts, take_the_next_name, swallow_and_save_another, catch_refusal),
    catch_it_where_another_counts,
]


@pytest.mark.parametrize("function", AT_THEIR_PLACE)
def test_refused_objects_run_at_their_place_where_it_matters(function):
    def setup():
        Thing.objects.using(ALIAS).bulk_create([Thing(visits=number) for number in range(0, 40, 2)])

    batching = run_both(function, range(20), chunksize=20, setup=setup)
    assert batching.batched == batching.repeated


@pytest.mark.skipif("pooled" not in settings.DATABASES, reason="not installed: psycopg_pool")
def test_what_a_refused_object_has_saved_elsewhere_goes_with_it():
    def save_in_two(number):
        Tag(name=f"{number}").save(using="pooled")
        save_twin(number)

    run_both(save_in_two, range(20), databases=(ALIAS, "pooled"))


def save_twin_of_a_row(tag):
    save_twin(int(tag.name))


def test_a_refused_object_of_a_queryset_has_its_row_again():
    def tags():
        return Tag.objects.using(ALIAS).all()

    def setup():
        tags().bulk_create([Tag(name=f"{number}") for number in range(20)])

    assert run_both(save_twin_of_a_row, tags, setup=setup).repeated == 1


def rename_or_save(step):
    """Whether a row is there depends on objects before and after."""
    name, person = step
    if person is not None:
        Person.objects.using(ALIAS).filter(name=person).update(name=name)
    try:
        with atomic():
            save_person(name)
    except IntegrityError:
        return "there", Person.objects.using(ALIAS).count()
    return Tag.objects.using(ALIAS).create(name=name).name


def test_objects_that_run_as_without_keep_their_place():
    steps = [(f"{number}", None) for number in range(30)]
    steps[10], steps[20], steps[25] = ("5", None), ("new", "7"), ("7", None)
    run_both(rename_or_save, steps, chunksize=30)


@pytest.mark.parametrize(("function", "undone"), [(save_twin, 0), (swallow_refusal, 0), (catch_refusal, 1)])
def test_many_refused_objects_run_alone_if_all_of_them_fail(function, undone):
    batching = run_both(function, range(24), chunksize=24)
    assert (batching.batched, batching.undone) == (1 - undone, undone)


REFUSED = [save_too_long, save_nul, save_null, visit_nobody]
UNDONE = [*REFUSED, fail_after_reading, ask_for_the_last_key, set_savepoint_by_sql]


@pytest.mark.parametrize("function", UNDONE)
def test_a_chunk_that_cannot_be_had_exactly_runs_again(function):
    batching = run_both(function, range(20), chunksize=20)
    assert batching.undone == (1 if function is not visit_nobody else 0)  # that is found at COMMIT


def read_by_a_cursor_of_another_class(number):
    Tag(name=f"{number}").save(using=ALIAS)
    raw = connections[ALIAS].connection
    if hasattr(raw, "pgconn"):
        import psycopg

        with psycopg.Cursor(raw) as cursor:
            return cursor.execute("SELECT count(*) FROM tests_tag").fetchone()[0]
    from psycopg2.extras import DictCursor

    with raw.cursor(cursor_factory=DictCursor) as cursor:
        cursor.execute("SELECT count(*) FROM tests_tag")
        return cursor.fetchone()[0]


def test_a_cursor_that_nothing_watches_runs_the_chunk_again():
    assert run_both(read_by_a_cursor_of_another_class, range(6)).undone == 1


def test_a_value_that_the_driver_refuses_fails_where_it_is_saved():
    assert run_both(save_unpicklable_json, range(8)).undone == 0


def add_things():
    Thing.objects.using(ALIAS).bulk_create([Thing(visits=number) for number in range(20)])


def all_things():
    return Thing.objects.using(ALIAS).all()


def change_and_save(thing):
    thing.visits *= 2
    thing.save()


def change_twice(thing):
    thing.visits *= 2
    thing.save()
    thing.group = thing.visits
    thing.save(update_fields=["group"])
    thing.visits += 1
    thing.save()


def change_by_the_manager(thing):
    changed = Thing.objects.using(ALIAS).filter(pk=thing.pk).update(group=thing.visits + 5)
    Tag(name=f"{thing.visits}").save(using=ALIAS)
    return changed


def fail_after_a_change(thing):
    thing.group = 7
    thing.save()
    if thing.visits % 5 == 2:
        raise ValueError(thing.visits)


@pytest.mark.parametrize("function", [change_and_save, change_twice, change_by_the_manager])
def test_changed_rows_of_a_table_go_together(function):
    batching = run_both(function, all_things, setup=add_things, chunksize=10)
    assert batching.rows == {change_and_save: 20, change_twice: 60, change_by_the_manager: 40}[function]
    assert (batching.undone, batching.flushes, batching.batched) == (0, 2, 2)


def test_a_change_is_taken_back_with_its_object():
    assert run_both(fail_after_a_change, all_things, setup=add_things).undone == 0


def save_samples():
    for number in range(20):
        save_sample(number)
    Sample.objects.using(ALIAS).create()


def change_sample(sample):
    sample.text += "'"
    sample.number = None if sample.number is None else sample.number * 1000
    sample.data = {"nested": [sample.data]}
    sample.save()
    sample.data["nested"] = "changed afterwards"


def test_changed_values_of_each_type_are_those_of_a_run_without():
    batching = run_both(change_sample, lambda: Sample.objects.using(ALIAS).all(), setup=save_samples, chunksize=21)
    assert (batching.undone, batching.rows) == (0, 21)


def save_people():
    Person.objects.using(ALIAS).bulk_create([Person(name=f"{number}") for number in range(20)])


def take_the_next_name(person):
    person.name = f"{int(person.name) + 1}"
    person.save()


def delete_behind_its_back(person):
    if person.name == "5":
        with connections[ALIAS].cursor() as cursor:
            cursor.execute("DELETE FROM tests_person WHERE id = %s", [person.pk])
    person.save()  # an UPDATE, and an INSERT where it changes nothing


@pytest.mark.parametrize("function", [take_the_next_name, delete_behind_its_back])
def test_changes_whose_order_or_number_matters_are_exact(function):
    run_both(function, lambda: Person.objects.using(ALIAS).all(), setup=save_people)


def test_a_table_whose_rows_were_not_there_is_not_tried_again():
    def save_new(number):
        ThingByText(code=f"{number}").save(using=ALIAS)  # an UPDATE first, which finds nothing

    assert run_both(save_new, range(60), chunksize=10).undone == 1


def redefine_a_table(number):
    Tag(name=f"{number}").save(using=ALIAS)
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE IF NOT EXISTS kept ON COMMIT DROP AS SELECT * FROM tests_tag")
        cursor.execute("SELECT count(*) FROM kept")
        return cursor.fetchone()[0]


def choose_a_schema(number):
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT set_config('search_path', %s, true)", ["other" if number % 2 else "public"])
    Tag(name=f"{number}").save(using=ALIAS)


def test_statements_that_change_the_schema_end_the_buffering():
    batching = run_both(redefine_a_table, range(6))
    assert (batching.flushes, batching.rows) == (1, 1)


@pytest.fixture
def other_schema():
    execute("CREATE SCHEMA other; CREATE TABLE other.tests_tag (LIKE public.tests_tag INCLUDING ALL)")
    yield
    execute("DROP SCHEMA other CASCADE")


def test_rows_go_into_the_schema_of_their_time(other_schema):
    for batch_writes in (False, True):
        run(choose_a_schema, range(6), batch_writes=batch_writes)
        with connections[ALIAS].cursor() as cursor:
            cursor.execute("SELECT name FROM public.tests_tag ORDER BY 1")
            assert cursor.fetchall() == [("0",), ("2",), ("4",)]
            cursor.execute("DELETE FROM other.tests_tag")
            assert cursor.rowcount == 3


COUNTING_TRIGGER = (
    "CREATE FUNCTION counts() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    'INSERT INTO tests_thing (visits, "group") SELECT count(*), 1 FROM tests_tag; RETURN NULL; END $$;'
    "CREATE TRIGGER counts AFTER INSERT ON tests_person FOR EACH ROW EXECUTE FUNCTION counts()"
)


def drop_trigger():
    execute("DROP FUNCTION IF EXISTS counts CASCADE")


@pytest.fixture
def no_trigger_afterwards():
    yield
    drop_trigger()


@pytest.fixture
def counting_trigger(no_trigger_afterwards):
    execute(COUNTING_TRIGGER)


def tag_and_person(name):
    Tag(name=name).save(using=ALIAS)
    save_person(name)


def test_a_trigger_sees_what_was_saved_before(counting_trigger):
    assert run_both(tag_and_person, NAMES[:6]).undone == 0


def add_a_trigger_in_the_middle(number):
    if number == 3:
        execute(COUNTING_TRIGGER)
    tag_and_person(f"{number}")


def test_a_trigger_made_midway_sees_what_was_saved_before(no_trigger_afterwards):
    run_both(add_a_trigger_in_the_middle, range(24), setup=drop_trigger, chunksize=8)


def test_keys_are_those_of_the_rows():
    def keys(name):
        person = Person.objects.using(ALIAS).create(name=name)
        return person.pk

    ran = run(keys, NAMES, batch_writes=True)
    people = dict(Person.objects.using(ALIAS).values_list("name", "pk"))
    assert [value for _status, value, *_rest in ran.outcomes] == [people[name] for name in NAMES]
    assert Person.objects.using(ALIAS).create(name="later").pk not in people.values()


def test_a_sequence_that_is_set_back_costs_nothing_but_time():
    def setup():
        Tag.objects.using(ALIAS).bulk_create([Tag(name=f"old {number}") for number in range(40)])
        with connections[ALIAS].cursor() as cursor:
            cursor.execute("SELECT setval(pg_get_serial_sequence('tests_tag', 'id'), min(id), false) FROM tests_tag")

    ran = run(lambda name: Tag(name=name).save(using=ALIAS), NAMES, batch_writes=True, setup=setup, retries=0)
    saved = [name for name, (status, *_rest) in zip(NAMES, ran.outcomes, strict=True) if status is Status.SUCCEEDED]
    assert sorted(Tag.objects.using(ALIAS).exclude(name__startswith="old").values_list("name", flat=True)) == sorted(
        saved
    )


def save_one_too_long(number):
    Tag(name="x" * (101 if number % 5 == 3 else 9)).save(using=ALIAS)


def test_it_rests_while_it_does_not_pay_and_says_so():
    batching = run(save_one_too_long, range(120), batch_writes=True, chunksize=5, retries=0).batching
    assert batching.undone >= 2
    assert batching.rested > batching.undone
    assert "ran again" in str(batching)
    assert any("DataError" in reason for reason in batching.reasons)


def test_the_constraint_that_made_a_chunk_run_again_is_named():
    def saves_and_updates(number):
        Thing.objects.using(ALIAS).filter(visits=number).update(visits=F("visits") + 1)
        Tag(name=f"tag {number % 4}").save(using=ALIAS)

    [(reason, _times)] = run_both(saves_and_updates, range(20)).reasons.items()
    assert re.fullmatch(r"IntegrityError while buffered rows were sent \(tests_tag_name_\w+\)", reason)


def test_statements_that_send_rows_early_are_named():
    batching = run(reads_its_tag, NAMES, batch_writes=True, chunksize=20).batching
    [(statement, count)] = batching.reasons.items()
    assert statement.startswith("SELECT COUNT(*)")
    assert count == 20


def test_it_is_refused_without_a_transaction_per_chunk():
    for mode in ("object", None):
        with pytest.raises(InvalidOption, match=r'batch_writes=True.*set transaction="chunk"'):
            pooled_operation(save_person).using(transaction=mode, batch_writes=True).map([])


@pytest.mark.parametrize("alias", ["default", pytest.param("mariadb", marks=needs_mariadb)])
def test_it_is_refused_by_name_where_no_rows_can_be_held(alias):
    operation = pooled_operation(save_person).using(**{**OPTIONS, "databases": (alias,)}, batch_writes=True)
    with pytest.raises(InvalidOption, match=f"batch_writes=True.*{alias!r} is (SQLite|MariaDB), and only PostgreSQL"):
        operation.map(NAMES)
    assert rows()["people"] == []
