"""A transaction that the caller opens while a run is under way is refused, and nothing waits for its locks.

An input that holds it is ended; a stream goes on when the transaction is left.
"""

import itertools

import pytest
from django.db import connections, transaction

from poolsave import InsideTransaction, concurrent_saves, pooled_operation
from tests.models import Person, Tag

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "postgres"])
POOLS = [{"executor": "thread"}, {"executor": "process"}]


@pooled_operation(workers=2, progress=False, chunksize=1)
def saves_tag(name):
    return Tag.objects.create(name=name).name


@pooled_operation(workers=2, progress=False, transaction=None)
def same(name):
    return name


@pooled_operation(workers=1, progress=False, chunksize=1, databases=["postgres"])
def renames(key):
    Person.objects.using("postgres").filter(pk=key).update(name="renamed")


def holds_from(first, names):
    """Yields from inside atomic() from one of its values on."""
    names = iter(names)
    yield from itertools.islice(names, first)
    with transaction.atomic():
        Tag.objects.create(name="claim")
        yield from names


class Holds:
    """An iterator without `close`, which cannot be ended."""

    def __init__(self, names):
        self.names = iter(names)
        self.block = transaction.atomic()

    def __iter__(self):
        return self

    def __next__(self):
        if not transaction.get_connection().in_atomic_block:
            self.block.__enter__()
        return next(self.names)


def map_in_block(operation, objects, **options):
    with concurrent_saves(workers=2, progress=False, on_failure="collect", **options) as saves:
        return saves.map(operation, objects)


WAYS = {
    "map": lambda objects, **pool: saves_tag.using(**pool).map(objects),
    "stream": lambda objects, **pool: [*saves_tag.using(**pool).stream(objects)],
    "pipeline": lambda objects, **pool: (same.using(**pool) | saves_tag.using(**pool)).map(objects),
    "block": lambda objects, **pool: map_in_block(saves_tag, objects, **pool),
}


def names(count):
    return (f"tag {number}" for number in range(count))


def tags():
    return {*Tag.objects.values_list("name", flat=True)}


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", [0, 5])
def test_input_that_holds_a_transaction_is_ended_and_refused(way, pool, first):
    with pytest.raises(InsideTransaction, match=r"the input has opened it|leave the atomic") as caught:
        WAYS[way](holds_from(first, names(30)), **pool)
    assert not connections["default"].in_atomic_block
    report = caught.value.report
    assert (report.failed, report.lost) == (0, 0)
    assert len(tags()) == report.succeeded <= first  # what had not begun is skipped
    assert tags() <= {*names(first)}


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_input_that_cannot_be_ended_is_refused(pool):
    objects = Holds(names(5))
    with pytest.raises(InsideTransaction) as caught:
        saves_tag.using(**pool).map(objects)
    assert caught.value.report.succeeded == 0
    objects.block.__exit__(ValueError, None, None)


@pytest.mark.parametrize("executor", ["serial", "auto"])
def test_objects_that_run_in_the_callers_thread_are_in_it(executor):
    report = saves_tag.using(executor=executor).map(holds_from(2, names(6)))
    assert report.succeeded == 6
    assert tags() == {"claim", *names(6)}


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_an_input_may_read_in_a_transaction_and_yield_outside(pool):
    def pages():
        for _ in range(3):
            with transaction.atomic():
                page = [f"tag {number}" for number in range(Tag.objects.count(), Tag.objects.count() + 2)]
            yield from page

    assert same.using(**pool).map(pages()).total == 6


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("read", [0, 3])
def test_a_stream_that_is_read_in_one_goes_on_outside(pool, ordered, read):
    stream = saves_tag.using(**pool, window=2).stream(names(8), ordered=ordered)
    found = [outcome.value for outcome in itertools.islice(stream, read)]
    with transaction.atomic():
        with pytest.raises(InsideTransaction) as caught:
            found += [outcome.value for outcome in stream]
        assert caught.value.report.succeeded >= len(found)
    found += [outcome.value for outcome in stream]
    assert {*found} == {*names(8)} == tags()
    with transaction.atomic():
        assert next(stream, None) is None  # there is nothing any more that could wait


def test_stream_closes_while_workers_wait_for_the_caller_s_lock():
    first, second = (Person.objects.using("postgres").create(name=name).pk for name in "ab")
    stream = renames.using(window=2, workers=2).stream([first, second, second])
    aliases, stream._run._aliases = stream._run._aliases, tuple  # none, so that it gets as far as that
    with transaction.atomic(using="postgres"):
        Person.objects.using("postgres").select_for_update().get(pk=second)
        next(stream)
        stream._run._aliases = aliases
        stream.close()
    report = stream._run.report
    assert (report.succeeded, report.failed + report.skipped) == (1, report.total - 1)
    assert [*Person.objects.using("postgres").order_by("pk").values_list("name", flat=True)] == ["renamed", "b"]
