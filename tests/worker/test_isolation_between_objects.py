"""Objects of a chunk share nothing that can change, although they are pickled together."""

import copyreg
import pickle
import re
import threading
import weakref

import django.db.migrations.state  # noqa: F401 - with it loaded there is more to be done
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolsave import pooled_operation
from poolsave._pickling.values import Pickled, dumps, from_wire, pickle_chunk, to_wire
from tests.support import operations

plain_values = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.binary(max_size=3)
flat_values = st.tuples(plain_values, plain_values) | st.dictionaries(plain_values, plain_values, max_size=3)
nested_values = st.lists(plain_values, max_size=2) | st.tuples(st.lists(plain_values)) | st.dictionaries(
    st.text(max_size=2), flat_values, max_size=2
)  # fmt: skip
pure = pooled_operation(transaction=None, workers=1, progress=False, start_method="fork")


@st.composite
def columns(draw):
    """Objects of a chunk, mostly of one kind, of which some may be there several times."""
    kind = draw(st.sampled_from([plain_values, flat_values, flat_values, plain_values | flat_values | nested_values]))
    different = draw(st.lists(kind, min_size=1, max_size=4))
    return draw(st.lists(st.sampled_from(different), min_size=1, max_size=6))


def changeable(value):
    """Everything in a value that can be changed, by identity."""
    if isinstance(value, dict | list):
        yield id(value)
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from changeable(part)


def told(value):
    """A text that is the same for equal values of the same types."""
    return repr(value)


@given(columns())
def test_objects_arrive_equal_and_share_nothing_mutable(objects):
    payload, errors = pickle_chunk(objects)
    assert not errors
    column, alone = pickle.loads(payload)
    arrived = [pickle.loads(one) for one in column] if alone else [*column]
    assert told(arrived) == told(objects)
    seen = set()
    for one in arrived:
        own = set(changeable(one))
        assert not own & seen
        seen |= own


@given(plain_values | flat_values | nested_values)
def test_a_value_is_as_it_was_returned_whatever_becomes_of_it(value):
    before = told(value)
    sealed = to_wire(value)
    assert isinstance(sealed, Pickled) or not set(changeable(sealed)) & set(changeable(value))
    if isinstance(value, dict | list):
        value.clear()
    assert told(from_wire(sealed)) == before


@pytest.mark.parametrize("row", [{"name": "ann"}, {"name": "ann", "tags": ["new"]}, ["ann"]])
@pytest.mark.parametrize("chunksize", [1, 4])
def test_object_fed_four_times_is_four_objects_in_a_worker(row, chunksize):
    @pure
    def clears(row):
        found = len(row)
        row.clear()
        return found

    assert clears.using(chunksize=chunksize).map([row] * 4).values == [len(row)] * 4


@pytest.mark.parametrize("around", [lambda tags: {"tags": tags}, lambda tags: (tags,), lambda tags: [tags]])
def test_value_shared_by_objects_is_a_copy_for_each_in_a_worker(around):
    @pure
    def adds(row):
        tags = row["tags"] if isinstance(row, dict) else row[0]
        tags.append("seen")
        return row

    tags = ["new"]
    report = adds.using(chunksize=4).map([around(tags) for _ in range(4)])
    assert report.values == [around(["new", "seen"])] * 4
    assert tags == ["new"]


@pytest.mark.parametrize("around", [lambda tags: {"tags": tags}, lambda tags: (tags,), lambda tags: [tags]])
def test_contents_of_a_value_stay_as_they_were_returned(around):
    tags = []

    @pure
    def adds(number):
        tags.append(number)
        return around(tags)

    values = adds.using(chunksize=3).map(range(3)).values
    assert values == [around([0]), around([0, 1]), around([0, 1, 2])]


def test_value_returned_again_and_again_is_kept_as_it_was():
    kept = {}

    @pure
    def counts(number):
        kept["seen"] = number
        return kept

    assert counts.using(chunksize=10).map(range(10)).values == [{"seen": number} for number in range(10)]


