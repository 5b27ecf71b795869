import os

BATCHES_WRITES = bool(os.environ.get("POOLSAVE_TEST_BATCH_WRITES"))
"""Whether what runs on PostgreSQL batches its writes; see `tests/support/batched.py`."""

if BATCHES_WRITES:
    from tests.support import batched

    batched.switch_on()
