"""Progress counts objects, with failures, and leaves no thread behind."""

import errno
import io
import sys
import threading

import pytest
import tqdm

from poolsave import InvalidOption
from tests.support import operations


class FakeBar:
    """A tqdm-like class."""

    made = []

    def __init__(self, *, total, desc, unit):
        self.total, self.desc, self.unit = total, desc, unit
        self.seen = 0
        self.closed = False
        self.postfix = {}
        FakeBar.made.append(self)

    def update(self, count):
        self.seen += count

    def set_postfix(self, *, refresh, **postfix):
        self.postfix = postfix

    def close(self):
        self.closed = True


def test_a_tqdm_like_class_counts_objects_and_failures(pool):
    FakeBar.made.clear()
    operations.fails_on_odd.using(**pool, progress=FakeBar, chunksize=3).map(range(11))
    (bar,) = FakeBar.made
    assert (bar.seen, bar.total, bar.desc, bar.unit) == (11, 11, "fails_on_odd", "obj")
    assert bar.postfix == {"failed": 5}
    assert bar.closed


def test_a_callable_is_told_done_and_total(pool):
    told = []
    operations.doubles.using(**pool, progress=lambda done, total: told.append((done, total)), chunksize=4).map(
        range(10)
    )
    assert told[-1] == (10, 10)
    assert [done for done, _total in told] == sorted(done for done, _total in told)


def test_the_total_of_a_generator_is_unknown():
    told = []
    operations.doubles.using(executor="serial", progress=lambda *args: told.append(args)).map(n for n in range(3))
    assert told[-1] == (3, None)


def test_a_real_bar_is_drawn_without_a_monitor_thread(monkeypatch):
    stderr = io.StringIO()
    stderr.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stderr)
    before = threading.active_count()
    operations.fails_on_odd.using(start_method="fork", progress=True).map(range(10))
    drawn = sys.stderr.getvalue()
    assert "10/10" in drawn
    assert "failed=5" in drawn
    assert "obj/s" in drawn
    assert threading.active_count() == before
    assert tqdm.tqdm.monitor is None


@pytest.mark.parametrize(("terminal", "drawn"), [(True, True), (False, False)])
def test_bar_is_drawn_on_a_terminal_only_by_default(monkeypatch, terminal, drawn):
    stderr = io.StringIO()
    stderr.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stderr)
    operations.doubles.using(executor="serial", progress=None).map(range(5))
    assert ("5/5" in stderr.getvalue()) is drawn


def test_the_block_shows_progress_too():
    from poolsave import concurrent_saves

    FakeBar.made.clear()
    with concurrent_saves(executor="serial", transaction=None, progress=FakeBar) as saves:
        for number in range(5):
            saves.submit(operations.doubles, number)
    assert FakeBar.made[0].seen == 5
    assert FakeBar.made[0].closed


def test_a_callable_that_raises_ends_the_run_after_what_runs(pool):
    def tell(done, total):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        operations.doubles.using(**pool, progress=tell).map(range(1000))


def test_a_callable_that_takes_failed_is_told_failures(pool):
    told = []

    def tell(done, total, failed):
        told.append((done, total, failed))

    operations.fails_on_odd.using(**pool, progress=tell, chunksize=4).map(range(10))
    assert told[-1] == (10, 10, 5)
    assert [failed for _done, _total, failed in told] == sorted(failed for _done, _total, failed in told)


@pytest.mark.parametrize("run", [
    lambda operation, numbers, total: operation.map(numbers, total=total),
    lambda operation, numbers, total: operation.starmap(((number,) for number in numbers), total=total),
    lambda operation, numbers, total: list(operation.stream(numbers, total=total)),
    lambda operation, numbers, total: (operation | operation).map(numbers, total=total),
])  # fmt: skip
def test_total_of_a_generator_can_be_given(run):
    told = []
    run(operations.doubles.using(executor="serial", progress=lambda *args: told.append(args)), iter(range(3)), 3)
    assert told[-1] == (3, 3)


@pytest.mark.parametrize("total", [2, -1, 2.0, True, "3"])
def test_total_that_cannot_be_is_refused(total):
    with pytest.raises(InvalidOption, match=f"total={total!r} is not valid: "):
        operations.doubles.using(executor="serial").map([1, 2, 3], total=total)
    assert operations.doubles.using(executor="serial").map([1, 2, 3], total=3).ok


class GoneTerminal(io.StringIO):
    def __init__(self, *, is_terminal):
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self):
        return self._is_terminal

    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_that_is_gone_ends_no_run(monkeypatch, is_terminal):
    monkeypatch.setattr(sys, "stderr", GoneTerminal(is_terminal=is_terminal))
    report = operations.fails_on_odd.using(executor="serial", progress=True, chunksize=1).map(range(5))
    assert (report.succeeded, report.failed) == (3, 2)
