"""Ctrl-C at a random instant is always a KeyboardInterrupt with a true report, and leaves nothing behind.

Every object writes a row, an audit row by a receiver, and a many-to-many row; SQL says what became of each. A process
of its own sends SIGINT, once or twice, at an instant of a run. Each test prints its seed, and draws the same instants
again from `POOLSAVE_TEST_CHAOS_SEED=<seed>`. `pytest -m chaos -s` does it a thousand times.
"""

import gc
import os
import random
import signal
import subprocess
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from django.db import connections

import poolsave
from poolsave import Status, concurrent_saves, pooled_operation
from tests.conftest import _belongings, _left, wait_until
from tests.models import Tag
from tests.support.chaos import End, audit, found_in, names_signed
from tests.support.operations import saves_and_signs

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "postgres"])

HOME = str(Path(poolsave.__file__).parent)
NAMES = [f"p{number}" for number in range(24)]
EXECUTORS = [
    {"start_method": "fork"},
    {"start_method": "forkserver"},
    {"executor": "thread"},
    {"executor": "serial"},
]


@pooled_operation(transaction=None, workers=1, executor="thread")
def passes(name):
    return name


def maps(operation, _options, _seen):
    return operation.map(NAMES)


def maps_stages(operation, _options, _seen):
    return (passes | operation).map(NAMES)


def streams(operation, _options, seen):
    with operation.stream(NAMES) as outcomes:
        for outcome in outcomes:
            seen.append(outcome)
    return outcomes.report


def fills_a_block(operation, options, _seen):
    with concurrent_saves(**options, on_failure="collect") as saves:
        for name in NAMES:
            saves.submit(operation, name)
    return saves.report


class Trial:
    """One run, and what became of it."""

    def __init__(self, act, options, signed):
        (self._alias,) = options["databases"]
        self._signed = signed
        self._is_stream = act is streams
        self._seen = []
        operation = saves_and_signs.using(**options).bind(alias=self._alias, signed=str(signed))
        self._act = partial(act, operation, options, self._seen)
        self._clear()

    def _clear(self):
        with connections[self._alias].cursor() as cursor:
            for table in ("badge", "person_tags", "person"):
                cursor.execute(f"DELETE FROM tests_{table}")
        Tag.objects.using(self._alias).get_or_create(name="member")
        connections.close_all()
        self._signed.unlink(missing_ok=True)

    def complete(self):
        """Give the seconds that it takes."""
        began = time.monotonic()
        report = self._act()
        seconds = time.monotonic() - began
        self._check(report, may_fail=False)
        return seconds

    def interrupted(self, interrupts):
        """Give the total of the report, whose tracebacks keep connections alive; None if the run had ended."""
        report = None
        try:
            interrupts.begin()
            report = self._act()
            interrupts.wait()
        except KeyboardInterrupt as error:
            interrupts.outlast()
            if report is not None:
                return None
            assert "report" in vars(error) or not is_of_poolsave(error)
            report = getattr(error, "report", None)
            if report is not None:
                assert error.__notes__ == [str(report)]
                assert report.finished
                self._check(report, may_fail=len(interrupts.pauses) > 1)
            return None if report is None else report.total
        pytest.fail("no KeyboardInterrupt")

    def _check(self, report, *, may_fail):
        found = found_in(self._alias)
        assert report.total == report.succeeded + report.failed + report.lost + report.skipped
        assert may_fail or report.failed == report.lost == 0, report
        if self._is_stream:  # its report keeps no values, and what it has counted may never have been given out
            assert report.succeeded <= len(found.rows) <= report.succeeded + report.lost
            ends = [End(outcome.item, outcome.status) for outcome in self._seen]
            given = {end.name for end in ends}
            ends += [End(name, Status.LOST) for name in names_signed(self._signed) - given]
        else:
            ends = [End(name_in(outcome.item), outcome.status) for outcome in report]
            assert Counter(end.status for end in ends)[Status.SUCCEEDED] == report.succeeded
        assert len(ends) == len({end.name for end in ends})
        audit(ends, found, signed=names_signed(self._signed))


def name_in(item):
    """Of an object, or of a call of a block, which has its arguments as its item."""
    return item if isinstance(item, str) else item[0][0]


def is_of_poolsave(error):
    frames = error.__traceback__
    while frames is not None:
        if frames.tb_frame.f_code.co_filename.startswith(HOME):
            return True
        frames = frames.tb_next
    return False


class Interrupts:
    """A process that sends SIGINT to this one after each of these pauses in seconds, from `begin` on."""

    def __init__(self, pauses):
        self.pauses = pauses
        steps = "; ".join(f"sleep {seconds:.4f}; kill -INT {os.getpid()}" for seconds in pauses)
        self._process = subprocess.Popen(["sh", "-c", f"read line; {steps}"], stdin=subprocess.PIPE)

    def begin(self):
        os.write(self._process.stdin.fileno(), b"go\n")

    def wait(self):
        """Until the last one is sent, and not reaped: an interrupt in `Popen.wait()` can leave its lock held."""
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    def outlast(self):
        """Wait, whatever comes; then it is gone."""
        if self._process.returncode is None:
            try:
                self.wait()
            except KeyboardInterrupt:
                self.wait()
            self._process.wait()
            self._process.stdin.close()


def interrupt(count, signed, *, signals):
    """Interrupt runs until so many of them were interrupted before their end."""
    seed = int(os.environ.get("POOLSAVE_TEST_CHAOS_SEED") or random.randrange(2**32))
    print(f"POOLSAVE_TEST_CHAOS_SEED={seed}")
    numbers, lasted, totals = random.Random(seed), {}, Counter()
    while totals["in the middle"] < count:
        act = numbers.choice([maps, streams, fills_a_block, maps_stages])
        options = {
            **numbers.choice(EXECUTORS), "databases": (numbers.choice(["default", "postgres"]),),
            "transaction": numbers.choice(["object", "chunk"]), "chunksize": numbers.choice([1, 5]),
            "workers": 2, "keep": "all", "progress": False,
        }  # fmt: skip
        what = act.__name__, *options.values()
        if what not in lasted:
            lasted[what] = Trial(act, options, signed).complete()
        pauses = [numbers.uniform(0, lasted[what]), *(numbers.uniform(0, 0.05) for _ in range(signals - 1))]
        print(*what, pauses, flush=True)
        total = interrupted_once(act, options, signed, pauses)
        totals["outside" if total is None else "in the middle" if total else "at the start"] += 1
        if total is None:
            lasted[what] *= 0.8  # the first time it was slower, for it imports modules and starts servers
    print(dict(totals))


def interrupted_once(act, options, signed, pauses):
    trial = Trial(act, options, signed)
    before = _belongings()
    interrupts = Interrupts(pauses)
    try:
        total = trial.interrupted(interrupts)
    except KeyboardInterrupt:  # the second one, in the test itself
        total = None
    finally:
        interrupts.outlast()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    connections.close_all()
    gc.collect()
    wait_until(lambda: not _left(before), lambda: f"left behind: {_left(before)}")
    return total


@pytest.mark.parametrize("signals", [1, 2])
def test_a_few_random_interrupts_leave_true_reports(tmp_path, signals):
    interrupt(3, tmp_path / "signed", signals=signals)


@pytest.mark.chaos
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("signals", [1, 2])
def test_a_thousand_random_interrupts_leave_true_reports(tmp_path, signals):
    interrupt(1000 // signals, tmp_path / "signed", signals=signals)
