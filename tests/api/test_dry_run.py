"""`op.dry_run(objects)` says of every row of every table what a run would change, and leaves nothing."""

import sqlite3

import django
import pytest
from django.contrib.contenttypes.models import ContentType
from django.core import mail
from django.core.mail.backends import locmem
from django.db import connections, models, transaction
from django.db.models import F
from django.test.utils import isolate_apps

from poolsave import DROP, Change, DatabaseUnreachable, InvalidOperation, InvalidOption, pooled_operation
from tests.conftest import needs_mariadb
from tests.models import Account, Badge, Employee, Person, Tag, Thing, ThingByPair, ThingOfGroupOne, Visit
from tests.support.tables import contents

try:
    from django.tasks import task
except ImportError:  # before Django 6.0
    task = None

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@pytest.fixture
def preview_of(alias):
    """Makes a dry run, and looks that all tables are as before."""

    def preview_of(function, objects, samples=20, **options):
        before = contents(alias)
        try:
            return pooled_operation(databases=(alias,), **options)(function).dry_run(objects, samples)
        finally:
            assert contents(alias) == before
            assert not connections[alias].in_atomic_block
            assert not connections[alias].execute_wrappers

    return preview_of


def test_update_has_only_the_fields_that_differ(preview_of, alias):
    thing = Thing.objects.using(alias).create(visits=1, group=1)

    def visit(thing):
        thing.visits = F("visits") + 2
        thing.save()

    preview = preview_of(visit, ThingOfGroupOne.objects.using(alias))
    assert preview.changes == [Change(Thing, thing.pk, "update", {"visits": (1, 3)})]
    assert [change.database for change in preview.changes] == [alias]
    assert (preview.samples, preview.succeeded, preview.total, preview.errors) == (1, 1, 1, {})


def test_rows_of_receivers_parents_and_relations_are_changes(preview_of, alias):
    tag = Tag.objects.using(alias).create(name="red")

    def hire(name):
        employee = Employee.objects.using(alias).create(name=name, salary=3)
        employee.tags.add(tag)

    preview = preview_of(hire, ["ann"])
    told = {change.model: change for change in preview.changes}
    assert told.keys() == {Employee, Person, Badge, Person.tags.through}
    assert {change.action for change in preview.changes} == {"create"}
    key = told[Person].pk
    assert told[Person].fields == {"id": (None, key), "name": (None, "ann")}
    assert told[Employee].fields == {"person_ptr_id": (None, key), "salary": (None, 3)}
    assert told[Badge].fields["person_id"] == (None, key)
    assert told[Person.tags.through].fields["tag_id"] == (None, tag.pk)


def test_cascades_are_changes(preview_of, alias):
    ann = Person.objects.using(alias).create(name="ann")
    visit = Visit.objects.using(alias).create(person=ann)
    preview = preview_of(lambda person: person.delete(), Person.objects.using(alias))
    assert {change.model for change in preview.changes} == {Person, Badge, Visit}
    assert Change(Visit, visit.pk, "delete", {"id": (visit.pk, None), "person_id": (ann.pk, None)}) in preview.changes


def test_composite_key_is_a_tuple(preview_of, alias):
    ThingByPair.objects.using(alias).create(left=1, right="b", group=4)

    def empty(thing):
        thing.group = 0
        thing.save()

    assert preview_of(empty, ThingByPair.objects.using(alias)).changes == [
        Change(ThingByPair, (1, "b"), "update", {"group": (4, 0)})
    ]


def test_row_that_several_samples_write_is_one_change(preview_of, alias):
    thing = Thing.objects.using(alias).create()

    def count(number):
        assert Thing.objects.using(alias).get().visits == number  # sees what the sample before has written
        Thing.objects.using(alias).update(visits=F("visits") + 1)

    assert preview_of(count, range(3)).changes == [Change(Thing, thing.pk, "update", {"visits": (0, 3)})]


def test_row_that_is_created_and_deleted_is_no_change(preview_of, alias):
    assert preview_of(lambda name: Tag.objects.using(alias).create(name=name).delete(), ["red"]).changes == []


