"""10,000 failures with values of their own are three causes, and a retry of one touches exactly its keys."""

import signal
import time

import pytest

from poolsave.ledger import causes, control
from poolsave.ledger.work import work
from tests import backfills
from tests.conftest import wait_until
from tests.ledger.conftest import registered  # noqa: F401  a fixture
from tests.models import Tag
from tests.support.working import Worker, things, visits

pytestmark = [
    pytest.mark.django_db(transaction=True, databases="__all__"),
    pytest.mark.large,
    pytest.mark.timeout(1800),
]
EACH = {1: 3334, 2: 3333, 3: 3333}


def test_ten_thousand_failures_are_three_causes(alias, registered, capsys):  # noqa: F811
    for group, count in EACH.items():
        things(alias, count, group=group)
    Tag.objects.using(alias).create(name="taken")
    name = registered("three", backfills.fail_in_three_ways.using(chunksize="auto"), alias)
    run = control.start(name, using=alias)
    began = time.perf_counter()
    work(once=True, using=alias, workers=8)
    failed = time.perf_counter()
    assert sorted(one.failures for one in causes.grouped(run)) == sorted(EACH.values())
    grouped = time.perf_counter()

    Tag.objects.using(alias).create(name="mended")
    assert control.retry(name, cause="ValueError", using=alias) == EACH[1]
    worker = Worker(alias)
    wait_until(lambda: sum(visits(alias, group=1)), seconds=60)
    worker.kill(signal.SIGKILL)
    part = sum(visits(alias, group=1))
    assert 0 < part < EACH[1]
    work(once=True, using=alias, workers=8)
    retried = time.perf_counter()
    assert visits(alias, group=1) == [1] * EACH[1]
    assert sum(visits(alias)) == EACH[1]
    assert control.retry(name, cause="ValueError", using=alias) == 0
    assert sorted(one.failures for one in causes.grouped(run)) == [EACH[2], EACH[3]]
    with capsys.disabled():
        print(
            f"\n{alias}: 10,000 failures {failed - began:.1f} s, grouped in {1000 * (grouped - failed):.0f} ms; "
            f"{EACH[1]} tried again, killed after {part}, {retried - grouped:.1f} s"
        )
