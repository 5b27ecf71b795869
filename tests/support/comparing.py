"""Runs a function with and without `batch_writes`, and compares outcomes, tables, signals and callbacks."""

from contextlib import contextmanager
from typing import Any, NamedTuple

from django.contrib.auth.models import Group, User
from django.db import connections, transaction
from django.db.models.signals import m2m_changed, post_save, pre_save

from poolsave import pooled_operation

ALIAS = "postgres"
OPTIONS = {"executor": "thread", "workers": 1, "databases": (ALIAS,), "transaction": "chunk", "chunksize": 20}
"""Threads have connections of their own with either driver."""

TABLES = {
    "people": "SELECT p.name, e.salary FROM tests_person p LEFT JOIN tests_employee e ON e.person_ptr_id = p.id",
    "badges": "SELECT p.name FROM tests_badge b LEFT JOIN tests_person p ON p.id = b.person_id",
    "visits": "SELECT p.name FROM tests_visit v LEFT JOIN tests_person p ON p.id = v.person_id",
    "tags": "SELECT name FROM tests_tag",
    "tags of people": "SELECT p.name, t.name FROM tests_person_tags m LEFT JOIN tests_person p ON p.id = m.person_id "
    "LEFT JOIN tests_tag t ON t.id = m.tag_id",
    "users": "SELECT u.username, g.name FROM auth_user u LEFT JOIN auth_user_groups m ON m.user_id = u.id "
    "LEFT JOIN auth_group g ON g.id = m.group_id",
    "things": 'SELECT t.visits, t."group", p.name FROM tests_thing t LEFT JOIN tests_person p ON p.id = t.owner_id',
    "things by text": 'SELECT code, visits, "group" FROM tests_thingbytext',
    "things by uuid": 'SELECT visits, "group" FROM tests_thingbyuuid',
    "samples": "SELECT text, number, share, price, is_new, moment, day, clock, span, data::text, raw, token "
    "FROM tests_sample",
    "stamped": "SELECT name, created IS NULL FROM tests_stamped",
}
"""Rows without their keys, which differ."""


FILLED = """
tests_badge tests_visit tests_employee tests_person_tags tests_thing_tags tests_thing tests_person tests_tag
tests_thingbytext tests_thingbyuuid tests_sample tests_stamped auth_user_groups auth_user auth_group
""".split()


class Ran(NamedTuple):
    """What a run has left."""

    outcomes: list
    tables: dict
    signals: list
    called: list
    batching: Any


def execute(statement):
    """Send a statement, and give its rows."""
    with connections[ALIAS].cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else None


signals: list = []
called: list = []
"""What functions and their callbacks append."""


def run(function, objects, *, setup=None, receivers=None, **options):
    """Run the function on empty tables. `objects` may be a function, which is called after `setup`.

    A receiver of m2m_changed makes Django look which rows are there.
    """
    empty()
    if setup is not None:
        setup()
    signals.clear()
    called.clear()
    operation = pooled_operation(function).using(**{**OPTIONS, "keep": "all", "progress": False, **options})
    with recorded_signals(receivers or SAVES):
        report = operation.map(objects() if callable(objects) else objects)
    outcomes = [
        (out.status, out.value, type(out.error).__name__, out.attempts, str(out.error).partition("\n")[0])
        for out in report
    ]
    return Ran(outcomes, rows(), [*signals], [*called], report.statistics.batching)


def run_both(function, objects, **more):
    """Run it without and with `batch_writes`, and hold the second against the first; gives what the second did."""
    plain = run(function, objects, **more)
    batched = run(function, objects, batch_writes=True, **more)
    assert batched.outcomes == plain.outcomes
    assert batched.tables == plain.tables
    assert batched.called == plain.called
    # The signals of a chunk that ran again come twice, and a chunk of one object is run in the ordinary way.
    if batched.batching is None or not (batched.batching.undone or batched.batching.repeated):
        assert batched.signals == plain.signals
    return batched.batching


def rows():
    """Give the rows of all tables, sorted."""
    found = {}
    with connections[ALIAS].cursor() as cursor:
        for name, query in TABLES.items():
            cursor.execute(query)
            found[name] = sorted(map(repr, map(_plain, cursor.fetchall())))
    return found


def _plain(row):
    return tuple(bytes(value) if isinstance(value, memoryview) else value for value in row)


def empty():
    """Empty the tables, and leave one group, which is called customers."""
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("; ".join(f"DELETE FROM {table}" for table in FILLED))
    Group.objects.using(ALIAS).create(name="customers")


@contextmanager
def recorded_signals(receivers):
    """Note which signals come, in which order, and what a receiver sees of the instance."""
    for signal, receiver in receivers.items():
        signal.connect(receiver)
    try:
        yield
    finally:
        for signal, receiver in receivers.items():
            signal.disconnect(receiver)


def _before(sender, instance, **_rest):
    signals.append(("pre_save", sender.__name__, _described(instance)))


def _after(sender, instance, created, **_rest):
    signals.append(("post_save", sender.__name__, created, instance.pk is not None, _described(instance)))


def _look(sender, instance, created, **rest):
    """Note also whether the row is there, and how many are."""
    _after(sender, instance, created, **rest)
    rows = sender._base_manager.using(ALIAS)
    signals.append((rows.filter(pk=instance.pk).exists(), rows.filter(pk=None).exists(), rows.count()))


def _changed(sender, instance, action, pk_set, **_rest):
    signals.append((action, sender.__name__, _described(instance), pk_set and len(pk_set)))


def _described(instance):
    """What a receiver sees of an instance, and of the tables: keys differ between runs."""
    fields = [field for field in instance._meta.concrete_fields if not field.is_relation and not field.primary_key]
    values = [
        (field.name, repr(*_plain([field.value_from_object(instance)]))) for field in fields if field.name not in TIMES
    ]
    return instance._meta.label, values, instance._state.adding, instance._state.db


TIMES = ("date_joined", "created", "token")
"""Fields whose values differ between runs."""
SAVES = {pre_save: _before, post_save: _after}
ALL = {**SAVES, m2m_changed: _changed}
LOOKING = {**SAVES, post_save: _look}


def user(name):
    """Save a user with a group."""
    made = User(username=name, password="!")
    made.save(using=ALIAS)
    made.groups.add(Group.objects.using(ALIAS).get(name="customers"))


def atomic():
    return transaction.atomic(using=ALIAS)
