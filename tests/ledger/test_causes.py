"""Failures of one cause are counted as one, whatever values stand in their messages.

What is right is how often each kind of error was raised.
"""

import traceback

import pytest
from django.db import DatabaseError, connections, transaction

from poolsave.errors import RemoteError
from poolsave.ledger import causes
from poolsave.ledger.models import Failure, Run
from tests.models import Account, Person, Tag

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
HERE = "tests/ledger/test_causes.py"


def raised(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except BaseException as error:
        return error, "".join(traceback.format_exception(error))
    pytest.fail("it raised nothing")


def cause(function, *args, **kwargs):
    return causes.cause_of(*raised(function, *args, **kwargs))


def duplicate(alias, name):
    with transaction.atomic(alias):
        Tag.objects.using(alias).create(name=name)


def test_values_in_messages_make_no_other_cause(alias):
    for name in ("ada", 'o\'hara "x"'):
        duplicate(alias, name)
    first, second = (cause(duplicate, alias, name) for name in ("ada", 'o\'hara "x"'))
    assert first == second
    assert first.error_class == "django.db.utils.IntegrityError"
    assert first.frame.startswith(f"{HERE}:")
    assert first.frame.endswith(" in duplicate")  # and no line of Django's
    assert first.sqlstate == {"default": "", "postgres": "23505", "mariadb": "1062"}[alias]
    assert first.constraint == {"default": "tests_tag.name", "postgres": "tests_tag_name_key", "mariadb": "name"}[alias]
    assert "ada" not in first.text


def check_fails(alias):
    with transaction.atomic(alias), connections[alias].cursor() as cursor:
        cursor.execute("INSERT INTO checked VALUES (-7)")


def test_a_check_is_named(alias):
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE checked (number integer, CONSTRAINT above_zero CHECK (number > 0))")
        try:
            assert cause(check_fails, alias).constraint == "above_zero"
        finally:
            cursor.execute("DROP TABLE checked")


def without_name(alias):
    Person.objects.using(alias).create(name=None)


def test_other_constraints_and_lines_are_other_causes(alias):
    duplicate(alias, "ada")
    found = {cause(duplicate, alias, "ada").text, cause(without_name, alias).text, cause(int, "x").text}
    assert len(found) == 3


@pytest.mark.parametrize("message", ['constraint "fake"', "for key 'fake'", "UNIQUE constraint failed: fake"])
def test_a_message_of_the_programs_own_names_no_constraint(message):
    error = ValueError(message)
    assert causes.cause_of(error, "").constraint == ""


def deep(number):
    if number:
        deep(number - 1)
    raise KeyError(number)


def test_the_frame_is_the_innermost_one_of_the_user():
    line = deep.__code__.co_firstlineno + 3
    assert cause(deep, 3).frame == f"{HERE}:{line} in deep"
    assert cause(deep, 200).frame == cause(deep, 3).frame  # though Python shortens what is repeated


def loses_the_way(text):
    try:
        deep(0)
    except KeyError as error:
        raise ValueError(text) from error


def test_of_chained_errors_the_last_one_counts():
    assert cause(loses_the_way, "x").frame.endswith(" in loses_the_way")


def test_a_traceback_within_a_message_is_not_read():
    inner = raised(deep, 0)[1]
    assert cause(loses_the_way, inner).frame.endswith(" in loses_the_way")
    assert cause(loses_the_way, f'\n  File "x.py", line 1, in fake\n{inner}').frame.endswith(" in loses_the_way")


def raises_group():
    raise ExceptionGroup("several", [raised(deep, 0)[0], ValueError("other")])


def test_a_group_has_the_frame_where_it_was_raised():
    assert cause(raises_group).frame.endswith(" in raises_group")


def test_without_a_line_of_the_users_there_is_a_librarys():
    text = 'Traceback (most recent call last):\n  File "/x/site-packages/lib/a.py", line 7, in b\n    c()\nE: x\n'
    assert causes.cause_of(ValueError(), text).frame == "/x/site-packages/lib/a.py:7 in b"
    assert causes.cause_of(ValueError(), "").text == "builtins.ValueError"


def test_an_error_whose_class_is_unknown_here_has_its_own_name():
    error = RemoteError("shop.errors.Sold", 'row violates check constraint "sold_once"', sqlstate="23514")
    assert causes.cause_of(error, "")[:3] == ("shop.errors.Sold", "23514", "sold_once")


class Hostile(DatabaseError):
    def __str__(self):
        raise ValueError("no text")

    def __getattr__(self, name):
        raise ValueError(name)


def test_a_broken_class_of_errors_has_a_cause():
    assert causes.cause_of(Hostile(), "").error_class == "tests.ledger.test_causes.Hostile"


def test_long_names_fit_the_columns_and_stay_apart(alias):
    long = [type("E" + "x" * 400 + end, (Exception,), {})() for end in "ab"]
    found = [causes.cause_of(error, "") for error in long]
    assert found[0].text != found[1].text
    run = Run.objects.using(alias).create(name="long")
    for number, one in enumerate(found):
        store(run, number, one)
    assert len(causes.grouped(run)) == 2


def store(run, key, one, **values):
    facts = {"error_class": one.error_class, "sqlstate": one.sqlstate, "constraint": one.constraint}
    return Failure(run_id=run.pk, key=str(key), cause=one.text, frame=one.frame, **facts, **values).save(
        using=run._state.db
    )


def test_grouped_counts_what_is_unresolved_in_one_query(alias, django_assert_num_queries):
    duplicate(alias, "ada")
    run, other = (Run.objects.using(alias).create(name=name) for name in ("one", "other"))
    taken, key = cause(duplicate, alias, "ada"), cause(deep, 0)
    for number in range(30):
        store(run, number, taken if number % 3 else key)
    store(other, 1, taken)
    Failure.objects.using(alias).filter(run=run, key="1").update(resolved_at=run.created_at)
    with django_assert_num_queries(1, connection=connections[alias]):
        found = causes.grouped(run)
    assert [(one.cause, one.failures, one.error_class) for one in found] == [
        (taken.text, 19, "django.db.utils.IntegrityError"),
        (key.text, 10, "builtins.KeyError"),
    ]
    assert found[0].key in {str(number) for number in range(30) if number % 3}
    assert (
        found[0].last == Failure.objects.using(alias).filter(run=run, cause=taken.text).latest("created_at").created_at
    )


def checked(alias):
    with transaction.atomic(alias):
        Account.objects.using(alias).create(owner_id=4711)


def test_a_missing_parent_names_its_foreign_key(server):
    found = cause(checked, server)
    assert "owner_id" in found.constraint, found
    assert found.sqlstate == {"postgres": "23503", "mariadb": "1452"}[server]


def test_the_constraint_is_found_without_the_drivers_error(server):
    duplicate(server, "ada")
    error, text = raised(duplicate, server, "ada")
    expected = causes.cause_of(error, text)
    error.__cause__ = None  # as in the caller, to which it came from a worker
    assert causes.cause_of(error, text).constraint == expected.constraint != ""
