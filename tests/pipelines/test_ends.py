"""A pipeline ends with its report: after Ctrl-C, an input that raises, too many failures, or a stream that is left."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.conftest import wait_until
from tests.support import stages
from tests.support.stages import FORK, THREAD, sums_up

SCRIPT = """
    import itertools
    import sys

    import django

    django.setup()
    from tests.support import stages

    def endless():
        yield sys.argv[1]
        for number in itertools.count():
            yield f"{sys.argv[1]}.other{number}"

    if __name__ == "__main__":
        first = stages.waits_for_file.using(workers=1, chunksize=1, executor=sys.argv[2])
        pipeline = first | stages.doubles.using(workers=1, chunksize=1, executor="thread", window=3)
        try:
            pipeline.map(endless())
        except KeyboardInterrupt as error:
            report = error.report
            print(report.succeeded, report.failed, report.lost, report.skipped > 0)
            print(report.succeeded + report.skipped == report.total < 20, report.stopped)
            print({outcome.stage for outcome in report if outcome.status == "skipped"})
"""


@pytest.mark.parametrize("first", ["process", "thread", "serial"])
def test_ctrl_c_finishes_what_runs_and_skips_what_has_not_begun(tmp_path, first):
    script, go = tmp_path / "script.py", tmp_path / "go"
    script.write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, str(script), str(go), first],
        env={**os.environ, "PYTHONPATH": os.getcwd()}, start_new_session=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_until(lambda: os.path.exists(f"{go}.begun"), seconds=30)
        os.killpg(process.pid, signal.SIGINT)
        go.touch()
        told, _nothing = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
    assert told.splitlines() == ["0 0 0 True", "True interrupted", "{'doubles'}"]


def test_input_that_raises_does_so_after_what_was_begun():
    def numbers():
        yield from range(5)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone") as caught:
        (stages.doubles.using(**THREAD) | stages.names.using(**FORK)).map(numbers())
    assert caught.value.report.succeeded == 5
    assert sums_up(caught.value.report)


def test_an_empty_input_starts_nothing():
    report = (stages.doubles.using(**FORK) | stages.names.using(**THREAD)).map([])
    assert (report.total, report.values, report.ok) == (0, [], True)


def test_a_stream_that_is_left_stops_all_workers():
    outcomes = (stages.doubles.using(**THREAD) | stages.names.using(**FORK)).stream(itertools.count())
    assert next(outcomes).ok
    outcomes.close()


def test_max_failures_counts_for_the_whole_run():
    pipeline = stages.doubles.using(chunksize=1, **THREAD) | stages.fails_on_five.using(chunksize=1, **FORK)
    report = pipeline.using(max_failures=2).map(range(0, 1000, 5))
    assert report.failed >= 2
    assert report.stopped
    assert report.total < 200
    assert sums_up(report)


@pytest.mark.django_db(transaction=True)
def test_skipped_objects_keep_what_earlier_stages_saved():
    first = stages.saves_first.using(executor="serial", chunksize=8)
    second = stages.saves_second.using(executor="thread", workers=1, chunksize=1).bind(fail=(0,))
    report = (first | second).using(max_failures=1).map(range(8))
    skipped = [outcome for outcome in report if outcome.status == "skipped"]
    assert {outcome.stage for outcome in skipped} == {"saves_second"}
    assert {f"first {outcome.index}" for outcome in skipped} <= set(stages.saved_names())
