"""What each mark that a dead worker left means, in every transaction mode and every stage.

The tables are written by hand from what the modes promise: "object" and "chunk" roll back what was running, `None`
leaves whatever the function left; what was committed is saved; a COMMIT without an answer is settled by the database
if there is a note, and lost otherwise; and only the object that the worker was at is blamed.
"""

import pytest

from poolsave import DROP, Status
from poolsave._db.transactions import AttemptResult
from poolsave._engine.chunking import Chunk
from poolsave._engine.crashes import CrashAnalysis, StageMode
from poolsave._reports.batches import batch_from_reply
from poolsave._worker.replies import ObjectResult, ReplyBuilder
from poolsave.errors import TimedOut, ValueLost, WorkerDied
from poolsave.executors import Died
from poolsave.executors.marks import (
    COMMITTED,
    COMMITTING,
    HAD_FAILED,
    MARKS_PER_STAGE,
    NEW,
    PENDING,
    RUNNING,
    WAS_LOST,
)

AGAIN = "run again"
FAILED, LOST, SUCCEEDED = Status.FAILED, Status.LOST, Status.SUCCEEDED
MODES = ("object", "chunk", None)

ONE_STAGE = {
    # mark: what it means with "object", "chunk", None
    NEW: (AGAIN, AGAIN, AGAIN),
    RUNNING: (FAILED, FAILED, LOST),
    COMMITTING: (LOST, LOST, LOST),
    COMMITTED: (SUCCEEDED, SUCCEEDED, SUCCEEDED),
    PENDING: (AGAIN, AGAIN, AGAIN),
}
FIRST_OF_TWO = {
    **ONE_STAGE,
    COMMITTED: ("the second",) * 3,  # the value that the second stage needs is gone
    HAD_FAILED: (FAILED, AGAIN, FAILED),  # in a chunk it was rolled back with the others, who run again, too
    WAS_LOST: (LOST, LOST, LOST),
}
LAST_OF_TWO = {
    # What has left its first stage is never run again.
    RUNNING: (FAILED, FAILED, LOST),
    COMMITTING: (LOST, LOST, LOST),
    COMMITTED: (SUCCEEDED, SUCCEEDED, SUCCEEDED),
    PENDING: (FAILED, FAILED, FAILED),
    HAD_FAILED: (FAILED, FAILED, FAILED),
    WAS_LOST: (LOST, LOST, LOST),
}
BLAMED = (RUNNING, COMMITTING)


def rows(table):
    return [(mark, mode, row[place]) for mark, row in table.items() for place, mode in enumerate(MODES)]


def analyse(codes, *modes, note=0, settled=None, overdue=False, timeout=None, exact=True):
    """The batches and what runs again, of a chunk whose first object has the index 10."""
    event = Died(WorkerDied(-9, "SIGKILL"), 1, bytes(codes), (), note, overdue)
    stages = [StageMode(mode, noted=True) for mode in modes]
    items = [f"item{place}" for place in range(len(codes))]
    analysis = CrashAnalysis(event, stages, timeout=timeout, settle={note: settled}.__getitem__, exact=exact)
    batches, again = analysis.outcomes(Chunk(10, items))
    return batches, [(chunk.index, list(chunk.objects)) for chunk in again]


def judge(*codes_and_modes, **options):
    """The outcomes and what runs again, as `analyse` has them."""
    batches, again = analyse(*codes_and_modes, **options)
    outcomes = [outcome for batch in batches for outcome in batch.outcomes(with_items=True)]
    return outcomes, again


def stages_of(batches):
    return [batch.ended_in_stage.get(0) for batch in batches]


def expect_blame(outcome, mark):
    """Only what the worker was at is named as that."""
    error = outcome.error
    assert isinstance(error, ValueLost) == (outcome.status is SUCCEEDED or mark == COMMITTED)
    died = error.__cause__ if isinstance(error, ValueLost) else error
    assert isinstance(died, WorkerDied)
    assert (died.item, died.afterwards) == ((outcome.item, False) if mark in BLAMED else (None, True))


@pytest.mark.parametrize(("mark", "mode", "meaning"), rows(ONE_STAGE))
def test_mark_of_a_plain_run_has_one_meaning(mark, mode, meaning):
    outcomes, again = judge([mark], mode)
    if meaning is AGAIN:
        assert (outcomes, again) == ([], [(10, ["item0"])])
        return
    (outcome,) = outcomes
    assert (outcome.index, outcome.item, outcome.status, outcome.value) == (10, "item0", meaning, None)
    assert not again
    expect_blame(outcome, mark)


