"""The same hard cases for every executor.

The table in `tests.pools` says how to make each of them; an entry is all that another executor needs. What it has to do
is read from the attributes of its class, which `poolsave.executors.protocol` explains:

| where | what |
|---|---|
| `test_what_every_executor_does` | values, failures, order, window, context: no promise is needed for these |
| `test_what_cannot_cross` | objects, values and exceptions that break other pools, and 200 MB both ways at once |
| `test_workers_that_die` | killed while running, idle or committing, and stopped |
| `test_pools_that_begin_and_end_badly` | set-up that fails, a pool inside a worker, an interpreter that exits |

Workers are found by what their objects tell of themselves: they need not be children of this process.
"""
