"""People start, watch, pause, resume and retry a run in a browser, on wide and narrow screens, while a process works.

The web server, `manage.py poolsave work` and the browser are processes as in a project of a user's. With
POOLSAVE_TEST_SCREENSHOTS=docs/images the pictures of the documentation are taken anew.
"""

import os
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.support import browser, projects

pytestmark = [*browser.mark(), pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
PICTURES = os.environ.get("POOLSAVE_TEST_SCREENSHOTS")
PAGE = ROOT / "docs" / "howto" / "durable-runs-in-the-admin.md"
BOTTOM = "return Math.ceil(document.getElementById('content-main').getBoundingClientRect().bottom + window.scrollY)"
"""Where what a page shows ends, in pixels."""
PROJECT = {
    **projects.MANAGE,
    "conf.py": """
        from pathlib import Path

        FOLDER = Path(__file__).parent
        SECRET_KEY = "only for tests"
        DEBUG = True  # or runserver gives no stylesheets
        ALLOWED_HOSTS = ["*"]
        ROOT_URLCONF = "urls"
        STATIC_URL = "static/"
        USE_TZ = True
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
        CONTRIB = ["admin", "auth", "contenttypes", "messages", "sessions", "staticfiles"]
        INSTALLED_APPS = [*(f"django.contrib.{name}" for name in CONTRIB), "poolsave.ledger", "shop"]
        MIDDLEWARE = [
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ]
        PROCESSORS = ["template.context_processors.request", "contrib.auth.context_processors.auth"]
        PROCESSORS += ["contrib.messages.context_processors.messages"]
        TEMPLATES = [
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {"context_processors": [f"django.{name}" for name in PROCESSORS]},
            }
        ]
        DATABASES = {
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": FOLDER / "db.sqlite3",
                "OPTIONS": {"timeout": 60, "init_command": "PRAGMA journal_mode=WAL"},
            }
        }
    """,
    "urls.py": """
        from django.contrib import admin
        from django.urls import path

        urlpatterns = [path("admin/", admin.site.urls)]
    """,
    "shop/__init__.py": "",
    "shop/models.py": """
        from django.db import models


        class Article(models.Model):
            title = models.CharField(max_length=100, blank=True)
            slug = models.SlugField(null=True, unique=True)
    """,
    "shop/backfills.py": """
        import time

        from django import forms
        from django.conf import settings
        from django.utils.text import slugify

        import poolsave
        from shop.models import Article


        class Language(forms.Form):
            prefix = forms.SlugField(help_text="What the slugs begin with, such as a language.")


        @poolsave.backfill("articles-slug", queryset=lambda cleaned: Article.objects.filter(slug=None), form=Language)
        @poolsave.pooled_operation(workers=2, progress=False)
        def fill_slug(article, prefix):
            while article.pk > 100 and (settings.FOLDER / "closed").exists():
                time.sleep(0.05)
            if (settings.FOLDER / "slow").exists():
                time.sleep(0.05)
            if not article.title and not (settings.FOLDER / "mended").exists():
                raise ValueError(f"article {article.pk} has no title")
            article.slug = slugify(f"{prefix} {article.title or article.pk}")
            article.save()
    """,
    "fill.py": """
        from django.contrib.auth.models import User

        from shop.models import Article

        User.objects.create_superuser("ada", password="ada")
        titles = {number: f"Article {number}" for number in range(400)}
        titles |= {number: "" for number in range(7, 400, 40)} | {number: "Twice" for number in range(9, 400, 100)}
        Article.objects.bulk_create(Article(title=title) for title in titles.values())
    """,
}
UNTITLED, TWICE = 10, 4
"""How many of the 400 articles have no title, and one that others have; of the latter one gets its slug."""


class Project:
    """A folder with a project, and the processes that run there."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.environment.pop("DJANGO_SETTINGS_MODULE", None)
        projects.write(folder, PROJECT)

    def manage(self, *arguments):
        subprocess.run(self._command(*arguments), cwd=self.folder, env=self.environment, check=True, timeout=120)

    @contextmanager
    def running(self, *arguments):
        log = self.folder / f"{arguments[0]}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                self._command(*arguments), cwd=self.folder, env=self.environment, stdout=output, stderr=output
            )
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)

    def _command(self, *arguments):
        return [sys.executable, "manage.py", *arguments]

    def slugs(self):
        with closing(sqlite3.connect(self.folder / "db.sqlite3")) as database:
            return database.execute("SELECT count(*) FROM shop_article WHERE slug LIKE 'en-%'").fetchone()[0]


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path / "project")
    project.manage("migrate", "--run-syncdb", "-v", "0")
    project.manage("shell", "-v", "0", "-c", "exec(open('fill.py').read())")
    return project


@pytest.fixture
def address(project):
    """Where the admin answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    with project.running("runserver", "--noreload", "--skip-checks", f"127.0.0.1:{port}"):
        wait_until(lambda: _answers(port), seconds=60)
        yield f"http://127.0.0.1:{port}/admin/"


def _answers(port):
    with closing(socket.socket()) as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class Page:
    """What a person does with the page that is open, and sees there."""

    def __init__(self, driver):
        self.driver = driver

    def type(self, name, text):
        self.driver.find_element("name", name).send_keys(text)

    def press(self, text, within="//"):
        """Press the button or the link that has this text."""
        named = f"[normalize-space()='{text}' or @value='{text}']"
        path = f"{within}*[self::a or self::button or self::input]{named}"
        browser.wait_for(self.driver, lambda driver: driver.find_element("xpath", path)).click()

    def wait_for(self, *texts):
        """Wait until the page, which loads itself again, has all these texts."""
        browser.wait_for(self.driver, lambda driver: all(text in self.text() for text in texts))

    def wait_for_status(self, status, *texts):
        """The same, with this status of the run."""
        find = self.driver.find_element
        browser.wait_for(self.driver, lambda driver: find("class name", "run-status").text == status)
        self.wait_for(*texts)

    def text(self):
        return self.driver.find_element("id", "content").text

    def look(self, name):
        """Look at it on both screens: it fits. Pictures that the documentation has are taken if asked for."""
        for width in (browser.NARROW, browser.WIDE):
            browser.resize(self.driver, width)
            assert not browser.is_wider_than_the_screen(self.driver), (name, width)
            if PICTURES and f"{name}-{width}.png" in PAGE.read_text():
                browser.resize(self.driver, width, self.driver.execute_script(BOTTOM) + 20)
                self.driver.save_screenshot(str(ROOT / PICTURES / f"{name}-{width}.png"))


def test_a_run_is_started_watched_paused_and_retried(project, address, tmp_path):
    for name in ("closed", "slow"):
        (project.folder / name).touch()
    with browser.opened(tmp_path) as driver, project.running("poolsave", "work"):
        page = Page(driver)
        driver.get(f"{address}poolsave_ledger/run/")
        page.type("username", "ada")
        page.type("password", "ada")
        page.press("Log in")

        page.press("Start a run")
        page.look("admin-backfills")
        page.press("Start")
        page.type("prefix", "en")
        page.press("Count the rows")
        page.wait_for("400 rows")
        page.look("admin-start")
        page.press("Start")

        page.wait_for_status("running", " of 400", "a second")
        page.look("admin-running")
        page.press("Pause")
        (project.folder / "closed").unlink()  # what has begun can end
        page.wait_for_status("paused", "paused by ada")
        assert 0 < project.slugs() < 380
        page.look("admin-paused")
        (project.folder / "slow").unlink()
        page.press("Resume")

        page.wait_for_status("finished with failures", "400 of 400", f"{UNTITLED} failures", f"{TWICE - 1} failures")
        assert project.slugs() == 400 - UNTITLED - (TWICE - 1)
        page.look("admin-failures")
        page.press("Show", within="//tr[contains(., 'ValueError')]//")
        page.look("admin-list-of-failures")
        driver.find_element("css selector", "#result_list tbody th a").click()
        page.wait_for("Traceback (most recent call last)", "has no title")
        page.look("admin-failure")
        page.press("articles-slug", within="//*[@id='content']//")

        (project.folder / "mended").touch()
        page.press("Retry", within="//tr[contains(., 'ValueError')]//")
        page.wait_for_status("finished with failures", f"{TWICE - 1} failures")
        browser.wait_for(driver, lambda driver: "ValueError" not in page.text())
        assert project.slugs() == 400 - (TWICE - 1)

        page.press("History")
        page.wait_for("Started.", "Asked to pause.", "Asked to go on.", "Asked to try 10 failures again")
        driver.get(f"{address}poolsave_ledger/run/")
        page.wait_for("articles-slug", "400 of 400")
        page.look("admin-runs")
