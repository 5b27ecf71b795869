"""A statement that write-behind cannot understand counts as one that sees everything."""

import pytest

from poolsave._db.write_behind.statements import MAX_LENGTH, Effect, understand

RELATIONS = {"tag": True, "Person": True, "odd": True, "view": False}

UNDERSTOOD = {
    'SELECT "tag"."id" FROM "tag" WHERE "tag"."name" = %s': (Effect.READS, {"tag"}),
    "select count(*) from TAG": (Effect.READS, {"tag"}),
    "(SELECT 1 FROM tag) UNION (SELECT 2 FROM odd)": (Effect.READS, {"tag", "odd"}),
    'SELECT COALESCE(MAX("Person"."age"), 0) FROM "Person"': (Effect.READS, {"Person"}),
    "SELECT 1 FROM other_schema.tag": (Effect.READS, {"tag"}),
    "SELECT 1;": (Effect.READS, set()),
    'SELECT 1 FROM "odd" FOR NO KEY UPDATE': (Effect.WRITES, {"odd"}),
    'UPDATE "tag" SET "uses" = ("uses" + %s) WHERE "id" IN (SELECT "id" FROM "odd")': (Effect.WRITES, {"tag", "odd"}),
}  # fmt: skip


@pytest.mark.parametrize("text", UNDERSTOOD)
def test_the_tables_of_plain_statements_are_known(text):
    effect, relations = UNDERSTOOD[text]
    assert understand(text, RELATIONS)[:2] == (effect, frozenset(relations))


@pytest.mark.parametrize(
    ("text", "depends"),
    [
        ('SELECT "tag"."id" FROM "tag" WHERE "tag"."name" = %s', True),
        ('SELECT STATEMENT_TIMESTAMP() FROM "tag"', False),
        ('SELECT 1 FROM "odd" FOR NO KEY UPDATE', False),
        ("SELECT mine(1)", False),
    ],
)
def test_the_answer_of_a_plain_read_depends_on_rows_alone(text, depends):
    assert understand(text, RELATIONS).depends_on_rows == depends


LARGER = {
    Effect.ANYTHING: [
        None,
        "SELECT mine(1)",
        'SELECT "mine"(1)',
        "SELECT nextval(%s)",
        'SELECT * FROM "view"',
        "SELECT 'tag'",
        "SELECT 1 -- a comment",
        "SELECT 1 /* a comment */",
        "SELECT $$tag$$",
        'SELECT * FROM U&"t\\0061g"',
        "INSERT INTO tag (name) VALUES (%s)",
        "DELETE FROM tag",
        "WITH made AS (INSERT INTO tag DEFAULT VALUES) SELECT 1",
        "LOCK TABLE tag",
        "SELECT " + "1, " * MAX_LENGTH + "1",
    ],
    Effect.SETTINGS: [
        "SET search_path = other",
        "SELECT set_config('search_path', %s, true)",
        "CREATE TABLE new ()",
        "  alter table tag add column more int",
        "DO $$ BEGIN END $$",
        "CALL mine()",
        "SELECT 1; SET ROLE other",
        "TRUNCATE tag",
        "/* first */ SELECT 1",
        "?",
        "",
    ],
    Effect.UNBUFFERED: [
        "SAVEPOINT mine",
        "  release savepoint mine",
        "ROLLBACK TO SAVEPOINT mine",
        "SELECT 1; SAVEPOINT mine",
        "SELECT currval('tag_id_seq')",
        "SELECT LASTVAL()",
    ],
}


@pytest.mark.parametrize(("effect", "text"), [(effect, text) for effect, texts in LARGER.items() for text in texts])
def test_what_is_not_understood_counts_as_more(effect, text):
    assert understand(text, RELATIONS).effect is effect
