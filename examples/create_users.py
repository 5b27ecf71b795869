"""Create 10,000 users, each with set-up code of its own, a profile written by a receiver, and a group.

    python examples/create_users.py
    python examples/create_users.py --database postgres --start-method spawn
    python examples/create_users.py --compare

`bulk_create` cannot do this: it calls no save(), sends no signals, and knows nothing of many-to-many rows.
At the end SQL is asked whether every promise was kept; the exit status is 0 only if it was.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import sys
import time
from collections.abc import Callable, Iterator

from _databases import CPUS, ask, choose_database, scratch_database, set_up


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--users", type=int, default=10_000, help="how many users to create (default: 10000)")
    parser.add_argument("--workers", type=int, default=CPUS, help="how many workers (default: the number of CPUs)")
    parser.add_argument("--start-method", choices=["fork", "forkserver", "spawn"], help="default: fork, if it is safe")
    parser.add_argument("--compare", action="store_true", help="also run a plain loop and a ProcessPoolExecutor")
    return parser.parse_args()


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()
    choose_database(ARGUMENTS.database, "create_users")

set_up(SECRET_KEY="only for this example", INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"])

from django.contrib.auth.models import Group, User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import Error, connection, connections, models  # noqa: E402
from django.db.models.signals import post_save  # noqa: E402
from django.dispatch import receiver  # noqa: E402

from poolsave import Report, pooled_operation  # noqa: E402

GROUP_NAME = "customers"
TAKEN = 5
"""Users who are there already, and whose names are in the input once more."""


class Profile(models.Model):
    user = models.OneToOneField(User, on_delete=models.CASCADE)
    api_key = models.CharField(max_length=64)

    class Meta:
        app_label = "create_users"


@receiver(post_save, sender=User)
def write_profile(instance: User, created: bool, **_kwargs: object) -> None:
    if created:
        Profile.objects.create(user=instance, api_key=instance.api_key)  # type: ignore[attr-defined]


def set_up(user: User) -> None:
    """The work before the save that makes a pool worth while: here, to derive a key (about a millisecond)."""
    user.api_key = hashlib.pbkdf2_hmac("sha256", user.username.encode(), b"salt", 2_000).hex()  # type: ignore[attr-defined]


@pooled_operation
def create_user(row: dict[str, str]) -> int:
    user = User(username=row["username"], email=row["email"])
    set_up(user)
    user.save()
    user.groups.add(Group.objects.get(name=GROUP_NAME))
    return user.pk


def rows(count: int) -> Iterator[dict[str, str]]:
    """`count` new users, and among them, spread out, the names that are taken already."""
    for number in range(count):
        if number % max(1, count // TAKEN) == 0 and number // max(1, count // TAKEN) < TAKEN:
            yield {"username": f"taken{number // max(1, count // TAKEN)}", "email": "again@example.org"}
        yield {"username": f"user{number}", "email": f"user{number}@example.org"}


def plain_loop(arguments: argparse.Namespace) -> int:
    """What most people write first."""
    failed = 0
    for row in rows(arguments.users):
        try:
            create_user(row)
        except Error:
            failed += 1
    return failed


def the_articles_way(arguments: argparse.Namespace) -> int:
    """A ProcessPoolExecutor, with all connections closed first, and every future made at once."""
    connections.close_all()
    failed = 0
    with concurrent.futures.ProcessPoolExecutor(max_workers=arguments.workers) as executor:
        futures = [executor.submit(create_user, row) for row in rows(arguments.users)]
        for future in concurrent.futures.as_completed(futures):
            failed += future.exception() is not None
    return failed


def with_poolsave(arguments: argparse.Namespace) -> int:
    return pooled(arguments).failed


def pooled(arguments: argparse.Namespace) -> Report[int]:
    operation = create_user.using(workers=arguments.workers, start_method=arguments.start_method)
    return operation.map(rows(arguments.users))


def broken_promises(report: Report[int], count: int) -> list[str]:
    """Hold the report against the database; gives what does not agree."""
    planted = min(TAKEN, count)
    facts = {
        "objects in the report": (report.total, count + planted),
        "failures in the report": (report.failed, planted),
        "names that failed": ({failure.item["username"] for failure in report.failures}, taken_names(planted)),
        "lost or skipped": (report.lost + report.skipped, 0),
        "users": (ask("SELECT count(*) FROM auth_user"), count + TAKEN),
        "users without exactly one profile": (ask(WITHOUT_ONE.format("create_users_profile")), 0),
        "users without exactly one group": (ask(WITHOUT_ONE.format("auth_user_groups")), 0),
        "returned keys that are no user's": (len(set(report.values)) - ask(NEW_USERS), 0),
    }
    return [f"{name}: {found!r}, expected {wanted!r}" for name, (found, wanted) in facts.items() if found != wanted]


WITHOUT_ONE = "SELECT count(*) FROM auth_user u WHERE (SELECT count(*) FROM {} x WHERE x.user_id = u.id) <> 1"
NEW_USERS = "SELECT count(*) FROM auth_user WHERE username LIKE 'user%'"


def taken_names(count: int) -> set[str]:
    return {f"taken{number}" for number in range(count)}


def make_tables() -> None:
    call_command("migrate", verbosity=0)
    with connection.schema_editor() as editor:
        editor.create_model(Profile)


def start_over() -> None:
    """Empty the tables and plant the users whose names will fail."""
    Profile.objects.all().delete()
    User.objects.all().delete()
    Group.objects.get_or_create(name=GROUP_NAME)
    for name in sorted(taken_names(TAKEN)):
        create_user({"username": name, "email": "first@example.org"})


def compare(arguments: argparse.Namespace) -> None:
    contenders: dict[str, Callable[[argparse.Namespace], int]] = {
        "plain loop": plain_loop,
        "ProcessPoolExecutor, as in the article": the_articles_way,
        "poolsave": with_poolsave,
    }
    print(f"{'':40} {'seconds':>8} {'x loop':>7} {'failed':>7} {'saved':>7}")
    loop = 0.0
    for name, contender in contenders.items():
        start_over()
        began = time.perf_counter()
        failed = contender(arguments)
        seconds = time.perf_counter() - began
        loop = loop or seconds
        print(f"{name:40} {seconds:>8.2f} {loop / seconds:>7.2f} {failed:>7} {ask(NEW_USERS):>7}")


def main(arguments: argparse.Namespace) -> int:
    with scratch_database():
        make_tables()
        if arguments.compare:
            compare(arguments)
        start_over()
        report = pooled(arguments)
        problems = broken_promises(report, arguments.users)
    print(f"{report}\nThe {TAKEN} failures were planted: names that were taken before.")
    print("\n".join(problems) or "Every promise was kept: one profile and one group for every saved user.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(ARGUMENTS))
