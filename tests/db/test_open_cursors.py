"""A table that the caller reads by iterator() does not keep workers from committing, also on SQLite."""

import threading

import pytest
from django.db import connections, transaction

from poolsave import concurrent_saves, pooled_operation
from tests.models import Person

pytestmark = pytest.mark.django_db(transaction=True, databases=["default"])
NAMES = ["a", "b", "c"]


def set_journal(mode):
    with connections["default"].cursor() as cursor:
        cursor.execute(f"PRAGMA journal_mode={mode}")


@pytest.fixture
def no_write_ahead_log(monkeypatch):
    """As Django opens a database."""
    options = {"timeout": 1, "init_command": "PRAGMA synchronous=OFF"}
    monkeypatch.setitem(connections["default"].settings_dict, "OPTIONS", options)
    connections["default"].close()
    set_journal("delete")
    yield
    set_journal("wal")
    connections["default"].close()


@pytest.fixture
def committed():
    return threading.Event()


@pytest.fixture
def rename(committed):
    def rename(pk):
        Person.objects.filter(pk=pk).update(name=f"new {pk}")
        transaction.on_commit(committed.set)

    return rename


def people():
    Person.objects.bulk_create(Person(name=name) for name in NAMES)
    return Person.objects.order_by("pk").iterator(chunk_size=1)


def is_renamed():
    return all(person.name == f"new {person.pk}" for person in Person.objects.all())


def test_an_input_by_iterator_lets_workers_commit(rename, committed, no_write_ahead_log):
    def keys():
        for person in people():
            committed.clear()
            yield person.pk
            assert committed.wait(20)

    operation = pooled_operation(rename, executor="thread", workers=1, chunksize=1, progress=False, retries=0)
    assert operation.map(keys()).succeeded == len(NAMES)
    assert is_renamed()


def test_a_loop_by_iterator_in_a_block_lets_workers_commit(rename, no_write_ahead_log):
    with concurrent_saves(executor="thread", workers=1, progress=False, retries=0) as saves:
        for person in people():
            saves.submit(rename, person.pk).result(20)
    assert is_renamed()


def test_afterwards_the_connection_reads_as_before(rename, no_write_ahead_log):
    connection = connections["default"]
    before = vars(connection).copy(), vars(connection.features).copy()
    pooled_operation(rename, executor="thread", workers=1, progress=False).map(person.pk for person in people())
    assert "chunked_cursor" not in {*vars(connection)} - {*before[0]}
    assert vars(connection.features) == before[1]


def test_with_a_write_ahead_log_rows_are_read_piece_by_piece(rename):
    connection = connections["default"]
    reads = []

    def keys():
        for person in people():
            reads.append(connection.features.can_use_chunked_reads)
            yield person.pk

    operation = pooled_operation(rename, executor="thread", workers=1, progress=False)
    assert operation.map(keys()).succeeded == len(NAMES)
    assert reads == [True] * len(NAMES)
