"""Objects, values and exceptions that break other pools cost their own object one outcome."""

import pytest

from poolsave import OperationsFailed, RemoteError, Status, concurrent_saves
from tests.contract import cases
from tests.support import operations
from tests.support.pools import those


@pytest.mark.parametrize("name", cases.RAISED)
def test_an_exception_is_that_object_s_failure(pool, name):
    report = cases.raises.using(**pool, chunksize=3).map(["before", name, "after"])
    assert report.values == ["before", "after"]
    (failure,) = report.failures
    assert (failure.item, failure.status) == (name, Status.FAILED)
    expected = type(cases.RAISED[name]())
    if isinstance(failure.error, RemoteError):
        assert failure.error.class_path.endswith(expected.__name__)
    else:
        assert type(failure.error) is expected
    assert "raises" in failure.traceback
    with pytest.raises(OperationsFailed) as caught:
        report.raise_if_failed()
    assert len(caught.value.exceptions) == 1
    assert expected.__name__ in str(report)


def test_exception_that_cannot_be_unpickled_fails_its_object(pool):
    report = operations.raises_needy.using(**pool).map([1, 2])
    assert report.failed == 2
    error = report.failures[0].error
    assert isinstance(error, operations.NeedyError | RemoteError)
    assert "1 reason" in str(error)


def test_system_exit_is_that_objects_failure(pool):
    report = operations.exits.using(**pool).map([3, 4])
    assert [failure.error.code for failure in report.failures] == [3, 4]
    with pytest.raises(OperationsFailed) as caught:
        report.raise_if_failed()
    assert "SystemExit" in str(caught.value.exceptions[0])


@pytest.mark.parametrize("name", cases.RAISED)
def test_future_raises_an_exception_that_cannot_be_pickled(name):
    with concurrent_saves(workers=1, transaction=None, start_method="fork", on_failure="collect") as saves:
        error = saves.submit(cases.raises, name).exception(30)
        assert error is not None
        assert bool(error)
    assert saves.report.failed == 1


@pytest.mark.parametrize("name", cases.RETURNED)
def test_a_value_that_cannot_cross_is_that_object_s_failure(pool, promises, name):
    report = cases.returns.using(**pool, chunksize=3).map(["before", name, "after"])
    if promises.shares_memory:
        assert report.ok  # nothing has to cross
        return
    assert report.values == ["before", "after"]
    assert [failure.item for failure in report.failures] == [name]
    assert "return value" in report.failures[0].traceback


@pytest.mark.parametrize("item", [cases.RaisesWhenPickled(), cases.RaisesWhenRestored()], ids=["out", "in"])
def test_an_object_that_cannot_cross_is_its_own_failure(pool, promises, item):
    report = cases.gives_type.using(**pool, chunksize=3).map(["before", item, "after"])
    if promises.shares_memory:
        assert report.ok
        return
    assert report.values == ["str", "str"]
    (failure,) = report.failures
    assert failure.item is item
    assert type(failure.error) is ValueError


def test_input_that_raises_does_so_after_what_was_read_is_done(pool):
    def breaks_off():
        yield from range(7)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more") as caught:
        operations.doubles.using(**pool).map(breaks_off())
    assert caught.value.report.values == [0, 2, 4, 6, 8, 10, 12]


def test_one_bad_object_of_each_kind_in_300_costs_one_outcome(pool, promises):
    """Also objects that end their worker, where the executor blames exactly, and those that stop it."""
    bad = [*cases.RAISED]
    if not promises.shares_memory:
        bad += [*cases.RETURNED, cases.RaisesWhenPickled(), cases.RaisesWhenRestored()]
    deaths = [*cases.DEATHS] if promises.blames_exactly else []
    options = dict(pool)
    if promises.enforces_timeout:
        deaths.append("stopped")
        options["timeout"] = 2.0
    objects = [f"good {number}" for number in range(300)]
    places = [7 + 11 * place for place in range(len(bad + deaths))]
    for place, item in zip(places, bad + deaths, strict=True):
        objects[place] = item
    report = cases.does.using(**options).map(objects)
    assert [failure.index for failure in report.failures] == places
    assert all(failure.item is objects[failure.index] for failure in report.failures)
    assert report.total == 300
    assert report.succeeded == 300 - len(places)
    assert report.lost == len(deaths)  # there is no transaction that could have been rolled back
    assert report.failed == len(bad)


MEGABYTES_50 = 50_000_000


@pytest.mark.parametrize("pool", those(lambda executor: not executor.shares_memory), indirect=True)
def test_200_megabytes_cross_both_ways_at_once(pool):
    """The small ones are answered so quickly that the big ones are sent while others still come back."""
    big = bytes(MEGABYTES_50)
    report = operations.echoes.using(**pool, chunksize=1, window=8).map([b"small"] * 8 + [big] * 4)
    assert [len(value) for value in report.values] == [5] * 8 + [MEGABYTES_50] * 4
