"""What a dry run says would change is what a run then changes, as plain SQL finds it. The dry run leaves nothing."""

import json

import pytest
from django.apps import apps
from django.db import connections, transaction
from django.db.models import F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from poolsave import pooled_operation
from tests.models import Account, Badge, Person, SavingsAccount, Tag
from tests.support.selection import examples
from tests.support.tables import contents, difference

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
UNTOLD = "a value that is another one in each run"


def save_name(row, number, alias):
    row.name = f"name {number % 2}"
    row.save()


def save_json(row, number, alias):
    row.data = [{"a": 1}, {"a": True}, {"a": 1, "b": [None, 1.5]}, {}, None][number]
    row.save()


def add_by_expression(row, number, alias):
    Account.objects.using(alias).filter(balance__gte=number).update(balance=F("balance") + number, name=F("name"))


def save_expression(row, number, alias):
    row.balance = F("balance") + number
    row.save(update_fields=["balance"])


def update_across_tables(row, number, alias):
    SavingsAccount.objects.using(alias).filter(tags__name="red").update(rate=number, balance=F("balance") + 1)


def update_by_owner(row, number, alias):
    Account.objects.using(alias).filter(owner__name__endswith=str(number)).update(data={"owner": number})


def set_tags(row, number, alias):
    row.tags.set(Tag.objects.using(alias).order_by("pk")[:number])


def remove_tags(row, number, alias):
    row.tags.remove(*Tag.objects.using(alias).order_by("-pk")[:number])


def delete_row(row, number, alias):
    if number == 1:
        row.delete()


def delete_owners(row, number, alias):
    Person.objects.using(alias).filter(name=f"owner {number}").delete()


def delete_tags(row, number, alias):
    Tag.objects.using(alias).filter(name="blue", account__isnull=False).delete()


def change_owner(row, number, alias):
    row.owner = Person.objects.using(alias).get_or_create(name=f"owner {number}")[0]
    row.save(update_fields=["owner"])


def create_child(row, number, alias):
    SavingsAccount.objects.using(alias).create(name="child", rate=number, owner_id=row.owner_id)


def create_many(row, number, alias):
    Account.objects.using(alias).bulk_create([Account(name="many", balance=each) for each in range(number)])


def create_many_despite_conflicts(row, number, alias):
    rows = [Tag(name=name) for name in ("red", f"tag {number}", "blue")]
    Tag.objects.using(alias).bulk_create(rows, ignore_conflicts=True)


def create_or_update_many(row, number, alias):
    rows = [Account(pk=row.pk, balance=7), Account(pk=-1 - number, balance=number)]
    target = {} if connections[alias].vendor == "mysql" else {"unique_fields": ["id"]}
    Account.objects.using(alias).bulk_create(rows, update_conflicts=True, update_fields=["balance"], **target)


def update_many(row, number, alias):
    rows = list(Account.objects.using(alias).order_by("pk")[:number])
    for each in rows:
        each.name, each.balance = "updated", F("balance") * 2
    Account.objects.using(alias).bulk_update(rows, ["name", "balance"])


def move_key(row, number, alias):
    Tag.objects.using(alias).filter(name="loose").update(id=-100 - number)


def move_key_by_expression(row, number, alias):
    Tag.objects.using(alias).filter(name="loose").update(id=F("id") * -1)


def undo_a_part(row, number, alias):
    with transaction.atomic(using=alias):
        Account.objects.using(alias).update(name="undone")
        transaction.set_rollback(True, using=alias)


def fail(row, number, alias):
    Account.objects.using(alias).update(name="of a failure")
    if number == 0:
        raise ValueError(number)


def clash(row, number, alias):
    Tag.objects.using(alias).create(name=f"unique {number}")


STEPS = [value for value in list(globals().values()) if getattr(value, "__module__", "") == __name__]
SCRIPTS = st.lists(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 4)), min_size=1, max_size=4), max_size=4)
"""What is done with one object after the other."""


