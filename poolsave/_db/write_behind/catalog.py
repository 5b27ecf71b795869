"""What PostgreSQL's catalog says of tables: whose rows can be inserted later than `save()` says, and with which keys.

A table is *plain* if nothing but its own rows depends on when a row is inserted. Triggers, rules and policies run code
at that moment; children and partitions route rows; a foreign key that is checked at once, or that cascades, ties the
row to others. Statements that name any other table send all buffered rows first.
"""

from __future__ import annotations

import uuid
from typing import NamedTuple

from .channel import Channel
from .fields import as_sql

RELATIONS = """
SELECT c.relname::text,
       c.relkind = 'r' AND c.relpersistence = 'p' AND NOT c.relispartition AND NOT c.relhassubclass
       AND NOT c.relhasrules AND NOT c.relrowsecurity
       AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal)
       AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid)
       AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.contype = 'f' AND c.oid IN (k.conrelid, k.confrelid)
                       AND (NOT k.condeferred OR k.confdeltype <> 'a' OR k.confupdtype <> 'a')),
       pg_table_is_visible(c.oid),
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion)
               AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL OR i.indisexclusion))
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
"""
COLUMNS = """
SELECT a.attname::text, '(NULL::' || format_type(c.reltype, NULL) || ').' || quote_ident(a.attname),
       CASE WHEN l.collisdeterministic IS NOT FALSE THEN format_type(a.atttypid, -1) END,
       'interval'::regtype IN (t.oid, t.typbasetype) AND GREATEST(a.atttypmod, t.typtypmod) >= 0,
       CASE WHEN has_sequence_privilege(s.name, 'USAGE') THEN s.name END,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisunique AND a.attnum = ANY (i.indkey))
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid
       LEFT JOIN pg_collation l ON l.oid = a.attcollation
       LEFT JOIN LATERAL (
           SELECT pg_get_serial_sequence(%s, a.attname) AS name WHERE a.attidentity = 'd'
           UNION ALL
           SELECT format('%%I.%%I', n.nspname, r.relname)
             FROM pg_attrdef d JOIN pg_depend q ON q.classid = 'pg_attrdef'::regclass AND q.objid = d.oid
                  JOIN pg_class r ON r.oid = q.refobjid JOIN pg_namespace n ON n.oid = r.relnamespace
            WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum AND q.refclassid = 'pg_class'::regclass
              AND pg_get_expr(d.adbin, d.adrelid) = format('nextval(%%L::regclass)', q.refobjid::regclass)
       ) s ON true
 WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped
"""
"""The sequence is that of which the default is `nextval`; it need not be the column's own. GENERATED ALWAYS refuses
keys that come from outside."""
SETTINGS = """
current_setting('search_path') || ' ' || current_user || ' ' || current_setting('session_replication_role')
"""
"""What the answers to the others depend on, besides the schema."""
KEY_TYPES: dict[str, type] = {
    "smallint": int,
    "integer": int,
    "bigint": int,
    "text": str,
    "character varying": str,
    "uuid": uuid.UUID,
}
"""By PostgreSQL's name. Not `char(n)` and `citext`: 'a' is 'a ' or 'A' there."""


class Column(NamedTuple):
    """A column of a table."""

    null: str
    """A NULL of the column's own type as SQL writes it."""
    key_type: type | None
    """The type whose values are equal in Python exactly if they are equal here, or None."""
    reads_by_fields: bool
    """Whether what a text means depends on more than the type: '5' is five minutes in an `interval minute`."""
    sequence: str | None
    """The sequence that gives its default, if this session may draw from it."""
    is_unique: bool
    """Whether it is part of a unique index."""


class Catalog:
    """The tables that a connection sees with its present settings."""

    def __init__(self, channel: Channel, settings: str) -> None:
        """Read which tables there are. `settings` are those of `read_settings`."""
        self._channel = channel
        self.settings = settings
        self._columns: dict[str, dict[str, Column]] = {}
        self._visible: set[str] = set()
        self._odd: set[str] = set()
        self.relations: dict[str, bool] = {}
        """Every table and view by its name, in any schema, and whether all of that name are plain tables."""
        for name, is_plain, is_visible, has_odd_unique_index in channel.send(RELATIONS):
            self.relations[name] = is_plain and self.relations.get(name, True)
            if is_visible:
                self._visible.add(name)
            if has_odd_unique_index:
                self._odd.add(name)

    def is_plain(self, table: str) -> bool:
        """Whether rows of the table that this name alone denotes can be inserted later."""
        return table in self._visible and self.relations[table]

    def has_odd_unique_index(self, table: str) -> bool:
        """Whether rows exclude each other by more than equal columns: by an expression, a condition or an operator."""
        return table in self._odd

    def columns(self, table: str) -> dict[str, Column]:
        """Give the columns of a plain table by their names."""
        if table not in self._columns:
            name = self._channel.connection.ops.quote_name(table)
            rows = self._channel.send(COLUMNS, [name, name])
            self._columns[table] = {
                row[0]: Column(row[1], KEY_TYPES.get(row[2]), row[3], row[4], row[5]) for row in rows
            }
        return self._columns[table]


def read_settings(channel: Channel) -> str:
    """Give the settings of the session on which a catalog depends."""
    [(settings,)] = channel.send(f"SELECT {SETTINGS}")
    return settings  # type: ignore[no-any-return]


def check_of_settings(settings: str) -> str:
    """Give a statement that fails if the session has other settings by then."""
    return f"SELECT CAST(CASE WHEN {SETTINGS} = {as_sql(settings)} THEN '1' ELSE 'other settings' END AS integer)"