def test_writes_past_the_orm_are_counted_by_table(preview_of, alias):
    for name in ("a", "b", "c"):
        Tag.objects.using(alias).create(name=name)

    def write(_number):
        with connections[alias].cursor() as cursor:
            cursor.execute("UPDATE tests_tag SET name = lower(name)")
            cursor.executemany("INSERT INTO tests_badge (person_id) SELECT %s WHERE 1 = 0", [(1,), (2,)])
            cursor.executemany("DELETE FROM tests_tag WHERE name = %s", [("a",), ("b",), ("nobody",)])
            cursor.execute("SELECT 1")

    preview = preview_of(write, range(1))
    assert preview.other_writes == {"tests_tag": 5}
    assert preview.changes == []


@pytest.mark.parametrize("fetch", ["fetchone", "fetchall", "close"])
def test_rows_of_returning_are_counted(preview_of, alias, fetch):
    def write(number):
        with connections[alias].cursor() as cursor:
            cursor.execute("INSERT INTO tests_tag (name) VALUES (%s), (%s) RETURNING id", [f"a{number}", f"b{number}"])
            getattr(cursor, fetch)()

    assert preview_of(write, range(2)).other_writes == {"tests_tag": 4}


def test_what_a_failed_sample_wrote_past_the_orm_is_forgotten(preview_of, alias):
    thing = Thing.objects.using(alias).create(visits=1)

    def write(fails):
        with connections[alias].cursor() as cursor:
            cursor.execute("UPDATE tests_thing SET visits = 7")
        Thing.objects.using(alias).update(group=F("visits"))  # its row is read as it is now
        if fails:
            raise ValueError

    preview = preview_of(write, [True])
    assert (preview.changes, preview.other_writes) == ([], {})
    preview = preview_of(write, [True, False])
    assert preview.changes == [Change(Thing, thing.pk, "update", {"group": (0, 7)})]
    assert preview.other_writes == {"tests_thing": 1}


@pytest.fixture
def mailbox(settings):
    """Mail goes to `mail.outbox`, as under every test runner. Django 6.1 warns where it is set up in the old way."""
    if django.VERSION >= (6, 1):
        settings.MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}


@pytest.mark.usefixtures("mailbox")
def test_callbacks_and_mail_are_counted_and_not_run(preview_of, alias):
    called = []
    made_before = locmem.EmailBackend()

    def send(number):
        transaction.on_commit(lambda: called.append(number), using=alias)
        transaction.on_commit(lambda: called.append(number), using="second")  # where no transaction is open
        message = ("hello", "text", "me@example.org", ["you@example.org"])
        mail.send_mail(*message)
        mail.send_mass_mail([message, message])
        made_before.send_messages([mail.EmailMessage(*message)])
        mail.EmailMessage("to nobody").send()
        if number == 1:
            raise ValueError(number)  # its callback is forgotten; mail is sent at once, though

    preview = preview_of(send, range(3))
    assert called == [] == mail.outbox
    assert (preview.callbacks, preview.mail, preview.tasks) == (5, 12, 0)
    mail.send_mail("after", "text", "me@example.org", ["you@example.org"])
    assert len(mail.outbox) == 1


@pytest.mark.skipif(task is None, reason="django.tasks came with Django 6.0")
def test_tasks_are_counted_and_not_enqueued(preview_of, alias):
    from django.tasks import default_task_backend

    del performed[:]

    def enqueue(number):
        perform.enqueue(number)
        default_task_backend.enqueue(perform, [number], {})

    assert preview_of(enqueue, range(3)).tasks == 6
    assert performed == []
    perform.enqueue(4)
    assert performed == [4]


performed = []
if task is not None:

    @task
    def perform(number):
        performed.append(number)


def test_failed_sample_leaves_the_changes_of_the_others(preview_of, alias):
    Tag.objects.using(alias).create(name="b")

    def create(name):
        Badge.objects.using(alias).create(person=Person.objects.using(alias).create(name=name))
        Tag.objects.using(alias).create(name=name.lower())

    preview = preview_of(create, ["a", "b", "A", "c"])  # "A" clashes with a sample, "b" with a row
    (((name, _state), failures),) = preview.errors.items()
    assert (name, [failure.index for failure in failures]) == ("IntegrityError", [1, 2])
    assert [failure.item for failure in failures] == ["b", "A"]
    assert not preview.ok
    assert {change.fields["name"][1] for change in preview.changes if change.model is Tag} == {"a", "c"}
    assert len([change for change in preview.changes if change.model is Badge]) == 4


