"""A savepoint costs no query where psycopg2 sends it along with a statement; what fails leaves nothing."""

import contextlib
import io
import threading

import pytest
from django.db import DatabaseError, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3, sql
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poolsave import pooled_operation
from tests.conftest import wait_until
from tests.models import Person, Tag
from tests.support import operations, postgres
from tests.support.selection import examples

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
psycopg2_only = pytest.mark.skipif(is_psycopg3, reason="psycopg 3 takes nothing along")

INSERT = "INSERT INTO tests_tag (name) VALUES (%s)"
POOLS = {"thread": {"executor": "thread"}, "fork": {"executor": "process", "start_method": "fork"}}
kept = {}
"""What an object leaves for later ones, of the same worker."""


def together(function, objects, **more):
    options = {"executor": "thread", "workers": 1, "chunksize": 100, "databases": ("postgres",), **more}
    operation = pooled_operation(function).using(transaction="chunk", keep="all", progress=False, **options)
    return operation.map(list(objects))


def raw():
    return connections["postgres"].connection


def tags():
    return sorted(Tag.objects.using("postgres").values_list("name", flat=True))


@pytest.fixture(params=POOLS)
def pool(request):
    kept.clear()
    return POOLS[request.param]


@pytest.fixture
def _procedure():
    with connections["postgres"].cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION write_tag(name text) RETURNS text LANGUAGE sql VOLATILE AS "
            "$$ INSERT INTO tests_tag (name) VALUES (name) RETURNING name $$"
        )
    yield
    with connections["postgres"].cursor() as cursor:
        cursor.execute("DROP FUNCTION write_tag")


def saves(name):
    Tag(name=name).save(using="postgres")


def by_raw_cursor(name):
    raw().cursor().execute(INSERT, [name])


def by_bytes(name):
    raw().cursor().execute(INSERT.encode(), [name])


def by_composed(name):
    statement = sql.SQL("INSERT INTO tests_tag (name) VALUES ({})").format(sql.Literal(name))
    with connections["postgres"].cursor() as cursor:
        cursor.execute(statement)


def after_a_comment(name):
    raw().cursor().execute("/* a hint */ " + INSERT, [name])


def by_executemany(name):
    with connections["postgres"].cursor() as cursor:
        cursor.executemany(INSERT, [[name], [f"{name} 2"]])


def by_raw_executemany(name):
    raw().cursor().executemany(INSERT, [[name]])


def by_callproc(name):
    with connections["postgres"].cursor() as cursor:
        cursor.callproc("write_tag", [name])


def by_inner_block(name):
    with transaction.atomic(using="postgres"):
        by_raw_cursor(name)


def by_kept_cursor(name):
    kept.setdefault("cursor", raw().cursor()).execute(INSERT, [name])


def by_named_cursor(name):
    with connections["postgres"].chunked_cursor() as cursor:
        cursor.execute("SELECT write_tag(%s)", [name])
        cursor.fetchone()


def by_raw_named_cursor(name):
    with raw().cursor("named") as cursor:
        cursor.execute("SELECT write_tag(%s)", [name])
        cursor.fetchall()


def after_reading_by_iterator(name):
    assert "a" in {tag.name for tag in Tag.objects.using("postgres").iterator()}
    by_raw_cursor(name)


def by_copy_expert(name):
    with connections["postgres"].cursor() as cursor:
        cursor.copy_expert("COPY tests_tag (name) FROM STDIN", io.StringIO(name))


def by_copy_from(name):
    raw().cursor().copy_from(io.StringIO(name), "tests_tag", columns=["name"])


def by_execute_values(name):
    from psycopg2.extras import execute_values

    with connections["postgres"].cursor() as cursor:
        execute_values(cursor.cursor, "INSERT INTO tests_tag (name) VALUES %s", [[name], [f"{name} 2"]])


def by_execute_batch(name):
    from psycopg2.extras import execute_batch

    execute_batch(raw().cursor(), INSERT, [[name], [f"{name} 2"]])


