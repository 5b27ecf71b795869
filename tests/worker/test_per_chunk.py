"""`transaction="chunk"`: a savepoint per object, and outcomes only after the COMMIT."""

from functools import partial

import pytest
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

from poolsave import Status, pooled_operation
from poolsave._db.transaction_guard import guard_of
from poolsave._engine.chunking import FlowControl
from poolsave._worker.modes.per_chunk import ChunkRolledBack, run_chunk_in_transaction
from poolsave._worker.replies import ReplyBuilder
from poolsave.executors.marks import PENDING
from poolsave.executors.serial import LocalMarks
from tests.models import Badge, Person, Tag
from tests.support import operations, pools, postgres

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@pytest.fixture(params=["serial", "thread", "fork", "forkserver"])
def run(request, alias):
    def run(operation, objects, **more):
        options = {**pools.POOLS[request.param], "transaction": "chunk", "chunksize": 5, **more}
        return operation.using(**options, databases=(alias,)).bind(alias=alias).map(objects)

    return run


def names(alias):
    return sorted(Person.objects.using(alias).values_list("name", flat=True))


ABC = list("abcdefgh")


def test_a_failed_object_leaves_nothing_and_its_chunk_stays(run, alias):
    report = run(operations.save_person.bind(fail=("b", "f")), ABC)
    assert [failure.item for failure in report.failures] == ["b", "f"]
    assert names(alias) == list("acdegh")
    assert Badge.objects.using(alias).count() == 6
    assert sorted(report.values) == sorted(Person.objects.using(alias).values_list("pk", flat=True))


@pytest.mark.parametrize(("transaction", "replies"), [("chunk", [8]), ("object", [2, 4, 2])])
def test_failures_of_a_chunk_share_a_reply_and_others_never_wait(monkeypatch, transaction, replies):
    taken = []
    take = ReplyBuilder.take
    monkeypatch.setattr(ReplyBuilder, "take", lambda builder: taken.append(len(builder._values)) or take(builder))
    monkeypatch.setattr("poolsave._worker.replies.MAX_REPLY_DELAY", 600)
    options = {**pools.POOLS["serial"], "transaction": transaction, "chunksize": 8, "databases": ("default",)}
    operation = operations.save_person.using(**options).bind(alias="default", fail=("b", "f"))
    assert operation.map(ABC).failed == 2
    assert taken == replies


def test_a_real_integrity_error_does_not_poison_the_chunk(run, alias):
    Person(name="c").save(using=alias)
    report = run(operations.save_person, ABC)
    assert [failure.item for failure in report.failures] == ["c"]
    assert names(alias) == ABC


@pytest.mark.parametrize("operation", ["swallows_the_error", "rolls_back_by_itself"])
def test_an_object_that_can_only_be_rolled_back_is_a_failure(run, alias, operation):
    Person(name="taken").save(using=alias)
    report = run(getattr(operations, operation), ["a", "b"])
    assert [failure.status for failure in report.failures] == [Status.FAILED] * 2
    assert names(alias) == ["taken"]


def test_an_object_that_closes_the_connection_costs_itself_only(run, alias):
    report = run(operations.closes_when_told, ["a", "b", "close", "c"])
    assert [failure.item for failure in report.failures] == ["close"]
    assert names(alias) == ["a", "b", "c"]


def test_failed_commit_runs_the_chunk_again_one_by_one(run, alias):
    report = run(operations.violates_when_told, ["a", "bad", "c"])
    assert [(failure.item, type(failure.error).__name__) for failure in report.failures] == [("bad", "IntegrityError")]
    assert names(alias) == ["a", "c"]
    at_once = alias == "mariadb"  # checks no constraint later than in its statement
    assert [outcome.attempts for outcome in report] == [1 if at_once else 2] * 3


def test_callbacks_run_after_the_commit_with_their_own_object(run, alias):
    report = run(operations.with_callback, ["a", "bad", "c"])
    assert report.succeeded == 3
    assert names(alias) == ["a", "a called", "bad", "bad called", "c", "c called"]
    assert [flawed.item for flawed in report.flawed] == ["bad"]


def test_callbacks_of_a_rolled_back_object_are_dropped(run, alias):
    report = run(operations.calls_back_and_fails, ["a", "b"])
    assert report.failed == 2
    assert names(alias) == []


