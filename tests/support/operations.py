"""Operations that workers can find by name, whatever way they were started."""

import contextlib
import fcntl
import os
import signal
import sqlite3
import threading
import time
from functools import partial

from django.core.files.base import ContentFile
from django.db import DatabaseError, connections, transaction
from django.db.models import F
from django.utils import timezone, translation

from poolsave import pooled_operation
from tests.models import Document, Employee, Person, Tag, Visit
from tests.support import mariadb

pure = pooled_operation(transaction=None, workers=2, progress=False)
saving = pooled_operation(workers=2, progress=False)


@pure
def doubles(number):
    return number * 2


@pure
def fails_on_odd(number):
    if number % 2:
        raise ValueError(number)
    return number


@pure
def adds(first, second, *, third=0):
    return first + second + third


@pure
def process_and_thread(_item):
    return os.getpid(), threading.current_thread().name


@pure
def parent_of_worker(_item):
    return os.getppid()


@pure
def language_and_zone(_item):
    return translation.get_language(), str(timezone.get_current_timezone())


@pure
def raises_needy(number):
    raise NeedyError(number, "reason")


class NeedyError(Exception):
    """Cannot be unpickled: needs two arguments, and gives its base one."""

    def __init__(self, number, reason):
        super().__init__(f"{number} {reason}")
        self.number = number


@pure
def exits(number):
    raise SystemExit(number)


