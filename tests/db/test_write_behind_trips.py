"""With `batch_writes`, a chunk of INSERTs and UPDATEs takes one statement and its COMMIT, as long as settings stay."""

from functools import partial

import pytest
from django.db import connections, transaction

from poolsave._db import transactions
from tests.models import Tag, Thing
from tests.support.comparing import ALIAS, execute, run

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

sent: list = []


def note(send, sql, params, many, context):
    sent.append(sql)
    return send(sql, params, many, context)


def saves_some(number):
    wrappers = connections[ALIAS].execute_wrappers
    if note not in wrappers:
        wrappers.append(note)
    thing = Thing(visits=number)
    thing.save(using=ALIAS)
    thing.group = number
    thing.save()
    Tag.objects.using(ALIAS).bulk_create([Tag(name=f"{number}")])


@pytest.mark.parametrize("chunksize", [20, 600])
def test_a_chunk_takes_one_statement_and_its_commit(chunksize):
    sent.clear()
    ran = run(saves_some, range(5 * chunksize), batch_writes=True, chunksize=chunksize)
    assert ran.batching.rows == 15 * chunksize
    assert ran.batching.undone == 0
    first = next(number for number, text in enumerate(sent) if "INSERT" in text)
    assert len(sent[first:]) == 5
    assert all("INSERT" in text for text in sent[first:])


def asks_for_the_id_and_saves(number):
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT pg_current_xact_id()::text")
        given = int(cursor.fetchone()[0])
    Thing.objects.using(ALIAS).create(visits=number)
    return given


def test_the_id_that_is_noted_is_that_of_the_transaction(monkeypatch):
    noted = []

    class Note(transactions.TransactionNote):
        def to_int(self):
            noted.append(self.xid)
            return super().to_int()

    monkeypatch.setattr(transactions, "TransactionNote", Note)
    ran = run(asks_for_the_id_and_saves, range(60), batch_writes=True)
    assert len(noted) == 3
    assert [value for _status, value, *_rest in ran.outcomes] == [xid for xid in noted for _ in range(20)]


def saves_and_changes_the_path(number):
    Thing.objects.using(ALIAS).create(visits=number)
    if number == 5:
        change = partial(execute, "SET search_path TO elsewhere, public")
        transaction.on_commit(change, using=ALIAS)


def test_a_path_that_a_callback_changes_is_noticed():
    execute(
        "CREATE SCHEMA elsewhere; "
        "CREATE TABLE elsewhere.tests_thing (LIKE public.tests_thing INCLUDING ALL); "
        'INSERT INTO elsewhere.tests_thing (visits, "group") VALUES (0, 0)'
    )
    try:
        ran, found = {}, {}
        for batch_writes in (False, True):
            execute("DELETE FROM elsewhere.tests_thing")
            ran[batch_writes] = run(saves_and_changes_the_path, range(60), batch_writes=batch_writes)
            found[batch_writes] = execute("SELECT visits FROM elsewhere.tests_thing ORDER BY visits")
    finally:
        execute("DROP SCHEMA elsewhere CASCADE")
    assert found[True] == found[False] == [(visits,) for visits in range(20, 60)]
    assert ran[True].outcomes == ran[False].outcomes
    assert ran[True].batching.undone == 1
