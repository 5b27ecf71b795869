"""What the code of an error says: whether another try may help, and whether its connection is lost."""

import pytest
from django.db import OperationalError

from poolsave._db.error_codes import connection_lost, is_starting_or_full, is_transient


class Made(Exception):
    def __init__(self, **facts):
        super().__init__("made")
        self.__dict__.update(facts)


@pytest.mark.parametrize(
    ("facts", "transient", "lost"),
    [
        ({"sqlstate": "40001"}, True, False),
        ({"pgcode": "40P01"}, True, False),
        ({"sqlstate": "55P03"}, True, False),
        ({"sqlstate": "08006"}, True, True),
        ({"pgcode": "57P01"}, True, True),
        ({"sqlstate": "40003"}, False, True),
        ({"sqlstate": "23505"}, False, False),
        ({"sqlstate": "57014"}, False, False),
        ({"sqlite_errorname": "SQLITE_BUSY"}, True, False),
        ({"sqlite_errorname": "SQLITE_LOCKED_SHAREDCACHE"}, True, False),
        ({"sqlite_errorname": "SQLITE_CONSTRAINT_UNIQUE"}, False, False),
        ({}, False, False),
    ],
)
def test_codes_decide_what_is_transient_and_what_lost(facts, transient, lost):
    error = Made(**facts)
    assert is_transient(error) is transient
    assert connection_lost(error) is lost
    wrapped = OperationalError("wrapped")
    wrapped.__cause__ = error
    assert is_transient(wrapped) is transient


@pytest.mark.parametrize(
    ("code", "transient", "lost"),
    [
        (1213, True, False),
        (1205, True, False),
        (1020, True, False),
        (1040, True, False),
        (1969, False, False),
        (1062, False, False),
        (1927, True, True),
        (2006, True, True),
        (2013, True, True),
        (2055, True, True),
    ],
)
def test_numbers_of_mysql_decide_it_there(code, transient, lost):
    error = type("OperationalError", (Exception,), {"__module__": "pymysql.err"})(code, "text")
    assert is_transient(error) is transient
    assert connection_lost(error) is lost


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("FATAL:  the database system is starting up", True),
        ("FATAL:  the database system is in recovery mode", True),
        ("FATAL:  sorry, too many clients already", True),
        ('FATAL:  too many connections for role "clerk"', True),
        ('FATAL:  too many connections for database "shop"', True),
        ("FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute", True),
        ("FATAL:  no more connections allowed (max_client_conn)", True),
        ('FATAL:  database "shop" is not currently accepting connections', False),
        ('FATAL:  password authentication failed for user "clerk"', False),
    ],
)
def test_refusal_says_whether_to_wait(message, expected):
    """PostgreSQL's own texts, from its source."""
    assert is_starting_or_full(OperationalError(f"connection to server failed: {message}\n")) is expected


@pytest.mark.parametrize(("code", "expected"), [(1040, True), (1203, True), (1045, False), (2002, False)])
def test_code_of_mysql_says_whether_to_wait(code, expected):
    error = type("OperationalError", (Exception,), {"__module__": "MySQLdb"})(code, "a text in any language")
    assert is_starting_or_full(error) is expected
    assert is_transient(error) is (code != 1045)