def test_constraint_that_is_deferred_fails_its_sample(preview_of, alias):
    Person.objects.using(alias).create(pk=1, name="ann")
    preview = preview_of(lambda key: Visit.objects.using(alias).create(person_id=key), [1, 99, 1])
    assert [failure.index for failure in preview.errors.popitem()[1]] == [1]
    assert [change.fields["person_id"] for change in preview.changes] == [(None, 1)] * 2


@pytest.mark.parametrize("alias", ["default", "postgres"])  # MariaDB checks at once
def test_broken_reference_from_before_fails_no_sample(alias):
    with transaction.atomic(using=alias):
        Visit.objects.using(alias).create(person_id=99)
        preview = pooled_operation(databases=(alias,))(
            lambda name: Visit.objects.using(alias).create(person=Person.objects.using(alias).create(name=name))
        ).dry_run(["ann"])
        transaction.set_rollback(True, using=alias)
    assert preview.ok


def test_write_lock_of_sqlite_is_taken_before_rows_are_read():
    """Else a row that another process writes after it was read here lets all that follows fail as locked."""
    Thing.objects.create()

    def write(thing):
        thing.visits += 1
        with sqlite3.connect(connections["default"].settings_dict["NAME"], timeout=0) as other:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("UPDATE tests_thing SET visits = 7")
        other.close()
        thing.save()

    preview = pooled_operation(write).dry_run(Thing.objects.all())
    assert [change.fields for change in preview.changes] == [{"visits": (0, 1)}]


@pytest.mark.parametrize("samples", [0, -1, True, 2.0, "3", None])
def test_samples_that_are_no_number_from_1_are_refused(samples):
    with pytest.raises(InvalidOption, match="samples"):
        pooled_operation(print).dry_run([], samples)


def test_function_without_transaction_is_refused():
    with pytest.raises(InvalidOption, match=r"transaction=None .* dry run"):
        pooled_operation(transaction=None)(print).dry_run([1])


def test_unknown_alias_is_refused():
    with pytest.raises(InvalidOption, match="nowhere"):
        pooled_operation(databases=("nowhere",))(print).dry_run([1])


def commit_by_statement(alias):
    connections[alias].cursor().execute("COMMIT")


def commit_by_django(alias):
    transaction.commit(using=alias)


def roll_back_by_django(alias):
    transaction.rollback(using=alias)


def begin_durably(alias):
    with transaction.atomic(using=alias, durable=True):
        pass


def write_elsewhere(alias):
    Tag.objects.using("second" if alias == "default" else "default").create(name="elsewhere")


@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize(
    "end", [commit_by_statement, commit_by_django, roll_back_by_django, begin_durably, write_elsewhere]
)
def test_what_no_rollback_undoes_is_refused(preview_of, alias, end, swallows):
    begun = []

    def save(name):
        begun.append(name)
        Tag.objects.using(alias).create(name=name)
        try:
            end(alias)
        except Exception:
            if not swallows:
                raise

    with pytest.raises(InvalidOperation, match="dry run could not undo"):
        preview_of(save, ["a", "b"])
    assert begun == ["a"]
    assert not Tag.objects.using("default").exists()
    assert not Tag.objects.using("second").exists()


def test_commit_past_django_ends_the_dry_run(alias):
    def save(name):
        Tag.objects.using(alias).create(name=name)
        connections[alias].connection.commit()
        Tag.objects.using(alias).create(name="later")

    with pytest.raises(InvalidOperation, match=r"ends the transaction|has ended the transaction"):
        pooled_operation(databases=(alias,))(save).dry_run(["a", "b"])
    assert not Tag.objects.using(alias).exclude(name="a").exists()  # psycopg 3 and MariaDB refuse it beforehand
    assert not connections[alias].in_atomic_block


def test_connection_that_is_closed_ends_the_dry_run(preview_of, alias):
    def close(name):
        Tag.objects.using(alias).create(name=name)
        connections[alias].close()

    with pytest.raises(transaction.TransactionManagementError, match="connection is closed"):
        preview_of(close, ["a", "b"])