def by_dict_cursor(name):
    from psycopg2.extras import DictCursor

    raw().cursor(cursor_factory=DictCursor).execute(INSERT, [name])


def by_kept_dict_cursor(name):
    from psycopg2.extras import DictCursor

    if "dict" not in kept:
        kept["dict"] = raw().cursor(cursor_factory=DictCursor)
    kept["dict"].execute(INSERT, [name])


def by_the_connection_s_new_factory(name):
    from psycopg2.extras import DictCursor

    raw().cursor_factory = DictCursor
    raw().cursor().execute(INSERT, [name])


WAYS = [
    saves,
    by_raw_cursor,
    by_bytes,
    by_composed,
    after_a_comment,
    by_executemany,
    by_raw_executemany,
    by_callproc,
    by_inner_block,
    by_kept_cursor,
    by_named_cursor,
    by_raw_named_cursor,
    after_reading_by_iterator,
]
WAYS_OF_PSYCOPG2 = [
    by_copy_expert,
    by_copy_from,
    by_execute_values,
    by_execute_batch,
    by_dict_cursor,
    by_kept_dict_cursor,
    by_the_connection_s_new_factory,
]
every_way = pytest.mark.parametrize(
    "way", WAYS if is_psycopg3 else WAYS + WAYS_OF_PSYCOPG2, ids=lambda way: way.__name__
)


@every_way
@pytest.mark.usefixtures("_procedure")
def test_failed_object_leaves_nothing_however_it_wrote(way, pool):
    def writes(name):
        (saves if name in "ag" else way)(name)
        if name in "bdf":
            raise ValueError(name)

    report = together(writes, "abcdefg", **pool)
    assert [failure.item for failure in report.failures] == list("bdf")
    assert {type(failure.error) for failure in report.failures} == {ValueError}
    assert [name for name in tags() if len(name) == 1] == list("aceg")
    assert {name[0] for name in tags()} == set("aceg")
    assert {outcome.attempts for outcome in report} == {1}


READINGS = {
    "fetchone": lambda cursor: cursor.fetchone(),
    "fetchmany": lambda cursor: cursor.fetchmany(2),
    "fetchall": lambda cursor: cursor.fetchall(),
    "scroll": lambda cursor: cursor.scroll(2),
    "for": lambda cursor: next(iter(cursor)),
}


@psycopg2_only
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.usefixtures("_procedure")
def test_rows_written_by_an_older_cursor_belong_to_its_reader(reading, pool):
    """An object reads from a cursor that an earlier one opened, and by that writes."""

    def reads(name):
        if name == "a":
            kept["named"] = raw().cursor("long_lived")
            kept["named"].execute("SELECT write_tag('tag ' || n) FROM generate_series(1, 10) n")
        else:
            READINGS[reading](kept["named"])
            raise ValueError(name)

    report = together(reads, "ab", **pool)
    assert [(failure.item, type(failure.error)) for failure in report.failures] == [("b", ValueError)]
    assert {outcome.attempts for outcome in report} == {1}
    assert tags() == []


@psycopg2_only
def test_large_objects_of_what_fails_are_gone(pool):
    def stores(name):
        if "large" in kept and name == "c":
            kept["large"].write("more")
        else:
            kept["large"] = raw().lobject(0, "w")
            kept["large"].write(name)
        if name in "bc":
            raise ValueError(name)
        return kept["large"].oid

    report = together(stores, "abd", **pool)
    assert [failure.item for failure in report.failures] == ["b"]
    with connections["postgres"].cursor() as cursor:
        cursor.execute("SELECT oid FROM pg_largeobject_metadata ORDER BY oid")
        found = [oid for (oid,) in cursor]
        cursor.execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
    assert found == sorted(report.values)


class Log:
    """Takes what the server sends of its log."""

    def __init__(self):
        self.lines = []

    def append(self, line):
        self.lines.append(line)

    def statements(self):
        return [line.partition("statement:")[2].strip() for line in self.lines if "statement:" in line]


