"""Outcomes are true on MariaDB, which undoes the whole transaction after a deadlock, and commits before DDL."""

import contextlib
import tempfile
from pathlib import Path

import pytest
from django.db import DatabaseError, OperationalError, connections, transaction

from poolsave import Status, pooled_operation
from poolsave._db.mysql import _guarded_connection
from poolsave._db.transaction_guard import guard_of
from poolsave._db.transactions import run_in_transaction
from poolsave.executors.serial import LocalMarks
from tests.conftest import needs_mariadb
from tests.models import Badge, Person, Tag
from tests.support import mariadb, operations, pools

pytestmark = [
    pytest.mark.django_db(transaction=True, databases="__all__"),
    needs_mariadb,
]
FIVE = ["a", "b", "c", "d", "bad"]


@pytest.fixture(autouse=True)
def _tags():
    operations.attempts_left.clear()
    Tag.objects.using("mariadb").bulk_create([Tag(name="left"), Tag(name="right")])


@pytest.fixture(params=["serial", "thread", "fork"])
def run(request):
    def run(operation, objects, **options):
        options = {"databases": ("mariadb",), "chunksize": 5, "workers": 1, **options}
        return operation.using(**pools.POOLS[request.param], **options).map(objects)

    return run


@pytest.fixture(params=["object", "chunk"])
def mode(request):
    return request.param


def names():
    return sorted(Person.objects.using("mariadb").values_list("name", flat=True))


@pytest.mark.parametrize("by", ["cursor", "cursor then write", "atomic", "driver"])
def test_object_that_swallows_a_deadlock_is_a_failure(run, mode, by):
    report = run(operations.swallows_a_deadlock.bind(by=by), FIVE, transaction=mode)
    assert [failure.item for failure in report.failures] == ["bad"]
    assert [failure.status for failure in report.failures] == [Status.FAILED]
    assert report.values == ["a", "b", "c", "d"]
    assert names() == ["a before", "b before", "c before", "d before"]
    assert Badge.objects.using("mariadb").count() == 4
    assert not Tag.objects.using("mariadb").filter(name="after").exists()


def save(name):
    Person.objects.using("mariadb").create(name=name)


def test_text_that_reads_like_a_commit_is_saved(run, mode):
    texts = ["it's done; commit it", "C:\\'; rollback", "; end"]
    assert run(pooled_operation(save), texts, transaction=mode).ok
    assert names() == sorted(texts)


def test_analyze_of_a_query_ends_no_transaction(run, mode):
    def explain(name):
        save(name)
        return bool(Person.objects.using("mariadb").all().explain(analyze=True))

    report = run(pooled_operation(explain), ["a", "b"], transaction=mode)
    assert report.values == [True, True]


def test_deadlock_runs_the_whole_chunk_again(run):
    """The fifth of a chunk is the victim, once, and the four before it are undone with it."""
    operations.attempts_left.update(dict.fromkeys("abcd", 0))
    report = run(operations.deadlocks_at_first.bind(alias="mariadb", times=1), FIVE, transaction="chunk")
    assert report.ok
    assert names() == sorted(FIVE)
    assert Badge.objects.using("mariadb").count() == 5
    assert min(outcome.attempts for outcome in report) == 2


def test_deadlock_in_the_transaction_of_the_caller_fails_all(mode):
    """What the caller wrote before is undone, too, and Django lets it write nothing more."""
    with transaction.atomic(using="mariadb"):
        Person(name="mine").save(using="mariadb")
        operation = operations.swallows_a_deadlock.using(executor="serial", databases=("mariadb",), transaction=mode)
        report = operation.using(chunksize=3).map(["bad", "a", "b"])
        assert connections["mariadb"].needs_rollback
    assert report.failed == 3
    assert names() == []


@contextlib.contextmanager
def locked(name):
    """Somebody else holds the lock of a tag."""
    with contextlib.closing(mariadb.connect(database=connections["mariadb"].settings_dict["NAME"])) as other:
        other.autocommit(False)
        other.cursor().execute("SELECT id FROM tests_tag WHERE name = %s FOR UPDATE", [name])
        yield


def test_lock_wait_timeout_undoes_its_statement_only(run, mode):
    with locked("left"):
        report = run(operations.skips_what_is_locked, FIVE, transaction=mode)
    assert report.ok
    assert names() == sorted(FIVE)


@pytest.fixture
def stricter():
    """Another server behind the alias, which undoes the whole transaction after a lock wait, too; gives its socket."""
    socket = Path(tempfile.mkdtemp(prefix="poolsave-"), "socket")
    keeper = mariadb.start(socket, "--innodb-rollback-on-timeout=ON")
    before = connections["mariadb"]
    options = {"NAME": "mysql", "OPTIONS": {"unix_socket": str(socket)}}
    connections["mariadb"] = type(before)({**before.settings_dict, **options}, "mariadb")
    try:
        yield str(socket)
        connections["mariadb"].close()
    finally:
        connections["mariadb"] = before
        mariadb.end(keeper)


