"""An input that changes one object to give it again and again is refused: what waits would run with a later content."""

from itertools import repeat

import pytest

from poolsave import InvalidOperation, pooled_operation
from tests.models import Tag


class Row:
    number = 0


@pooled_operation(workers=2, transaction=None, progress=False)
def number_of(row):
    return row.number if isinstance(row, Row) else row[0]


def change_a_dict():
    row = {}
    for number in range(200):
        row[0] = number
        yield row


def change_a_list():
    row = [0]
    for number in range(200):
        row[0] = number
        yield row


def change_an_object():
    row = Row()
    for number in range(200):
        row.number = number
        yield row


class ReaderWithOneBuffer:
    """As some readers of files have it: no generator."""

    def __init__(self):
        self.rows = change_a_list()

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.rows)


@pytest.mark.parametrize("rows", [change_a_dict, change_a_list, change_an_object, ReaderWithOneBuffer])
@pytest.mark.parametrize("executor", ["serial", "thread", "process"])
@pytest.mark.parametrize("key", [None, number_of.__wrapped__])
def test_input_that_changes_its_object_is_refused(executor, rows, key):
    with pytest.raises(InvalidOperation, match="make a new one for each") as caught:
        number_of.using(executor=executor, key=key, chunksize=20, keep="all").map(rows())
    outcomes = list(caught.value.report)
    if executor != "thread":  # there the first object may run while it is being changed
        assert [outcome.value for outcome in outcomes] == list(range(len(outcomes)))


def test_input_that_changes_what_threads_wait_for_is_refused():
    with pytest.raises(InvalidOperation, match="at index 0, dict"):
        number_of.using(executor="thread", chunksize=1).map(change_a_dict())


def test_row_with_one_change_after_the_other_is_refused():
    def changes_every_second():
        for number in range(100):
            row = [number]
            yield row
            row[0] = -number
            yield row

    with pytest.raises(InvalidOperation, match="list, to give it once more"):
        number_of.using(executor="process", chunksize=10).map(changes_every_second())


@pytest.mark.parametrize("executor", ["serial", "thread", "process"])
def test_object_that_is_given_again_unchanged_runs_again(executor):
    report = number_of.using(executor=executor, chunksize=10).map(repeat({0: 7}, 50))
    assert report.values == [7] * 50
    assert number_of.using(executor=executor, chunksize=10).map([[3]] * 20).values == [3] * 20


@pytest.mark.django_db(transaction=True)
def test_function_may_change_what_is_given_again_in_series():
    """As in a loop: there the function, and not the input, has changed it in the meantime."""
    tag = Tag(name="x")

    def saves_anew(tag):
        tag.pk, tag.name = None, f"{tag.name}x"
        tag.save()

    report = pooled_operation(saves_anew).using(executor="serial", chunksize=1).map(repeat(tag, 5))
    assert report.succeeded == Tag.objects.count() == 5
