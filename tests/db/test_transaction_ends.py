"""Statements that end a transaction are known by their text, and others are left alone."""

import pytest

from poolsave._db.transaction_guard import COMMITS_BEFORE, ends_transaction

ENDS = [
    "COMMIT",
    "commit work",
    "  Rollback",
    "END",
    "end transaction;",
    "ABORT",
    "COMMIT AND CHAIN",
    "PREPARE TRANSACTION 'x'",
    "ROLLBACK PREPARED 'x'",
    "-- why\n/* not */ COMMIT",
    "SELECT 1; COMMIT",
    "INSERT INTO t VALUES ('a;b'); /* now */ commit; BEGIN",
    "/* why /* not */ so */ COMMIT; BEGIN",
    "SELECT '/*'; COMMIT; SELECT '*/'",
    "SELECT E'it\\'s'; COMMIT; SELECT 'it''s'",
    "BEGIN; SELECT 1; COMMIT; BEGIN",
    "CREATE TEMPORARY TABLE t (a int); COMMIT; BEGIN",
    "DO $$ BEGIN PERFORM 1; END $$; COMMIT; BEGIN",
]
OTHERS = [
    "SELECT 1",
    "ROLLBACK TO SAVEPOINT a",
    "rollback work to a",
    "RELEASE SAVEPOINT a; SAVEPOINT b",
    "SELECT 1; ROLLBACK TO a",
    "INSERT INTO t VALUES ('; COMMIT')",
    "INSERT INTO t VALUES ('it''s; COMMIT')",
    'SELECT "; COMMIT"',
    "SELECT 1 -- ; COMMIT",
    "SELECT E'it\\'s; COMMIT'",
    "DO $$ BEGIN PERFORM 1; END $$",
    "CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; END",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END",
    "BEGIN NOT ATOMIC SELECT 1 INTO @one; END",
    "ENDPOINT",
    "COMMENT ON TABLE t IS 'x'",
    "PREPARE plan AS SELECT 1",
    "",
]


@pytest.mark.parametrize("text", ENDS)
def test_a_statement_that_ends_the_transaction_is_known(text):
    assert ends_transaction(text)


@pytest.mark.parametrize("text", OTHERS)
def test_another_statement_is_left_alone(text):
    assert not ends_transaction(text)


@pytest.mark.parametrize("text", ["'it\\'s done; commit it'", "'a \\\\', '; commit'", "'\\\n; commit'"])
def test_a_quote_behind_a_backslash_ends_no_string_of_mysql(text):
    assert not ends_transaction(f"INSERT INTO t VALUES ({text})", escapes=True)
    assert ends_transaction(f"INSERT INTO t VALUES ({text}); COMMIT", escapes=True)


@pytest.mark.parametrize("comment", ["# one\n", "/* one */", "-- one\n"])
def test_many_comments_take_no_time_to_look_past(comment):
    assert not ends_transaction(f"{1000 * comment}CALL one();{1000 * comment}CALL two()")
    assert ends_transaction(f"{1000 * comment}CALL one();{1000 * comment}COMMIT")


@pytest.mark.parametrize("text", ["ANALYZE FORMAT=JSON SELECT 1", "ANALYZE UPDATE t SET a = 1"])
def test_analyzing_a_statement_commits_nothing(text):
    assert not COMMITS_BEFORE.match(text)
    assert COMMITS_BEFORE.match("ANALYZE TABLE t")


def test_dropping_what_is_prepared_commits_nothing():
    assert not COMMITS_BEFORE.match("DROP PREPARE one")
    assert COMMITS_BEFORE.match("DROP TABLE prepare")