@pytest.fixture
def log(monkeypatch):
    """Lets the server send its log along with the answers."""
    found = Log()
    given = connections["postgres"].settings_dict["OPTIONS"]
    monkeypatch.setitem(given, "options", "-c log_statement=all -c client_min_messages=log")
    return found


def listening(log, function):
    def heard(item):
        raw().notices = log
        return function(item)

    return heard


@psycopg2_only
def test_savepoints_cost_no_question_of_their_own(log):
    assert together(listening(log, by_raw_cursor), map(str, range(20))).ok
    *of_objects, release, _note, commit = log.statements()
    assert len(of_objects) == 20
    assert sum("SAVEPOINT" in statement for statement in of_objects) == 19
    assert release.startswith("RELEASE SAVEPOINT")
    assert commit == "COMMIT"
    assert log.statements()[0].startswith("INSERT")
    assert len(tags()) == 20


@psycopg2_only
def test_objects_that_send_nothing_cost_no_question(log):
    report = together(
        listening(log, lambda number: saves(number) if number in ("3", "7") else None), map(str, range(9))
    )
    assert report.ok
    assert len(log.statements()) == 2 + 3
    assert tags() == ["3", "7"]


@psycopg2_only
@pytest.mark.parametrize("option", ["connection_factory", "cursor_factory"])
def test_own_factory_of_the_project_is_kept_at_a_cost(log, option, monkeypatch):
    import psycopg2.extensions

    class Own(getattr(psycopg2.extensions, option.removesuffix("_factory"))):
        pass

    def looks(name):
        by_raw_cursor(name)
        made = raw() if option == "connection_factory" else raw().cursor()
        return isinstance(made, Own), name in "bc" and 1 / 0

    monkeypatch.setitem(connections["postgres"].settings_dict["OPTIONS"], option, Own)
    report = together(listening(log, looks), "abcd")
    assert [value[0] for value in report.values] == [True, True]
    assert tags() == ["a", "d"]
    assert sum(statement.startswith("RELEASE SAVEPOINT") for statement in log.statements()) == 3 + 1


@psycopg2_only
def test_unwatched_cursor_costs_a_query_an_object_from_then_on(log):
    def writes(name):
        (by_dict_cursor if name == "b" else by_raw_cursor)(name)

    assert together(listening(log, writes), "abcd").ok
    alone = [line for line in log.statements() if line.startswith("RELEASE") and "INSERT" not in line]
    assert len(alone) == 3 + 1


@psycopg2_only
def test_the_caller_s_own_connections_are_as_they_were(start_method):
    import psycopg2.extensions

    ours = operations.kind_of_connection.using(databases=("postgres",), transaction="chunk", start_method=start_method)
    assert set(ours.map(range(3)).values) == {"poolsave._db.psycopg2"}
    assert ours.using(executor="serial").map(range(3)).ok
    assert type(raw()) is psycopg2.extensions.connection
    assert not {"connection_factory", "cursor_factory"} & set(connections["postgres"].settings_dict["OPTIONS"])


@pytest.mark.parametrize("caught", [True, False])
def test_syntax_error_in_the_first_statement_fails_one_object(pool, caught):
    def writes(name):
        if name in "ce":
            with contextlib.suppress(DatabaseError) if caught else contextlib.nullcontext():
                with connections["postgres"].cursor() as cursor:
                    cursor.execute("INSRT INTO nowhere")
        saves(name)
        if name == "b":
            raise ValueError(name)

    report = together(writes, "abcdef", **pool)
    assert [failure.item for failure in report.failures] == ["b", "c", "e"]
    assert tags() == ["a", "d", "f"]
    if not caught:
        assert "INSRT" in str(report.failures[1].error)


def told(error):
    found = error.__cause__
    return str(error), found.pgcode, found.pgerror, found.diag.statement_position, found.diag.message_hint


