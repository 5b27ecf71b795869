"""Write-behind rests for ever longer while it does not pay, and counts what it did."""

from poolsave._db.write_behind.pacing import LONGEST_REST, MAX_REASONS, Batching, Pacing


def rest_of(pacing):
    count = 0
    while pacing.is_resting():
        count += 1
    return count


def test_rests_grow_with_undone_chunks_and_end_with_a_good_one():
    pacing = Pacing()
    rests = []
    for _ in range(9):
        pacing.end(rows=0, flushes=0, undone="why")
        rests.append(rest_of(pacing))
    assert rests == [1, 4, 16, 64, *[LONGEST_REST] * 5]
    pacing.end(rows=100, flushes=1, undone=None)
    assert rest_of(pacing) == 0
    pacing.end(rows=0, flushes=0, undone="why")
    assert rest_of(pacing) == 1


def test_rows_that_are_sent_one_by_one_do_not_pay():
    pacing = Pacing()
    pacing.end(rows=100, flushes=100, undone=None)
    assert rest_of(pacing) == 1


def test_counts_are_given_once():
    pacing = Pacing()
    assert pacing.take() is None
    pacing.end(rows=10, flushes=1, undone=None)
    pacing.end(rows=7, flushes=2, undone="IntegrityError")
    pacing.refuse("no\n  cursors")
    assert pacing.is_resting()
    assert pacing.take() == Batching(1, 1, 2, 10, 1, {"IntegrityError": 1, "no cursors": 1})
    assert pacing.take() is None


def test_reasons_are_bounded():
    pacing = Pacing()
    for number in range(10 * MAX_REASONS):
        pacing.note(f"{number} {'x' * 1000}")
    pacing.end(rows=1, flushes=0, undone=None)
    reasons = pacing.take().reasons
    assert len(reasons) == MAX_REASONS
    assert max(map(len, reasons)) == 100


def test_counts_of_several_workers_add_up():
    assert Batching(1, 2, 3, 4, 5, {"a": 1}) + Batching(1, 1, 1, 1, 1, {"a": 1, "b": 1}) == Batching(
        2, 3, 4, 5, 6, {"a": 2, "b": 1}
    )