def test_the_chunk_is_one_transaction(server):
    operation = operations.transaction_id.bind(alias=server).using(databases=(server,), start_method="fork")
    operation = operation.using(transaction="chunk")
    assert len(set(operation.using(chunksize=6).map(range(12)).values)) == 2
    assert len(set(operation.using(chunksize=6, transaction="object").map(range(12)).values)) == 12


def test_transient_error_runs_the_chunk_again_one_by_one(server):
    operations.attempts_left.clear()
    Tag.objects.using(server).bulk_create([Tag(name="left"), Tag(name="right")])
    operation = operations.deadlocks_at_first.using(databases=(server,), transaction="chunk", chunksize=3, workers=1)
    report = operation.using(start_method="fork").bind(alias=server, times=1).map(list("abc"))
    assert report.values == list("abc")
    assert names(server) == list("abc")
    assert Badge.objects.using(server).count() == 3


def test_savepoint_costs_one_query_an_object_on_postgresql():
    operation = operations.save_person.using(
        executor="serial", transaction="chunk", chunksize=10, databases=("postgres",), progress=False
    )
    Tag(name="member").save(using="postgres")  # or to get or create it would set a savepoint of its own
    with CaptureQueriesContext(connections["postgres"]) as asked:
        assert operation.bind(alias="postgres").map([f"p{number}" for number in range(10)]).ok
    told = [query["sql"] for query in asked if "SAVEPOINT" in query["sql"]]
    assert len(told) == 10 + 1
    assert told[0].startswith("SAVEPOINT")
    assert all(sql.startswith("RELEASE SAVEPOINT") and "; SAVEPOINT" in sql for sql in told[1:-1])
    assert told[-1].startswith("RELEASE SAVEPOINT")
    assert ";" not in told[-1]


@pytest.mark.skipif("pooled" not in connections, reason="psycopg 3 prepares statements, psycopg2 does not")
def test_savepoints_work_with_prepared_statements(monkeypatch):
    """Such a driver takes one statement at a time."""
    operation = operations.save_person.using(
        executor="serial", transaction="chunk", chunksize=10, databases=("postgres",), progress=False
    )
    wrapper = connections["postgres"]
    wrapper.close()
    monkeypatch.setitem(wrapper.settings_dict["OPTIONS"], "server_side_binding", True)
    monkeypatch.setitem(wrapper.settings_dict["OPTIONS"], "prepare_threshold", 0)
    try:
        report = operation.bind(alias="postgres").map([f"p{number}" for number in range(10)])
    finally:
        wrapper.close()
    assert report.ok
    assert {outcome.attempts for outcome in report} == {1}


def test_server_timeout_in_a_chunk_is_reported_to_flow_control(server, monkeypatch):
    told = []
    learn = FlowControl.learn
    monkeypatch.setattr(
        FlowControl, "learn", lambda pacing, *of, **more: (told.append(more["timed_out"]), learn(pacing, *of, **more))
    )
    operation = operations.sleeps_on_the_server.using(databases=(server,), transaction="chunk", start_method="fork")
    operation.bind(alias=server).using(chunksize=2, workers=1).map(["a", "slow", "b", "c", "the last chunk"])
    assert told == [True, False]


def test_a_chunk_that_hits_a_time_limit_of_the_server_is_halved(server):
    operation = operations.sleeps_on_the_server.using(databases=(server,), transaction="chunk", start_method="fork")
    report = operation.bind(alias=server).using(chunksize=4, workers=1).map(["a", "b", "slow", "d"])
    assert [failure.item for failure in report.failures] == ["slow"]
    assert list(report.by_cause()) == [("OperationalError", "57014" if server == "postgres" else None)]
    assert names(server) == ["a", "b", "d"]
    assert max(outcome.attempts for outcome in report) == 3


def test_worker_death_in_a_chunk_costs_the_object_it_was_at(alias, start_method):
    operation = operations.saves_and_dies.using(databases=(alias,), transaction="chunk", start_method=start_method)
    report = operation.using(chunksize=8).bind(alias=alias).map([f"p{number}" for number in range(12)])
    (failed,) = report.failures
    assert (failed.item, failed.status) == ("p5", Status.FAILED)
    assert report.succeeded == 11
    assert Person.objects.using(alias).count() == Badge.objects.using(alias).count() == 11


def test_serial_takes_part_in_the_caller_s_transaction():
    with transaction.atomic():
        report = operations.save_person.using(executor="serial", transaction="chunk").bind(fail=("b",)).map(list("abc"))
        assert report.failed == 1
        assert names("default") == ["a", "c"]
    assert names("default") == ["a", "c"]


