"""The executors of a pipeline are waited for together, without a busy loop."""

import os
import signal
import time

from poolsave import pooled_operation
from poolsave._pipelines.selector import ExecutorSelector
from tests.conftest import wait_until
from tests.support import stages
from tests.support.stages import FORK, THREAD


def test_worker_death_after_its_last_object_causes_no_busy_loop(monkeypatch):
    waits = []
    wait = ExecutorSelector.wait
    monkeypatch.setattr(ExecutorSelector, "wait", lambda selector, busy: (waits.append(1), wait(selector, busy)))

    @pooled_operation(transaction=None, progress=False, **THREAD)
    def outlives(trail):
        ((pid, _thread),) = trail
        wait_until(lambda: len(waits) > 2)  # the stage before is done by then
        os.kill(pid, signal.SIGKILL)
        before = len(waits)
        wait_until(lambda: len(waits) > before + 5)  # looks at the clock, a tenth of a second each
        dead, before = time.monotonic(), len(waits)
        wait_until(lambda: time.monotonic() > dead + 0.5)
        return len(waits) - before

    report = (stages.where.using(workers=1, **FORK) | outlives).map([[]])
    assert report.values[0] < 50
