"""Failures with other values are one cause, and a retry tries exactly those that it is about, whatever dies meanwhile.

What is right is the number of visits that each row of a table counts.
"""

import signal
import time

import pytest

from poolsave.ledger import causes, control
from poolsave.ledger.models import Failure
from poolsave.ledger.work import work
from tests import backfills
from tests.conftest import wait_until
from tests.models import Tag
from tests.support.working import Worker, session_number, things, visits

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


def in_three_ways(alias, each, registered):
    """A run over things of which those of groups 1 to 3 fail, each group in its way; group 0 does not."""
    for group in range(4):
        things(alias, each, group=group)
    Tag.objects.using(alias).create(name="taken")
    name = registered("three", backfills.fail_in_three_ways, alias)
    control.start(name, using=alias)
    work(once=True, using=alias)
    return name


def mend(alias):
    Tag.objects.using(alias).create(name="mended")


def failed_keys(alias, **filters):
    return set(Failure.objects.using(alias).filter(resolved_at=None, **filters).values_list("key", flat=True))


def test_failures_group_into_their_causes(alias, registered):
    name = in_three_ways(alias, 40, registered)
    run = control.find_run(name, using=alias)
    found = causes.grouped(run)
    assert [one.failures for one in found] == [40] * 3
    assert {one.error_class.rpartition(".")[2] for one in found} == {"ValueError", "IntegrityError", "KeyError"}
    assert {one.frame.rpartition(" in ")[2] for one in found} == {"fail_in_three_ways"}
    assert (run.status, run.done, run.failed) == ("finished with failures", 40, 120)


@pytest.mark.parametrize("workers", [1, 8])
def test_a_retry_touches_exactly_its_keys_and_a_second_none(alias, registered, workers):
    name = in_three_ways(alias, 20, registered)
    mend(alias)
    assert control.retry(name, cause="ValueError", using=alias) == 20
    work(once=True, using=alias, workers=workers)
    assert visits(alias, group=1) == visits(alias, group=0) == [1] * 20
    assert visits(alias, group=2) == visits(alias, group=3) == [0] * 20
    assert control.retry(name, cause="ValueError", using=alias) == 0
    assert control.retry(name, cause="KeyError", limit=7, using=alias) == 7
    work(once=True, using=alias, workers=workers)
    assert sorted(visits(alias, group=3)) == [0] * 13 + [1] * 7
    assert control.retry(name, using=alias) == 33
    work(once=True, using=alias, workers=workers)
    assert visits(alias) == [1] * 80
    assert failed_keys(alias) == set()
    run = control.find_run(name, using=alias)
    assert (run.status, run.retry) == ("finished", None)


def test_a_retry_that_is_killed_goes_on_with_its_keys(alias, registered, monkeypatch):
    name = in_three_ways(alias, 30, registered)
    registered(name, backfills.fail_in_three_ways.using(chunksize=3), alias)
    mend(alias)
    monkeypatch.setattr(backfills, "pause", lambda: time.sleep(0.01))
    control.retry(name, cause="ValueError", limit=25, using=alias)
    worker = Worker(alias)
    wait_until(lambda: sum(visits(alias, group=1)))
    worker.kill(signal.SIGKILL)
    assert 0 < sum(visits(alias, group=1)) < 25
    work(once=True, using=alias, workers=4)
    assert sorted(visits(alias, group=1)) == [0] * 5 + [1] * 25
    assert visits(alias, group=2) == visits(alias, group=3) == [0] * 30
    assert len(failed_keys(alias)) == 5 + 60


def test_a_retry_that_fails_again_counts_its_attempts(alias, registered):
    name = in_three_ways(alias, 5, registered)
    control.retry(name, cause="ValueError", using=alias)
    work(once=True, using=alias)
    found = Failure.objects.using(alias).filter(run__name=name).values_list("error_class", "attempts")
    assert sorted(found) == sorted(
        [("builtins.ValueError", 2)] * 5 + [("builtins.KeyError", 1)] * 5 + [("django.db.utils.IntegrityError", 1)] * 5
    )
    assert control.find_run(name, using=alias).status == "finished with failures"


def test_a_retry_goes_on_after_its_slice(registered, monkeypatch):
    name = in_three_ways("default", 20, registered)
    mend("default")
    monkeypatch.setattr("poolsave._durable.bookkeeping.INTERVAL", 0.02)
    monkeypatch.setattr(backfills, "pause", lambda: time.sleep(0.01))
    control.retry(name, using="default")
    before = session_number("default", name)
    work(once=True, seconds=0.1, executor="serial", chunksize=2)
    assert session_number("default", name) > before + 2
    assert visits("default") == [1] * 80
    assert control.find_run(name).status == "finished"
