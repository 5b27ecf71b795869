"""Create 10,000 users, each with a key that takes time to derive, a profile that a receiver writes, and a group.

    python examples/create_users.py
    python examples/create_users.py --database postgres --start-method spawn

`bulk_create` cannot do this: it calls no save(), sends no signals, and knows nothing of many-to-many rows.
"""

import hashlib
import os
import sys
from itertools import chain

import django
from _script import parse_options, scratch_database

if __name__ == "__main__":
    OPTIONS = parse_options(__doc__, users=10_000)

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django.setup()

from customers.models import Profile
from django.contrib.auth.models import Group, User

from poolsave import pooled_operation

TAKEN = [f"taken{number}" for number in range(5)]


@pooled_operation
def create_user(row):
    user = User(username=row["username"], email=row["email"])
    user.api_key = hashlib.pbkdf2_hmac("sha256", user.username.encode(), b"salt", 2_000).hex()  # about a millisecond
    user.save()  # a receiver in customers/models.py writes the profile
    user.groups.add(Group.objects.get(name="customers"))
    return user.pk


def rows(count):
    """Five names that are taken, and `count` new ones: a generator, which the pool reads as it needs rows."""
    for name in chain(TAKEN, (f"user{number}" for number in range(count))):
        yield {"username": name, "email": f"{name}@example.org"}


def main(options):
    Group.objects.create(name="customers")
    for name in TAKEN:
        create_user({"username": name, "email": "first@example.org"})  # without the pool: still a function
    operation = create_user.using(workers=options.workers, start_method=options.start_method)
    report = operation.map(rows(options.users))
    profiles = Profile.objects.count()
    print(f"{report}\nThe database has {profiles} users with a profile, {len(TAKEN)} of them from before.")
    return profiles == len(TAKEN) + report.succeeded


if __name__ == "__main__":
    with scratch_database():
        sys.exit(None if main(OPTIONS) else "the report and the database differ")
