"""Ranges of keys cover each row of a table once, and tell what is left of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolsave import RowGone
from poolsave._db import inspection
from poolsave._runs import querysets
from poolsave._worker.rows import RowLoader
from tests.models import Thing
from tests.support.selection import examples

pytestmark = pytest.mark.django_db(transaction=True)


def test_rest_of_a_table_is_exact_whatever_was_estimated(monkeypatch):
    """Else chunks would shrink to single rows where the estimate was too low."""
    monkeypatch.setattr(inspection, "PAGE_SIZE", 10)
    monkeypatch.setattr(querysets, "count_or_estimate", lambda _rows: 5)
    Thing.objects.bulk_create(Thing(pk=3 * number + 1) for number in range(25))
    source = querysets.QuerySetSource(Thing.objects.all())
    assert (source.total, source.remaining()) == (5, None)
    left = []
    while not source.exhausted:
        if source.gather(3, idle=True):
            left.append(source.remaining())
    assert left[-3:] == [4, 1, 0]
    assert min(one for one in left if one is not None) == 0
    assert source.total == 25


@settings(max_examples=examples(60), deadline=None)
@given(
    keys=st.sets(st.integers(-(10**9), 10**9), max_size=60),
    size=st.integers(1, 20),
    page=st.integers(1, 20),
    deletions=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=30),
)
def test_ranges_cover_each_surviving_row_exactly_once(keys, size, page, deletions):
    """Whatever the keys, the size of ranges, and the moments in which rows are deleted."""
    Thing.objects.all().delete()
    Thing.objects.bulk_create([Thing(pk=key) for key in keys])
    order, due = sorted(keys), dict(deletions)
    before, inspection.PAGE_SIZE = inspection.PAGE_SIZE, page
    try:
        source = querysets.QuerySetSource(Thing.objects.all())
        seen = []
        while not source.exhausted:
            chunk = source.gather(size, idle=True)
            if chunk is None:
                continue
            moment = due.get(len(seen))
            if moment is not None and moment < len(order):
                Thing.objects.filter(pk=order[moment]).delete()
            rows = RowLoader(Thing.objects.all())
            rows.load(chunk)
            seen += _taken(rows, chunk)
    finally:
        inspection.PAGE_SIZE = before
    survivors = set(Thing.objects.values_list("pk", flat=True))
    assert len(seen) == len(set(seen))
    assert survivors <= set(seen) <= keys


def _taken(rows, chunk):
    for key in chunk:
        try:
            yield rows.get(key).pk
        except RowGone:
            continue