@pure
def kills_itself(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pure
def waits_for_file(path):
    """Runs until the file is there; says by another file that it has begun."""
    open(f"{path}.begun", "w").close()
    while not os.path.exists(path):
        time.sleep(0.005)
    return os.getpid()


@saving
def save_person(name, *, alias="default", fail=()):
    person = Person(name=name)
    person.save(using=alias)
    tag, _created = Tag.objects.using(alias).get_or_create(name="member")
    person.tags.add(tag)
    if name in fail:
        raise ValueError(name)
    return person.pk


@saving
def saves_and_signs(name, *, alias, signed):
    """Notes in a file, at its end and before its COMMIT, in which process it ran."""
    key = save_person(name, alias=alias)
    sign(signed, name)
    return key


@saving
def meets_each_fault(name, *, alias, signed):
    """By the number in its name: a callback after COMMIT, one that kills, a file, a COMMIT past Django at its end."""
    number = int(name[1:])
    if number % 8 == 1:
        transaction.on_commit(partial(sign, f"{signed}.called", name), using=alias)
    if number % 100 == 2:
        transaction.on_commit(partial(os.kill, os.getpid(), signal.SIGKILL), using=alias)
    if number % 8 == 3:
        Document(name=name, file=ContentFile(name, name=f"{name}.txt")).save(using=alias)
    key = saves_and_signs(name, alias=alias, signed=signed)
    if number % 16 == 4:
        with connections[alias].cursor() as cursor:
            cursor.execute("COMMIT")
    return key


def sign(path, name):
    with open(path, "a") as file:
        file.write(f"{os.getpid()} {name}\n")


@saving
def save_employee(name, *, alias="default"):
    employee = Employee(name=name, salary=1)
    employee.save(using=alias)
    return employee.pk


@saving
def swallows_the_error(name, *, alias="default"):
    """Catches a database error inside the transaction, which dooms it."""
    Person(name=f"{name} before").save(using=alias)
    try:
        Person(name="taken").save(using=alias)
    except DatabaseError:
        pass
    return name


@saving
def swallows_the_raw_error(name, *, alias="default"):
    """Like `swallows_the_error`, by a way that Django does not notice."""
    Person(name=f"{name} before").save(using=alias)
    with connections[alias].cursor() as cursor:
        try:
            cursor.execute("SELECT nothing FROM nowhere")
        except DatabaseError:
            pass
    return name


@saving
def rolls_back_by_itself(name, *, alias="default"):
    Person(name=name).save(using=alias)
    transaction.set_rollback(True, using=alias)


@saving
def violates_at_commit(name, *, alias="default"):
    Person(name=name).save(using=alias)
    Visit(person_id=999_999_999).save(using=alias)
    return name


@saving
def with_callback(name, *, alias="default"):
    person = Person(name=name)
    person.save(using=alias)
    transaction.on_commit(lambda: Person(name=f"{name} called").save(using=alias), using=alias)
    if name == "bad":
        transaction.on_commit(lambda: 1 / 0, using=alias)
    return person.pk


@saving
def closes_its_connection(name, *, alias="default"):
    Person(name=name).save(using=alias)
    connections[alias].close()


def ask(alias, **by_vendor):
    """Put a question to the server, in its own words."""
    with connections[alias].cursor() as cursor:
        cursor.execute(by_vendor[connections[alias].vendor])
        return cursor.fetchone()[0]


@saving
def server_session(_item, *, alias="postgres"):
    return ask(alias, postgresql="SELECT pg_backend_pid()", mysql="SELECT CONNECTION_ID()")


@saving
def kind_of_connection(_item, *, alias="postgres"):
    ask(alias, postgresql="SELECT 1")
    return type(connections[alias].connection).__module__


@saving
def database_name(_item, *, alias="default"):
    if connections[alias].vendor == "sqlite":
        return str(connections[alias].settings_dict["NAME"])
    return ask(alias, postgresql="SELECT current_database()", mysql="SELECT DATABASE()")


@saving
def connection_facts(_item, *, alias="default"):
    connection = connections[alias]
    return {
        "pool": connection.settings_dict["OPTIONS"].get("pool"),
        "mode": connection.settings_dict["OPTIONS"].get("transaction_mode"),
        "age": connection.settings_dict["CONN_MAX_AGE"],
        "in_atomic_block": connection.in_atomic_block,
    }


def plain_save(name, alias):
    person = Person(name=name)
    person.save(using=alias)
    return person.pk


@saving
def saves_in_two(name):
    Person(name=name).save(using="default")
    Person(name=name).save(using="second")
    if name == "bad":
        raise ValueError(name)


@saving
def saves_and_returns_a_lock(name, *, alias="default"):
    Person(name=name).save(using=alias)
    return threading.Lock()


@saving
def counts_logged_queries(_item):
    Person.objects.count()
    return len(connections["default"].queries_log)


attempts_left = {"n": 0}


@saving
def deadlocks_at_first(name, *, alias="default", times=2):
    """Fails with what the database says of a deadlock, `times` times."""
    Person(name=name).save(using=alias)
    attempts_left[name] = attempts_left.get(name, times) - 1
    if attempts_left[name] >= 0:
        deadlock(alias)
    return name


def deadlock(alias, *, past_django=False):
    with (connections[alias].connection if past_django else connections[alias]).cursor() as cursor:
        if connections[alias].vendor == "mysql":
            mariadb.lose_a_deadlock(cursor, connections[alias].settings_dict["NAME"])
        cursor.execute("DO $$ BEGIN RAISE EXCEPTION 'victim' USING ERRCODE = '40P01'; END $$")


@saving
def loses_its_session_at_first(name, *, alias="postgres"):
    Person(name=name).save(using=alias)
    attempts_left[name] = attempts_left.get(name, 1) - 1
    if attempts_left[name] >= 0:
        ask(alias, postgresql="SELECT pg_terminate_backend(pg_backend_pid())", mysql="KILL CONNECTION_ID()")
    return name


@pure
def outlives_its_session(_item, *, alias="postgres"):
    """Gives its session, which the server then ends; what it says of that is swallowed."""
    session = server_session(None, alias=alias)
    with contextlib.suppress(DatabaseError):
        ask(alias, postgresql="SELECT pg_terminate_backend(pg_backend_pid())", mysql="KILL CONNECTION_ID()")
    return session


@pure
def leaves_autocommit_off(name, *, alias="postgres"):
    """Saves without autocommit, and does not commit."""
    connections[alias].set_autocommit(False)
    Person(name=name).save(using=alias)


@pure
def greeting(_item):
    from django.conf import settings

    return settings.GREETING


@saving
def saves_and_dies(name, *, alias="default"):
    Person(name=name).save(using=alias)
    if name == "p5":
        os.kill(os.getpid(), signal.SIGKILL)
    return name


@pure
def echoes(item):
    return item


@pure
def nested(_item, *, inner, workers=2):
    """A pool inside a worker."""
    return doubles.using(executor=inner, workers=workers).map([1, 2]).values


@saving
def asks_the_database(_item, *, alias="postgres"):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone()[0]


@saving
def closes_when_told(name, *, alias="default"):
    Person(name=name).save(using=alias)
    if name == "close":
        connections[alias].close()


@saving
def violates_when_told(name, *, alias="default"):
    Person(name=name).save(using=alias)
    if name == "bad":
        Visit(person_id=999_999_999).save(using=alias)


@saving
def calls_back_and_fails(name, *, alias="default"):
    transaction.on_commit(lambda: Person(name=f"{name} called").save(using=alias), using=alias)
    raise ValueError(name)


@saving
def transaction_id(_item, *, alias):
    counted = "SELECT concat(CONNECTION_ID(), ' ', variable_value) FROM information_schema.session_status "
    return ask(
        alias,
        postgresql="SELECT pg_current_xact_id()::text",
        mysql=f"{counted} WHERE variable_name = 'COM_COMMIT'",
    )


@saving
def sleeps_on_the_server(name, *, alias):
    Person(name=name).save(using=alias)
    if name == "slow":
        ask(
            alias,
            postgresql="SET LOCAL statement_timeout = 200; SELECT pg_sleep(30)",
            mysql="SET STATEMENT max_statement_time = 0.2 FOR SELECT SLEEP(30)",
        )


@saving
def sleeps_when_told(name, *, alias="default", seconds=30):
    Person(name=name).save(using=alias)
    if name == "slow":
        time.sleep(seconds)
    return name


@pure
def ignores_time_outs(name):
    """Catches the exception that is meant to end it, and starts a process of its own before."""
    if name == "slow":
        import subprocess
        import sys

        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        with open(os.environ["POOLSAVE_TEST_FOLDER"] + "/child", "w") as file:
            file.write(str(child.pid))
        while True:
            try:
                time.sleep(30)
            except BaseException:
                pass
    return name


@pure
def crashes(name):
    if name == "bad":
        import ctypes

        ctypes.string_at(0)
    return name


@pure
def naps(seconds):
    time.sleep(seconds)
    return seconds


@saving
def meets_then_saves(folder, name, other):
    """Computes while the other one does, then writes, in a transaction."""
    with open(f"{folder}/{name}", "w"):
        pass
    while not os.path.exists(f"{folder}/{other}"):
        time.sleep(0.005)
    Person(name=name).save()
    return connections["default"].connection.in_transaction


@saving
def lets_sqlite_roll_back(name, *, alias="default"):
    """Swallows the error of a statement that ends the whole transaction."""
    Person(name=name).save()
    with connections[alias].cursor() as cursor:
        try:
            cursor.execute("INSERT OR ROLLBACK INTO tests_person (name) VALUES ('taken')")
        except DatabaseError:
            pass


@saving
def saves_and_tells_who(name, path):
    """Says by a file which process is about to commit."""
    Person(name=name).save(using="postgres")
    with open(f"{path}.new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{path}.new", path)
    return name


@saving
def cache_and_pools(_item):
    from django.core.cache import caches
    from django.db.backends.postgresql.base import DatabaseWrapper

    return id(caches["default"]), len(DatabaseWrapper._connection_pools)


@pooled_operation(progress=False)
def visit(row, alias="default"):
    """Count the visit in the database itself, and what the row in hand says as well."""
    type(row).objects.using(alias).filter(pk=row.pk).update(visits=F("visits") + 1)
    return row.pk


@pooled_operation(progress=False)
def visit_and_save(row):
    row.visits += 1
    row.save()


@pooled_operation(progress=False)
def visit_or_fail(row, bad, alias="default"):
    visit(row, alias)
    if row.pk in bad:
        raise ValueError(f"not {row.pk}")
    return row.pk


@pooled_operation(progress=False)
def look(row, alias):
    """What the queryset has fetched, and the number of queries that it takes to see it."""
    from django.test.utils import CaptureQueriesContext  # here, since every fresh interpreter imports this module

    with CaptureQueriesContext(connections[alias]) as queries:
        seen = {
            "owner": row.owner and row.owner.name,
            "tags": sorted(tag.name for tag in row.tags.all()),
            "doubled": getattr(row, "doubled", None),
            "deferred": sorted(row.get_deferred_fields()),
            "database": row._state.db,
            "class": type(row).__name__,
        }
    return {**seen, "queries": len(queries)}


_tried = set()


@pooled_operation(progress=False)
def visit_and_save_at_second_try(row):
    row.visits += 1
    if row.pk not in _tried:
        _tried.add(row.pk)
        raise DatabaseError("database is locked") from _locked()
    row.save()


def _locked():
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorname = "SQLITE_BUSY"
    return error


@saving
def swallows_a_deadlock(name, *, alias="mariadb", by="cursor", deadlocked="bad"):
    """Writes a row before, has a deadlock undo it, and goes on as if nothing was."""
    Person(name=f"{name} before").save(using=alias)
    if name == deadlocked:
        try:
            with transaction.atomic(using=alias) if by == "atomic" else contextlib.nullcontext():
                deadlock(alias, past_django=by == "driver")
        except (DatabaseError, connections[alias].Database.Error):
            pass
        if by == "cursor then write":
            with connections[alias].cursor() as cursor:
                cursor.execute("INSERT INTO tests_tag (name) VALUES ('after')")
    return name


@saving
def skips_what_is_locked(name, *, alias="mariadb"):
    """Waits for a lock in vain and goes on, which undoes one statement and no more."""
    Person(name=name).save(using=alias)
    with connections[alias].cursor() as cursor:
        try:
            cursor.execute("SELECT id FROM tests_tag WHERE name = 'left' FOR UPDATE NOWAIT")
        except DatabaseError:
            pass


@saving
def runs(sql, *, alias="mariadb"):
    """Runs a statement between two rows, and fails."""
    with connections[alias].cursor() as cursor:
        Person(name="before").save(using=alias)
        cursor.execute(sql)
    Person(name="after").save(using=alias)
    raise ValueError(sql)


@saving
def is_killed_in_commit(name, *, alias="mariadb", last):
    Person(name=name).save(using=alias)
    if name == last:
        mariadb.kill_in_commit(connections[alias].connection.thread_id())


@saving
def loses_its_session_unseen(name, *, alias="mariadb"):
    """Goes on after the loss of its session, and returns."""
    Person(name=name).save(using=alias)
    try:
        ask(alias, mysql="KILL CONNECTION_ID()")
    except DatabaseError:
        pass
    return name


@pooled_operation(progress=False)
def visit_hidden(row):
    type(row).everything.filter(pk=row.pk).update(visits=F("visits") + 1)


@pooled_operation(progress=False)
def visits_what_another_changed(row):
    """At the second row another session changes the last one, and the transaction has to be undone, once."""
    row.visits += 1
    row.save()
    if row.pk == 4 and not _tried:
        _tried.add("undone")
        other = connections["postgres"].copy()
        with other.cursor() as cursor:
            cursor.execute("UPDATE tests_thing SET visits = 100 WHERE id = 10")
        other.close()
        with connections["postgres"].cursor() as cursor:
            cursor.execute("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$")


@pooled_operation(progress=False)
def tells_the_next_row(row):
    row.visits += 1
    row.save()
    type(row).objects.filter(pk=row.pk + 3).update(visits=10)


@pooled_operation(progress=False)
def is_locked(row, alias):
    """Whether another session finds this row locked."""
    other = connections[alias].copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT id FROM tests_thing WHERE id = %s FOR UPDATE SKIP LOCKED", [row.pk])
            return cursor.fetchone() is None
    finally:
        other.close()


@pure
def slower_elsewhere(_item, *, home, lock):
    """Holds a lock that only one process can have, and holds it for longer in any process but `home`."""
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        time.sleep(0.01 if os.getpid() == home else 0.04)
    return os.getpid()


@pure
def interrupts(number, *, home, at):
    """Sends its caller a Ctrl-C."""
    if number == at:
        os.kill(home, signal.SIGINT)
    return number