def test_a_lock_wait_that_undoes_everything_is_noticed(stricter):
    def execute(sql):
        with connections["mariadb"].cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()

    def swallows(_item):
        execute("INSERT INTO made VALUES (1)")
        with contextlib.suppress(DatabaseError):
            execute("SELECT * FROM locked FOR UPDATE NOWAIT")

    for name in ("made", "locked"):
        execute(f"CREATE TABLE {name} (id int) ENGINE=InnoDB")
    execute("INSERT INTO locked VALUES (1)")
    with contextlib.closing(mariadb.connect(unix_socket=stricter, database="mysql")) as other:
        other.autocommit(False)
        other.cursor().execute("SELECT * FROM locked FOR UPDATE")
        report = pooled_operation(executor="serial", databases=("mariadb",), progress=False)(swallows).map([1])
    assert [failure.status for failure in report.failures] == [Status.FAILED]
    assert "can only be rolled back" in str(report.failures[0].error)
    assert execute("SELECT count(*) FROM made") == ((0,),)


@pytest.mark.parametrize("swallowed", [True, False])
def test_record_changed_since_it_was_read_undoes_the_transaction(swallowed):
    """With snapshot isolation, which is the default in later versions."""
    database = connections["mariadb"].settings_dict["NAME"]
    others = iter(["UPDATE tests_tag SET name = 'first' WHERE name = 'right'"])

    def changes_a_tag(name):
        Person(name=name).save(using="mariadb")
        assert Tag.objects.using("mariadb").count() == 2  # now the transaction has its snapshot
        for sql in others:
            with contextlib.closing(mariadb.connect(database=database)) as other:
                other.cursor().execute(sql)
        with contextlib.suppress(DatabaseError) if swallowed else contextlib.nullcontext():
            with connections["mariadb"].cursor() as cursor:
                cursor.execute("UPDATE tests_tag SET name = 'second' WHERE name IN ('right', 'first')")

    with connections["mariadb"].cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SET SESSION innodb_snapshot_isolation = ON")
    operation = pooled_operation(executor="serial", databases=("mariadb",), progress=False)(changes_a_tag)
    (outcome,) = operation.using(keep="all").map(["a"])
    assert (outcome.status, outcome.attempts) == (Status.SUCCEEDED, 2)
    assert names() == ["a"]


def test_the_server_is_asked_nothing_while_nothing_fails():
    """An object costs it as many statements as the same in a loop. Its savepoint goes with BEGIN and COMMIT."""
    operation = operations.save_person.bind(alias="mariadb").using(executor="serial", databases=("mariadb",))
    Tag(name="member").save(using="mariadb")
    begun = statements()
    for name in FIVE:
        with transaction.atomic(using="mariadb"):
            operations.save_person(f"{name} in a loop", alias="mariadb")
    between = statements()
    assert operation.map(FIVE).ok
    assert statements() - between == between - begun > 0


def statements():
    question = """
        SELECT sum(if(variable_name = 'QUESTIONS', variable_value, -variable_value))
        FROM information_schema.session_status
        WHERE variable_name IN ('QUESTIONS', 'COM_SAVEPOINT', 'COM_RELEASE_SAVEPOINT')
    """
    return int(operations.ask("mariadb", mysql=question))


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE made (id int)",
        "  create or replace view made AS SELECT 1",
        "ALTER TABLE tests_tag COMMENT 'x'",
        "/* why */ -- and\n CREATE TABLE made (id int)",
        "ANALYZE TABLE tests_tag",
        "CHECK TABLE tests_tag",
        "FLUSH TABLES",
        "RESET QUERY CACHE",
        "SET autocommit = 1",
        "DROP TABLE IF EXISTS made",
        "TRUNCATE TABLE tests_visit",
        "RENAME TABLE made TO made_too",
        "LOCK TABLES tests_tag READ",
        "GRANT SELECT ON *.* TO root@localhost",
        "START TRANSACTION",
        "BEGIN",
    ],
)
def test_statement_that_would_commit_is_refused(mode, sql):
    operation = operations.runs.using(databases=("mariadb",), transaction=mode, chunksize=2, start_method="fork")
    report = operation.map([sql, sql])
    assert "would commit the transaction" in str(report.failures[0].error)
    assert report.failed == 2
    assert names() == []


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TEMPORARY TABLE made (id int)",
        "CREATE OR REPLACE TEMPORARY TABLE made (id int)",
        "DROP TEMPORARY TABLE IF EXISTS made",
        "BEGIN NOT ATOMIC SELECT 1 INTO @one; END",
        "SELECT 'CREATE TABLE'",
        "/* CREATE TABLE */ SELECT 1",
    ],
)
def test_statement_that_does_not_commit_is_run_and_undone(mode, sql):
    operation = operations.runs.using(databases=("mariadb",), transaction=mode, chunksize=2, workers=1)
    report = operation.using(start_method="fork").map([sql])
    assert [type(failure.error) for failure in report.failures] == [ValueError]
    assert names() == []