def test_rows_of_plain_values_are_pickled_together():
    for objects in ([(1, "a"), (2, "b")], [{"name": "a"}, {"name": "b"}]):
        assert pickle.loads(pickle_chunk(objects)[0]) == (objects, False)


class Unpicklable:
    def __init__(self, inner):
        self.inner = inner

    def __reduce__(self):
        dumps([self.inner])  # somebody's own pickling may come by here again
        if self.inner == "bad":
            raise ValueError(self.inner)
        return Unpicklable, (self.inner,)

    def __eq__(self, other):
        return self.inner == other.inner

    __hash__ = None


def test_a_pickler_is_as_good_as_new_after_each_value():
    """It keeps nothing alive, and what fails half-way leaves nothing behind."""
    for inner in ("good", "bad", "good"):
        value = [Unpicklable("good"), "x" * 200_000, Unpicklable(inner)]
        if inner == "bad":
            with pytest.raises(ValueError, match="bad"):
                dumps(value)
        else:
            assert pickle.loads(dumps(value)) == value
        watched = weakref.ref(value[0])
        del value
        assert watched() is None


class Named(type):
    """Instances are classes, which are pickled by their names."""


class HasMetaclass(metaclass=Named):
    pass


class Registered:
    """Cannot be pickled but for `copyreg`."""

    def __init__(self, number):
        self.number = number

    def __reduce_ex__(self, _protocol):
        raise TypeError("not by this way")


def reduce_registered(instance):
    return Registered, (instance.number,)


@pytest.mark.parametrize("value", [HasMetaclass, HasMetaclass(), re.compile("a"), len, [operations, 1][1:], {1: {2}}])
def test_values_are_pickled_as_pickle_does_it(value):
    assert dumps([value]) == pickle.dumps([value], pickle.HIGHEST_PROTOCOL)


def test_a_reduction_registered_with_copyreg_is_used(monkeypatch):
    monkeypatch.setitem(copyreg.dispatch_table, Registered, reduce_registered)
    assert pickle.loads(dumps([Registered(7)]))[0].number == 7


def test_of_many_objects_only_what_cannot_be_pickled_fails():
    payload, errors = pickle_chunk([Unpicklable("good"), Unpicklable("bad"), Unpicklable("good")])
    assert list(errors) == [1]
    column, alone = pickle.loads(payload)
    assert alone
    assert [pickle.loads(one) for one in column] == [Unpicklable("good")] * 2


def test_pickle_holds_nothing_of_an_earlier_one():
    dumps(["x" * 100_000])
    assert dumps([1]) == pickle.dumps([1], pickle.HIGHEST_PROTOCOL)


ROWS = {
    "dictionaries": [{"a": 1}, {"a": 2}, {"a": 3}],
    "tuples": [(1, "a"), (2, "b")],
    "lists": [[1], [2]],
    "nested": [{"a": [1]}, {"a": [2]}],
    "mixed": [1, {"a": 1}, (2,), None],
}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("transaction", ["object", "chunk", None])
@pytest.mark.parametrize("executor", ["process", "thread", "serial", "auto", "process-pool"])
def test_a_function_gets_what_was_fed_in(executor, transaction):
    operation = operations.echoes.using(executor=executor, transaction=transaction, chunksize=2)
    for rows in ROWS.values():
        assert operation.map(rows).values == rows
        assert (operation | operation).map(rows).values == rows
    assert operations.adds.using(executor=executor, transaction=transaction).starmap(
        [{"first": 1, "second": 2}, (3, 4)]
    ).values == [3, 7]


@pytest.mark.parametrize("executor", ["thread", "serial"])
def test_unpicklable_object_is_passed_as_it_is_within_a_process(executor):
    row = {"lock": threading.Lock()}
    (value,) = operations.echoes.using(executor=executor).map([row]).values
    assert value is row
