"""What a database error means for the transaction that it ended. Pure: an error in, a fact out.

Sources: PostgreSQL's appendix "Error Codes"; MySQL's "Server Error Message Reference" and MariaDB's "Error Codes";
sqlite3's result codes.
"""

from __future__ import annotations

from collections.abc import Iterator

from .._runtime.foreign_exceptions import args_of, attribute_of, cause_of, context_of, module_of, text_of

# Serialization failure, deadlock, lock not available.
TRANSIENT_SQLSTATES = frozenset({"40001", "40P01", "55P03"})
# Connection exceptions, and the server shutting down or having crashed.
CONNECTION_CLASSES = ("08", "57P0")
LOCK_WAIT_MYSQL = 1205
# Closed (PyMySQL), shutdown, connection killed (MariaDB); no connection; gone away, lost during query and elsewhere;
# idle for too long (MySQL).
CONNECTION_MYSQL = frozenset({0, 1053, 1927, 2002, 2003, 2006, 2013, 2055, 4031})
# Closed, gone away: the client could not send the statement. (With 2013 it did, and no answer came.)
NOT_SENT_MYSQL = frozenset({0, 2006})
# Changed since it was read (MariaDB's innodb_snapshot_isolation), lock table full, deadlock.
ROLLBACK_MYSQL = frozenset({1020, 1206, 1213})
# Too many connections: of all, of the user.
FULL_MYSQL = frozenset({1040, 1203})
# Besides these: lock not available (MySQL's NOWAIT).
TRANSIENT_MYSQL = CONNECTION_MYSQL | FULL_MYSQL | {1020, LOCK_WAIT_MYSQL, 1213, 3572}
# What PostgreSQL and PgBouncer say to a new connection, in English: drivers give no SQLSTATE for one that was refused.
STARTING = ("is starting up", "is in recovery mode", "is not yet accepting connections")
FULL = ("too many clients", "too many connections", "connection slots are reserved", "no more connections allowed")
# Query cancelled (statement_timeout), lock not available (lock_timeout).
TIME_LIMITS = frozenset({"57014", "55P03"})
# Lock wait, MariaDB's max_statement_time, MySQL's max_execution_time.
TIME_LIMITS_MYSQL = frozenset({1205, 1969, 3024})
# Invalid savepoint specification, no active transaction.
SAVEPOINT_MISSING = frozenset({"3B001", "25P01"})
DOES_NOT_EXIST_MYSQL = 1305
# NULL in a column that must not have it; invalid SQL statement name.
NULL_REFUSED, NULL_REFUSED_MYSQL, NULL_REFUSED_SQLITE = "23502", 1048, "SQLITE_CONSTRAINT_NOTNULL"
UNPREPARED = "26000"
SQLITE_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED")


def sqlstate_of(error: BaseException) -> str | None:
    """Give the SQLSTATE of an error, five characters from the server; any driver and wrapper will do."""
    for candidate in _with_cause(error):
        for name in ("sqlstate", "pgcode"):
            state = attribute_of(candidate, name)
            if isinstance(state, str) and len(state) == 5:
                return state
    return None


def constraint_of(error: BaseException) -> str | None:
    """Give the name of the constraint that PostgreSQL says an error is about; either driver and any wrapper will do."""
    for candidate in (error, cause_of(error)):
        name = attribute_of(attribute_of(candidate, "diag"), "constraint_name")
        if isinstance(name, str):
            return name
    return None


def is_transient(error: BaseException) -> bool:
    """Whether the database says that the same transaction may succeed if it is tried again.

    The error itself may say so, or one in its chain of causes and contexts.
    """
    return any(_is_transient(candidate) for candidate in chain_of(error))


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """Give the error, its causes and its contexts."""
    seen: set[int] = set()
    left = [error]
    while left:
        candidate = left.pop()
        if id(candidate) not in seen:
            seen.add(id(candidate))
            left += [other for other in (context_of(candidate), cause_of(candidate)) if other is not None]
            yield candidate


def _is_transient(error: BaseException) -> bool:
    state = sqlstate_of(error)
    if state is not None:
        return state in TRANSIENT_SQLSTATES or state.startswith(CONNECTION_CLASSES)
    if _mysql_code(error) in TRANSIENT_MYSQL:
        return True
    return _sqlite_name(error).startswith(SQLITE_BUSY) or connection_lost(error)


