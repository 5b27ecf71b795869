"""After a dry run every table is as before, also if samples raise or the process is killed in the middle."""

import os
import signal

import pytest
from django.db import connections, transaction
from django.db.models import F

from poolsave import Status, WorkerDied, pooled_operation
from tests.models import Account, Employee, Person, SavingsAccount, Tag
from tests.support.tables import contents

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@pooled_operation
def write_everywhere(number, *, alias, end):
    """Writes in each way that the ORM has, and past it."""
    employee = Employee.objects.using(alias).create(name=f"employee {number}", salary=number)
    employee.tags.set(Tag.objects.using(alias).order_by("pk"))
    Tag.objects.using(alias).bulk_create([Tag(name=f"tag {number}"), Tag(name="red")], ignore_conflicts=True)
    Account.objects.using(alias).update(balance=F("balance") + 1, data={"number": number})
    SavingsAccount.objects.using(alias).filter(rate=0).update(name="all", rate=1)
    Person.objects.using(alias).filter(name="ann").delete()
    with connections[alias].cursor() as cursor:
        cursor.execute("INSERT INTO tests_badge (person_id) VALUES (%s)", [employee.pk])
        cursor.execute("UPDATE tests_auditentry SET actor = 'bob'")
    if number == 2:
        end()


def fails():
    raise ValueError("in the middle")


def exits():
    raise SystemExit(3)


def is_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def tries(alias, end):
    return write_everywhere.using(databases=(alias,)).bind(alias=alias, end=end).dry_run(range(5))


@pooled_operation(transaction=None, workers=1, start_method="fork", progress=False)
def tries_and_dies(alias):
    tries(alias, is_killed)


@pytest.fixture
def filled(alias):
    ann = Person.objects.using(alias).create(name="ann")
    ann.tags.add(Tag.objects.using(alias).create(name="red"))
    SavingsAccount.objects.using(alias).create(owner=ann)
    SavingsAccount.objects.using(alias).create()
    connections[alias].cursor().execute("INSERT INTO tests_auditentry (actor, tag) VALUES ('ann', 'red')")
    before = contents(alias)
    assert sum(map(len, before.values())) >= 7
    return before


@pytest.mark.parametrize("end", [int, fails, exits])
def test_tables_are_as_before_however_samples_end(alias, filled, end):
    preview = tries(alias, end)
    assert contents(alias) == filled
    assert preview.succeeded == (5 if end is int else 4)
    assert {change.action for change in preview.changes} == {"create", "update", "delete"}
    assert preview.other_writes == dict.fromkeys(["tests_badge", "tests_auditentry"], preview.succeeded)


def test_tables_are_as_before_inside_a_block_of_the_caller(alias, filled):
    with transaction.atomic(using=alias):
        tries(alias, fails)
        assert contents(alias) == filled


def test_tables_are_as_before_when_the_process_is_killed(alias, filled):
    (outcome,) = tries_and_dies.map([alias])
    assert outcome.status is Status.LOST
    assert isinstance(outcome.error, WorkerDied)
    assert outcome.error.signal == "SIGKILL"
    assert contents(alias) == filled


def test_tables_are_as_before_after_an_interrupt(alias, filled):
    def interrupts():
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tries(alias, interrupts)
    assert contents(alias) == filled
    assert not connections[alias].in_atomic_block