@psycopg2_only
@pytest.mark.parametrize(
    "statement",
    ["SELECT nothing\n FROM pg_class", "SELECT 'x'::int", "SELECT 1 / 0", "SELECT pg_klass FROM pg_class", "SELEC 1"],
)
def test_the_server_s_message_is_that_of_the_statement_alone(statement):
    found = {}

    def asks(name):
        with connections["postgres"].cursor() as cursor:
            try:
                cursor.execute(statement)
            except DatabaseError as error:
                found[name] = told(error)
                raise

    with pytest.raises(DatabaseError) as alone, connections["postgres"].cursor() as cursor:
        cursor.execute(statement)
    report = together(asks, "abc")
    assert report.failed == 3
    assert found == dict.fromkeys("abc", told(alone.value))


def test_statement_that_fails_on_the_server_fails_one_object(pool):
    """No object runs twice for it."""

    def writes(name):
        if name in "ce":
            by_raw_cursor("taken")
        by_raw_cursor(name)

    Tag(name="taken").save(using="postgres")
    report = together(writes, "abcdef", **pool)
    assert [failure.item for failure in report.failures] == ["c", "e"]
    assert tags() == ["a", "b", "d", "f", "taken"]
    assert {outcome.attempts for outcome in report} == {1}


def test_arguments_that_do_not_fit_fail_one_object(pool):
    """No object runs twice for it."""

    def writes(name):
        with connections["postgres"].cursor() as cursor:
            cursor.execute(INSERT, [name] if name != "b" else [])

    report = together(writes, "abc", **pool)
    assert [failure.item for failure in report.failures] == ["b"]
    assert tags() == ["a", "c"]
    assert {outcome.attempts for outcome in report} == {1}


@pytest.mark.parametrize("statement", ["", "-- nothing but a comment"])
@psycopg2_only
def test_an_empty_statement_is_refused_as_ever(statement):
    def writes(name):
        saves(name)
        if name == "c":
            raw().cursor().execute(statement)

    def sends_nothing_else(name):
        raw().cursor().execute(statement if name == "b" else "SELECT 1")

    assert [failure.item for failure in together(writes, "abcd").failures] == ["c"]
    assert [failure.item for failure in together(sends_nothing_else, "abc").failures] == ["b"]


def test_rollback_by_the_function_undoes_no_other_object(pool):
    def ends(name):
        if name == "c":
            raw().cursor().execute("ROLLBACK")
        elif name != "d":
            saves(name)

    report = together(ends, "abcdef", **pool)
    assert {outcome.item for outcome in report if outcome.ok} >= set("abdef")
    assert tags() == ["a", "b", "e", "f"]


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("anew", [True, False])
def test_nor_does_one_that_does_so_by_its_driver(pool, anew, fails, last):
    def ends(name):
        if name != "c":
            saves(name)
            return
        raw().rollback()
        if anew:
            raw().cursor().execute("SELECT 1")
        if fails:
            raise ValueError(name)

    report = together(ends, "abc" if last else "abcde", **pool)
    others = list("ab" if last else "abde")
    assert [outcome.item for outcome in report if outcome.ok and outcome.item != "c"] == others
    assert tags() == others


@pytest.mark.parametrize("how", ["ROLLBACK", "COMMIT", "commit"])
def test_an_end_that_is_refused_costs_no_other_object(pool, how):
    """The objects before and after it are saved by the first run, and what it wrote itself is undone."""

    def ends(name):
        saves(name)
        if name == "b":
            raw().commit() if how == "commit" else raw().cursor().execute(how)

    report = together(ends, "abcd", **pool)
    assert [failure.item for failure in report.failures] == ["b"]
    assert {outcome.attempts for outcome in report} == {1}
    assert tags() == ["a", "c", "d"]


def test_inner_blocks_are_undone_by_themselves(pool):
    def writes(name):
        with contextlib.suppress(ValueError), transaction.atomic(using="postgres"):
            by_raw_cursor(f"inner {name}")
            raise ValueError(name)
        if name in "bd":
            by_raw_cursor(name)
        if name in "cd":
            raise LookupError(name)
        with transaction.atomic(using="postgres"), transaction.atomic(using="postgres"):
            saves(f"{name} deep")

    report = together(writes, "abcde", **pool)
    assert [failure.item for failure in report.failures] == ["c", "d"]
    assert tags() == ["a deep", "b", "b deep", "e deep"]
    assert {outcome.attempts for outcome in report} == {1}