@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_a_session_that_dies_during_commit_is_settled(mode):
    """A deferred trigger ends its own session inside COMMIT, so that the answer never comes."""
    with connections["postgres"].cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION end_session() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;"
            "CREATE CONSTRAINT TRIGGER end_session AFTER INSERT ON tests_person DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW WHEN (NEW.name = 'fatal') EXECUTE FUNCTION end_session()"
        )
    try:
        operation = operations.save_person.using(
            databases=("postgres",), transaction=mode, chunksize=3, start_method="fork", workers=1
        ).bind(alias="postgres")
        unsettled = operation.using(resolve_lost=False).map(["a", "fatal"])
        settled = operation.using(resolve_lost=True).map(["b", "fatal"])
    finally:
        with connections["postgres"].cursor() as cursor:
            cursor.execute("DROP FUNCTION end_session CASCADE")
    assert unsettled.lost == (2 if mode == "chunk" else 1)
    assert settled.lost == 0
    assert settled.failed == (2 if mode == "chunk" else 1)
    assert "fatal" not in names("postgres")


@pytest.mark.parametrize("noted", [True, False])
def test_session_that_ends_before_commit_loses_no_object(noted):
    class EndsTheSession(LocalMarks):
        def put(self, offset, mark):
            if (offset, mark) == (1, PENDING):
                watcher = postgres.connect()
                with watcher.cursor() as cursor:
                    cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [session])
                watcher.close()

    with connections["postgres"].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        session = cursor.fetchone()[0]
    calls = enumerate([partial(Person(name=name).save, using="postgres") for name in "ab"])
    # The last savepoint cannot be released, so no COMMIT is sent whose end would be unknown.
    assert run_chunk_in_transaction(calls, EndsTheSession(), 0, ["postgres"], noted=noted) == ChunkRolledBack(
        halve=False
    )
    assert names("postgres") == []


def test_savepoints_that_do_not_open_leave_no_transaction_open():
    """As when Ctrl-C comes, or a package that wraps savepoints raises."""

    def cannot_open(_transactions):
        raise KeyboardInterrupt

    result = run_chunk_in_transaction(
        enumerate([Person(name="a").save]), LocalMarks(), 0, ["default"], noted=False, open_savepoints=cannot_open
    )
    assert result == ChunkRolledBack(halve=False)
    assert not connections["default"].in_atomic_block
    assert guard_of(connections["default"].connection) is None
    Person(name="b").save()
    assert names("default") == ["b"]


def test_set_local_and_temporary_tables_can_be_put_back():
    """As docs/explanation/transactions.md says. What is not put back is there for the next object of the chunk."""

    def seen_after(put_back, fails=False):
        def sets_when_first(number):
            with connections["postgres"].cursor() as cursor:
                cursor.execute("SELECT current_setting('audit.actor', true), to_regclass('lines') IS NOT NULL")
                seen = cursor.fetchone()
                if number == 0:
                    cursor.execute("SET LOCAL audit.actor = 'ann'")
                    cursor.execute("CREATE TEMPORARY TABLE lines (total int) ON COMMIT DROP")
                    for statement in put_back:
                        cursor.execute(statement)
                    if fails:
                        raise ValueError(number)
            return seen

        operation = pooled_operation(sets_when_first, executor="thread", workers=1, databases=("postgres",))
        report = operation.using(transaction="chunk", chunksize=2, progress=False).map(range(2))
        actor, table = report.values[-1]
        return actor or "", table

    assert seen_after([]) == ("ann", True)
    assert seen_after(["SET LOCAL audit.actor TO DEFAULT", "DROP TABLE lines"]) == ("", False)
    assert seen_after([], fails=True) == ("", False)


def test_a_lock_of_the_first_query_numbers_without_gaps(server):
    """As docs/howto/trees-threads-receivers.md says."""
    Tag(name="lock").save(using=server)

    def numbered(_item):
        Tag.objects.using(server).select_for_update().get(name="lock")
        Person(name=str(Person.objects.using(server).count())).save(using=server)

    operation = pooled_operation(numbered, workers=2, chunksize=1, start_method="fork", databases=(server,))
    assert operation.using(progress=False).map(range(20)).ok
    assert sorted(map(int, names(server))) == list(range(20))