@pytest.mark.parametrize("other", MODES)
@pytest.mark.parametrize(("mark", "mode", "meaning"), rows(FIRST_OF_TWO))
def test_mark_of_a_first_stage_has_one_meaning(mark, mode, meaning, other):
    batches, again = analyse([mark], mode, other)
    if meaning is AGAIN:
        assert (batches, again) == ([], [(10, ["item0"])])
        return
    outcome = batches[0].notable[0]
    ended, status = (1, FAILED) if meaning == "the second" else (0, meaning)
    assert (outcome.status, outcome.value, stages_of(batches)) == (status, None, [ended])
    expect_blame(outcome, mark)


@pytest.mark.parametrize("other", MODES)
@pytest.mark.parametrize(("mark", "mode", "meaning"), rows(LAST_OF_TWO))
def test_mark_of_a_last_stage_has_one_meaning(mark, mode, meaning, other):
    batches, again = analyse([MARKS_PER_STAGE + mark], other, mode)
    assert (batches[0].notable[0].status, stages_of(batches), again) == (meaning, [1], [])
    expect_blame(batches[0].notable[0], mark)


@pytest.mark.parametrize("settled", [SUCCEEDED, FAILED, LOST])
@pytest.mark.parametrize("stages", [1, 2])
def test_note_settles_only_what_was_in_its_commit(settled, stages):
    base = MARKS_PER_STAGE * (stages - 1)
    codes = [base + COMMITTING, base + COMMITTED, base + COMMITTING]
    outcomes, _again = judge(codes, *["chunk"] * stages, note=7, settled=settled)
    assert [outcome.status for outcome in outcomes] == [settled, SUCCEEDED, settled]


def test_note_of_another_stage_settles_nothing():
    event = Died(WorkerDied(-9, "SIGKILL"), 1, bytes([COMMITTING]), (), 7)
    stages = [StageMode("object", noted=False), StageMode("chunk", noted=True)]
    ((batch,), _again) = CrashAnalysis(event, stages, timeout=None, settle={}.__getitem__).outcomes(Chunk(0, ["a"]))
    assert batch.notable[0].status is LOST


@pytest.mark.parametrize("stages", [1, 2])
def test_only_the_running_object_of_a_chunk_is_blamed(stages):
    base = MARKS_PER_STAGE * (stages - 1)
    codes = [base + COMMITTED, base + RUNNING, NEW, NEW]
    outcomes, again = judge(codes, *["object"] * stages, overdue=True, timeout=2.0)
    assert [type(outcome.error) for outcome in outcomes] == [ValueLost, TimedOut]
    assert (outcomes[1].error.item, outcomes[1].error.__cause__.item) == ("item1", "item1")
    assert again == [(12, ["item2", "item3"])]


def test_objects_rolled_back_with_a_victim_run_again():
    """Those before it and those behind it form chunks of their own."""
    _outcomes, again = judge([PENDING, PENDING, RUNNING, PENDING, NEW], "chunk")
    assert again == [(10, ["item0", "item1"]), (13, ["item3", "item4"])]


def test_stage_is_unknown_if_the_marks_are_not_the_workers():
    batches, _again = analyse([COMMITTING], None, "chunk", exact=False)
    assert (batches[0].notable[0].status, stages_of(batches)) == (LOST, [None])


def test_chunk_that_kills_three_workers_unbegun_is_given_up():
    event = Died(WorkerDied(1), 1, bytes(2), ())
    chunk, seen = Chunk(0, ["a", "b"]), []
    for _ in range(3):
        batches, again = CrashAnalysis(event, [StageMode("object", noted=False)], timeout=None, settle={}.get).outcomes(
            chunk
        )
        seen.append((len(batches), len(again)))
        chunk = again[0] if again else chunk
    assert seen == [(0, 1), (0, 1), (1, 0)]


@pytest.mark.parametrize(
    ("ended", "value", "settled", "expected"),
    [
        (0, None, FAILED, (FAILED, 0, None)),
        (0, None, LOST, (LOST, 0, None)),
        (0, None, SUCCEEDED, (FAILED, 1, ValueLost)),  # the second stage has not started, since this was not known
        (0, DROP, SUCCEEDED, (SUCCEEDED, 0, None)),
        (1, "value", SUCCEEDED, (SUCCEEDED, 1, None)),
        (1, "value", LOST, (LOST, 1, None)),
    ],
)
def test_settled_commit_ends_its_object_in_the_right_stage(ended, value, settled, expected):
    builder = ReplyBuilder("w", 0.0, crosses=False)
    attempt = AttemptResult(LOST, value, OSError("no answer"), note=7)
    builder.add(ObjectResult(attempt, 0.75, stage_seconds=[0.5, 0.25], ended_in_stage=ended))
    batch = batch_from_reply(builder.take(), 10, ["item"], {7: settled}.__getitem__)
    status, stage, error = expected
    (outcome,) = batch.outcomes(with_items=True)
    assert (outcome.status, stages_of([batch]), outcome.seconds) == (status, [stage], 0.75)
    assert list(batch.stage_seconds) == [0.5, 0.25]
    assert isinstance(outcome.error, error or OSError)
    assert outcome.value is value or error