@pytest.mark.parametrize("alias", [pytest.param("mariadb", marks=needs_mariadb)])
def test_table_without_transactions_is_refused(preview_of, alias):
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE plain_table (id integer) ENGINE=MyISAM")

    def write(number):
        with connections[alias].cursor() as cursor:
            cursor.execute("INSERT INTO plain_table VALUES (%s)", [number])

    try:
        with pytest.raises(InvalidOperation, match=r"plain_table.*MyISAM"):
            preview_of(write, [1])
        with pytest.raises(InvalidOperation, match="CREATE TABLE"):
            preview_of(lambda _: connections[alias].cursor().execute("CREATE TABLE other (id integer)"), [1])
    finally:
        with connections[alias].cursor() as cursor:
            cursor.execute("DROP TABLE plain_table")


def test_block_of_the_caller_goes_on_as_it_was(alias):
    called = []
    with transaction.atomic(using=alias):
        transaction.on_commit(lambda: called.append("the caller's"), using=alias)
        mine = Tag.objects.using(alias).create(name="mine")

        def rename(tag):
            tag.name = "renamed"
            tag.save()
            transaction.on_commit(lambda: called.append("a sample's"), using=alias)

        preview = pooled_operation(databases=(alias,))(rename).dry_run(Tag.objects.using(alias))
        assert preview.changes == [Change(Tag, mine.pk, "update", {"name": ("mine", "renamed")})]
        assert preview.callbacks == 1
        assert Tag.objects.using(alias).get().name == "mine"
    assert called == ["the caller's"]
    assert Tag.objects.using(alias).get().name == "mine"


def test_dry_run_in_a_sample_is_no_change_of_the_outer_one(preview_of, alias):
    inner = []

    def rename(tag):
        tag.name += "!"
        tag.save()

    def look(tag):
        inner.append(pooled_operation(databases=(alias,))(rename).dry_run(Tag.objects.using(alias)))
        assert Tag.objects.using(alias).get().name == "red"
        tag.name = "blue"
        tag.save()

    tag = Tag.objects.using(alias).create(name="red")
    preview = preview_of(look, Tag.objects.using(alias))
    assert inner[0].changes == [Change(Tag, tag.pk, "update", {"name": ("red", "red!")})]
    assert preview.changes == [Change(Tag, tag.pk, "update", {"name": ("red", "blue")})]
    assert preview.other_writes == {}


def test_first_rows_are_tried_in_the_order_of_their_keys(preview_of, alias):
    Thing.objects.using(alias).bulk_create([Thing(pk=key, group=key % 2) for key in (7, 3, 5, 9, 4)])
    tried = []
    preview = preview_of(lambda thing: tried.append(thing.pk), Thing.objects.using(alias).filter(group=1), samples=2)
    assert tried == [3, 5]
    assert (preview.samples, preview.total) == (2, 4)
    assert "2 of 4 rows" in str(preview)


def test_first_objects_of_any_iterable_are_tried(preview_of):
    tried, endless = [], iter(int, 1)
    preview = preview_of(tried.append, endless, samples=3)
    assert (tried, preview.total, preview.estimate) == ([0, 0, 0], None, None)
    assert preview_of(tried.append, [5] * 10, samples=3).total == 10
    assert preview_of(tried.append, iter([5]), samples=3).total == 1


def test_dry_run_of_nothing_says_no_time(preview_of, alias):
    for nothing in ([], Tag.objects.using(alias).none()):
        first, *others = str(preview_of(str, nothing)).splitlines()
        assert first.startswith("dry run of all 0 ")
        assert [line for line in others if "time:" in line] == []


def test_objects_of_the_caller_are_not_changed(preview_of, alias):
    tag = Tag(name="red")
    preview = preview_of(lambda tag: tag.save(using=alias), [tag])
    assert len(preview.changes) == 1
    assert (tag.pk, tag._state.adding, tag._state.db) == (None, True, None)


def test_content_type_that_is_rolled_back_is_not_remembered(preview_of, alias):
    types = ContentType.objects.db_manager(alias)
    types.all().delete()
    types.clear_cache()
    assert len(preview_of(lambda _: types.get_for_model(Tag), [1]).changes) == 1
    assert types.filter(pk=types.get_for_model(Tag).pk).exists()