def hit_time_limit(error: BaseException) -> bool:
    """Whether a time limit of the server was hit (statement, lock), so that a smaller transaction may pass."""
    return sqlstate_of(error) in TIME_LIMITS or _mysql_code(error) in TIME_LIMITS_MYSQL


def rolls_back_transaction(error: BaseException) -> bool:
    """Whether MySQL or MariaDB has rolled back the whole transaction with its savepoints, and not just a statement."""
    return _mysql_code(error) in ROLLBACK_MYSQL | CONNECTION_MYSQL


def is_lock_timeout(error: BaseException) -> bool:
    """Whether MySQL or MariaDB has waited too long for a lock. By default that undoes the statement only."""
    return _mysql_code(error) == LOCK_WAIT_MYSQL


def is_savepoint_missing(error: BaseException) -> bool:
    """Whether a savepoint does not exist, as in any transaction but the one in which it was set."""
    if _mysql_code(error) == DOES_NOT_EXIST_MYSQL:  # a procedure or a savepoint
        return "SAVEPOINT" in str(error)
    return sqlstate_of(error) in SAVEPOINT_MISSING or "no such savepoint" in str(error)  # SQLite has no code for it


def refuses_null(error: BaseException) -> bool:
    """Whether the statement has put NULL where the table must not have it."""
    if _mysql_code(error) is not None:
        return _mysql_code(error) == NULL_REFUSED_MYSQL
    return sqlstate_of(error) == NULL_REFUSED or _sqlite_name(error) == NULL_REFUSED_SQLITE


def is_unprepared(error: BaseException) -> bool:
    """Whether a prepared statement of PostgreSQL does not exist (any more) in the session."""
    return sqlstate_of(error) == UNPREPARED


def connection_lost(error: BaseException) -> bool:
    """Whether the connection broke before the answer arrived. After COMMIT the outcome is then unknown."""
    state = sqlstate_of(error)
    if state is not None:
        return state.startswith(CONNECTION_CLASSES) or state == "40003"
    if _mysql_code(error) is not None:
        return _mysql_code(error) in CONNECTION_MYSQL
    # PostgreSQL's drivers raise such errors themselves, without a SQLSTATE, since no server sent one.
    return any(_is_driver_error(candidate) for candidate in _with_cause(error))


def is_starting_or_full(error: BaseException) -> bool:
    """Whether the server has refused a connection and will take one soon: it starts, or has all that it can have."""
    return _is_full(error) or any(phrase in text_of(error) for phrase in STARTING)


def is_overload(error: BaseException) -> bool:
    """Whether fewer sessions may be what the server needs: it hit a time limit, or has no more connections to give.

    The error itself may say so, or one in its chain of causes and contexts."""
    return any(hit_time_limit(candidate) or _is_full(candidate) for candidate in chain_of(error))


def _is_full(error: BaseException) -> bool:
    return _mysql_code(error) in FULL_MYSQL or any(phrase in text_of(error) for phrase in FULL)


def was_not_sent(error: BaseException) -> bool:
    """Whether the statement never left this process, so that it certainly had no effect."""
    return _mysql_code(error) in NOT_SENT_MYSQL


def _is_driver_error(error: BaseException) -> bool:
    root = module_of(error).partition(".")[0]
    return root in {"psycopg", "psycopg2", "psycopg_pool"} and type(error).__name__ in {
        "AdminShutdown",
        "DatabaseError",  # the class itself and no subclass: libpq found that the server had crashed
        "InterfaceError",
        "OperationalError",
    }


def _mysql_code(error: BaseException) -> int | None:
    for candidate in _with_cause(error):
        root, args = module_of(candidate).partition(".")[0], args_of(candidate)
        if root in {"MySQLdb", "pymysql"} and args and isinstance(args[0], int):
            return args[0]
    return None


def _sqlite_name(error: BaseException) -> str:
    for candidate in _with_cause(error):
        name = attribute_of(candidate, "sqlite_errorname")
        if isinstance(name, str):
            return name
    return ""


def _with_cause(error: BaseException) -> tuple[BaseException, ...]:
    # Django raises its own class from the driver's.
    cause = cause_of(error) if module_of(error) == "django.db.utils" else None
    return (error,) if cause is None else (error, cause)
