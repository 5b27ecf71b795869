"""Whatever happens to a run, its ranges partition the keys, in the order that the database gives them.

The right values come from the list of keys as the database sorts it, and a count of how often each has ended.
"""

import uuid
from collections import Counter
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolsave._db import inspection
from poolsave._durable.keys import decode, digest_of, encode, joined_digest
from poolsave._durable.ranges import FIRST, GAP_BITS, Gap, Range, gaps_between, merged, renumbered
from poolsave._durable.sources import KeyedInput, Place, QuerySetGaps
from poolsave.errors import InputChanged
from tests.models import Thing, ThingByPair, ThingByText, ThingByUuid

ROWS = {
    "integers": lambda: [Thing(pk=number) for number in (-5, 1, 2, 9, 10, 11, 100, 2**40)],
    "uuids": lambda: [ThingByUuid(pk=uuid.UUID(int=number << 100 | number)) for number in range(1, 160, 17)],
    "texts": lambda: [ThingByText(pk=text) for text in ("a", "B", "ab", "Äb", "Zz", "z", "10", "9", "ß", "_x", "é")],
    "pairs": lambda: [ThingByPair(left=left, right=right) for left in (1, 2, 10) for right in ("a", "B", "Ca")],
}
"""Keys whose order differs from one database and collation to the next, or from that of Python."""


class Ledger:
    """What is committed: the ranges, and how often each key has ended."""

    def __init__(self):
        self.ranges = []
        self.ended = Counter()

    def commit(self, place):
        if place.keys:
            self.ranges.append(Range(place.sequence, place.low, place.keys[-1], done=len(place.keys)))
            self.ended.update(place.keys)

    def merged(self):
        return renumbered(merged(sorted(self.ranges)))


def session(chance, ledger, source, bounds, *, last):
    """One session, which the last one alone survives: chunks of any size end in any order, whole or in parts."""
    ledger.ranges = ledger.merged()
    source.open(ledger.ranges, bounds)
    flying = []
    while not source.exhausted or flying:
        action = chance.choice(["feed", "feed", "end", "split", "end" if last else "kill"])
        if action == "feed" and not source.exhausted:
            if source.gather(chance.randint(1, 4), idle=True):
                flying.append(source.place)
            ledger.ranges += source.tails
            source.tails.clear()
        elif action == "kill" and chance.random() < 0.2:
            return
        elif action == "split" and flying:
            place = flying.pop(chance.randrange(len(flying)))
            middle = chance.randint(0, len(place.keys))
            parts = [place.part(0, middle), place.part(middle, len(place.keys))]
            flying += [part for part in parts if part.keys]
        elif flying:
            ledger.commit(flying.pop(chance.randrange(len(flying))))


@pytest.mark.django_db(transaction=True, databases="__all__")
@pytest.mark.parametrize("kind", ROWS)
def test_any_interleaving_partitions_the_keys(alias, kind):
    rows = ROWS[kind]()
    model = type(rows[0])
    model.objects.using(alias).bulk_create(rows)
    queryset = model.objects.using(alias).all()
    in_order = [encode(key) for key in queryset.order_by("pk").values_list("pk", flat=True)]

    @settings(max_examples=25, deadline=None)
    @given(st.integers(1, 5), st.integers(1, 5), st.randoms(use_true_random=True))
    def check(page, sessions, chance):
        ledger = Ledger()
        with mock.patch.object(inspection, "PAGE_SIZE", page):
            bounds = QuerySetGaps(queryset).bounds()
            for left in reversed(range(sessions)):
                session(chance, ledger, QuerySetGaps(queryset), bounds, last=not left)
        assert ledger.ended == Counter(in_order)
        by_place = [key for each in sorted(ledger.ranges) for key in [each.high] if each.objects]
        assert by_place == sorted(by_place, key=in_order.index)
        assert [each[1:4] for each in ledger.merged()] == [(FIRST, in_order[-1], len(rows))]

    check()


def test_chunk_of_a_list_may_be_smaller_than_what_was_pulled():
    """Chunks end where another session has done what follows, and their sizes shrink."""
    source = KeyedInput("run", [*range(12)], int)
    source.open([Range((1 << GAP_BITS) - 1, "0", "1", done=1)], source.bounds())
    sizes, handed_out = iter([4, 1, 1, 2]), []
    while not source.exhausted:
        handed_out += source.gather(next(sizes, 1), idle=True) or ()
    assert source.error is None
    assert handed_out == [0, *range(2, 12)]


def test_input_that_changes_its_object_is_refused_with_keys_too():
    def rows():
        row = {}
        for number in range(12):
            row["number"] = number
            yield row

    source = KeyedInput("run", rows(), lambda row: row["number"])
    source.open([], source.bounds())
    while not source.exhausted:
        source.gather(4, idle=True)
    assert "make a new one for each" in str(source.error)


@given(st.lists(st.integers(), unique=True, max_size=12), st.integers(1, 5), st.randoms(use_true_random=True))
def test_any_interleaving_partitions_an_input_with_keys(keys, sessions, chance):
    ledger = Ledger()
    for left in reversed(range(sessions)):
        source = KeyedInput("run", keys, int)
        session(chance, ledger, source, source.bounds(), last=not left)
    assert ledger.ended == Counter(map(encode, keys))
    assert [each.objects for each in ledger.merged()] == ([len(keys)] if keys else [])


@given(st.lists(st.text()), st.lists(st.text()))
def test_digests_of_neighbours_give_that_of_both(first, second):
    assert joined_digest(digest_of(first), digest_of(second), len(second)) == digest_of([*first, *second])


def test_gaps_lie_between_ranges_and_have_room_before_them():
    ranges = renumbered([Range(7, "2", "5", 3), Range(9, "8", "9", 1)])
    assert [*gaps_between(ranges, "20")] == [Gap(0, FIRST, "2"), Gap(1, "5", "8"), Gap(2, "9", "20")]
    places = [Gap(0, "", "").sequence, ranges[0].sequence, 1 << GAP_BITS, ranges[1].sequence, 2 << GAP_BITS]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["a", "b", "x", "d", "e"], r'has changed behind the key "a", up to "c": it was .* and now it is .*"x"'),
        (["a", "c", "b", "d", "e"], r'has changed behind the key "a", up to "c"'),
        (["a"], r'has changed behind the key "a", up to "c": .* now it is .nothing'),
        (["z", "b", "c"], r'has changed behind the key "c": it was .the key "a"., and now it is .the end'),
    ],
)
def test_changed_input_is_refused_by_its_first_difference(given, told):
    done = Range((2 << GAP_BITS) - 1, '"a"', '"c"', done=2, digest=digest_of(['"b"', '"c"']))
    source = KeyedInput("run", given, str)
    source.open([done], source.bounds())
    while not source.exhausted:
        source.gather(10, idle=True)
    with pytest.raises(InputChanged, match=told):
        raise source.error


@pytest.mark.parametrize("kind", ROWS)
def test_keys_come_back_as_they_were(kind):
    for row in ROWS[kind]():
        assert decode(encode(row.pk), type(row).objects.all()) == row.pk


def test_part_of_a_place_begins_behind_the_key_before_it():
    place = Place("3", 100, ["4", "5", "6"], [7, 8, 9])
    assert place.part(1, 3) == Place("4", 101, ["5", "6"], [8, 9])
