"""The grid of Python, Django and drivers. `nox -l` lists it, `.ci/run` runs what the machine's interpreters allow."""

import shutil

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = False
nox.options.sessions = ["tests", "lint", "types", "docs", "dist"]

GRID = [
    ("3.11", "5.2", "psycopg2"),
    ("3.12", "6.0", "psycopg2"),
    ("3.13", "6.1", "psycopg"),
    ("3.14", "6.1", "psycopg"),
]


@nox.session
@nox.parametrize(
    ("python", "django", "driver"),
    [nox.param(*row, id=f"py{row[0]}-django{row[1]}-{row[2]}") for row in GRID],
)
def tests(session, django, driver):
    session.install("-e", ".[test,bench,mariadb]", f"django~={django}.0")
    if driver == "psycopg2":  # Django takes it only where psycopg 3 is not installed
        session.run("python", "-m", "pip", "uninstall", "-q", "-y", "psycopg", "psycopg-binary", "psycopg-pool")
    session.run("python", "-m", "pytest", *session.posargs, env={"POOLSAVE_TEST_REQUIRE": "mariadb"})


@nox.session(python="3.11")
def browser(session):
    session.install("-e", ".[test,docs,browser]")
    command = ["python", "-m", "pytest", "-m", "browser", "-n", "0", *session.posargs]
    session.run(*command, env={"POOLSAVE_TEST_REQUIRE": "browser"})


@nox.session(python="3.11")
def lint(session):
    session.install("ruff~=0.17.5")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session(python="3.11")
def types(session):
    session.install("-e", ".[dev]")
    session.run("mypy")
    session.run("pyright")
    session.run("lint-imports")


@nox.session(python="3.11")
def docs(session):
    session.install("-e", ".[docs]")
    session.run("python", "-m", "sphinx", "-W", "-n", "-q", "docs", "build/docs")


@nox.session(python="3.11")
def dist(session):
    """What is released: dist/*.whl and dist/*.tar.gz."""
    session.install("build", "twine")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    session.run("python", "-m", "twine", "check", "--strict", "dist/*")
    session.run("python", "-m", "tests.distributions", "dist")