def fill(alias):
    with transaction.atomic(using=alias):  # one COMMIT
        return filled(alias)


def filled(alias):
    for model in (SavingsAccount, Account, Badge, Person, Tag):
        model.objects.using(alias).all().delete()
    owners = [Person.objects.using(alias).create(name=f"owner {number}") for number in range(3)]
    tags = [Tag.objects.using(alias).create(name=name) for name in ("red", "blue", "loose")]
    accounts = [Account.objects.using(alias).create(owner=owners[0], data={"a": 1})]
    accounts += [SavingsAccount.objects.using(alias).create(owner=owner, balance=3) for owner in owners]
    for account in accounts[1:]:
        account.tags.set(tags[:2])
    return [account.pk for account in accounts]


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])  # each fills anew
@given(scripts=SCRIPTS)
@example(scripts=[[(save_json, 1)]])  # from 1 to True, which Python calls equal
def test_changes_told_are_those_that_a_run_makes(alias, scripts):
    keys = fill(alias)

    @pooled_operation(databases=(alias,), executor="serial", progress=False)
    def perform(numbered):
        index, script = numbered
        for step, number in script:
            row = Account.objects.using(alias).filter(pk=keys[index]).first()
            if row is not None:
                step(row, number, alias)

    before = contents(alias)
    preview = perform.dry_run(list(enumerate(scripts)))
    assert contents(alias) == before
    report = perform.map(list(enumerate(scripts)))
    assert as_rows(preview.changes) == comparable(difference(before, contents(alias)))
    assert (preview.succeeded, preview.errors.keys()) == (report.succeeded, report.by_cause().keys())
    assert preview.other_writes == {}


TABLES = {model._meta.db_table: model for model in apps.get_models(include_auto_created=True)}


def as_rows(changes):
    """The changes as what SQL would find."""
    found = {}
    for change in changes:
        columns = {field.attname: field.column for field in change.model._meta.local_concrete_fields}
        key = change.pk if isinstance(change.pk, tuple) else (change.pk,)
        found[change.model._meta.db_table, key] = {columns[name]: pair for name, pair in change.fields.items()}
        assert change.action == action(found[change.model._meta.db_table, key], change)
    return comparable(found)


def action(pairs, change):
    before, after = pairs.get(change.model._meta.pk.column, (0, 0))
    return "create" if before is None else "delete" if after is None else "update"


def comparable(rows):
    """Without what differs from run to run: the time of day, and the keys that sequences give."""
    new = {key for key, pairs in rows.items() if all(old is None for old, _ in pairs.values()) and key[1][0] > 0}
    names = {}
    for table in sorted({table for table, _ in new}, key=is_of_relation):
        keys = sorted(key for of, key in new if of == table)
        if is_of_relation(table):  # Django adds them in the order of a set, which depends on the keys
            keys.sort(
                key=lambda key: [str(plain(TABLES[table], *pair, names)) for pair in ends(rows[table, key], table)]
            )
        names |= {(table, key): f"new {number}" for number, key in enumerate(keys)}
    return {
        (table, names.get((table, key), key)): {
            column: tuple(plain(TABLES[table], column, value, names) for value in pair)
            for column, pair in pairs.items()
        }
        for (table, key), pairs in rows.items()
    }


def is_of_relation(table):
    return bool(TABLES[table]._meta.auto_created)


def ends(pairs, table):
    foreign = [field.column for field in TABLES[table]._meta.local_concrete_fields if field.remote_field]
    return [(column, pairs[column][1]) for column in foreign]


def plain(model, column, value, names):
    field = next(field for field in model._meta.local_concrete_fields if field.column == column)
    if value is None:
        return None
    if column == "updated":
        return UNTOLD
    if column == "data":
        return json.dumps(json.loads(value) if isinstance(value, str) else value)
    table = (field.remote_field.model if field.remote_field else model)._meta.db_table
    return names.get((table, (value,)), value) if field.primary_key or field.remote_field else value