def test_objects_that_send_nothing_stand_between_others(pool):
    def writes(name):
        if name.isupper():
            saves(name)
        if name in "bDf":
            raise ValueError(name)

    for objects in ("abCdDeFf", "bACb", "abf", "ADb", "DDf", "fD", "Aab"):
        report = together(writes, objects, **pool)
        assert [outcome.item for outcome in report if outcome.ok] == [name for name in objects if name not in "bDf"]
        assert tags() == sorted(name for name in objects if name in "ACEF")
        assert {outcome.attempts for outcome in report} == {1}
        Tag.objects.using("postgres").all().delete()


def test_on_commit_callbacks_of_failed_objects_do_not_run(pool):
    """The others run after the COMMIT, on the same connection, and find no savepoint left to release."""

    def calls_back(name):
        transaction.on_commit(lambda: by_raw_cursor(f"{name} called"), using="postgres")
        if name.isupper():
            saves(name)
        if name in "bD":
            raise ValueError(name)

    report = together(calls_back, "AbcDEf", **pool)
    assert report.failed == 2
    assert not report.flawed
    assert tags() == sorted(["A", "A called", "c called", "E", "E called", "f called"])
    assert {outcome.attempts for outcome in report} == {1}


def test_no_release_is_due_in_the_chunk_after_one_that_broke_off(pool):
    def writes(name):
        if name == "lost":
            raw().close()
        elif name == "gone":
            connections["postgres"].close()
        elif name != "nothing":
            saves(name)

    objects = ["a", "nothing", "b", "lost", "c", "nothing", "d", "gone", "e", "nothing", "nothing", "f"]
    report = together(writes, objects, chunksize=2, **pool)
    assert tags() == list("abcdef")
    assert {failure.item for failure in report.failures} <= {"lost", "gone"}


def test_chunk_inside_an_object_has_savepoints_of_its_own(pool):
    def inner(name):
        if "x" not in name:
            by_raw_cursor(name)
        if name.endswith("b"):
            raise ValueError(name)

    def outer(name):
        more = {"databases": ("postgres",), "transaction": "chunk", "chunksize": 10, "progress": False}
        report = pooled_operation(inner).using(executor="serial", **more).map([f"{name}{n}" for n in "axbxx"])
        if name in "BC":
            raise LookupError(name)
        return report.failed

    report = together(outer, "ABCD", **pool)
    assert report.values == [1, 1]
    assert tags() == ["Aa", "Da"]


@psycopg2_only
def test_aborted_transaction_runs_no_further_object(pool):
    """The inner chunk is in a transaction of another, so that it goes on to its end after what it cannot undo."""
    ran = []

    def inner(name):
        ran.append(name)
        raw().cursor().execute("INSRT" if name == "b" else INSERT, [name])

    def outer(name):
        ran.clear()
        more = {"databases": ("postgres",), "transaction": "chunk", "chunksize": 10, "progress": False}
        report = pooled_operation(inner).using(executor="serial", **more).map(list("abcd") if name == "y" else ["x"])
        return report.failed, "".join(ran)

    report = together(outer, "xy", **pool)
    assert report.values == [(0, "x"), (1, "ababcd")]
    assert tags() == ["a", "c", "d", "x"]


def test_each_database_has_its_own(pool):
    def writes(name):
        if name in "abe":
            Person(name=name).save(using="default")
        if name in "bcd":
            saves(name)
        if name in "bd":
            raise ValueError(name)

    report = together(writes, "abcdef", **{**pool, "databases": ("default", "postgres")})
    assert report.failed == 2
    assert tags() == ["c"]
    assert sorted(Person.objects.using("default").values_list("name", flat=True)) == ["a", "e"]


