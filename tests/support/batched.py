"""The leg in which what runs on PostgreSQL runs with `transaction="chunk", batch_writes=True`.

    POOLSAVE_TEST_BATCH_WRITES=1 python -m pytest tests/worker

Operations have `transaction="chunk"` where they name no other and cover PostgreSQL alone, and such chunks batch their
writes. Every process that imports the tests does so, also a script that a test starts.
"""

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from poolsave.options import Options

OTHERWISE = {
    "it is about a transaction for each object": [
        "test_a_lock_of_what_failed_is_released_at_once",
        "test_killed_while_committing",
        "test_kept_driver_connection_fails_each_object",
        "test_a_durable_run_pauses_when_it_loses_patience",
        "test_ranges_are_joined_while_workers_write_and_die",
    ],
    "it counts savepoints, which stay in the worker": ["test_savepoint_costs_one_query_an_object_on_postgresql"],
    "it counts calls of hooks, and a chunk that is undone runs twice": [
        "test_objects_of_a_chunk_call_the_same_hooks_as_a_loop"
    ],
    "it takes the order of keys for that of saves": ["test_rows_of_a_key_are_saved_in_input_order"],
}
"""Tests that cannot hold, by their reasons."""
NAMES = {name for names in OTHERWISE.values() for name in names}
LEFT_OUT = {"default", "mariadb", "object"}
"""Parameters by which a test saves on another database or asks for another transaction."""


def leave_others_out(config, items):
    """Leave the tests with a database that can hold."""
    left = [item for item in items if _may_batch(item)]
    config.hook.pytest_deselected(items=[*{*items} - {*left}])
    items[:] = left


def _may_batch(item):
    given = item.callspec.params.values() if hasattr(item, "callspec") else ()
    has_database = item.get_closest_marker("django_db") or "private_server" in getattr(item, "fixturenames", ())
    is_otherwise = item.name.partition("[")[0] in NAMES or any(
        isinstance(one, str) and one in LEFT_OUT for one in given
    )
    return bool(has_database) and not is_otherwise


def switch_on():
    """Have options that name no transaction be those of this leg."""
    check, resolve = Options.__post_init__, Options.resolve

    def batch(options):
        check(options)
        if options.transaction == "chunk" and _on_postgresql(options.databases):
            object.__setattr__(options, "batch_writes", True)

    def resolve_by_chunk(cls, explicit, **more):
        options = resolve(explicit, **more)
        by_chunk = "transaction" not in explicit and options.transaction and _on_postgresql(options.databases)
        return resolve({**explicit, "transaction": "chunk"}, **more) if by_chunk else options

    Options.__post_init__ = batch
    Options.resolve = classmethod(resolve_by_chunk)


def _on_postgresql(databases):
    try:
        engines = {connections.settings.get(alias, {}).get("ENGINE") for alias in databases}
    except ImproperlyConfigured:
        return False
    return engines == {"django.db.backends.postgresql"}
