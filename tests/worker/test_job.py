"""A job says what each worker of a run needs, and asks in the caller what became of a lost COMMIT."""

import asyncio
import pickle
import sys
import time
from types import ModuleType

import pytest
from django.db import connections

from poolsave import InvalidOperation, Options, Status
from poolsave._db.commit_status import TransactionNote
from poolsave._runs.preparation import OperationSpec, prepare_run
from tests.support import carriers, operations
from tests.support.carriers import colour


def test_function_missing_in_the_script_is_named_by_the_worker(monkeypatch, tmp_path):
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    script = tmp_path / "script.py"
    script.write_text("def double(number):\n    return 2 * number")
    exec(compile(script.read_text(), str(script), "exec"), vars(main))
    main.__file__ = str(script)
    options = Options.resolve({"transaction": None, "start_method": "spawn"})
    job = prepare_run(OperationSpec(function=main.double, options=options)).job
    sent = pickle.loads(pickle.dumps(job))
    del main.double  # the script is imported by another name there
    with pytest.raises(InvalidOperation, match=r"double.*nor under if __name__ == \"__main__\""):
        sent.bound_function()


def test_empty_carry_adds_nothing_per_object():
    for carry in ([], [colour]):
        operation = carriers.tells_colour.using(executor="serial", carry=carry)
        assert (prepare_run(operation.__poolsave_spec__()).job.context is None) == (not carry)


@pytest.mark.django_db(transaction=True, databases=["default", "postgres"])
def test_crash_is_settled_in_an_event_loop():
    operation = operations.save_person.using(databases=("postgres",), start_method="fork")
    job = prepare_run(operation.__poolsave_spec__()).job
    with connections["postgres"].cursor() as cursor:
        cursor.execute("SELECT pg_current_xact_id()::text")
        note = TransactionNote(int(cursor.fetchone()[0]), time.time_ns() // 1000, server=0)

    async def settle():
        return job.settle(note.to_int())

    assert asyncio.run(settle()) is Status.SUCCEEDED
