"""The tables that a statement writes are known by its text, and a statement that only reads is known as such."""

import pytest

from poolsave._preview.statements import written_tables

WRITES = {
    "INSERT INTO a VALUES (1)": ["a"],
    "insert or ignore into a (x) values (1)": ["a"],
    "INSERT IGNORE a VALUES (1)": ["a"],
    "REPLACE INTO `a` VALUES (1)": ["a"],
    'UPDATE "a" SET x = 1': ["a"],
    "UPDATE OR ROLLBACK a SET x = 1": ["a"],
    "UPDATE ONLY s.a SET x = 1": ["s.a"],
    'DELETE FROM "s"."a b" WHERE x = 1': ["s.a b"],
    "/* why */ -- and how\n DELETE FROM a": ["a"],
    "UPDATE a SET x = 'DELETE FROM b; UPDATE c'": ["a"],
    "UPDATE a SET x = 1; DELETE FROM b": ["a", "b"],
    "WITH old AS (DELETE FROM a RETURNING *) INSERT INTO b SELECT * FROM old": ["a", "b"],
    "WITH x AS (SELECT 1) UPDATE a SET y = 1 FROM x": ["a"],
    "MERGE INTO a USING b ON a.x = b.x WHEN MATCHED THEN DELETE": ["a"],
    "TRUNCATE TABLE a": ["a"],
    "CREATE TEMPORARY TABLE IF NOT EXISTS a (x integer)": ["a"],
    "ALTER TABLE a ADD y integer": ["a"],
    "CALL refresh(1)": ["CALL refresh"],
    "DO $$ BEGIN UPDATE a SET x = 1; END $$": ["DO"],
}
READS = [
    "",
    "SELECT 1",
    "SELECT x FROM a FOR UPDATE OF a",
    "(SELECT 1) UNION (SELECT 2)",
    "WITH x AS (SELECT 1 FROM a FOR UPDATE) SELECT * FROM x",
    "SELECT 'INSERT INTO a'",
    'SAVEPOINT "s1"',
    "RELEASE SAVEPOINT a",
    "ROLLBACK TO SAVEPOINT a",
    "SET CONSTRAINTS ALL IMMEDIATE",
    "PRAGMA foreign_key_check(a)",
    "SHOW TABLES",
    "EXPLAIN UPDATE a SET x = 1",
]


@pytest.mark.parametrize("statement", WRITES)
def test_tables_of_a_write(statement):
    assert list(written_tables(statement)) == WRITES[statement]


@pytest.mark.parametrize("statement", READS)
def test_read_writes_no_table(statement):
    assert written_tables(statement) == ()


def test_backslash_escapes_a_quote_only_where_it_does():
    text = r"UPDATE a SET x = 'it\'; DELETE FROM b; --'"
    assert written_tables(text, escapes=True) == ("a",)
    assert written_tables(r"UPDATE a SET x = 'c:\'; DELETE FROM b") == ("a", "b")
