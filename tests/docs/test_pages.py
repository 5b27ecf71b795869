"""Every page of docs can be found, its links lead somewhere, and its code runs as it stands there."""

import builtins
import codeop
import io
import json
import re
import symtable
import sys
import textwrap
import types

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command

from poolsave import Options, executors
from tests.docs.pages import DOCS, PAGES, ROOT, name_of, python_of
from tests.docs.test_readme import SETTINGS, run

WITH_CODE = [page for page in PAGES if python_of(page.read_text())]
GOES_ON = re.compile(r"goes on from\s+\[the script")
"""What a page says that takes names from the script of README. Any other page has only the names that it defines."""
README, HOW_TO = ROOT / "README.md", DOCS / "howto" / "index.md"
GUARD = 'if __name__ == "__main__":'
FILE = re.compile(r"\n*# (\w+)\.py\b")
"""How a block begins that is a file by itself, unless it is a script with a guard."""


def file_name(block):
    """The module's name of a block that is a file by itself; else None."""
    match = FILE.match(block)
    return match[1] if match else "script" if GUARD in block else None


def script():
    """The script of README, as the page about how to says to change it: other last lines, which run below the guard."""
    (code,), (last,) = python_of(README.read_text()), python_of(HOW_TO.read_text())
    kept = code.strip().splitlines()[:-2]
    return "\n".join([*kept, textwrap.indent(last.strip(), "    ")])


@pytest.fixture
def run_page(monkeypatch, tmp_path):
    """Runs the code of a page in a module, where workers find its functions, with nothing but what the page says."""
    monkeypatch.chdir(tmp_path)

    def run_module(name, code):
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(code, vars(module))
        return module

    def run_page(page, only=""):
        text = page.read_text()
        code = compile(script().replace(GUARD, "if True:"), "script", "exec") if GOES_ON.search(text) else ""
        module = run_module("page", code)
        run_module("create_users", compile(python_of(README.read_text())[0], "create_users.py", "exec"))
        for block in python_of(text):
            compiled = compile(block if only in block else "", str(page), "exec")
            if name := file_name(block):
                names = vars(run_module(name, compiled)).items()
                vars(module).update((name, value) for name, value in names if not name.startswith("__"))
            else:
                exec(compiled, vars(module))
        return module

    return run_page


@pytest.mark.programs
@pytest.mark.django_db(transaction=True, databases=["default", "second", "postgres"])
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_code_runs_as_it_stands_there(page, run_page):
    run_page(page)


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_each_name_in_the_code_is_defined_on_the_page(page):
    """Also in functions that no test calls. A block that is a file by itself has all of its names."""
    text = page.read_text()
    blocks = python_of(text)
    whole = "\n".join([script() if GOES_ON.search(text) else "", *blocks])
    assert {*map(undefined_names, [whole, *filter(file_name, blocks)])} == {frozenset()}


def undefined_names(code):
    top = symtable.symtable(code, "page", "exec")
    defined = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    return frozenset(globals_read_in(top) - defined - {*dir(builtins)})


def globals_read_in(table):
    names = {one.get_name() for one in table.get_symbols() if one.is_referenced() and one.is_global()}
    return names.union(*map(globals_read_in, table.get_children()))


@pytest.mark.programs
def test_the_tests_on_the_page_about_testing_pass(tmp_path):
    for block in [*python_of(README.read_text()), *python_of((DOCS / "howto" / "testing.md").read_text())]:
        name = "create_users" if GUARD in block else file_name(block)
        (tmp_path / f"{name}.py").write_text(block.lstrip("\n"))
    (tmp_path / "mysite").mkdir()
    in_a_file = 'DATABASES["default"]["TEST"] = {"NAME": "test.sqlite3"}\n'  # as the page says
    (tmp_path / "mysite" / "settings.py").write_text(SETTINGS + in_a_file)
    (tmp_path / "pytest.ini").write_text("[pytest]\npython_files = test*.py\n")
    printed = run(tmp_path, "-m", "pytest", "-q", "-p", "no:randomly").stdout
    assert "4 passed" in printed


def test_the_tutorial_can_be_pasted_into_a_shell():
    """Line by line, as the plain console reads it: each block ends with an empty line."""
    for block in python_of((DOCS / "tutorial.md").read_text()):
        waiting = []
        for line in [*block.strip("\n").splitlines(), ""]:
            waiting.append(line)
            if codeop.compile_command("\n".join(waiting), symbol="single") is not None:
                waiting = []
        assert waiting == []


@pytest.mark.django_db(transaction=True)
def test_the_cron_job_on_its_page_changes_what_is_left(run_page):
    User.objects.bulk_create(User(username=f"user{n}", first_name="Ann" if n < 3 else "") for n in range(10))
    assert run_page(DOCS / "howto" / "cron-job.md", only="welcome").main() == 0
    assert sorted(User.objects.values_list("first_name", flat=True)) == 3 * ["Ann"] + 7 * ["customer"]


@pytest.mark.django_db(transaction=True)
def test_the_durable_cron_job_goes_on_with_a_night_that_was_cut(run_page):
    User.objects.bulk_create(User(username=f"user{number}") for number in range(300))
    page_module = run_page(DOCS / "howto" / "cron-job.md", only="dots-")

    def cut(outcome):
        raise KeyError(outcome.index)

    with pytest.raises(KeyError):
        page_module.add_dot.map(User.objects.all(), run="dots-2026-01-01", on_outcome=cut)
    assert set(User.objects.values_list("last_name", flat=True)) == {"", "."}
    assert page_module.main() == 0  # goes on with that night, and then does its own
    assert page_module.main() == 0  # has nothing left to do in this night
    assert set(User.objects.values_list("last_name", flat=True)) == {".."}


@pytest.mark.django_db(transaction=True)
def test_the_command_on_its_page_does_what_it_says(run_page):
    command = run_page(DOCS / "howto" / "management-command.md").Command
    User.objects.bulk_create(User(username=f"user{number}") for number in range(10))
    printed = io.StringIO()
    call_command(command(), workers=2, dry_run=True, stdout=printed)
    assert "would update 5 rows of auth.User" in printed.getvalue()
    assert User.objects.filter(is_active=True).count() == 10
    call_command(command(), workers=2, stdout=printed)
    assert not User.objects.filter(is_active=True).exists()
    assert "10 succeeded" in printed.getvalue()


def test_each_page_is_in_a_table_of_contents():
    listed = {"index.md"}
    for page in PAGES:
        for table in re.findall(r"```{toctree}\n(.*?)```", page.read_text(), re.DOTALL):
            lines = [line for line in table.splitlines() if line and not line.startswith(":")]
            entries = [line.rpartition("<")[2].rstrip(">") for line in lines]  # some have a title before
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