def test_threads_of_an_object_do_not_overtake_each_other():
    def asleep():
        watcher = postgres.connect()
        with contextlib.closing(watcher), watcher.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(0.3)' AND state='active'")
            return cursor.fetchone()[0]

    def writes(name):
        if name != "b":
            saves(name)
            return
        mine = raw()
        sleeper = threading.Thread(target=lambda: mine.cursor().execute("SELECT pg_sleep(0.3)"))
        sleeper.start()
        wait_until(asleep)
        mine.cursor().execute(INSERT, [name])
        sleeper.join()
        raise ValueError(name)

    report = together(writes, "abc")
    assert [(failure.item, type(failure.error)) for failure in report.failures] == [("b", ValueError)]
    assert tags() == ["a", "c"]


@pytest.mark.parametrize("first", [saves, by_raw_cursor])
def test_logged_queries_and_errors_show_what_the_user_has_sent(first):
    def writes(name):
        connection = connections["postgres"]
        connection.force_debug_cursor = True
        with connection.cursor() as cursor:
            cursor.execute(INSERT, [name])
            shown = connection.queries_log[-1]["sql"]
            cursor.execute("SELECT 1")
        if name == "c":
            raw().cursor().execute("SELECT nothing FROM nowhere")
        return shown, connection.queries_log[-1]["sql"]

    def reads(_name):
        raw().cursor().execute("SELECT nothing FROM nowhere")

    report = together(writes, "abc")
    assert report.values == [(f"INSERT INTO tests_tag (name) VALUES ('{name}')", "SELECT 1") for name in "ab"]
    for failure in together(reads, "ab").failures:
        assert "SELECT nothing" in str(failure.error)
        assert "SAVEPOINT" not in str(failure.error)


ACTIONS = ["save", "raw", "many", "named", "undone inside", "done inside", "nothing"]
ENDS = ["returns", "returns", "returns", "raises", "server refuses", "syntax error", "doomed"]
objects = st.lists(st.tuples(st.lists(st.sampled_from(ACTIONS), max_size=3), st.sampled_from(ENDS)), max_size=12)
many = settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def perform(action, name):
    if action == "save":
        saves(name)
    elif action == "raw":
        by_raw_cursor(name)
    elif action == "many":
        by_executemany(name) if is_psycopg3 else by_copy_expert(name)
    elif action == "named":
        with connections["postgres"].chunked_cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchall()
    elif action == "undone inside":
        with contextlib.suppress(ValueError), transaction.atomic(using="postgres"):
            by_raw_cursor(name)
            raise ValueError(name)
    elif action == "done inside":
        with transaction.atomic(using="postgres"):
            by_raw_cursor(name)


def end(how):
    if how == "raises":
        raise ValueError(how)
    if how == "server refuses":
        by_raw_cursor("taken")
    if how == "syntax error":
        raw().cursor().execute("INSRT")
    if how == "doomed":
        with contextlib.suppress(Exception):
            raw().cursor().execute("SELECT nothing FROM nowhere")


def acts(numbered):
    number, (actions, how) = numbered
    for place, action in enumerate(actions):
        perform(action, f"{number} {place}")
    end(how)


@many
@given(objects, st.integers(2, 12), st.sampled_from(list(POOLS)))
def test_table_holds_the_rows_of_successes_once_each(given_objects, chunksize, name):
    Tag.objects.using("postgres").all().delete()
    Tag(name="taken").save(using="postgres")
    numbered = list(enumerate(given_objects))
    report = together(acts, numbered, chunksize=chunksize, **POOLS[name])
    assert [outcome.ok for outcome in report] == [how == "returns" for _actions, how in given_objects]
    written = [
        f"{number} {place}" + more
        for number, (actions, how) in numbered
        if how == "returns"
        for place, action in enumerate(actions)
        if action in ("save", "raw", "many", "done inside")
        for more in (["", " 2"] if action == "many" and is_psycopg3 else [""])
    ]
    assert tags() == sorted(["taken", *written])
