"""What is done with one object. Processes that are started afresh import this by name, so it sets Django up itself."""

import hashlib
import os
import signal
import time
from pathlib import Path

import django

django.setup()

from django.contrib.auth.models import Group, User  # noqa: E402
from django.db import connection, transaction  # noqa: E402

from poolsave import pooled_operation  # noqa: E402
from tests.benchmarks.models import AuditRow, Entry, Note, Product, Profile  # noqa: E402

GROUP = 1
"""The primary key of the one group."""


def nothing(number):
    """The smallest object: what it takes is the pool's own cost."""


def give_back(row):
    """The same, there and back."""
    return row


def create_user(number):
    """A row of its own, one that a receiver writes, and one of a many-to-many relation."""
    user = User(username=f"user{number}", email=f"user{number}@example.org")
    user.set_unusable_password()
    user.save()
    user.groups.add(GROUP)
    return user.pk


def bulk_create_users(numbers):
    """The same rows without save(), signals and whatever else bulk_create leaves out."""
    users = [User(username=f"user{number}", email=f"user{number}@example.org") for number in numbers]
    for user in users:
        user.set_unusable_password()
    with transaction.atomic():
        User.objects.bulk_create(users, batch_size=1000)
        profiles = [Profile(user=user, nickname=user.username.title()) for user in users]
        Profile.objects.bulk_create(profiles, batch_size=1000)
        members = [User.groups.through(user_id=user.pk, group_id=GROUP) for user in users]
        User.groups.through.objects.bulk_create(members, batch_size=1000)


def create_user_unless_taken(number):
    return create_user("taken" if number % 20 == 7 else number)


def take_the_name():
    User.objects.bulk_create([User(username="usertaken")])


def create_entry(number):
    """A row, and one that a receiver writes."""
    return Entry.objects.create(code=f"entry {number}", amount=number).pk


def bulk_create_entries(numbers):
    with transaction.atomic():
        entries = [Entry(code=f"entry {number}", amount=number) for number in numbers]
        Entry.objects.bulk_create(entries, batch_size=1000)
        audit_rows = [AuditRow(entry=entry, text=f"{entry.code}: {entry.amount}") for entry in entries]
        AuditRow.objects.bulk_create(audit_rows, batch_size=1000)


def hash_for(seconds, word):
    """A password hash whose number of iterations was chosen to take so long here."""
    return hashlib.pbkdf2_hmac("sha256", word.encode(), b"salt", iterations(seconds)).hex()


ITERATIONS_VARIABLE = "POOLSAVE_BENCHMARKS_ITERATIONS"


def iterations(seconds):
    return max(1, int(float(os.environ[ITERATIONS_VARIABLE]) * seconds))


def calibrate():
    """Find out how many iterations this machine does in a second, and have all processes use that number."""
    tried = 20_000
    took = []
    for _ in range(7):
        began = time.perf_counter()
        hashlib.pbkdf2_hmac("sha256", b"word", b"salt", tried)
        took.append(time.perf_counter() - began)
    os.environ[ITERATIONS_VARIABLE] = str(tried / min(took))


def hash_and_create_user(number):
    """Set-up code that computes for 10 ms, as password hashers do, and then the save."""
    user = User(username=f"user{number}", email=f"user{number}@example.org", password=hash_for(0.010, str(number)))
    user.save()
    user.groups.add(GROUP)
    return user.pk


def wait(number):
    """5 ms of waiting for somebody else."""
    time.sleep(0.005)
    return number


def wait_and_create_user(number):
    return create_user(wait(number))


def wait_and_create_user_at_once(number):
    """The same with a transaction around the save, and not around the waiting."""
    wait(number)
    with transaction.atomic():
        return create_user(number)


def wait_and_write_note(number):
    return write_note(wait(number))


def wait_and_write_note_at_once(number):
    wait(number)
    with transaction.atomic():
        return write_note(number)


def raise_price(product):
    product.price += 1
    product.save()


def write_note(number):
    return Note.objects.create(text=f"note {number}").pk


def hash_10_ms_and_write_note(number):
    return Note.objects.create(text=hash_for(0.010, str(number))).pk


def hash_1_ms_and_write_note(number):
    return Note.objects.create(text=hash_for(0.001, str(number))).pk


def ask_the_database(number):
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s", [number])
        return cursor.fetchone()[0]


def create_user_or_die(number_and_mark):
    """Some objects kill the worker that they are in, once: their mark says that they have done so."""
    number, mark = number_and_mark
    if mark:
        try:
            Path(mark).touch(exist_ok=False)
        except FileExistsError:
            return create_user(number)
        os.kill(os.getpid(), signal.SIGKILL)
    return create_user(number)


def make_group():
    Group.objects.update_or_create(pk=GROUP, defaults={"name": "customers"})


def products(count):
    """The first rows of the table, as a loop reads them: with a cursor, and not all at once."""
    return Product.objects.filter(pk__lte=count).order_by("pk")


def raise_prices_of(pks):
    """One chunk of what somebody may write by hand to go over a table: in one transaction, and fetched by keys."""
    with transaction.atomic():
        for product in Product.objects.filter(pk__range=pks):
            raise_price(product)


def one_by_one(count):
    """A generator, whose length nobody can know before its end."""
    yield from range(count)


@pooled_operation(progress=False, start_method="fork", keep="failures")
def raise_price_durably(product):
    """An UPDATE by save(), as most backfills do."""
    product.price += 1
    product.save()