def test_without_a_transaction_of_poolsave_s_nothing_is_refused():
    sql = "CREATE OR REPLACE TABLE made (id int)"
    report = operations.runs.using(databases=("mariadb",), transaction=None, start_method="fork").map([sql])
    assert [type(failure.error) for failure in report.failures] == [ValueError]
    with connections["mariadb"].cursor() as cursor:
        cursor.execute("DROP TABLE made")


def test_session_that_ends_in_the_transaction_is_a_failure(run):
    """Its COMMIT was never sent, so that nothing is lost."""
    report = run(operations.loses_its_session_unseen, ["a", "b"])
    assert [failure.status for failure in report.failures] == [Status.FAILED] * 2
    assert names() == []


def test_session_killed_in_commit_is_lost_and_not_retried(run, mode):
    """A lock on everything keeps the COMMIT waiting until its session is killed."""
    objects = ["a", "b"] if mode == "chunk" else ["a"]
    report = run(operations.is_killed_in_commit.bind(last=objects[-1]), objects, transaction=mode)
    assert [failure.status for failure in report.failures] == [Status.LOST] * len(objects)
    assert {failure.attempts for failure in report.failures} == {1}
    assert {type(failure.error) for failure in report.failures} == {OperationalError}
    assert names() == []


def interrupt(monkeypatch, name):
    """Have the handler of a signal raise as the driver's next call of this method returns."""
    guarded = _guarded_connection(type(connections["mariadb"].connection))
    method = getattr(guarded, name)

    def call(raw, *args):
        method(raw, *args)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(guarded, name, call)


def attempt(call):
    return run_in_transaction(call, LocalMarks(), 0, ["mariadb"])


def is_in_autocommit():
    """Whether what is saved now is there after the connection has been closed."""
    save("later")
    connections["mariadb"].close()
    return "later" in names()


@pytest.mark.parametrize("method", ["query", "next_result"])
def test_commit_whose_answer_is_not_read_is_lost(monkeypatch, method):
    def call():
        save("a")
        interrupt(monkeypatch, method)

    result = attempt(call)
    assert (result.status, result.retry) == (Status.LOST, False)
    assert type(result.error) is KeyboardInterrupt
    assert is_in_autocommit()


@pytest.mark.parametrize("method", ["query", "next_result"])
def test_interrupted_begin_leaves_autocommit_on(monkeypatch, method):
    connections["mariadb"].ensure_connection()
    interrupt(monkeypatch, method)
    assert attempt(lambda: save("a")).status is Status.FAILED
    assert is_in_autocommit()


@pytest.mark.parametrize("end", ["SIGNAL SQLSTATE '70100' SET MYSQL_ERRNO = 1317", "KILL CONNECTION_ID()"])
def test_error_after_the_answer_to_commit_changes_nothing(monkeypatch, end):
    """As from KILL QUERY or max_statement_time, while autocommit is turned on again."""

    def call():
        save("a")
        guarded = type(connections["mariadb"].connection)
        send = guarded.query

        def fails_later(raw, query):
            monkeypatch.undo()
            send(raw, query.replace("SET autocommit=1", end))

        monkeypatch.setattr(guarded, "query", fails_later)

    assert attempt(call).status is Status.SUCCEEDED
    assert is_in_autocommit()
    assert names() == ["a", "later"]


def test_error_before_the_transaction_leaves_no_guard(monkeypatch):
    """As with a driver that has other methods."""
    connections["mariadb"].ensure_connection()
    monkeypatch.setattr("poolsave._db.mysql._guarded_connection", lambda cls: cls.no_such_method)
    assert attempt(lambda: save("a")).status is Status.FAILED
    assert guard_of(connections["mariadb"].connection) is None


def test_driver_that_reads_rows_in_its_query_method_is_guarded():
    """As PyMySQL, which has no `store_result`, and whose unbuffered cursors pass an option."""

    class Raw:
        def query(self, sql, unbuffered=False):
            return sql, unbuffered

        def next_result(self, unbuffered=False):
            return unbuffered

        commit = rollback = next_result

    guarded = _guarded_connection(Raw)()
    assert guarded.query("SELECT 1", unbuffered=True) == ("SELECT 1", True)
    assert guarded.next_result(unbuffered=True)
    assert not hasattr(guarded, "store_result")
