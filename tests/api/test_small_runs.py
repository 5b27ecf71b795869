"""A run of a few objects in the caller's thread is a loop: it sends the same, reads what is appended, keeps nothing."""

import gc
import sys
import weakref
from contextlib import contextmanager

import pytest
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

import poolsave
from poolsave import pooled_operation
from tests.models import Tag

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "postgres"])

IN_THE_CALLER = pytest.mark.parametrize("executor", ["auto", "serial"])
MOST_FUNCTIONS = 250
"""Functions of poolsave that a run of one object calls. Each takes about half a microsecond."""


def tag(alias):
    return lambda number: Tag.objects.using(alias).create(name=f"tag {number}")


def in_the_caller(function, executor, **options):
    return pooled_operation(function, executor=executor, progress=False, **options)


@IN_THE_CALLER
@pytest.mark.parametrize("alias", ["default", "postgres"])
def test_a_run_sends_what_a_loop_sends(alias, executor):
    operation = in_the_caller(tag(alias), executor, databases=[alias])
    with CaptureQueriesContext(connections[alias]) as of_loop:
        for number in range(3):
            with transaction.atomic(using=alias):
                tag(alias)(number)
    Tag.objects.using(alias).all().delete()
    with CaptureQueriesContext(connections[alias]) as of_run:
        operation.map([0, 1, 2]).raise_if_failed()
    assert [query["sql"] for query in of_run] == [query["sql"] for query in of_loop]


@IN_THE_CALLER
def test_objects_that_a_function_appends_are_read(executor):
    found = ["a"]

    def crawl(name):
        if len(name) < 4:
            found.append(name + "a")
        return name

    assert in_the_caller(crawl, executor, transaction=None).map(found).values == ["a", "aa", "aaa", "aaaa"]


class Item:
    """An object whose end can be seen."""


@contextmanager
def no_collection():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@IN_THE_CALLER
def test_a_run_keeps_no_object_after_its_report(executor):
    operation, item = in_the_caller(lambda item: item, executor, transaction=None), Item()
    seen = weakref.ref(item)
    with no_collection():
        report = operation.map([item])
        del item
        assert seen() is report.values[0]
        del report
        assert seen() is None


@IN_THE_CALLER
def test_one_object_calls_few_functions(executor):
    operation, called = in_the_caller(tag("default"), executor), []

    def note(frame, event, _argument):
        if event == "call" and frame.f_code.co_filename.startswith(poolsave.__path__[0]):
            called.append(frame.f_code.co_qualname)

    operation.map([1]).raise_if_failed()
    sys.setprofile(note)
    try:
        operation.map([2]).raise_if_failed()
    finally:
        sys.setprofile(None)
    assert 0 < len(called) <= MOST_FUNCTIONS, called
