"""All parts of a run, by name and in the order of a run."""

from functools import partial

from tests.benchmarks import batching, contenders, dispatching, saving, workloads
from tests.benchmarks.parts import ours, peer

PARTS = {
    "no_ops": dispatching.no_ops,
    "no_op_rows": dispatching.no_op_rows,
    "single_no_ops": dispatching.single_no_ops,
    "users_postgres": partial(saving.users, "postgres"),
    "users_far": saving.users_far,
    "audited_postgres": partial(batching.audited, "postgres"),
    "audited_far": partial(batching.audited, "far"),
    "taken": batching.taken,
    "users_sqlite": partial(saving.users, "sqlite"),
    "users_sqlite_default": partial(saving.users, "sqlite_default"),
    "hashing": saving.hashing,
    "waiting": saving.waiting,
    "waiting_one_row": saving.waiting_one_row,
    "table": saving.table,
    "table_far": batching.table_far,
    "whole_table": saving.whole_table,
    "memory": dispatching.memory,
    "start_up": dispatching.start_up,
    "recovery": saving.recovery,
    "few": saving.few,
    "many": saving.many,
}


def tried_first():
    """Every contender over a few objects, for what it imports."""
    objects, function, pool = range(4), workloads.ask_the_database, {"workers": 2}
    runs = [
        contenders.thread_pool,
        contenders.process_pool_map,
        contenders.pool_imap_unordered,
        contenders.joblib_parallel,
        contenders.mpire_map,
        contenders.pebble_map,
    ]
    yield peer("article", contenders.article, function, objects)
    yield from (peer(run.__name__, run, function, objects, pool) for run in runs)
    for executor, transaction in [("process", "chunk"), ("thread", "object"), ("serial", "object"), ("auto", "object")]:
        yield ours(function, objects, {"workers": 2, "executor": executor, "transaction": transaction})
    yield ours(function, objects, {"workers": 2, "executor": "process", "transaction": "object"}, database="sqlite")
