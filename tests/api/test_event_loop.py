"""In a thread in which an event loop runs, as in Jupyter, pools work as elsewhere."""

import asyncio

import pytest
from asgiref.sync import async_to_sync
from django.db import connections, transaction

from poolsave import InsideTransaction, InvalidOperation, concurrent_saves, pooled_operation
from tests.models import Person
from tests.support import operations

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


def in_coroutine(function):
    """Call a function as a notebook's cell would."""

    async def main():
        return function()

    return asyncio.run(main())


@pytest.mark.parametrize(("workers", "chosen"), [(2, "process"), (1, "thread")])
def test_auto_leaves_the_thread_of_an_event_loop(workers, chosen):
    report = in_coroutine(lambda: operations.save_person.using(executor="auto", workers=workers).map(["a", "b"]))
    assert (report.succeeded, report.chosen) == (2, chosen)
    assert "event loop" in report.tried[0].verdict
    assert Person.objects.count() == 2


def test_auto_stays_in_an_event_loop_if_django_allows_it(monkeypatch):
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")

    def cell():
        report = operations.save_person.using(executor="auto").map(["a", "b"])
        connections.close_all()  # those of the coroutine, which nobody else finds
        return report

    report = in_coroutine(cell)
    assert (report.succeeded, report.chosen) == (2, "serial")


def test_auto_of_pipeline_and_block_leaves_an_event_loop():
    one = operations.save_person.using(executor="auto", workers=1)
    find = pooled_operation(lambda key: Person.objects.get(pk=key).name, executor="auto", workers=1, progress=False)
    assert in_coroutine(lambda: (one | find).map(["a", "b"])).values == ["a", "b"]

    def block():
        with concurrent_saves(executor="auto", workers=1) as saves:
            saves.save(Person(name="c"))
        return saves.report

    assert in_coroutine(block).chosen == "thread"
    assert Person.objects.count() == 3


def test_serial_is_refused_in_an_event_loop():
    serial = operations.save_person.using(executor="serial")
    for use in (
        lambda: serial.map(["a", "b"]),
        lambda: next(serial.stream(["a", "b"])),
        lambda: (serial | serial).map(["a", "b"]),
        lambda: concurrent_saves(executor="serial").__enter__(),
    ):
        with pytest.raises(InvalidOperation, match=r"an event loop runs in this thread.*sync_to_async"):
            in_coroutine(use)
    assert in_coroutine(lambda: operations.doubles.using(executor="serial").map([1])).values == [2]


def test_transaction_around_async_to_sync_is_refused():
    """The coroutine runs in another thread, whose connections are not those of the transaction."""
    operation = operations.save_person.using(executor="thread")

    async def in_another_thread(use):
        assert not connections["default"].in_atomic_block
        return use()

    for use in (
        lambda: operation.map(["a"]),
        lambda: next(operation.stream(["a"])),
        lambda: (operation | operation).map(["a"]),
        lambda: concurrent_saves(executor="thread").__enter__(),
    ):
        with transaction.atomic(), pytest.raises(InsideTransaction):
            async_to_sync(in_another_thread)(use)
    assert async_to_sync(in_another_thread)(lambda: operation.map(["a"])).ok