def test_pipeline_is_tried_as_a_whole(alias):
    @pooled_operation(transaction=None)
    def clean(name):
        return name.strip() or DROP

    @pooled_operation(databases=(alias,), transaction="chunk")
    def save(name):
        if name == "b":
            Tag.objects.using(alias).create(name=name)
            raise ValueError(name)
        return Tag.objects.using(alias).create(name=name).pk

    preview = (clean | save).dry_run([" a ", " ", "b"])
    assert [change.fields["name"] for change in preview.changes] == [(None, "a")]
    assert (preview.succeeded, preview.dropped) == (1, 1)
    assert [failure.stage for failure in preview.errors["ValueError", None]] == ["save"]
    assert not Tag.objects.using(alias).exists()
    with pytest.raises(InvalidOption, match="transaction=None"):
        (clean | clean).dry_run([" a "])


def test_estimate_is_the_time_of_all_in_all_workers(preview_of, alias):
    preview = preview_of(lambda number: sum(range(10_000)), range(1000), samples=5, workers=4)
    workers = 1 if alias == "default" else 4  # SQLite has one writer
    assert preview.estimate == pytest.approx(1000 * preview.seconds_per_object / workers)
    assert 0 < preview.seconds_per_object < 10


@pytest.mark.usefixtures("mailbox")
def test_text_begins_with_what_would_become_of_the_objects(preview_of, alias):
    Account.objects.using(alias).create(pk=1)

    def rename(account):
        account.name = "ada"
        account.save(update_fields=["name"])
        transaction.on_commit(print, using=alias)
        mail.send_mail("hello", "text", "me@example.org", ["you@example.org"])

    lines = str(preview_of(rename, Account.objects.using(alias))).splitlines()
    assert lines[0] == "dry run of all 1 rows: 1 would succeed, 0 would fail; nothing was saved"
    assert lines[1:3] == [
        "  would update 1 row of tests.Account, such as 1: name '' -> 'ada'",
        "  caught and not run: 1 on_commit callback, 1 mail",
    ]


@pytest.mark.skipif(django.VERSION < (6, 1), reason="DB_CASCADE came with Django 6.1")
def test_cascades_of_the_database_are_changes(alias):
    with isolate_apps("tests"):

        class Shelf(models.Model):
            class Meta:
                app_label = "tests"

        class Book(models.Model):
            shelf = models.ForeignKey(Shelf, on_delete=models.DB_CASCADE)

            class Meta:
                app_label = "tests"

        class Loan(models.Model):
            book = models.ForeignKey(Book, on_delete=models.DB_SET_NULL, null=True)

            class Meta:
                app_label = "tests"

    with connections[alias].schema_editor() as editor:
        for model in (Shelf, Book, Loan):
            editor.create_model(model)
    try:
        shelf = Shelf.objects.using(alias).create()
        book = Book.objects.using(alias).create(shelf=shelf)
        loan = Loan.objects.using(alias).create(book=book)
        before = contents(alias)
        preview = pooled_operation(databases=(alias,))(lambda shelf: shelf.delete()).dry_run(Shelf.objects.using(alias))
        assert contents(alias) == before
        assert sorted((change.model.__name__, change.pk, change.action) for change in preview.changes) == [
            ("Book", book.pk, "delete"),
            ("Loan", loan.pk, "update"),
            ("Shelf", shelf.pk, "delete"),
        ]
    finally:
        with connections[alias].schema_editor() as editor:
            for model in (Loan, Book, Shelf):
                editor.delete_model(model)


def test_database_that_cannot_be_had_is_refused(monkeypatch):
    monkeypatch.setitem(connections["postgres"].settings_dict, "PORT", "1")
    connections["postgres"].close()
    with pytest.raises(DatabaseUnreachable, match="'postgres'"):
        pooled_operation(databases=("postgres",))(str).dry_run([1])


def test_key_over_a_queryset_is_refused():
    with pytest.raises(InvalidOption, match="primary keys only"):
        pooled_operation(key=str)(str).dry_run(Person.objects.all())
