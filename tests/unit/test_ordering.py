"""Outcomes leave in the order of the input, however they come, and none waits longer than it has to."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolsave._reports.batches import OutcomeBatch
from poolsave._runs.run import Reorderer, run_of
from tests.support import operations

# Of each object of the input: None for one plain outcome, or how many values a stage with `expand` made of it.
expansions = st.lists(st.none() | st.integers(1, 4), max_size=8)


def batch(index, number, path=(), of_object=1):
    return OutcomeBatch(
        index, [(index, number)], array("d", [0.0]), [None], None, {}, path, outcomes_of_object=of_object
    )


@given(expansions, st.randoms(use_true_random=False))
def test_outcomes_leave_in_input_order(counts, random):
    in_order = [(index, number) for index, count in enumerate(counts) for number in range(count or 1)]
    ended = in_order[:]
    random.shuffle(ended)
    left, reorderer = {index: count for index, count in enumerate(counts) if count}, Reorderer()

    def batches():
        for position, (index, number) in enumerate(ended):
            first_unfinished = min(ended[position:])[0]
            assert reorderer.undelivered == sum(entry[0] >= first_unfinished for entry in ended[:position])
            if counts[index] is None:
                yield batch(index, number)
                continue
            left[index] -= 1
            yield batch(index, number, (number,), 0 if left[index] else counts[index])

    assert [value for ready in reorderer.in_input_order(batches()) for value in ready.values] == in_order


def test_plain_batches_of_several_objects_leave_whole():
    first = OutcomeBatch(0, "ab", array("d", [0, 0]), "ab", None, {})
    second = OutcomeBatch(2, "c", array("d", [0]), "c", None, {})
    assert list(Reorderer().in_input_order(iter([second, first]))) == [first, second]


@pytest.mark.timeout(20)
def test_full_window_of_undelivered_outcomes_ends():
    """A window of automatic size becomes smaller when objects turn out to be slow."""
    run = run_of(operations.doubles.using(key=str, executor="thread").__poolsave_spec__(), range(5))
    run._reorderer.undelivered = 1_000_000
    assert run.complete().values == [0, 2, 4, 6, 8]
