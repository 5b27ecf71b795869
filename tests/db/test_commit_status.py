"""After a crash of PostgreSQL, an object whose COMMIT was not answered is reported as what became of it."""

import psutil
import pytest
from django.db import connections, transaction

from poolsave._db.commit_status import TransactionNote, commit_status, identify_server
from poolsave._db.transactions import record_xid
from poolsave.executors.serial import LocalMarks
from tests.models import Tag
from tests.support.chaos import End, audit
from tests.support.crashing import Run
from tests.support.standby import Standby, aliases

WAYS = pytest.mark.parametrize(("mode", "worker_dies"), [("object", False), ("chunk", True)])

ASLEEP_IN_COMMIT = [
    "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$",
    "CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON tests_person DEFERRABLE INITIALLY DEFERRED "
    "FOR EACH ROW WHEN (NEW.name = 'p0') EXECUTE FUNCTION dawdle()",
]
NOTHING_IN_THE_LOG = {"wal_writer_delay": "10s", "autovacuum": "off"}
"""With these, only a COMMIT of any session writes to the log what came before it."""
NO_ANSWER = {"synchronous_standby_names": "nobody"}
"""With these, a COMMIT that is in the log waits for a standby server, and there is none."""
DO_NOT_WAIT = ["SET synchronous_commit = local"]
"""For the session that makes the tables."""
OTHERS = ["SELECT pg_current_xact_id()"] * 20
WRITES = "COMMENT ON SCHEMA public IS 'in the log, and so is what came before'"


@WAYS
def test_transaction_id_given_again_after_a_crash_is_failed(private_server, tmp_path, mode, worker_dies):
    """Worker: COMMIT. Server: crashes, recovers, commits others by the same ids. Parent: asks about its id."""
    with private_server.configured(**NOTHING_IN_THE_LOG):
        outcomes = in_commit(
            private_server, tmp_path, mode, "PgSleep", OTHERS, worker_dies=worker_dies, after=ASLEEP_IN_COMMIT
        )
    assert outcomes["p0"] == "failed"


def test_transaction_id_unknown_after_a_crash_is_failed(private_server, tmp_path):
    """The server never saw its COMMIT."""
    with private_server.configured(**NOTHING_IN_THE_LOG):
        outcomes = in_commit(private_server, tmp_path, "chunk", "PgSleep", [], worker_dies=True, after=ASLEEP_IN_COMMIT)
    assert outcomes == {"p0": "failed", "p1": "failed"}


@WAYS
def test_a_commit_whose_answer_the_crash_kept_back_counts(private_server, tmp_path, mode, worker_dies):
    with private_server.configured(**NO_ANSWER):
        outcomes = in_commit(
            private_server, tmp_path, mode, "SyncRep", OTHERS, worker_dies=worker_dies, asks_late=False,
            before=DO_NOT_WAIT,
        )  # fmt: skip
    assert outcomes["p0"] == "succeeded"


@WAYS
def test_id_of_another_after_two_crashes_is_lost(private_server, tmp_path, mode, worker_dies):
    """By the second recovery, the id is one that recovery has come across."""
    with private_server.configured(**NOTHING_IN_THE_LOG):
        outcomes = in_commit(
            private_server, tmp_path, mode, "PgSleep", [*OTHERS, WRITES, "SELECT pg_sleep(1)"],
            worker_dies=worker_dies, crashes=2, after=ASLEEP_IN_COMMIT,
        )  # fmt: skip
    assert outcomes["p0"] == "lost"


@pytest.mark.django_db(transaction=True, databases="__all__")
@pytest.mark.parametrize(("server", "status"), [(0, "succeeded"), (1, "lost")])
def test_note_counts_only_on_its_own_server(server, status):
    """A standby may not have heard of the transaction, and gives its id again when it is promoted."""
    with transaction.atomic("postgres"):
        Tag.objects.using("postgres").create(name="a")
        note = record_xid(["postgres"], LocalMarks())
    connection = connections["postgres"]
    found = TransactionNote.from_int(note)
    assert found.server == 0  # nothing has asked before the transaction began
    here = identify_server(connection)
    note = found._replace(server=here + server).to_int()
    assert commit_status(note, "postgres", connection.settings_dict) == status


def test_promoted_standby_is_another_server(private_server, django_db_blocker):
    """The cluster's own number is the same on both, and so are the ids of transactions."""
    standby = Standby(private_server)
    try:
        standby.start()
        with django_db_blocker.unblock(), aliases(primary=private_server, standby=standby):
            primary = identify_server(connections["primary"])
            assert identify_server(connections["standby"]) is None
            standby.promote()
            assert identify_server(connections["standby"]) not in (None, primary)
            assert identify_server(connections["primary"]) == primary
    finally:
        standby.delete()


def test_commit_hidden_by_a_later_checkpoint_is_lost(private_server, tmp_path):
    """How far the recovery came is unknown by then, and so whose the id is."""
    later = [*OTHERS, "CHECKPOINT"]
    with private_server.configured(**NO_ANSWER):
        outcomes = in_commit(private_server, tmp_path, "chunk", "SyncRep", later, worker_dies=True, before=DO_NOT_WAIT)
    assert outcomes == {"p0": "lost", "p1": "lost"}


def in_commit(
    private_server, folder, mode, waits_for, then, *, worker_dies, asks_late=True, crashes=1,
    **statements,
):  # fmt: skip
    """Crash the server while an object is in its COMMIT; the parent asks when the statements have run, or at once.

    Gives the statuses, which are audited.
    """
    options = {"transaction": mode, "resolve_lost": True, "retries": 0, "workers": 1, "chunksize": 2}
    with Run(private_server, folder, names=["p0", "p1"], **options, **statements) as run:
        with private_server.connected() as cursor:
            run.wait_for(lambda: private_server.waits_in_commit(cursor, waits_for))
        parent = psutil.Process(run.process.pid)
        (worker,) = run.workers()
        if asks_late:
            parent.suspend()
        if worker_dies:
            worker.kill()
        private_server.reset_configuration()
        for _ in range(crashes):
            private_server.crash()
            private_server.start()
            with private_server.connected() as cursor:
                for statement in then:
                    cursor.execute(statement)
        parent.resume()
        outcomes, found = run.end()
    audit([End(*outcome[:2]) for outcome in outcomes], found, signed={"p0", "p1"})
    return {name: status for name, status, *_error in outcomes}
