"""Statements that end a transaction are known by their text, and others are left alone."""

import pytest

from poolsave._db.transaction_ends import ends_transaction

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
    "DO $$ BEGIN PERFORM 1; END $$",
    "CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; END",
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
