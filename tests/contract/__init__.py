"""The same hard cases for every executor.

The table in `tests.support.pools` says how to make each of them; an entry is all that another executor needs.
What it has to do is read from the attributes of its class, which `poolsave.executors.protocol` explains:

| where | what |
|---|---|
| `test_behaviour` | values, failures, order, window, context: no promise is needed for these |
| `test_unpicklable` | objects, values and exceptions that break other pools, and 200 MB both ways at once |
| `test_worker_death` | killed while running, idle or committing, and stopped |
| `test_startup_and_exit` | set-up that fails, a pool inside a worker, an interpreter that exits |

Workers are found by what their objects tell of themselves: they need not be children of this process.
"""
