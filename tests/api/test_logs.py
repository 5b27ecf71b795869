"""The logger `poolsave` tells of a run's start, of each new cause once, and of its end; there is no bar in a file."""

import logging
import os
import re
import subprocess
import sys
import textwrap

import pytest

from poolsave import concurrent_saves, pooled_operation
from tests.models import Person
from tests.support import operations, pools


@pooled_operation(transaction=None, progress=False)
def fails_for_two_causes(number):
    if number % 2:
        raise (LookupError if number % 4 == 1 else ValueError)(f"number {number}")
    return number


def lines(caplog):
    return [(record.levelname, record.poolsave_event) for record in caplog.records if record.name == "poolsave"]


@pytest.fixture(autouse=True)
def _all_levels(caplog):
    caplog.set_level(logging.INFO, "poolsave")


RUNS = {
    "map": lambda operation: operation.map(range(40)),
    "stream": lambda operation: list(operation.stream(range(40))),
    "pipeline": lambda operation: (operation | operation).map(range(40)),
}


@pytest.mark.parametrize("executor", ["serial", "thread", "fork"])
@pytest.mark.parametrize("way", RUNS)
def test_start_each_cause_once_and_end_are_logged(caplog, executor, way):
    RUNS[way](fails_for_two_causes.using(**pools.POOLS[executor], chunksize=4))
    assert lines(caplog)[0] == ("INFO", "started")
    assert lines(caplog)[1:3] == [("WARNING", "cause")] * 2
    assert lines(caplog)[3:] == [("WARNING", "ended")]
    causes = {(record.poolsave_cause, record.poolsave_index % 4) for record in caplog.records[1:3]}
    assert causes == {("LookupError", 1), ("ValueError", 3)}
    end = caplog.records[-1]
    fields = (end.poolsave_total, end.poolsave_succeeded, end.poolsave_failed, end.poolsave_lost, end.poolsave_stopped)
    assert fields == (40, 20, 20, 0, None)
    assert end.poolsave_operation.startswith("fails_for_two_causes")
    assert end.getMessage().startswith(f"{end.poolsave_operation} ended: 40 objects, 20 succeeded, 20 failed in ")


def test_run_without_failures_ends_at_info(caplog):
    operations.doubles.using(executor="serial").map(range(4))
    assert lines(caplog) == [("INFO", "started"), ("INFO", "ended")]
    assert caplog.records[0].poolsave_executor == "serial"


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_sqlstate_and_item_of_a_cause_are_logged(caplog, alias):
    Person(name="b").save(using=alias)
    operations.save_person.using(executor="thread", databases=(alias,)).bind(alias=alias).map(["a", "b"])
    (cause,) = [record for record in caplog.records if record.poolsave_event == "cause"]
    assert cause.poolsave_sqlstate == ("23505" if alias == "postgres" else None)
    assert "first at index 1 ('b'): " in cause.getMessage()


@pytest.mark.parametrize("executor", ["serial", "thread"])
def test_block_is_logged(caplog, executor):
    with concurrent_saves(executor=executor, transaction=None, progress=False, on_failure="collect") as saves:
        for number in range(4):
            saves.submit(fails_for_two_causes, number)
    assert lines(caplog) == [("INFO", "started"), *[("WARNING", "cause")] * 2, ("WARNING", "ended")]
    assert caplog.records[-1].poolsave_total == 4


def test_run_that_breaks_off_is_logged_as_stopped(caplog):
    with pytest.raises(ZeroDivisionError):
        operations.doubles.using(executor="serial", chunksize=1, progress=lambda *_: 1 / 0).map(range(1000))
    assert lines(caplog)[-1] == ("INFO", "ended")
    assert caplog.records[-1].poolsave_stopped == "ZeroDivisionError in the caller"


SCRIPT = """
    import logging
    import sys

    from poolsave import pooled_operation

    @pooled_operation(executor="serial", transaction=None)
    def fails_on_three(number):
        if number == 3:
            raise ValueError("no threes")

    if sys.argv[1] == "configured":
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    fails_on_three.map(range(5))
    fails_on_three.using(progress=True).map(range(5))
"""
EXPECTED = {
    "configured": [
        "INFO fails_on_three started (executor serial, up to 4 workers)",
        "WARNING fails_on_three ValueError, first at index 3 (3): no threes",
        "WARNING fails_on_three ended: 5 objects, 4 succeeded, 1 failed",
    ]
    * 2,
    "unconfigured": ["fails_on_three: 5 of 5 objects done, 1 failed"],
}


@pytest.mark.parametrize("logging", EXPECTED)
def test_file_gets_the_lines_of_the_log_or_those_asked_for(tmp_path, logging):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), logging],
        env={**environment, "POOLSAVE_WORKERS": "4"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    ends = [line.partition(" in ")[0] for line in done.stderr.splitlines()]
    assert [re.sub(r" \(\d+ per second\)", "", line) for line in ends] == EXPECTED[logging]
