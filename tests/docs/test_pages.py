"""Every page of docs can be found, its links lead somewhere, and its code runs as it stands there."""

import io
import json
import re
import sys
import types

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import call_command

from poolsave import Options, executors
from tests.docs.pages import DOCS, PAGES, ROOT, name_of, python_of

WITH_CODE = [page for page in PAGES if python_of(page.read_text())]
SCRIPT = """
from django.contrib.auth.models import Group, User

from poolsave import pooled_operation


@pooled_operation(workers=2, progress=False)
def create_user(row):
    user = User(username=row["username"], email=row["email"])
    user.set_unusable_password()
    user.save()
    user.groups.add(Group.objects.get(name="customers"))
    return user.pk


rows = [{"username": f"user{number}", "email": f"{number}@example.org"} for number in range(20)]
"""
"""What pages go on from, as they say: the script of README, with fewer rows."""


@pytest.fixture
def page_module(monkeypatch, tmp_path):
    """What the code of a page goes on from: a module with the script, whose functions workers find by name."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    exec(compile(SCRIPT, "script", "exec"), module.__dict__)
    return module


def run_code(page, module, only=""):
    for block in python_of(page.read_text()):
        if only in block:
            exec(compile(block, str(page), "exec"), module.__dict__)


@pytest.mark.programs
@pytest.mark.django_db(transaction=True, databases=["default", "second", "postgres"])
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_code_runs_as_it_stands_there(page, page_module):
    Group.objects.create(name="customers")
    run_code(page, page_module)


@pytest.mark.django_db(transaction=True)
def test_the_test_case_on_the_page_about_testing_passes(page_module):
    run_code(DOCS / "howto" / "testing.md", page_module, only="TransactionTestCase")
    page_module.CreateUsers("test_a_pool_creates_users").test_a_pool_creates_users()
    assert User.objects.count() == 10


@pytest.mark.django_db(transaction=True)
def test_the_cron_job_on_its_page_changes_what_is_left(page_module):
    User.objects.bulk_create(User(username=f"user{n}", first_name="Ann" if n < 3 else "") for n in range(10))
    run_code(DOCS / "howto" / "cron-job.md", page_module, only="welcome")
    assert page_module.main() == 0
    assert sorted(User.objects.values_list("first_name", flat=True)) == 3 * ["Ann"] + 7 * ["customer"]


@pytest.mark.django_db(transaction=True)
def test_the_durable_cron_job_on_its_page_goes_on_with_a_night_that_was_cut(page_module):
    User.objects.bulk_create(User(username=f"user{number}") for number in range(300))
    run_code(DOCS / "howto" / "cron-job.md", page_module, only="dots-")

    def cut(outcome):
        raise KeyError(outcome.index)

    with pytest.raises(KeyError):
        page_module.add_dot.map(User.objects.all(), run="dots-2026-01-01", on_outcome=cut)
    assert set(User.objects.values_list("last_name", flat=True)) == {"", "."}
    assert page_module.main() == 0
    assert set(User.objects.values_list("last_name", flat=True)) == {"."}
    assert page_module.main() == 0  # the next night
    assert page_module.main() == 0  # once more in that night
    assert set(User.objects.values_list("last_name", flat=True)) == {".."}


@pytest.mark.django_db(transaction=True)
def test_the_command_on_its_page_does_what_it_says(page_module):
    User.objects.bulk_create(User(username=f"user{number}") for number in range(10))
    run_code(DOCS / "howto" / "management-command.md", page_module, only="class Command")
    printed = io.StringIO()
    call_command(page_module.Command(), workers=2, stdout=printed)
    assert not User.objects.filter(is_active=True).exists()
    assert "10 succeeded" in printed.getvalue()


def test_each_page_is_in_a_table_of_contents():
    listed = {"index.md"}
    for page in PAGES:
        for table in re.findall(r"```{toctree}\n(.*?)```", page.read_text(), re.DOTALL):
            entries = [line for line in table.splitlines() if line and not line.startswith(":")]
            listed |= {str((page.parent / f"{entry}.md").relative_to(DOCS)) for entry in entries}
    assert listed == {str(page.relative_to(DOCS)) for page in PAGES}


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=name_of)
def test_links_lead_to_files_that_are_there(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", page.read_text())
    files = [link for link in links if "://" not in link]
    assert [link for link in files if not (page.parent / link).exists()] == []


@pytest.mark.django_db(transaction=True)
def test_the_columns_of_the_command_are_in_their_order():
    page = (DOCS / "reference" / "command.md").read_text()
    (listed,) = re.findall(r"<!-- columns -->\n(.*?)<!-- end of columns -->", page, re.DOTALL)
    printed = io.StringIO()
    call_command("poolsave", "list", "--json", stdout=printed)
    assert re.findall(r"`(\w+)`", listed) == list(json.loads(printed.getvalue())[0])


def test_every_option_is_in_the_table():
    table = (DOCS / "reference" / "options.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == Options.names()


PROMISES = {
    "blames a worker's death on one object": "blames_exactly",
    "can end an object (`timeout`)": "enforces_timeout",
    "second Ctrl-C ends at once": "can_kill",
    "begins an object at most once": "at_most_once",
    "shares memory": "shares_memory",
}


def test_the_table_of_promises_is_that_of_the_classes():
    """Every class that has promises has its row, and every row is what the class says of itself."""
    said = {True: "yes", False: "no"}
    table = [("executor", *PROMISES)]
    for name in executors.__all__:
        kind = getattr(executors, name)
        if kind not in (executors.Executor, executors.Resizable) and hasattr(kind, "blames_exactly"):
            table.append((f"`{name}`", *(said[getattr(kind, promise)] for promise in PROMISES.values())))
    page = (DOCS / "choose.md").read_text()
    (written,) = re.findall(r"What an executor can promise differs:\n\n(.*?)\n\n", page + "\n\n", re.DOTALL)
    head, _line, *rows = [tuple(map(str.strip, line.strip("|").split("|"))) for line in written.splitlines()]
    assert head == table[0]
    # The names by which `executor=` knows them stand behind those of the classes.
    assert sorted((cells[0].split(",")[0], *cells[1:]) for cells in rows) == sorted(table[1:])
